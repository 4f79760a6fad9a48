"""Checks of a folder in Hugging Face's layout: safetensors files, their index, config and tokenizer."""

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from meditron.core.console import Bar
from meditron.core.errors import InputError, SourceError
from meditron.store.files import read_json, reject_duplicate_keys, translate_read_errors

__all__ = ["INDEX_FILE", "folder_problems", "safetensors_problems"]

INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000
"""Largest header that the safetensors library accepts, in bytes."""
_CHUNK = 4 << 20
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_EMBEDDING = "model.embed_tokens.weight"

Header = Mapping[str, Mapping[str, Any]]


def safetensors_problems(path: Path, bar: Bar) -> Iterator[str]:
    """Yield the problems of a safetensors file: of its header, by the library's rules, and of its values."""
    try:
        header, start = _read_header(path)
    except InputError as error:
        yield str(error)
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if (problem := _first_not_finite(data, entry["dtype"], start + begin, start + end)) is not None:
                yield f"{path} ({name}): {problem}"
            bar.advance(end - begin)


def _read_header(path: Path) -> tuple[Header, int]:
    """Return a file's tensors and the first byte of their data.

    Raises:
        InputError: the library refuses the file, or a name occurs twice, of which the library keeps one.
    """
    with translate_read_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(size - 8, _MAX_HEADER):
            raise InputError(path, f"a header of {length:,} bytes in a file of {size:,}", place="byte 0")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=reject_duplicate_keys)
        with safe_open(path, framework="numpy") as opened:
            opened.keys()
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise InputError(path, f"the header is damaged: {error}", place="byte 8") from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length


def _first_not_finite(data: mmap.mmap, dtype: str, begin: int, end: int) -> str | None:
    if dtype not in _FLOATS:
        return None
    kind = np.dtype(_FLOATS[dtype])
    for at in range(begin, end, _CHUNK):
        values = np.frombuffer(data, kind, min(_CHUNK, end - at) // kind.itemsize, at)
        # Infinity and NaN have an exponent of ones.
        finite = (values & 0x7F80) != 0x7F80 if dtype == "BF16" else np.isfinite(values)
        bad = np.flatnonzero(~finite)
        # An array keeps the map open, so none may be left when the map is closed.
        del values, finite
        if bad.size:
            return f"value {(at - begin) // kind.itemsize + int(bad[0])} is not finite"
    return None


def folder_problems(folder: Path) -> Iterator[str]:
    """Yield contradictions between index, files, config and tokenizer of a model's folder."""
    headers: dict[str, Header] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            headers[path.name] = _read_header(path)[0]
        except InputError:  # reported with the file
            continue
    if (folder / INDEX_FILE).is_file():
        yield from _index_problems(folder, headers)
    try:
        yield from _vocabulary_problems(folder, headers)
    except (InputError, SourceError) as error:
        yield str(error)


def _index_problems(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    index = folder / INDEX_FILE
    try:
        content = read_json(index, strict=True)
    except InputError as error:
        yield str(error)
        return
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        yield f"{index} (weight_map): expected an object of tensors and files"
        return
    files = {str(name) for name in names.values()}
    for name in sorted(files):
        if Path(name).name != name:
            yield f"{index} (weight_map): {name!r} is not a file of this folder"
        elif not (folder / name).is_file():
            yield f"{index} (weight_map): {name} is missing"
    for tensor, file in names.items():
        if file in headers and tensor not in headers[file]:
            yield f"{index} ({tensor}): is not in {file}"
    for file in sorted(files & headers.keys()):
        for tensor in headers[file]:
            if names.get(tensor) != file:
                yield f"{folder / file} ({tensor}): the index has it {_place(names.get(tensor))}"


def _place(file: object) -> str:
    return "nowhere" if file is None else f"in {file}"


def _vocabulary_problems(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    """Yield differences between the embedding's rows, the config's vocab_size and the tokenizer's ids."""
    shape = next((header[_EMBEDDING]["shape"] for header in headers.values() if _EMBEDDING in header), None)
    if shape is not None and len(shape) != 2:
        yield f"{folder} ({_EMBEDDING}): has the shape {shape}, not rows and columns"
        return
    rows = None if shape is None else shape[0]
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    size = config.get("vocab_size") if isinstance(config, dict) else None
    if rows is not None and size is not None and size != rows:
        yield f"{folder / 'config.json'} (vocab_size): {size!r:.60}, but {_EMBEDDING} has {rows:,} rows"
    tokenizer = folder / "tokenizer.json"
    limit = rows if rows is not None else size
    if not tokenizer.is_file() or type(limit) is not int:
        return
    content = read_json(tokenizer)
    for place, identity in _token_ids(content):
        if type(identity) is not int or not 0 <= identity < limit:
            yield f"{tokenizer} ({place}): id {identity!r:.60} is not one of the model's {limit:,}"
            return


def _token_ids(content: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  # any JSON value
    """Yield the place and id of each token of a tokenizer.json."""
    if not isinstance(content, dict):
        return
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        for token, identity in vocabulary.items():
            yield f"model.vocab[{token!r:.60}]", identity
    elif isinstance(vocabulary, list):  # a unigram model's ids are the positions
        yield "model.vocab", max(len(vocabulary) - 1, 0)
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            yield f"added_tokens[{token.get('content')!r:.60}]", token.get("id")
