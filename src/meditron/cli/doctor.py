"""`meditron doctor`: check this machine and the installation."""

from pathlib import Path

from meditron.cli.options import Json, Out, print_json

__all__ = ["doctor"]


def doctor(*, out: Out = Path("runs"), as_json: Json = False) -> int:
    """Check this machine and the installation.

    For example:

        meditron doctor --out /scratch/runs

    Each line has what was found, what it makes possible (or what is lost without it), and the command that
    would add it. A small C++ program is compiled and torch is imported; nothing is downloaded. The exit code
    is 1 if something that every installation needs is broken.
    """
    from meditron.core.doctor import run_checks
    from meditron.core.machine import describe
    from meditron.report.terminal import print_table
    from meditron.store.files import cache_folder

    checks = run_checks(out, cache_folder())
    broken = any(check.required and check.state == "broken" for check in checks)
    if as_json:
        versions = {"python": describe()["python"], **describe()["libraries"]}
        listed = [check.to_json() for check in checks]
        print_json({"ok": not broken, "checks": listed, "versions": versions})
    else:
        print_table(
            ("check", "state", "found", "makes possible (or is lost)", "remedy"),
            [(check.name, check.state, check.found, check.effect, check.remedy or "") for check in checks],
            title="This machine and installation",
            answer=True,
        )
    return 1 if broken else 0
