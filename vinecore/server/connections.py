"""The connections of workers: accepted, greeted, read and written in the server's loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import msgspec

from vinecore.protocol import VERSION, authentication, taskvine_modules, transfer_tokens
from vinecore.protocol import messages as m
from vinecore.protocol.channel import PROTOCOL_ERROR, MessageChannel
from vinecore.protocol.ports import is_loopback
from vinecore.protocol.transfer.server import serve_requests
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.queue_stats import QueueStats
from vinecore.scheduler.state import SchedulerState
from vinecore.security import certificates
from vinecore.server.object_store import ObjectStore

log = logging.getLogger("vinecore")

STATUS_TIMEOUT_S = 30.0

_dumps = msgspec.json.Encoder().encode
_loads = msgspec.json.Decoder().decode


class EventReceiver(Protocol):
    """The server, as far as the connections of its workers use it."""

    inbox: deque[Any]
    closed: bool
    name: str
    describe: Callable[[str], list[dict[str, Any]]]

    def post_event(self, event: e.Event) -> None:
        """Hand an event to the scheduler, from any thread."""
        ...

    def schedule_inbox(self) -> None:
        """Schedule the inbox for the next iteration of the loop."""
        ...

    def process_inbox(self) -> None:
        """Handle what is in the inbox now."""
        ...

    def queue_stats(self) -> QueueStats:
        """Return how much waits and runs, and which pilots are connected."""
        ...


class WorkerAddress(NamedTuple):
    """Where a worker runs: the name of its host as it says, and the "ADDRESS:PORT" at which it serves files."""

    hostname: str
    addrport: str


class WorkerConnection:
    """A connected worker, as the server sees it."""

    def __init__(self, number: int, host: str, channel: MessageChannel, session: bytes) -> None:
        self.number, self.host, self.channel, self.session = number, host, channel, session
        self.hello: m.Hello | None = None
        self.last_received_at = time.monotonic()
        self.pinged_at = 0.0
        self.key = transfer_tokens.worker_key(session)
        self.welcomed_at = 0.0
        self.certificate = self.fingerprint = ""
        self.manager_address = ""  # this machine's address, as the worker has reached it


class WorkerConnections:
    """All connections of workers.

    Parameters
    ----------
    receiver : EventReceiver
        The server, which hands events to the scheduler.
    loop : asyncio.AbstractEventLoop
        The loop of the server's thread.
    store : ObjectStore
        The objects that the manager itself has.
    state : SchedulerState
        The scheduler's records.
    session : str
        The common part of the names of the manager's own files, if workers keep the others for a successor.
    has_tls : bool
        Whether connections are protected by TLS.

    Attributes
    ----------
    workers : dict
        The connections by the numbers of workers.
    addresses : dict
        Where each worker is or was, by its number.
    """

    def __init__(
        self,
        receiver: EventReceiver,
        loop: asyncio.AbstractEventLoop,
        store: ObjectStore,
        state: SchedulerState,
        *,
        session: str,
        has_tls: bool,
    ) -> None:
        self._receiver, self._loop, self._store, self._state = receiver, loop, store, state
        self._session, self._has_tls = session, has_tls
        self._numbers = itertools.count(1)
        self._accepting: set[asyncio.Task[None]] = set()
        self.workers: dict[int, WorkerConnection] = {}
        self.addresses: dict[int, WorkerAddress] = {}

    def is_empty(self) -> bool:
        """Return whether no worker is connected or about to be."""
        return not self.workers and not self._accepting

    def pilot_names(self) -> Iterator[str]:
        """Yield the names of connected workers that factories have started."""
        prefix = m.PILOT_FEATURE_PREFIX
        for peer in self.workers.values():
            for feature in () if peer.hello is None else peer.hello.features:
                if feature.startswith(prefix):
                    yield feature[len(prefix) :]

    def log_refused(self, address: str, reason: str) -> None:
        """Log that a connection was refused."""
        log.warning("refused a connection from %s: %s", address, reason)

    def on_authenticated(self, sock: socket.socket, greeting: dict[str, Any], host: str) -> None:
        """Hand an authenticated client to the object store or the loop; runs in its own thread."""
        if greeting["role"] == "bulk":
            serve_requests(
                authentication.AuthenticatedLines(sock, greeting["session"], "server"),
                self._store,
                follow=True,
            )
        elif greeting["role"] == "worker":
            sock.setblocking(False)
            certificate = certificates.make_certificate() if self._has_tls else ("", "")
            at = host, greeting["here"]
            try:
                self._loop.call_soon_threadsafe(
                    self._schedule_accept_worker, sock, at, greeting["session"], certificate
                )
            except RuntimeError:  # the manager has just ended
                sock.close()
        elif greeting["role"] == "status":
            words = authentication.AuthenticatedLines(sock, greeting["session"], "server")
            self._send_status(words, greeting.get("request"))
        else:
            sock.close()

    def _send_status(self, words: authentication.AuthenticatedLines, request: object) -> None:
        """Send the queue statistics to an authenticated client, with what else it requests."""
        answer = {"name": self._receiver.name, "protocol": VERSION, **self._receiver.queue_stats()._asdict()}
        if isinstance(request, str):
            answer["request"], answer["records"] = request, self._receiver.describe(request)
        with words.sock as sock:
            sock.settimeout(STATUS_TIMEOUT_S)
            words.send(answer)

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
            lambda said: self.on_messages(peer, said),
            lambda reason: self.on_disconnected(peer, reason),
            _dumps,
            _loads,
            authentication.sender_and_receiver(session, "server"),
            lambda message, reason: self._not_sent(peer, message, reason),
        )
        peer = self.workers[number] = WorkerConnection(number, at[0], channel, session)
        peer.manager_address = at[1]
        peer.certificate, peer.fingerprint = certificate
        await self._loop.create_connection(lambda: channel, sock=sock)
        if self._receiver.closed:
            channel.close()

    def on_messages(self, peer: WorkerConnection, messages: list[m.Message]) -> None:
        """Post the messages of a worker; the first one has to be its greeting."""
        peer.last_received_at = time.monotonic()
        if peer.hello is None:
            hello, *messages = messages
            if type(hello) is m.Hello and hello.protocol == VERSION and not _is_valid_hello(hello):
                self.log_refused(peer.host, f"a worker whose Hello is out of bounds: {str(hello)[:500]}")
                peer.channel.close("not a worker")
                return
            if type(hello) is not m.Hello or hello.protocol != VERSION:
                self.log_refused(
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
            address = f"[{peer.host}]" if ":" in peer.host else peer.host
            self.addresses[peer.number] = WorkerAddress(hello.hostname, f"{address}:{hello.data_port}")
            peer.welcomed_at = transfer_tokens.boot_clock()
            peer.channel.send(
                m.Welcome(
                    peer.number,
                    self._receiver.name,
                    self._state.python,
                    peer.certificate,
                    self._session,
                    taskvine_modules.is_installed(),
                )
            )
            peer.certificate = ""
            self._receiver.inbox.append(e.WorkerConnected(peer.number, peer.host, hello))
        number = peer.number
        self._receiver.inbox.extend([e.MessageReceived(number, message) for message in messages])
        self._receiver.schedule_inbox()

    def on_disconnected(self, peer: WorkerConnection, reason: str) -> None:
        """Post that the connection of a worker has ended."""
        if self.workers.pop(peer.number, None) is None:
            return
        if peer.hello is not None:
            self._receiver.inbox.append(e.WorkerDisconnected(peer.number, reason))
            self._receiver.process_inbox()
        elif reason.startswith(PROTOCOL_ERROR):
            self.log_refused(peer.host, reason)

    def send(self, instruction: i.Send) -> None:
        """Send a message to a worker, if it is still connected."""
        peer = self.workers.get(instruction.worker)
        if peer is None:
            return
        message = instruction.message
        if type(message) is m.RemoveObjects and not self._state.disk_tracked:
            peer.channel.send_lazily(message)  # no disk waits for that
            return
        if type(message) is m.Fetch and message.source_worker in self.workers:
            message = _with_transfer_token(message, peer, self.workers[message.source_worker])
        peer.channel.send(message)

    def send_object(self, instruction: i.SendObject) -> None:
        """Send an object that the manager has to a worker, if it is still connected."""
        peer = self.workers.get(instruction.worker)
        content = self._store.find_object(instruction.name)
        if peer is None:
            return
        if content is None:
            log.error(
                "cannot send %s to worker %d: the manager has no content of it; please report this defect",
                instruction.name,
                instruction.worker,
            )
            return
        if isinstance(content, str):  # a small file of the user's
            with open(content, "rb") as file:
                content = file.read()
        self._state.counters.bytes_sent += len(content)
        peer.channel.send(m.PutObject(instruction.name, content))

    def _not_sent(self, peer: WorkerConnection, message: m.Message, reason: str) -> None:
        """Treat a message that could not be sent as if its worker had rejected it."""
        answer = refusal(message, reason)
        if answer is None:
            log.error(
                "cannot send a %s message to worker %d: %s", type(message).__name__, peer.number, reason
            )
        elif peer.number in self.workers:
            self._receiver.post_event(e.MessageReceived(peer.number, answer))

    def disconnect(self, instruction: i.Disconnect) -> None:
        """Close the connection of a worker."""
        peer = self.workers.get(instruction.worker)
        if peer is not None:
            peer.channel.close(instruction.reason)


def refusal(message: m.Message, reason: str) -> m.Message | None:
    """Return the worker's negative reply to a message; None if the message has none."""
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
