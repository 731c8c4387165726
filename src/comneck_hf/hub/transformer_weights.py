"""The transformer parts of OpenAI's and the authors' checkpoints: the transform-neck and CLIP's vision tower."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..models.state_dicts import check_state_dict
from .checkpoints import Weights, describe_weights, read_tensors


# Names inside a transformer block: OpenAI's to transformers'
_BLOCK_KEYS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NECK_KEYS = {
    "class_embedding": "class_embedding",
    "positional_embedding": "position_embedding",
    "trans_latent_dim.weight": "projection.weight",
    "trans_latent_dim.bias": "projection.bias",
    "ln_pre.weight": "pre_layer_norm.weight",
    "ln_pre.bias": "pre_layer_norm.bias",
}
_TOWER_KEYS = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_NECK_BLOCK = "transformer.resblocks.0."


def neck_weights(source: Mapping[str, torch.Tensor]) -> Weights:
    """Parameters of a [`TransformNeck`] from the authors' `adapter`.

    Raises:
        ValueError: If tensors are missing, too many, of a wrong shape or not finite; they are listed.
    """
    hidden_size, mlp = _size(source, "trans_latent_dim.bias", 0), _size(source, f"{_NECK_BLOCK}mlp.c_fc.bias", 0)
    shapes = {
        **dict.fromkeys(_NECK_KEYS, (hidden_size,)),
        "positional_embedding": (_size(source, "positional_embedding", 0), hidden_size),
        "trans_latent_dim.weight": (hidden_size, _size(source, "trans_latent_dim.weight", -1)),
        **_block_shapes(_NECK_BLOCK, hidden_size, mlp),
    }
    check_state_dict(source, shapes, "transform-neck")
    weights = {ours: source[theirs].float() for theirs, ours in _NECK_KEYS.items()}
    return {**weights, **_block_weights(source, _NECK_BLOCK, "layer.")}


def authors_neck_weights(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The authors' `adapter` from the parameters of a [`TransformNeck`]: the inverse of `neck_weights`."""
    adapter = {theirs: weights[ours] for theirs, ours in _NECK_KEYS.items()}
    for kind in ("weight", "bias"):
        for theirs, ours in _BLOCK_KEYS.items():
            adapter[f"{_NECK_BLOCK}{theirs}.{kind}"] = weights[f"layer.{ours}.{kind}"]
        parts = [weights[f"layer.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        adapter[f"{_NECK_BLOCK}attn.in_proj_{kind}"] = torch.cat(parts)
    return adapter


def neck_sizes(source: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Widths of the authors' `adapter`: `latent_channels`, `hidden_size`, `intermediate_size`, and `latent_size`.

    Raises:
        ValueError: If the positions are no square grid with a class token.
    """
    hidden_size, latent_channels = source["trans_latent_dim.weight"].shape
    positions = source["positional_embedding"].shape[0]
    side = math.isqrt(max(positions - 1, 0))
    if side < 1 or side * side + 1 != positions:
        raise ValueError(
            f"The transform-neck has {positions} positions, which is no class token and a square grid (257 for 16x16)."
        )
    return {
        "latent_channels": latent_channels,
        "hidden_size": hidden_size,
        "intermediate_size": source[f"{_NECK_BLOCK}mlp.c_fc.weight"].shape[0],
        "latent_size": side,
    }


def load_clip_tower(name: str) -> CLIPVisionModelWithProjection:
    """A CLIP vision tower with its projection, float32.

    Args:
        name: Folder or Hub id of a transformers model, or a file of weights with OpenAI's names (`visual...`).

    Raises:
        ValueError: If it is no CLIP, or parts of the tower are missing; they are listed.
        OSError: If there is no such model.
    """
    if Path(name).is_file():
        return _tower_from_openai(name)
    try:
        model, report = CLIPVisionModelWithProjection.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of {name} are damaged ({error}). Fetch them again.") from None
    lost = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
    if lost:
        raise ValueError(f"{name} is not a whole CLIP vision tower; missing or of a wrong shape: {', '.join(lost)}.")
    return model.eval()


def _tower_from_openai(name: str) -> CLIPVisionModelWithProjection:
    content = read_tensors(Path(name))
    content = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    tower = {key[7:]: value for key, value in content.items() if str(key).startswith("visual.")}
    if "conv1.weight" not in tower or "proj" not in tower:
        raise ValueError(f"{name} holds no CLIP vision transformer: it looks like {describe_weights(content)}.")
    config = _check_tower(tower)
    weights = {ours: tower[theirs].float() for theirs, ours in _TOWER_KEYS.items()}
    weights["visual_projection.weight"] = tower["proj"].float().T.contiguous()
    for layer in range(config.num_hidden_layers):
        prefix = f"vision_model.encoder.layers.{layer}."
        weights.update(_block_weights(tower, f"transformer.resblocks.{layer}.", prefix))
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    model.load_state_dict(weights, assign=True, strict=False)  # position_ids are no weights
    positions = torch.arange(tower["positional_embedding"].shape[0])[None]
    model.vision_model.embeddings.position_ids = positions
    return model.eval()


def _check_tower(tower: Mapping[str, torch.Tensor]) -> CLIPVisionConfig:
    """The configuration of a tower with OpenAI's names, which must be whole. It has QuickGELU and heads of 64."""
    width, patch_size = _size(tower, "conv1.weight", 0), _size(tower, "conv1.weight", -1)
    mlp, projection_dim = _size(tower, "transformer.resblocks.0.mlp.c_fc.bias", 0), _size(tower, "proj", -1)
    side = math.isqrt(max(0, _size(tower, "positional_embedding", 0) - 1))
    layers = {int(match[1]) for key in tower if (match := re.match(r"transformer\.resblocks\.(\d+)\.", key))}
    shapes = {
        **dict.fromkeys(_TOWER_KEYS, (width,)),
        "conv1.weight": (width, 3, patch_size, patch_size),
        "positional_embedding": (side * side + 1, width),
        "proj": (width, projection_dim),
    }
    for layer in range(max(layers, default=0) + 1):
        shapes.update(_block_shapes(f"transformer.resblocks.{layer}.", width, mlp))
    check_state_dict(tower, shapes, "CLIP tower")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        projection_dim=projection_dim,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // 64),
        image_size=patch_size * side,
        patch_size=patch_size,
    )


def _size(source: Mapping[str, torch.Tensor], key: str, axis: int) -> int:
    """A width that a tensor tells; 0 where it does not, which the check of all shapes reports."""
    return source[key].shape[axis] if key in source and source[key].dim() else 0


def _block_shapes(prefix: str, width: int, mlp: int) -> dict[str, tuple[int, ...]]:
    return {
        **dict.fromkeys((f"{prefix}{key}.{kind}" for key in _BLOCK_KEYS for kind in ("weight", "bias")), (width,)),
        f"{prefix}attn.in_proj_weight": (3 * width, width),
        f"{prefix}attn.in_proj_bias": (3 * width,),
        f"{prefix}attn.out_proj.weight": (width, width),
        f"{prefix}mlp.c_fc.weight": (mlp, width),
        f"{prefix}mlp.c_fc.bias": (mlp,),
        f"{prefix}mlp.c_proj.weight": (width, mlp),
    }


def _block_weights(source: Mapping[str, torch.Tensor], prefix: str, target: str) -> Weights:
    """One transformer block by transformers' names; the joint projection holds queries, keys, values in this order."""
    weights = {}
    for kind in ("weight", "bias"):
        for theirs, ours in _BLOCK_KEYS.items():
            weights[f"{target}{ours}.{kind}"] = source[f"{prefix}{theirs}.{kind}"].float()
        parts = source[f"{prefix}attn.in_proj_{kind}"].float().chunk(3)
        for letter, part in zip("qkv", parts, strict=True):
            weights[f"{target}self_attn.{letter}_proj.{kind}"] = part.clone()
    return weights


__all__ = ["authors_neck_weights", "load_clip_tower", "neck_sizes", "neck_weights"]
