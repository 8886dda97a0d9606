"""The part of `Manager` that sets how the scheduler decides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.category_methods import CategoryMethods
from vinecore.manager.host_methods import HostMethods
from vinecore.scheduler import events
from vinecore.scheduler.tuning import IGNORED_PARAMETERS, PARAMETERS, Parameter

if TYPE_CHECKING:
    from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")

PLACEMENT_POLICIES = ("files", "time", "rand", "worst", "disk", "fcfs")


class PolicyMethods(CategoryMethods, HostMethods):
    """How workers are chosen, and the parameters of the manager.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        self._ignored_parameters: set[str] = set()

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
        """Set a parameter of the manager.

        Parameters
        ----------
        name : str
            The name of a parameter, as in ``docs/tuning.md``.
        value : int or float
            A value within the bounds of the parameter.

        Returns
        -------
        int
            0, or -1 for an unknown name: then nothing is set, and the log names the nearest one. A
            parameter of TaskVine's that has no meaning here returns 0, and the log says why.

        Raises
        ------
        TypeError, ValueError
            The value is no number or out of bounds, or the name is not a text.
        """
        spelling = validators.folded(validators.text("name", name))
        if spelling in IGNORED_PARAMETERS:
            if spelling not in self._ignored_parameters:
                self._ignored_parameters.add(spelling)
                log.info("tune(%r, %r) has no meaning here: %s", name, value, IGNORED_PARAMETERS[spelling])
            return 0
        parameter = PARAMETERS.get(spelling)
        if parameter is None:
            hint = (
                validators.suggest_name(name, [*PARAMETERS, *IGNORED_PARAMETERS])
                or f"; there are: {', '.join(PARAMETERS)}"
            )
            log.warning("tune(%r, %r) has no effect: there is no such parameter%s", name, value, hint)
            return -1
        self._server.post_event(events.SettingChanged(parameter.name, _check_value(name, value, parameter)))
        return 0


def _check_value(name: str, value: Any, parameter: Parameter) -> float:
    """Return a value of a parameter as its type, or raise an error with the bounds."""
    if isinstance(parameter.default, bool):
        return validators.flag(name, value)
    if isinstance(parameter.default, int):
        return validators.whole(name, value, int(parameter.least), int(parameter.most))
    return float(validators.number(name, value, parameter.least, parameter.most))
