"""Toy tasks that worker processes can import, and a stand-in for Slurm's sbatch."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import InputError

FAKE_SBATCH = """#!{python}
import os, re, subprocess, sys, time
script = sys.argv[-1]
assert sys.argv[1:-1] == ["--parsable", "--wait"], sys.argv
text = open(script).read()
first, last, limit = map(int, re.search(r"^#SBATCH --array=(\\d+)-(\\d+)%(\\d+)$", text, re.M).groups())
log = re.search(r"^#SBATCH --output=(.*)$", text, re.M)[1].strip('"').replace("%%", "%")
print("4711;cluster", flush=True)
worst, running = 0, []
for number in range(first, last + 1):
    if len(running) == limit:
        worst = max(worst, running.pop(0).wait())
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(number))
    with open(log.replace("%a", str(number)), "w") as output:
        command = ["bash", script]
        running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
sys.exit(max([worst, *(element.wait() for element in running)]))
"""


def install_fake_slurm(folder: Path, sbatch: str = FAKE_SBATCH) -> Path:
    """Write `sbatch`, which runs the array here, and `scancel`, which records the jobs that it cancels."""
    folder.mkdir()
    cancel = f'#!/usr/bin/env bash\necho "$@" >> "{folder}/cancelled"\n'
    for name, text in (("sbatch", sbatch.replace("{python}", sys.executable)), ("scancel", cancel)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


class TwoArgumentsError(Exception):
    """An exception that is pickled but cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True, slots=True)
class Square:
    """Writes the square of its number; some numbers fail in a certain way."""

    folder: Path
    damaged: int | None = None
    unpicklable: int | None = None
    killed_once: int | None = None
    waits: int | None = None

    def result_file(self, number: int) -> Path:
        return self.folder / f"{number}.txt"

    def __call__(self, number: int) -> None:
        if number == self.damaged:
            raise InputError(self.folder / "x.xml", "not XML", place=f"line {number}", hint="unpack it")
        if number == self.unpicklable:
            raise TwoArgumentsError("one", "two")
        marker = self.folder / "killed"
        if number == self.killed_once and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.waits:
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        with self.result_file(number).open("a") as file:
            file.write(f"{number * number}\n")
