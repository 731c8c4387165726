"""Damaged, foreign and forged bitstreams of CompressAI's codecs."""

import random
import struct

import pytest
import torch

from comneck_hf import Bitstream, BitstreamError


@pytest.fixture(scope="module")
def bitstream(codec, pictures):
    return codec.compress(pictures[:1])[0]


def test_no_byte_can_be_changed_unnoticed(codec, bitstream):
    for position in range(len(bitstream)):
        damaged = bytearray(bitstream)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BitstreamError):
            codec.decompress([bytes(damaged)])


def test_no_length_can_be_cut_off(codec, bitstream):
    for length in range(len(bitstream)):
        with pytest.raises(BitstreamError):
            codec.decompress([bitstream[:length]])


@pytest.mark.parametrize("bitstreams", [b"CNK", []])
def test_a_list_is_wanted(codec, bitstreams):
    with pytest.raises(ValueError, match="non-empty list of bytes"):
        codec.decompress(bitstreams)


def test_bitstreams_of_other_models_are_refused(random_codec, codecs, codec, bitstream, tiny_codec, pictures):
    others = [random_codec("mbt2018-mean", seed=1), codecs("bmshj2018-hyperprior"), tiny_codec]
    for other in others:
        with pytest.raises(BitstreamError, match="encoded with another model"):
            other.decompress([bitstream])
        with pytest.raises(BitstreamError, match="encoded with another model"):
            codec.decompress(other.compress(pictures[:1]))


def test_only_what_decoding_depends_on_makes_another_model(random_codec, bitstream, pictures):
    codec = random_codec("mbt2018-mean")
    latents = codec.decompress([bitstream])
    with torch.no_grad():
        codec.network.g_s[0].weight.mul_(2)
        assert torch.equal(codec.decompress([bitstream]), latents)
        codec.network.h_s[0].weight.mul_(2)
    with pytest.raises(BitstreamError, match="encoded with another model"):
        codec.decompress([bitstream])


def test_masking_weights_at_the_first_use_makes_no_other_model(random_codec, codecs):
    codec = random_codec("mbt2018")
    before = codec.fingerprint
    weight = codec.network.context_prediction.weight.clone()
    codec.encode(torch.zeros(1, 3, 64, 64))
    assert not torch.equal(codec.network.context_prediction.weight, weight)
    assert codec.fingerprint == before


def test_larger_pictures_than_allowed_are_refused(codec, bitstream):
    parsed = Bitstream.parse(bitstream)
    huge = Bitstream(parsed.fingerprint, 4097, 4096, parsed.payload).pack()
    with pytest.raises(BitstreamError, match="more than the limit of 16777216"):
        codec.decompress([huge])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0\0\0",
        b"\0\0" + struct.pack("<I", 2**32 - 1) + bytes(64),
        b"\0\0" + struct.pack("<I", 4) + bytes(64),
        b"\0\0" + struct.pack("<I", 9) + bytes(64),
        b"\0\0" + struct.pack("<I", 12) + bytes(12),
        b"\0\0" + struct.pack("<I", 12) + bytes(12 + 4),
        b"\0\0" + struct.pack("<I", 12) + bytes(12 + 4 * 8000),
    ],
)
def test_lengths_that_cannot_be_never_reach_compressai(monkeypatch, codec, bitstream, payload):
    monkeypatch.setattr(codec.network, "decompress", lambda *_: pytest.fail("CompressAI was called"))
    forged = Bitstream(Bitstream.parse(bitstream).fingerprint, 64, 64, payload).pack()
    with pytest.raises(BitstreamError, match="which this codec does not write for a picture of this size"):
        codec.decompress([forged])


def test_other_symbols_than_were_encoded_are_noticed(codecs, codec, bitstream, pictures):
    source = random.Random(0)
    for each in (codec, codecs("bmshj2018-factorized")):
        parsed = Bitstream.parse(each.compress(pictures[:1])[0])
        for _ in range(40):
            payload = bytearray(parsed.payload)
            payload[source.randrange(len(payload) // 2, len(payload))] ^= 1 << source.randrange(8)
            forged = Bitstream(parsed.fingerprint, parsed.height, parsed.width, bytes(payload)).pack()
            with pytest.raises(BitstreamError, match="decodes to other symbols"):
                each.decompress([forged])


def test_damaged_tables_are_refused(random_codec, codec, bitstream):
    for name, change in [
        ("_quantized_cdf", lambda table: table.index_fill(1, torch.tensor([3]), 0)),
        ("_cdf_length", lambda table: table + 10_000),
        ("_offset", lambda table: table[:-1]),
        ("_quantized_cdf", lambda table: table[:1]),
    ]:
        other = random_codec("mbt2018-mean")
        other.update_tables()
        model = other.network.gaussian_conditional
        setattr(model, name, change(getattr(model, name)))
        with pytest.raises(ValueError, match="coding tables of `gaussian_conditional` are damaged"):
            other.decompress([bitstream])
