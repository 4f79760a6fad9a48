"""The pretrain stage: uninterrupted, killed, interrupted, with a full disk, and with a parallel layout."""

import json
import math
import os
import random
import re
import shutil
import signal
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from meditron.core.errors import (
    InputError,
    LostRankError,
    MeditronError,
    RecipeError,
    SourceError,
    StorageError,
    TrainingError,
)
from meditron.core.machine import resolve_matrix_dtype
from meditron.parallel.model import ModelStage
from meditron.sources.evidence import type_mask
from meditron.store.ancestry import read_ancestry
from meditron.store.corpus import select_heldout
from meditron.store.document_facts import FACTS, write_facts
from meditron.store.files import remove_temporaries, sha256_file
from meditron.store.indexed import IndexedDataset, read_hashes
from meditron.store.manifest import Artifact, Manifest
from meditron.store.models import resolve_model
from meditron.text.tokenizer import load_tokenizer
from meditron.train import loop, pretrain
from meditron.train.batches import StepBatches
from meditron.train.checkpoint import Checkpoints, Restored
from meditron.train.data_identity import hex_digest
from meditron.train.guard import Guard
from meditron.train.heldout_loss import document_loss
from meditron.train.pretrain import run
from meditron.train.trainer import Trainer
from tiny import tiny_hf
from train.child import start
from train.world import make_config, recorded


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """An uninterrupted run: (its folder, its metrics)."""
    out = tmp_path_factory.mktemp("trained")
    return out, run(make_config(), world, out)


def test_the_metrics_match_the_training(trained):
    out, metrics = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(13))
    assert lines[-1]["tokens"] == metrics["tokens"] == 12 * 4 * 32
    assert lines[-1]["loss"] == metrics["loss"] < lines[1]["loss"]
    for source, (before, after) in metrics["heldout"].items():
        assert (lines[0]["heldout"][source], lines[-1]["heldout"][source]) == (before, after)
        assert after < before
    assert set(metrics["heldout"]) == set(metrics["epochs"]) == {"pubmed", "wiki"}
    assert metrics["steps"] == 12
    assert metrics["spikes"] == 0
    assert metrics["resumed_from"] is None
    assert 0 < metrics["matmul_utilization"] < 1
    assert metrics == json.loads(json.dumps(metrics))


def test_the_metrics_of_the_mixture_add_up(trained):
    counts = trained[1]["mixture"]
    assert sum(of_source["sampled"] for of_source in counts.values()) == 12 * 4 * 32
    for source, of_source in counts.items():
        assert trained[1]["epochs"][source] == of_source["sampled"] / of_source["tokens"]
        assert of_source["levels"] == {"not stated": {key: of_source[key] for key in ("tokens", "sampled")}}


def test_upsampled_documents_are_read_more_often(world, tmp_path, capsys):
    """Half of the documents of one source are reviews: weight 1.5."""
    tokens = tmp_path / "tokens"
    shutil.copytree(world["tokens"].path, tokens)
    facts = np.zeros(20, FACTS)
    facts["types"][::2] = type_mask(["Review"])
    write_facts(tokens / "pubmed", facts)
    inputs = {**world, "tokens": Artifact("tokenize", tokens, "tokens")}
    config = make_config(mixture=None, upsample={}, tokens=90 * 128, heldout_documents=0, epochs={"wiki": 10})
    counts = run(config, inputs, tmp_path / "out")["mixture"]
    sizes = IndexedDataset(tokens / "pubmed").sizes
    reviews, others = int(sizes[::2].sum()), int(sizes[1::2].sum())
    levels = counts["pubmed"]["levels"]
    assert [of_level["tokens"] for of_level in levels.values()] == [reviews, others]
    sampled = counts["pubmed"]["sampled"]
    assert levels["review"]["sampled"] == round(sampled * 1.5 * reviews / (1.5 * reviews + others))
    wiki = counts["wiki"]["tokens"]
    share = (1.5 * reviews + others) / (1.5 * reviews + others + 10 * wiki)
    assert sampled == pytest.approx(90 * 128 * share, abs=32)
    warning = " ".join(capsys.readouterr().err.split())
    assert re.search(r"the source 'wiki' is read \d+\.\d times; beyond 4 epochs", warning)
    (tokens / "wiki.facts").unlink()
    with pytest.raises(SourceError, match=r"wiki\.facts"):
        run(config, inputs, tmp_path / "again")


def test_transformers_measures_the_same_heldout_loss_on_the_export(world, trained):
    """transformers opens it and finds the same held-out loss."""
    out, metrics = trained
    model, loaded = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert model.dtype == torch.float32
    tokenizer = load_tokenizer(out)
    for source, texts in select_heldout(world["corpus"].path, 2).items():
        nll = count = 0
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text.text)[:32]])
            with torch.no_grad():
                nll += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        assert metrics["heldout"][source][1] == pytest.approx(nll / count, abs=1e-4)


def test_the_dtype_is_this_machines_and_recorded(world, tmp_path):
    metrics = run(make_config(tokens=4 * 32, dtype="auto", heldout_documents=0), world, tmp_path)
    assert metrics["dtype"] == resolve_matrix_dtype()
    exported = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert exported.dtype == getattr(torch, resolve_matrix_dtype())
    assert resolve_matrix_dtype() in (tmp_path / "report.html").read_text()


def test_the_largest_seed_trains(world, tmp_path):
    config = make_config(tokens=4 * 32, heldout_documents=0, seed=2**63 - 1)
    assert run(config, world, tmp_path)["steps"] == 1


def test_the_ancestry_names_the_documents_that_were_read(world, trained, tmp_path, monkeypatch):
    out, metrics = trained
    record = read_ancestry(resolve_model(str(out)))
    assert (record.base, record.base_digest) == ("base", hex_digest(world["base"]))
    (training,) = record.trainings
    assert (training.kind, training.stage, training.data) == ("pretrain", out.name, "corpus")
    every = {h for source in ("pubmed", "wiki") for h in read_hashes(world["tokens"].path / source)}
    share = sum(metrics["epochs"].values()) / 2
    assert set(training.documents) < every
    assert share < len(training.documents) / len(every) < share + 0.1
    monkeypatch.setattr(pretrain, "MAX_DOCUMENTS", len(training.documents) - 1)
    run(make_config(), world, tmp_path / "more")
    assert read_ancestry(resolve_model(str(tmp_path / "more"))).trainings[0].documents is None


def test_the_ancestry_has_the_newest_date_of_the_corpus(world, trained):
    assert read_ancestry(resolve_model(str(trained[0]))).newest_date is None  # the corpus has no manifest
    manifest = Manifest.model_construct(metrics={"newest_date": "2023-08-31"})
    inputs = {**world, "corpus": replace(world["corpus"], manifest=manifest)}
    entry = pretrain._training_inputs(make_config(), inputs, "pretrain").ancestry_entry
    base = read_ancestry(resolve_model(str(trained[0])))
    assert base.with_training(entry).newest_date == "2023-08-31"
    # Of two dates the one that may be later: a year without a month may end in December.
    for date, newest in (
        ("2023-09-01", "2023-09-01"),
        ("2023-08", "2023-08"),
        ("2023", "2023"),
        ("2022", "2023-08-31"),
    ):
        later = base.with_training(entry).with_training(entry.model_copy(update={"newest_date": date}))
        assert later.newest_date == newest


def test_it_leaves_a_report_and_no_checkpoints(trained):
    out, _ = trained
    assert not (out / "checkpoints").exists()
    assert not list(out.glob(".*"))
    page = (out / "report.html").read_text()
    assert "held-out source" in page
    assert page.count("<svg") == 6
    assert re.search(r"<td[^>]*>pubmed", page)


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_step_of_one_process_is_one_forward_pass(world, trained, tmp_path, monkeypatch):
    shapes = []
    forward = ModelStage.forward

    def counted_forward(stage, ids, **inputs):
        shapes.append(tuple(ids.shape))
        return forward(stage, ids, **inputs)

    monkeypatch.setattr(ModelStage, "forward", counted_forward)
    metrics = run(make_config(), world, tmp_path)
    assert shapes == [(4, 32)] * 12
    assert metrics["loss"] == trained[1]["loss"]
    assert metrics["heldout"] == trained[1]["heldout"]
    assert losses(tmp_path) == losses(trained[0])
    assert sha256_file(tmp_path / "model.safetensors") == sha256_file(trained[0] / "model.safetensors")
    assert metrics["layout"] == {"dp_replicate": 1, "dp_shard": 1, "tp": 1, "pp": 1}
    assert metrics["ranks"] == 1


def test_backward_is_two_calls_below_the_stage(world, tmp_path, monkeypatch):
    """The path of a training, as the architecture page draws it: the stage, the loop, backward."""
    paths = []
    backward = torch.Tensor.backward

    def recorded_backward(tensor, *arguments, **settings):
        frames = traceback.extract_stack()
        paths.append([(Path(f.filename).stem, f.name) for f in frames if "/meditron/" in f.filename])
        return backward(tensor, *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, "backward", recorded_backward)
    run(make_config(tokens=4 * 32), world, tmp_path)
    assert paths == [[("pretrain", "run"), ("loop", "train")]]


def test_called_again_it_is_a_no_op(world, trained):
    out, metrics = trained
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(make_config(), world, out) == metrics
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_killed_run_resumes_to_the_same_bytes(world, tmp_path):
    config = make_config(tokens=40 * 4 * 32, checkpoint_every=2, dtype="bfloat16", heldout_documents=1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    child = start(world, whole, config)
    child.join()
    assert child.exitcode == 0
    moments, kills = random.Random(3), 0
    for goal in [*sorted(moments.sample(range(40), 3)), 40]:
        before = newest(killed)
        child = start(world, killed, config)
        await_step(child, killed, goal)
        time.sleep(moments.uniform(0, 0.02))  # somewhere in a step, a checkpoint or the export
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        assert newest(killed) >= before
        # A checkpoint is written while training goes on, and is complete before the next one is begun.
        assert max(recorded(killed), default=0) - newest(killed) <= 2 * config.checkpoint_every
    assert kills >= 3
    child = start(world, killed, config)
    child.join()
    assert child.exitcode == 0
    assert sha256_file(killed / "model.safetensors") == sha256_file(whole / "model.safetensors")
    assert recorded(killed) == list(range(41))
    remove_temporaries(killed)  # as a recipe does first: a kill in an atomic write leaves its temporary
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())


def await_step(child, out, step):
    """Wait until the child has recorded `step`, or ended."""
    while child.is_alive() and max(recorded(out), default=-1) < step:
        time.sleep(0.001)


def newest(out):
    """Steps behind the newest checkpoint; all of them where the run has ended."""
    if (out / "metrics.json").exists():
        return 40
    return max((int(path.name[5:]) for path in out.glob("checkpoints/step-*")), default=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_a_checkpoint_after_the_current_step(world, tmp_path, trained, number):
    config = make_config(tokens=2000 * 4 * 32, checkpoint_every=1000)
    child = start(world, tmp_path, config)
    await_step(child, tmp_path, 3)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == 130
    assert newest(tmp_path) == recorded(tmp_path)[-1] < 1000


def test_a_signal_in_the_last_step_stops_before_the_export(world, tmp_path, trained, monkeypatch):
    def interrupted(*arguments, **settings):
        if recorded(tmp_path)[-1:] == [11]:
            os.kill(os.getpid(), signal.SIGTERM)
        return document_loss(*arguments, **settings)

    monkeypatch.setattr("meditron.train.pretrain.document_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), world, tmp_path)
    assert newest(tmp_path) == 12
    assert not (tmp_path / "model.safetensors").exists()
    assert run(make_config(), world, tmp_path)["loss"] == trained[1]["loss"]
    assert recorded(tmp_path) == list(range(13))
    assert sha256_file(tmp_path / "model.safetensors") == sha256_file(trained[0] / "model.safetensors")


def test_a_kill_before_the_first_checkpoint_duplicates_no_line(world, tmp_path, trained):
    first = (trained[0] / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (tmp_path / "metrics.jsonl").write_text(first)
    assert run(make_config(), world, tmp_path)["heldout"] == trained[1]["heldout"]
    assert recorded(tmp_path) == list(range(13))


def test_a_full_disk_is_an_error_and_leaves_no_partial_checkpoint(world, tmp_path):
    size = 4 * 29_000  # the weights' file is larger
    child = start(world, tmp_path, make_config(), file_size=size)
    child.join()
    assert child.exitcode == 1
    assert (tmp_path / "error.txt").read_text().startswith("StorageError")
    assert not list((tmp_path / "checkpoints").iterdir())


def poisoned(world, tmp_path):
    """The same world, with a base whose weights are no numbers."""
    base = tiny_hf(tmp_path / "base", tied=True)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(base)
    return {**world, "base": Artifact("base", base, "base")}


def test_a_loss_that_is_not_finite_names_the_step_and_exports_nothing(world, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrainingError, match=r"^step 1: the loss is nan.*documents read: pubmed") as error:
        run(make_config(heldout_documents=0), poisoned(world, tmp_path), out)
    assert "there is no checkpoint yet" in error.value.hint
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]
    assert [row.get("event", {}).get("action") for row in rows(out)] == [None, "stop"]


def test_a_lost_rank_is_not_blamed_on_the_learning_rate(world, tmp_path, monkeypatch):
    """Nor is it hidden by a checkpoint that could not be written either."""

    def lost(*_):
        raise LostRankError("another rank does not answer", hint="the same command resumes")

    def unwritten(_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(Checkpoints, "save", lost)
    monkeypatch.setattr(Checkpoints, "wait", unwritten)
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: Restored())
    with pytest.raises(LostRankError, match="another rank does not answer") as error:
        run(make_config(heldout_documents=0, checkpoint_every=1), world, tmp_path)
    assert error.value.hint == "the same command resumes"


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def break_losses(monkeypatch, broken, *, interrupted=None):
    """Make the loss of the steps `broken` NaN; SIGUSR1 arrives in the step `interrupted`."""
    current = []
    prepare, nll = StepBatches.prepare, loop.batch_nll

    def recorded_prepare(batches, step):
        current[:] = [step + 1]
        return prepare(batches, step)

    def broken_nll(model, batch):
        if current == [interrupted]:
            os.kill(os.getpid(), signal.SIGUSR1)
        return nll(model, batch) * (math.nan if current[0] in broken else 1.0)

    monkeypatch.setattr(StepBatches, "prepare", recorded_prepare)

    def with_broken_loss(state, **changes):
        return replace(state, **changes | {"loss": broken_nll})

    monkeypatch.setattr("meditron.train.trainer.replace", with_broken_loss)


@pytest.mark.parametrize(("action", "restored"), [("skip", None), ("rollback", 4)])
def test_a_reaction_is_recorded_and_a_resumed_run_ends_in_the_same_bytes(
    world, tmp_path, monkeypatch, capsys, action, restored
):
    """The signal arrives after the event and before the next checkpoint."""
    config = make_config(guard={"on_nan": action}, heldout_documents=0)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    break_losses(monkeypatch, {6})
    metrics = run(config, world, whole)
    assert f"step 6: the loss is nan and the gradient norm nan ({action})" in capsys.readouterr().err
    assert (metrics["events"], metrics["spikes"]) == (1, 0)
    assert [row["step"] for row in rows(whole) if "event" in row] == [6]
    row = rows(whole)[6]
    assert "loss" not in row
    assert "gradient_norm" not in row
    assert row["event"].get("restored_step") == restored
    page = (whole / "report.html").read_text()
    assert ("restored step 4" if restored else "action skip") in page
    monkeypatch.undo()
    break_losses(monkeypatch, {6}, interrupted=7)
    with pytest.raises(KeyboardInterrupt):
        run(config, world, resumed)
    assert newest(resumed) == 7
    assert run(config, world, resumed)["resumed_from"] == 7
    assert sha256_file(resumed / "model.safetensors") == sha256_file(whole / "model.safetensors")
    assert losses(resumed) == losses(whole)
    assert [row.get("event") for row in rows(resumed)] == [row.get("event") for row in rows(whole)]


def test_a_training_without_events_has_no_section_for_them(trained):
    out, metrics = trained
    assert metrics["events"] == 0
    assert ">Events<" not in (out / "report.html").read_text()


def test_a_resumed_run_counts_the_reactions_before_it(world, tmp_path, monkeypatch):
    config = make_config(guard={"on_nan": "skip", "max_events": 1}, heldout_documents=0)
    break_losses(monkeypatch, {3, 9}, interrupted=5)
    with pytest.raises(KeyboardInterrupt):
        run(config, world, tmp_path)
    with pytest.raises(TrainingError, match=r"^step 9: .*max_events \(1\) is reached") as error:
        run(config, world, tmp_path)
    assert "the last good checkpoint is" in error.value.hint
    assert "step-00000008" in error.value.hint
    assert [row["event"]["action"] for row in rows(tmp_path) if "event" in row] == ["skip", "stop"]


def test_a_rollback_passes_over_a_damaged_checkpoint(world, tmp_path, monkeypatch, capsys):
    config = make_config(guard={"on_nan": "rollback"}, checkpoint_every=2, heldout_documents=0)
    break_losses(monkeypatch, {7})
    check = Guard.check

    def damage_first(guard, step, loss, norm):
        if step == 7:
            Checkpoints.wait(trainers[0].checkpoints)
            (tmp_path / "checkpoints" / "step-00000006" / "rank-00000.safetensors").unlink()
        return check(guard, step, loss, norm)

    trainers = []
    create = Trainer.__init__

    def recorded(trainer, *arguments):
        trainers.append(trainer)
        create(trainer, *arguments)

    monkeypatch.setattr(Trainer, "__init__", recorded)
    monkeypatch.setattr(Guard, "check", damage_first)
    run(config, world, tmp_path)
    assert rows(tmp_path)[7]["event"]["restored_step"] == 4
    assert "using the checkpoint before it" in capsys.readouterr().err


def test_a_training_whose_steps_were_all_skipped_is_an_error(world, tmp_path):
    config = make_config(guard={"on_nan": "skip", "max_events": 20}, heldout_documents=0)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrainingError, match="all 12 steps were skipped"):
        run(config, poisoned(world, tmp_path), out)
    assert not (out / "model.safetensors").exists()


def test_inputs_that_do_not_match_are_refused(world, tmp_path):
    with pytest.raises(RecipeError, match="longer than the model's context of 256 tokens"):
        run(make_config(sequence_length=512), world, tmp_path)
    with pytest.raises(RecipeError, match="mixture names 'guidelines'"):
        run(make_config(mixture={"guidelines": 1.0}), world, tmp_path)
    with pytest.raises(InputError, match="no token files"):
        run(make_config(), {**world, "tokens": world["base"]}, tmp_path)
    small = tiny_hf(tmp_path / "small", vocabulary=280)
    with pytest.raises(InputError, match="the tokenizer has 320 tokens, the model's vocabulary 280"):
        run(make_config(), {**world, "base": Artifact("base", small, "base")}, tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch's own, which it hides unless warnings are errors
def test_a_missing_compiler_is_an_error_with_a_hint(world, tmp_path):
    import torch._inductor.config as inductor

    with (
        inductor.patch({"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}),
        pytest.raises(MeditronError, match=r"^torch\.compile failed: .*No working C\+\+ compiler") as error,
    ):
        run(make_config(compile=True), world, tmp_path)
    assert "compile = false" in error.value.hint
