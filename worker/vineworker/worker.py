"""Find a manager, work for it, and leave when there is no more work or the time is over.

A batch system (with SIGTERM), the wall time, or a long idle time ends a worker. It gets a grace
period, in which it stays connected: the manager has its sole replicas copied to other workers, and
then releases it. One asyncio loop handles the connections to the manager and to the slots; a
`ManagerSession` does the work.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from typing import Any, Optional

from vinecore.protocol import handshake, temporary_folders
from vinecore.protocol import messages as m
from vinecore.protocol.reminders import Reminder
from vinecore.protocol.trees import remove_tree
from vineworker import zipapp_builder
from vineworker.machine import descendants
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.manager_connection import Connection, ManagerAddress, ManagerConnector
from vineworker.peer_server import open_peer_socket, start_peer_server
from vineworker.session.session import ManagerSession
from vineworker.settings import WorkerSettings
from vineworker.storage.cache import DetachedObjects
from vineworker.storage.cache_directory import open_cache_directory
from vineworker.storage.persistent_cache import PersistentCache

log = logging.getLogger("vine_worker")

SHUTDOWN_TIMEOUT_S = 2.0
HEARTBEAT_INTERVAL_S = 60.0
HEARTBEAT_TIMEOUT_S = 300.0
"""A manager that does not answer for so long is gone: its machine or the network has failed."""


class Worker:
    """One worker process.

    Parameters
    ----------
    settings
        The settings.
    search
        Connects to managers.
    """

    def __init__(self, settings: WorkerSettings, search: ManagerConnector) -> None:
        self._settings, self._connector = settings, search
        self._folder = temporary_folders.create_folder(f"vine-worker-{os.getpid()}-", settings.workspace)
        temporary_folders.start_removing_abandoned(settings.workspace, None)
        # to the session's folder, while there is one
        self._link = temporary_folders.create_link(self._folder)
        if os.statvfs(self._folder).f_flag & getattr(os, "ST_NOEXEC", 0):
            log.warning(
                "nothing can be executed in %s, where the file system is mounted with noexec: "
                "tasks cannot run programs among their inputs, and packed "
                "environments will not start; choose another place with --workspace",
                settings.workspace,
            )
        self._reaper = ProcessReaper(self._folder, self._link)
        # while it is what this worker was started from
        if zipapp_builder.zipapp_path():
            zipapp_builder.source_files()
        home = open_cache_directory(settings.workspace, settings.secret) if settings.keep_workspace else None
        kept = os.path.join(self._folder, "kept")
        self._persistent_cache = PersistentCache(kept, settings.resources.disk_mb << 20, home)
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Future[None]
        self._session: Optional[ManagerSession] = None
        # of a manager that has vanished
        self._orphaned_objects: Optional[DetachedObjects] = None
        self._last_busy_at = self._last_heartbeat_at = time.monotonic()
        self._is_child = os.getppid() == settings.parent
        self._reason = ""
        # it has told its manager that it wants to go
        self._draining = False
        self._drain_at = math.inf
        if settings.wall_time_s is not None:
            self._drain_at = time.monotonic() + settings.wall_time_s - self._wall_grace()

    def run(self) -> int:
        """Work until there is no more work; return the exit code."""
        descendants.become_subreaper()
        try:
            return asyncio.run(self._run())
        finally:
            self._connector.close(SHUTDOWN_TIMEOUT_S)
            self._persistent_cache.close()
            self._reaper.kill_strays(SHUTDOWN_TIMEOUT_S)
            temporary_folders.remove_folder(self._folder)
            if self._link:
                remove_tree(self._link)
            self._reaper.close()

    async def _run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_loop_exception)
        self._stopping = self._loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, signal.Signals(number).name)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reaper.kill_strays)
        if self._settings.wall_time_s is not None:
            self._loop.call_later(self._drain_at - time.monotonic(), self._on_wall_time_over)
        if self._settings.stdin_heartbeat_s is not None:
            os.set_blocking(0, False)
            self._loop.add_reader(0, self._on_stdin_heartbeat)
        try:
            self._start_peer_server()
        except OSError as error:
            log.error("peers cannot fetch from this worker: %s", error)
            return 2
        watch = self._loop.create_task(self._watch_idle_and_parent())
        try:
            return await self._serve_managers()
        finally:
            watch.cancel()
            self._peer_server.close()

    async def _serve_managers(self) -> int:
        settings = self._settings
        shortest, longest = settings.backoff_s
        wait, deadline = shortest, time.monotonic() + settings.connect_timeout_s
        log.info("looking for a manager %s", self._connector)
        reminder = Reminder()
        while not self._stopping.done():
            try:
                dialled = await self._connect()
                if dialled is not None and await self._serve(*dialled):
                    wait = shortest
                if settings.single_shot or self._draining:
                    return 0
                deadline = time.monotonic() + settings.connect_timeout_s
            except handshake.HandshakeRejected as error:
                log.error("the manager %s refuses this worker: %s", self._connector, error)
                return 1
            except OSError as error:
                if time.monotonic() > deadline:
                    log.error("no manager %s: %s", self._connector, error)
                    return 1
                if reminder.is_due(str(error), time.monotonic()):
                    log.info("no manager %s yet: %s", self._connector, error)
            await asyncio.wait({self._stopping}, timeout=wait)
            wait = min(2 * wait, longest)
        return 0

    async def _connect(self) -> Optional[Connection]:
        """Connect to a manager in a thread; return None if the worker has to leave meanwhile."""
        dialled: asyncio.Future[Connection] = self._loop.create_future()

        def tell(found: Optional[Connection], error: Optional[Exception]) -> None:
            if dialled.cancelled():
                if found is not None:
                    found[0].close()
            elif error is not None:
                dialled.set_exception(error)
            elif found is not None:
                dialled.set_result(found)

        def dial() -> None:
            try:
                news: tuple[Any, Any] = (self._connector.connect(), None)
            except Exception as error:  # noqa: BLE001 - raised where the socket is waited for
                news = (None, error)
            try:
                self._loop.call_soon_threadsafe(tell, *news)
            except RuntimeError:  # the worker has left
                pass

        threading.Thread(target=dial, name="vine-connect", daemon=True).start()
        either: set[asyncio.Future[Any]] = {dialled, self._stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.done():
            dialled.cancel()
            return None
        return dialled.result()

    def _start_peer_server(self) -> None:
        """Listen for peers that fetch objects."""
        sock = open_peer_socket(self._settings.transfer_address, self._settings.transfer_ports)
        self._data_port = sock.getsockname()[1]
        self._peer_server = start_peer_server(sock, lambda: self._session)

    async def _serve(self, sock: socket.socket, key: bytes, manager: ManagerAddress) -> bool:
        """Work for one manager until the connection ends; return whether it was a manager."""
        self._reason = ""
        self._last_busy_at = time.monotonic()
        try:
            session = self._session = ManagerSession(
                self._settings,
                manager,
                self._folder,
                self._reaper,
                self._persistent_cache,
                self._leave,
                self._orphaned_objects,
            )
        except BaseException:
            sock.close()
            raise
        try:
            left_s = self._drain_at - time.monotonic()
            time_left_s = 0.0 if left_s == math.inf else max(left_s, 0.01)
            reason = await session.serve(sock, key, self._data_port, time_left_s)
            log.info("the manager is gone: %s", self._reason or reason)
        finally:
            self._session = None
            self._orphaned_objects = session.detach_objects()
            session.close()
        return session.welcomed

    # ---- when to go

    def _on_signal(self, name: str) -> None:
        """Drain the worker at the first signal; leave at once at the second."""
        if self._draining:
            self._leave(f"the worker got {name} again", True)
        else:
            self._drain_and_leave(f"the worker got {name}", self._settings.grace_s)

    def _on_wall_time_over(self) -> None:
        self._drain_and_leave(
            f"its wall time of {self._settings.wall_time_s:g} s is over", self._wall_grace()
        )

    def _wall_grace(self) -> float:
        """Return the part of the wall time that is for draining."""
        assert self._settings.wall_time_s is not None
        return min(self._settings.grace_s, self._settings.wall_time_s / 2)

    def _drain_and_leave(self, reason: str, grace_s: float) -> None:
        """Leave when the manager or its workers have all sole replicas, or after the grace."""
        if self._draining:
            return
        self._draining = True
        if self._session is None or grace_s <= 0:
            self._leave(reason, True)
            return
        log.info("%s: leaving within %g s", reason, grace_s)
        self._session.send(m.Draining(reason, grace_s))
        self._loop.call_later(grace_s, self._leave, f"{reason}, and its grace of {grace_s:g} s is over", True)

    def _leave(self, reason: str, final: bool) -> None:
        """End the session and, if that is final, the worker."""
        self._reason = reason
        if final and not self._stopping.done():
            self._stopping.set_result(None)
        if self._session is not None:
            self._session.send(m.Draining(reason))
            self._session.close_connection(reason)

    def _on_stdin_heartbeat(self) -> None:
        """Record a heartbeat on standard input, or drain at its end."""
        if os.read(0, 1 << 12):
            self._last_heartbeat_at = time.monotonic()
        else:
            self._loop.remove_reader(0)
            self._drain_and_leave(
                "what has started this worker is gone, or has let it go", self._settings.grace_s
            )

    def _has_lost_parent(self) -> bool:
        """Return whether the process with which this worker has to end is gone.

        It may have started this one through others.
        """
        parent = self._settings.parent
        if parent is None or os.getppid() == parent:
            return False
        if self._is_child:
            return True
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            # it belongs to another user
            pass
        return False

    async def _watch_idle_and_parent(self) -> None:
        pinged_at = 0.0
        while True:
            await asyncio.sleep(min(1.0, self._settings.idle_timeout_s / 4))
            now, session = time.monotonic(), self._session
            self._reaper.kill_strays()
            if self._has_lost_parent():
                self._leave("the process that has started this worker is gone", True)
            if (
                self._settings.stdin_heartbeat_s is not None
                and now - self._last_heartbeat_at > self._settings.stdin_heartbeat_s
            ):
                self._leave(
                    "what has started this worker has not been heard for "
                    f"{self._settings.stdin_heartbeat_s:.0f} s",
                    True,
                )
            if session is None:
                continue
            quiet = now - session.last_message_at
            if quiet > HEARTBEAT_TIMEOUT_S:
                self._reason = f"silent for {quiet:.0f} s"
                session.abort_connection(self._reason)
            elif quiet > HEARTBEAT_INTERVAL_S and now - pinged_at > HEARTBEAT_INTERVAL_S:
                pinged_at = now
                session.send(m.Ping())
            if not session.is_idle:
                self._last_busy_at = now
            elif now - self._last_busy_at > self._settings.idle_timeout_s:
                self._drain_and_leave(
                    f"{m.IDLE_REASON} {self._settings.idle_timeout_s:.0f} s", self._settings.grace_s
                )

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Leave the manager after an error of this program, so that other workers get the tasks."""
        error = context.get("exception")
        log.error("a defect in the worker: %s", context.get("message"), exc_info=error)
        if error is not None:
            self._leave(f"a defect in the worker: {type(error).__name__}: {error}", False)
