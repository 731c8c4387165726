"""Terms of the training losses; the stages weight them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


__all__ = ["cross_entropy", "distillation", "mean_squared_error", "rate"]


def rate(likelihoods: Mapping[str, Tensor], pixel_values: Tensor) -> Tensor:
    """Estimated bits per pixel: -log2 p(z_hat) - log2 p(y_hat | z_hat), over the pixels of the input.

    Args:
        likelihoods: Of `y` and `z`, as the codec's `forward` returns them.
        pixel_values: What was coded, `(batch, 3, height, width)`.
    """
    batch, _, height, width = pixel_values.shape
    bits = -sum(_wide(likelihood).log2().sum() for likelihood in likelihoods.values())
    return bits / (batch * height * width)


def mean_squared_error(reconstruction: Tensor, pixel_values: Tensor, weights: Tensor | None = None) -> Tensor:
    """d_recon: mean over all values, of pictures in [0, 1]; not clamped.

    Args:
        reconstruction, pixel_values: `(batch, 3, height, width)`.
        weights: Of the squared errors, of a shape that can be multiplied with the pictures; 1 by default.
    """
    if weights is None:
        return F.mse_loss(_wide(reconstruction), _wide(pixel_values))
    return (weights * (_wide(reconstruction) - _wide(pixel_values)).square()).mean()


def distillation(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """ComNeck's equation 1: mean squared distance of the student's features from the teacher's.

    Args:
        student: Features by name.
        teacher: The same names and shapes.
        weights: Weight of every target, such as `{"image_embeds": 1.0}`.
    """
    return sum(weight * F.mse_loss(_wide(student[name]), _wide(teacher[name])) for name, weight in weights.items())


def cross_entropy(
    image_embeds: Tensor, labels: Tensor, zero_shot_weights: Tensor, *, logit_scale: float | None
) -> tuple[Tensor, Tensor]:
    """ComNeck's equation 2: cross-entropy of the zero-shot classifier on the student's embeddings.

    Args:
        image_embeds: Projected class tokens, `(batch, projection_dim)`.
        labels: Class of each picture, `(batch,)`.
        zero_shot_weights: Unit-norm text embeddings, `(classes, projection_dim)`.
        logit_scale: CLIP's temperature factor, after exp, on cosines; `None` for raw dot products, as in the released
            code.

    Returns:
        The loss and the share of right answers.
    """
    embeds = _wide(image_embeds)
    if logit_scale is not None:
        embeds = logit_scale * F.normalize(embeds, dim=-1)
    with torch.autocast(embeds.device.type, enabled=False):  # else a product in half precision
        logits = embeds @ zero_shot_weights.to(embeds).T
    return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
