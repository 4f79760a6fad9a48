"""People with API keys and roles, read from a file.

    [alice]
    key_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    roles = ["edit", "label"]

A file with one line that is no TOML table holds a single key, which has every role.
"""

import hashlib
import hmac
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from meditron.core.errors import InputError, RoleError
from meditron.store.files import translate_read_errors

__all__ = ["ROLES", "People", "Person", "Role", "is_person_name"]

Role = Literal["chat", "edit", "label", "review", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""chat: use the models; edit: write prompts; label: move the labels of prompts; review: rate answers; admin:
read logs and results."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 1 << 20
_SHORTEST_KEY = 16  # characters; shorter keys can be guessed


def is_person_name(text: str) -> bool:
    """Return whether a text can be the name of a person."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Person:
    """A person or program that uses the server."""

    name: str
    roles: frozenset[Role]

    def require(self, role: Role) -> None:
        """Raise RoleError if the person does not have a role."""
        if role not in self.roles:
            held = ", ".join(each for each in ROLES if each in self.roles) or "none"
            raise RoleError(f"{self.name} does not have the role {role}; roles: {held}")


class People:
    """Everyone who may use the server.

    Without a key file this is one person, `local`, with every role. With one, `local` has no role.
    """

    def __init__(self, keys: dict[str, tuple[str, Person]] | None = None) -> None:
        """Keep people by name, each with the SHA-256 of a key; None: only the local user, without a key."""
        self._keys = keys
        # With keys, a request that no key was checked for may do nothing.
        self.local = Person("local", frozenset(ROLES if keys is None else ()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file.

        Raises:
            InputError: the file is no list of people, or a key is too short.
            SourceError: the file cannot be read.
        """
        with translate_read_errors(path), path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InputError(path, f"more than {_MAX_BYTES:,} bytes")
        try:
            text = content.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(path, "not UTF-8", place=f"byte {error.start}") from error
        if text and "\n" not in text and not text.startswith("["):
            return cls({"api": (_digest(_checked_key(path, text)), Person("api", frozenset(ROLES)))})
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # no TOML, or a number of thousands of digits
            raise InputError(
                path, str(error), hint="one key on one line, or a table for each person"
            ) from error
        if not tables:
            raise InputError(path, "it has no key")
        keys = {name: _read_person(path, name, table) for name, table in tables.items()}
        _refuse_shared_keys(path, keys)
        return cls(keys)

    @property
    def need_keys(self) -> bool:
        """True if a request needs a key."""
        return self._keys is not None

    def find(self, key: str) -> Person | None:
        """Return the person with this key, or None. The time does not depend on the key."""
        digest = _digest(key)
        found = None
        for known, person in (self._keys or {}).values():
            if hmac.compare_digest(digest, known):
                found = person
        return found

    def named(self, name: str) -> Person | None:
        """Return the person of this name, or None."""
        if self._keys is None:
            return self.local if name == self.local.name else None
        return self._keys[name][1] if name in self._keys else None


def _digest(key: str) -> str:
    # A request's JSON may hold half of a surrogate pair.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _checked_key(path: Path, key: str) -> str:
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            path,
            f"a key has at least {_SHORTEST_KEY} printable characters without blanks",
            hint="openssl rand -hex 24 writes one",
        )
    return key


def _read_person(path: Path, name: str, table: Any) -> tuple[str, Person]:  # noqa: ANN401  # a TOML value
    if not is_person_name(name) or not isinstance(table, dict):
        raise InputError(
            path, "names have lower-case letters, digits, '.', '_', '-', and a table", place=name
        )
    if unknown := set(table) - {"key_sha256", "roles"}:
        raise InputError(path, f"unknown key {min(unknown)}", place=name)
    digest, roles = table.get("key_sha256"), table.get("roles", ["chat"])
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InputError(
            path,
            "key_sha256 is not a SHA-256",
            place=name,
            hint="printf %s KEY | sha256sum",
        )
    if not isinstance(roles, list) or any(role not in ROLES for role in roles):
        raise InputError(path, f"roles are {', '.join(ROLES)}", place=name)
    return digest, Person(name, frozenset(roles))


def _refuse_shared_keys(path: Path, keys: dict[str, tuple[str, Person]]) -> None:
    """Raise InputError if two people have one key, because the log could not tell them apart."""
    owners: dict[str, str] = {}
    for name, (digest, _) in keys.items():
        if (other := owners.setdefault(digest, name)) != name:
            raise InputError(path, f"has the key of {other}", place=name)
