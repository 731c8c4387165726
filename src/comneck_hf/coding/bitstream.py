"""The `.cnk` container: one coded picture with everything a decoder must know before it starts.

    offset  bytes  content
    0       3      magic, b"CNK"
    3       1      version
    4       4      fingerprint of the coding tables and integer networks, little endian
    8       1-4    height of the original picture in pixels, LEB128
    ..      1-4    width, LEB128
    ..      2      version 2: gain in 1/64 octaves, signed, little endian
    ..      1      version 2: step of the gain map in the upper 4 bits, (levels - 1) / 2 in the lower; 0: no map
    ..      1-4    with a map: its rows, LEB128
    ..      1-4    with a map: its columns, LEB128
    ..      ..     with a map: its levels, row by row, as digits of one number to the base `levels`, little endian
    ..      ..     entropy-coded payload (carries its own 16-bit check of the decoded symbols)
    -4      4      CRC-32 of all bytes before it, little endian

16 bytes around the payload of a 256x256 picture; a gain adds 3, a map of 8x8 cells with three levels 15 more (13 of
them the cells). Version 2 is written where there is a gain or a map, else version 1. This module needs the standard
library only.
"""

import zlib
from dataclasses import dataclass

from .gain_map import MAX_GAIN, MAX_MAP_CELLS, MIN_GAIN, GainMap


__all__ = ["BITSTREAM_VERSION", "DEFAULT_MAX_PIXELS", "MAGIC", "TILES_MAGIC", "Bitstream", "BitstreamError"]

MAGIC = b"CNK"
TILES_MAGIC = b"CNT"  # of the container in `tiles.py`
BITSTREAM_VERSION = 2  # bump on any change that alters bytes or decoded symbols; keep readers for older versions
DEFAULT_MAX_PIXELS = 2**26

_FIXED_HEADER = 8  # magic, version, fingerprint
_CHECKSUM = 4
_PLAIN_VERSION = 1  # no gain, no map
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
        gain: Of the quantizer, in 1/64 octaves; 0 as the codec was trained.
        gain_map: Gains of regions, added to `gain`.

    Raises:
        ValueError: If a field is out of its range.
    """

    fingerprint: int
    height: int
    width: int
    payload: bytes
    gain: int = 0
    gain_map: GainMap | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fingerprint < 2**32:
            raise ValueError(f"`fingerprint` must be a 32-bit number, got {self.fingerprint}.")
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= _MAX_SIDE:
                raise ValueError(f"`{name}` must be in [1, {_MAX_SIDE}], got {side}.")
        if not MIN_GAIN <= self.gain <= MAX_GAIN:
            raise ValueError(f"`gain` must be in [{MIN_GAIN}, {MAX_GAIN}], got {self.gain}.")

    @property
    def version(self) -> int:
        """The oldest version of the container that holds this picture."""
        return BITSTREAM_VERSION if self.gain or self.gain_map is not None else _PLAIN_VERSION

    def pack(self) -> bytes:
        """Returns the container as bytes; `parse` is its inverse."""
        header = MAGIC + bytes([self.version]) + self.fingerprint.to_bytes(4, "little")
        header += _varint(self.height) + _varint(self.width)
        if self.version > _PLAIN_VERSION:
            header += self.gain.to_bytes(2, "little", signed=True) + _pack_map(self.gain_map)
        body = header + self.payload
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
        gain, gain_map = 0, None
        if body[3] > _PLAIN_VERSION:
            gain, gain_map, position = _read_gains(body, position)
        return cls(fingerprint, height, width, body[position:], gain, gain_map)

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
        if data.startswith(TILES_MAGIC):
            raise BitstreamError(
                "This is a picture in tiles, not a single bitstream. LLaVA-NeXT reads it through "
                "`ComNeckNextProcessor`; on the command line `comneck info` and `comneck decode` do."
            )
        raise BitstreamError(
            f"Not a comneck_hf bitstream: it starts with {data[:3]!r}, expected {MAGIC!r}. "
            "Pass bytes made by `compress` or the content of a .cnk file."
        )
    if len(data) > 3 and not _PLAIN_VERSION <= data[3] <= BITSTREAM_VERSION:
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


def _pack_map(gain_map: GainMap | None) -> bytes:
    if gain_map is None:
        return b"\0"
    number = 0
    for row in reversed(gain_map.gain_index):
        for level in reversed(row):
            number = number * gain_map.levels + level + gain_map.levels // 2
    size = _cells_size(gain_map.rows * gain_map.columns, gain_map.levels)
    head = bytes([gain_map.step << 4 | gain_map.levels // 2]) + _varint(gain_map.rows) + _varint(gain_map.columns)
    return head + number.to_bytes(size, "little")


def _cells_size(cells: int, levels: int) -> int:
    """Bytes that hold every number below `levels ** cells`."""
    return ((levels**cells - 1).bit_length() + 7) // 8


def _read_gains(data: bytes, position: int) -> tuple[int, GainMap | None, int]:
    """Gain and map of version 2, and the position after them."""
    if len(data) < position + 3:
        raise BitstreamError("The gain in the bitstream's header is cut off. Encode the picture again.")
    gain = int.from_bytes(data[position : position + 2], "little", signed=True)
    if not MIN_GAIN <= gain <= MAX_GAIN:
        raise BitstreamError(f"The gain in the bitstream's header is {gain}, beyond [{MIN_GAIN}, {MAX_GAIN}].")
    kind, position = data[position + 2], position + 3
    if kind == 0:
        if gain == 0:
            raise BitstreamError("A bitstream of version 2 has neither gain nor map: it is not in its shortest form.")
        return gain, None, position
    step, levels = kind >> 4, 2 * (kind & 15) + 1
    rows, position = _read_varint(data, position, name="gain map's height")
    columns, position = _read_varint(data, position, name="gain map's width")
    if step == 0 or levels < 3 or rows * columns > MAX_MAP_CELLS:
        raise BitstreamError(
            f"The gain map in the bitstream's header has {rows}x{columns} cells, {levels} levels and step {step}: no "
            "encoder writes that. Encode the picture again."
        )
    size = _cells_size(rows * columns, levels)
    if len(data) < position + size:
        raise BitstreamError("The gain map in the bitstream's header is cut off. Encode the picture again.")
    number = int.from_bytes(data[position : position + size], "little")
    cells = []
    for _ in range(rows * columns):
        number, digit = divmod(number, levels)
        cells.append(digit - levels // 2)
    if number:
        raise BitstreamError("The gain map in the bitstream's header is damaged: its cells overflow.")
    index = tuple(tuple(cells[row * columns : (row + 1) * columns]) for row in range(rows))
    return gain, GainMap(index, step=step, levels=levels), position + size
