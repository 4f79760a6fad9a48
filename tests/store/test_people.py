"""People with keys and roles."""

import hashlib
from pathlib import Path

import pytest

from meditron.core.errors import InputError, RoleError, SourceError
from meditron.store.people import ROLES, People

KEYS = {name: f"key-of-{name}-0123456789" for name in ("alice", "bob")}


def table(name: str, roles: str = "") -> str:
    digest = hashlib.sha256(KEYS.get(name, f"{name}{name}").encode()).hexdigest()
    return f'[{name}]\nkey_sha256 = "{digest}"\n{roles}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.toml"


def test_without_a_file_the_local_user_has_every_role_and_needs_no_key() -> None:
    people = People()
    assert not people.need_keys
    assert people.local.roles == set(ROLES)
    assert people.named("local") is people.local
    assert people.named("alice") is None
    assert people.find("any key at all 0123") is None


def test_people_are_found_by_their_keys_and_have_their_roles(path: Path) -> None:
    path.write_text(table("alice", 'roles = ["edit", "label"]') + table("bob"), encoding="utf-8")
    people = People.load(path)
    assert people.need_keys
    alice, bob = (people.find(KEYS[name]) for name in KEYS)
    assert (alice, bob) == (people.named("alice"), people.named("bob"))
    assert alice.roles == {"edit", "label"}
    assert bob.roles == {"chat"}
    bob.require("chat")
    with pytest.raises(RoleError, match="bob does not have the role label; roles: chat"):
        bob.require("label")


def test_with_a_file_the_local_user_has_no_role(path: Path) -> None:
    path.write_text(table("alice"), encoding="utf-8")
    people = People.load(path)
    assert people.named("local") is None
    with pytest.raises(RoleError, match="roles: none"):
        people.local.require("chat")


@pytest.mark.parametrize(
    "key", ["", "wrong", KEYS["alice"] + " ", KEYS["alice"].upper(), "\ud800" * 20, "ä" * 20]
)
def test_no_other_key_is_accepted(path: Path, key: str) -> None:
    path.write_text(table("alice"), encoding="utf-8")
    assert People.load(path).find(key) is None


def test_a_file_of_one_line_is_a_key_with_every_role(path: Path) -> None:
    path.write_text("0123456789abcdef\n", encoding="utf-8")
    person = People.load(path).find("0123456789abcdef")
    assert person is not None
    assert person.roles == set(ROLES)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has no key"),
        ("# nobody\n\n", "at least 16 printable characters"),
        ("short", "at least 16 printable characters"),
        ("a key with blanks in it", "without blanks"),
        ("ключключключключ", "printable"),
        ("[alice]\nkey_sha256 = 1\n", "(alice): key_sha256 is not a SHA-256"),
        ('[alice]\nkey_sha256 = "AB"\n', "(alice): key_sha256 is not a SHA-256"),
        (table("alice", 'roles = ["root"]'), "(alice): roles are chat, edit, label, review, admin"),
        (table("alice", 'roles = [["edit"]]'), "(alice): roles are"),
        (table("alice", 'roles = "edit"'), "(alice): roles are"),
        (table("alice", 'password = "x"'), "(alice): unknown key password"),
        ('["../alice"]\nroles = []\n', "names have lower-case letters"),
        ("alice = 1\nbob = 2\n", "and a table"),
        (table("alice") + table("alice"), "alice"),
        (table("alice") + table("alice").replace("[alice]", "[carol]"), "(carol): has the key of alice"),
        ("x = " + "[" * 5000 + "\n\n[", "recursion"),
        ("\0\n[", "nvalid"),
        (f"x = {'1' * 5000}\n[a]", "limit"),
        ("x" * (1 << 20) + "\n", "more than 1,048,576 bytes"),
    ],
)
def test_other_files_are_refused_with_the_place(path: Path, text: str, problem: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        People.load(path)
    assert problem in raised.value.message
    assert str(path) in raised.value.message


def test_a_file_that_is_missing_or_not_utf8(path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        People.load(path)
    path.write_bytes(b"0123456789abcdef\xff")
    with pytest.raises(InputError, match=r"byte 16\): not UTF-8"):
        People.load(path)
