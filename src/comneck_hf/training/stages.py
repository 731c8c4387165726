"""Training stages of the papers, as data. Where paper and released code differ, both are here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar


AnyPreset = TypeVar("AnyPreset")


@dataclass(frozen=True)
class Stage:
    """One phase of a training.

    Attributes:
        name: For logs and for `--stages`.
        source: Where it comes from.
        trains: Parts with gradients; all else is frozen.
        weights: Weight of every term of the loss; a term that is missing is not computed.
        share: Share of the run's steps; the shares of the stages of a run are scaled to 1.
        learning_rate: Relative to the run's learning rate.
        schedule: `"constant"`, or `"cosine"` down to zero over the consecutive stages that train the same parts.
        quantization: Of the latents where the codec trains: `"noise"` or `"ste"`.
        size: Side in pixels to which pictures are brought, where it is not the data's.
    """

    name: str
    source: str
    trains: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0
    learning_rate: float = 1.0
    schedule: str = "constant"
    quantization: str = "ste"
    size: int | None = None


@dataclass(frozen=True)
class Preset:
    """How the surrogate loss is computed.

    Attributes:
        name: `"paper"`, `"official"`; `"cross-entropy"` and `"distillation"`: one term alone, with the learning rates
            of the paper's (its ablation); or `"cosine"`: distillation alone, with a rate that falls as a cosine.
        neck: The stages of the neck; those of the papers are progressive.
        normalize_logits: Cross-entropy on cosines times CLIP's temperature, or on raw dot products.
        post_layernorm_repeats: As in `ComNeckVisionConfig`.
        distillation_weight: Of the distillation where it is the only term.
    """

    name: str
    neck: tuple[Stage, ...]
    normalize_logits: bool
    post_layernorm_repeats: int
    distillation_weight: float


def _progressive(source: str, *, cross_entropy: float, classify: float, distillation: float) -> tuple[Stage, ...]:
    """Equation 4: E1 = 20 and E2 = 40 of 60 epochs, the learning rate a tenth after the first 20."""
    neck = ("neck",)
    return (
        Stage("classify", source, neck, {"cross_entropy": classify}, share=1 / 3),
        Stage(
            "align",
            source,
            neck,
            {"cross_entropy": cross_entropy, "distillation": distillation},
            share=1 / 3,
            learning_rate=0.1,
        ),
        Stage("distill", source, neck, {"distillation": distillation}, share=1 / 3, learning_rate=0.1),
    )


def _alone(name: str, weight: float) -> Preset:
    """One term of the loss, at the learning rates of all."""
    source, neck, weights = "ComNeck, figure 6", ("neck",), {name.replace("-", "_"): weight}
    high = Stage("high-rate", source, neck, weights, share=1 / 3)
    low = Stage("low-rate", source, neck, weights, share=2 / 3, learning_rate=0.1)
    return Preset(name, (high, low), normalize_logits=True, post_layernorm_repeats=1, distillation_weight=100.0)


PRESETS = {
    "paper": Preset(
        "paper",
        _progressive("ComNeck, eq. 3 and 4", cross_entropy=1.0, classify=1.0, distillation=100.0),
        normalize_logits=True,
        post_layernorm_repeats=1,
        distillation_weight=100.0,
    ),
    # The loss is 11.52 * (100 CE | CE + 100 MSE | 100 MSE)
    "official": Preset(
        "official",
        _progressive("ComNeck, released code", cross_entropy=11.52, classify=1152.0, distillation=1152.0),
        normalize_logits=False,
        post_layernorm_repeats=2,
        distillation_weight=1152.0,
    ),
    "cross-entropy": _alone("cross-entropy", 1.0),
    "distillation": _alone("distillation", 100.0),
    "cosine": Preset(
        "cosine",
        (Stage("distill", "no paper", ("neck",), {"distillation": 100.0}, schedule="cosine"),),
        normalize_logits=True,
        post_layernorm_repeats=1,
        distillation_weight=100.0,
    ),
}


def find_preset(presets: Mapping[str, AnyPreset], name: str) -> AnyPreset:
    """The preset of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in presets:
        raise ValueError(f"`preset` must be one of {sorted(presets)}, got {name!r}.")
    return presets[name]


def codec_stages(lmbda: float) -> tuple[Stage, ...]:
    """Rate-distortion training of a codec: lambda * 255^2 * MSE + bpp, with noise and at the end with rounding."""
    weights = {"rate": 1.0, "reconstruction": lmbda * 255**2}
    source = "ELIC (He et al. 2022); rounding at the end as in its re-implementation"
    return (
        Stage("noise", source, ("codec",), weights, share=0.85, schedule="cosine", quantization="noise"),
        Stage("round", source, ("codec",), weights, share=0.15, schedule="cosine", quantization="ste"),
    )


def comneck_stages(
    scenario: str, preset: Preset, *, lmbda: float, reconstruction: float = 60.0, distillation: float = 1.0
) -> tuple[Stage, ...]:
    """The stages of a scenario.

    Args:
        scenario: `"d1"` (neck only), `"d2"` (joint with distortion) or `"d3"` (joint, encoder only).
        preset: The surrogate loss of the neck's stages.
        lmbda: Trade-off of the joint stage, rate + lambda * (gamma * MSE + beta * distillation), rate in bits per
            pixel, MSE of pictures in [0, 1].
        reconstruction: gamma; the paper gives gamma : beta = 60 : 1.
        distillation: beta.

    Raises:
        ValueError: If the scenario is unknown.
    """
    if scenario == "d1":
        return preset.neck
    if scenario not in ("d2", "d3"):
        raise ValueError(f"`scenario` must be 'd1', 'd2' or 'd3', got {scenario!r}.")
    weights = {"rate": 1.0, "distillation": lmbda * distillation}
    if scenario == "d2":
        weights["reconstruction"] = lmbda * reconstruction
    codec = "codec" if scenario == "d2" else "encoder"
    source = f"ComNeck, sec. 3.3, {scenario}"
    return (
        *(replace(stage, source=f"{source} (i)", share=stage.share * 0.3) for stage in preset.neck),
        Stage("joint", f"{source} (ii)", ("neck", codec), weights, share=0.5, schedule="cosine"),
        Stage(
            "finish",
            f"{source} (iii)",
            ("neck",),
            {"distillation": preset.distillation_weight},
            share=0.2,
            learning_rate=0.1,
        ),
    )


def choose_stages(stages: tuple[Stage, ...], names: list[str]) -> tuple[Stage, ...]:
    """The stages of these names, all for an empty list.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = sorted(set(names) - {stage.name for stage in stages})
    if unknown:
        raise ValueError(f"There is no stage {unknown}; this training has {[stage.name for stage in stages]}.")
    return tuple(stage for stage in stages if not names or stage.name in names)


@dataclass(frozen=True)
class Span:
    """A stage and the steps it takes.

    Attributes:
        stage: The stage.
        first: Its first step.
        end: The step after its last.
        phase: Number of its phase: consecutive stages that train the same parts share optimizers and a schedule.
    """

    stage: Stage
    first: int
    end: int
    phase: int


def plan_steps(stages: tuple[Stage, ...], steps: int) -> tuple[Span, ...]:
    """Divides the steps of a run among its stages.

    Raises:
        ValueError: If there are fewer steps than stages.
    """
    if steps < len(stages):
        raise ValueError(f"{steps} steps are too few for {len(stages)} stages; raise `steps`.")
    total, spans, passed, phase = sum(stage.share for stage in stages), [], 0.0, 0
    for number, stage in enumerate(stages):
        first = spans[-1].end if spans else 0
        passed += stage.share
        end = min(max(round(steps * passed / total), first + 1), steps - (len(stages) - number - 1))
        phase += bool(spans) and spans[-1].stage.trains != stage.trains
        spans.append(Span(stage, first, end, phase))
    return tuple(spans)


__all__ = [
    "PRESETS",
    "Preset",
    "Span",
    "Stage",
    "choose_stages",
    "codec_stages",
    "comneck_stages",
    "find_preset",
    "plan_steps",
]
