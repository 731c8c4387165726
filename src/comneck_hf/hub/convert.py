"""Converts the authors' checkpoints, and ELIC codecs of other code bases, to folders that `from_pretrained` loads."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, CLIPVisionModelWithProjection, PreTrainedModel

from ..evaluation.compressai_reference import to_compressai
from ..evaluation.pictures import load_picture_folder
from ..models.comneck.configuration_comneck import QUALITIES, SCENARIOS, ComNeckConfig
from ..models.comneck.image_processing_comneck import ComNeckImageProcessor
from ..models.comneck.modeling_comneck import ComNeckModel
from ..models.elic.configuration_elic import ElicConfig
from ..models.elic.layouts_elic import elic_weights_from
from ..models.elic.modeling_elic import ElicModel
from ..models.elic.quantization_elic import synthetic_pictures
from ..training.content import content_digest
from . import DEFAULT_CLIP
from .checkpoints import ForeignCheckpoint, Weights, read_checkpoint
from .parity import (
    Check,
    ConversionReport,
    check_codec,
    check_features,
    check_weights,
    largest_difference,
    rate_cost,
    stored_tables,
)
from .transformer_weights import load_clip_tower, neck_sizes, neck_weights


REPORT_FILE = "conversion_report.json"
PUBLISHED_LAMBDAS = {1: 0.004, 2: 0.008, 3: 0.016, 4: 0.032}  # of the base codecs, paper section 4.1
_MOST_PICTURES = 16


def convert_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    clip: str = DEFAULT_CLIP,
    scenario: str | None = None,
    quality: int | None = None,
    pictures: str | Path | None = None,
    post_layernorm_repeats: int = 1,
    codec_only: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> ConversionReport:
    """Writes a model folder and, in it, the report of what it was compared with.

    Args:
        source: Path or URL of the authors' `d1_1.pth.tar` and the like, of a bare ELIC codec with the same names, or
            of a state dict of CompressAI's `elic2022-chandelier`.
        output: The folder; it appears when everything in it is complete and checked.
        clip: The CLIP that the neck was trained for: folder or Hub id of a transformers model, or a file of weights
            with OpenAI's names. Not read for a codec.
        scenario: `"d1"`, `"d2"` or `"d3"`; by default what a file name like `d2_3.pth.tar` says, else `"d1"`.
        quality: 1 to 4; by default what the file name says, else unknown.
        pictures: Folder of 16 or more photographs: they set the ranges of the integer networks, whose cost in bits is
            measured on them. Drawn pictures by default.
        post_layernorm_repeats: 1 as in CLIP; 2 gives the embeddings of the authors' code.
        codec_only: Convert the codec of a checkpoint that has a neck as well.
        overwrite: Replace the folder of an earlier conversion.
        progress: Show a bar on stderr.

    Raises:
        ValueError: If the checkpoint is something else or incomplete, does not fit the CLIP, or a check fails.
        OSError: If a file or model is not there.
    """
    source, output = str(source), Path(output).resolve()
    _check_output(output, overwrite=overwrite)
    scenario, quality = _operating_point(source, scenario, quality)
    samples = _sample_pictures(pictures)
    with tqdm(total=4, desc="reading", disable=not progress) as bar:
        checkpoint = read_checkpoint(source, progress=progress)
        parts = _build_parts(checkpoint, None if codec_only else clip, scenario, quality, post_layernorm_repeats)
        del checkpoint
        _advance(bar, "deriving integer networks")
        parts.codec.calibrate(samples)
        _advance(bar, "checking")
        report = _check(parts, source, samples)
        weights, expected = content_digest(parts.model), _outputs(parts.model, samples[:1])
        _advance(bar, "saving")
        with _complete_folder(output) as folder:
            parts.save(folder)
            del parts  # at full size, two models at a time would take 4 GB
            report.checks += _check_folder(folder, samples[:1], weights, expected)
            report.raise_for_failures()
            if pictures is None:
                report.notes.append("ranges and rate are from drawn pictures; photographs (--pictures) save some rate")
            (folder / REPORT_FILE).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        _advance(bar, "done")
    return report


@dataclass(frozen=True)
class _Parts:
    """A checkpoint, its codec, and where there is a neck the whole model and the CLIP it was joined with."""

    checkpoint: ForeignCheckpoint
    parameters: Weights
    derived: list[str]
    codec: ElicModel
    model: ComNeckModel | ElicModel
    tower: CLIPVisionModelWithProjection | None

    def save(self, folder: Path) -> None:
        """Model and image processor."""
        self.model.save_pretrained(folder)
        size = 256 if self.tower is None else self.model.config.image_size
        ComNeckImageProcessor.for_size(size).save_pretrained(folder)


def _advance(bar: tqdm, step: str) -> None:
    bar.update()
    bar.set_description(step)


def _build_parts(
    checkpoint: ForeignCheckpoint,
    clip: str | None,
    scenario: str,
    quality: int | None,
    post_layernorm_repeats: int,
) -> _Parts:
    config, parameters, derived = elic_weights_from(checkpoint.codec, checkpoint.layout)
    codec = _build_codec(config, parameters, quality, scenario)
    if checkpoint.neck is None or clip is None:
        return _Parts(checkpoint, parameters, derived, codec, codec, None)
    tower = load_clip_tower(clip)
    model = _join(codec, checkpoint.neck, tower, scenario, quality, post_layernorm_repeats)
    return _Parts(checkpoint, parameters, derived, codec, model, tower)


def _check(parts: _Parts, source: str, samples: torch.Tensor) -> ConversionReport:
    """Accounts for every tensor and compares the model with independent computations."""
    checkpoint, codec, model = parts.checkpoint, parts.codec, parts.model
    report = ConversionReport(source=source, layout=checkpoint.layout, parts={"codec": _count(parts.parameters)})
    report.unused = dict.fromkeys(parts.derived, "follows from the weights")
    report.unused.update(dict.fromkeys(checkpoint.ignored, "no weights"))
    theirs = to_compressai(codec)
    report.checks = [check_weights(codec, parts.parameters), *check_codec(codec, theirs, checkpoint, samples[:2])]
    report.coding_tables = stored_tables(theirs, checkpoint)
    report.rate = rate_cost(codec, samples[:4])
    if checkpoint.prefixes:
        report.notes.append(f"stripped {', '.join(checkpoint.prefixes)} from the names")
    if parts.tower is not None:
        report.parts["neck"] = _count(neck_weights(checkpoint.neck))
        report.parts["CLIP layers"] = _count(_tower_parameters(model))
        report.checks += check_features(model, checkpoint.neck, parts.tower, _sample_latents(model, samples[:2]))
    elif checkpoint.neck is not None:
        report.unused["adapter"] = "left out as asked"
    else:
        report.notes.append("the checkpoint has no neck; the model is a codec")
    return report


def _operating_point(source: str, scenario: str | None, quality: int | None) -> tuple[str, int | None]:
    """What is not given is read off a file name like `d2_3.pth.tar`."""
    match = re.search(r"(^|[^a-z0-9])(d[123])_([1-4])\.", Path(urlsplit(source).path).name)
    if match:
        scenario = match[2] if scenario is None else scenario
        quality = int(match[3]) if quality is None else quality
    scenario = "d1" if scenario is None else scenario
    if scenario not in SCENARIOS:
        raise ValueError(f"`scenario` must be one of {SCENARIOS}, got {scenario!r}.")
    if quality is not None and quality not in QUALITIES:
        raise ValueError(f"`quality` must be one of {QUALITIES}, got {quality}.")
    return scenario, quality


def _sample_pictures(folder: str | Path | None) -> torch.Tensor:
    """Float `(count, 3, side, side)` in [0, 1]: photographs, resized and cropped to 256x256, or drawn pictures."""
    if folder is None:
        return synthetic_pictures()
    crops = []
    for picture in load_picture_folder(folder, limit=_MOST_PICTURES):
        values = picture[None].float() / 255
        scale = 256 / min(values.shape[-2:])
        size = [max(256, round(side * scale)) for side in values.shape[-2:]]
        values = F.interpolate(values, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - 256) // 2 for side in size)
        crops.append(values[..., top : top + 256, left : left + 256])
    return torch.cat(crops)


def _build_codec(config: ElicConfig, parameters: Weights, quality: int | None, scenario: str) -> ElicModel:
    config.quality = quality
    if scenario == "d1" and quality is not None:
        config.lmbda = PUBLISHED_LAMBDAS[quality]
    codec = ElicModel(config).eval()
    codec.load_state_dict(parameters, strict=False)  # the integers are derived from them afterwards
    return codec


def _join(
    codec: ElicModel,
    neck: Mapping[str, torch.Tensor],
    tower: CLIPVisionModelWithProjection,
    scenario: str,
    quality: int | None,
    post_layernorm_repeats: int,
) -> ComNeckModel:
    """The whole model; refuses parts that do not fit together."""
    weights, sizes, vision = neck_weights(neck), neck_sizes(neck), tower.config
    if sizes["latent_channels"] != codec.config.latent_channels:
        raise ValueError(
            f"The neck takes latents of {sizes['latent_channels']} channels, but the codec makes "
            f"{codec.config.latent_channels}. They are not from the same model."
        )
    if sizes["hidden_size"] != vision.hidden_size:
        raise ValueError(
            f"The neck makes tokens of width {sizes['hidden_size']}, but this CLIP has {vision.hidden_size}. Give the "
            f"CLIP it was trained for (the authors' is {DEFAULT_CLIP})."
        )
    side = vision.image_size // vision.patch_size
    if sizes["latent_size"] != side:
        raise ValueError(
            f"The neck has a grid of {sizes['latent_size']}x{sizes['latent_size']} tokens, but this CLIP has "
            f"{side}x{side}. Give the CLIP it was trained for (the authors' is {DEFAULT_CLIP})."
        )
    if vision.num_hidden_layers <= 2 or vision.hidden_act != "quick_gelu":
        raise ValueError(
            f"This CLIP has {vision.num_hidden_layers} layers and {vision.hidden_act!r}; the neck replaces two layers "
            f"of a CLIP with 'quick_gelu'. Give the CLIP it was trained for (the authors' is {DEFAULT_CLIP})."
        )
    config = ComNeckConfig.from_codec_and_clip_configs(
        codec.config,
        vision,
        projection_dim=tower.visual_projection.out_features,
        scenario=scenario,
        quality=quality,
        neck_intermediate_size=sizes["intermediate_size"],
        post_layernorm_repeats=post_layernorm_repeats,
    )
    config.codec_config = codec.config  # the same object, since deriving the tables writes their size there
    with torch.device("meta"):
        model = ComNeckModel(config)
    # Weights are shared with the tower, which at full size has 1.2 GB.
    model.codec, model.visual_projection = codec, tower.visual_projection
    model.vision_model.load_state_dict(tower.vision_model.state_dict(), strict=False, assign=True)
    model.vision_model.neck.load_state_dict(weights, assign=True)
    assert not any(value.is_meta for value in model.state_dict().values()), "every weight has a source"
    return model.eval()


def _tower_parameters(model: ComNeckModel) -> Weights:
    parameters = {name: value for name, value in model.vision_model.named_parameters() if "neck." not in name}
    return {**parameters, "visual_projection.weight": model.visual_projection.weight}


def _sample_latents(model: ComNeckModel, samples: torch.Tensor) -> torch.Tensor:
    """Real latents on the neck's grid."""
    size = model.config.image_size
    size = (size, size) if isinstance(size, int) else size
    return model.codec.encode(F.interpolate(samples, size=size, mode="bilinear")).latents


def _count(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {"tensors": len(weights), "parameters": sum(value.numel() for value in weights.values())}


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses to replace anything but an earlier conversion."""
    if not output.exists():
        return
    if not overwrite:
        raise ValueError(f"{output} exists already. Choose another folder, or overwrite it (--force).")
    if not (output / REPORT_FILE).is_file():
        raise ValueError(f"{output} is not the folder of an earlier conversion and stays. Choose another folder.")


@contextmanager
def _complete_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `output` if all goes well and otherwise disappears."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{output.name}.", dir=output.parent) as temporary:
        part = Path(temporary) / "new"
        part.mkdir()
        yield part
        if output.exists():
            output.rename(Path(temporary) / "old")
        part.rename(output)


def _check_folder(folder: Path, samples: torch.Tensor, weights: str, expected: torch.Tensor) -> list[Check]:
    """Compares what a folder holds with the weights' digest and the outputs of the model that was saved there."""
    model = AutoModel.from_pretrained(folder).eval()
    differs = float(content_digest(model) != weights)
    # on some processors the sums of floats depend on where their memory begins
    difference = largest_difference(_outputs(model, samples), expected)
    return [
        Check("weights after loading the folder with AutoModel", differs, 0.0),
        Check("outputs after loading it", difference, 1e-5),
    ]


@torch.no_grad()
def _outputs(model: PreTrainedModel, samples: torch.Tensor) -> torch.Tensor:
    """What a model is for: embeddings from latents, or from a codec a picture from bytes."""
    if isinstance(model, ElicModel):
        return model.decode(model.decompress(model.compress(samples)))
    return model(latents=_sample_latents(model, samples)).image_embeds


__all__ = ["REPORT_FILE", "convert_checkpoint"]
