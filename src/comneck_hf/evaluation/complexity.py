"""What the systems cost: parameters and multiply-adds, counted on the meta device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedModel

from ..models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from ..models.comneck.modeling_comneck import ComNeckVisionModel
from ..models.elic.configuration_elic import ElicConfig
from ..models.unet import PostProcessingUNet


SYSTEMS = {
    "ComNeck": ("neck",),
    "Reconstruction": ("g_s", "CLIP stem"),
    "Post-processing": ("g_s", "U-Net", "CLIP stem"),
}
RULE = (
    "multiply-adds of linear layers, convolutions and products within attention, nothing else; per pixel of the "
    "codec's input"
)
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


@dataclass(frozen=True)
class Server:
    """The networks of all systems, with random weights.

    Attributes:
        config: Of the model; sizes are its codec's input's.
        tower: Neck and the whole CLIP.
        codec: The codec.
        unet: Of Post-processing.
    """

    config: ComNeckConfig
    tower: ComNeckVisionModel
    codec: PreTrainedModel
    unet: PostProcessingUNet

    @classmethod
    def random(
        cls,
        config: ComNeckConfig,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        codec: PreTrainedModel | None = None,
    ) -> "Server":
        """Builds the networks; `device="meta"` is enough to count.

        Args:
            config: With a codec.
            device, dtype: Of the networks.
            attention: Implementation of CLIP's attention; products are counted with `"eager"` only.
            codec: Instead of one with random weights.

        Raises:
            ValueError: If the configuration is not ComNeck's, has no codec, or one whose parts are not known.
        """
        if not isinstance(config, ComNeckConfig):
            raise ValueError(f"Complexity is counted for ComNeck models, got a {config.model_type!r} model.")
        if not isinstance(config.codec_config, ElicConfig):
            raise ValueError(
                "Complexity needs a model with an ELIC or TIC codec. Give one with such a `codec_config`."
            )
        parts = {"build_analysis": True, "build_synthesis": True, "build_entropy_networks": True}
        codec_config = type(config.codec_config).from_dict({**config.codec_config.to_dict(), **parts})
        options = {**config.vision_config.to_dict(), "keep_clip_stem": True}
        with torch.device(device):
            tower = ComNeckVisionModel(ComNeckVisionConfig(**options)).eval().to(dtype)
            unet = PostProcessingUNet().eval().to(dtype)
            codec = AutoModel.from_config(codec_config).eval().to(dtype) if codec is None else codec
        tower.set_attn_implementation(attention)
        return cls(config, tower, codec, unet)

    def parts(self, batch_size: int) -> dict[str, Part]:
        """The parts in which the systems differ, and the networks that they share."""
        tower, codec, neck_config = self.tower, self.codec, self.config.vision_config
        (rows, columns), step = neck_config.latent_grid, self.config.patch_size
        with torch.device(tower.device):
            picture = torch.rand(batch_size, 3, rows * step, columns * step, dtype=tower.dtype)
            clip_picture = torch.rand(batch_size, 3, neck_config.image_size, neck_config.image_size, dtype=tower.dtype)
            latents = torch.randn(batch_size, neck_config.latent_channels, rows, columns, dtype=tower.dtype)
            tokens = torch.randn(batch_size, 1 + rows * columns, neck_config.hidden_size, dtype=tower.dtype)
        first, layers = neck_config.num_skipped_layers, tower.encoder.layers

        def run_layers(states: torch.Tensor, chosen: nn.ModuleList) -> torch.Tensor:
            for layer in chosen:
                states = layer(states, None)
            return states

        stem = (tower.embeddings, tower.pre_layrnorm, layers[:first])
        return {
            "neck": Part((tower.neck,), lambda: tower.neck(latents)),
            "g_s": Part((codec.g_s,), lambda: codec.g_s(latents)),
            "U-Net": Part((self.unet,), lambda: self.unet(picture)),
            "CLIP stem": Part(stem, lambda: run_layers(stem[1](stem[0](clip_picture)), stem[2])),
            "CLIP layers behind it": Part((layers[first:],), lambda: run_layers(tokens, layers[first:])),
            "g_a": Part((codec.g_a,), lambda: codec.g_a(picture)),
            "h_a": Part((codec.h_a,), lambda: codec.h_a(latents)),
            "h_s": Part((codec.h_s,), lambda: codec.h_s(codec.h_a(latents))),
        }


@torch.no_grad()
def count_complexity(config: ComNeckConfig) -> dict[str, dict[str, float]]:
    """`num_params` and `kmac_per_pixel` of every part of a server."""
    height, width = (config.patch_size * side for side in config.vision_config.latent_grid)
    counts = {}
    for name, part in Server.random(config, device="meta", attention="eager").parts(1).items():
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


def complexity_report(counts: Mapping[str, Mapping[str, float]], *, is_paper_size: bool) -> dict[str, object]:
    """What was counted, ready for JSON; with the paper's table 3 where the sizes are the paper's."""
    report: dict[str, object] = {"rule": RULE, "parts": counts, "systems": system_totals(counts)}
    if is_paper_size:
        report["paper"] = {
            name: {"num_params": round(1e6 * params), "kmac_per_pixel": kmac, "difference": REASONS[name]}
            for name, (params, kmac) in PAPER.items()
        }
    return report


def complexity_table(counts: Mapping[str, Mapping[str, float]], *, is_paper_size: bool) -> str:
    """Lines for a terminal; beside the paper's numbers where the sizes are the paper's."""
    header = f"{'part':24}{'parameters':>14}{'kMAC/pixel':>12}" + (f"{'paper':>18}" if is_paper_size else "")
    lines = [header]
    for name, count in counts.items():
        line = f"{name:24}{count['num_params']:>14,}{count['kmac_per_pixel']:>12.2f}"
        if is_paper_size and name in PAPER:
            line += f"{PAPER[name][0]:>9.2f} M{PAPER[name][1]:>7.1f}  {REASONS[name]}"
        lines.append(line)
    lines += ["", f"Counted: {RULE}.", ""]
    for system, total in system_totals(counts).items():
        line = f"{system:24}{total['num_params']:>14,}{total['kmac_per_pixel']:>12.2f}"
        lines.append(f"{line}{total['times_comneck']:>9.1f} times ComNeck's")
    return "\n".join(lines)


__all__ = [
    "PAPER",
    "REASONS",
    "RULE",
    "SYSTEMS",
    "Part",
    "Server",
    "complexity_report",
    "complexity_table",
    "count_complexity",
    "system_totals",
]
