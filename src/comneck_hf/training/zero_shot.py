"""Zero-shot classifiers from text: class prompts and the weights a CLIP text tower makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from comneck_hf.training.content import content_digest


__all__ = [
    "PROMPTS_NAME",
    "ClassPrompts",
    "load_class_prompts",
    "pack_weights",
    "save_class_prompts",
    "zero_shot_weights",
]

PROMPTS_NAME = "zero_shot.json"
_PRETRAINED_FOLDER = Path(__file__).parent.parent / "pretrained"


@dataclass(frozen=True)
class ClassPrompts:
    """Class names and the templates they are put into.

    Attributes:
        templates: prompts with one `{}` for the class name each.
        class_names: readable class names.
    """

    templates: tuple[str, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.templates or not self.class_names:
            raise ValueError("templates or class_names is empty; give at least one of each")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must contain '{{}}' exactly once, for the class name")


def load_class_prompts(path: str | Path) -> ClassPrompts:
    """Reads templates and class names from JSON (`{"templates": [...], "class_names": [...]}`).

    Args:
        path: a JSON file, a folder that holds a `zero_shot.json`, or the name of a model that ships with this package
            (for example `"comneck-tiny-clip"`).

    Returns:
        The prompts.

    Raises:
        ValueError: neither file, folder nor shipped model, or the file lacks a field.
    """
    candidates = (Path(path), Path(path) / PROMPTS_NAME, _PRETRAINED_FOLDER / path / PROMPTS_NAME)
    for candidate in candidates:
        if candidate.is_file():
            break
    else:
        raise ValueError(
            f"no class prompts at {str(path)!r}; expected a JSON file, a folder with {PROMPTS_NAME} or the name of a "
            f"model shipped with comneck_hf"
        )
    fields = json.loads(candidate.read_text(encoding="utf-8"))
    if not isinstance(fields, dict) or not {"templates", "class_names"} <= fields.keys():
        raise ValueError(f'{candidate} lacks a field; expected {{"templates": [...], "class_names": [...]}}')
    return ClassPrompts(tuple(fields["templates"]), tuple(fields["class_names"]))


def save_class_prompts(prompts: ClassPrompts, folder: str | Path) -> None:
    """Writes `prompts` as `zero_shot.json` into `folder`, next to the model they belong to."""
    text = json.dumps({"templates": prompts.templates, "class_names": prompts.class_names}, indent=2)
    (Path(folder) / PROMPTS_NAME).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def zero_shot_weights(
    clip_model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    class_names: Sequence[str],
    templates: Sequence[str],
    cache_dir: str | Path | None = None,
) -> Tensor:
    """Makes the weights of a zero-shot classifier from class names.

    The weight of a class is the mean of the unit-norm text embeddings of its prompts, brought to unit norm again. The
    cosine of a projected image embedding with each row is the score of that class.

    Args:
        clip_model: the model whose text tower is used; put into the mode it was in afterwards.
        tokenizer: the tokenizer of `clip_model`.
        class_names: names of the classes.
        templates: prompts with one `{}` for the class name each.
        cache_dir: folder that keeps the weights, in a file named after the text tower's weights and the prompts; with
            a thousand classes and eighty templates they take a while. By default they are computed anew.

    Returns:
        float `(num_classes, projection_dim)` of unit-norm rows, on the device of the model.
    """
    prompts = ClassPrompts(tuple(templates), tuple(class_names))
    digest = content_digest(repr(prompts), clip_model.text_model, clip_model.text_projection)
    file = None if cache_dir is None else Path(cache_dir) / f"zero-shot-{digest}.safetensors"
    if file is not None and file.exists():
        return load_file(file, device=str(clip_model.device))["weights"]
    texts = [template.format(name) for name in prompts.class_names for template in prompts.templates]
    was_training = clip_model.training
    clip_model.eval()
    chunks = []
    for start in tqdm(range(0, len(texts), 256), desc="prompts", disable=len(texts) < 5000):
        inputs = tokenizer(texts[start : start + 256], padding=True, truncation=True, return_tensors="pt")
        chunks.append(_text_embeddings(clip_model, inputs["input_ids"], inputs["attention_mask"]))
    clip_model.train(was_training)
    embeddings = torch.cat(chunks).view(len(class_names), len(templates), -1)
    weights = F.normalize(embeddings.mean(1), dim=-1)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weights": weights.detach().cpu().contiguous()}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    return weights


def pack_weights(
    clip_model: CLIPModel,
    source: str | Path,
    *,
    class_names: Sequence[str],
    templates_file: str | Path,
    cache_dir: Path,
) -> Tensor | None:
    """The zero-shot classifier of a data set's classes; `None` where there are none.

    Args:
        clip_model: the model whose text tower is used.
        source: folder or Hub id of its tokenizer.
        class_names: of the data set; ImageNet's list synonyms, of which the first is taken.
        templates_file: JSON list of prompts with one `{}` for the class name each.
        cache_dir: as in `zero_shot_weights`.
    """
    if not class_names:
        return None
    return zero_shot_weights(
        clip_model,
        AutoTokenizer.from_pretrained(source),
        class_names=[name.partition(",")[0] for name in class_names],
        templates=json.loads(Path(templates_file).read_text(encoding="utf-8")),
        cache_dir=cache_dir,
    )


def _text_embeddings(clip_model: CLIPModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    device = clip_model.device
    pooled = clip_model.text_model(input_ids.to(device), attention_mask=attention_mask.to(device)).pooler_output
    return F.normalize(clip_model.text_projection(pooled), dim=-1)
