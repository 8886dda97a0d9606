"""The part of `Manager` that gives numbers about its tasks and workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.prometheus import PrometheusServer, format_gauges
from vinecore.manager.status_display import StatusDisplay, find_screen, format_table
from vinecore.manager.status_methods import StatusMethods
from vinecore.scheduler import events, statistics
from vinecore.scheduler.statistics import ManagerStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.scheduler.scheduler import Scheduler

MB = 1 << 20


class StatisticsMethods(StatusMethods):
    """Statistics, and what they are measured by."""

    on_close: Callable[[Callable[[], None]], Callable[[], None]]
    _prometheus: PrometheusServer | None = None

    @property
    def stats(self) -> ManagerStats:
        """The state of the manager in numbers, as in `ManagerStats`.

        It is computed anew for each access, with all earlier calls of `submit` in it.
        """
        stats, processor_s = self._server.query(_measure_manager)
        started_at = self._server.started_at
        elapsed_s = max(time.time() - started_at, 1e-6)
        waited_s = min(self._waited_s, elapsed_s)
        return stats._replace(
            time_when_started=int(started_at * 1e6),
            time_scheduling=int(processor_s * 1e6),
            time_polling=int(waited_s * 1e6),
            time_application=int((elapsed_s - waited_s) * 1e6),
            bandwidth=(stats.bytes_sent + stats.bytes_received) / MB / elapsed_s,
        )

    def stats_category(self, category: str) -> ManagerStats:
        """Return numbers of the tasks of one category.

        Parameters
        ----------
        category : str
            The name of the category.

        Returns
        -------
        ManagerStats
            The numbers of tasks and their durations. Failed and cancelled tasks are not counted by
            category, and all that is not about tasks is 0.

        Raises
        ------
        TypeError, ValueError
            The category is no text, or empty.
        RuntimeError
            The manager is closed.
        """
        name = validators.category("category", category)
        return self._server.query(lambda scheduler: statistics.category_stats(scheduler, name))

    def hungry(self) -> int:
        """Return how many further tasks the manager could use now.

        A program that makes its tasks one after another submits some while this is above 0. The number
        is found by TaskVine's arithmetic: workers should have enough tasks if their resources grew by
        "hungry-minimum-factor" (2), at least so many for each worker, and at least "hungry-minimum"
        (10) in all. `tune` sets both.

        Returns
        -------
        int
            0 if enough tasks wait.

        Raises
        ------
        RuntimeError
            The manager is closed.
        """
        return self._server.query(statistics.count_further_tasks)

    def enable_monitoring(self, watchdog: bool = True, time_series: bool = False) -> None:
        """Set whether tasks are ended that exceed their resources.

        Tasks are always measured (`Task.resources_measured`), and without this call they are ended if
        they exceed the memory or disk that they, or their categories, ask for.

        Parameters
        ----------
        watchdog : bool
            Whether tasks are ended that exceed their limits.
        time_series : bool
            Accepted; only the highest usage of each task is recorded.

        Raises
        ------
        TypeError
            A value is neither True nor False.
        """
        validators.flag("time_series", time_series)
        self._server.post_event(events.SettingChanged("watchdog", validators.flag("watchdog", watchdog)))

    @property
    def prometheus_port(self) -> int | None:
        """The port at which ``http://127.0.0.1:PORT/metrics`` has the statistics; None if it is off."""
        return None if self._prometheus is None else self._prometheus.port

    def _start_displays(self, prometheus_port: int | None, display_interval_s: float | None) -> None:
        """Serve the statistics, and show them, as far as the user wants that."""
        if prometheus_port is not None:
            self._prometheus = PrometheusServer(
                prometheus_port,
                lambda: format_gauges(self.stats, self.name),
                lambda: self._server.describe("manager"),
            )
            self.on_close(self._prometheus.close)
        screen = find_screen() if display_interval_s else None
        if screen is not None and display_interval_s:
            display = StatusDisplay(display_interval_s, self._status_table, screen)
            self.on_close(display.close)

    def _status_table(self) -> str:
        """Return the table that `StatusDisplay` shows."""
        stats, info = self.stats, self.application_info().get("application_info", {})
        units = info.get("units", {})
        application = {
            f"{name} {units.get(name, '')}".strip(): value for name, value in info.get("values", {}).items()
        }
        rows = {
            "tasks": {
                "done": stats.tasks_done, "running": stats.tasks_running, "waiting": stats.tasks_waiting,
                "failed": stats.tasks_failed,
            },
            "workers": {"connected": stats.workers_connected, "busy": stats.workers_busy, "lost": stats.workers_lost},
            "cores": {"in use": stats.committed_cores, "in all": stats.total_cores},
            "memory": {"MB in use": stats.committed_memory, "MB in all": stats.total_memory},
            "disk": {"MB in use": stats.committed_disk, "MB in all": stats.total_disk},
            "application": application,
        }  # fmt: skip
        return format_table(f"manager {self.name}, port {self.port}", rows)

    def application_info(self) -> dict[str, Any]:
        """Return numbers of the application for displays; to be overridden.

        Returns
        -------
        dict
            ``{"application_info": {"values": {name: number}, "units": {name: unit}}}``.
        """
        return {"application_info": {"values": {}, "units": {}}}


def _measure_manager(scheduler: Scheduler) -> tuple[ManagerStats, float]:
    """Return the statistics and the processor time of the manager's thread, in which this runs."""
    return statistics.manager_stats(scheduler), time.thread_time()
