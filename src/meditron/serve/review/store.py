"""The database of reviews: `review.db` in the folder of the server's data."""

import json
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.core.errors import SourceError, UsageError
from meditron.serve.review.blinding import pair_answers
from meditron.serve.review.questions import Question, questions_sha256
from meditron.serve.review.ratings import Change, Values, is_complete
from meditron.serve.review.records import (
    Answer,
    Item,
    ItemLink,
    NotOpenError,
    RatedItem,
    Review,
    ReviewModel,
    ReviewSetup,
)
from meditron.serve.review.rubric import Rubric
from meditron.store.database import Database

__all__ = ["DATABASE", "ReviewStore"]

DATABASE = "review.db"
"""File in the folder of the server's data."""
_SEED_BITS = 63  # the most that SQLite stores: a shorter seed could be found by trying all of them
# A change of a rating is a further row of `ratings`; the newest one counts. Values and identities are JSON.
_MIGRATIONS = (
    """
    CREATE TABLE reviews (
      id INTEGER PRIMARY KEY,
      name TEXT NOT NULL UNIQUE,
      created REAL NOT NULL,
      creator TEXT NOT NULL,
      closed REAL,
      closer TEXT,
      seed INTEGER NOT NULL,
      setup TEXT NOT NULL,
      questions_sha256 TEXT NOT NULL,
      rubric TEXT NOT NULL,
      rubric_sha256 TEXT NOT NULL
    ) STRICT;
    CREATE TABLE models (
      id INTEGER PRIMARY KEY,
      review INTEGER NOT NULL REFERENCES reviews (id),
      place INTEGER NOT NULL,
      label TEXT NOT NULL,
      identity TEXT NOT NULL,
      UNIQUE (review, place),
      UNIQUE (review, label)
    ) STRICT;
    CREATE TABLE questions (
      id INTEGER PRIMARY KEY,
      review INTEGER NOT NULL REFERENCES reviews (id),
      place INTEGER NOT NULL,
      key TEXT NOT NULL,
      text TEXT NOT NULL,
      category TEXT,
      subkind TEXT,
      UNIQUE (review, key)
    ) STRICT;
    CREATE TABLE answers (
      id INTEGER PRIMARY KEY,
      question INTEGER NOT NULL REFERENCES questions (id),
      model INTEGER NOT NULL REFERENCES models (id),
      text TEXT NOT NULL,
      stop TEXT,
      UNIQUE (question, model)
    ) STRICT;
    CREATE TABLE raters (
      id INTEGER PRIMARY KEY,
      review INTEGER NOT NULL REFERENCES reviews (id),
      name TEXT NOT NULL,
      started REAL NOT NULL,
      UNIQUE (review, name)
    ) STRICT;
    CREATE TABLE items (
      id INTEGER PRIMARY KEY,
      token TEXT NOT NULL UNIQUE,
      rater INTEGER NOT NULL REFERENCES raters (id),
      place INTEGER NOT NULL,
      left_answer INTEGER NOT NULL REFERENCES answers (id),
      right_answer INTEGER NOT NULL REFERENCES answers (id),
      complete INTEGER NOT NULL DEFAULT 0,
      UNIQUE (rater, place)
    ) STRICT;
    CREATE TABLE ratings (
      id INTEGER PRIMARY KEY,
      item INTEGER NOT NULL REFERENCES items (id),
      side TEXT NOT NULL CHECK (side IN ('left', 'right', 'pair')),
      field TEXT NOT NULL,
      value TEXT NOT NULL,
      saved REAL NOT NULL
    ) STRICT;
    CREATE INDEX ratings_of_item ON ratings (item, id);
    """,
)


class ReviewStore(Database):
    """Reviews, their answers, raters and ratings."""

    def __init__(self, folder: Path) -> None:
        """Open or create the database in the folder of the server's data. Errors are those of `Database`."""
        super().__init__(folder / DATABASE, _MIGRATIONS)

    def create(self, setup: ReviewSetup) -> Review:
        """Create a review, or return the one of this name if it was created from the same.

        Raises:
            UsageError: the name or a label is invalid, or there is another review of this name.
        """
        setup.check()
        with self.transaction() as connection:
            row = connection.execute("SELECT * FROM reviews WHERE name = ?", (setup.name,)).fetchone()
            if row is None:
                _insert_review(connection, setup)
            elif (different := _difference(connection, row, setup)) is not None:
                raise UsageError(
                    f"there is a review {setup.name} already, with {different}", hint="choose another name"
                )
        return self.get(setup.name)

    def reviews(self) -> list[Review]:
        """Return all reviews, the newest first."""
        return [_review(row) for row in self.rows(f"{_REVIEWS} ORDER BY created DESC, id DESC")]

    def get(self, name: str) -> Review:
        """Return a review; SourceError if there is none of this name."""
        for row in self.rows(f"{_REVIEWS} WHERE name = ?", (name,)):
            return _review(row)
        raise SourceError(f"there is no review {name!r:.80}", hint="meditron review list")

    def models(self, review: Review) -> list[ReviewModel]:
        """Return the models in the order of the results."""
        rows = self.rows("SELECT * FROM models WHERE review = ? ORDER BY place", (review.id,))
        return [ReviewModel(row["id"], row["label"], json.loads(row["identity"])) for row in rows]

    def unanswered(self, review: Review, model: ReviewModel) -> list[Question]:
        """Return the questions that a model has no answer to yet, in the order of the file."""
        rows = self.rows(
            "SELECT * FROM questions WHERE review = ? AND NOT EXISTS (SELECT 1 FROM answers "
            "WHERE question = questions.id AND model = ?) ORDER BY place",
            (review.id, model.id),
        )
        return [_question(row) for row in rows]

    def set_identity(self, model: ReviewModel, identity: Mapping[str, Any]) -> None:
        """Record where a model's answers come from.

        Raises:
            UsageError: the answers that are stored come from another model.
        """
        with self.transaction() as connection:
            # Read again, because another process may have stored answers since.
            row = connection.execute(
                "SELECT identity, EXISTS (SELECT 1 FROM answers WHERE model = models.id) AS has_answers "
                "FROM models WHERE id = ?",
                (model.id,),
            ).fetchone()
            known = json.loads(row["identity"])
            changed = [key for key in {*known, *identity} if known.get(key) != identity.get(key)]
            if row["has_answers"] and changed:
                raise UsageError(
                    f"{model.label}: not the model that gave the first answers: "
                    f"{', '.join(sorted(changed))} changed",
                    hint="create another review",
                )
            connection.execute(
                "UPDATE models SET identity = ? WHERE id = ?",
                (json.dumps(dict(identity), sort_keys=True), model.id),
            )

    def add_answers(
        self, review: Review, model: ReviewModel, answers: Iterable[tuple[str, str, str | None]]
    ) -> None:
        """Store answers: id of the question, text, stop reason. An answer that is stored already stays."""
        with self.transaction() as connection:
            for key, text, stop in answers:
                connection.execute(
                    "INSERT INTO answers (question, model, text, stop) "
                    "SELECT id, ?, ?, ? FROM questions WHERE review = ? AND key = ? ON CONFLICT DO NOTHING",
                    # Half of a surrogate pair, which JSON escapes can write, has no UTF-8 form.
                    (model.id, text.encode(errors="replace").decode().strip(), stop, review.id, key),
                )

    def answers(self, review: Review) -> list[Answer]:
        """Return all answers by question and model."""
        rows = self.rows(
            "SELECT questions.*, answers.text AS answer, models.label FROM answers "
            "JOIN questions ON questions.id = answers.question JOIN models ON models.id = answers.model "
            "WHERE questions.review = ? ORDER BY questions.place, models.place",
            (review.id,),
        )
        return [Answer(_question(row), row["label"], row["answer"]) for row in rows]

    def start(self, review: Review, rater: str) -> None:
        """Give a rater their comparisons; does nothing if they have them.

        Raises:
            NotOpenError: the review is closed or incomplete, and the rater has not started.
        """
        with self.transaction() as connection:
            known = "SELECT 1 FROM raters WHERE review = ? AND name = ?"
            if connection.execute(known, (review.id, rater)).fetchone() is None:
                _require_open(connection, review)
                _insert_items(connection, review, rater)

    def items(self, review: Review, rater: str) -> list[ItemLink]:
        """Return a rater's comparisons in the rater's order; none if the rater has not started."""
        rows = self.rows(
            "SELECT token, place, complete FROM items JOIN raters ON raters.id = items.rater "
            "WHERE review = ? AND name = ? ORDER BY place",
            (review.id, rater),
        )
        return [ItemLink(row["token"], row["place"], bool(row["complete"])) for row in rows]

    def item(self, review: Review, rater: str, token: str) -> Item:
        """Return one comparison of a rater; SourceError if the rater has no such one."""
        with self.snapshot() as connection:
            row = _item_row(connection, review, rater, token)
            return _item(row, _values_of(connection, "items.id = ?", row["id"]))

    def save(self, review: Review, rater: str, token: str, changes: Sequence[Change]) -> Item:
        """Store changes of a comparison, all or none, and return it. Values that do not change are skipped.

        Raises:
            NotOpenError: the review is closed.
            SourceError: the rater has no such comparison.
        """
        with self.transaction() as connection:
            row = _item_row(connection, review, rater, token)
            _require_open(connection, review)
            before = _values_of(connection, "items.id = ?", row["id"])[row["id"]]
            for change in changes:
                if before.get(change.side, {}).get(change.field) != change.value:
                    connection.execute(
                        "INSERT INTO ratings (item, side, field, value, saved) VALUES (?, ?, ?, ?, ?)",
                        (row["id"], change.side, change.field, json.dumps(change.value), time.time()),
                    )
            item = _item(row, _values_of(connection, "items.id = ?", row["id"]))
            connection.execute(
                "UPDATE items SET complete = ? WHERE id = ?",
                (is_complete(item.values, review.rubric), row["id"]),
            )
            return item

    def progress(self, review: Review) -> dict[str, dict[str, Any]]:
        """Return rater → `rater`, number of `complete` and of all `comparisons`; raters as they started."""
        rows = self.rows(
            "SELECT name AS rater, sum(complete) AS complete, count(*) AS comparisons FROM raters "
            "JOIN items ON items.rater = raters.id WHERE review = ? GROUP BY raters.id ORDER BY raters.id",
            (review.id,),
        )
        return {row["rater"]: dict(row) for row in rows}

    def close_review(self, review: Review, person: str) -> Review:
        """End the rating of a review, which shows the models' names; does nothing if it is closed."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE reviews SET closed = ?, closer = ? WHERE id = ? AND closed IS NULL",
                (time.time(), person, review.id),
            )
        return self.get(review.name)

    def rated_items(self, review: Review) -> list[RatedItem]:
        """Return all comparisons with the models' names, by rater and place.

        Raises:
            NotOpenError: the review is not closed.
        """
        review.require_closed()
        with self.snapshot() as connection:
            rows = connection.execute(_RATED, (review.id,)).fetchall()
            values = _values_of(connection, "raters.review = ?", review.id)
        return [
            RatedItem(
                rater=row["rater"],
                token=row["token"],
                place=row["place"],
                question=_question(row),
                left=row["left_label"],
                right=row["right_label"],
                values=values[row["item"]],
                changes=row["saved_values"] - row["fields"],
                saved=row["saved"],
            )
            for row in rows
        ]


_REVIEWS = (
    "SELECT *, (SELECT count(*) FROM questions WHERE review = reviews.id) AS questions, "
    "(SELECT count(*) FROM questions JOIN models ON models.review = questions.review "
    "WHERE questions.review = reviews.id AND NOT EXISTS "
    "(SELECT 1 FROM answers WHERE question = questions.id AND model = models.id)) AS missing FROM reviews"
)
_ITEMS = (
    "SELECT items.id, items.token, items.place, questions.text AS question, left_one.text AS left_text, "
    "right_one.text AS right_text FROM items JOIN raters ON raters.id = items.rater "
    "JOIN answers AS left_one ON left_one.id = items.left_answer "
    "JOIN answers AS right_one ON right_one.id = items.right_answer "
    "JOIN questions ON questions.id = left_one.question"
)
_VALUES = (
    "SELECT ratings.item, side, field, value FROM ratings JOIN items ON items.id = ratings.item "
    "JOIN raters ON raters.id = items.rater"
)
_RATED = (
    "SELECT items.id AS item, items.token, items.place, raters.name AS rater, questions.key, questions.text, "
    "questions.category, questions.subkind, left_model.label AS left_label, "
    "right_model.label AS right_label, "
    "(SELECT count(*) FROM ratings WHERE ratings.item = items.id) AS saved_values, "
    "(SELECT count(DISTINCT side || field) FROM ratings WHERE ratings.item = items.id) AS fields, "
    "(SELECT max(saved) FROM ratings WHERE ratings.item = items.id) AS saved "
    "FROM items JOIN raters ON raters.id = items.rater "
    "JOIN answers AS left_one ON left_one.id = items.left_answer "
    "JOIN models AS left_model ON left_model.id = left_one.model "
    "JOIN answers AS right_one ON right_one.id = items.right_answer "
    "JOIN models AS right_model ON right_model.id = right_one.model "
    "JOIN questions ON questions.id = left_one.question "
    "WHERE raters.review = ? ORDER BY raters.id, items.place"
)


def _insert_review(connection: sqlite3.Connection, setup: ReviewSetup) -> None:
    seed = secrets.randbits(_SEED_BITS) if setup.seed is None else setup.seed
    cursor = connection.execute(
        "INSERT INTO reviews (name, created, creator, seed, setup, questions_sha256, rubric, rubric_sha256) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            setup.name,
            time.time(),
            setup.creator,
            seed,
            _settings_json(setup),
            questions_sha256(setup.questions),
            setup.rubric,
            setup.rubric_sha256,
        ),
    )
    review = cursor.lastrowid
    connection.executemany(
        "INSERT INTO models (review, place, label, identity) VALUES (?, ?, ?, '{}')",
        [(review, place, label) for place, label in enumerate(setup.models)],
    )
    connection.executemany(
        "INSERT INTO questions (review, place, key, text, category, subkind) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (review, place, each.key, each.text, each.category, each.subkind)
            for place, each in enumerate(setup.questions)
        ],
    )


def _difference(connection: sqlite3.Connection, row: sqlite3.Row, setup: ReviewSetup) -> str | None:
    """Return what a stored review has another of than a setup; None if it was created from the same."""
    models = connection.execute("SELECT label FROM models WHERE review = ? ORDER BY place", (row["id"],))
    compared = {
        "other questions": row["questions_sha256"] == questions_sha256(setup.questions),
        "other models": [each["label"] for each in models] == list(setup.models),
        "another system prompt, sampling or source of answers": row["setup"] == _settings_json(setup),
        "another rubric": row["rubric_sha256"] == setup.rubric_sha256,
        "another seed": setup.seed in (None, row["seed"]),
    }
    return next((name for name, equal in compared.items() if not equal), None)


def _settings_json(setup: ReviewSetup) -> str:
    return json.dumps(dict(setup.settings), sort_keys=True)


def _review(row: sqlite3.Row) -> Review:
    return Review(
        id=row["id"],
        name=row["name"],
        created=row["created"],
        creator=row["creator"],
        closed=row["closed"],
        closer=row["closer"],
        seed=row["seed"],
        settings=json.loads(row["setup"]),
        questions_sha256=row["questions_sha256"],
        rubric=Rubric.parse(row["rubric"]),
        rubric_sha256=row["rubric_sha256"],
        questions=row["questions"],
        missing=row["missing"],
    )


def _question(row: sqlite3.Row) -> Question:
    return Question(row["key"], row["text"], row["category"], row["subkind"])


def _require_open(connection: sqlite3.Connection, review: Review) -> None:
    # Read again, because the review may have been closed since.
    state = _review(connection.execute(f"{_REVIEWS} WHERE id = ?", (review.id,)).fetchone()).state
    if state == "closed":
        raise NotOpenError(f"the review {review.name} is closed")
    if state == "incomplete":
        raise NotOpenError(f"the review {review.name} is being prepared: answers are missing")


def _insert_items(connection: sqlite3.Connection, review: Review, rater: str) -> None:
    cursor = connection.execute(
        "INSERT INTO raters (review, name, started) VALUES (?, ?, ?)", (review.id, rater, time.time())
    )
    rows = connection.execute(
        "SELECT answers.id, answers.model, answers.question FROM answers "
        "JOIN questions ON questions.id = answers.question WHERE review = ?",
        (review.id,),
    )
    answers = {(row["question"], row["model"]): row["id"] for row in rows}
    questions, models = (
        [row["id"] for row in connection.execute(query, (review.id,))]
        for query in (
            "SELECT id FROM questions WHERE review = ? ORDER BY place",
            "SELECT id FROM models WHERE review = ? ORDER BY place",
        )
    )
    pairings = pair_answers(questions, models, review.seed, rater)
    connection.executemany(
        "INSERT INTO items (token, rater, place, left_answer, right_answer) VALUES (?, ?, ?, ?, ?)",
        [
            (
                secrets.token_urlsafe(12),
                cursor.lastrowid,
                place,
                answers[pairing.question, pairing.left],
                answers[pairing.question, pairing.right],
            )
            for place, pairing in enumerate(pairings)
        ],
    )


def _item_row(connection: sqlite3.Connection, review: Review, rater: str, token: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        _ITEMS + " WHERE items.token = ? AND raters.review = ? AND raters.name = ?",
        (token, review.id, rater),
    ).fetchone()
    if row is None:
        raise SourceError("there is no such comparison for this rater")
    return row


def _item(row: sqlite3.Row, values: Mapping[int, Values]) -> Item:
    return Item(
        row["token"], row["place"], row["question"], row["left_text"], row["right_text"], values[row["id"]]
    )


def _values_of(connection: sqlite3.Connection, condition: str, argument: object) -> dict[int, Values]:
    """Return the current values of the items for which a condition is true; items without any are empty."""
    rows: Iterator[sqlite3.Row] = connection.execute(
        f"{_VALUES} WHERE {condition} ORDER BY ratings.id", (argument,)
    )
    found: dict[int, dict[Any, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["item"]][row["side"]][row["field"]] = json.loads(row["value"])
    values: defaultdict[int, Values] = defaultdict(dict)
    for item, sides in found.items():
        values[item] = {
            side: {name: value for name, value in fields.items() if value is not None}
            for side, fields in sides.items()
        }
    return values
