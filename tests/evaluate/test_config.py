import pytest
from pydantic import ValidationError

from meditron.core.config import semantic_fields
from meditron.evaluate.config import EvaluateConfig, ModelPair


def test_every_later_model_is_compared_with_the_first_and_with_the_one_before_it() -> None:
    config = EvaluateConfig(models=("base", "pretrain", "quantize:F16"))
    assert config.pairs() == (
        ModelPair(model="pretrain", against="base"),
        ModelPair(model="quantize:F16", against="base"),
        ModelPair(model="quantize:F16", against="pretrain"),
    )


def test_pairs_may_be_named() -> None:
    pair = ModelPair(model="quantize:F16", against="pretrain")
    config = EvaluateConfig(models=("base", "pretrain", "quantize:F16"), differences=(pair,))
    assert config.pairs() == (pair,)


def test_the_inputs_are_the_models_and_the_corpus() -> None:
    inputs = EvaluateConfig(models=("base", "quantize:F16")).inputs()
    assert inputs == {"base": "base", "quantize:F16": "quantize:F16", "corpus": "corpus"}


def test_batch_size_is_not_semantic() -> None:
    decided = semantic_fields(EvaluateConfig(models=("base",)))
    assert "batch_tokens" not in decided
    assert {"documents", "document_tokens", "dtype", "resamples"} <= decided.keys()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"models": ()}, "at least 1"),
        ({"models": ("base", "base")}, "twice"),
        ({"models": ("corpus",)}, "not a model"),
        ({"models": ("base",), "differences": ({"model": "pretrain", "against": "base"},)}, "not among"),
        ({"models": ("base",), "differences": ({"model": "base", "against": "base"},)}, "against itself"),
        ({"models": ("base",), "documents": 1}, "greater than or equal to 2"),
        ({"models": ("base",), "dtype": "float16"}, "float32"),
        ({"models": ("base",), "tasks": ("pubmed-section",)}, "no task 'pubmed-section'"),
        ({"models": ("base",), "methods": ("options",)}, "no method 'options'; methods: loglikelihood"),
        ({"models": ("base",), "methods": ("next-token", "next-token")}, "listed twice"),
        ({"models": ("base",), "shots_from": "examples.jsonl"}, "shots must be at least 1"),
        ({"models": ("base",), "task_models": {"a.jsonl": ("base",)}}, "'a.jsonl' is not among the tasks"),
        *(
            ({"models": ("base",), "tasks": ("a.jsonl",), "task_models": {"a.jsonl": names}}, message)
            for names, message in (
                ((), "needs at least one model"),
                (("base", "base"), "lists 'base' twice"),
                (("pretrain",), "lists 'pretrain', which is not among the models"),
            )
        ),
        ({"models": ("base",), "seed": -1}, "greater than or equal to 0"),
    ],
)
def test_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig.model_validate(table)
