"""Pictures and bitstreams on disk: which to read, where to write."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..models.comneck.image_sources import BITSTREAM_SUFFIX


__all__ = [
    "BITSTREAM_SUFFIX",
    "PICTURE_SUFFIXES",
    "find_files",
    "pair_files",
    "read_picture",
    "refuse_existing",
    "to_image",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


def find_files(inputs: Iterable[Path], *, suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files and the files of folders, searched with subfolders.

    Args:
        inputs: Files, taken whatever their suffix and existence, and folders.
        suffixes: Which files of a folder are taken, lower case.

    Returns:
        Pairs of a file and its name relative to the input it came from, sorted within each folder.

    Raises:
        ValueError: If a folder holds no such file.
    """
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not inside:
            raise ValueError(f"The folder {path} holds no {', '.join(suffixes)} files.")
        found += [(file, file.relative_to(path)) for file in inside]
    return found


def pair_files(
    inputs: Iterable[Path], output: Path, *, reads: Sequence[str], writes: Sequence[str], overwrite: bool = False
) -> list[tuple[Path, Path]]:
    """Which files to read, and where to write the result of each.

    Args:
        inputs: Files and folders, as in `find_files`.
        output: A folder, which need not exist; for a single file also a file name with a suffix of `writes`. Results
            of a folder's files keep their place relative to it.
        reads: Suffixes of inputs.
        writes: Suffixes of results; files in a folder get the first.
        overwrite: Accept results that exist.

    Raises:
        ValueError: If a folder is empty, two results would have the same name, or one exists.
    """
    files = find_files(inputs, suffixes=reads)
    if len(files) == 1 and output.suffix.lower() in writes and not output.is_dir():
        pairs = [(files[0][0], output)]
    else:
        pairs = [(source, output / name.with_suffix(writes[0])) for source, name in files]
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        if target in sources:
            raise ValueError(
                f"{sources[target]} and {source} would both be written to {target}. Give them different folders."
            )
        sources[target] = source
    if not overwrite:
        refuse_existing(sources)
    return pairs


def refuse_existing(targets: Iterable[Path]) -> None:
    """Raises `ValueError`, naming the first, if any of the files exists."""
    existing = [target for target in targets if target.exists()]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}{more} exists already. Pass --force to overwrite.")


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, upright as its EXIF orientation says; 16 bits are rounded to 8.

    Raises:
        ValueError: If the file cannot be read as a picture.
        OSError: If it cannot be opened at all.
    """
    with path.open("rb") as file:
        try:
            picture = ImageOps.exif_transpose(Image.open(file))
            if picture.mode in ("I", "F"):
                raise ValueError(
                    f"the range of its 32-bit values (mode {picture.mode}) is unknown. Save it with 8 bits."
                )
            if picture.mode.startswith("I;16"):  # which `convert` would clip
                values = np.asarray(picture).astype(np.uint32)
                picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            return picture.convert("RGB")
        except Image.UnidentifiedImageError:
            raise ValueError(f"{path} is not a picture in a format that Pillow reads.") from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable picture: {error}") from None


def to_image(pixel_values: torch.Tensor) -> Image.Image:
    """An 8-bit picture from `(3, height, width)` values in [0, 1], rounded."""
    levels = (pixel_values.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))
