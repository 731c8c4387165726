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
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPModel

from comneck_hf.models.comneck.image_processing_comneck import ComNeckImageProcessor
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import ImagePack, color_jitter, load_pack, normalize, random_resized_crops
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
    num_variants: int = field(default=4, metadata={"help": "augmented crops of each picture, coded once"})
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    checkpointing_steps: int = 500
    resume_from_checkpoint: bool = False
    num_threads: int = field(default=0, metadata={"help": "CPU threads, 0 for torch's default"})
    seed: int = 0


def half_precision(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state with float16 in place of float32, for half the file; `from_pretrained` widens it again."""
    return {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}


@dataclass
class CodedPictures:
    """What the neck learns from: latents `(n, channels, h, w)`, the teacher's embeddings `(n, d)`, classes `(n,)`."""

    latents: torch.Tensor
    teacher_embeds: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def code_pictures(args: NeckArguments, pack: ImagePack, codec: ElicModel, clip: CLIPModel, side: int) -> CodedPictures:
    """Codes `num_variants` random crops of every picture. Codec and teacher are frozen, so once is exact."""
    codec = codec.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(args.seed)
    scale, size = (args.smallest_crop, 1.0), clip.config.vision_config.image_size
    latents, embeds = [], []
    for _ in range(args.num_variants):
        for images in tqdm(pack.images.split(64), desc="coding"):
            crops = random_resized_crops(images, side, generator=generator, scale=scale)
            pixel_values = color_jitter(crops, strength=0.3, generator=generator).to(clip.device)
            latents.append(codec.encode(pixel_values).latents.cpu())
            small = F.interpolate(pixel_values, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            embeds.append(clip.get_image_features(normalize(small)).pooler_output.cpu())
    return CodedPictures(torch.cat(latents), torch.cat(embeds), pack.labels.repeat(args.num_variants))


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
    side = network.config.image_size
    coded = code_pictures(args, pack, network.codec, clip, side)

    def step(index: int) -> Metrics:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + index)
        chosen = torch.randint(len(coded.latents), (args.batch_size,), generator=generator)
        with accelerator.autocast():
            image_embeds = model(latents=coded.latents[chosen].to(accelerator.device)).image_embeds
        loss, metrics = surrogate_loss(
            image_embeds.float(),
            coded.teacher_embeds[chosen].to(accelerator.device),
            coded.labels[chosen].to(accelerator.device),
            weights.to(accelerator.device),
            logit_scale=clip.logit_scale.exp().item(),
            stage=stage_at(COMNECK_D1, index / args.steps),
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
    crop_size = {"height": side, "width": side}
    ComNeckImageProcessor(size={"shortest_edge": side}, crop_size=crop_size).save_pretrained(output / "model")
    (output / "log.json").write_text(json.dumps({"config": asdict(args), "log": log}, indent=1))


if __name__ == "__main__":
    main(parse_arguments(NeckArguments))
