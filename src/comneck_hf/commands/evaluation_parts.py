"""Baselines and tasks of `comneck eval` from what its options name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    PreTrainedModel,
    ProcessorMixin,
)

from ..evaluation.answers import Question, spread
from ..evaluation.baselines import Baseline, Latents, Original, PictureFiles, PostProcessing, Reconstruction
from ..evaluation.few_shot import FewShot, draw_episodes
from ..evaluation.file_formats import FILE_FORMATS, find_format
from ..evaluation.machine import describe_machine
from ..evaluation.pictures import load_picture_folder
from ..evaluation.tasks import Distortion, Questions, Task, ZeroShot
from ..hub.names import resolve_model
from ..models.codec_vision_config import CodecVisionConfig
from ..models.compressai.configuration_compressai import CompressaiConfig
from ..models.compressai.modeling_compressai import CompressaiModel
from ..models.elic.modeling_elic import ElicModel
from ..models.unet import PostProcessingUNet
from ..training.content import content_digest
from ..training.conversations import NAMING_QUESTIONS, load_questions
from ..training.data import ImagePack, load_sample
from ..training.zero_shot import zero_shot_weights
from .labels import load_templates
from .loading import load_codec, load_model, load_model_config


QUESTIONS_SPLIT = "test"
LLAVA_TASKS = ("naming", "questions", "few-shot", "few-shot-leaky")

__all__ = ["Parts", "environment", "process"]

Builder = Callable[[], Baseline]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is measured.

    Attributes:
        models: `FOLDER_OR_ID`, or `NAME=FOLDER_OR_ID` for a curve of that name.
        clip: The CLIP of all of them.
        data, split, pictures: Labelled pictures, and how many of them at most.
        resize: Resize their shorter sides before their middles are cut.
        llava: Answers questions; `None` where none are asked.
        questions_data, questions: Pictures with questions, and how many of them at most.
        episodes: Of few-shot classification.
        distortion_data: Folder of pictures of any size.
        gains: At which models and their codecs are measured, in octaves; as they were trained where there are none.
        num_proc: Picture files coded at a time.
        device, dtype: Of all models.
    """

    models: Sequence[str]
    clip: str = ""
    data: str = ""
    split: str = "validation"
    pictures: int = 1_000_000
    resize: bool = False
    llava: str | None = None
    questions_data: str | None = None
    questions: int = 2000
    episodes: int = 500
    distortion_data: str | None = None
    gains: Sequence[float] = ()
    num_proc: int = 1
    device: torch.device
    dtype: torch.dtype

    def baselines(self, names: Sequence[str]) -> list[Builder]:
        """What builds the baselines of these names, and the models.

        Raises:
            ValueError: If a name is unknown.
        """
        builders = [builder for name in names for builder in self._named(name)]
        return builders + self._at_gains(self._latents, self.models)

    def baseline(self, name: str) -> Baseline:
        """The one baseline of this name; `"latents"` for the model.

        Raises:
            ValueError: If the name is unknown or stands for several.
        """
        builders = self._at_gains(self._latents, self.models) if name == "latents" else self._named(name)
        if len(builders) != 1:
            raise ValueError(
                f"{name!r} stands for {len(builders)} baselines of this model; one is needed, such as jpeg:10."
            )
        return builders[0]()

    def _named(self, name: str) -> list[Builder]:
        kind, _, folder = name.partition("=")
        if name == "original":
            return [Original]
        if name == "reconstruction":
            return self._at_gains(self._reconstruction, self._codec_owners)
        if kind == "codec" and folder:
            return [partial(self._codec, folder)]
        if kind == "post-processing" and folder:
            return [partial(self._post_processing, folder)]
        file_format, mark, level = _split_at_mark(name)
        if file_format not in FILE_FORMATS or (mark and not level.isdigit()):
            raise ValueError(
                f"No baseline is called {name!r}. Use original, reconstruction, codec=FOLDER, post-processing=FOLDER, "
                f"or one of {', '.join(FILE_FORMATS)}, alone, with a quality (jpeg:10) or with a size (jpeg@400)."
            )
        known = find_format(file_format)
        options: list[dict[str, int]] = [{"quality": quality} for quality in known.sweep]
        if mark:
            options = [{"quality" if mark == ":" else "max_bytes": int(level)}]
        low, high = known.qualities
        if mark == ":" and not low <= int(level) <= high:
            raise ValueError(f"Qualities of {file_format} are {low} to {high}, got {level}.")
        return [partial(PictureFiles, file_format, num_threads=self.num_proc, **option) for option in options]

    def _at_gains(self, build: Callable[[str, float | None], Baseline], names: Sequence[str]) -> list[Builder]:
        return [partial(build, name, gain) for name in names for gain in self.gains or [None]]

    def _latents(self, name: str, gain: float | None) -> Latents:
        curve, folder = _split_name(name)
        model = load_model(folder, device=self.device, dtype=self.dtype)
        quality = None if model.config.quality else _folder_name(folder)
        return Latents(model.to(memory_format=torch.channels_last), name=curve or None, quality=quality, gain=gain)

    @cached_property
    def _codec_digests(self) -> dict[str, str]:
        """Contents of the codecs that decode pictures, by the names of their models."""
        shown = [name for name in self.models if self._config(name).shows_pictures]
        return {name: content_digest(load_codec(_split_name(name)[1])) for name in shown}

    @property
    def _codec_owners(self) -> list[str]:
        """The first model with each of the codecs that decode pictures, of each curve where these differ in codecs."""
        owners: dict[tuple[str, str], str] = {}
        for name, digest in self._codec_digests.items():
            owners.setdefault(("" if self._curves_share_codecs else _split_name(name)[0], digest), name)
        return list(owners.values())

    @property
    def _curves_share_codecs(self) -> bool:
        """Whether all curves have the same codecs, so that their decoded pictures are one curve."""
        curves: dict[str, set[str]] = {}
        for name, digest in self._codec_digests.items():
            curves.setdefault(_split_name(name)[0], set()).add(digest)
        return len({frozenset(digests) for digests in curves.values()}) == 1

    def _config(self, name: str) -> CodecVisionConfig:
        config = load_model_config(_split_name(name)[1])
        if config.codec_config is None:
            raise ValueError(f"{name!r} was saved without its codec and codes no pictures. Give a whole model.")
        return config

    def _reconstruction(self, name: str, gain: float | None) -> Reconstruction:
        curve, folder = _split_name(name)
        config = self._config(name)
        owner = "" if self._curves_share_codecs else curve
        owner = owner or (config.curve if config.curve in ("d2", "d3") else "")  # others leave the codec as it is
        codec = self._load_codec(folder)
        quality = f"q{config.quality}" if config.quality else _folder_name(folder)
        return Reconstruction(codec, name=f"{owner} reconstruction".strip(), quality=quality, gain=gain)

    def _codec(self, name: str) -> Reconstruction:
        curve, folder = _split_name(name)
        codec = self._load_codec(folder)
        config = codec.config
        own = f"{config.architecture} {config.metric}" if isinstance(config, CompressaiConfig) else config.model_type
        quality = f"q{config.quality}" if config.quality else _folder_name(folder)
        return Reconstruction(codec, name=curve or own, quality=quality)

    def _post_processing(self, folder: str) -> PostProcessing:
        if not Path(folder).is_dir():
            raise ValueError(
                f"There is no folder {folder!r}; train one: `scripts/train_comneck.py --scenario post-processing`."
            )
        unet = PostProcessingUNet.from_pretrained(folder).eval().to(self.device)
        for name in self.models:
            owner = _split_name(name)[1]
            codec = self._load_codec(owner)
            if codec.fingerprint == unet.fingerprint:
                quality = self._config(name).quality
                return PostProcessing(codec, unet, quality=f"q{quality}" if quality else _folder_name(owner))
        raise ValueError(
            f"The U-Net of {folder} was trained for a codec that none of the models has ({unet.fingerprint}). "
            "Add the model whose codec it was trained with."
        )

    def _load_codec(self, folder: str) -> ElicModel | CompressaiModel:
        codec = load_codec(folder, device=self.device, dtype=self.dtype)
        return codec.to(memory_format=torch.channels_last)  # convolutions are faster

    def task(self, name: str) -> Task:
        """The task of this name.

        Raises:
            ValueError: If it is unknown, or lacks a LLaVA or questions.
        """
        if name == "zero-shot":
            return self._zero_shot()
        if name == "distortion":
            if self.distortion_data is None:
                raise ValueError("The task distortion needs --distortion-data, a folder of pictures.")
            return Distortion(load_picture_folder(self.distortion_data))
        if name not in LLAVA_TASKS:
            raise ValueError(f"No task is called {name!r}. Use zero-shot, distortion, {', '.join(LLAVA_TASKS)}.")
        if self.llava is None or (name == "questions" and self.questions_data is None):
            raise ValueError(f"The task {name} needs --llava{' and --questions-data' if name == 'questions' else ''}.")
        if name.startswith("few-shot"):
            pack, (llava, processor) = self._pack(), self._answering
            episodes = draw_episodes(pack.labels, pack.class_names, count=self.episodes)
            return FewShot(llava, processor, pack.images, episodes, is_leaky=name == "few-shot-leaky", name=name)
        if name == "naming":
            pack = self._pack()
            asked = [
                Question(number, NAMING_QUESTIONS[0], pack.class_names[label])
                for number, label in enumerate(pack.labels.tolist())
            ]
            return self.questions_task(pack.images, asked, name=name)
        questions = load_questions(self.questions_data, QUESTIONS_SPLIT, size=self.side())
        turns = [Question(number, *turn) for number, turns in enumerate(questions.turns) for turn in turns]
        asked = spread(turns, self.questions)
        shown = sorted({question.picture for question in asked})  # others would count in the bytes
        asked = [replace(question, picture=shown.index(question.picture)) for question in asked]
        return self.questions_task(questions.images[shown], asked, name=name)

    def questions_task(
        self, pictures: torch.Tensor, questions: Sequence[Question], *, name: str, max_new_tokens: int = 12
    ) -> Questions:
        """Questions to the LLaVA."""
        llava, processor = self._answering
        return Questions(llava, processor, pictures, questions, name=name, max_new_tokens=max_new_tokens)

    @cached_property
    def _answering(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The LLaVA of all tasks, and its processor."""
        folder = resolve_model(self.llava)
        llava = AutoModelForImageTextToText.from_pretrained(folder, dtype=self.dtype).eval().to(self.device)
        return llava, AutoProcessor.from_pretrained(folder)

    def _zero_shot(self) -> ZeroShot:
        folder, pack = resolve_model(self.clip), self._pack()
        clip = CLIPModel.from_pretrained(folder, dtype=self.dtype).eval().to(self.device)
        weights = zero_shot_weights(
            clip,
            AutoTokenizer.from_pretrained(folder),
            class_names=list(pack.class_names),
            templates=load_templates(folder),
        )
        return ZeroShot(clip, pack.images, pack.labels, weights.float())

    def _pack(self) -> ImagePack:
        pack = load_sample(self.data, self.split, self.pictures, side=self.side(), resize=self.resize)
        if pack.labels is None:
            raise ValueError(f"{self.data} has no column `label` with classes. Use labelled pictures.")
        names = tuple(name.partition(",")[0] for name in pack.class_names)  # ImageNet's list synonyms
        return replace(pack, class_names=names)

    def side(self) -> int:
        """Of the pictures that the models take."""
        sides = {self._config(name).image_size for name in self.models}
        if len(sides) > 1:
            raise ValueError(f"Models are compared on pictures of one size, these take {sorted(sides)} pixels.")
        return sides.pop()

    def data_of(self, task: str) -> dict[str, str]:
        """The data that a task asks about, and their split where they have one."""
        if task == "distortion":
            return {"data": Path(self.distortion_data).name}
        if task == "questions":
            return {"data": Path(self.questions_data).name, "split": QUESTIONS_SPLIT}
        return {"data": Path(self.data).name, "split": self.split}

    def setting(self) -> dict[str, Any]:
        """What was measured, for the results."""
        facts: dict[str, Any] = {"clip": Path(self.clip).name}
        if self.llava is not None:
            facts |= {"llava": Path(self.llava).name}
        if self.gains:
            facts |= {"gains": list(self.gains)}
        facts |= {"models": [_folder_name(_split_name(name)[1]) for name in self.models]}
        return facts | {
            "side": self.side(),
            "resize": self.resize,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }


def environment() -> dict[str, Any]:
    """Versions and machine, for the results."""
    interval = "95 %, bootstrap over pictures, or episodes of few-shot prompts"
    return {**describe_machine(), "threads": torch.get_num_threads(), "interval": interval}


def process() -> tuple[int, int]:
    """Number of this process and how many there are; joins them under torchrun."""
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def _split_name(name: str) -> tuple[str, str]:
    """Curve and model of `NAME=MODEL`; no curve where a folder is called so."""
    if "=" not in name or Path(name).exists():
        return "", name
    curve, _, model = name.partition("=")
    return curve, model


def _folder_name(name: str) -> str:
    """What a model is called: its folder, or that of its training."""
    path = Path(name)
    return path.parent.name if path.name == "model" else path.name


def _split_at_mark(name: str) -> tuple[str, str, str]:
    for mark in (":", "@"):
        if mark in name:
            return name.partition(mark)
    return name, "", ""
