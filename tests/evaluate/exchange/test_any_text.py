"""Any question text and any scores survive export and import."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.evaluate.exchange.every_eval_ever_export import export_every_eval_ever
from meditron.evaluate.exchange.every_eval_ever_import import import_every_eval_ever
from meditron.evaluate.exchange.exported import ExportedItem, ExportedTask
from meditron.evaluate.exchange.lm_eval_export import export_lm_eval
from meditron.evaluate.exchange.lm_eval_import import import_lm_eval
from meditron.evaluate.methods.loglikelihood import Loglikelihood, LoglikelihoodRow
from meditron.evaluate.settings import Setting
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question
from meditron.tasks.task import prompts_sha256, questions_sha256

NOW = datetime(2026, 11, 29, tzinfo=UTC)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
scores = st.floats(-1e6, 0, allow_nan=False)


@st.composite
def items(draw: st.DrawFn) -> list[ExportedItem]:
    """Questions with two to five options, in letters or as texts, and a score for each."""
    template = PROMPT_TEMPLATES[draw(st.sampled_from(["letters", "texts"]))]
    answered = []
    for number in range(draw(st.integers(1, 4))):
        options = tuple(draw(st.lists(texts, min_size=2, max_size=5, unique_by=str.strip)))
        question = Question(
            id=f"{draw(texts)} {number}",
            text=draw(texts),
            context=draw(st.one_of(st.just(""), texts)),
            options=options,
            gold=draw(st.integers(0, len(options) - 1)),
            group=draw(st.one_of(st.none(), texts)),
        )
        prompt = template.render(question) if draw(st.booleans()) else None
        sums = tuple(draw(st.lists(scores, min_size=len(options), max_size=len(options))))
        row = LoglikelihoodRow(
            model="tiny", model_digest="0" * 64, engine="torch", dtype="float32", id=question.id,
            cache_key="1" * 64, task="drugs", version=1, data_sha256="2" * 64, template=template.id,
            prompt_form="raw", method="loglikelihood", shots=0, question_sha256=questions_sha256([question]),
            prompt_sha256=prompts_sha256([prompt]) if prompt else None, gold=question.gold, prediction=None,
            correct=False, rule="sum", scores={"sum": sums}, option_probability_mass=0.5,
        )  # fmt: skip
        answered.append(
            ExportedItem(row=Loglikelihood().choose_answer(row), question=question, prompt=prompt)
        )
    return answered


@settings(max_examples=40, deadline=None)
@given(items())
def test_lm_eval(answered: list[ExportedItem]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, _ = export_lm_eval([exported(answered)], Path(folder), NOW)
        [task], _, _ = import_lm_eval([log])
    for item, row in zip(answered, task.rows, strict=True):
        same = ("id", "question_sha256", "prompt_sha256", "gold", "prediction", "correct")
        assert [getattr(row, name) for name in same] == [getattr(item.row, name) for name in same]
        assert row.model_dump()["scores"]["sum"] == item.row.model_dump()["scores"]["sum"]


@settings(max_examples=40, deadline=None)
@given(items())
def test_every_eval_ever(answered: list[ExportedItem]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, log = export_every_eval_ever(
            [exported(answered)], Path(folder), NOW, model_id="lab/tiny", organization="lab"
        )
        [task], _, _ = import_every_eval_ever([log])
    for item, row in zip(answered, task.rows, strict=True):
        same = ("id", "question_sha256", "prompt_sha256", "gold", "prediction", "correct")
        assert [getattr(row, name) for name in same] == [getattr(item.row, name) for name in same]


def exported(answered: list[ExportedItem]) -> ExportedTask:
    rows = {item.row.item_key(): item.row for item in answered}
    return ExportedTask(name="drugs", setting=Setting(rows), items=answered, task=None)
