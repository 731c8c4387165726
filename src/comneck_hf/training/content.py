"""Names for results by everything that they depend on."""

import hashlib

import torch
from torch import Tensor, nn


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


__all__ = ["content_digest"]
