"""The stage `pretrain`: a model and tokens in, the adapted model out as an HF folder."""

import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from meditron.ground.console import Bar, progress, say
from meditron.ground.errors import InputError, RecipeError, TrainingError
from meditron.ground.machine import describe
from meditron.model.llama import Llama
from meditron.model.weights import load_model, save_hf
from meditron.store.artifact import Artifact
from meditron.store.files import read_json, write_json
from meditron.store.indexed import Indexed
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.train.checkpoint import Checkpoints
from meditron.train.compilation import compiled
from meditron.train.config import PretrainConfig
from meditron.train.data import Mixture
from meditron.train.heldout import heldout_loss, heldout_rows
from meditron.train.loop import Step, steps
from meditron.train.metrics import MetricsFile
from meditron.train.optimizer import MasterAdamW
from meditron.train.peak import matmul_peak
from meditron.train.report import write_report
from meditron.train.runtime import Interruption, interruptible, repeatable

__all__ = ["run"]

RESULT = "metrics.json"
"""The stage's metrics: written when the model is exported, so that nothing is trained twice after a kill."""


def run(config: PretrainConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Train `inputs["base"]` on `inputs["tokens"]` and leave an HF folder, `metrics.jsonl` and `report.html`.

    Goes on from the newest checkpoint under `out`, bit for bit as if it had never stopped.

    Returns:
        `loss` of the last step; `heldout`, source → [before, after], nats per token; `tokens`, `steps` and
        `epochs` of each source; `tokens_per_second` (median step), `peak_flops` (measured, FLOP/s),
        `peak_share`, `step_seconds`; `spikes`, `threads`, `resumed_from` (a step, or null).

    Raises:
        InputError: the tokens are not of the model's vocabulary, or a file is damaged.
        RecipeError: the mixture or the sequence length does not fit the inputs.
        TrainingError: the loss or the gradient is not a number.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    result = out / RESULT
    machine = describe()
    with repeatable(config.seed or 0, config.threads):
        kept = {"threads": torch.get_num_threads(), "cpu": machine["cpu_class"], "torch": torch.__version__}
        checkpoints = Checkpoints(out / "checkpoints", kept, keep=config.keep_checkpoints)
        if not result.is_file():
            write_json(result, _Training(config, inputs, out, checkpoints).run())
    checkpoints.remove()
    metrics: dict[str, Any] = read_json(result)
    return metrics


class _Training:
    """One run, from the loaded model to the exported one."""

    def __init__(
        self, config: PretrainConfig, inputs: Mapping[str, Artifact], out: Path, checkpoints: Checkpoints
    ) -> None:
        self.config, self.out, self.checkpoints = config, out, checkpoints
        tokens = inputs["tokens"].path
        self.tokenizer = load_tokenizer(tokens)
        self.data = _mixture(config, tokens)
        self.heldout = heldout_rows(inputs["corpus"].path, self.tokenizer, config.heldout_documents)
        # Loaded in float32 whatever it trains in: the masters keep what the file holds.
        self.model = load_model(resolve(inputs["base"].spec), dtype=torch.float32, seed=config.seed or 0)
        _require_fit(config, self.model, self.tokenizer, tokens)
        self.optimizer = MasterAdamW(
            self.model,
            dtype=getattr(torch, config.dtype),
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.tokens_a_step = config.batch_size * config.sequence_length

    def run(self) -> dict[str, Any]:
        """Train, export, report; the stage's metrics."""
        done = self.checkpoints.restore(self.optimizer)
        rows_a_pass = self.config.micro_batch_size or self.config.batch_size
        self.peak = matmul_peak(self.model, rows_a_pass * self.config.sequence_length)
        with MetricsFile(self.out / "metrics.jsonl", done) as metrics:
            self._train(done, metrics)
            save_hf(
                self.model, self.model.config, self.tokenizer, self.out, getattr(torch, self.config.dtype)
            )
            result = self._result(metrics, done)
            write_report(self.out / "report.html", metrics.rows, result)
        return result

    def _train(self, done: int, metrics: MetricsFile) -> None:
        config, total = self.config, self.config.steps * self.tokens_a_step
        if not metrics.rows:
            metrics.append({"step": 0, "tokens": 0, "heldout": self._heldout_loss()})
        with (
            compiled(self.model) if config.compile else nullcontext(),
            interruptible() as interruption,
            progress("pretrain", total, "tokens", start=done * self.tokens_a_step) as bar,
        ):
            try:
                for step in steps(self.model, self.optimizer, self.data, config, done=done):
                    self._record(step, metrics, bar)
                    self._keep(step.number, metrics, interruption)
            except TrainingError as error:
                last = self.checkpoints.newest()
                good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
                hint = f"{good}; a lower learning_rate or clip, or another seed, may get past it"
                raise TrainingError(error.message, hint=hint) from error

    def _record(self, step: Step, metrics: MetricsFile, bar: Bar) -> None:
        speed = self.tokens_a_step / step.seconds
        row: dict[str, Any] = {
            "step": step.number,
            "tokens": step.number * self.tokens_a_step,
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
        if step.number == self.config.steps or (every and step.number % every == 0):
            row["heldout"] = self._heldout_loss()
        metrics.append(row)
        bar.fields(loss=f"{step.loss:.3f}", peak=f"{100 * row['peak_share']:.0f} %")
        bar.advance(self.tokens_a_step)

    def _keep(self, done: int, metrics: MetricsFile, interruption: Interruption) -> None:
        """Save a checkpoint where one is due, or where the run is to stop, and then stop."""
        due = done % self.config.checkpoint_every == 0 and done < self.config.steps  # then comes the export
        if interruption.asked or due:
            metrics.sync()
            self.checkpoints.save(done, self.optimizer)
        if interruption.asked:
            say(f"stopped after step {done} of {self.config.steps}: the same command goes on from there")
            raise KeyboardInterrupt

    def _heldout_loss(self) -> dict[str, float]:
        return heldout_loss(self.model, self.heldout, max_length=self.config.sequence_length)

    def _peak_share(self, speed: float) -> float:
        return speed * self.model.config.flops_per_token(self.config.sequence_length) / self.peak

    def _result(self, metrics: MetricsFile, done: int) -> dict[str, Any]:
        trained = [row for row in metrics.rows if "loss" in row]
        heldout = metrics.heldout()
        first, last = heldout.get(0, {}), heldout.get(self.config.steps, {})
        speed = statistics.median(row["tokens_per_second"] for row in trained)
        return {
            "loss": trained[-1]["loss"],
            "heldout": {source: [first[source], last[source]] for source in first if source in last},
            "tokens": self.config.steps * self.tokens_a_step,
            "steps": self.config.steps,
            "epochs": self.data.epochs(len(self.data)),
            "tokens_per_second": speed,
            "peak_flops": self.peak,
            "peak_share": self._peak_share(speed),
            "step_seconds": sum(row["seconds"] for row in trained),
            "spikes": sum("spike" in row for row in trained),
            "threads": torch.get_num_threads(),
            "resumed_from": done or None,
        }


def _mixture(config: PretrainConfig, folder: Path) -> Mixture:
    """The rows of the whole run from the token files in `folder`."""
    found = {path.stem: Indexed(path.with_suffix("")) for path in sorted(folder.glob("*.idx"))}
    if not found:
        raise InputError(folder, "no token files")
    return Mixture(
        found,
        config.mixture,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=config.seed or 0,
        document_mask=config.document_mask,
    )


def _require_fit(config: PretrainConfig, model: Llama, tokenizer: Tokenizer, tokens: Path) -> None:
    shape = model.config
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            tokens,
            f"made with a tokenizer of {tokenizer.vocab_size:,} tokens, the model knows {shape.vocab_size:,}",
            hint="tokenize with the tokenizer of the model that is trained",
        )
    if config.sequence_length > shape.max_position_embeddings:
        raise RecipeError(
            f"sequence_length {config.sequence_length} is longer than the model's context of "
            f"{shape.max_position_embeddings} tokens"
        )
