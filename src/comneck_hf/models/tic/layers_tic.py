"""Building blocks of TIC (Lu et al., DCC 2022): Swin layers (Liu et al., ICCV 2021) between strided convolutions."""

import torch
from torch import nn
from torch.nn import functional as F

from ..elic.layers_elic import downsample, upsample
from .configuration_tic import TicConfig


# Kernel of the strided convolutions between two blocks
_INNER_KERNEL = 3


def relative_positions(window_size: int, device: torch.device | None = None) -> torch.Tensor:
    """Number of the offset from each position of a window to each other.

    Returns:
        int64 `(window_size ** 2, window_size ** 2)` in [0, (2 * window_size - 1) ** 2); equal offsets have one number.
    """
    steps = torch.arange(window_size, device=device)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    offsets = [axis[:, None] - axis + window_size - 1 for axis in (rows, columns)]
    return offsets[0] * (2 * window_size - 1) + offsets[1]


def window_numbers(length: int, window_size: int, shift: int, device: torch.device | None = None) -> torch.Tensor:
    """Which window each row (or column) belongs to, in the order that `WindowAttention` cuts the map into pieces.

    The rows are padded to a multiple of `window_size` and rolled by `shift`, so that a piece may hold rows of two
    windows, at opposite edges of the map.

    Args:
        length: Rows of the map.
        window_size: Rows of a window.
        shift: Row at which a window begins, in [0, window_size).
        device: Of the result.

    Returns:
        int64 `(padded length,)`; -2 for padding.
    """
    rows = torch.arange(length + -length % window_size, device=device).roll(-shift)
    return (rows - shift).div(window_size, rounding_mode="floor").masked_fill(rows >= length, -2)


class WindowAttention(nn.Module):
    """Multi-head self-attention within the windows of a feature map, with a learned bias for every relative position.

    Args:
        channels: Of the map.
        num_heads: Divisor of `channels`.
        window_size: Height and width of the windows.
        shift: Row and column at which a window begins. Windows that the map's edges cut hold fewer positions.
    """

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attends.

        Args:
            hidden_states: Shape `(batch, height, width, channels)`, any height and width.

        Returns:
            The same shape.
        """
        batch, height, width, channels = hidden_states.shape
        size, move = self.window_size, (-self.shift, -self.shift)
        padding = (0, 0, 0, -width % size, 0, -height % size)
        padded = F.pad(hidden_states, padding).roll(move, (1, 2))
        rows, columns = padded.shape[1] // size, padded.shape[2] // size
        pieces = padded.view(batch, rows, size, columns, size, channels).transpose(2, 3)
        attended = self._attend(
            pieces.reshape(batch, rows * columns, size * size, channels), self._hidden(height, width, padded.device)
        )
        pieces = attended.view(batch, rows, columns, size, size, channels).transpose(2, 3)
        whole = pieces.reshape(padded.shape).roll((self.shift, self.shift), (1, 2))
        return whole[:, :height, :width]

    def _attend(self, pieces: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Attention within each of the pieces `(batch, pieces, positions, channels)`."""
        parts = self.qkv(pieces).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = parts.unbind()
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores + self.position_bias[relative_positions(self.window_size, pieces.device)].permute(2, 0, 1)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        return self.projection((scores.softmax(-1) @ value).transpose(2, 3).flatten(3))

    def _hidden(self, height: int, width: int, device: torch.device) -> torch.Tensor | None:
        """What lies in the same piece, but in another window: bool `(pieces, 1, positions, positions)`."""
        size = self.window_size
        if not (self.shift or height % size or width % size):
            return None
        rows, columns = (window_numbers(length, size, self.shift, device) for length in (height, width))
        numbers = rows[:, None] * (len(columns) + 2) + columns  # columns' begin at -2, and are fewer than these
        pieces = numbers.view(-1, size, len(columns) // size, size).transpose(1, 2).reshape(-1, 1, size * size)
        return pieces[..., None] != pieces[..., None, :]


class SwinLayer(nn.Module):
    """Windowed attention and an MLP, each behind a layer norm and beside a residual connection."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, num_heads, window_size, shift)
        self.mlp_norm = nn.LayerNorm(channels)
        width = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states))
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class ResidualSwinBlock(nn.Module):
    """x + layers(x), where every other layer's windows are shifted by half their size (TIC's RSTB).

    The layers have residual connections themselves, so the block is near 2x where they are near zero.
    """

    def __init__(self, channels: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SwinLayer(channels, num_heads, window_size, window_size // 2 * (index % 2), mlp_ratio)
            for index in range(depth)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden_states = features.permute(0, 2, 3, 1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return features + hidden_states.permute(0, 3, 1, 2)


def swin_blocks(config: TicConfig) -> list[ResidualSwinBlock]:
    """The blocks at 1/2, 1/4, 1/8 and 1/16 of the picture's size."""
    stages = zip(config.block_channels, config.depths, config.num_heads, config.window_sizes, strict=True)
    return [ResidualSwinBlock(*stage, config.mlp_ratio) for stage in stages]


def analysis_transform(config: TicConfig) -> nn.Sequential:
    """g_a: picture to latents, 16 times smaller."""
    layers: list[nn.Module] = []
    channels, kernel_size = 3, config.kernel_size
    for width, block in zip(config.block_channels, swin_blocks(config), strict=True):
        layers += [downsample(channels, width, kernel_size), block]
        channels, kernel_size = width, _INNER_KERNEL
    return nn.Sequential(*layers)


def synthesis_transform(config: TicConfig) -> nn.Sequential:
    """g_s: latents to picture, the mirror of g_a."""
    layers: list[nn.Module] = []
    channels, kernel_size = 3, config.kernel_size
    for width, block in zip(config.block_channels, swin_blocks(config), strict=True):
        layers += [upsample(width, channels, kernel_size), block]
        channels, kernel_size = width, _INNER_KERNEL
    return nn.Sequential(*reversed(layers))


__all__ = [
    "ResidualSwinBlock",
    "SwinLayer",
    "WindowAttention",
    "analysis_transform",
    "relative_positions",
    "swin_blocks",
    "synthesis_transform",
    "window_numbers",
]
