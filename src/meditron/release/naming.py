"""What a model is called in the files made from it."""

import re
from pathlib import Path

from meditron.store.authorship import read_authorship
from meditron.store.gguf import GGUF
from meditron.store.manifest import read_manifest
from meditron.store.models import ModelFiles

__all__ = ["file_stem", "model_name"]

# The type at the end of a file's name: SmolLM2-135M-Instruct.Q4_1, llama-2-7b-f16, Q8_0.
_TYPE = re.compile(r"(^|[-._])(q\d_\w+|b?f16|f32)$", re.IGNORECASE)


def model_name(files: ModelFiles) -> str:
    """A name for people (GGUF's `general.name`).

    A GGUF file and a README.md (`model_name`) say their own, a stage of a run is called after both
    (`quickstart pretrain`), any other folder by its name, and a preset by its own (`tiny`).
    """
    if files.kind == "init":
        return files.spec.split(":")[1]
    path = Path(files.path).resolve()
    if files.kind == "gguf":
        with GGUF(path) as gguf:
            said = gguf.metadata.get("general.name")
        return said if isinstance(said, str) and said else path.stem
    if said := read_authorship(files).get("general.name"):
        return str(said)
    if read_manifest(path) is not None:
        return f"{path.parent.name} {path.name}"
    return path.name


def file_stem(files: ModelFiles) -> str:
    """How the names of a model's files begin: as its own GGUF file's does, else as `model_name` says.

    What a file system or a shell minds becomes a hyphen.
    """
    stem = _TYPE.sub("", Path(files.path).stem) if files.kind == "gguf" else ""
    return re.sub(r"[^\w.]+", "-", stem or model_name(files)).strip("-.") or "model"
