"""`meditron verify` and `meditron sign`: check a model's files, and sign them."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, print_json
from meditron.core.console import error, info, warn

__all__ = ["sign", "verify"]


def verify(
    path: Annotated[
        Path,
        Parameter(help="A GGUF or safetensors file, or a folder: an HF folder, a stage, a download."),
    ],
    /,
    *,
    key: Annotated[
        Path | None,
        Parameter(help="Public key (PEM) of the signature, model.sig or FILE.sig; needs the extra signing."),
    ] = None,
    bom: Annotated[
        Path | None,
        Parameter(
            help="Write the bill of materials of a stage without problems, as CycloneDX JSON; needs the "
            "extra bom."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Verify a model's files: format, values, vocabulary, checksums, signature, provenance.

    Nothing is run or downloaded. Compares with SHA256SUMS beside the files, and with the manifests of a run.
    Exits with 1 if there is a problem.

    For example:

        meditron verify runs/quickstart/quantize
    """
    from meditron.release.verify.verification import verify as check

    result = check(path, key)
    if bom is not None and result["ok"]:
        from meditron.release.verify.bom import write_bom

        write_bom(path, bom)
        result["bom"] = str(bom)
    for note in result["notes"]:
        warn(note)
    if as_json:
        print_json(result)
    else:
        for problem in result["problems"]:
            error(problem)
        if result["ok"]:
            signed = ", signature verified" if result["signature"] == "verified" else ""
            info(f"{path}: no problems{signed}")
            print(f"{result['sha256']}  {path}")  # noqa: T201
    return 0 if result["ok"] else 1


def sign(
    path: Annotated[Path, Parameter(help="A folder, all of whose files are signed, or one file.")],
    /,
    *,
    key: Annotated[
        Path, Parameter(help="Elliptic-curve private key (PEM, without password): P-256, P-384 or P-521.")
    ],
    as_json: Json = False,
) -> None:
    """Sign a model's files as OpenSSF's model signing specifies, with a key and offline.

    Writes model.sig into the folder, or FILE.sig beside the file. A folder without SHA256SUMS gets one first.
    Needs the extra signing.

    For example:

        meditron sign runs/quickstart/quantize --key key.pem
    """
    from meditron.release.verify.signature import sign as write

    signature = write(path, key)
    if as_json:
        print_json({"path": str(signature)})
    else:
        info(f"{signature}: written")
