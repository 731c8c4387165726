"""Trains a codec, ELIC or TIC, for rate and distortion: lambda * 255^2 * MSE + bits per pixel.

python scripts/train_codec.py configs/comneck-tiny-codec-base.yaml --data DATA/caltech101_144 --output_dir runs/base
python scripts/train_codec.py configs/comneck-tiny-tic.yaml --data DATA/caltech101_144 --output_dir runs/tic
torchrun --nproc_per_node 2 scripts/train_codec.py CONFIG.yaml --data DATA --output_dir runs/codec
"""

from dataclasses import dataclass, field, fields

import torch
from transformers import AutoModel

from comneck_hf.evaluation.rate_accuracy import measure_codec
from comneck_hf.models.comneck.processing_comneck import codec_from_pretrained
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.tic.configuration_tic import TicConfig
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import load_sample, picture_loader, training_pictures
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


def build_config(args: CodecArguments) -> ElicConfig:
    """The configuration of a codec that starts from pictures."""
    if args.architecture not in ARCHITECTURES:
        raise ValueError(f"`architecture` must be one of {sorted(ARCHITECTURES)}, got {args.architecture!r}.")
    kind = ARCHITECTURES[args.architecture]
    widths = {name: value for name in WIDTHS + BLOCKS if (value := getattr(args, name)) is not None}
    foreign = sorted(set(widths) - {option.name for option in fields(kind)})
    if foreign:
        raise ValueError(f"{foreign} say nothing to the architecture {args.architecture!r}. Leave them out.")
    return kind(**widths, lmbda=args.lmbda, quality=args.quality)


def build_codec(args: CodecArguments, sample: torch.Tensor) -> ElicModel:
    """The codec to start from: a trained one, or one whose transforms already code the sample."""
    if args.codec is not None:
        codec = codec_from_pretrained(args.codec)
        codec.config.update({"lmbda": args.lmbda, "quality": args.quality})
    else:
        codec = AutoModel.from_config(build_config(args))
        init_transforms_from_images(codec, sample, args.lmbda)
    return codec.to(memory_format=torch.channels_last)


def main(args: CodecArguments) -> None:
    accelerator = prepare_run(args)
    with accelerator.main_process_first():
        augmentation = Augmentation(args.crop_size, "window")
        pictures = training_pictures(args.data, augmentation, reading=args.reading, seed=args.seed)
        sample = load_sample(args.data, "train", args.calibration_pictures, reading=args.reading).images / 255
        validation = load_sample(args.data, args.validation_split, args.validation_pictures, reading=args.reading)
    stages = choose_stages(codec_stages(args.lmbda), args.stages)
    objective = CodecObjective(build_codec(args, sample), stages, sample)

    def validate(stage: Stage) -> Metrics:
        metrics = measure_codec(objective.calibrate(), validation.images)
        return {"score": -(args.lmbda * 255**2 * metrics["mse"] + metrics["bpp"]), **metrics}

    loader = picture_loader(pictures, batch_size=args.batch_size, num_workers=args.dataloader_num_workers)
    Training(accelerator, objective, loader, args, validate=validate).run()


if __name__ == "__main__":
    main(parse_arguments(CodecArguments))
