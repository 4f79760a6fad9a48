"""Tasks as a Slurm job array: one batch script per pass, submitted with `sbatch --wait`.

Each element of the array runs a share of the unfinished tasks on one core. Where there is no `sbatch`, the
script is left for the user to submit; the stage continues from the array's files when it is run again.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from meditron.core.console import info
from meditron.core.errors import EngineError, UsageError
from meditron.core.slurm import log_option, quote_directive
from meditron.corpus.config import SlurmConfig
from meditron.corpus.task import Task
from meditron.store.files import atomic_write, remove_path

__all__ = ["array_script", "run_as_array"]

_MAX_ELEMENTS = 1_000
"""Elements of an array; Slurm's default limit, MaxArraySize, is 1,001."""


def run_as_array(
    description: Path, task: Task, numbers: Sequence[int], workers: int, config: SlurmConfig
) -> None:
    """Submit the tasks as a job array, and wait until it has ended.

    Args:
        description: The description of the tasks (`corpus.task`), in a folder that all nodes share. The
            script, the logs and the job's id are written beside it.
        task: The described task.
        numbers: The tasks to run.
        workers: Maximum number of array elements that run at the same time.
        config: Resources of an element.

    Raises:
        UsageError: There is no `sbatch` on this machine.
        EngineError: The job was refused, or tasks have not finished; the error names their logs.
    """
    elements = min(len(numbers), _MAX_ELEMENTS)
    script = description.with_suffix(".sbatch")
    with atomic_write(script, "w") as file:
        file.write(array_script(description, elements, workers, config))
    if shutil.which("sbatch") is None:
        raise UsageError(
            f"executor = 'slurm', but there is no sbatch here; the job's script is {script}",
            hint="submit it on the cluster with sbatch, and run this command again when the job has ended",
        )
    job_file = description.with_suffix(".job")
    _cancel_earlier_job(job_file)
    _submit_and_wait(script, job_file)
    unfinished = [at for at, number in enumerate(numbers) if not task.result_file(number).exists()]
    if unfinished:
        raise _unfinished_error(description, unfinished, elements, len(numbers))


def array_script(description: Path, elements: int, workers: int, config: SlurmConfig) -> str:
    """Return the batch script of an array; every value is quoted, so paths may have spaces and quotes.

    Raises:
        UsageError: A path has a control character, which a batch script cannot have.
    """
    name = description.stem
    command = [sys.executable, "-m", "meditron.corpus.task", str(description.absolute())]
    for value in command:
        # A line break would end an option or a comment in the middle of the value.
        if not value.isprintable():
            raise UsageError(f"{value!r} has a control character, which a batch script cannot have")
    options = [
        f"--job-name=meditron-{name}",
        f"--array=0-{elements - 1}%{workers}",
        "--ntasks=1",
        "--cpus-per-task=1",
        f"--mem={config.memory}",
        f"--time={config.time}",
        "--requeue",
        log_option(str(description.parent.absolute()), f"{name}-%a.log"),
    ]
    options += [
        f"--{option}={quote_directive(value)}"
        for option, value in (("partition", config.partition), ("account", config.account))
        if value is not None
    ]
    directives = "\n".join(f"#SBATCH {option}" for option in options)
    return _SCRIPT.format(directives=directives, command=shlex.join(command), elements=elements)


def _cancel_earlier_job(job_file: Path) -> None:
    """Cancel the array of a killed run: both would do the same tasks."""
    if job_file.exists():
        job = job_file.read_text(encoding="utf-8").strip()
        with suppress(FileNotFoundError):
            subprocess.run(["scancel", job], check=False, capture_output=True)
        remove_path(job_file)


def _submit_and_wait(script: Path, job_file: Path) -> None:
    command = ["sbatch", "--parsable", "--wait", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        # sbatch prints `id` or `id;cluster` when the job is queued, then waits for its end.
        job = process.stdout.readline().strip().partition(";")[0]
        try:
            if job:
                with atomic_write(job_file, "w") as file:
                    file.write(f"{job}\n")
                info(f"Slurm job {job}: {script}")
            message = process.stderr.read().strip()
            code = process.wait()
        except BaseException:
            process.kill()
            _cancel_earlier_job(job_file)
            raise
    remove_path(job_file)
    # With --wait the exit code is that of the worst element, whose log the caller names.
    if code and not job:
        raise EngineError(
            f"sbatch refused {script}: {message or f'exit code {code}'}",
            hint="see the keys partition, account, time and memory of the stage's table slurm",
        )


def _unfinished_error(description: Path, unfinished: list[int], elements: int, total: int) -> EngineError:
    log = description.with_name(f"{description.stem}-{unfinished[0] % elements}.log")
    cause = "no log"
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        # The command's error line, else the last line, which Slurm writes when it ends a job.
        errors = [line for line in lines if line.startswith("error: ")]
        cause = (errors or lines or ["empty log"])[-1]
    return EngineError(
        f"{len(unfinished):,} of {total:,} tasks of '{description.stem}' have not finished; {log}: {cause}",
        hint=f"logs: {log.with_name(f'{description.stem}-*.log')}; running again repeats these tasks only",
    )


_SCRIPT = """\
#!/usr/bin/env bash
{directives}
#
# Written by meditron's corpus stages. Each element runs its share of the unfinished tasks.
# Single quotes are intended: paths are taken as they are.
# shellcheck disable=SC2016
set -euo pipefail

# One element has one core.
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec {command} "$SLURM_ARRAY_TASK_ID" {elements}
"""
