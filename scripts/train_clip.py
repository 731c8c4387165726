"""Trains the tiny CLIP teacher from scratch on photographs of classes and on drawn shapes.

python scripts/train_clip.py configs/comneck-tiny-clip.yaml --data DATA/caltech101_144 --shapes_data DATA/easy_vqa \
    --output_dir runs/clip --log_file results/train_clip_tiny.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.clip_objective import BalancedPictures, ClipObjective, clip_stages
from comneck_hf.training.data import load_pack, load_shapes_pack, picture_loader
from comneck_hf.training.loop import Metrics, Training, prepare_run
from comneck_hf.training.stages import Stage, choose_stages


TEMPLATES_FILE = Path(__file__).with_name("prompt_templates.json")


@dataclass(kw_only=True)
class ClipArguments(RunArguments):
    """Data and recipe of one CLIP training; `steps` is the sum of the stages' steps."""

    data: str = field(metadata={"help": "classification pack with the splits train and validation"})
    shapes_data: str = field(metadata={"help": "easy-VQA pack with the splits train and test"})
    templates_file: str = field(default=str(TEMPLATES_FILE), metadata={"help": "JSON list of prompt templates"})
    text_steps: int = field(default=200, metadata={"help": "steps of the text tower"})
    guide_steps: int = field(default=2640, metadata={"help": "steps of the guide network"})
    vision_steps: list[int] = field(default_factory=lambda: [2640, 2380, 1060], metadata={"help": "per resolution"})
    resolutions: list[int] = field(default_factory=lambda: [56, 84, 112], metadata={"help": "picture sizes in pixels"})
    guide_share: float = field(default=0.7, metadata={"help": "share of the guide's probabilities in the targets"})
    label_smoothing: float = field(default=0.1, metadata={"help": "probability spread over all captions"})
    mix_probability: float = field(default=0.2, metadata={"help": "share of the steps with CutMix or Mixup"})
    erase_probability: float = field(default=0.25, metadata={"help": "share of the others with an erased part"})
    average_decay: float = field(default=0.998, metadata={"help": "decay of the average of the weights"})
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})
    jitter: float = field(default=0.3, metadata={"help": "largest change of brightness, contrast and saturation"})
    validation_crop: int = field(default=128, metadata={"help": "side of the central crop that is validated"})
    batch_size: int = 48
    weight_decay: float = 0.1
    warmup_steps: int = 250

    steps: int = field(init=False, default=0)  # those of the stages that run

    def __post_init__(self) -> None:
        self.steps = round(sum(stage.share for stage in self.plan()))
        super().__post_init__()

    def plan(self) -> tuple[Stage, ...]:
        """The stages that run; a stage's share is the number of its steps."""
        stages = clip_stages(
            text_steps=self.text_steps,
            guide_steps=self.guide_steps,
            vision_steps=self.vision_steps,
            resolutions=self.resolutions,
        )
        return choose_stages(stages, self.stages)


def main(args: ClipArguments) -> None:
    accelerator = prepare_run(args)
    with accelerator.main_process_first():
        photos, validation = load_pack(args.data, "train"), load_pack(args.data, "validation")
        shapes = load_shapes_pack(args.shapes_data, "train", size=photos.images.shape[-1])
        other_shapes = load_shapes_pack(args.shapes_data, "test", size=photos.images.shape[-1])
    augmentation = Augmentation(max(args.resolutions), smallest_crop=args.smallest_crop, jitter=args.jitter)
    pictures = BalancedPictures(photos, shapes, augmentation, seed=args.seed)
    objective = ClipObjective(
        pictures.source.class_names,
        json.loads(Path(args.templates_file).read_text(encoding="utf-8")),
        args.plan(),
        guide_share=args.guide_share,
        label_smoothing=args.label_smoothing,
        mix_probability=args.mix_probability,
        erase_probability=args.erase_probability,
        average_decay=args.average_decay,
    )

    def validate(stage: Stage) -> Metrics:
        if "text" in stage.trains:
            return {}
        metrics = objective.evaluate(stage, validation, crop_size=args.validation_crop)
        if "guide" in stage.trains:
            return metrics
        drawn = objective.evaluate(stage, other_shapes, crop_size=args.validation_crop)
        return {"score": metrics["top1"], **metrics, "shapes_top1": drawn["top1"]}

    loader = picture_loader(pictures, batch_size=args.batch_size, num_workers=args.dataloader_num_workers)
    Training(accelerator, objective, loader, args, validate=validate).run()


if __name__ == "__main__":
    main(parse_arguments(ClipArguments))
