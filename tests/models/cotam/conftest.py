import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel


SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 3}


@pytest.fixture(scope="session")
def clip() -> CLIPModel:
    """A random CLIP of 4x4 patches whose attention is far from uniform."""
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**SIZES, "image_size": 56, "patch_size": 14, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    return _sharpened(model, model.vision_model)


@pytest.fixture(scope="session")
def siglip() -> SiglipVisionModel:
    """A random SigLIP tower of 10x10 patches: more queries than are held at a time."""
    torch.manual_seed(1)
    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=80, patch_size=8)).eval()
    return _sharpened(model, model)


@torch.no_grad()
def _sharpened(model, tower):
    for layer in tower.encoder.layers:
        layer.self_attn.q_proj.weight.normal_(std=0.6)
        layer.self_attn.k_proj.weight.normal_(std=0.6)
        layer.self_attn.k_proj.bias.normal_()
        layer.self_attn.q_proj.bias.normal_()
    return model
