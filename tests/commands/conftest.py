from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from comneck_hf.training.clip import build_tokenizer, save_clip
from comneck_hf.training.zero_shot import ClassPrompts


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with a tokenizer."""
    torch.manual_seed(0)
    prompts = ClassPrompts(("a photo of a {}.", "{}"), ("cup", "wild cat", "motorbike"))
    tokenizer = build_tokenizer(
        [template.format(name) for template in prompts.templates for name in prompts.class_names]
    )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": len(tokenizer), "projection_dim": 24, **ids}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "projection_dim": 24}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **ids)).eval()
    folder = tmp_path_factory.mktemp("clip")
    save_clip(clip, folder, tokenizer=tokenizer, prompts=prompts)
    return folder
