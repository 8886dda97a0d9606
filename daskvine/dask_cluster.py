"""Workers on the nodes of a Dask cluster: one on each, beside the Dask workers that are there.

Loaded by `vinecore.factory` when it is asked for. Nodes are looked at through the client, so nothing is left with the Dask scheduler;
what runs inside the Dask workers is in `daskvine.remote.dask_worker_plugin`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from vinecore.factory.adaptive import GONE, RUNNING, JobStatus
from vinecore.factory.batch_system import (
    BatchError,
    BatchOptions,
    BatchSystem,
    PilotSpec,
    worker_command_line,
)
from vinecore.factory.interfaces import ManagedManager
from vinecore.factory.local import NEVER_S
from vinecore.factory.pilot_script import write_worker_zipapp
from vinecore.protocol.messages import PILOT_FEATURE_PREFIX

log = logging.getLogger("vinecore")

MAX_WAIT_S = 60.0  # for all that is asked at the same time
ASK_S = 15.0  # for one answer of a Dask worker, or of the Dask scheduler
NODE_SETTLE_S = 1.5  # the Dask workers of a node do not all come at the same moment
MOST_WORDS = 500
# More workers than any cluster has nodes.
EVERY_NODE = 1000
POLL_INTERVAL_S = 2.0
AT_ONCE = 100  # nodes that are sent the worker's file at the same time
HEARTBEAT_TIMEOUT_S = 120.0  # after how long without a poll a vine worker exits


class _DaskWorkerInfo(NamedTuple):
    """The node, cores and memory of one Dask worker."""

    node: tuple[str, ...]
    cores: int
    memory: int  # in bytes; 0 without a limit


class _DaskPilot(NamedTuple):
    node: tuple[str, ...]
    address: str  # of the Dask worker that holds it


class DaskClusterBatchSystem(BatchSystem):
    """Starts vine workers on the nodes of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client or None
        A client of the cluster.
    scheduler : str
        Without a client: the address of the Dask scheduler, or the path of its file; "" for what dask's configuration says.
    """

    IGNORED_SETTINGS = (
        "python_env",
        "batch_options",
        "condor_requirements",
        "worker_binary",
        "workers_blocked",
        "wrapper_input",
    )

    def __init__(self, client: Any = None, scheduler: str = "") -> None:
        try:
            from daskvine.remote import dask_worker_plugin
        except ModuleNotFoundError as error:
            msg = f"Dask clusters need the package distributed: pip install 'daskvine[distributed]' ({error})"
            raise BatchError(msg) from None
        self._there = dask_worker_plugin
        cloudpickle.register_pickle_by_value(dask_worker_plugin)
        with tempfile.TemporaryDirectory(prefix="vine-dask-") as folder:
            self._file = write_worker_zipapp(Path(folder)).read_bytes()
        self._own = client is None
        self._client = connect(scheduler) if client is None else client
        self._numbers = itertools.count(1)
        self._pilots: dict[str, _DaskPilot] = {}
        self._failed: dict[str, JobStatus] = {}
        self._workers: dict[str, _DaskWorkerInfo] = {}
        self._changed: dict[tuple[str, ...], float] = {}  # when a node has got or lost a Dask worker
        self._name = ""  # of the pilots' plugin

    # ---- what a factory asks for

    @classmethod
    def check(cls, options: BatchOptions, settings: Mapping[str, Any]) -> None:
        """Refuse settings without a meaning on the nodes of a Dask cluster, and an asynchronous client."""
        for name in ("python_env", "batch_options", "condor_requirements"):
            if settings.get(name):
                msg = f"{name} is not for 'dask': its nodes are there already, and vine workers run in the Python of the Dask workers"
                raise ValueError(msg)
        if options.client is not None and getattr(options.client, "asynchronous", False):
            msg = "client is asynchronous: make one without asynchronous=True, or name its address with dask_scheduler"
            raise ValueError(msg)

    @classmethod
    def default_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return one worker on each node, or on as many as there may be."""
        every = settings.get("max_workers") or EVERY_NODE
        return {"min_workers": every, "max_workers": every, "factory_period": POLL_INTERVAL_S}

    @classmethod
    def manager_host(cls, manager: ManagedManager | None) -> str:
        """Return "": the Dask scheduler knows this machine's address."""
        del manager
        return ""

    @classmethod
    def create(cls, options: BatchOptions) -> DaskClusterBatchSystem:
        """Connect to the Dask cluster."""
        return cls(options.client, options.dask_scheduler or "")

    def submit(self, count: int, order: PilotSpec) -> list[str]:
        """Start vine workers on nodes that have none; there may be fewer than were asked for."""
        self._name = order.factory
        taken = {pilot.node for pilot in self._pilots.values()}
        settled = time.monotonic() - NODE_SETTLE_S
        free = [node for node, changed in self._changed.items() if node not in taken and changed < settled]
        chosen = {str(next(self._numbers)): node for node in free[: min(count, AT_ONCE)]}
        if not chosen:
            return []
        secret, host = order.password_file.read_bytes().strip(), order.host or self._own_address()
        wrapper, env = tuple(shlex.split(order.settings.wrapper)), dict(order.settings.env or {})
        members = self._group_by_node()
        wishes, pilots = {}, {}
        for name, node in chosen.items():
            address = min(members[node])  # any of them would do
            options = _make_worker_options(order._replace(host=host), name, members[node].values())
            parcel = self._there.PilotPayload(order.factory, self._file, secret, wrapper, tuple(options), env)
            wishes[address] = _as_run_message(partial(self._there.start_pilot, parcel))
            pilots[name] = _DaskPilot(node, address)
        log.info("starting vine workers on %s", ", ".join(sorted(node[0] for node in chosen.values())))
        answers = self._run_on_workers(wishes)
        self._pilots.update(pilots)
        for name, pilot in pilots.items():
            # a Dask worker that has not answered may have started it all the same; the next poll tells
            problem = _unpack_reply(answers[pilot.address]) if pilot.address in answers else ""
            if problem != "":
                self._failed[name] = JobStatus(
                    GONE, f"on {pilot.node[0]}: {problem or 'it does not start'}", ran=True
                )
                del self._pilots[name]
        return list(pilots)

    def status(self) -> dict[str, JobStatus]:
        """Look at the nodes, and at the vine workers that are there."""
        self._update_nodes()
        jobs, self._failed = self._failed, {}
        for name, pilot in list(self._pilots.items()):
            if pilot.address not in self._workers:
                log.info(
                    "the Dask worker at %s on %s has left, and its vine worker with it",
                    pilot.address,
                    pilot.node[0],
                )
                jobs[name] = JobStatus(GONE, "its Dask worker has left", exited_cleanly=True, ran=True)
        answers = self._run_on_workers(
            {pilot.address: {"op": self._name} for n, pilot in self._pilots.items() if n not in jobs}
        )
        for name, pilot in list(self._pilots.items()):
            if name not in jobs:
                jobs[name] = _parse_pilot_status(pilot, answers.get(pilot.address, {"code": None}))
            if jobs[name].state == GONE:
                del self._pilots[name]
        return jobs

    def remove(self, names: Sequence[str]) -> None:
        """End some vine workers."""
        ended = [self._pilots.pop(name).address for name in names if name in self._pilots]
        self._run_on_workers(
            {address: {"op": "plugin-remove", "name": self._name} for address in ended},
            self._there.GRACE_S + ASK_S,
        )

    def close(self) -> None:
        """End all vine workers; the Dask cluster goes on."""
        try:
            self.remove(list(self._pilots))
        except BatchError as error:
            log.warning("%s; vine workers that are still there end within %.0f s", error, HEARTBEAT_TIMEOUT_S)
        if self._own:
            self._client.close()

    # ---- nodes

    def _update_nodes(self) -> None:
        """Find which Dask workers have come and which have left."""
        present = self._run_in_client(self._scheduler.ncores)
        now = time.monotonic()
        for address in self._workers.keys() - present.keys():
            node = self._workers.pop(address).node
            self._changed[node] = now
        new = present.keys() - self._workers.keys()
        for address, answer in self._run_on_workers(
            {address: _as_run_message(self._there.probe_node) for address in new}
        ).items():
            about = _unpack_reply(answer)
            if isinstance(about, tuple):  # not a problem in words; it is asked again
                self._workers[address] = _DaskWorkerInfo(*about)
                self._changed[self._workers[address].node] = now
        used = {about.node for about in self._workers.values()}
        self._changed = {node: changed for node, changed in self._changed.items() if node in used}

    def _group_by_node(self) -> dict[tuple[str, ...], dict[str, _DaskWorkerInfo]]:
        """Group the Dask workers by their nodes."""
        found: dict[tuple[str, ...], dict[str, _DaskWorkerInfo]] = {}
        for address, about in self._workers.items():
            found.setdefault(about.node, {})[address] = about
        return found

    def _own_address(self) -> str:
        """Return the address of this machine that the Dask scheduler sees."""
        from distributed.comm.addressing import get_address_host

        return str(get_address_host(self._client.scheduler_comm.comm.local_address))

    # ---- talking

    def _run_on_workers(self, wishes: dict[str, dict[str, Any]], timeout_s: float = ASK_S) -> dict[str, Any]:
        """Ask Dask workers, each for something, all at once; give the answers of those that answer, in time."""
        if not wishes:
            return {}
        scheduler = self._scheduler

        async def one(address: str, wish: dict[str, Any]) -> dict[str, Any]:
            said = scheduler.broadcast(msg=wish, workers=[address], on_error="ignore")
            try:
                return dict(await asyncio.wait_for(said, timeout_s))
            except asyncio.TimeoutError:
                return {}

        async def all_of_them() -> dict[str, Any]:
            said = await asyncio.gather(*(one(address, wish) for address, wish in wishes.items()))
            return {address: answer for answers in said for address, answer in answers.items()}

        return dict(self._run_in_client(all_of_them))

    @property
    def _scheduler(self) -> Any:
        scheduler = self._client.scheduler
        if scheduler is None or self._client.status != "running":
            msg = f"the Dask client is {self._client.status}: the factory cannot watch its vine workers any more"
            raise BatchError(msg)
        return scheduler

    def _run_in_client(self, doing: Callable[[], Any]) -> Any:
        """Run a function in the client's own thread, and wait for it."""
        try:
            return self._client.sync(doing, callback_timeout=MAX_WAIT_S)
        except (OSError, RuntimeError, asyncio.TimeoutError) as error:
            msg = f"the Dask scheduler does not answer: {error or type(error).__name__}"
            raise BatchError(msg) from None


def connect(scheduler: str) -> Any:
    """Connect to a Dask scheduler, with the security that dask's configuration says.

    Raises
    ------
    BatchError
    """
    import dask
    from distributed import Client

    where = scheduler or dask.config.get("scheduler-address", None)
    if not where:
        msg = "no Dask cluster is given: use --dask-scheduler ADDRESS, or Factory('dask', client=client)"
        raise BatchError(msg)
    known = {"scheduler_file": where} if os.path.exists(where) else {"address": where}
    try:
        return Client(**known, set_as_default=False, name="vine-factory")
    except (OSError, ValueError) as error:
        msg = f"there is no Dask scheduler at {where}: {error}"
        raise BatchError(msg) from None


def _as_run_message(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the message that has a Dask worker run a function, which goes there by value."""
    return {"op": "run", "function": cloudpickle.dumps(function), "wait": True}


def _unpack_reply(answer: Any) -> Any:
    """Return what a function has returned, or in words why it has not."""
    if not isinstance(answer, dict) or "result" not in answer:
        return (
            "it cannot be started there"
            if not answer
            else str(answer.get("text") or answer.get("exception_text"))[:MOST_WORDS]
        )
    return answer["result"]


def _make_worker_options(order: PilotSpec, name: str, members: Iterable[_DaskWorkerInfo]) -> list[str]:
    """Return options of a node's vine worker: what the Dask workers of the node may use together, unless the settings say it."""
    settings, members = order.settings, list(members)
    cores = settings.cores or max(1, sum(about.cores for about in members))
    memory = settings.memory
    if memory is None and all(about.memory for about in members):
        memory = sum(about.memory for about in members) >> 20
    order = order._replace(settings=settings.changed(cores=cores, memory=memory))
    return [
        *(
            "--single-shot",
            "--password",
            "-",
            "--leash",
            str(HEARTBEAT_TIMEOUT_S),
            "--feature",
            f"{PILOT_FEATURE_PREFIX}{order.factory}/{name}",
        ),
        *worker_command_line(order, NEVER_S if settings.fixed else None),
    ]


def _parse_pilot_status(pilot: _DaskPilot, answer: Any) -> JobStatus:
    """Understand what a Dask worker says of its pilot."""
    if not isinstance(answer, dict) or "code" not in answer:
        return JobStatus(GONE, f"the Dask worker at {pilot.address} has lost it", ran=True)
    code = answer["code"]
    if code is None:
        return JobStatus(RUNNING)
    return JobStatus(GONE, f"on {pilot.node[0]}: exit code {code}: {answer['words']}", code == 0, ran=True)
