"""The worker's hands: carry out what `WorkerState` asks for, and turn what happens into events for it.

A session is all that is done for one manager: its objects, processes and files. When the connection ends so does the session, with everything
in it, and what still comes from its threads and processes finds nobody who listens: the next manager's session is another object. Only a
manager that has asked for it, and then vanished without a goodbye, has its objects handed to the next session.

Everything that blocks (transfers, sandboxes, unpacking) runs in a few helper threads, which give their news to the loop. User code never
runs in this process, and nothing is unpickled here.
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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, Optional

from vinecore.protocol import INLINE_LIMIT, VERSION, authentication, temporary_folders, transfer_tokens
from vinecore.protocol import messages as m
from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.frames import strict_json_dumps
from vinecore.protocol.transfer.types import ChecksumMismatch, ObjectNotFound, ReceivedObject, Unreachable
from vinecore.protocol.trees import remove_tree
from vineworker.library.captured_output import ERRORS
from vineworker.library.process_handles import (
    ForkServerProcess,
    SlotProcess,
    environment_prefix,
    remove_files,
)
from vineworker.machine.library_disk import TooMuch
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.resource_monitor import LimitExceeded
from vineworker.machine.resources import DetectedResources
from vineworker.manager_connection import ManagerAddress
from vineworker.slot_protocol import Call, DropHeldResults, DropShared, ObjectData, Reply, SpillResults
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.state import state_machine
from vineworker.storage import transfers
from vineworker.storage.cache import MB, Cache, DiskFull, OrphanedObjects, is_full
from vineworker.storage.object_stamps import Changed
from vineworker.storage.persistent_cache import PersistedObject, PersistentCache
from vineworker.tasks import processes, sandbox, temporary
from vineworker.tasks.arguments import TooLong

log = logging.getLogger("vine_worker")

REPORT_BATCH_S = 0.02
"""What is found within this time is told together."""
TRANSFER_THREADS = 8  # for what comes, and as many for what is brought to the manager
DISK_THREADS = 4


class WorkerSettings(NamedTuple):
    """What the command line says."""

    secret: bytes
    resources: DetectedResources
    workspace: str
    idle_timeout_s: float = 900.0
    single_shot: bool = False
    features: tuple[str, ...] = ()
    parent: Optional[int] = None  # process to live no longer than
    keep_workspace: bool = False  # for the next worker in it
    connect_timeout_s: float = 900.0
    wall_time_s: Optional[float] = None  # how long it may live
    grace_s: float = 25.0  # for handing over what only this worker has
    stdin_heartbeat_s: Optional[float] = (
        None  # who has started it says something on standard input at least so often
    )
    transfer_ports: tuple[int, int] = (0, 0)  # the lowest and the highest for peers; zeros for any
    contact: str = ""  # where peers are to dial, as in `messages.Hello`
    transfer_address: str = ""  # on which peers are listened for; "" for all


class ManagerSession:
    """Work for one manager.

    Parameters
    ----------
    settings
        What may be used.
    manager
        Where the manager is, and how to speak with it.
    folder
        Where a folder for the session is made.
    warden
        Is told of process groups.
    keeper
        Has what was kept before, and keeps what shall be.
    leave
        Called with the reason, and whether the worker shall not come back, when the manager sends it away.
    estate
        What the session before has left, if its manager has vanished.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        manager: ManagerAddress,
        folder: str,
        warden: ProcessReaper,
        keeper: PersistentCache,
        leave: Callable[[str, bool], None],
        estate: Optional[OrphanedObjects] = None,
    ) -> None:
        self.manager, self._estate = manager, estate
        self._manager_session = ""  # of a manager that wants its objects to be kept if it vanishes
        self.welcomed = self._closing = False
        self.tls_context: Any = None  # of the data port
        self._settings, self._warden, self._keeper, self._leave = settings, warden, keeper, leave
        self._folder = tempfile.mkdtemp(prefix="session-", dir=folder)
        self._short = temporary_folders.update_link(warden.link, self._folder)
        self._loop = asyncio.get_running_loop()
        # of their own, because a transfer may wait long for the other end, and no task shall wait for it
        self._transfers = ThreadPoolExecutor(TRANSFER_THREADS, "vine-transfer")
        # others than those: what a task waits for must not stand in line behind results that all workers bring to one manager
        self._uploads = ThreadPoolExecutor(TRANSFER_THREADS, "vine-upload")
        self._threads = ThreadPoolExecutor(DISK_THREADS, "vine-disk")
        disk_mb = settings.resources.disk_mb
        self._measuring = processes.ResourceMonitorThread(
            lambda exceeded: self._call_in_loop(self._on_limit_exceeded, exceeded),
            disk_mb,
            lambda library, found: self._call_in_loop(self._has_too_much, library, found),
        )
        self._state = state_machine.WorkerStateMachine()
        self.cache = Cache(
            self._folder,
            disk_limit=disk_mb * MB,
            lost=lambda names: self._call_in_loop(self._report_lost, names),
        )
        self.gate = transfer_tokens.TransferAuthorizer(
            os.urandom(32)
        )  # closed until the manager says what its tickets are made with
        self._hosts: dict[str, ForkServerProcess] = {}
        self._preparing: dict[str, str] = {}  # host -> folder that is being made for it
        self._slots: dict[int, SlotProcess] = {}
        self._python_tasks: dict[int, m.RunTask] = {}  # slot -> the one call that it is for
        self._commands: dict[int, processes.Command] = {}
        self._copies: dict[int, dict[int, int]] = {}  # task with a command -> what in its folder are inputs
        self._killed: dict[int, tuple[str, Optional[LimitExceeded]]] = {}
        self._alarms: dict[int, asyncio.TimerHandle] = {}
        self._counter = 0
        self._found: list[PersistedObject] = []  # not told yet
        self._channel: Optional[MessageChannel] = None
        self._fetcher: Optional[transfers.TransferClient] = None
        self._python = ""
        self._key = b""
        self._closed = False
        self.heard_at = time.monotonic()
        self._instructions: dict[type, Callable[[Any], None]] = {
            i.SendMessage: lambda x: self.send(x.message), i.StartForkServer: self._start_host, i.StopForkServer: self._stop_host,
            i.StartSlot: self._start_slot, i.KillSlot: self._kill_slot, i.SendCall: self._send_call,
            i.DropShared: self._drop_shared, i.SpillResults: self._write_held, i.DropHeldResults: self._release_held, i.StartProcess: self._start_process, i.KillProcess: self._kill_process,
            i.StartFetch: self._start_fetch, i.StartUnpack: self._start_unpack, i.StartUpload: self._start_upload,
            i.StoreBytes: self._keep, i.StoreResultFile: self._adopt, i.Delete: self._delete,
            i.PersistObject: self._retain, i.ReleasePersisted: self._unkeep, i.LeaveManager: lambda x: self._leave(x.reason, x.final),
        }  # fmt: skip

    # ---- life

    async def serve(self, sock: socket.socket, key: bytes, data_port: int, time_left_s: float = 0.0) -> str:
        """Work until the connection ends; give the reason."""
        over: asyncio.Future[str] = self._loop.create_future()

        def lost(reason: str) -> None:
            if not over.done():
                over.set_result(reason)

        channel = self._channel = MessageChannel(
            m.FROM_MANAGER,
            self._received,
            lost,
            strict_json_dumps,
            seals=authentication.sender_and_receiver(key, "client"),
            unsent=self._not_sent,
        )
        self._key = key
        await self._loop.create_connection(lambda: channel, sock=sock)
        r = self._settings.resources
        python = f"{sys.version_info[0]}.{sys.version_info[1]}"
        features = [
            *self._settings.features,
            *([m.PERSISTENT_CACHE_FEATURE] if self._settings.keep_workspace else []),
        ]
        self.send(
            m.Hello(
                VERSION,
                socket.gethostname(),
                os.getpid(),
                python,
                r.cores,
                r.memory_mb,
                r.disk_mb,
                r.gpus,
                data_port,
                features,
                installed_packages(),
                time_left_s,
                self._settings.contact,
            )
        )
        return await over

    def _announce(self) -> None:
        """Tell the manager what is here from before."""
        estate, self._estate = self._estate, None
        if estate is not None and self._manager_session:
            names = set(self.cache.attach(estate))
            about = [found for found in zip(*estate.about) if found[0] in names]
            self._execute(self._state.handle((e.OrphansAdopted(*map(list, zip(*about))),) if about else ()))
        elif estate is not None:
            self._threads.submit(estate.close)
        self._found, is_all = self._keeper.subscribe(
            lambda what, kept: self._call_in_loop(self._on_persistent_cache_event, what, kept)
        )
        self._report_found()
        if is_all and (self._settings.keep_workspace or self._manager_session):
            self.send(m.InventoryComplete())

    def detach_objects(self) -> Optional[OrphanedObjects]:
        """Give away what the next session may want, if the manager has vanished."""
        if not self.welcomed:  # it may still be wanted
            return self._estate
        if self._closing or not self._manager_session:
            return None
        about = self._state.orphaned_objects(self._manager_session)
        return self.cache.detach(about, tempfile.mkdtemp(prefix="estate-", dir=os.path.dirname(self._folder)))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._state.idle

    def _not_sent(self, message: m.Message, reason: str) -> None:
        """An answer could not be sent: have its task fail, rather than wait for it for ever."""
        log.error("%s cannot be sent: %s", type(message).__name__, reason)
        if isinstance(message, (m.TaskDone, m.TaskFailed)):
            why = f"what its worker says of it cannot be sent: {reason}"
            self.send(m.TaskFailed(message.task, "not sent", {"reason": why}, b""))
        elif isinstance(message, m.LibraryFailed):
            self.send(
                message._replace(
                    payload=b"", reason=f"{message.reason[:1000]} (its exception cannot be sent: {reason})"
                )
            )

    def send(self, message: m.Message) -> None:
        """Send a message to the manager."""
        if self._channel is not None:
            self._channel.send(message)

    def close_connection(self, reason: str) -> None:
        """End the connection, in order; what is queued still leaves."""
        self._closing = True
        if self._channel is not None:
            self._channel.close(reason)

    def abort_connection(self, reason: str) -> None:
        """End the connection without waiting for the other end."""
        if self._channel is not None:
            self._channel.abort(reason)

    def close(self) -> None:
        """End everything that was started for this manager, and remove its files."""
        self._closed = True
        self._keeper.unsubscribe()
        for host in self._hosts.values():
            host.close()
        for command in self._commands.values():
            command.kill()
        for alarm in self._alarms.values():
            alarm.cancel()
        if self._fetcher is not None:
            self._fetcher.close()
        self._measuring.close()
        for threads in (self._transfers, self._uploads, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)
        # whoever finds that it leads nowhere may remove it
        temporary_folders.update_link(self._warden.link, os.path.dirname(self._folder))
        if self._keeper.busy:  # it still takes things out of the folder
            self._keeper.run_after_pending(lambda: remove_tree(self._folder))
        else:
            remove_tree(self._folder)

    # ---- events

    def _call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call from a helper thread into the loop."""
        try:
            self._loop.call_soon_threadsafe(self._call_unless_closed, function, *args)
        except RuntimeError:  # the loop has ended; so has everything this would be news for
            pass

    def _call_unless_closed(self, function: Callable[..., None], *args: Any) -> None:
        if not self._closed:
            function(*args)

    def _received(self, messages: list[m.Message]) -> None:
        self.heard_at = time.monotonic()
        if self._fetcher is None and messages and type(messages[0]) is m.Welcome:
            welcome = messages[0]
            self.welcomed, self._manager_session = True, welcome.session
            self.gate, self._python = (
                transfer_tokens.TransferAuthorizer(transfer_tokens.worker_key(self._key)),
                welcome.python,
            )
            self._fetcher = transfers.TransferClient(
                self.cache,
                self.manager.address,
                self._settings.secret,
                welcome.worker,
                self._key,
                self._warden,
                self.manager.cover,
                self.manager.fingerprints,
            )
            if self.manager.cover is not None:
                self.tls_context = self._make_context(welcome.certificate)
            log.info("worker %d of manager %s", welcome.worker, welcome.manager)
            self._announce()
        self._execute(self._state.handle(messages))

    def _make_context(self, certificate: str) -> Any:
        from vinecore.protocol import tls

        path = os.path.join(self._folder, "certificate.pem")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(certificate)
        try:
            return tls.server_context(path)
        finally:
            os.unlink(path)

    def _feed(self, event: Any) -> None:
        if self._closed:
            return
        kind = type(event)
        if kind is e.CallsReturned:
            for reply in event.replies:
                if reply.kind == "crash":
                    self._report_lost(reply.info.get("lost", ()))
            if event.slot in self._python_tasks:
                self._python_task_replied(event)
            else:
                if self._alarms:
                    for reply in event.replies:
                        self._end_alarm(reply.task)
                event = event._replace(replies=[self._check_disk_for_reply(reply) for reply in event.replies])
        elif kind is e.SlotExited:
            self._end_alarm(event.running)
            self._python_task_exited(event, self._slots.pop(event.slot))
        elif kind is e.ForkServerExited:
            self._stop_host(event)
        self._execute(self._state.handle((event,)))

    def _check_disk_for_reply(self, reply: Reply) -> Reply:
        """Take a large result only if there is room for it."""
        if reply.kind == "unwritten":
            about = {"reason": reply.info["reason"], "room": max(0, self.cache.free_bytes())}
            return Reply(reply.task, "disk", 0, reply.wall_s, about, b"")
        if reply.kind in ("done", "wrote") and reply.size > INLINE_LIMIT and "held" not in reply.info:
            try:
                self.cache.check_fits("what it returned", reply.size)
            except DiskFull as error:
                self._threads.submit(remove_tree, self._result_path(reply.task))
                return Reply(reply.task, "disk", 0, reply.wall_s, self._describe_full_disk(error), b"")
        return reply

    def _describe_full_disk(self, error: BaseException) -> dict[str, Any]:
        """What the manager should know of a disk that is full."""
        about = {"reason": _describe_error(error), "room": max(0, self.cache.free_bytes())}
        if isinstance(error, DiskFull):
            about["size"] = error.size
        return about

    def _execute(self, instructions: list[Any]) -> None:
        table = self._instructions
        for instruction in instructions:
            try:
                table[type(instruction)](instruction)
            except OSError as error:
                if type(instruction) not in (i.StoreBytes, i.StoreResultFile):
                    raise
                log.error("cannot keep %s: %s", instruction.name, error)
                # the next instructions say that it is here: take that back after them
                self._loop.call_soon(self._call_unless_closed, self._report_lost, [instruction.name])

    def _in_thread(
        self,
        work: Callable[[], Any],
        then: Callable[[Any, Optional[BaseException]], None],
        threads: Optional[ThreadPoolExecutor] = None,
    ) -> None:
        """Do something slow in a helper thread and go on in the loop."""

        def job() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - told to the manager by `then`
                self._call_in_loop(then, None, error)
            else:
                self._call_in_loop(then, result, None)

        if not self._closed:
            (threads or self._threads).submit(job)

    # ---- objects

    def _keep(self, instruction: i.StoreBytes) -> None:
        self.cache.put_bytes(instruction.name, instruction.payload)

    def _adopt(self, instruction: i.StoreResultFile) -> None:
        self.cache.store(instruction.name, self._result_path(instruction.task), instruction.digest)

    def _result_path(self, task: int) -> str:
        return f"{self._folder}/incoming/result-{task}"

    def _delete(self, instruction: i.Delete) -> None:
        for name in instruction.names:
            self.cache.remove(name)

    def _report_lost(self, names: list[str]) -> None:
        """Some objects cannot be read any more: let the manager find or make them again."""
        if names:
            log.warning("lost %s", ", ".join(names))
            self._execute(self._state.handle((m.PurgeObjects(list(names)),)))
            self.send(m.ObjectsLost(list(names)))

    def _free_disk_if_full(self, error: BaseException) -> int:
        """What is left of the disk, if that was too little; else -1."""
        return max(0, self.cache.free_bytes()) if is_full(error) else -1

    def _retain(self, instruction: i.PersistObject) -> None:
        name, forever, digest = instruction
        content = self.cache.get(name)
        if content is not None:
            guard = self.cache.looks.while_linking
            self._keeper.keep(name, content, forever=forever, digest=digest, guard=guard)

    def _unkeep(self, instruction: i.ReleasePersisted) -> None:
        for name in instruction.names:
            self._keeper.drop(name)

    def _on_persistent_cache_event(self, what: str, kept: Optional[PersistedObject]) -> None:
        if kept is None:
            self._report_found()
            self.send(m.InventoryComplete())
        elif what == "found":
            if not self._found:
                self._loop.call_later(REPORT_BATCH_S, self._call_unless_closed, self._report_found)
            self._found.append(kept)
        elif what == "kept":
            self._execute(self._state.handle((e.ObjectPersisted(kept.name, kept.digest),)))
        else:
            self._trim_persistent_cache()

    def _report_found(self) -> None:
        """Have at hand what was kept before, and tell the manager."""
        found, self._found = self._found, []
        sizes = [self.cache.serve_from(kept.name, kept.path, kept.size, kept.digest) for kept in found]
        names, digests = [kept.name for kept in found], [kept.digest for kept in found]
        self._execute(self._state.handle((e.PersistentObjectsFound(names, sizes, digests),)))

    def _trim_persistent_cache(self) -> None:
        """Too much is kept: do without what is oldest and not needed now."""
        needed = {
            name for task in self._state.tasks.values() for name in state_machine.required_objects(task.run)
        }
        for host in self._state.hosts.values():
            needed.add(host.environment)
            if host.library is not None:
                needed.add(host.library.setup)
        for kept in self._keeper.excess_objects(needed):
            if self.cache.is_external(kept.name):
                self._report_lost([kept.name])
            else:
                self._state.kept.pop(kept.name, None)
                self._keeper.drop(kept.name)

    def _find_persisted(self, name: str) -> Optional[ReceivedObject]:
        """Look, in a helper thread, whether an object that is asked for has been kept."""
        kept = self._keeper.check(name)
        if kept is None:
            return None
        return ReceivedObject(self.cache.serve_from(name, kept.path, kept.size, kept.digest), kept.digest)

    def _start_fetch(self, instruction: i.StartFetch) -> None:
        fetch, fetcher = instruction.fetch, self._fetcher
        assert fetcher is not None

        arrivals: list[e.ObjectArrived] = []

        def arrived(received: ReceivedObject) -> None:
            """All of it is here; it will be compared in the same helper thread."""
            arrivals.append(e.ObjectArrived(fetch.name, received.size, True, received.digest, compared=False))
            self._call_in_loop(self._feed, arrivals[0])

        def then(received: Any, error: Optional[BaseException]) -> None:
            failure = None
            if error is not None:
                gone, altered = (
                    isinstance(error, ObjectNotFound),
                    isinstance(error, ChecksumMismatch),
                )
                reason, room = _describe_error(error), self._free_disk_if_full(error)
                failure = m.FetchFailed(
                    fetch.name,
                    fetch.source,
                    reason,
                    gone,
                    room,
                    altered,
                    bool(arrivals),
                    isinstance(error, Unreachable),
                )
            if arrivals:
                self._feed(e.ObjectVerified(arrivals[0], failure))
            elif failure is not None:
                self.send(failure)
            else:
                self._feed(e.ObjectArrived(fetch.name, received.size, True, received.digest))

        def work() -> ReceivedObject:
            return self._find_persisted(fetch.name) or fetcher.fetch(fetch, arrived)

        self._in_thread(work, then, self._transfers)

    def _start_unpack(self, instruction: i.StartUnpack) -> None:
        unpack, fetcher = instruction.unpack, self._fetcher
        assert fetcher is not None

        def then(size: Any, error: Optional[BaseException]) -> None:
            if error is None:
                self._feed(e.ObjectArrived(unpack.name, size, True))
            else:
                broken, room = (
                    isinstance(error, ValueError),
                    self._free_disk_if_full(error),
                )  # and so it would be the next time
                self.send(m.FetchFailed(unpack.name, unpack.archive, _describe_error(error), broken, room))

        def work() -> int:
            kept = self._find_persisted(unpack.name)
            return fetcher.unpack(unpack) if kept is None else kept.size

        self._in_thread(work, then)

    def _start_upload(self, instruction: i.StartUpload) -> None:
        name, digest, fetcher = instruction.name, instruction.digest, self._fetcher
        assert fetcher is not None

        def then(_nothing: Any, error: Optional[BaseException]) -> None:
            self.send(m.Uploaded(name) if error is None else m.UploadFailed(name, _describe_error(error)))

        self._in_thread(lambda: fetcher.upload(name, digest), then, self._uploads)

    # ---- hosts and slots

    def _shorten(self, folder: str) -> str:
        """Give a short path to a folder of this session."""
        return os.path.join(self._short, os.path.basename(folder))

    def _new_folder(self) -> str:
        self._counter += 1
        return os.path.join(self._folder, f"t{self._counter}")

    def _start_host(self, instruction: i.StartForkServer) -> None:
        name, folder = instruction.host, self._new_folder()
        options = instruction.library.options if instruction.library else {}
        self._preparing[name] = folder

        def then(copies: Any, error: Optional[BaseException]) -> None:
            if self._preparing.get(name) != folder:  # it has been stopped already
                self._threads.submit(remove_files, folder, self.cache)
                return
            del self._preparing[name]
            try:
                if error is not None:
                    raise error
                host = self._hosts[name] = ForkServerProcess(
                    instruction,
                    folder,
                    self._shorten(folder),
                    self.cache,
                    self._feed,
                    self._python,
                    self._warden,
                )
                if instruction.library is not None:
                    disk = host.disk(lambda: self._disk_limit(name), copies)
                    self._measuring.watch_library(name, disk)
            except Exception as problem:  # noqa: BLE001 - told to the manager
                if isinstance(problem, Changed):
                    self._report_lost(problem.names)
                final = isinstance(problem, ValueError)  # what is asked for cannot be done, here or elsewhere
                self._feed(
                    e.ForkServerExited(
                        name, f"the library could not be started: {_describe_error(problem)}", final, b""
                    )
                )
                self._threads.submit(remove_files, folder, self.cache)

        def work() -> dict[int, int]:
            copies = sandbox.create_sandbox(folder, options.get("mounts", []), self.cache, link=False)
            if instruction.library is not None:
                self.cache.checked_path(instruction.library.setup)
            return copies

        self._in_thread(work, then)

    def _disk_limit(self, library: str) -> int:
        """MB that a library may take of the disk: what was asked for, all units of it together; else, as for tasks, what this worker has."""
        host = self._state.hosts.get(library)
        asked = host.library.options.get("disk") if host is not None and host.library is not None else 0
        return int(asked or self._settings.resources.disk_mb)

    def _has_too_much(self, library: str, found: TooMuch) -> None:
        """End the slot of a library that has written most, or the library where nothing else gives its disk back."""
        host = self._hosts.get(library)
        if host is None:
            return
        if found.slot is None:
            reason = f"its folder and what it prints take {found.peak_mb} MB of disk, its limit is {found.limit_mb} MB: give the library more disk"
            self._feed(e.ForkServerExited(library, reason, False, b""))
        elif found.slot in self._slots:
            about = {"resource": "disk", "limit": found.limit_mb, "peak": found.peak_mb, "library": library}
            words = self._slots[found.slot].last_words()
            info = {"exit_code": 9, "output": words, "outputs": {}, **about}
            self._feed(e.Exhausted(found.slot, info))

    def _stop_host(self, instruction: Any) -> None:
        self._measuring.unwatch_library(instruction.host)
        self._preparing.pop(instruction.host, None)
        host = self._hosts.pop(instruction.host, None)
        if host is not None:
            host.close()
            self._threads.submit(remove_files, host.folder, self.cache)

    def _start_slot(self, instruction: i.StartSlot) -> None:
        host = self._hosts.get(instruction.host)
        if host is None:  # its end has been told
            return
        run = instruction.run
        output = "" if run is None else self._new_folder()
        slot = self._slots[instruction.slot] = SlotProcess(instruction.slot, host, output, self._feed)
        self._loop.create_task(slot.connect())
        if run is None:
            slot.fork()
            return
        self._python_tasks[instruction.slot] = run
        folder = output + ".d"
        if "program" in run.options:  # what it says is shown to its user
            slot.errors = os.path.join(folder, ERRORS)

        def work() -> tuple[dict[str, str], dict[int, int]]:
            copies = sandbox.create_sandbox(folder, run.options.get("mounts", []), self.cache)
            return sandbox.task_environment(run.options, folder, self._shorten(folder)), copies

        self._in_thread(work, lambda made, error: self._start_python_task(run, slot, made, error))

    def _start_python_task(
        self, run: m.RunTask, slot: SlotProcess, made: Any, error: Optional[BaseException]
    ) -> None:
        """The sandbox of a single call is there."""
        folder = slot.log + ".d"
        if slot.id not in self._slots:  # its host has died
            self._threads.submit(sandbox.remove_sandbox, folder, self.cache)
        elif run.task not in self._state.tasks:
            slot.cancel_start("it was cancelled")
        elif error is not None:
            self._task_not_started(run, error)
            slot.cancel_start("its inputs could not be put in place")
        else:
            variables, slot.copies = made
            slot.forked = lambda pid: self._measuring.watch(
                run.task, pid, run.options, folder, slot.log, slot.copies
            )
            slot.host.prepare({"modules": run.options.get("preload", [])})
            slot.fork(folder)
            self._set_alarm(run, slot.kill)
            self._call(slot, run, run.shared, folder, {"env": variables} if variables else {})

    def _task_not_started(self, run: m.RunTask, error: BaseException) -> None:
        """A task could not get its inputs or its process; where an input has vanished that is not its fault."""
        changed = error.names if isinstance(error, Changed) else []
        found = [(name, self.cache.get(name)) for name in state_machine.required_objects(run)]
        lost = [
            *changed,
            *(
                name
                for name, content in found
                if name not in changed
                and (content is None or (isinstance(content, str) and not os.path.exists(content)))
            ),
        ]
        self._report_lost(lost)
        if is_full(error):
            failed = m.TaskFailed(run.task, "disk", self._describe_full_disk(error), b"")
        elif isinstance(error, TooLong):
            failed = m.TaskFailed(run.task, "not started", {"reason": str(error)}, b"")
        else:
            failed = m.TaskFailed(
                run.task, "crash" if lost else "input", {"reason": _describe_error(error)}, b""
            )
        self._feed(e.ProcessTaskFinished(run.task, failed, {}))

    def _set_alarm(self, run: m.RunTask, kill: Callable[[], None]) -> None:
        seconds = run.options.get("time_max")

        def alarm() -> None:
            if run.task in self._state.tasks:
                self._killed[run.task] = ("time", None)
                kill()

        if seconds is not None:
            self._alarms[run.task] = self._loop.call_later(max(0.0, seconds), alarm)

    def _set_alarm_of_call(self, run: m.RunTask, slot: SlotProcess) -> None:
        """End a call that runs too long; its time begins when the slot begins with it, which may have to be started yet."""
        seconds = float(run.options["time_max"])

        def alarm() -> None:
            began = slot.began(run.task)
            left = seconds if began is None else began + seconds - time.monotonic()
            if run.task not in self._state.tasks or slot.id not in self._slots:
                self._alarms.pop(run.task, None)
            elif left > 0:
                self._alarms[run.task] = self._loop.call_later(left, alarm)
            else:
                self._alarms.pop(run.task, None)
                info = {"exit_code": 9, "output": slot.last_words(), "outputs": {}}
                ended = processes.finished_message(run, info, seconds - left, "time", None, [])
                self._feed(e.Overrun(ended))

        self._end_alarm(run.task)
        self._alarms[run.task] = self._loop.call_later(seconds, alarm)

    def _end_alarm(self, task: int) -> None:
        alarm = self._alarms.pop(task, None)
        if alarm is not None:
            alarm.cancel()

    def _kill_slot(self, instruction: i.KillSlot) -> None:
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.kill()

    def _send_call(self, instruction: i.SendCall) -> None:
        if instruction.slot not in self._python_tasks:  # a single call is sent when its sandbox is there
            slot = self._slots.get(instruction.slot)
            if slot is not None:
                options: dict[str, Any] = {}
                if instruction.chained_input is not None:
                    options["fed"] = instruction.chained_input
                if instruction.hold_limits:
                    options["hold"] = instruction.hold_limits
                if instruction.held_inputs:
                    options["held"] = instruction.held_inputs
                if "time_max" in instruction.run.options:
                    options["timed"] = True
                    self._set_alarm_of_call(instruction.run, slot)
                self._call(slot, instruction.run, instruction.new_shared, "", options)

    def _call(
        self, slot: SlotProcess, run: m.RunTask, fresh: list[str], folder: str, options: dict[str, Any]
    ) -> None:
        shared = [(name, self._send_or_locate_object(slot, name, name in fresh, True)) for name in run.shared]
        held = {name for name, _task in options.get("held", ())}
        inputs = [
            (name, "" if name in held else self._send_or_locate_object(slot, name, True, False))
            for name in run.inputs
        ]
        given = run.options
        for option in ("raw", "program", "record"):
            if option in given:
                options[option] = True
        if "env" in given and not folder:
            options["env"] = given["env"]
        call = Call(
            run.task, run.function, shared, inputs, self._result_path(run.task), folder, options, run.payload
        )
        slot.channel.send(call)  # type: ignore[arg-type]

    def _send_or_locate_object(self, slot: SlotProcess, name: str, send: bool, shared: bool) -> str:
        """Give the path of an object, or send it beside the call and give "". One that has vanished, or is not what it was, has a path where nothing is."""
        content = self.cache.get(name)
        if not isinstance(content, bytes):
            return content if content and self.cache.is_intact(name) else self.cache.path_for(name)
        if send:
            slot.channel.send(ObjectData(name, shared, content))  # type: ignore[arg-type]
        return ""

    def _drop_shared(self, instruction: i.DropShared) -> None:
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(DropShared(instruction.names))  # type: ignore[arg-type]

    def _write_held(self, instruction: i.SpillResults) -> None:
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(SpillResults(instruction.tasks))  # type: ignore[arg-type]

    def _release_held(self, instruction: i.DropHeldResults) -> None:
        slot = self._slots.get(instruction.slot)
        if slot is not None:
            slot.channel.send(DropHeldResults(instruction.tasks))  # type: ignore[arg-type]

    # ---- tasks with a process of their own

    def _python_task_replied(self, event: e.CallsReturned) -> None:
        run, slot, reply = self._python_tasks.pop(event.slot), self._slots[event.slot], event.replies[0]
        slot.host.prepare(reply.info)
        peak = self._measuring.unwatch(run.task)
        folder, result = slot.log + ".d", self._result_path(run.task)

        def work() -> Any:
            return processes.collect_python_task(
                run, reply, folder, slot.log, result, peak, self.cache, slot.copies
            )

        self._in_thread(work, lambda result, error: self._task_finished(run, result, error))

    def _task_finished(self, run: m.RunTask, result: Any, error: Optional[BaseException]) -> None:
        if error is not None:
            kind, info = "output missing", {"reason": _describe_error(error)}
            if is_full(error):
                kind, info = "disk", self._describe_full_disk(error)
            elif isinstance(error, Changed):  # it has to run again, with what they should be
                kind = "crash"
                self._report_lost(error.names)
            result = (m.TaskFailed(run.task, kind, info, b""), {})
        self._clear_timers(run)
        self._feed(e.ProcessTaskFinished(run.task, *result))

    def _clear_timers(self, run: m.RunTask) -> tuple[str, Optional[LimitExceeded]]:
        self._end_alarm(run.task)
        return self._killed.pop(run.task, ("", None))

    def _python_task_exited(self, event: e.SlotExited, slot: SlotProcess) -> None:
        """A process ended without an answer: say why, and clean up."""
        run = self._python_tasks.pop(event.slot, None)
        if slot.temporary:
            self._threads.submit(temporary.remove, slot.temporary)
        if run is None:
            return
        peak = self._measuring.unwatch(run.task)
        killed, limit = self._clear_timers(run)
        if killed:
            info = {
                **event.info,
                "exit_code": 9,
                "output": event.info.get("log", ""),
                "outputs": {},
                "measured": processes.usage_for_message(peak),
            }
            ended = processes.finished_message(run, info, 0.0, killed, limit, [])
            self._execute(self._state.handle((e.ProcessTaskFinished(run.task, ended, {}),)))
        self._threads.submit(sandbox.abandon, slot.log + ".d", slot.log, f"task {run.task}", self.cache)

    def _start_process(self, instruction: i.StartProcess) -> None:
        run = instruction.run
        output = self._new_folder()
        folder = output + ".d"
        self._in_thread(
            lambda: sandbox.create_sandbox(folder, run.options.get("mounts", []), self.cache),
            lambda copies, error: self._begin_command(run, folder, output, copies, error),
        )

    def _begin_command(
        self, run: m.RunTask, folder: str, output: str, copies: Any, error: Optional[BaseException]
    ) -> None:
        """The sandbox of a shell command is there."""
        try:
            if run.task not in self._state.tasks:
                msg = "it was cancelled"
                raise InterruptedError(msg)
            if error is not None:
                raise error
            prefix = environment_prefix(run.options.get("environment", ""), self.cache)
            command = processes.Command(
                run,
                folder,
                output,
                prefix,
                self._shorten(folder),
                self._warden,
                lambda c, code: self._call_in_loop(self._command_exited, c, code),
            )
        except Exception as problem:  # noqa: BLE001 - told to the manager
            self._task_not_started(run, problem)
            self._threads.submit(sandbox.abandon, folder, output, f"task {run.task}", self.cache)
            return
        self._commands[run.task] = command
        self._copies[run.task] = copies
        self._measuring.watch(run.task, command.process.pid, run.options, folder, output, copies)
        self._set_alarm(run, command.kill)

    def _command_exited(self, command: processes.Command, code: int) -> None:
        run = command.run
        del self._commands[run.task]
        peak = self._measuring.unwatch(run.task)
        killed, limit = self._clear_timers(run)
        copies = self._copies.pop(run.task, {})

        def work() -> Any:
            return processes.collect_command(command, code, peak, killed, limit, self.cache, copies)

        self._in_thread(work, lambda result, error: self._task_finished(run, result, error))

    def _kill_process(self, instruction: i.KillProcess) -> None:
        command = self._commands.get(instruction.task)
        if command is not None:
            self._killed[instruction.task] = ("cancelled", None)
            command.kill()

    def _on_limit_exceeded(self, exceeded: LimitExceeded) -> None:
        task = int(exceeded.task_id)
        if task not in self._state.tasks or task in self._killed:
            return
        self._killed[task] = ("exhausted", exceeded)
        if task in self._commands:
            self._commands[task].kill()
        for number, run in self._python_tasks.items():
            if run.task == task:
                self._slots[number].kill()


def installed_packages() -> dict[str, str]:
    """What this Python has of what matters to pickles. Which versions, "" here, takes longer to find out; hosts tell that."""
    found = [name for name in m.PICKLE_SENSITIVE_PACKAGES if importlib.util.find_spec(name) is not None]
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", **dict.fromkeys(found, "")}


def _describe_error(error: BaseException) -> str:
    return (
        str(error)
        if isinstance(error, (ObjectNotFound, TooLong, sandbox.NoOutput))
        else f"{type(error).__name__}: {error}"
    )
