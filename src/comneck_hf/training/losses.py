"""Training losses."""

import torch
from torch.nn import functional as F

from comneck_hf.models.elic.modeling_elic import ElicOutput
from comneck_hf.training.stages import Stage


def rate_distortion_loss(
    outputs: ElicOutput, pixel_values: torch.Tensor, lmbda: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """lambda * 255^2 * MSE + bits per pixel (Balle et al. 2018; the ELIC recipe).

    Args:
        outputs: What the codec's `forward` returned for `pixel_values`.
        pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
        lmbda: Trade-off; larger means better pictures and larger files.

    Returns:
        The loss, a scalar, and for the log: the loss, the estimated bits per pixel of the input, the PSNR in dB.
    """
    batch, _, height, width = pixel_values.shape
    bits = -sum(likelihood.float().log2().sum() for likelihood in outputs.likelihoods.values())
    bpp = bits / (batch * height * width)
    mse = (outputs.reconstruction.float() - pixel_values.float()).square().mean()
    loss = lmbda * 255**2 * mse + bpp
    return loss, {"loss": loss.item(), "bpp": bpp.item(), "psnr": -10 * mse.log10().item()}


def surrogate_loss(
    image_embeds: torch.Tensor,
    teacher_embeds: torch.Tensor,
    labels: torch.Tensor,
    zero_shot_weights: torch.Tensor,
    *,
    logit_scale: float,
    stage: Stage,
) -> tuple[torch.Tensor, dict[str, float]]:
    """ComNeck's surrogate loss: alpha * cross-entropy + beta * distillation (equations 1 to 3).

    Args:
        image_embeds: Student's projected class tokens, `(batch, projection_dim)`.
        teacher_embeds: CLIP's on the original pictures, same shape.
        labels: Class of each picture, `(batch,)`.
        zero_shot_weights: Unit-norm text embeddings, `(classes, projection_dim)`.
        logit_scale: CLIP's temperature factor, after exp.
        stage: Weights of the two terms.

    Returns:
        The loss, a scalar, and both terms for the log.
    """
    distillation = F.mse_loss(image_embeds, teacher_embeds)
    logits = logit_scale * F.normalize(image_embeds, dim=-1) @ zero_shot_weights.T
    cross_entropy = F.cross_entropy(logits, labels)
    loss = stage.cross_entropy * cross_entropy + stage.distillation * distillation
    return loss, {
        "loss": loss.item(),
        "cross_entropy": cross_entropy.item(),
        "distillation": distillation.item(),
        "accuracy": (logits.argmax(-1) == labels).float().mean().item(),
    }


__all__ = ["rate_distortion_loss", "surrogate_loss"]
