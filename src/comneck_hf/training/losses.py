"""Training losses."""

import torch

from comneck_hf.models.elic.modeling_elic import ElicOutput


def rate_distortion_loss(
    outputs: ElicOutput, pixel_values: torch.Tensor, lmbda: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """lambda * 255^2 * MSE + bits per pixel (Balle et al. 2018; the ELIC recipe).

    Args:
        outputs: What the codec's `forward` returned for `pixel_values`.
        pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
        lmbda: Trade-off; larger means better pictures and larger files.

    Returns:
        The loss, the estimated bits per pixel of the input, and the mean squared error on [0, 1]. Scalars.
    """
    batch, _, height, width = pixel_values.shape
    bits = -sum(likelihood.float().log2().sum() for likelihood in outputs.likelihoods.values())
    bpp = bits / (batch * height * width)
    mse = (outputs.reconstruction.float() - pixel_values.float()).square().mean()
    return lmbda * 255**2 * mse + bpp, bpp.detach(), mse.detach()


__all__ = ["rate_distortion_loss"]
