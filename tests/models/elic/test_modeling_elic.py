"""ElicModel: sizes, the float path, exact coding, saving and loading."""

import copy

import pytest
import torch

from comneck_hf.coding.bitstream import BitstreamError
from comneck_hf.coding.exact import EXECUTORS
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.layers_elic import checkerboard
from comneck_hf.models.elic.modeling_elic import ElicModel, pad_to_multiple
from comneck_hf.models.entropy_models import gaussian_likelihood


def test_the_default_codec_has_the_published_number_of_parameters():
    with torch.device("meta"):
        codec = ElicModel(ElicConfig())
    assert sum(parameter.numel() for parameter in codec.parameters()) == 33_792_771


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_channels": [16, 16]}, "sum to 32"),
        ({"hidden_channels": 7}, "`hidden_channels` must be an even number"),
        ({"quality": 5}, "`quality` must be 1, 2, 3 or 4"),
        ({"context_channels": [8]}, "take two widths"),
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused_with_a_reason(change, message):
    with pytest.raises(Exception, match=message):
        ElicConfig(**change)


def test_decompress_returns_the_latents_that_were_compressed(tiny_codec, pictures):
    latents = tiny_codec.encode(pictures).latents
    assert latents.shape == (6, 20, 8, 8)
    assert latents.abs().max() > 4, "the pictures must not code to zeros"
    assert torch.equal(tiny_codec.decompress(tiny_codec.compress(pictures)), latents)


def test_every_bitstream_stands_alone(tiny_codec, pictures):
    bitstreams = tiny_codec.compress(pictures)
    together = tiny_codec.decompress(bitstreams)
    for bitstream, latents in zip(bitstreams, together, strict=True):
        assert torch.equal(tiny_codec.decompress([bitstream])[0], latents)
    assert torch.equal(tiny_codec.decompress(bitstreams[::-1]), together.flip(0))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_all_executors_decode_to_the_same_latents(tiny_codec, pictures, executor):
    expected = tiny_codec.encode(pictures).latents
    bitstreams = tiny_codec.compress(pictures)
    codec = copy.deepcopy(tiny_codec)
    codec.exact.executor = executor
    assert torch.equal(codec.decompress(bitstreams), expected)


def test_an_unknown_executor_is_refused(tiny_codec, pictures):
    codec = copy.deepcopy(tiny_codec)
    codec.exact.executor = "int4"
    with pytest.raises(ValueError, match="`executor` must be one of"):
        codec.encode(pictures)


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (1, 1), (100, 70)])
def test_any_size_is_padded_and_restored(tiny_codec, pictures, size):
    picture = pictures[:1, :, : size[0], : size[1]]
    picture = torch.nn.functional.interpolate(picture, size=size)
    latents = tiny_codec.decompress(tiny_codec.compress(picture))
    assert latents.shape[-2:] == (-(-size[0] // 64) * 4, -(-size[1] // 64) * 4)
    decoded = tiny_codec.decode(latents, size=size)
    assert decoded.shape == picture.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def test_padding_repeats_the_last_row_and_column():
    padded = pad_to_multiple(torch.arange(6.0).view(1, 1, 2, 3), 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[0, 0, 3], torch.tensor([3.0, 4.0, 5.0, 5.0]))


def test_pictures_of_different_sizes_share_one_call(tiny_codec, pictures):
    mixed = [pictures[0], pictures[1, :, :64, :100], pictures[2]]
    latents = tiny_codec.decompress(tiny_codec.compress(mixed))
    assert [tuple(each.shape) for each in latents] == [(20, 8, 8), (20, 4, 8), (20, 8, 8)]
    assert torch.equal(latents[2], tiny_codec.encode(pictures[2:3]).latents[0])


def test_the_decoded_picture_resembles_the_original(tiny_codec, pictures):
    decoded = tiny_codec.decode(tiny_codec.encode(pictures).latents)
    error = (decoded - pictures).square().mean()
    spread = (pictures - pictures.mean((2, 3), keepdim=True)).square().mean()
    assert error < 0.3 * spread


def test_real_bytes_agree_with_the_estimate(tiny_codec, pictures):
    likelihoods = tiny_codec.encode(pictures).likelihoods
    estimate = -sum(each.double().log2().sum() for each in likelihoods.values()).item()
    real = 8 * sum(len(bitstream) - 16 for bitstream in tiny_codec.compress(pictures))
    # untrained densities leave values in the far tails, where the likelihood is floored and escapes are cheaper
    assert 0.8 * estimate < real < 1.02 * estimate


def test_the_float_path_and_the_integer_path_predict_alike(tiny_codec, pictures):
    with torch.no_grad():
        outputs = tiny_codec(pictures)
    float_bits = -sum(each.log2().sum() for each in outputs.likelihoods.values()).item()
    exact_bits = -sum(each.log2().sum() for each in tiny_codec.encode(pictures).likelihoods.values()).item()
    assert abs(exact_bits / float_bits - 1) < 0.01


def test_non_anchors_see_anchors_and_anchors_see_nothing(tiny_codec):
    context = tiny_codec.spatial_contexts[4]
    values = torch.randn(1, 8, 8, 8)
    anchors = checkerboard(8, 8)
    changed = values + torch.randn_like(values) * ~anchors
    kept = context(values * anchors)[..., ~anchors]
    assert torch.equal(kept, context(changed * anchors)[..., ~anchors])
    assert torch.allclose(context(changed)[..., ~anchors], kept, atol=1e-5), "odd taps never reach other non-anchors"


def test_noise_and_rounding_give_gradients_to_every_part(tiny_config, pictures):
    torch.manual_seed(0)
    for quantization in ("noise", "ste"):
        codec = ElicModel(tiny_config).train()
        outputs = codec(pictures[:1], quantization=quantization)
        rate = -sum(each.log2().sum() for each in outputs.likelihoods.values())
        ((outputs.reconstruction - pictures[:1]).square().sum() + rate).backward()
        missing = [name for name, p in codec.named_parameters() if p.grad is None and not name.endswith("quantiles")]
        assert missing == []
        codec.aux_loss().backward()
        assert codec.entropy_bottleneck.quantiles.grad.abs().sum() > 0


def test_aux_loss_moves_only_the_quantiles(tiny_config):
    codec = ElicModel(tiny_config)
    codec.aux_loss().backward()
    assert [name for name, p in codec.named_parameters() if p.grad is not None] == ["entropy_bottleneck.quantiles"]


def test_likelihoods_of_all_integers_add_up_to_one(tiny_codec):
    values = torch.arange(-400.0, 401.0)
    total = gaussian_likelihood(values, torch.full_like(values, 5.0), torch.full_like(values, 0.3)).sum()
    assert abs(total.item() - 1) < 1e-5
    z = values.view(1, 1, -1, 1).expand(1, 16, -1, 1) + tiny_codec.entropy_bottleneck.medians.detach()[:, None, None]
    totals = tiny_codec.entropy_bottleneck.likelihood(z).sum((0, 2, 3))
    assert torch.allclose(totals, torch.ones(16), atol=1e-3)


def test_a_frozen_codec_stays_in_eval_mode(tiny_codec, pictures):
    codec = copy.deepcopy(tiny_codec).requires_grad_(False).train()
    assert not codec.training
    assert torch.equal(codec(pictures[:1]).latents, codec(pictures[:1]).latents)
    assert ElicModel(tiny_codec.config).train().training


def test_saving_and_loading_keeps_every_bit(tiny_codec, pictures, tmp_path):
    expected = tiny_codec.encode(pictures).latents
    bitstreams = tiny_codec.compress(pictures)
    tiny_codec.save_pretrained(tmp_path)
    for options in ({}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"device_map": "cpu"}):
        codec = ElicModel.from_pretrained(tmp_path, **options)
        assert codec.exact.fingerprint == tiny_codec.exact.fingerprint
        assert codec.entropy_bottleneck.quantiles.dtype == torch.float32
        assert torch.equal(codec.decompress(bitstreams), expected)


def test_a_server_needs_neither_g_a_nor_g_s(tiny_codec, pictures, tmp_path):
    expected, bitstreams = tiny_codec.encode(pictures).latents, tiny_codec.compress(pictures)
    tiny_codec.save_pretrained(tmp_path)
    server = ElicModel.from_pretrained(tmp_path, build_analysis=False, build_synthesis=False)
    assert not [name for name, _ in server.named_parameters() if name.startswith(("g_a", "g_s", "h_a"))]
    assert torch.equal(server.decompress(bitstreams), expected)
    with pytest.raises(ValueError, match="build_synthesis=False"):
        server.decode(expected)
    with pytest.raises(ValueError, match="build_analysis=False"):
        server.compress(pictures)


def test_coding_needs_no_float_entropy_networks(tiny_codec, pictures, tmp_path):
    expected, bitstreams = tiny_codec.encode(pictures), tiny_codec.compress(pictures)
    tiny_codec.save_pretrained(tmp_path / "whole")
    codec = ElicModel.from_pretrained(tmp_path / "whole", build_entropy_networks=False).eval()
    codec.save_pretrained(tmp_path / "light")
    codec = ElicModel.from_pretrained(tmp_path / "light").eval()
    assert not codec.config.build_entropy_networks
    assert {name.partition(".")[0] for name, _ in codec.named_parameters()} == {
        "g_a",
        "g_s",
        "h_a",
        "entropy_bottleneck",
    }
    assert codec.compress(pictures) == bitstreams
    assert torch.equal(codec.decompress(bitstreams), expected.latents)
    assert torch.equal(codec.encode(pictures).likelihoods["y"], expected.likelihoods["y"])
    for impossible in (codec, codec.calibrate):
        with pytest.raises(ValueError, match="build_entropy_networks=False"):
            impossible(pictures)


def test_casting_keeps_the_integers(tiny_codec, pictures):
    expected = tiny_codec.encode(pictures).latents
    bitstreams = tiny_codec.compress(pictures)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        codec = copy.deepcopy(tiny_codec).to(dtype)
        assert codec.g_a[0].weight.dtype == dtype
        assert torch.equal(codec.decompress(bitstreams), expected)
        prior = codec.entropy_bottleneck.matrices[0]
        assert prior.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(prior.float(), tiny_codec.entropy_bottleneck.matrices[0])
        own = codec.encode(pictures).latents
        assert torch.equal(codec.decompress(codec.compress(pictures)), own)


def test_autocast_around_the_codec_changes_no_decoded_bit(tiny_codec, pictures):
    bitstreams = tiny_codec.compress(pictures)
    expected = tiny_codec.decompress(bitstreams)
    codec = copy.deepcopy(tiny_codec)
    codec.exact.executor = "float32"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.decompress(bitstreams), expected)


def test_training_makes_the_integers_new_and_old_bitstreams_foreign(tiny_config, pictures, tmp_path):
    torch.manual_seed(0)
    codec = ElicModel(tiny_config)
    old = codec.compress(pictures[:1])
    codec.train()
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    outputs = codec(pictures[:1])
    (-outputs.likelihoods["y"].log2().sum()).backward()
    optimizer.step()
    codec.eval().save_pretrained(tmp_path)
    with pytest.raises(BitstreamError, match="model"):
        codec.decompress(old)
    loaded = ElicModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decompress(codec.compress(pictures[:1])), codec.encode(pictures[:1]).latents)


def test_a_state_dict_round_trip_carries_the_tables(tiny_codec, pictures):
    bitstreams = tiny_codec.compress(pictures)
    fresh = ElicModel(ElicConfig(**{**tiny_codec.config.to_diff_dict(), "coding_table_size": 1}))
    fresh.load_state_dict(tiny_codec.state_dict())
    assert torch.equal(fresh.decompress(bitstreams), tiny_codec.decompress(bitstreams))


def test_float_weights_without_integers_get_new_ones(tiny_codec, pictures):
    floats = {key: value for key, value in tiny_codec.state_dict().items() if not key.startswith("exact.")}
    codec = ElicModel(tiny_codec.config)
    before = codec.compress(pictures[:1])
    codec.load_state_dict(floats, strict=False)
    with pytest.raises(BitstreamError, match="model"):
        codec.decompress(before)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 1, 64, 64)])
def test_pictures_of_a_wrong_shape_are_refused(tiny_codec, shape):
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        tiny_codec.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p * 255, "reach from .* to .*, and .0, 1. is needed"),
        (lambda p: (p - 0.45) / 0.27, "not normalized"),
        (lambda p: torch.where(p > p.mean(), torch.nan, p), "reach from nan to nan"),
        (lambda p: (p * 255).byte(), "are torch.uint8, and floats"),
    ],
)
def test_pictures_whose_values_are_no_picture_s_are_refused(tiny_codec, pictures, change, message):
    with pytest.raises(ValueError, match=message):
        tiny_codec.compress(change(pictures))
    with pytest.raises(ValueError, match=message):
        tiny_codec.compress([pictures[0], change(pictures)[0]])
    assert tiny_codec.compress(pictures * 1.2 - 0.1)  # a little beyond, as after resampling


def test_inputs_that_are_no_bitstreams_are_refused(tiny_codec):
    for wrong in (b"CNK", []):
        with pytest.raises(ValueError, match="non-empty list"):
            tiny_codec.decompress(wrong)
    with pytest.raises(ValueError, match="`latents` must have shape"):
        tiny_codec.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="`quantization` must be"):
        tiny_codec(torch.zeros(1, 3, 64, 64), quantization="hard")


def test_pictures_that_no_decoder_would_accept_are_not_coded(tiny_codec, pictures):
    codec = copy.deepcopy(tiny_codec)
    codec.config.max_pixels = 128 * 128 - 1
    with pytest.raises(ValueError, match="more than `max_pixels`"):
        codec.compress(pictures)


def test_a_flipped_bit_anywhere_is_reported(tiny_codec, pictures):
    (bitstream,) = tiny_codec.compress(pictures[:1])
    for position in range(len(bitstream)):
        damaged = bytearray(bitstream)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BitstreamError):
            tiny_codec.decompress([bytes(damaged)])
