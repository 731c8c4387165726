"""A LLaVA whose pictures are coded to bytes before it sees them, and the same LLaVA on pixels to compare with."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    LlavaNextConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from ..models.codec_vision import CodecVisionModel
from ..models.codec_vision_config import CodecVisionConfig, LatentVisionConfig
from ..models.comneck.codec_owner import codec_from_pretrained
from ..models.comneck.image_processing_comneck import ComNeckImageProcessor
from ..models.comneck.processing_comneck import ComNeckProcessor
from ..models.cotam.configuration_cotam import CotamConfig
from .llava import attach_vision_tower


SOURCES = ("latents", "reconstruction", "original")
_PICTURES_PER_BATCH = 16
_OPTIONS = ("max_new_tokens", "num_beams", "repetition_penalty")
_SAMPLING_OPTIONS = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class CodedImages:
    """Images on their way into a prompt.

    Attributes:
        images: What the processor takes: bitstreams or pictures.
        num_bytes: Length of each image's bitstream; `None` where it was not coded.
    """

    images: list[Any]
    num_bytes: list[int] | None


@dataclass(frozen=True)
class Answers:
    """Answers to a batch of prompts.

    Attributes:
        texts: Without special tokens and white space at their ends.
        num_tokens: Generated tokens of each.
    """

    texts: list[str]
    num_tokens: list[int]


class CodedLlava:
    """A LLaVA, its processor, and the way of pictures into it.

    latents         picture -> bitstream -> latents -> neck, CLIP's layers --------+
    reconstruction  picture -> bitstream -> latents -> picture -> the whole CLIP --+-> projector -> language model
    original        picture --------------------------------------> the whole CLIP-+

    Args:
        llava: With a ComNeck tower for `latents`, with its own CLIP otherwise.
        processor: Its processor.
        source: One of `SOURCES`.
        codec: In float32, on the device where it shall run; not needed for `original`.
        codec_processor: Makes the pictures that are coded; not needed for `original`.
    """

    def __init__(
        self,
        llava: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        source: str,
        codec: PreTrainedModel | None = None,
        codec_processor: ComNeckImageProcessor | None = None,
    ) -> None:
        self.llava, self.processor, self.source = llava.eval(), processor, source
        self.codec, self.codec_processor = codec, codec_processor

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | os.PathLike,
        *,
        comneck: str | os.PathLike | None = None,
        source: str = "latents",
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
        force: bool = False,
    ) -> "CodedLlava":
        """Loads a LLaVA and what codes its pictures.

        Args:
            pretrained: Folder or Hub id of a LLaVA that was trained on pixels, or has a ComNeck tower.
            comneck: Folder or Hub id of the ComNeck or CoTAM that codes. A LLaVA with such a tower has one; `original`
                needs none and does not load it.
            source: One of `SOURCES`.
            device: Of the LLaVA and the codec.
            dtype: Of the LLaVA. The codec always runs in float32.
            force: Attach a neck that was trained for another CLIP of the same shape.

        Raises:
            ValueError: If there is no such source, or the LLaVA or the ComNeck does not fit it.
        """
        if source not in SOURCES:
            raise ValueError(f"`source` must be one of {SOURCES}, got {source!r}.")
        llava = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype).to(device)
        processor = AutoProcessor.from_pretrained(pretrained)
        has_comneck = isinstance(llava.config.vision_config, CodecVisionConfig | LatentVisionConfig)
        _check_source(source, llava, pretrained, has_comneck=has_comneck, comneck=comneck)
        if source == "original":
            return cls(llava, processor, source=source)
        if comneck is None:
            if isinstance(llava.config.vision_config, CotamConfig):
                # With the guide, which is a part of the tower; the tower itself keeps its type
                codec = copy.deepcopy(llava.base_model.vision_tower.coder).float()
            else:
                codec = codec_from_pretrained(pretrained, dtype=torch.float32)
            if not isinstance(processor, ComNeckProcessor):
                processor = ComNeckProcessor.for_llava(llava, processor)
        else:
            model = _load_comneck(comneck)
            codec = (model.codec if source == "reconstruction" else model.coder).eval()
            codec_processor = ComNeckImageProcessor.for_size(model.config.image_size)
            if source == "latents":
                reads_pictures = model.config.vision_config.reads_pictures
                attach_vision_tower(llava, model if reads_pictures else model.vision_model, force=force)
                processor = ComNeckProcessor.for_llava(llava, processor)
        codec.to(device)
        if source == "latents":
            processor.codec, codec_processor = codec, processor.image_processor
        return cls(llava, processor, source=source, codec=codec, codec_processor=codec_processor)

    def code(self, pictures: Sequence[Image.Image]) -> CodedImages:
        """Codes pictures, and decodes them where the LLaVA takes pictures.

        Args:
            pictures: Of any size.
        """
        if self.source == "original":
            return CodedImages(list(pictures), None)
        bitstreams: list[bytes] = []
        decoded: list[Image.Image] = []
        for first in range(0, len(pictures), _PICTURES_PER_BATCH):
            batch = [picture.convert("RGB") for picture in pictures[first : first + _PICTURES_PER_BATCH]]
            bitstreams += self.codec.compress(self.codec_processor(batch, return_tensors="pt").pixel_values)
            if self.source == "reconstruction":
                decoded += self._decoded(bitstreams[first:])
        images = bitstreams if self.source == "latents" else decoded
        return CodedImages(images, [len(bitstream) for bitstream in bitstreams])

    @torch.no_grad()
    def _decoded(self, bitstreams: Sequence[bytes]) -> list[Image.Image]:
        gains = self.codec.coded_gains(bitstreams)
        pixel_values = self.codec.decode(self.codec.decompress(bitstreams), **gains)
        pixels = (pixel_values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in pixels]

    def inputs(self, conversations: Sequence[list[dict[str, Any]]], images: Sequence[Sequence[Any]]) -> BatchFeature:
        """What the LLaVA takes, left-padded, on its device.

        Args:
            conversations: Messages of its chat template, with `{"type": "image"}` for every image.
            images: Of each conversation, coded; none for text alone.
        """
        inputs = self.processor.apply_chat_template(
            list(conversations),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images": [list(own) for own in images], "padding": True, "padding_side": "left"},
        )
        return inputs.to(self.llava.device, self.llava.dtype)

    @torch.no_grad()
    def answer(
        self, conversations: Sequence[list[dict[str, Any]]], images: Sequence[Sequence[Any]], **options: Any
    ) -> Answers:
        """Answers to a batch of prompts.

        Args:
            conversations: As in `inputs`.
            images: As in `inputs`.
            options: Of `generate`.
        """
        tokenizer = self.processor.tokenizer
        inputs = self.inputs(conversations, images)
        outputs = self.llava.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **options)
        tokens = outputs[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return Answers(
            [text.strip() for text in texts],
            tokens.ne(-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id).sum(1).tolist(),
        )


def generation_options(wanted: Mapping[str, Any], *, max_new_tokens: int) -> dict[str, Any]:
    """Options of `generate` from a task's `generation_kwargs`; sampling only at a temperature above 0.

    Args:
        wanted: Names as lmms-eval's tasks have them.
        max_new_tokens: Longest answer where the task sets none.
    """
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    options |= {name: wanted[name] for name in _OPTIONS if wanted.get(name) is not None}
    temperature = wanted.get("temperature")
    if wanted.get("do_sample", bool(temperature)) and temperature != 0:
        options["do_sample"] = True
        options |= {name: wanted[name] for name in _SAMPLING_OPTIONS if wanted.get(name) is not None}
    return options


def ignored_options(wanted: Iterable[str]) -> set[str]:
    """Names in a task's `generation_kwargs` that have no effect here."""
    return set(wanted) - {*_OPTIONS, *_SAMPLING_OPTIONS, "do_sample", "until"}


def cut_answer(text: str, stops: str | Sequence[str] | None) -> str:
    """The answer before the first of a task's stop strings (`until`)."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _check_source(
    source: str,
    llava: PreTrainedModel,
    pretrained: str | os.PathLike,
    *,
    has_comneck: bool,
    comneck: str | os.PathLike | None,
) -> None:
    """Refuses a LLaVA that cannot take images from this source."""
    if source == "latents" and isinstance(llava.config, LlavaNextConfig):
        raise ValueError(
            f"{pretrained} is a LLaVA-NeXT, which cuts pictures into tiles. `source=latents` takes a LLaVA or "
            "ViP-LLaVA; `source=reconstruction` takes LLaVA-NeXT, too."
        )
    if source != "latents" and has_comneck:
        raise ValueError(
            f"{pretrained} has a ComNeck tower, and `source={source}` needs the whole CLIP. Give the LLaVA it was "
            "made from, or `source=latents`."
        )
    if source != "original" and not has_comneck and comneck is None:
        raise ValueError(
            f"{pretrained} was trained on pixels, and `source={source}` needs a codec. Give a ComNeck, "
            "`comneck=FOLDER_OR_ID`, or `source=original`."
        )


def _load_comneck(source: str | os.PathLike) -> CodecVisionModel:
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    if model.codec is None:
        raise ValueError(
            f"{source} holds no codec: it takes latents only. Give a ComNeck that was saved with its codec."
        )
    return model


__all__ = [
    "SOURCES",
    "Answers",
    "CodedImages",
    "CodedLlava",
    "cut_answer",
    "generation_options",
    "ignored_options",
]
