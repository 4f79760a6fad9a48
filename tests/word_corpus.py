"""A recipe of a training on random words, for tests of real trainings whose text does not matter."""

import json
import random
from pathlib import Path

WORDS = ["the", "heart", "liver", "dose", "of", "aspirin", "81", "mg", "reduced", "risk", "fever", "."]


def write_corpus(path: Path, documents: int) -> None:
    """Write the documents, the same at every call."""
    generator = random.Random(3)
    lines = (" ".join(generator.choices(WORDS, k=generator.randrange(20, 120))) for _ in range(documents))
    rows = (json.dumps({"id": str(number), "text": line}) for number, line in enumerate(lines))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


RECIPE = """
base = "{base}"
seed = 1

[corpus]
heldout = 0.1
min_characters = 10

[corpus.sources.text]
from = "{folder}/text.jsonl"

[tokenize]

[pretrain]
tokens = {tokens}
sequence_length = 128
batch_size = 4
learning_rate = {learning_rate}
dtype = "float32"
compile = false
checkpoint_every = 4
"""


def write_recipe(folder: Path, base: str, *, steps: int, learning_rate: float, documents: int) -> Path:
    """Write a corpus and the recipe of a training of `steps` steps on it."""
    write_corpus(folder / "text.jsonl", documents)
    values = {"base": base, "tokens": steps * 4 * 128, "learning_rate": learning_rate}
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=folder, **values), encoding="utf-8")
    return recipe
