"""The store of conversations: trees, branches, search, owners, migrations."""

import sqlite3
import time
from dataclasses import replace

import pytest

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.serve.conversations import Answer, Conversations


@pytest.fixture
def store(tmp_path):
    store = Conversations(tmp_path / "chat.db")
    yield store
    store.close()


def exchange(store, owner, name, parent, question, answer, model="alpha"):
    """Store a question with its answer, and return both ids."""
    asked = store.add_question(owner, name, parent, question)
    pending = store.add_answer(owner, name, asked.id, Answer(model=model), None)
    store.save(replace(pending, text=answer, state="done", answer=Answer(model=model, output_tokens=3)))
    return asked.id, pending.id


def test_a_conversation_survives_the_process(store):
    name = store.create("ann", "  What is\nhypertension? ", {"models": ["alpha"]})
    question, answer = exchange(store, "ann", name, None, "What is hypertension?", "High pressure.")
    store.close()
    with_file = Conversations(store._database.path)
    found = with_file.get("ann", name)
    assert [(m.role, m.text, m.state) for m in found.path()] == [
        ("user", "What is hypertension?", "done"),
        ("assistant", "High pressure.", "done"),
    ]
    assert (found.title, found.leaf, found.settings) == (
        "What is hypertension?",
        answer,
        {"models": ["alpha"]},
    )
    assert found.messages[1].parent == question
    assert found.messages[1].answer == Answer(model="alpha", output_tokens=3)
    with_file.close()


def test_a_question_and_a_pending_answer_are_stored_before_the_answer_ends(store):
    name = store.create("ann", "t", {})
    asked = store.add_question("ann", name, None, "first")
    store.add_answer("ann", name, asked.id, Answer(model="alpha"), None)
    # Another connection sees them, as after a crash.
    rows = sqlite3.connect(store._database.path).execute("SELECT text, state FROM message").fetchall()
    assert rows == [("first", "done"), ("", "pending")]


def test_conversations_are_read_while_another_process_writes(store):
    name = store.create("ann", "pressure", {})
    other = Conversations(store._database.path)
    with other._database.transaction():
        assert [match.conversation.id for match in store.newest("ann")] == [name]
        assert [match.conversation.id for match in store.search("ann", "pressure")] == [name]
        assert store.get("ann", name).id == name
    other.close()


def test_editing_adds_a_sibling_and_the_old_path_can_be_selected(store):
    name = store.create("ann", "t", {})
    first, first_answer = exchange(store, "ann", name, None, "one", "ONE")
    _, deeper = exchange(store, "ann", name, first_answer, "two", "TWO")
    exchange(store, "ann", name, None, "one, edited", "ONE, EDITED")
    found = store.get("ann", name)
    assert [m.text for m in found.path()] == ["one, edited", "ONE, EDITED"]
    assert found.last_below(first) == deeper
    store.select("ann", name, deeper)
    assert [m.text for m in store.get("ann", name).path()] == ["one", "ONE", "two", "TWO"]
    store.select("ann", name, first_answer)  # branch
    exchange(store, "ann", name, first_answer, "three", "THREE")
    assert [m.text for m in store.get("ann", name).path()] == ["one", "ONE", "three", "THREE"]


def test_of_answers_side_by_side_the_first_is_continued(store):
    name = store.create("ann", "t", {})
    asked = store.add_question("ann", name, None, "one")
    left = store.add_answer("ann", name, asked.id, Answer(model="alpha"), "turn")
    right = store.add_answer("ann", name, asked.id, Answer(model="beta"), "turn")
    assert store.get("ann", name).leaf == left.id
    store.select("ann", name, right.id)
    assert store.get("ann", name).leaf == right.id


def test_nobody_reaches_the_conversation_of_another_person(store):
    name = store.create("ann", "secret", {})
    first, _ = exchange(store, "ann", name, None, "secret question", "secret answer")
    before = store.get("ann", name)
    for call in (
        lambda: store.get("bob", name),
        lambda: store.rename("bob", name, "mine"),
        lambda: store.select("bob", name, first),
        lambda: store.configure("bob", name, {}),
        lambda: store.delete("bob", name),
        lambda: store.add_question("bob", name, None, "mine"),
        lambda: store.add_answer("bob", name, first, Answer(model="alpha"), None),
    ):
        with pytest.raises(SourceError, match="no conversation"):
            call()
    assert store.newest("bob") == store.search("bob", "secret") == []
    assert store.get("ann", name) == before


def test_search_finds_words_of_titles_questions_and_answers(store):
    first = store.create("ann", "Blood pressure", {})
    exchange(store, "ann", first, None, "Was ist Hypertonie?", "Erhöhter Blutdruck, über 140/90 mmHg.")
    second = store.create("ann", "Other", {})
    exchange(store, "ann", second, None, "Which statin?", "Atorvastatin is common.")

    def ids(query):
        return [match.conversation.id for match in store.search("ann", query)]

    assert ids("hypertonie") == ids("erhohter BLUTDRUCK") == ids("pressure") == ids("140/90") == [first]
    assert ids("atorva") == ids("statin which") == [second]
    assert ids("statin hypertonie") == ids("nothing") == []
    assert ids("") == ids(" - ") == [second, first]
    match = store.search("ann", "atorva")[0]
    assert match.snippet == (("Atorvastatin", True), (" is common.", False))


def test_no_query_is_an_operator(store):
    name = store.create("ann", "t", {})
    exchange(store, "ann", name, None, "b x", "nothing")
    found = {
        query: bool(store.search("ann", query)) for query in ("a OR b", "NEAR(b x)", "title: x", "b*", "-x")
    }
    assert found == {"a OR b": False, "NEAR(b x)": False, "title: x": False, "b*": True, "-x": True}
    for query in ('"', "(", "^a", "a\x00b", "{a}", "'", "x" * 200, "\ud800"):
        store.search("ann", query)  # raises nothing


def test_search_follows_changes(store):
    name = store.create("ann", "old title", {})
    asked = store.add_question("ann", name, None, "q")
    answer = store.add_answer("ann", name, asked.id, Answer(model="alpha"), None)
    store.save(replace(answer, text="first text"))
    assert len(store.search("ann", "first")) == 1
    store.save(replace(answer, text="second text", state="stopped"))
    store.save(replace(answer, text="first text, written late"))  # it has ended
    store.rename("ann", name, "new title")
    assert store.search("ann", "first") == store.search("ann", "old") == []
    assert len(store.search("ann", "second")) == len(store.search("ann", "new")) == 1
    store.delete("ann", name)
    assert store.search("ann", "second") == store.search("ann", "new") == store.newest("ann") == []
    store.save(replace(answer, text="late"))  # its conversation is gone
    assert store.search("ann", "late") == []


def test_a_parent_belongs_to_the_conversation_and_has_the_other_role(store):
    name, other = store.create("ann", "t", {}), store.create("ann", "u", {})
    question, answer = exchange(store, "ann", name, None, "q", "a")
    with pytest.raises(SourceError, match="no message"):
        store.add_question("ann", other, answer, "x")
    with pytest.raises(SourceError, match="no message"):
        store.select("ann", other, answer)
    with pytest.raises(UsageError, match="a question follows an answer"):
        store.add_question("ann", name, question, "x")
    with pytest.raises(UsageError, match="an answer follows a question"):
        store.add_answer("ann", name, answer, Answer(model="alpha"), None)
    with pytest.raises(UsageError, match="must not be empty"):
        store.rename("ann", name, "  ")


def test_a_deleted_conversation_is_in_no_file(store):
    kept = store.create("ann", "kept", {})
    exchange(store, "ann", kept, None, "remains", "here")
    name = store.create("ann", "secretum titulus", {})
    exchange(store, "ann", name, None, "secretum quaestio", "secretum responsum")
    folder = store._database.path.parent
    assert any(b"secretum" in path.read_bytes() for path in folder.iterdir())
    store.delete("ann", name)
    assert [path.name for path in folder.iterdir() if b"secretum" in path.read_bytes()] == []
    assert [match.conversation.title for match in store.search("ann", "remains")] == ["kept"]


def test_conversations_are_read_one_by_one_and_deleted_ones_left_out(store):
    names = [store.create("ann", title, {}) for title in ("one", "two", "three")]
    each = store.each("ann")
    assert next(each).title == "one"
    store.delete("ann", names[1])
    assert [conversation.title for conversation in each] == ["three"]


def test_a_file_of_a_newer_version_is_refused(store):
    store.close()
    with sqlite3.connect(store._database.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="version 99"):
        Conversations(store._database.path)


def test_a_long_conversation_is_read_in_a_moment(store):
    name = store.create("ann", "t", {})
    parent = None
    for number in range(25):
        _, parent = exchange(store, "ann", name, parent, f"question {number}", "answer " * 500)
    start = time.perf_counter()
    assert len(store.get("ann", name).path()) == 50
    assert len(store.search("ann", "answer")) == 1
    assert time.perf_counter() - start < 1
