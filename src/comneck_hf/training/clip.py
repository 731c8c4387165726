"""Training of a small CLIP from scratch on classified pictures.

Every class name, put into a random prompt template, is a caption. The image-text contrast runs between each picture
and the captions of all classes, which is the CLIP loss without the false negatives of repeated captions. Training
starts on small pictures (few tokens, many epochs) and ends at the full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from comneck_hf.models.clip_inputs import normalize
from comneck_hf.training.augmentation import center_crop_resize
from comneck_hf.training.data import ImagePack
from comneck_hf.training.zero_shot import ClassPrompts, save_class_prompts, zero_shot_weights


__all__ = [
    "balanced_order",
    "build_clip",
    "build_tokenizer",
    "caption_loss",
    "evaluate_zero_shot",
    "image_embeddings",
    "mix_images",
    "parameter_groups",
    "save_clip",
    "text_embeddings",
]

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def build_tokenizer(texts: Sequence[str], *, vocab_size: int = 1024, max_length: int = 32) -> PreTrainedTokenizerFast:
    """Trains a lower-case byte-level BPE tokenizer on `texts`; any other text falls back to bytes.

    Args:
        texts: prompts to learn the vocabulary from.
        vocab_size: upper bound of the vocabulary, at least 259 (256 bytes and three special tokens).
        max_length: number of tokens to which the tokenizer truncates.

    Returns:
        A tokenizer that writes `<|startoftext|> ... <|endoftext|>` with the ids 0 and 1, and pads with id 2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A {EOS_TOKEN}", special_tokens=[(BOS_TOKEN, 0), (EOS_TOKEN, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """The tiny CLIP (112 px pictures, patches of 14) with random weights."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "patch_size": 14,
        "image_size": 112,
        "projection_dim": 128,
    }
    text = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": tokenizer.model_max_length,
        "vocab_size": len(tokenizer),
        "projection_dim": 128,
        **ids,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=128, **ids)
    return CLIPModel(config)


def image_embeddings(model: CLIPModel, pixel_values: Tensor) -> Tensor:
    """Unit-norm image embeddings `(batch, projection_dim)`; positions are interpolated for other picture sizes."""
    pooled = model.vision_model(pixel_values, interpolate_pos_encoding=True).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_embeddings(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Unit-norm text embeddings `(len(texts), projection_dim)`, with gradients."""
    inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(model.device)
    pooled = model.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def caption_loss(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, *, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Contrasts each class with the others across two random templates.

    A fresh text tower embeds all captions almost equally (cosines above 0.9), and the image tower then learns next to
    nothing for many epochs. So the text tower learns to tell the classes apart before it sees a picture.

    Args:
        model: the CLIP model.
        tokenizer: its tokenizer.
        class_names: names of the classes.
        templates: prompts with one `{}` for the class name each; torch's global random numbers choose among them.

    Returns:
        The cross-entropy, a scalar with gradients in text tower and text projection.
    """
    choice = torch.randint(len(templates), (2 * len(class_names),)).tolist()
    captions = [templates[i].format(name) for i, name in zip(choice, [*class_names] * 2, strict=True)]
    first, second = text_embeddings(model, tokenizer, captions).chunk(2)
    targets = torch.arange(len(class_names), device=first.device)
    return F.cross_entropy(model.logit_scale.exp().detach() * first @ second.T, targets)


def balanced_order(labels: Tensor, count: int, *, generator: torch.Generator, power: float = 0.5) -> Tensor:
    """Indices for one epoch that repeat pictures of rare classes and skip some of frequent ones.

    The number of pictures of a class is proportional to its size to the power of `1 - power`, and every picture is
    taken as often as the others of its class, up to rounding.

    Args:
        labels: int64 `(n,)`.
        count: length of the epoch.
        generator: source of the random rounding and of the order.
        power: 0 keeps the frequencies of the data, 1 makes classes equally frequent.

    Returns:
        int64 `(count,)` shuffled indices into `labels`.
    """
    order = torch.randperm(len(labels), generator=generator)
    weights = labels.bincount().clamp(min=1).double()[labels[order]] ** -power
    ends = weights.cumsum(0) * (count / weights.sum())
    marks = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
    chosen = order[torch.searchsorted(ends, marks).clamp(max=len(labels) - 1)]
    return chosen[torch.randperm(count, generator=generator)]


def mix_images(images: Tensor, targets: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blends every picture with its neighbor in the batch: by CutMix or by Mixup, each for half of the calls.

    Args:
        images: float `(batch, 3, height, width)`; changed in place.
        targets: float `(batch, classes)` probabilities.
        generator: source of the random numbers.

    Returns:
        The mixed pictures and targets.
    """
    height, width = images.shape[2:]
    draws = torch.rand(4, generator=generator).tolist()
    other, other_targets = images.roll(1, 0), targets.roll(1, 0)
    if draws[0] < 0.5:
        box_height, box_width = round(height * math.sqrt(draws[1])), round(width * math.sqrt(draws[1]))
        top, left = int(draws[2] * (height - box_height + 1)), int(draws[3] * (width - box_width + 1))
        window = (..., slice(top, top + box_height), slice(left, left + box_width))
        images[window] = other[window]
        share = box_height * box_width / (height * width)
    else:
        share = 0.5 * draws[1]
        images = images.lerp_(other, share)
    return images, torch.lerp(targets, other_targets, share)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay; biases, norms, embeddings and the logit scale do not; frozen ones are left out."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (decayed if parameter.ndim > 1 and "embedding.weight" not in name else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@torch.no_grad()
def evaluate_zero_shot(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    pack: ImagePack,
    *,
    templates: Sequence[str],
    size: int,
    crop_size: int | None = None,
) -> dict[str, float]:
    """Classifies a pack by the prompts of its classes.

    Args:
        model: the CLIP model; put into the mode it was in afterwards.
        tokenizer: its tokenizer.
        pack: pictures, labels and class names.
        templates: prompts with one `{}` for the class name each.
        size: side of the pictures the vision tower sees.
        crop_size: side of the central crop taken before the resize; by default none.

    Returns:
        `{"top1": ..., "top5": ...}` in percent.
    """
    was_training = model.training
    model.eval()
    weights = zero_shot_weights(model, tokenizer, class_names=pack.class_names, templates=templates)
    hits = torch.zeros(2, dtype=torch.int64)
    num_ranks = min(5, len(pack.class_names))
    for images, labels in zip(pack.images.split(128), pack.labels.split(128), strict=True):
        pixel_values = normalize(center_crop_resize(images, size, crop_size=crop_size))
        ranks = (image_embeddings(model, pixel_values.to(model.device)) @ weights.T).topk(num_ranks).indices.cpu()
        correct = ranks == labels[:, None]
        hits += torch.stack([correct[:, 0].sum(), correct.any(1).sum()])
    model.train(was_training)
    return {
        name: round(100 * count / len(pack), 3) for name, count in zip(("top1", "top5"), hits.tolist(), strict=True)
    }


def save_clip(
    model: CLIPModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    prompts: ClassPrompts,
) -> None:
    """Writes model, tokenizer, image processor and class prompts into `folder`, loadable by the Auto classes.

    The weights are stored as float16, the configuration says float32: `from_pretrained` widens them.

    Args:
        model: the trained model, float32.
        folder: where to write.
        tokenizer: the tokenizer of the model.
        prompts: the classes it was trained on.
    """
    size = model.config.vision_config.image_size
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=halves)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    save_class_prompts(prompts, folder)
