"""Trains a codec, ELIC or TIC, for rate and distortion: lambda * 255^2 * MSE + bits per pixel.

python scripts/train_codec.py configs/comneck-tiny-codec-base.yaml --data DATA/caltech101_144 --output_dir runs/base
python scripts/train_codec.py configs/comneck-tiny-tic.yaml --data DATA/caltech101_144 --output_dir runs/tic
python scripts/train_codec.py configs/comneck-tiny-variable-rate.yaml --quality 3 --lmbda 0.001 \\
    --codec runs/codec-q3/model --data DATA/caltech101_144 --output_dir runs/variable
torchrun --nproc_per_node 2 scripts/train_codec.py CONFIG.yaml --data DATA --output_dir runs/codec
"""

from dataclasses import dataclass, field, fields
from functools import partial

import torch
from transformers import AutoModel

from comneck_hf.evaluation.rate_accuracy import measure_codec
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.restoration_elic import restore_entropy_networks
from comneck_hf.models.tic.configuration_tic import TicConfig
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import ImagePack, load_sample, picture_loader, training_pictures
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.initialization import init_transforms_from_images
from comneck_hf.training.loop import Metrics, Training, prepare_run
from comneck_hf.training.objective import CodecObjective
from comneck_hf.training.stages import Stage, choose_stages, codec_stages


ARCHITECTURES = {"elic": ElicConfig, "tic": TicConfig}
WIDTHS = ("hidden_channels", "latent_channels", "group_channels", "context_channels", "aggregation_channels")
BLOCKS = ("depths", "num_heads", "window_sizes")


@dataclass(kw_only=True)
class CodecArguments(RunArguments):
    """Widths and recipe of one codec training; widths that are left out are the architecture's published ones."""

    data: str = field(metadata={"help": "Hub id or folder that `datasets` loads, with a column image"})
    reading: str = field(default="rows", metadata={"help": "memory, rows or stream"})
    validation_split: str = "validation"
    validation_pictures: int = field(default=100, metadata={"help": "pictures that are coded in a validation"})
    calibration_pictures: int = field(default=64, metadata={"help": "from which integer networks are derived"})
    codec: str | None = field(default=None, metadata={"help": "codec to start from, instead of from the pictures"})
    architecture: str = field(default="elic", metadata={"help": "elic or tic, of a codec that starts from pictures"})
    hidden_channels: int | None = None
    latent_channels: int | None = None
    group_channels: list[int] | None = None
    context_channels: list[int] | None = None
    aggregation_channels: list[int] | None = None
    depths: list[int] | None = field(default=None, metadata={"help": "TIC: layers of its four blocks"})
    num_heads: list[int] | None = field(default=None, metadata={"help": "TIC: attention heads of its four blocks"})
    window_sizes: list[int] | None = field(default=None, metadata={"help": "TIC: window sides of its four blocks"})
    quality: int = field(default=2, metadata={"help": "operating point, 1 to 4"})
    lmbda: float = 0.008
    crop_size: int = field(default=256, metadata={"help": "side of the random windows in pixels"})
    gain_range: list[float] = field(
        default_factory=list,
        metadata={"help": "one codec for all rates: lowest and highest random gain, in octaves; lmbda is gain 0's"},
    )
    spatial_share: float = field(
        default=0.5, metadata={"help": "of the pictures, with gains that vary in them; at most 2/3"}
    )
    gain_levels: int = field(
        default=0, metadata={"help": "gains in that range with channel vectors of their own, 0 for as codec has it"}
    )
    validation_gains: list[float] = field(
        default_factory=list, metadata={"help": "rates of the validation in octaves, by default the codec's own"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.gain_range) not in (0, 2):
            raise ValueError(f"`gain_range` must be the lowest and the highest gain, got {self.gain_range}.")
        if not 0 <= self.spatial_share <= 2 / 3:
            raise ValueError(f"`spatial_share` must be in [0, 2/3], got {self.spatial_share}.")
        if self.gain_levels and not self.gain_range:
            raise ValueError(f"`gain_levels` {self.gain_levels} lie in `gain_range`. Give it, too.")


def build_config(args: CodecArguments) -> ElicConfig:
    """The configuration of a codec that starts from pictures."""
    if args.architecture not in ARCHITECTURES:
        raise ValueError(f"`architecture` must be one of {sorted(ARCHITECTURES)}, got {args.architecture!r}.")
    kind = ARCHITECTURES[args.architecture]
    widths: dict[str, object] = {name: value for name in WIDTHS + BLOCKS if (value := getattr(args, name)) is not None}
    foreign = sorted(set(widths) - {option.name for option in fields(kind)})
    if foreign:
        raise ValueError(f"{foreign} say nothing to the architecture {args.architecture!r}. Leave them out.")
    if args.gain_levels:
        widths |= {"gain_levels": args.gain_levels, "gain_level_range": args.gain_range}
    return kind(**widths, lmbda=args.lmbda, quality=args.quality)


def build_codec(args: CodecArguments, sample: torch.Tensor) -> ElicModel:
    """The codec to start from: a trained one, or one whose transforms already code the sample."""
    if args.codec is not None:
        codec = restore_entropy_networks(codec_from_pretrained(args.codec))
        if args.gain_levels:
            codec = add_gain_vectors(codec, levels=args.gain_levels, level_range=args.gain_range)
        codec.config.update({"lmbda": args.lmbda, "quality": args.quality})
    else:
        codec = AutoModel.from_config(build_config(args))
        init_transforms_from_images(codec, sample, args.lmbda)
    return codec.to(memory_format=torch.channels_last)


def build_objective(args: CodecArguments, sample: torch.Tensor) -> CodecObjective:
    """Codec and stages, and random gains where it is to serve all rates."""
    gains = None
    if args.gain_range:
        # a third of the pictures that `random_share` counts is uniform
        gains = RandomGains(*args.gain_range, random_share=min(1.0, 1.5 * args.spatial_share))
    stages = choose_stages(codec_stages(args.lmbda), args.stages)
    return CodecObjective(build_codec(args, sample), stages, sample, gains=gains)


def validate(args: CodecArguments, objective: CodecObjective, pictures: ImagePack, stage: Stage) -> Metrics:
    """Real bytes and distortion; with several rates, the score is the mean of theirs."""
    codec, scores, metrics = objective.calibrate(), [], {}
    for gain in args.validation_gains or [0.0]:
        found = measure_codec(codec, pictures.images, gain=gain)
        scores.append(-(args.lmbda * 4**gain * 255**2 * found["mse"] + found["bpp"]))
        mark = f"@{gain:g}" if args.validation_gains else ""
        metrics |= {f"{name}{mark}": value for name, value in found.items()}
    return {"score": sum(scores) / len(scores), **metrics}


def main(args: CodecArguments) -> None:
    accelerator = prepare_run(args)
    with accelerator.main_process_first():
        augmentation = Augmentation(args.crop_size, "window")
        pictures = training_pictures(args.data, augmentation, reading=args.reading, seed=args.seed)
        sample = load_sample(args.data, "train", args.calibration_pictures, reading=args.reading).images / 255
        validation = load_sample(args.data, args.validation_split, args.validation_pictures, reading=args.reading)
    objective = build_objective(args, sample)
    loader = picture_loader(pictures, batch_size=args.batch_size, num_workers=args.dataloader_num_workers)
    measured = partial(validate, args, objective, validation)
    Training(accelerator, objective, loader, args, validate=measured).run()


if __name__ == "__main__":
    main(parse_arguments(CodecArguments))
