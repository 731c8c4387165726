"""TicModel: sizes, the float path, exact coding, saving and loading."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from comneck_hf.coding.bitstream import BitstreamError
from comneck_hf.coding.exact import EXECUTORS
from comneck_hf.coding.gain_map import GainMap
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.tic.configuration_tic import TicConfig
from comneck_hf.models.tic.modeling_tic import TicModel


def block_parameters(width, depth, heads, window):
    layer_norms, qkv, projection = 4 * width, 3 * width**2 + 3 * width, width**2 + width
    mlp, bias = 2 * 2 * width**2 + 2 * width + width, (2 * window - 1) ** 2 * heads
    return depth * (layer_norms + qkv + projection + mlp + bias)


def test_the_default_transforms_have_the_parameters_of_the_description():
    with torch.device("meta"):
        codec = TicModel(TicConfig())
    blocks = sum(block_parameters(128, *stage) for stage in ((2, 8, 8), (4, 8, 8), (6, 8, 8)))
    blocks += block_parameters(192, 2, 16, 4)
    weights = 3 * 128 * 25 + 2 * 128 * 128 * 9 + 128 * 192 * 9
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in codec.named_children()}
    assert counts["g_a"] == blocks + weights + 3 * 128 + 192 == 2_733_248
    assert counts["g_s"] == blocks + weights + 3 * 128 + 3 == 2_733_059
    assert sum(counts.values()) == 12_904_643


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_channels": [16, 16]}, "sum to 32"),
        ({"depths": [2, 4, 6]}, "`depths` must be four numbers of at least 1"),
        ({"depths": [2, 0, 6, 2]}, "`depths` must be four numbers of at least 1"),
        ({"window_sizes": [8, 8, 8, 1]}, "`window_sizes` must be four numbers of at least 2"),
        ({"num_heads": [8, 8, 7, 16]}, "7 heads of entry 2 do not divide its 128 channels"),
        ({"num_heads": [8, 8, 8, 10]}, "10 heads of entry 3 do not divide its 192 channels"),
        ({"mlp_ratio": 0.0}, "`mlp_ratio` must leave"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused_with_a_reason(change, message):
    with pytest.raises(Exception, match=message):
        TicConfig(**change)


def test_decompress_returns_the_latents_that_were_compressed(tic_codec, pictures):
    latents = tic_codec.encode(pictures).latents
    assert latents.shape == (6, 20, 8, 8)
    assert latents.abs().max() > 4, "the pictures must not code to zeros"
    assert torch.equal(tic_codec.decompress(tic_codec.compress(pictures)), latents)


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (1, 1), (100, 70)])
def test_any_size_is_padded_and_restored(tic_codec, pictures, size):
    picture = torch.nn.functional.interpolate(pictures[:1], size=size)
    latents = tic_codec.decompress(tic_codec.compress(picture))
    assert latents.shape[-2:] == (-(-size[0] // 64) * 4, -(-size[1] // 64) * 4)
    assert torch.equal(latents, tic_codec.encode(picture).latents)
    decoded = tic_codec.decode(latents, size=size)
    assert decoded.shape == picture.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_pictures_of_different_sizes_share_one_call(tic_codec, pictures):
    mixed = [pictures[0], pictures[1, :, :64, :100], pictures[2]]
    latents = tic_codec.decompress(tic_codec.compress(mixed))
    assert [tuple(each.shape) for each in latents] == [(20, 8, 8), (20, 4, 8), (20, 8, 8)]
    assert torch.equal(latents[2], tic_codec.encode(pictures[2:3]).latents[0])


def test_every_bitstream_stands_alone(tic_codec, pictures):
    bitstreams = tic_codec.compress(pictures)
    together = tic_codec.decompress(bitstreams)
    for bitstream, latents in zip(bitstreams, together, strict=True):
        assert torch.equal(tic_codec.decompress([bitstream])[0], latents)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_executors_and_threads_decode_to_the_same_latents(tic_codec, pictures, executor):
    expected, bitstreams = tic_codec.encode(pictures).latents, tic_codec.compress(pictures)
    codec = copy.deepcopy(tic_codec)
    codec.exact.executor = executor
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(codec.decompress(bitstreams), expected)
    finally:
        torch.set_num_threads(1)


def test_latents_of_any_grid_can_be_shown(tic_codec):
    for grid in ((5, 7), (1, 1)):
        assert tic_codec.decode(torch.randn(1, 20, *grid)).shape == (1, 3, 16 * grid[0], 16 * grid[1])


def test_the_decoded_picture_resembles_the_original(tic_codec, pictures):
    decoded = tic_codec.decode(tic_codec.encode(pictures).latents)
    error = (decoded - pictures).square().mean()
    spread = (pictures - pictures.mean((2, 3), keepdim=True)).square().mean()
    assert error < 0.5 * spread


def test_attention_takes_part_in_coding(tic_codec, pictures):
    codec = copy.deepcopy(tic_codec)
    with torch.no_grad():
        for block in (*codec.g_a[1::2], *codec.g_s[::2]):
            for layer in block.layers:
                layer.attention.projection.weight.zero_()
    assert not torch.equal(codec.encode(pictures).latents, tic_codec.encode(pictures).latents)


def test_the_float_path_and_the_integer_path_predict_alike(tic_codec, pictures):
    with torch.no_grad():
        outputs = tic_codec(pictures)
    float_bits = -sum(each.log2().sum() for each in outputs.likelihoods.values()).item()
    exact_bits = -sum(each.log2().sum() for each in tic_codec.encode(pictures).likelihoods.values()).item()
    assert abs(exact_bits / float_bits - 1) < 0.02


@pytest.mark.parametrize("quantization", ["noise", "ste"])
def test_gradients_reach_every_parameter(tic_codec, pictures, quantization):
    torch.manual_seed(0)
    codec = copy.deepcopy(tic_codec).train()
    outputs = codec(pictures[:2], quantization=quantization)
    rate = -sum(each.log2().sum() for each in outputs.likelihoods.values())
    ((outputs.reconstruction - pictures[:2]).square().sum() + rate + codec.aux_loss()).backward()
    assert [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_fresh_weights_are_those_of_the_description(tic_config):
    torch.manual_seed(0)
    codec = TicModel(tic_config)
    layer = codec.g_a[1].layers[0]
    assert 0.01 < layer.attention.qkv.weight.std() < 0.03 and 0.01 < layer.attention.position_bias.std() < 0.03
    assert not layer.mlp[0].bias.any() and torch.equal(layer.mlp_norm.weight, torch.ones(16))


def test_saving_and_loading_keeps_every_bit(tic_codec, pictures, tmp_path):
    expected, bitstreams = tic_codec.encode(pictures).latents, tic_codec.compress(pictures)
    tic_codec.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is TicConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is TicModel
    for options in ({}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}):
        codec = TicModel.from_pretrained(tmp_path, **options).eval()
        assert torch.equal(codec.decompress(bitstreams), expected)
        own = codec.encode(pictures[:1]).latents
        assert torch.equal(codec.decompress(codec.compress(pictures[:1])), own)
    loaded = TicModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tic_codec.state_dict().items())


def test_a_server_needs_neither_transforms_nor_float_entropy_networks(tic_codec, pictures, tmp_path):
    expected, bitstreams = tic_codec.encode(pictures).latents, tic_codec.compress(pictures)
    tic_codec.save_pretrained(tmp_path)
    options = dict.fromkeys(("build_analysis", "build_synthesis", "build_entropy_networks"), False)
    server = TicModel.from_pretrained(tmp_path, **options)
    assert {name.partition(".")[0] for name, _ in server.named_parameters()} == {"entropy_bottleneck"}
    assert torch.equal(server.decompress(bitstreams), expected)
    with pytest.raises(ValueError, match="build_synthesis=False"):
        server.decode(expected)


def test_a_codec_of_the_other_type_is_not_loaded(tic_codec, tiny_codec, tmp_path):
    tic_codec.save_pretrained(tmp_path / "tic")
    with pytest.raises(ValueError, match=r"describes 'elic' codecs.* 'tic' model. `AutoModel.from_pretrained`"):
        ElicModel.from_pretrained(tmp_path / "tic")
    tiny_codec.save_pretrained(tmp_path / "elic")
    with pytest.raises(ValueError, match=r"describes 'tic' codecs.* 'elic' model"):
        TicModel.from_pretrained(tmp_path / "elic")


def test_bitstreams_of_tic_and_elic_are_foreign_to_each_other(tic_codec, tiny_codec, pictures):
    for writer, reader in ((tic_codec, tiny_codec), (tiny_codec, tic_codec)):
        with pytest.raises(BitstreamError, match="model"):
            reader.decompress(writer.compress(pictures[:1]))


def test_equal_integers_do_not_make_elic_a_reader_of_tic(tic_codec, pictures):
    names = ("hidden_channels", "latent_channels", "group_channels", "context_channels", "aggregation_channels")
    elic = ElicModel(ElicConfig(**{name: getattr(tic_codec.config, name) for name in names}))
    elic.exact.load_state_dict(tic_codec.exact.state_dict())
    elic._weights_moved = False
    assert torch.equal(elic.exact.thresholds, tic_codec.exact.thresholds)
    with pytest.raises(BitstreamError, match="model"):
        elic.decompress(tic_codec.compress(pictures[:1]))


def test_gains_and_maps_are_those_of_elic(tic_codec, pictures):
    gain_map = GainMap(((-1, 0), (1, 1)))
    bitstreams = tic_codec.compress(pictures[:2], gain=1, gain_maps=gain_map)
    expected = tic_codec.encode(pictures[:2], gain=1, gain_maps=gain_map).latents
    assert torch.equal(tic_codec.decompress(bitstreams), expected)
    assert len(bitstreams[0]) > len(tic_codec.compress(pictures[:1])[0])


def test_vectors_follow_the_gain_in_its_blocks_too(tic_codec, pictures):
    codec = add_gain_vectors(tic_codec, levels=3, level_range=(-1.0, 1.0))
    assert codec.g_a.widths == [16, 16, 16, 20] and codec.g_s.widths == [20, 16, 16, 16]
    options = {"gain": [0.5, -1.0], "gain_maps": GainMap(((-1, 0), (1, 1)))}
    plain = tic_codec.compress(pictures[:2], **options)
    assert codec.compress(pictures[:2], **options) == plain
    latents = tic_codec.decompress(plain)
    assert torch.equal(codec.decode(latents, **options), tic_codec.decode(latents))
    with torch.no_grad():
        for transform in (codec.g_a, codec.g_s):
            transform.log_vectors.normal_(std=0.1)
    bitstreams = codec.compress(pictures[:2], **options)
    assert bitstreams[0] != plain[0]
    assert torch.equal(codec.decompress(bitstreams), codec.encode(pictures[:2], **options).latents)
    assert not torch.allclose(codec.decode(latents, **options), codec.decode(latents), atol=0.01)
