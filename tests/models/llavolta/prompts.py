"""What the tests of LLaVolta share: prompts and batches."""

import torch


IMAGE = 98  # token
LENGTH = 16  # tokens of a picture
PICTURE = [IMAGE] * LENGTH
PROMPT = [1, 5, 6, *PICTURE, 7, 8, 9]


def batch(*rows, side="left"):
    longest = max(map(len, rows))
    padding = [[0] * (longest - len(row)) for row in rows]
    pairs = [(p, r) if side == "left" else (r, p) for p, r in zip(padding, rows, strict=True)]
    ones = [(p, [1] * len(r)) if side == "left" else ([1] * len(r), p) for p, r in zip(padding, rows, strict=True)]
    return {
        "input_ids": torch.tensor([a + b for a, b in pairs]),
        "attention_mask": torch.tensor([a + b for a, b in ones]),
    }


def greedy(model, count=8, **inputs):
    length = inputs["input_ids"].shape[1]
    return model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)[:, length:]
