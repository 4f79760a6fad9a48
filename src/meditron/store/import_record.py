"""The record of the files that a result was imported from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["ImportRecord", "ImportedFile"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImportedFile(_Record):
    """A file that a result was imported from."""

    name: str
    """Name of the file, without its folder."""
    sha256: str
    rows: int | None = None
    """Number of samples in it; None for a file of settings."""


class ImportRecord(_Record):
    """Origin of a result that another program measured."""

    format: Literal["lm-eval", "every-eval-ever"]
    files: tuple[ImportedFile, ...]
    program: str | None
    """Program that measured the result, with its version, as the files name it; None if they do not."""
    time: str | None
    """Time of the evaluation, as the files state it; None if they do not."""
