"""The part of `Manager` that tells what is going on: workers, why nothing can run, and why a task has failed."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any

from vinecore import errors, keyword_arguments, validators
from vinecore.manager.interfaces import ScalableFactory
from vinecore.scheduler import events, instructions, queries
from vinecore.scheduler.queue_stats import QueueStats

if TYPE_CHECKING:
    from datetime import timedelta

    from vinecore.server.server import ManagerServer

log = logging.getLogger("vinecore")

CACHE_NAME_PATTERN = re.compile(
    r"(?:untar-)?((?:xrootd-)?(?:file|dir|url|minitask|buffer)-[0-9a-f]{40}|(?:out|buffer|temp|result)-[0-9a-f]{8}-\d+)(?:-for-[0-9a-f]{8}-\d+)?"
)
MAX_LABELS = 1000


class StatusMethods:
    """Workers, and texts for the user.

    Parameters
    ----------
    server : ManagerServer
        The thread that owns the scheduler.
    session : str
        A random text that the names of this manager's own files have in common.

    Attributes
    ----------
    factory : ScalableFactory or None
        The factory that `scale` and `adapt` go to.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        self._server, self._session = server, session
        self.factory: ScalableFactory | None = None
        self._start_failure = ""
        # the seconds that threads of the program have waited for tasks
        self._waited_s = 0.0
        # Cache names to what the user calls the files: paths and addresses.
        self._display_names: dict[str, str] = {}
        # Full names of libraries to what the user calls them.
        self._labels: dict[str, str] = {}
        self._missing = ""
        server.in_words = self.in_words
        server.subscribe(instructions.Stalled, self._on_stalled)

    def ensure_open(self) -> None:
        """Check that the manager can be used here.

        Raises
        ------
        RuntimeError
            The manager is closed, has stopped because of a defect, or belongs to the process that
            has forked this one.
        """
        self._server.ensure_open()

    @property
    def name(self) -> str:
        """The name by which workers find the manager; one that it has made up if it is not announced."""
        return self._server.name

    @property
    def port(self) -> int:
        """The port to which workers connect."""
        return self._server.port

    @property
    def bound_address(self) -> str:
        """The address that the manager listens on."""
        return self._server.bound

    def _on_stalled(self, missing: instructions.Stalled) -> None:
        self._missing = self.in_words(missing.text)
        if self._missing and not self._progress_reports_stalls():
            log.warning("%s", self._missing)

    def _progress_reports_stalls(self) -> bool:
        """Return whether a progress display tells the user why nothing can run."""
        return False

    @property
    def stalled_reason(self) -> str:
        """The reason why nothing can run now; "" if something can run, or there are no tasks."""
        return self._missing

    def worker_name(self, number: int) -> str:
        """Return the host of a worker.

        Parameters
        ----------
        number : int
            The number of the worker.

        Returns
        -------
        str
            The host, or "worker N" if it is not known.
        """
        known = self._server.worker_addresses.get(number)
        return f"worker {number}" if known is None else known.hostname

    def worker_address(self, number: int) -> str:
        """Return the address and port of a worker.

        Parameters
        ----------
        number : int
            The number of the worker.

        Returns
        -------
        str
            The "ADDRESS:PORT" at which it serves files; "" if it is not known.
        """
        known = self._server.worker_addresses.get(number)
        return "" if known is None else known.addrport

    def make_exception(
        self, outcome: str, info: dict[str, Any], payload: bytes, what: str, worker: int
    ) -> BaseException:
        """Make the exception that explains why a task has failed, with the user's names of files.

        Parameters
        ----------
        outcome : str
            How the task ended, such as "exception", "crash" or "library".
        info : dict
            The evidence that the scheduler has collected.
        payload : bytes
            The serialized exception; empty if there is none.
        what : str
            The task in the words of the user.
        worker : int
            The number of the worker; 0 for none.

        Returns
        -------
        BaseException
            The exception of the task, or a `VineError`.
        """
        told = {
            "reason": self.in_words(info.get("reason", "")),
            "evidence": [self.in_words(line) for line in info.get("evidence") or ()],
            "library": self._labels.get(info.get("library", ""), info.get("library", "")),
        }
        where = self.worker_name(worker) if worker else ""
        return errors.exception_for(outcome, {**info, **told}, payload, what, where)

    def in_words(self, text: Any) -> str:
        """Replace cache names and library names in a text by the user's names.

        Parameters
        ----------
        text : object
            The text, or something that has one.

        Returns
        -------
        str
            The text for the user.
        """
        said = CACHE_NAME_PATTERN.sub(
            lambda found: self._display_names.get(found[1]) or _kind_in_words(found[1]), str(text)
        )
        for full_name, label in list(self._labels.items()) if "library" in said else ():
            said = said.replace(full_name, label)
        return said

    def _set_library_label(self, full_name: str, label: str) -> None:
        """Remember what the user calls a library, for as long as not too many others come after it."""
        self._labels.pop(full_name, None)
        self._labels[full_name] = label
        if len(self._labels) > MAX_LABELS:
            del self._labels[next(iter(self._labels))]

    @property
    def workers_connected(self) -> int:
        """The number of connected workers."""
        return self._server.query(queries.count_workers)

    @keyword_arguments.refuse_unknown
    def wait_for_workers(self, count: int = 1, timeout: float | timedelta | str | None = None) -> None:
        """Wait until so many workers are connected.

        Parameters
        ----------
        count : int
            Number of workers.
        timeout : float, timedelta, str or None
            Duration in seconds; None or "wait_forever" for no limit.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or is out of bounds.
        TimeoutError
            Fewer workers are connected when the time is over.
        WorkersNotStarted
            The factory of this manager cannot start workers on this machine.
        """
        count, timeout = validators.whole("count", count), validators.timeout("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.workers_connected < count:
            if self._start_failure:
                raise errors.WorkersNotStarted(self._start_failure)
            if deadline is not None and time.monotonic() > deadline:
                msg = f"{self.workers_connected} of {count} workers are connected after {timeout} s"
                raise TimeoutError(msg)
            time.sleep(0.01)

    def scale(self, count: int) -> None:
        """Set the number of workers.

        The factory submits missing workers and releases surplus idle ones.

        Parameters
        ----------
        count : int
            Number of workers, 0 or more.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 0 or more.
        RuntimeError
            No factory has been started for this manager.
        """
        count = validators.whole("count", count)
        self.adapt(count, count)

    def adapt(self, minimum: int, maximum: int) -> None:
        """Let the factory run as many workers as there is work for, within bounds.

        Parameters
        ----------
        minimum, maximum : int
            Number of workers, 0 or more.

        Raises
        ------
        TypeError, ValueError
            A bound is not a whole number of 0 or more.
        RuntimeError
            No factory has been started for this manager.
        """
        if self.factory is None:
            msg = "no factory brings workers to this manager: start one with Factory('local', manager=m).start(), or 'condor', or 'dask'"
            raise RuntimeError(msg)
        minimum, maximum = validators.whole("minimum", minimum), validators.whole("maximum", maximum)
        self.factory.change(min_workers=minimum, max_workers=maximum)
        if self._server.query(queries.is_worker_count_expected):
            self.expect_workers(maximum)

    def expect_workers(self, count: int) -> None:
        """Tell the scheduler how many workers there will be at most.

        If all of them are connected, the scheduler keeps no work back for others.

        Parameters
        ----------
        count : int
            Number of workers.
        """
        self._server.post_event(events.SettingChanged("expected-workers", count))

    def report_start_failure(self, reason: str) -> None:
        """Fail the tasks that wait while no worker is connected, because none can be started.

        Parameters
        ----------
        reason : str
            The reason, for the user; "" if workers are started again.
        """
        self._start_failure = reason
        self._server.post_event(events.SettingChanged("start-failure", reason))

    def summarize_workers(self) -> list[dict[str, Any]]:
        """Describe each connected worker.

        Returns
        -------
        list of dict
            For each worker its id, host, resources (total and free), and number of tasks and files.
        """
        return self._server.query(queries.summarize_workers)

    def queue_stats(self) -> QueueStats:
        """Return the number of waiting and running tasks, and the connected pilots.

        Returns
        -------
        QueueStats
            The numbers by which a factory decides.
        """
        return self._server.queue_stats()

    def release_idle_workers(self, count: int, prefix: str) -> int:
        """Release idle workers of a factory.

        Parameters
        ----------
        count : int
            The highest number of workers to release.
        prefix : str
            The beginning of the names of their pilots.

        Returns
        -------
        int
            The number of released workers.
        """
        return self._server.release_idle_workers(count, prefix)


def _kind_in_words(name: str) -> str:
    """Call a file that the user has given no name by what it is."""
    kind, _, rest = name.partition("-")
    if kind == "result":
        return f"the result of task {rest.rpartition('-')[2]}"
    return {"buffer": "a buffer", "temp": "a file of declare_temp"}.get(kind, name)
