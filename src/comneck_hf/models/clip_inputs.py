"""Pictures as CLIP wants them, on tensors."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


__all__ = ["clip_inputs", "normalize"]


def normalize(
    images: torch.Tensor, *, mean: Sequence[float] = OPENAI_CLIP_MEAN, std: Sequence[float] = OPENAI_CLIP_STD
) -> torch.Tensor:
    """Subtracts the mean and divides by the standard deviation of each channel.

    Args:
        images: Pictures `(batch, 3, height, width)`, values in [0, 1].
        mean: Of red, green and blue; CLIP's by default, SigLIP's are 0.5.
        std: Likewise.
    """
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def clip_inputs(
    images: torch.Tensor,
    size: int | tuple[int, int],
    *,
    mean: Sequence[float] = OPENAI_CLIP_MEAN,
    std: Sequence[float] = OPENAI_CLIP_STD,
) -> torch.Tensor:
    """Pictures as CLIP sees them: resized (bicubic, antialiased) and normalized.

    Args:
        images: Pictures `(batch, 3, height, width)`, values in [0, 1]; both sides are resized, whatever their ratio.
        size: CLIP's picture size; height and width where they differ.
        mean: Of red, green and blue.
        std: Likewise.

    Returns:
        Float `(batch, 3, height, width)` of that size.
    """
    size = (size, size) if isinstance(size, int) else size
    resized = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    return normalize(resized, mean=mean, std=std)
