"""A small real world to train in: a model that transformers made, token files, held-out text."""

import json
from pathlib import Path

import numpy as np

from meditron.store.artifact import Artifact
from meditron.store.indexed import IndexedWriter
from meditron.store.jsonl import JsonlWriter
from meditron.text.tokenizer import load_tokenizer
from meditron.train.config import PretrainConfig
from tiny import TEXTS, tiny_hf


class Lists(list):
    """Documents in memory."""

    @property
    def sizes(self):
        return np.array([len(document) for document in self], dtype=np.int64)


def documents(count, *, seed=0, vocabulary=320, longest=60):
    """Random documents that end with token 0."""
    random = np.random.default_rng(seed)
    return Lists(
        np.append(random.integers(1, vocabulary, size=random.integers(1, longest)), 0) for _ in range(count)
    )


def make_world(folder: Path) -> dict[str, Artifact]:
    """The inputs of the stage: base, tokens of two sources, corpus."""
    base = tiny_hf(folder / "base", tied=True)
    tokenizer = load_tokenizer(base)
    tokenizer.save(folder / "tokenize")
    for source, texts in {"pubmed": TEXTS[:4], "wiki": TEXTS[4:]}.items():
        with IndexedWriter(folder / "tokenize" / source, "u2") as writer:
            for number in range(20):
                text = f"{number}. {texts[number % len(texts)]}"
                writer.add([*tokenizer.encode(text), tokenizer.end_of_text_id])
        shard = folder / "corpus" / "heldout" / source / "0.jsonl.zst"
        shard.parent.mkdir(parents=True)
        with JsonlWriter(shard) as file:
            for number, text in enumerate(texts):
                file.write({"id": f"{source}:{number}", "source": source, "text": text, "meta": {}})
    places = {"base": "base", "tokens": "tokenize", "corpus": "corpus"}
    return {name: Artifact(place, folder / place, name) for name, place in places.items()}


def make_config(**changes) -> PretrainConfig:
    """Twelve steps of four rows of 32 tokens."""
    fields = {
        "tokens": 12 * 4 * 32,
        "mixture": {"pubmed": 0.75, "wiki": 0.25},
        "sequence_length": 32,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "checkpoint_every": 4,
        "heldout_documents": 2,
        "threads": 1,
        "seed": 1,
    }
    return PretrainConfig(**fields | changes)


def recorded(out):
    """The steps that `metrics.jsonl` holds so far; a line that is being written is left out."""
    path = out / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]
