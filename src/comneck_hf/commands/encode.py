"""The command that codes pictures, at any rate and with more bits where they matter."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import (
    DEFAULT_CLIP,
    DEFAULT_MODEL,
    BatchOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RoiOption,
    coding_line,
    in_batches,
    one_line_errors,
    placement,
    report,
)


__all__ = ["encode"]


GainOption = Annotated[
    float | None, typer.Option("--gain", help="Octaves finer than trained; below 0 coarser, for fewer bytes.")
]
QualityOption = Annotated[
    float | None, typer.Option("--quality", help="Rate on the scale of the trained ones, such as 2.5.")
]
TargetBytesOption = Annotated[int | None, typer.Option("--target-bytes", min=1, help="Bytes per file.")]
TargetBppOption = Annotated[float | None, typer.Option("--target-bpp", help="Bits per pixel.")]
GuideOption = Annotated[
    bool | None,
    typer.Option(
        "--guide/--no-guide",
        help="More bits where CLIP's first layers look. A CoTAM does so by itself, with its own CLIP, where no other "
        "map is asked for.",
    ),
]
ImportanceOption = Annotated[
    Path | None, typer.Option("--importance", help="More bits by a mask or heat map: a picture, or .npy.")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help='More bits on what words name, such as "the licence plate".')
]
LatentGuideOption = Annotated[
    Path | None,
    typer.Option("--latent-guide", help="More bits where a guide of train_latent_guide.py expects CLIP's look."),
]
StepOption = Annotated[
    int | None, typer.Option("--map-step", min=1, max=15, help="Quarter octaves of gain per level of the map; 2.")
]
GridOption = Annotated[
    int | None, typer.Option("--map-grid", min=1, max=64, help="Cells per side of the map, at most; 8, of a prompt 4.")
]
ClipOption = Annotated[
    str | None, typer.Option("--clip", help=f"CLIP for --guide and --prompt; {DEFAULT_CLIP}, or a CoTAM's own.")
]


@one_line_errors
def encode(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Pictures, or folders of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; for one picture also FILE.cnk.")] = Path(),
    model: ModelOption = DEFAULT_MODEL,
    gain: GainOption = None,
    quality: QualityOption = None,
    target_bytes: TargetBytesOption = None,
    target_bpp: TargetBppOption = None,
    guide: GuideOption = None,
    roi: RoiOption = None,
    importance: ImportanceOption = None,
    prompt: PromptOption = None,
    latent_guide: LatentGuideOption = None,
    map_step: StepOption = None,
    map_grid: GridOption = None,
    clip: ClipOption = None,
    no_crop: Annotated[bool, typer.Option("--no-crop", help="Code whole pictures, not resized.")] = False,
    batch_size: BatchOption = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Code pictures into .cnk files.

    Pictures are resized and cropped to what the model's features need. Whole pictures (--no-crop) can always be
    decoded; their features need --interpolate. One of --guide, --roi, --importance, --prompt and --latent-guide moves
    bits within the picture; one of --gain, --quality, --target-bytes and --target-bpp sets how many there are.
    """
    from .files import BITSTREAM_SUFFIX, PICTURE_SUFFIXES, pair_files
    from .loading import load_image_processor
    from .maps import MapOptions, coder_and_map, parse_box
    from .streams import check_gains, encode_files

    options = MapOptions(
        guide=bool(guide),
        boxes=tuple(parse_box(box) for box in roi or ()),
        importance=importance,
        prompt=prompt,
        latent_guide=latent_guide,
        clip=clip,
        step=map_step,
        grid=map_grid,
    )
    rate = _only_one(gain=gain, quality=quality, target_bytes=target_bytes, target_bpp=target_bpp)
    pairs = pair_files(images, output, reads=PICTURE_SUFFIXES, writes=[BITSTREAM_SUFFIX], overwrite=force)
    coder, make_map = coder_and_map(model, options, guide, **placement(device, dtype))
    if rate or make_map is not None:
        check_gains(coder)
    image_processor = load_image_processor(model, crop=not no_crop)
    results = in_batches(
        pairs,
        batch_size,
        lambda batch: encode_files(coder, image_processor, batch, make_map=make_map, rate=rate),
        quiet,
    )
    report(results, coding_line, quiet, as_json)


def _only_one(**options: float | None) -> dict[str, float]:
    """The option that is set, if one is; raises where it is not the only one."""
    found = {name: value for name, value in options.items() if value is not None}
    if len(found) > 1:
        words = [f"--{name.replace('_', '-')}" for name in options]
        raise typer.BadParameter(f"{', '.join(words[:-1])} and {words[-1]} exclude one another.")
    return found
