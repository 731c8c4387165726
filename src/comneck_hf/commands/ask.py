"""Questions about .cnk files, answered by a LLaVA with a ComNeck tower."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from .. import BitstreamError, ComNeckConfig, ComNeckProcessor, attach_vision_tower
from ..evaluation.answers import Question, generate_answers
from ..integrations.llava import image_features
from .loading import load_model, resolve_model
from .streams import FileResult


__all__ = ["answer_files", "load_llava"]


def load_llava(
    name: str, tower: str, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[PreTrainedModel, ComNeckProcessor]:
    """A LLaVA that reads bitstreams, and its processor.

    Args:
        name: Folder, Hub id or packaged name of the LLaVA.
        tower: Of the ComNeck model to attach, where the LLaVA was trained on pixels.
        device, dtype: Of the model.

    Raises:
        ValueError: If there is no such model, or the tower does not fit it.
    """
    path = resolve_model(name)
    llava = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval().to(device)
    processor = AutoProcessor.from_pretrained(path)
    if not isinstance(llava.config.vision_config, ComNeckConfig):
        attach_vision_tower(llava, load_model(tower, device=device, dtype=dtype))
    return llava, ComNeckProcessor.for_llava(llava, processor)


def answer_files(
    llava: PreTrainedModel, processor: ComNeckProcessor, paths: list[Path], question: str
) -> list[FileResult]:
    """Asks the same about every file; a bad file never stops the others."""
    results = []
    for path in paths:
        try:
            features = image_features(llava, bitstreams=[path.read_bytes()])
        except (BitstreamError, ValueError, OSError) as error:
            results.append(FileResult(input=str(path), error=str(error)))
            continue
        (answer,) = generate_answers(llava, processor, features.images, [Question(0, question, "")])
        results.append(FileResult(input=str(path), answer=answer))
    return results
