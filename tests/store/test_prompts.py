"""Prompts: versions, labels, rollback, roles, scores, hostile files, processes."""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import DigestError, InputError, RoleError, SourceError, UsageError
from meditron.store.people import Person
from meditron.store.prompt_text import PromptMessage, PromptText, PromptVersion, difference, read_version
from meditron.store.prompts import PromptScore, PromptStore, utc_now

EDITOR, LABELLER = Person("ed", frozenset({"edit"})), Person("lara", frozenset({"label"}))
BOTH = Person("bo", frozenset({"edit", "label"}))
ONE, TWO, THREE = (
    PromptText(system=f"Answer in {word}.") for word in ("one word", "two words", "three words")
)


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "prompts")


@pytest.fixture
def triage(store: PromptStore) -> PromptStore:
    """A store with three versions of the prompt `triage`."""
    parent = None
    for text in (ONE, TWO, THREE):
        parent = store.add("triage", text, EDITOR, description=text.system, parent=parent).version
    return store


def test_equal_text_is_one_version_whoever_wrote_it_and_a_version_is_named_by_its_hash(
    store: PromptStore,
) -> None:
    first = store.add("triage", ONE, EDITOR, description="the first")
    store.add("triage", TWO, EDITOR)
    again = store.add("triage", PromptText(system="Answer in one word.\r\n"), BOTH, description="again")
    assert again.version == first.version
    canonical = json.dumps({"messages": [], "system": ONE.system}, separators=(",", ":"))
    assert first.version == hashlib.sha256(canonical.encode()).hexdigest()
    assert [version.author for version in store.versions("triage")] == ["ed", "ed"]
    assert sorted(path.stem for path in store.folder.glob("triage/versions/*")) == sorted(
        [ONE.version, TWO.version]
    )
    # `latest` follows what was written last, though the version is the older one.
    assert store.find("triage").version == ONE.version
    assert [move.person for move in store.history("triage")] == ["ed", "ed", "bo"]


def test_names_labels_and_hashes_select_versions(triage: PromptStore) -> None:
    assert triage.find("triage").version == THREE.version
    triage.label("triage", "production", TWO.version[:8], LABELLER, "it answers best")
    assert triage.find("triage").version == TWO.version
    assert triage.find("triage").label == "production"
    assert triage.find("triage@latest").version == THREE.version
    assert triage.find(f"triage@{ONE.version[:10]}").version == ONE.version
    assert triage.find(f"triage@{ONE.version}").label is None
    for reference, problem in {
        "triag": "no prompt 'triag'",
        "triage@staging": "no label 'staging'",
        "triage@": "no label ''",
        "triage@00000000": "no version 00000000",
        "../triage": "no prompt '../triage'",
        "triage/versions": "no prompt",
    }.items():
        with pytest.raises(SourceError, match=problem):
            triage.find(reference)


def test_the_history_of_labels_only_grows_and_rollback_goes_back_step_by_step(triage: PromptStore) -> None:
    labels = triage.folder / "triage/labels.jsonl"
    for text in (ONE, TWO, THREE):
        triage.label("triage", "production", text.version, LABELLER)
    before = labels.read_bytes()
    assert (
        triage.rollback("triage", "production", LABELLER, "three words are too many").version == TWO.version
    )
    assert triage.rollback("triage", "production", LABELLER).version == ONE.version
    with pytest.raises(UsageError, match="no earlier version"):
        triage.rollback("triage", "production", LABELLER)
    triage.label("triage", "production", THREE.version, LABELLER)
    assert triage.rollback("triage", "production", LABELLER).version == ONE.version
    assert labels.read_bytes().startswith(before)
    moves = [move for move in triage.history("triage") if move.label == "production"]
    assert [move.previous for move in moves[1:]] == [move.version for move in moves[:-1]]
    assert [move.rollback for move in moves] == [False, False, False, True, True, False, True]
    assert moves[3].reason == "three words are too many"
    assert triage.labels("triage") == {"latest": THREE.version, "production": ONE.version}


def test_a_label_that_stays_adds_no_line(triage: PromptStore) -> None:
    triage.label("triage", "production", "latest", LABELLER)
    moves = triage.history("triage")
    assert triage.label("triage", "production", "latest", LABELLER) == moves[-1]
    assert triage.history("triage") == moves


def test_roles_are_needed(triage: PromptStore) -> None:
    chatter = Person("cy", frozenset({"chat", "review", "admin"}))
    score = PromptScore(time=utc_now(), person="cy", version=ONE.version, task="t", n=1, accuracy=1)
    for refused in (
        lambda: triage.add("triage", ONE, LABELLER),
        lambda: triage.label("triage", "production", "latest", EDITOR),
        lambda: triage.rollback("triage", "production", EDITOR),
        lambda: triage.add("new", ONE, chatter),
        lambda: triage.label("triage", "production", "latest", chatter),
        lambda: triage.add_score("triage", score, chatter),
    ):
        with pytest.raises(RoleError, match="does not have the role"):
            refused()
    assert triage.labels("triage") == {"latest": THREE.version}
    assert "new" not in triage.names()


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a b", "a@b", "-a", "a" * 65, "é", "a\n"])
def test_names_that_could_be_paths_are_refused(store: PromptStore, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        store.add(name, ONE, EDITOR)
    assert not store.folder.exists()


@pytest.mark.parametrize("label", ["latest", "deadbeef", "a/b", "", "Production"])
def test_labels_that_are_hashes_or_paths_are_refused(triage: PromptStore, label: str) -> None:
    with pytest.raises(UsageError, match="cannot be a label"):
        triage.label("triage", label, "latest", LABELLER)


def test_the_prompts_of_the_package_are_listed_and_cannot_be_changed(store: PromptStore) -> None:
    assert store.names() == ["one-shot-medical", "zero-shot-medical"]
    one, zero = (store.find(name) for name in store.names())
    assert [message["role"] for message in one.render({})] == ["system", "user", "assistant"]
    assert [message["role"] for message in zero.render({})] == ["system"]
    assert "Listeria" in one.render({})[1]["content"]
    assert one.render({})[0] == zero.render({})[0]
    for change in (
        lambda: store.add("one-shot-medical", ONE, BOTH),
        lambda: store.label("one-shot-medical", "production", "latest", BOTH),
        lambda: store.rollback("one-shot-medical", "latest", BOTH),
    ):
        with pytest.raises(UsageError, match="belongs to the package"):
            change()
    score = PromptScore(time=utc_now(), person="bo", version=one.version, task="t", n=10, accuracy=0.5)
    store.add_score("one-shot-medical", score, BOTH)
    assert store.scores("one-shot-medical") == [score]
    assert store.find("one-shot-medical").version == one.version


def test_system_texts_are_listed_for_the_chat_page(triage: PromptStore) -> None:
    triage.label("triage", "production", ONE.version, LABELLER)
    triage.add("with-variable", PromptText(system="{{x}}"), EDITOR)
    zero = triage.find("zero-shot-medical")
    assert triage.list_prompts() == [
        ("triage", "latest", THREE.version, THREE.system),
        ("triage", "production", ONE.version, ONE.system),
        ("zero-shot-medical", "latest", zero.version, zero.text.system),
    ]


def test_variables_are_inserted_as_text(store: PromptStore) -> None:
    text = PromptText(
        system="You advise {{ who }}.",
        messages=(PromptMessage(role="user", content="{{text}}, {{who}}? {{not a name}} {% x %} {{ {{"),),
    )
    assert text.variables == ("who", "text")
    rendered = text.render({"who": "{{text}} {{ ''.__class__ }} \\g<0>", "text": "T"})
    assert [message["content"] for message in rendered] == [
        "You advise {{text}} {{ ''.__class__ }} \\g<0>.",
        "T, {{text}} {{ ''.__class__ }} \\g<0>? {{not a name}} {% x %} {{ {{",
    ]
    prompt = store.add("advice", text, EDITOR)
    for values, problem in (
        ({"who": "x"}, "advice: the prompt's variable text has no value"),
        ({"who": "x", "text": "y", "z": "z"}, "no variable z; variables: who, text"),
        ({"who": "x", "text": 3}, "must be text, got int"),
    ):
        with pytest.raises(UsageError, match=problem):
            prompt.render(values)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(system=texts, content=texts, description=texts)
def test_the_file_of_a_version_is_read_as_it_was_written(system: str, content: str, description: str) -> None:
    messages = [{"role": "user", "content": f"{content}x"}, {"role": "assistant", "content": content}]
    version = PromptVersion(
        system=system, messages=messages, description=description, author="ed", time="now"
    )
    again = PromptVersion(**tomllib.loads(version.to_toml()))
    assert again == version
    assert again.version == version.version == version.text.version


def test_texts_with_quotes_survive_the_file() -> None:
    for system in ('"""', 'a\n"""""', '\n"', "\\\n\\", "\t\n\r\x00\x7f", '""""\n""""', "x\ry\n"):
        version = PromptVersion(system=f"{system}x{system}")
        assert PromptVersion(**tomllib.loads(version.to_toml())).version == version.version


def test_a_changed_version_is_noticed(triage: PromptStore) -> None:
    path = triage.folder / f"triage/versions/{TWO.version}.toml"
    path.write_text(path.read_text().replace("two", "ten"), encoding="utf-8")
    with pytest.raises(DigestError, match="the text was changed"):
        triage.find(f"triage@{TWO.version}")
    assert triage.find("triage").version == THREE.version


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff", "not a prompt"),
        (b"system = ", "not a prompt"),
        (b'system = ""', "needs a system text or a message"),
        (b'system = "x"\nother = 1', "Extra inputs"),
        (b'system = "x"\nmessages = [{role = "system", content = "x"}]', "messages.0.role"),
        (b'system = "x"\nparent = "../../etc/passwd"', "(parent)"),
        (b"system = 1", "(system)"),
        (b"x = " + b"[" * 5000, "not a prompt"),
        (b'system = "' + b"x" * (1 << 20) + b'x"', "at most 1,048,576 bytes"),
        (b"#" * (1 << 22), "more than 2,097,152 bytes"),
    ],
)
def test_files_that_are_no_prompts_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_version(path)
    assert problem in raised.value.message
    assert str(path) in raised.value.message


@pytest.mark.parametrize(
    "line", ['{"label": "production"}', "not json", '{"version": "../../../etc/passwd"}', "[]", "\x00"]
)
def test_a_damaged_history_is_named_and_an_incomplete_last_line_is_left_out(
    triage: PromptStore, line: str
) -> None:
    path = triage.folder / "triage/labels.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + line.encode())
    assert triage.labels("triage") == {"latest": THREE.version}
    triage.label("triage", "production", "latest", LABELLER)
    assert path.read_bytes().startswith(good)
    assert triage.labels("triage") == {"latest": THREE.version, "production": THREE.version}
    path.write_bytes(good + line.encode() + b"\n")
    with pytest.raises(InputError, match=r"labels.jsonl \(line 4\)"):
        triage.labels("triage")


def test_a_kill_between_version_and_label_is_repaired_by_the_next_add(triage: PromptStore) -> None:
    path = triage.folder / "triage/labels.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert triage.find("triage").version == TWO.version
    assert triage.add("triage", THREE, EDITOR).version == THREE.version
    assert triage.find("triage").version == THREE.version


def test_processes_take_turns(triage: PromptStore) -> None:
    script = """
import sys
from pathlib import Path
from meditron.store.people import People
from meditron.store.prompt_text import PromptText
from meditron.store.prompts import PromptStore
store, name = PromptStore(Path(sys.argv[1])), sys.argv[2]
for number in range(8):
    store.add("triage", PromptText(system=f"{name} {number}"), People().local)
    store.label("triage", name, "latest", People().local)
"""
    command = [sys.executable, "-c", script, triage.folder]
    children = [subprocess.Popen([*command, name]) for name in ("x", "y", "z")]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(triage.versions("triage")) == 3 + 24
    for label in ("latest", "x", "y", "z"):
        moves = [move for move in triage.history("triage") if move.label == label]
        assert [move.previous for move in moves[1:]] == [move.version for move in moves[:-1]]


def test_a_difference_is_unified(triage: PromptStore) -> None:
    assert difference(ONE, ONE) == []
    lines = difference(ONE, TWO)
    assert lines[:2] == [f"--- {ONE.version[:12]}", f"+++ {TWO.version[:12]}"]
    assert lines[-2:] == ["-Answer in one word.", "+Answer in two words."]


def test_scores_belong_to_versions(triage: PromptStore) -> None:
    score = PromptScore(
        time=utc_now(),
        person="ed",
        version=TWO.version,
        task="medqa",
        n=100,
        accuracy=0.5,
        interval=(0.4, 0.6),
    )
    triage.add_score("triage", score, EDITOR)
    triage.add_score("triage", score, EDITOR)
    assert triage.scores("triage") == [score, score]
    with pytest.raises(SourceError, match="has no version 000000000000"):
        triage.add_score("triage", score.model_copy(update={"version": "0" * 64}), EDITOR)
