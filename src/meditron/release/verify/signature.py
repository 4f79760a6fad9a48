"""Signatures of OpenSSF's model signing: an elliptic-curve key, offline, one signature for all files.

https://github.com/ossf/model-signing-spec. A folder's signature is `model.sig` in it, a file's `FILE.sig`
beside it. The signature contains the SHA-256 of every file, so a changed, missing or additional file fails,
except for the files that the hub and its client add.
"""

import base64
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from meditron.core.errors import InputError, MissingExtra, SourceError, UsageError
from meditron.store.checksums import read_checksums, write_checksums
from meditron.store.files import list_files, sha256_file, translate_read_errors
from meditron.store.new_files import refuse_existing

if TYPE_CHECKING:
    from model_signing import hashing

__all__ = ["SignatureState", "sign", "signature_path", "signature_state"]

_FOLDER_SIGNATURE, _SUFFIX = "model.sig", ".sig"
SignatureState = Literal["verified", "not checked", "none", "failed"]
_MAX_BYTES = 64 << 20
# The hub adds the first to every repository, and its client the second to every download.
_UNSIGNED = (".gitattributes", ".cache/huggingface")


def signature_path(path: Path) -> Path:
    """Return where the signature of a file or folder is."""
    return path / _FOLDER_SIGNATURE if path.is_dir() else path.with_name(path.name + _SUFFIX)


def signature_state(path: Path, key: Path | None) -> tuple[SignatureState, list[str]]:
    """Verify the signature of a file or folder; return its state and the problems.

    Args:
        path: The file or folder.
        key: The public key (PEM); None: the signature is not checked.

    Raises:
        MissingExtra: model-signing is not installed.
        SourceError: there is no such key.
        UsageError: the key is no public key.
    """
    signature = signature_path(path)
    exists = signature.is_file()
    if key is None:
        return ("not checked" if exists else "none"), []
    _require_library()
    from model_signing import verifying

    config = verifying.Config()
    try:
        config.use_elliptic_key_verifier(public_key=_existing(key))
    except (ValueError, TypeError, AttributeError) as error:  # AttributeError for an RSA key
        raise UsageError(f"{key}: not an elliptic-curve public key in PEM: {error}") from error
    if not exists:
        return "none", [f"{signature}: no signature, but a key was given"]
    if signature.stat().st_size > _MAX_BYTES:
        return "failed", [f"{signature}: larger than {_MAX_BYTES:,} bytes"]
    try:
        # By itself the library ignores `.git`, `.github` and other paths, which may contain anything.
        config.set_hashing_config(_hashing_config(path, _serialization(signature)))
        # Files that the signature does not name are an error.
        config.verify(path, signature)
    # The library raises ValueError for a mismatch, and the exceptions of cryptography, JSON and protobuf for
    # a damaged file.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return "failed", [f"{signature}: the signature does not match: {text}"]
    return "verified", []


def sign(path: Path, key: Path) -> Path:
    """Sign a file, or all files of a folder, with a private key; return the signature's path.

    A folder without `SHA256SUMS` gets one first, so that its files can be checked without the key.

    Args:
        path: The file or folder.
        key: An elliptic-curve private key (PEM, without password): NIST P-256, P-384 or P-521.

    Raises:
        UsageError: the signature exists, or the key is no such key.
        SourceError: there is no such file, folder or key.
        InputError: a file cannot be signed, for example a symbolic link.
        MissingExtra: model-signing is not installed.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    _require_library()
    from model_signing import signing

    signature = signature_path(path)
    refuse_existing([signature])
    config = signing.Config()
    try:
        config.use_elliptic_key_signer(private_key=_existing(key))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{key}: not an elliptic-curve private key in PEM: {error}",
            hint="make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error
    if path.is_dir() and not read_checksums(path):
        write_checksums(
            path,
            {
                file.relative_to(path).as_posix(): sha256_file(file)
                for file in list_files(path)
                if file.relative_to(path).as_posix() not in _UNSIGNED
            },
        )
    config.set_hashing_config(_hashing_config(path))
    try:
        config.sign(path, signature)
    except ValueError as error:
        raise InputError(path, f"cannot be signed: {error}") from error
    return signature


def _hashing_config(path: Path, serialization: Mapping[str, Any] | None = None) -> "hashing.Config":
    """Return which files of a folder are signed and how they are hashed: `serialization`, or as `sign` does.

    All files are signed but the signature itself and `_UNSIGNED`.
    """
    from model_signing import hashing

    config = hashing.Config()
    if serialization is not None:
        # The library writes `blake2b` for what it calls `blake2`, and numbers as JSON does, with a point.
        settings = {"hashing_algorithm": serialization["hash_type"].replace("blake2b", "blake2")}
        config.set_allow_symlinks(serialization["allow_symlinks"])
        if serialization["method"] == "shards":
            config.use_shard_serialization(shard_size=int(serialization["shard_size"]), **settings)
        else:
            config.use_file_serialization(**settings)
    ignored = [_FOLDER_SIGNATURE, *_UNSIGNED] if path.is_dir() else []
    return config.set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _serialization(signature: Path) -> Any:  # noqa: ANN401  # JSON
    """Return how a signature says that the files were hashed; other programs sign shards of files.

    None for signatures of the format's version 0.2, which say nothing: SHA-256 of whole files.
    """
    bundle = json.loads(signature.read_bytes())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return payload["predicate"].get("serialization")


def _existing(key: Path) -> Path:
    with translate_read_errors(key):
        key.open("rb").close()
    return key


def _require_library() -> None:
    if find_spec("model_signing") is None:
        raise MissingExtra("model_signing", "signing")
