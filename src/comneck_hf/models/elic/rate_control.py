"""Gains that give bitstreams of wanted sizes, by a model of how the rate follows the gain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.utils import logging

from ...coding.gain_map import GAINS_PER_OCTAVE, MAX_GAIN, MIN_GAIN
from .exact_elic import EncodedLatents


logger = logging.get_logger(__name__)

ENCODES = 3
TOLERANCE = 0.02  # of a target
MISS = 0.05  # beyond it a size is told
# Gains of pictures in 1/64 octaves -> what was coded and the bitstreams
Coder = Callable[[list[int]], tuple[EncodedLatents, list[bytes]]]
# Deviations of y and scales, both in steps -> bits
Cost = Callable[[torch.Tensor, torch.Tensor], float]


@dataclass(frozen=True)
class Encode:
    """What one encode of a picture tells about others.

    Attributes:
        gain: In 1/64 octaves.
        data: The bitstream.
        deviations: Of y from its predicted means, in steps of the quantizer.
        scales: Predicted, in the same steps.
        cost: As in `reach_sizes`.
    """

    gain: int
    data: bytes
    deviations: torch.Tensor
    scales: torch.Tensor
    cost: Cost

    def expected_bits(self, gain: int) -> float:
        """Bits of y at another gain, if means and scales stayed as they are."""
        factor = 2 ** ((gain - self.gain) / GAINS_PER_OCTAVE)
        return max(self.cost(self.deviations * factor, self.scales * factor), 1e-3)


def reach_sizes(code: Coder, targets: Sequence[float], cost: Cost) -> list[bytes]:
    """Bitstreams as close to wanted sizes as three encodes get.

    The first encode is at gain 0. What it coded tells how many bits another gain would take, were the predictions of
    the entropy model the same; how far that is off is measured by the second, and follows the gain log-linearly.

    Args:
        code: Encodes the pictures at given gains.
        targets: Wanted bytes of each picture.
        cost: Bits of y, from its deviations and scales in steps of the quantizer.

    A picture that takes fewer bytes than wanted at the highest gain is coded at that, with a warning; so are
    sizes that are off by more than 5 %.

    Raises:
        ValueError: If a picture takes more bytes than wanted at the lowest gain.
    """
    gains = [0] * len(targets)
    encodes: list[list[Encode]] = [[] for _ in targets]
    for _ in range(ENCODES):
        encoded, bitstreams = code(gains)
        for index, data in enumerate(bitstreams):
            parts = encoded.deviations[index], encoded.scales[index]
            encodes[index].append(Encode(gains[index], data, *parts, cost))
        predicted = [_next_gain(done, target) for done, target in zip(encodes, targets, strict=True)]
        if predicted == gains:
            break
        gains = predicted
    return [_nearest(done, target) for done, target in zip(encodes, targets, strict=True)]


def _next_gain(encodes: Sequence[Encode], target: float) -> int:
    """The gain that is expected to give `target` bytes, after one encode or two."""
    last = encodes[-1]
    fixed = 8 * len(last.data) - last.expected_bits(last.gain)
    slope = 0.0  # of the logarithm of what another encode took, relative to what was expected
    others = [encode for encode in encodes[:-1] if encode.gain != last.gain]
    if others:
        other = others[-1]
        error = math.log(other.expected_bits(other.gain) / last.expected_bits(other.gain))
        slope = error / (other.gain - last.gain)

    def expected(gain: int) -> float:
        return fixed + math.exp(slope * (gain - last.gain)) * last.expected_bits(gain)

    low, high = MIN_GAIN, MAX_GAIN
    while low < high:  # the lowest gain that is expected to take the target or more
        middle = (low + high) // 2
        low, high = (low, middle) if expected(middle) >= 8 * target else (middle + 1, high)
    return min((low, max(low - 1, MIN_GAIN)), key=lambda gain: abs(expected(gain) - 8 * target))


def _nearest(encodes: Sequence[Encode], target: float) -> bytes:
    best = min(encodes, key=lambda encode: abs(len(encode.data) - target))
    size, is_lowest = len(best.data), any(encode.gain == MIN_GAIN for encode in encodes)
    if is_lowest and size > (1 + TOLERANCE) * target:
        raise ValueError(
            f"A picture takes at least {size} bytes with this codec, {target:.0f} were wanted. Make it smaller, or "
            "take a codec of a lower rate."
        )
    if best.gain == MAX_GAIN and size < (1 - TOLERANCE) * target:
        logger.warning(
            f"A picture takes {size} bytes at the highest gain, {target:.0f} were wanted: it needs no more, or a "
            "codec of a higher rate."
        )
    elif abs(size - target) > max(MISS * target, 1):
        logger.warning(f"A picture takes {size} bytes after {len(encodes)} encodes, {target:.0f} were wanted.")
    return best.data


__all__ = ["reach_sizes"]
