"""Models by name: a folder, a Hub id, or a model that ships with the package."""

from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from .. import (
    ComNeckImageProcessorPil,
    CompressaiConfig,
    CompressaiModel,
    CotamConfig,
    CotamModel,
    ElicConfig,
    ElicModel,
)
from ..hub.names import resolve_model
from ..hub.publish import network_errors
from ..models.codec_vision import CodecVisionModel
from ..models.codec_vision_config import CodecVisionConfig


__all__ = [
    "load_codec",
    "load_coder",
    "load_image_processor",
    "load_model",
    "load_model_config",
    "resolve_device",
]


def resolve_device(name: str) -> torch.device:
    """The device with this name, after a first use.

    Args:
        name: `"auto"` (a GPU where there is one), `"cpu"`, `"cuda"`, `"cuda:1"`, ...

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"No usable device is called {name!r} ({reason}). Use 'cpu' or 'auto'.") from None
    return device


def load_codec(
    name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ElicModel | CompressaiModel:
    """The codec of a model, without the rest; `name` as in `resolve_model`.

    Raises:
        ValueError: If the model has no codec.
        OSError: If there is no model.
    """
    path, config = _load_config(name)
    if isinstance(config, CodecVisionConfig):
        config = config.codec_config
    if not isinstance(config, ElicConfig | CompressaiConfig):
        raise ValueError(f"{name!r} has no codec. Give a ComNeck model or a codec.")
    return _load_weights(path, config, dtype).to(device)


def load_coder(
    name: str, *, guides: bool | None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ElicModel | CompressaiModel | CotamModel:
    """What codes pictures for a model: its codec, or the whole of a CoTAM that sends its guide's maps.

    Args:
        name: As in `resolve_model`.
        guides: Whether a CoTAM does so; as its configuration says for `None`.
        device, dtype: Of the model.

    Raises:
        ValueError: If the model has no codec.
        OSError: If there is no model.
    """
    _, config = _load_config(name)
    has_guide = isinstance(config, CotamConfig) and config.codec_config is not None
    if has_guide and (config.use_guide if guides is None else guides):
        return load_model(name, device=device, dtype=dtype)
    return load_codec(name, device=device, dtype=dtype)


def load_model(
    name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CodecVisionModel:
    """A complete model; `name` as in `resolve_model`.

    Raises:
        ValueError: If it is no ComNeck or CoTAM.
        OSError: If there is no model.
    """
    return _load_weights(resolve_model(name), load_model_config(name), dtype).to(device)


def load_model_config(name: str) -> CodecVisionConfig:
    """The configuration of a complete model; `name` as in `resolve_model`.

    Raises:
        ValueError: If it is no ComNeck or CoTAM.
        OSError: If there is no model.
    """
    _, config = _load_config(name)
    if not isinstance(config, CodecVisionConfig):
        raise ValueError(
            f"{name!r} is a {config.model_type!r} model, which makes no features. Give a ComNeck or CoTAM."
        )
    return config


def _load_config(name: str) -> tuple[str, PreTrainedConfig]:
    """What `from_pretrained` takes for a name, and the configuration there."""
    path = resolve_model(name)
    if not Path(path).is_dir():
        _reach(path)
    return path, AutoConfig.from_pretrained(path)


def _reach(repo_id: str) -> None:
    """Fetches a model's configuration from the Hub or the cache; raises `OSError` that says what is the matter."""
    try:
        hf_hub_download(repo_id, "config.json")
    except GatedRepoError:
        reason = "it is gated: ask for access on its page, and run `hf auth login`"
    except RepositoryNotFoundError:
        reason = "there is no such model on the Hub, or your token may not see it (`hf auth login`)"
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        first = " ".join(str(cause).split())[:160] or type(cause).__name__
        reason = f"the Hub cannot be reached ({first}), and it is not in the cache; try again later or give a folder"
    except EntryNotFoundError:
        reason = "it has no config.json, so it is no transformers model"
    except network_errors() as error:  # HTTP errors among them
        reason = f"the Hub did not answer as expected ({' '.join(str(error).split())[:160]}); try again later"
    else:
        return
    raise OSError(f"{repo_id} cannot be loaded: {reason}.")


def _load_weights(path: str, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model that the configuration names, which may be a part of what is at the path."""
    try:
        return AutoModel.from_pretrained(path, config=config, dtype=dtype).eval()
    except SafetensorError as error:
        raise ValueError(f"The weights of {path!r} are damaged ({error}). Fetch them again.") from None


def load_image_processor(name: str, *, crop: bool = True) -> ComNeckImageProcessorPil:
    """The model's image processor on PIL, the backend of published numbers.

    Args:
        name: As in `resolve_model`.
        crop: Resize and crop as the model expects it; otherwise pictures are kept whole.
    """
    if not crop:
        return ComNeckImageProcessorPil(do_resize=False, do_center_crop=False)
    return AutoImageProcessor.from_pretrained(resolve_model(name), backend="pil")
