"""Answers of a LLaVA about pictures that reach it in different ways: pixels, decoded pictures, latents."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..integrations.llava import image_features
from ..models.comneck.modeling_comneck import ComNeckModel
from ..training.conversations import conversation


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        picture: Its number.
        text: What is asked.
        answer: The one answer that counts.
    """

    picture: int
    text: str
    answer: str


@torch.no_grad()
def pixel_features(
    llava: PreTrainedModel, processor: ProcessorMixin, pictures: torch.Tensor, *, batch_size: int = 64
) -> list[torch.Tensor]:
    """What the language model reads of pictures, through the tower it was trained with.

    Args:
        llava: With a CLIP tower.
        processor: Its processor.
        pictures: uint8 `(n, 3, height, width)`.
        batch_size: Pictures per batch.

    Returns:
        One tensor of shape `(tokens, hidden_size)` per picture.
    """
    features: list[torch.Tensor] = []
    for batch in tqdm(pictures.split(batch_size), desc="pictures", leave=False):
        images = [Image.fromarray(picture) for picture in batch.permute(0, 2, 3, 1).numpy()]
        pixel_values = processor.image_processor(images, return_tensors="pt").pixel_values
        features += image_features(llava, pixel_values).images
    return features


@torch.no_grad()
def coded_features(
    llava: PreTrainedModel, comneck: ComNeckModel, pictures: torch.Tensor, *, batch_size: int = 64
) -> tuple[list[torch.Tensor], torch.Tensor, float]:
    """What the language model reads of bitstreams, and the pictures that a person would see.

    Args:
        llava: With ComNeck's tower attached.
        comneck: The model the tower is from; it codes.
        pictures: uint8 `(n, 3, height, width)`, at the codec's input size.
        batch_size: Pictures per batch.

    Returns:
        One tensor per picture, as `pixel_features`; the decoded pictures, uint8; mean bytes per picture.
    """
    features: list[torch.Tensor] = []
    decoded, num_bytes = [], 0
    for batch in tqdm(pictures.split(batch_size), desc="bitstreams", leave=False):
        bitstreams = comneck.compress(batch.float() / 255)
        num_bytes += sum(map(len, bitstreams))
        latents = comneck.decompress(bitstreams)
        features += image_features(llava, latents).images
        decoded.append((comneck.reconstruct(latents) * 255).round().to(torch.uint8))
    return features, torch.cat(decoded), num_bytes / len(pictures)


def prompt_inputs(processor: ProcessorMixin, questions: Sequence[str], num_tokens: Sequence[int]) -> BatchEncoding:
    """Left-padded `input_ids` and `attention_mask` of questions, each about an image of `num_tokens` tokens."""
    tokenizer = processor.tokenizer
    prompts = [
        processor.apply_chat_template(conversation([(question, None)]), add_generation_prompt=True).replace(
            processor.image_token, processor.image_token * count
        )
        for question, count in zip(questions, num_tokens, strict=True)
    ]
    has_bos = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    return tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=not has_bos, return_tensors="pt")


@torch.no_grad()
def generate_answers(
    llava: PreTrainedModel,
    processor: ProcessorMixin,
    features: Sequence[torch.Tensor],
    questions: Sequence[Question],
    *,
    batch_size: int = 128,
    max_new_tokens: int = 12,
) -> list[str]:
    """Greedy answers, without white space at their ends.

    Args:
        llava: Its language model answers; its tower is not used.
        processor: Tokenizer and chat template.
        features: Of each picture, behind the projector.
        questions: Any number for each picture.
        batch_size: Questions per batch.
        max_new_tokens: Longest answer.
    """
    tokenizer, answers = processor.tokenizer, []
    for first in tqdm(range(0, len(questions), batch_size), desc="answers", leave=False):
        batch = questions[first : first + batch_size]
        images = [features[question.picture] for question in batch]
        inputs = prompt_inputs(processor, [question.text for question in batch], [len(image) for image in images])
        outputs = llava.generate(
            input_ids=inputs.input_ids.to(llava.device),
            attention_mask=inputs.attention_mask.to(llava.device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=images)},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float | list[float]]:
    """Share of answers that are right, in percent, with Wilson's 95 % interval. Upper and lower case are equal."""
    pairs = zip(answers, questions, strict=True)
    right = sum(answer.lower() == question.answer.lower() for answer, question in pairs)
    return {"accuracy": 100 * right / len(questions), "interval": list(wilson_interval(right, len(questions)))}


def wilson_interval(right: int, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a proportion in percent (Wilson, 1927); 95 % with the default `z`."""
    share, weight = right / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return 100 * (middle - half), 100 * (middle + half)


def spread(questions: Iterable[Question], count: int) -> list[Question]:
    """At most `count` questions, evenly over all of them."""
    questions = list(questions)
    step = max(1.0, len(questions) / count)
    return [questions[int(index * step)] for index in range(min(count, len(questions)))]


__all__ = [
    "Question",
    "coded_features",
    "generate_answers",
    "pixel_features",
    "prompt_inputs",
    "score_answers",
    "spread",
    "wilson_interval",
]
