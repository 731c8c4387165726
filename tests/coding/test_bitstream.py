import contextlib
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from comneck_hf.coding import bitstream as bitstream_module
from comneck_hf.coding.bitstream import BITSTREAM_VERSION, Bitstream, BitstreamError


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
    assert BITSTREAM_VERSION == 1
    bitstream = Bitstream(fingerprint=0x04030201, height=300, width=5, payload=b"\xaa\xbb")
    assert bitstream.pack().hex() == "434e4b01" + "01020304" + "ac02" + "05" + "aabb" + "b927a322"


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


def test_random_bytes_behind_a_good_header_never_fail_differently():
    generator = random.Random(0)
    parsed = 0
    for _ in range(5000):
        tail = generator.randbytes(generator.randrange(12))
        with contextlib.suppress(BitstreamError):
            parsed += bool(Bitstream.parse(with_checksum(b"CNK\x01" + tail)))
    assert 0 < parsed < 5000


def test_the_fingerprint_of_another_model_is_refused():
    bitstream = Bitstream.parse(packed())
    bitstream.check_fingerprint(0x89ABCDEF)
    with pytest.raises(BitstreamError, match="another model.*89abcdef.*00000001"):
        bitstream.check_fingerprint(1)


@pytest.mark.parametrize("fields", [{"fingerprint": 2**32}, {"fingerprint": -1}, {"height": 0}, {"width": 2**28}])
def test_a_bitstream_with_impossible_fields_cannot_be_made(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Bitstream(**{"fingerprint": 0, "height": 1, "width": 1, "payload": b"", **fields})


def test_the_container_needs_the_standard_library_only():
    source = Path(bitstream_module.__file__)
    needless = "{'torch', 'numpy', 'numba'} & set(sys.modules)"
    code = f"import runpy, sys; runpy.run_path({str(source)!r}); assert not {needless}"
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
