"""The U-Net of the paper's Post-processing baseline: a decoded picture to one that CLIP understands better."""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class PostProcessingUNet(nn.Module, PyTorchModelHubMixin):
    """U-Net (Ronneberger et al., 2015), as the ComNeck paper puts it behind the decoder (its figure 1b, table 3).

    picture -> down 1 -> down 2 -> ... -> bottom
                 |         |                |
                 +--> up 1 <-- up 2 <-- ... <

    31,037,763 parameters at the default widths, which are the paper's 31.04 M.

    Args:
        widths: Channels at each resolution, from the full one down; every next one has half the height and width.
        fingerprint: Of the codec whose pictures it was trained on.
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512, 1024), fingerprint: int | None = None) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.down = nn.ModuleList(
            DoubleConvolution(before, after) for before, after in zip((3, *widths), widths, strict=False)
        )
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2) for here, below in zip(widths, widths[1:], strict=False)
        )
        self.up = nn.ModuleList(DoubleConvolution(2 * width, width) for width in widths[:-1])
        self.to_picture = nn.Conv2d(widths[0], 3, 1)

    @property
    def size_divisor(self) -> int:
        """Sides of pictures must be multiples of this."""
        return 2 ** len(self.up)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures `(batch, 3, height, width)` to pictures of the same shape; sides in multiples of 2 per level.

        Raises:
            ValueError: If a side is not.
        """
        divisor = self.size_divisor
        if pixel_values.shape[2] % divisor or pixel_values.shape[3] % divisor:
            height, width = pixel_values.shape[2:]
            raise ValueError(f"Sides must be multiples of {divisor}, got {height}x{width}. Crop or pad the pictures.")
        kept, hidden_states = [], pixel_values
        for level, block in enumerate(self.down):
            hidden_states = block(hidden_states if level == 0 else nn.functional.max_pool2d(hidden_states, 2))
            kept.append(hidden_states)
        for enlarge, block, skipped in zip(self.enlarge[::-1], self.up[::-1], kept[-2::-1], strict=True):
            hidden_states = block(torch.cat([skipped, enlarge(hidden_states)], dim=1))
        return self.to_picture(hidden_states)


__all__ = ["PostProcessingUNet"]
