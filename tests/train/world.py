"""Small inputs of the training stages: a model made by transformers, token files, held-out text."""

import json
from pathlib import Path

import numpy as np
import torch

from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import Layout, build_layout
from meditron.parallel.world import World
from meditron.store.document_facts import FACTS, write_facts
from meditron.store.identity import content_sha256, short_hash
from meditron.store.indexed import IndexedWriter, write_hashes
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact
from meditron.text.tokenizer import load_tokenizer
from meditron.train.config import PretrainConfig
from meditron.train.finetune_config import FinetuneConfig
from tiny import CHAT, TEXTS, tiny_hf


def one_process(device="cpu") -> Layout:
    """The layout of a process without ranks."""
    return build_layout(ParallelConfig(), World(), torch.device(device))


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
        written = [f"{number}. {texts[number % len(texts)]}" for number in range(20)]
        write_hashes(folder / "tokenize" / source, [short_hash(content_sha256(text)) for text in written])
        write_facts(folder / "tokenize" / source, np.zeros(len(written), FACTS))
        with IndexedWriter(folder / "tokenize" / source, "u2") as writer:
            for text in written:
                writer.add_document([*tokenizer.encode(text), tokenizer.end_of_text_id])
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


SECTIONS = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")


def make_answers(folder: Path) -> dict[str, Artifact]:
    """The inputs of finetuning: a base that knows ChatML, conversations, a corpus of structured abstracts."""
    tiny_hf(folder / "base", tied=True, control=CHAT)
    with JsonlWriter(folder / "chat.jsonl") as file:
        for number in range(60):
            drug, aim = ("Aspirin", "the heart") if number % 2 else ("Metformin", "the liver")
            asked = {"role": "user", "content": f"{number}. What does {drug} act on?"}
            answer = {"role": "assistant", "content": f"It acts on {aim}."}
            file.write({"id": f"q{number}", "messages": [asked, answer]})
    for split, count in (("train", 60), ("heldout", 20)):
        shard = folder / "corpus" / split / "pubmed" / "0.jsonl.zst"
        shard.parent.mkdir(parents=True)
        with JsonlWriter(shard) as file:
            for number in range(count):
                file.write(abstract(f"{split}:{number}", SECTIONS[number % 5]))
    places = {"base": "base", "rows": "chat.jsonl", "corpus": "corpus"}
    return {name: Artifact(place, folder / place, name) for name, place in places.items()}


def abstract(identity: str, category: str) -> dict[str, object]:
    """A corpus line with one labelled section."""
    text = (
        f"This is what {category.lower()[:4]} of abstract {identity} says, in a sentence that is long enough."
    )
    parts = [[0, len(text), category.title(), category]]
    return {"id": identity, "source": "pubmed", "text": text, "parts": parts, "meta": {}}


def finetune_config(**changes) -> FinetuneConfig:
    """Three epochs of short conversations, packed."""
    fields = {
        "rows": "chat.jsonl",
        "sequence_length": 128,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "epochs": 3,
        "dtype": "float32",
        "heldout": 0.1,
        "checkpoint_every": 2,
        "threads": 1,
        "seed": 1,
    }
    return FinetuneConfig(**fields | changes)


def recorded(out):
    """The steps that `metrics.jsonl` holds so far; a line that is being written is left out."""
    path = out / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]
