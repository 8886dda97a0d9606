"""Work for one manager: carries out instructions of the state machine, and gives it events.

A session is all that is done for one manager: its objects, processes and files. When the connection
ends so does the session, with everything in it. Events that still come from its threads and
processes are dropped: the session of the next manager is another object. Only the objects of a
manager that has asked for it, and then vanished without a goodbye, go to the next session.

Everything that blocks (transfers, sandboxes, unpacking) runs in a few helper threads, which give
their events to the loop. User code never runs in this process, and nothing is unpickled here.

The parts, each of which uses only those before it: `SessionContext`, `ObjectHandler`,
`ProcessHandler`, `SlotHandler`, `ManagerSession`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
import tempfile
import time
from typing import Any, Callable, Optional

from vinecore.protocol import (
    VERSION,
    authentication,
    messages,
    temporary_folders,
    transfer_tokens,
)
from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.frames import strict_json_dumps
from vinecore.protocol.trees import remove_tree
from vineworker.machine.monitor_thread import ResourceMonitorThread
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.manager_connection import ManagerAddress
from vineworker.session.context import SessionContext
from vineworker.session.objects import ObjectHandler
from vineworker.session.processes import ProcessHandler
from vineworker.session.slots import SlotHandler
from vineworker.settings import WorkerSettings
from vineworker.state import events, instructions
from vineworker.storage.cache import DetachedObjects
from vineworker.storage.persistent_cache import PersistentCache
from vineworker.storage.transfers import TransferClient

log = logging.getLogger("vine_worker")


class ManagerSession:
    """Work for one manager.

    Parameters
    ----------
    settings
        The settings of the worker.
    manager
        Where the manager is, and how to speak with it.
    folder
        Where a folder for the session is made.
    process_reaper
        Is told of process groups.
    persistent_cache
        Has objects of earlier sessions, and takes those that shall outlive this one.
    leave
        Called with the reason, and whether the worker shall not come back, when the manager sends
        it away.
    orphans
        Objects of the session before, if its manager has vanished.

    Attributes
    ----------
    welcomed
        Whether the manager has accepted the worker.
    authorizer
        Decides which peers may fetch an object: none before the manager has sent the key.
    tls_context
        For connections of peers.
    heard_at
        When the last message has come.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        manager: ManagerAddress,
        folder: str,
        process_reaper: ProcessReaper,
        persistent_cache: PersistentCache,
        leave: Callable[[str, bool], None],
        orphans: Optional[DetachedObjects] = None,
    ) -> None:
        self.manager, self._orphans = manager, orphans
        # of a manager that wants its objects kept if it vanishes
        self._manager_session = ""
        self.welcomed = self._closing = False
        self.tls_context: Any = None
        self._settings, self._persistent_cache, self._leave = settings, persistent_cache, leave
        context = self._context = SessionContext(settings, folder, process_reaper)
        context.execute_instructions, context.feed_event = self._execute, self._feed_event
        self.cache, self._state = context.cache, context.state
        self._monitor = ResourceMonitorThread(
            lambda exceeded: context.call_in_loop(processes.on_limit_exceeded, exceeded),
            settings.resources.disk_mb,
            lambda library, found: context.call_in_loop(slots.on_library_too_large, library, found),
        )
        objects = self._objects = ObjectHandler(context, persistent_cache)
        processes = self._processes = ProcessHandler(context, self._monitor)
        slots = self._slots = SlotHandler(context, processes, self._monitor)
        self.authorizer = transfer_tokens.TransferAuthorizer(os.urandom(32))
        self._key = b""
        self.last_message_at = time.monotonic()
        self._instructions: dict[type, Callable[[Any], None]] = {
            instructions.SendMessage: self._send_message,
            instructions.LeaveManager: self._leave_manager,
            instructions.StoreBytes: objects.store_bytes,
            instructions.StoreResultFile: objects.store_result_file,
            instructions.Delete: objects.delete,
            instructions.PersistObject: objects.persist,
            instructions.ReleasePersisted: objects.release_persisted,
            instructions.StartFetch: objects.start_fetch,
            instructions.StartUnpack: objects.start_unpack,
            instructions.StartUpload: objects.start_upload,
            instructions.StartForkServer: slots.start_fork_server,
            instructions.StopForkServer: slots.stop_fork_server,
            instructions.StartSlot: slots.start_slot,
            instructions.KillSlot: slots.kill_slot,
            instructions.SendCall: slots.send_call,
            instructions.CollectOutputs: slots.collect_outputs,
            instructions.DropSharedInSlot: slots.drop_shared,
            instructions.SpillResultsInSlot: slots.spill_results,
            instructions.DropHeldResultsInSlot: slots.drop_held_results,
            instructions.StartProcess: processes.start_command,
            instructions.KillProcess: processes.kill_command,
        }

    # ---- begin and end

    async def serve(self, sock: socket.socket, key: bytes, data_port: int, time_left_s: float = 0.0) -> str:
        """Work until the connection ends; return the reason."""
        context = self._context
        ended: asyncio.Future[str] = context.loop.create_future()

        def on_closed(reason: str) -> None:
            if not ended.done():
                ended.set_result(reason)

        channel = context.channel = MessageChannel(
            messages.FROM_MANAGER,
            self._on_messages,
            on_closed,
            strict_json_dumps,
            authenticators=authentication.sender_and_receiver(key, "client"),
            unsent=self._on_send_failed,
        )
        self._key = key
        await context.loop.create_connection(lambda: channel, sock=sock)
        self.send(self._make_hello(data_port, time_left_s))
        return await ended

    def _make_hello(self, data_port: int, time_left_s: float) -> messages.Hello:
        settings, resources = self._settings, self._settings.resources
        features = list(settings.features)
        if settings.keep_workspace:
            features.append(messages.PERSISTENT_CACHE_FEATURE)
        return messages.Hello(
            VERSION,
            socket.gethostname(),
            os.getpid(),
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            resources.cores,
            resources.memory_mb,
            resources.disk_mb,
            resources.gpus,
            data_port,
            features,
            installed_packages(),
            time_left_s,
            settings.contact,
        )

    def _on_welcome(self, welcome: messages.Welcome) -> None:
        context = self._context
        self.welcomed, self._manager_session = True, welcome.session
        self.authorizer = transfer_tokens.TransferAuthorizer(transfer_tokens.worker_key(self._key))
        context.python, context.compat = welcome.python, welcome.compat
        self._objects.transfer_client = TransferClient(
            self.cache,
            self.manager.address,
            self._settings.secret,
            welcome.worker,
            self._key,
            context.process_reaper,
            self.manager.tls,
            self.manager.fingerprints,
        )
        if self.manager.tls is not None:
            self.tls_context = self._make_tls_context(welcome.certificate)
        log.info("worker %d of manager %s", welcome.worker, welcome.manager)
        self._report_inventory()

    def _make_tls_context(self, certificate: str) -> Any:
        from vinecore.protocol import tls

        path = os.path.join(self._context.folder, "certificate.pem")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(certificate)
        try:
            return tls.server_context(path)
        finally:
            os.unlink(path)

    def _report_inventory(self) -> None:
        """Tell the manager what is here from before."""
        orphans, self._orphans = self._orphans, None
        if orphans is not None and self._manager_session:
            self._objects.adopt_orphans(orphans)
        elif orphans is not None:
            self._context.threads.submit(orphans.close)
        is_all = self._objects.find_persistent()
        if is_all and (self._settings.keep_workspace or self._manager_session):
            self.send(messages.InventoryComplete())

    def detach_objects(self) -> Optional[DetachedObjects]:
        """Give away what the next session may want, if the manager has vanished."""
        # it may still be wanted
        if not self.welcomed:
            return self._orphans
        if self._closing or not self._manager_session:
            return None
        about = self._state.orphaned_objects(self._manager_session)
        beside = os.path.dirname(self._context.folder)
        return self.cache.detach_objects(about, tempfile.mkdtemp(prefix="orphans-", dir=beside))

    def close_connection(self, reason: str) -> None:
        """End the connection, in order; what is queued still leaves."""
        self._closing = True
        if self._context.channel is not None:
            self._context.channel.close(reason)

    def abort_connection(self, reason: str) -> None:
        """End the connection without waiting for the other end."""
        if self._context.channel is not None:
            self._context.channel.abort(reason)

    def close(self) -> None:
        """End everything that was started for this manager, and remove its files."""
        context = self._context
        context.closed = True
        self._persistent_cache.unsubscribe()
        self._slots.close()
        self._processes.close()
        if self.welcomed:
            self._objects.transfer_client.close()
        self._monitor.close()
        context.close_threads()
        # a link that leads nowhere may be removed by other workers
        temporary_folders.update_link(context.process_reaper.link, os.path.dirname(context.folder))
        # it still takes things out of the folder
        if self._persistent_cache.has_pending:
            self._persistent_cache.run_after_pending(lambda: remove_tree(context.folder))
        else:
            remove_tree(context.folder)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._state.is_idle

    # ---- messages and events in, instructions out

    def send(self, message: messages.Message) -> None:
        """Send a message to the manager."""
        self._context.send(message)

    def _on_messages(self, received: list[messages.Message]) -> None:
        self.last_message_at = time.monotonic()
        if not self.welcomed and received and type(received[0]) is messages.Welcome:
            self._on_welcome(received[0])
        self._execute(self._state.handle(received))

    def _on_send_failed(self, message: messages.Message, reason: str) -> None:
        """Have the task of a message that cannot be sent fail, rather than wait for it for ever."""
        log.error("%s cannot be sent: %s", type(message).__name__, reason)
        if isinstance(message, (messages.TaskDone, messages.TaskFailed)):
            why = f"what its worker says of it cannot be sent: {reason}"
            self.send(messages.TaskFailed(message.task, "not sent", {"reason": why}, b""))
        elif isinstance(message, messages.LibraryFailed):
            why = f"{message.reason[:1000]} (its exception cannot be sent: {reason})"
            self.send(message._replace(payload=b"", reason=why))

    def _feed_event(self, event: Any) -> None:
        """Give an event to the state machine, after what is to be done for it here."""
        if self._context.closed:
            return
        kind = type(event)
        if kind is events.CallsReturned:
            for reply in event.replies:
                if reply.kind == "crash":
                    self._context.report_lost(reply.info.get("lost", ()))
            processes = self._processes
            if event.slot in processes.python_tasks:
                processes.on_python_task_replied(event)
            else:
                if processes.time_limits:
                    for reply in event.replies:
                        processes.cancel_time_limit(reply.task)
                check = self._slots.check_disk_for_reply
                event = event._replace(replies=[check(reply) for reply in event.replies])
        elif kind is events.SlotExited:
            self._slots.on_slot_exited(event)
        elif kind is events.ForkServerExited:
            self._slots.stop_fork_server(event)
        self._execute(self._state.handle((event,)))

    def _execute(self, to_do: list[Any]) -> None:
        """Carry out instructions."""
        table = self._instructions
        for instruction in to_do:
            try:
                table[type(instruction)](instruction)
            except OSError as error:
                if type(instruction) not in (instructions.StoreBytes, instructions.StoreResultFile):
                    raise
                log.error("cannot keep %s: %s", instruction.name, error)
                # the next instructions say that it is here: take that back after them
                context = self._context
                context.loop.call_soon(context.call_unless_closed, context.report_lost, [instruction.name])

    def _send_message(self, instruction: instructions.SendMessage) -> None:
        channel = self._context.channel
        if channel is not None:
            channel.send(instruction.message)

    def _leave_manager(self, instruction: instructions.LeaveManager) -> None:
        self._leave(instruction.reason, instruction.final)


def installed_packages() -> dict[str, str]:
    """Return which packages that matter to pickles this Python has.

    Their versions, "" here, take longer to find out; fork servers report them.
    """
    names = messages.PICKLE_SENSITIVE_PACKAGES
    found = [name for name in names if importlib.util.find_spec(name) is not None]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return {"python": python, **dict.fromkeys(found, "")}
