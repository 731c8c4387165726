"""Pictures for the commands, and what they say when they fail."""

import numpy as np
from PIL import Image

from comneck_hf import ComNeckImageProcessorPil


SIDE = 64
CLASSES = ("cup", "wild cat", "motorbike")


def photograph(path, size=(90, 70), seed=0):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    noise = np.random.default_rng(seed).normal(0, 20, (size[1], size[0], 3))
    waves = np.stack([np.sin(x / (9 + seed)), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(np.clip(128 + 90 * waves + noise, 0, 255))).save(path)
    return path


def prepare(picture):
    processor = ComNeckImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    return processor(images=picture, return_tensors="pt")["pixel_values"]


def only_error_line(result):
    """The message of a failed command: exactly one line on stderr."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0]
