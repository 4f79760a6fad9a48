from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import ModelPair
from meditron.evaluate.methods.base import question_row_adapter
from meditron.evaluate.perplexity import compare_pairs
from meditron.evaluate.rows import PERPLEXITY, DocumentRow, QuestionRow
from meditron.evaluate.rows_file import RowsFile

LOSSES = np.random.default_rng(7)
N = 60
TOKENS = LOSSES.integers(20, 400, N)
A = LOSSES.normal(3.0, 0.4, N)
B = A + LOSSES.normal(-0.1, 0.05, N)


def rows(model: str, losses: np.ndarray, *, source: str = "pubmed", **changed: object) -> list[DocumentRow]:
    common = {
        "model": model,
        "model_digest": model,
        "engine": "torch",
        "dtype": "float32",
        "source": source,
        "cache_key": "p",
    }
    return [
        DocumentRow.model_validate(
            common
            | {"id": f"{source}:{n}", "tokens": int(TOKENS[n]), "nll": float(loss * TOKENS[n])}
            | {"bytes": int(TOKENS[n]) * 4, "text_sha256": f"{n:064x}", "ids_sha256": f"{n:064x}"}
            | changed
        )
        for n, loss in enumerate(losses)
    ]


def write(folder: Path, *groups: list[DocumentRow]) -> str:
    with RowsFile(folder / PERPLEXITY, DocumentRow) as file:
        file.rewrite_sorted([row for group in groups for row in group])
    return str(folder)


def test_the_difference_is_the_mean_of_losses_per_token_and_its_interval_scipys(tmp_path: Path) -> None:
    write(tmp_path, rows("base", A), rows("pretrain", B))
    (result,) = compare_results(f"{tmp_path}:base", f"{tmp_path}:pretrain", resamples=20_000)
    assert (result.n, result.source, result.what) == (N, "pubmed", "nll per token, pubmed")
    assert result.difference == pytest.approx(np.mean(B - A))
    reference = stats.bootstrap(
        (B - A,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = reference.high - reference.low
    assert result.interval == pytest.approx((reference.low, reference.high), abs=0.05 * width)
    assert result.interval[1] < 0
    assert result.p < 0.001


def test_scores_by_rubrics_are_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "rubrics-health.answers.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="has scores by rubrics only"):
        compare_results(str(tmp_path), str(tmp_path))


def test_equal_results_differ_by_nothing(tmp_path: Path) -> None:
    write(tmp_path, rows("base", A))
    (result,) = compare_results(str(tmp_path), str(tmp_path))
    assert (result.difference, result.interval, result.p, result.detectable) == (0, None, 1, None)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path, rows("base", A), rows("pretrain", B))
    specs = f"{tmp_path}:base", f"{tmp_path}:pretrain"
    assert compare_results(*specs, seed=3) == compare_results(*specs, seed=3)
    assert compare_results(*specs, seed=3) != compare_results(*specs, seed=4)


def test_each_source_has_its_own_difference(tmp_path: Path) -> None:
    write(tmp_path / "a", rows("base", A), rows("base", A[:20], source="wiki"))
    write(tmp_path / "b", rows("pretrain", B), rows("pretrain", B[:20], source="wiki"))
    result = compare_results(str(tmp_path / "a"), str(tmp_path / "b" / PERPLEXITY))
    assert [(record.source, record.n) for record in result] == [("pubmed", N), ("wiki", 20)]


def test_documents_are_joined_by_source_and_id(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows("base", A)[:40])
    b = write(tmp_path / "b", rows("pretrain", B)[30:])
    (result,) = compare_results(a, b)
    assert result.n == 10
    assert result.difference == pytest.approx(np.mean((B - A)[30:40]))


def test_other_tokenizers_are_compared_by_bytes_of_whole_documents(tmp_path: Path) -> None:
    expected = rows("other", B, ids_sha256="another")
    cut = [expected[0].model_copy(update={"truncated": True}), *expected[1:]]
    (result,) = compare_results(write(tmp_path / "a", rows("base", A)), write(tmp_path / "b", cut))
    assert (result.what, result.n) == ("nll per byte, pubmed [1 truncated document left out]", N - 1)
    assert result.unlike == ("1 truncated document left out",)
    assert result.difference == pytest.approx(np.mean((B - A)[1:]) / 4)


def test_an_evaluation_goes_on_without_a_difference_of_truncated_documents(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = [row.model_copy(update={"truncated": True}) for row in rows("other", B, ids_sha256="another")]
    measured = {"base": rows("base", A), "other": cut, "pretrain": rows("pretrain", B)}
    pairs = [ModelPair(model="other", against="base"), ModelPair(model="pretrain", against="base")]
    [result] = compare_pairs(measured, pairs, seed=1, resamples=100)
    assert (result.a, result.b) == ("base", "pretrain")
    warning = " ".join(capsys.readouterr().err.split())
    assert "no paired difference in perplexity: base and other: 60 documents" in warning
    assert "the tokenizers differ, so that documents are truncated at different places" in warning


def test_documents_truncated_at_different_places_are_named_in_the_error(tmp_path: Path) -> None:
    cut = [row.model_copy(update={"truncated": True}) for row in rows("other", B, ids_sha256="another")]
    a, b = write(tmp_path / "a", rows("base", A)), write(tmp_path / "b", cut)
    with pytest.raises(UsageError, match=f"{N} documents in both cannot be compared.*tokenizers differ"):
        compare_results(a, b)


def test_too_few_common_documents_are_an_error(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", rows("base", A)[:31]), write(tmp_path / "b", rows("base", B)[30:])
    with pytest.raises(UsageError, match=r"too few documents or questions in both \(1 of 31 and 30\)"):
        compare_results(a, b)


def test_results_without_a_common_task_name_their_tasks(tmp_path: Path) -> None:
    one, two = answers("m", 1), answers("m", 2)
    other = [row.model_copy(update={"task": "own"}) for row in two]
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", other)
    with pytest.raises(UsageError, match=rf"no task in common: .* has {one[0].task}, .* has own"):
        compare_results(a, b)


def test_rows_of_other_data_beside_the_compared_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = rows("other", B)
    new = [row.model_copy(update={"cache_key": "new", "text_sha256": "f" * 64}) for row in old]
    (result,) = compare_results(write(tmp_path / "a", rows("base", A)), write(tmp_path / "b", [*old, *new]))
    assert result.n == N
    assert "with another content, which are not compared" in " ".join(capsys.readouterr().err.split())


def test_another_text_under_the_same_id_is_refused(tmp_path: Path) -> None:
    other = rows("base", B)
    other[3] = other[3].model_copy(update={"text_sha256": "f" * 64})
    with pytest.raises(InputError, match=f"1 of {N} documents have another text"):
        compare_results(write(tmp_path / "a", rows("base", A)), write(tmp_path / "b", other))


def answers(model: str, seed: int, *, n: int = 20, **changed: object) -> list[QuestionRow]:
    """Rows of a model on one task; `changed` are settings."""
    drawn = np.random.default_rng(seed)
    fields = {"task": "q", "version": 1, "data_sha256": "d", "template": "letters/1", "prompt_form": "raw"}
    fields |= {"method": "loglikelihood", "shots": 0, "engine": "torch", "dtype": "float32"}
    next_token = {"token": "x", "constrained": False, "free_prediction": None, "scores": {"first-token": ()}}
    by_method = next_token if "method" in changed else {"rule": "sum", "scores": {}}
    fields |= {"model": model, "model_digest": model, "cache_key": f"{model} {sorted(changed.items())} {n}"}
    return [
        question_row_adapter().validate_python(
            fields
            | {"id": f"q{i}", "question_sha256": f"{i:064x}", "prompt_sha256": f"{i:064x}", "gold": 0}
            | {"prediction": int(wrong), "correct": not wrong, "option_probability_mass": 0.5}
            | by_method
            | changed
        )
        for i, wrong in enumerate(drawn.random(n) < 0.5)
    ]


def write_answers(folder: Path, *groups: list[QuestionRow]) -> str:
    with RowsFile(folder / "q.jsonl", QuestionRow) as file:
        file.rewrite_sorted([row for group in groups for row in group])
    return str(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "bytes"}, "rule: sum / bytes"),
        ({"method": "next-token"}, "method: loglikelihood / next-token, rule: sum / None"),
        ({"shots": 3}, "shots: 0 / 3"),
        ({"template": "texts/1"}, "template: letters/1 / texts/1"),
        ({"version": 2}, "task version: 1 / 2"),
        ({"prompt_sha256": "f" * 64}, r"prompt \(template or shots\)"),
    ],
)
def test_different_settings_do_not_compare(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    a = write_answers(tmp_path / "a", answers("base", 1))
    with pytest.raises(UsageError, match=message):
        compare_results(a, write_answers(tmp_path / "b", answers("tuned", 2, **changed)))


EXAMPLES = {"shots": 2, "shot_ids": ("e1", "e2")}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"system_prompt": "terse@1a2b"}, "system prompt: none / terse@1a2b"),
        ({"shot_ids": ("e3", "e4")}, "examples: e1, e2 / e3, e4"),
        ({"shots_sha256": "c" * 64}, "file of examples: training split / " + "c" * 14),
    ],
)
def test_other_system_prompts_and_examples_are_named(
    tmp_path: Path, changed: dict[str, object], cause: str
) -> None:
    """With another prompt form they are named beside it; with the same form they forbid the comparison."""
    changed = EXAMPLES | {"prompt_sha256": "f" * 64} | changed
    a = write_answers(tmp_path / "a", answers("base", 1, **EXAMPLES))
    with pytest.raises(UsageError, match=f"they differ in {cause}$"):
        compare_results(a, write_answers(tmp_path / "b", answers("tuned", 2, **changed)))
    chat = write_answers(tmp_path / "c", answers("tuned", 2, **changed, prompt_form="chatml"))
    (result,) = compare_results(a, chat)
    assert result.unlike == ("prompt form: raw / chatml", cause)


def test_equal_prompts_have_no_other_examples(tmp_path: Path) -> None:
    """The file of examples may have changed in questions that were not drawn."""
    a = write_answers(tmp_path / "a", answers("base", 1, **EXAMPLES, shots_sha256="b" * 64))
    b = write_answers(tmp_path / "b", answers("tuned", 2, **EXAMPLES, shots_sha256="c" * 64))
    (result,) = compare_results(a, b)
    assert result.unlike == ()


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        ({"dtype": "bfloat16"}, "dtype: float32 / bfloat16"),
        ({"engine": "llama.cpp"}, "engine: torch / llama.cpp"),
        ({"prompt_form": "chatml", "prompt_sha256": "f" * 64}, "prompt form: raw / chatml"),
        ({"truncated": True}, "truncated prompts: 0 / 20"),
    ],
)
def test_a_model_measured_in_another_way_is_labelled(
    tmp_path: Path, changed: dict[str, object], label: str
) -> None:
    a = write_answers(tmp_path / "a", answers("base", 1))
    (result,) = compare_results(a, write_answers(tmp_path / "b", answers("tuned", 2, **changed)))
    assert (result.unlike, result.what, result.n) == ((label,), f"accuracy, q [{label}]", 20)


def test_equal_settings_are_paired(tmp_path: Path) -> None:
    """Rows of other settings stand beside each other in one file; the fuller of two equal settings counts.

    The setting that was paired is named wherever a file had others to choose from.
    """
    chat = {"prompt_form": "chatml", "prompt_sha256": "f" * 64}
    a = write_answers(
        tmp_path / "a", answers("base", 1), answers("base", 1, n=5), answers("base", 1, rule="bytes")
    )
    b = write_answers(tmp_path / "b", answers("tuned", 2), answers("tuned", 3, **chat))
    (result,) = compare_results(a, b)
    paired = "accuracy, q (letters/1, raw, sum, 0 shots, float32)"
    assert (result.what, result.unlike, result.n) == (paired, (), 20)
    both = write_answers(tmp_path / "c", answers("tuned", 2), answers("tuned", 3, rule="bytes"))
    assert {result.what for result in compare_results(a, both)} == {
        "accuracy, q (letters/1, raw, sum, 0 shots, float32)",
        "accuracy, q (letters/1, raw, bytes, 0 shots, float32)",
    }


def test_rows_of_earlier_data_are_ignored(tmp_path: Path) -> None:
    """A question was mended between two evaluations: both files of rows keep the old ones."""
    before, after = {"data_sha256": "a" * 64}, {"data_sha256": "b" * 64}

    def mended(rows: list[QuestionRow]) -> list[QuestionRow]:
        return [rows[0].model_copy(update={"question_sha256": "f" * 64}), *rows[1:]]

    a = write_answers(tmp_path / "a", answers("base", 1, **before), mended(answers("base", 1, **after)))
    b = write_answers(tmp_path / "b", mended(answers("tuned", 2, **after)))
    (result,) = compare_results(a, b)
    assert (result.what, result.n) == ("accuracy, q", 20)
    both = write_answers(tmp_path / "c", answers("tuned", 3, **before), mended(answers("tuned", 2, **after)))
    assert sorted(item.what[-9:] for item in compare_results(a, both)) == ["aaaaaaaa)", "bbbbbbbb)"]
    with pytest.raises(InputError, match="1 of 20 questions have other words"):
        compare_results(write_answers(tmp_path / "d", answers("base", 1, **before)), b)


def test_two_weights_under_one_name_need_a_digest(tmp_path: Path) -> None:
    old, new = answers("m", 1, model_digest="a" * 64), answers("m", 2, model_digest="b" * 64)
    folder = write_answers(tmp_path, old, new)
    with pytest.raises(UsageError, match="2 different weights under the name m"):
        compare_results(folder, folder)
    (result,) = compare_results(f"{folder}:m@aaaaaaaa", f"{folder}:m@bbbbbbbb")
    assert result.n == 20


def test_the_model_must_be_named_and_exist(tmp_path: Path) -> None:
    folder = write(tmp_path, rows("base", A), rows("quantize:F16", B))
    with pytest.raises(UsageError, match=r"several models' rows \(it has: base, quantize:F16\)"):
        compare_results(folder, folder)
    with pytest.raises(UsageError, match="no rows of 'pretain'"):
        compare_results(f"{folder}:base", f"{folder}:pretain")
    assert compare_results(f"{folder}:base", f"{folder}:quantize:F16")[0].n == N


def test_missing_results_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        compare_results(f"{tmp_path}/none:base", str(tmp_path))
    with pytest.raises(SourceError, match=r"no rows of an evaluation in it"):
        compare_results(str(tmp_path), str(tmp_path))
