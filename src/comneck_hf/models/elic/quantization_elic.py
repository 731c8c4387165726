"""Derives ELIC's integer networks and coding tables from its float networks (post-training quantization)."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from ...coding.exact import ActivationRange, ExactConv, ExactUpsample
from ...coding.tables import SCALE_TABLE, CodingTables, concatenate, gaussian_tables, tables_from_pmfs
from ..entropy_models import FactorizedPrior
from .exact_elic import SCALE_UNIT
from .gains_elic import MEAN_UNIT
from .layers_elic import CheckerboardConv2d, checkerboard, support_groups
from .modeling_elic import ElicModel


_WIDEST_PRIOR = 255


def synthetic_pictures(size: int = 128, count: int = 8) -> torch.Tensor:
    """Drawn pictures for calibration where no photographs are at hand: float `(count, 3, size, size)` in [0, 1].

    Sums of oriented waves at several scales with edges and a little noise; always the same.
    """
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    pictures = torch.full((count, 3, size, size), 0.5)
    for picture in pictures:
        for frequency in (1.0, 2.0, 5.0, 11.0, 23.0):
            angle, phase = 6.3 * torch.rand(2, generator=generator)
            wave = torch.sin(frequency * (axis[:, None] * angle.cos() + axis * angle.sin()) * 3.1 + phase)
            color = torch.rand(3, 1, 1, generator=generator) / frequency**0.5
            picture += 0.4 * color * (wave.sign() if torch.rand((), generator=generator) < 0.4 else wave)
        picture += 0.02 * torch.randn(picture.shape, generator=generator)
    return pictures.clamp(0, 1)


@torch.no_grad()
def derive_exact(codec: ElicModel, pixel_values: torch.Tensor) -> None:
    """Fills `codec.exact` from the float networks.

    Args:
        codec: The codec; its float weights are not changed.
        pixel_values: Calibration pictures `(batch, 3, height, width)` in [0, 1]: they set the activation ranges. 16
            photographs are enough; values outside the ranges saturate, which costs bits and is never wrong.
    """
    ranges = _record_ranges(codec, pixel_values)
    exact = codec.exact
    medians = codec.entropy_bottleneck.medians.detach().double().cpu()
    exact.z_input.derive(torch.ones_like(medians), medians, ranges["z"])
    exact.y_input.derive(torch.full_like(ranges["y"].scale, 1 / MEAN_UNIT), 0 * ranges["y"].scale, ranges["y"])
    _derive_chain(exact.h_s, codec.h_s, "h_s", ranges["z"], ranges)
    sizes = list(codec.config.group_channels)
    parts = ranges["y"].split(sizes)
    for k, (size, aggregation) in enumerate(zip(sizes, exact.parameter_aggregations, strict=True)):
        sources = [ranges[f"spatial_contexts.{k}"]]
        _derive_layer(exact.spatial_contexts[k], codec.spatial_contexts[k], parts[k], sources[0])
        if k:
            name = f"channel_contexts.{k - 1}"
            support = ActivationRange.concatenate([parts[i] for i in support_groups(k)])
            _derive_chain(exact.channel_contexts[k - 1], codec.channel_contexts[k - 1], name, support, ranges)
            sources.append(ranges[f"{name}.4"])
        sources.append(ranges["h_s.4"])
        units = torch.tensor([1 / MEAN_UNIT] * size + [1 / SCALE_UNIT] * size, dtype=torch.float64)
        ranges[f"parameter_aggregations.{k}.4"] = ActivationRange.fixed_point(units)
        _derive_chain(
            aggregation,
            codec.parameter_aggregations[k],
            f"parameter_aggregations.{k}",
            ActivationRange.concatenate(sources),
            ranges,
        )
    # Nearest level on a log scale; the next larger one, as usual, costs 0.1 to 1.6 % more bits.
    middles = [math.sqrt(low * high) for low, high in itertools.pairwise(SCALE_TABLE)]
    exact.thresholds.copy_(torch.tensor([int(scale * SCALE_UNIT) for scale in middles]))
    exact.tables.set(concatenate([gaussian_tables(), prior_tables(codec.entropy_bottleneck)]))
    codec.config.coding_table_size = exact.tables.cdfs.numel()


def prior_tables(prior: FactorizedPrior) -> CodingTables:
    """Integer tables of the factorized prior, one per channel, around the medians."""
    quantiles = prior.quantiles.detach().double().cpu()[:, 0]
    below = (quantiles[:, 1] - quantiles[:, 0]).ceil().clamp(1, _WIDEST_PRIOR).long()
    above = (quantiles[:, 2] - quantiles[:, 1]).ceil().clamp(1, _WIDEST_PRIOR).long()
    values = torch.arange(-int(below.max()), int(above.max()) + 1, device=prior.quantiles.device)
    z = values[None, None, None] + prior.medians.detach()[None, :, None, None]
    likelihood = prior.likelihood(z)[0, :, 0].detach().double().cpu()
    pmfs = []
    for channel, (low, high) in enumerate(zip(below.tolist(), above.tolist(), strict=True)):
        inside = likelihood[channel, int(below.max()) - low : int(below.max()) + high + 1]
        pmfs.append(torch.cat([inside, (1 - inside.sum()).clamp_min(1e-9)[None]]))
    return tables_from_pmfs(pmfs, [-low for low in below.tolist()])


def _record_ranges(codec: ElicModel, pixel_values: torch.Tensor) -> dict[str, ActivationRange]:
    """Range and average per channel of everything that becomes an int8 activation, by module name."""
    statistics: dict[str, list[torch.Tensor]] = {}

    def record(name: str, values: torch.Tensor) -> None:
        values = values.detach().double().cpu()
        statistics.setdefault(name, []).append(
            torch.stack([values.amin((0, 2, 3)), values.amax((0, 2, 3)), values.mean((0, 2, 3))])
        )

    def watch(name: str, module: nn.Module) -> Callable[[], None]:
        return module.register_forward_hook(lambda _module, _inputs, output: record(name, output)).remove

    removers = [codec.h_s.register_forward_pre_hook(lambda _module, inputs: record("z", inputs[0])).remove]
    for prefix in ("h_s", "channel_contexts", "spatial_contexts", "parameter_aggregations"):
        for name, module in codec.get_submodule(prefix).named_modules(prefix=prefix):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.ReLU):
                removers.append(watch(name, module))
    training = codec.training
    codec.eval()
    try:
        for pictures in pixel_values.split(4):
            record("y", codec(pictures.to(codec.device), quantization="ste", reconstruct=False).latents)
    finally:
        codec.train(training)
        for remove in removers:
            remove()
    ranges = {}
    for name, values in statistics.items():
        low, high, mean = torch.stack(values).unbind(1)
        ranges[name] = ActivationRange.from_bounds(low.amin(0), high.amax(0), mean.mean(0))
    return ranges


def _derive_chain(
    layers: nn.ModuleList,
    modules: nn.Sequential,
    name: str,
    source: ActivationRange,
    ranges: dict[str, ActivationRange],
) -> None:
    """Derives a chain of convolutions with ReLU between them: a ReLU is the lower end of its layer's range."""
    convolutions = [index for index, module in enumerate(modules) if not isinstance(module, nn.ReLU)]
    for layer, index in zip(layers, convolutions, strict=True):
        target = ranges[f"{name}.{index if index == convolutions[-1] else index + 1}"]
        _derive_layer(layer, modules[index], source, target)
        source = target


def _derive_layer(
    layer: ExactConv | ExactUpsample,
    module: nn.Conv2d | nn.ConvTranspose2d,
    source: ActivationRange,
    target: ActivationRange,
) -> None:
    weight, bias = module.weight.detach().double().cpu(), module.bias.detach().double().cpu()
    if isinstance(module, nn.Conv2d):
        weight = weight.permute(2, 3, 1, 0).flatten(0, 1)
    if isinstance(module, CheckerboardConv2d):
        weight = weight[~checkerboard(*module.kernel_size).flatten()]
    layer.derive(weight, bias, source, target)


__all__ = ["derive_exact", "prior_tables", "synthetic_pictures"]
