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
        """Set the rule that chooses a worker for a task.

        Parameters
        ----------
        name : {"files", "time", "rand", "worst", "disk", "fcfs"}
            The worker with most input bytes, the fastest so far, a random one, the one with most
            free resources, the one with most free disk, the first that fits.

        Raises
        ------
        ValueError
            There is no such rule.
        """
        if name not in PLACEMENT_POLICIES:
            msg = f"scheduler {name!r}: use one of {', '.join(PLACEMENT_POLICIES)}"
            raise ValueError(msg)
        self._server.post_event(events.SettingChanged("scheduler", name))

    def enable_peer_transfers(self) -> None:
        """Let workers fetch files from each other (the default)."""
        self._server.post_event(events.SettingChanged("peer-transfers", True))

    def disable_peer_transfers(self) -> None:
        """Send all files through the manager."""
        self._server.post_event(events.SettingChanged("peer-transfers", False))

    def tune(self, name: str, value: float) -> int:
        """Set a parameter of the scheduler.

        Parameters
        ----------
        name : str
            "worker-source-max-transfers" or "file-source-max-transfers": transfers that a worker,
            or the manager, sends at once. "category-steady-n-tasks": tasks of a category that are
            measured before its allocations change. "temp-replica-count": replicas of each temporary
            file.
        value : int
            A whole number of 1 or more.

        Returns
        -------
        int
            0, or -1 for an unknown name: then nothing is set, and the log has a warning.

        Raises
        ------
        TypeError, ValueError
            The value is not a whole number of 1 or more, or the name is not a text.
        """
        if validators.text("name", name) not in TUNABLE_PARAMETERS:
            hint = (
                validators.suggest_name(name, TUNABLE_PARAMETERS)
                or f"; there are: {', '.join(TUNABLE_PARAMETERS)}"
            )
            log.warning("tune(%r, %r) has no effect: there is no such parameter%s", name, value, hint)
            return -1
        self._server.post_event(
            events.SettingChanged(name, validators.whole(name, value, TUNABLE_PARAMETERS[name]))
        )
        return 0

    def set_category_mode(self, category: str | None, mode: str) -> None:
        """Set how a category learns the resources of its tasks.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        mode : str
            "fixed", "max", "min waste", "max throughput", or a bucketing mode, as in
            ``vinecore.resources.categories.MODES``.

        Raises
        ------
        TypeError, ValueError
            There is no such mode, or a name is not a text.

        References
        ----------
        The modes have the sources that `vinecore.resources.allocation_models` names.
        """
        known = parse_mode(validators.text("mode", mode))
        self._server.post_event(
            events.CategorySet(validators.category("category", category), known, None, None, None)
        )

    def define_category(self, category: str, mode: str, maximum: ResourceRequest) -> None:
        """Set the mode and the maximum of a category in one event.

        Parameters
        ----------
        category : str
            The name of the category.
        mode : str
            As for `set_category_mode`.
        maximum : ResourceRequest
            As for `set_category_resources_max`.

        Raises
        ------
        ValueError
            There is no such mode.
        """
        self._server.post_event(events.CategorySet(category, parse_mode(mode), maximum, None, None))

    def set_category_resources_max(self, category: str, resources: dict[str, float]) -> None:
        """Set the maximum resources of the tasks of a category.

        It is also the request of tasks that have none.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        resources : dict of str to float
            Any of cores, memory (MB), disk (MB) and gpus.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        most = validators.request("resources", resources)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, most, None, None)
        )

    def set_category_resources_min(self, category: str, resources: dict[str, float]) -> None:
        """Set the minimum resources of the tasks of a category.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        resources : dict of str to float
            Any of cores, memory (MB), disk (MB) and gpus.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        least = validators.request("resources", resources)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, None, least, None)
        )
