"""Trains a transform-neck, and in scenarios d2 and d3 the codec with it, against a frozen CLIP.

The scenario post-processing trains the baseline of the paper: a U-Net behind the decoder of --model, by the same loss.

python scripts/train_comneck.py configs/comneck-tiny-d1.yaml --quality 2 --data DATA/caltech101_144 \
    --codec runs/codec-q2/model --clip src/comneck_hf/pretrained/comneck-tiny-clip --output_dir runs/d1-q2
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import CLIPModel

from comneck_hf.evaluation.baselines import PostProcessing
from comneck_hf.evaluation.intervals import mean_of
from comneck_hf.evaluation.measurements import measure
from comneck_hf.evaluation.rate_accuracy import validation_score
from comneck_hf.evaluation.tasks import ZeroShot
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.restoration_elic import restore_entropy_networks
from comneck_hf.models.unet import PostProcessingUNet
from comneck_hf.training.arguments import TeachingArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import ImagePack, load_pack, load_sample, picture_loader, training_pictures
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.latents import CodedPictures, Variants, coded_latents, teacher_targets
from comneck_hf.training.loop import Metrics, Training, prepare_run
from comneck_hf.training.post_processing import PostProcessingObjective, post_processing_stages
from comneck_hf.training.stages import PRESETS, Stage, choose_stages, comneck_stages, find_preset
from comneck_hf.training.surrogate import ComNeckObjective, parse_targets
from comneck_hf.training.zero_shot import pack_weights


POST_PROCESSING = "post-processing"
TEMPLATES_FILE = Path(__file__).with_name("prompt_templates.json")


@dataclass(kw_only=True)
class ComNeckArguments(TeachingArguments):
    """Parts and recipe of one training of a neck."""

    calibration_pictures: int = field(default=64, metadata={"help": "from which integer networks are derived"})
    model: str | None = field(default=None, metadata={"help": "ComNeck model to start from, instead of a fresh neck"})
    neck: str | None = field(
        default=None, metadata={"help": "ComNeck model whose neck and CLIP layers take the place of those of `model`"}
    )
    templates_file: str = field(default=str(TEMPLATES_FILE), metadata={"help": "JSON list of prompt templates"})
    scenario: str = field(default="d1", metadata={"help": "d1, d2, d3 or post-processing"})
    lmbda: float = field(default=1.0, metadata={"help": "of the joint stage, for distortion and distillation"})
    reconstruction_weight: float = field(default=60.0, metadata={"help": "gamma of the joint stage of d2"})
    distillation_weight: float = field(default=1.0, metadata={"help": "beta of the joint stage"})
    targets: list[str] = field(
        default_factory=lambda: ["image_embeds"],
        metadata={"help": "what is distilled: image_embeds, last_hidden_state, hidden_states[-2]; NAME=WEIGHT"},
    )
    num_skipped_layers: int | None = field(
        default=None, metadata={"help": "of CLIP, by the neck; 2 for a fresh one, as in the paper"}
    )
    unet_widths: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024],
        metadata={"help": "channels of the U-Net, from the top down"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.codec is None) == (self.model is None):
            raise ValueError(
                f"Give `codec` for a fresh neck, or `model` to start from; they are {self.codec} and {self.model}."
            )
        if self.neck is not None and self.model is None:
            raise ValueError(f"`neck` {self.neck} takes the place of a model's. Name that model with `model`.")
        if self.coded_variants and self.trains_codec:
            raise ValueError(f"`coded_variants` need a codec that stays as it is, not scenario {self.scenario!r}.")

    @property
    def trains_codec(self) -> bool:
        """Whether the codec is trained with the neck."""
        return self.scenario in ("d2", "d3")

    @property
    def gains(self) -> RandomGains | None:
        """Random gains of whole pictures, so that one neck serves all rates."""
        return RandomGains(*self.gain_range) if self.gain_range else None


def build_model(args: ComNeckArguments, clip: CLIPModel) -> ComNeckModel:
    """The model to start from: a trained one, or codec and CLIP with a fresh neck.

    A trained model whose codec stays as it is (scenario d1) goes on under its own name.
    """
    repeats = find_preset(PRESETS, args.preset).post_layernorm_repeats
    if args.model is not None:
        model = ComNeckModel.from_pretrained(args.model)
        if args.neck is not None:
            replace_neck(model, ComNeckModel.from_pretrained(args.neck))
        check_tower(args, model, repeats)
        if args.trains_codec:
            model.codec = restore_entropy_networks(model.codec)
            model.config.update(
                {"scenario": args.scenario, "quality": args.quality, "codec_config": model.codec.config}
            )
        return model
    codec = codec_from_pretrained(args.codec)
    return ComNeckModel.from_codec_and_clip(
        restore_entropy_networks(codec) if args.trains_codec else codec,
        clip,
        scenario=args.scenario,
        quality=args.quality,
        num_skipped_layers=2 if args.num_skipped_layers is None else args.num_skipped_layers,
        post_layernorm_repeats=repeats,
    )


def replace_neck(model: ComNeckModel, other: ComNeckModel) -> None:
    """Gives a model the neck, and with it the CLIP layers, of another one for the same CLIP and latents."""
    own, theirs = model.config.vision_config, other.config.vision_config
    same_latents = (own.latent_channels, own.latent_grid) == (theirs.latent_channels, theirs.latent_grid)
    if not (same_latents and torch.equal(model.visual_projection.weight, other.visual_projection.weight)):
        raise ValueError("`neck` and `model` were made for different CLIPs or latents. Choose two of one family.")
    model.vision_model = other.vision_model
    model.config.vision_config = theirs


def check_tower(args: ComNeckArguments, model: ComNeckModel, repeats: int) -> None:
    """Refuses options that a trained model has decided otherwise."""
    config, source = model.config.vision_config, args.neck or args.model
    wanted = {"num_skipped_layers": args.num_skipped_layers, "post_layernorm_repeats": repeats}
    for name, value in wanted.items():
        found = getattr(config, name)
        if value is not None and value != found:
            raise ValueError(
                f"{source} was made with {name}={found}, and the options mean {value}. Leave out `num_skipped_layers` "
                "and use the `preset` it was trained with, or start from a codec."
            )


def build_pictures(args: ComNeckArguments, model: ComNeckModel, clip: CLIPModel) -> Dataset:
    """Fresh crops, or the latents and targets of crops that were coded once."""
    augmentation = Augmentation(model.config.image_size, smallest_crop=args.smallest_crop, jitter=args.jitter)
    if not args.coded_variants:
        return training_pictures(args.data, augmentation, reading=args.reading, seed=args.seed)
    variants = Variants(load_pack(args.data, "train"), augmentation, args.coded_variants, args.seed)
    latents = coded_latents(model.codec, variants, args.cache_folder, gains=args.gains)
    repeats = model.config.vision_config.post_layernorm_repeats
    taught = teacher_targets(
        clip, variants, args.cache_folder, parse_targets(args.targets), post_layernorm_repeats=repeats
    )
    return CodedPictures([latents, taught], variants.pack.labels)


def build_objective(
    args: ComNeckArguments, model: ComNeckModel, clip: CLIPModel, sample: ImagePack
) -> ComNeckObjective | PostProcessingObjective:
    """Stages, targets and, where the data has classes, the zero-shot classifier."""
    preset = find_preset(PRESETS, args.preset)
    weights = pack_weights(
        clip,
        args.clip,
        class_names=sample.class_names,
        templates_file=args.templates_file,
        cache_dir=args.cache_folder,
    )
    options = {
        "zero_shot_weights": weights,
        "targets": parse_targets(args.targets),
        "normalize_logits": preset.normalize_logits,
        "post_layernorm_repeats": model.config.vision_config.post_layernorm_repeats,
    }
    if args.scenario == POST_PROCESSING:
        if weights is None:
            raise ValueError("Post-processing is validated by zero-shot accuracy. Use data with a column 'label'.")
        unet = PostProcessingUNet(args.unet_widths, fingerprint=model.codec.fingerprint)
        unet.to(memory_format=torch.channels_last)
        stages = choose_stages(post_processing_stages(preset), args.stages)
        return PostProcessingObjective(model.codec, unet, clip, stages, gains=args.gains, **options)
    stages = comneck_stages(
        args.scenario,
        preset,
        lmbda=args.lmbda,
        reconstruction=args.reconstruction_weight,
        distillation=args.distillation_weight,
    )
    options |= {"calibration_pictures": sample.images / 255, "gains": args.gains}
    return ComNeckObjective(model, clip, choose_stages(stages, args.stages), **options)


def validate_unet(
    objective: PostProcessingObjective, codec: ElicModel, clip: CLIPModel, pictures: ImagePack, stage: Stage
) -> Metrics:
    """Zero-shot accuracy of what the U-Net makes of decoded bitstreams."""
    task = ZeroShot(clip, pictures.images, pictures.labels, objective.zero_shot_weights)
    columns = measure(PostProcessing(codec, objective.unet), task, device=clip.device, progress=False)
    return {"score": mean_of(columns["top1"]), "top1": mean_of(columns["top1"]), "bytes": mean_of(columns["bytes"])}


def validate(objective: ComNeckObjective, clip: CLIPModel, pictures: ImagePack, stage: Stage) -> Metrics:
    """Zero-shot accuracy from real bytes; without classes the distance of the embeddings from CLIP's."""
    weights = objective.zero_shot_weights
    return validation_score(objective.calibrate(), clip, pictures.images, pictures.labels, zero_shot_weights=weights)


def main(args: ComNeckArguments) -> None:
    accelerator = prepare_run(args)
    clip = CLIPModel.from_pretrained(args.clip, attn_implementation=args.attn_implementation).to(accelerator.device)
    model = build_model(args, clip).to(accelerator.device)
    if args.attn_implementation is not None:
        model.vision_model.set_attn_implementation(args.attn_implementation)
    side = model.config.image_size
    options = {"reading": args.reading, "side": side, "enlarge": True}
    with accelerator.main_process_first():
        pictures = build_pictures(args, model, clip)
        sample = load_sample(args.data, "train", args.calibration_pictures, **options)
        validation = load_sample(args.data, args.validation_split, args.validation_pictures, **options)
        objective = build_objective(args, model, clip, sample)
    loader = picture_loader(pictures, batch_size=args.batch_size, num_workers=args.dataloader_num_workers)
    measured = partial(validate, objective, clip, validation)
    if isinstance(objective, PostProcessingObjective):
        measured = partial(validate_unet, objective, model.codec, clip, validation)
    Training(accelerator, objective, loader, args, validate=measured).run()


if __name__ == "__main__":
    main(parse_arguments(ComNeckArguments))
