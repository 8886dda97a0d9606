"""The part of `Manager` that decides which workers get work."""

from __future__ import annotations

import functools
import math
import secrets
from typing import TYPE_CHECKING

from vinecore import validators
from vinecore.manager.status_methods import StatusMethods
from vinecore.scheduler import events, queries

if TYPE_CHECKING:
    from datetime import timedelta


class HostMethods(StatusMethods):
    """Workers that are slow, and hosts that get no work."""

    def enable_disconnect_slow_workers(self, multiplier: float) -> int:
        """Take tasks back from workers on which they take much longer than usual.

        A task that runs longer than ``multiplier`` times the mean of its category runs again on
        another worker. A worker to which this happens twice is disconnected, and its host gets no
        work for a quarter of an hour. The mean counts as soon as 10 tasks of the category are done.

        Parameters
        ----------
        multiplier : float
            The number; below 1 to switch it off.

        Returns
        -------
        int
            0 if it is on now, 1 if it is off.

        Raises
        ------
        TypeError, ValueError
            It is no finite number.
        """
        factor = _slow_factor(multiplier)
        self._server.post_event(events.SettingChanged("disconnect-slow-worker-factor", factor))
        return int(factor < 1)

    def enable_disconnect_slow_workers_category(self, name: str | None, multiplier: float) -> int:
        """Take tasks of a category back from workers on which they take much longer than usual.

        Parameters
        ----------
        name : str or None
            The category; None for the default one.
        multiplier : float
            As for `enable_disconnect_slow_workers`, whose number it replaces for this category.

        Returns
        -------
        int
            0 if it is on now, 1 if it is off.

        Raises
        ------
        TypeError, ValueError
            It is no finite number, or the category is not a text.
        """
        factor, category = _slow_factor(multiplier), validators.category("name", name)
        self._server.post_event(events.CategorySet(category, None, None, None, None, slow_factor=factor))
        return int(factor < 1)

    activate_fast_abort = enable_disconnect_slow_workers
    activate_fast_abort_category = enable_disconnect_slow_workers_category

    def block_host(self, host: str) -> None:
        """Give a host no new tasks.

        What runs there goes on, and its files are used.

        Parameters
        ----------
        host : str
            The name of the host, as in `summarize_workers`, or its address.

        Raises
        ------
        TypeError, ValueError
            It is no text, or an empty one.
        """
        self._server.post_event(events.HostBlocked(validators.label("host", host), math.inf))

    def block_host_with_timeout(self, host: str, timeout: float | timedelta) -> None:
        """Give a host no new tasks for a while.

        Parameters
        ----------
        host : str
            As for `block_host`.
        timeout : float or timedelta
            Duration in seconds; a negative one for no end.

        Raises
        ------
        TypeError, ValueError
            The host is no text or empty, or the timeout is no duration.
        """
        duration_s = validators.timeout("timeout", timeout)
        self._server.post_event(
            events.HostBlocked(validators.label("host", host), math.inf if duration_s is None else duration_s)
        )

    def unblock_host(self, host: str | None = None) -> None:
        """Give a blocked host tasks again.

        Parameters
        ----------
        host : str or None
            As for `block_host`; None for all hosts.

        Raises
        ------
        TypeError, ValueError
            It is no text, or an empty one.
        """
        self._server.post_event(events.HostUnblocked("" if host is None else validators.label("host", host)))

    blacklist = block_host
    blacklist_with_timeout = block_host_with_timeout
    blacklist_clear = unblock_host

    def set_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> int:
        """Give the workers of a host no new tasks, and let them go when they are done.

        A worker leaves when it has no tasks and nothing that only it has and that is needed.

        Parameters
        ----------
        hostname : str
            As for `block_host`.
        drain_mode : bool
            False to keep those that have not left yet.

        Returns
        -------
        int
            The number of connected workers of the host.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or the name is empty.
        """
        host, drain = validators.label("hostname", hostname), validators.flag("drain_mode", drain_mode)
        count = self._server.query(functools.partial(queries.workers_of_host, host=host))
        self._server.post_event(events.HostDrained(host, drain))
        return count

    def workers_shutdown(self, n: int = 0) -> int:
        """Let workers go, those with the fewest tasks first.

        What they run now runs on others. What only they have is brought to others.

        Parameters
        ----------
        n : int
            Number of workers; 0 for all.

        Returns
        -------
        int
            The number of workers that were told to leave.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 0 or more.
        """
        count = validators.whole("n", n)
        workers = self._server.query(queries.workers_by_load)
        chosen = workers[:count] if count else workers
        self._server.post_event(events.WorkersReleased(chosen, "workers_shutdown() was called"))
        return len(chosen)

    def release_random_worker(self) -> int:
        """Let a worker go that is chosen at random, as `workers_shutdown` does.

        Returns
        -------
        int
            The number of the worker, as in `summarize_workers`; 0 if there is none.
        """
        workers = self._server.query(queries.workers_by_load)
        if not workers:
            return 0
        chosen = secrets.choice(workers)
        self._server.post_event(events.WorkersReleased([chosen], "release_random_worker() was called"))
        return chosen

    def set_keepalive_interval(self, interval: float) -> None:
        """Set the silence after which a worker is asked for a sign of life.

        Parameters
        ----------
        interval : float
            Duration in seconds, as ``keepalive-interval`` of `tune`.

        Raises
        ------
        TypeError, ValueError
            It is no duration.
        """
        self._server.post_event(
            events.SettingChanged("keepalive-interval", float(validators.seconds("interval", interval, 0.1)))
        )

    def set_keepalive_timeout(self, timeout: float) -> None:
        """Set the silence after which a worker that was asked is given up.

        Parameters
        ----------
        timeout : float
            Duration in seconds, as ``keepalive-timeout`` of `tune`.

        Raises
        ------
        TypeError, ValueError
            It is no duration.
        """
        self._server.post_event(
            events.SettingChanged("keepalive-timeout", float(validators.seconds("timeout", timeout, 0.1)))
        )


def _slow_factor(multiplier: float) -> float:
    """Take a multiplier of any sign; return 0 if it switches the check off."""
    factor = validators.number("multiplier", multiplier, -validators.MOST)
    return float(factor) if factor >= 1 else 0.0
