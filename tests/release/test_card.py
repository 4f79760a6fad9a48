"""The model card, of lives made by hand: what it says, and that it says nothing that no manifest says."""

import json
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError

from fake_run import BASE, MODELS, TASK, FakeRun, of_few
from meditron.core.console import sanitize_terminal
from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import DriftError, UsageError
from meditron.core.units import format_bytes, format_duration
from meditron.release.card.config import CardConfig
from meditron.release.card.markdown import MarkdownWriter, RedactingWriter, without_secrets_and_paths
from meditron.release.card.programs import read_programs
from meditron.release.card.stage import run
from meditron.report.evaluation_page import write_evaluation_page
from meditron.report.number_format import FORMATS, percent
from meditron.report.run_report import write_run_report
from meditron.store.ancestry import Training, untrained_ancestry, write_ancestry
from meditron.store.models import resolve_model
from meditron.store.results import write_results

STATED = {"95", "99th", "6", "20", "5.0", "0.05", "0.001", "macro-F1", "max_new_tokens=64"}
"""Words with a figure that are the card's own: levels, sample sizes, a measure's name, a length."""
NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)*(e[-+]?\d+)?")


def written(life: FakeRun, **given: Any) -> str:
    """The card of a life, finished as a stage."""
    config = CardConfig(**given)
    out = life.stage_folder("card")
    metrics = run(config, {key: life.artifact(name) for key, name in config.inputs().items()}, out)
    life.finish("card", inputs=config.inputs(), metrics=metrics, config=config.model_dump(mode="json"))
    return (out / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return FakeRun(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def card(life: FakeRun) -> str:
    return written(life)


def words(text: str) -> Iterator[str]:
    """Words that have a figure in them, without the marks around them."""
    for word in text.replace("\\", "").split():
        bare = word.strip("|*`\"'()[]{},.;:“”")
        if re.search(r"\d", bare):
            yield bare


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
        yield from value if isinstance(value, dict) else ()
    else:
        yield value


class Told:
    """What the manifests of a life tell: every number in every form, and every text."""

    def __init__(self, life: FakeRun) -> None:
        paths = list(life.folder.glob("*/manifest.json"))
        values = [*leaves([json.loads(path.read_text()) for path in paths])]
        self.texts = [value for value in values if isinstance(value, str)]
        self.texts += [life.manifest(path.parent.name).digest for path in paths]
        numbers = {value for value in values if isinstance(value, int | float) and abs(value) < 1e15}
        forms = (*FORMATS, format_duration, format_bytes, repr)
        self.words = {word for value in numbers for form in forms for word in words(form(value))}
        self.words |= {word for text in self.texts for word in words(text)} | STATED
        # The commands of programs, and the versions and dates of their runs.
        self.words |= set(words(files("meditron").joinpath("release/card/programs.toml").read_text()))
        for program in read_programs():
            self.words |= set(words(program.command(file="Q4_K_M.gguf", model="finetune", name="small")))
        # The rise in perplexity is its ratio less 1.
        for pair in life.result.fidelity:
            for ratio in (pair.perplexity_ratio, *(pair.intervals["perplexity_ratio"] or ())):
                self.words |= set(words(f"{percent(ratio - 1)} +{percent(ratio - 1)}"))
        # The citation's year is that of the last stage's end.
        self.words |= {text[:4] for text in self.texts if re.match(r"\d{4}-\d\d-\d\dT", text)}

    def unexplained(self, text: str) -> list[str]:
        """The figures of a text that are no rendering of a manifest's, and stand in none of its texts."""
        return [word for word in words(text) if word not in self.words and not self._composed(word)]

    def _composed(self, word: str) -> bool:
        parts = re.split("[:/]", word)
        whole = (part in self.words or any(part in text for text in self.texts) for part in parts)
        return not NUMBER.fullmatch(word) and all(whole)


def test_every_figure_is_a_manifests(card: str, life: FakeRun) -> None:
    assert len(list(words(card))) > 300
    assert Told(life).unexplained(card) == []


def test_a_figure_that_is_not_a_manifests_is_found(card: str, life: FakeRun) -> None:
    told = Told(life)
    figures = set(re.findall(r"(?<= )[+−]?\d+\.\d{2,}(?= )", card))
    altered = {f"{one[:-1]}{last}" for one in figures for last in "0123456789"} - figures
    found = [one for one in altered if told.unexplained(f"| {one} |") == [one]]
    # Some are other figures of the manifests by chance: 0.13 is near many.
    assert len(found) > 0.8 * len(altered) > 300


def test_no_figure_outlives_its_manifests(tmp_path: Path, card: str) -> None:
    cards = [card, *(written(FakeRun(tmp_path / str(seed) / "small", seed)) for seed in range(2, 9))]
    shared = set.intersection(*({word for word in words(text) if NUMBER.fullmatch(word)} for text in cards))
    assumed = CardConfig().energy.model_dump().values()
    own = {word for one in assumed for word in words(f"{one['value']:g} {one['source']}")}
    own |= set(words(files("meditron").joinpath("release/card/programs.toml").read_text()))
    # The library's version, the shots, the fallbacks of each type, a digest: the same in every life.
    assert shared <= STATED | own | {"0.1.0", "0", "1", "2" * 64}


def test_a_manifests_figure_moves_the_card(tmp_path: Path, card: str) -> None:
    other = FakeRun(tmp_path / "small")
    path = other.folder / "corpus" / "manifest.json"
    told = json.loads(path.read_text())
    told["metrics"]["sources"]["pubmed"]["kept"] = 7_654_321
    path.write_text(json.dumps(told))
    assert "7,654,321" in written(other)
    assert "7,654,321" not in card


def test_it_tells_the_whole_life(card: str, life: FakeRun) -> None:
    assert card.count(DISCLAIMER) == 1
    text = life.result.perplexity["finetune"]["pubmed"]
    score = life.result.tasks["finetune"][TASK]
    naive = life.result.baselines[TASK]["naive Bayes"]
    for figure in (
        f"{text.perplexity:.2f} [{text.interval[0]:.2f}, {text.interval[1]:.2f}]",
        f"{100 * score.accuracy:.1f} %",
        f"n = {score.n:,}" if score.n > life.result.tasks["base"][TASK].n else "n = ",
        f"{100 * naive.accuracy:.1f} %",
    ):
        assert figure in card
    for heading in ("Out-of-scope use", "Limitations", "Training data", "Quantized files", "Provenance"):
        assert f"\n## {heading}\n" in card
    for told in ("not stated", "base (calibrated)", "majority", "Q4_K_M", "Sentence: {question}"):
        assert told in card
    assert "NLM terms & conditions; see \\<NLM>" in card
    assert "an answer is one of the options, without an end token" in card


def test_what_a_step_made_worse_is_told(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    text = written(life)
    for one in life.result.differences:
        verdict = "better" if (one.difference > 0) == (one.task is not None) else "worse"
        row = rf"\| {re.escape(one.what)} \| {re.escape(one.b)} − {re.escape(one.a)} \|.*\| {verdict} \|"
        assert re.search(row, text), one


def test_few_documents_claim_no_interval_and_no_verdict(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    result = of_few(life.result)
    write_results(life.stage_folder("evaluate"), result)
    models = {model: BASE if model == "base" else model for model in MODELS}
    life.finish("evaluate", inputs=models | {"corpus": "corpus"}, metrics=result.model_dump(mode="json"))
    card = written(life)
    assert "(no interval)" in card
    assert "too few to compare" in card
    assert not re.search(r"\bNone\b|\bnan\b|\d \[|better \||worse \|", card)
    report = tmp_path / "report.html"
    write_evaluation_page(report, result)
    write_run_report(
        "small",
        life.folder,
        [(name, name, life.folder / name) for name in ("corpus", "pretrain", "evaluate")],
    )
    for page in (report, life.folder / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert "no interval" in text
        assert "too few to compare" in text
        assert ">better<" not in text


def test_the_front_matter_reads_back_as_the_hub_reads_it(life: FakeRun) -> None:
    stated = {
        "license": "apache-2.0",
        "base_model": "org/name",
        "datasets": ("org/texts",),
        "tags": ("mine",),
    }
    data = ModelCard(written(life, **stated)).data
    assert (data.license, data.license_name, data.base_model) == ("apache-2.0", None, "org/name")
    assert (data.language, data.datasets, data.library_name) == (["en"], ["org/texts"], "transformers")
    assert (data.pipeline_tag, data.metrics) == ("text-generation", ["accuracy", "perplexity"])
    assert {"medical", "mistral", "pretrain", "finetune", "gguf", "mine"} <= set(data.tags)
    values = {(one.dataset_type, one.metric_type): one.metric_value for one in data.eval_results}
    assert values == {
        ("pubmed", "perplexity"): life.result.perplexity["finetune"]["pubmed"].perplexity,
        ("wiki", "perplexity"): life.result.perplexity["finetune"]["wiki"].perplexity,
        (TASK, "accuracy"): life.result.tasks["finetune"][TASK].accuracy,
    }
    assert all("95 % interval [" in one.metric_name for one in data.eval_results)
    assert data.model_name == "small"


def test_a_licence_that_nobody_stated_is_not_made_up(card: str) -> None:
    data = ModelCard(card).data
    assert (data.license, data.license_name, data.base_model) == ("other", "not-stated", None)
    assert "- Licence of these weights: not stated" in card


def test_a_finetune_of_several_sources_states_the_licence_of_each(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    path = life.folder / "finetune" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    counts = {"train": 1, "heldout": 0, "too-long": 0}
    manifest["metrics"] |= {"data": {"medmcqa": counts, "chat": counts}, "task": None}
    manifest["licences"] = {"finetune: task": "MIT", "finetune: rows": "CC0-1.0", "other: rows": "secret"}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    card = written(life)
    assert "medmcqa, chat" in card
    assert "task: MIT, rows: CC0" in card.replace("\\", "")
    assert "secret" not in card


def test_rubric_scores_are_in_the_card(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    life.set_rubric_score(0.25)
    card = written(life)
    assert "Rubric scores: hb" in card
    assert "25.0 %" in card


def test_the_same_stages_give_the_same_bytes(life: FakeRun) -> None:
    first = written(life), (life.folder / "card" / "report.html").read_bytes()
    assert (written(life), (life.folder / "card" / "report.html").read_bytes()) == first


def test_the_page_says_what_the_card_says(life: FakeRun, card: str) -> None:
    page = (life.folder / "card" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"?[^#\"]", page)
    assert "not &lt;English&gt; | other" in page
    for heading in re.findall(r"^## (.*)$", card, flags=re.MULTILINE):
        assert f">{heading}</h2>" in page


def test_its_commands_name_what_is_there(life: FakeRun, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(life.folder)
    lines = re.findall(r"^meditron \w+ .*$", card, flags=re.MULTILINE)
    assert [shlex.split(line)[2] for line in lines] == ["quantize:Q8_0", "quantize:Q4_K_M", "finetune"]
    for line in lines:
        assert Path(resolve_model(shlex.split(line)[2]).path).exists()
    (file,) = re.findall(r"llama-cli -m (\S+)", card)
    assert (life.folder / "quantize" / file).is_file()


def test_the_estimate_follows_its_assumptions(life: FakeRun) -> None:
    def spent(**assumed: Any) -> dict[str, Any]:
        written(life, energy={key: {"value": v, "source": "a meter"} for key, v in assumed.items()})
        return life.manifest("card").metrics["energy"]

    machine = life.manifest("pretrain").machine
    only_cores = spent(watts_per_core=10, watts_per_gb=0, watts_per_gpu=0, pue=1, grid=0.5)
    told = only_cores["stages"]["pretrain"]
    assert told["seconds"] == life.manifest("pretrain").metrics["seconds"]
    assert told["watts"] == 10 * machine["cores"]
    assert told["kwh"] == pytest.approx(told["watts"] / 1000 * told["seconds"] / 3600)
    assert told["kgco2e"] == pytest.approx(told["kwh"] / 2)
    assert only_cores["kwh"] == pytest.approx(sum(one["kwh"] for one in only_cores["stages"].values()))
    building = spent(watts_per_core=10, watts_per_gb=0, watts_per_gpu=0, pue=2, grid=0.5)
    assert building["kgco2e"] == pytest.approx(2 * only_cores["kgco2e"])


def test_a_number_without_a_source_is_refused() -> None:
    with pytest.raises(ValidationError, match="source"):
        CardConfig.model_validate({"energy": {"pue": {"value": 1.1}}})


def test_a_card_of_less_than_a_whole_life(life: FakeRun) -> None:
    text = written(life, of="pretrain", quantize="", evaluate="")
    assert "The model was not evaluated." in text
    assert "finetuning" not in text
    assert "- Quantized files: none" in text
    assert ModelCard(text).data.eval_results is None
    assert life.manifest("card").metrics["stages"] == ["corpus", "tokenize", "pretrain"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"of": "pretrain"}, "its quantized files were made from finetune"),
        ({"of": "", "quantize": ""}, "name the model"),
        ({"license": "mit", "license_name": "Mine"}, "license_name"),
        ({"license": "My own"}, "license"),
        ({"base_model": "no-organisation"}, "base_model"),
    ],
)
def test_what_cannot_be_meant_is_refused(life: FakeRun, given: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, ValidationError), match=said):
        written(life, **given)


def test_stages_that_were_not_made_from_each_other_are_not_mixed(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    (life.folder / "pretrain" / "model.safetensors").write_bytes(b"others")
    life.finish("pretrain", inputs={"corpus": "corpus"})
    with pytest.raises(DriftError, match="built from another pretrain") as error:
        written(life)
    assert "--rebuild" in str(error.value.hint)


@given(st.text(max_size=60))
@example("12. ")
@example("- ")
@example("--- ")
@example("# ")
@example("[a]: b ")
@example("[a](b)")
@example("+0.5")
@example("a|b")
def test_no_text_becomes_markup(text: str) -> None:
    sheet = MarkdownWriter("title")
    sheet.text(f"{text}x")
    sheet.table(("column",), [(f"{text}x",)])
    tokens = MarkdownIt("commonmark").enable("table").parse(sheet.render())
    said = ["".join(child.content for child in t.children or ()) for t in tokens if t.type == "inline"]
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text", "text_special"}
    assert {token.tag for token in tokens} <= {"", "h1", "p", "table", "thead", "tbody", "tr", "th", "td"}
    line = " ".join(sanitize_terminal(f"{text}x").split())
    assert said[-1] == line


def test_the_split_is_the_datas_own(tmp_path: Path) -> None:
    """Of a file without a split the card names the file, and no split."""
    life = FakeRun(tmp_path / "small")

    def published(**changed: Any) -> Any:
        result = life.result
        score = result.tasks["finetune"][TASK].model_copy(update=changed)
        told = result.model_copy(update={"tasks": result.tasks | {"finetune": {TASK: score}}})
        write_results(life.folder / "evaluate", told)
        found = ModelCard(written(life)).data.eval_results
        return next(one for one in found if one.metric_type == "accuracy")

    assert published().dataset_split == "heldout"
    plain = published(data="exam.jsonl", split=None, truncated=3)
    assert (plain.dataset_name, plain.dataset_split) == ("exam.jsonl", None)
    assert "3 prompts truncated" in plain.metric_name
    assert "split: test" not in written(life)
    assert f"Prompts truncated at their start: {TASK} 3 of" in written(life)


def test_a_prompt_file_of_the_users_own_is_named_and_shown(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    digest = "ab" * 32
    own = {"template": "ward/2", "template_sha256": digest, "example_prompt": "Ward round.\n{question}\nA:"}
    scores = {
        model: {name: score.model_copy(update=own) for name, score in by_task.items()}
        for model, by_task in life.result.tasks.items()
    }
    write_results(life.folder / "evaluate", life.result.model_copy(update={"tasks": scores}))
    card = written(life)
    assert f"(template ward/2, SHA-256 {digest})" in card
    assert "Ward round.\n{question}\nA:" in card


def test_what_is_unknown_of_the_training_data_is_said(tmp_path: Path) -> None:
    life = FakeRun(tmp_path / "small")
    assert "Training data unknown: the model has no ancestry record." in written(life)
    trained = Training(stage="finetune", kind="finetune", data="q", data_digest="d" * 64)
    write_ancestry(life.folder / "finetune", untrained_ancestry("a-base", "b" * 64).with_training(trained))
    assert "Trained on q (finetune); the training data of the base model a-base is unknown." in written(life)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/jane doe/data/q.jsonl", "q.jsonl"),
        ("~/q.jsonl", "q.jsonl"),
        ("file:///srv/med/pubmed", "pubmed"),
        ("rows of /home/jane/q.jsonl, and /srv/x/y.csv", "rows of q.jsonl, and y.csv"),
        ("/home/jane/a.jsonl, /home/jane/b.jsonl", "a.jsonl, b.jsonl"),
        ("https://me:secret@host/a.xml?X-Amz-Signature=ab#part", "https://host/a.xml#part"),
        ("data/q.jsonl", "data/q.jsonl"),
        ("yes/no/maybe; 1/2 and mmol/L/h", "yes/no/maybe; 1/2 and mmol/L/h"),
        ("pypi:a-model==0.1.2#model/a.gguf", "pypi:a-model==0.1.2#model/a.gguf"),
    ],
)
def test_neither_secrets_nor_the_writers_folders_are_published(text: str, told: str) -> None:
    assert without_secrets_and_paths(text) == told
    sheet = MarkdownWriter("title")
    RedactingWriter(sheet).table(("source",), [(text,)])
    assert all(word not in sheet.render() for word in ("jane", "secret", "Signature", "/srv"))
