"""The table of batch systems: one line for each type of workers that a factory can start."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinecore.factory.batch_system import BatchSystem

# Classes are named, and loaded when they are used, because the engine does not import Dask.
BATCH_SYSTEMS = {
    "local": "vinecore.factory.local.Local",
    "condor": "vinecore.factory.condor.HTCondor",
    "slurm": "vinecore.factory.slurm.Slurm",
    "dask": "daskvine.dask_cluster.DaskClusterBatchSystem",
}
# Types of TaskVine that do not exist here, with the alternative.
UNSUPPORTED_BATCH_TYPES = {
    **dict.fromkeys(
        ("pbs", "torque", "moab", "lsf", "flux", "cluster", "amazon", "mesos", "k8s"),
        "run vine_worker HOST PORT in a job of your own",
    ),
    **dict.fromkeys(("uge", "sge"), "submit workers with vine_submit_workers -T uge"),
    **dict.fromkeys(("vine", "wq"), "workers are not started by workers: use the batch system itself"),
    "dryrun": "vine_submit_workers --dry-run prints what would be submitted",
}


def load_batch_system(batch_type: str) -> type[BatchSystem]:
    """Return the class of a batch system.

    Raises
    ------
    ValueError
        There is no such batch system.
    """
    if batch_type not in BATCH_SYSTEMS:
        *first, last = map(repr, BATCH_SYSTEMS)
        known = f"there are {', '.join(first)} and {last}"
        msg = f"batch_type={batch_type!r}: {UNSUPPORTED_BATCH_TYPES.get(batch_type, known)}"
        raise ValueError(msg)
    module, _, name = BATCH_SYSTEMS[batch_type].rpartition(".")
    system: type[BatchSystem] = getattr(importlib.import_module(module), name)
    return system
