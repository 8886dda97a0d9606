"""TaskVine's named numbers: results, allocation modes, cache levels, flags, ports.

Programs import them by their flat names, such as `VINE_RESULT_SUCCESS`. The members are integers,
and the methods of `Manager` and `File` that take or return one of these numbers know the members.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

VINE_DEFAULT_PORT = 9123
VINE_RANDOM_PORT = 0
VINE_WAIT_FOREVER = -1


class ResultCode(IntEnum):
    """The ways in which a task ends."""

    SUCCESS = 0
    INPUT_MISSING = 1
    OUTPUT_MISSING = 2
    STDOUT_MISSING = 4
    SIGNAL = 1 << 3
    RESOURCE_EXHAUSTION = 2 << 3
    MAX_END_TIME = 3 << 3
    UNKNOWN = 4 << 3
    FORSAKEN = 5 << 3
    MAX_RETRIES = 6 << 3
    MAX_WALL_TIME = 7 << 3
    RMONITOR_ERROR = 8 << 3
    OUTPUT_TRANSFER_ERROR = 9 << 3
    FIXED_LOCATION_MISSING = 10 << 3
    CANCELLED = 11 << 3
    LIBRARY_EXIT = 12 << 3
    SANDBOX_EXHAUSTION = 13 << 3
    MISSING_LIBRARY = 14 << 3


VINE_RESULT_SUCCESS = ResultCode.SUCCESS
VINE_RESULT_INPUT_MISSING = ResultCode.INPUT_MISSING
VINE_RESULT_OUTPUT_MISSING = ResultCode.OUTPUT_MISSING
VINE_RESULT_STDOUT_MISSING = ResultCode.STDOUT_MISSING
VINE_RESULT_SIGNAL = ResultCode.SIGNAL
VINE_RESULT_RESOURCE_EXHAUSTION = ResultCode.RESOURCE_EXHAUSTION
VINE_RESULT_MAX_END_TIME = ResultCode.MAX_END_TIME
VINE_RESULT_UNKNOWN = ResultCode.UNKNOWN
VINE_RESULT_FORSAKEN = ResultCode.FORSAKEN
VINE_RESULT_MAX_RETRIES = ResultCode.MAX_RETRIES
VINE_RESULT_MAX_WALL_TIME = ResultCode.MAX_WALL_TIME
VINE_RESULT_RMONITOR_ERROR = ResultCode.RMONITOR_ERROR
VINE_RESULT_OUTPUT_TRANSFER_ERROR = ResultCode.OUTPUT_TRANSFER_ERROR
VINE_RESULT_FIXED_LOCATION_MISSING = ResultCode.FIXED_LOCATION_MISSING
VINE_RESULT_CANCELLED = ResultCode.CANCELLED
VINE_RESULT_LIBRARY_EXIT = ResultCode.LIBRARY_EXIT
VINE_RESULT_SANDBOX_EXHAUSTION = ResultCode.SANDBOX_EXHAUSTION
VINE_RESULT_MISSING_LIBRARY = ResultCode.MISSING_LIBRARY


class TaskResult(str):
    """How a task has ended: a text, such as "success", that also equals its integer constant.

    Programs compare `Task.result` with texts (``task.result == "success"``) or with constants
    (``task.result == VINE_RESULT_SUCCESS``): both work, and so does ``int(task.result)``. It has
    the hash of the text. So it is found in a set or dict of texts, and not in one of integers.
    """

    __slots__ = ()

    @property
    def code(self) -> ResultCode:
        """The integer constant."""
        return _CODES.get(str(self), ResultCode.UNKNOWN)

    def __eq__(self, other: object) -> bool:
        # True and False are integers, but no constants
        if isinstance(other, int) and not isinstance(other, bool):
            return self.code == other
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __int__(self) -> int:
        return int(self.code)


_CODES = {code.name.lower().replace("_", " "): code for code in ResultCode}
TASK_RESULTS = {text: TaskResult(text) for text in _CODES}
"""The result for each text: the names of the constants in small letters, with spaces."""


class AllocationMode(IntEnum):
    """How the tasks of a category get their resources; for `Manager.set_category_mode`."""

    FIXED = 0
    MAX = 1
    MIN_WASTE = 2
    MAX_THROUGHPUT = 3
    GREEDY_BUCKETING = 4
    EXHAUSTIVE_BUCKETING = 5
    DET_GREEDY_BUCKETING = 6
    DET_EXHAUSTIVE_BUCKETING = 7
    QUANTIZED_BUCKETING = 8


VINE_ALLOCATION_MODE_FIXED = AllocationMode.FIXED
VINE_ALLOCATION_MODE_MAX = AllocationMode.MAX
VINE_ALLOCATION_MODE_MIN_WASTE = AllocationMode.MIN_WASTE
VINE_ALLOCATION_MODE_MAX_THROUGHPUT = AllocationMode.MAX_THROUGHPUT
VINE_ALLOCATION_MODE_GREEDY_BUCKETING = AllocationMode.GREEDY_BUCKETING
VINE_ALLOCATION_MODE_EXHAUSTIVE_BUCKETING = AllocationMode.EXHAUSTIVE_BUCKETING
VINE_ALLOCATION_MODE_DET_GREEDY_BUCKETING = AllocationMode.DET_GREEDY_BUCKETING
VINE_ALLOCATION_MODE_DET_EXHAUSTIVE_BUCKETING = AllocationMode.DET_EXHAUSTIVE_BUCKETING
VINE_ALLOCATION_MODE_QUANTIZED_BUCKETING = AllocationMode.QUANTIZED_BUCKETING


class CacheLevel(IntEnum):
    """How long workers keep a file; for the argument ``cache`` of the ``declare_...`` methods."""

    TASK = 0
    WORKFLOW = 1
    WORKER = 2
    FOREVER = 3


VINE_CACHE_LEVEL_TASK = CacheLevel.TASK
VINE_CACHE_LEVEL_WORKFLOW = CacheLevel.WORKFLOW
VINE_CACHE_LEVEL_WORKER = CacheLevel.WORKER
VINE_CACHE_LEVEL_FOREVER = CacheLevel.FOREVER


class Schedule(IntEnum):
    """How a worker is chosen for a task; for `Manager.set_scheduler`."""

    UNSET = 0
    FCFS = 1
    FILES = 2
    TIME = 3
    RAND = 4
    WORST = 5
    DISK = 6


VINE_SCHEDULE_UNSET = Schedule.UNSET
VINE_SCHEDULE_FCFS = Schedule.FCFS
VINE_SCHEDULE_FILES = Schedule.FILES
VINE_SCHEDULE_TIME = Schedule.TIME
VINE_SCHEDULE_RAND = Schedule.RAND
VINE_SCHEDULE_WORST = Schedule.WORST
VINE_SCHEDULE_DISK = Schedule.DISK


class MountFlag(IntFlag):
    """What `Task.add_input` and `Task.add_output` say with their named arguments."""

    TRANSFER_ALWAYS = 0
    FIXED_LOCATION = 1
    WATCH = 2
    FAILURE_ONLY = 4
    SUCCESS_ONLY = 8
    RETRACT_ON_RESET = 16
    MOUNT_SYMLINK = 32
    MOUNT_MKDIR = 64


VINE_TRANSFER_ALWAYS = MountFlag.TRANSFER_ALWAYS
VINE_FIXED_LOCATION = MountFlag.FIXED_LOCATION
VINE_WATCH = MountFlag.WATCH
VINE_FAILURE_ONLY = MountFlag.FAILURE_ONLY
VINE_SUCCESS_ONLY = MountFlag.SUCCESS_ONLY
VINE_RETRACT_ON_RESET = MountFlag.RETRACT_ON_RESET
VINE_MOUNT_SYMLINK = MountFlag.MOUNT_SYMLINK
VINE_MOUNT_MKDIR = MountFlag.MOUNT_MKDIR


class FileFlag(IntFlag):
    """What the ``declare_...`` methods say with ``peer_transfer`` and ``unlink_when_done``."""

    PEER_SHARE = 0
    PEER_NOSHARE = 1
    UNLINK_WHEN_DONE = 2


VINE_PEER_SHARE = FileFlag.PEER_SHARE
VINE_PEER_NOSHARE = FileFlag.PEER_NOSHARE
VINE_UNLINK_WHEN_DONE = FileFlag.UNLINK_WHEN_DONE


class FileType(IntEnum):
    """Where the content of a file comes from, as `File.type` returns it."""

    FILE = 1
    URL = 2
    TEMP = 3
    BUFFER = 4
    MINI_TASK = 5


VINE_FILE = FileType.FILE
VINE_URL = FileType.URL
VINE_TEMP = FileType.TEMP
VINE_BUFFER = FileType.BUFFER
VINE_MINI_TASK = FileType.MINI_TASK
