"""Groups of tokens within a sequence and their means: what LLaVolta does at the input of one layer.

Every token belongs to one group: a text token to a group of its own, visual tokens to the run or square of their image
that is averaged. Groups are given by offsets, how far back the first token of one's group lies; several images, images
of different length, partial groups and rows without images need no case of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...coding.gain_map import GainMap


def image_offsets(length: int, *, stride: int, pool: str, grid: tuple[int, int] | None = None) -> torch.Tensor:
    """Distance of each token of an image to the first token of its group.

    Args:
        length: Tokens of the image, in raster order.
        stride: Tokens of a group along each pooled axis.
        pool: `"avg1d"` or `"avg2d"`.
        grid: Height and width in tokens, for `"avg2d"`; a square by default.

    Returns:
        Integers of shape `(length,)`.

    Raises:
        ValueError: If the tokens do not fill the grid.
    """
    index = torch.arange(length)
    if pool == "avg1d":
        return index % stride
    height, width = grid or (math.isqrt(length),) * 2
    if height * width != length:
        raise ValueError(
            f"`pool='avg2d'` needs a rectangle of tokens, and {length} are not {height}x{width}. Set `pool_grid`, or "
            "use `pool='avg1d'`."
        )
    return index // width % stride * width + index % width % stride


def map_strides(
    gain_map: GainMap | None, grid: tuple[int, int], *, region_strides: Sequence[int], pool_stride: int
) -> torch.Tensor:
    """Stride at each token of an image, from the gain map in its bitstream: where bits are, tokens are.

    Args:
        gain_map: `None` for an image without one.
        grid: Height and width of the image in tokens.
        region_strides: Strides of cells with levels below, at and above 0.
        pool_stride: Stride everywhere of an image without a map.

    Returns:
        Integers of shape `grid`.
    """
    if gain_map is None:
        return torch.full(grid, pool_stride)
    levels = torch.tensor(gain_map.levels_at(*grid))
    return torch.tensor(tuple(region_strides))[levels.sign() + 1]


def region_offsets(strides: torch.Tensor, *, length: int, pool: str) -> torch.Tensor:
    """Distance of each token of an image to the first token of its group, where the stride differs by region.

    Groups are those of `image_offsets`, cut where the stride changes: tokens become one if they have the same stride
    and lie in the same run or square of it.

    Args:
        strides: At each token, `(height, width)`, at least 1.
        length: Tokens of the image; one more than strides with a class token, which comes first and stays alone.
        pool: `"avg1d"` or `"avg2d"`.

    Returns:
        Integers of shape `(length,)`.

    Raises:
        ValueError: If there are not as many strides as tokens, or one is below 1.
    """
    num_alone = length - strides.numel()
    if num_alone not in (0, 1):
        raise ValueError(
            f"`pool_strides` of {strides.shape[0]}x{strides.shape[1]} do not fit an image of {length} tokens. Let the "
            "processor of this model make them."
        )
    if strides.min() < 1:
        raise ValueError(f"`pool_strides` must be at least 1, which pools nothing; got {int(strides.min())}.")
    index = torch.arange(strides.numel(), device=strides.device)
    row, column, strides = index // strides.shape[1], index % strides.shape[1], strides.flatten()
    places = [index // strides] if pool == "avg1d" else [row // strides, column // strides]
    group = torch.stack([strides, *places]).unique(dim=1, return_inverse=True)[1]
    first = torch.full_like(index, len(index)).scatter_reduce(0, group, index, "amin")
    return torch.cat([index.new_zeros(num_alone), index - first[group]])


def sequence_offsets(visual_tokens: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
    """Offsets of all tokens of a batch.

    Args:
        visual_tokens: Where the tokens of images are, bool of shape `(batch, sequence)`.
        images: Offsets of each image, in the order of the sequence.

    Returns:
        Integers of shape `(batch, sequence)`, 0 for text.

    Raises:
        ValueError: If the visual tokens are not as many as the images have, or an image is interrupted.
    """
    positions = visual_tokens.flatten().nonzero().squeeze(1)
    lengths = torch.tensor([len(image) for image in images])
    offsets = torch.cat(images).to(positions.device)
    if len(positions) != len(offsets):
        raise ValueError(
            f"The text has {len(positions)} image tokens, but the {len(images)} images have {len(offsets)}. Let the "
            "processor write them, and do not truncate its output."
        )
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths).to(positions.device)
    rank = torch.arange(len(positions), device=positions.device) - starts
    row = positions // visual_tokens.shape[1]
    if not torch.equal(positions - rank, positions[starts]) or not torch.equal(row, row[starts]):
        raise ValueError("The tokens of an image must follow each other without text between them.")
    result = torch.zeros(visual_tokens.numel(), dtype=torch.long, device=positions.device)
    result[positions] = offsets
    return result.view(visual_tokens.shape)


@dataclass(frozen=True)
class TokenGroups:
    """Which tokens become one. All of shape `(batch, sequence)` or `(batch, groups)`.

    Attributes:
        group: Group of each token, numbered along the row.
        first: Index of the first token of each group.
        count: Tokens of each group; 0 where a row has fewer groups than others.
    """

    group: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor

    @classmethod
    def from_offsets(cls, offsets: torch.Tensor) -> "TokenGroups":
        """Groups of tokens that lie `offsets`, shape `(batch, sequence)`, behind the first of their group."""
        is_first = offsets == 0
        index = torch.arange(offsets.shape[1], device=offsets.device).expand_as(offsets)
        group = (is_first.cumsum(1) - 1).gather(1, index - offsets)
        num_groups = int(is_first.sum(1).max())
        empty = torch.zeros(offsets.shape[0], num_groups, dtype=torch.long, device=offsets.device)
        first = empty.scatter_add(1, group, torch.where(is_first, index, 0))
        return cls(group=group, first=first, count=empty.scatter_add(1, group, torch.ones_like(group)))

    def num_behind(self) -> int:
        """Tokens behind the last group that has several, in the row that has the fewest of them."""
        columns = (self.count.gather(1, self.group) > 1).any(0).nonzero()
        return self.group.shape[1] - (int(columns[-1]) + 1 if len(columns) else 0)

    def mean(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Averages of shape `(batch, groups, width)`, summed in float32; 0 for groups without tokens."""
        index = self.group[..., None].expand_as(hidden_states)
        sums = hidden_states.new_zeros(*self.count.shape, hidden_states.shape[2], dtype=torch.float32)
        sums = sums.scatter_add(1, index, hidden_states.float())
        return (sums / self.count.clamp(min=1)[..., None]).to(hidden_states.dtype)

    def floor_mean(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Average positions, rounded down, `(batch, groups)`: in integers, so that no position is too large."""
        sums = torch.zeros_like(self.count).scatter_add(1, self.group, position_ids.expand_as(self.group))
        return sums // self.count.clamp(min=1)

    def mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Which groups may be attended to, bool `(batch, groups)`: those whose first token may."""
        return attention_mask.bool().gather(1, self.first) & (self.count > 0)

    def spread(self, pooled: torch.Tensor) -> torch.Tensor:
        """Gives every token the state of its group: `(batch, groups, width)` to `(batch, sequence, width)`."""
        return pooled.gather(1, self.group[..., None].expand(-1, -1, pooled.shape[2]))


def compression_ratio(
    num_layers: int, num_tokens: int, *, pool_layer: int, pool_stride: int, text_tokens: int = 0
) -> float:
    """Tokens times layers without pooling, over the same with it (LLaVolta, figure 2). 1.0 is no pooling.

    Args:
        num_layers: Layers of the language model, N.
        num_tokens: Visual tokens of an image, L.
        pool_layer: K.
        pool_stride: S, in tokens that become one.
        text_tokens: Tokens that stay; the paper counts visual ones only.
    """
    whole, pooled = num_tokens + text_tokens, math.ceil(num_tokens / pool_stride) + text_tokens
    return num_layers * whole / ((num_layers - pool_layer) * pooled + pool_layer * whole)


__all__ = [
    "TokenGroups",
    "compression_ratio",
    "image_offsets",
    "map_strides",
    "region_offsets",
    "sequence_offsets",
]
