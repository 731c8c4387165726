"""What the systems cost: parameters and multiply-adds, counted on the meta device, and times measured side by side.

A multiply-add is one of a linear layer, a convolution or a product within attention; nothing else is counted. Counts
are per pixel of the codec's input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from ..models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from ..models.comneck.modeling_comneck import ComNeckVisionModel
from .unet import PostProcessingUNet


SYSTEMS = {
    "ComNeck": ("neck",),
    "Reconstruction": ("g_s", "CLIP stem"),
    "Post-processing": ("g_s", "U-Net", "CLIP stem"),
}
# ComNeck, table 3: parameters in millions and kMAC per pixel
PAPER = {"neck": (13.19, 52.795), "g_s": (7.34, 112.00), "U-Net": (31.04, 835.72), "CLIP stem": (25.78, 70.24)}
REASONS = {
    "neck": "agrees; some counters add norms",
    "g_s": "no counter gives this for 7.34 M parameters",
    "U-Net": "as a counter that takes transposed convolutions for dense ones",
    "CLIP stem": "as a counter that leaves out attention; without positions and norm",
}


@dataclass(frozen=True)
class Part:
    """A network of the server.

    Attributes:
        modules: What it consists of.
        run: Calls it on a batch.
    """

    modules: tuple[nn.Module, ...]
    run: Callable[[], object]

    @property
    def num_params(self) -> int:
        """Parameters."""
        return sum(parameter.numel() for module in self.modules for parameter in module.parameters())


def server_parts(config: ComNeckConfig, *, batch_size: int = 1, device: str = "meta") -> dict[str, Part]:
    """The parts in which the systems differ, and the CLIP layers and the codec's other networks that they share.

    Args:
        config: With a codec; sizes are its input's.
        batch_size: Pictures per call.
        device: `"meta"` counts without computing; elsewhere the weights are random.

    Raises:
        ValueError: If the configuration has no codec.
    """
    if config.codec_config is None:
        raise ValueError("Complexity needs a model with a codec. Give a configuration with `codec_config`.")
    neck_config = config.vision_config
    options = {**neck_config.to_dict(), "keep_clip_stem": True}
    with torch.device(device):
        tower = ComNeckVisionModel(ComNeckVisionConfig(**options)).eval()
        tower.set_attn_implementation("eager")
        codec = AutoModel.from_config(config.codec_config).eval()
        unet = PostProcessingUNet().eval()
        (rows, columns), step = neck_config.latent_grid, config.patch_size
        picture = torch.rand(batch_size, 3, rows * step, columns * step)
        clip_picture = torch.rand(batch_size, 3, neck_config.image_size, neck_config.image_size)
        latents = torch.randn(batch_size, neck_config.latent_channels, rows, columns)
        tokens = torch.randn(batch_size, 1 + rows * columns, neck_config.hidden_size)
    first, layers = neck_config.num_skipped_layers, tower.encoder.layers

    def run_layers(states: torch.Tensor, chosen: nn.ModuleList) -> torch.Tensor:
        for layer in chosen:
            states = layer(states, None)
        return states

    stem = (tower.embeddings, tower.pre_layrnorm, layers[:first])
    return {
        "neck": Part((tower.neck,), lambda: tower.neck(latents)),
        "g_s": Part((codec.g_s,), lambda: codec.g_s(latents)),
        "U-Net": Part((unet,), lambda: unet(picture)),
        "CLIP stem": Part(stem, lambda: run_layers(stem[1](stem[0](clip_picture)), stem[2])),
        "CLIP layers behind it": Part((layers[first:],), lambda: run_layers(tokens, layers[first:])),
        "g_a": Part((codec.g_a,), lambda: codec.g_a(picture)),
        "h_a": Part((codec.h_a,), lambda: codec.h_a(latents)),
        "h_s": Part((codec.h_s,), lambda: codec.h_s(codec.h_a(latents))),
    }


@torch.no_grad()
def count_complexity(config: ComNeckConfig) -> dict[str, dict[str, float]]:
    """`num_params` and `kmac_per_pixel` of every part of `server_parts`."""
    height, width = (config.patch_size * side for side in config.vision_config.latent_grid)
    counts = {}
    for name, part in server_parts(config).items():
        counter = FlopCounterMode(display=False)
        with counter:
            part.run()
        kmac = counter.get_total_flops() / 2000 / (height * width)  # an operation is half a multiply-add
        counts[name] = {"num_params": part.num_params, "kmac_per_pixel": kmac}
    counts["h_s"]["kmac_per_pixel"] -= counts["h_a"]["kmac_per_pixel"]  # ran before it, to have its input
    return counts


def system_totals(counts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Sums over the parts in which the systems differ, and how many times ComNeck's they are."""
    totals = {
        system: {key: sum(counts[part][key] for part in parts) for key in ("num_params", "kmac_per_pixel")}
        for system, parts in SYSTEMS.items()
    }
    for total in totals.values():
        total["times_comneck"] = total["kmac_per_pixel"] / totals["ComNeck"]["kmac_per_pixel"]
    return totals


def complexity_table(counts: Mapping[str, Mapping[str, float]], *, is_paper_size: bool) -> str:
    """Lines for a terminal; beside the paper's numbers where the sizes are the paper's."""
    header = f"{'part':24}{'parameters':>14}{'kMAC/pixel':>12}" + (f"{'paper':>18}" if is_paper_size else "")
    lines = [header]
    for name, count in counts.items():
        line = f"{name:24}{count['num_params']:>14,}{count['kmac_per_pixel']:>12.2f}"
        if is_paper_size and name in PAPER:
            line += f"{PAPER[name][0]:>9.2f} M{PAPER[name][1]:>7.1f}  {REASONS[name]}"
        lines.append(line)
    lines.append("")
    for system, total in system_totals(counts).items():
        line = f"{system:24}{total['num_params']:>14,}{total['kmac_per_pixel']:>12.2f}"
        lines.append(f"{line}{total['times_comneck']:>9.1f} times ComNeck's")
    return "\n".join(lines)


__all__ = ["PAPER", "REASONS", "SYSTEMS", "complexity_table", "count_complexity", "server_parts", "system_totals"]
