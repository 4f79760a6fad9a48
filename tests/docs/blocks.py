"""Code blocks of the Markdown pages: how they are found, checked and executed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meditron.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {ROOT / "docs/reference/commands.md", ROOT / "docs/reference/recipe.md"}
PAGES = sorted(
    {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")}
    | {*(ROOT / "docs").rglob("*.md")} - GENERATED
)
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_TABLE = re.compile(r"^#?\[+([a-z]+)[\].]", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    """The file that the block shows, relative to the folder of the page's commands."""
    text: str
    not_run: str | None
    """The reason of a `<!-- not run: reason -->` comment directly before the block."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order; a fence that is not understood fails."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is not None:
            assert line == "```", f"{page}:{number + 1}: a block is not closed before this line"
            language, title = _FENCE.fullmatch(lines[start]).groups()  # type: ignore[union-attr]
            mark = _NOT_RUN.fullmatch(lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number]) + "\n"
            yield Block(page, start + 1, language, title, text, mark[1] if mark else None)
            start = None
        else:
            assert _FENCE.fullmatch(line), f"{page}:{number + 1}: unknown fence {line}"
            start = number
    assert start is None, f"{page}: the last block is not closed"


def execute(blocks: Sequence[Block], folder: Path) -> None:
    """Write, run or check each block in `folder`, in order."""
    commands = [block.text for block in blocks if block.language == "sh"]
    for block in blocks:
        if block.not_run is None:
            _execute(block, folder, commands)


def _execute(block: Block, folder: Path, commands: Sequence[str]) -> None:
    match block.language:
        case "sh":
            _run(["bash", "-euo", "pipefail", "-c", block.text], block, folder)
        case "python" if block.title is None:
            _run([sys.executable, "-W", "error", "-c", block.text], block, folder)
        case "python":
            compile(block.text, str(block), "exec")
            _write(block, folder)
        case "toml" if block.title is None:
            check_recipe(block.text, folder)
        case (
            "toml" | "yaml"
        ):  # a recipe of the page's commands: they check it, with what the page adds to the package
            assert any(block.title in text for text in commands), f"{block}: no command uses {block.title}"
            _write(block, folder)
        case "json" | "jsonl":
            for value in block.text.splitlines() if block.language == "jsonl" else [block.text]:
                json.loads(value)
            _write(block, folder)
        case "diff":
            apply_diff(block, folder)
        case "text":  # output, or a picture in characters
            _write(block, folder)
        case _:
            raise AssertionError(f"{block}: no check for the language '{block.language}'")


def _write(block: Block, folder: Path) -> None:
    if block.title is not None:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def _run(command: Sequence[str], block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),  # the guides for contributors change a copy of the package
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def check_recipe(text: str, folder: Path) -> None:
    """Load a recipe, or a part of one: the smoke recipe gives the tables that the part leaves out."""
    if "base = " not in text.partition("[")[0]:
        shown = set(_TABLE.findall(text))
        smoke = (ROOT / "recipes/smoke.toml").read_text(encoding="utf-8")
        head, *tables = re.split(r"^(?=\[)", smoke, flags=re.MULTILINE)
        kept = [table for table in tables if _TABLE.match(table)[1] not in shown]  # type: ignore[index]
        text = "".join([head, *kept, "\n", text])
    path = folder / "part.toml"
    path.write_text(text, encoding="utf-8")
    load_recipe(path)


def apply_diff(block: Block, folder: Path) -> None:
    """Apply a diff whose hunks are separated by `@@` lines and found by their context alone."""
    assert block.title is not None, f"{block}: a diff names its file in title"
    path = folder / block.title
    text = path.read_text(encoding="utf-8")
    for hunk in re.split(r"^@@.*\n", block.text, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"{block}: {block.title} has not exactly one place for\n{hunk}"
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
