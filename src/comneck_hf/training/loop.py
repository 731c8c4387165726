"""The one training loop: stages on Accelerate, with logs, validation and checkpoints that resume to the bit."""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin, set_seed
from huggingface_hub import create_repo, upload_folder
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.objective import Batch, Objective, Terms
from comneck_hf.training.stages import Span, Stage, plan_steps


Metrics = dict[str, float]

__all__ = ["Metrics", "Training", "prepare_run"]

_TRAINED_FILE = "trained_parts.json"  # of a checkpoint: whose parameters its optimizers have


def prepare_run(args: RunArguments) -> Accelerator:
    """Sets threads and seed and returns the accelerator of a run: GPUs if there are any, else the CPU.

    Raises:
        ValueError: If the tracker of `report_to` is not installed, or `accelerate launch` asks for what would break
            the training.
    """
    if args.report_to and args.report_to not in {str(tracker) for tracker in get_available_trackers()}:
        raise ValueError(
            f"`report_to` is {args.report_to!r}, but that tracker is not installed: pip install {args.report_to}"
        )
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    # An accumulation may cross the end of an epoch, so that all steps have the same number of pictures.
    accumulation = GradientAccumulationPlugin(args.gradient_accumulation_steps, sync_with_dataloader=False)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_plugin=accumulation,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    _check_distribution(accelerator)
    return accelerator


def _check_distribution(accelerator: Accelerator) -> None:
    """Refuses what would change a training or break it."""
    kind, precision = accelerator.distributed_type, accelerator.mixed_precision
    refused = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP)
    if kind in refused and not accelerator.is_fsdp2:
        name = "FSDP version 1" if kind == DistributedType.FSDP else kind.value
        raise ValueError(
            f"This training does not run with {name}. Use torchrun alone, or `accelerate launch --config_file "
            "configs/accelerate/fsdp2.yaml`."
        )
    if accelerator.is_fsdp2 and precision != "no":
        raise ValueError(
            f"`mixed_precision` is {precision!r}, but FSDP2 would round all weights to it, the codec's too, whose "
            "latents then change. Use `--mixed_precision no`, or torchrun alone."
        )


@dataclass
class Progress:
    """How far a run is; a checkpoint holds it."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    log: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class Training:
    """Runs the stages of an objective.

    Every batch seeds the random numbers of its forward pass by its number, so that a run depends neither on
    interruptions nor on whether batches are accumulated or shared among processes. (Those at the end of an epoch that
    are fewer than the processes are left out.) Resumed with other learning rates or another weight decay, a run goes
    on with these.

    Under FSDP2 the processes train shards of a copy of the objective. The objective itself stays whole, and gets the
    present weights for validation, for saving and at the end of a phase.

    Args:
        accelerator: From `prepare_run`.
        objective: What is trained.
        loader: Its batches, from `picture_loader`.
        args: Length, optimizers and folders of the run.
        validate: Measures the present weights on the main process, given the stage. Its `"score"`, larger is better,
            decides which weights are kept in OUTPUT_DIR/best.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        loader: DataLoader,
        args: RunArguments,
        *,
        validate: Callable[[Stage], Metrics] | None = None,
    ) -> None:
        self.accelerator, self.args, self.validate = accelerator, args, validate
        self.objective = objective.to(accelerator.device)
        self.output = Path(args.output_dir)
        self.spans = plan_steps(objective.stages, args.steps)
        self.progress = Progress()
        self.dataset = loader.dataset
        self.loader = accelerator.prepare(loader)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.trained = objective  # the same, or under FSDP2 its sharded copy
        self.network: torch.nn.Module = objective
        accelerator.register_for_checkpointing(self.progress)
        self.repository: str | None = None
        if args.push_to_hub and accelerator.is_main_process:  # now, so that a wrong token is known before hours pass
            self.repository = create_repo(args.hub_model_id or self.output.resolve().name, exist_ok=True).repo_id
        if args.report_to:
            accelerator.init_trackers("comneck_hf", config={k: str(v) for k, v in asdict(args).items()})

    def run(self) -> list[dict[str, Any]]:
        """Trains to the end, from the last checkpoint if the run is to be resumed, and saves the model.

        Returns:
            The log.

        Raises:
            RuntimeError: If the loss is not finite. The last checkpoint is intact.
        """
        args, progress = self.args, self.progress
        self._resume()
        batches = self._batches()
        bar = tqdm(
            total=args.steps,
            initial=progress.step,
            mininterval=5,
            disable=not self.accelerator.is_local_main_process,
        )
        phase = self._span(progress.step - 1).phase if progress.step else None
        start = time.perf_counter()
        while progress.step < args.steps:
            span = self._span(progress.step)
            if span.phase != phase:
                phase = span.phase
                self._begin(span)
            metrics = self._step(span, batches)
            self.trained.after_step(span.stage)
            progress.step += 1
            bar.update()
            if progress.step % args.logging_steps == 0 or progress.step == span.end:
                seconds, start = time.perf_counter() - start, time.perf_counter()
                bar.set_postfix(stage=span.stage.name, **metrics)
                self._log({"stage": span.stage.name, **metrics, "seconds": seconds})
            last = progress.step == args.steps
            if last or (args.validation_steps and progress.step % args.validation_steps == 0):
                self._validate(span.stage)
                start = time.perf_counter()
            if last or progress.step % args.checkpointing_steps == 0:
                self._save_checkpoint()
        self._finish()
        return progress.log

    def _span(self, step: int) -> Span:
        return next(span for span in self.spans if step < span.end)

    def _begin(self, span: Span) -> None:
        """Freezes and unfreezes for a phase, with new optimizers."""
        accelerator = self.accelerator
        self._gather()
        accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        accelerator.free_memory()
        self.objective.begin(span.stage)
        self.trained = copy.deepcopy(self.objective) if accelerator.is_fsdp2 else self.objective
        self.optimizers = self.trained.optimizers(self.args)
        if accelerator.is_fsdp2 and len(self.optimizers) > 1:
            raise ValueError(
                f"Stage {span.stage.name!r} trains a codec, with two optimizers, and accelerate saves one for each "
                "sharded model. Train without FSDP2, with torchrun alone: every process then holds the whole model."
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.network, *self.optimizers = accelerator.prepare(self.trained, *self.optimizers)
        self.network.train()

    def _gather(self) -> None:
        """Brings the present weights into the objective, in all processes; only shards have to be gathered."""
        if self.trained is not self.objective:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            weights = get_model_state_dict(self.network, options=StateDictOptions(full_state_dict=True))
            self.objective.load_state_dict(weights)

    def _step(self, span: Span, batches: Iterator[Batch]) -> Metrics:
        """One step of the optimizers; the metrics are means over all its batches."""
        accelerator, args = self.accelerator, self.args
        factor = self._learning_rate_factor(span)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        reports: list[Terms] = []
        for micro in range(args.gradient_accumulation_steps):
            number = self.progress.step * args.gradient_accumulation_steps + micro
            number = number * accelerator.num_processes + accelerator.process_index
            batch = next(batches)
            torch.manual_seed(args.seed * 1_000_003 + number)
            with accelerator.accumulate(self.network):
                loss, terms = self.network(batch, span.stage)
                reports.append(terms)
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.max_grad_norm:
                    main = [p for group in self.optimizers[0].param_groups for p in group["params"]]
                    accelerator.clip_grad_norm_(main, args.max_grad_norm)
                if accelerator.sync_gradients:
                    metrics = self._means(reports)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        return metrics

    def _learning_rate_factor(self, span: Span) -> float:
        """Warm-up at the start of a phase, the stage's factor, and its schedule."""
        step = self.progress.step
        phase = [other for other in self.spans if other.phase == span.phase]
        first, end = phase[0].first, phase[-1].end
        warm_up = min(1.0, (step - first + 1) / max(1, min(self.args.warmup_steps, (end - first) // 5)))
        factor = span.stage.learning_rate * warm_up
        if span.stage.schedule == "cosine":
            factor *= 0.5 + 0.5 * math.cos(math.pi * (step - first) / (end - first))
        return factor

    def _means(self, reports: list[Terms]) -> Metrics:
        """Means of the terms over the batches of a step, in all processes; refuses a loss that is not finite."""
        names = list(reports[0])
        values = torch.stack([torch.stack([report[name].float() for name in names]) for report in reports]).mean(0)
        values = self.accelerator.reduce(values, "mean").tolist()
        metrics = dict(zip(names, values, strict=True))
        if not math.isfinite(metrics["loss"]):
            raise RuntimeError(
                f"The loss is not finite at step {self.progress.step}: {metrics}. Lower the learning rate and go on "
                f"from the last checkpoint in {self.output / 'checkpoints'} with `--resume_from_checkpoint true`."
            )
        return metrics

    def _batches(self) -> Iterator[Batch]:
        """Batches without end, from where the progress is; every epoch has its own order."""
        progress = self.progress
        while True:
            self.loader.set_epoch(progress.epoch)
            self.dataset.set_epoch(progress.epoch)
            loader = self.loader
            if progress.batch:
                loader = self.accelerator.skip_first_batches(loader, progress.batch)
                loader.set_epoch(progress.epoch)
            first = progress.batch
            for batch in loader:
                progress.batch += 1
                yield batch
            if progress.batch == first == 0:
                raise ValueError(
                    f"An epoch has no batch: there are fewer pictures than {self.accelerator.num_processes} processes "
                    f"of `batch_size` {self.args.batch_size} need. Lower either."
                )
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _log(self, entry: dict[str, Any]) -> None:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in entry.items()}
        self.progress.log.append({"step": self.progress.step, **rounded})
        if self.args.report_to:
            values = {key: value for key, value in entry.items() if not isinstance(value, str)}
            self.accelerator.log(values, step=self.progress.step)

    def _validate(self, stage: Stage) -> None:
        """Measures on the main process and keeps the weights if they are the best."""
        if self.validate is None:
            return
        self._gather()
        if self.accelerator.is_main_process:
            self.objective.eval()
            metrics = self.validate(stage)
            self._log({f"validation_{name}": value for name, value in metrics.items()})
            if metrics.get("score", -math.inf) > self.progress.best:
                self.progress.best = metrics["score"]
                self.objective.save(self.output / "best")
            self.objective.train()
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        """Writes a checkpoint under a temporary name first, so that a kill leaves only whole ones."""
        folder = self.output / "checkpoints"
        whole, part = folder / f"step-{self.progress.step:08d}", folder / "unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            trained = self._span(self.progress.step - 1).stage.trains
            (part / _TRAINED_FILE).write_text(json.dumps(trained), encoding="utf-8")
            part.rename(whole)
            for old in sorted(folder.glob("step-*"))[: -max(1, self.args.checkpoints_total_limit)]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Restores the last checkpoint, with the optimizers of the phase it was written in."""
        found = sorted((self.output / "checkpoints").glob("step-*"))
        if not found:
            return
        if not self.args.resume_from_checkpoint:
            raise ValueError(
                f"{self.output} holds a checkpoint of an earlier run. Go on from it with `--resume_from_checkpoint "
                "true`, or choose another `output_dir`."
            )
        step = int(found[-1].name.removeprefix("step-"))
        if step > self.args.steps:
            raise ValueError(
                f"{found[-1]} is beyond `steps` {self.args.steps}; raise `steps`, or choose another `output_dir`."
            )
        span = self._span(step - 1)
        trained = json.loads((found[-1] / _TRAINED_FILE).read_text(encoding="utf-8"))
        if trained != list(span.stage.trains):
            raise ValueError(
                f"{found[-1]} trains {trained}, but with `steps` {self.args.steps} step {step} belongs to stage "
                f"{span.stage.name!r}, which trains {list(span.stage.trains)}. Go on with the `steps` and `stages` it "
                "was begun with."
            )
        self._begin(span)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        wanted = [{name: group[name] for name in ("initial_lr", "weight_decay") if name in group} for group in groups]
        self.accelerator.load_state(str(found[-1]))
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, settings in zip(groups, wanted, strict=True):
            group.update(settings)

    def _finish(self) -> None:
        """Saves the model and the log, and pushes the model."""
        args, folder = self.args, self.output / "model"
        self._gather()
        if self.accelerator.is_main_process:
            part = self.output / "unfinished"  # so that a kill leaves no part of a model
            shutil.rmtree(part, ignore_errors=True)
            self.objective.save(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            stages = [
                {"name": s.stage.name, "source": s.stage.source, "first": s.first, "end": s.end} for s in self.spans
            ]
            log = {"config": asdict(args), "stages": stages, "log": self.progress.log}
            file = Path(args.log_file or self.output / "log.json")
            file.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        if args.report_to:
            self.accelerator.end_training()
        if self.repository is not None:
            upload_folder(repo_id=self.repository, folder_path=folder, commit_message=f"{args.steps} steps")
        self.accelerator.wait_for_everyone()
