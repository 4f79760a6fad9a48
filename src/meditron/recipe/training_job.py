"""The training that `meditron plan` predicts: a recipe's stage with the config of its base model."""

from meditron.core.errors import RecipeError
from meditron.model.config import LlamaConfig
from meditron.plan.architectures import unknown_model
from meditron.plan.prediction import Job
from meditron.recipe.estimate import finetune_method, source_model_config
from meditron.recipe.schema import Recipe, StageSpec
from meditron.train.config import PretrainConfig, TrainingConfig

__all__ = ["training_job", "training_stage"]


def training_stage(recipe: Recipe, name: str | None) -> tuple[StageSpec, TrainingConfig]:
    """Return a training stage of a recipe and its config: by default `pretrain`, else the first one.

    Raises:
        RecipeError: the recipe has no such stage, or no training.
    """
    trainings = {
        spec.name: (spec, spec.config)
        for spec in recipe.stages.values()
        if isinstance(spec.config, TrainingConfig)
    }
    if not trainings:
        raise RecipeError(f"{recipe.path}: no training stage to plan", hint="add [pretrain] or [[finetune]]")
    if name is not None and name not in trainings:
        raise RecipeError(
            f"{recipe.path}: no training stage '{name}'", hint=f"training stages: {', '.join(trainings)}"
        )
    return trainings[name or ("pretrain" if "pretrain" in trainings else next(iter(trainings)))]


def training_job(recipe: Recipe, spec: StageSpec, tokens: int | None = None) -> Job:
    """Return a stage as a job for the plan; nothing is downloaded.

    Args:
        recipe: The recipe.
        spec: A training stage.
        tokens: Tokens of a stage whose data set their number (finetuning).

    Raises:
        RecipeError: the recipe has no base.
        SourceError: the base model is neither known nor on this machine.
    """
    config = spec.config
    assert isinstance(config, TrainingConfig)  # noqa: S101  # `training_stage` returns no others
    own = config.tokens if isinstance(config, PretrainConfig) else None
    return Job(
        config=_base_config(recipe, spec.name),
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        tokens=tokens or own,
        narrow=config.dtype != "float32",  # `auto` is bfloat16 on a GPU
        compiled=config.compile,
        method=finetune_method(config),
    )


def _base_config(recipe: Recipe, name: str) -> LlamaConfig:
    """Return the config of the model that a stage starts from, through the stages before it."""
    base = recipe.stages[name].config.inputs()["base"]
    if base in recipe.stages:
        return _base_config(recipe, base)
    address = recipe.base if base == "base" else base
    if address is None:
        raise RecipeError(
            f"{recipe.path}: {name} starts from base, but the recipe has none",
            hint='write base = "hf:…" as the first line',
        )
    if (config := source_model_config(address)) is None:
        raise unknown_model(address)
    return config
