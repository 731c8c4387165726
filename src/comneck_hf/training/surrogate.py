"""ComNeck's training: the neck, and in scenarios d2 and d3 the codec, against a frozen CLIP."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.codec_vision import CodecVisionModel
from comneck_hf.models.comneck.image_processing_comneck import ComNeckImageProcessor
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.image_codec import ImageCodec
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.losses import cross_entropy, distillation
from comneck_hf.training.objective import Batch, Objective, Terms, codec_terms, half_precision, weighted_sum
from comneck_hf.training.stages import Stage


__all__ = [
    "ComNeckObjective",
    "SurrogateObjective",
    "check_targets",
    "clip_features",
    "encode_at",
    "parse_targets",
    "save_model",
    "teacher_features",
]


def check_targets(targets: Mapping[str, float]) -> dict[str, int]:
    """The hidden states among the targets of a distillation, by their names: `{"hidden_states[-2]": -2}`.

    Raises:
        ValueError: If a target is none of `image_embeds`, `last_hidden_state` and
            `hidden_states[NUMBER]`, or if there is no target.
    """
    layers = {}
    for name in targets:
        if name in ("image_embeds", "last_hidden_state"):
            continue
        number = name.removeprefix("hidden_states[").removesuffix("]")
        if name != f"hidden_states[{number}]" or not number.lstrip("-").isdigit():
            raise ValueError(
                f"{name!r} is no distillation target; use 'image_embeds', 'last_hidden_state' or 'hidden_states[-2]'."
            )
        layers[name] = int(number)
    if not targets:
        raise ValueError("There is no distillation target; give at least {'image_embeds': 1.0}.")
    return layers


def parse_targets(words: Sequence[str]) -> dict[str, float]:
    """Targets and weights from a command line: `["image_embeds", "hidden_states[-2]=0.5"]`; 1 where none is given."""
    pairs = [word.partition("=") for word in words]
    try:
        targets = {name: float(weight or 1) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(f"A target is NAME or NAME=WEIGHT with a number, got {list(words)}.") from error
    check_targets(targets)
    return targets


def clip_features(
    clip: CLIPModel, pixel_values: Tensor, targets: Mapping[str, float], *, post_layernorm_repeats: int = 1
) -> dict[str, Tensor]:
    """What CLIP says of pictures.

    Args:
        clip: The CLIP.
        pixel_values: `(batch, 3, height, width)` in [0, 1], at any size.
        targets: Names as in `check_targets`.
        post_layernorm_repeats: As in `LatentVisionConfig`: the released code does twice to the teacher, too.
    """
    layers = check_targets(targets)
    pixels = clip_inputs(pixel_values.to(clip.device, clip.dtype), clip.config.vision_config.image_size)
    outputs = clip.vision_model(pixels, output_hidden_states=bool(layers))
    features = {name: outputs.hidden_states[layer] for name, layer in layers.items()}
    if "last_hidden_state" in targets:
        features["last_hidden_state"] = outputs.last_hidden_state
    if "image_embeds" in targets:
        pooled = outputs.pooler_output
        for _ in range(post_layernorm_repeats - 1):
            pooled = clip.vision_model.post_layernorm(pooled)
        features["image_embeds"] = clip.visual_projection(pooled)
    return features


@torch.no_grad()
def teacher_features(
    clip: CLIPModel, pixel_values: Tensor, targets: Mapping[str, float], *, post_layernorm_repeats: int = 1
) -> dict[str, Tensor]:
    """`clip_features` of uncoded pictures, without gradients."""
    return clip_features(clip, pixel_values, targets, post_layernorm_repeats=post_layernorm_repeats)


class SurrogateObjective(Objective):
    """The surrogate loss against a frozen CLIP: distillation and zero-shot cross-entropy.

    Args:
        clip: The teacher. Frozen, and no part of checkpoints.
        stages: Which terms count when.
        zero_shot_weights: Unit-norm text embeddings, `(classes, projection_dim)`; `None` where no stage has a
            cross-entropy.
        targets: What is distilled, with weights.
        normalize_logits: As in `Preset`.
        post_layernorm_repeats: The student's, which the teacher has to follow.
    """

    def __init__(
        self,
        clip: CLIPModel,
        stages: tuple[Stage, ...],
        *,
        zero_shot_weights: Tensor | None = None,
        targets: Mapping[str, float] | None = None,
        normalize_logits: bool = True,
        post_layernorm_repeats: int = 1,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.targets = dict(targets or {"image_embeds": 1.0})
        self.layers = check_targets(self.targets)
        self.post_layernorm_repeats = post_layernorm_repeats
        self.logit_scale = clip.logit_scale.exp().item() if normalize_logits else None
        self._clip = (clip.requires_grad_(False).eval(),)  # in a tuple, so that it is no submodule
        self.zero_shot_weights = zero_shot_weights
        if zero_shot_weights is None and any("cross_entropy" in stage.weights for stage in stages):
            raise ValueError(
                "A stage has a cross-entropy, which needs classes. Use data with a column 'label', or choose stages "
                "without it."
            )

    def teach(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The teacher's features of pictures by the names of the targets."""
        repeats = self.post_layernorm_repeats
        return teacher_features(self._clip[0], pixel_values, self.targets, post_layernorm_repeats=repeats)

    def surrogate_terms(self, student: dict[str, Tensor], batch: Batch, stage: Stage) -> tuple[Terms, Terms]:
        """The terms that the stage weights, and the accuracy of the batch.

        Args:
            student: Its features by the names of the targets.
            batch: `pixel_values`, or the teacher's features by the names of the targets; `labels` where needed.
            stage: The stage.
        """
        terms: Terms = {}
        accuracy: Terms = {}
        if "distillation" in stage.weights:
            ready = all(name in batch for name in self.targets)
            teacher = batch if ready else self.teach(batch["pixel_values"])
            terms["distillation"] = distillation(student, teacher, self.targets)
        if "cross_entropy" in stage.weights:
            terms["cross_entropy"], accuracy["accuracy"] = cross_entropy(
                student["image_embeds"], batch["labels"], self.zero_shot_weights, logit_scale=self.logit_scale
            )
        return terms, accuracy


class ComNeckObjective(SurrogateObjective):
    """The surrogate loss of the neck, and rate and distortion where the codec trains with it.

    Args:
        model: Codec, neck and tower.
        clip: As in [`SurrogateObjective`]; the tower comes from it.
        stages: From `comneck_stages`.
        calibration_pictures: As in `CodecObjective`; needed where the codec trains.
        gains: Of the quantizer where pictures come uncoded and the codec does not train.
        options: Of [`SurrogateObjective`].

    Raises:
        ValueError: If there are gains and the codec trains, which it does at its own rate.
    """

    def __init__(
        self,
        model: ComNeckModel,
        clip: CLIPModel,
        stages: tuple[Stage, ...],
        *,
        calibration_pictures: Tensor | None = None,
        gains: RandomGains | None = None,
        **options: Any,
    ) -> None:
        super().__init__(clip, stages, **options)
        if gains is not None and _trains_codec(stages):
            raise ValueError(
                "The codec trains at its own rate. Use random gains where it is frozen, in scenario 'd1'."
            )
        self.model, self.gains = model, gains
        self._calibration_pictures = calibration_pictures

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """`neck`; `codec`: all of it; `encoder`: the codec without g_s."""
        codec = self.model.codec
        encoder = [] if codec is None else [p for name, p in codec.named_parameters() if not name.startswith("g_s.")]
        return {
            "neck": list(self.model.vision_model.neck.parameters()),
            "codec": [] if codec is None else list(codec.parameters()),
            "encoder": encoder,
        }

    def begin(self, stage: Stage) -> None:
        """As in `Objective`; a codec that was trained in an earlier stage gets integer networks of its new weights."""
        super().begin(stage)
        if _trains_codec(self.stages[: self.stages.index(stage)]) and not _trains_codec((stage,)):
            self.model.codec.calibrate(self._calibration_pictures.to(self.model.device))

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """The loss of a batch.

        Args:
            batch: `pixel_values`, or what frozen models said of them: `latents` and the targets by name. `labels`
                where the stage has a cross-entropy.
            stage: The stage.
        """
        terms: Terms = {}
        if _trains_codec((stage,)):
            latents, terms = codec_terms(self.model.codec, batch["pixel_values"], stage)
        elif "latents" in batch:
            latents = batch["latents"]
        else:
            codec, generator = self.model.codec, torch.default_generator
            latents = encode_at(codec, batch["pixel_values"], self.gains, generator=generator)
        surrogate, accuracy = self.surrogate_terms(self._student(latents), batch, stage)
        terms |= surrogate
        loss, report = weighted_sum(terms, stage)
        if "rate" in terms:
            loss = loss + self.model.codec.aux_loss()
        return loss, {**report, **accuracy}

    def _student(self, latents: Tensor) -> dict[str, Tensor]:
        outputs = self.model(latents=latents, output_hidden_states=bool(self.layers))
        features = {"image_embeds": outputs.image_embeds, "last_hidden_state": outputs.last_hidden_state}
        return features | {name: outputs.hidden_states[layer] for name, layer in self.layers.items()}

    def calibrate(self) -> ComNeckModel:
        """The model with a copy of its codec, ready to code with the present weights."""
        shared = (self.model.vision_model, self.model.visual_projection)
        model = copy.deepcopy(self.model, {id(part): part for part in shared}).eval()
        if _trains_codec(self.stages):
            model.codec.calibrate(self._calibration_pictures.to(model.device))
        return model

    def save(self, folder: str | Path) -> None:
        """Writes the model in float16, with integer networks of its present weights, and its image processor."""
        save_model(self.calibrate(), folder)


def save_model(model: CodecVisionModel, folder: str | Path) -> None:
    """Writes a model in float16, and the image processor for its pictures."""
    model.save_pretrained(folder, state_dict=half_precision(model))
    ComNeckImageProcessor.for_size(model.config.image_size).save_pretrained(folder)


def encode_at(
    codec: ImageCodec, pixel_values: Tensor, gains: RandomGains | None, *, generator: torch.Generator
) -> Tensor:
    """Latents of pictures at random gains, or at the codec's own rate where `gains` is `None`.

    Under autocast, too, they are those of the codec's own type, which are what a server will read.
    """
    options: dict[str, Any] = {}
    if gains is not None:
        octaves, maps = gains.draw(len(pixel_values), generator=generator)
        options = {"gain": octaves, "gain_maps": maps}
    with torch.autocast(pixel_values.device.type, enabled=False):
        return codec.encode(pixel_values, **options).latents


def _trains_codec(stages: Sequence[Stage]) -> bool:
    return any({"codec", "encoder"} & set(stage.trains) for stage in stages)
