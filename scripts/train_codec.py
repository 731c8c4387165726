"""Trains an ELIC codec for rate and distortion: lambda * 255^2 * MSE + bits per pixel (ELIC recipe).

python scripts/train_codec.py configs/comneck-tiny-codec-q2.yaml --data DATA/caltech101_144 \
    --shapes_data DATA/easy_vqa --output_dir runs/codec-q2
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import get_cosine_schedule_with_warmup

from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.data import load_pack, load_shapes_pack, random_crops
from comneck_hf.training.initialization import init_transforms_from_images
from comneck_hf.training.loop import Metrics, prepare_run, train_steps
from comneck_hf.training.losses import rate_distortion_loss


@dataclass(kw_only=True)
class CodecArguments(RunArguments):
    """Widths, recipe and paths of one codec training."""

    data: str = field(metadata={"help": "image data set with the splits train and validation"})
    codec: str | None = field(default=None, metadata={"help": "codec to start from, instead of from the pictures"})
    shapes_data: str | None = field(default=None, metadata={"help": "easy-VQA pack, mixed in"})
    shapes_share: float = field(default=0.05, metadata={"help": "share of the pictures taken from shapes_data"})
    hidden_channels: int = 192
    latent_channels: int = 320
    group_channels: list[int] = field(default_factory=lambda: [16, 16, 32, 64, 192])
    context_channels: list[int] = field(default_factory=lambda: [224, 128])
    aggregation_channels: list[int] = field(default_factory=lambda: [640, 512])
    quality: int = 2
    lmbda: float = 0.008
    steps: int = 9000
    crop_size: int = field(default=64, metadata={"help": "pixels, for the first part of the training"})
    batch_size: int = 16
    final_crop_size: int = field(default=128, metadata={"help": "pixels, for the last `final_share` of the steps"})
    final_batch_size: int = 8
    final_share: float = 0.3
    ste_share: float = field(
        default=0.15, metadata={"help": "last share of the steps, with rounding instead of noise"}
    )
    learning_rate: float = 5e-4
    aux_learning_rate: float = 1e-2
    max_grad_norm: float = 1.0


def build_model(args: CodecArguments) -> ElicModel:
    names = ("hidden_channels", "latent_channels", "group_channels", "context_channels", "aggregation_channels")
    config = ElicConfig(**{name: getattr(args, name) for name in names}, lmbda=args.lmbda, quality=args.quality)
    return ElicModel(config).to(memory_format=torch.channels_last)


def main(args: CodecArguments) -> None:
    accelerator = prepare_run(args)
    train_images = load_pack(args.data, "train").images
    shapes = (
        load_shapes_pack(args.shapes_data, "train", size=train_images.shape[-1]).images if args.shapes_data else None
    )
    sample = train_images[torch.randperm(len(train_images))[:500]].float() / 255
    if args.codec is None:
        model = build_model(args)
        init_transforms_from_images(model, sample, args.lmbda)
    else:
        model = ElicModel.from_pretrained(args.codec).to(memory_format=torch.channels_last)
        model.config.update({"lmbda": args.lmbda, "quality": args.quality})
    quantiles = [model.entropy_bottleneck.quantiles]
    main_parameters = [p for n, p in model.named_parameters() if not n.endswith("quantiles")]
    optimizer = torch.optim.AdamW(main_parameters, lr=args.learning_rate, weight_decay=0.0)
    aux_optimizer = torch.optim.Adam(quantiles, lr=args.aux_learning_rate)
    scheduler = get_cosine_schedule_with_warmup(optimizer, min(200, args.steps // 10), args.steps)
    model, optimizer, aux_optimizer = accelerator.prepare(model, optimizer, aux_optimizer)
    accelerator.register_for_checkpointing(scheduler)
    network = accelerator.unwrap_model(model).train()

    def step(index: int) -> Metrics:
        final = index >= args.steps * (1 - args.final_share)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + index)
        count = args.final_batch_size if final else args.batch_size
        from_shapes = shapes is not None and torch.rand((), generator=generator) < args.shapes_share
        source = shapes if from_shapes else train_images
        batch = source[torch.randint(len(source), (count,), generator=generator)]
        pixel_values = random_crops(batch, args.final_crop_size if final else args.crop_size, generator=generator)
        pixel_values = pixel_values.to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            rounding = index >= args.steps * (1 - args.ste_share)
            outputs = model(pixel_values, quantization="ste" if rounding else "noise")
        loss, metrics = rate_distortion_loss(outputs, pixel_values, args.lmbda)
        accelerator.backward(loss + network.aux_loss())
        accelerator.clip_grad_norm_(main_parameters, args.max_grad_norm)
        for each in (optimizer, aux_optimizer):
            each.step()
            each.zero_grad()
        scheduler.step()
        return metrics

    train_steps(accelerator, step, args)
    network.eval().calibrate(sample[:64, :, :128, :128])
    network.save_pretrained(Path(args.output_dir) / "model")


if __name__ == "__main__":
    main(parse_arguments(CodecArguments))
