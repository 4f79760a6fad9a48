"""One training from the loaded to the exported model: the code that all training stages share."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from meditron.core.console import Bar, info, progress
from meditron.core.errors import InputError, RecipeError, TrainingError
from meditron.core.machine import describe, resolve_matrix_dtype
from meditron.model.llama import Llama
from meditron.model.weights import load_model, save_hf
from meditron.report.pages import Page
from meditron.report.training_page import write_training_page
from meditron.store.ancestry import Training, write_ancestry
from meditron.store.files import read_json, write_json
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.text.tokenizer import Tokenizer
from meditron.train.checkpoint import Checkpoints
from meditron.train.compilation import compiled_blocks
from meditron.train.config import TrainingConfig
from meditron.train.data_identity import base_ancestry
from meditron.train.layout import SINGLE_PROCESS, ParallelLayout
from meditron.train.loop import StepResult, TrainState
from meditron.train.metrics import MetricsFile
from meditron.train.optimizer import MasterAdamW
from meditron.train.peak import matmul_peak
from meditron.train.runtime import Interruption, interruptible
from meditron.train.samples import TrainingDataset

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
    heldout_loss: Callable[[Llama], dict[str, float]]
    """Returns, by source, nats per target of the held-out data."""
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
    """Remove the checkpoints of an exported training and return its metrics."""
    Checkpoints(out / _CHECKPOINTS, machine={}).remove_all()
    metrics: dict[str, Any] = read_json(out / RESULT)
    return metrics


class Trainer:
    """A model under training, with the checkpoints, metrics and progress bar of the run.

    A stage creates a trainer inside `runtime.deterministic`, runs `loop.train` inside `session()`, then calls
    `export()`. The newest checkpoint under `out` is restored.

    Raises:
        InputError: The tokenizer does not fit the model's vocabulary, or a file is damaged.
        RecipeError: The sequence length exceeds the model's context.
    """

    def __init__(
        self,
        config: TrainingConfig,
        base: Artifact,
        inputs: TrainingInputs,
        out: Path,
        layout: ParallelLayout = SINGLE_PROCESS,
    ) -> None:
        self.config, self.inputs, self.out = config, inputs, out
        self.dtype = resolve_matrix_dtype(config.dtype)
        self.total_steps = len(inputs.dataset) // config.batch_size
        self.ancestry = base_ancestry(base)
        # The model is loaded in float32 for every training dtype, so that the master weights keep the
        # precision of the file.
        self.model = load_model(resolve_model(base.spec), dtype=torch.float32, seed=config.seed or 0)
        _check_tokenizer_and_context(config, self.model, inputs.tokenizer)
        # The model is moved to the device before wrapping, because a layout shards the parameters on their
        # device.
        self.model.to(layout.device)
        wrapped = layout.wrap_model(self.model)
        # The optimizer is created after wrapping, because a layout may replace the parameters by shards.
        optimizer = MasterAdamW(
            self.model,
            dtype=getattr(torch, self.dtype),
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        machine = {
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "cpu": describe()["cpu_class"],
            "torch": torch.__version__,
        }
        self.checkpoints = Checkpoints(out / _CHECKPOINTS, machine, keep=config.keep_checkpoints)
        # The checkpoint restores weights, optimizer moments and the random generator; the dataset needs only
        # the step number.
        start_step = self.checkpoints.restore(optimizer)
        self.state = TrainState(wrapped, optimizer, inputs.dataset, config, start_step, layout)
        # The peak is measured in every run, also in a resumed run, which may continue on another machine.
        sequences = config.micro_batch_size or config.batch_size
        remaining = self._tokens_in_steps(self.total_steps) - self._tokens_in_steps(start_step)
        self.peak_flops = matmul_peak(self.model, sequences * config.sequence_length, remaining)
        # Opened by `session`.
        self.metrics: MetricsFile
        self.interruption: Interruption
        self.bar: Bar

    @contextmanager
    def session(self) -> Iterator[None]:
        """Open the metrics file and the progress bar, compile the model and catch signals.

        Raises:
            TrainingError: As `loop.train` does, with a hint that names the last good checkpoint.
            KeyboardInterrupt: SIGINT or SIGTERM was received; a checkpoint was saved.
        """
        tokens_done = self._tokens_in_steps(self.state.start_step)
        with MetricsFile(self.out / "metrics.jsonl", self.state.start_step) as self.metrics:
            # After a kill before the first checkpoint, the line of step 0 exists already.
            if not self.state.start_step and not self.metrics.rows:
                self.metrics.append({"step": 0, "tokens": 0, "heldout": self.inputs.heldout_loss(self.model)})
            # The model is compiled after the evaluation above, whose batches have other shapes and would be
            # compiled for nothing.
            with (
                compiled_blocks(self.model) if self.config.compile else nullcontext(),
                interruptible() as self.interruption,
                progress(
                    self.inputs.progress_label,
                    self._tokens_in_steps(self.total_steps),
                    "tokens",
                    start=tokens_done,
                ) as self.bar,
            ):
                try:
                    yield
                except TrainingError as error:
                    newest = self.checkpoints.newest()
                    good = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
                    hint = f"{good}; a lower learning_rate or max_grad_norm, or another seed, may help"
                    raise TrainingError(error.message, hint=hint) from error

    def log(self, step: StepResult) -> None:
        """Write the measurements of a step to `metrics.jsonl`, with the held-out loss if it is due."""
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
        }
        if self.metrics.is_spike(step.loss):
            row["spike"] = True
        every = self.config.heldout_every
        if step.step_number == self.total_steps or (every and step.step_number % every == 0):
            row["heldout"] = self.inputs.heldout_loss(self.model)
        self.metrics.append(row)
        self.bar.set_fields(
            loss=f"{step.loss:.3f}", **{"share of matmul speed": f"{100 * utilization:.0f} %"}
        )
        self.bar.advance(tokens)

    def checkpoint_if_due(self, steps_done: int) -> None:
        """Save a checkpoint if one is due; after a signal, save one and raise KeyboardInterrupt."""
        # No checkpoint is due after the last step, because the export that follows has the same weights.
        due = steps_done % self.config.checkpoint_every == 0 and steps_done < self.total_steps
        if self.interruption.requested or due:
            # The metrics lines are flushed first: a checkpoint without them would lose the lines of its
            # steps.
            self.metrics.sync()
            self.checkpoints.save(steps_done, self.state.optimizer)
        if self.interruption.requested:
            info(f"stopped after step {steps_done} of {self.total_steps}; the same command resumes")
            # The exception ends the command with exit code 130, like any interrupted program.
            raise KeyboardInterrupt

    def export(self) -> None:
        """Write an HF folder with `ancestry.json`, the report, and last of all the stage's metrics."""
        # The order matters after a kill: the metrics file, which marks the export as complete, comes last.
        save_hf(self.model, self.model.config, self.inputs.tokenizer, self.out, getattr(torch, self.dtype))
        write_ancestry(self.out, self.ancestry.with_training(self.inputs.ancestry_entry))
        result = self._final_metrics()
        write_training_page(
            self.out / "report.html",
            self.inputs.report_title,
            self.metrics.rows,
            result,
            self.inputs.add_to_report,
        )
        write_json(self.out / RESULT, result)

    def _tokens_in_steps(self, steps: int) -> int:
        return self.inputs.dataset.count_tokens(steps * self.config.batch_size)

    def _matmul_utilization(self, tokens_per_second: float) -> float:
        """Return the fraction of the measured peak that the step's matrix operations reach."""
        shape = self.model.config
        # Masked positions skip the output projection: 2 operations per weight forward, 4 backward.
        skipped = (1 - self.inputs.target_fraction) * 6 * shape.vocab_size * shape.hidden_size
        operations = shape.flops_per_token(self.config.sequence_length) - skipped
        return tokens_per_second * operations / self.peak_flops

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
            **self.inputs.stage_metrics,
            "tokens_per_second": speed,
            "peak_flops": self.peak_flops,
            "matmul_utilization": self._matmul_utilization(speed),
            "step_seconds": sum(row["seconds"] for row in steps),
            "spikes": sum("spike" in row for row in steps),
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            # Recorded, because the loss curve of a run that was resumed on another machine may have a small
            # step there.
            "resumed_from": self.state.start_step or None,
        }


def _check_tokenizer_and_context(config: TrainingConfig, model: Llama, tokenizer: Tokenizer) -> None:
    shape = model.config
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            tokenizer.path,
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model's vocabulary {shape.vocab_size:,}",
            hint="tokenize with the tokenizer of the model that is trained",
        )
    if config.sequence_length > shape.max_position_embeddings:
        raise RecipeError(
            f"sequence_length {config.sequence_length} is longer than the model's context of "
            f"{shape.max_position_embeddings} tokens"
        )
