"""Questions about .cnk files, answered by a LLaVA with a ComNeck tower."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from .. import ComNeckProcessor, attach_vision_tower
from ..evaluation.answers import Question, generate_answers
from ..hub.names import resolve_model
from ..integrations.llava import image_features
from ..models.codec_vision_config import CodecVisionConfig
from .loading import load_model
from .streams import FileResult


__all__ = ["answer_files", "load_llava"]

DEFAULT_TOWER = "comneck-tiny-d1-q2"


def load_llava(
    name: str, tower: str | None, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[PreTrainedModel, ComNeckProcessor]:
    """A LLaVA that reads bitstreams, and its processor.

    Args:
        name: Folder, Hub id or packaged name of the LLaVA.
        tower: The ComNeck model to attach, where the LLaVA was trained on pixels; the packaged one by default.
        device, dtype: Of the model.

    Raises:
        ValueError: If there is no such model, the tower does not fit it, or it has one.
    """
    path = resolve_model(name)
    llava = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval().to(device)
    processor = AutoProcessor.from_pretrained(path)
    if not isinstance(llava.config.vision_config, CodecVisionConfig):
        attach_vision_tower(llava, load_model(tower or DEFAULT_TOWER, device=device, dtype=dtype))
    elif tower is not None:
        raise ValueError(
            f"{name!r} has a ComNeck tower; leave out --model, or give a LLaVA that was trained on pixels."
        )
    return llava, ComNeckProcessor.for_llava(llava, processor)


def answer_files(
    llava: PreTrainedModel,
    processor: ComNeckProcessor,
    paths: list[Path],
    question: str,
    *,
    max_new_tokens: int,
) -> list[FileResult]:
    """Asks the same about every file, together; a bad file never stops the others.

    Raises:
        ValueError: If the question is empty, or has a placeholder of an image.
    """
    if not question.strip() or processor.image_token in question:
        raise ValueError(f"The question must be words without {processor.image_token}, got {question!r}.")
    features: dict[Path, torch.Tensor] = {}
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            (features[path],) = image_features(llava, bitstreams=[path.read_bytes()]).images
        except (ValueError, OSError) as error:  # a `BitstreamError` is a `ValueError`
            errors[path] = str(error)
    questions = [Question(number, question, "") for number in range(len(features))]
    answers = generate_answers(llava, processor, list(features.values()), questions, max_new_tokens=max_new_tokens)
    found = dict(zip(features, answers, strict=True))
    return [FileResult(input=str(path), answer=found.get(path), error=errors.get(path)) for path in paths]
