"""Reads checkpoints of other code bases: tensors only, and errors that say what a file is instead."""

import hashlib
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


Weights = dict[str, torch.Tensor]

_PREFIX = re.compile(r"^((module|base_coder)\.)+")
_OLD_PRIOR_KEY = re.compile(r"^(latent_codec\..*entropy_bottleneck\.)_(matrix|bias|factor)(\d)$")
_NEW_PRIOR_KEY = re.compile(r"^(entropy_bottleneck\.)(matrices|biases|factors)\.(\d)$")
_TRAINING_STATE = ("optimizer", "aux_optimizer", "lr_scheduler")
# What readers raise where bytes are missing or wrong
_DAMAGES = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    UnicodeDecodeError,
    SafetensorError,
    struct.error,
    zipfile.BadZipFile,
)
_PRIOR_NAMES = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
_OLD_NAMES = {new: old for old, new in _PRIOR_NAMES.items()}


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The parts of a checkpoint.

    Attributes:
        layout: `"authors"` or `"compressai"`: how the codec's tensors are called.
        codec: The codec's tensors, without prefixes.
        neck: The transform-neck's tensors; `None` in a file that holds a codec only.
        prefixes: What was stripped from the codec's names, such as `"module."`.
        ignored: Entries of the file that are not weights, such as the optimizer's state.
    """

    layout: str
    codec: Weights
    neck: Weights | None
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]


def fetch_file(source: str, *, progress: bool = True) -> Path:
    """The local path of a file, which is downloaded once if `source` is a URL.

    Raises:
        OSError: If there is no such file.
    """
    if not _is_url(source):
        if not Path(source).is_file():
            raise FileNotFoundError(f"There is no file {source!r}.")
        return Path(source)
    digest = hashlib.blake2s(source.encode(), digest_size=4).hexdigest()
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}-{Path(urlsplit(source).path).name}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(target), progress=progress)
        except (OSError, HTTPException) as error:
            raise OSError(f"{source} could not be downloaded: {error}") from None
    return target


def _is_url(source: str) -> bool:
    """Whether `source` is to be downloaded."""
    return urlsplit(source).scheme in ("http", "https")


def read_tensors(path: Path) -> dict[str, Any]:
    """The dictionary that a `torch.save` or safetensors file holds. No code in it is run.

    Raises:
        ValueError: If it is something else; the message says what it looks like.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(64)
    try:
        looks = _looks_like(path, start)
        if looks is None and path.suffix == ".safetensors":
            return dict(load_file(path))
        content = None if looks else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds Python objects besides tensors and numbers, which could run code and are not loaded. Save "
            "the model's `state_dict()` with `torch.save` where you trust the file."
        ) from None
    except _DAMAGES as error:
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or truncated ({reason}). Fetch it again.") from None
    if looks is not None:
        raise ValueError(f"{path} is no checkpoint: it looks like {looks}.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return content


def _looks_like(path: Path, start: bytes) -> str | None:
    """What a file that is no checkpoint is, by its first bytes."""
    if not start:
        return "an empty file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull` in its repository"
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return "a TorchScript program; save its `state_dict()`, or give the folder of a transformers model"
        return None if "data.pkl" in names else "a ZIP archive of other files"
    if start.startswith(b"\x80") or path.suffix == ".safetensors":
        return None
    return f"a file of another kind, beginning with {start[:8]!r}"


def read_checkpoint(source: str, *, progress: bool = True) -> ForeignCheckpoint:
    """Reads the authors' `d1_1.pth.tar` and the like, a bare ELIC codec, or CompressAI's `elic2022-chandelier`.

    Args:
        source: Path or URL.
        progress: Show a bar while downloading.

    Raises:
        ValueError: If the file holds something else; the message says what it looks like.
        OSError: If it cannot be read.
    """
    path = fetch_file(source, progress=progress)
    try:
        return _sort_entries(read_tensors(path), source)
    except ValueError:
        if _is_url(source):
            path.unlink()  # so that the next try downloads it again
        raise


def _sort_entries(content: Mapping[str, Any], source: str) -> ForeignCheckpoint:
    neck, state = content.get("adapter"), content.get("state_dict")
    if state is None:
        state = {key: value for key, value in content.items() if key != "adapter" and torch.is_tensor(value)}
        ignored = [key for key in content if key != "adapter" and key not in state]
    else:
        ignored = [key for key in content if key not in ("adapter", "state_dict")]
    for key in ignored:
        if _holds_weights(content[key]) and key not in _TRAINING_STATE:
            raise ValueError(
                f"{source} holds weights under {key!r}, of which nothing is known. Codec and neck are expected under "
                "'state_dict' and 'adapter'; rename or drop the entry."
            )
    for name, part in (("state_dict", state), ("adapter", neck)):
        if part is not None and not _is_state_dict(part):
            raise ValueError(f"{source} has no dictionary of tensors under {name!r}, but a {type(part).__name__}.")
    prefixes = {match[0] for key in state if (match := _PREFIX.match(key))}
    codec = _renamed(state)
    return ForeignCheckpoint(
        layout=_codec_layout(codec, source),
        codec=codec,
        neck=None if neck is None else _renamed(neck),
        prefixes=tuple(sorted(prefixes)),
        ignored=tuple(str(key) for key in ignored),
    )


def _is_state_dict(part: Any) -> bool:
    return isinstance(part, Mapping) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in part.items())


def _holds_weights(part: Any) -> bool:
    return isinstance(part, Mapping) and any(torch.is_tensor(value) for value in part.values())


def _renamed(state: Mapping[str, torch.Tensor]) -> Weights:
    """Names without `module.` and `base_coder.` in any order; the prior's as each layout has them.

    CompressAI renamed the prior's tensors at some time, so that both spellings are found in both layouts.
    """
    renamed: Weights = {}
    for key, value in state.items():
        new = _PREFIX.sub("", key)
        new = _OLD_PRIOR_KEY.sub(lambda match: f"{match[1]}{_PRIOR_NAMES[match[2]]}.{match[3]}", new)
        new = _NEW_PRIOR_KEY.sub(lambda match: f"{match[1]}_{_OLD_NAMES[match[2]]}{match[3]}", new)
        if new in renamed:
            raise ValueError(f"The checkpoint holds {new} twice, once as {key}. Keep one of them.")
        renamed[new] = value
    return renamed


def _codec_layout(codec: Weights, source: str) -> str:
    if any(key.startswith("ParamAggregation.") for key in codec):
        return "authors"
    if any(key.startswith("latent_codec.y.latent_codec.") for key in codec):
        return "compressai"
    raise ValueError(f"{source} holds no ELIC codec: it looks like {describe_weights(codec)}.")


def describe_weights(weights: Mapping[str, Any]) -> str:
    """What a state dict probably belongs to, in words."""
    signs = (
        (r"trans_latent_dim\.", "a transform-neck without its codec"),
        (r"(visual|text_model|vision_model|vision_tower)\.|token_embedding\.|.*resblocks\.", "a CLIP"),
        (r"context_prediction\.", "another codec with a context model, perhaps of CompressAI"),
        (r"(entropy_bottleneck|g_a|gaussian_conditional)\.", "a codec without ELIC's contexts, perhaps of CompressAI"),
        (r"(language_model|lm_head|model\.layers)\b", "a language model"),
    )
    for pattern, meaning in signs:
        if any(re.match(pattern, str(key)) for key in weights):
            return meaning
    if not weights:
        return "a file without tensors"
    return f"something with the tensors {', '.join(map(str, list(weights)[:3]))}, ..."


__all__ = ["ForeignCheckpoint", "Weights", "describe_weights", "fetch_file", "read_checkpoint", "read_tensors"]
