"""Answers of a LLaVA about pictures that reach it in different ways: pixels, decoded pictures, latents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import BatchEncoding, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

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
    for first in range(0, len(questions), batch_size):
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


def spread(questions: Iterable[Question], count: int) -> list[Question]:
    """At most `count` questions, evenly over all of them."""
    questions = list(questions)
    step = max(1.0, len(questions) / count)
    return [questions[int(index * step)] for index in range(min(count, len(questions)))]


__all__ = [
    "Question",
    "generate_answers",
    "prompt_inputs",
    "spread",
]
