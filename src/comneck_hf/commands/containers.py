"""Pictures in tiles or on a canvas, as LLaVA-NeXT's processor compresses them: what is in them, and the picture."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from .. import Bitstream, BitstreamError, CompressaiModel, ElicModel
from ..coding.bitstream import TILES_MAGIC
from ..coding.tiles import TiledBitstream
from ..evaluation.metrics import bits_per_pixel
from ..models.comneck.canvas_comneck import join_tiles, resize_picture
from .reports import bitstream_facts, bitstream_text


__all__ = ["container_facts", "container_text", "decode_container", "is_container"]


def is_container(data: bytes) -> bool:
    """Whether the content of a `.cnk` file, or its beginning, is a container of bitstreams, good or damaged."""
    return data.startswith(TILES_MAGIC)


def container_facts(data: bytes, *, codec: PreTrainedModel | None = None) -> dict[str, Any]:
    """Sizes, origin and integrity of a container.

    Args:
        data: Content of the file.
        codec: The codec it may have been written by, as in `bitstream_facts`.

    Returns:
        `tiles` holds what `bitstream_facts` returns for each tile, or for the canvas.

    Raises:
        BitstreamError: If the container or a tile is damaged.
    """
    container = TiledBitstream.parse(data)
    height, width = container.height, container.width
    tiles = []
    for number, tile in enumerate(container.tiles, start=1):
        try:
            tiles.append(bitstream_facts(tile, codec=codec))
        except BitstreamError as error:
            raise BitstreamError(f"Tile {number} of {len(container.tiles)}: {error}") from error
    return {
        "container": "canvas" if container.is_canvas else "tiles",
        "version": data[3],
        "height": height,
        "width": width,
        "bytes": len(data),
        "container_bytes": len(data) - sum(len(tile) for tile in container.tiles),
        "bpp": bits_per_pixel(len(data), height=height, width=width),
        "integrity": "checksum",
        "tiles": tiles,
    }


def container_text(facts: Mapping[str, Any], *, name: str, model: str) -> str:
    """`container_facts` for a terminal; arguments as of `bitstream_text`."""
    tiles = facts["tiles"]
    is_canvas = facts["container"] == "canvas"
    what = "picture on a canvas" if is_canvas else f"picture in {len(tiles)} tiles"
    lines = [
        f"{name}: comneck {what}, version {facts['version']}",
        f"  picture      {facts['width']}x{facts['height']} pixels, before it was resized",
        f"  size         {facts['bytes']} bytes, {facts['container_bytes']} of them around the bitstreams",
        f"  rate         {facts['bpp']:.4f} bits per pixel",
        f"  integrity    {facts['integrity']}",
        "",
    ]
    if is_canvas:
        return "\n".join([*lines, bitstream_text(tiles[0], name="canvas", model=model)])
    lines.append(f"  {'tile':<12}{'pixels':>11}{'bytes':>9}{'share':>9}  {'fingerprint':<12}integrity")
    for number, tile in enumerate(tiles):
        title = "overview" if number == 0 else str(number)
        size, share = f"{tile['width']}x{tile['height']}", tile["bytes"] / facts["bytes"]
        lines.append(
            f"  {title:<12}{size:>11}{tile['bytes']:>9}{share:>9.1%}  {tile['fingerprint']:<12}{tile['integrity']}"
        )
    if "model_matches" in tiles[0]:
        wrote = sum(tile["model_matches"] for tile in tiles)
        verdict = "wrote them" if wrote == len(tiles) else f"wrote {wrote} of them and cannot decode the others"
        lines.append(f"  model        {model} {verdict}")
    return "\n".join(lines)


@torch.no_grad()
def decode_container(codec: ElicModel | CompressaiModel, data: bytes) -> torch.Tensor:
    """The picture in a container, at its original size.

    Tiles do not say how they lie: of all arrangements, the one is taken that looks most like the view of the whole.

    Args:
        codec: The codec that wrote it.
        data: Content of the file.

    Returns:
        Shape `(3, height, width)`, values in [0, 1].

    Raises:
        BitstreamError: If the container or a tile is damaged, was written by another model, or is too large.
    """
    container = TiledBitstream.parse(data)
    size, limit = (container.height, container.width), codec.config.max_pixels
    headers = [Bitstream.parse(tile, max_pixels=limit) for tile in container.tiles]
    sizes = {(header.height, header.width) for header in headers}
    coded = sum(header.height * header.width for header in headers)
    if max(coded, size[0] * size[1]) > limit:
        raise BitstreamError(
            f"The container announces a picture of {size[0]}x{size[1]} pixels and {coded} coded ones, more than "
            f"`max_pixels` = {limit} of the codec. Raise it in the configuration if you trust the source."
        )
    if len(sizes) > 1:
        raise BitstreamError(f"The tiles have different sizes, {sorted(sizes)}. Encode the picture again.")
    latents, gains = codec.decompress(container.tiles), codec.coded_gains(container.tiles)
    tiles = codec.decode(latents, size=sizes.pop(), **gains).float()
    canvas = tiles[0] if container.is_canvas else _arranged(tiles[1:], tiles[0], size)
    return resize_picture(canvas, size, size=size)


def _arranged(tiles: torch.Tensor, overview: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The canvas of tiles, in the arrangement whose picture is nearest to the view of the whole."""
    count = len(tiles)
    canvases = [join_tiles(tiles, rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    small = [resize_picture(canvas, tuple(overview.shape[1:]), size=size) for canvas in canvases]
    errors = [float((picture - overview).square().mean()) for picture in small]
    return canvases[errors.index(min(errors))]
