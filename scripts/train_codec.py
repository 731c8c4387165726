"""Trains an ELIC codec for rate and distortion: lambda * 255^2 * MSE + bits per pixel.

python scripts/train_codec.py configs/comneck-tiny-codec-base.yaml --data DATA/caltech101_144 --output_dir runs/base
torchrun --nproc_per_node 2 scripts/train_codec.py CONFIG.yaml --data DATA --output_dir runs/codec
"""

from dataclasses import dataclass, field

import torch

from comneck_hf.evaluation.rate_accuracy import measure_codec
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import load_sample, picture_loader, training_pictures
from comneck_hf.training.initialization import init_transforms_from_images
from comneck_hf.training.loop import Metrics, Training, prepare_run
from comneck_hf.training.objective import CodecObjective
from comneck_hf.training.stages import Stage, choose_stages, codec_stages


@dataclass(kw_only=True)
class CodecArguments(RunArguments):
    """Widths and recipe of one codec training."""

    data: str = field(metadata={"help": "Hub id or folder that `datasets` loads, with a column image"})
    reading: str = field(default="rows", metadata={"help": "memory, rows or stream"})
    validation_split: str = "validation"
    validation_pictures: int = field(default=100, metadata={"help": "pictures that are coded in a validation"})
    calibration_pictures: int = field(default=64, metadata={"help": "from which integer networks are derived"})
    codec: str | None = field(default=None, metadata={"help": "codec to start from, instead of from the pictures"})
    hidden_channels: int = 192
    latent_channels: int = 320
    group_channels: list[int] = field(default_factory=lambda: [16, 16, 32, 64, 192])
    context_channels: list[int] = field(default_factory=lambda: [224, 128])
    aggregation_channels: list[int] = field(default_factory=lambda: [640, 512])
    quality: int = field(default=2, metadata={"help": "operating point, 1 to 4"})
    lmbda: float = 0.008
    crop_size: int = field(default=256, metadata={"help": "side of the random windows in pixels"})


def build_codec(args: CodecArguments, sample: torch.Tensor) -> ElicModel:
    """The codec to start from: a trained one, or one whose transforms already code the sample."""
    if args.codec is not None:
        codec = ElicModel.from_pretrained(args.codec)
        codec.config.update({"lmbda": args.lmbda, "quality": args.quality})
    else:
        names = ("hidden_channels", "latent_channels", "group_channels", "context_channels", "aggregation_channels")
        widths = {name: getattr(args, name) for name in names}
        codec = ElicModel(ElicConfig(**widths, lmbda=args.lmbda, quality=args.quality))
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
