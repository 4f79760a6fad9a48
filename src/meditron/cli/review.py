"""`meditron review`: blinded side-by-side reviews of models' answers."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from meditron.cli.options import Context, EngineName, Json, print_json
from meditron.core.console import info, sanitize_terminal, warn
from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import UsageError
from meditron.model.sampling import SamplingConfig

if TYPE_CHECKING:
    from meditron.serve.review.answers import OpenModel
    from meditron.serve.review.records import Review, ReviewModel, ReviewSetup
    from meditron.serve.review.store import ReviewStore

__all__ = ["REVIEW_COMMANDS"]

_LABELLED = re.compile(r"([\w. -]{1,64})=(?!=)(.+)", re.DOTALL)
Name = Annotated[str, Parameter(help="Name of the review.")]
Data = Annotated[
    Path | None,
    Parameter(help="Folder of the server's data. [default: $XDG_DATA_HOME/meditron]"),
]

Questions = Annotated[
    Path | None,
    Parameter(
        help='Questions, JSON lines {"id", "question", "category", "subkind"}; the last two are optional. '
        "[default: 13 example questions]"
    ),
]


@dataclass(frozen=True, kw_only=True)
class ReviewSampling(SamplingConfig):
    """Sampling settings with a default length for an answer that people read."""

    max_tokens: int = 512
    """Maximum number of tokens of an answer."""


def create(
    name: Name,
    /,
    *,
    questions: Questions = None,
    model: Annotated[
        tuple[str, ...],
        Parameter(help="MODEL, or NAME=MODEL, that answers the questions; repeatable."),
    ] = (),
    answers: Annotated[
        tuple[str, ...],
        Parameter(help='FILE, or NAME=FILE, of ready answers: JSON lines {"id", "text"}; repeatable.'),
    ] = (),
    system: Annotated[str | None, Parameter(help="System prompt.")] = None,
    sampling: Annotated[
        ReviewSampling, Parameter(name="*", group="Sampling", show_default=True)
    ] = ReviewSampling(),
    engine: Annotated[EngineName, Parameter(group="Engine")] = None,
    context: Annotated[Context, Parameter(group="Engine")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Create a review: let two or more models answer a set of questions.

    Every answer is stored when it is complete; the same command continues after an interruption. People then
    rate the answers on the page /review of `meditron serve`.

    For example:

        meditron review create pilot --model base=base.gguf --model tuned=tuned.gguf
    """
    from meditron.engine import load_generator
    from meditron.serve.review.answers import count_names

    models = _labelled(model, lambda spec: spec)
    files = _labelled(answers, lambda path: Path(path).stem)
    settings = {
        "system": system,
        "sampling": asdict(sampling),
        "models": dict(models),
        "answers": {label: Path(path).name for label, path in files},
    }
    setup = _setup(name, questions, [label for label, _ in (*models, *files)], settings)
    info(DISCLAIMER)
    with _open(data) as store:
        review = store.create(setup)
        added = _fill(
            store,
            review,
            dict(models),
            dict(files),
            system=system,
            sampling=sampling,
            open_model=partial(load_generator, backend=engine, context=context),
        )
        stored = store.models(review)
        named = count_names(store.answers(review), stored)
    _print_created(review, stored, added, named, as_json=as_json)


def list_reviews(*, data: Data = None, as_json: Json = False) -> None:
    """List the reviews, the newest first.

    For example:

        meditron review list
    """
    from meditron.report.terminal import print_table

    with _open(data) as store:
        rows = [_status(store, review) for review in store.reviews()]
    if as_json:
        print_json({"reviews": rows})
    elif rows:
        print_table(
            ("review", "state", "questions", "raters", "complete"),
            [
                (
                    row["review"],
                    row["state"],
                    row["questions"],
                    len(row["raters"]),
                    sum(rater["complete"] for rater in row["raters"]),
                )
                for row in rows
            ],
            answer=True,
        )
    else:
        info("There is no review yet; meditron review create NAME makes one.")


def status(name: Name, /, *, data: Data = None, as_json: Json = False) -> None:
    """Print the progress of a review by rater. Models stay hidden until the review is closed.

    For example:

        meditron review status pilot
    """
    from meditron.report.terminal import print_table

    with _open(data) as store:
        row = _status(store, store.get(name))
    if as_json:
        print_json(row)
        return
    info(f"{row['review']}: {row['state']}, {row['questions']} questions, {row['missing']} answers missing")
    if row["raters"]:
        print_table(
            ("rater", "complete", "comparisons"),
            [(rater["rater"], rater["complete"], rater["comparisons"]) for rater in row["raters"]],
            answer=True,
        )


def close(name: Name, /, *, data: Data = None, as_json: Json = False) -> None:
    """End the rating of a review, which shows the models' names. This cannot be undone.

    For example:

        meditron review close pilot
    """
    with _open(data) as store:
        row = _status(store, store.close(store.get(name), "local"))
    unfinished = [rater["rater"] for rater in row["raters"] if rater["complete"] < rater["comparisons"]]
    if unfinished:
        warn(f"not all comparisons are complete: {', '.join(unfinished)}")
    if as_json:
        print_json(row)
    else:
        info(f"{name} is closed; meditron review results {name} prints the results")


def results(name: Name, /, *, data: Data = None, as_json: Json = False) -> None:
    """Print the results of a closed review: preferences, means, agreement of the raters.

    For example:

        meditron review results pilot
    """
    from meditron.report.terminal import print_table
    from meditron.serve.review.export import analyse_review, result_json
    from meditron.serve.review.tables import METHOD, headline, result_tables

    with _open(data) as store:
        review = store.get(name)
        if as_json:
            print_json(result_json(store, review))
            return
        result = analyse_review(store, review)
    for sentence in headline(result):
        sys.stdout.write(sanitize_terminal(sentence) + "\n\n")
    for table in result_tables(result, review.rubric):
        if table.rows:
            print_table(table.headers, table.rows, title=table.caption, answer=True)
    info(METHOD)


def export(
    name: Name,
    /,
    *,
    out: Annotated[Path, Parameter(help="Written file: .jsonl, with all texts, or .csv.")],
    pseudonyms: Annotated[bool, Parameter(help="Replace the raters' names by rater-1, rater-2, …")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write the ratings of a closed review: one row for each rating of an answer by a person.

    For example:

        meditron review export pilot --out pilot.csv --pseudonyms
    """
    from meditron.serve.review.export import export_rows, to_csv
    from meditron.store.files import atomic_write
    from meditron.store.jsonl import encode_row

    form = _export_format(out)
    with _open(data) as store:
        rows = export_rows(store, store.get(name), pseudonyms=pseudonyms)
    with atomic_write(out) as file:
        if form == "csv":
            file.write(to_csv(rows).encode())
        else:
            file.writelines(map(encode_row, rows))
    if as_json:
        print_json({"file": str(out), "rows": len(rows)})
    else:
        info(f"written: {out}, {len(rows):,} rows")


def _open(data: Path | None) -> "ReviewStore":
    from meditron.serve.review.store import ReviewStore
    from meditron.store.files import data_folder

    return ReviewStore(data or data_folder())


def _labelled(texts: Sequence[str], label: Callable[[str], str]) -> list[tuple[str, str]]:
    """Split each `NAME=VALUE`; a value without a name gets its `label`."""
    pairs = []
    for text in texts:
        match = _LABELLED.fullmatch(text)
        pairs.append((match[1].strip(), match[2]) if match else (label(text), text))
    return pairs


def _setup(
    name: str, questions: Path | None, models: list[str], settings: Mapping[str, Any]
) -> "ReviewSetup":
    """Return what a review is created from: its questions, its models and the package's rubric."""
    from meditron.serve.review.questions import package_questions, read_questions
    from meditron.serve.review.records import ReviewSetup
    from meditron.serve.review.rubric import Rubric, package_rubric

    rubric, rubric_sha256 = package_rubric()
    parsed = Rubric.parse(rubric)
    return ReviewSetup(
        name=name,
        questions=read_questions(questions, parsed) if questions else package_questions(parsed),
        models=models,
        rubric=rubric,
        rubric_sha256=rubric_sha256,
        settings=settings,
    )


def _fill(
    store: "ReviewStore",
    review: "Review",
    models: Mapping[str, str],
    files: Mapping[str, str],
    *,
    system: str | None,
    sampling: SamplingConfig,
    open_model: "OpenModel",
) -> int:
    """Import and generate the missing answers; return their number."""
    from meditron.serve.review.answers import generate_answers, import_answers

    stored = {model.label: model for model in store.models(review)}
    # Files first: an error in one of them is found within a second.
    added = sum(import_answers(store, review, stored[label], Path(path)) for label, path in files.items())
    for label, spec in models.items():
        added += generate_answers(
            store, review, stored[label], spec, open_model=open_model, system=system, sampling=sampling
        )
    return added


def _status(store: "ReviewStore", review: "Review") -> dict[str, Any]:
    raters = []
    for rater in store.raters(review):
        complete, comparisons = store.progress(review, rater)
        raters.append({"rater": rater, "complete": complete, "comparisons": comparisons})
    return {
        "review": review.name,
        "state": review.state,
        "questions": review.questions,
        "missing": review.missing,
        "raters": raters,
    }


def _print_created(
    review: "Review", models: "Sequence[ReviewModel]", added: int, named: int, *, as_json: bool
) -> None:
    if named:
        warn(
            f"{named} answers contain the name of a model or speak of themselves as one; they are shown as "
            "they are, and marked in the results"
        )
    if as_json:
        identities = {model.label: dict(model.identity) for model in models}
        record = {"review": review.name, "questions": review.questions, "models": identities}
        print_json(record | {"added": added, "names_a_model": named})
    elif added:
        info(f"{review.name}: {added:,} answers added; rate them on the page /review of meditron serve")
    else:
        info(f"Nothing to do: {review.name} has all answers.")


def _export_format(out: Path) -> Literal["jsonl", "csv"]:
    if out.suffix == ".csv":
        return "csv"
    if out.suffix == ".jsonl":
        return "jsonl"
    raise UsageError(f"{out}: the name must end in .jsonl or .csv")


REVIEW_COMMANDS: dict[str, Callable[..., None]] = {
    "create": create,
    "list": list_reviews,
    "status": status,
    "close": close,
    "results": results,
    "export": export,
}
"""Subcommand → function."""
