"""The programs that run the published files: how to install and call them, and which of them were run.

The table `programs.toml` has the commands by program, and an entry for each run of a program by the project.
A program without an entry is called "not run".
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from meditron.release.card.facts import CardFacts
from meditron.release.card.markdown import CardWriter
from meditron.store.gguf_types import FLOAT_TYPES

__all__ = [
    "PLATFORMS",
    "Program",
    "ProgramRun",
    "add_programs",
    "programs_for",
    "published_file",
    "read_programs",
]

PLATFORMS = ("CPU", "CUDA", "ROCm", "Metal", "Windows")
_PROMPT = "Hypertension is treated with"


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """A run of a program with a file that this project wrote."""

    version: str
    date: date
    platform: str
    model: str
    """The model and the type of its file."""

    def __str__(self) -> str:
        return f"ran with version {self.version} on {self.date.isoformat()} ({self.platform}; {self.model})"


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs a model's files."""

    name: str
    format: Literal["gguf", "safetensors"]
    language: str
    """Language of `code`, for highlighting."""
    code: str
    installation: Mapping[str, str]
    """Platform → how to install the program; supported platforms only."""
    families: tuple[str, ...] = ()
    """Model families, as HF names them, that the program supports; empty: all."""
    note: str = ""
    runs: tuple[ProgramRun, ...] = ()

    def command(self, *, file: str, model: str, name: str) -> str:
        """Return the code for a file, the unquantized model's folder and a name without spaces."""
        words = {"FILE": file, "MODEL": model, "PROMPT": _PROMPT, "NAME": name}
        return re.sub(r"\b(?:FILE|MODEL|PROMPT|NAME)\b", lambda word: words[word[0]], self.code)

    @property
    def run_text(self) -> str:
        """Versions and dates of the project's own runs of the program, or `not run`."""
        return "; ".join(map(str, self.runs)) or "not run"


@cache
def read_programs() -> tuple[Program, ...]:
    """Return all programs of `programs.toml`, in its order."""
    text = files("meditron").joinpath("release", "card", "programs.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    return tuple(_program(entry, table.get("ran", ())) for entry in table["program"])


def _program(entry: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> Program:
    return Program(
        name=entry["name"],
        format=entry["format"],
        language=entry["language"],
        code=entry["code"].strip("\n"),
        installation={key: entry[key] for key in PLATFORMS if key in entry},
        families=tuple(entry.get("families", ())),
        note=entry.get("note", ""),
        runs=tuple(
            ProgramRun(run["version"], run["date"], run["platform"], run["model"])
            for run in runs
            if run["program"] == entry["name"]
        ),
    )


def programs_for(facts: CardFacts) -> list[Program]:
    """Return the programs that run the released model's files."""
    return [
        program
        for program in read_programs()
        if (program.format == "safetensors" or facts.quantized_files)
        and (not program.families or facts.model_type in program.families)
    ]


def published_file(facts: CardFacts) -> Mapping[str, Any] | None:
    """Return the file of the examples: the last quantized one, else the last one; None without files."""
    quantized = [file for file in facts.quantized_files if file["type"] not in FLOAT_TYPES]
    chosen = quantized or facts.quantized_files
    return chosen[-1] if chosen else None


def add_programs(card: CardWriter, facts: CardFacts) -> None:
    """Add a table of the programs by platform, and how each of them opens a file."""
    programs = programs_for(facts)
    file = published_file(facts)
    card.section("Programs")
    card.text(
        "Commands for the folder that contains the files. The last column of the table records runs of a "
        "program by the meditron project with another model's file; commands of programs that were not run "
        "follow the program's documentation."
    )
    rows = [
        (
            program.name,
            *(program.installation.get(platform, "not supported") for platform in PLATFORMS),
            program.run_text,
        )
        for program in programs
    ]
    card.table(("program", *PLATFORMS, "run by the project"), rows, "Installation by platform")
    name = re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-") or "model"
    for program in programs:
        card.text(f"With {program.name}{f'. {program.note}' if program.note else ':'}")
        path = file["path"] if file else ""
        card.code(program.command(file=path, model=facts.model_stage, name=name), program.language)
