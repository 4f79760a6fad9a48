"""Inputs from outside a recipe: the names of models of the hub."""

import pytest

from meditron.recipe.external_inputs import hub_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:epfl-llm/meditron-7b", "epfl-llm/meditron-7b"),
        ("hf:org/name:model-q8_0.gguf", "org/name"),
        ("hf:datasets/epfl-llm/guidelines", None),
        ("pypi:package==1.0", None),
        ("init:tiny", None),
        ("models/local", None),
    ],
)
def test_only_a_model_of_the_hub_has_a_hub_name(source: str, name: str | None) -> None:
    assert hub_name(source) == name
