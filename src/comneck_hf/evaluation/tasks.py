"""What is asked about pictures that have arrived: their class by CLIP, or anything by a LLaVA with that CLIP."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel, ProcessorMixin

from ..integrations.llava import attach_vision_tower, image_features
from ..models.clip_inputs import clip_inputs
from ..models.codec_vision_config import CodecVisionConfig
from ..models.cotam.joined_cotam import join_picture
from ..training.content import model_parts
from .answers import Question, generate_answers
from .baselines import Baseline, Received
from .intervals import Columns


class Task(ABC):
    """Pictures and what is asked about them.

    Attributes:
        name: Of the task.
        pictures: uint8 `(n, 3, height, width)`, at the codec's input size; a list where sizes differ.
        group_size: So many pictures in a row are asked about together.
    """

    name: str
    group_size: int = 1
    pictures: torch.Tensor | list[torch.Tensor]

    @abstractmethod
    def depends_on(self) -> tuple[str | torch.Tensor | nn.Module, ...]:
        """What decides on results, besides the baseline."""

    @abstractmethod
    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """Scores of the pictures with these numbers, in percent, as columns `(2, len(numbers))`."""


class Distortion(Task):
    """Nothing is asked: bytes and quality of whole pictures of any size.

    Args:
        pictures: uint8 `(3, height, width)` each.
        name: Of the task.
    """

    def __init__(self, pictures: list[torch.Tensor], *, name: str = "distortion") -> None:
        self.name, self.pictures = name, pictures

    def depends_on(self) -> tuple[str | torch.Tensor | nn.Module, ...]:
        """The pictures."""
        return (self.name, *self.pictures)

    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """Nothing."""
        return {}


class ZeroShot(Task):
    """Zero-shot classification.

    Args:
        clip: Sees pictures, and has the text tower of the classifier.
        pictures: As in [`Task`].
        labels: Classes, `(n,)`.
        weights: Unit-norm text embeddings, `(classes, projection_dim)`.
        name: Of the task.
    """

    def __init__(
        self,
        clip: CLIPModel,
        pictures: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        *,
        name: str = "zero-shot",
    ) -> None:
        self.name, self.clip, self.pictures, self.labels, self.weights = name, clip, pictures, labels, weights

    def depends_on(self) -> tuple[str | torch.Tensor | nn.Module, ...]:
        """Pictures, classes and CLIP."""
        return (self.name, self.pictures, self.labels, self.weights, *model_parts(self.clip))

    @torch.no_grad()
    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """`top1` and `top5`."""
        with received.timed("features"):
            if baseline.comneck is None:
                pixel_values = clip_inputs(received.pixel_values, self.clip.config.vision_config.image_size)
                embeds = self.clip.get_image_features(pixel_values).pooler_output
            else:
                embeds = baseline.comneck(latents=received.latents, **received.gains).image_embeds
        scores = F.normalize(embeds.float(), dim=-1) @ self.weights.T
        expected = self.labels[list(numbers), None].to(scores.device)
        right = scores.topk(min(5, len(self.weights))).indices.eq(expected).cpu().numpy()
        ones = np.ones(len(right))
        return {"top1": np.stack([100 * right[:, 0], ones]), "top5": np.stack([100 * right.any(1), ones])}


class LlavaTask(Task):
    """A task for a LLaVA; every ComNeck is attached to it as it is.

    Args:
        llava: Trained on pixels, or with LLaVolta's pooling.
        processor: Its processor.

    Raises:
        ValueError: If the LLaVA has a ComNeck tower already.
    """

    def __init__(self, llava: PreTrainedModel, processor: ProcessorMixin) -> None:
        if isinstance(llava.config.vision_config, CodecVisionConfig):
            raise ValueError("This LLaVA has a ComNeck tower. Give the one with a CLIP that it was made from.")
        self.llava, self.processor = llava, processor
        self._attached: tuple[Baseline, PreTrainedModel] | None = None

    def llava_parts(self) -> tuple[str | nn.Module, ...]:
        """The LLaVA and its processor, for `depends_on`."""
        tokens = self.processor.tokenizer.backend_tokenizer.to_str()
        return (*model_parts(self.llava), str(self.processor.chat_template), tokens)

    def features(self, baseline: Baseline, received: Received) -> list[torch.Tensor]:
        """What the language model reads of pictures that have arrived: `(tokens, hidden_size)` each."""
        comneck, llava = baseline.comneck, self._with_tower(baseline)
        with received.timed("features"):
            if comneck is None:
                size = self.llava.config.vision_config.image_size
                return image_features(llava, clip_inputs(received.pixel_values, size)).images
            latents = received.latents
            if comneck.config.vision_config.reads_pictures:
                latents = join_picture(latents, comneck.reconstruct(latents, **received.gains))
            return image_features(llava, latents).images

    def _with_tower(self, baseline: Baseline) -> PreTrainedModel:
        """The LLaVA, with the baseline's tower where it has one."""
        if baseline.comneck is None:
            return self.llava
        if self._attached is None or self._attached[0] is not baseline:
            self._attached = None
            base = self.llava.base_model
            shared = (base.language_model, self.llava.get_output_embeddings())  # only the tower is exchanged
            llava = copy.deepcopy(self.llava, {id(part): part for part in shared})
            reads_pictures = baseline.comneck.config.vision_config.reads_pictures
            tower = baseline.comneck if reads_pictures else baseline.comneck.vision_model
            self._attached = (baseline, attach_vision_tower(llava, tower))
        return self._attached[1]


class Questions(LlavaTask):
    """Questions that a LLaVA answers.

    Args:
        llava, processor: As in [`LlavaTask`].
        pictures: As in [`Task`].
        questions: About the pictures by their numbers.
        name: Of the task.
        judge: The score of an answer between 0 and 1; by default 1 where it is the expected one but for upper and
            lower case.
        max_new_tokens: Longest answer.
    """

    def __init__(
        self,
        llava: PreTrainedModel,
        processor: ProcessorMixin,
        pictures: torch.Tensor,
        questions: Sequence[Question],
        *,
        name: str,
        judge: Callable[[str, Question], float] | None = None,
        max_new_tokens: int = 12,
    ) -> None:
        super().__init__(llava, processor)
        self.name, self.pictures = name, pictures
        self.questions = questions
        self._asked: dict[int, list[Question]] = {}
        for question in questions:
            self._asked.setdefault(question.picture, []).append(question)
        self.judge = judge or _is_expected
        self.max_new_tokens = max_new_tokens

    def depends_on(self) -> tuple[str | torch.Tensor | nn.Module, ...]:
        """Pictures, questions, judge and LLaVA."""
        facts = (self.name, repr(self.questions), f"{self.max_new_tokens}")
        if self.judge is not _is_expected:
            facts += (getattr(self.judge, "__module__", ""), getattr(self.judge, "__qualname__", repr(self.judge)))
        return (*facts, self.pictures, *self.llava_parts())

    @torch.no_grad()
    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """`accuracy`; its counts are the questions of each picture."""
        places = {number: place for place, number in enumerate(numbers)}
        column = np.zeros((2, len(numbers)))
        for question, answer in self.answer(baseline, received, numbers):
            column[:, places[question.picture]] += (100 * self.judge(answer, question), 1)
        return {"accuracy": column}

    @torch.no_grad()
    def answer(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> list[tuple[Question, str]]:
        """Answers to all questions about the pictures with these numbers."""
        features = self.features(baseline, received)
        places = {number: place for place, number in enumerate(numbers)}
        asked = [question for number in numbers for question in self._asked.get(number, [])]
        chosen = [Question(places[question.picture], question.text, question.answer) for question in asked]
        with received.timed("answers"):
            answers = generate_answers(
                self.llava, self.processor, features, chosen, max_new_tokens=self.max_new_tokens
            )
        return list(zip(asked, answers, strict=True))


def _is_expected(answer: str, question: Question) -> float:
    return float(answer.lower() == question.answer.lower())


__all__ = ["Distortion", "LlavaTask", "Questions", "Task", "ZeroShot"]
