"""What CoTAM's guide and adapter cost beside the codec they go with."""

from typing import Any

import torch

from ..models.cotam.modeling_cotam import CotamModel
from .benchmark import Task, interleaved_medians


def cotam_speed(model: CotamModel, pictures: torch.Tensor, *, repeats: int = 3) -> dict[str, Any]:
    """Times with and without CoTAM's parts, as the paper's table of complexity has them.

    Encoding is pixels to bytes, without the guide at gain 0. Decoding is bytes to the tokens that CLIP's first layer
    reads, without the adapter those of the decoded picture alone. Both sides decode the same guided bitstreams.

    Args:
        model: With codec and guide.
        pictures: Float `(batch, 3, height, width)` in [0, 1], of the size that the tower takes.
        repeats: Rounds.

    Returns:
        `ms_per_picture` of each, and `overhead_percent` of `encode`, `decode` and their sum, `total`.
    """
    tower, bitstreams = model.vision_model, model.compress(pictures)

    def decode(*, with_adapter: bool) -> torch.Tensor:
        latents = model.decompress(bitstreams)
        picture_tokens = tower.picture_tokens(model.reconstruct(latents, **model.coded_gains(bitstreams)))
        return tower.tokens(latents, picture_tokens) if with_adapter else picture_tokens

    tasks: dict[str, Task] = {
        "encode": lambda: model.compress(pictures, gain_maps=None),
        "encode, guided": lambda: model.compress(pictures),
        "decode": lambda: decode(with_adapter=False),
        "decode, adapter": lambda: decode(with_adapter=True),
    }
    with torch.inference_mode():
        seconds = interleaved_medians(tasks, repeats=repeats)
    plain = {"encode": seconds["encode"], "decode": seconds["decode"]}
    more = {"encode": seconds["encode, guided"], "decode": seconds["decode, adapter"]}
    plain["total"], more["total"] = sum(plain.values()), sum(more.values())
    return {
        "pictures": len(pictures),
        "ms_per_picture": {name: 1000 * value / len(pictures) for name, value in seconds.items()},
        "overhead_percent": {name: 100 * (more[name] / plain[name] - 1) for name in plain},
    }


__all__ = ["cotam_speed"]
