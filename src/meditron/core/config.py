"""Base classes of configurations and stored records.

A stage's config class is the single definition of its options: the recipe's table, the command's flags and
the reference in the docs are generated from its fields.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meditron.core.errors import UsageError

__all__ = [
    "Config",
    "InputKind",
    "NonSemantic",
    "Record",
    "StageConfig",
    "first_problem",
    "semantic_fields",
    "translate_usage_errors",
]


class Config(BaseModel):
    """A frozen configuration without unknown keys. The docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,  # JSON, and therefore a manifest, cannot hold them
        use_attribute_docstrings=True,
        populate_by_name=True,
        protected_namespaces=(),
    )


class Record(BaseModel):
    """A frozen record that is stored as JSON, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NonSemantic:
    """Marker of a field that changes how the work is done, but not its result.

    `threads: Annotated[int, NonSemantic] = 1` is recorded in the manifest, but not part of the fingerprint.
    """


def semantic_fields(config: BaseModel) -> dict[str, Any]:
    """Return the fields that determine the artifact, as plain JSON; `NonSemantic` ones are left out."""
    excluded = {name for name, field in type(config).model_fields.items() if NonSemantic in field.metadata}
    return config.model_dump(mode="json", exclude=excluded, by_alias=True)


@contextmanager
def translate_usage_errors() -> Iterator[None]:
    """Raise a UsageError as the ValueError that a validator of a config raises, with its hint."""
    try:
        yield
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}" if error.hint else error.message) from error


def first_problem(error: ValidationError, root: str = "top level") -> tuple[str, str]:
    """Return the position and the message of the first validation error.

    The position is a dotted path such as `files.0.path`; `root` for an error of the whole value.
    """
    problem = error.errors()[0]
    return ".".join(map(str, problem["loc"])) or root, problem["msg"]


@dataclass(frozen=True, slots=True)
class InputKind:
    """The kind of file that an input from outside the recipe must be; checked before the run starts."""

    name: Literal[
        "model",
        "documents",
        "questions",
        "conversations",
        "preferences",
        "rubrics",
        "labels",
        "judge prompt",
    ]
    table: Config | None = None
    """The input's own table in the recipe, if it has one: for a source of documents, its format and globs."""
    task: str | None = None
    """For questions: the task that they belong to, as the recipe names it."""
    training_set: str | None = None
    """Name of the published training set that the file or folder has, of `questions` and `conversations`."""


class StageConfig(Config, ABC):
    """A stage's table in a recipe."""

    exports_model: ClassVar[bool] = False
    """Whether the stage writes a model, so that other stages can use it as one."""

    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Random seed of this stage; the recipe's `seed` if absent."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Return input name → reference: `base`, a stage of the recipe (`quantize:F16`) or a source."""

    def input_kinds(self) -> dict[str, InputKind]:
        """Return input name → required kind of file; inputs without an entry are not checked before a run."""
        return {}

    def document_inputs(self) -> list[str]:
        """Return the names of the inputs that are sources of documents, not models or questions."""
        return [name for name, kind in self.input_kinds().items() if kind.name == "documents"]

    def cross_stage_errors(self, stages: "Mapping[str, StageConfig]") -> dict[str, str]:
        """Return key → error message, for values that contradict other stages of the recipe.

        Args:
            stages: Stage name → config, for all stages of the recipe.
        """
        return {}

    def benchmarks(self) -> tuple[str, ...]:
        """Return the tasks on which the stage evaluates models, without those made from the corpus."""
        return ()

    def with_recipe_defaults(self, stages: "Mapping[str, StageConfig]") -> Self:
        """Return the config with those defaults filled in that depend on other stages of the recipe.

        Args:
            stages: Stage name → config, for all stages of the recipe.
        """
        return self

    def check_dependency(self, key: str, metrics: Mapping[str, Any]) -> None:
        """Raise MeditronError if the metrics of a finished dependency show that this stage would fail.

        A run calls this before it builds any other stage, so that hours of training are not lost.

        Args:
            key: Name of the input that is the dependency.
            metrics: The dependency's metrics.
        """

    def selectors(self) -> tuple[str, ...]:
        """Return the names that select one of the stage's files in a reference: `F16` in `quantize:F16`."""
        return ()

    def licences(self) -> dict[str, str]:
        """Return input name → licence, for the sources of this stage."""
        return {}
