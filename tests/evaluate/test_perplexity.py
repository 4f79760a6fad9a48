import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoTokenizer, LlamaForCausalLM

from meditron.core.errors import MeditronError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.rows import PERPLEXITY, DocumentRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.stage import run
from meditron.model.weights import load_model, save_gguf
from meditron.sources import medline
from meditron.store.corpus import select_heldout
from meditron.store.manifest import Artifact
from meditron.store.results import read_results
from meditron.text.tokenizer import load_tokenizer


def evaluate(out: Path, corpus: Path, models: dict[str, Path], **settings: Any) -> dict[str, Any]:
    config = EvaluateConfig(models=tuple(models), **{"resamples": 1000, "seed": 1, **settings})
    inputs = {name: Artifact(name, path, f"{name}'s digest") for name, path in models.items()}
    return run(config, inputs | {"corpus": Artifact("corpus", corpus, "corpus' digest")}, out)


def transformers_nll(folder: Path, ids: list[int]) -> float:
    """LlamaForCausalLM's own loss, a mean over targets, as a sum."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        batch = torch.tensor([ids])
        return float(model(input_ids=batch, labels=batch).loss) * (len(ids) - 1)


def test_every_documents_loss_is_transformers_own(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny})
    texts = {text.id: text for actual in select_heldout(corpus, 200).values() for text in actual}
    rows = read_rows(tmp_path / "out" / PERPLEXITY, DocumentRow)
    assert {row.id for row in rows} == set(texts)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for row in rows[::5]:
        ids = tokenizer(texts[row.id].text)["input_ids"]
        assert row.tokens == len(ids) - 1
        assert row.nll / row.tokens == pytest.approx(transformers_nll(tiny, ids) / row.tokens, abs=1e-4)
        assert row.bytes == len(tokenizer.decode(ids[1:]).encode())


def test_smollm2s_losses_are_transformers_own(
    tmp_path: Path, make_corpus: Any, smollm2_gguf: Path, smollm2_transformers: Any, pubmed_xml: Path
) -> None:
    citations = (citation for citation in medline.read(pubmed_xml) if citation.sections)
    documents = [(c.id, f"{c.title}\n\n{c.sections[0].text}"[:600]) for c in islice(citations, 3)]
    corpus = make_corpus({}, {"pubmed": documents})
    evaluate(tmp_path / "out", corpus, {"base": smollm2_gguf})
    tokenizer, texts = load_tokenizer(smollm2_gguf), dict(documents)
    for row in read_rows(tmp_path / "out" / PERPLEXITY, DocumentRow):
        batch = torch.tensor([tokenizer.encode(texts[row.id])])
        with torch.no_grad():
            expected = float(smollm2_transformers(input_ids=batch, labels=batch).loss)
        assert row.nll / row.tokens == pytest.approx(expected, abs=1e-4)


def test_perplexity_is_exp_of_the_mean_loss_and_its_interval_scipys(
    tmp_path: Path, corpus: Path, tiny: Path
) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny}, resamples=20_000)
    actual = read_results(tmp_path / "out").perplexity["base"]["pubmed"]
    rows = [row for row in read_rows(tmp_path / "out" / PERPLEXITY, DocumentRow) if row.source == "pubmed"]
    nll, tokens = np.array([row.nll for row in rows]), np.array([row.tokens for row in rows])
    assert (actual.documents, actual.tokens) == (36, tokens.sum())
    assert actual.perplexity == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert actual.bits_per_byte == pytest.approx(nll.sum() / math.log(2) / sum(row.bytes for row in rows))
    reference = stats.bootstrap(
        (nll, tokens),
        lambda n, t, axis: n.sum(axis) / t.sum(axis),
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = np.log(actual.interval)
    width = reference.high - reference.low
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.1 * width)


def test_batches_do_not_change_a_loss(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    losses = []
    for size in (1, 300, 100_000):
        evaluate(tmp_path / str(size), corpus, {"base": tiny}, batch_tokens=size)
        losses.append(
            [row.nll / row.tokens for row in read_rows(tmp_path / str(size) / PERPLEXITY, DocumentRow)]
        )
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_differences_are_those_that_compare_finds(
    tmp_path: Path, corpus: Path, tiny: Path, other_tiny: Path
) -> None:
    metrics = evaluate(tmp_path / "out", corpus, {"base": tiny, "pretrain": other_tiny})
    actual = read_results(tmp_path / "out").differences
    again = compare_results(f"{tmp_path}/out:base", f"{tmp_path}/out:pretrain", seed=1, resamples=1000)
    assert [d.model_dump(exclude={"a", "b"}) for d in actual] == [
        d.model_dump(exclude={"a", "b"}) for d in again
    ]
    assert {(d.a, d.b, d.source) for d in actual} == {("base", "pretrain", s) for s in ("pubmed", "wiki")}
    assert metrics["differences"] == json.loads(json.dumps([d.model_dump(mode="json") for d in actual]))
    assert metrics["overlap"] == 0
    assert metrics["training_documents_compared"] == 1


def test_a_gguf_of_a_model_scores_as_the_model_does(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    model, path = load_model(tiny), tmp_path / "F32.gguf"
    save_gguf(model, model.config, load_tokenizer(tiny), path, type="F32")
    evaluate(tmp_path / "out", corpus, {"base": tiny, "quantize:F32": path})
    for actual in read_results(tmp_path / "out").differences:
        assert actual.what.startswith("nll per token"), "the token ids are not the same"
        assert actual.difference == pytest.approx(0, abs=1e-6)


def test_long_documents_are_cut_and_counted(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny}, document_tokens=30)
    rows = read_rows(tmp_path / "out" / PERPLEXITY, DocumentRow)
    tokenizer = load_tokenizer(tiny)
    for text in select_heldout(corpus, 200)["pubmed"]:
        row = next(row for row in rows if row.id == text.id)
        ids = tokenizer.encode(text.text)
        assert (row.tokens, row.truncated) == (min(len(ids), 30) - 1, len(ids) > 30)
        assert row.bytes == len(tokenizer.decode(ids[1:30]).encode())
    actual = read_results(tmp_path / "out").perplexity["base"]
    assert sum(score.truncated for score in actual.values()) == sum(row.truncated for row in rows) > 0


def test_the_limit_is_the_models_own_context(tmp_path: Path, make_corpus: Any, tiny: Path) -> None:
    corpus = make_corpus({}, {"long": [("long:1", "word " * 900), ("long:2", "other " * 900)]})
    evaluate(tmp_path / "out", corpus, {"base": tiny}, document_tokens=2048)
    assert [(row.tokens, row.truncated) for row in read_rows(tmp_path / "out" / PERPLEXITY, DocumentRow)] == [
        (255, True)
    ] * 2


def test_bfloat16_is_near_float32_and_recorded(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        evaluate(tmp_path / dtype, corpus, {"base": tiny}, dtype=dtype)
    wide, narrow = (read_results(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert narrow.dtype == "bfloat16"
    assert narrow.perplexity["base"]["pubmed"].nll == pytest.approx(
        wide.perplexity["base"]["pubmed"].nll, abs=0.02
    )


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("inf"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MeditronError, match=r"model\.norm\.weight contains NaN or infinity"):
        evaluate(tmp_path / "out", corpus, {"broken": broken})


def test_losses_above_the_range_of_exp_are_measured(tmp_path: Path, corpus: Path, tiny: Path) -> None:
    """The other models' results must not be lost because one model is damaged."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny, damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    pair = {"model": "damaged", "against": "base"}
    evaluate(tmp_path / "out", corpus, {"base": tiny, "damaged": damaged}, fidelity=[pair])
    result = read_results(tmp_path / "out")
    score = result.perplexity["damaged"]["pubmed"]
    assert score.nll > 1000
    assert score.perplexity == math.exp(700)
    assert math.isfinite(result.fidelity[0].perplexity_ratio)
    evaluate(tmp_path / "back", corpus, {"base": tiny, "damaged": damaged}, fidelity=[
        {"model": "base", "against": "damaged"}
    ])  # fmt: skip
    assert read_results(tmp_path / "back").fidelity[0].perplexity_ratio > 0


def test_scoring_again_is_a_no_op(
    tmp_path: Path, corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny})
    before = (tmp_path / "out" / PERPLEXITY).read_bytes()
    monkeypatch.delattr(TorchEngine, "load")
    evaluate(tmp_path / "out", corpus, {"base": tiny})
    assert (tmp_path / "out" / PERPLEXITY).read_bytes() == before


def test_replaced_weights_are_scored_again(
    tmp_path: Path, corpus: Path, tiny: Path, other_tiny: Path
) -> None:
    """The artifact's digest is a manifest's, which does not see the change."""
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    losses = []
    for weights in (tiny, other_tiny):
        shutil.copyfile(weights / "model.safetensors", model / "model.safetensors")
        evaluate(tmp_path / "out", corpus, {"base": model})
        losses.append(read_results(tmp_path / "out").perplexity["base"]["pubmed"].nll)
    evaluate(tmp_path / "other", corpus, {"base": other_tiny})
    assert losses[0] != losses[1] == read_results(tmp_path / "other").perplexity["base"]["pubmed"].nll


def test_killed_before_the_last_file_the_figures_are_the_same(
    tmp_path: Path, corpus: Path, tiny: Path
) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny})
    whole = (tmp_path / "out/results.json").read_bytes()
    (tmp_path / "out/results.json").unlink()  # the rows are in their last order, not in that of scoring
    evaluate(tmp_path / "out", corpus, {"base": tiny})
    assert (tmp_path / "out/results.json").read_bytes() == whole


def test_the_page_contains_every_figure(tmp_path: Path, corpus: Path, tiny: Path, other_tiny: Path) -> None:
    evaluate(tmp_path / "out", corpus, {"base": tiny, "pretrain": other_tiny})
    page = (tmp_path / "out" / "report.html").read_text()
    result = read_results(tmp_path / "out")
    for scores in result.perplexity.values():
        for score in scores.values():
            assert f"{score.perplexity:.2f}" in page
            assert score.data_sha256 in page
    for actual in result.differences:
        assert f"{actual.difference:+.4f}" in page


CHILD = """
import sys
from pathlib import Path
from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.stage import run
from meditron.store.manifest import Artifact
corpus, out, a, b = map(Path, sys.argv[1:])
paths = {"a": a, "b": b, "corpus": corpus}
inputs = {name: Artifact(name, path, f"{name}'s digest") for name, path in paths.items()}
run(EvaluateConfig(models=("a", "b"), seed=1, resamples=1000), inputs, out)
"""


def test_a_killed_evaluation_continues_to_the_same_files(
    tmp_path: Path, corpus: Path, tiny: Path, other_tiny: Path
) -> None:
    models = {"a": tiny, "b": other_tiny}
    evaluate(tmp_path / "whole", corpus, models)
    out = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, (corpus, out, tiny, other_tiny))],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while child.poll() is None and b"\n" not in _content(out):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = _content(out)
    assert b"\n" in kept
    # The kill may have come between two writes; one in the middle of a write leaves this.
    with (out / PERPLEXITY).open("ab") as file:
        file.write(kept[:40])
    evaluate(out, corpus, models)
    for name in (PERPLEXITY, "results.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _content(out: Path) -> bytes:
    path = out / PERPLEXITY
    return path.read_bytes() if path.exists() else b""
