"""The answers of a review: generated one by one, or imported; and the identity of the models.

Every answer is stored as soon as it is complete, so a killed run loses at most one.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from meditron.core.console import progress
from meditron.core.errors import InputError
from meditron.core.redaction import public_address
from meditron.engine import API_SCHEME, Generates
from meditron.engine.conversation import Chat
from meditron.model.sampling import SamplingConfig
from meditron.serve.review.records import Answer, Review, ReviewModel
from meditron.serve.review.store import ReviewStore
from meditron.store.fetch import source_identity
from meditron.store.files import content_digest
from meditron.store.gguf import GGUF
from meditron.store.gguf_parts import gguf_digest
from meditron.store.jsonl import read_numbered_jsonl
from meditron.store.models import ModelFiles, resolve_model

__all__ = [
    "OpenModel",
    "count_names",
    "generate_answers",
    "identify_file",
    "identify_model",
    "import_answers",
    "names_a_model",
    "prompt_version",
    "public_spec",
]

_SHORTEST_NAME = 3  # characters of a model's name that is searched in the answers
_LONGEST_ANSWER = 100_000  # characters
# A model that speaks about itself. Names of common models, because a finetuned one often repeats its base's.
_SELF = re.compile(
    r"\b(?:as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|(?:i am|i'm|my name is|this is|called) (?:an? )?(?:meditron|llama|chat-?gpt|gpt|claude|gemini|mistral"
    r"|mixtral|qwen|falcon|deepseek|phi|gemma|alpaca|vicuna|smollm))",
    re.IGNORECASE,
)


class OpenModel(Protocol):
    """Function that opens a MODEL, such as `meditron.engine.load_generator`."""

    def __call__(self, spec: str, /) -> Generates:
        """Return the engine."""
        ...


def prompt_version(system: str | None) -> str:
    """Return the version of a system prompt: the beginning of its SHA-256, or `none`."""
    return hashlib.sha256(system.encode()).hexdigest()[:16] if system else "none"


def public_spec(spec: str) -> str:
    """Return a MODEL without credentials."""
    is_address = spec.startswith(API_SCHEME)
    return API_SCHEME + public_address(spec.removeprefix(API_SCHEME)) if is_address else spec


def identify_model(spec: str) -> dict[str, Any]:
    """Return the identity of a MODEL: its name without credentials, SHA-256 and quantization.

    A model behind a server has no SHA-256, and its quantization is not known.

    Raises:
        SourceError, InputError: as `resolve_model`.
    """
    if spec.startswith(API_SCHEME):
        return {"model": public_spec(spec)}
    files = resolve_model(spec)
    identity: dict[str, Any] = {"model": files.spec, "sha256": _digest(files)}
    if files.kind == "gguf":
        identity["quantization"] = _quantization(files.path)
    return identity


def identify_file(path: Path) -> dict[str, Any]:
    """Return the identity of a file of answers."""
    return {"answers": path.name, "answers_sha256": content_digest(path)}


def generate_answers(
    store: ReviewStore,
    review: Review,
    model: ReviewModel,
    spec: str,
    *,
    open_model: OpenModel,
    system: str | None,
    sampling: SamplingConfig,
) -> int:
    """Generate the answers that a model does not have yet, and return their number.

    A model without a chat template gets the prompt of `meditron chat`.

    Raises:
        UsageError: the files are not those that gave the first answers, or a question does not fit in the
            model's context.
        SourceError, InputError, EngineError, MissingExtra: as `meditron.engine.load_generator`.
    """
    questions = store.unanswered(review, model)
    if not questions:
        return 0
    identity = identify_model(spec) | {"prompt_version": prompt_version(system)}
    with open_model(spec) as engine:
        engine_identity = {key: value for key, value in engine.identity.items() if key != "date"}
        store.set_identity(model, engine_identity | identity)
        chat = Chat(engine, system)
        with progress(
            model.label, review.questions, "answers", start=review.questions - len(questions)
        ) as bar:
            for question in questions:
                done = chat.ask(question.text, sampling).finish()
                store.add_answers(review, model, [(question.key, done.text, done.stop)])
                bar.advance()
    return len(questions)


def import_answers(store: ReviewStore, review: Review, model: ReviewModel, path: Path) -> int:
    """Store the answers of a file of `{"id", "text"}` that a model does not have yet; return their number.

    Raises:
        InputError: a question has no answer in the file, or a line is no answer.
        UsageError: the file is not the one with the first answers.
    """
    questions = store.unanswered(review, model)
    if not questions:
        return 0
    texts = _read_answers(path)
    for question in questions:
        if question.key not in texts:
            raise InputError(path, f"there is no answer to the question {question.key!r}")
    store.set_identity(model, identify_file(path))
    store.add_answers(review, model, [(each.key, texts[each.key], None) for each in questions])
    return len(questions)


def names_a_model(text: str, labels: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an answer may tell who wrote it: it contains a model's name, or speaks of itself as one.

    Args:
        text: The answer.
        labels: Labels of the models.
        identities: Their identities.
    """
    names = {*labels, *(Path(str(each["model"])).stem for each in identities if "model" in each)}
    patterns = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in names if len(name) >= _SHORTEST_NAME]
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in [_SELF.pattern, *patterns])


def count_names(answers: Sequence[Answer], models: Sequence[ReviewModel]) -> int:
    """Return the number of answers that may tell who wrote them."""
    labels, identities = [each.label for each in models], [each.identity for each in models]
    return sum(names_a_model(answer.text, labels, identities) for answer in answers)


def _digest(files: ModelFiles) -> str:
    if files.kind == "gguf":
        return gguf_digest(files.path)
    return source_identity(str(files.path)).removeprefix("sha256:")


def _quantization(path: Path) -> str | None:
    """Return the type of a GGUF file, such as Q4_K_M, which its metadata has as a number of llama.cpp."""
    from gguf import LlamaFileType

    with GGUF(path) as file:
        number = file.metadata.get("general.file_type")
    try:
        return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return None


def _read_answers(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in read_numbered_jsonl(path):
        key, text, place = row.get("id"), row.get("text"), f"line {number}"
        if not isinstance(key, str | int) or not isinstance(text, str):
            raise InputError(path, 'not an answer {"id": …, "text": …}', place=place)
        if len(text) > _LONGEST_ANSWER:
            raise InputError(path, f"an answer of more than {_LONGEST_ANSWER:,} characters", place=place)
        if str(key) in texts:
            raise InputError(path, f"the id {key!r} is on an earlier line too", place=place)
        texts[str(key)] = text
    return texts
