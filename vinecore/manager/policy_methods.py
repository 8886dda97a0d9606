"""The part of `Manager` that sets how the scheduler decides."""

from __future__ import annotations

import logging

from vinecore import validators
from vinecore.manager.status_methods import StatusMethods
from vinecore.resources.amounts import ResourceRequest
from vinecore.resources.categories import parse_mode
from vinecore.scheduler import events

log = logging.getLogger("vinecore")

PLACEMENT_POLICIES = ("files", "time", "rand", "worst", "disk", "fcfs")
# The numbers that `Manager.tune` knows, and the least value of each.
TUNABLE_PARAMETERS = {
    "worker-source-max-transfers": 1,
    "file-source-max-transfers": 1,
    "category-steady-n-tasks": 1,
    "temp-replica-count": 1,
}


class PolicyMethods(StatusMethods):
    """How workers are chosen, and how much of them tasks get."""

    def set_scheduler(self, name: str) -> None:
        """Choose how workers are chosen: files (most input bytes), time, rand, worst, disk, fcfs."""
        if name not in PLACEMENT_POLICIES:
            msg = f"scheduler {name!r}: use one of {', '.join(PLACEMENT_POLICIES)}"
            raise ValueError(msg)
        self._engine.post_event(events.SettingChanged("scheduler", name))

    def enable_peer_transfers(self) -> None:
        """Let workers fetch from each other (the default)."""
        self._engine.post_event(events.SettingChanged("peer-transfers", True))

    def disable_peer_transfers(self) -> None:
        """Have everything go through the manager."""
        self._engine.post_event(events.SettingChanged("peer-transfers", False))

    def tune(self, name: str, value: float) -> int:
        """Set a number that policy depends on.

        There are worker-source-max-transfers, file-source-max-transfers, category-steady-n-tasks and temp-replica-count.

        Returns
        -------
        int
            0, or -1 for a name that is not known here: then nothing is set, and the log says so.
        """
        if validators.text("name", name) not in TUNABLE_PARAMETERS:
            hint = (
                validators.suggest_name(name, TUNABLE_PARAMETERS)
                or f"; there are: {', '.join(TUNABLE_PARAMETERS)}"
            )
            log.warning("tune(%r, %r) has set nothing: there is no such number here%s", name, value, hint)
            return -1
        self._engine.post_event(
            events.SettingChanged(name, validators.whole(name, value, TUNABLE_PARAMETERS[name]))
        )
        return 0

    def set_category_mode(self, category: str | None, mode: str) -> None:
        """Choose how a category learns what its tasks need: fixed, max, min waste, max throughput, or a bucketing mode."""
        known = parse_mode(validators.text("mode", mode))
        self._engine.post_event(
            events.CategorySet(validators.category("category", category), known, None, None, None)
        )

    def define_category(self, category: str, mode: str, maximum: ResourceRequest) -> None:
        """Set at once how a category learns what its tasks need, and what they get at most."""
        self._engine.post_event(events.CategorySet(category, parse_mode(mode), maximum, None, None))

    def set_category_resources_max(self, category: str, resources: dict[str, float]) -> None:
        """Set what the tasks of a category get at most, and where they say nothing."""
        most = validators.request("resources", resources)
        self._engine.post_event(
            events.CategorySet(validators.category("category", category), None, most, None, None)
        )

    def set_category_resources_min(self, category: str, resources: dict[str, float]) -> None:
        """Set what the tasks of a category get at least."""
        least = validators.request("resources", resources)
        self._engine.post_event(
            events.CategorySet(validators.category("category", category), None, None, least, None)
        )
