"""Compiled integer kernels for the exact networks on the CPU. Importing this module imports numba."""

import numpy as np

from .jit import compiled


@compiled
def requantize_narrow(
    sums: np.ndarray, multiplier: np.ndarray, offset: np.ndarray, shift: np.ndarray, outputs: np.ndarray
) -> None:
    """`outputs = clamp((sums * multiplier + offset) >> shift, -128, 127)`; rows by channels, int32 to int8."""
    for row in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            value = (np.int64(sums[row, channel]) * np.int64(multiplier[channel]) + offset[channel]) >> shift[channel]
            outputs[row, channel] = np.int8(min(max(value, np.int64(-128)), np.int64(127)))


@compiled
def requantize_wide(
    sums: np.ndarray, multiplier: np.ndarray, offset: np.ndarray, shift: np.ndarray, outputs: np.ndarray
) -> None:
    """The same to int32, clamped to +-2**22."""
    for row in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            value = (np.int64(sums[row, channel]) * np.int64(multiplier[channel]) + offset[channel]) >> shift[channel]
            outputs[row, channel] = np.int32(min(max(value, np.int64(-(1 << 22))), np.int64(1 << 22)))


@compiled
def lookup_indexes(scales: np.ndarray, lookup: np.ndarray, outputs: np.ndarray) -> None:
    """`outputs = lookup[clamp(scales, 0, len(lookup) - 1)]`; rows by channels, int32 to uint8."""
    last = lookup.shape[0] - 1
    for row in range(scales.shape[0]):
        for channel in range(scales.shape[1]):
            outputs[row, channel] = lookup[min(max(scales[row, channel], 0), last)]


__all__ = ["lookup_indexes", "requantize_narrow", "requantize_wide"]
