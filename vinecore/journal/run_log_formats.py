"""The words and numbers of the logs that tools for TaskVine read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from vinecore.journal import records

STATE_NUMBERS = {"INITIAL": 0, "READY": 1, "RUNNING": 2, "WAITING_RETRIEVAL": 3, "RETRIEVED": 4, "DONE": 5}
UNITS = {"cores": "cores", "memory": "MB", "disk": "MB", "gpus": "gpus", "wall_time": "s", "cpu_time": "s"}
RESULTS = {"success": ("SUCCESS", 0), "exception": ("SUCCESS", 0), "input missing": ("INPUT_MISSING", 1), "output missing": ("OUTPUT_MISSING", 2),
           "exhausted": ("RESOURCE_EXHAUSTION", 16), "too large": ("RESOURCE_EXHAUSTION", 16), "disk": ("RESOURCE_EXHAUSTION", 16),
           "crash": ("FORSAKEN", 40), "time": ("MAX_WALL_TIME", 56), "output transfer error": ("OUTPUT_TRANSFER_ERROR", 72),
           "cancelled": ("CANCELLED", 88), "library": ("LIBRARY_EXIT", 96)}  # fmt: skip
UNKNOWN_RESULT = "UNKNOWN", 32
_WORKERS = "connected init idle busy able joined removed released idled_out blocked slow lost"
_TASKS = "waiting on_workers running with_results submitted dispatched done failed successful cancelled exhausted_attempts recovery"
_TIMES = "send receive send_good receive_good status_msgs internal polling application scheduling workers_execute workers_execute_good workers_execute_exhaustion"
COLUMNS = (
    *(f"workers_{name}" for name in _WORKERS.split()), *(f"tasks_{name}" for name in _TASKS.split()), *(f"time_{name}" for name in _TIMES.split()),
    "bytes_sent", "bytes_received", "bandwidth",
    *(f"capacity_{name}" for name in ("tasks", "cores", "memory", "disk", "instantaneous", "weighted")),
    *(f"{kind}_{name}" for kind in ("total", "committed", "max", "min") for name in ("cores", "memory", "disk")),
    "inuse_cache",
)  # fmt: skip
TRANSACTIONS_HEADER = """\
# time manager_pid MANAGER manager_pid START|END
# time manager_pid WORKER worker_id CONNECTION host:port
# time manager_pid WORKER worker_id DISCONNECTION (UNKNOWN|IDLE_OUT|FAST_ABORT|FAILURE|STATUS_WORKER|EXPLICIT|XFER_ERRORS)
# time manager_pid WORKER worker_id RESOURCES {resources}
# time manager_pid WORKER worker_id CACHE_UPDATE file size_bytes wall_time_us start_time_us
# time manager_pid WORKER worker_id TRANSFER (INPUT|OUTPUT) file size_bytes wall_time_us start_time_us
# time manager_pid CATEGORY name (MAX|MIN|FIRST) mode {resources}
# time manager_pid TASK task_id READY category (FIRST_RESOURCES|MAX_RESOURCES) attempt {resources}
# time manager_pid TASK task_id RUNNING worker_id (FIRST_RESOURCES|MAX_RESOURCES) {resources}
# time manager_pid TASK task_id WAITING_RETRIEVAL worker_id
# time manager_pid TASK task_id RETRIEVED result exit_code {limits_exceeded} {measured}
# time manager_pid TASK task_id DONE result exit_code
# time manager_pid LIBRARY library_id (SENT|STARTED|FAILURE) worker_id
# time manager_pid APPLICATION text
"""


def requested_amounts(task: records.TaskSubmittedRecord | None) -> dict[str, Any]:
    """Return the resources that a task asks for."""
    if task is None:
        return {}
    amounts = {"cores": task.cores, "memory": task.memory_mb, "disk": task.disk_mb, "gpus": task.gpus}
    return {name: amount for name, amount in amounts.items() if amount is not None}


def format_amounts(amounts: dict[str, Any]) -> str:
    """Return amounts as JSON of numbers with units."""
    return "{" + ",".join([f'"{name}":[{amount},"{UNITS[name]}"]' for name, amount in amounts.items()]) + "}"


@functools.lru_cache(maxsize=4096)
def quote_name(text: str, safe: str = "/:") -> str:
    """Return a name without spaces, because they separate fields."""
    return quote(text, safe=f"{safe}+,;=@~()[]{{}}") or '""'


def join_lines(text: str) -> str:
    """Return a text in one line."""
    return " ".join(str(text).splitlines())


def disconnection_word(reason: str) -> str:
    """Return the documented word that is nearest to a reason."""
    words: Sequence[tuple[str, str]] = (
        ("idle", "IDLE_OUT"),
        ("slow", "FAST_ABORT"),
        ("manager", "EXPLICIT"),
        ("fewer workers", "EXPLICIT"),
        ("transfer", "XFER_ERRORS"),
    )
    return next((word for part, word in words if part in reason), "FAILURE" if reason else "UNKNOWN")
