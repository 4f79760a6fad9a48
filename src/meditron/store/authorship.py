"""Conversion of a model's name, licence, authors, base models and tags between HF folders and GGUF files.

A GGUF file stores this metadata under `general.*` (ggml's gguf.md); an HF folder stores it in the YAML front
matter of its README.md, under the Hugging Face hub's keys. GGUF keys without an equivalent on the hub are
written to the front matter unchanged.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import InputError
from meditron.store.files import atomic_write, translate_read_errors
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles

__all__ = ["CARD_FILE", "read_authorship", "write_card"]

CARD_FILE = "README.md"
MAX_FRONT_MATTER = 1 << 20
"""The front matter must end within this number of bytes of a README.md."""

_PREFIX = "general."
# Keys that describe the file and not the model: they are not copied, and the writer of each file sets them.
_FILE_KEYS = {
    f"{_PREFIX}{key}" for key in ("architecture", "alignment", "file_type", "quantization_version", "type")
}
_HUB = "https://huggingface.co/"
_TEXTS = {
    "license_name": "license.name",
    "license_link": "license.link",
    "author": "author",
    "model_creator": "author",
    "model_name": "name",
    "organization": "organization",
    "version": "version",
    "description": "description",
    "basename": "basename",
    "finetune": "finetune",
    "size_label": "size_label",
}
"""Front matter key → GGUF key, for values that are one text. If two front matter keys have the same GGUF key,
both are read, and the first is written."""
_LISTS = {"tags": "tags", "language": "languages", "datasets": "datasets"}


def read_authorship(files: ModelFiles) -> dict[str, Any]:
    """Return a model's `general.*` metadata.

    Raises:
        InputError: the front matter of README.md is not YAML.
    """
    if files.kind == "init":
        return {}
    if files.kind in ("hf", "megatron"):
        return dict(_gguf_pairs_from_card(_read_front_matter(Path(files.path) / CARD_FILE)))
    with GGUF(files.path) as gguf:
        return {key: value for key, value in gguf.metadata.items() if _is_model_key(key)}


def write_card(folder: Path, authorship: Mapping[str, Any], *, card: Path | None = None) -> None:
    """Write README.md: a copy of `card` if it exists, else front matter that `read_authorship` can read."""
    if card is not None and card.is_file():
        with translate_read_errors(card), atomic_write(folder / CARD_FILE) as copy:
            copy.write(card.read_bytes())
        return
    lines = [f"{key}: {_format_as_yaml(value)}" for key, value in _card_pairs_from_gguf(authorship)]
    if lines:
        title = authorship.get(f"{_PREFIX}name", "Model")
        with atomic_write(folder / CARD_FILE, "w") as file:
            file.write("\n".join(["---", *lines, "---", f"# {title}", ""]))


def _format_as_yaml(value: object) -> str:
    """Format a value as JSON, which is valid YAML once the characters that only YAML forbids are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_model_key(key: object) -> bool:
    return isinstance(key, str) and key.startswith(_PREFIX) and key not in _FILE_KEYS


def _read_front_matter(card: Path) -> Mapping[str, Any]:
    if not card.is_file():
        return {}
    with translate_read_errors(card), card.open("rb") as file:
        head = file.read(MAX_FRONT_MATTER).decode("utf-8", "replace").removeprefix("\ufeff")
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", head, re.DOTALL | re.MULTILINE)
    if match is None:
        return {}
    try:
        content = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(card, f"the front matter is not YAML: {line}") from error
    return content if isinstance(content, dict) else {}


def _gguf_pairs_from_card(card: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if licence := ",".join(_nonempty_texts(card.get("license"))):
        yield f"{_PREFIX}license", licence
    seen_gguf_keys: set[str] = set()
    for key, gguf_key in _TEXTS.items():
        value = card.get(key)
        # YAML reads a version like 1.0 as a number.
        is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
        if is_text and value != "" and gguf_key not in seen_gguf_keys:
            seen_gguf_keys.add(gguf_key)
            yield _PREFIX + gguf_key, str(value)
    for key, gguf_key in _LISTS.items():
        if values := _nonempty_texts(card.get(key)):
            yield _PREFIX + gguf_key, values
    if bases := _nonempty_texts(card.get("base_model")):
        yield f"{_PREFIX}base_model.count", len(bases)
        for index, base in enumerate(bases):
            organization, _, name = base.removeprefix(_HUB).rpartition("/")
            yield f"{_PREFIX}base_model.{index}.name", name
            if re.fullmatch(r"[\w.-]+", organization):
                yield f"{_PREFIX}base_model.{index}.organization", organization
                yield f"{_PREFIX}base_model.{index}.repo_url", f"{_HUB}{organization}/{name}"
    for key, value in card.items():
        scalar = isinstance(value, str | int | float)
        if _is_model_key(key) and (scalar or (isinstance(value, list) and _nonempty_texts(value) == value)):
            yield key, value


def _card_pairs_from_gguf(authorship: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the front matter's entries: the hub's keys, then the GGUF keys that they do not reproduce."""
    card: dict[str, Any] = {}
    if licence := authorship.get(f"{_PREFIX}license"):
        card["license"] = licence.split(",") if "," in licence else licence
    written_gguf_keys: set[str] = set()
    for key, gguf_key in _TEXTS.items():
        if (value := authorship.get(_PREFIX + gguf_key)) is not None and gguf_key not in written_gguf_keys:
            written_gguf_keys.add(gguf_key)
            card[key] = value
    for key, gguf_key in _LISTS.items():
        if value := authorship.get(_PREFIX + gguf_key):
            card[key] = value
    count = authorship.get(f"{_PREFIX}base_model.count", 0)
    indices = range(min(count, 100) if isinstance(count, int) else 0)  # the count may be a lie
    if bases := [base for base in (_base_model_name(authorship, index) for index in indices) if base]:
        card["base_model"] = bases[0] if len(bases) == 1 else bases
    restored = dict(_gguf_pairs_from_card(card))
    yield from card.items()
    for key, value in authorship.items():
        if restored.get(key) != value:
            yield key, value


def _base_model_name(authorship: Mapping[str, Any], index: int) -> str | None:
    prefix = f"{_PREFIX}base_model.{index}."
    url = authorship.get(prefix + "repo_url")
    if isinstance(url, str) and url.startswith(_HUB):
        return url.removeprefix(_HUB)
    return authorship.get(prefix + "name")


def _nonempty_texts(value: object) -> list[str]:
    """Return the nonempty texts of a value that may be a text or a list."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item]
