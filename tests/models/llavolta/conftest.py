import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from .prompts import IMAGE


@pytest.fixture
def text_config():
    def make(**options):
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        more = {"num_key_value_heads": 2, "max_position_embeddings": 8192, "initializer_range": 0.2}
        return LlamaConfig(vocab_size=99, **sizes, **ids, **more, **options)

    return make


@pytest.fixture
def vision_config():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionConfig(**sizes, image_size=56, patch_size=14)


@pytest.fixture
def llava(text_config, vision_config):
    def make(**options):
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision_config, text_config=text_config(**options), image_token_index=IMAGE)
        return LlavaForConditionalGeneration(config).eval()

    return make


@pytest.fixture
def llava_next(text_config, vision_config):
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=vision_config,
        text_config=text_config(),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[56, 112], [112, 56]],
    )
    return LlavaNextForConditionalGeneration(config).eval()


@pytest.fixture
def pixels():
    def make(count):
        return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(1))

    return make
