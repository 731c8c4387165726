"""CoTAM's training: the adapter, by features of both levels, on pictures coded with random and guided gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.training.gains import RandomGains, token_weights
from comneck_hf.training.latents import Features, Variants, kept_features
from comneck_hf.training.losses import distillation
from comneck_hf.training.objective import Batch, Terms, weighted_sum
from comneck_hf.training.stages import Stage
from comneck_hf.training.surrogate import SurrogateObjective, save_model


__all__ = [
    "COTAM_PRESETS",
    "LOW_TARGET",
    "CotamObjective",
    "CotamPreset",
    "code_crops",
    "coded_inputs",
    "cotam_stages",
    "low_level_loss",
]

LOW_TARGET = "hidden_states[0]"  # what CLIP's first layer reads


@dataclass(frozen=True)
class CotamPreset:
    """How CoTAM's loss is computed.

    Attributes:
        name: `"paper"` or `"official"`.
        targets: Features of the high level, with weights.
        low, high: Weights of the two levels.
        weight_low_by_map: Errors at the low level count as much as their region was quantized finely.
        post_layernorm_repeats: As in `LatentVisionConfig`.
    """

    name: str
    targets: Mapping[str, float]
    low: float
    high: float
    weight_low_by_map: bool
    post_layernorm_repeats: int


COTAM_PRESETS = {
    # All tokens, at the layer that LLaVA reads, and the class token behind the last one
    "paper": CotamPreset("paper", {"hidden_states[-2]": 1.0, "image_embeds": 1.0}, 0.1, 1.0, False, 1),
    # The loss is 11.52 * (0.1 low + high); as released, its high level is never switched on
    "official": CotamPreset("official", {"image_embeds": 1.0}, 1.152, 11.52, True, 2),
}


def cotam_stages(low: float, high: float) -> tuple[Stage, ...]:
    """The low level alone in the first of five epochs, then both.

    Args:
        low: Weight of the low level; 0 leaves it and its stage out.
        high: Weight of the high level; 0 leaves it out.

    Raises:
        ValueError: If both are 0, or one is negative.
    """
    if min(low, high) < 0 or low == high == 0:
        raise ValueError(f"The weights of the levels must not be negative, and not both 0, got {low} and {high}.")
    source, trains = "CoTAM, sec. 3 and appendix", ("adapter",)
    levels = {name: weight for name, weight in (("low", low), ("high", high)) if weight}
    both = Stage("both", source, trains, levels, share=0.8, schedule="cosine")
    return (Stage("low", source, trains, {"low": low}, share=0.2, schedule="cosine"), both) if low else (both,)


def low_level_loss(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """L_low: mean squared distance of tokens before CLIP's first layer.

    Args:
        student: `(batch, tokens, hidden_size)`.
        teacher: The same shape.
        weights: Of the tokens, `(batch, tokens)`; 1 by default.
    """
    error = (student.float() - teacher.float()).square()
    return error.mean() if weights is None else (error * weights[..., None]).mean()


@torch.no_grad()
def code_crops(model: CotamModel, pixel_values: Tensor, gains: RandomGains, *, generator: torch.Generator) -> Features:
    """What reaches CoTAM's tower of pictures that are coded with random gains.

    Under autocast, too, codec and guide compute in their own type, as they will where pictures are coded.

    Args:
        model: Codec, guide and tower.
        pixel_values: `(batch, 3, height, width)` in [0, 1].
        gains: Where they come from.
        generator: Source of the random numbers.

    Returns:
        `latents`; `picture_tokens` of what they decode to, where the tower reads it; `token_weights`, as in
        `gains.token_weights`.
    """
    pixel_values = pixel_values.to(model.device)
    with torch.autocast(pixel_values.device.type, enabled=False):
        guided = model.gain_maps(pixel_values) if gains.guided_share else None
        octaves, maps = gains.draw(len(pixel_values), guided, generator=generator)
        options = {"gain": octaves, "gain_maps": maps} if model.codec.config.has_gains else {}
        latents = model.encode(pixel_values, **options).latents
        reads_pictures = model.config.vision_config.reads_pictures
        decoded = model.reconstruct(latents, **options) if reads_pictures else None
    weights = token_weights(octaves, maps, tuple(latents.shape[2:])).to(latents)
    features = {"latents": latents, "token_weights": weights}
    return features if decoded is None else {**features, "picture_tokens": model.vision_model.picture_tokens(decoded)}


def coded_inputs(model: CotamModel, variants: Variants, folder: str | Path, gains: RandomGains) -> list[Features]:
    """`code_crops` of all crops, each pass kept in a file of the folder, in float16.

    Args:
        model: Codec, guide and tower; the adapter has no part in it.
        variants: Which crops of which pictures.
        folder: Gets one safetensors file per pass, named after everything that its content depends on.
        gains: Where they come from.
    """
    config = model.config
    model.codec.to(memory_format=torch.channels_last)
    names = ("guide_source", "guide_layers", "guide_grid", "guide_threshold", "guide_levels", "gain_step")
    guide = [config.vision_config.reads_pictures, *(getattr(config, name) for name in names)]
    parts = (model.codec, model.vision_model.embeddings, model.vision_model.pre_layrnorm, model.vision_model.encoder)

    def code(batch: Tensor, generator: torch.Generator) -> Features:
        return {name: value.half() for name, value in code_crops(model, batch, gains, generator=generator).items()}

    return kept_features("cotam", code, [repr((gains, guide)), *parts], variants, folder)


class CotamObjective(SurrogateObjective):
    """The multi-level loss of CoTAM's adapter: `low * L_low + high * L_high`.

    L_low compares what CLIP's first layer reads, L_high what the layers make of it, with a CLIP that sees the picture.

    Args:
        model: Codec, adapter and tower.
        clip: As in [`SurrogateObjective`]; the tower comes from it.
        stages: From `cotam_stages`.
        gains: Of pictures that come uncoded.
        targets: Features of the high level, with weights.
        weight_low_by_map: As in [`CotamPreset`].
        options: Of [`SurrogateObjective`].

    Raises:
        ValueError: If there are gains or maps and the codec has one rate only.
    """

    def __init__(
        self,
        model: CotamModel,
        clip: CLIPModel,
        stages: tuple[Stage, ...],
        *,
        gains: RandomGains,
        targets: Mapping[str, float],
        weight_low_by_map: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(clip, stages, targets={LOW_TARGET: 1.0, **targets}, **options)
        if not (model.codec.config.has_gains or gains.is_constant):
            raise ValueError(
                f"A {model.codec.config.model_type!r} codec has one rate only. Leave out `gain_range`, and set "
                "`use_guide` to false."
            )
        self.model, self.gains, self.high_targets = model, gains, dict(targets)
        self.weight_low_by_map = weight_low_by_map

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """`adapter`."""
        return {"adapter": list(self.model.vision_model.adapter.parameters())}

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """The loss of a batch.

        Args:
            batch: `pixel_values`, or what `code_crops` made of them and the targets by name.
            stage: The stage.
        """
        if "latents" not in batch:
            pixel_values = batch["pixel_values"]
            batch = code_crops(self.model, pixel_values, self.gains, generator=torch.default_generator)
            batch |= self.teach(pixel_values)
        student = self._student(batch, is_low="high" not in stage.weights)
        weights = batch["token_weights"] if self.weight_low_by_map else None
        terms = {"low": low_level_loss(student[LOW_TARGET], batch[LOW_TARGET], weights)}
        if "high" in stage.weights:
            terms["high"] = distillation(student, batch, self.high_targets)
        return weighted_sum(terms, stage)

    def _student(self, batch: Batch, *, is_low: bool) -> dict[str, Tensor]:
        tower = self.model.vision_model
        picture_tokens = batch.get("picture_tokens")
        if is_low:
            return {LOW_TARGET: tower.tokens(batch["latents"], picture_tokens)}
        outputs = tower(latents=batch["latents"], picture_tokens=picture_tokens, output_hidden_states=True)
        features = {
            "image_embeds": self.model.visual_projection(outputs.pooler_output),
            "last_hidden_state": outputs.last_hidden_state,
        }
        return features | {name: outputs.hidden_states[layer] for name, layer in self.layers.items()}

    def save(self, folder: str | Path) -> None:
        """Writes the model in float16, and its image processor."""
        save_model(self.model, folder)
