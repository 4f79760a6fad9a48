"""A training, from the loaded model to the exported one: what every stage that trains has in common."""

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from meditron.core.console import Bar, info, progress
from meditron.core.errors import InputError, RecipeError, TrainingError
from meditron.core.machine import describe, matrix_dtype
from meditron.model.llama import Llama
from meditron.model.weights import load_model, save_hf
from meditron.report.pages import Page
from meditron.report.training_page import write_report
from meditron.store.ancestry import Training, write_ancestry
from meditron.store.artifact import Artifact
from meditron.store.files import read_json, write_json
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer
from meditron.train.checkpoint import Checkpoints
from meditron.train.compilation import compiled
from meditron.train.config import TrainingConfig
from meditron.train.data_identity import base_ancestry
from meditron.train.loop import Step, steps
from meditron.train.metrics import MetricsFile
from meditron.train.optimizer import MasterAdamW
from meditron.train.peak import matmul_peak
from meditron.train.runtime import Interruption, interruptible, repeatable
from meditron.train.samples import Samples

__all__ = ["Material", "train"]

RESULT = "metrics.json"
"""The stage's metrics: written when the model is exported, so that nothing is trained twice after a kill."""


def _nothing_more(page: Page) -> None:
    """The report of a stage that has nothing else to show."""


@dataclass(frozen=True)
class Material:
    """What a stage trains on, how it measures, and what it says of itself."""

    title: str
    """Of its report."""
    label: str
    """Of its progress."""
    tokenizer: Tokenizer
    """The one that the samples were made with; it is exported with the model."""
    samples: Samples
    training: Training
    """The entry of this training in the model's ancestry."""
    heldout: Callable[[Llama], dict[str, float]]
    """Source → nats per target on what is never trained on."""
    predicted: float = 1.0
    """Share of the tokens that have a target and so reach the head."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of the stage's own."""
    show: Callable[[Page], None] = _nothing_more
    """Adds to the report what the stage has beside its curves."""


def train(
    config: TrainingConfig, base: Artifact, out: Path, prepare: Callable[[], Material]
) -> dict[str, Any]:
    """Train `base` on what `prepare` gives; leave an HF folder, `metrics.jsonl` and `report.html` in `out`.

    The HF folder includes `ancestry.json`. Goes on from the newest checkpoint under `out`, bit for bit as if
    it had never stopped.

    Returns:
        `loss` of the last step; `heldout`, source → [before, after], nats per target; `tokens`, `steps` and
        `epochs` of each source; `tokens_per_second` (median step), `peak_flops` (measured, FLOP/s),
        `peak_share`, `step_seconds`; `spikes`, `threads`, `dtype`, `resumed_from` (a step, or
        null); the stage's own.

    Raises:
        InputError: the tokenizer is not of the model's vocabulary, or a file is damaged.
        RecipeError: the sequence length does not fit the model.
        TrainingError: the loss or the gradient is not a number.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    result = out / RESULT
    machine = describe()
    with repeatable(config.seed or 0, config.threads):
        kept = {
            "threads": torch.get_num_threads(),
            "dtype": matrix_dtype(config.dtype),
            "cpu": machine["cpu_class"],
            "torch": torch.__version__,
        }
        checkpoints = Checkpoints(out / "checkpoints", kept, keep=config.keep_checkpoints)
        if not result.is_file():
            write_json(result, _Training(config, base, out, prepare(), checkpoints).run())
    checkpoints.remove()
    metrics: dict[str, Any] = read_json(result)
    return metrics


class _Training:
    """One run."""

    def __init__(
        self, config: TrainingConfig, base: Artifact, out: Path, material: Material, checkpoints: Checkpoints
    ) -> None:
        self.config, self.out, self.material, self.checkpoints = config, out, material, checkpoints
        self.samples = material.samples
        self.steps = len(self.samples) // config.batch_size
        self.dtype = matrix_dtype(config.dtype)
        # Loaded in float32 whatever it trains in: the masters keep what the file holds.
        self.ancestry = base_ancestry(base)
        self.model = load_model(resolve(base.spec), dtype=torch.float32, seed=config.seed or 0)
        _require_fit(config, self.model, material.tokenizer)
        self.optimizer = MasterAdamW(
            self.model,
            dtype=getattr(torch, self.dtype),
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def run(self) -> dict[str, Any]:
        """Train, export, report; the stage's metrics."""
        done = self.checkpoints.restore(self.optimizer)
        rows_a_pass = self.config.micro_batch_size or self.config.batch_size
        left = self._tokens(self.steps) - self._tokens(done)
        self.peak = matmul_peak(self.model, rows_a_pass * self.config.sequence_length, left)
        with MetricsFile(self.out / "metrics.jsonl", done) as metrics:
            self._train(done, metrics)
            dtype = getattr(torch, self.dtype)
            save_hf(self.model, self.model.config, self.material.tokenizer, self.out, dtype)
            write_ancestry(self.out, self.ancestry.extended(self.material.training))
            result = self._result(metrics, done)
            write_report(
                self.out / "report.html", self.material.title, metrics.rows, result, self.material.show
            )
        return result

    def _train(self, done: int, metrics: MetricsFile) -> None:
        total = self._tokens(self.steps)
        if not done and not metrics.rows:
            metrics.append({"step": 0, "tokens": 0, "heldout": self.material.heldout(self.model)})
        with (
            compiled(self.model) if self.config.compile else nullcontext(),
            interruptible() as interruption,
            progress(self.material.label, total, "tokens", start=self._tokens(done)) as bar,
        ):
            try:
                for step in steps(self.model, self.optimizer, self.samples, self.config, done=done):
                    self._record(step, metrics, bar)
                    self._keep(step.number, metrics, interruption)
            except TrainingError as error:
                last = self.checkpoints.newest()
                good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                hint = f"{good}; a lower learning_rate or clip, or another seed, may get past it"
                raise TrainingError(error.message, hint=hint) from error

    def _record(self, step: Step, metrics: MetricsFile, bar: Bar) -> None:
        tokens = self._tokens(step.number) - self._tokens(step.number - 1)
        speed = tokens / step.seconds
        row: dict[str, Any] = {
            "step": step.number,
            "tokens": self._tokens(step.number),
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens_per_second": speed,
            "peak_share": self._peak_share(speed),
            "seconds": step.seconds,
        }
        if metrics.spike(step.loss):
            row["spike"] = True
        every = self.config.heldout_every
        if step.number == self.steps or (every and step.number % every == 0):
            row["heldout"] = self.material.heldout(self.model)
        metrics.append(row)
        bar.fields(loss=f"{step.loss:.3f}", peak=f"{100 * row['peak_share']:.0f} %")
        bar.advance(tokens)

    def _keep(self, done: int, metrics: MetricsFile, interruption: Interruption) -> None:
        """Save a checkpoint where one is due, or where the run is to stop, and then stop."""
        due = done % self.config.checkpoint_every == 0 and done < self.steps  # then comes the export
        if interruption.asked or due:
            metrics.sync()
            self.checkpoints.save(done, self.optimizer)
        if interruption.asked:
            info(f"stopped after step {done} of {self.steps}: the same command goes on from there")
            raise KeyboardInterrupt

    def _tokens(self, done: int) -> int:
        return self.samples.tokens(done * self.config.batch_size)

    def _peak_share(self, speed: float) -> float:
        shape = self.model.config
        spared = (1 - self.material.predicted) * 6 * shape.vocab_size * shape.hidden_size
        return speed * (shape.flops_per_token(self.config.sequence_length) - spared) / self.peak

    def _result(self, metrics: MetricsFile, done: int) -> dict[str, Any]:
        trained = [row for row in metrics.rows if "loss" in row]
        heldout = metrics.heldout()
        first, last = heldout.get(0, {}), heldout.get(self.steps, {})
        speed = statistics.median(row["tokens_per_second"] for row in trained)
        return {
            "loss": trained[-1]["loss"],
            "heldout": {source: [first[source], last[source]] for source in first if source in last},
            "tokens": self._tokens(self.steps),
            "steps": self.steps,
            "epochs": self.samples.epochs(len(self.samples)),
            **self.material.facts,
            "tokens_per_second": speed,
            "peak_flops": self.peak,
            "peak_share": self._peak_share(speed),
            "step_seconds": sum(row["seconds"] for row in trained),
            "spikes": sum("spike" in row for row in trained),
            "threads": torch.get_num_threads(),
            "dtype": self.dtype,
            "resumed_from": done or None,
        }


def _require_fit(config: TrainingConfig, model: Llama, tokenizer: Tokenizer) -> None:
    shape = model.config
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            tokenizer.path,
            f"a tokenizer of {tokenizer.vocab_size:,} tokens, the model knows {shape.vocab_size:,}",
            hint="tokenize with the tokenizer of the model that is trained",
        )
    if config.sequence_length > shape.max_position_embeddings:
        raise RecipeError(
            f"sequence_length {config.sequence_length} is longer than the model's context of "
            f"{shape.max_position_embeddings} tokens"
        )
