import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.errors import UsageError
from meditron.engine.torch_engine import TorchEngine
from meditron.evaluate import fidelity
from meditron.evaluate.heldout import choose_heldout
from meditron.evaluate.model import LocalModel
from meditron.evaluate.rows import FidelityRow
from meditron.evaluate.rows_file import RowsFile
from meditron.store.corpus import CorpusDocument
from meditron.store.manifest import Artifact
from meditron.store.results import Fidelity
from packed import write_packed_folder
from tiny import tiny_hf

Measured = tuple[list[FidelityRow], list[Fidelity]]


def measure(model: Path, against: Path, documents: dict[str, list[CorpusDocument]], out: Path) -> Measured:
    with (
        RowsFile(out / "fidelity.jsonl", FidelityRow) as file,
        LocalModel("model", Artifact("model", model, f"{model}"), fidelity.DTYPE) as ours,
        LocalModel("against", Artifact("against", against, f"{against}"), fidelity.DTYPE) as reference,
    ):
        rows = fidelity.compare_distributions(ours, reference, documents, 2048, file)
        return rows, fidelity.summarize(rows, documents, seed=1, resamples=1000)


def test_every_figure_is_that_of_whole_distributions_in_transformers(
    tiny: Path, other_tiny: Path, corpus: Path, tmp_path: Path
) -> None:
    documents = choose_heldout(corpus, 200)
    rows, [pubmed, _] = measure(tiny, other_tiny, documents, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    p_model, q_model = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (tiny, other_tiny)
    )
    kl, agree, nll, nll_against = [], [], 0.0, 0.0
    for text in documents["pubmed"]:
        ids = torch.tensor([tokenizer(text.text)["input_ids"]])
        with torch.no_grad():
            p, q = (each(ids).logits[0, :-1].double().log_softmax(-1) for each in (p_model, q_model))
        kl += (q.exp() * (q - p)).sum(-1).tolist()
        agree += (p.argmax(-1) == q.argmax(-1)).tolist()
        nll -= float(p.gather(1, ids[0, 1:, None]).sum())
        nll_against -= float(q.gather(1, ids[0, 1:, None]).sum())
    assert pubmed.n_tokens == len(kl)
    assert pubmed.kl_mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert pubmed.kl_99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert pubmed.top_agreement == pytest.approx(np.mean(agree))
    assert pubmed.perplexity == pytest.approx(np.exp(nll / len(kl)), rel=1e-5)
    assert pubmed.perplexity_against == pytest.approx(np.exp(nll_against / len(kl)), rel=1e-5)
    assert pubmed.perplexity_ratio == pytest.approx(pubmed.perplexity / pubmed.perplexity_against)
    for name, (low, high) in pubmed.intervals.items():
        assert low < getattr(pubmed, name) < high
    assert {row.engine for row in rows} == {"torch"}


def test_a_model_against_itself_is_the_same(tiny: Path, corpus: Path, tmp_path: Path) -> None:
    _, [result, *_] = measure(tiny, tiny, choose_heldout(corpus, 200), tmp_path)
    assert (result.kl_mean, result.kl_99, result.top_agreement, result.perplexity_ratio) == (0, 0, 1, 1)
    assert result.intervals["perplexity_ratio"] is None  # nothing varies


def test_existing_rows_are_reused(
    tiny: Path, other_tiny: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = choose_heldout(corpus, 200)
    first = measure(tiny, other_tiny, documents, tmp_path)
    monkeypatch.delattr(TorchEngine, "load")
    assert measure(tiny, other_tiny, documents, tmp_path) == first


def test_models_with_different_tokenizers_do_not_compare(tiny: Path, corpus: Path, tmp_path: Path) -> None:
    other = tiny_hf(tmp_path / "wide", vocabulary=300)
    with pytest.raises(
        UsageError, match=r"300 tokens and against one of 320|320 tokens and against one of 300"
    ):
        measure(other, tiny, choose_heldout(corpus, 200), tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(moved)
    with pytest.raises(UsageError, match="into different tokens"):
        measure(moved, tiny, choose_heldout(corpus, 200), tmp_path)


def test_quantized_weights_are_labelled_as_dequantized(
    smollm2_gguf: Path, tiny: Path, tmp_path: Path
) -> None:
    assert (
        LocalModel("q", Artifact("q", smollm2_gguf, "d"), "float32").engine_label
        == "torch on dequantized weights"
    )
    assert LocalModel("t", Artifact("t", tiny, "d"), "float32").engine_label == "torch"
    plain = tiny_hf(
        tmp_path / "plain", hidden_size=64, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    write_packed_folder(plain, tmp_path / "packed")
    packed = LocalModel("p", Artifact("p", tmp_path / "packed", "d"), "float32")
    assert packed.engine_label == "torch on dequantized weights"
