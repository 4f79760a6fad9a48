"""One training from the loaded to the exported model: the code that all training stages share."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meditron.core.console import Bar, info, progress, warn
from meditron.core.errors import InputError, MeditronError, TrainingError
from meditron.core.machine import describe
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.lora import MergedWeights, trained_shapes
from meditron.model.lora_files import save_adapter
from meditron.model.new_tokens import EMBEDDING, HEAD, NewTokens, extended_config
from meditron.model.nf4 import WholeWeights
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import load_config
from meditron.model.weights import save_hf
from meditron.parallel.layout import Layout
from meditron.parallel.model import GatheredWeights, ModelStage
from meditron.parallel.watchdog import Watchdog, watchdog
from meditron.parallel.world import current_world
from meditron.report.pages import Page
from meditron.report.training_page import write_training_page
from meditron.store.ancestry import Training, write_ancestry
from meditron.store.files import read_json, write_json
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.text.tokenizer import Tokenizer
from meditron.train.batches import Batch
from meditron.train.checkpoint import Checkpoints
from meditron.train.compilation import compiler_errors
from meditron.train.config import TrainingConfig
from meditron.train.data_identity import base_ancestry
from meditron.train.heldout_loss import check_finite, sharded_heldout_loss
from meditron.train.loop import Callbacks, StepResult, TrainState, batch_nll
from meditron.train.metrics import MetricsFile
from meditron.train.peak import matmul_peak
from meditron.train.runtime import (
    Interruption,
    interruptible,
    peak_memory_bytes,
    training_dtype,
)
from meditron.train.samples import Sample, TrainingDataset
from meditron.train.setup import build_state
from meditron.train.trackers import Trackers

__all__ = ["Trainer", "TrainingInputs", "finish_training", "is_exported"]

RESULT = "metrics.json"
"""The stage's metrics. Written after the export, so a run killed before its manifest trains nothing twice."""
_CHECKPOINTS = "checkpoints"


def _no_extra_sections(page: Page) -> None:
    """Leave the report as it is: default of `TrainingInputs.add_to_report`."""


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs of a training: dataset, held-out evaluation, and the stage's own texts and metrics."""

    report_title: str
    """Title of the report."""
    progress_label: str
    """Label of the progress bar."""
    tokenizer: Tokenizer
    """Tokenizer of the samples; exported with the model."""
    dataset: TrainingDataset
    ancestry_entry: Training
    """Entry of this training in the model's ancestry."""
    new_tokens: NewTokens | None = None
    """Tokens of `tokenizer` that are added to the vocabulary of the model."""
    heldout_loss: Callable[[Llama], dict[str, float]] | None = None
    """Returns, by source, nats per target of the held-out data; by default `loss` of `heldout_samples`."""
    heldout_samples: Callable[[], Mapping[str, Sequence[Sample]]] = dict
    """Returns the same data as samples, for a model that is divided over ranks."""
    loss: Callable[[ModelStage, Batch], Tensor] = batch_nll
    """Returns the summed loss of a micro-batch."""
    prepare: Callable[[TrainState], None] = lambda state: None
    """Called on every rank with the model as it is before the first step, also if resumed."""
    final_metrics: Callable[[TrainState], Mapping[str, Any]] = lambda state: {}
    """Returns, on every rank, further metrics of the trained model."""
    target_fraction: float = 1.0
    """Fraction of the tokens that are targets and so reach the output projection."""
    stage_metrics: Mapping[str, Any] = field(default_factory=dict)
    """Further metrics of the stage."""
    add_to_report: Callable[[Page], None] = _no_extra_sections
    """Adds the stage's own sections to the report."""


def is_exported(out: Path) -> bool:
    """Return whether an earlier run of the stage in `out` has exported its model."""
    return (out / RESULT).is_file()


def finish_training(out: Path) -> dict[str, Any]:
    """Remove the checkpoints of an exported training and return its metrics; other ranks than 0 have none."""
    # Another machine may see the file that rank 0 has just written late.
    if not current_world().is_main:
        return {}
    Checkpoints(out / _CHECKPOINTS, machine={}).remove_all()
    metrics: dict[str, Any] = read_json(out / RESULT)
    return metrics


class Trainer:
    """A model under training, with the checkpoints, metrics and progress bar of the run.

    A stage creates a trainer inside `setup.training_layout`, runs `loop.train` inside `session()`, then calls
    `export()`. The newest checkpoint under `out` is restored. All ranks do the same; only rank 0 prints and
    writes files other than checkpoints.

    Raises:
        InputError: The tokenizer does not fit the model's vocabulary, or a file is damaged.
        RecipeError: The sequence length exceeds the model's context, or the layout does not fit.
    """

    def __init__(
        self, config: TrainingConfig, base: Artifact, inputs: TrainingInputs, out: Path, layout: Layout
    ) -> None:
        self.config, self.inputs, self.out, self.layout = config, inputs, out, layout
        self.dtype = training_dtype(config.dtype, layout.device)
        self.ancestry = base_ancestry(base)
        self.base_hub_name = base.hub_name
        files = resolve_model(base.spec)
        self.model_config = _extended_model_config(load_config(files), inputs)
        dtype = getattr(torch, self.dtype)
        state = build_state(config, files, inputs.dataset, layout, dtype, new_tokens=inputs.new_tokens)
        self.state = state = replace(state, loss=inputs.loss)
        with self._without_dropout():
            inputs.prepare(state)
        self.total_steps = state.total_steps
        machine = {
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "cpu": describe()["cpu_class"],
            "torch": str(torch.__version__),
        }
        self.checkpoints = Checkpoints(
            out / _CHECKPOINTS, machine, keep=config.keep_checkpoints, layout=layout.describe()
        )
        # The checkpoint restores weights, optimizer moments and the random generator; the dataset needs only
        # the step number.
        restored = self.checkpoints.restore(state.optimizer)
        state.guard.restore(restored.extra.get("guard", {}))
        self.state = replace(state, start_step=restored.step)
        self.peak_flops = self._measure_peak(restored.step)
        # Raises an error for a missing package now, before any step.
        self.trackers = Trackers(config.track if layout.is_main else (), out / "tracking", out.name)
        # Opened by `session`, the first two on rank 0 only.
        self.metrics: MetricsFile
        self.bar: Bar
        self.interruption: Interruption
        self.watchdog: Watchdog | None = None

    @property
    def callbacks(self) -> Callbacks:
        """The functions that `loop.train` calls."""
        return Callbacks(
            progress=self._progress,
            validate=self._validate,
            log=self._log,
            checkpoint=self._checkpoint,
            rollback=self._rollback,
            stop_requested=lambda: self.interruption.requested,
        )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Open the metrics file, the trackers and the progress bar, and catch signals.

        Raises:
            TrainingError: As `loop.train` does, with a hint that names the last good checkpoint.
            KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1 was received; a checkpoint was saved.
        """
        start = self.state.start_step
        with ExitStack() as stack:
            if self.layout.is_main:
                self.metrics = stack.enter_context(MetricsFile(self.out / "metrics.jsonl", start))
            # After a kill before the first checkpoint, the line of step 0 exists already.
            if not start and self.layout.any(self.layout.is_main and not self.metrics.rows):
                heldout = self._heldout_loss()
                if self.layout.is_main:
                    self.metrics.append({"step": 0, "tokens": 0, "heldout": heldout})
            if self.config.compile:
                stack.enter_context(compiler_errors())
            self.interruption = stack.enter_context(interruptible())
            if self.layout.is_main:
                total = self._tokens_in_steps(self.total_steps)
                done = self._tokens_in_steps(start)
                label = self.inputs.progress_label
                self.bar = stack.enter_context(progress(label, total, "tokens", start=done))
                stack.enter_context(self.trackers)
            # One process has no rank to wait for: a long step is only a long step.
            if self.layout.is_distributed:
                timeout = self.config.parallel.timeout
                self.watchdog = stack.enter_context(watchdog(timeout, self.out))
            try:
                yield
            except TrainingError as error:
                # A checkpoint that could not be written as well must not hide the cause.
                with suppress(MeditronError):
                    self.checkpoints.wait()
                newest = self.checkpoints.newest()
                good = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
                advice = error.hint or "a lower learning_rate or max_grad_norm, or another seed, may help"
                raise TrainingError(error.message, hint=f"{good}; {advice}") from error

    def export(self) -> None:
        """Write an HF folder with `ancestry.json`, the report, and last of all the stage's metrics.

        Raises:
            TrainingError: Every step was skipped.
        """
        self.checkpoints.wait()
        if not self.state.optimizer.steps:
            raise TrainingError(f"all {self.total_steps} steps were skipped: the model has not changed")
        with self._without_dropout():
            final_metrics = self.inputs.final_metrics(self.state)
        # The order matters after a kill: the metrics file, which marks the export as complete, comes last.
        self._save_model()
        if not self.layout.is_main:
            return
        write_ancestry(self.out, self.ancestry.with_training(self.inputs.ancestry_entry))
        result = self._final_metrics() | dict(final_metrics)
        write_training_page(
            self.out / "report.html",
            self.inputs.report_title,
            self.metrics.rows,
            result,
            self.inputs.add_to_report,
        )
        write_json(self.out / RESULT, result)

    def _save_model(self) -> None:
        """Write the model from rank 0, gathering one tensor at a time from the ranks that have its shards.

        Adapters are written too, and merged into the model. A trained embedding is part of both.
        """
        config, adapter, sharded = self.model_config, self.config.adapter, self.state.sharded
        weights: Mapping[str, Tensor]
        if sharded is None:
            # The masters have more digits than the copies that the model computes with.
            weights = WholeWeights(self.state.model.llama, self.state.optimizer.masters)
        else:
            weights = GatheredWeights(sharded)
        merged = weights if adapter is None else MergedWeights(weights, config, adapter)
        adapters = [] if adapter is None else sorted(trained_shapes(config, adapter))
        if not self.layout.is_main:
            assert sharded is not None  # noqa: S101
            for name in [*adapters, *sorted(parameter_shapes(config))]:
                for part in merged.parts(name) if isinstance(merged, MergedWeights) else (name,):
                    sharded.gather(part)
            return
        if adapter is not None:
            tensors = {name: weights[name] for name in adapters}
            save_adapter(self.out / "adapter", tensors, adapter, base=self.base_hub_name)
            # peft's auto classes give the base model as many rows as a tokenizer beside the adapter has
            # tokens, so there is one if that is right.
            if self.inputs.new_tokens is not None and self.inputs.tokenizer.vocab_size == config.vocab_size:
                self.inputs.tokenizer.save(self.out / "adapter")
        # The model's config is written last: a folder with one is complete.
        save_hf(merged, config, self.inputs.tokenizer, self.out, getattr(torch, self.dtype))

    def _progress(self, note: str) -> None:
        if self.watchdog is not None:
            self.watchdog.progress(note)

    def _validate(self, step: int) -> dict[str, float] | None:
        """Return the held-out loss by source if it is due."""
        every = self.config.heldout_every
        due = step == self.total_steps or (every and step % every == 0)
        if not due:
            return None
        self._progress(f"step {step}: held-out loss")
        return self._heldout_loss()

    def _heldout_loss(self) -> dict[str, float]:
        with self._without_dropout():
            if self.state.sharded is None and self.inputs.heldout_loss is not None:
                return check_finite(self.inputs.heldout_loss(self.state.model.llama))
            return check_finite(sharded_heldout_loss(self.state, self.inputs.heldout_samples()))

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        sharded = self.state.sharded
        stages = [self.state.model] if sharded is None else list(sharded.stages.values())
        for stage in stages:
            stage.eval()
        yield
        for stage in stages:
            stage.train()

    def _log(self, step: StepResult, heldout: dict[str, float] | None) -> None:
        """Write the measurements of a step to `metrics.jsonl`."""
        if not self.layout.is_main:
            return
        tokens = self._tokens_in_steps(step.step_number) - self._tokens_in_steps(step.step_number - 1)
        tokens_per_second = tokens / step.seconds
        utilization = self._matmul_utilization(tokens_per_second)
        row: dict[str, Any] = {
            "step": step.step_number,
            "tokens": self._tokens_in_steps(step.step_number),
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens_per_second": tokens_per_second,
            "matmul_utilization": utilization,
            "seconds": step.seconds,
            "memory_bytes": peak_memory_bytes(self.layout.device),
        }
        if step.event is not None:
            row["event"] = dict(step.event)
            if step.event["kind"] == "spike":
                row["spike"] = True
            # JSON has no infinity and no NaN.
            for key in ("loss", "gradient_norm"):
                if not math.isfinite(row[key]):
                    del row[key]
            # A stop is raised as an error, with the same message.
            if step.event["action"] != "stop":
                warn(f"{step.event['message']} ({step.event['action']})")
        if heldout is not None:
            row["heldout"] = heldout
        self.metrics.append(row)
        self.trackers.log(row)
        self.bar.set_fields(
            loss=f"{step.loss:.3f}", **{"share of matmul speed": f"{100 * utilization:.0f} %"}
        )
        self.bar.advance(tokens)

    def _checkpoint(self, steps_done: int, stop: bool) -> None:
        """Save a checkpoint if one is due; after a signal, save one and raise KeyboardInterrupt."""
        # No checkpoint is due after the last step, because the export that follows has the same weights.
        due = steps_done % self.config.checkpoint_every == 0 and steps_done < self.total_steps
        if stop or due:
            # The metrics lines are flushed first: a checkpoint without them would lose the lines of its
            # steps.
            if self.layout.is_main:
                self.metrics.sync()
            self._progress(f"step {steps_done}: checkpoint")
            self.checkpoints.save(steps_done, self.state.optimizer, {"guard": self.state.guard.state()})
        if stop:
            self.checkpoints.wait()
            if self.layout.is_main:
                info(f"stopped after step {steps_done} of {self.total_steps}; the same command resumes")
            # The exception ends the command with exit code 130, like any interrupted program.
            raise KeyboardInterrupt

    def _rollback(self) -> int:
        """Restore the newest checkpoint and return its step; the batches since then stay consumed."""
        # The guard keeps its state: a training that rolls back again and again has to end.
        return self.checkpoints.restore(self.state.optimizer).step

    def _measure_peak(self, start_step: int) -> float:
        """Measure the peak of matrix products, on rank 0; also if resumed, maybe on another machine."""
        if not self.layout.is_main:
            return math.nan
        sequences = self.config.micro_batch_size or self.config.batch_size
        peak = matmul_peak(
            self.model_config,
            sequences * self.config.sequence_length,
            self._tokens_in_steps(self.total_steps) - self._tokens_in_steps(start_step),
            dtype=getattr(torch, self.dtype),
            device=self.layout.device,
        )
        return peak * self.layout.shape.ranks

    def _tokens_in_steps(self, steps: int) -> int:
        return self.inputs.dataset.count_tokens(steps * self.config.batch_size)

    def _matmul_utilization(self, tokens_per_second: float) -> float:
        """Return the fraction of the measured peak that the step's matrix operations reach."""
        shape = self.model_config
        # Operations per weight: 2 forward, 2 backward, and 2 for its gradient unless it is frozen.
        per_weight = 6 if self.config.adapter is None else 4
        operations: float = (
            shape.flops_per_token(self.config.sequence_length) - (6 - per_weight) * shape.parameter_count
        )
        if (adapter := self.config.adapter) is not None:
            shapes = trained_shapes(shape, adapter)
            # Whole weights are among the frozen ones above, which have no gradient of their own.
            operations += sum(
                (2 if name in (EMBEDDING, HEAD) else 6) * math.prod(size) for name, size in shapes.items()
            )
        # Masked positions skip the output projection.
        operations -= (1 - self.inputs.target_fraction) * per_weight * shape.vocab_size * shape.hidden_size
        return tokens_per_second * operations / self.peak_flops

    def _trained_parameters(self) -> int:
        adapter = self.config.adapter
        if adapter is None:
            return self.model_config.parameter_count
        return sum(math.prod(shape) for shape in trained_shapes(self.model_config, adapter).values())

    def _final_metrics(self) -> dict[str, Any]:
        steps = [row for row in self.metrics.rows if "loss" in row]
        heldout = self.metrics.heldout_losses()
        first, last = heldout.get(0, {}), heldout.get(self.total_steps, {})
        # The median is used, because the first steps include compilation and other programs may slow some
        # steps down.
        speed = statistics.median(row["tokens_per_second"] for row in steps)
        return {
            "loss": steps[-1]["loss"],
            "heldout": {source: [first[source], last[source]] for source in first if source in last},
            "tokens": self._tokens_in_steps(self.total_steps),
            "steps": self.total_steps,
            "epochs": self.inputs.dataset.epochs_by_source(len(self.inputs.dataset)),
            "trained_parameters": self._trained_parameters(),
            **self.inputs.stage_metrics,
            "tokens_per_second": speed,
            "peak_flops": self.peak_flops,
            "matmul_utilization": self._matmul_utilization(speed),
            "step_seconds": sum(row["seconds"] for row in steps),
            "spikes": sum("spike" in row for row in steps),
            "events": sum("event" in row for row in self.metrics.rows),
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "layout": self.layout.describe(),
            "ranks": self.layout.shape.ranks,
            # Recorded, because the loss curve of a run that was resumed on another machine may have a small
            # step there.
            "resumed_from": self.state.start_step or None,
        }


def _extended_model_config(config: LlamaConfig, inputs: TrainingInputs) -> LlamaConfig:
    """Return the config of the trained model; raise InputError if the tokenizer does not fit the base."""
    new = inputs.new_tokens
    tokens = inputs.tokenizer.vocab_size if new is None else new.first
    if tokens > config.vocab_size:
        raise InputError(
            inputs.tokenizer.path,
            f"the tokenizer has {tokens:,} tokens, the model's vocabulary {config.vocab_size:,}",
            hint="tokenize with the tokenizer of the model that is trained",
        )
    return config if new is None else extended_config(config, new)
