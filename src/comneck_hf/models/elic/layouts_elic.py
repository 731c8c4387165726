"""What ELIC's weights are called elsewhere: in the authors' checkpoints, and in CompressAI's `elic2022-chandelier`.

All three hold the same 367 parameters of the same shapes. The authors' names are also those of VincentChandelier's
re-implementation, from which ComNeck's codecs come.
"""

import re
from collections.abc import Callable, Mapping

import torch

from ..state_dicts import check_state_dict
from .configuration_elic import ElicConfig
from .layers_elic import checkerboard


KeyTable = tuple[tuple[str, str], ...]

# [`ElicModel`]'s names to the authors'
_AUTHORS_KEYS: KeyTable = (
    (r"^(g_[as]\.\d+)\.trunk\.", r"\1.conv_a."),
    (r"^(g_[as]\.\d+)\.gate\.", r"\1.conv_b."),
    (r"(\.conv_[ab]\.\d)\.conv1\.", r"\1.conv.0."),
    (r"(\.conv_[ab]\.\d)\.conv2\.", r"\1.conv.2."),
    (r"(\.conv_[ab]\.\d)\.conv3\.", r"\1.conv.4."),
    (r"^channel_contexts\.", "cc_transforms."),
    (r"^spatial_contexts\.", "context_prediction."),
    (r"^parameter_aggregations\.", "ParamAggregation."),
    (r"^entropy_bottleneck\.matrices\.", "entropy_bottleneck._matrix"),
    (r"^entropy_bottleneck\.biases\.", "entropy_bottleneck._bias"),
    (r"^entropy_bottleneck\.factors\.", "entropy_bottleneck._factor"),
)

# The authors' names to CompressAI's, but for `cc_transforms`, which CompressAI counts from 1
_COMPRESSAI_KEYS: KeyTable = (
    (r"^h_([as])\.", r"latent_codec.hyper.h_\1."),
    (r"^entropy_bottleneck\._matrix", "latent_codec.hyper.entropy_bottleneck.matrices."),
    (r"^entropy_bottleneck\._bias", "latent_codec.hyper.entropy_bottleneck.biases."),
    (r"^entropy_bottleneck\._factor", "latent_codec.hyper.entropy_bottleneck.factors."),
    (r"^entropy_bottleneck\.", "latent_codec.hyper.entropy_bottleneck."),
    (r"^context_prediction\.(\d)\.", r"latent_codec.y.latent_codec.y\1.context_prediction."),
    (r"^ParamAggregation\.(\d)\.", r"latent_codec.y.latent_codec.y\1.entropy_parameters."),
)

# Buffers that follow from the parameters: tables of the entropy coder, bounds, masks
_DERIVED = re.compile(
    r"(^|\.)gaussian_conditional\.|\.(mask|target|_offset|_quantized_cdf|_cdf_length)$|\.likelihood_lower_bound\.bound$"
)


def _rename(key: str, table: KeyTable) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def authors_key(key: str) -> str:
    """Name of one of [`ElicModel`]'s parameters in the authors' checkpoints."""
    return _rename(key, _AUTHORS_KEYS)


def compressai_key(key: str) -> str:
    """Name of one of [`ElicModel`]'s parameters in CompressAI's `elic2022-chandelier`."""
    return authors_to_compressai_key(authors_key(key))


def authors_to_compressai_key(key: str) -> str:
    """Name in CompressAI's `elic2022-chandelier` of a parameter or mask in the authors' checkpoints."""
    match = re.match(r"^cc_transforms\.(\d)\.(.*)$", key)
    if match:
        return f"latent_codec.y.channel_context.y{int(match[1]) + 1}.{match[2]}"
    return _rename(key, _COMPRESSAI_KEYS)


# How to name [`ElicModel`]'s parameters in each layout
LAYOUTS: dict[str, Callable[[str], str]] = {"authors": authors_key, "compressai": compressai_key}


def elic_config_from_weights(weights: Mapping[str, torch.Tensor], layout: str) -> ElicConfig:
    """The widths of an ELIC codec, read off its weights.

    Args:
        weights: Tensors by their names in `layout`.
        layout: `"authors"` or `"compressai"`.

    Raises:
        ValueError: If a tensor that tells a width is missing; all missing ones are listed.
    """
    name = LAYOUTS[layout]

    def width(key: str, axis: int = 0) -> int:
        if name(key) not in weights:  # then more is missing: what the published codec has is listed
            check_state_dict(weights, _published_shapes(layout), "codec", spare=_DERIVED.search)
        if weights[name(key)].dim() != 4:
            raise ValueError(f"{name(key)} is no convolution: it has shape {tuple(weights[name(key)].shape)}.")
        return weights[name(key)].shape[axis]

    groups = [width(f"spatial_contexts.{k}.weight", 1) for k in range(5)]
    latents = width("g_a.13.weight")
    if sum(groups) != latents:
        raise ValueError(f"The codec makes {latents} latent channels, but its groups {groups} hold {sum(groups)}.")
    return ElicConfig(
        hidden_channels=width("g_a.0.weight"),
        latent_channels=latents,
        group_channels=groups,
        context_channels=[width(f"channel_contexts.0.{layer}.weight") for layer in (0, 2)],
        aggregation_channels=[width(f"parameter_aggregations.0.{layer}.weight") for layer in (0, 2)],
        kernel_size=width("g_a.0.weight", -1),
    )


def _published_shapes(layout: str) -> dict[str, torch.Size]:
    return {LAYOUTS[layout](key): shape for key, shape in parameter_shapes(ElicConfig()).items()}


def parameter_shapes(config: ElicConfig) -> dict[str, torch.Size]:
    """Shapes of all parameters of an [`ElicModel`], by name."""
    from .modeling_elic import ElicModel

    with torch.device("meta"):
        return {key: parameter.shape for key, parameter in ElicModel(config).named_parameters()}


def elic_weights_from(
    weights: Mapping[str, torch.Tensor], layout: str
) -> tuple[ElicConfig, dict[str, torch.Tensor], list[str]]:
    """Configuration and parameters of an [`ElicModel`] from a foreign state dict.

    Args:
        weights: Tensors by their names in `layout`, without prefixes.
        layout: `"authors"` or `"compressai"`.

    Returns:
        The configuration, float32 parameters by our names, and the buffers that were left because they follow from
        the parameters. Taps of the spatial contexts that the checkerboard hides are zero.

    Raises:
        ValueError: If tensors are missing, too many, of a wrong shape or not finite, or a mask is no checkerboard.
    """
    config, name = elic_config_from_weights(weights, layout), LAYOUTS[layout]
    shapes = parameter_shapes(config)
    check_state_dict(weights, {name(key): shape for key, shape in shapes.items()}, "codec", spare=_DERIVED.search)
    rest = sorted(set(weights) - {name(key) for key in shapes})
    for key in rest:
        if key.endswith(".mask"):
            _check_mask(key, weights[key])
    parameters = {key: weights[name(key)].float() for key in shapes}
    seen = ~checkerboard(config.kernel_size, config.kernel_size)
    for k in range(len(config.group_channels)):
        parameters[f"spatial_contexts.{k}.weight"] = parameters[f"spatial_contexts.{k}.weight"] * seen
    return config, parameters, rest


def _check_mask(key: str, mask: torch.Tensor) -> None:
    expected = (~checkerboard(*mask.shape[-2:])).to(mask.dtype).expand_as(mask)
    if not torch.equal(mask, expected):
        raise ValueError(f"{key} is not the checkerboard that ELIC's spatial contexts see through.")


__all__ = [
    "LAYOUTS",
    "authors_key",
    "authors_to_compressai_key",
    "compressai_key",
    "elic_config_from_weights",
    "elic_weights_from",
    "parameter_shapes",
]
