"""Importance maps from the latents that the codec has computed anyway: no CLIP at the edge."""

import torch
from torch import nn


def latent_energy(latents: torch.Tensor) -> torch.Tensor:
    """Root mean square over the channels of the latents: where there is most to code. Needs no training.

    Args:
        latents: Codec latents y, `(batch, latent_channels, height / 16, width / 16)`.

    Returns:
        float32 `(batch, 1, height / 16, width / 16)`, at least 0.
    """
    return latents.float().square().mean(1, keepdim=True).sqrt()


class LatentGuide(nn.Module):
    """Predicts the importance map of a vision encoder from codec latents by two convolutions.

    y -> magnitudes -> 3x3 convolution -> GELU -> 3x3 convolution -> importance map

    Args:
        latent_channels: Channels of the latents.
        hidden_channels: Channels between the convolutions.
    """

    def __init__(self, latent_channels: int, *, hidden_channels: int = 32) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.ones(latent_channels, 1, 1))
        self.hidden = nn.Conv2d(2 * latent_channels, hidden_channels, 3, padding=1, padding_mode="replicate")
        self.activation = nn.GELU()
        self.output = nn.Conv2d(hidden_channels, 1, 3, padding=1, padding_mode="replicate")

    @torch.no_grad()
    def calibrate(self, latents: torch.Tensor) -> None:
        """Takes the scale of each channel from latents `(batch, latent_channels, height, width)`."""
        self.scale.copy_(latents.float().square().mean((0, 2, 3))[:, None, None].sqrt().clamp(min=1e-3))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Predicted importance, up to scale and offset, which `quantize_importance` ignores.

        Args:
            latents: Codec latents y, before or after quantization, `(batch, latent_channels, height, width)`.

        Returns:
            float `(batch, 1, height, width)`.

        Raises:
            ValueError: If the latents have another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != len(self.scale):
            raise ValueError(
                f"The latents must be (batch, {len(self.scale)}, height, width), got {tuple(latents.shape)}. Use the "
                "codec that the guide was trained on."
            )
        relative = latents / self.scale
        features = torch.cat([relative, relative.abs()], dim=1)
        return self.output(self.activation(self.hidden(features)))


__all__ = ["LatentGuide", "latent_energy"]
