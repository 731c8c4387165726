"""The container of a picture that was cut into tiles: their bitstreams and the picture's size in one string of bytes.

Models see the whole picture as the first tile, so that there are at least two. One alone is a canvas: the tiles beside
each other, without the view of the whole, coded as one picture.

    offset  bytes  content
    0       3      magic, b"CNT"
    3       1      version
    4       4      height of the original picture in pixels, little endian
    8       4      width
    12      ..     each tile: 4 bytes of length, little endian, then a `.cnk` bitstream
    -4      4      CRC-32 of all bytes before it, little endian

This module needs the standard library only.
"""

import struct
import zlib
from dataclasses import dataclass

from .bitstream import TILES_MAGIC, BitstreamError


__all__ = ["TILES_VERSION", "TiledBitstream"]

TILES_VERSION = 1

_HEADER = struct.Struct("<3sBII")
_NUMBER = struct.Struct("<I")


@dataclass(frozen=True)
class TiledBitstream:
    """One picture, coded as tiles or as the canvas of them.

    Args:
        height: Height of the original picture in pixels, before it was resized and cut, `1 <= height < 2**32`.
        width: Width, same range.
        tiles: The bitstream of each tile in the order of the model that reads them, or that of the canvas alone.

    Raises:
        ValueError: If a side is out of its range or there is no tile.
    """

    height: int
    width: int
    tiles: tuple[bytes, ...]

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side < 2**32:
                raise ValueError(f"`{name}` must be in [1, {2**32 - 1}], got {side}.")
        if not self.tiles:
            raise ValueError("`tiles` is empty. A picture has at least one tile.")

    @property
    def is_canvas(self) -> bool:
        """Whether all tiles were coded as one picture."""
        return len(self.tiles) == 1

    def pack(self) -> bytes:
        """Returns the container as bytes; `parse` is its inverse."""
        parts = [_HEADER.pack(TILES_MAGIC, TILES_VERSION, self.height, self.width)]
        for tile in self.tiles:
            parts += [_NUMBER.pack(len(tile)), tile]
        body = b"".join(parts)
        return body + _NUMBER.pack(zlib.crc32(body))

    @classmethod
    def parse(cls, data: bytes) -> "TiledBitstream":
        """Reads a container. Every byte string gives a `TiledBitstream` or a `BitstreamError`.

        The tiles themselves are checked when they are decompressed.

        Raises:
            BitstreamError: If `data` is not a readable container.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise BitstreamError(f"A bitstream must be bytes, got {type(data).__name__}. Read files in binary mode.")
        data = bytes(data)
        if data[:3] != TILES_MAGIC:
            raise BitstreamError(
                f"Not a picture in tiles: it starts with {data[:3]!r}, expected {TILES_MAGIC!r}. LLaVA-NeXT reads "
                "what `compress` of its processor wrote."
            )
        if len(data) > 3 and data[3] != TILES_VERSION:
            raise BitstreamError(
                f"Version {data[3]} of the container of tiles is unknown, this installation reads {TILES_VERSION}. "
                "Upgrade comneck_hf, or encode the picture again."
            )
        body = data[: -_NUMBER.size]
        if len(body) < _HEADER.size or zlib.crc32(body) != _NUMBER.unpack(data[-_NUMBER.size :])[0]:
            raise BitstreamError(
                f"The checksum of this {len(data)}-byte container of tiles does not match: it was damaged or cut off. "
                "Fetch or encode it again."
            )
        _, _, height, width = _HEADER.unpack_from(body)
        tiles, position = [], _HEADER.size
        while position < len(body):
            end = position + _NUMBER.size
            if end <= len(body):
                position, end = end, end + _NUMBER.unpack_from(body, position)[0]
            if end > len(body):
                raise BitstreamError("A tile is longer than the container that holds it. Encode the picture again.")
            tiles.append(body[position:end])
            position = end
        try:
            return cls(height=height, width=width, tiles=tuple(tiles))
        except ValueError as error:
            raise BitstreamError(f"The header of the container of tiles is damaged: {error}") from error
