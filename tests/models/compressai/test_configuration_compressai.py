"""CompressaiConfig: what it refuses, and that it knows CompressAI's codecs without importing it."""

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel

from comneck_hf import ComNeckConfig, CompressaiConfig, CompressaiModel
from comneck_hf.models.compressai.configuration_compressai import LATENT_CHANNELS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "bmshj2018-factorised"}, "`architecture` must be one of .*bmshj2018-factorized"),
        ({"quality": 9}, "`quality` must be 1 to 8 for 'mbt2018-mean', got 9"),
        ({"quality": 0}, "`quality` must be 1 to 8"),
        ({"architecture": "cheng2020-attn", "quality": 7}, "`quality` must be 1 to 6 for 'cheng2020-attn'"),
        ({"metric": "psnr"}, r"`metric` must be one of \('mse', 'ms-ssim'\), got 'psnr'"),
        ({"max_pixels": 0}, "`max_pixels` must be positive"),
    ],
)
def test_codecs_that_the_zoo_does_not_have_are_refused(change, message):
    with pytest.raises(Exception, match=message):
        CompressaiConfig(**change)


@pytest.mark.parametrize("architecture", LATENT_CHANNELS)
def test_the_known_channels_are_those_of_compressai(architecture):
    from compressai.zoo.image import cfgs

    assert list(LATENT_CHANNELS[architecture]) == [widths[-1] for widths in cfgs[architecture].values()]
    config = CompressaiConfig(architecture=architecture, quality=len(LATENT_CHANNELS[architecture]))
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert type(model) is CompressaiModel
    assert config.latent_channels == model.network.M
    assert all(value.is_meta for value in model.state_dict().values())
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict()), "a checkpoint holds all of it"


def test_the_configuration_is_saved_and_found_by_its_type(tmp_path):
    CompressaiConfig(architecture="cheng2020-anchor", quality=4, metric="ms-ssim").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is CompressaiConfig
    assert (config.architecture, config.quality, config.metric) == ("cheng2020-anchor", 4, "ms-ssim")
    assert (config.latent_channels, config.downsampling_factor, config.size_divisor) == (192, 16, 64)


def test_the_configuration_does_not_need_compressai(monkeypatch):
    monkeypatch.setitem(sys.modules, "compressai", None)
    config = CompressaiConfig(quality=8)
    vision_config = {"latent_channels": config.latent_channels}
    nested = ComNeckConfig(codec_config=config.to_dict(), vision_config=vision_config).codec_config
    assert (type(nested), nested.quality, nested.latent_channels) == (CompressaiConfig, 8, 320)
