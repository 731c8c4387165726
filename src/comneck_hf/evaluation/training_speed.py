"""Where the time of a training step goes, and what a step costs at full size."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from ..models.comneck.modeling_comneck import ComNeckModel
from ..models.elic.configuration_elic import ElicConfig
from ..models.elic.modeling_elic import ElicModel
from ..training.arguments import RunArguments
from ..training.objective import Batch, Objective
from ..training.stages import PRESETS, Stage, comneck_stages
from ..training.surrogate import ComNeckObjective, teacher_features


_VIT_L14 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}
_VIT_L14_TEXT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def step_times(
    objective: Objective,
    loader: DataLoader,
    stage: Stage,
    args: RunArguments,
    *,
    steps: int,
    parts: Mapping[str, Callable[[Batch], object]],
) -> dict[str, float]:
    """Median milliseconds of the parts of a step, in one process on the CPU, after one step that is not counted.

    Args:
        objective: What is trained; changed.
        loader: Its batches.
        stage: The stage that is measured.
        args: Of the optimizers, and `mixed_precision`, no or bf16.
        steps: Counted steps.
        parts: Parts of the forward pass by name, each run once more by itself on every batch, such as the teacher.

    Returns:
        `data`, the parts, `student` (the rest of the forward pass), `backward`, `optimizer`, `step` (their sum) in
        milliseconds, `images_per_second` and `data_percent`.
    """
    objective.begin(stage)
    objective.train()
    optimizers = objective.optimizers(args)
    seconds: dict[str, list[float]] = {}
    batches = iter(loader)
    for number in range(steps + 1):
        row: dict[str, float] = {}
        batch = _timed(row, "data", lambda: next(batches))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mixed_precision == "bf16"):
            loss, _ = _timed(row, "forward", lambda batch=batch: objective(batch, stage))
        _timed(row, "backward", loss.backward)

        def update() -> None:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        _timed(row, "optimizer", update)
        for name, part in parts.items():
            with torch.no_grad():
                _timed(row, name, lambda part=part, batch=batch: part(batch))
        if number:
            for name, value in row.items():
                seconds.setdefault(name, []).append(value)
    times = {name: 1000 * median(values) for name, values in seconds.items()}
    times["student"] = times.pop("forward") - sum(times[name] for name in parts)
    total = sum(times.values())
    return {
        **times,
        "step": total,
        "images_per_second": 1000 * loader.batch_size / total,
        "data_percent": 100 * times["data"] / total,
    }


def full_size_gigaflops() -> dict[str, float]:
    """Floating point operations per picture (two per multiplication) of the trainings for CLIP ViT-L/14 at 224 pixels.

    Counted on tensors without data. `codec` is the float form of the encoder, whose integers do the same products.
    """
    with FakeTensorMode():
        clip = CLIPModel(CLIPConfig(vision_config=_VIT_L14, text_config=_VIT_L14_TEXT, projection_dim=768))
        codec = ElicModel(ElicConfig())
        model = ComNeckModel.from_codec_and_clip(codec, clip)
        pixel_values, labels = torch.empty(1, 3, 256, 256), torch.zeros(1, dtype=torch.long)
        targets = {"image_embeds": 1.0, "hidden_states[-2]": 1.0}
        features = teacher_features(clip, pixel_values, targets)
        coded = {"latents": torch.empty(1, 320, 16, 16), "labels": labels, **features}

        def train(scenario: str, name: str, batch: Batch) -> None:
            """Forward and backward pass of a stage."""
            stage = next(
                stage for stage in comneck_stages(scenario, PRESETS["paper"], lmbda=1.0) if stage.name == name
            )
            # Raw logits: the temperature is a number, which these tensors do not have.
            objective = ComNeckObjective(
                model,
                clip,
                (stage,),
                zero_shot_weights=torch.empty(1000, 768),
                targets=targets,
                normalize_logits=False,
            )
            objective.begin(stage)
            objective(batch, stage)[0].backward()

        with torch.no_grad():
            parts = {
                "teacher": _gigaflops(lambda: teacher_features(clip, pixel_values, targets)),
                "codec": _gigaflops(lambda: codec(pixel_values, quantization="ste", reconstruct=False)),
            }
        parts["student, forward and backward"] = _gigaflops(lambda: train("d1", "align", coded))
        fresh = {"pixel_values": pixel_values, "labels": labels}
        joint = {f"{name} joint": _gigaflops(lambda name=name: train(name, "joint", fresh)) for name in ("d2", "d3")}
        return {**parts, "d1": sum(parts.values()), **joint}


def _gigaflops(function: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def _timed(row: dict[str, float], name: str, function: Callable[[], object]) -> object:
    start = time.perf_counter()
    result = function()
    row[name] = time.perf_counter() - start
    return result


__all__ = ["full_size_gigaflops", "step_times"]
