"""CompressaiModel: bytes and latents against CompressAI itself, sizes, training, saving and loading."""

import copy
import threading
import urllib.error

import pytest
import torch
from transformers import AutoModel

from comneck_hf import Bitstream, CompressaiConfig, CompressaiModel
from comneck_hf.models.compressai.configuration_compressai import LATENT_CHANNELS
from comneck_hf.models.elic.modeling_elic import pad_to_multiple


PARALLEL = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean"]


def original(codec):
    """The zoo's own model with the same weights and tables."""
    from compressai.zoo import image_models

    model = image_models[codec.config.architecture](codec.config.quality).eval()
    codec.update_tables()
    model.load_state_dict(codec.network.state_dict())
    return model


@pytest.mark.parametrize("architecture", [*PARALLEL, "mbt2018"])
def test_strings_and_pictures_are_those_of_compressai(codecs, pictures, architecture):
    codec, picture = codecs(architecture), pictures[:1]
    reference = original(codec)
    coded = reference.compress(picture)
    (bitstream,) = codec.compress(picture)
    payload = Bitstream.parse(bitstream).payload
    y_string, *z_string = [strings[0] for strings in coded["strings"]]
    z_part = b"".join(len(string).to_bytes(4, "little") + string for string in z_string)
    assert payload[2:] == z_part + y_string
    latents = codec.decompress([bitstream])
    assert latents.abs().max() > 2, "the pictures must not code to zeros"
    assert torch.equal(codec.decode(latents), reference.decompress(coded["strings"], coded["shape"])["x_hat"])


@pytest.mark.parametrize("architecture", PARALLEL)
def test_forward_is_that_of_compressai(codecs, pictures, architecture):
    codec = codecs(architecture)
    with torch.no_grad():
        expected, outputs = original(codec)(pictures), codec(pictures)
    assert torch.equal(outputs.reconstruction, expected["x_hat"])
    assert outputs.likelihoods.keys() == expected["likelihoods"].keys()
    for name, likelihood in expected["likelihoods"].items():
        assert torch.equal(outputs.likelihoods[name], likelihood)


@pytest.mark.parametrize("architecture", LATENT_CHANNELS)
def test_decompress_returns_the_latents_that_were_compressed(random_codec, pictures, architecture):
    codec = random_codec(architecture)
    picture = pictures[:1]
    encoded = codec.encode(picture)
    assert encoded.latents.shape == (1, codec.config.latent_channels, 4, 4)
    assert encoded.latents.dtype == torch.float32
    assert torch.equal(codec.decompress(codec.compress(picture)), encoded.latents)


@pytest.mark.parametrize("architecture", [*PARALLEL, "mbt2018"])
def test_encode_estimates_what_forward_does(codecs, pictures, architecture):
    codec, picture = codecs(architecture), pictures[:1]
    encoded = codec.encode(picture)
    with torch.no_grad():
        outputs = codec(picture)
    assert torch.equal(outputs.latents, encoded.latents) == (architecture != "mbt2018")
    for name, likelihood in outputs.likelihoods.items():
        assert torch.equal(encoded.likelihoods[name], likelihood)


@pytest.mark.parametrize("size", [(1, 1), (65, 130), (70, 40)])
def test_any_size_is_padded_and_restored(codec, pictures, size):
    picture = torch.nn.functional.interpolate(pictures[:1], size=size)
    (bitstream,) = codec.compress(picture)
    assert (Bitstream.parse(bitstream).height, Bitstream.parse(bitstream).width) == size
    latents = codec.decompress([bitstream])
    assert latents.shape[-2:] == (-(-size[0] // 64) * 4, -(-size[1] // 64) * 4)
    assert torch.equal(latents, codec.encode(picture).latents)
    assert torch.equal(latents, codec.encode(pad_to_multiple(picture, 64)).latents)
    decoded = codec.decode(latents, size=size)
    assert decoded.shape == picture.shape
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert codec(picture).reconstruction.shape == picture.shape


def test_every_bitstream_stands_alone_and_sizes_may_differ(codec, pictures):
    wide = torch.nn.functional.interpolate(pictures[:1], size=(50, 100))[0]
    together = codec.compress([pictures[0], wide, pictures[1]])
    assert together[::2] == codec.compress(pictures[:2])
    latents = codec.decompress(together)
    assert [tuple(picture.shape) for picture in latents] == [(192, 4, 4), (192, 4, 8), (192, 4, 4)]
    for bitstream, picture in zip(together, latents, strict=True):
        assert torch.equal(codec.decompress([bitstream])[0], picture)


def test_threads_do_not_disturb_each_other(codecs, pictures):
    chosen = [codecs("bmshj2018-factorized"), codecs("mbt2018-mean")] * 2
    expected = [codec.compress(pictures) for codec in chosen]
    found = [None] * len(chosen)

    def work(index):
        for _ in range(3):
            found[index] = chosen[index].compress(pictures)
            assert torch.equal(chosen[index].decompress(found[index]), chosen[index].encode(pictures).latents)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(chosen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize("quantization", ["noise", "ste"])
@pytest.mark.parametrize("architecture", ["bmshj2018-factorized", "mbt2018-mean", "mbt2018"])
def test_gradients_reach_every_part(random_codec, pictures, architecture, quantization):
    codec = random_codec(architecture).train()
    outputs = codec(pictures, quantization=quantization)
    is_coded = torch.allclose(outputs.latents, codec.encode(pictures).latents, atol=1e-3)
    assert is_coded == (quantization == "ste" and architecture != "mbt2018")
    rate = -sum(likelihood.log().mean() for likelihood in outputs.likelihoods.values())
    (rate + outputs.reconstruction.square().mean() + codec.aux_loss()).backward()
    without = {name for name, parameter in codec.named_parameters() if parameter.grad is None}
    assert not without
    assert codec.network.g_a[0].weight.grad.abs().max() > 0


def test_noise_is_for_training_and_rounding_for_all_else(codec, pictures):
    training = copy.deepcopy(codec).train()
    assert not torch.equal(training(pictures).latents, training(pictures).latents)
    assert torch.equal(training.encode(pictures).latents, codec.encode(pictures).latents)
    assert not training.requires_grad_(False).train().training, "a frozen codec keeps rounding"
    with pytest.raises(ValueError, match="`quantization` must be 'noise' or 'ste', got 'round'"):
        codec(pictures, quantization="round")


def test_latents_without_a_picture_cost_no_synthesis(codec, pictures):
    seen = []
    handle = codec.network.g_s[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    outputs = codec(pictures, reconstruct=False)
    codec.decompress(codec.compress(pictures))
    handle.remove()
    assert outputs.reconstruction is None and outputs.latents.shape == (3, 192, 4, 4)
    assert set(seen) == {(1, 1)}
    assert len(codec(pictures, return_dict=False)) == 3


def test_training_makes_new_tables(random_codec, pictures):
    codec = random_codec("bmshj2018-factorized")
    (before,) = codec.compress(pictures[:1])
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-4)
    codec.train()
    for _ in range(3):
        outputs = codec(pictures)
        loss = outputs.reconstruction.square().mean() - outputs.likelihoods["y"].log().mean() + codec.aux_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codec.eval()
    assert Bitstream.parse(codec.compress(pictures[:1])[0]).fingerprint != Bitstream.parse(before).fingerprint
    assert torch.equal(codec.decompress(codec.compress(pictures)), codec.encode(pictures).latents)


@pytest.mark.parametrize("architecture", ["bmshj2018-factorized", "mbt2018"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_codec_writes_and_reads_the_same_bytes(codecs, pictures, tmp_path, architecture, dtype):
    codec, picture = codecs(architecture), pictures[:1]
    codec.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert type(loaded) is CompressaiModel and loaded.dtype == torch.float32
    bitstreams = codec.compress(picture)
    assert torch.equal(loaded.decompress(bitstreams), codec.encode(picture).latents)
    assert loaded.compress(picture) == bitstreams


def test_tables_that_were_never_derived_are_saved_too(random_codec, pictures, tmp_path):
    codec = random_codec("bmshj2018-hyperprior")
    assert codec.config.coding_table_shapes is None
    codec.save_pretrained(tmp_path)
    loaded, info = CompressaiModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.coding_table_shapes == codec.config.coding_table_shapes is not None
    assert loaded.compress(pictures) == codec.compress(pictures)


def test_weights_load_over_tables_of_another_size(random_codec, codec, pictures):
    wide = random_codec("mbt2018-mean", seed=1)
    with torch.no_grad():
        wide.network.entropy_bottleneck.quantiles.mul_(2)
    bitstreams = wide.compress(pictures)
    target = copy.deepcopy(codec)
    target.compress(pictures)
    target.load_state_dict(wide.state_dict())
    assert target.config.coding_table_shapes == wide.config.coding_table_shapes != codec.config.coding_table_shapes
    assert target.compress(pictures) == bitstreams


def test_weights_without_tables_make_new_tables(random_codec, codec, pictures):
    other = random_codec("mbt2018-mean", seed=1)
    weights = {name: value for name, value in other.state_dict().items() if value.numel()}
    target = copy.deepcopy(codec)
    target.compress(pictures)
    assert all("network." in name for name in target.load_state_dict(weights, strict=False).missing_keys)
    assert target.compress(pictures) == other.compress(pictures)


def test_what_a_checkpoint_lacks_gets_the_values_of_a_new_codec(random_codec, codec, tmp_path):
    from safetensors.torch import load_file, save_file

    codec.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".g_s." not in name and ".target" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = CompressaiModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.network.g_s[1].beta, random_codec("mbt2018-mean").network.g_s[1].beta)
    assert torch.equal(loaded.network.entropy_bottleneck.target, codec.network.entropy_bottleneck.target)
    assert loaded.network.g_s[0].weight.abs().max() < 1
    assert torch.equal(loaded.network.g_a[0].weight, codec.network.g_a[0].weight)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 4, 64, 64), r"must have shape \(batch, 3, height, width\), got \(1, 4, 64, 64\)"),
        (torch.zeros(3, 64, 64), r"got \(3, 64, 64\)"),
        (torch.zeros(1, 3, 0, 64), r"got \(1, 3, 0, 64\)"),
        (torch.full((1, 3, 64, 64), torch.nan), "reach from nan to nan"),
        (torch.zeros(1, 3, 1, 1).expand(1, 3, 4097, 4096), "more than `max_pixels` = 16777216 pixels"),
    ],
)
def test_pictures_that_cannot_be_coded_are_refused(codecs, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        codecs("bmshj2018-factorized").compress(pixel_values)


def test_latents_that_compressai_would_never_finish_are_refused(random_codec, pictures):
    codec = random_codec("mbt2018-mean")
    with torch.no_grad():
        codec.network.h_a[-1].bias.add_(2.0**28)
    with pytest.raises(ValueError, match=r"latents are not finite or beyond \+-16777216"):
        codec.compress(pictures)


def test_latents_of_another_codec_are_refused(codec):
    with pytest.raises(ValueError, match=r"must have shape \(batch, 192, height, width\), got \(1, 320, 4, 4\)"):
        codec.decode(torch.zeros(1, 320, 4, 4))


def test_the_zoo_gives_weights_with_their_tables(monkeypatch, codec, pictures):
    from comneck_hf.models.compressai import networks_compressai

    trained = original(codec)

    def zoo(quality, metric="mse", pretrained=False):
        assert (quality, metric) == (1, "ms-ssim") or not pretrained
        return copy.deepcopy(trained)

    monkeypatch.setitem(networks_compressai.image_models, "mbt2018-mean", zoo)
    fetched = CompressaiModel.from_zoo("mbt2018-mean", 1, metric="ms-ssim")
    assert fetched.config.metric == "ms-ssim" and not fetched.training
    assert fetched.compress(pictures) == codec.compress(pictures)


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), EOFError(), ConnectionResetError("gone")],
)
def test_weights_that_cannot_be_fetched_are_an_error_that_says_why(monkeypatch, error):
    from compressai.zoo import image

    def fail(url, progress=True):
        raise error

    monkeypatch.setattr(image, "load_state_dict_from_url", fail)
    reason = str(error) or "EOFError"
    with pytest.raises(OSError, match="'bmshj2018-factorized', quality 2, 'mse' cannot be loaded") as caught:
        CompressaiModel.from_zoo("bmshj2018-factorized", 2)
    assert reason in str(caught.value) and "`pretrained=False`" in str(caught.value)


def test_tables_have_to_belong_to_the_codec():
    with pytest.raises(ValueError, match="`coding_table_shapes` names 'gaussian_conditional._offset'"):
        CompressaiModel(
            CompressaiConfig(
                architecture="bmshj2018-factorized", coding_table_shapes={"gaussian_conditional._offset": [64]}
            )
        )
