"""What is trained and what its loss is: one module per training, with stages that decide what moves."""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comneck_hf.models.compressai.modeling_compressai import CompressaiModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.gains import RandomGains, distortion_weights
from comneck_hf.training.losses import mean_squared_error, rate
from comneck_hf.training.stages import Stage


Batch = dict[str, Tensor]
Terms = dict[str, Tensor]

__all__ = ["Batch", "CodecObjective", "Objective", "Terms", "codec_terms", "half_precision"]


class Objective(nn.Module, ABC):
    """Models, the parts that stages train, and the loss.

    Frozen models that are no part of the result (teachers) are kept out of the modules, so that checkpoints do not
    hold them.

    Attributes:
        stages: The stages, in their order.
    """

    stages: tuple[Stage, ...]

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the names that `Stage.trains` uses."""

    @abstractmethod
    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """The loss of a batch and, detached, its terms."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the trained model with all that `from_pretrained` and the Hub want beside it."""

    def begin(self, stage: Stage) -> None:
        """Freezes everything but the parts of the stage.

        Raises:
            ValueError: If the stage trains a part that is not there.
        """
        parts = self.parts()
        unknown = sorted(set(stage.trains) - set(parts))
        if unknown:
            raise ValueError(f"Stage {stage.name!r} trains {unknown}; there are only {sorted(parts)}.")
        self.requires_grad_(False)
        for name in stage.trains:
            for parameter in parts[name]:
                parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> "Objective":
        """Training mode for what trains; modules whose parameters are all frozen stay in eval."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def after_step(self, stage: Stage) -> None:
        """Called after every step of the optimizers."""

    def optimizers(self, args: RunArguments) -> list[torch.optim.Optimizer]:
        """Optimizers of everything that has gradients now: AdamW, and Adam for the bottleneck's medians."""
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        quantiles = [parameter for name, parameter in trained if name.endswith("quantiles")]
        main = [parameter for name, parameter in trained if not name.endswith("quantiles")]
        optimizers = [torch.optim.AdamW(main, lr=args.learning_rate, weight_decay=args.weight_decay)]
        if quantiles:
            optimizers.append(torch.optim.Adam(quantiles, lr=args.aux_learning_rate))
        return optimizers


def weighted_sum(terms: Terms, stage: Stage) -> tuple[Tensor, Terms]:
    """The loss of a stage and, for the log, itself and all terms without gradients.

    Raises:
        ValueError: If the stage weights a term that was not computed.
    """
    missing = sorted(set(stage.weights) - set(terms))
    if missing:
        raise ValueError(f"Stage {stage.name!r} weights {missing}; this training computes {sorted(terms)}.")
    loss = sum(weight * terms[name] for name, weight in stage.weights.items())
    return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}


def codec_terms(
    codec: ElicModel, pixel_values: Tensor, stage: Stage, gains: RandomGains | None = None
) -> tuple[Tensor, Terms]:
    """Latents with gradients and the terms `rate` and, where the stage weights it, `reconstruction` and its `psnr`.

    Args:
        codec: The codec.
        pixel_values: `(batch, 3, height, width)` in [0, 1].
        stage: Its quantization.
        gains: At which the pictures are coded, drawn from torch's own random numbers. Errors then count as much as
            lambda at their gain is larger than the codec's own.
    """
    options: dict[str, Any] = {"reconstruct": "reconstruction" in stage.weights}
    weights = None
    if gains is not None:
        octaves, maps = gains.draw(len(pixel_values), generator=torch.default_generator)
        options |= {"gain": octaves, "gain_maps": maps}
        weights = distortion_weights(octaves, maps, tuple(pixel_values.shape[2:])).to(pixel_values.device)
    outputs = codec(pixel_values, quantization=stage.quantization, **options)
    terms = {"rate": rate(outputs.likelihoods, pixel_values)}
    if outputs.reconstruction is not None:
        terms["reconstruction"] = mean_squared_error(outputs.reconstruction, pixel_values, weights)
        terms["psnr"] = -10 * mean_squared_error(outputs.reconstruction.detach(), pixel_values).log10()
    return outputs.latents, terms


def half_precision(model: nn.Module) -> dict[str, Tensor]:
    """The state with float16 in place of float32, for half the file; `from_pretrained` widens it again.

    Codecs of CompressAI stay as they are: the bits of their floats decide what decodes.
    """
    exact = tuple(
        f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, CompressaiModel)
    )
    return {
        name: value if name.startswith(exact) or not value.is_floating_point() else value.half()
        for name, value in model.state_dict().items()
    }


class CodecObjective(Objective):
    """Rate and distortion of a codec, at its own rate or at all rates together.

    Args:
        codec: The codec.
        stages: From `codec_stages`.
        calibration_pictures: Sample `(n, 3, height, width)` in [0, 1], from which the integer networks are derived
            before anything is coded.
        gains: At which pictures are coded, for a codec of variable rate (CoTAM, 3.1). The stages' lambda is that of
            gain 0; it doubles with every half octave.
    """

    def __init__(
        self,
        codec: ElicModel,
        stages: tuple[Stage, ...],
        calibration_pictures: Tensor,
        *,
        gains: RandomGains | None = None,
    ) -> None:
        super().__init__()
        self.codec, self.stages, self.gains = codec, stages, gains
        self._calibration_pictures = calibration_pictures

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """`codec`: all of it."""
        return {"codec": list(self.codec.parameters())}

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """Rate and distortion of `batch["pixel_values"]`; the loss of the medians is added without a weight."""
        _, terms = codec_terms(self.codec, batch["pixel_values"], stage, self.gains)
        loss, report = weighted_sum(terms, stage)
        return loss + self.codec.aux_loss(), report

    def calibrate(self) -> ElicModel:
        """A copy of the codec, ready to code with the present weights."""
        codec = copy.deepcopy(self.codec).eval()
        codec.calibrate(self._calibration_pictures.to(codec.device))
        return codec

    def save(self, folder: str | Path) -> None:
        """Writes the codec with integer networks of its present weights."""
        self.calibrate().save_pretrained(folder)
