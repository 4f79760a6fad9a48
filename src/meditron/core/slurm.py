"""Values of `sbatch` options: their syntax, and their quoting in a line `#SBATCH`.

The options are those of https://slurm.schedmd.com/sbatch.html.
"""

import re

__all__ = ["NAME_PATTERN", "TIME_PATTERN", "log_option", "quote_directive"]

TIME_PATTERN = r"^(\d+-)?\d{1,3}(:\d{1,2}){0,2}$"
"""Pattern of a time limit: `HH:MM:SS` or `DAYS-HH:MM:SS`."""
NAME_PATTERN = r"^[A-Za-z0-9._,+-]+$"
"""Pattern of the name of a partition or an account."""


def quote_directive(value: str) -> str:
    """Quote a value for a line `#SBATCH`, which Slurm splits at blanks by itself: no shell expands it."""
    if re.fullmatch(r"[\w./%@+:,-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def log_option(folder: str, name: str) -> str:
    """Return the option `--output` for a log file in a folder; `name` may have Slurm's `%` patterns."""
    return f"--output={quote_directive(f'{folder}/'.replace('%', '%%') + name)}"
