"""The training of the small CLIP: captions first, then a guide network, then the vision tower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from comneck_hf.models.clip_inputs import normalize
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.augmentation import Augmentation, center_crop_resize, random_erasing
from comneck_hf.training.clip import (
    balanced_order,
    build_clip,
    build_tokenizer,
    caption_loss,
    evaluate_zero_shot,
    mix_images,
    parameter_groups,
    save_clip,
    text_embeddings,
)
from comneck_hf.training.data import AugmentedPictures, ImagePack
from comneck_hf.training.guide import GuideNetwork, hint_loss
from comneck_hf.training.objective import Batch, Objective, Terms, weighted_sum
from comneck_hf.training.stages import Stage
from comneck_hf.training.zero_shot import ClassPrompts


__all__ = ["BalancedPictures", "ClipObjective", "clip_stages"]

GUIDE_SIZE = 64  # pixels
GUIDED_LAYER = 4  # hidden state whose patch tokens follow the guide
SHAPES_SHARE = 0.1  # drawn shapes per photograph
MAX_LOGIT_SCALE = math.log(100)  # CLIP's


def clip_stages(
    *, text_steps: int, guide_steps: int, vision_steps: Sequence[int], resolutions: Sequence[int]
) -> tuple[Stage, ...]:
    """Captions, guide network, and the vision tower at growing resolutions.

    Raises:
        ValueError: If there are not as many resolutions as numbers of steps for them.
    """
    if len(vision_steps) != len(resolutions):
        raise ValueError(
            f"`vision_steps` has {len(vision_steps)} entries and `resolutions` {len(resolutions)}; give one per stage."
        )
    source = "CLIP (Radford et al. 2021) on class prompts"
    guide = "locality guidance (Li et al. 2022) and distillation"
    weights = {"cross_entropy": 1.0}
    return (
        Stage("text", source, ("text",), weights, share=text_steps, schedule="cosine"),
        Stage("guide", guide, ("guide",), weights, share=guide_steps, learning_rate=2.0, schedule="cosine"),
        *(
            Stage(
                f"vision {size}",
                f"{source}; {guide}",
                ("vision",),
                {**weights, "hint": 1.0},
                share=steps,
                schedule="cosine",
                size=size,
            )
            for size, steps in zip(resolutions, vision_steps, strict=True)
        ),
    )


class BalancedPictures(AugmentedPictures):
    """Photographs, balanced by class, and some drawn shapes: another choice in every epoch.

    Args:
        photos: the photographs.
        shapes: the drawn shapes, pictures of the same size; their classes come after those of the photographs.
        augmentation: what happens to both.
        seed: seed of the run.
    """

    def __init__(self, photos: ImagePack, shapes: ImagePack, augmentation: Augmentation, *, seed: int = 0) -> None:
        images = torch.cat([photos.images, shapes.images])
        labels = torch.cat([photos.labels, shapes.labels + len(photos.class_names)])
        super().__init__(ImagePack(images, labels, photos.class_names + shapes.class_names), augmentation, seed=seed)
        self.num_photos = len(photos)
        self.num_shapes = min(len(shapes), round(SHAPES_SHARE * len(photos)))
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.num_photos + self.num_shapes

    def set_epoch(self, epoch: int) -> None:
        """Draws the pictures of an epoch."""
        super().set_epoch(epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        labels = self.source.labels
        photos = balanced_order(labels[: self.num_photos], self.num_photos, generator=generator)
        shapes = torch.randperm(len(labels) - self.num_photos, generator=generator)[: self.num_shapes]
        self.order = torch.cat([photos, shapes + self.num_photos])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """As in `AugmentedPictures`, of the pictures drawn for this epoch."""
        return super().__getitems__(self.order[indices].tolist())


class ClipObjective(Objective):
    """A small CLIP from scratch on classified pictures.

    Every class name, put into a random prompt template, is a caption. The contrast runs between each picture
    and the captions of all classes, which is the CLIP loss without the false negatives of repeated captions. The text
    tower is trained first and then frozen: trained along, it embeds classes that the vision tower confuses alike, and
    then they cannot be told apart any more.

    Args:
        class_names: names of all classes.
        templates: prompts with one `{}` for the class name each.
        stages: from `clip_stages`.
        guide_share: share of the guide's probabilities in the targets.
        label_smoothing: probability spread over all classes.
        mix_probability: share of the batches with CutMix or Mixup.
        erase_probability: share of the pictures of the others with an erased part.
        average_decay: decay of the average of the weights, which is what is saved.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        stages: tuple[Stage, ...],
        *,
        guide_share: float = 0.7,
        label_smoothing: float = 0.1,
        mix_probability: float = 0.2,
        erase_probability: float = 0.25,
        average_decay: float = 0.998,
    ) -> None:
        super().__init__()
        self.stages, self.class_names, self.templates = stages, tuple(class_names), tuple(templates)
        self.guide_share, self.label_smoothing = guide_share, label_smoothing
        self.mix_probability, self.erase_probability = mix_probability, erase_probability
        captions = [template.format(name) for name in self.class_names for template in self.templates]
        self.captions, self.tokenizer = captions, build_tokenizer(captions)
        self.clip = build_clip(self.tokenizer)
        self.guide = GuideNetwork(len(self.class_names)).to(memory_format=torch.channels_last)
        self.hint = nn.Linear(self.clip.config.vision_config.hidden_size, self.guide.num_channels)

        def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
            return torch.lerp(old, new, 1 - min(average_decay, (1 + int(count)) / (10 + int(count))))

        self.average = AveragedModel(self.clip, avg_fn=average)
        self._texts: Tensor | None = None

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """`text`, `guide`, and `vision` with its projection, the temperature and the regression of the guide."""
        clip = self.clip
        vision = [*clip.vision_model.parameters(), *clip.visual_projection.parameters(), clip.logit_scale]
        return {
            "text": [*clip.text_model.parameters(), *clip.text_projection.parameters()],
            "guide": list(self.guide.parameters()),
            "vision": [*vision, *self.hint.parameters()],
        }

    def begin(self, stage: Stage) -> None:
        """As in `Objective`; captions are embedded anew."""
        super().begin(stage)
        self._texts = None

    def optimizers(self, args: RunArguments) -> list[torch.optim.Optimizer]:
        """AdamW, with weight decay for the matrices of the vision tower and half of it for the guide."""
        if self.clip.visual_projection.weight.requires_grad:
            groups = parameter_groups(self.clip, weight_decay=args.weight_decay)
            groups.append({"params": list(self.hint.parameters()), "weight_decay": 0.0})
        else:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            decay = args.weight_decay / 2 if self.guide.classifier.weight.requires_grad else 0.0
            groups = [{"params": trained, "weight_decay": decay}]
        return [torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))]

    def forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Terms]:
        """The loss of `pixel_values` `(batch, 3, height, width)` in [0, 1] and `labels`, or of the captions."""
        if "text" in stage.trains:
            loss = caption_loss(self.clip, self.tokenizer, class_names=self.class_names, templates=self.templates)
            return weighted_sum({"cross_entropy": loss}, stage)
        pixels, targets = self._mix(normalize(batch["pixel_values"]), batch["labels"])
        if "guide" in stage.trains:
            logits = self._guide(pixels)[1]
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
            return weighted_sum({"cross_entropy": loss}, stage)
        with torch.no_grad():
            features, guide_logits = self._guide(pixels)
            texts = self._random_captions()
        small = F.interpolate(pixels, (stage.size, stage.size), mode="bilinear", antialias=True)
        output = self.clip.vision_model(small, interpolate_pos_encoding=True, output_hidden_states=True)
        embeddings = F.normalize(self.clip.visual_projection(output.pooler_output), dim=-1)
        logits = self.clip.logit_scale.exp() * embeddings @ texts.T
        hints = self.hint(output.hidden_states[GUIDED_LAYER][:, 1:])
        smooth = torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[1]), self.label_smoothing)
        targets = smooth.lerp(guide_logits.float().softmax(1), self.guide_share)
        terms = {
            "cross_entropy": F.cross_entropy(logits.float(), targets),
            "hint": hint_loss(hints.float(), features.float()),
        }
        return weighted_sum(terms, stage)

    def after_step(self, stage: Stage) -> None:
        """Bounds the temperature and moves the average."""
        if "vision" in stage.trains:
            self.clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            self.average.update_parameters(self.clip)

    @torch.no_grad()
    def evaluate(self, stage: Stage, pack: ImagePack, *, crop_size: int) -> dict[str, float]:
        """Top-1 and top-5 accuracy in percent on a pack: of the guide in its stage, else of the averaged weights."""
        self.eval()
        if "vision" in stage.trains:
            return evaluate_zero_shot(
                self.average.module,
                self.tokenizer,
                pack,
                templates=self.templates,
                size=stage.size,
                crop_size=crop_size,
            )
        hits = torch.zeros(2, dtype=torch.int64)
        for images, labels in zip(pack.images.split(128), pack.labels.split(128), strict=True):
            pixels = normalize(center_crop_resize(images, GUIDE_SIZE, crop_size=crop_size))
            correct = self._guide(pixels.to(self.clip.device))[1].topk(5).indices.cpu() == labels[:, None]
            hits += torch.stack([correct[:, 0].sum(), correct.any(1).sum()])
        return dict(zip(("top1", "top5"), (100 * hits / len(pack)).tolist(), strict=True))

    def save(self, folder: str | Path) -> None:
        """Writes the averaged weights with tokenizer, image processor and class prompts."""
        prompts = ClassPrompts(self.templates, self.class_names)
        save_clip(self.average.module.eval(), folder, tokenizer=self.tokenizer, prompts=prompts)

    def _mix(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """CutMix or Mixup of some batches, erased parts in the others, and the targets `(batch, classes)`."""
        targets, generator = F.one_hot(labels, len(self.class_names)).float(), torch.default_generator
        if torch.rand(()) < self.mix_probability:
            return mix_images(pixels, targets, generator=generator)
        return random_erasing(pixels, probability=self.erase_probability, generator=generator), targets

    def _guide(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        small = F.interpolate(pixels, (GUIDE_SIZE, GUIDE_SIZE), mode="bilinear", antialias=True)
        return self.guide(small.contiguous(memory_format=torch.channels_last))

    def _random_captions(self) -> Tensor:
        """The embedding of a random caption of every class, `(classes, projection_dim)`."""
        if self._texts is None:
            embeddings = text_embeddings(self.clip, self.tokenizer, self.captions)
            self._texts = embeddings.view(len(self.class_names), len(self.templates), -1)
        choice = torch.randint(len(self.templates), (len(self.class_names),), device=self._texts.device)
        return self._texts[torch.arange(len(choice), device=choice.device), choice]
