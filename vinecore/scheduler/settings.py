"""Settings that the user changes: how workers are chosen, the parameters of `tuning`, and categories."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vinecore.resources.amounts import USUAL_SHARES, ShareRule
from vinecore.resources.categories import Category

if TYPE_CHECKING:
    from vinecore.scheduler import events
    from vinecore.scheduler.dispatch import Dispatcher
    from vinecore.scheduler.placement import Placement
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.slow_workers import SlowWorkers
    from vinecore.scheduler.state import SchedulerState
    from vinecore.scheduler.transfers import Transfers
    from vinecore.scheduler.worker_choice import WorkerChoice

SHARE_PARAMETERS = (
    "proportional-resources",
    "proportional-whole-tasks",
    "disk-proportion-available-to-task",
)


class Settings:
    """Enters settings where they are read."""

    def __init__(
        self,
        *,
        state: SchedulerState,
        queues: TaskQueues,
        transfers: Transfers,
        replication: Replication,
        choice: WorkerChoice,
        slow_workers: SlowWorkers,
        placement: Placement,
        dispatcher: Dispatcher,
    ) -> None:
        self._state = state
        self._queues = queues
        self._slow_workers = slow_workers
        self._placement = placement
        self._dispatcher = dispatcher
        # Where a setting is read that is no parameter, or is read too often to be looked up there.
        self._readers: dict[str, tuple[Any, str]] = {
            "scheduler": (choice, "policy"),
            "peer-transfers": (transfers, "peer_transfers"),
            "expected-workers": (state, "expected_workers"),
            "start-failure": (state, "start_failure"),
            "watchdog": (state, "enforces_limits"),
            "worker-source-max-transfers": (transfers, "worker_source_max"),
            "file-source-max-transfers": (transfers, "file_source_max"),
            "category-steady-n-tasks": (queues, "steady_n"),
            "temp-replica-count": (replication, "target_count"),
            "transfer-replica-per-cycle": (replication, "most_per_tick"),
        }

    def on_setting_changed(self, event: events.SettingChanged) -> None:
        """Change a setting."""
        attribute = event.name.replace("-", "_")
        if hasattr(self._state.tuning, attribute):
            setattr(self._state.tuning, attribute, event.value)
        if event.name in self._readers:
            setattr(*self._readers[event.name], event.value)
        if event.name == "disconnect-slow-worker-factor":
            self._slow_workers.update()
        elif event.name == "wait-for-workers":
            self._state.holds_tasks = event.value > len(self._state.workers)
            self._queues.retry_all()
        elif event.name == "ramp-down-heuristic":
            self._placement.set_ramp_down(on=event.value)
        elif event.name == "max-task-stdout-storage":
            self._dispatcher.process_options = {"output_limit": event.value}
        elif event.name == "resource-submit-multiplier":
            self._queues.extra_long_calls = math.ceil(event.value - 1)
            self._update_workers()
        elif event.name in SHARE_PARAMETERS:
            tuning = self._state.tuning
            rule = ShareRule(
                tuning.proportional_resources,
                tuning.proportional_whole_tasks,
                tuning.disk_proportion_available_to_task,
            )
            self._queues.share_rule = USUAL_SHARES if rule == USUAL_SHARES else rule
            self._update_workers()

    def _update_workers(self) -> None:
        for worker in self._state.workers.values():
            self._queues.update_worker_everywhere(worker)

    def on_usage_learned(self, event: events.UsageLearned) -> None:
        """Let a category learn from an earlier run."""
        category = self._find_category(event.category)
        for measured, wall_s in event.measured:
            category.record(measured, wall_s)
        self._queues.category_changed(category)

    def _find_category(self, name: str) -> Category:
        category = self._state.categories.get(name)
        if category is None:
            category = self._state.categories[name] = Category(name, steady_n=self._queues.steady_n)
        return category

    def on_category_set(self, event: events.CategorySet) -> None:
        """Configure a category."""
        category = self._find_category(event.name)
        category.configure(
            mode=event.mode,
            maximum=event.maximum,
            minimum=event.minimum,
            first_guess=event.first_guess,
            slow_factor=event.slow_factor,
            max_concurrent=event.max_concurrent,
            learned=event.learned,
        )
        self._queues.category_changed(category)
        self._slow_workers.update()
