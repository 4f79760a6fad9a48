"""Batch scripts for Slurm: one task per GPU, a checkpoint before the time limit, and the job queued again.

The options of a script are those of `sbatch` (https://slurm.schedmd.com/sbatch.html). The ranks find each
other by the variables that torchrun would set (https://docs.pytorch.org/docs/stable/elastic/run.html): `srun`
starts them itself, so that a signal reaches every rank and no agent kills a rank that is still saving.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from meditron.core.errors import UsageError
from meditron.core.slurm import NAME_PATTERN, TIME_PATTERN, log_option

__all__ = ["SlurmJob", "slurm_script"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """Resources and limits of a job."""

    nodes: int
    gpus_per_node: int
    """GPUs of a node, and the number of ranks that run on it."""
    cpus_per_gpu: int = 8
    time: str = "24:00:00"
    """Time limit as Slurm reads it: `HH:MM:SS` or `DAYS-HH:MM:SS`. The job is queued again until the training
    is finished, so the limit need not cover all of it."""
    seconds_to_save: int = 600
    """Seconds before the time limit at which the training saves a checkpoint and ends."""
    logs: Path = Path("logs")
    """Folder of the jobs' output; it must exist when the job starts."""
    partition: str | None = None
    account: str | None = None

    @classmethod
    def of_ranks(cls, ranks: int, nodes: int, gpus_per_node: int, *, tp: int = 1) -> Self:
        """Return a job with exactly `ranks` GPUs, on the fewest nodes that have equally many of them.

        Args:
            ranks: GPUs of the layout.
            nodes: Nodes of the cluster.
            gpus_per_node: GPUs of a node.
            tp: Tensor-parallel ranks, which stay within a node if possible: they communicate in every block.

        Raises:
            UsageError: The ranks cannot be divided evenly over so many nodes.
        """
        sizes = [
            cls(nodes=used, gpus_per_node=ranks // used)
            for used in range(1, nodes + 1)
            if ranks % used == 0 and ranks // used <= gpus_per_node
        ]
        if sizes:
            return next((size for size in sizes if size.gpus_per_node % tp == 0), sizes[0])
        raise UsageError(
            f"--slurm: {ranks} ranks cannot be divided evenly over {nodes} nodes of {gpus_per_node} GPUs",
            hint="choose a layout with equally many ranks on each node",
        )

    def check(self) -> None:
        """Raise UsageError if a value cannot be an option of sbatch."""
        for name in ("nodes", "gpus_per_node", "cpus_per_gpu", "seconds_to_save"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if not re.fullmatch(TIME_PATTERN, self.time):
            raise UsageError(f"time must be HH:MM:SS or DAYS-HH:MM:SS, got {self.time!r}")
        for name in ("partition", "account"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(NAME_PATTERN, value):
                raise UsageError(
                    f"{name} must have letters, digits, '.', ',', '_', '+' and '-' only, got {value!r}"
                )


def slurm_script(
    recipe: Path | str,
    stage: str,
    job: SlurmJob,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    python: str = "python",
) -> str:
    """Return a batch script that trains one stage of a recipe on a cluster.

    Args:
        recipe: The recipe's file, as seen from the folder in which `sbatch` is called.
        stage: The training stage. The stages that it depends on must be finished.
        job: Nodes, GPUs and limits.
        out: The folder of all runs, if it is not the default.
        overrides: `--set` options, `table.key=value`.
        python: The Python interpreter that has meditron installed, on every node.

    Returns:
        The script, for `sbatch FILE`. Every value is quoted, so that paths may have spaces and quotes.

    Raises:
        UsageError: A value cannot be an option of sbatch, or has a control character.
    """
    job.check()
    options = ["--out", str(out)] if out is not None else []
    for override in overrides:
        options += ["--set", override]
    command = [python, "-m", "meditron", "run", str(recipe), "--only", stage, *options]
    for value in (*command, str(job.logs)):
        # A line break would end a comment or an option in the middle of the value.
        if not value.isprintable():
            raise UsageError(f"{value!r} has a control character, which a batch script cannot have")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(recipe).stem}-{stage}").strip("-")
    directives = "\n".join(f"#SBATCH {option}" for option in _options(job, name))
    log_folder = shlex.quote(str(job.logs))
    return _SCRIPT.format(
        directives=directives,
        log_folder=log_folder,
        earlier=shlex.join(["meditron", "run", str(recipe), *options, "--until"]),
        threads=job.cpus_per_gpu,
        command="\n".join(f"  {shlex.quote(word)}" for word in command),
    )


def _options(job: SlurmJob, name: str) -> Iterator[str]:
    yield f"--job-name={name}"
    yield f"--nodes={job.nodes}"
    yield f"--ntasks-per-node={job.gpus_per_node}"
    yield f"--gpus-per-node={job.gpus_per_node}"
    yield f"--cpus-per-task={job.cpus_per_gpu}"
    yield f"--time={job.time}"
    yield f"--signal=B:USR1@{job.seconds_to_save}"
    yield "--requeue"
    # A job that is queued again goes on in the same file.
    yield "--open-mode=append"
    yield log_option(str(job.logs), "%x-%j.log")
    if job.partition is not None:
        yield f"--partition={job.partition}"
    if job.account is not None:
        yield f"--account={job.account}"


# `wait` returns when a signal arrives, also if the step is still running, so it is called until the step has
# ended. USR1 comes before the time limit: every rank saves a checkpoint and ends with a code other than 0,
# and the job is queued again. TERM comes from scancel, or from a preemption, after which Slurm itself queues
# the job again.
_SCRIPT = """\
#!/usr/bin/env bash
{directives}
#
# Written by `meditron plan --slurm`. Submit it from the folder that the paths below are relative to:
#   mkdir -p {log_folder}    (once: Slurm does not create the folder of --output)
#   sbatch FILE
# The stages before this one must be finished: {earlier} STAGE
# Single quotes are intended: values are taken as they are.
# shellcheck disable=SC2016
set -euo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${{hosts%%$'\\n'*}}"
export MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export OMP_NUM_THREADS={threads}

command=(
{command}
)

out_of_time=0
step=
trap 'out_of_time=1; [ -z "$step" ] || kill -s USR1 "$step" 2>/dev/null || true' USR1
trap '[ -z "$step" ] || kill -s TERM "$step" 2>/dev/null || true' TERM

# The variables of each rank are known in its task only, so they are expanded there.
srun --kill-on-bad-exit=1 bash -c '
  export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
  export LOCAL_WORLD_SIZE="$((SLURM_NTASKS / SLURM_NNODES))"
  exec "$@"
' rank "${{command[@]}}" &
step=$!

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
  code=0
  wait "$step" || code=$?
done

if [ "$out_of_time" -eq 1 ] && [ "$code" -ne 0 ]; then
  echo "The time limit is near: the job is queued again and continues from its newest checkpoint."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
