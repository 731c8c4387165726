"""LLaVolta's training schedules: where and how much visual tokens are pooled as a run goes on."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from comneck_hf.models.llavolta.modeling_llavolta import (
    LlavoltaForConditionalGeneration,
    LlavoltaNextForConditionalGeneration,
)
from comneck_hf.models.llavolta.pooling_llavolta import compression_ratio


PAPER_DEPTH = 32  # layers of Vicuna 7B, in which the schedules count


@dataclass(frozen=True)
class PoolingStage:
    """A part of a run.

    Attributes:
        until: Share of the run at which it ends, 0 to 1.
        layer: Layer at whose input tokens are pooled, of 32.
        stride: Tokens that become one; 1 pools nothing.
    """

    until: float
    layer: int
    stride: int

    def layer_of(self, num_layers: int) -> int:
        """The layer at the same depth of a model with `num_layers` layers, at least 1."""
        return max(1, round(self.layer * num_layers / PAPER_DEPTH))


# The paper's stages; the released scripts count steps, at 8 GPUs and batch 16, and lose the count on resuming.
POOLING_SCHEDULES = {
    # train-4stage: quarters of the 5,198 steps, no pooling in the last one and at inference
    "4stage": (
        PoolingStage(0.25, 2, 8),
        PoolingStage(0.5, 2, 2),
        PoolingStage(0.75, 16, 2),
        PoolingStage(1.0, 16, 1),
    ),
    # the paper's meta scheme: heavy, then deeper, then wider, which inference keeps
    "three-stage": (PoolingStage(1 / 3, 2, 8), PoolingStage(2 / 3, 16, 8), PoolingStage(1.0, 16, 2)),
    "heavy": (PoolingStage(1.0, 2, 8),),  # train-heavy-compression
    "light": (PoolingStage(1.0, 16, 8),),  # train-light-compression
}


class VisualPoolingCallback(TrainerCallback):
    """Sets the pooling of a LLaVolta model at every step from the share of the run that is done.

    A resumed run goes on in its stage, on any number of processes: what counts are optimizer steps. The stage, its
    layer and stride, and the compression ratio are added to the log.

    Args:
        schedule: Name in `POOLING_SCHEDULES`, or stages.

    Raises:
        ValueError: If the name is unknown, or the stages do not end with the run.
    """

    def __init__(self, schedule: str | tuple[PoolingStage, ...]) -> None:
        if isinstance(schedule, str) and schedule not in POOLING_SCHEDULES:
            raise ValueError(f"`schedule` must be one of {sorted(POOLING_SCHEDULES)}, got {schedule!r}.")
        self.stages = POOLING_SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        ends = [stage.until for stage in self.stages]
        if ends != sorted(ends) or ends[-1:] != [1.0]:
            raise ValueError(f"The stages must end one after the other and the last at 1.0, got {ends}.")

    def stage_at(self, share: float) -> int:
        """Number of the stage, counted from 0, when `share` of the run is done."""
        return next(number for number, stage in enumerate(self.stages) if share < stage.until or stage.until == 1.0)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Sets the stage of the step that begins."""
        stage = self.stages[self.stage_at(state.global_step / state.max_steps)]
        llava = _llavolta(model)
        if llava.config.text_config.pool != "avg1d":
            raise ValueError(
                f"Schedules count tokens in a row, and this model has `pool={llava.config.text_config.pool!r}`. Use "
                "`pool='avg1d'`."
            )
        llava.set_visual_pooling(stage.layer_of(llava.config.text_config.num_hidden_layers), stage.stride)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the stage of the step that was logged."""
        if state.max_steps == 0:
            return  # an evaluation without training
        config = _llavolta(model).config
        text_config = config.text_config
        done = max(0, state.global_step - 1) / state.max_steps
        facts = {
            "pooling_stage": self.stage_at(done),
            "pool_layer": text_config.pool_layer,
            "pool_stride": text_config.pool_stride,
            "compression_ratio": compression_ratio(
                text_config.num_hidden_layers,
                config.image_seq_length,
                pool_layer=text_config.pool_layer,
                pool_stride=text_config.pool_stride,
            ),
        }
        logs.update(facts)
        state.log_history[-1].update(facts)


def _llavolta(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, inside wrappers of PEFT and of data parallelism."""
    for module in model.modules():
        if isinstance(module, LlavoltaForConditionalGeneration | LlavoltaNextForConditionalGeneration):
            return module
    raise ValueError(
        f"{type(model).__name__} does not pool visual tokens. Prepare it with `pool_visual_tokens(model, "
        "pool_stride=1)`."
    )


__all__ = ["POOLING_SCHEDULES", "PoolingStage", "VisualPoolingCallback"]
