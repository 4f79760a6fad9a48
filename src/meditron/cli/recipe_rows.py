"""View of a recipe's finetuning data for `meditron inspect`: rows as the model reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from meditron.cli.inspect_views import RowFilter, View
from meditron.cli.span_printing import row_with_spans
from meditron.core.errors import SourceError, UsageError
from meditron.model.presets import model_tokenizer
from meditron.recipe import load_recipe
from meditron.recipe.external_inputs import fetch_input
from meditron.recipe.graph import resolve_reference
from meditron.recipe.schema import Recipe, StageSpec
from meditron.store.manifest import read_manifest
from meditron.store.models import resolve_model
from meditron.text.finetune_templates import with_chat_template
from meditron.text.tokenizer import Tokenizer
from meditron.train.examples import example_row
from meditron.train.extended_vocabulary import added_token_ids, training_tokenizer
from meditron.train.finetune_config import FinetuneConfig
from meditron.train.finetune_data import open_data, tokenize_source

__all__ = ["view_recipe_rows"]


def view_recipe_rows(path: Path, row_filter: RowFilter, out: Path) -> View:
    """Return the view of a recipe: the first rows of each source of each finetune, tokenized as in training.

    Args:
        path: The recipe.
        row_filter: Selection of the rows; by default one of each source.
        out: Folder that holds runs, for tasks that are made from the recipe's corpus.

    Raises:
        UsageError: The recipe has no finetune.
        SourceError: The model or the data are missing, or the corpus is not built.
        InputError: A row is malformed, cannot be tokenized, or has no token in the loss; names file and line.
    """
    recipe = load_recipe(path)
    views = [
        _view_stage_rows(recipe, spec, spec.config, row_filter, out)
        for spec in recipe.stages.values()
        if isinstance(spec.config, FinetuneConfig)
    ]
    if not views:
        raise UsageError(f"{path}: no [[finetune]] whose rows could be shown")
    return View("recipe", str(path), {"finetunes": len(views)}, inside=views)


def _view_stage_rows(
    recipe: Recipe, spec: StageSpec, config: FinetuneConfig, row_filter: RowFilter, out: Path
) -> View:
    facts: dict[str, Any]
    facts = {"stage": spec.name, "template": config.template, "sequence_length": config.sequence_length}
    if config.method == "dpo":
        return View(
            "recipe", spec.name, facts | {"note": "pairs of method dpo are shown when they are built"}
        )
    tokenizer = training_tokenizer(config, _base_tokenizer(recipe, spec))
    if ids := added_token_ids(config, tokenizer):
        facts["added_tokens"] = ids
    paths = {
        key: _local_path(recipe, spec, reference, out)
        for key, reference in spec.config.inputs().items()
        if key in {entry.input for entry in config.data()}
    }
    rows: list[dict[str, Any]] = []
    for source in open_data(config, paths):
        tokenized = (
            row_with_spans(row.path, example_row(example), tokenizer)
            for row in source.conversations
            for example in tokenize_source(config, replace(source, conversations=[row]), tokenizer)
        )
        rows += row_filter.select_rows(tokenized, 1)
    return View("rows", spec.name, facts, rows)


def _base_tokenizer(recipe: Recipe, spec: StageSpec) -> Tokenizer:
    """Return the tokenizer of the model that a stage starts from, through the stages before it."""
    reference = resolve_reference(recipe, spec, spec.config.inputs()["base"])
    if reference.stage is None:
        return model_tokenizer(resolve_model(str(reference.source)))
    before = recipe.stages[reference.stage]
    tokenizer = _base_tokenizer(recipe, before)
    if not isinstance(before.config, FinetuneConfig):
        return tokenizer
    # A finetune exports its added tokens, and its chat template, which `template = "tokenizer"` of the next
    # one reads.
    return with_chat_template(training_tokenizer(before.config, tokenizer), before.config.template)


def _local_path(recipe: Recipe, spec: StageSpec, text: str, out: Path) -> Path:
    reference = resolve_reference(recipe, spec, text)
    if reference.stage is None:
        return fetch_input(str(reference.source))[0]
    folder = out / recipe.name / reference.stage
    if read_manifest(folder) is None:
        raise SourceError(
            f"{folder}: {spec.name} reads the {reference.stage}, which is not built",
            hint=f"meditron run {recipe.path} --until {reference.stage} --out {out}",
        )
    return folder
