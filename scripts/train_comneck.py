"""Trains the transform-neck between a frozen codec and a frozen CLIP (scenario d1).

python scripts/train_comneck.py configs/comneck-tiny-d1-q2.yaml --data DATA/caltech101_144 \
    --codec runs/codec/model --clip src/comneck_hf/pretrained/comneck-tiny-clip --output_dir runs/comneck-d1-q2
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPModel

from comneck_hf.models.comneck.image_processing_comneck import ComNeckImageProcessor
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.data import load_pack
from comneck_hf.training.latents import Augmentation, coded_latents, teacher_embeddings
from comneck_hf.training.loop import Metrics, prepare_run, train_steps
from comneck_hf.training.losses import surrogate_loss
from comneck_hf.training.stages import COMNECK_D1, stage_at
from comneck_hf.training.zero_shot import load_class_prompts, zero_shot_weights


@dataclass(kw_only=True)
class NeckArguments(RunArguments):
    """Parts, recipe and paths of one neck training."""

    data: str = field(metadata={"help": "labelled image data set with a train split"})
    codec: str = field(metadata={"help": "folder or Hub id of the trained codec"})
    clip: str = field(metadata={"help": "folder or Hub id of the CLIP, with zero_shot.json"})
    cache_dir: str | None = field(
        default=None, metadata={"help": "keeps latents and teacher's embeddings, by default OUTPUT_DIR/cache"}
    )
    scenario: str = "d1"
    quality: int = 2
    num_skipped_layers: int = 2
    batch_size: int = 32
    weight_decay: float = 0.05
    num_variants: int = field(default=4, metadata={"help": "augmented crops of each picture, coded once"})
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})


@dataclass
class CodedPictures:
    """What the neck learns from: latents `(n, channels, h, w)`, the teacher's embeddings `(n, d)`, classes `(n,)`."""

    latents: torch.Tensor
    teacher_embeds: torch.Tensor
    labels: torch.Tensor
    zero_shot_weights: torch.Tensor

    def batch(self, size: int, *, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, embeddings and classes of `size` random pictures."""
        chosen = torch.randint(len(self.latents), (size,), generator=torch.Generator().manual_seed(seed))
        parts = (self.latents, self.teacher_embeds, self.labels)
        return tuple(part[chosen].to(device) for part in parts)


def half_precision(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state with float16 in place of float32, for half the file; `from_pretrained` widens it again."""
    return {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}


def code_pictures(args: NeckArguments, codec: ElicModel, clip: CLIPModel, side: int) -> CodedPictures:
    """Codes `num_variants` random crops of every picture. Codec and teacher are frozen, so once is exact."""
    pack = load_pack(args.data, "train")
    prompts, tokenizer = load_class_prompts(args.clip), AutoTokenizer.from_pretrained(args.clip)
    augmentation = Augmentation(side, args.num_variants, smallest_crop=args.smallest_crop, seed=args.seed)
    folder = args.cache_dir or Path(args.output_dir) / "cache"
    return CodedPictures(
        coded_latents(codec, pack, augmentation, folder),
        teacher_embeddings(clip, pack, augmentation, folder),
        pack.labels.repeat(args.num_variants),
        zero_shot_weights(clip, tokenizer, class_names=pack.class_names, templates=prompts.templates).to(clip.device),
    )


def main(args: NeckArguments) -> None:
    accelerator = prepare_run(args)
    clip = CLIPModel.from_pretrained(args.clip).requires_grad_(False).eval().to(accelerator.device)
    model = ComNeckModel.from_codec_and_clip(
        ElicModel.from_pretrained(args.codec),
        clip,
        scenario=args.scenario,
        quality=args.quality,
        num_skipped_layers=args.num_skipped_layers,
    )
    model.requires_grad_(False)
    model.vision_model.neck.requires_grad_(True)
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
    coded = code_pictures(args, network.codec, clip, side)

    def step(index: int) -> Metrics:
        latents, teacher_embeds, labels = coded.batch(
            args.batch_size, seed=args.seed * 1_000_003 + index, device=accelerator.device
        )
        with accelerator.autocast():
            image_embeds = model(latents=latents).image_embeds
        loss, metrics = surrogate_loss(
            image_embeds.float(),
            teacher_embeds,
            labels,
            coded.zero_shot_weights,
            logit_scale=clip.logit_scale.exp().item(),
            stage=stage_at(COMNECK_D1, index / args.steps),
        )
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return metrics

    train_steps(accelerator, step, args)
    output = Path(args.output_dir) / "model"
    network.eval().save_pretrained(output, state_dict=half_precision(network))
    crop_size = {"height": side, "width": side}
    ComNeckImageProcessor(size={"shortest_edge": side}, crop_size=crop_size).save_pretrained(output)


if __name__ == "__main__":
    main(parse_arguments(NeckArguments))
