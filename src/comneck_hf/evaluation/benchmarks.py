"""Questions of official benchmarks in their own files, answered into the files that their evaluators take."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from .answers import Question
from .baselines import Baseline
from .intervals import bootstrap_interval, mean_of
from .pictures import picture_tensor
from .scores import parse_box
from .tasks import Questions


FilePath = str | os.PathLike[str]

# What LLaVA-1.5 is asked in each benchmark
PROMPTS = {
    "vqa": "{}\nAnswer the question using a single word or phrase.",
    "pope": "{}\nAnswer the question using a single word or phrase.",
    "captions": "Provide a one-sentence caption for the provided image.",
    "rec": "Please provide the bounding box coordinate of the region this sentence describes: {}.",
}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_PADDING = (122, 116, 104)  # CLIP's mean color, as LLaVA-1.5 pads


@dataclass(frozen=True)
class Prompt:
    """One question of a benchmark.

    Attributes:
        key: Field and value that name it in the results, such as `("question_id", 42)`.
        picture: File name, or COCO's number of the picture.
        text: What is asked.
    """

    key: tuple[str, int | str]
    picture: str | int
    text: str


def load_prompts(task: str, path: FilePath, *, prompt: str | None = None) -> list[Prompt]:
    """The questions of a benchmark's file.

    Args:
        task: `"vqa"` (its questions), `"pope"`, `"captions"` (COCO's annotations) or `"rec"`.
        path: The file.
        prompt: With `{}` where the question goes; as LLaVA-1.5 is asked by default.

    Raises:
        ValueError: If the task is unknown or the file is not of its format.
    """
    if task not in PROMPTS:
        raise ValueError(f"`task` must be one of {sorted(PROMPTS)}, got {task!r}.")
    template = PROMPTS[task] if prompt is None else prompt
    if task != "captions" and template.count("{}") != 1:
        raise ValueError(f"`prompt` must have '{{}}' once, where the question goes; got {template!r}.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = [json.loads(line) for line in text.splitlines() if line] if task == "pope" else json.loads(text)
        return list(_prompts(task, content, template))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of {task} ({type(error).__name__}: {error}).") from None


def _prompts(task: str, content: Any, template: str) -> Iterator[Prompt]:
    if task == "vqa":
        for record in content["questions"]:
            key = ("question_id", record["question_id"])
            yield Prompt(key, record["image_id"], template.format(record["question"]))
    elif task == "pope":
        for record in content:
            yield Prompt(("question_id", record["question_id"]), record["image"], template.format(record["text"]))
    elif task == "rec":
        for record in content:
            yield Prompt(("ref_id", record["ref_id"]), record["file_name"], template.format(record["expression"]))
    else:
        for image_id in dict.fromkeys(record["image_id"] for record in content["annotations"]):
            yield Prompt(("image_id", image_id), image_id, template)


def picture_files(folder: FilePath) -> dict[str | int, Path]:
    """The picture files of a folder by their names, and by the numbers at the end of COCO's names."""
    files: dict[str | int, Path] = {}
    for path in Path(folder).iterdir():
        if path.suffix.lower() in _SUFFIXES:
            files[path.name] = path
            number = path.stem[-12:]
            if len(number) == 12 and number.isdigit():
                files[int(number)] = path
    return files


def find_picture(files: Mapping[str | int, Path], picture: str | int) -> Path:
    """The file of a picture among `picture_files`.

    Raises:
        ValueError: If there is none.
    """
    if picture not in files:
        raise ValueError(f"There is no picture {picture!r}. Give the folder of the benchmark's pictures.")
    return files[picture]


def answer_prompts(
    task: Questions, baseline: Baseline, prompts: Sequence[Prompt], *, batch_size: int, progress: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers in the form of the benchmark's results, and what the pictures cost.

    Args:
        task: LLaVA and pictures; its questions are the prompts', in their order.
        baseline: The way in which pictures arrive.
        prompts: As given to `task`.
        batch_size: Pictures at a time.
        progress: Whether to show a bar.

    Returns:
        Records with the id and `answer` (`caption` for captions) in the order of the prompts; `pictures`, and where
        they are coded mean `bytes` with their 95 % `interval`.
    """
    device = task.llava.device
    found: dict[Question, str] = {}
    sizes: list[int] = []
    numbers = list(range(len(task.pictures)))
    for first in tqdm(range(0, len(numbers), batch_size), desc="pictures", disable=not progress):
        chosen = numbers[first : first + batch_size]
        with torch.no_grad():
            received = baseline.receive(task.pictures[chosen].to(device))
            found.update(task.answer(baseline, received, chosen))
        sizes += received.num_bytes or []
    records = []
    for prompt, question in zip(prompts, task.questions, strict=True):
        name = "caption" if prompt.key[0] == "image_id" else "answer"
        records.append({prompt.key[0]: prompt.key[1], name: found[question]})
    rate: dict[str, Any] = {"pictures": len(numbers)}
    if sizes:
        column = torch.tensor([sizes, [1] * len(sizes)]).double().numpy()
        rate |= {"bytes": mean_of(column), "interval": list(bootstrap_interval(column))}
    return records, rate


def square_pictures(folder: FilePath, prompts: Sequence[Prompt], side: int) -> tuple[torch.Tensor, list[Question]]:
    """The pictures of prompts as squares, once each; and the prompts as questions about them.

    Their middles are resized to `side`; where answers are boxes, the whole pictures, padded to squares.

    Returns:
        uint8 `(n, 3, side, side)` and one question per prompt.

    Raises:
        ValueError: If a picture is missing.
    """
    places: dict[str | int, int] = {}
    pictures, questions, files = [], [], picture_files(folder)
    for prompt in prompts:
        if prompt.picture not in places:
            places[prompt.picture] = len(places)
            with Image.open(find_picture(files, prompt.picture)) as image:
                square = _padded if prompt.key[0] == "ref_id" else _middle
                pictures.append(picture_tensor(square(image.convert("RGB"), side)))
        questions.append(Question(places[prompt.picture], prompt.text, ""))
    return torch.stack(pictures), questions


def boxes_in_pictures(
    records: Sequence[dict[str, Any]], prompts: Sequence[Prompt], folder: FilePath
) -> list[dict[str, Any]]:
    """Records whose answers have boxes as fractions of the pictures, not of the squares that were made of them.

    Args:
        records: Of `answer_prompts`, about `square_pictures`; texts without a box stay as they are.
        prompts: In their order.
        folder: Of the pictures.
    """
    mapped, files = [], picture_files(folder)
    for record, prompt in zip(records, prompts, strict=True):
        with Image.open(find_picture(files, prompt.picture)) as image:
            size = image.size
        side = max(size)
        box = parse_box(record["answer"], size=(side, side))
        if box is not None:
            corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
            inside = [corner - (side - size[axis % 2]) // 2 for axis, corner in enumerate(corners)]
            fractions = [min(max(value / size[axis % 2], 0.0), 1.0) for axis, value in enumerate(inside)]
            record = {**record, "answer": f"[{', '.join(f'{value:.4f}' for value in fractions)}]"}
        mapped.append(record)
    return mapped


def _padded(image: Image.Image, side: int) -> Image.Image:
    length = max(image.size)
    square = Image.new("RGB", (length, length), _PADDING)
    square.paste(image, ((length - image.width) // 2, (length - image.height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _middle(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


__all__ = [
    "PROMPTS",
    "Prompt",
    "answer_prompts",
    "boxes_in_pictures",
    "find_picture",
    "load_prompts",
    "picture_files",
    "square_pictures",
]
