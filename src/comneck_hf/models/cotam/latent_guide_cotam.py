"""Importance maps from the latents that the codec has computed anyway: no CLIP at the edge."""

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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
        fingerprint: Of the codec that makes the latents.
    """

    def __init__(self, latent_channels: int, *, hidden_channels: int = 32, fingerprint: int | None = None) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.scale = nn.Buffer(torch.ones(latent_channels, 1, 1))
        self.hidden = nn.Conv2d(2 * latent_channels, hidden_channels, 3, padding=1, padding_mode="replicate")
        self.activation = nn.GELU()
        self.output = nn.Conv2d(hidden_channels, 1, 3, padding=1, padding_mode="replicate")

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file that says for which codec the guide is."""
        metadata = {} if self.fingerprint is None else {"fingerprint": f"{self.fingerprint}"}
        save_file(self.state_dict(), path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The guide in a file of `save`.

        Raises:
            ValueError: If it is no such file.
            OSError: If there is none.
        """
        try:
            weights = load_file(path)
            with safe_open(path, framework="pt") as file:
                fingerprint = (file.metadata() or {}).get("fingerprint")
            guide = cls(
                len(weights["scale"]),
                hidden_channels=len(weights["hidden.weight"]),
                fingerprint=None if fingerprint is None else int(fingerprint),
            )
            guide.load_state_dict(weights)
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no guide that `scripts/train_latent_guide.py` wrote: {error}") from None
        return guide.eval()

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
