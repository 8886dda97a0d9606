"""Why nothing of a bucket runs, in words for the user."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vinecore.resources.amounts import too_large
from vinecore.scheduler.placement import capacity_key, meets_python_requirements

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import TaskQueue, WorkerState


class Diagnostics:
    """Finds what is missing. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind, self._placement = mind, mind.placement

    def explain(self, bucket: TaskQueue) -> tuple[str, bool]:
        """Say why nothing of a bucket can run, and whether no worker of those connected could ever run it."""
        workers = [w for w in self._mind.tables.workers.values() if not w.draining]
        if not workers:
            leaving = len(self._mind.tables.workers)
            return (
                "no worker is connected" if not leaving else "all workers that are connected are leaving",
                False,
            )
        suitable = [w for w in workers if meets_python_requirements(w, bucket)]
        if not suitable:
            return self._explain_python(workers), True
        number = bucket.front[0][2].spec.task if bucket.front else 0
        fitting = [w for w in suitable if self._placement.allocate(bucket, number, w) is not None]
        if fitting:
            return self._explain_time(bucket, fitting), False
        largest = max((w.total for w in suitable), key=capacity_key)
        request = self._placement.request(bucket, number)
        if bucket.category is not None:
            request = request.at_least(bucket.category.minimum)
        what = "the tasks"
        if bucket.library is not None:
            what = f"library {bucket.library.spec.options.get('label') or bucket.library.spec.name}"
        return f"no worker is large enough for {what}: {too_large(request, largest)}", True

    def _explain_time(self, bucket: TaskQueue, workers: list[WorkerState]) -> str:
        """Say that no worker stays long enough, if that is so."""
        duration_s = self._placement.duration(bucket.front[0][2]) if bucket.front else None
        left = [math.inf if w.ends_at is None else w.ends_at - self._mind.now for w in workers]
        if duration_s is None or max(left) >= duration_s:
            return ""
        return (
            f"no worker stays long enough: tasks take {duration_s:.3g} s, and the workers leave within {max(0.0, *left):.3g} s. Start "
            "workers with a longer --wall-time"
        )

    def _explain_python(self, workers: list[WorkerState]) -> str:
        """Say why the own Python of none of these will do."""
        lacks = sorted({name for w in workers if w.python_ok for name in w.missing_packages})
        if lacks:
            what = " and ".join(lacks)
            return (
                f"the workers' own Python has no {what}, without which it cannot load the functions. Install {what} there, or ship an "
                "environment with environment='my-env.tar.gz'"
            )
        theirs = ", ".join(sorted({w.python for w in workers}))
        return (
            f"the manager runs Python {self._mind.python} and the workers run {theirs}: functions pickled by one cannot be loaded by the "
            f"other. Start workers with Python {self._mind.python}, or ship an environment with environment='my-env.tar.gz'"
        )
