"""The parameters of `Manager.tune`, in one table that is also the record of their values.

The fields of `Tuning` are the table. Validation, the hint at the nearest name and the documentation
(`describe_parameters`) come from it. Names and meanings are TaskVine's; a default that differs from
TaskVine's is the number by which this engine works.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

MOST = 1 << 53


class Parameter(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    name : str
        The name, with dashes.
    default : int, float or bool
        The value without `Manager.tune`. Its type is that of all values; a Boolean is given as 0 or 1.
    least, most : float
        The bounds.
    unit : str
        The unit; "" for none.
    meaning : str
        The effect.
    aliases : tuple of str
        Other names.
    """

    name: str
    default: float
    least: float
    most: float
    unit: str
    meaning: str
    aliases: tuple[str, ...]

    @property
    def attribute(self) -> str:
        """The name of the field of `Tuning`."""
        return self.name.replace("-", "_")


def _parameter(
    default: float,
    meaning: str,
    *,
    least: float = 0,
    most: float = MOST,
    unit: str = "",
    aliases: tuple[str, ...] = (),
) -> Any:
    return field(default=default, metadata={"row": (default, least, most, unit, meaning, aliases)})


@dataclass(slots=True)
class Tuning:
    """The values of all parameters that have an effect; the sentences are in the fields."""

    hungry_minimum: int = _parameter(
        10, "Least number of waiting tasks below which `Manager.hungry` asks for more.", unit="tasks"
    )
    hungry_minimum_factor: float = _parameter(
        2.0, "The same for each connected worker; the larger of both counts.", unit="tasks"
    )
    attempt_schedule_depth: int = _parameter(
        100, "Waiting tasks at which `Manager.hungry` looks.", least=1, unit="tasks"
    )
    wait_for_workers: int = _parameter(
        0, "No task starts before so many workers are connected for the first time.", unit="workers"
    )
    max_workers: int = _parameter(
        -1, "Further workers are refused, and try again later; -1 for no limit.", least=-1, unit="workers"
    )
    max_library_retries: int = _parameter(
        5, "How often in a row a library may fail before its calls fail.", unit="failures"
    )
    transient_error_interval: float = _parameter(
        15.0, "Pause before a source of files that has failed a worker is used for it again.", unit="s"
    )
    disconnect_slow_worker_factor: float = _parameter(
        0.0,
        "As `Manager.enable_disconnect_slow_workers`; below 1 for never.",
        aliases=("disconnect-slow-workers-factor",),
    )
    option_blocklist_slow_workers_timeout: float = _parameter(
        900.0, "How long the host of a worker that was disconnected as slow is blocked.", unit="s"
    )
    keepalive_interval: float = _parameter(
        30.0, "Silence after which a worker is asked for a sign of life.", least=0.1, unit="s"
    )
    keepalive_timeout: float = _parameter(
        300.0, "Silence after which a worker that was asked is given up.", least=0.1, unit="s"
    )
    proportional_resources: bool = _parameter(
        True,
        "Whether a task that gives only some of its resources gets the same share of the others. With 0 "
        "it gets all of the others.",
        aliases=("force-proportional-resources",),
    )
    proportional_whole_tasks: bool = _parameter(
        False,
        "Whether these shares are rounded up, so that a whole number of such tasks fills a worker.",
        aliases=("force-proportional-whole-tasks",),
    )
    disk_proportion_available_to_task: float = _parameter(
        1.0, "Part of a share of disk that a task gets; the rest stays free for files.", least=0.01, most=1
    )
    sandbox_grow_factor: float = _parameter(
        0.0,
        "Factor, 1.1 at least, by which the disk of a task grows that has exceeded it, if its category learns; "
        "0 for all disk of the largest worker.",
    )
    ramp_down_heuristic: bool = _parameter(
        False, "Whether a task gets all that is free of its worker while fewer tasks wait than workers."
    )
    resource_submit_multiplier: float = _parameter(
        1.0,
        "How many times the calls that a library can run at the same time are sent to a worker, if they take "
        "longer than 0.1 s. Of shorter calls as many are sent as cover the time of a message.",
        least=1,
        aliases=("asynchrony-multiplier",),
    )
    immediate_recovery: bool = _parameter(
        False, "Whether a lost file is made again at once, also if no submitted task reads it yet."
    )
    transfer_temps_recovery: bool = _parameter(
        True, "Whether the replicas of `temp-replica-count` are restored when a worker is lost."
    )
    transfer_replica_per_cycle: int = _parameter(
        0, "Replicas that are begun in each quarter of a second; 0 for no limit.", unit="files"
    )
    temp_replica_count: int = _parameter(
        1, "On how many workers a file shall be that only tasks can make.", least=1, unit="replicas"
    )
    clean_redundant_replicas: bool = _parameter(
        False, "Whether replicas beyond `temp-replica-count` that no task reads are removed."
    )
    shift_disk_load: bool = _parameter(
        False, "Whether files move from the worker with the fullest disk to the one with the emptiest."
    )
    enforce_worker_eviction_interval: float = _parameter(
        0.0,
        "For tests of recovery: a worker is disconnected each time this has passed; 0 for never.",
        unit="s",
    )
    task_groups: bool = _parameter(
        False,
        "Whether a task goes to a worker that has all its intermediate files, if that has room, under every "
        "rule of `Manager.set_scheduler`; under the default one it does.",
    )
    max_task_stdout_storage: int = _parameter(
        1 << 20,
        "Output of a task with a process of its own that comes back, at most 8 MiB; of a longer one the "
        "beginning is left out.",
        unit="bytes",
    )
    perf_log_interval: float = _parameter(
        5.0, "Interval of the lines of the performance log.", least=1, unit="s"
    )
    update_interval: float = _parameter(
        60.0, "Interval of the reports to the registry and to catalogs.", least=1, unit="s"
    )
    worker_source_max_transfers: int = _parameter(
        10, "Transfers that a worker sends at once.", least=1, unit="transfers"
    )
    file_source_max_transfers: int = _parameter(
        10, "Transfers that the manager, or a web or XRootD server, sends at once.", least=1, unit="transfers"
    )
    category_steady_n_tasks: int = _parameter(
        25, "Tasks of a category that are measured before its allocations change.", least=1, unit="tasks"
    )


IGNORED_PARAMETERS: dict[str, str] = {
    "prefer-dispatch": "tasks are sent and results received at the same time",
    "max-retrievals": "results are received as they arrive",
    "worker-retrievals": "results are received as they arrive",
    "wait-retrieve-many": "results are received as they arrive",
    "short-timeout": "no message blocks the manager",
    "long-timeout": "no transfer blocks the manager",
    "max-new-workers": "workers are accepted while the manager does other work",
    "resource-management-interval": "resources are counted with every event",
    "large-task-check-interval": "whether a task is too large is known when it is submitted",
    "watch-library-logfiles": "the output of calls comes back with them, and that of a library with its failure",
    "monitor-interval": "tasks are measured as often as a twentieth of a core allows",
    "min-transfer-timeout": "a transfer is cut when nothing has arrived for a while, however slow it is",
    "transfer-outlier-factor": "a transfer is cut when nothing has arrived for a while, however slow it is",
    "default-transfer-rate": "a transfer is cut when nothing has arrived for a while, however slow it is",
    "load-from-shared-filesystem": "files of a shared file system are declared with declare_url('file://...')",
}
"""Parameters of TaskVine's that are accepted without effect, and why."""


def list_parameters() -> list[Parameter]:
    """Return one row for each parameter, in the order of the documentation."""
    return [Parameter(f.name.replace("_", "-"), *f.metadata["row"]) for f in fields(Tuning)]


PARAMETERS: dict[str, Parameter] = {
    name: row for row in list_parameters() for name in (row.name, *row.aliases)
}
"""The rows by their names and aliases."""


def describe_parameters() -> str:
    """Return the table of parameters as Markdown."""
    lines = ["| parameter | default | values | meaning |", "| --- | --- | --- | --- |"]
    for row in list_parameters():
        names = f"`{row.name}`" + "".join(f"<br>`{alias}`" for alias in row.aliases)
        lines.append(f"| {names} | {row.default:.10g} | {_describe_values(row)} | {row.meaning} |")
    lines += ["", "These are accepted and have no effect:", ""]
    lines += ["| parameter | reason |", "| --- | --- |"]
    lines += [f"| `{name}` | {reason} |" for name, reason in IGNORED_PARAMETERS.items()]
    return "\n".join(lines) + "\n"


def _describe_values(row: Parameter) -> str:
    if isinstance(row.default, bool):
        return "0 or 1"
    kind = "whole number" if isinstance(row.default, int) else "number"
    bounds = f"{row.least:g} or more" if row.most == MOST else f"{row.least:g} to {row.most:g}"
    return f"{kind} of {bounds}" + (f" ({row.unit})" if row.unit else "")
