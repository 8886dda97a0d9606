"""The part of `Manager` that decides which workers get work."""

from __future__ import annotations

from vinecore import validators
from vinecore.manager.status_methods import StatusMethods
from vinecore.scheduler import events


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

    def activate_fast_abort(self, multiplier: float) -> int:
        """Call `enable_disconnect_slow_workers` by its former name."""
        return self.enable_disconnect_slow_workers(multiplier)

    def activate_fast_abort_category(self, name: str | None, multiplier: float) -> int:
        """Call `enable_disconnect_slow_workers_category` by its former name."""
        return self.enable_disconnect_slow_workers_category(name, multiplier)


def _slow_factor(multiplier: float) -> float:
    """Take a multiplier of any sign; return 0 if it switches the check off."""
    factor = validators.number("multiplier", multiplier, -validators.MOST)
    return float(factor) if factor >= 1 else 0.0
