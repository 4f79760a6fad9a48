"""`meditron import` and `meditron export`, from the command line."""

import json
from pathlib import Path

from command import Command

LOG = Path(__file__).parents[1] / "evaluate" / "exchange" / "lm_eval_log"


def test_a_log_is_imported_compared_and_exported(meditron: Command, tmp_path: Path) -> None:
    results = [tmp_path / name for name in ("a", "b")]
    for result in results:
        imported = meditron("import", str(LOG), "--format", "lm-eval", "--out", str(result), "--json")
        assert imported.code == 0, imported.err
        record = json.loads(imported.out)
        assert record["imported"]["program"] == "lm-eval 0.4.13"
        assert {file["name"].partition("_")[0] for file in record["imported"]["files"]} == {
            "samples",
            "results",
        }
        assert record["rows"] == [str(result / "drugs.jsonl")]
    compared = meditron("compare", *map(str, results), "--json")
    assert compared.code == 0, compared.err
    assert json.loads(compared.out)["difference"] == 0
    exported = meditron(
        "export", str(results[0]), "--format", "hub", "--benchmark", "drugs=lab/drugs#default",
        "--out", str(tmp_path / "hub"), "--json",
    )  # fmt: skip
    assert exported.code == 0, exported.err
    files = [
        Path(file).relative_to(tmp_path / "hub").as_posix() for file in json.loads(exported.out)["files"]
    ]
    assert files == ["model-index.yaml", ".eval_results/drugs.yaml"]


def test_wrong_use_is_one_line_with_a_hint(meditron: Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    meditron("import", str(LOG), "--format", "lm-eval", "--out", str(rows))
    for words, problem in (
        (["export", str(rows), "--format", "lm-eval"], "--task T"),
        (["export", str(rows), "--format", "every-eval-ever"], "--model-id DEVELOPER/MODEL"),
        (["export", str(rows), "--format", "hub", "--setting", "rule=bytes"], "no evaluation of drugs"),
        (["export", str(rows), "--format", "hub", "--benchmark", "drugs"], "not NAME=VALUE"),
        (["export", str(rows), "--format", "lm-eval", "--model-id", "a/b"], "--model-id is for --format"),
        (["import", str(LOG), "--format", "every-eval-ever", "--out", str(rows)], "no *_samples.jsonl"),
        (
            ["import", str(tmp_path / "none"), "--format", "lm-eval", "--out", str(rows)],
            "no such file or folder",
        ),
    ):
        result = meditron(*words)
        assert result.code == 2, words
        assert problem in result.err
        assert "Traceback" not in result.err


def test_an_import_never_overwrites_its_source(meditron: Command, tmp_path: Path) -> None:
    source = tmp_path / "drugs.jsonl"
    [original] = LOG.glob("samples*")
    source.write_bytes(original.read_bytes())
    result = meditron("import", str(source), "--format", "lm-eval", "--model", "tiny", "--out", str(tmp_path))
    assert result.code == 2
    assert "would overwrite the input" in result.err
    assert source.read_bytes() == original.read_bytes()
