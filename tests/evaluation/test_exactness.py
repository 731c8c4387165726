"""Bitstreams of every setting decode to the encoder's latents in every other; a small scripts/check_exactness.py."""

from dataclasses import replace

import pytest
import torch

from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.evaluation.exactness import (
    CPU_SETTINGS,
    REFERENCE,
    Comparison,
    Setting,
    Share,
    applied,
    chunks,
    compare,
    encode_share,
    for_compressai,
    prepared,
)
from comneck_hf.evaluation.exactness_runs import check_exactness
from comneck_hf.evaluation.reference_codec import train_reference_codec
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel


IN_PROCESS = [setting for setting in CPU_SETTINGS if setting.isa == "native" and not setting.compiled]
LIMITED = [next(setting for setting in CPU_SETTINGS if setting.isa == isa) for isa in ("avx2", "sse4")]


@pytest.fixture(scope="module")
def pictures():
    """Waves of several frequencies with noise: they fill the latents as photographs do."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, 192)
    drawn = torch.full((24, 3, 192, 192), 0.5)
    for picture in drawn:
        for frequency in (2.0, 5.0, 11.0, 23.0):
            angle, phase = 6.3 * torch.rand(2, generator=generator)
            wave = torch.sin(frequency * (axis[:, None] * angle.cos() + axis * angle.sin()) * 3 + phase)
            picture += torch.rand(3, 1, 1, generator=generator) / frequency**0.5 * wave / 2
        picture += 0.05 * torch.randn(picture.shape, generator=generator)
    return (drawn.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory, pictures):
    """A narrow codec with latents and scales of all sizes: linear transforms, entropy networks trained briefly."""
    config = ElicConfig(
        hidden_channels=24,
        latent_channels=40,
        group_channels=(4, 4, 8, 8, 16),
        context_channels=(24, 16),
        aggregation_channels=(48, 32),
    )
    folder = tmp_path_factory.mktemp("codec")
    train_reference_codec(pictures, steps=8, lmbda=0.003, config=config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def crops(pictures):
    return pictures[..., 32:160, 32:160].contiguous()


def encoded(folder, pictures, setting):
    codec = prepared(ElicModel.from_pretrained(folder), setting)
    with applied(setting):
        return encode_share(codec, pictures, setting)


def decoded(folder, share, setting):
    codec = prepared(ElicModel.from_pretrained(folder), setting)
    with applied(setting):
        return sum((compare(codec, share, chosen) for chosen in chunks(share, setting.batch_size)), Comparison())


@pytest.fixture(scope="module")
def shares(codec_folder, crops):
    parts = crops.tensor_split(len(IN_PROCESS))
    return [encoded(codec_folder, part, setting) for part, setting in zip(parts, IN_PROCESS, strict=True)]


def test_the_codec_is_realistic(shares):
    latents = torch.cat([share.latents for share in shares])
    pixels = len(latents) * 128 * 128
    assert 0.1 < 8 * sum(len(bitstream) for share in shares for bitstream in share.bitstreams) / pixels < 2
    assert 0.3 < (latents.abs() < 0.5).float().mean() < 0.98


def test_bitstreams_with_and_without_gains_are_compared(shares):
    versions = [Bitstream.parse(bitstream).version for share in shares for bitstream in share.bitstreams]
    assert set(versions) == {1, 2}


@pytest.mark.parametrize("setting", IN_PROCESS, ids=lambda setting: setting.name)
def test_a_setting_decodes_what_all_others_encoded(setting, codec_folder, shares):
    for share in shares:
        assert decoded(codec_folder, share, setting).is_exact


def test_processes_limited_to_older_cpus_code_the_same(codec_folder, crops, tmp_path):
    report = check_exactness(
        codec_folder, crops[:9], folder=tmp_path, encoders=[REFERENCE, *LIMITED], decoders=[REFERENCE, *LIMITED]
    )
    assert report["exact"]
    assert report["total"]["pictures"] == 27
    assert report["total"]["latents"] == 27 * 40 * 8 * 8
    assert not report["inexact_pairs"]


def test_a_changed_latent_is_counted(codec_folder, shares):
    latents = shares[0].latents.clone()
    latents[0, 3, 2, 1] += 1 / 64
    latents[1, 0, 0, :2] -= 1
    comparison = decoded(codec_folder, Share(shares[0].bitstreams, latents), REFERENCE)
    assert (comparison.differing_pictures, comparison.differing_latents, comparison.errors) == (2, 3, 0)
    assert comparison.wrong_pictures == 1
    assert not comparison.is_exact


def test_a_bitstream_that_does_not_decode_is_an_error_of_that_picture_only(codec_folder, crops):
    share = encoded(codec_folder, crops[:3], REFERENCE)
    damaged = Share([share.bitstreams[0], share.bitstreams[1][:-9], share.bitstreams[2]], share.latents)
    comparison = decoded(codec_folder, damaged, replace(REFERENCE, batch_size=3))
    assert (comparison.pictures, comparison.errors, comparison.differing_pictures) == (3, 1, 0)


def test_a_share_survives_its_file(shares, tmp_path):
    shares[0].save(tmp_path / "share.safetensors")
    loaded = Share.load(tmp_path / "share.safetensors")
    assert loaded.bitstreams == shares[0].bitstreams
    assert torch.equal(loaded.latents, shares[0].latents)


def test_a_setting_leaves_torch_as_it_was():
    setting = Setting("all", threads=2, onednn=False, reduced_products=True, autocast=True)
    before = (torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.backends.mkldnn.matmul.fp32_precision)
    with applied(setting):
        assert torch.is_autocast_enabled("cpu")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    after = (torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.backends.mkldnn.matmul.fp32_precision)
    assert after == before


def test_compressai_takes_the_settings_that_do_not_change_the_model():
    names = {setting.name for setting in for_compressai(CPU_SETTINGS)}
    assert {"bf16 autocast", "oneDNN off", "AVX2", "SSE4"} <= names
    assert not {"bf16 model", "float64", "compiled encoder"} & names
    assert len(CPU_SETTINGS) >= 20


def test_unknown_systems_and_used_folders_are_refused(codec_folder, crops, tmp_path):
    settings = {"encoders": [REFERENCE], "decoders": [REFERENCE]}
    with pytest.raises(ValueError, match="system"):
        check_exactness(codec_folder, crops, folder=tmp_path, system="jpeg", **settings)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="empty"):
        check_exactness(codec_folder, crops, folder=tmp_path, **settings)
