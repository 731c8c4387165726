"""Training stages of the papers, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One phase of a training.

    Attributes:
        name: For logs.
        cross_entropy: Weight of the zero-shot cross-entropy.
        distillation: Weight of the distance to the teacher's embeddings.
        learning_rate_factor: Relative to the run's learning rate.
        share: Share of the run's steps.
    """

    name: str
    cross_entropy: float
    distillation: float
    learning_rate_factor: float
    share: float


# ComNeck, "progressive" surrogate loss: equations 3 and 4, E1 = 20 and E2 = 40 of 60 epochs
COMNECK_D1 = (
    Stage("classify", cross_entropy=1.0, distillation=0.0, learning_rate_factor=1.0, share=1 / 3),
    Stage("align", cross_entropy=1.0, distillation=100.0, learning_rate_factor=0.1, share=1 / 3),
    Stage("distill", cross_entropy=0.0, distillation=100.0, learning_rate_factor=0.1, share=1 / 3),
)


def stage_at(stages: tuple[Stage, ...], position: float) -> Stage:
    """The stage at a position in [0, 1) of the run."""
    end = 0.0
    for stage in stages:
        end += stage.share
        if position < end:
            return stage
    return stages[-1]


__all__ = ["COMNECK_D1", "Stage", "stage_at"]
