"""The transformer parts of OpenAI's and the authors' checkpoints: the transform-neck and CLIP's vision tower."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

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
        ValueError: If tensors are missing or left over; they are listed.
    """
    expected = [*_NECK_KEYS, *_block_keys(_NECK_BLOCK)]
    _check_keys(source, expected, "transform-neck")
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
    model, report = CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    lost = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lost:
        raise ValueError(f"{name} is not a whole CLIP vision tower; it lacks {', '.join(lost)}.")
    return model.eval()


def _tower_from_openai(name: str) -> CLIPVisionModelWithProjection:
    content = read_tensors(Path(name))
    content = content.get("state_dict", content)
    tower = {key.removeprefix("visual."): value for key, value in content.items() if key.startswith("visual.")}
    if "conv1.weight" not in tower or "proj" not in tower:
        raise ValueError(f"{name} holds no CLIP vision transformer: it looks like {describe_weights(content)}.")
    blocks = [f"transformer.resblocks.{index}." for index in range(_count_blocks(tower))]
    _check_keys(tower, [*_TOWER_KEYS, "proj", *(key for block in blocks for key in _block_keys(block))], "CLIP tower")
    weights = {ours: tower[theirs].float() for theirs, ours in _TOWER_KEYS.items()}
    weights["visual_projection.weight"] = tower["proj"].float().T.contiguous()
    for index, block in enumerate(blocks):
        weights.update(_block_weights(tower, block, f"vision_model.encoder.layers.{index}."))
    width, _, patch_size, _ = tower["conv1.weight"].shape
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=tower["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        projection_dim=tower["proj"].shape[1],
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // 64),
        image_size=patch_size * math.isqrt(tower["positional_embedding"].shape[0] - 1),
        patch_size=patch_size,
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    model.load_state_dict(weights, assign=True, strict=False)  # position_ids are no weights
    positions = torch.arange(tower["positional_embedding"].shape[0])[None]
    model.vision_model.embeddings.position_ids = positions
    return model.eval()


def _count_blocks(tower: Mapping[str, torch.Tensor]) -> int:
    count = 0
    while f"transformer.resblocks.{count}.ln_1.weight" in tower:
        count += 1
    return count


def _block_keys(prefix: str) -> list[str]:
    names = [f"{prefix}{key}.{kind}" for key in _BLOCK_KEYS for kind in ("weight", "bias")]
    return [*names, f"{prefix}attn.in_proj_weight", f"{prefix}attn.in_proj_bias"]


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


def _check_keys(source: Mapping[str, torch.Tensor], expected: list[str], what: str) -> None:
    missing = [key for key in expected if key not in source]
    surplus = sorted(set(source) - set(expected))
    if missing or surplus:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has besides {', '.join(surplus)}"] * bool(surplus)
        raise ValueError(f"The {what} {' and '.join(parts)}.")


__all__ = ["authors_neck_weights", "load_clip_tower", "neck_sizes", "neck_weights"]
