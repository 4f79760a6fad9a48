"""A model's name, licence, authors, base models and tags, as they travel between HF folders and GGUF files.

A GGUF file holds them under `general.*` (ggml's gguf.md), an HF folder in the front matter of its README.md
under the hub's keys. Keys of GGUF that the hub has no name for stand in the front matter under their own.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import InputError
from meditron.store.files import atomic, translate_read_errors
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles

__all__ = ["CARD", "read_authorship", "write_card"]

CARD = "README.md"
MAX_FRONT_MATTER = 1 << 20
"""Bytes of a README.md within which its front matter has to end."""

_PREFIX = "general."
# What the writer of a file decides anew.
_OWN = {
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
"""Front matter's key → GGUF's, for single texts; the first of two names of one key is the one written."""
_LISTS = {"tags": "tags", "language": "languages", "datasets": "datasets"}


def read_authorship(files: ModelFiles) -> dict[str, Any]:
    """Return what a model says of itself, as `general.*` metadata.

    Raises:
        InputError: README.md begins with front matter that is no YAML.
    """
    if files.kind == "init":
        return {}
    if files.kind == "hf":
        return dict(_from_front_matter(_front_matter(Path(files.path) / CARD)))
    with GGUF(files.path) as gguf:
        return {
            key: value for key, value in gguf.metadata.items() if key.startswith(_PREFIX) and key not in _OWN
        }


def write_card(folder: Path, authorship: Mapping[str, Any], *, card: Path | None = None) -> None:
    """Write README.md: a copy of `card`, or a front matter that `read_authorship` reads back."""
    if card is not None and card.is_file():
        with translate_read_errors(card), atomic(folder / CARD) as copy:
            copy.write(card.read_bytes())
        return
    lines = [f"{key}: {_yaml(value)}" for key, value in _to_front_matter(authorship)]
    if lines:
        title = authorship.get(f"{_PREFIX}name", "Model")
        with atomic(folder / CARD, "w") as file:
            file.write("\n".join(["---", *lines, "---", f"# {title}", ""]))


def _yaml(value: object) -> str:
    """JSON is YAML, but for characters that YAML wants escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _front_matter(card: Path) -> Mapping[str, Any]:
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


def _from_front_matter(card: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if licence := ",".join(_texts(card.get("license"))):
        yield f"{_PREFIX}license", licence
    seen: set[str] = set()
    for key, ours in _TEXTS.items():
        value = card.get(key)
        if (
            isinstance(value, str | int | float)
            and not isinstance(value, bool)
            and value != ""
            and ours not in seen
        ):
            seen.add(ours)
            yield _PREFIX + ours, str(value)
    for key, ours in _LISTS.items():
        if values := _texts(card.get(key)):
            yield _PREFIX + ours, values
    if bases := _texts(card.get("base_model")):
        yield f"{_PREFIX}base_model.count", len(bases)
        for place, base in enumerate(bases):
            organization, _, name = base.removeprefix(_HUB).rpartition("/")
            yield f"{_PREFIX}base_model.{place}.name", name
            if re.fullmatch(r"[\w.-]+", organization):
                yield f"{_PREFIX}base_model.{place}.organization", organization
                yield f"{_PREFIX}base_model.{place}.repo_url", f"{_HUB}{organization}/{name}"
    for key, value in card.items():
        own = isinstance(key, str) and key.startswith(_PREFIX) and key not in _OWN
        if own and (
            isinstance(value, str | int | float) or (isinstance(value, list) and _texts(value) == value)
        ):
            yield key, value


def _to_front_matter(authorship: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The hub's keys first; what they do not say exactly stands under GGUF's own key as well."""
    card: dict[str, Any] = {}
    if licence := authorship.get(f"{_PREFIX}license"):
        card["license"] = licence.split(",") if "," in licence else licence
    written: set[str] = set()
    for key, ours in _TEXTS.items():
        if (value := authorship.get(_PREFIX + ours)) is not None and ours not in written:
            written.add(ours)
            card[key] = value
    for key, ours in _LISTS.items():
        if value := authorship.get(_PREFIX + ours):
            card[key] = value
    count = authorship.get(f"{_PREFIX}base_model.count", 0)
    bases = [_base(authorship, place) for place in range(min(count, 100) if isinstance(count, int) else 0)]
    if named := [base for base in bases if base]:
        card["base_model"] = named[0] if len(named) == 1 else named
    read_back = dict(_from_front_matter(card))
    yield from card.items()
    for key, value in authorship.items():
        if read_back.get(key) != value:
            yield key, value


def _base(authorship: Mapping[str, Any], place: int) -> str | None:
    base = f"{_PREFIX}base_model.{place}."
    url = authorship.get(base + "repo_url")
    if isinstance(url, str) and url.startswith(_HUB):
        return url.removeprefix(_HUB)
    return authorship.get(base + "name")


def _texts(value: object) -> list[str]:
    """The texts of a value that may be one text or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item]
