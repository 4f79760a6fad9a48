"""The files beside the card, and the commands of programs in it."""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from pydantic import ValidationError

from fake_run import FakeRun
from hub_server import TOKEN, Hub, serving_hub
from meditron.core.errors import InputError
from meditron.release.card.config import CardConfig
from meditron.release.card.programs import PLATFORMS, read_programs
from meditron.release.card.stage import run
from meditron.store.hub.push import plan_push
from meditron.store.manifest import Artifact

NAMED = (
    "llama.cpp", "llama-cpp-python", "ctransformers", "candle", "LM Studio", "GPT4All", "KoboldCpp", "LoLLMS",
    "text-generation-webui", "Faraday", "LangChain with llama-cpp-python", "LangChain with ctransformers",
    "vLLM", "Ollama",
)  # fmt: skip


def written(life: FakeRun, licence: Path | None = None, **given: Any) -> Path:
    """The folder of a card."""
    config = CardConfig(**given, **({"license_file": str(licence)} if licence else {}))
    out = life.stage_folder("card")
    shutil.rmtree(out)
    out.mkdir()
    names = {key: name for key, name in config.inputs().items() if key != "license"}
    inputs = {key: life.artifact(name) for key, name in names.items()}
    if licence:
        inputs["license"] = Artifact("license", licence, "d" * 64, None)
    run(config, inputs, out)
    return out


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return FakeRun(tmp_path_factory.mktemp("runs") / "small")


def test_every_named_client_is_there_with_its_platforms():
    names = [program.name for program in read_programs()]
    for name in NAMED:
        assert any(known.startswith(name) for known in names), name
    for program in read_programs():
        assert set(program.installation) <= set(PLATFORMS)
        assert "CPU" in program.installation
        # Each example takes the file or the model as its argument.
        code = program.command(file="a.gguf", model="folder", name="n")
        assert ("a.gguf" in code) or ("folder" in code) or ("Modelfile" in code)
        assert not re.search(r"\b(FILE|MODEL|PROMPT|NAME)\b", code)
        if program.language == "python":
            ast.parse(code)


def test_only_recorded_runs_are_called_runs(life: FakeRun):
    text = (written(life) / "README.md").read_text(encoding="utf-8").replace("\\", "")
    rows = dict(re.findall(r"^\| ([^|]+) \|.*\| ([^|]+) \|$", text.partition("## Programs")[2], re.MULTILINE))
    for program in read_programs():
        if program.families and "mistral" not in program.families:
            assert program.name not in rows  # the model is a Mistral
        elif program.runs:
            assert rows[program.name].startswith(f"ran with version {program.runs[0].version} on 20")
        else:
            assert rows[program.name] == "not run"
    assert any(program.runs for program in read_programs())


def test_a_model_without_gguf_files_has_the_programs_of_its_folder(life: FakeRun):
    out = written(life, of="pretrain", quantize="", evaluate="")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "vllm serve pretrain" in text
    assert "llama-cli" not in text
    assert not (out / "Modelfile").exists()


def test_the_fidelity_of_each_file_is_in_the_table(life: FakeRun):
    text = (written(life) / "README.md").read_text(encoding="utf-8").replace("\\", "")
    table = re.search(r"\*\*GGUF files[^*]*\*\*\n\n((?:\|.*\n)+)", text)
    assert table
    rows = {cells[1]: cells for line in table[1].splitlines() if (cells := line.strip("| ").split(" | "))}
    record = life.result.fidelity[0]
    # The only measured type is the recommended one.
    assert rows["Q4_K_M (recommended)"][-1].startswith(f"{100 * record.top_agreement:.1f} % [")
    assert rows["Q8_0"].count("not measured") == 1


def test_the_modelfile_names_a_file_and_the_template_of_the_training(life: FakeRun):
    text = (written(life) / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./Q4_K_M.gguf\n")
    assert (life.folder / "quantize" / "Q4_K_M.gguf").is_file()
    template = life.manifest("finetune").config["template"]
    expected = {
        "none": "{{ .Prompt }}",
        "meditron": "question\n{{ .Prompt }}",
        "chatml": "user\n{{ .Prompt }}",
    }
    assert expected[template] in text


def test_the_licence_ships_with_the_card(life: FakeRun, tmp_path: Path):
    path = tmp_path / "terms.txt"
    path.write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT\n…")
    out = written(life, path, base_license="llama2")
    assert (out / "LICENSE").read_text() == path.read_text()
    text = (out / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert data.license == "llama2"  # inherited
    assert "The text of the licence is in the file LICENSE" in text
    assert "Copyright (c) Meta Platforms, Inc." in text
    assert "COMMUNITY LICENSE AGREEMENT" in (out / "Modelfile").read_text(encoding="utf-8")
    assert not (written(life) / "LICENSE").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"x" * ((1 << 20) + 1)])
def test_a_file_that_is_no_licence(life: FakeRun, tmp_path: Path, content: bytes):
    path = tmp_path / "terms.txt"
    path.write_bytes(content)
    with pytest.raises(InputError):
        written(life, path)


@pytest.mark.parametrize(
    ("base", "released", "allowed"),
    [
        ("llama2", "apache-2.0", False),
        ("cc-by-sa-4.0", "mit", False),
        ("cc-by-nc-4.0", "cc-by-4.0", False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", True),
        ("llama2", "llama2", True),
        ("llama2", "other", True),
        ("apache-2.0", "mit", True),
        ("our own terms", "mit", True),
    ],
)
def test_a_base_licence_binds_derived_weights(base: str, released: str, allowed: bool):
    stated = {"base_license": base, "license": released}
    if allowed:
        CardConfig.model_validate(stated)
    else:
        with pytest.raises(ValidationError, match=f"license: the base's licence {base}"):
            CardConfig.model_validate(stated)


def test_the_summary_of_training_content_is_an_option(life: FakeRun):
    assert not (written(life) / "EU-TRAINING-CONTENT.md").exists()
    text = (written(life, eu_summary=True) / "EU-TRAINING-CONTENT.md").read_text(encoding="utf-8")
    text = text.replace("\\", "")
    for number in ("1.", "2.", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.", "3.1", "3.2", "3.3"):
        assert re.search(rf"^(## |- |\*\*)?{re.escape(number)} ", text, re.MULTILINE), number
    for name, licence in life.manifest("corpus").licences.items():
        assert f"| {name} |" in text
        assert licence in text
    # The finetune's data with the licence of its task, as on the card.
    [tuned] = [line for line in text.splitlines() if line.startswith("| finetune |")]
    assert tuned.rstrip(" |").endswith(life.manifest("finetune").metrics["task"]["licence"])
    assert "to be filled by the provider" in text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_a_card_is_accepted_by_the_hub_and_its_results_come_back(life: FakeRun, hub: Hub, tmp_path: Path):
    written(life, base_license="apache-2.0")
    release = tmp_path / "release"
    shutil.copytree(life.folder / "card", release)
    for path in (life.folder / "quantize").glob("*.gguf"):
        shutil.copy(path, release)
    plan_push(release, "org/small").upload(public=False, message="A release")
    text = hub.repositories["org/small"].files["README.md"].decode()
    data = ModelCard(text).data
    values = {(each.dataset_type, each.metric_type): each.metric_value for each in data.eval_results}
    assert values["pubmed", "perplexity"] == life.result.perplexity["finetune"]["pubmed"].perplexity
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert again.eval_results == data.eval_results
    assert {"Modelfile", "Q4_K_M.gguf", "SHA256SUMS"} <= set(hub.repositories["org/small"].files)
