"""Where a package registry keeps a wheel: pip is asked, so that the user's own configuration holds.

Index addresses, mirrors, folders of wheels, certificates and credentials are pip's affair. Nothing is
installed and nothing of a package is run: wheels only, and only looked up.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from difflib import get_close_matches

from meditron.core.errors import DigestError, FetchError, SourceError

__all__ = ["Wheel", "find_wheel"]

_NETWORK = re.compile(r"[Cc]onnect|Temporary failure|timed out|SSLError|ProxyError|Max retries")


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where a wheel is, `https:` or `file:`, and the hash its index promises, if it promises one."""

    url: str
    sha256: str | None


def _has_pip() -> bool:
    """Whether this environment has pip. Looking for its module would switch off setuptools' own distutils."""
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_wheel(package: str, version: str) -> Wheel:
    """Ask pip where the wheel of `package==version` for this platform is.

    SourceError, with the nearest versions, when there is none; FetchError when the registry cannot be
    reached or pip is not there to be asked; DigestError when pip itself meets wrong bytes.
    """
    if not _has_pip():
        raise FetchError(
            f"pypi:{package}=={version} needs pip, which is not in this environment",
            hint="python -m ensurepip (or: uv pip install pip)",
        )
    requirement = f"{package}=={version}"
    # -P: a folder named pip in the working directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    options = ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", "--report", "-"]
    asked = subprocess.run(
        [*command, *options, "--retries=2", requirement],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if asked.returncode:
        raise _refusal(requirement, version, asked.stderr)
    return _reported(requirement, asked.stdout)


def _reported(requirement: str, report: str) -> Wheel:
    try:
        found = json.loads(report)["install"][0]["download_info"]
        hashes = found.get("archive_info", {}).get("hashes", {})
        return Wheel(url=str(found["url"]), sha256=hashes.get("sha256"))
    except (ValueError, LookupError, TypeError) as error:
        raise FetchError(f"pypi:{requirement}: pip's report cannot be read ({error!r})") from error


def _refusal(requirement: str, version: str, stderr: str) -> DigestError | FetchError | SourceError:
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    listed = re.search(r"\(from versions: ([^)]*)\)", stderr)
    versions = [] if listed is None or listed[1] == "none" else listed[1].split(", ")
    if listed and versions:
        near = get_close_matches(version, versions, n=3, cutoff=0.0)
        return SourceError(
            f"pypi:{requirement}: no wheel of that version", hint=f"nearest: {', '.join(near)}"
        )
    if "DO NOT MATCH THE HASHES" in stderr:
        return DigestError(f"pypi:{requirement}", "the wheel's bytes are not those its index promises")
    if _NETWORK.search(stderr):
        return FetchError(
            f"pypi:{requirement}: the registry was not reached", hint="pip config list shows it"
        )
    if listed:
        return SourceError(
            f"pypi:{requirement}: the registry has no wheel of such a package for this platform"
        )
    return FetchError(f"pypi:{requirement}: {errors[0] if errors else 'pip failed without a word'}")
