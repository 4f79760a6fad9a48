"""What is inside an artifact, as facts and rows, by what kind of thing it is."""

import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.cli.roles import print_roles, spoken_row
from meditron.core.console import sanitize_terminal
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.core.units import duration, size
from meditron.recipe.attempt import BEGUN
from meditron.store.ancestry import GGUF_KEY, read_ancestry, statement
from meditron.store.files import read_json
from meditron.store.gguf import GGUF
from meditron.store.indexed import IndexedDataset
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import FILE_NAME, Manifest, read_manifest
from meditron.store.models import ModelFiles, resolve

__all__ = ["View", "look", "print_view"]

_DOCUMENTS = (".jsonl", ".jsonl.zst", ".jsonl.gz")
_SUFFIXES = (*_DOCUMENTS, ".json", ".idx", ".bin", ".gguf", ".safetensors")
_SAMPLE = 5
_SHOWN = 1_000  # characters of a document or row that are printed
_NAMING = ("file", "sha256", "tensor", "type", "stage", "state")  # cells that need no key before them
_LONGEST_HEADER = 100 << 20  # of a safetensors file; its own library's limit

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """A look at one thing."""

    kind: str
    """`run`, `stage`, `documents`, `rows`, `tokens`, `gguf`, `model`, `json` or `folder`."""
    path: str
    facts: dict[str, Any]
    """What it is as a whole."""
    rows: list[Row] = field(default_factory=list)
    """Some of what it holds."""
    inside: "list[View]" = field(default_factory=list)
    """What a stage's folder holds."""

    def to_json(self) -> dict[str, Any]:
        """The form of --json, in which a number that is not finite is a word."""
        written: dict[str, Any] = _worded(asdict(self))
        return written


def _worded(value: Any) -> Any:  # noqa: ANN401  # whatever a file holds
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _worded(item) for key, item in value.items()}
    return [_worded(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows are asked for."""

    rows: int | None
    grep: str | None

    def of(self, rows: Iterable[Row], default: int | None = None) -> list[Row]:
        """The first rows that hold the text; `default` of them where no number was given."""
        return list(islice(filter(self.matches, rows), default if self.rows is None else self.rows))

    def matches(self, row: Row) -> bool:
        """Whether one of a row's texts holds the text that was asked for."""
        if self.grep is None:
            return True
        texts = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in row.values()
        )
        return any(self.grep.casefold() in text.casefold() for text in texts)


def look(artifact: str, rows: int | None = None, grep: str | None = None) -> View:
    """Look inside a file or folder, or a MODEL from elsewhere.

    SourceError for what is not there or of no kind that is known, InputError for what is damaged.
    """
    if rows is not None and rows < 0:
        raise UsageError(f"--rows {rows} is less than none")
    wanted = Wanted(rows, grep)
    path = Path(artifact)
    if not path.exists() and not path.with_name(f"{path.name}.idx").is_file():
        path = resolve(artifact).path
    if path.name == FILE_NAME:
        path = path.parent
    if path.is_dir():
        if manifest := read_manifest(path):
            return _stage(path, manifest, wanted)
        if stages := sorted(path.glob(f"*/{FILE_NAME}")):
            return _run(path, [stage.parent for stage in stages], wanted)
    views = list(_contents(path, wanted))
    if not views:
        raise SourceError(
            f"{path}: nothing in it that can be looked into",
            hint=f"inspect takes a run's or stage's folder, a model's folder, {', '.join(_SUFFIXES)}",
        )
    return views[0] if len(views) == 1 else View("folder", str(path), {}, inside=views)


def _contents(path: Path, wanted: Wanted) -> Iterator[View]:
    """What of a file or folder is of a known kind."""
    if not path.is_dir():
        yield from (view(path, wanted) for view in [_reader(path)] if view)
        return
    if (path / "config.json").is_file():
        yield _model(path, wanted)
    for pattern, view in (("*.idx", _tokens), ("*.gguf", _gguf), ("**/*.jsonl*", _documents)):
        for file in sorted(path.glob(pattern)):
            if view is not _documents or file.name.endswith(_DOCUMENTS):
                yield view(file, wanted)


def _reader(path: Path) -> Callable[[Path, Wanted], View] | None:
    if path.suffix in (".idx", ".bin") or not path.exists():
        return _tokens
    if path.name.endswith(_DOCUMENTS):
        return _documents
    return {".gguf": _gguf, ".safetensors": _safetensors, ".json": _json}.get(path.suffix)


def _run(path: Path, stages: list[Path], wanted: Wanted) -> View:
    """A run's folder: one row for each finished stage, in the order in which they ended."""
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
    begun = sorted(file.parent.name for file in path.glob(f"*/{BEGUN}") if file.parent not in stages)
    facts = {"stages": len(rows), "unfinished": begun, "hint": f"meditron inspect {stages[0]}"}
    return View("run", str(path), facts, wanted.of(rows))


def _json(path: Path, wanted: Wanted) -> View:
    """A JSON file: its keys as facts, or the items of its list as rows."""
    value = read_json(path)
    if isinstance(value, dict):
        return View("json", str(path), value)
    items = value if isinstance(value, list) else [value]
    rows = (item if isinstance(item, dict) else {"value": item} for item in items)
    return View("json", str(path), {"items": len(items)}, wanted.of(rows, _SAMPLE))


def _stage(path: Path, manifest: Manifest, wanted: Wanted) -> View:
    worked = (manifest.ended - manifest.started).total_seconds()
    facts = {
        "stage": manifest.name,
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "started": manifest.started.isoformat(timespec="seconds"),
        "took": duration(worked),
        "commit": f"{manifest.git.commit}{' with changes' if manifest.git.dirty else ''}",
        "inputs": {name: f"{record.reference} {record.digest}" for name, record in manifest.inputs.items()},
        "config": manifest.config,
        "metrics": manifest.metrics,
        "licences": manifest.licences,
        "machine": manifest.machine,
    }
    files = [{"file": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in manifest.files]
    return View("stage", str(path), facts, files, list(_contents(path, wanted)))


def _documents(path: Path, wanted: Wanted) -> View:
    """Lines as they are; what a model was finetuned on with its text by role, where its tokenizer is near."""
    facts = {"bytes": path.stat().st_size}
    rows = wanted.of(read_jsonl(path), _SAMPLE)
    if not any("roles" in row for row in rows) or not (path.parent / "tokenizer.json").is_file():
        return View("documents", str(path), facts, rows)
    from meditron.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path.parent)
    return View("rows", str(path), facts, [spoken_row(path, row, tokenizer) for row in rows])


def _tokens(path: Path, wanted: Wanted) -> View:
    """Documents of ids, decoded token by token where a tokenizer stands beside them."""
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

    return View("tokens", str(prefix), facts, wanted.of(rows(), _SAMPLE))


def _gguf(path: Path, wanted: Wanted) -> View:
    with GGUF(path) as gguf:
        tensors = [
            {"tensor": info.name, "type": info.type, "shape": list(info.shape), "bytes": info.nbytes}
            for info in gguf.tensors.values()
        ]
        metadata = {key: _brief(value) for key, value in gguf.metadata.items()}
    if GGUF_KEY in metadata:  # a hash of every document and question trained on: megabytes on one line
        metadata[GGUF_KEY] = statement(read_ancestry(ModelFiles(str(path), "gguf", path)))
    facts = {"bytes": path.stat().st_size, "tensors": len(tensors), "metadata": metadata}
    return View("gguf", str(path), facts, wanted.of(tensors))


def _model(folder: Path, wanted: Wanted) -> View:
    """An HF folder: its configuration, and the tensors of all its files."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = [row for file in files for row in _header(file)]
    facts = {"config": read_json(folder / "config.json"), "files": len(files), "tensors": len(tensors)}
    return View("model", str(folder), facts, wanted.of(tensors))


def _safetensors(path: Path, wanted: Wanted) -> View:
    tensors = list(_header(path))
    return View("model", str(path), {"tensors": len(tensors)}, wanted.of(tensors))


def _header(path: Path) -> Iterator[Row]:
    """Names, types and shapes of a safetensors file, from its header: u64 length, then JSON.

    https://github.com/huggingface/safetensors#format
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
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


def _brief(value: object) -> object:
    """A metadata value; of a long list its length and its head."""
    return f"{len(value)} values: {value[:5]}…" if isinstance(value, list) and len(value) > 16 else value


def print_view(view: View, indent: str = "") -> None:
    """Print a look on stdout, for people."""
    lines = [f"{view.kind} {view.path}", *_facts(view.facts, "  ")]
    if view.kind != "rows":
        lines += [f"  {line}" for row in view.rows for line in _row(view.kind, row)]
    sys.stdout.writelines(f"{indent}{sanitize_terminal(line)}\n" for line in lines)
    if view.kind == "rows":
        for row in view.rows:
            print_roles(row, f"{indent}  ")
    for inside in view.inside:
        print_view(inside, indent + "  ")


def _facts(facts: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}"
            yield from _facts(value, indent + "  ")
        elif value not in ({}, [], None):
            yield f"{indent}{key}: {_fact(key, value)}"


def _fact(key: str, value: object) -> str:
    if key == "bytes" and isinstance(value, int):
        return size(value)
    plain = isinstance(value, str) and "\n" not in value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _row(kind: str, row: Row) -> Iterator[str]:
    """Yield a document as its text, tokens with the boundaries between them, anything else on one line."""
    if kind == "tokens":
        yield f"document {row['document']}, {len(row['ids'])} tokens"
        if "tokens" in row:
            yield f"  {'│'.join(row['tokens'])}".replace("\n", "⏎")[:_SHOWN]
    elif kind == "documents" and isinstance(row.get("text"), str):
        yield " ".join(str(row[key]) for key in ("id", "source") if key in row)
        yield f"  {row['text'][:_SHOWN]}".replace("\n", "\n    ")
    else:
        yield "  ".join(_cell(key, value) for key, value in row.items())[:_SHOWN]


def _cell(key: str, value: object) -> str:
    if key in _NAMING and isinstance(value, str):
        return value
    if key == "bytes" and isinstance(value, int):
        return size(value)
    if key == "shape" and isinstance(value, list):
        return "×".join(map(str, value))
    return f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
