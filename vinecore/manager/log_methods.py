"""The part of `Manager` that writes the logs which tools for TaskVine read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.statistics_methods import StatisticsMethods

if TYPE_CHECKING:
    from vinecore.journal.writer import JournalWriter


class LogMethods(StatisticsMethods):
    """Logs of the run."""

    _journal_writer: JournalWriter | None

    def log_txn_app(self, entry: str) -> None:
        """Add an entry to the transactions log; without ``vine_logs`` this does nothing.

        Parameters
        ----------
        entry : str
            The text of the entry, in one line.

        Raises
        ------
        TypeError, ValueError
            The entry is no text, or cannot be written.
        """
        entry = validators.text("entry", entry)
        logs = None if self._journal_writer is None else self._journal_writer.logs
        if logs is not None:
            logs.add_application_entry(entry)

    def log_debug_app(self, entry: str) -> None:
        """Add an entry to the debug log; without ``vine_logs`` this does nothing.

        Parameters
        ----------
        entry : str
            The text of the entry, in one line.

        Raises
        ------
        TypeError, ValueError
            The entry is no text, or cannot be written.
        """
        entry = validators.text("entry", entry)
        logs = None if self._journal_writer is None else self._journal_writer.logs
        if logs is not None:
            logs.add_debug_entry(entry)

    def _log_performance(self) -> None:
        if self._journal_writer is not None and self._journal_writer.logs is not None:
            self._journal_writer.log_performance(self._read_performance)

    def _read_performance(self) -> tuple[Any, float]:
        interval_s = self._server.query(lambda scheduler: scheduler.state.tuning.perf_log_interval)
        return self.stats, interval_s
