"""Bytes beside scores: what the images of every document of an evaluation cost."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DocumentRate:
    """What the images of one document cost.

    Attributes:
        task: Name of the task.
        doc_id: Number of the document within the task.
        num_images: Images in its prompt.
        num_pixels: Pixels of these images before anything was done to them.
        num_bytes: Lengths of their bitstreams together; `None` where images reach the model without being coded.
    """

    task: str
    doc_id: int
    num_images: int
    num_pixels: int
    num_bytes: int | None


class RateLog:
    """Collects one [`DocumentRate`] per document and writes them as JSON.

    Rates are in bits per pixel of the *original* images, and `None` where there is no image or nothing was coded. A
    document that is asked again (repeats, padding of distributed runs) counts once, as it was last; an image that
    several documents share counts for each, as it is sent for each.

    Args:
        setting: Facts about the run, written along.
    """

    def __init__(self, **setting: Any) -> None:
        self.setting = setting
        self._documents: dict[tuple[str, int], DocumentRate] = {}

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def documents(self) -> list[DocumentRate]:
        """All documents, by task and number."""
        return [self._documents[key] for key in sorted(self._documents)]

    def add(self, task: str, doc_id: int, sizes: Sequence[tuple[int, int]], num_bytes: Sequence[int] | None) -> None:
        """Notes a document.

        Args:
            task: Name of the task.
            doc_id: Number of the document.
            sizes: Width and height of each original image.
            num_bytes: Length of each image's bitstream, `None` for images that were not coded.

        Raises:
            ValueError: If there are more or fewer bitstreams than images.
        """
        if num_bytes is not None and len(num_bytes) != len(sizes):
            raise ValueError(
                f"Document {doc_id} of {task} has {len(sizes)} images and {len(num_bytes)} bitstreams. Give one "
                "length per image, or `None` if none was coded."
            )
        pixels = sum(width * height for width, height in sizes)
        self.update([DocumentRate(task, doc_id, len(sizes), pixels, None if num_bytes is None else sum(num_bytes))])

    def update(self, documents: Iterable[DocumentRate]) -> None:
        """Notes documents of other processes."""
        self._documents |= {(document.task, document.doc_id): document for document in documents}

    def total(self, task: str | None = None) -> dict[str, int | float | None]:
        """Documents, images, pixels, bytes and bits per pixel, of one task or of all."""
        return _totals([document for document in self.documents if task is None or document.task == task])

    def save(self, path: str | os.PathLike) -> None:
        """Writes setting, totals and documents; folders are made."""
        tasks = sorted({document.task for document in self.documents})
        content = {
            "setting": self.setting,
            "total": self.total(),
            "tasks": {task: self.total(task) for task in tasks},
            "documents": [
                {"task": document.task, "doc_id": document.doc_id, **_totals([document], count=False)}
                for document in self.documents
            ],
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rate_path(path: str | os.PathLike | None) -> Path:
    """Where to write, checked before an evaluation of hours: `DATE_TIME_comneck_rates.json` here without a wish.

    Raises:
        ValueError: If there is a folder at this path.
    """
    chosen = Path(path or f"{datetime.now():%Y%m%d_%H%M%S}_comneck_rates.json").absolute()
    if chosen.is_dir():
        raise ValueError(f"`rate_file` is a folder, {path}. Give the path of a file, such as {chosen / 'rates.json'}.")
    return chosen


def _totals(documents: Sequence[DocumentRate], *, count: bool = True) -> dict[str, int | float | None]:
    lengths = [document.num_bytes for document in documents]
    num_bytes = None if None in lengths else sum(lengths)
    num_pixels = sum(document.num_pixels for document in documents)
    return {
        **({"documents": len(documents)} if count else {}),
        "images": sum(document.num_images for document in documents),
        "pixels": num_pixels,
        "bytes": num_bytes,
        "bpp": 8 * num_bytes / num_pixels if num_bytes is not None and num_pixels else None,
    }


__all__ = ["DocumentRate", "RateLog", "rate_path"]
