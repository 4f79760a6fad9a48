"""Views of files and folders for `meditron inspect`: facts about the whole, and some of the rows."""

import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.cli.span_printing import print_spans, row_with_spans
from meditron.core.console import sanitize_terminal
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes, format_duration
from meditron.recipe.in_progress import IN_PROGRESS
from meditron.store.ancestry import GGUF_KEY, read_ancestry, training_data_sentence
from meditron.store.files import read_json
from meditron.store.gguf import GGUF
from meditron.store.indexed import IndexedDataset
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import FILE_NAME, Manifest, read_manifest
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["View", "inspect_artifact", "print_view"]

_DOCUMENTS = (".jsonl", ".jsonl.zst", ".jsonl.gz")
_SUFFIXES = (*_DOCUMENTS, ".json", ".idx", ".bin", ".gguf", ".safetensors")
_SAMPLE = 5
_SHORT = 160  # characters of a fact in a stage's summary
_PRINTED = 1_000  # characters of a document or row
_WITHOUT_KEY = ("file", "sha256", "tensor", "type", "stage", "state")  # cells printed without their key
_MAX_HEADER = 100 << 20  # bytes of a safetensors file's header; the library's limit

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """View of one file or folder, as `meditron inspect` shows it."""

    kind: str
    """`run`, `stage`, `documents`, `rows`, `tokens`, `gguf`, `model`, `json`, `folder` or `recipe`."""
    path: str
    facts: dict[str, Any]
    """Name → value of facts about the whole file or folder, such as its size."""
    rows: list[Row] = field(default_factory=list)
    """The selected rows: documents, tensors, files or stages, by the kind."""
    inside: "list[View]" = field(default_factory=list)
    """Views of the files in a folder."""

    def to_json(self) -> dict[str, Any]:
        """Return the view as --json prints it; NaN and infinities, which JSON lacks, become strings."""
        json_view: dict[str, Any] = _json_safe(asdict(self))
        return json_view


def _json_safe(value: Any) -> Any:  # noqa: ANN401  # any value of a file
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    return [_json_safe(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class RowFilter:
    """The selection of rows by the options --rows and --grep."""

    rows: int | None
    """Maximum number of rows; None for the default of the kind of file."""
    grep: str | None
    """Text that a row must contain; None to select all rows."""

    def select_rows(self, rows: Iterable[Row], default: int | None = None) -> list[Row]:
        """Return the first rows that contain the text; at most `default` rows if --rows was not given."""
        return list(islice(filter(self.matches_text, rows), default if self.rows is None else self.rows))

    def matches_text(self, row: Row) -> bool:
        """Return whether one of the row's values contains the text, ignoring case."""
        if self.grep is None:
            return True
        texts = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in row.values()
        )
        return any(self.grep.casefold() in text.casefold() for text in texts)


def inspect_artifact(
    artifact: str, rows: int | None = None, grep: str | None = None, *, runs: Path = Path("runs")
) -> View:
    """Return the view of a file, a folder, a MODEL, or the finetuning rows of a recipe.

    Args:
        artifact: The file, folder, MODEL or recipe.
        rows: Maximum number of rows; None for the default of the kind of file.
        grep: Text that a row must contain.
        runs: Folder that holds runs, for a recipe whose rows are made from its corpus.

    Raises:
        SourceError: the file does not exist, or there is no file of a known kind.
        InputError: the file is damaged.
    """
    if rows is not None and rows < 0:
        raise UsageError(f"--rows must be at least 0, got {rows}")
    row_filter = RowFilter(rows, grep)
    path = Path(artifact)
    if path.suffix == ".toml":
        from meditron.cli.recipe_rows import view_recipe_rows

        return view_recipe_rows(path, row_filter, runs)
    if not path.exists() and not path.with_name(f"{path.name}.idx").is_file():
        path = resolve_model(artifact).path
    if path.name == FILE_NAME:
        path = path.parent
    if path.is_dir():
        if manifest := read_manifest(path):
            return _view_stage(path, manifest, row_filter)
        if stages := sorted(path.glob(f"*/{FILE_NAME}")):
            return _view_run(path, [stage.parent for stage in stages], row_filter)
    views = list(_views_of_files(path, row_filter))
    if not views:
        raise SourceError(
            f"{path}: no file of a known kind",
            hint=f"inspect reads a run's, a stage's or a model's folder, and {', '.join(_SUFFIXES)}",
        )
    return views[0] if len(views) == 1 else View("folder", str(path), {}, inside=views)


def _views_of_files(path: Path, row_filter: RowFilter) -> Iterator[View]:
    """Yield a view of each file of a known kind."""
    if not path.is_dir():
        yield from (view(path, row_filter) for view in [_view_function(path)] if view)
        return
    if (path / "config.json").is_file():
        yield _view_model_folder(path, row_filter)
    for pattern, view in (("*.idx", _view_tokens), ("*.gguf", _view_gguf), ("**/*.jsonl*", _view_documents)):
        for file in sorted(path.glob(pattern)):
            if view is not _view_documents or file.name.endswith(_DOCUMENTS):
                yield view(file, row_filter)


def _view_function(path: Path) -> Callable[[Path, RowFilter], View] | None:
    if path.suffix in (".idx", ".bin") or not path.exists():
        return _view_tokens
    if path.name.endswith(_DOCUMENTS):
        return _view_documents
    return {".gguf": _view_gguf, ".safetensors": _view_safetensors, ".json": _view_json}.get(path.suffix)


def _view_run(path: Path, stages: list[Path], row_filter: RowFilter) -> View:
    """View a run's folder: one row per finished stage, in the order in which the stages ended."""
    manifests = [(folder, manifest) for folder in stages if (manifest := read_manifest(folder))]
    manifests.sort(key=lambda pair: pair[1].ended)
    rows = [
        {
            "stage": manifest.name,
            "kind": manifest.kind,
            "ended": manifest.ended.isoformat(timespec="seconds"),
            "inputs": sorted(record.reference for record in manifest.inputs.values()),
            "bytes": sum(file.bytes for file in manifest.files),
            "digest": manifest.digest,
        }
        for _, manifest in manifests
    ]
    records = path.glob(f"*/{IN_PROGRESS}")
    unfinished = sorted(file.parent.name for file in records if file.parent not in stages)
    facts = {"stages": len(rows), "unfinished": unfinished, "hint": f"meditron inspect {stages[0]}"}
    return View("run", str(path), facts, row_filter.select_rows(rows))


def _view_json(path: Path, row_filter: RowFilter) -> View:
    """View a JSON file: the keys of an object as facts, the items of a list as rows."""
    value = read_json(path)
    if isinstance(value, dict):
        return View("json", str(path), value)
    items = value if isinstance(value, list) else [value]
    rows = (item if isinstance(item, dict) else {"value": item} for item in items)
    return View("json", str(path), {"items": len(items)}, row_filter.select_rows(rows, _SAMPLE))


def _view_stage(path: Path, manifest: Manifest, row_filter: RowFilter) -> View:
    # The same number as in `status`: started to ended also includes downloads, hashing and interruptions.
    elapsed = (manifest.ended - manifest.started).total_seconds()
    facts = {
        "stage": manifest.name,
        "kind": manifest.kind,
        "state": "finished",
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "started": manifest.started.isoformat(timespec="seconds"),
        "took": format_duration(manifest.metrics.get("seconds", elapsed)),
        "commit": f"{manifest.git.commit}{' with changes' if manifest.git.dirty else ''}",
        "inputs": {name: f"{record.reference} {record.digest}" for name, record in manifest.inputs.items()},
        "config": manifest.config,
        "metrics": manifest.metrics,
        "licences": manifest.licences,
        "machine": manifest.machine,
    }
    files = [{"file": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in manifest.files]
    return View("stage", str(path), facts, files, list(_views_of_files(path, row_filter)))


def _view_documents(path: Path, row_filter: RowFilter) -> View:
    """View a JSON Lines file; show finetuning rows with the text of each role if their tokenizer is there."""
    facts = {"bytes": path.stat().st_size}
    rows = row_filter.select_rows(read_jsonl(path), _SAMPLE)
    if not any("roles" in row for row in rows) or not (path.parent / "tokenizer.json").is_file():
        return View("documents", str(path), facts, rows)
    from meditron.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path.parent)
    return View("rows", str(path), facts, [row_with_spans(path, row, tokenizer) for row in rows])


def _view_tokens(path: Path, row_filter: RowFilter) -> View:
    """View tokenized documents; their tokens are decoded one by one if the tokenizer is beside the file."""
    from meditron.text.tokenizer import load_tokenizer

    prefix = path.with_suffix("") if path.suffix in (".idx", ".bin") else path
    indexed = IndexedDataset(prefix)
    facts = {"documents": len(indexed), "tokens": len(indexed.tokens), "dtype": str(indexed.tokens.dtype)}
    tokenizer = load_tokenizer(prefix.parent) if (prefix.parent / "tokenizer.json").is_file() else None

    def rows() -> Iterator[Row]:
        for number in range(len(indexed)):
            ids = indexed[number].tolist()
            row: Row = {"document": number, "ids": ids}
            if tokenizer:
                pieces = [tokenizer.decode([i], skip_special=False) for i in ids]
                row |= {"text": tokenizer.decode(ids, skip_special=False), "tokens": pieces}
            yield row

    return View("tokens", str(prefix), facts, row_filter.select_rows(rows(), _SAMPLE))


def _view_gguf(path: Path, row_filter: RowFilter) -> View:
    with GGUF(path) as gguf:
        tensors = [
            {"tensor": info.name, "type": info.type, "shape": list(info.shape), "bytes": info.nbytes}
            for info in gguf.tensors.values()
        ]
        metadata = {key: _abbreviate_list(value) for key, value in gguf.metadata.items()}
    if GGUF_KEY in metadata:  # hashes of all training documents and questions: megabytes on one line
        metadata[GGUF_KEY] = training_data_sentence(read_ancestry(ModelFiles(str(path), "gguf", path)))
    facts = {"bytes": gguf.nbytes, "tensors": len(tensors), "metadata": metadata}
    if len(gguf.files) > 1:
        facts["files"] = [part.name for part in gguf.files]
    return View("gguf", str(path), facts, row_filter.select_rows(tensors))


def _view_model_folder(folder: Path, row_filter: RowFilter) -> View:
    """View an HF folder: its config, and the tensors of all its files."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = [row for file in files for row in _read_safetensors_header(file)]
    facts = {"config": read_json(folder / "config.json"), "files": len(files), "tensors": len(tensors)}
    return View("model", str(folder), facts, row_filter.select_rows(tensors))


def _view_safetensors(path: Path, row_filter: RowFilter) -> View:
    tensors = list(_read_safetensors_header(path))
    return View("model", str(path), {"tensors": len(tensors)}, row_filter.select_rows(tensors))


def _read_safetensors_header(path: Path) -> Iterator[Row]:
    """Yield a row per tensor from a safetensors file's header, which is a u64 length and JSON.

    https://github.com/huggingface/safetensors#format
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
            raise InputError(path, "not a safetensors file", place="byte 0")
        try:
            header = json.loads(file.read(length))
            entries = [(name, info) for name, info in header.items() if name != "__metadata__"]
            rows = [
                {"tensor": name, "type": info["dtype"], "shape": info["shape"], "bytes": end - begin}
                for name, info in entries
                for begin, end in [info["data_offsets"]]
            ]
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise InputError(path, f"the header is damaged: {error}", place="byte 8") from error
    yield from rows


def _abbreviate_list(value: object) -> object:
    """Return a value; a long list is replaced by a text with its length and first values."""
    return f"{len(value)} values: {value[:5]}…" if isinstance(value, list) and len(value) > 16 else value


def print_view(view: View, rows: int | None = None, indent: str = "") -> None:
    """Print a view on stdout as text; of a stage a summary, and at most `rows` rows of all its files."""
    if view.kind == "stage":
        view = _summarize_stage(view, _SAMPLE if rows is None else rows)
    lines = [f"{view.kind} {view.path}", *_format_facts(view.facts, "  ")]
    if view.kind != "rows":
        lines += [f"  {line}" for row in view.rows for line in _format_row(view.kind, row)]
    sys.stdout.writelines(f"{indent}{sanitize_terminal(line)}\n" for line in lines)
    if view.kind == "rows":
        for row in view.rows:
            print_spans(row, f"{indent}  ")
    for inside in view.inside:
        print_view(inside, rows, indent + "  ")


def _summarize_stage(view: View, rows: int) -> View:
    """Return a stage's view with short facts and the first `rows` rows of its files.

    Documents and rows come before tokens and tensors, the largest file first: a corpus shows training
    documents, and not the dropped ones.
    """
    facts = view.facts
    summary = {key: facts[key] for key in ("stage", "kind", "state", "started", "took")}
    summary["inputs"] = {
        name: without_digest(text.rpartition(" ")[0]) for name, text in facts["inputs"].items()
    }
    for key in ("config", "metrics"):
        summary[key] = {name: _shorten_fact(value) for name, value in facts[key].items()}
    total = format_bytes(sum(row["bytes"] for row in view.rows))
    summary["files"] = f"{len(view.rows):,}, {total} (--json lists them with the full record)"
    inside = []
    order = {"documents": 0, "rows": 0, "tokens": 1}
    for each in sorted(view.inside, key=lambda each: (order.get(each.kind, 2), -each.facts.get("bytes", 0))):
        if chosen := each.rows[:rows]:
            facts_shown = {key: value for key, value in each.facts.items() if not isinstance(value, dict)}
            inside.append(replace(each, facts=facts_shown, rows=chosen))
            rows -= len(chosen)
    return replace(view, facts=summary, rows=[], inside=inside)


def _shorten_fact(value: object, depth: int = 1) -> object:
    """Return a value whose parts fit on a line each: a table keeps its keys, a table in it is one line."""
    if isinstance(value, dict) and depth:
        return {key: _shorten_fact(item, depth - 1) for key, item in value.items()}
    if isinstance(value, dict):
        cells = [f"{key} {item}" for key, item in value.items() if not isinstance(item, dict | list)]
        value = ", ".join(cells) or f"{len(value)} entries"
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"{len(value)} entries"
    text = str(value)
    return value if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def _format_facts(facts: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from _format_facts(value, indent + "  ")
        elif value not in ({}, [], None):
            yield f"{indent}{key}: {_format_fact(key, value)}"


def _format_fact(key: str, value: object) -> str:
    if key == "bytes" and isinstance(value, int):
        return format_bytes(value)
    plain = isinstance(value, str) and "\n" not in value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _format_row(kind: str, row: Row) -> Iterator[str]:
    """Yield a row's lines: a document's text, tokens with their boundaries, any other row on one line."""
    if kind == "tokens":
        yield f"document {row['document']}, {len(row['ids'])} tokens"
        if "tokens" in row:
            yield f"  {'│'.join(row['tokens'])}".replace("\n", "⏎")[:_PRINTED]
    elif kind == "documents" and isinstance(row.get("text"), str):
        yield " ".join(str(row[key]) for key in ("id", "source") if key in row)
        yield f"  {row['text'][:_PRINTED]}".replace("\n", "\n    ")
    else:
        yield "  ".join(_format_cell(key, value) for key, value in row.items())[:_PRINTED]


def _format_cell(key: str, value: object) -> str:
    if key in _WITHOUT_KEY and isinstance(value, str):
        return value
    if key == "bytes" and isinstance(value, int):
        return format_bytes(value)
    if key == "shape" and isinstance(value, list):
        return "×".join(map(str, value))
    return f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
