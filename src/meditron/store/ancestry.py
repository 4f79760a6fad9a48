"""The training data of a model and of every model it was trained from, as one record that travels with it.

Each model folder holds `ancestry.json`, each GGUF file the same JSON under the metadata key
`meditron.ancestry`. Training appends an entry to its base's record; conversion and quantization copy it. A
model without a record has unknown training data, and evaluation says so.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from meditron.core.errors import InputError
from meditron.store.files import read_json, write_json
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles

__all__ = [
    "FILE_NAME",
    "GGUF_KEY",
    "Ancestry",
    "Training",
    "of_base",
    "read_ancestry",
    "statement",
    "write_ancestry",
]

FILE_NAME = "ancestry.json"
GGUF_KEY = "meditron.ancestry"
MAX_DOCUMENTS = 100_000
"""Documents of one training whose hashes are listed; a larger corpus is recorded by its digest alone."""
MAX_TEXTS = 500_000
"""Passages of one training's messages whose hashes are listed: 10 MB of JSON. GGUF metadata is bounded."""

Short = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Training(_Record):
    """One training that shaped a model, with the identity of the data it read."""

    stage: str
    """The stage's name in its recipe: `finetune.sections`."""
    kind: Literal["pretrain", "finetune"]
    data: str
    """Name of the data: the task, the file's name, or `corpus`."""
    data_digest: str
    """Hexadecimal SHA-256 of the input that the data came from."""
    chat_template: str | None = None
    """Finetuning's chat template (`none`, `meditron`, `chatml`, `tokenizer`); None for pretraining."""
    prompt_template: str | None = None
    """Prompt template of the task's questions; None for conversations and pretraining."""
    task: str | None = None
    """Name of the task that was trained; None for conversations and pretraining."""
    questions: tuple[Short, ...] = ()
    """Sorted `short(question_sha256(…))` of the questions trained on."""
    variants: tuple[Short, ...] = ()
    """Sorted short hashes of the same questions in other forms: without context, with other wrong options."""
    texts: tuple[Short, ...] | None = ()
    """Sorted `short(content_sha256(…))` of the users' messages and of each of their sentences, for rows that
    are conversations; None if there are too many to list."""
    documents: tuple[Short, ...] | None = ()
    """Sorted `short(content_sha256(…))` of the documents trained on; None if there are too many to list."""


class Ancestry(_Record):
    """A model's trainings, oldest first, back to a base whose own training data is not known."""

    base: str
    """The model that the first training began from, without paths or credentials."""
    base_digest: str
    """Hexadecimal SHA-256 of the base's files, or of its name for seeded weights."""
    trained_from_scratch: bool = False
    """True if the base is seeded random weights: then nothing about the training data is unknown."""
    trainings: tuple[Training, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all data of the recorded trainings is listed."""
        return all(each.documents is not None and each.texts is not None for each in self.trainings)

    def extended(self, training: Training) -> "Ancestry":
        """Return the record of a model that was trained further."""
        return self.model_copy(update={"trainings": (*self.trainings, training)})


def of_base(name: str, digest: str, *, seeded: bool = False) -> Ancestry:
    """Return the record of a model that nothing here has trained."""
    return Ancestry(base=name, base_digest=digest, trained_from_scratch=seeded)


def read_ancestry(files: ModelFiles) -> Ancestry | None:
    """Read a model's record; None if it has none. Seeded weights have one that says so.

    Raises:
        InputError: the record is damaged.
    """
    path = Path(files.path)
    if files.kind == "init":
        return of_base(files.spec, hashlib.sha256(files.spec.encode()).hexdigest(), seeded=True)
    try:
        if files.kind == "hf":
            found = path / FILE_NAME
            return Ancestry.model_validate(read_json(found)) if found.is_file() else None
        with GGUF(path) as gguf:
            text = gguf.metadata.get(GGUF_KEY)
        return None if text is None else Ancestry.model_validate_json(str(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or FILE_NAME
        raise InputError(path, f"damaged ancestry record: {first['msg']}", place=place) from error


def statement(ancestry: Ancestry | None) -> str:
    """Return one sentence that says how much is known of a model's training data."""
    if ancestry is None:
        return "Training data unknown: the model carries no record of its training."
    read = ", then ".join(f"{training.data} ({training.stage})" for training in ancestry.trainings)
    trained = f"Trained on {read}" if read else "Not trained"
    if ancestry.trained_from_scratch and not read:
        return "Not trained: the weights are seeded random numbers."
    if ancestry.trained_from_scratch:
        return f"{trained}; the first weights were seeded random numbers."
    if not read:
        return f"Training data of the base model {ancestry.base} unknown."
    return f"{trained}; training data of the base model {ancestry.base} unknown."


def write_ancestry(folder: Path, ancestry: Ancestry) -> None:
    """Write `ancestry.json` into a model folder, atomically."""
    write_json(folder / FILE_NAME, ancestry.model_dump(mode="json"))
