"""What all parts of a session use: connection, helper threads, files, state machine."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

from vinecore.protocol import MB, messages, temporary_folders
from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.transfer.types import ObjectNotFound
from vineworker.machine.argument_limits import ArgumentsTooLong
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.settings import WorkerSettings
from vineworker.state.state_machine import WorkerStateMachine
from vineworker.storage.cache import Cache
from vineworker.storage.files import DiskFull, is_disk_full
from vineworker.tasks import sandbox

log = logging.getLogger("vine_worker")

UPLOAD_THREADS = 8
"""For objects that are sent to the manager."""
DISK_THREADS = 4


class SessionContext:
    """What the parts of a session share.

    Parameters
    ----------
    settings
        The settings of the worker.
    folder
        Where a folder for the session is made.
    process_reaper
        Kills processes that are left.

    Attributes
    ----------
    execute
        Carries out instructions.
    feed
        Gives an event of a process or a thread to the state machine.
    transfers, uploads, threads
        Helper threads. Transfers have threads of their own, because one may wait long for the
        other end, and no task shall wait for it; so have uploads, because no transfer that a task
        waits for may be behind results that all workers send to one manager.
    python
        The version of Python that the manager runs.
    compat
        Whether imports of TaskVine's modules lead to this project in the manager's program.
    """

    execute_instructions: Callable[[list[Any]], None]
    feed_event: Callable[[Any], None]

    def __init__(self, settings: WorkerSettings, folder: str, process_reaper: ProcessReaper) -> None:
        self.settings, self.process_reaper = settings, process_reaper
        self.folder = tempfile.mkdtemp(prefix="session-", dir=folder)
        self._short_folder = temporary_folders.update_link(process_reaper.link, self.folder)
        self.loop = asyncio.get_running_loop()
        self.transfers = ThreadPoolExecutor(settings.transfer_threads, "vine-transfer")
        self.uploads = ThreadPoolExecutor(UPLOAD_THREADS, "vine-upload")
        self.threads = ThreadPoolExecutor(DISK_THREADS, "vine-disk")
        self.state = WorkerStateMachine()
        self.cache = Cache(
            self.folder,
            disk_limit=settings.resources.disk_mb * MB,
            lost=lambda names: self.call_in_loop(self.report_lost, names),
        )
        self.channel: Optional[MessageChannel] = None
        self.python, self.compat = "", False
        self.closed = False
        self._folder_count = 0

    def send(self, message: messages.Message) -> None:
        """Send a message to the manager."""
        if self.channel is not None:
            self.channel.send(message)

    def apply_inputs(self, *inputs: Any) -> None:
        """Give messages or events to the state machine, and carry out its instructions."""
        self.execute_instructions(self.state.handle(inputs))

    def report_lost(self, names: list[str]) -> None:
        """Remove objects that cannot be read any more; the manager finds or makes them again."""
        if names:
            log.warning("lost %s", ", ".join(names))
            self.apply_inputs(messages.PurgeObjects(list(names)))
            self.send(messages.ObjectsLost(list(names)))

    # ---- threads

    def call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call from a helper thread into the loop."""
        try:
            self.loop.call_soon_threadsafe(self.call_unless_closed, function, *args)
        except RuntimeError:
            # the loop has ended; so has everything this would be news for
            pass

    def call_unless_closed(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function if the session goes on."""
        if not self.closed:
            function(*args)

    def run_in_thread(
        self,
        work: Callable[[], Any],
        then: Callable[[Any, Optional[BaseException]], None],
        threads: Optional[ThreadPoolExecutor] = None,
    ) -> None:
        """Do something slow in a helper thread, and call `then` with its result in the loop."""

        def job() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - told to the manager by `then`
                self.call_in_loop(then, None, error)
            else:
                self.call_in_loop(then, result, None)

        if not self.closed:
            (threads or self.threads).submit(job)

    def close_threads(self) -> None:
        """End the helper threads, without waiting for them."""
        for threads in (self.transfers, self.uploads, self.threads):
            threads.shutdown(wait=False, cancel_futures=True)

    # ---- files

    def new_folder(self) -> str:
        """Return the path of a folder that does not exist yet."""
        self._folder_count += 1
        return os.path.join(self.folder, f"t{self._folder_count}")

    def short_path(self, folder: str) -> str:
        """Return a short path to a folder of this session."""
        return os.path.join(self._short_folder, os.path.basename(folder))

    def result_path(self, task: int) -> str:
        """Return the path of the file that takes the result of a task."""
        return f"{self.folder}/incoming/result-{task}"

    def free_disk_if_full(self, error: BaseException) -> int:
        """Return the free bytes of the disk if there were too few of them; else -1."""
        return max(0, self.cache.free_bytes()) if is_disk_full(error) else -1

    def describe_full_disk(self, error: BaseException) -> dict[str, Any]:
        """Return what the manager should know of a disk that is full."""
        about = {"reason": describe_error(error), "room": max(0, self.cache.free_bytes())}
        if isinstance(error, DiskFull):
            about["size"] = error.size
        return about


def describe_error(error: BaseException) -> str:
    """Return a text for the manager; the name of the class is left out where it adds nothing."""
    if isinstance(error, (ObjectNotFound, ArgumentsTooLong, sandbox.UnusableOutput)):
        return str(error)
    return f"{type(error).__name__}: {error}"
