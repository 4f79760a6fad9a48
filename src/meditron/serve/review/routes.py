"""Pages and API of reviews: `/review` and `/api/review`.

Until a review is closed, no response contains a model's name, path or hash, or anything else but the answers
themselves that tells the two sides apart: results and export answer 409.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from meditron.core.errors import MeditronError, UsageError
from meditron.serve.errors import RequestError, error_body, error_response
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.review import views
from meditron.serve.review.export import analyse_review, export_rows, result_json, to_csv
from meditron.serve.review.ratings import missing_fields, read_changes, read_rater_name
from meditron.serve.review.records import Item, ItemLink, NotOpenError, Review
from meditron.serve.review.store import ReviewStore
from meditron.store.jsonl import encode_row
from meditron.store.people import Role

__all__ = ["routes"]

_NO_STORE = {"Cache-Control": "no-store"}
"""The browser loads such a page again when the user goes back to it, so it shows what is saved."""
_opening = Lock()
Endpoint = Callable[[Request], Awaitable[Response]]


def _store(request: Request) -> ReviewStore:
    """Return the database, which the first request opens."""
    with _opening:
        store: ReviewStore | None = getattr(request.app.state, "review", None)
        if store is None:
            store = request.app.state.review = ReviewStore(state_of(request).data)
        return store


def _require(request: Request, role: Role) -> None:
    try:
        person_of(request).require(role)
    except UsageError as error:
        raise RequestError(error.message, status=403) from error


def _rater(request: Request, given: object) -> str:
    """Return the name under which a person rates: its own, or the one that an admin has chosen.

    Several people may use a server with one key, or with none. They are one person to it, which has every
    role, and tell themselves apart by names.
    """
    _require(request, "review")
    person = person_of(request)
    if given is None or given == person.name:
        return person.name
    if "admin" not in person.roles:
        raise RequestError(f"{person.name} cannot rate as somebody else", status=403)
    return read_rater_name(given)


def _api(work: Callable[[Request, Any], Response]) -> Endpoint:
    """Make an endpoint of a function of a request and its JSON body; errors are JSON too."""

    @wraps(work)
    async def endpoint(request: Request) -> Response:
        try:
            body = await _read_json(request) if request.method == "POST" else None
            response = await run_in_threadpool(work, request, body)
        except MeditronError as error:
            response = error_response(error)
        response.headers.update(_NO_STORE)
        return response

    return endpoint


def _page(work: Callable[[Request], Response]) -> Endpoint:
    """Make an endpoint of a function that returns a page; errors are pages too."""

    @wraps(work)
    async def endpoint(request: Request) -> Response:
        try:
            response = await run_in_threadpool(work, request)
        except MeditronError as error:
            status, _ = error_body(error)
            response = render_page(request, "review/error.html", title="Review", status=status, error=error)
        response.headers.update(_NO_STORE)
        return response

    return endpoint


async def _read_json(request: Request) -> Any:  # noqa: ANN401  # any JSON
    try:
        return await request.json()
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON") from error


def _review(request: Request) -> Review:
    return _store(request).get(request.path_params["name"])


def _overview(request: Request) -> list[dict[str, Any]]:
    """Return each review with the progress of the person, for an admin of every rater."""
    person = person_of(request)
    if "admin" not in person.roles:
        _require(request, "review")
    rows = []
    for review in _store(request).reviews():
        raters = _progress(request, review)
        if "admin" not in person.roles:
            raters = [each for each in raters if each["rater"] == person.name]
        row = {"review": review.name, "state": review.state, "questions": review.questions}
        rows.append({**row, "raters": raters})
    return rows


def _progress(request: Request, review: Review) -> list[dict[str, Any]]:
    rows = []
    for name in _store(request).raters(review):
        complete, comparisons = _store(request).progress(review, name)
        rows.append({"rater": name, "complete": complete, "comparisons": comparisons})
    return rows


@_api
def list_reviews(request: Request, _: object) -> Response:
    """Return the reviews."""
    return JSONResponse({"reviews": _overview(request)})


@_api
def start(request: Request, body: object) -> Response:
    """Give a rater their comparisons, and return the address of the first open one."""
    if not isinstance(body, dict) or set(body) - {"rater"}:
        raise UsageError('the body must be {"rater": NAME} or {}')
    rater, review = _rater(request, body.get("rater")), _review(request)
    _store(request).start(review, rater)
    complete, comparisons = _store(request).progress(review, rater)
    return JSONResponse(
        {
            "rater": rater,
            "complete": complete,
            "comparisons": comparisons,
            "page": _address(review, rater),
        }
    )


@_api
def list_items(request: Request, _: object) -> Response:
    """Return a rater's comparisons in the rater's order."""
    review = _review(request)
    items = _own_items(request, review, _rater(request, request.query_params.get("rater")))
    return JSONResponse(
        {
            "review": review.name,
            "items": [{"item": item.token, "complete": item.complete} for item in items],
        }
    )


@_api
def read_item(request: Request, _: object) -> Response:
    """Return a comparison: the question, both answers, and what the rater has saved."""
    review, rater = _review(request), _rater(request, request.query_params.get("rater"))
    item = _store(request).item(review, rater, request.path_params["token"])
    return JSONResponse(_item_json(item, review))


@_api
def save_item(request: Request, body: object) -> Response:
    """Save ratings of a comparison; any part of them."""
    review, rater = _review(request), _rater(request, request.query_params.get("rater"))
    changes = read_changes(body, review.rubric)
    item = _store(request).save(review, rater, request.path_params["token"], changes)
    complete, comparisons = _store(request).progress(review, rater)
    return JSONResponse(
        {
            "missing": missing_fields(item.values, review.rubric),
            "complete": complete,
            "comparisons": comparisons,
        }
    )


@_api
def close(request: Request, _: object) -> Response:
    """End the rating."""
    _require(request, "admin")
    review = _store(request).close(_review(request), person_of(request).name)
    return JSONResponse({"review": review.name, "state": review.state})


@_api
def read_results(request: Request, _: object) -> Response:
    """Return the results of a closed review."""
    _require(request, "admin")
    return JSONResponse(result_json(_store(request), _review(request)))


@_api
def read_export(request: Request, _: object) -> Response:
    """Return the ratings of a closed review as JSON lines or CSV."""
    _require(request, "admin")
    form = request.query_params.get("format", "jsonl")
    if form not in ("jsonl", "csv"):
        raise UsageError(f"the format must be jsonl or csv, got {form!r:.40}")
    pseudonyms = request.query_params.get("pseudonyms", "") in ("1", "true")
    review = _review(request)
    rows = export_rows(_store(request), review, pseudonyms=pseudonyms)
    content = to_csv(rows).encode() if form == "csv" else b"".join(map(encode_row, rows))
    kind = "text/csv" if form == "csv" else "application/jsonl"
    disposition = f'attachment; filename="{review.name}.{form}"'
    return Response(content, media_type=kind, headers={"Content-Disposition": disposition})


@_page
def list_page(request: Request) -> Response:
    """Show the reviews with the progress."""
    return render_page(
        request,
        "review/list.html",
        title="Reviews",
        reviews=_overview(request),
        person_is_admin="admin" in person_of(request).roles,
    )


@_page
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
    known = store.raters(review) if "admin" in person.roles else []
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
        known=[(name, _address(review, name), store.progress(review, name)) for name in known],
    )


@_page
def results_page(request: Request) -> Response:
    """Show the results of a closed review, or the progress and a button that closes it."""
    _require(request, "admin")
    review, store = _review(request), _store(request)
    if review.state != "closed":
        return render_page(
            request,
            "review/close.html",
            title=f"Review {review.name}",
            review=review,
            raters=_progress(request, review),
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
        raise RequestError(f"{rater} has not started the review {review.name}", status=404)
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
