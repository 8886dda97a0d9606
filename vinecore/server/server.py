"""The thread that owns the tables: an asyncio loop that feeds events to the mind and carries out its instructions.

Everything else talks to it through `Engine.post` (fire and forget, batched: one wake-up for a burst) and `Engine.call` (ask and wait).
All messages of one turn of the loop reach the mind together, and what it answers leaves in one frame for each worker.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import itertools
import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from vinecore.journal.previous_session import PreviousSession, has_ended
from vinecore.journal.writer import JournalWriter
from vinecore.protocol import VERSION, authentication, tls, transfer_tokens
from vinecore.protocol import messages as m
from vinecore.protocol.channel import PROTOCOL_ERROR, MessageChannel
from vinecore.protocol.listener import AuthenticatingListener
from vinecore.protocol.ports import is_loopback, listen
from vinecore.protocol.tls import TlsWrapper
from vinecore.protocol.transfer.server import serve_requests
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler import queries
from vinecore.scheduler.queue_stats import QueueStats, is_idle_and_safe_to_remove, queue_stats
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import TaskSpec
from vinecore.security import certificates
from vinecore.server.object_store import ObjectStore

log = logging.getLogger("vinecore")
T = TypeVar("T")

TICK_S = 0.25
LOOK_TICKS = 400  # how long is looked whether workers of a manager before have ended
FLUSH_TICKS = 8  # after so many, what waits for the next message to a worker goes without one
HEARTBEAT_INTERVAL_S = 30.0
HEARTBEAT_TIMEOUT_S = 300.0
SHUTDOWN_TIMEOUT_S = 2.0
MAX_EVENTS_PER_BATCH = (
    1024  # events, or tasks among them, that the mind takes at once; then it is the connections' turn
)
GC_YOUNG_THRESHOLD = 50_000  # objects more than before, when it looks through the new ones meanwhile
GC_FREEZE_GROWTH = (
    5_000  # files more than before, when Python's collector is told to leave alone what there is
)
STATUS_TIMEOUT_S = 30.0

_dumps = msgspec.json.Encoder().encode
_loads = msgspec.json.Decoder().decode


class WorkerConnection:
    """A connected worker, as the hands see it."""

    def __init__(self, number: int, host: str, channel: MessageChannel, session: bytes) -> None:
        self.number, self.host, self.channel, self.session = number, host, channel, session
        self.hello: m.Hello | None = None
        self.last_received_at = time.monotonic()
        self.pinged_at = 0.0
        self.key = transfer_tokens.worker_key(session)
        self.welcomed_at = 0.0
        self.certificate = self.fingerprint = ""
        self.manager_address = ""  # this machine's address, as the worker has reached it


class StateQuery:
    """A function of the mind that another thread wants the value of, when everything posted before has been handled."""

    def __init__(self, function: Callable[[Scheduler], Any]) -> None:
        self._function = function
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run(self, mind: Scheduler) -> None:
        """Find the answer."""
        try:
            self.result.set_result(self._function(mind))
        except BaseException as error:  # noqa: BLE001 - belongs to who asked
            self.result.set_exception(error)


class ManagerServer:
    """Runs the mind.

    Parameters
    ----------
    ports
        The lowest and highest port to listen on; (0, 0) for any.
    address
        The address to listen on; "" for all.
    secret
        What workers have to know.
    name
        The manager's name.
    python
        Version of the Python that pickles the functions.
    needs
        Packages without which a worker's own Python can run none of them.
    scribe
        Who writes the journal, if there is to be one.
    tls_context
        What TLS is spoken with, if it is.
    session
        What names of this manager's own files have in common, if workers shall keep the others for the next manager, should this one vanish.
    past
        What is known of a manager that has vanished, if this one goes on.

    Attributes
    ----------
    bound, port : str, int
        Where it listens.
    ping_s, silence_s : float
        After how long without a word a worker is asked whether it is there, and given up.
    in_words : callable
        Says what the mind says as people say it, with the user's names of files.
    """

    def __init__(
        self,
        ports: tuple[int, int],
        address: str,
        secret: bytes,
        name: str,
        python: str,
        needs: tuple[str, ...] = (),
        scribe: JournalWriter | None = None,
        tls_context: ssl.SSLContext | None = None,
        *,
        session: str = "",
        past: PreviousSession | None = None,
    ) -> None:
        self._secret, self._name, self._session = secret, name, session
        self._pid = os.getpid()
        self.heartbeat_interval_s, self.heartbeat_timeout_s = HEARTBEAT_INTERVAL_S, HEARTBEAT_TIMEOUT_S
        self.in_words: Callable[[str], str] = str
        self._mind = Scheduler(python, needs)
        self._inbox: deque[e.Event | StateQuery] = deque()
        self._awake = False
        self._peers: dict[int, WorkerConnection] = {}
        self._accepting: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._listeners: dict[type, Callable[[Any], None]] = {}
        self.store = ObjectStore(lambda *stored: self.post_event(e.ObjectStored(*stored)), session)
        self._executors: dict[type, Callable[[Any], None]] = {
            i.Send: self._send, i.SendObject: self._send_object, i.StoreObject: lambda x: self.store.put(x.name, x.payload),
            i.DropObject: lambda x: self.store.remove(x.name), i.Disconnect: self._disconnect, i.LogMessage: lambda x: log.log(x.level, self.in_words(x.text)),
        }  # fmt: skip
        self._before = [] if past is None else past.workers  # which may end before they come back
        if session:
            self._inbox.append(
                e.SessionResumed() if past is None else e.SessionResumed(past.results, past.workers)
            )
        hint = "Choose another with port=..., or port=0 for any"
        listener = listen(address, ports, 1024, hint, rather=0 if past is None else past.port)
        self.bound: str = listener.getsockname()[0]
        self.port: int = listener.getsockname()[1]
        self._scribe = scribe
        if scribe is not None:
            scribe.start(self.port)
        self._loop = asyncio.new_event_loop()
        self._frozen = 0  # files that there were when the collector was told to leave them alone
        self.closed = False
        self.fatal_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vine-manager", daemon=True)
        self._thread.start()
        self._tls: tls.TlsTunnels | None = None
        covering: TlsWrapper | None = None
        if tls_context is not None:
            self._tls = tls.TlsTunnels()
            covering = functools.partial(self._tls.serve, context=tls_context)
        self._listener = AuthenticatingListener(
            listener,
            lambda _greeting: self._secret,
            self._on_authenticated,
            self._log_refused,
            cover=covering,
            name=name,
        )

    # ---- for other threads

    def subscribe(self, kind: type, listener: Callable[[Any], None]) -> None:
        """Have instructions of a kind given to a function, in the engine's thread."""
        self._listeners[kind] = listener

    def post_event(self, event: e.Event | StateQuery) -> None:
        """Tell the mind of an event; when it is closed there is nobody to tell."""
        self._inbox.append(event)
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._process_inbox)
            except RuntimeError:
                if not self.closed:
                    raise

    def announce_close(self) -> None:
        """Tell the mind that all is about to be closed."""
        with contextlib.suppress(RuntimeError):  # it has stopped with a defect
            self.post_event(e.ShutdownAnnounced())

    def submit(self, tasks: list[TaskSpec]) -> None:
        """Post tasks, and wait until the mind has taken them.

        A thread that makes one slice after another would hold Python's lock for milliseconds whenever the loop lets go of it, which it does with
        every write to a connection.
        """
        self.post_event(e.TasksSubmitted(tasks))
        self.query(queries.await_earlier_events)

    def query(self, function: Callable[[Scheduler], T]) -> T:
        """Run a function on the mind in the engine's thread, after everything posted before, and wait for what it returns."""
        self.ensure_open()
        if threading.current_thread() is self._thread:
            return function(self._mind)
        question = StateQuery(function)
        answer: concurrent.futures.Future[T] = question.result
        self.post_event(question)
        while True:
            try:
                return answer.result(1.0)
            except concurrent.futures.TimeoutError:
                if answer.done():
                    raise
                self.ensure_open()

    def ensure_open(self) -> None:
        """Refuse to work when closed, or in a forked child, which has no loop thread.

        Raises
        ------
        RuntimeError
        """
        if self.fatal_error is not None:
            msg = f"the manager has stopped because of a defect in daskvine, please report it: {self.fatal_error!r}"
            raise RuntimeError(msg) from self.fatal_error
        if self.closed:
            msg = "this manager is closed"
            raise RuntimeError(msg)
        if os.getpid() != self._pid:
            msg = "this manager belongs to the process that made it; a forked child cannot use it. Make a manager in the child, or work in the parent"
            raise RuntimeError(msg)

    def close(self, *, release: bool) -> None:
        """Let the workers go and end the thread."""
        if self.closed or os.getpid() != self._pid:
            return
        self.closed = True
        self._listener.close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._release_workers, release)
        self._thread.join()
        if self._scribe is not None:
            self._scribe.close()
        if self._tls is not None:
            self._tls.drain_and_close(SHUTDOWN_TIMEOUT_S)
        self.store.close()

    # ---- the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_later(TICK_S, self._tick)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
            if self._frozen:
                self._unfreeze_objects()

    def _release_workers(self, release: bool) -> None:
        for peer in list(self._peers.values()):
            peer.channel.send(m.Shutdown("the manager has ended", release))
            peer.channel.close()
        self._stop_when_empty(time.monotonic() + SHUTDOWN_TIMEOUT_S)

    def _stop_when_empty(self, deadline: float) -> None:
        if not self._peers and not self._accepting:
            self._loop.stop()
            return
        if time.monotonic() > deadline:
            for peer in list(self._peers.values()):
                peer.channel.abort("it does not answer")
            deadline = float("inf")
        self._loop.call_later(0.005, self._stop_when_empty, deadline)

    def _process_inbox(self) -> None:
        self._awake = False
        inbox, room = self._inbox, MAX_EVENTS_PER_BATCH
        events: list[e.Event] = []
        while inbox and room > 0:
            event = inbox.popleft()
            if isinstance(event, StateQuery):
                self._handle(events)
                events = []
                event.run(self._mind)
            else:
                events.append(event)
                room -= len(event.tasks) if type(event) is e.TasksSubmitted else 1
        self._handle(events)
        self._freeze_objects()
        if (inbox or self._mind.has_more_to_release) and not self._awake:
            self._awake = True
            self._loop.call_soon(self._process_inbox)

    def _handle(self, events: list[e.Event]) -> None:
        carriers, listeners = self._executors, self._listeners
        now = time.monotonic()
        try:
            instructions = self._mind.handle(events, now)
        except Exception as error:
            self.fatal_error = error
            log.critical("a defect in the manager, which stops here; it came with %.2000s", events)
            for peer in list(self._peers.values()):
                peer.channel.abort("the manager has a defect")
            self._loop.call_soon(self._loop.stop)
            raise
        if self._scribe is not None:
            self._scribe.record(now, events, instructions)
        for instruction in instructions:
            kind = type(instruction)
            carry = carriers.get(kind) or listeners.get(kind)
            if carry is not None:
                carry(instruction)

    def _tick(self, ticks: int = 0) -> None:
        now = time.monotonic()
        if self._before and ticks < LOOK_TICKS:
            self._look_for_ends()
        self._inbox.append(e.Tick())
        self._process_inbox()
        for peer in list(self._peers.values()):
            quiet = now - peer.last_received_at
            asked = peer.pinged_at > peer.last_received_at
            if (
                asked
                and quiet > self.heartbeat_timeout_s
                and now - peer.pinged_at > self.heartbeat_timeout_s - self.heartbeat_interval_s
            ):
                peer.channel.abort(f"silent for {quiet:.0f} s")
            elif (
                quiet > self.heartbeat_interval_s and not asked
            ):  # this process may have slept as well: then nobody was asked
                peer.pinged_at = now
                peer.channel.send(m.Ping())
            elif (peer.number + ticks) % FLUSH_TICKS == 0:
                peer.channel.flush_soon()
        self._loop.call_later(TICK_S, self._tick, ticks + 1)

    def _look_for_ends(self) -> None:
        """Tell which workers of a manager that has died have ended meanwhile, as those do that end with their program."""
        ended = [worker for worker in self._before if has_ended(*worker)]
        if ended:
            self._before = [worker for worker in self._before if worker not in ended]
            self._inbox.append(e.WorkersEnded(ended))

    def _freeze_objects(self) -> None:
        """Have Python's garbage collector pass over the records of many tasks: none of them is garbage before its run is closed.

        It would look through all objects again and again as they become more: with a million tasks that takes as long as all else, and seconds
        at a time.
        """
        count = len(self._mind.tables.files)
        if count > self._frozen + GC_FREEZE_GROWTH:
            if not self._frozen:
                self._thresholds = gc.get_threshold()
                gc.set_threshold(max(GC_YOUNG_THRESHOLD, self._thresholds[0]), *self._thresholds[1:])
            gc.collect(1)
            gc.freeze()
            self._frozen = count
        elif 2 * count < self._frozen:
            self._unfreeze_objects()

    def _unfreeze_objects(self) -> None:
        gc.unfreeze()
        gc.set_threshold(*self._thresholds)
        self._frozen = 0

    # ---- workers

    def _log_refused(self, address: str, reason: str) -> None:
        log.warning("refused a connection from %s: %s", address, reason)

    def _on_authenticated(self, sock: socket.socket, greeting: dict[str, Any], host: str) -> None:
        """A client has proved that it knows the secret; runs in its own thread."""
        if greeting["role"] == "bulk":
            serve_requests(
                authentication.AuthenticatedLines(sock, greeting["session"], "server"),
                self.store,
                follow=True,
            )
        elif greeting["role"] == "worker":
            sock.setblocking(False)
            certificate = ("", "") if self._tls is None else certificates.make_certificate()
            at = host, greeting["here"]
            try:
                self._loop.call_soon_threadsafe(
                    self._schedule_accept_worker, sock, at, greeting["session"], certificate
                )
            except RuntimeError:  # the manager has just ended
                sock.close()
        elif greeting["role"] == "status":
            self._send_status(authentication.AuthenticatedLines(sock, greeting["session"], "server"))
        else:
            sock.close()

    def _send_status(self, words: authentication.AuthenticatedLines) -> None:
        """Tell somebody who knows the secret what there is to do."""
        with words.sock as sock:
            sock.settimeout(STATUS_TIMEOUT_S)
            words.send({"name": self._name, "protocol": VERSION, **self.queue_stats()._asdict()})

    def queue_stats(self) -> QueueStats:
        """What there is to do, and which pilots are connected."""

        def look(mind: Scheduler) -> QueueStats:
            features = [
                feature
                for peer in self._peers.values()
                if peer.hello is not None
                for feature in peer.hello.features
            ]
            pilots = tuple(
                feature[len(m.PILOT_FEATURE_PREFIX) :]
                for feature in features
                if feature.startswith(m.PILOT_FEATURE_PREFIX)
            )
            return queue_stats(mind.tables)._replace(pilots=pilots)

        return self.query(look)

    def release_idle_workers(self, count: int, pilots: str) -> int:
        """Let up to so many idle workers go, of those whose pilots are called so; give how many."""

        def let_go(mind: Scheduler) -> int:
            chosen: list[WorkerConnection] = []
            for peer in self._peers.values():
                features = () if peer.hello is None else peer.hello.features
                worker = mind.tables.workers.get(peer.number)
                if (
                    len(chosen) < count
                    and worker is not None
                    and any(feature.startswith(m.PILOT_FEATURE_PREFIX + pilots) for feature in features)
                    and is_idle_and_safe_to_remove(worker)
                ):
                    worker.disconnecting = True
                    chosen.append(peer)
            for peer in chosen:
                peer.channel.send(m.Shutdown("fewer workers are wanted", True))
                peer.channel.close("fewer workers are wanted")
            return len(chosen)

        return self.query(let_go)

    def _schedule_accept_worker(
        self, sock: socket.socket, at: tuple[str, str], session: bytes, certificate: tuple[str, str]
    ) -> None:
        adoption = self._loop.create_task(self._accept_worker(sock, at, session, certificate))
        self._accepting.add(adoption)
        adoption.add_done_callback(self._accepting.discard)

    async def _accept_worker(
        self, sock: socket.socket, at: tuple[str, str], session: bytes, certificate: tuple[str, str]
    ) -> None:
        number = next(self._numbers)
        channel = MessageChannel(
            m.FROM_WORKER,
            lambda said: self._on_messages(peer, said),
            lambda reason: self._on_disconnected(peer, reason),
            _dumps,
            _loads,
            authentication.sender_and_receiver(session, "server"),
            lambda message, reason: self._not_sent(peer, message, reason),
        )
        peer = self._peers[number] = WorkerConnection(number, at[0], channel, session)
        peer.manager_address = at[1]
        peer.certificate, peer.fingerprint = certificate
        await self._loop.create_connection(lambda: channel, sock=sock)
        if self.closed:
            channel.close()

    def _on_messages(self, peer: WorkerConnection, messages: list[m.Message]) -> None:
        peer.last_received_at = time.monotonic()
        if peer.hello is None:
            hello, *messages = messages
            if type(hello) is m.Hello and hello.protocol == VERSION and not _is_valid_hello(hello):
                self._log_refused(
                    peer.host, f"a worker that says impossible things of itself: {str(hello)[:500]}"
                )
                peer.channel.close("not a worker")
                return
            if type(hello) is not m.Hello or hello.protocol != VERSION:
                self._log_refused(
                    peer.host,
                    f"a worker that speaks protocol {getattr(hello, 'protocol', '?')}; this manager speaks {VERSION}",
                )
                peer.channel.send(
                    m.Shutdown(
                        f"the manager speaks protocol {VERSION}: use the same version of daskvine", True
                    )
                )
                peer.channel.close("protocol mismatch")
                return
            peer.hello = hello
            peer.welcomed_at = transfer_tokens.boot_clock()
            peer.channel.send(
                m.Welcome(peer.number, self._name, self._mind.tables.python, peer.certificate, self._session)
            )
            peer.certificate = ""
            self._inbox.append(e.WorkerConnected(peer.number, peer.host, hello))
        number = peer.number
        self._inbox.extend([e.MessageReceived(number, message) for message in messages])
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._process_inbox)

    def _on_disconnected(self, peer: WorkerConnection, reason: str) -> None:
        if self._peers.pop(peer.number, None) is None:
            return
        if peer.hello is not None:
            self._inbox.append(e.WorkerDisconnected(peer.number, reason))
            self._process_inbox()
        elif reason.startswith(PROTOCOL_ERROR):
            self._log_refused(peer.host, reason)

    def _send(self, instruction: i.Send) -> None:
        peer = self._peers.get(instruction.worker)
        if peer is None:
            return
        message = instruction.message
        if type(message) is m.RemoveObjects and not self._mind.tables.disk_tracked:
            peer.channel.send_lazily(message)  # no disk waits for that
            return
        if type(message) is m.Fetch and message.source_worker in self._peers:
            message = _with_transfer_token(message, peer, self._peers[message.source_worker])
        peer.channel.send(message)

    def _send_object(self, instruction: i.SendObject) -> None:
        peer = self._peers.get(instruction.worker)
        content = self.store.find_object(instruction.name)
        if peer is None:
            return
        if content is None:
            log.error("%s is needed and not at the manager", instruction.name)
            return
        if isinstance(content, str):  # a small file of the user's
            with open(content, "rb") as file:
                content = file.read()
        peer.channel.send(m.PutObject(instruction.name, content))

    def _not_sent(self, peer: WorkerConnection, message: m.Message, reason: str) -> None:
        """A message could not be sent: as if its worker had answered that it cannot do what it asks for."""
        answer = refusal(message, reason)
        if answer is None:
            log.error("a message to worker %d could not be sent: %s", peer.number, reason)
        elif peer.number in self._peers:
            self.post_event(e.MessageReceived(peer.number, answer))

    def _disconnect(self, instruction: i.Disconnect) -> None:
        peer = self._peers.get(instruction.worker)
        if peer is not None:
            peer.channel.close(instruction.reason)


def refusal(message: m.Message, reason: str) -> m.Message | None:
    """What a worker would say that cannot do what a message asks for; None if there is nothing that it would say."""
    why = f"it cannot be sent to a worker: {reason}"
    if isinstance(message, m.RunTask):
        return m.TaskFailed(message.task, "not sent", {"reason": why}, b"")
    if isinstance(message, m.Library):
        return m.LibraryFailed(message.name, why, True, b"")
    if isinstance(message, m.Fetch):
        return m.FetchFailed(message.name, message.source, why, True)
    return None


def _with_transfer_token(fetch: m.Fetch, receiver: WorkerConnection, source: WorkerConnection) -> m.Fetch:
    """Add what the source will ask for; and if that is a neighbour of the manager, how the receiver knows their machine."""
    host, _, port = fetch.source.rpartition(":")
    if is_loopback(host) and not is_loopback(receiver.host):
        fetch = fetch._replace(source=f"{receiver.manager_address}:{port}")
    expires = int(transfer_tokens.boot_clock() - source.welcomed_at + transfer_tokens.TOKEN_LIFETIME_S)
    pair_key = transfer_tokens.pair_key(source.key, receiver.number)
    return m.Fetch(
        *fetch[:-4],
        transfer_tokens.mask_key(receiver.session, source.number, pair_key).hex(),
        transfer_tokens.sign_token(source.key, receiver.number, fetch.name, expires),
        expires,
        source.fingerprint,
    )


def _is_contact(contact: str) -> bool:
    port = contact.rpartition(":")[2]
    return not contact or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)


def _is_valid_hello(hello: m.Hello) -> bool:
    amounts = (hello.cores, hello.memory_mb, hello.disk_mb, hello.gpus, hello.data_port, hello.pid)
    return (
        all(isinstance(n, int) and n >= 0 for n in amounts)
        and isinstance(hello.hostname, str)
        and isinstance(hello.python, str)
        and _is_contact(hello.contact)
    )
