"""Tiny checkpoints in the authors' layout, with a CLIP that fits them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from .authors_layout import TINY, checkpoint, clip_state, codec_state, neck_state


WIDTH, POSITIONS = 64, 65


@dataclass(frozen=True)
class AuthorsFiles:
    """What a user has: the authors' file and OpenAI's CLIP; the dictionaries are what they hold."""

    checkpoint: Path
    clip: Path
    codec: dict[str, torch.Tensor]
    neck: dict[str, torch.Tensor]
    tower: dict[str, torch.Tensor]

    def variant(self, folder: Path, content: Any) -> str:
        """A file with other content."""
        torch.save(content, folder / "variant.pth.tar")
        return str(folder / "variant.pth.tar")


@pytest.fixture(scope="session")
def authors_files(tmp_path_factory: pytest.TempPathFactory) -> AuthorsFiles:
    """`d2_3.pth.tar` and `clip.pt` at tiny size."""
    folder = tmp_path_factory.mktemp("authors")
    codec, neck = codec_state(**TINY), neck_state(sum(TINY["groups"]), WIDTH, 2 * WIDTH, POSITIONS)
    clip = clip_state(WIDTH, 2 * WIDTH, 5, POSITIONS, 14, 48)
    torch.save(checkpoint(codec, neck), folder / "d2_3.pth.tar")
    torch.save(clip, folder / "clip.pt")
    tower = {key.removeprefix("visual."): value for key, value in clip.items() if key.startswith("visual.")}
    return AuthorsFiles(folder / "d2_3.pth.tar", folder / "clip.pt", codec, neck, tower)
