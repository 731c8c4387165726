"""The `.cnk` container: one coded picture with everything a decoder must know before it starts.

    offset  bytes  content
    0       3      magic, b"CNK"
    3       1      version
    4       4      fingerprint of the coding tables and integer networks, little endian
    8       1-4    height of the original picture in pixels, LEB128
    ..      1-4    width, LEB128
    ..      ..     entropy-coded payload (carries its own 16-bit check of the decoded symbols)
    -4      4      CRC-32 of all bytes before it, little endian

16 bytes around the payload of a 256x256 picture. This module needs the standard library only.
"""

import zlib
from dataclasses import dataclass


__all__ = ["BITSTREAM_VERSION", "DEFAULT_MAX_PIXELS", "MAGIC", "Bitstream", "BitstreamError"]

MAGIC = b"CNK"
BITSTREAM_VERSION = 1  # bump on any change that alters bytes or decoded symbols; keep readers for older versions
DEFAULT_MAX_PIXELS = 2**26

_FIXED_HEADER = 8  # magic, version, fingerprint
_CHECKSUM = 4
_MAX_VARINT = 4
_MAX_SIDE = 2 ** (7 * _MAX_VARINT) - 1


class BitstreamError(ValueError):
    """A bitstream cannot be decoded. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Bitstream:
    """One coded picture.

    Args:
        fingerprint: 32-bit number of the model that wrote the payload, `0 <= fingerprint < 2**32`.
        height: Height of the original picture in pixels, before padding, `1 <= height < 2**28`.
        width: Width, same range.
        payload: Entropy-coded symbols.

    Raises:
        ValueError: If a field is out of its range.
    """

    fingerprint: int
    height: int
    width: int
    payload: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.fingerprint < 2**32:
            raise ValueError(f"`fingerprint` must be a 32-bit number, got {self.fingerprint}.")
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= _MAX_SIDE:
                raise ValueError(f"`{name}` must be in [1, {_MAX_SIDE}], got {side}.")

    def pack(self) -> bytes:
        """Returns the container as bytes; `parse` is its inverse."""
        header = MAGIC + bytes([BITSTREAM_VERSION]) + self.fingerprint.to_bytes(4, "little")
        body = header + _varint(self.height) + _varint(self.width) + self.payload
        return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")

    @classmethod
    def parse(cls, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> "Bitstream":
        """Reads a container. Every byte string gives a `Bitstream` or a `BitstreamError`.

        Args:
            data: Content of a `.cnk` file: `bytes`, `bytearray` or `memoryview`.
            max_pixels: Largest accepted `height * width`, so that a few bytes cannot ask for gigabytes.

        Raises:
            BitstreamError: If `data` is not a readable container.
        """
        data = _checked_bytes(data)
        body = data[:-_CHECKSUM]
        if zlib.crc32(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
            raise BitstreamError(
                f"The checksum of this {len(data)}-byte bitstream does not match: it was damaged or cut off. "
                "Fetch or encode it again."
            )
        fingerprint = int.from_bytes(body[4:_FIXED_HEADER], "little")
        height, position = _read_varint(body, _FIXED_HEADER, name="height")
        width, position = _read_varint(body, position, name="width")
        if height * width > max_pixels:
            raise BitstreamError(
                f"The bitstream announces {height}x{width} pixels, more than the limit of {max_pixels}. "
                "Raise `max_pixels` if you trust its source."
            )
        return cls(fingerprint=fingerprint, height=height, width=width, payload=body[position:])

    def check_fingerprint(self, expected: int) -> None:
        """Raises `BitstreamError` unless the bitstream was written by the model with this fingerprint."""
        if self.fingerprint != expected:
            raise BitstreamError(
                f"The bitstream was encoded with another model (fingerprint {self.fingerprint:08x}, this model has "
                f"{expected:08x}). Decode it with the model that wrote it."
            )


def _checked_bytes(data: bytes) -> bytes:
    """Type, magic, version and minimum length: what can be said before the checksum is trusted."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BitstreamError(f"A bitstream must be bytes, got {type(data).__name__}. Read files in binary mode.")
    data = bytes(data)
    if not data.startswith(MAGIC):
        if MAGIC.startswith(data):
            raise BitstreamError(f"The bitstream is truncated: {len(data)} bytes. Fetch or encode it again.")
        raise BitstreamError(
            f"Not a comneck_hf bitstream: it starts with {data[:3]!r}, expected {MAGIC!r}. "
            "Pass bytes made by `compress` or the content of a .cnk file."
        )
    if len(data) > 3 and data[3] != BITSTREAM_VERSION:
        version = data[3]
        if version > BITSTREAM_VERSION:
            raise BitstreamError(
                f"Bitstream version {version} is newer than version {BITSTREAM_VERSION}, the newest that this "
                "installation reads. Upgrade comneck_hf."
            )
        raise BitstreamError(f"Bitstream version {version} does not exist: the header is damaged. Encode it again.")
    if len(data) < _FIXED_HEADER + 2 + _CHECKSUM:
        raise BitstreamError(f"The bitstream is truncated: {len(data)} bytes. Fetch or encode it again.")
    return data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, position: int, *, name: str) -> tuple[int, int]:
    """Reads one LEB128 number in its shortest form; returns it and the position after it."""
    value = 0
    for length, byte in enumerate(data[position : position + _MAX_VARINT], start=1):
        value |= (byte & 127) << 7 * (length - 1)
        if byte < 128:
            if value == 0:
                raise BitstreamError(f"The {name} in the bitstream's header is 0. Encode the picture again.")
            if byte == 0:
                raise BitstreamError(
                    f"The {name} in the bitstream's header is not in its shortest form. Encode it again."
                )
            return value, position + length
    raise BitstreamError(f"The {name} in the bitstream's header is cut off or longer than {_MAX_VARINT} bytes.")
