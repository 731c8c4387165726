"""Checks of a converted model against independent computations, and the report that lists them."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ..evaluation.size import summarize_sizes
from ..models.comneck.modeling_comneck import ComNeckModel
from ..models.elic.layouts_elic import LAYOUTS, authors_to_compressai_key
from ..models.elic.modeling_elic import ElicModel
from . import reference
from .checkpoints import ForeignCheckpoint, Weights


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: What was compared with what.
        difference: Largest absolute difference that was found.
        limit: Largest that is accepted.
    """

    name: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit."""
        return self.difference <= self.limit


@dataclass
class ConversionReport:
    """What a conversion took from where, and what its result was compared with.

    Attributes:
        source: The checkpoint's file.
        layout: How the codec's tensors are called there.
        parts: Tensors and parameters that were taken, by part.
        unused: Entries of the checkpoint that no weight of the model comes from, with the reason.
        coding_tables: The checkpoint's own tables: absent, empty, valid or stale. They are never taken over.
        checks: The comparisons.
        rate: Sizes on the sample pictures; the cost of integer networks against float ones in percent.
        notes: What else its user should know.
    """

    source: str
    layout: str
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    coding_tables: str = "absent"
    checks: list[Check] = field(default_factory=list)
    rate: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    def raise_for_failures(self) -> None:
        """Raises `ValueError` with the checks that failed, if any."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            lines = "; ".join(f"{check.name}: {check.difference:.1e} (limit {check.limit:.0e})" for check in failed)
            raise ValueError(f"The converted model does not do what the original does. {lines}.")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {**asdict(self), "checks": checks, "passed": self.passed}

    def to_text(self) -> str:
        """For a terminal."""
        lines = [f"{self.source}  ({self.layout} layout)"]
        for name, counts in self.parts.items():
            lines.append(f"  {name:<18}{counts['tensors']:>5} tensors {counts['parameters']:>13,} parameters")
        reasons = sorted(set(self.unused.values()))
        lines.append(f"  {'unused':<18}{len(self.unused):>5} entries: {', '.join(reasons) or 'none'}")
        lines.append(f"  coding tables of the checkpoint: {self.coding_tables}; derived anew")
        lines += ["", f"  {'check':<66}{'difference':>11}{'limit':>9}"]
        for check in self.checks:
            mark = "" if check.passed else "  FAILED"
            lines.append(f"  {check.name:<66}{check.difference:>11.1e}{check.limit:>9.0e}{mark}")
        rate, worst = self.rate["integer_networks_percent"], self.rate["integer_networks_worst_percent"]
        lines += ["", f"  integer networks cost {rate:+.2f} % in bits, {worst:+.2f} % at worst"]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; infinite where either is not finite."""
    difference = (ours.double() - theirs.double()).abs().max().item()
    return difference if difference == difference else float("inf")


@torch.no_grad()
def check_codec(
    codec: ElicModel, theirs: nn.Module, checkpoint: ForeignCheckpoint, pictures: torch.Tensor
) -> list[Check]:
    """Float path against CompressAI's with the checkpoint's own tensors; coding against itself.

    Args:
        codec: The converted codec.
        theirs: What `to_compressai` made of it; gets the checkpoint's tensors.
        checkpoint: Where it came from.
        pictures: float `(batch, 3, height, width)` in [0, 1], sides multiples of 64.
    """
    weights = {key: value.float() for key, value in checkpoint.codec.items()}
    if checkpoint.layout == "authors":
        weights = {authors_to_compressai_key(key): value for key, value in weights.items()}
    parameters = {key: weights[key] for key, _ in theirs.named_parameters()}
    theirs.load_state_dict({**theirs.state_dict(), **parameters})
    outputs = theirs.latent_codec(theirs.g_a(pictures))
    ours = codec(pictures, quantization="ste")
    coded = codec.encode(pictures).latents
    return [
        Check("y_hat, float path against CompressAI", largest_difference(ours.latents, outputs["y_hat"]), 1e-5),
        Check(
            "picture, float path against CompressAI",
            largest_difference(ours.reconstruction, theirs.g_s(outputs["y_hat"])),
            1e-5,
        ),
        Check(
            "latents, decompressed against encoded",
            largest_difference(codec.decompress(codec.compress(pictures)), coded),
            0.0,
        ),
    ]


@torch.no_grad()
def check_features(
    model: ComNeckModel, neck: Weights, clip: CLIPVisionModelWithProjection, latents: torch.Tensor
) -> list[Check]:
    """Neck and CLIP layers against plain PyTorch with the original tensors.

    Args:
        model: The converted model.
        neck: The authors' `adapter`.
        clip: The CLIP it was joined with.
        latents: `(batch, latent_channels, height, width)`.
    """
    config = model.config.vision_config
    heads = config.neck_num_attention_heads or config.num_attention_heads
    neck, tower = {key: value.float() for key, value in neck.items()}, reference.openai_tower(clip.state_dict())
    tokens = reference.neck_tokens(neck, latents, heads)
    first = config.num_skipped_layers
    states = reference.tower_states(tower, tokens, config.num_attention_heads, first_layer=first)
    outputs = model(latents=latents, output_hidden_states=True)
    hidden = max(
        largest_difference(ours, theirs) for ours, theirs in zip(outputs.hidden_states[first:], states, strict=True)
    )
    embeds = reference.image_embeds(tower, states[-1], norms=config.post_layernorm_repeats)
    name = "plain PyTorch"
    return [
        Check(f"neck's tokens against {name}", largest_difference(outputs.hidden_states[first], tokens), 1e-5),
        Check(f"hidden states of layers {first} and up against {name}", hidden, 1e-4),
        Check(f"image_embeds against {name}", largest_difference(outputs.image_embeds, embeds), 5e-5),
    ]


def check_weights(codec: ElicModel, parameters: Weights) -> Check:
    """The codec's parameters against the checkpoint's, whose hidden taps are zero."""
    found = dict(codec.named_parameters())
    assert found.keys() == parameters.keys(), "the key table names every parameter"
    differences = [largest_difference(found[name], value) for name, value in parameters.items()]
    return Check("codec's weights against the checkpoint's", max(differences), 0.0)


def stored_tables(theirs: nn.Module, checkpoint: ForeignCheckpoint) -> str:
    """Whether the checkpoint's own tables of the prior fit its weights: absent, empty, valid or stale.

    CompressAI's versions round single entries differently, so tables are stale where entries differ by more than 2
    of 65,536.

    Args:
        theirs: What `to_compressai` made of the converted codec.
        checkpoint: Where it came from.
    """
    name = LAYOUTS[checkpoint.layout]("entropy_bottleneck.quantiles").replace("quantiles", "_quantized_cdf")
    stored = checkpoint.codec.get(name)
    if stored is None:
        return "absent"
    if stored.numel() == 0:
        return "empty"
    fresh = theirs.latent_codec["hyper"].entropy_bottleneck._quantized_cdf
    same = stored.shape == fresh.shape and int((stored.long() - fresh.long()).abs().max()) <= 2
    return "valid" if same else "stale"


def rate_cost(codec: ElicModel, pictures: torch.Tensor) -> dict[str, float]:
    """`summarize_sizes` of pictures in [0, 1]."""
    return summarize_sizes(codec, list((pictures * 255).round().to(torch.uint8)), progress=False)


__all__ = [
    "Check",
    "ConversionReport",
    "check_codec",
    "check_features",
    "check_weights",
    "largest_difference",
    "rate_cost",
    "stored_tables",
]
