"""How simulated jobs of workers end: as they should, badly, or worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vineworker.slot_protocol import Reply
from vineworker.state import events as we
from vineworker.state import instructions as wi

from tests.vinecore.scheduler.property.random_graphs import LARGE, SMALL
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e

if TYPE_CHECKING:
    from tests.vinecore.scheduler.property.model import SimulatedCluster
    from tests.vinecore.scheduler.property.simulated_worker import SimulatedWorker


class Ending(NamedTuple):
    """How a job ends."""

    # "well", "badly" or "worse"
    kind: str
    count: int = 1


class JobOutcomes:
    """Ends the jobs of the workers of a simulated cluster."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def end_job(self, number: int, job: int, ending: Ending) -> None:
        """End one of a worker's jobs."""
        worker = self._cluster.workers[number]
        if worker.jobs:
            index = job % len(worker.jobs)
            kind, what = worker.jobs[index]
            getattr(self, f"_end_{kind}")(worker, index, what, ending)

    def _end_host(self, worker: SimulatedWorker, index: int, host: str, ending: Ending) -> None:
        del worker.jobs[index]
        if ending.kind == "well":
            worker.handle_events([we.ForkServerReady(host, 0.1, {})])
        else:
            self._cluster.expected_failures |= {"library", "crash", "input", "input missing"}
            worker.handle_events(
                [we.ForkServerExited(host, "it does not start", ending.kind == "worse", b"")]
            )

    def _end_slot(self, worker: SimulatedWorker, index: int, slot: int, ending: Ending) -> None:
        """Return some calls of a slot, or end its process."""
        _host, calls, single = worker.slots[slot]
        if single is not None:
            self._end_single(worker, index, slot, single, ending)
        elif ending.kind == "well":
            if calls:
                count = min(ending.count, len(calls))
                replies = [self._reply(calls.popleft(), worker, slot) for _ in range(count)]
                worker.handle_events([we.CallsReturned(slot, replies)])
        elif ending.kind == "badly" and calls:
            self._cluster.expected_failures |= {"exception", "input missing"}
            replies = [Reply(calls.popleft().task, "exception", 0, 0.1, {}, b"error")]
            replies += [
                self._reply(calls.popleft(), worker, slot) for _ in range(min(ending.count, len(calls)))
            ]
            worker.handle_events([we.CallsReturned(slot, replies)])
        else:
            self._cluster.expected_failures |= {"crash", "library", "input missing"}
            self._end_slot_process(worker, slot, calls[0].task if calls and ending.count % 2 else -1)

    def _end_single(
        self, worker: SimulatedWorker, index: int, slot: int, run: m.RunTask, ending: Ending
    ) -> None:
        if ending.kind == "worse":
            self._cluster.expected_failures |= {"crash", "input missing"}
            if ending.count % 2:
                self._end_slot_process(worker, slot, run.task)
                return
        worker.handle_events([we.CallsReturned(slot, [Reply(run.task, "done", SMALL, 0.1, {}, b"")])])
        self._end_slot_process(worker, slot, -1)
        self._finish_process_task(worker, run, ending)

    def _end_kill(self, worker: SimulatedWorker, index: int, slot: int, ending: Ending) -> None:
        _host, calls, _single = worker.slots[slot]
        self._end_slot_process(worker, slot, calls[0].task if calls and ending.count % 2 else -1)

    def _end_process(self, worker: SimulatedWorker, index: int, run: m.RunTask, ending: Ending) -> None:
        del worker.jobs[index]
        self._finish_process_task(worker, run, ending)

    def _end_fetch(self, worker: SimulatedWorker, index: int, fetch: m.Fetch, ending: Ending) -> None:
        del worker.jobs[index]
        reason, gone, content = "", False, ""
        if ending.kind != "well":
            self._cluster.expected_failures |= {"input missing", "library"}
        if ending.kind == "badly":
            reason = "the connection broke"
        elif fetch.source == "manager":
            size, content = (
                self._cluster.stored_sizes.get(fetch.name),
                self._cluster.stored_digests.get(fetch.name, ""),
            )
            gone = size is None
        elif "://" in fetch.source:
            size, content = LARGE, "from outside"
        else:
            peer = next((p for p in self._cluster.workers.values() if p.address == fetch.source), None)
            if peer is None or not peer.reachable:
                reason = "connection refused"
            else:
                size, content = peer.find_object(fetch.name)
                gone = size is None
        if ending.kind == "worse" and fetch.digest:
            content = "altered"
        altered = not (reason or gone) and bool(fetch.digest) and content != fetch.digest
        if not (reason or gone) and fetch.digest and fetch.name not in {**worker.cache, **worker.offered}:
            arrival = we.ObjectArrived(fetch.name, size, True, fetch.digest, compared=False)
            worker.offered[fetch.name] = arrival, size, content
            worker.jobs.append(("compare", (arrival, fetch, altered)))
            worker.handle_events([arrival])
            return
        if reason or gone or altered:
            worker.outbox.append(m.FetchFailed(fetch.name, fetch.source, reason, gone, corrupt=altered))
            return
        assert size is not None
        assert fetch.size in (-1, size)
        assert content != "altered"
        worker.store_object(fetch.name, size, content)
        worker.handle_events([we.ObjectArrived(fetch.name, size, True, content)])

    def _end_compare(
        self,
        worker: SimulatedWorker,
        index: int,
        what: tuple[we.ObjectArrived, m.Fetch, bool],
        ending: Ending,
    ) -> None:
        """Verify an object as `vineworker.storage.transfers` does: it may be used if it is intact and still there."""
        del worker.jobs[index]
        arrival, fetch, altered = what
        unreadable = ending.kind == "badly"
        if unreadable:
            self._cluster.expected_failures |= {"input missing", "library"}
        failure = None
        if altered or unreadable:
            failure = m.FetchFailed(
                fetch.name, fetch.source, "", permanent=False, corrupt=not unreadable, was_cached=True
            )
        found, size, content = worker.offered.get(fetch.name, (None, 0, ""))
        if found is arrival:
            del worker.offered[fetch.name]
            if failure is None:
                assert content == fetch.digest
                worker.store_object(fetch.name, size, content)
        worker.handle_events([we.ObjectVerified(arrival, failure)])

    def _end_unpack(self, worker: SimulatedWorker, index: int, unpack: m.Unpack, ending: Ending) -> None:
        del worker.jobs[index]
        if ending.kind == "worse" or unpack.archive not in worker.cache:
            self._cluster.expected_failures |= {"input missing", "library"}
            worker.outbox.append(m.FetchFailed(unpack.name, unpack.archive, "it is not an archive", False))
            return
        worker.store_object(unpack.name, 0, "")
        worker.handle_events([we.ObjectArrived(unpack.name, 0, True)])

    def _end_upload(self, worker: SimulatedWorker, index: int, what: tuple[str, str], ending: Ending) -> None:
        del worker.jobs[index]
        name, digest = what
        size, content = worker.find_object(name)
        altered = bool(digest) and content != digest
        if ending.kind != "well" or size is None or altered:
            worker.outbox.append(m.UploadFailed(name, "it is altered" if altered else "the connection broke"))
            return
        assert content != "altered"
        self._cluster.events.append(e.ObjectStored(name, size, content))
        worker.outbox.append(m.Uploaded(name))

    def _end_keep(self, worker: SimulatedWorker, index: int, keep: wi.PersistObject, ending: Ending) -> None:
        del worker.jobs[index]
        name = keep.name
        as_it_was = keep.digest in ("", worker.contents.get(name))
        if ending.kind == "well" and name in worker.cache and as_it_was:
            worker.persistent[name] = worker.cache[name], worker.contents[name]
            worker.handle_events([we.ObjectPersisted(name, worker.contents[name])])

    def _end_find(self, worker: SimulatedWorker, index: int, found: dict[str, Any], ending: Ending) -> None:
        """Report the persistent objects; damaged ones are left out."""
        del worker.jobs[index]
        if ending.kind == "well":
            found = {name: worker.persistent[name] for name in found if name in worker.persistent}
            for name, (size, content) in found.items():
                if name not in worker.cache:
                    worker.store_object(name, size, content)
            sizes, digests = [size for size, _content in found.values()], [c for _size, c in found.values()]
            worker.handle_events([we.PersistentObjectsFound(list(found), sizes, digests)])

    def _end_slot_process(self, worker: SimulatedWorker, slot: int, running: int) -> None:
        worker.remove_slot(slot)
        worker.handle_events([we.SlotExited(slot, running, {"reason": "it died"})])

    def _reply(self, run: m.RunTask, worker: SimulatedWorker, slot: int) -> Reply:
        fed = worker.chained_inputs.pop(run.task, None)
        done = worker.completed_calls.setdefault(slot, set())
        if fed is not None and fed[1] not in done:
            return Reply(run.task, "unfed", 0, 0.0, {}, b"")
        done.add(run.task)
        size = self._result_size(run)
        wall = 0.0001 if run.function == "quick" else (0.001, 0.02, 0.2)[run.task % 3]
        if size <= INLINE_LIMIT:
            return Reply(run.task, "done", size, wall, {}, bytes(size))
        return Reply(run.task, "done", size, wall, {"digest": f"{worker.number}.{run.task}"}, b"")

    def _result_size(self, run: m.RunTask) -> int:
        return int(run.options["size"])

    def _finish_process_task(self, worker: SimulatedWorker, run: m.RunTask, ending: Ending) -> None:
        """Collect the outputs of a task with a process of its own, as `vineworker.tasks.processes` does."""
        sizes = {name: LARGE for _remote, name, _when in run.options.get("outputs", ())}
        killed = run.task in worker.killed_tasks
        if killed:
            sizes = {}
        # the task succeeds without its outputs
        if ending.kind == "badly" and sizes and ending.count % 2:
            self._cluster.expected_failures |= {"input missing"}
            self._cluster.never_made |= sizes.keys()
            ending, sizes = Ending("well"), {}
        info: dict[str, Any] = {
            "outputs": sizes,
            "measured": {"cores": 1, "memory": 10 * (run.task % 100), "disk": 1},
            "digests": {name: worker.store_output(name, size) for name, size in sizes.items()},
        }
        if killed or ending.kind != "well":
            kind = "cancelled" if killed else "crash" if ending.kind == "worse" else "exception"
            if kind == "crash" and ending.count > 1:
                kind = "exhausted"
                info["resource"] = "memory"
            self._cluster.expected_failures |= {kind, "input missing"}
            worker.handle_events(
                [we.ProcessTaskFinished(run.task, m.TaskFailed(run.task, kind, info, b""), sizes)]
            )
            return
        payload = b""
        if run.result:
            size = self._result_size(run)
            payload = bytes(size) if run.return_result and size <= INLINE_LIMIT else b""
            if not (payload and run.options.get("once")):
                info["digest"] = worker.store_output(run.result, size)
                sizes = {**sizes, run.result: size}
            worker.handle_events(
                [we.ProcessTaskFinished(run.task, m.TaskDone(run.task, size, 0.1, info, payload), sizes)]
            )
        else:
            worker.handle_events(
                [we.ProcessTaskFinished(run.task, m.TaskDone(run.task, 0, 0.1, info, b""), sizes)]
            )
