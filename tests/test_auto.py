"""Registration with transformers' Auto classes."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPModel, CLIPVisionModel, conversion_mapping

from comneck_hf import (
    ComNeckConfig,
    ComNeckModel,
    ComNeckVisionConfig,
    ComNeckVisionModel,
    CompressaiConfig,
    CompressaiModel,
    ElicConfig,
    ElicModel,
    TicConfig,
    TicModel,
    auto,
)


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [
        (ElicConfig, ElicModel),
        (CompressaiConfig, CompressaiModel),
        (TicConfig, TicModel),
        (ComNeckVisionConfig, ComNeckVisionModel),
        (ComNeckConfig, ComNeckModel),
    ],
)
def test_every_model_is_found_by_its_type(tmp_path, config_class, model_class):
    config_class().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is config_class
    with torch.device("meta"):
        assert type(AutoModel.from_config(config)) is model_class


def test_registering_again_changes_nothing():
    mapping = dict(conversion_mapping._MODEL_TO_CONVERSION_PATTERN)
    users = set(conversion_mapping.USER_REGISTERED_MAPPINGS)
    auto.register()
    auto.register()
    assert mapping == conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    assert users == conversion_mapping.USER_REGISTERED_MAPPINGS
    assert AutoConfig.for_model("comneck", codec_config=None).model_type == "comneck"


def test_the_classes_of_clip_keep_their_own_models():
    assert AutoModel._model_mapping[CLIPVisionModel.config_class] is CLIPVisionModel
    assert AutoModel._model_mapping[CLIPModel.config_class] is CLIPModel


@pytest.mark.parametrize("models_loaded_before", [False, True])
def test_classes_share_the_key_conversions_of_their_originals(monkeypatch, models_loaded_before):
    aliases = dict(conversion_mapping._MODEL_TO_CONVERSION_PATTERN)
    for name in auto.CONVERSIONS:
        aliases.pop(name, None)
    monkeypatch.setattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", aliases)
    monkeypatch.setattr(conversion_mapping, "USER_REGISTERED_MAPPINGS", set())
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", None)
    if models_loaded_before:
        assert conversion_mapping.get_checkpoint_conversion_mapping("ComNeckVisionModel") is None
    auto.register()
    for name, original in auto.CONVERSIONS.items():
        ours, theirs = map(conversion_mapping.get_checkpoint_conversion_mapping, (name, original))
        assert repr(ours) == repr(theirs) != "None"
    assert set(auto.CONVERSIONS) == conversion_mapping.USER_REGISTERED_MAPPINGS
