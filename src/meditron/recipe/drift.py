"""Drift: the fields in which an artifact's recorded config and inputs differ from the recipe's."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.core.redaction import redact

__all__ = ["FieldChange", "abbreviate", "field_changes", "flat_items"]

# A missing field differs from a field that is None.
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of config or inputs that changed after a stage was built, or one damaged file.

    The field's name is that of the config's key (`learning_rate`), `inputs.NAME`, `version` or `files.NAME`.
    """

    field: str
    old_value: Any
    new_value: Any
    damage: bool = False
    """True if the artifact's files were lost or altered, so that --accept-drift cannot accept the change."""
    inherited: bool = False
    """True if only a dependency changed. If the dependency's drift is accepted, this change disappears."""

    def to_json(self) -> dict[str, Any]:
        """Return the change as --json prints it."""
        return {"field": self.field, "was": self.old_value, "now": self.new_value}

    def __str__(self) -> str:
        return f"{self.field}: {abbreviate(self.old_value)} → {abbreviate(self.new_value)}"


def abbreviate(value: object) -> str:
    """Shorten a value for a table: a digest to 12 digits, a long text to its beginning and end."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def field_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """Return the fields in which a recorded and a current payload differ.

    Inputs whose current digest is None, because they are not built yet, are not compared.
    """
    before, after = dict(_dotted_fields(was)), dict(_dotted_fields(now))
    unknown = {f"inputs.{name}" for name, digest in now["inputs"].items() if digest is None}
    return tuple(
        FieldChange(field, _redact_value(before.get(field)), _redact_value(after.get(field)))
        for field in {**before, **after}
        if field not in unknown and before.get(field, _ABSENT) != after.get(field, _ABSENT)
    )


def _redact_value(value: object) -> object:
    """Remove secrets from a value; manifests of earlier versions may contain addresses with credentials."""
    return redact(value) if isinstance(value, str) else value


def _dotted_fields(payload: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a payload's dotted names and values; config keys have no prefix, as in the recipe's table."""
    for key, value in payload.items():
        yield from flat_items(value, "" if key == "config" else key)


def flat_items(value: object, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of every leaf in nested mappings."""
    if not isinstance(value, Mapping) or (not value and place):
        yield place, value
        return
    for key, inner in value.items():
        yield from flat_items(inner, f"{place}.{key}" if place else key)
