"""What an artifact was made from against what is asked for now, field by field."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meditron.core.redaction import redact

__all__ = ["Difference", "differences", "leaves", "short"]

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is another now: `learning_rate`, `inputs.corpus`, `version`, or a damaged file."""

    field: str
    was: Any
    now: Any
    damage: bool = False
    """Whether bytes were lost or altered: such an artifact cannot be accepted as it is."""
    inherited: bool = False
    """Whether only what the stage stands on is another: where that is accepted, this falls away."""

    def to_json(self) -> dict[str, Any]:
        """The stable form."""
        return {"field": self.field, "was": self.was, "now": self.now}

    def __str__(self) -> str:
        return f"{self.field}: {short(self.was)} → {short(self.now)}"


def short(value: object) -> str:
    """A value in a few words: digests and long texts keep their head and their tail."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The fields of two payloads that differ. An input whose digest is not known yet (None) is left out."""
    before, after = dict(_flat(was)), dict(_flat(now))
    unknown = {f"inputs.{name}" for name, digest in now["inputs"].items() if digest is None}
    return tuple(
        Difference(field, _shown(before.get(field)), _shown(after.get(field)))
        for field in {**before, **after}
        if field not in unknown and before.get(field, _ABSENT) != after.get(field, _ABSENT)
    )


def _shown(value: object) -> object:
    """Return a value for people: a record of an earlier version may hold an address with its secrets."""
    return redact(value) if isinstance(value, str) else value


def _flat(payload: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted fields, a configuration's as its table has them."""
    for key, value in payload.items():
        yield from leaves(value, "" if key == "config" else key)


def leaves(value: object, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested mappings."""
    if not isinstance(value, Mapping) or (not value and place):
        yield place, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{place}.{key}" if place else key)
