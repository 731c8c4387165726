"""Importance maps from words: which parts of a picture CLIP finds to be what a text says."""

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from ..clip_inputs import clip_inputs


MAX_DEPTH = 4


@torch.no_grad()
def text_importance(
    clip: CLIPModel, pixel_values: torch.Tensor, text_embeds: torch.Tensor, *, depth: int = 1
) -> torch.Tensor:
    """Cosine similarity of a text with overlapping windows of a picture, each seen by CLIP as a picture of its own.

    Windows have half the picture's sides and overlap by half: 9 of them; with `depth=2` 49 of a quarter follow, and so
    on. A cell of the map is the mean over the windows that cover it. CLIP's class token is what was trained to match
    texts; the patch tokens of one pass are cheaper, but need not match them, and those of a small CLIP do not.

    Args:
        clip: The CLIP; its vision tower runs once per window.
        pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1], at least `2 ** (depth + 1)` pixels a side.
        text_embeds: Projected text embeddings, `(projection_dim,)` for all pictures or `(batch, projection_dim)`.
        depth: How many times the windows are halved, 1 to 4. Small things need more than 1.

    Returns:
        float32 `(batch, 1, 2 ** (depth + 1), 2 ** (depth + 1))`, values in [-1, 1].

    Raises:
        ValueError: If pictures and texts do not match in number or width, or a picture is too small for the windows.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"`depth` must be 1 to {MAX_DEPTH}, got {depth}.")
    cells = 2 ** (depth + 1)
    if pixel_values.ndim != 4 or min(pixel_values.shape[-2:]) < cells:
        raise ValueError(
            f"`pixel_values` must be (batch, 3, height, width) with sides of at least {cells} pixels, got "
            f"{tuple(pixel_values.shape)}."
        )
    batch, width = len(pixel_values), clip.config.projection_dim
    if tuple(text_embeds.shape) not in ((width,), (batch, width)):
        raise ValueError(
            f"`text_embeds` must be ({width},) or ({batch}, {width}), got {tuple(text_embeds.shape)}. Use the text "
            "tower of the same CLIP."
        )
    texts = F.normalize(text_embeds.to(clip.device, torch.float32), dim=-1).expand(batch, width)
    total = torch.zeros(batch, 1, cells, cells, device=clip.device)
    count = torch.zeros(cells, cells, device=clip.device)
    for level in range(1, depth + 1):
        side = cells >> level  # of a window, in cells
        for top in range(0, cells - side + 1, side // 2):
            for left in range(0, cells - side + 1, side // 2):
                window = _window(pixel_values, top, left, side, cells)
                similarity = (_embed(clip, window) * texts).sum(-1)
                total[..., top : top + side, left : left + side] += similarity.view(-1, 1, 1, 1)
                count[top : top + side, left : left + side] += 1
    return total / count


def _window(pixel_values: torch.Tensor, top: int, left: int, side: int, cells: int) -> torch.Tensor:
    height, width = pixel_values.shape[-2:]
    rows = slice(top * height // cells, (top + side) * height // cells)
    columns = slice(left * width // cells, (left + side) * width // cells)
    return pixel_values[..., rows, columns]


def _embed(clip: CLIPModel, pixel_values: torch.Tensor) -> torch.Tensor:
    pixels = clip_inputs(pixel_values.to(clip.device).float(), clip.config.vision_config.image_size)
    embeds = clip.get_image_features(pixel_values=pixels.to(clip.dtype)).pooler_output
    return F.normalize(embeds.float(), dim=-1)


__all__ = ["MAX_DEPTH", "text_importance"]
