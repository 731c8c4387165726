"""Memory for intermediate results on the CPU, kept from call to call."""

import threading

import numpy as np
import torch


__all__ = ["Scratch"]


class Scratch(threading.local):
    """One block of memory per name and thread.

    The operating system clears the pages of fresh memory, which takes several times as long as what is written there:
    gathering the rows of a 5x5 convolution into a new tensor costs as much as a third of the product.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor with undefined content, valid until the same thread takes the same name again."""
        size = int(np.prod(shape)) * dtype.itemsize
        block = self._blocks.get(name)
        if block is None or len(block) < size:
            block = self._blocks[name] = np.empty(size, np.uint8)
        return torch.from_numpy(block[:size]).view(dtype).view(shape)
