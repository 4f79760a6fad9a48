"""The tables of the database of reviews."""

__all__ = ["MIGRATIONS"]

_FIRST = """
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
"""

MIGRATIONS = (_FIRST,)
"""Scripts for `meditron.store.database.Database`. A change of a rating is a further row of `ratings`; the
newest one counts. Values and identities are JSON."""
