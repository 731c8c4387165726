"""Float entropy networks from integer ones: what a codec that was saved without them needs to be trained further."""

import copy
from itertools import pairwise

import torch
from torch import nn

from ...coding.exact import ExactConv, ExactUpsample, Requantizer
from ...coding.gather import transposed_taps
from .exact_elic import SCALE_UNIT
from .gains_elic import MEAN_UNIT
from .layers_elic import CheckerboardConv2d, checkerboard, support_groups
from .modeling_elic import ElicModel


_HIDDEN_STEP = 1 / 64  # value of one step of an int8 activation between layers: any would do
_SWEEPS = 4  # of the equalization


@torch.no_grad()
def restore_entropy_networks(codec: ElicModel) -> ElicModel:
    """A codec with float entropy networks that predict what its integer ones do, for further training.

    Codecs for devices and packed models have the integer networks only (`build_entropy_networks=False`). The restored
    ones differ from those that were trained by the rounding of int8, which costs 0.2 % in bits; what is between
    their layers has other units. They are not needed for coding, which goes on in integers until `calibrate`.

    Args:
        codec: An ELIC or TIC; it is not changed.

    Returns:
        A copy in float32, or `codec` itself if it has its float networks.

    Raises:
        ValueError: If the codec is no ELIC or TIC, or has no integer networks either.
    """
    if not isinstance(codec, ElicModel):
        raise ValueError(f"A {codec.config.model_type!r} codec has no integer networks. Use an ELIC or TIC.")
    if codec.config.build_entropy_networks:
        return codec
    exact = codec.exact
    if not exact.is_derived:
        raise ValueError("This codec has neither float nor integer entropy networks. Load a whole one.")
    config = copy.deepcopy(codec.config)
    config.build_entropy_networks = True
    whole = type(codec)(config).to(codec.device)
    whole.load_state_dict(codec.state_dict(), strict=False)
    sizes = list(config.group_channels)
    y_scales = (_unit(exact.y_input).reciprocal() / MEAN_UNIT).split(sizes)
    _restore_chain(exact.h_s, whole.h_s, _unit(exact.z_input).reciprocal(), *_inputs_of_aggregation(exact, 0, "h_s"))
    for k, (size, aggregation) in enumerate(zip(sizes, exact.parameter_aggregations, strict=True)):
        spatial = _inputs_of_aggregation(exact, k, "spatial")
        _restore_layer(exact.spatial_contexts[k], whole.spatial_contexts[k], y_scales[k], *spatial)
        if k:
            support = torch.cat([y_scales[i] for i in support_groups(k)])
            channel = _inputs_of_aggregation(exact, k, "channel")
            _restore_chain(exact.channel_contexts[k - 1], whole.channel_contexts[k - 1], support, *channel)
        source = torch.full((aggregation[0].in_channels,), _HIDDEN_STEP, dtype=torch.float64)
        target = torch.tensor([1 / MEAN_UNIT] * size + [1 / SCALE_UNIT] * size, dtype=torch.float64)
        _restore_chain(aggregation, whole.parameter_aggregations[k], source, target, torch.zeros_like(target))
    return whole.train(codec.training)


def _unit(requantizer: Requantizer) -> torch.Tensor:
    """Steps of the output per unit of the input: float64 `(channels,)`."""
    return torch.ldexp(requantizer.multiplier.double(), -requantizer.shift).cpu()


def _inputs_of_aggregation(exact: nn.Module, group: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points, `(channels,)` each, of what one of the contexts hands to a group's aggregation."""
    zero_points = exact.parameter_aggregations[group][0].padding.double().cpu()
    context = 2 * exact.config.group_channels[group]
    chosen = {"spatial": slice(context), "channel": slice(context, 2 * context)}
    chosen["h_s"] = slice(len(zero_points) - 2 * exact.config.latent_channels, None)
    zero_points = zero_points[chosen[part]]
    return torch.full_like(zero_points, _HIDDEN_STEP), zero_points


def _restore_chain(
    layers: nn.ModuleList,
    modules: nn.Sequential,
    source: torch.Tensor,
    target: torch.Tensor,
    zero_point: torch.Tensor,
) -> None:
    """Restores convolutions with ReLU between them; arguments as of `_restore_layer`."""
    convolutions = [module for module in modules if not isinstance(module, nn.ReLU)]
    for (layer, following), module in zip(pairwise(layers), convolutions, strict=False):
        inner = following.phases[0] if isinstance(following, ExactUpsample) else following
        scale = torch.full((inner.in_channels,), _HIDDEN_STEP, dtype=torch.float64)
        _restore_layer(layer, module, source, scale, inner.padding.double().cpu())
        source = scale
    _restore_layer(layers[-1], convolutions[-1], source, target, zero_point)
    for _ in range(_SWEEPS):
        for first, second in pairwise(convolutions):
            _equalize(first, second)


def _equalize(first: nn.Module, second: nn.Module) -> None:
    """Gives the filters on both sides of a ReLU equal norms, channel by channel (Nagel et al. 2019, section 4.1)."""
    filters = [
        module.weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else module.weight
        for module in (first, second)
    ]
    before, after = filters[0], filters[1].transpose(0, 1)
    ratio = (before.flatten(1).norm(dim=1) / after.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_min(1e-12).sqrt()
    before.div_(ratio[:, None, None, None])
    first.bias.div_(ratio)
    after.mul_(ratio[:, None, None, None])


def _restore_layer(
    layer: ExactConv | ExactUpsample,
    module: nn.Conv2d | nn.ConvTranspose2d,
    source: torch.Tensor,
    target: torch.Tensor,
    zero_point: torch.Tensor,
) -> None:
    """Fills a float layer.

    Args:
        layer: The integer layer.
        module: Its float twin.
        source: Value of one step of each input channel, float64.
        target: Value of one step of each output channel.
        zero_point: Integer that stands for zero in each output channel.
    """
    if isinstance(layer, ExactUpsample):
        weight, biases = torch.zeros(module.weight.shape, dtype=torch.float64), []
        for phase, taps in zip(layer.phases, transposed_taps(layer.kernel_size), strict=True):
            by_tap, bias = _float_filter(phase, source, target, zero_point)
            biases.append(bias)
            for (row, column, _, _), values in zip(taps, by_tap, strict=True):
                weight[:, :, row, column] = values
        bias = torch.stack(biases).mean(0)
    else:
        by_tap, bias = _float_filter(layer, source, target, zero_point)
        height, width = module.kernel_size
        if isinstance(module, CheckerboardConv2d):
            kept = ~checkerboard(height, width).flatten()
            by_tap = torch.zeros(height * width, *by_tap.shape[1:], dtype=torch.float64).index_put((kept,), by_tap)
        weight = by_tap.unflatten(0, (height, width)).permute(3, 2, 0, 1)
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def _float_filter(
    layer: ExactConv, source: torch.Tensor, target: torch.Tensor, zero_point: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(taps, in_channels, out_channels)` and biases in float64, the inverse of [`ExactConv.derive`]."""
    integers = layer.weight.double().cpu()
    requantizer = layer.requantizer
    zero_sum = (integers * layer.padding.double().cpu().repeat(layer.taps)[:, None]).sum(0)
    offset = requantizer.offset.cpu() + (zero_sum * requantizer.multiplier.cpu()).to(torch.int64)
    bias = torch.ldexp(offset.double(), -requantizer.shift.cpu()) - 0.5 - zero_point
    weight = integers.unflatten(0, (layer.taps, layer.in_channels)) / source[:, None]
    return weight * (_unit(requantizer) * target), bias * target


__all__ = ["restore_entropy_networks"]
