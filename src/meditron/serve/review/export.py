"""Rows of a closed review for other programs: one for each rating of an answer by a person."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from meditron.serve.log_export import csv_line
from meditron.serve.review.answers import names_a_model
from meditron.serve.review.ratings import (
    BIAS_KIND,
    COMMENT,
    HARM_KIND,
    HARMFUL,
    PAIR,
    PREFERENCE,
    is_complete,
)
from meditron.serve.review.records import RatedItem, Review
from meditron.serve.review.statistics import ReviewResult, analyse
from meditron.serve.review.store import ReviewStore

__all__ = ["analyse_review", "export_rows", "result_json", "to_csv"]

_TEXTS = ("question_text", "answer")
"""Keys that a table leaves out."""


def analyse_review(store: ReviewStore, review: Review) -> ReviewResult:
    """Compute the results of a closed review; NotOpenError if it is not closed."""
    labels = [model.label for model in store.models(review)]
    return analyse(store.rated_items(review), labels, review.rubric)


def result_json(store: ReviewStore, review: Review) -> dict[str, Any]:
    """Return the results of a closed review as plain JSON.

    Raises:
        NotOpenError: the review is not closed.
    """
    result, models = analyse_review(store, review), store.models(review)
    labels, identities = [each.label for each in models], [each.identity for each in models]
    return {
        "review": review.name,
        "questions": review.questions,
        "questions_sha256": review.questions_sha256,
        "rubric_version": review.rubric.version,
        "rubric_sha256": review.rubric_sha256,
        "seed": review.seed,
        "created": _time(review.created),
        "closed": _time(review.closed),
        "settings": dict(review.settings),
        "identities": {model.label: dict(model.identity) for model in models},
        **asdict(result),
        "names_a_model": [
            {"question": answer.question.key, "model": answer.model}
            for answer in store.answers(review)
            if names_a_model(answer.text, labels, identities)
        ],
    }


def export_rows(store: ReviewStore, review: Review, *, pseudonyms: bool) -> list[dict[str, Any]]:
    """Return a row for each answer that a rater has rated or compared.

    Args:
        store: The database.
        review: A closed review.
        pseudonyms: Replace the raters' names by `rater-1`, `rater-2`, … in a random order.

    Raises:
        NotOpenError: the review is not closed.
    """
    items, models = store.rated_items(review), store.models(review)
    texts = {(answer.question.key, answer.model): answer.text for answer in store.answers(review)}
    labels, identities = [each.label for each in models], [each.identity for each in models]
    named = {key for key, text in texts.items() if names_a_model(text, labels, identities)}
    names = _pseudonyms(items) if pseudonyms else {}
    if pseudonyms:  # the database has them in the order in which the raters started
        items.sort(key=lambda item: [*names].index(item.rater))
    return [
        {
            "review": review.name,
            "rater": names.get(item.rater, item.rater),
            **_answer_row(item, model, review),
            "names_a_model": (item.question.key, model) in named,
            "question_text": item.question.text,
            "answer": texts[item.question.key, model],
        }
        for item in items
        if any(item.values.values())
        for model in (item.left, item.right)
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV without their long texts."""
    if not rows:
        return b""
    names = [key for key in rows[0] if key not in _TEXTS]
    return b"".join(csv_line(cells) for cells in (names, *([row[name] for name in names] for row in rows)))


def _answer_row(item: RatedItem, model: str, review: Review) -> dict[str, Any]:
    values, pair = item.answer_values(model), item.values.get(PAIR, {})
    other = item.right if model == item.left else item.left
    preferred = item.preferred
    return {
        "question": item.question.key,
        "category": item.question.category,
        "subkind": item.question.subkind,
        "model": model,
        "other_model": other,
        "side": "left" if model == item.left else "right",
        "place": item.place,
        **{scale.key: values.get(scale.key) for scale in review.rubric.scales},
        **{name: values.get(name) for name in (HARMFUL, HARM_KIND, BIAS_KIND, COMMENT)},
        PREFERENCE: "this" if preferred == model else "other" if preferred == other else preferred,
        "pair_comment": pair.get(COMMENT),
        "complete": is_complete(item.values, review.rubric),
        "changes": item.changes,
        "saved": _time(item.saved),
    }


def _pseudonyms(items: Sequence[RatedItem]) -> dict[str, str]:
    """Return rater → pseudonym. The order must not follow from the review's seed, which the results show."""
    tokens = {item.rater: item.token for item in items if item.place == 0}
    raters = sorted(tokens, key=tokens.__getitem__)
    return {rater: f"rater-{number}" for number, rater in enumerate(raters, start=1)}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
