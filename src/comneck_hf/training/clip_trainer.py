"""The training of the small CLIP: captions, guide network, vision tower; checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from comneck_hf.training.clip import (
    WeightAverage,
    balanced_order,
    build_clip,
    build_tokenizer,
    evaluate_zero_shot,
    mix_images,
    parameter_groups,
    separate_captions,
    text_embeddings,
)
from comneck_hf.training.data import (
    ImagePack,
    center_crop_resize,
    color_jitter,
    normalize,
    random_erasing,
    random_resized_crops,
)
from comneck_hf.training.guide import GuideNetwork, hint_loss


__all__ = ["ClipTrainer", "ClipTrainingArguments"]

WARM_UP = 0.04  # share of the compute
GUIDE_SIZE = 64  # pixels
GUIDED_LAYER = 4  # hidden state whose patch tokens follow the guide
SHAPES_SHARE = 0.1  # drawn shapes per photograph
MAX_LOGIT_SCALE = math.log(100)  # CLIP's


@dataclass
class ClipTrainingArguments:
    """Settings of one training of the small CLIP."""

    resolutions: list[int] = field(default_factory=lambda: [56, 84, 112], metadata={"help": "picture size per stage"})
    epochs: list[int] = field(default_factory=lambda: [13, 11, 3], metadata={"help": "epochs per stage"})
    text_steps: int = field(default=200, metadata={"help": "steps of the text tower, before all else"})
    guide_epochs: int = field(default=20, metadata={"help": "epochs of the guide network, before the first epoch"})
    guide_learning_rate: float = field(default=2e-3, metadata={"help": "peak learning rate of the guide network"})
    guide_share: float = field(default=0.7, metadata={"help": "share of the guide's probabilities in the targets"})
    hint_weight: float = field(default=1.0, metadata={"help": "weight of the regression of the guide's features"})
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
        for part in (self.model.text_model, self.model.text_projection):
            part.requires_grad_(False)
        self.guide = GuideNetwork(len(self.class_names)).to(args.device, memory_format=torch.channels_last).eval()
        self.hint = nn.Linear(self.model.config.vision_config.hidden_size, self.guide.num_channels).to(args.device)
        groups = parameter_groups(self.model, weight_decay=args.weight_decay)
        groups.append({"params": list(self.hint.parameters()), "weight_decay": 0.0})
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
            One entry per epoch of the guide (`guide_epoch`) and of the vision tower (`epoch`): size, loss, seconds
            and, where it was validated, the accuracies.
        """
        output.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        else:
            self.train_text()
            self.history = self.train_guide()
            self.save_checkpoint(output / "checkpoint.pt")
        for epoch in range(sum("epoch" in entry for entry in self.history), len(self.sizes)):
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
        """Separates the captions of the classes and starts the average from there.

        The text tower stays frozen afterwards: trained along, it embeds classes that the vision tower confuses alike,
        and then they cannot be told apart any more.
        """
        separate_captions(
            self.model,
            self.tokenizer,
            class_names=self.class_names,
            templates=self.templates,
            steps=self.args.text_steps,
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        self.average = WeightAverage(self.model, decay=self.args.average_decay)

    def train_guide(self) -> list[dict]:
        """Trains the guide network on the labels and freezes it. Returns one entry per epoch."""
        args, history = self.args, []
        optimizer = torch.optim.AdamW(
            self.guide.parameters(), lr=args.guide_learning_rate, weight_decay=0.05, fused=True
        )
        self.guide.requires_grad_(True)
        for epoch in range(args.guide_epochs):
            self.guide.train()
            start, total = time.perf_counter(), 0.0
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + 1_000_000 + epoch)
            batches = self._batches(generator)
            for step, index in enumerate(tqdm(batches, desc=f"guide epoch {epoch}", mininterval=5)):
                progress = (epoch + step / len(batches)) / args.guide_epochs
                optimizer.param_groups[0]["lr"] = args.guide_learning_rate * _warm_up_cosine(progress, 0.1)
                pixels, targets = self.augment(index, GUIDE_SIZE, generator=generator)
                logits = self.guide(pixels.contiguous(memory_format=torch.channels_last))[1]
                loss = F.cross_entropy(logits, targets, label_smoothing=args.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            entry = {"guide_epoch": epoch, "size": GUIDE_SIZE, "loss": round(total / len(batches), 4)}
            entry["seconds"] = round(time.perf_counter() - start, 1)
            self.guide.eval()
            if (epoch + 1) % args.evaluate_every == 0 or epoch + 1 == args.guide_epochs:
                entry["photos"] = {"top1": self.evaluate_guide()}
            history.append(entry)
            tqdm.write(json.dumps(entry))
        self.guide.requires_grad_(False)
        return history

    def train_epoch(self, epoch: int) -> dict:
        """Trains one epoch; all its random numbers come from the seed and the number of the epoch."""
        size, total, start = self.sizes[epoch], 0.0, time.perf_counter()
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        batches = self._batches(generator)
        self.model.train()
        captions = self.caption_embeddings()
        classes = torch.arange(len(self.class_names))
        for step, index in enumerate(tqdm(batches, desc=f"epoch {epoch} at {size} px", mininterval=5)):
            rate = self.args.learning_rate * self._schedule(epoch, step / len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            templates = torch.randint(len(self.templates), classes.shape, generator=generator)
            loss = self.loss(index, size, texts=captions[classes, templates], generator=generator)
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
            "images_per_second": round(len(batches) * self.args.batch_size / seconds, 1),
        }

    @torch.no_grad()
    def caption_embeddings(self) -> Tensor:
        """Unit-norm embeddings `(classes, templates, projection_dim)` of all captions."""
        captions = [template.format(name) for name in self.class_names for template in self.templates]
        embeddings = text_embeddings(self.model, self.tokenizer, captions)
        return embeddings.view(len(self.class_names), len(self.templates), -1)

    def augment(self, index: Tensor, size: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random views of training pictures.

        Args:
            index: int64 `(batch,)`, the training pictures to take.
            size: side of the views in pixels.
            generator: source of the random numbers.

        Returns:
            Normalized pictures `(batch, 3, size, size)` and targets `(batch, classes)`, on the device of the run.
        """
        args = self.args
        pixels = random_resized_crops(self.images[index], size, generator=generator, scale=(args.smallest_crop, 1.0))
        pixels = normalize(color_jitter(pixels, strength=0.3, generator=generator))
        targets = F.one_hot(self.labels[index], len(self.class_names)).float()
        if torch.rand((), generator=generator) < args.mix_probability:
            pixels, targets = mix_images(pixels, targets, generator=generator)
        else:
            pixels = random_erasing(pixels, probability=args.erase_probability, generator=generator)
        return pixels.to(args.device), targets.to(args.device)

    def loss(self, index: Tensor, size: int, *, texts: Tensor, generator: torch.Generator) -> Tensor:
        """Cross entropy of augmented pictures over the captions of all classes, and the regression of the guide.

        Args:
            index: int64 `(batch,)`, the training pictures to take.
            size: side in pixels the vision tower sees.
            texts: unit-norm `(classes, projection_dim)`.
            generator: source of the augmentation.

        Returns:
            The mean over the batch, a scalar with gradients.
        """
        args = self.args
        pixels, targets = self.augment(index, size, generator=generator)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            features, guide_logits = self._guide(pixels)
            output = self.model.vision_model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
            embeddings = F.normalize(self.model.visual_projection(output.pooler_output), dim=-1)
            logits = self.model.logit_scale.exp() * embeddings @ texts.T
            hints = self.hint(output.hidden_states[GUIDED_LAYER][:, 1:])
        smooth = torch.lerp(targets, torch.full_like(targets, 1 / targets.shape[1]), args.label_smoothing)
        targets = smooth.lerp(guide_logits.float().softmax(1), args.guide_share)
        return F.cross_entropy(logits.float(), targets) + args.hint_weight * hint_loss(hints.float(), features.float())

    @torch.no_grad()
    def evaluate_guide(self) -> float:
        """Top-1 accuracy in percent of the guide network on the validation photographs."""
        photos, hits = self.validation[0], 0
        for images, labels in zip(photos.images.split(128), photos.labels.split(128), strict=True):
            pixels = normalize(center_crop_resize(images, GUIDE_SIZE, crop_size=self.args.validation_crop))
            hits += (self._guide(pixels.to(self.args.device))[1].argmax(1).cpu() == labels).sum().item()
        return round(100 * hits / len(photos), 3)

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
            "guide": self.guide.state_dict(),
            "hint": self.hint.state_dict(),
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
        self.guide.load_state_dict(state["guide"])
        self.hint.load_state_dict(state["hint"])
        self.history = state["history"]

    @torch.no_grad()
    def _guide(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.shape[-1] != GUIDE_SIZE:
            pixels = F.interpolate(pixels, (GUIDE_SIZE, GUIDE_SIZE), mode="bilinear", antialias=True)
        return self.guide(pixels.contiguous(memory_format=torch.channels_last))

    def _batches(self, generator: torch.Generator) -> list[Tensor]:
        photos = balanced_order(self.labels[: self.num_photos], generator=generator)
        num_shapes = len(self.labels) - self.num_photos
        shapes = torch.randperm(num_shapes, generator=generator)[: round(SHAPES_SHARE * self.num_photos)]
        order = torch.cat([photos, shapes + self.num_photos])
        order, size = order[torch.randperm(len(order), generator=generator)], self.args.batch_size
        if len(order) < size:
            raise ValueError(f"an epoch has {len(order)} pictures, less than batch_size {size}; lower batch_size")
        return [batch for batch in order.split(size) if len(batch) == size]

    def _schedule(self, epoch: int, fraction: float) -> float:
        """Warm-up and cosine over the share of the compute (tokens) that is done, as a factor of the peak rate."""
        patch = self.model.config.vision_config.patch_size
        costs = [(size // patch) ** 2 + 1 for size in self.sizes]
        progress = (sum(costs[:epoch]) + fraction * costs[epoch]) / sum(costs)
        return _warm_up_cosine(progress, WARM_UP)


def _warm_up_cosine(progress: float, warm_up: float) -> float:
    """Linear warm-up to 1 and a half cosine down, at least 0.01; `progress` and `warm_up` are shares of the run."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    return max(0.5 + 0.5 * math.cos(math.pi * (progress - warm_up) / (1 - warm_up)), 0.01)
