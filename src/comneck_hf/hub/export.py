"""The way back: an ELIC codec as the state dict of another code base."""

import re

from ..evaluation.compressai_reference import to_compressai
from ..models.comneck.modeling_comneck import ComNeckModel
from ..models.elic.layouts_elic import LAYOUTS, authors_key, compressai_key
from ..models.elic.modeling_elic import ElicModel
from ..models.elic.restoration_elic import restore_entropy_networks
from .checkpoints import Weights
from .transformer_weights import authors_neck_weights


# Buffers of CompressAI's model by the authors' names; the five Gaussian conditionals are equal
_BUFFER_KEYS = (
    (r"^latent_codec\.hyper\.entropy_bottleneck\.", "entropy_bottleneck."),
    (r"^latent_codec\.y\.latent_codec\.y0\.y\.gaussian_conditional\.", "gaussian_conditional."),
    (r"^latent_codec\.y\.latent_codec\.y(\d)\.context_prediction\.mask$", r"context_prediction.\1.mask"),
)


def export_codec(codec: ElicModel, layout: str) -> Weights:
    """A codec's state dict as another code base has it: complete for a strict load, float tables included.

    Float entropy networks that the codec was saved without are restored, as by `restore_entropy_networks`.

    Args:
        codec: The codec; not changed.
        layout: `"authors"` (also VincentChandelier's, 384 tensors) or `"compressai"` (`elic2022-chandelier`, 412).

    Raises:
        ValueError: If the layout is unknown, the codec is no ELIC, or CompressAI cannot build it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {sorted(LAYOUTS)}, got {layout!r}.")
    codec = restore_entropy_networks(codec) if codec.config.model_type == "elic" else codec
    state = {key: value.clone() for key, value in to_compressai(codec).state_dict().items()}
    if layout == "compressai":
        return state
    names = {compressai_key(name): authors_key(name) for name, _ in codec.named_parameters()}
    exported = {}
    for key, value in state.items():
        for pattern, replacement in _BUFFER_KEYS:
            if key not in names and re.match(pattern, key):
                names[key] = re.sub(pattern, replacement, key)
        if key in names:
            exported[names[key]] = value
    return exported


def export_checkpoint(model: ComNeckModel) -> dict[str, Weights]:
    """Codec and neck as the authors' evaluation code loads them: `state_dict` and `adapter`. CLIP is not in it.

    Raises:
        ValueError: If the model has no ELIC codec.
    """
    codec_type = None if model.codec is None else model.codec.config.model_type
    if codec_type != "elic":
        raise ValueError(f"Only models with an ELIC codec can be exported; the codec of this one is {codec_type!r}.")
    neck = {key: value.detach().float() for key, value in model.vision_model.neck.state_dict().items()}
    return {"state_dict": export_codec(model.codec, "authors"), "adapter": authors_neck_weights(neck)}


__all__ = ["export_checkpoint", "export_codec"]
