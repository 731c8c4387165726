"""Files through the codec and the model, batch by batch; a bad file never stops the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .. import (
    Bitstream,
    BitstreamError,
    ComNeckImageProcessorPil,
    ComNeckModel,
    ComNeckModelOutput,
    CompressaiModel,
    CotamModel,
    ElicModel,
)
from ..coding.bitstream import TILES_MAGIC
from ..coding.gain_map import GainMap
from ..evaluation.metrics import bits_per_pixel
from ..models.comneck.image_sources import read_picture
from .containers import decode_container, is_container
from .files import to_image
from .labels import Label, ZeroShotClassifier
from .maps import MapMaker, prepare_picture


__all__ = [
    "FileResult",
    "LatentsFile",
    "check_gains",
    "classify_files",
    "concatenate_features",
    "decode_files",
    "encode_files",
    "feature_tensors",
    "forward_latents",
    "read_latents",
]


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    Attributes:
        input: The file that was read.
        output: The file that was written.
        bytes: Size of the bitstream.
        height: Height of the coded picture in pixels, before padding.
        width: Width, likewise.
        bpp: Bits of the bitstream per pixel of the picture.
        labels: The most probable labels, best first.
        answer: To the question that was asked.
        error: Why there is no result.
    """

    input: str
    output: str | None = None
    bytes: int | None = None
    height: int | None = None
    width: int | None = None
    bpp: float | None = None
    labels: tuple[Label, ...] | None = None
    answer: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The attributes that are set, ready for JSON."""
        facts = {fact.name: getattr(self, fact.name) for fact in fields(self)}
        if self.labels is not None:
            facts["labels"] = [label._asdict() for label in self.labels]
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class LatentsFile:
    """A bitstream file that was read.

    Attributes:
        path: The file.
        latents: Shape `(latent_channels, height / 16, width / 16)` of the padded picture; `None` after an error.
        size: Bytes, and height and width of the original picture.
        gains: What decoding the latents takes beside them, as `coded_gains` has it for one bitstream.
        error: Why there are no latents.
    """

    path: Path
    latents: torch.Tensor | None = None
    size: tuple[int, int, int] = (0, 0, 0)
    gains: Mapping[str, list[Any]] = field(default_factory=dict)
    error: str | None = None


def check_gains(coder: ElicModel | CompressaiModel | CotamModel) -> None:
    """Raises `ValueError` if the codec has one rate only and cannot move bits within a picture."""
    codec = _codec_of(coder)
    if not codec.config.has_gains:
        raise ValueError(
            f"A {codec.config.model_type!r} codec has no gains: no rate control and no gain maps. Use an ELIC or TIC "
            "model."
        )


def _codec_of(coder: ElicModel | CompressaiModel | CotamModel) -> ElicModel | CompressaiModel:
    return coder.codec if isinstance(coder, CotamModel) else coder


def encode_files(
    coder: ElicModel | CompressaiModel | CotamModel,
    image_processor: ComNeckImageProcessorPil,
    pairs: Sequence[tuple[Path, Path]],
    *,
    make_map: MapMaker | None = None,
    rate: Mapping[str, float] | None = None,
) -> list[FileResult]:
    """Codes pictures together.

    Args:
        coder: The codec, or a CoTAM that makes gain maps by itself.
        image_processor: Prepares each picture.
        pairs: Picture files and the bitstream files to write; folders are made.
        make_map: Makes the gain map of each picture.
        rate: Options of `compress` that set the rate: `gain`, `quality`, `target_bytes` or `target_bpp`.
    """
    codec = _codec_of(coder)
    results: dict[Path, FileResult] = {}
    pictures: dict[Path, torch.Tensor] = {}
    maps: dict[Path, GainMap] = {}
    for source, _ in pairs:
        try:
            picture = prepare_picture(read_picture(source), image_processor, size_divisor=codec.config.size_divisor)
            _check_pixels(picture.pixel_values, codec.config.max_pixels)
            if make_map is not None:
                maps[source] = make_map(picture)
            pictures[source] = picture.pixel_values
        except (ValueError, OSError) as error:
            results[source] = FileResult(str(source), error=_reason(error))
    bitstreams = _compress(coder, pictures, maps, rate or {}, results)
    for source, target in pairs:
        if source in bitstreams:
            results[source] = _write_bitstream(source, target, bitstreams[source], pictures[source])
    return [results[source] for source, _ in pairs]


def _compress(
    coder: ElicModel | CompressaiModel | CotamModel,
    pictures: Mapping[Path, torch.Tensor],
    maps: Mapping[Path, GainMap],
    rate: Mapping[str, float],
    results: dict[Path, FileResult],
) -> dict[Path, bytes]:
    """Bitstreams of pictures, coded one by one only if one of them cannot be; errors go to `results`."""
    if not pictures:
        return {}
    options: dict[str, Any] = {**rate, "gain_maps": [maps[source] for source in pictures]} if maps else {**rate}
    try:
        return dict(zip(pictures, coder.compress(list(pictures.values()), **options), strict=True))
    except ValueError as error:
        if len(pictures) == 1:
            results[next(iter(pictures))] = FileResult(str(next(iter(pictures))), error=_reason(error))
            return {}
    return {
        name: data
        for source, picture in pictures.items()
        for name, data in _compress(coder, {source: picture}, maps, rate, results).items()
    }


def _check_pixels(picture: torch.Tensor, max_pixels: int) -> None:
    height, width = picture.shape[-2:]
    if height * width > max_pixels:
        raise ValueError(f"the picture has {height}x{width} pixels, more than the codec's limit of {max_pixels}")


def _write_bitstream(source: Path, target: Path, bitstream: bytes, picture: torch.Tensor) -> FileResult:
    height, width = picture.shape[-2:]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bitstream)
    except OSError as error:
        return FileResult(str(source), error=_reason(error))
    bpp = bits_per_pixel(len(bitstream), height=height, width=width)
    return FileResult(str(source), str(target), len(bitstream), height, width, bpp)


def read_latents(codec: ElicModel, paths: Sequence[Path]) -> list[LatentsFile]:
    """Decodes bitstream files together, on their own only if one of them is damaged."""
    contents: dict[Path, bytes] = {}
    results: dict[Path, LatentsFile] = {}
    for path in paths:
        try:
            contents[path] = path.read_bytes()
        except OSError as error:
            results[path] = LatentsFile(path, error=_reason(error))
    try:
        results |= _decompress(codec, contents)
    except BitstreamError:
        for path, content in contents.items():
            try:
                results |= _decompress(codec, {path: content})
            except BitstreamError as error:
                results[path] = LatentsFile(path, error=_reason(error))
    return [results[path] for path in paths]


def _decompress(codec: ElicModel, contents: dict[Path, bytes]) -> dict[Path, LatentsFile]:
    if not contents:
        return {}
    latents = codec.decompress(list(contents.values()))
    results = {}
    for (path, data), picture in zip(contents.items(), latents, strict=True):
        container = Bitstream.parse(data, max_pixels=codec.config.max_pixels)
        size = (len(data), container.height, container.width)
        results[path] = LatentsFile(path, picture, size, codec.coded_gains([data]))
    return results


@torch.no_grad()
def decode_files(codec: ElicModel, pairs: Sequence[tuple[Path, Path]]) -> list[FileResult]:
    """Decodes bitstream files to pictures of their original size.

    Args:
        codec: The codec that wrote them.
        pairs: Bitstream files, or containers of tiles, and the picture files to write; folders are made.
    """
    results = {source: _decode_container(codec, source, target) for source, target in pairs if _holds_tiles(source)}
    others = [(source, target) for source, target in pairs if source not in results]
    for (source, target), file in zip(others, read_latents(codec, [source for source, _ in others]), strict=True):
        if file.latents is None:
            results[source] = FileResult(str(source), error=file.error)
            continue
        num_bytes, height, width = file.size
        picture = codec.decode(file.latents[None], size=(height, width), **file.gains)[0]
        results[source] = _write_picture(source, target, picture, num_bytes)
    return [results[source] for source, _ in pairs]


def _holds_tiles(path: Path) -> bool:
    """Whether a file can be read and is a container."""
    try:
        with path.open("rb") as file:
            return is_container(file.read(len(TILES_MAGIC)))
    except OSError:
        return False


def _decode_container(codec: ElicModel, source: Path, target: Path) -> FileResult:
    try:
        data = source.read_bytes()
        return _write_picture(source, target, decode_container(codec, data), len(data))
    except (BitstreamError, OSError) as error:
        return FileResult(str(source), error=_reason(error))


def _write_picture(source: Path, target: Path, picture: torch.Tensor, num_bytes: int) -> FileResult:
    height, width = picture.shape[-2:]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        to_image(picture).save(target)
    except OSError as error:
        return FileResult(str(source), error=_reason(error))
    bpp = bits_per_pixel(num_bytes, height=height, width=width)
    return FileResult(str(source), str(target), num_bytes, height, width, bpp)


@torch.no_grad()
def forward_latents(
    model: ComNeckModel, files: Sequence[LatentsFile], *, interpolate: bool = False
) -> ComNeckModelOutput:
    """Features of decoded files as one batch.

    Args:
        model: Neck and tower.
        files: Decoded files without errors.
        interpolate: Accept latents of other sizes than the neck's.

    Raises:
        ValueError: If latents differ in size, or do not fit the neck.
    """
    expected = model.config.vision_config.latent_grid
    for file in files:
        grid = tuple(file.latents.shape[-2:])
        if grid != expected and not interpolate:
            raise ValueError(
                f"{file.path} has latents of {grid[0]}x{grid[1]}, but the neck was built for {expected[0]}x"
                f"{expected[1]}. Encode without --no-crop, or pass --interpolate."
            )
        if grid != tuple(files[0].latents.shape[-2:]):
            raise ValueError(f"{files[0].path} and {file.path} have latents of different sizes. Give them one by one.")
    gains = {name: [value for file in files for value in file.gains[name]] for name in files[0].gains}
    latents = torch.stack([file.latents for file in files])
    return model(latents=latents, interpolate_pos_encoding=interpolate, **gains)


def classify_files(
    model: ComNeckModel,
    classifier: ZeroShotClassifier,
    paths: Sequence[Path],
    *,
    count: int,
    interpolate: bool = False,
) -> list[FileResult]:
    """Labels bitstream files from their latents.

    Args:
        model: Codec, neck and tower.
        classifier: Made from the CLIP of the model.
        paths: Bitstream files, decoded together.
        count: How many labels to list.
        interpolate: Accept latents of other sizes than the neck's.

    Raises:
        ValueError: If latents do not fit the neck or each other.
    """
    files = read_latents(model.codec, paths)
    good = [file for file in files if file.error is None]
    rows = classifier.top(forward_latents(model, good, interpolate=interpolate).image_embeds, count) if good else []
    labels = {file.path: tuple(row) for file, row in zip(good, rows, strict=True)}
    return [FileResult(str(file.path), labels=labels.get(file.path), error=file.error) for file in files]


def feature_tensors(
    model: ComNeckModel, paths: Sequence[Path], *, interpolate: bool = False
) -> dict[str, torch.Tensor]:
    """Features of bitstream files on the CPU, one row per file.

    Args:
        model: Codec, neck and tower.
        paths: Bitstream files, decoded together.
        interpolate: Accept latents of other sizes than the neck's.

    Returns:
        `image_embeds`, `pooler_output`, `last_hidden_state` and `latents`.

    Raises:
        ValueError: If a file cannot be decoded, or its latents do not fit.
    """
    files = read_latents(model.codec, paths)
    for file in files:
        if file.error is not None:
            raise ValueError(f"{file.path}: {file.error}")
    outputs = forward_latents(model, files, interpolate=interpolate)
    names = ("image_embeds", "pooler_output", "last_hidden_state", "latents")
    return {name: outputs[name].cpu().contiguous() for name in names}


def concatenate_features(batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins what `feature_tensors` returned. Raises `ValueError` if the latents of the batches differ in size."""
    grids = {tuple(batch["latents"].shape[-2:]) for batch in batches}
    if len(grids) > 1:
        raise ValueError(f"The latents have different sizes: {sorted(grids)}. Write the features of each size apart.")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _reason(error: Exception) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
