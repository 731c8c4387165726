"""What a bitstream of a CompressAI codec holds between its header and its checksum.

    bytes  content
    2      CRC-32 of the symbols of y, lower half, little endian
    4      length of the string of z, little endian        only codecs with
    ..     CompressAI's string of z                        a hyperprior
    ..     CompressAI's string of y

Shapes need no place: they follow from the size in the header. This module needs neither CompressAI nor torch.
"""

import struct
import zlib
from collections.abc import Sequence

from ...coding.bitstream import BitstreamError


_CHECK = struct.Struct("<H")
_LENGTH = struct.Struct("<I")
_MIN_STRING, _WORD = 8, 4  # CompressAI's coder writes 32-bit words, of which two are its final state
_MAX_SYMBOL_BYTES = 8  # 52 bits are the most that its encoder writes for a symbol
_READ_AHEAD = 8  # zero bytes per symbol behind a string: CompressAI's decoder does not look where it ends


def symbol_check(symbols: bytes) -> int:
    """16 bits that tell whether a decoder found the symbols of y; `symbols` are little endian int32."""
    return zlib.crc32(symbols) & 0xFFFF


def pack_payload(check: int, strings: Sequence[bytes]) -> bytes:
    """The payload of one picture.

    Args:
        check: From `symbol_check`.
        strings: CompressAI's, of y and, with a hyperprior, of z.
    """
    y_string, *others = strings
    return _CHECK.pack(check) + b"".join(_LENGTH.pack(len(string)) + string for string in others) + y_string


def split_payload(payload: bytes, counts: Sequence[int]) -> tuple[int, list[bytes]]:
    """The check and CompressAI's strings, each with so many zeros behind it that its decoder stays inside.

    A stream made for the purpose could still lead it further.

    Args:
        payload: As `pack_payload` makes it.
        counts: Number of symbols of y and, with a hyperprior, of z.

    Raises:
        BitstreamError: If a string has a length that CompressAI's encoder does not write for so many symbols.
    """
    rest = payload[_CHECK.size :]
    strings = []
    for _ in counts[1:]:
        length = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else 0
        string, rest = rest[_LENGTH.size : _LENGTH.size + length], rest[_LENGTH.size + length :]
        if len(string) != length:
            raise BitstreamError(_bad_length(length))
        strings.append(string)
    strings.insert(0, rest)
    for string, count in zip(strings, counts, strict=True):
        if len(string) % _WORD or not _MIN_STRING <= len(string) <= _MIN_STRING + _MAX_SYMBOL_BYTES * count:
            raise BitstreamError(_bad_length(len(string)))
    padded = [string + bytes(_READ_AHEAD * count) for string, count in zip(strings, counts, strict=True)]
    return _CHECK.unpack_from(payload)[0], padded


def _bad_length(length: int) -> str:
    return (
        f"The payload has a string of {length} bytes, which this codec does not write for a picture of this size. "
        "Fetch or encode it again."
    )


__all__ = ["pack_payload", "split_payload", "symbol_check"]
