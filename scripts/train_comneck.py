"""Trains the transform-neck between a frozen codec and a frozen CLIP (scenario d1).

python scripts/train_comneck.py configs/comneck-tiny-d1-q2.yaml --data DATA/caltech101_144 \
    --codec runs/codec/model --clip src/comneck_hf/pretrained/comneck-tiny-clip --output_dir runs/comneck-d1-q2
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from comneck_hf.models.comneck.image_processing_comneck import ComNeckImageProcessor
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import color_jitter, load_pack, normalize, random_resized_crops
from comneck_hf.training.loop import Metrics, train_steps
from comneck_hf.training.losses import surrogate_loss
from comneck_hf.training.stages import COMNECK_D1, stage_at
from comneck_hf.training.zero_shot import load_class_prompts, zero_shot_weights


@dataclass
class NeckArguments:
    """Parts, recipe and paths of one neck training."""

    data: str = field(metadata={"help": "labelled image data set with a train split"})
    codec: str = field(metadata={"help": "folder or Hub id of the trained codec"})
    clip: str = field(metadata={"help": "folder or Hub id of the CLIP, with zero_shot.json"})
    output_dir: str = field(metadata={"help": "where checkpoints and the model go"})
    scenario: str = "d1"
    quality: int = 2
    num_skipped_layers: int = 2
    steps: int = 6000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    checkpointing_steps: int = 500
    resume_from_checkpoint: bool = False
    num_threads: int = field(default=0, metadata={"help": "CPU threads, 0 for torch's default"})
    seed: int = 0


def half_precision(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state with float16 in place of float32, for half the file; `from_pretrained` widens it again."""
    return {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}


def main(args: NeckArguments) -> None:
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())
    codec = ElicModel.from_pretrained(args.codec)
    clip = CLIPModel.from_pretrained(args.clip).requires_grad_(False).eval().to(accelerator.device)
    model = ComNeckModel.from_codec_and_clip(
        codec,
        clip,
        scenario=args.scenario,
        quality=args.quality,
        num_skipped_layers=args.num_skipped_layers,
    )
    model.requires_grad_(False)
    model.vision_model.neck.requires_grad_(True)
    pack, prompts = load_pack(args.data, "train"), load_class_prompts(args.clip)
    class_names = list(pack.class_names)
    weights = zero_shot_weights(
        clip, AutoTokenizer.from_pretrained(args.clip), class_names=class_names, templates=prompts.templates
    )
    optimizer = torch.optim.AdamW(
        model.vision_model.neck.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay
    )
    warm_up = max(1, args.steps // 50)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda index: min(1.0, (index + 1) / warm_up) * stage_at(COMNECK_D1, index / args.steps).learning_rate_factor,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    network = accelerator.unwrap_model(model)
    codec_size = network.config.codec_config.downsampling_factor * network.config.vision_config.latent_grid[0]
    clip_size = network.config.vision_config.image_size

    def step(index: int) -> Metrics:
        stage = stage_at(COMNECK_D1, index / args.steps)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + index)
        chosen = torch.randint(len(pack.images), (args.batch_size,), generator=generator)
        scale = (args.smallest_crop, 1.0)
        crops = random_resized_crops(pack.images[chosen], codec_size, generator=generator, scale=scale)
        pixel_values = color_jitter(crops, strength=0.3, generator=generator).to(accelerator.device)
        with torch.no_grad():
            small = F.interpolate(pixel_values, (clip_size, clip_size), mode="bicubic", antialias=True).clamp(0, 1)
            teacher = clip.get_image_features(normalize(small)).pooler_output
        with accelerator.autocast():
            image_embeds = model(pixel_values=pixel_values).image_embeds
        loss, metrics = surrogate_loss(
            image_embeds.float(),
            teacher.float(),
            pack.labels[chosen].to(accelerator.device),
            weights.to(accelerator.device),
            logit_scale=clip.logit_scale.exp().item(),
            stage=stage,
        )
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return metrics

    log = train_steps(
        accelerator,
        args.steps,
        step,
        output_dir=args.output_dir,
        checkpointing_steps=args.checkpointing_steps,
        resume=args.resume_from_checkpoint,
    )
    output = Path(args.output_dir)
    network.eval().save_pretrained(output / "model", state_dict=half_precision(network))
    size = {"height": codec_size, "width": codec_size}
    ComNeckImageProcessor(size={"shortest_edge": codec_size}, crop_size=size).save_pretrained(output / "model")
    (output / "log.json").write_text(json.dumps({"config": asdict(args), "log": log}, indent=1))


if __name__ == "__main__":
    main(parse_arguments(NeckArguments))
