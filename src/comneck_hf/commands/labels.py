"""Zero-shot labels: image embeddings compared with the text embeddings of class names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from ..training.zero_shot import PROMPTS_NAME, load_class_prompts, zero_shot_weights


__all__ = ["DEFAULT_TEMPLATES", "Label", "ZeroShotClassifier"]

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class Label(NamedTuple):
    """A class name and its probability, 0 to 1."""

    label: str
    probability: float


def load_templates(folder: str) -> Sequence[str]:
    """Prompt templates of a CLIP: those in its `zero_shot.json`, or a few usual ones."""
    if (Path(folder) / PROMPTS_NAME).is_file():
        return load_class_prompts(folder).templates
    return DEFAULT_TEMPLATES


class ZeroShotClassifier:
    """Names what embeddings show, by a CLIP and class names.

    Args:
        clip: The CLIP whose vision tower the embeddings stand for.
        class_names: Possible labels.
        weights: Unit-norm text embeddings, `(classes, projection_dim)`.
        image_processor: CLIP's own, for pictures that take its ordinary path.
    """

    def __init__(
        self, clip: CLIPModel, *, class_names: Sequence[str], weights: torch.Tensor, image_processor: object
    ) -> None:
        self.clip = clip
        self.class_names = tuple(class_names)
        self.weights = weights
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls, folder: str, *, class_names: Sequence[str] | None = None, device: torch.device | str = "cpu"
    ) -> "ZeroShotClassifier":
        """Loads CLIP, tokenizer and image processor, and makes the classifier's weights.

        Args:
            folder: Folder or Hub id of a `CLIPModel`. Its `zero_shot.json` holds templates and class names.
            class_names: Labels in place of those.
            device: Where the networks run.

        Raises:
            ValueError: If neither the folder nor the caller names classes.
        """
        templates = load_templates(folder)
        if (Path(folder) / PROMPTS_NAME).is_file():
            prompts = load_class_prompts(folder)
            class_names = prompts.class_names if class_names is None else class_names
        if class_names is None:
            raise ValueError(f"{folder} has no {PROMPTS_NAME}. Pass `class_names` (--labels on the command line).")
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        weights = zero_shot_weights(clip, tokenizer, class_names=class_names, templates=templates)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        return cls(clip, class_names=class_names, weights=weights, image_processor=processor)

    @torch.no_grad()
    def probabilities(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Probability of each class.

        Args:
            image_embeds: Shape `(batch, projection_dim)`, any scale.

        Returns:
            float32 `(batch, classes)` on the CPU; rows add up to 1.

        Raises:
            ValueError: If the embeddings have another width than this CLIP's.
        """
        if image_embeds.shape[-1] != self.weights.shape[-1]:
            raise ValueError(
                f"The image embeddings have {image_embeds.shape[-1]} dimensions, the text embeddings "
                f"{self.weights.shape[-1]}. Use the CLIP that the model was made from."
            )
        embeds = torch.nn.functional.normalize(image_embeds.float(), dim=-1).to(self.weights.device)
        return (self.clip.logit_scale.exp() * embeds @ self.weights.T).softmax(-1).cpu()

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Embeddings of pictures by CLIP's full vision tower: `(len(pictures), projection_dim)`."""
        pixel_values = self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return self.clip.get_image_features(pixel_values=pixel_values.to(self.clip.device)).pooler_output

    def top(self, image_embeds: torch.Tensor, count: int) -> list[list[Label]]:
        """The `count` most probable labels of each embedding, best first; all of them if there are fewer."""
        best = self.probabilities(image_embeds).topk(min(count, len(self.class_names)))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[Label(self.class_names[index], value) for index, value in zip(*row, strict=True)] for row in rows]
