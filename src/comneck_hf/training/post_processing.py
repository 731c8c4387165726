"""The training of the paper's Post-processing baseline: a U-Net between a frozen codec and the whole CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.unet import PostProcessingUNet
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.objective import Batch, Terms, weighted_sum
from comneck_hf.training.stages import Preset, Stage
from comneck_hf.training.surrogate import SurrogateObjective, clip_features, encode_at


__all__ = ["PostProcessingObjective", "post_processing_stages"]


def post_processing_stages(preset: Preset) -> tuple[Stage, ...]:
    """The stages of a neck, for a U-Net: the paper trains both with the same surrogate loss."""
    return tuple(
        replace(stage, source="ComNeck, sec. 4.1, Post-processing", trains=("unet",)) for stage in preset.neck
    )


class PostProcessingObjective(SurrogateObjective):
    """The surrogate loss of a U-Net behind the decoder.

    Args:
        codec: Frozen, and no part of checkpoints.
        unet: What is trained.
        clip: As in [`SurrogateObjective`]; sees what the U-Net makes of decoded pictures.
        stages: From `post_processing_stages`.
        gains: Of the quantizer where pictures come uncoded, for a codec that decodes all of them alike.
        options: Of [`SurrogateObjective`].
    """

    def __init__(
        self,
        codec: ElicModel,
        unet: PostProcessingUNet,
        clip: CLIPModel,
        stages: tuple[Stage, ...],
        *,
        gains: RandomGains | None = None,
        **options: Any,
    ) -> None:
        super().__init__(clip, stages, **options)
        if gains is not None and codec.needs_gains:
            raise ValueError("This codec decodes by gain, and the U-Net trains behind one rate. Omit `gain_range`.")
        self.unet, self.gains = unet, gains
        self._codec = (codec.requires_grad_(False).eval(),)  # in a tuple, so that it is no submodule

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """`unet`: all of it."""
        return {"unet": list(self.unet.parameters())}

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """The loss of a batch with `pixel_values`, or with `latents` and the targets; as in `ComNeckObjective`."""
        (codec,), (clip,) = self._codec, self._clip
        with torch.no_grad(), torch.autocast(next(codec.parameters()).device.type, enabled=False):
            if "latents" in batch:
                latents = batch["latents"]
            else:
                latents = encode_at(codec, batch["pixel_values"], self.gains, generator=torch.default_generator)
            decoded = (codec.decode(latents) * 255).round() / 255
        names = {**self.targets, "image_embeds": 1.0}
        repeats = self.post_layernorm_repeats
        student = clip_features(clip, self.unet(decoded), names, post_layernorm_repeats=repeats)
        terms, accuracy = self.surrogate_terms(student, batch, stage)
        loss, report = weighted_sum(terms, stage)
        return loss, {**report, **accuracy}

    def save(self, folder: str | Path) -> None:
        """Writes the U-Net, which says for which codec it is."""
        self.unet.save_pretrained(folder)
