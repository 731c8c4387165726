"""Names for results by everything that they depend on."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def content_digest(*parts: str | Tensor | nn.Module) -> str:
    """16 hexadecimal digits that change whenever a text, a value of a tensor or a weight of a module does."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        for tensor in part.state_dict().values() if isinstance(part, nn.Module) else (part,):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def model_parts(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """What decides on a model's results, for `content_digest`: its configuration without paths, and its weights."""
    return json.dumps(_without_paths(model.config.to_dict()), sort_keys=True, default=str), model


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(part) for name, part in value.items() if name != "_name_or_path"}
    return value


__all__ = ["content_digest", "model_parts"]
