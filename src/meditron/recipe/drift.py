"""Differences between an artifact's recorded config and inputs and the current ones, field by field."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.core.redaction import redact

__all__ = ["FieldChange", "abbreviate", "field_changes", "flat_items"]

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One changed field: `learning_rate`, `inputs.corpus`, `version`, or a damaged file."""

    field: str
    was: Any
    now: Any
    damage: bool = False
    """Bytes were lost or altered: such an artifact cannot be accepted."""
    inherited: bool = False
    """Only a dependency has changed: accepting the dependency's drift removes this change."""

    def to_json(self) -> dict[str, Any]:
        """Return the form of --json."""
        return {"field": self.field, "was": self.was, "now": self.now}

    def __str__(self) -> str:
        return f"{self.field}: {abbreviate(self.was)} → {abbreviate(self.now)}"


def abbreviate(value: object) -> str:
    """Abbreviate a value: 12 digits of a digest, the beginning and end of a long text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def field_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """Compare two payloads; inputs whose digest is not known yet (None) are left out."""
    before, after = dict(_dotted_fields(was)), dict(_dotted_fields(now))
    unknown = {f"inputs.{name}" for name, digest in now["inputs"].items() if digest is None}
    return tuple(
        FieldChange(field, _redact_value(before.get(field)), _redact_value(after.get(field)))
        for field in {**before, **after}
        if field not in unknown and before.get(field, _ABSENT) != after.get(field, _ABSENT)
    )


def _redact_value(value: object) -> object:
    """Remove secrets from a value: a record of an earlier version may hold an address with credentials."""
    return redact(value) if isinstance(value, str) else value


def _dotted_fields(payload: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted fields; those of `config` without a prefix, as in the recipe's table."""
    for key, value in payload.items():
        yield from flat_items(value, "" if key == "config" else key)


def flat_items(value: object, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of every leaf in nested mappings."""
    if not isinstance(value, Mapping) or (not value and place):
        yield place, value
        return
    for key, inner in value.items():
        yield from flat_items(inner, f"{place}.{key}" if place else key)
