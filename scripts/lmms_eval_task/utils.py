"""Functions of `easy_vqa.yaml`: one document per question."""

from typing import Any

import datasets
from PIL import Image


def process_docs(rows: datasets.Dataset) -> datasets.Dataset:
    """One row per question, from one per picture with lists of `questions` and `answers`."""
    names = rows.features["answers"].feature.names

    def split(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        split_rows = [
            (image, question, names[answer])
            for image, questions, answers in zip(batch["image"], batch["questions"], batch["answers"], strict=True)
            for question, answer in zip(questions, answers, strict=True)
        ]
        return dict(zip(("image", "question", "answer"), map(list, zip(*split_rows, strict=True)), strict=True))

    features = datasets.Features(
        image=rows.features["image"], question=datasets.Value("string"), answer=datasets.Value("string")
    )
    # Not decoded here: the pictures' own bytes are copied to their questions.
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    return undecoded.map(split, batched=True, remove_columns=rows.column_names, features=features)


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question."""
    return [doc["image"].convert("RGB")]
