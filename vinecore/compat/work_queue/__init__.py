"""Work Queue's Python interface, on this project's engine: what ``import work_queue`` finds."""

from __future__ import annotations

from vinecore.compat.work_queue import constants
from vinecore.compat.work_queue.constants import *  # noqa: F403 - all constants are public
from vinecore.compat.work_queue.debug_log import (
    cctools_debug_config_file,
    cctools_debug_config_file_size,
    cctools_debug_flags_set,
    set_debug_flag,
)
from vinecore.compat.work_queue.queue import QueueFactory, WorkQueue
from vinecore.compat.work_queue.statistics import QueueStatistics
from vinecore.compat.work_queue.tasks import QueuePythonTask, QueueTask, RemoteTask
from vinecore.errors import PythonTaskNoResult

Factory, PythonTask, Task, work_queue_stats = QueueFactory, QueuePythonTask, QueueTask, QueueStatistics

__all__ = [
    "Factory",
    "PythonTask",
    "PythonTaskNoResult",
    "RemoteTask",
    "Task",
    "WorkQueue",
    "cctools_debug_config_file",
    "cctools_debug_config_file_size",
    "cctools_debug_flags_set",
    "set_debug_flag",
    "work_queue_stats",
]
__all__ += [name for name in vars(constants) if name.startswith("WORK_QUEUE_")]
