"""The base of every configuration: one frozen typed definition that the recipe's table and the flag share."""

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Config", "NonSemantic", "semantic"]


class Config(BaseModel):
    """A frozen, closed configuration. The docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,  # JSON, and so a manifest, has no word for them
        use_attribute_docstrings=True,
        populate_by_name=True,
        protected_namespaces=(),
    )


class NonSemantic:
    """Marks a field that says how the work is done, not what comes out.

    `threads: Annotated[int, Beside] = 1` is recorded in the manifest but is no part of the fingerprint.
    """


def semantic(config: BaseModel) -> dict[str, Any]:
    """The part of a configuration that decides what the artifact is, as plain JSON values."""
    beside = {name for name, field in type(config).model_fields.items() if NonSemantic in field.metadata}
    return config.model_dump(mode="json", exclude=beside, by_alias=True)
