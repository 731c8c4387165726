"""The training loop of the small CLIP: settings, one epoch, validation, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel

from comneck_hf.training.clip import (
    WeightAverage,
    balanced_order,
    build_clip,
    build_tokenizer,
    evaluate_zero_shot,
    image_embeddings,
    mix_images,
    parameter_groups,
    separate_captions,
    text_embeddings,
)
from comneck_hf.training.data import ImagePack, color_jitter, normalize, random_erasing, random_resized_crops


__all__ = ["ClipTrainer", "ClipTrainingArguments"]

WARM_UP = 0.04  # share of the compute
SHAPES_SHARE = 0.1  # drawn shapes per photograph
MAX_LOGIT_SCALE = math.log(100)  # CLIP's


@dataclass
class ClipTrainingArguments:
    """Settings of one training of the small CLIP."""

    resolutions: list[int] = field(default_factory=lambda: [56, 84, 112], metadata={"help": "picture size per stage"})
    epochs: list[int] = field(default_factory=lambda: [13, 11, 3], metadata={"help": "epochs per stage"})
    text_steps: int = field(default=100, metadata={"help": "steps of the text tower before the first epoch"})
    text_every: int = field(default=8, metadata={"help": "steps between two updates of the text tower"})
    train_text: bool = field(default=True, metadata={"help": "train the text tower along with the vision tower"})
    vision: str | None = field(default=None, metadata={"help": "CLIP whose vision tower to start from"})
    batch_size: int = field(default=64, metadata={"help": "pictures per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=0.1, metadata={"help": "weight decay of the matrices"})
    label_smoothing: float = field(default=0.1, metadata={"help": "probability spread over all captions"})
    mix_probability: float = field(default=0.2, metadata={"help": "share of the steps with CutMix or Mixup"})
    erase_probability: float = field(default=0.25, metadata={"help": "share of the others with an erased part"})
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})
    average_decay: float = field(default=0.998, metadata={"help": "decay of the average of the weights"})
    evaluate_every: int = field(default=3, metadata={"help": "epochs between validations"})
    validation_crop: int = field(default=128, metadata={"help": "side of the central crop that is validated"})
    mixed_precision: str = field(default="no", metadata={"help": "no or bf16", "choices": ["no", "bf16"]})
    device: str = field(default="cpu", metadata={"help": "torch device"})
    seed: int = field(default=0, metadata={"help": "seed of weights, order and augmentation"})

    def __post_init__(self) -> None:
        if len(self.resolutions) != len(self.epochs):
            raise ValueError(
                f"resolutions has {len(self.resolutions)} entries and epochs {len(self.epochs)}; give one per stage"
            )


class ClipTrainer:
    """Trains a small CLIP on photographs and drawn shapes.

    Args:
        args: settings.
        train: the training splits of the photographs and the shapes, pictures of one size.
        validation: their validation splits.
        templates: prompts with one `{}` for the class name each.
    """

    def __init__(
        self,
        args: ClipTrainingArguments,
        *,
        train: tuple[ImagePack, ImagePack],
        validation: tuple[ImagePack, ImagePack],
        templates: Sequence[str],
    ) -> None:
        photos, shapes = train
        torch.manual_seed(args.seed)
        self.args, self.templates, self.validation = args, tuple(templates), validation
        self.class_names = photos.class_names + shapes.class_names
        self.images = torch.cat([photos.images, shapes.images])
        self.labels = torch.cat([photos.labels, shapes.labels + len(photos.class_names)])
        self.num_photos = len(photos)
        self.tokenizer = build_tokenizer([t.format(name) for name in self.class_names for t in self.templates])
        self.model = build_clip(self.tokenizer).to(args.device)
        if args.vision is not None:
            start = CLIPModel.from_pretrained(args.vision)
            self.model.vision_model.load_state_dict(start.vision_model.state_dict())
            self.model.visual_projection.load_state_dict(start.visual_projection.state_dict())
        for part in (self.model.text_model, self.model.text_projection):
            part.requires_grad_(args.train_text)
        groups = parameter_groups(self.model, weight_decay=args.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
        self.average = WeightAverage(self.model, decay=args.average_decay)
        self.history: list[dict] = []
        stages = zip(args.resolutions, args.epochs, strict=True)
        self.sizes = [size for size, epochs in stages for _ in range(epochs)]

    def train(self, output: Path, *, checkpoint: str | Path | None = None) -> list[dict]:
        """Runs all epochs, or those that a checkpoint has left, and loads the averaged weights into `model`.

        Args:
            output: folder of the checkpoint (`checkpoint.pt`, replaced after every epoch).
            checkpoint: a file to go on from; the run then equals an uninterrupted one.

        Returns:
            One entry per epoch: size, loss, seconds and, where it was validated, the accuracies.
        """
        output.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        else:
            self.train_text()
        for epoch in range(len(self.history), len(self.sizes)):
            entry = self.train_epoch(epoch)
            if (epoch + 1) % self.args.evaluate_every == 0 or epoch + 1 == len(self.sizes):
                entry |= self.evaluate(entry["size"])
            self.history.append(entry)
            tqdm.write(json.dumps(entry))
            self.save_checkpoint(output / "checkpoint.pt")
        self.model.load_state_dict(self.average.weights)
        self.model.eval()
        return self.history

    def train_text(self) -> None:
        """Separates the captions of the classes and starts the average from there."""
        separate_captions(
            self.model,
            self.tokenizer,
            class_names=self.class_names,
            templates=self.templates,
            steps=self.args.text_steps,
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        self.average = WeightAverage(self.model, decay=self.args.average_decay)

    def train_epoch(self, epoch: int) -> dict:
        """Trains one epoch; all its random numbers come from the seed and the number of the epoch."""
        size, batch_size, total, start = self.sizes[epoch], self.args.batch_size, 0.0, time.perf_counter()
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        order = self._epoch_order(generator)
        batches = [batch for batch in order.split(batch_size) if len(batch) == batch_size]
        if not batches:
            raise ValueError(
                f"an epoch has {len(order)} pictures, less than batch_size {batch_size}; lower batch_size"
            )
        self.model.train()
        texts = torch.empty(0)
        for step, index in enumerate(tqdm(batches, desc=f"epoch {epoch} at {size} px", mininterval=5)):
            rate = self.args.learning_rate * self._schedule(epoch, step / len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            texts = self.caption_embeddings(generator) if step % self.args.text_every == 0 else texts.detach()
            loss = self.loss(index, size, texts=texts, generator=generator)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            self.average.update(self.model)
            total += loss.item()
        seconds = time.perf_counter() - start
        return {
            "epoch": epoch,
            "size": size,
            "loss": round(total / len(batches), 4),
            "seconds": round(seconds, 1),
            "images_per_second": round(len(batches) * batch_size / seconds, 1),
        }

    def caption_embeddings(self, generator: torch.Generator) -> Tensor:
        """Unit-norm embeddings `(classes, projection_dim)`, with gradients, of one random caption per class."""
        choice = torch.randint(len(self.templates), (len(self.class_names),), generator=generator).tolist()
        captions = [self.templates[i].format(name) for i, name in zip(choice, self.class_names, strict=True)]
        with self._autocast():
            return text_embeddings(self.model, self.tokenizer, captions)

    def loss(self, index: Tensor, size: int, *, texts: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of augmented pictures over the captions of all classes.

        Args:
            index: int64 `(batch,)`, the training pictures to take.
            size: side in pixels the vision tower sees.
            texts: unit-norm `(classes, projection_dim)`.
            generator: source of the augmentation.

        Returns:
            The mean over the batch, a scalar with gradients.
        """
        scale = (self.args.smallest_crop, 1.0)
        pixels = random_resized_crops(self.images[index], size, generator=generator, scale=scale)
        pixels = normalize(color_jitter(pixels, strength=0.3, generator=generator))
        targets = F.one_hot(self.labels[index], len(self.class_names)).float()
        if torch.rand((), generator=generator) < self.args.mix_probability:
            pixels, targets = mix_images(pixels, targets, generator=generator)
        else:
            pixels = random_erasing(pixels, probability=self.args.erase_probability, generator=generator)
        with self._autocast():
            cosines = image_embeddings(self.model, pixels.to(self.model.device)) @ texts.T
            logits = self.model.logit_scale.exp() * cosines
        return F.cross_entropy(logits.float(), targets.to(logits.device), label_smoothing=self.args.label_smoothing)

    def evaluate(self, size: int) -> dict[str, dict[str, float]]:
        """Accuracies of the averaged weights on both validation splits, at pictures of `size` pixels."""
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        results = {}
        for name, pack in zip(("photos", "shapes"), self.validation, strict=True):
            results[name] = evaluate_zero_shot(
                self.model,
                self.tokenizer,
                pack,
                templates=self.templates,
                size=size,
                crop_size=self.args.validation_crop,
            )
        self.model.load_state_dict(weights)
        return results

    def save_checkpoint(self, path: Path) -> None:
        """Writes weights, optimizer, average and history; an interruption leaves the old file."""
        state = {
            "arguments": asdict(self.args),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "history": self.history,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Restores the state that `save_checkpoint` wrote."""
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.history = state["history"]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.args.mixed_precision == "bf16")

    def _epoch_order(self, generator: torch.Generator) -> Tensor:
        photos = balanced_order(self.labels[: self.num_photos], generator=generator)
        num_shapes = len(self.labels) - self.num_photos
        shapes = torch.randperm(num_shapes, generator=generator)[: round(SHAPES_SHARE * self.num_photos)]
        order = torch.cat([photos, shapes + self.num_photos])
        return order[torch.randperm(len(order), generator=generator)]

    def _schedule(self, epoch: int, fraction: float) -> float:
        """Warm-up and cosine over the share of the compute (tokens) that is done, as a factor of the peak rate."""
        patch = self.model.config.vision_config.patch_size
        costs = [(size // patch) ** 2 + 1 for size in self.sizes]
        progress = (sum(costs[:epoch]) + fraction * costs[epoch]) / sum(costs)
        if progress < WARM_UP:
            return max(progress / WARM_UP, 0.01)
        return max(0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)), 0.01)
