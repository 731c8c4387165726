"""Float entropy networks that are made from the integer ones."""

import pytest
import torch

import comneck_hf
from comneck_hf import ElicConfig, ElicModel, TicModel, restore_entropy_networks
from comneck_hf.models.tic.configuration_tic import TicConfig


def bits(likelihoods: dict[str, torch.Tensor]) -> float:
    return float(sum(-values.double().log2().sum() for values in likelihoods.values()))


@pytest.fixture(scope="module")
def packed() -> ElicModel:
    """Trained, and without float entropy networks."""
    codec = ElicModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2")).eval()
    assert not codec.config.build_entropy_networks
    return codec


@torch.no_grad()
def test_the_float_networks_predict_what_the_integer_ones_do(packed, pictures):
    codec = restore_entropy_networks(packed)
    assert codec is not packed and not packed.config.build_entropy_networks
    assert not codec.training
    found = codec(pictures, quantization="ste")
    coded = packed.encode(pictures)
    assert bits(found.likelihoods) == pytest.approx(bits(coded.likelihoods), rel=0.01)
    assert (found.latents - coded.latents).abs().mean() < 0.03
    untrained = ElicModel(codec.config).eval()
    untrained.load_state_dict(packed.state_dict(), strict=False)
    assert bits(untrained(pictures, quantization="ste").likelihoods) > 1.2 * bits(coded.likelihoods)


def test_coding_stays_what_it_was_and_integers_can_be_derived_anew(packed, pictures):
    codec, bitstreams = restore_entropy_networks(packed), packed.compress(pictures)
    assert codec.compress(pictures) == bitstreams
    assert codec.fingerprint == packed.fingerprint
    codec.calibrate(pictures)
    assert codec.fingerprint != packed.fingerprint
    size, expected = (sum(map(len, streams)) for streams in (codec.compress(pictures), bitstreams))
    assert size == pytest.approx(expected, rel=0.01)


def test_the_restored_codec_trains_and_is_saved_as_a_whole_one(packed, pictures, tmp_path):
    codec = restore_entropy_networks(packed).train()
    optimizer = torch.optim.Adam(codec.h_s.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = -sum(values.log2().sum() for values in codec(pictures, quantization="ste").likelihoods.values())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in codec.h_s.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    codec.save_pretrained(tmp_path)
    loaded = ElicModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.h_s[0].weight, codec.h_s[0].weight)
    assert restore_entropy_networks(loaded) is loaded


@torch.no_grad()
@pytest.mark.parametrize("kind", ["elic", "tic"])
def test_networks_that_were_left_out_come_back_with_the_same_predictions(tiny_codec, pictures, tmp_path, kind):
    whole = tiny_codec
    if kind == "tic":
        torch.manual_seed(0)
        widths = {name: getattr(tiny_codec.config, name) for name in ("hidden_channels", "latent_channels")}
        widths |= {"group_channels": [2, 2, 4, 4, 8], "context_channels": [14, 8], "aggregation_channels": [40, 32]}
        whole = TicModel(TicConfig(**widths, num_heads=[2, 2, 2, 2])).eval()
        whole.calibrate(pictures)
    whole.save_pretrained(tmp_path)
    codec = restore_entropy_networks(type(whole).from_pretrained(tmp_path, build_entropy_networks=False).eval())
    assert isinstance(codec, type(whole))
    found, expected = (model(pictures, quantization="ste") for model in (codec, whole))
    assert bits(found.likelihoods) == pytest.approx(bits(expected.likelihoods), rel=5e-3)
    assert (found.reconstruction - expected.reconstruction).abs().mean() < 5e-3  # some latents are rounded otherwise


def test_a_codec_without_any_networks_is_refused(tiny_config):
    bare = ElicModel(ElicConfig(**{**tiny_config.to_dict(), "build_entropy_networks": False}))
    with pytest.raises(ValueError, match="neither float nor integer"):
        restore_entropy_networks(bare)
