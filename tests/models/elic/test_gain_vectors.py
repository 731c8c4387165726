"""Channel vectors that follow the gain: fresh ones change nothing, trained ones code exactly, each at its gain."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.coding.exact import EXECUTORS
from comneck_hf.coding.gain_map import GainMap
from comneck_hf.evaluation.compressai_reference import to_compressai
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.gain_vectors_elic import GainTransform, add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel


HALVES = GainMap(((-1, 1),), step=4)  # an octave below and an octave above
GAINS, MAPS = [0.0, 1.0, -1.25, 0.5, 3.0, -2.0], [None, HALVES, None, HALVES, None, HALVES]


def random_maps(count: int) -> list[GainMap]:
    generator = torch.Generator().manual_seed(5)
    levels = torch.randint(-2, 3, (count, 5, 3), generator=generator)
    return [GainMap(rows, step=2, levels=5) for rows in levels.tolist()]


@pytest.fixture(scope="module")
def fresh_codec(tiny_codec: ElicModel) -> ElicModel:
    return add_gain_vectors(tiny_codec, levels=4, level_range=(-1.5, 1.0))


def test_fresh_vectors_code_to_the_same_bytes(tiny_codec, fresh_codec, pictures):
    assert fresh_codec.fingerprint == tiny_codec.fingerprint
    options = {"gain": GAINS, "gain_maps": MAPS}
    bitstreams = tiny_codec.compress(pictures, **options)
    assert fresh_codec.compress(pictures, **options) == bitstreams
    assert fresh_codec.compress(pictures, target_bytes=600) == tiny_codec.compress(pictures, target_bytes=600)
    latents = tiny_codec.decompress(bitstreams)
    assert torch.equal(fresh_codec.decode(latents, **options), tiny_codec.decode(latents))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_trained_vectors_change_the_bytes_and_decode_to_what_was_encoded(tiny_codec, vector_codec, pictures, executor):
    options = {"gain": GAINS, "gain_maps": random_maps(6)}
    expected = vector_codec.encode(pictures, **options).latents
    bitstreams = vector_codec.compress(pictures, **options)
    assert all(map(bytes.__ne__, bitstreams, tiny_codec.compress(pictures, **options)))
    codec = copy.deepcopy(vector_codec)
    codec.exact.executor = executor
    assert torch.equal(codec.decompress(bitstreams), expected)


def test_pictures_of_a_batch_have_vectors_of_their_own(vector_codec, pictures):
    together = vector_codec.compress(pictures, gain=GAINS, gain_maps=MAPS)
    latents = vector_codec.decompress(together)
    decoded = vector_codec.decode(latents, **vector_codec.coded_gains(together))
    for index in range(6):
        options = {"gain": GAINS[index], "gain_maps": MAPS[index]}
        assert vector_codec.compress(pictures[index : index + 1], **options) == [together[index]]
        alone = vector_codec.decode(latents[index : index + 1], **options)
        assert torch.allclose(decoded[index : index + 1], alone, atol=1e-5)


def test_bitstreams_tell_what_decoding_needs(tiny_codec, vector_codec, pictures):
    bitstreams = vector_codec.compress(pictures, gain=GAINS, gain_maps=MAPS)
    gains = vector_codec.coded_gains(bitstreams)
    assert gains == {"gain": GAINS, "gain_maps": MAPS}
    latents = vector_codec.decompress(bitstreams)
    right, wrong = vector_codec.decode(latents, **gains), vector_codec.decode(latents)
    differences = (right - wrong).abs().amax((1, 2, 3))
    assert differences[0] == 0 and differences[1:].min() > 0.01  # the first one's gain is 0
    assert torch.equal(tiny_codec.decode(latents, **gains), tiny_codec.decode(latents))
    with pytest.raises(ValueError, match="one for each of the 6 pictures, got 2"):
        vector_codec.decode(latents, gain=[0.0, 1.0])


def test_levels_are_interpolated_as_logarithms_and_not_extended():
    transform = GainTransform([nn.Conv2d(3, 2, 1)], levels=3, level_range=(-1.0, 1.0))
    with torch.no_grad():
        transform.log_vectors.copy_(torch.tensor([[0.0, 1.0], [2.0, -1.0], [3.0, 3.0]]))
    gains = torch.tensor([-4.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0])
    (vectors,) = transform.vectors(gains[:, None, None])
    logarithms = [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [2.0, -1.0], [2.25, 0.0], [3.0, 3.0], [3.0, 3.0]]
    assert torch.allclose(vectors[..., 0, 0], torch.tensor(logarithms).exp2())


def test_every_region_is_scaled_at_four_depths_by_the_vectors_of_its_gain():
    """With kernels of one pixel, regions do not see each other."""
    depths = [nn.Conv2d(3, 4, 1, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 1, stride=2)]
    heights = [nn.ConvTranspose2d(5, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2)]
    for layers, size, widths in ((depths, 16, [4, 5]), (heights, 4, [5, 4])):
        torch.manual_seed(0)
        transform = GainTransform(layers, levels=2, level_range=(0.0, 1.0))
        nn.init.normal_(transform.log_vectors)
        assert transform.widths == widths
        features = torch.randn(1, layers[0].in_channels, size, size)
        grid = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
        mixed = transform(features, grid[None])
        half = mixed.shape[2] // 2
        assert torch.equal(transform(features), transform(features, torch.zeros(1, 1, 1)))
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = (..., slice(row * half, (row + 1) * half), slice(column * half, (column + 1) * half))
            own = transform(features, grid[row, column].view(1, 1, 1))
            assert torch.allclose(mixed[part], own[part], atol=1e-6)
        assert not torch.allclose(mixed, transform(features), atol=0.1)


def test_a_size_is_reached_although_latents_follow_the_gain(tiny_codec, vector_codec, pictures, monkeypatch):
    """Without vectors, g_a runs once for all encodes."""
    for codec, runs in ((tiny_codec, [1]), (vector_codec, [2, 3])):
        calls = []
        remove = codec.g_a.register_forward_hook(lambda *_, calls=calls: calls.append(1)).remove
        target = round(0.8 * len(codec.compress(pictures[:1])[0]))
        calls.clear()
        (data,) = codec.compress(pictures[:1], target_bytes=target)
        remove()
        assert len(calls) in runs
        assert len(data) == pytest.approx(target, rel=0.03)
        assert torch.equal(
            codec.decompress([data]), codec.encode(pictures[:1], gain=Bitstream.parse(data).gain / 64).latents
        )


@pytest.mark.parametrize("quantization", ["noise", "ste"])
def test_the_float_path_rounds_every_region_by_its_gain(vector_codec, pictures, quantization):
    options = {"gain": -0.5, "gain_maps": HALVES}
    with torch.no_grad():
        latents = vector_codec(pictures, quantization=quantization, **options).latents
        y = vector_codec._transform(vector_codec.g_a, pictures, torch.tensor([[[-1.5, 0.5]]]).expand(6, 1, 2))
    errors = (latents - y).abs()
    for columns, gain in ((slice(0, 4), -1.5), (slice(4, 8), 0.5)):
        assert errors[..., columns].max() <= 0.5 * 2**-gain + 1e-5
        assert errors[..., columns].max() > 0.48 * 2**-gain


def test_the_float_path_predicts_the_bits_of_every_gain(vector_codec, pictures):
    for gain, gain_map in ((0.0, None), (-1.0, None), (0.7, HALVES)):
        with torch.no_grad():
            outputs = vector_codec(pictures, quantization="ste", gain=gain, gain_maps=gain_map)
        exact = vector_codec.encode(pictures, gain=gain, gain_maps=gain_map)
        for name, likelihoods in exact.likelihoods.items():
            bits = [-values.log2().sum().item() for values in (likelihoods, outputs.likelihoods[name])]
            assert bits[0] == pytest.approx(bits[1], rel=0.02)
        decoded = vector_codec.decode(exact.latents, gain=gain, gain_maps=gain_map)
        assert (decoded - outputs.reconstruction.clamp(0, 1)).abs().mean() < 0.01
    with torch.no_grad():
        plain = vector_codec(pictures, quantization="ste")
        assert torch.equal(plain.latents, vector_codec(pictures, quantization="ste", gain=0.0).latents)


@pytest.mark.parametrize("quantization", ["noise", "ste"])
def test_only_the_levels_around_a_gain_get_gradients(fresh_codec, pictures, quantization):
    codec = copy.deepcopy(fresh_codec).train()  # levels at -1.5, -0.67, 0.17 and 1
    outputs = codec(pictures[:2], quantization=quantization, gain=[-1.0, -0.7])
    rate = -sum(each.log2().sum() for each in outputs.likelihoods.values())
    ((outputs.reconstruction - pictures[:2]).square().sum() + 1e-3 * rate).backward()
    for transform in (codec.g_a, codec.g_s):
        moved = transform.log_vectors.grad.abs()
        assert moved[:2].sum(1).min() > 0 and moved[2:].max() == 0
        assert (moved[0] > 0).float().mean() > 0.9  # at all four depths


def test_vectors_are_saved_and_loaded(vector_codec, pictures, tmp_path):
    options = {"gain": GAINS, "gain_maps": MAPS}
    bitstreams = vector_codec.compress(pictures, **options)
    vector_codec.save_pretrained(tmp_path)
    loaded = ElicModel.from_pretrained(tmp_path).eval()
    assert loaded.config.gain_levels == 4 and tuple(loaded.config.gain_level_range) == (-1.5, 1.0)
    assert loaded.compress(pictures, **options) == bitstreams
    latents = loaded.decompress(bitstreams)
    assert torch.equal(loaded.decode(latents, **options), vector_codec.decode(latents, **options))
    server = ElicModel.from_pretrained(tmp_path, build_analysis=False, build_entropy_networks=False).eval()
    assert torch.equal(server.decompress(bitstreams), latents)
    assert torch.equal(server.decode(latents, **options), vector_codec.decode(latents, **options))
    edge = ElicModel.from_pretrained(tmp_path, build_synthesis=False)
    assert not [name for name in edge.state_dict() if name.startswith("g_s")]
    assert edge.compress(pictures, **options) == bitstreams


def test_configurations_and_weights_of_before_load_unchanged(tiny_codec, pictures, tmp_path):
    golden = Path(__file__).parents[2] / "data" / "golden" / "v1" / "codec"
    assert "gain_levels" not in json.loads((golden / "config.json").read_text())
    codec = ElicModel.from_pretrained(golden)
    assert codec.config.gain_levels == 0 and not codec.needs_gains
    tiny_codec.save_pretrained(tmp_path)
    assert not [name for name in tiny_codec.state_dict() if "vectors" in name]
    richer = ElicModel.from_pretrained(tmp_path, gain_levels=3).eval()
    assert richer.g_a.log_vectors.shape[0] == 3 and richer.g_a.log_vectors.abs().max() == 0
    assert richer.compress(pictures, gain=0.5) == tiny_codec.compress(pictures, gain=0.5)


def test_the_full_size_codec_has_the_vectors_of_the_paper():
    """Ten levels of three times 192 and one of 320 channels, in g_a and mirrored in g_s."""
    with torch.device("meta"):
        codec = ElicModel(ElicConfig(gain_levels=10))
    assert codec.g_a.widths == [192, 192, 192, 320] and codec.g_s.widths == [320, 192, 192, 192]
    assert sum(parameter.numel() for parameter in codec.parameters()) == 33_792_771 + 2 * 10 * (3 * 192 + 320)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain_levels": 1}, "`gain_levels` must be 0, or 2 or more, got 1"),
        ({"gain_levels": -2}, "`gain_levels` must be 0, or 2 or more, got -2"),
        ({"gain_level_range": [1.0, 1.0]}, r"within -8 and 5 octaves, got \[1.0, 1.0\]"),
        ({"gain_level_range": [-9, 1]}, r"within -8 and 5 octaves, got \[-9, 1\]"),
        ({"gain_level_range": [0.0]}, r"the lowest and the highest gain, .* got \[0.0\]"),
    ],
)
def test_levels_that_no_gain_reaches_are_refused(change, message):
    with pytest.raises(Exception, match=message):
        ElicConfig(**change)


def test_vectors_are_added_only_once_and_have_no_place_elsewhere(vector_codec):
    with pytest.raises(ValueError, match="has vectors of 4 gains"):
        add_gain_vectors(vector_codec, levels=6, level_range=(-1.0, 1.0))
    with pytest.raises(ValueError, match="no gain vectors, this codec has them for 4 gains"):
        to_compressai(vector_codec)
