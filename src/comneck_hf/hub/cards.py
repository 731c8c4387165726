"""Model cards from facts and measurements; no number is in a card that is not in a file of results."""

import json
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers import AutoConfig, PreTrainedConfig

from ..models.compressai.configuration_compressai import CompressaiConfig


_MEANINGS = {
    "d1": "codec for people, frozen; only the neck is trained",
    "d2": "codec for people and machines",
    "d3": "codec for machines only",
}
_KINDS = {
    "comneck": "comneck",
    "cotam": "cotam",
    "clip": "clip",
    "compressai_wrapper": "codec",
    "elic": "codec",
    "tic": "codec",
}
_TOWERS = ("comneck", "cotam")  # kinds that read latents
_TAGS = {
    "comneck": ["comneck", "image-compression", "neural-codec", "clip", "multimodal", "llava"],
    "cotam": ["comneck", "cotam", "image-compression", "neural-codec", "clip", "multimodal", "llava"],
    "codec": ["comneck", "image-compression", "neural-codec"],
    "clip": ["comneck", "clip"],
}
_TASKS = {
    **dict.fromkeys(_TOWERS, "image-feature-extraction"),
    "codec": "image-to-image",
    "clip": "zero-shot-image-classification",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card says besides numbers and what the configuration tells.

    Attributes:
        repo_id: `"organization/name"`.
        folder: The model, relative to the root of the repository.
        summary, training: Paragraphs.
        limits: Sentences.
        license, license_name: As the Hub names them; `license_name` where `license` is `"other"`.
        base_model: Hub id of the CLIP.
        datasets: Hub ids of the training data.
        evaluation_dataset: Hub id of the data in `results`.
        results: File with measurements, relative to the root; `None` where nothing was measured.
    """

    repo_id: str
    folder: str = ""
    summary: str = "Images reach multimodal LLMs as neural-codec latents instead of pixels (ComNeck, ICLR 2025)."
    training: str = "Not described by the publisher."
    limits: list[str] = field(default_factory=lambda: ["Not described by the publisher."])
    license: str | None = None
    license_name: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    evaluation_dataset: str = ""
    results: str | None = None

    def __post_init__(self) -> None:
        if self.results is not None and not self.evaluation_dataset:
            raise ValueError(f"The facts of {self.repo_id} name `results`, and so need their `evaluation_dataset`.")


def card_files() -> Path:
    """The folder with the template, the families and the facts files."""
    return Path(str(files("comneck_hf.model_cards")))


def load_facts(path: str | Path) -> ModelFacts:
    """Facts of one model: a YAML file with the fields of [`ModelFacts`] and the `family` that fills in the rest.

    Raises:
        ValueError: If a key or the family is unknown.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values such as `repo_id: organization/name`.")
    families = yaml.safe_load((card_files() / "families.yaml").read_text(encoding="utf-8"))
    family = content.pop("family", None)
    if family is not None and str(family) not in families:
        raise ValueError(f"{path} names the unknown family {family!r}; known are {sorted(families)}.")
    unknown = sorted(set(content) - {option.name for option in fields(ModelFacts)})
    if unknown or "repo_id" not in content:
        raise ValueError(
            f"{path} must have `repo_id` and may have {sorted(option.name for option in fields(ModelFacts))}; "
            f"unknown are {unknown}."
        )
    facts = ModelFacts(**{**families.get(family, {}), **content})
    for name in ("limits", "datasets"):
        if not isinstance(getattr(facts, name), list):
            raise ValueError(f"`{name}` in {path} must be a list, one item a line with a dash.")
    return facts


def find_measurements(file: Path, config: PreTrainedConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Zero-shot measurements of one model in a file of results, and their setting; both empty where there are none.

    Args:
        file: Of `comneck eval`, with the baselines `original` and `reconstruction`.
        config: The model's.

    Raises:
        OSError: If there is no such file.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    task = content["tasks"].get("zero-shot", {"systems": []})
    points = {
        (system["name"], quality): {name: values[place] for name, values in system["results"].items()}
        for system in task["systems"]
        for place, quality in enumerate(system["results"]["quality"])
    }
    row: dict[str, float] = {}
    if _KINDS[config.model_type] != "codec" and ("original", "") in points:
        row["original_top1"] = points["original", ""]["top1"]
    if _KINDS[config.model_type] in _TOWERS:
        curve, quality = config.curve, f"q{config.quality}"
        if (curve, quality) not in points:
            quality += " +0"  # of those measured at several gains
        latents = points.get((curve, quality))
        if latents is None:
            return {}, {}
        seen = f"{curve} reconstruction" if curve in ("d2", "d3") else "reconstruction"
        row |= {"latents_top1": latents["top1"], "bytes_per_picture": latents["bytes"], "bpp": latents["bpp"]}
        row |= {"psnr": latents["psnr-rgb"]} if "psnr-rgb" in latents else {}
        if config.model_type == "comneck" and (seen, quality) in points:  # of the same bytes
            row |= {"decoded_top1": points[seen, quality]["top1"]}
    if not row:
        return {}, {}
    setting = {"data": task["data"], "split": task["split"]}
    return {"pictures": task["pictures"], **row}, setting


@dataclass(frozen=True)
class RenderedCard:
    """A card, and its measurements in the form of the Hub's leaderboards.

    Attributes:
        card: Goes to README.md.
        eval_results: Goes to .eval_results/zero_shot.yaml; empty where nothing was measured.
    """

    card: ModelCard
    eval_results: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Writes both into a folder."""
        (folder / "README.md").write_text(str(self.card), encoding="utf-8")
        if self.eval_results:
            file = folder / ".eval_results" / "zero_shot.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(yaml.safe_dump(self.eval_results, sort_keys=False), encoding="utf-8")


def render_card(
    facts: ModelFacts, folder: str | Path, *, root: str | Path = ".", tag: str | None = None
) -> RenderedCard:
    """The card of a model.

    Args:
        facts: What it says.
        folder: The model's folder.
        root: Where `facts.results` is looked for.
        tag: The release that its code loads.
    """
    config = AutoConfig.from_pretrained(folder)
    kind = _KINDS.get(config.model_type)
    if kind is None:
        raise ValueError(f"There is no card for {config.model_type!r} models, only for {sorted(_KINDS)}.")
    row, setting = find_measurements(Path(root) / facts.results, config) if facts.results else ({}, {})
    measured = _readable(row, kind)
    name = facts.repo_id.rpartition("/")[2]
    data = ModelCardData(
        license=facts.license,
        license_name=facts.license_name,
        library_name="transformers",
        pipeline_tag=_TASKS[kind],
        tags=_TAGS[kind],
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        model_name=name,
        eval_results=_eval_results(row, setting, kind, facts.evaluation_dataset) or None,
    )
    values: dict[str, Any] = {
        "title": name,
        "revision": f', revision="{tag}"' if tag else "",
        "measured": measured,
        "measured_setting": _setting_text(row, setting, kind),
        "kind": kind,
        **{option.name: getattr(facts, option.name) for option in fields(facts)},
    }
    if kind != "clip":
        values.update(_codec_values(config if kind == "codec" else config.codec_config))
    if kind in _TOWERS:
        values.update(_model_values(config))
    card = ModelCard.from_template(data, template_path=str(card_files() / "template.md"), **values)
    return RenderedCard(card, eval_result_entries_to_yaml(_leaderboard_entries(data.eval_results or [])))


def _codec_values(config: PreTrainedConfig | None) -> dict[str, Any]:
    values = {name: getattr(config, name, None) for name in ("quality", "lmbda", "latent_channels")}
    if isinstance(config, CompressaiConfig):
        return {**values, "codec": f"{config.architecture} of CompressAI", "codec_class": "CompressaiModel"}
    codec_type = "elic" if config is None else config.model_type
    return {**values, "codec": codec_type.upper(), "codec_class": f"{codec_type.capitalize()}Model", "is_exact": True}


def _model_values(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "scenario": config.curve,
        "scenario_meaning": _MEANINGS.get(config.curve),
        "quality": config.quality,
        "latent_channels": config.vision_config.latent_channels,
        "first_layer": config.vision_config.num_skipped_layers + 1,
        "image_size": "x".join(map(str, _sides(config.image_size))),
        "guide_grid": "x".join(map(str, getattr(config, "guide_grid", ()))),
    }


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _readable(row: dict[str, float], kind: str) -> list[tuple[str, str]]:
    """Names and values of the measurements, in words."""
    forms = [("original_top1", "zero-shot top-1 from originals", "{:.1f} %")]
    if kind in _TOWERS:
        forms += [
            ("latents_top1", "zero-shot top-1 from latents", "{:.1f} %"),
            ("decoded_top1", "zero-shot top-1 from decoded pictures", "{:.1f} %"),
            ("bytes_per_picture", "bytes per picture, whole bitstreams", "{:.0f}"),
            ("bpp", "bits per pixel", "{:.3f}"),
            ("psnr", "PSNR of decoded pictures", "{:.2f} dB"),
        ]
    return [(text, form.format(row[name])) for name, text, form in forms if name in row]


def _setting_text(row: dict[str, float], setting: dict[str, Any], kind: str) -> str:
    if not row:
        return ""
    source = ", from real bitstreams" if kind in _TOWERS else ""
    return f"On {row['pictures']:,} pictures of {setting['data']}, split {setting['split']}{source}."


def _eval_results(row: dict[str, float], setting: dict[str, Any], kind: str, dataset: str) -> list[EvalResult]:
    name = "latents_top1" if kind in _TOWERS else "original_top1"
    if name not in row:
        return []
    return [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Zero-shot image classification",
            dataset_type=dataset,
            dataset_name=f"{setting['data']}, {setting['split']}",
            metric_type="accuracy",
            metric_name="top-1 from latents" if kind in _TOWERS else "top-1",
            metric_value=round(row[name], 2),
            metric_args={"bpp": round(row["bpp"], 4)} if kind in _TOWERS else None,
        )
    ]


def _leaderboard_entries(results: list[EvalResult]) -> list[EvalResultEntry]:
    entries = []
    for result in results:
        notes = f"{result.metric_name}, {result.dataset_name}"
        if result.metric_args:
            notes += f", at {result.metric_args['bpp']} bits per pixel"
        entries.append(
            EvalResultEntry(
                dataset_id=result.dataset_type, task_id=result.task_type, value=result.metric_value, notes=notes
            )
        )
    return entries


__all__ = ["ModelFacts", "RenderedCard", "card_files", "find_measurements", "load_facts", "render_card"]
