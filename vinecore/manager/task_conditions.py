"""The settings of a task that say where and when it may run. Names and meanings are TaskVine's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.scheduler.specs import PlacementConditions, TaskConditions

if TYPE_CHECKING:
    from datetime import timedelta

    from vinecore.manager.files import File


class TaskConditionSettings:
    """Features, times, and the rule that chooses the worker."""

    _placement = PlacementConditions()
    _strict_inputs: tuple[File, ...] = ()
    # microseconds since the epoch; 0 for any time
    _time_start = _time_end = 0.0
    _max_forsaken = -1
    # whether one of these was set
    _is_conditional = False

    def add_feature(self, name: str) -> None:
        """Run the task only on workers that were started with a feature.

        Parameters
        ----------
        name : str
            The name that the worker has got with ``--feature``.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        features = {*self._placement.features, validators.label("feature", name)}
        self._set_placement(features=tuple(sorted(features)))

    def set_scheduler(self, scheduler: str | int | None) -> None:
        """Set the rule that chooses the worker of this task.

        Parameters
        ----------
        scheduler : {"files", "time", "rand", "worst", "disk", "fcfs"}, int or None
            A name as for `Manager.set_scheduler`, or its number among TaskVine's constants; None
            or 0 for the rule of the manager.

        Raises
        ------
        TypeError, ValueError
            There is no such rule.
        """
        self._set_placement(schedule=validators.schedule("scheduler", scheduler))

    def set_time_min(self, seconds: float | timedelta) -> None:
        """Set the time for which a worker must still be there when it gets the task.

        A worker that was started with ``--wall-time`` knows this time; others stay.

        Parameters
        ----------
        seconds : float or timedelta
            Duration in seconds; less than 1 for any.

        Raises
        ------
        TypeError, ValueError
            It is not a duration.
        """
        duration_s = validators.seconds("time_min", seconds, -validators.MOST)
        self._set_placement(time_min=duration_s if duration_s >= 1 else 0.0)

    def _set_placement(self, **settings: Any) -> None:
        self._placement = self._placement._replace(**settings)
        self._is_conditional = True

    def set_time_start(self, useconds: float) -> None:
        """Set a time before which the task does not start.

        Parameters
        ----------
        useconds : float
            Microseconds since the epoch, such as ``(time.time() + 60) * 1e6``; less than 1 for any
            time.

        Raises
        ------
        TypeError, ValueError
            It is not such a number.
        """
        self._time_start = validators.microseconds("time_start", useconds)
        self._is_conditional = True

    def set_time_end(self, useconds: float) -> None:
        """Set a time at which the task must have ended.

        If it has not, it is ended, and has the result "max end time".

        Parameters
        ----------
        useconds : float
            Microseconds since the epoch, such as ``(time.time() + 60) * 1e6``; less than 1 for no
            limit.

        Raises
        ------
        TypeError, ValueError
            It is not such a number.
        """
        self._time_end = validators.microseconds("time_end", useconds)
        self._is_conditional = True

    def set_max_forsaken(self, max_forsaken: int) -> None:
        """Set how often a worker may give the task back without having run it.

        A worker does so if its disk has no room for the task. If this is set, a task that its
        worker could not begin because of its inputs is tried again so often, too; otherwise it
        fails at once, with the result "input missing".

        Parameters
        ----------
        max_forsaken : int
            Number of times; after more the task has the result "forsaken". Less than 0, the
            default, for no limit.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number.
        """
        self._max_forsaken = max(-1, validators.whole("max_forsaken", max_forsaken, -validators.MOST))
        self._is_conditional = True

    def make_conditions(self) -> TaskConditions | None:
        """Describe for the scheduler where and when the task may run.

        Returns
        -------
        TaskConditions or None
            None if nothing of that was set.
        """
        if not self._is_conditional:
            return None
        names = tuple(file.cache_name for file in self._strict_inputs)
        # from the clock of the user to that of the scheduler
        shift = time.monotonic() - time.time()
        return TaskConditions(
            self._placement._replace(strict_inputs=names),
            self._time_start / 1e6 + shift if self._time_start else 0.0,
            self._time_end / 1e6 + shift if self._time_end else None,
            self._max_forsaken,
        )
