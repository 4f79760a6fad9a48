"""A small corpus as the corpus stage leaves it, small models, and a small task."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from meditron.store.jsonl import JsonlWriter
from tiny import TEXTS, tiny_hf

Documents = Sequence[tuple[str, str]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """`make_corpus(train={source: [(id, text)]}, heldout=…)` writes the files a corpus stage would."""

    def make(train: Mapping[str, Documents], heldout: Mapping[str, Documents]) -> Path:
        for split, sources in (("train", train), ("heldout", heldout)):
            for source, documents in sources.items():
                with JsonlWriter(tmp_path / "corpus" / split / source / "00000.jsonl.zst") as writer:
                    for id_, text in documents:
                        writer.write({"id": id_, "source": source, "text": text, "meta": {}})
        return tmp_path / "corpus"

    return make


@pytest.fixture
def corpus(make_corpus: Callable[..., Path]) -> Path:
    """Forty held-out documents of two sources, of very different lengths."""
    documents = [
        (f"pubmed:{n}", f"Case {n}. " + " ".join(TEXTS[(n + k) % len(TEXTS)] for k in range(1 + n % 4)))
        for n in range(36)
    ]
    wiki = [(f"wiki:{n}", f"{n} {TEXTS[4]}") for n in range(4)]
    return make_corpus(
        {"pubmed": [("pubmed:train", "No held-out text at all.")]}, {"pubmed": documents, "wiki": wiki}
    )


DRUGS = ["aspirin", "metformin", "an antibiotic"]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Thirty questions of three classes, of very different lengths, with options of many tokens."""
    rows = [
        {
            "id": f"q{n}",
            "question": f"Case {n}. " + " ".join(TEXTS[(n + k) % 4] for k in range(1 + n % 3)),
            "options": DRUGS,
            "gold": n % 4 % 3,
        }
        for n in range(30)
    ]
    path = tmp_path / "drugs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
