import contextlib
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from comneck_hf.coding import bitstream as bitstream_module
from comneck_hf.coding.bitstream import BITSTREAM_VERSION, Bitstream, BitstreamError
from comneck_hf.coding.gain_map import MAX_GAIN, MIN_GAIN, GainMap


PAYLOAD = bytes(range(200))


def packed(height: int = 256, width: int = 256, payload: bytes = PAYLOAD) -> bytes:
    return Bitstream(fingerprint=0x89ABCDEF, height=height, width=width, payload=payload).pack()


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("height, width", [(1, 1), (127, 128), (256, 256), (480, 16383), (16384, 2**12)])
@pytest.mark.parametrize("payload", [b"", b"\0", PAYLOAD])
def test_parse_returns_what_was_packed(height, width, payload):
    bitstream = Bitstream(fingerprint=2**32 - 1, height=height, width=width, payload=payload)
    assert Bitstream.parse(bitstream.pack()) == bitstream


def test_a_256_pixel_picture_costs_16_bytes_around_its_payload():
    assert len(packed()) - len(PAYLOAD) == 16


def test_the_layout_of_version_1_is_fixed():
    bitstream = Bitstream(fingerprint=0x04030201, height=300, width=5, payload=b"\xaa\xbb")
    assert bitstream.pack().hex() == "434e4b01" + "01020304" + "ac02" + "05" + "aabb" + "b927a322"


def test_the_layout_of_version_2_is_fixed():
    assert BITSTREAM_VERSION == 2
    gain_map = GainMap(((-1, 0, 1), (1, 1, -1)), step=5)
    bitstream = Bitstream(0x04030201, 300, 5, b"\xaa\xbb", gain=-2, gain_map=gain_map)
    digits = sum(digit * 3**place for place, digit in enumerate([0, 1, 2, 2, 2, 0]))
    fields = "434e4b02" + "01020304" + "ac02" + "05" + "feff" + "51" + "02" + "03" + digits.to_bytes(2, "little").hex()
    assert bitstream.pack()[:-4].hex() == fields + "aabb"


@pytest.mark.parametrize("gain", [0, 1, MIN_GAIN, MAX_GAIN])
@pytest.mark.parametrize("levels, rows, columns", [(None, 1, 1), (3, 8, 8), (31, 1, 5), (5, 64, 64), (3, 4096, 1)])
def test_gains_and_maps_return_from_the_container(gain, levels, rows, columns):
    generator = random.Random(gain)
    gain_map = None
    if levels is not None:
        half = levels // 2
        index = [[generator.randint(-half, half) for _ in range(columns)] for _ in range(rows)]
        gain_map = GainMap(index, step=generator.randint(1, 15), levels=levels)
    bitstream = Bitstream(7, 30, 40, PAYLOAD, gain=gain, gain_map=gain_map)
    data = bitstream.pack()
    assert data[3] == (1 if gain == 0 and gain_map is None else 2)
    assert Bitstream.parse(data) == bitstream


def test_a_map_of_64_cells_costs_13_bytes_and_2_of_size():
    gain_map = GainMap([[1] * 8] * 8)
    with_gain = len(Bitstream(0, 256, 256, PAYLOAD, gain=1).pack())
    assert with_gain - len(packed()) == 3
    assert len(Bitstream(0, 256, 256, PAYLOAD, gain=1, gain_map=gain_map).pack()) - with_gain == 13 + 2


@pytest.mark.parametrize(
    "fields, complaint",
    [
        (b"", "gain in the bitstream's header is cut off"),
        (b"\x00\x00\x00", "not in its shortest form"),
        (b"\xff\x7f\x00", "gain in the bitstream's header is 32767, beyond"),
        (b"\x01\x00\x01\x01\x01\x00", "step 0"),
        (b"\x01\x00\x10\x01\x01\x00", "1 levels"),
        (b"\x01\x00\x11\x00\x01\x00", "gain map's height in the bitstream's header is 0"),
        (b"\x01\x00\x11\x80\x20\x02\x00", "4096x2 cells"),
        (b"\x01\x00\x11\x08\x08" + bytes(12), "gain map in the bitstream's header is cut off"),
        (b"\x01\x00\x11\x08\x08" + b"\xff" * 13, "cells overflow"),
    ],
)
def test_bad_gains_behind_a_good_checksum_are_refused(fields, complaint):
    with pytest.raises(BitstreamError, match=complaint):
        Bitstream.parse(with_checksum(b"CNK\x02\x00\x00\x00\x00\x01\x01" + fields))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_parse_takes_every_kind_of_bytes(kind):
    assert Bitstream.parse(kind(packed())).payload == PAYLOAD


@pytest.mark.parametrize("data", [None, "CNK", 3, [67, 78, 75], {"data": b""}])
def test_other_types_are_refused_with_their_name(data):
    with pytest.raises(BitstreamError, match=type(data).__name__):
        Bitstream.parse(data)


def test_another_file_format_is_named_as_such():
    with pytest.raises(BitstreamError, match="Not a comneck_hf bitstream"):
        Bitstream.parse(b"\x89PNG\r\n" + PAYLOAD)


def test_a_newer_version_asks_for_an_upgrade():
    data = bytearray(packed())
    data[3] = BITSTREAM_VERSION + 1
    with pytest.raises(BitstreamError, match="Upgrade comneck_hf"):
        Bitstream.parse(bytes(data))


def test_version_0_does_not_exist():
    with pytest.raises(BitstreamError, match="version 0 does not exist"):
        Bitstream.parse(with_checksum(b"CNK\0" + packed()[4:-4]))


def test_every_truncation_is_refused():
    data = packed()
    for length in range(len(data)):
        with pytest.raises(BitstreamError, match="truncated|checksum"):
            Bitstream.parse(data[:length])


def test_every_flipped_bit_is_refused():
    data = packed()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            Bitstream.parse(bytes(damaged))


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        (b"\x00\x01", "height in the bitstream's header is 0"),
        (b"\x01\x00", "width in the bitstream's header is 0"),
        (b"\x81\x00\x01", "shortest form"),
        (b"\x80\x00\x01", "is 0"),
        (b"\x80\x80\x80\x80\x01\x01", "height in the bitstream's header is cut off or longer"),
        (b"\x01\xff\xff\xff", "width in the bitstream's header is cut off or longer"),
        (b"\xff\xff\xff\x7f\xff\xff\xff\x7f", "more than the limit"),
    ],
)
def test_bad_sizes_behind_a_good_checksum_are_refused(sizes, complaint):
    with pytest.raises(BitstreamError, match=complaint):
        Bitstream.parse(with_checksum(b"CNK\x01\x00\x00\x00\x00" + sizes))


def test_the_pixel_limit_is_inclusive():
    assert Bitstream.parse(packed(16, 64), max_pixels=1024).width == 64
    with pytest.raises(BitstreamError, match="max_pixels"):
        Bitstream.parse(packed(16, 65), max_pixels=1024)


@pytest.mark.parametrize("start", [b"CNK\x01", b"CNK\x02\0\0\0\0\x05\x05\x01\0"])
def test_random_bytes_behind_a_good_header_never_fail_differently(start):
    generator = random.Random(0)
    parsed = 0
    for _ in range(5000):
        tail = generator.randbytes(generator.randrange(12))
        with contextlib.suppress(BitstreamError):
            parsed += bool(Bitstream.parse(with_checksum(start + tail)))
    assert 0 < parsed < 5000


def test_the_fingerprint_of_another_model_is_refused():
    bitstream = Bitstream.parse(packed())
    bitstream.check_fingerprint(0x89ABCDEF)
    with pytest.raises(BitstreamError, match="another model.*89abcdef.*00000001"):
        bitstream.check_fingerprint(1)


@pytest.mark.parametrize(
    "fields", [{"fingerprint": 2**32}, {"fingerprint": -1}, {"height": 0}, {"width": 2**28}, {"gain": 321}]
)
def test_a_bitstream_with_impossible_fields_cannot_be_made(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Bitstream(**{"fingerprint": 0, "height": 1, "width": 1, "payload": b"", **fields})


def test_the_container_needs_the_standard_library_only():
    folder = Path(bitstream_module.__file__).parent
    needless = "{'torch', 'numpy', 'numba'} & set(sys.modules)"
    # The package around it imports more than its modules need.
    package = f"import types, sys; p = types.ModuleType('p'); p.__path__ = [{str(folder)!r}]; sys.modules['p'] = p"
    code = f"{package}; import p.bitstream; assert p.bitstream.Bitstream; assert not {needless}"
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
