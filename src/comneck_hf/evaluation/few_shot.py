"""Few-shot classification with examples in the prompt: five classes, one picture of each, then a query."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .baselines import Baseline, Received
from .intervals import Columns
from .tasks import LlavaTask


WAYS = 5


@dataclass(frozen=True)
class Episode:
    """Pictures by their numbers: one example of each class, then the query.

    Attributes:
        pictures: `WAYS` examples and the query.
        labels: Their class names; the query's is among the others.
    """

    pictures: tuple[int, ...]
    labels: tuple[str, ...]


def draw_episodes(labels: torch.Tensor, class_names: Sequence[str], *, count: int, seed: int = 0) -> list[Episode]:
    """Episodes of `WAYS` different classes; the query is another picture of one of them.

    Args:
        labels: Classes of the pictures, `(n,)`.
        class_names: Names of the classes.
        count: Episodes.
        seed: Of the draws.

    Raises:
        ValueError: If fewer than `WAYS` classes have two pictures.
    """
    random = np.random.default_rng(seed)
    members = {label: np.flatnonzero(labels.numpy() == label) for label in labels.unique().tolist()}
    chosen = [label for label, numbers in members.items() if len(numbers) >= 2]
    if len(chosen) < WAYS:
        raise ValueError(f"Episodes need {WAYS} classes with two pictures or more, there are {len(chosen)}.")
    episodes = []
    for _ in range(count):
        classes = random.choice(chosen, WAYS, replace=False).tolist()
        query = int(random.integers(WAYS))
        pictures = [random.choice(members[label], 2, replace=False).tolist() for label in classes]
        numbers = (*(pair[0] for pair in pictures), pictures[query][1])
        episodes.append(Episode(numbers, tuple(class_names[label] for label in (*classes, classes[query]))))
    return episodes


class FewShot(LlavaTask):
    """The class of a picture after one example of each of five classes, as the V2L-Tokenizer's evaluation asks.

    The label is chosen whose words are the likeliest as the prompt's continuation.

    Args:
        llava, processor: As in [`Questions`].
        pictures: uint8 `(n, 3, height, width)`, from which episodes are taken.
        episodes: Of `draw_episodes`.
        is_leaky: Put the query with its true label among the examples, as the authors' released evaluation does.
        name: Of the task.
    """

    def __init__(
        self,
        llava: PreTrainedModel,
        processor: ProcessorMixin,
        pictures: torch.Tensor,
        episodes: Sequence[Episode],
        *,
        is_leaky: bool = False,
        name: str = "few-shot",
    ) -> None:
        super().__init__(llava, processor)
        self.name, self.episodes, self.is_leaky = name, episodes, is_leaky
        self.group_size = WAYS + 1
        self.pictures = pictures[[number for episode in episodes for number in episode.pictures]]

    def depends_on(self) -> tuple[str | torch.Tensor | torch.nn.Module, ...]:
        """Pictures, episodes, the form of the prompt and LLaVA."""
        facts = (self.name, repr((self.episodes, self.is_leaky)), self.prompt(self.episodes[0]))
        return (*facts, self.pictures, *self.llava_parts())

    @torch.no_grad()
    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """`accuracy`, counted at the query of each episode."""
        features = self.features(baseline, received)
        column = np.zeros((2, len(numbers)))
        with received.timed("answers"):
            for first in range(0, len(numbers), self.group_size):
                episode = self.episodes[numbers[first] // self.group_size]
                found = self._classify(episode, features[first : first + self.group_size])
                column[:, first + WAYS] = (100 * (found == episode.labels[WAYS]), 1)
        return {"accuracy": column}

    def prompt(self, episode: Episode) -> str:
        """The prompt of an episode, one image token for each picture."""
        token = self.processor.image_token
        shown = episode.labels if self.is_leaky else episode.labels[:WAYS]
        examples = "".join(f"###\nInput: {token}\nOutput: {label}\n" for label in shown)
        classes = ", ".join(sorted(episode.labels[:WAYS]))
        task = f"For each of the following inputs, the output is one of [{classes}]."
        return f"{task}\n{examples}###\nInput: {token}\nOutput:"

    def _classify(self, episode: Episode, features: Sequence[torch.Tensor]) -> str:
        tokenizer, token = self.processor.tokenizer, self.processor.image_token
        images = [*features, features[WAYS]] if self.is_leaky else list(features)
        first, *others = self.prompt(episode).split(token)
        text = first + "".join(token * len(image) + other for image, other in zip(images, others, strict=True))
        start = _with_start(tokenizer, tokenizer(text, return_tensors="pt").input_ids[0])
        labels = episode.labels[:WAYS]
        endings = [
            tokenizer(f" {label}", add_special_tokens=False, return_tensors="pt").input_ids[0] for label in labels
        ]
        scores = [self._log_likelihood(start, ending, images) for ending in endings]
        return labels[int(np.argmax(scores))]

    def _log_likelihood(self, start: torch.Tensor, ending: torch.Tensor, images: list[torch.Tensor]) -> float:
        """Mean logarithm of the probabilities of the ending's tokens; raises if the prompt is too long."""
        input_ids = torch.cat([start, ending])[None].to(self.llava.device)
        longest = getattr(self.llava.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and input_ids.shape[1] > longest:
            raise ValueError(
                f"A prompt of {self.name} has {input_ids.shape[1]} tokens, this language model takes {longest}. Use a "
                "LLaVA with a longer context or fewer tokens per picture."
            )
        outputs = self.llava(
            input_ids=input_ids, mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=images)}
        )
        logits = outputs.logits[0, len(start) - 1 : -1].float().log_softmax(-1)
        return logits.gather(1, ending[:, None].to(logits.device)).mean().item()


def _with_start(tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor) -> torch.Tensor:
    """Tokens with the start token in front, which some tokenizers leave to the chat template."""
    start = tokenizer.bos_token_id
    if start is None or input_ids[0] == start:
        return input_ids
    return torch.cat([input_ids.new_tensor([start]), input_ids])


__all__ = ["WAYS", "Episode", "FewShot", "draw_episodes"]
