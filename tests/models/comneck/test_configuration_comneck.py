"""What the configurations accept, derive, save and refuse."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from comneck_hf import ComNeckConfig, ComNeckVisionConfig, ElicConfig


def test_the_defaults_are_the_paper():
    config = ComNeckConfig()
    assert isinstance(config.codec_config, ElicConfig)
    assert config.vision_config.latent_grid == (16, 16)
    assert (config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size) == (1024, 24, 256, 16)
    assert (config.projection_dim, config.vision_config.num_skipped_layers) == (768, 2)


def test_a_336_pixel_tower_needs_384_pixel_pictures():
    assert ComNeckConfig(vision_config={"image_size": 336}).image_size == 384


@pytest.mark.parametrize(("size", "grid"), [(8, (8, 8)), ([8, 12], (8, 12)), ((3, 5), (3, 5)), (None, (16, 16))])
def test_the_latent_size_can_be_given_in_every_form(size, grid):
    assert ComNeckVisionConfig(latent_size=size).latent_grid == grid


def test_a_configuration_survives_saving(tmp_path):
    config = ComNeckConfig(
        vision_config={"latent_size": [8, 12], "num_skipped_layers": 4, "neck_num_attention_heads": 8},
        scenario="d3",
        quality=4,
        projection_dim=99,
    )
    config.save_pretrained(tmp_path)
    assert ComNeckConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_each_part_is_found_in_the_folder_of_the_whole(tmp_path):
    ComNeckConfig(vision_config={"num_skipped_layers": 1}, codec_config={"quality": 3}).save_pretrained(tmp_path)
    assert ComNeckVisionConfig.from_pretrained(tmp_path).num_skipped_layers == 1
    assert ElicConfig.from_pretrained(tmp_path).quality == 3


def test_a_model_without_codec_stays_without_after_saving(tmp_path):
    ComNeckConfig(codec_config=None).save_pretrained(tmp_path)
    config = ComNeckConfig.from_pretrained(tmp_path)
    assert config.codec_config is None and config.patch_size == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_skipped_layers": 24}, r"`num_skipped_layers` must be in \[0, 24\), got 24"),
        ({"num_skipped_layers": -1}, r"got -1"),
        ({"latent_channels": 3}, r"differ from the 3 channels of a picture, got 3"),
        ({"latent_channels": 0}, r"must be positive"),
        ({"latent_size": [1, 2, 3]}, r"integer or \[height, width\], got \[1, 2, 3\]"),
        ({"latent_size": [4, 0]}, r"must be positive, got \[4, 0\]"),
        ({"image_size": [224, 224]}, r"`latent_size=\[height, width\]`"),
        ({"neck_num_attention_heads": 7}, r"must divide `hidden_size` 1024, got 7"),
        ({"neck_intermediate_size": 0}, r"must be positive, got 0"),
        ({"post_layernorm_repeats": 0}, r"at least 1, got 0"),
    ],
)
def test_an_impossible_tower_is_refused(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ComNeckVisionConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "d4"}, r"one of \('d1', 'd2', 'd3'\), got 'd4'"),
        ({"quality": 5}, r"one of \(1, 2, 3, 4\) or `None`, got 5"),
        ({"vision_config": {"latent_channels": 64}}, r"codec has 320 latent channels, but `vision_config` expects 64"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ComNeckConfig(**options)
