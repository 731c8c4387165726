"""Bitstreams of every version decode to the latents they were written from, for good."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.coding.exact import EXECUTORS
from comneck_hf.models.elic.gains_elic import gain_grid
from comneck_hf.models.elic.modeling_elic import ElicModel


GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILES = sorted(GOLDEN.glob("v*/*.cnk"))


@pytest.fixture(scope="module")
def golden_codec() -> ElicModel:
    """The codec that wrote version 1's golden files."""
    return ElicModel.from_pretrained(GOLDEN / "v1" / "codec").eval()


def test_there_are_golden_files_of_every_version():
    names = {version: {path.stem for path in FILES if path.parent.name == version} for version in ("v1", "v2")}
    assert names["v1"] >= {"square", "padded", "wide", "one_pixel"}
    assert names["v2"] >= {"finer", "coarser_with_map", "map", "finest"}
    for path in FILES:
        assert f"v{path.read_bytes()[3]}" == path.parent.name


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_bitstreams_still_decode(golden_codec, path, executor):
    golden_codec.exact.executor = executor
    expected = load_file(path.with_suffix(".safetensors"))["latents"]
    assert torch.equal(golden_codec.decompress([path.read_bytes()]), expected)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_same_symbols_still_give_the_same_bytes(golden_codec, path):
    data, stored = path.read_bytes(), load_file(path.with_suffix(".safetensors"))
    height, width = stored["latents"].shape[-2:]
    channels, positions = golden_codec.config.hidden_channels, height * width // 16
    z_symbols = stored["symbols"][:, : positions * channels].view(1, positions, channels).transpose(1, 2)
    header = Bitstream.parse(data)
    gains = gain_grid([header.gain], [header.gain_map], height, width, golden_codec.device)
    z_symbols = z_symbols.reshape(1, channels, height // 4, width // 4)
    encoded = golden_codec.exact.encode(stored["latents"], z_symbols, gains)
    assert torch.equal(encoded.symbols, stored["symbols"])
    (payload,) = golden_codec.exact.pack(encoded)
    assert replace(header, fingerprint=golden_codec.exact.fingerprint, payload=payload).pack() == data
