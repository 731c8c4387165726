"""Pictures and bitstreams on disk: which to read, where to write."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..models.comneck.image_sources import BITSTREAM_SUFFIX


__all__ = [
    "BITSTREAM_SUFFIX",
    "PICTURE_SUFFIXES",
    "find_files",
    "pair_files",
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
        ValueError: If a folder is empty, the output can be neither folder nor file, two results would have the same
            name, or one exists.
    """
    files = find_files(inputs, suffixes=reads)
    kinds = f"a folder, or for one input a file with {', '.join(writes)}"
    if output.is_file() and (len(files) > 1 or output.suffix.lower() not in writes):
        raise ValueError(f"The output {output} is a file. Give {kinds}.")
    if len(files) == 1 and not output.exists() and output.suffix and output.suffix.lower() not in writes:
        raise ValueError(f"The output {output} has the suffix {output.suffix}. Give {kinds}.")
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


def to_image(pixel_values: torch.Tensor) -> Image.Image:
    """An 8-bit picture from `(3, height, width)` values in [0, 1], rounded."""
    levels = (pixel_values.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))
