"""The ancestry record: the training data of a model and of all models it was trained from.

A model folder contains the record as `ancestry.json`; a GGUF file contains the same JSON under the metadata
key `meditron.ancestry`. Training appends an entry to the record of the base model; conversion and
quantization copy the record. The training data of a model without a record is reported as unknown.
"""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from meditron.core.config import Record, first_problem
from meditron.core.errors import InputError
from meditron.store.contamination import CorpusContamination, ShortHash
from meditron.store.files import read_json, write_json
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles

__all__ = [
    "ANCESTRY_FILE",
    "GGUF_KEY",
    "Ancestry",
    "Training",
    "read_ancestry",
    "training_data_sentence",
    "untrained_ancestry",
    "write_ancestry",
]

ANCESTRY_FILE = "ancestry.json"
GGUF_KEY = "meditron.ancestry"
MAX_DOCUMENTS = 100_000
"""Maximum number of documents whose hashes a training lists; for a larger corpus only the digest is
recorded."""
MAX_PASSAGES = 500_000
"""Maximum number of passages of messages whose hashes a training lists: 10 MB, because GGUF readers limit the
size of metadata."""


class Training(Record):
    """One training run of a model, with hashes that identify its data."""

    stage: str
    """The stage's name in its recipe: `finetune.sections`."""
    kind: Literal["pretrain", "finetune"]
    data: str
    """Name of the training data: the task, the file's name, or `corpus`."""
    data_digest: str
    """Hexadecimal SHA-256 of the stage's data input."""
    chat_template: str | None = None
    """Finetuning's chat template (`none`, `meditron`, `chatml`, `tokenizer`); None for pretraining."""
    prompt_template: str | None = None
    """Prompt template of the task's questions; None for conversations and pretraining."""
    task: str | None = None
    """Name of the task whose questions were the training data; None for conversations and pretraining."""
    questions: tuple[ShortHash, ...] = ()
    """Sorted `short_hash(question_sha256(…))` of the questions trained on."""
    variants: tuple[ShortHash, ...] = ()
    """Sorted short hashes of the same questions in other forms: without context, or with other wrong
    options."""
    texts: tuple[ShortHash, ...] | None = ()
    """Sorted `short_hash(content_sha256(…))` of the users' messages in conversations and of the sentences in
    these messages; None if there are too many to list."""
    documents: tuple[ShortHash, ...] | None = ()
    """Sorted `short_hash(content_sha256(…))` of the documents trained on; None if there are too many to
    list."""
    contamination: CorpusContamination | None = None
    """Benchmark questions found in the corpus trained on; None if it was not searched for any."""
    newest_date: str | None = None
    """Date of the corpus's newest dated document, ISO 8601, as precise as known; None for other data."""


class Ancestry(Record):
    """A model's base model and the trainings recorded since, oldest first."""

    base: str
    """The model before the first training, without paths or credentials."""
    base_digest: str
    """Hexadecimal SHA-256 of the base model's files, or of its name for seeded weights."""
    trained_from_scratch: bool = False
    """True if the base is seeded random weights, so that all of the training data is recorded."""
    trainings: tuple[Training, ...] = ()

    @property
    def lists_all_data(self) -> bool:
        """True if the record lists the hashes of all training data, none of which was too large to list."""
        return all(
            training.documents is not None and training.texts is not None for training in self.trainings
        )

    @property
    def newest_date(self) -> str | None:
        """The newest date of the corpora trained on. The base model's own training data is not recorded."""
        dates = [training.newest_date for training in self.trainings if training.newest_date]
        # A date without a day or month may be the last day of its month or year.
        return max(dates, key=lambda date: f"{date}-99-99"[:10], default=None)

    def with_training(self, training: Training) -> "Ancestry":
        """Return the record with one more training appended."""
        return self.model_copy(update={"trainings": (*self.trainings, training)})


def untrained_ancestry(name: str, digest: str, *, seeded: bool = False) -> Ancestry:
    """Return the record of a base model without recorded trainings."""
    return Ancestry(base=name, base_digest=digest, trained_from_scratch=seeded)


def read_ancestry(files: ModelFiles) -> Ancestry | None:
    """Read a model's ancestry record; None if it has none. For seeded weights the record is generated.

    Raises:
        InputError: the record is damaged.
    """
    path = Path(files.path)
    # Seeded weights have no file for a record, and no training data.
    if files.kind == "init":
        return untrained_ancestry(files.spec, hashlib.sha256(files.spec.encode()).hexdigest(), seeded=True)
    try:
        if files.kind in ("hf", "megatron"):
            record = path / ANCESTRY_FILE
            return Ancestry.model_validate(read_json(record)) if record.is_file() else None
        with GGUF(path) as gguf:
            text = gguf.metadata.get(GGUF_KEY)
        return None if text is None else Ancestry.model_validate_json(str(text))
    except ValidationError as error:
        place, problem = first_problem(error, root=ANCESTRY_FILE)
        raise InputError(path, f"damaged ancestry record: {problem}", place=place) from error


def training_data_sentence(ancestry: Ancestry | None) -> str:
    """Return one sentence about the recorded training data of a model."""
    if ancestry is None:
        return "Training data unknown: the model has no ancestry record."
    datasets = ", then ".join(f"{training.data} ({training.stage})" for training in ancestry.trainings)
    trained = f"Trained on {datasets}"
    if ancestry.trained_from_scratch and not datasets:
        return "Not trained: the weights are seeded random numbers."
    if ancestry.trained_from_scratch:
        return f"{trained}, from seeded random weights."
    if not datasets:
        return f"The training data of the base model {ancestry.base} is unknown."
    return f"{trained}; the training data of the base model {ancestry.base} is unknown."


def write_ancestry(folder: Path, ancestry: Ancestry) -> None:
    """Write `ancestry.json` into a model folder, atomically."""
    write_json(folder / ANCESTRY_FILE, ancestry.model_dump(mode="json"))
