"""The container of tiles: what it holds, and that nothing else is taken for one."""

import contextlib
import random
import zlib

import pytest

from comneck_hf.coding.bitstream import BitstreamError
from comneck_hf.coding.tiles import TiledBitstream


PICTURE = TiledBitstream(height=480, width=70_000, tiles=(b"first", b"", b"third" * 100))


def sealed(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_parse_is_the_inverse_of_pack():
    data = PICTURE.pack()
    assert TiledBitstream.parse(data) == PICTURE
    assert TiledBitstream.parse(memoryview(data)) == PICTURE
    assert len(data) == 12 + 3 * 4 + sum(map(len, PICTURE.tiles)) + 4


def test_the_bytes_of_version_1_stay():
    data = TiledBitstream(height=2, width=0x1234, tiles=(b"ab",)).pack()
    assert data.hex() == "434e54010200000034120000020000006162a7d7331e"


def test_every_byte_string_gives_a_picture_or_an_error_that_says_why():
    data = PICTURE.pack()
    cases = {
        "Not a picture in tiles: it starts with b'CNK'": b"CNK" + data[3:],
        "Version 2 of the container of tiles is unknown": data[:3] + b"\2" + data[4:],
        "checksum": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "longer than the container": sealed(data[:12] + b"\xff\xff\xff\xff" + b"tile"),
        "`height` must be in": sealed(data[:4] + bytes(4) + data[8:-4]),
        "`tiles` is empty": sealed(data[:12]),
        "must be bytes, got str": "CNT",
    }
    for message, wrong in cases.items():
        with pytest.raises(BitstreamError, match=message):
            TiledBitstream.parse(wrong)
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            TiledBitstream.parse(data[:length])
    generator = random.Random(0)
    for _ in range(500):
        noise = b"CNT\1" + generator.randbytes(generator.randrange(40))
        with contextlib.suppress(BitstreamError):
            assert TiledBitstream.parse(sealed(noise)).pack() == sealed(noise)


def test_wrong_fields_are_named():
    with pytest.raises(ValueError, match="`width` must be in .*, got 0"):
        TiledBitstream(height=1, width=0, tiles=(b"a",))
    with pytest.raises(ValueError, match="`tiles` is empty"):
        TiledBitstream(height=1, width=1, tiles=())
