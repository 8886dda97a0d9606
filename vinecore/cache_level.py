"""How long an object outlives the tasks that use it: the four cache levels by their names."""

from __future__ import annotations

from vinecore.constants import CacheLevel
from vinecore.scheduler.specs import FOREVER, TASK, WORKER, WORKFLOW

CACHE_LEVELS = {"task": TASK, "workflow": WORKFLOW, "worker": WORKER, "forever": FOREVER}
# False and True are what most users give; they are also the first two numbers.
_NAMES: dict[int | str, str] = {
    **{int(level): level.name.lower() for level in CacheLevel},
    **{name: name for name in CACHE_LEVELS},
}


def parse_cache_level(cache: int | str) -> str:
    """Return the name of a cache level as the user gives it.

    Raises
    ------
    ValueError
        It is none of False, True, "task", "workflow", "worker", "forever".
    """
    try:
        return _NAMES[cache]
    except (KeyError, TypeError):
        msg = f"cache={cache!r} is not a cache level: use False or 'task', True or 'workflow', 'worker', 'forever'"
        raise ValueError(msg) from None
