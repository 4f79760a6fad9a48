"""The report of a run, from real manifests, results and metrics on the disk."""

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fake_run import MODELS, TASK, FakeRun
from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import InputError
from meditron.core.statistics import bootstrap_ratio, paired_bootstrap
from meditron.release.card.config import CardConfig
from meditron.release.card.stage import run as write_card
from meditron.report.figures import figure_name
from meditron.report.run_report import StagePlace, write_run_report
from meditron.store.manifest import Git, InputRecord, Manifest, fingerprint, record_files, write_manifest
from meditron.store.results import Comparison, EvaluationResult, Perplexity, write_results

START = datetime(2026, 11, 22, 8, tzinfo=UTC)
LOSSES = {
    "base": [3.1, 2.9, 3.0, 2.8, 3.3, 2.95, 3.05, 2.7],
    "pretrain": [2.9, 2.72, 2.79, 2.64, 3.07, 2.78, 2.84, 2.55],
}
TOKENS = [120, 300, 210, 90, 400, 150, 220, 310]


def finish(folder: Path, name: str, **given: Any) -> None:
    """Make a stage complete, as the recipe does: hash its files and write its manifest last."""
    payload = {"version": 1, "name": name}
    fields: dict[str, Any] = {
        "kind": name,
        "name": name,
        "fingerprint": fingerprint(payload),
        "payload": payload,
        "config": {},
        "seed": 1,
        "files": record_files(folder),
        "git": Git(commit="a" * 40, dirty=False),
        "libraries": {"numpy": "2.4.6"},
        "machine": {"cpu": "A <CPU> & more", "cpu_class": "avx2", "cores": 2, "memory_bytes": 25_000_000_000},
        "started": START,
        "ended": START + timedelta(seconds=90),
    }
    write_manifest(folder, Manifest(**(fields | given)))


def results() -> EvaluationResult:
    scores = {}
    for model, losses in LOSSES.items():
        nll, interval = bootstrap_ratio(
            [loss * n for loss, n in zip(losses, TOKENS, strict=True)], TOKENS, seed=1
        )
        scores[model] = {
            "pubmed": Perplexity(
                model=model,
                source="pubmed",
                documents=len(losses),
                tokens=sum(TOKENS),
                nll=nll,
                perplexity=math.exp(nll),
                interval=(math.exp(interval.low), math.exp(interval.high)),
                bits_per_byte=0.9,
                truncated=0,
                data_sha256="0" * 64,
            )
        }
    found = paired_bootstrap(LOSSES["pretrain"], LOSSES["base"], seed=1)
    difference = Comparison(
        a="base",
        b="pretrain",
        what="nll per token, pubmed",
        source="pubmed",
        n=found.n,
        difference=found.difference,
        interval=tuple(found.interval),
        p=found.p,
        detectable=found.detectable,
    )
    return EvaluationResult(
        perplexity=scores,
        differences=[difference],
        rows="perplexity.jsonl",
        dtype="float32",
        seed=1,
        resamples=10_000,
    )


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[StagePlace]]:
    """A run of three finished stages and one that was killed."""
    folder = tmp_path / "runs" / "small"
    places = {name: folder / name for name in ("corpus", "pretrain", "evaluate", "quantize")}
    for place in places.values():
        place.mkdir(parents=True)
    (places["corpus"] / "report.html").write_text("<p>corpus</p>", encoding="utf-8")
    (places["corpus"] / "drops.jsonl").write_text("{}\n", encoding="utf-8")
    dropped = {"too short": 12, "not <English>": 3}
    finish(
        places["corpus"],
        "corpus",
        config={"sources": {"pubmed": {"from": "pubmed.xml.gz", "domain": "medical"}}},
        metrics={
            "sources": {"pubmed": {"read": 20_788, "kept": 20_773, "dropped": dropped}},
            "seconds": 16.4,
        },
        inputs={"pubmed": InputRecord(reference="pubmed.xml.gz", digest="e" * 64)},
        licences={"pubmed": "NLM terms & conditions"},
    )
    rows = [{"step": 0, "tokens": 0, "heldout": {"pubmed": 3.0}}]
    rows += [
        {"step": k, "tokens": 2048 * k, "loss": 3 - 0.01 * k, "learning_rate": 1e-4} for k in range(1, 31)
    ]
    rows[-1]["heldout"] = {"pubmed": 2.8}
    (places["pretrain"] / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8"
    )
    (places["pretrain"] / "model.safetensors").write_bytes(b"weights")
    finish(
        places["pretrain"],
        "pretrain",
        metrics={"loss": 2.7, "tokens": 61_440},
        inputs={
            "base": InputRecord(reference=f"pypi:a==1#b.gguf@sha256:{'c' * 64}", digest="c" * 64),
            "corpus": InputRecord(reference="corpus", digest="d" * 64),
        },
    )
    write_results(places["evaluate"], results())
    finish(places["evaluate"], "evaluate", metrics=results().model_dump(mode="json") | {"overlap": 0})
    return folder, [(name, name, place) for name, place in places.items()]


class Outline(HTMLParser):
    """The texts of a page's table cells, its links, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src") and tag == "a"]
        if tag in ("td", "th"):
            self._inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data.strip()


def outline(folder: Path) -> Outline:
    parsed = Outline()
    parsed.feed((folder / "report.html").read_text(encoding="utf-8"))
    return parsed


def test_json_holds_the_same_figures_as_the_evaluation(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    returned = write_run_report("small", folder, stages)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == returned
    expected = results().model_dump(mode="json")
    assert returned["perplexity"] == expected["perplexity"]
    assert returned["differences"] == expected["differences"]
    assert returned["differences"][0]["interval"][1] < 0
    assert returned["advisory"] == DISCLAIMER


def test_stages_are_told_as_their_manifests_tell_them(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    told = write_run_report("small", folder, stages)["stages"]
    assert {name: stage["state"] for name, stage in told.items()} == {
        "corpus": "complete",
        "pretrain": "complete",
        "evaluate": "complete",
        "quantize": "partial",
    }
    assert told["corpus"]["seconds"] == 16.4
    assert told["pretrain"]["seconds"] == 90
    assert re.fullmatch("[0-9a-f]{64}", told["pretrain"]["digest"])
    assert "perplexity" not in told["evaluate"]["metrics"]
    assert told["evaluate"]["metrics"]["overlap"] == 0


def test_page_shows_figures_reasons_and_the_way_to_each_stage(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    found = write_run_report("small", folder, stages)
    page = outline(folder)
    for model in ("base", "pretrain"):
        assert f"{found['perplexity'][model]['pubmed']['perplexity']:.2f}" in page.cells
    assert "not <English>" in page.cells
    assert "20,788" in page.cells
    assert "pypi:a==1#b.gguf" in page.cells  # the promised hash is left to the digest beside it
    assert "base, corpus" in page.cells
    assert "pubmed.xml.gz" in page.cells
    assert "NLM terms & conditions" in page.cells
    assert "corpus/report.html" in page.links
    assert all(link.startswith("#") or (folder / link).is_file() for link in page.links)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert DISCLAIMER in text
    assert "script" not in page.tags
    assert text.count("<svg") == 4  # the answer, all differences, training loss, held-out loss
    assert "A &lt;CPU&gt; &amp; more" in text
    assert "pretrain predicts better than base" in text


def test_the_page_says_when_a_difference_is_not_shown(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    result = results()
    unclear = result.differences[0].model_copy(update={"difference": 0.01, "interval": (-0.02, 0.04)})
    write_results(folder / "evaluate", result.model_copy(update={"differences": [unclear]}))
    finish(folder / "evaluate", "evaluate")
    write_run_report("small", folder, stages)
    assert "no difference between pretrain and base is shown" in (folder / "report.html").read_text("utf-8")


def test_an_altered_stage_is_told(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    (folder / "pretrain" / "model.safetensors").write_bytes(b"other weights")
    told = write_run_report("small", folder, stages)["stages"]["pretrain"]
    assert told["state"] == "altered"
    assert "model.safetensors" in told["problems"][0]
    assert "model.safetensors has" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_without_any_finished_stage_has_a_report(tmp_path: Path) -> None:
    found = write_run_report("empty", tmp_path, [("corpus", "corpus", tmp_path / "corpus")])
    assert found["stages"]["corpus"] == {"kind": "corpus", "state": "missing"}
    assert found["perplexity"] == {}
    assert "Nothing has been evaluated yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_bytes(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    write_run_report("small", folder, stages)
    first = [(folder / name).read_bytes() for name in ("report.html", "report.json")]
    write_run_report("small", folder, stages)
    assert first == [(folder / name).read_bytes() for name in ("report.html", "report.json")]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pretrain/manifest.json", '{"schema_version": 1}'),
        ("evaluate/results.json", '{"perplexity": 3}'),
        ("pretrain/metrics.jsonl", '{"step": 1, "loss": '),
    ],
)
def test_damaged_records_are_named(run: tuple[Path, list[StagePlace]], file: str, content: str) -> None:
    folder, stages = run
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(Path(file).name)):
        write_run_report("small", folder, stages)


def test_what_was_made_elsewhere_is_told_apart(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    finish(folder / "pretrain", "pretrain", machine={"cpu": "another"}, git=Git(commit="b" * 40, dirty=True))
    made = write_run_report("small", folder, stages)["made"]
    assert [one["stages"] for one in made] == [["corpus", "evaluate"], ["pretrain"]]
    assert f"{'b' * 40}, with changes" in (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_half_written_is_left(run: tuple[Path, list[StagePlace]]) -> None:
    folder, stages = run
    write_run_report("small", folder, stages)
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"report.html", "report.json"}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A whole life, its card written and its report rendered."""
    life = FakeRun(tmp_path_factory.mktemp("runs") / "small")
    config = CardConfig()
    inputs = {key: life.artifact(name) for key, name in config.inputs().items()}
    life.finish("card", inputs=config.inputs(), metrics=write_card(config, inputs, life.stage_folder("card")))
    names = ("corpus", "tokenize", "pretrain", "finetune", "quantize", "evaluate", "card")
    write_run_report("small", life.folder, [(name, name, life.folder / name) for name in names])
    return life


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from objects(inner)
    if isinstance(value, dict):
        yield value


def test_json_tells_every_model_task_and_difference_by_name(life: FakeRun) -> None:
    text = (life.folder / "report.json").read_text(encoding="utf-8")
    report = json.loads(text)
    for word in (*MODELS, TASK, "naive Bayes", "majority", "base (calibrated)"):
        assert word in text
    found = [one for one in objects(report) if {"difference", "interval"} <= one.keys()]
    assert found == report["differences"] == life.result.model_dump(mode="json")["differences"]
    assert all(one["a"] and one["b"] and one["what"] for one in found)
    assert report["tasks"]["finetune"][TASK]["accuracy"] == life.result.tasks["finetune"][TASK].accuracy
    assert report["baselines"][TASK].keys() == {"majority", "position", "naive Bayes"}
    assert report["fidelity"][0]["against"] == "finetune"
    assert not {"tasks", "baselines", "rows"} & report["stages"]["evaluate"]["metrics"].keys()


def test_page_has_one_row_a_model_and_what_each_step_did(life: FakeRun) -> None:
    page = outline(life.folder)
    for name in (*MODELS, "base (calibrated)", "majority", "naive Bayes"):
        assert name in page.cells
    score = life.result.tasks["quantize:Q4_K_M"][TASK]
    low, high = (100 * end for end in score.interval)
    assert f"{100 * score.accuracy:.1f} %[{low:.1f}, {high:.1f}]" in page.cells
    assert {"base → pretrain", "pretrain → finetune", "finetune → quantize:Q4_K_M"} <= set(page.cells)
    assert {"card/report.html", "card/README.md"} <= set(page.links)
    assert all(link.startswith("#") or (life.folder / link).is_file() for link in page.links)
    assert "1 × Q6_K, 1 × Q8_0" in page.cells


def test_the_report_opens_with_the_answers_and_has_their_figures_beside_it(life: FakeRun) -> None:
    report = json.loads((life.folder / "report.json").read_text(encoding="utf-8"))
    questions = ["Did it learn?", "Did it forget?", "What did quantization cost?"]
    assert [answer["question"] for answer in report["answers"]] == questions
    text = (life.folder / "report.html").read_text(encoding="utf-8")
    places = [text.index(f">{heading}</h2>") for heading in (*questions, "Scores")]
    assert places == sorted(places)
    # Everything but the scores is folded away until the files and the training.
    assert text.index("Scores with 95 % intervals") < text.index("All paired differences")
    assert '<details class="fold">' in text[places[-1] : text.index("All paired differences")]
    names = {path.name for path in (life.folder / "figures").iterdir()}
    assert {"learned.svg", "learned.csv", "forgot.svg", "quantized.csv", "overview.svg"} <= names
    assert {name for name in names if name.endswith(".svg")} == {
        f"{Path(name).stem}.svg" for name in names if name.endswith(".csv")
    }
    links = set(outline(life.folder).links)
    assert {f"figures/{name}" for name in names if not name.startswith("overview")} <= links
    assert "<script" not in text


def test_a_long_name_of_a_stage_is_a_file_name() -> None:
    assert figure_name("finetune.sections", "loss") == "finetune.sections-loss"
    assert figure_name("a/b: c", "loss") == "a-b-c-loss"
