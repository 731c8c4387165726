"""Trains CoTAM's adapter beside the decoded pictures of a frozen codec, against a frozen CLIP.

python scripts/train_cotam.py configs/cotam-tiny.yaml --quality 3 --data DATA/caltech101_144 \\
    --codec runs/codec-q3/model --clip src/comneck_hf/pretrained/comneck-tiny-clip --output_dir runs/cotam
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset
from transformers import CLIPModel

from comneck_hf.evaluation.rate_accuracy import validation_score
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.training.arguments import TeachingArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.cotam import COTAM_PRESETS, CotamObjective, coded_inputs, cotam_stages
from comneck_hf.training.data import ImagePack, load_pack, load_sample, picture_loader, training_pictures
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.latents import CodedPictures, Variants, teacher_targets
from comneck_hf.training.loop import Metrics, Training, prepare_run
from comneck_hf.training.stages import Stage, choose_stages, find_preset
from comneck_hf.training.surrogate import parse_targets
from comneck_hf.training.zero_shot import pack_weights


TEMPLATES_FILE = Path(__file__).with_name("prompt_templates.json")


@dataclass(kw_only=True)
class CotamArguments(TeachingArguments):
    """Parts and recipe of one training of an adapter."""

    model: str | None = field(default=None, metadata={"help": "CoTAM to start from, instead of a fresh adapter"})
    templates_file: str = field(default=str(TEMPLATES_FILE), metadata={"help": "JSON list of prompt templates"})
    low_weight: float | None = field(default=None, metadata={"help": "of the low level, 0 for none; the preset's"})
    high_weight: float | None = field(default=None, metadata={"help": "of the high level, 0 for none; the preset's"})
    targets: list[str] = field(
        default_factory=list,
        metadata={"help": "of the high level: image_embeds, last_hidden_state, hidden_states[-2]; NAME=WEIGHT"},
    )
    use_reconstruction_prior: bool = True
    use_guide: bool | None = field(
        default=None, metadata={"help": "code with the guide's gain maps; by default the model's way, or true"}
    )
    guide_layers: list[int] = field(
        default_factory=list, metadata={"help": "counted from 0; by default the model's, or the first three"}
    )
    guided_share: float = field(default=0.5, metadata={"help": "of the crops, with the guide's gain maps"})
    random_share: float = field(default=0.5, metadata={"help": "of the crops, with random gain maps"})
    validation_gains: list[float] = field(default_factory=lambda: [0.0], metadata={"help": "rates, in octaves"})


def build_model(args: CotamArguments, clip: CLIPModel) -> CotamModel:
    """The model to start from: a trained one, or codec and CLIP with a fresh adapter.

    Raises:
        ValueError: If an option says otherwise than the trained model.
    """
    if args.model is not None:
        return _trained_model(args)
    return CotamModel.from_codec_and_clip(
        codec_from_pretrained(args.codec),
        clip,
        quality=args.quality,
        **_guidance(args),
        use_reconstruction_prior=args.use_reconstruction_prior,
        post_layernorm_repeats=find_preset(COTAM_PRESETS, args.preset).post_layernorm_repeats,
    )


def _trained_model(args: CotamArguments) -> CotamModel:
    """The model of `--model`; guided as the options say."""
    model = CotamModel.from_pretrained(args.model)
    config, vision = model.config, model.config.vision_config
    if args.codec is not None:
        raise ValueError(f"{args.model} has a codec; leave out --codec {args.codec}.")
    if not vision.use_adapter:
        raise ValueError(f"{args.model} has no adapter that could be trained (`use_adapter=False`).")
    repeats = find_preset(COTAM_PRESETS, args.preset).post_layernorm_repeats
    decided = {
        "use_reconstruction_prior": (args.use_reconstruction_prior, vision.use_reconstruction_prior),
        "preset": (f"post_layernorm_repeats={repeats}", f"post_layernorm_repeats={vision.post_layernorm_repeats}"),
    }
    for name, (wanted, found) in decided.items():
        if wanted != found:
            raise ValueError(
                f"--{name} means {wanted}, but {args.model} was made with {found}. Train without --model."
            )
    config.update(_guidance(args))
    return model


def _guidance(args: CotamArguments) -> dict[str, object]:
    """The options of the guide that are given."""
    given = {"use_guide": args.use_guide, "guide_layers": args.guide_layers or None}
    return {name: value for name, value in given.items() if value is not None}


def build_objective(args: CotamArguments, model: CotamModel, clip: CLIPModel, sample: ImagePack) -> CotamObjective:
    """Stages, gains, targets and, where the data has classes, the zero-shot classifier of the validation."""
    preset, config = find_preset(COTAM_PRESETS, args.preset), model.config
    low = preset.low if args.low_weight is None else args.low_weight
    high = preset.high if args.high_weight is None else args.high_weight
    gains = RandomGains(
        *args.gain_range,
        guided_share=args.guided_share if config.use_guide else 0.0,
        random_share=args.random_share if config.use_guide else 0.0,
        grid=tuple(config.guide_grid),
        levels=config.guide_levels,
        step=config.gain_step,
    )
    return CotamObjective(
        model,
        clip,
        choose_stages(cotam_stages(low, high), args.stages),
        gains=gains,
        targets=parse_targets(args.targets) if args.targets else preset.targets,
        weight_low_by_map=preset.weight_low_by_map,
        post_layernorm_repeats=config.vision_config.post_layernorm_repeats,
        zero_shot_weights=pack_weights(
            clip,
            args.clip,
            class_names=sample.class_names,
            templates_file=args.templates_file,
            cache_dir=args.cache_folder,
        ),
    )


def build_pictures(args: CotamArguments, objective: CotamObjective, clip: CLIPModel) -> Dataset:
    """Fresh crops, or what reaches tower and teacher of crops that were coded once."""
    augmentation = Augmentation(
        objective.model.config.image_size, smallest_crop=args.smallest_crop, jitter=args.jitter
    )
    if not args.coded_variants:
        return training_pictures(args.data, augmentation, reading=args.reading, seed=args.seed)
    variants = Variants(load_pack(args.data, "train"), augmentation, args.coded_variants, args.seed)
    inputs = coded_inputs(objective.model, variants, args.cache_folder, objective.gains)
    repeats = objective.post_layernorm_repeats
    taught = teacher_targets(clip, variants, args.cache_folder, objective.targets, post_layernorm_repeats=repeats)
    return CodedPictures([inputs, taught], None)


def validate(
    objective: CotamObjective, clip: CLIPModel, pictures: ImagePack, gains: list[float], stage: Stage
) -> Metrics:
    """Zero-shot accuracy from real bytes at several rates; the score is their mean."""
    metrics: Metrics = {}
    score = partial(
        validation_score,
        objective.model,
        clip,
        pictures.images,
        pictures.labels,
        zero_shot_weights=objective.zero_shot_weights,
    )
    if not objective.model.codec.config.has_gains:  # one rate
        return score()
    for gain in gains:
        result = score(gain=gain)
        metrics |= {f"{name}@{gain:g}": value for name, value in result.items()}
    scores = [metrics[f"score@{gain:g}"] for gain in gains]
    return {"score": sum(scores) / len(scores), **metrics}


def main(args: CotamArguments) -> None:
    accelerator = prepare_run(args)
    clip = CLIPModel.from_pretrained(args.clip, attn_implementation=args.attn_implementation).to(accelerator.device)
    model = build_model(args, clip).to(accelerator.device).eval()
    if args.attn_implementation is not None:
        model.vision_model.set_attn_implementation(args.attn_implementation)
    options = {"reading": args.reading, "side": model.config.image_size, "enlarge": True}
    with accelerator.main_process_first():
        validation = load_sample(args.data, args.validation_split, args.validation_pictures, **options)
        objective = build_objective(args, model, clip, validation)
        pictures = build_pictures(args, objective, clip)
    loader = picture_loader(pictures, batch_size=args.batch_size, num_workers=args.dataloader_num_workers)
    measured = partial(validate, objective, clip, validation, args.validation_gains)
    Training(accelerator, objective, loader, args, validate=measured).run()


if __name__ == "__main__":
    main(parse_arguments(CotamArguments))
