"""Conversations about pictures: rows of any data set, questions about the tiny packs, and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import ImagePack, picture_tensor


__all__ = [
    "NAMING_QUESTIONS",
    "ConversationCollator",
    "ConversationRows",
    "PictureQuestions",
    "QuestionPack",
    "conversation",
    "load_questions",
    "naming_pack",
]

NAMING_QUESTIONS = (
    "what is in the picture?",
    "what is in the image?",
    "what does the picture show?",
    "what is this?",
    "name the object in the picture.",
)
IGNORED_LABEL = -100
_SEED_STRIDE = 1_000_003
_ROLES = {"human": "user", "gpt": "assistant"}


def conversation(turns: Sequence[tuple[str, str | None]], *, has_image: bool = True) -> list[dict[str, Any]]:
    """Messages of a chat template from questions and answers; the picture comes first.

    Args:
        turns: Questions and answers; the last answer may be `None`, for the model to give.
        has_image: Whether the first question starts with an image.
    """
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if has_image and not messages:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


class ConversationRows(Dataset):
    """Rows of a data set as conversations.

    Args:
        rows: With `messages` (a chat template's) or `conversations` (LLaVA's: `from` and `value`, `<image>` in the
            text), and `images` (a list) or `image` where there are pictures.

    Raises:
        ValueError: If there is no column with the conversation.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.column = next((name for name in ("messages", "conversations") if name in rows.column_names), None)
        if self.column is None:
            raise ValueError(
                f"The data set needs a column 'messages' or 'conversations', it has {rows.column_names}. Rename it "
                "with `rename_column`."
            )
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
        turns = row[self.column]
        if self.column == "conversations":
            turns = [_llava_message(turn) for turn in turns]
        return {"messages": turns, "images": [image.convert("RGB") for image in images]}


@dataclass(frozen=True)
class QuestionPack:
    """Pictures in memory with questions and answers.

    Attributes:
        images: uint8 `(n, 3, height, width)`.
        turns: Questions and answers of each picture.
        augmentation: What happens to the pictures in training.
        max_turns: Questions drawn for a picture at a time.
    """

    images: torch.Tensor
    turns: Sequence[Sequence[tuple[str, str]]]
    augmentation: Augmentation | None = None
    max_turns: int = 1


def load_questions(path: str | Path, split: str, *, size: int, max_turns: int = 4) -> QuestionPack:
    """A data set like easy-VQA: `image`, `questions` and `answers` (lists of equal length).

    Args:
        path: Anything `datasets.load_dataset` loads.
        split: The split.
        size: Pictures are resized to `size` x `size` (bicubic).
        max_turns: As in `QuestionPack`.
    """
    rows = datasets.load_dataset(str(path), split=split)
    answers = rows.features["answers"].feature
    names = answers.names if isinstance(answers, datasets.ClassLabel) else None
    images, turns = [], []
    for row in rows:
        images.append(picture_tensor(row["image"].resize((size, size), 3)))
        words = [names[answer] if names else answer for answer in row["answers"]]
        turns.append(list(zip(row["questions"], words, strict=True)))
    return QuestionPack(torch.stack(images), turns, max_turns=max_turns)


def naming_pack(pack: ImagePack, *, augmentation: Augmentation | None = None) -> QuestionPack:
    """Asks for the class of every picture."""
    names = [pack.class_names[label] for label in pack.labels.tolist()]
    turns = [[(question, name) for question in NAMING_QUESTIONS] for name in names]
    return QuestionPack(pack.images, turns, augmentation)


class PictureQuestions(Dataset):
    """Packs of questions as conversations; pictures, turns and wording differ from epoch to epoch.

    Args:
        packs: One after the other.
        seed: Of the run. A row depends on the seed, the epoch and its number alone.
    """

    def __init__(self, packs: Sequence[QuestionPack], *, seed: int = 0) -> None:
        self.packs, self.seed, self.epoch = list(packs), seed, 0
        self.places = [(pack, index) for pack in self.packs for index in range(len(pack.images))]

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Other random numbers for every epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        pack, place = self.places[index]
        seed = ((self.seed * _SEED_STRIDE + self.epoch) * _SEED_STRIDE + index) % 2**63
        generator = torch.Generator().manual_seed(seed)
        image, turns = pack.images[place], pack.turns[place]
        if pack.augmentation is not None:
            image = (pack.augmentation(image[None], generator=generator)[0] * 255).round().to(torch.uint8)
        order = _spread_over_answers(turns, generator)[: pack.max_turns]
        variants = torch.randint(2, (len(order), 3), generator=generator).bool().tolist()
        spoken = [
            (_reword(turns[turn][0], *variant), turns[turn][1]) for turn, variant in zip(order, variants, strict=True)
        ]
        return {"messages": conversation(spoken), "images": [image]}

    def texts(self) -> Iterator[str]:
        """Every question and answer in every wording, for a tokenizer."""
        for turns in {tuple(turns) for pack in self.packs for turns in map(tuple, pack.turns)}:
            for question, answer in turns:
                for variant in range(8):
                    yield f"{_reword(question, bool(variant & 1), bool(variant & 2), bool(variant & 4))} {answer}"


class ConversationCollator:
    """Batches of conversations: tokens, pictures, and labels where the assistant speaks.

    Args:
        processor: Its chat template marks the assistant's words with `{% generation %}`, as those of LLaVA do.

    Raises:
        ValueError: If the template does not.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        if "{% generation %}" not in (processor.chat_template or ""):
            raise ValueError(
                "The processor's chat template does not mark the assistant's words. Put them between "
                "`{% generation %}` and `{% endgeneration %}`."
            )
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Right-padded `input_ids`, `attention_mask`, `labels`, and `pixel_values` where there are pictures."""
        batch = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={
                "images": [row["images"] for row in rows],
                "padding": True,
                "padding_side": "right",
            },
        )
        mask = torch.as_tensor(batch.pop("assistant_masks")).bool()
        if not mask.any(1).all():
            raise ValueError("A conversation has no word of the assistant. Leave such rows out of the data.")
        return {**batch, "labels": batch["input_ids"].masked_fill(~mask, IGNORED_LABEL)}


def _spread_over_answers(turns: Sequence[tuple[str, str]], generator: torch.Generator) -> list[int]:
    """Random order of the turns in which every kind comes once before any comes again.

    A kind is an answer, about something that is in the picture or not: the question names what another question has
    for an answer. Most of what could be asked about is not in a picture; drawn evenly, "is there a red shape?" and
    "is there no red shape?" teach that nothing is there.
    """
    present = {answer for _, answer in turns} - {"yes", "no"}
    rounds: dict[tuple[str, bool], int] = {}
    keys = []
    for turn in torch.randperm(len(turns), generator=generator).tolist():
        question, answer = turns[turn]
        kind = answer, not present.isdisjoint(question.rstrip("?.").split())
        rounds[kind] = rounds.get(kind, -1) + 1
        keys.append((rounds[kind], len(keys), turn))
    return [turn for _, _, turn in sorted(keys)]


def _llava_message(turn: dict[str, str]) -> dict[str, Any]:
    if turn["from"] not in _ROLES:
        raise ValueError(f"A turn is from {turn['from']!r}; LLaVA's format knows {sorted(_ROLES)}.")
    parts: list[dict[str, str]] = [{"type": "image"}] * turn["value"].count("<image>")
    text = turn["value"].replace("<image>", "").strip()
    return {"role": _ROLES[turn["from"]], "content": [*parts, {"type": "text", "text": text}]}


def _reword(question: str, british: bool, capital: bool, bare: bool) -> str:
    """The same question in another spelling, so that a small model does not depend on one."""
    question = question.replace("color", "colour") if british else question
    question = question[0].upper() + question[1:] if capital else question
    return question.rstrip("?.") if bare else question
