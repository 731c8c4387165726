"""Model folders as the Hub gets them: whole weights, `auto_map`, and a card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from ..models.hub_code import HUB_FILE, copy_hub_file
from .cards import RenderedCard


_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_COPIED = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "zero_shot.json",
    "conversion_report.json",
)
_MODEL_CLASSES = {"comneck": "ComNeck", "compressai_wrapper": "Compressai", "elic": "Elic", "tic": "Tic"}


def build_hub_folder(source: str | Path, target: str | Path, card: RenderedCard) -> None:
    """Writes what a Hub repository holds.

    Args:
        source: Folder of a model that `from_pretrained` loads; weights may lie in several files, also outside of it.
        target: Folder to write; must not exist.
        card: Its card.

    Raises:
        ValueError: If `target` exists, or the model is not complete.
        OSError: If `source` is no model.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise ValueError(f"{target} exists already. Choose another folder, or remove it.")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} is no model: it has no config.json.")
    target.mkdir(parents=True)
    try:
        _fill(source, target, card)
    except BaseException:
        shutil.rmtree(target)
        raise


def _fill(source: Path, target: Path, card: RenderedCard) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _forget_paths(config)
    name = _MODEL_CLASSES.get(config.get("model_type", ""))
    if name is not None:
        code = Path(HUB_FILE).stem
        config["auto_map"] = {"AutoConfig": f"{code}.{name}Config", "AutoModel": f"{code}.{name}Model"}
        copy_hub_file(target)
    _write_json(target / "config.json", config)
    for file in _COPIED:
        if (source / file).exists():
            shutil.copyfile(source / file, target / file)
    if name is not None and (target / "preprocessor_config.json").exists():
        _map_image_processor(target / "preprocessor_config.json")
    _copy_weights(source, target)
    _check_whole(target)
    card.save(target)


def _forget_paths(config: dict[str, Any]) -> None:
    """Drops the places where a model and its parts were trained."""
    config.pop("_name_or_path", None)
    for value in config.values():
        if isinstance(value, dict):
            _forget_paths(value)


def _map_image_processor(path: Path) -> None:
    settings, name = json.loads(path.read_text(encoding="utf-8")), "ComNeckImageProcessor"
    code = Path(HUB_FILE).stem
    # The first is taken where torchvision is missing or `backend="pil"` is asked for
    settings["auto_map"] = {"AutoImageProcessor": [f"{code}.{name}Pil", f"{code}.{name}"]}
    _write_json(path, settings)


def _copy_weights(source: Path, target: Path) -> None:
    """One safetensors file with the tensors of all that the model's index names."""
    if not (source / _INDEX).exists():
        if not (source / _WEIGHTS).exists():
            raise FileNotFoundError(f"{source} has no {_WEIGHTS}.")
        shutil.copyfile(source / _WEIGHTS, target / _WEIGHTS)
        return
    index: dict[str, str] = json.loads((source / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(index.values())):
        with safe_open(source / file, "pt") as weights:
            tensors.update({key: weights.get_tensor(key) for key in weights.keys() if index.get(key) == file})  # noqa: SIM118
    save_file(tensors, target / _WEIGHTS, metadata={"format": "pt"})


def _check_whole(folder: Path) -> None:
    """Refuses weights that are not exactly the model's."""
    with torch.device("meta"):
        state = AutoModel.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    expected = {name: list(value.shape) for name, value in state.items() if not name.endswith("tables.cdfs")}
    with safe_open(folder / _WEIGHTS, "pt") as weights:
        found = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    missing = sorted(state.keys() - found.keys())
    surplus = sorted(found.keys() - state.keys())
    wrong = sorted(name for name, shape in expected.items() if found.get(name, shape) != shape)
    if missing or surplus or wrong:
        raise ValueError(
            f"The weights are not the model's: {len(missing)} missing ({', '.join(missing[:3])}), {len(surplus)} too "
            f"many ({', '.join(surplus[:3])}), {len(wrong)} of a wrong shape ({', '.join(wrong[:3])}). Load the model "
            "and save it again."
        )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["build_hub_folder"]
