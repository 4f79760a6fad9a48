"""Names of models, and of the files made from them."""

import re
from pathlib import Path

from meditron.store.authorship import read_authorship
from meditron.store.gguf import GGUF
from meditron.store.manifest import read_manifest
from meditron.store.models import ModelFiles

__all__ = ["file_stem", "model_name"]

# Pattern of the type at the end of a GGUF file's name: SmolLM2-135M-Instruct.Q4_1, llama-2-7b-f16, Q8_0.
_TYPE = re.compile(r"(^|[-._])(q\d_\w+|b?f16|f32)$", re.IGNORECASE)


def model_name(files: ModelFiles) -> str:
    """Return the model's name for people (GGUF's `general.name`).

    The name is read from the GGUF file or from the folder's README.md (`model_name`). If there is none, a
    stage of a run is named after run and stage (`quickstart pretrain`), any other folder after itself, and a
    preset by its name (`tiny`).
    """
    if files.kind == "init":
        return files.spec.split(":")[1]
    path = Path(files.path).resolve()
    if files.kind == "gguf":
        with GGUF(path) as gguf:
            name = gguf.metadata.get("general.name")
        return name if isinstance(name, str) and name else path.stem
    if name := read_authorship(files).get("general.name"):
        return str(name)
    if read_manifest(path) is not None:
        return f"{path.parent.name} {path.name}"
    return path.name


def file_stem(files: ModelFiles) -> str:
    """Return the stem of the names of a model's files: that of its own GGUF file, else `model_name`.

    Characters that are special in a file system or a shell become hyphens.
    """
    stem = _TYPE.sub("", Path(files.path).stem) if files.kind == "gguf" else ""
    return re.sub(r"[^\w.]+", "-", stem or model_name(files)).strip("-.") or "model"
