"""`meditron plan`: memory, speed, cost and carbon of a training on a cluster."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from meditron.cli.options import Json, RecipeFile, Set, print_json
from meditron.core.console import info, warn
from meditron.core.errors import UsageError

__all__ = ["plan"]


Cluster = Annotated[Path, Parameter(help="Cluster file, such as recipes/clusters/a100-80.toml.")]
Nodes = Annotated[
    int | None,
    Parameter(validator=Number(gte=1, lte=1 << 20), help="Number of nodes; by default the cluster file's."),
]
Stage = Annotated[
    str | None, Parameter(help="Training stage to plan; by default pretrain, else the first one.")
]
Tokens = Annotated[
    int | None,
    Parameter(validator=Number(gte=1, lte=10**15), help="Number of training tokens, for a finetuning stage."),
]
MeasuredRate = Annotated[
    float | None,
    Parameter(
        validator=Number(gte=1e-3, lte=1e12),
        help="Measured tokens per second of all GPUs; replaces the predicted rate.",
    ),
]
SlurmFile = Annotated[
    Path | None, Parameter(help="Write a Slurm batch script that runs the training to this file.")
]


def plan(
    recipe: RecipeFile,
    /,
    *,
    cluster: Cluster,
    nodes: Nodes = None,
    only: Stage = None,
    set_: Set = (),
    tokens: Tokens = None,
    tokens_per_second: MeasuredRate = None,
    slurm: SlurmFile = None,
    as_json: Json = False,
) -> int:
    """Predict memory, speed, cost and carbon of a training on a cluster.

    For example:

        meditron plan recipes/qwen3-8b.toml --cluster recipes/clusters/h100.toml

    Nothing is downloaded or trained. Layouts that fit are suggested. The exit code is 1 if the recipe's
    layout is impossible on the cluster or does not fit into its memory.
    """
    from meditron.cli.plan_tables import print_plan
    from meditron.plan.cluster import load_cluster, with_nodes
    from meditron.plan.slurm import SlurmJob, slurm_script
    from meditron.plan.training_plan import make_plan
    from meditron.recipe import load_recipe
    from meditron.recipe.training_job import training_job, training_stage
    from meditron.store.files import atomic_write, refuse_overwrite

    if slurm is not None:
        if os.path.lexists(slurm) and (slurm.is_symlink() or not slurm.is_file()):
            raise UsageError(f"--slurm {slurm}: not a regular file", hint="give the path of a new file")
        refuse_overwrite([slurm], [recipe, cluster])
    machines = load_cluster(cluster)
    if nodes is not None:
        machines = with_nodes(machines, nodes)
    loaded = load_recipe(recipe, set_)
    spec, config = training_stage(loaded, only)
    job = training_job(loaded, spec, tokens)
    result = make_plan(
        job, machines, config.parallel, config.micro_batch_size, measured_rate=tokens_per_second
    )
    if slurm is not None and (prediction := result.prediction):
        # A layout may use fewer GPUs than the cluster has; ranks without a part in it could not start.
        layout = prediction.layout
        size = SlurmJob.of_ranks(layout.ranks, machines.nodes, machines.gpus_per_node, tp=layout.tp)
        with atomic_write(slurm, "w") as file:
            file.write(slurm_script(recipe, spec.name, size, overrides=set_))
        info(f"wrote {slurm}; submit it with: sbatch {slurm}")
    elif slurm is not None:
        warn(f"{slurm} is not written: the layout is impossible")
    if as_json:
        print_json({"stage": spec.name, **result.to_json()})
    else:
        print_plan(result, title=f"{spec.name} of {recipe} on {machines.name}")
    return 1 if result.problems else 0
