"""ComNeck's neck and partial CLIP in plain PyTorch, from the equations: what a converted model is compared with.

Nothing here is shared with the models. Weights keep the names of the authors' `adapter` and of OpenAI's CLIP.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F


Weights = Mapping[str, torch.Tensor]


def layer_norm(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Normalization over the last dimension with epsilon 1e-5."""
    return F.layer_norm(inputs, inputs.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def quick_gelu(inputs: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return inputs * torch.sigmoid(1.702 * inputs)


def block(weights: Weights, prefix: str, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """x + attention(norm1(x)), then x + mlp(norm2(x)); `tokens` is `(batch, tokens, width)`."""
    width = tokens.shape[-1]
    with torch.device("meta"):
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    attention.load_state_dict({name: weights[f"{prefix}attn.{name}"].float() for name in names}, assign=True)
    normalized = layer_norm(weights, f"{prefix}ln_1", tokens)
    tokens = tokens + attention(normalized, normalized, normalized, need_weights=False)[0]
    hidden = F.linear(
        layer_norm(weights, f"{prefix}ln_2", tokens),
        weights[f"{prefix}mlp.c_fc.weight"],
        weights[f"{prefix}mlp.c_fc.bias"],
    )
    return tokens + F.linear(
        quick_gelu(hidden), weights[f"{prefix}mlp.c_proj.weight"], weights[f"{prefix}mlp.c_proj.bias"]
    )


def neck_tokens(neck: Weights, latents: torch.Tensor, heads: int) -> torch.Tensor:
    """Linear map, class token, positions, layer norm, one block: `(batch, 1 + height * width, width)`."""
    tokens = F.linear(
        latents.flatten(2).transpose(1, 2), neck["trans_latent_dim.weight"], neck["trans_latent_dim.bias"]
    )
    class_token = neck["class_embedding"].expand(len(tokens), 1, -1)
    tokens = torch.cat([class_token, tokens], dim=1) + neck["positional_embedding"]
    return block(neck, "transformer.resblocks.0.", layer_norm(neck, "ln_pre", tokens), heads)


def tower_states(tower: Weights, tokens: torch.Tensor, heads: int, *, first_layer: int) -> list[torch.Tensor]:
    """Input of CLIP's layer `first_layer` (counted from 0), then the output of every layer from there on."""
    states, layer = [tokens], first_layer
    while f"transformer.resblocks.{layer}.ln_1.weight" in tower:
        states.append(block(tower, f"transformer.resblocks.{layer}.", states[-1], heads))
        layer += 1
    return states


def image_embeds(tower: Weights, last_state: torch.Tensor, *, norms: int) -> torch.Tensor:
    """Class token through the final layer norm, `norms` times, and the projection: `(batch, projection_dim)`."""
    class_token = last_state[:, 0]
    for _ in range(norms):
        class_token = layer_norm(tower, "ln_post", class_token)
    return class_token @ tower["proj"]


def openai_tower(state: Weights) -> dict[str, torch.Tensor]:
    """Blocks, final layer norm and projection of transformers' `CLIPVisionModelWithProjection` by OpenAI's names."""
    tower = {f"ln_post.{kind}": state[f"vision_model.post_layernorm.{kind}"] for kind in ("weight", "bias")}
    tower["proj"] = state["visual_projection.weight"].T
    layer = 0
    while (theirs := f"vision_model.encoder.layers.{layer}.") + "layer_norm1.weight" in state:
        ours = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            tower[f"{ours}ln_1.{kind}"] = state[f"{theirs}layer_norm1.{kind}"]
            tower[f"{ours}ln_2.{kind}"] = state[f"{theirs}layer_norm2.{kind}"]
            tower[f"{ours}mlp.c_fc.{kind}"] = state[f"{theirs}mlp.fc1.{kind}"]
            tower[f"{ours}mlp.c_proj.{kind}"] = state[f"{theirs}mlp.fc2.{kind}"]
            tower[f"{ours}attn.out_proj.{kind}"] = state[f"{theirs}self_attn.out_proj.{kind}"]
            tower[f"{ours}attn.in_proj_{kind}"] = torch.cat(
                [state[f"{theirs}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            )
        layer += 1
    return tower


__all__ = ["block", "image_embeds", "layer_norm", "neck_tokens", "openai_tower", "quick_gelu", "tower_states"]
