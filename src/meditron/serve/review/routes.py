"""Pages and API of reviews: `/review` and `/api/review`.

Until a review is closed, no response contains a model's name, path or hash, or anything else but the answers
themselves that tells the two sides apart: results and export answer 409.
"""

from threading import Lock
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from meditron.core.config import Config
from meditron.core.errors import RoleError, SourceError, UsageError
from meditron.serve.bodies_as import with_body
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.review import views
from meditron.serve.review.export import analyse_review, export_rows, result_json, to_csv
from meditron.serve.review.ratings import missing_fields, read_changes, read_rater_name
from meditron.serve.review.records import Item, ItemLink, NotOpenError, Review
from meditron.serve.review.store import ReviewStore
from meditron.store.jsonl import encode_row

__all__ = ["routes"]

_opening = Lock()


class Start(Config):
    """Who starts to rate."""

    rater: str | None = None
    """Name that an admin has chosen."""


def _store(request: Request) -> ReviewStore:
    """Return the database, which the first request opens."""
    with _opening:
        store: ReviewStore | None = getattr(request.app.state, "review", None)
        if store is None:
            store = request.app.state.review = ReviewStore(state_of(request).data)
        return store


def _rater(request: Request, given: str | None) -> str:
    """Return the name under which a person rates: its own, or the one that an admin has chosen.

    Several people may use a server with one key, or with none. They are one person to it, which has every
    role, and tell themselves apart by names.
    """
    person = person_of(request)
    person.require("review")
    if given is None or given == person.name:
        return person.name
    if "admin" not in person.roles:
        raise RoleError(f"{person.name} cannot rate as somebody else")
    return read_rater_name(given)


def _audit(request: Request, event: str, **fields: str | int) -> None:
    if (records := state_of(request).records) is not None:
        records.audit_event(event, person=person_of(request).name, **fields)


def _review(request: Request) -> Review:
    return _store(request).get(request.path_params["name"])


def _overview(request: Request) -> list[dict[str, Any]]:
    """Return each review with the progress of the person, for an admin of every rater."""
    person, store = person_of(request), _store(request)
    if "admin" not in person.roles:
        person.require("review")
    return [
        {
            "review": review.name,
            "state": review.state,
            "questions": review.questions,
            "raters": [
                progress
                for rater, progress in store.progress(review).items()
                if "admin" in person.roles or rater == person.name
            ],
        }
        for review in store.reviews()
    ]


def list_reviews(request: Request) -> Response:
    """Return the reviews."""
    return JSONResponse({"reviews": _overview(request)})


@with_body(Start)
def start(request: Request, body: Start) -> Response:
    """Give a rater their comparisons, and return the address of the first open one."""
    rater, review, store = _rater(request, body.rater), _review(request), _store(request)
    store.start(review, rater)
    return JSONResponse({**store.progress(review)[rater], "next": _address(review, rater)})


def list_items(request: Request) -> Response:
    """Return a rater's comparisons in the rater's order."""
    review = _review(request)
    items = _own_items(request, review, _rater(request, request.query_params.get("rater")))
    return JSONResponse(
        {
            "review": review.name,
            "items": [{"item": item.token, "complete": item.complete} for item in items],
        }
    )


def read_item(request: Request) -> Response:
    """Return a comparison: the question, both answers, and what the rater has saved."""
    review, rater = _review(request), _rater(request, request.query_params.get("rater"))
    item = _store(request).item(review, rater, request.path_params["token"])
    return JSONResponse(_item_json(item, review))


@with_body(dict)
def save_item(request: Request, body: dict[str, Any]) -> Response:
    """Save ratings of a comparison; any part of them."""
    review, rater = _review(request), _rater(request, request.query_params.get("rater"))
    store, changes = _store(request), read_changes(body, review.rubric)
    item = store.save(review, rater, request.path_params["token"], changes)
    missing = missing_fields(item.values, review.rubric)
    return JSONResponse({"missing": missing, **store.progress(review)[rater]})


def close(request: Request) -> Response:
    """End the rating."""
    person_of(request).require("admin")
    review = _store(request).close_review(_review(request), person_of(request).name)
    _audit(request, "close", name=review.name)
    return JSONResponse({"review": review.name, "state": review.state})


def read_results(request: Request) -> Response:
    """Return the results of a closed review."""
    person_of(request).require("admin")
    return JSONResponse(result_json(_store(request), _review(request)))


def read_export(request: Request) -> Response:
    """Return the ratings of a closed review as JSON lines or CSV."""
    person_of(request).require("admin")
    form = request.query_params.get("format", "jsonl")
    if form not in ("jsonl", "csv"):
        raise UsageError(f"the format must be jsonl or csv, got {form!r:.40}")
    pseudonyms = request.query_params.get("pseudonyms", "") in ("1", "true")
    review = _review(request)
    rows = export_rows(_store(request), review, pseudonyms=pseudonyms)
    _audit(request, "export", name=review.name, rows=len(rows), format=form)
    content = b"".join(map(encode_row, rows)) if form == "jsonl" else to_csv(rows)
    kind = "text/csv" if form == "csv" else "application/jsonl"
    disposition = f'attachment; filename="{review.name}.{form}"'
    return Response(content, media_type=kind, headers={"Content-Disposition": disposition})


def list_page(request: Request) -> Response:
    """Show the reviews with the progress."""
    return render_page(
        request,
        "review/list.html",
        title="Reviews",
        reviews=_overview(request),
        person_is_admin="admin" in person_of(request).roles,
    )


def review_page(request: Request) -> Response:
    """Show a comparison; before the first one, the start; after the last one, all comparisons."""
    review, given = _review(request), request.query_params.get("rater")
    rater = _rater(request, given)
    items = _store(request).items(review, rater) if given is not None else []
    if not items:
        return _start_page(request, review, given)
    if review.state == "closed":
        raise NotOpenError(f"the review {review.name} is closed")
    token = request.query_params.get("item")
    if token is None and (open_item := next((item for item in items if not item.complete), None)):
        return RedirectResponse(_address(review, rater, open_item.token), 303)
    shown = _store(request).item(review, rater, token) if token else None
    links = [
        {
            "address": _address(review, rater, item.token),
            "complete": item.complete,
            "here": item.token == token,
        }
        for item in items
    ]
    return render_page(
        request,
        "review/item.html" if shown else "review/done.html",
        title=f"Review {review.name}",
        review=review,
        rater=rater,
        links=links,
        complete=sum(bool(link["complete"]) for link in links),
        **(views.item_context(shown, items, review) if shown else {}),
    )


def _start_page(request: Request, review: Review, given: str | None) -> Response:
    person = person_of(request)
    store = _store(request)
    if given is None and "admin" not in person.roles and store.items(review, person.name):
        return RedirectResponse(_address(review, person.name), 303)
    return render_page(
        request,
        "review/start.html",
        title=f"Review {review.name}",
        review=review,
        rubric=review.rubric,
        chooses_name="admin" in person.roles,
        rater=given or "",
        known=[
            {**progress, "address": _address(review, rater)}
            for rater, progress in store.progress(review).items()
            if "admin" in person.roles
        ],
    )


def results_page(request: Request) -> Response:
    """Show the results of a closed review, or the progress and a button that closes it."""
    person_of(request).require("admin")
    review, store = _review(request), _store(request)
    if review.state != "closed":
        return render_page(
            request,
            "review/close.html",
            title=f"Review {review.name}",
            review=review,
            raters=store.progress(review).values(),
        )
    result = analyse_review(store, review)
    return render_page(
        request,
        "review/results.html",
        title=f"Results of {review.name}",
        review=review,
        **views.result_context(result, review, store.models(review)),
    )


def _own_items(request: Request, review: Review, rater: str) -> list[ItemLink]:
    items = _store(request).items(review, rater)
    if not items:
        raise SourceError(f"{rater} has not started the review {review.name}")
    return items


def _item_json(item: Item, review: Review) -> dict[str, Any]:
    pair = item.values.get("pair", {})
    return {
        "item": item.token,
        "place": item.place,
        "question": item.question,
        "left": item.left,
        "right": item.right,
        "ratings": {
            "left": dict(item.values.get("left", {})),
            "right": dict(item.values.get("right", {})),
            **pair,
        },
        "missing": missing_fields(item.values, review.rubric),
    }


def _address(review: Review, rater: str, token: str | None = None) -> str:
    """Return the address of a rater's page in a review; without a token, of the first open comparison."""
    query = {"rater": rater} | ({} if token is None else {"item": token})
    return f"/review/{review.name}?{urlencode(query)}"


routes: list[Route | Mount] = [
    Route("/review", list_page),
    Route("/review/{name}", review_page),
    Route("/review/{name}/results", results_page),
    Route("/api/review", list_reviews),
    Route("/api/review/{name}/raters", start, methods=["POST"]),
    Route("/api/review/{name}/items", list_items),
    Route("/api/review/{name}/items/{token}", read_item),
    Route("/api/review/{name}/items/{token}", save_item, methods=["POST"]),
    Route("/api/review/{name}/close", close, methods=["POST"]),
    Route("/api/review/{name}/results", read_results),
    Route("/api/review/{name}/export", read_export),
]
