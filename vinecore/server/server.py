"""The manager's thread: an asyncio loop that feeds the scheduler and executes its instructions.

Other threads reach it through `ManagerServer.post_event`, which returns at once and wakes the loop
once for many events, and `ManagerServer.query`, which waits for the answer. All messages of one
iteration reach the scheduler together; its messages leave in one frame per worker.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from vinecore.journal.previous_session import PreviousSession, has_ended
from vinecore.journal.writer import JournalWriter
from vinecore.protocol import messages as m
from vinecore.protocol import tls
from vinecore.protocol.listener import AuthenticatingListener
from vinecore.protocol.ports import listen
from vinecore.protocol.tls import TlsWrapper
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler import queries
from vinecore.scheduler.queue_stats import QueueStats, is_idle_and_safe_to_remove, queue_stats
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import TaskSpec
from vinecore.server.connections import WorkerConnection, WorkerConnections
from vinecore.server.gc_control import ObjectFreezer
from vinecore.server.object_store import ObjectStore
from vinecore.server.watched_outputs import WatchedOutputs

log = logging.getLogger("vinecore")
T = TypeVar("T")

TICK_S = 0.25
LOOK_TICKS = 400  # how long is looked whether workers of a manager before have ended
FLUSH_TICKS = 8  # after so many, what waits for the next message to a worker goes without one
SHUTDOWN_TIMEOUT_S = 2.0
# Events, or tasks among them, that the scheduler takes at once; then the connections have their turn.
MAX_EVENTS_PER_BATCH = 1024


class StateQuery:
    """A function of the scheduler whose value another thread requests, after everything posted before."""

    def __init__(self, function: Callable[[Scheduler], Any]) -> None:
        self._function = function
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run(self, scheduler: Scheduler) -> None:
        """Find the answer."""
        try:
            self.result.set_result(self._function(scheduler))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that has asked
            self.result.set_exception(error)


class ManagerServer:
    """Runs the scheduler in a thread, with the connections, timers and the object store.

    Parameters
    ----------
    ports
        The lowest and highest port to listen on; (0, 0) for any.
    address
        The address to listen on; "" for all.
    secret
        The secret that workers have to prove.
    name
        The manager's name.
    python
        Version of the Python that pickles the functions.
    needs
        Packages without which a worker's own Python can run none of them.
    journal_writer
        The writer of the journal, if there is one.
    tls_context
        The TLS context; None without TLS.
    session
        What names of this manager's own files have in common, if workers shall keep the others for the next manager, should this one vanish.
    previous
        The session of a manager that has died, if this one resumes it.
    staging
        Where files are kept that are on their way; None for the folder of temporary files.
    validate
        Whether the scheduler's state is validated after each batch of events.

    Attributes
    ----------
    bound, port : str, int
        Where it listens.
    name : str
        The manager's name.
    tasks_left : int
        Tasks that the user will still submit, for factories.
    started_at : float
        When it started, in seconds since 1970.
    worker_addresses : dict
        Where each worker is or was, by its number.
    in_words : callable
        Replaces cache names in texts of the scheduler by the user's names of files.
    describe : callable
        Returns the answer to a status request, such as "workers"; may raise ValueError.
    """

    def __init__(
        self,
        ports: tuple[int, int],
        address: str,
        secret: bytes,
        name: str,
        python: str,
        needs: tuple[str, ...] = (),
        journal_writer: JournalWriter | None = None,
        tls_context: ssl.SSLContext | None = None,
        *,
        session: str = "",
        previous: PreviousSession | None = None,
        staging: str | None = None,
        validate: bool = False,
    ) -> None:
        self._secret, self._session = secret, session
        self.name = name
        self.tasks_left = 0
        self._pid = os.getpid()
        self.in_words: Callable[[str], str] = str
        self.describe: Callable[[str], list[dict[str, Any]]] = lambda _request: []
        self._scheduler = Scheduler(python, needs, validate=validate)
        self.inbox: deque[e.Event | StateQuery] = deque()
        self._awake = False
        self._listeners: dict[type, Callable[[Any], None]] = {}
        self.store = store = ObjectStore(
            lambda *stored: self.post_event(e.ObjectStored(*stored)), session, staging
        )
        self._watched_outputs = WatchedOutputs(store)
        self._before = [] if previous is None else previous.workers  # which may end before they come back
        if session:
            self.inbox.append(
                e.SessionResumed()
                if previous is None
                else e.SessionResumed(previous.results, previous.workers)
            )
        hint = "Choose another with port=..., or port=0 for any"
        listener = listen(address, ports, 1024, hint, rather=0 if previous is None else previous.port)
        self.bound: str = listener.getsockname()[0]
        self.port: int = listener.getsockname()[1]
        self._journal_writer = journal_writer
        if journal_writer is not None:
            journal_writer.start(self.port)
        self._loop = asyncio.new_event_loop()
        self._connections = connections = WorkerConnections(
            self,
            self._loop,
            self.store,
            self._scheduler.state,
            session=session,
            has_tls=tls_context is not None,
        )
        self._workers = connections.workers
        self.worker_addresses = connections.addresses
        self._executors: dict[type, Callable[[Any], None]] = {
            i.Send: connections.send,
            i.SendObject: connections.send_object,
            i.StoreObject: lambda instruction: self.store.put(instruction.name, instruction.payload),
            i.AppendOutput: self._watched_outputs.append,
            i.DropObject: lambda instruction: self.store.remove(instruction.name),
            i.Disconnect: connections.disconnect,
            i.LogMessage: lambda message: log.log(message.level, self.in_words(message.text)),
        }
        self._freezer = ObjectFreezer()
        self.started_at = time.time()
        self.closed = False
        self.fatal_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vine-manager", daemon=True)
        self._thread.start()
        self._tls: tls.TlsTunnels | None = None
        wrap_tls: TlsWrapper | None = None
        if tls_context is not None:
            self._tls = tls.TlsTunnels()
            wrap_tls = functools.partial(self._tls.serve, context=tls_context)
        self._listener = AuthenticatingListener(
            listener,
            lambda _greeting: self._secret,
            self._connections.on_authenticated,
            self._connections.log_refused,
            wrap_tls=wrap_tls,
            name=name,
        )

    # ---- for other threads

    def subscribe(self, kind: type, listener: Callable[[Any], None]) -> None:
        """Call a function for each instruction of a kind, in the server's thread."""
        self._listeners[kind] = listener

    def post_event(self, event: e.Event | StateQuery) -> None:
        """Post an event for the scheduler; after the close it is dropped."""
        self.inbox.append(event)
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self.process_inbox)
            except RuntimeError:
                if not self.closed:
                    raise

    def schedule_inbox(self) -> None:
        """Schedule the inbox for the next iteration; for the loop's own thread."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self.process_inbox)

    def announce_close(self) -> None:
        """Tell the scheduler that the manager is about to close."""
        with contextlib.suppress(RuntimeError):  # it has stopped with a defect
            self.post_event(e.ShutdownAnnounced())

    def submit(self, tasks: list[TaskSpec]) -> None:
        """Post tasks, and wait until the scheduler has taken them.

        A thread that makes one slice after another would hold Python's lock for milliseconds whenever the loop lets go of it, which it does with
        every write to a connection.
        """
        self.post_event(e.TasksSubmitted(tasks))
        self.query(queries.await_earlier_events)

    def query(self, function: Callable[[Scheduler], T]) -> T:
        """Run a function on the scheduler in its thread, after all earlier events, and return its value."""
        self.ensure_open()
        if threading.current_thread() is self._thread:
            return function(self._scheduler)
        question = StateQuery(function)
        self.post_event(question)
        answer: T = self._wait_for_answer(question)
        return answer

    def query_around(self, event: e.Event, function: Callable[[Scheduler], T]) -> tuple[T, T]:
        """Post an event, and return the values of a function just before and just after it."""
        self.ensure_open()
        before, after = StateQuery(function), StateQuery(function)
        # at once, so that nothing comes between them
        self.inbox.extend([before, event, after])
        # it has no effect, and wakes the loop
        self.post_event(StateQuery(queries.await_earlier_events))
        return self._wait_for_answer(before), self._wait_for_answer(after)

    def _wait_for_answer(self, question: StateQuery) -> Any:
        answer: concurrent.futures.Future[Any] = question.result
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
        if self._journal_writer is not None:
            self._journal_writer.close()
        if self._tls is not None:
            self._tls.drain_and_close(SHUTDOWN_TIMEOUT_S)
        self._watched_outputs.close()
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
            self._freezer.thaw()

    def _release_workers(self, release: bool) -> None:
        for peer in list(self._workers.values()):
            peer.channel.send(m.Shutdown("the manager has ended", release))
            peer.channel.close()
        self._stop_when_empty(time.monotonic() + SHUTDOWN_TIMEOUT_S)

    def _stop_when_empty(self, deadline: float) -> None:
        if self._connections.is_empty():
            self._loop.stop()
            return
        if time.monotonic() > deadline:
            for peer in list(self._workers.values()):
                peer.channel.abort("it does not answer")
            deadline = float("inf")
        self._loop.call_later(0.005, self._stop_when_empty, deadline)

    def process_inbox(self) -> None:
        """Handle what is in the inbox, up to as much as does not keep connections waiting."""
        # events that were posted before the loop stopped: the state is not to be trusted any more
        if self.fatal_error is not None:
            return
        self._awake = False
        inbox, room = self.inbox, MAX_EVENTS_PER_BATCH
        events: list[e.Event] = []
        while inbox and room > 0:
            event = inbox.popleft()
            if isinstance(event, StateQuery):
                self._handle(events)
                events = []
                event.run(self._scheduler)
            else:
                events.append(event)
                room -= len(event.tasks) if type(event) is e.TasksSubmitted else 1
        self._handle(events)
        self._freezer.update(len(self._scheduler.state.files))
        if (inbox or self._scheduler.has_more_to_release) and not self._awake:
            self._awake = True
            self._loop.call_soon(self.process_inbox)

    def _handle(self, events: list[e.Event]) -> None:
        carriers, listeners = self._executors, self._listeners
        now = time.monotonic()
        try:
            instructions = self._scheduler.handle(events, now)
        except Exception as error:
            self.fatal_error = error
            log.critical("a defect in the manager, which stops here; it came with %.2000s", events)
            for peer in list(self._workers.values()):
                peer.channel.abort("the manager has a defect")
            self._loop.call_soon(self._loop.stop)
            raise
        if self._journal_writer is not None:
            self._journal_writer.record(now, events, instructions)
        for instruction in instructions:
            kind = type(instruction)
            carry = carriers.get(kind) or listeners.get(kind)
            if carry is not None:
                carry(instruction)

    def _tick(self, ticks: int = 0) -> None:
        now = time.monotonic()
        if self._before and ticks < LOOK_TICKS:
            self._look_for_ends()
        self.inbox.append(e.Tick())
        self.process_inbox()
        interval_s = self._scheduler.state.tuning.keepalive_interval
        timeout_s = self._scheduler.state.tuning.keepalive_timeout
        for peer in list(self._workers.values()):
            quiet = now - peer.last_received_at
            asked = peer.pinged_at > peer.last_received_at
            if asked and quiet > timeout_s and now - peer.pinged_at > timeout_s - interval_s:
                peer.channel.abort(f"silent for {quiet:.0f} s")
            # this process may have been stopped as well: then no worker was asked
            elif quiet > interval_s and not asked:
                peer.pinged_at = now
                peer.channel.send(m.Ping())
            elif (peer.number + ticks) % FLUSH_TICKS == 0:
                peer.channel.flush_soon()
        self._loop.call_later(TICK_S, self._tick, ticks + 1)

    def _look_for_ends(self) -> None:
        """Post the workers of a dead manager that have exited meanwhile, as those do that end with it."""
        ended = [worker for worker in self._before if has_ended(*worker)]
        if ended:
            self._before = [worker for worker in self._before if worker not in ended]
            self.inbox.append(e.WorkersEnded(ended))

    def rename(self, name: str) -> None:
        """Change the manager's name for those who connect from now on."""
        self.name = self._listener.name = name

    def set_secret(self, secret: bytes) -> None:
        """Set the secret that new connections have to prove."""
        self._secret = secret

    def queue_stats(self) -> QueueStats:
        """Return the queue statistics with the connected pilots."""

        def look(scheduler: Scheduler) -> QueueStats:
            pilots = tuple(self._connections.pilot_names())
            return queue_stats(scheduler.state)._replace(pilots=pilots, left=self.tasks_left)

        return self.query(look)

    def release_idle_workers(self, count: int, pilots: str) -> int:
        """Let up to so many idle workers go, of those whose pilots are called so; give how many."""

        def let_go(scheduler: Scheduler) -> int:
            chosen: list[WorkerConnection] = []
            for peer in self._workers.values():
                features = () if peer.hello is None else peer.hello.features
                worker = scheduler.state.workers.get(peer.number)
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
            scheduler.state.counters.workers_released += len(chosen)
            return len(chosen)

        return self.query(let_go)
