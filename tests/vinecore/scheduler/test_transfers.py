"""Who gets a file from whom, and when."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes, single, task_outcomes
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.transfer_failures import MAX_FAILURES
from vinecore.scheduler.transfers import (
    MAX_TRANSFERS_PER_SOURCE,
    MAX_TRANSFERS_PER_SOURCE_AND_FILE,
    PEER_BACKOFF_S,
)
from vinecore.scheduler.tuning import Tuning

URL = "https://example.org/x"


def readers(harness, count, name="data", first=100, **worker):
    """Workers that each get a task that reads a file; gives their numbers."""
    workers = [harness.connect_worker(**worker) for _ in range(count)]
    harness.submit_tasks(*(single(n, name, retries=50) for n in range(first, first + count)))
    return workers


def sources(out):
    return [source for _worker, _name, source in out]


# ---- what travels how


def test_a_small_object_rides_with_the_messages():
    harness = SchedulerHarness()
    harness.declare_file("data", size=INLINE_LIMIT, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.last_instructions[0] == i.SendObject(worker, "data")
    assert harness.replica_holders("data") == {worker}


def test_a_large_object_is_fetched():
    harness = SchedulerHarness()
    harness.declare_file("data", size=INLINE_LIMIT + 1, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.messages_sent(m.Fetch) == [(worker, m.Fetch("data", INLINE_LIMIT + 1, "manager", False))]
    assert harness.replica_holders("data") == set()
    harness.report_cached(worker, "data", INLINE_LIMIT + 1)
    assert harness.replica_holders("data") == {worker}
    assert harness.scheduler.state.moved_bytes == INLINE_LIMIT + 1


def test_small_directory_is_fetched():
    """A directory is fetched however small it is."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=10, at_manager=True, directory=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.messages_sent(m.Fetch) == [(worker, m.Fetch("data", 10, "manager", True))]


def test_an_object_travels_to_a_worker_once():
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.declare_file("small", size=10, at_manager=True)
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(*(single(n, "data", shared=("small",)) for n in range(1, 5)))
    assert len(harness.requested_fetches()) == 1
    assert harness.instructions_of(i.SendObject) == [i.SendObject(worker, "small")]


def test_url_is_fetched_and_its_size_learned():
    """An address outside is fetched by the worker itself and its size is learned."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.messages_sent(m.Fetch) == [(worker, m.Fetch("data", -1, URL, False))]
    harness.report_cached(worker, "data", 12345)
    assert harness.file("data").size == 12345


def test_file_precedes_reading_task():
    """A file comes before the task that reads it."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert [type(x.message).__name__ for x in harness.instructions_of(i.Send)] == ["Fetch", "RunTask"]


def test_an_archive_is_brought_and_unpacked():
    harness = SchedulerHarness()
    harness.declare_file("archive", size=LARGE, at_manager=True)
    harness.declare_file("folder", archive="archive", directory=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "folder"))
    assert harness.requested_fetches() == [(worker, "archive", "manager")]
    assert harness.messages_sent(m.Unpack) == [(worker, m.Unpack("folder", "archive"))]


def test_archive_made_by_task_is_awaited():
    """An archive that a task makes is waited for."""
    harness = SchedulerHarness()
    harness.declare_file("r1")
    harness.declare_file("folder", archive="r1", directory=True)
    first = harness.connect_worker()
    harness.submit_tasks(single(1), single(2, "folder"))
    assert not harness.messages_sent(m.Unpack)
    harness.complete_task(1, size=LARGE)
    assert harness.messages_sent(m.Unpack) == [(first, m.Unpack("folder", "r1"))]
    assert harness.assignments() == {2: first}


def test_failed_archive_fetch_is_retried():
    """An archive that could not be brought is brought again."""
    harness = SchedulerHarness()
    harness.declare_file("archive", url=URL)
    harness.declare_file("folder", archive="archive", directory=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "folder"))
    harness.report_failed_fetch(worker, "archive", URL)
    harness.advance_time()
    assert harness.requested_fetches() == [(worker, "archive", URL)]
    assert not harness.messages_sent(m.Unpack), "it still waits there for its archive"


def test_invalid_archive_fails_readers():
    """What is no archive fails who needs it."""
    harness = SchedulerHarness()
    harness.declare_file("archive", size=LARGE, at_manager=True)
    harness.declare_file("folder", archive="archive", directory=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "folder"))
    harness.report_cached(worker, "archive")
    for _ in range(MAX_FAILURES + 1):
        assert not task_outcomes(harness)
        harness.worker_sends(
            worker, m.FetchFailed("folder", "archive", "not an archive that can be unpacked", False)
        )
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "not an archive" in ended.info["reason"]


# ---- from whom


def test_peers_come_before_the_manager():
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    (first,) = readers(harness, 1)
    harness.report_cached(first, "data")
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.requested_fetches() == [(second, "data", "host1:7")]


def test_unreachable_worker_is_no_source():
    """A worker that nobody can reach is no source."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    (first,) = readers(harness, 1, port=0)
    harness.report_cached(first, "data")
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.requested_fetches() == [(second, "data", "manager")]


@pytest.mark.parametrize("how", ["file", "everywhere"])
def test_peers_are_avoided_on_request(how):
    """Peers are not asked where that is not wanted."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True, peer_transfer=how != "file")
    if how == "everywhere":
        harness.send_events(e.SettingChanged("peer-transfers", False))
    (first,) = readers(harness, 1)
    harness.report_cached(first, "data")
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.requested_fetches() == [(second, "data", "manager")]


def test_source_sends_file_to_few_at_once():
    """One source sends a file to a few at a time."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    readers(harness, 10)
    assert len(harness.requested_fetches()) == MAX_TRANSFERS_PER_SOURCE_AND_FILE == 2


def test_popular_file_spreads_as_tree():
    """A popular file spreads as a tree that doubles."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    readers(harness, 100)
    rounds = []
    under_way = harness.requested_fetches()
    while under_way:
        rounds.append(len(under_way))
        under_way = [
            f
            for worker, name, _ in under_way
            for f in (harness.report_cached(worker, name), harness.requested_fetches())[1]
        ]
    assert sum(rounds) == 100
    assert rounds[:4] == [2, 4, 12, 36], "every holder serves two at a time, the manager at the beginning"
    assert sources(harness.requested_fetches(harness.log)).count("manager") == 2


def test_source_serves_bounded_transfers():
    """One source serves a bounded number of transfers."""
    harness = SchedulerHarness()
    for number in range(1, 31):
        harness.declare_file(f"r{number}")
    maker = harness.connect_worker(cores=30)
    harness.submit_tasks(*(single(n) for n in range(1, 31)))
    for number in range(1, 31):
        harness.complete_task(number, size=LARGE)
    harness.submit_tasks(*(single(n) for n in range(900, 930)))
    reader = harness.connect_worker(cores=30)
    harness.submit_tasks(*(single(100 + n, f"r{n}") for n in range(1, 31)))
    assert len(harness.requested_fetches()) == MAX_TRANSFERS_PER_SOURCE == harness.worker(maker).outgoing
    harness.report_cached(reader, harness.requested_fetches()[0][1])
    assert len(harness.requested_fetches()) == 1


def test_limits_can_be_set():
    harness = SchedulerHarness()
    harness.send_events(
        e.SettingChanged("file-source-max-transfers", 1), e.SettingChanged("worker-source-max-transfers", 1)
    )
    harness.declare_file("a", url=URL, peer_transfer=False)
    first, second, _third = readers(harness, 3, "a")
    assert harness.requested_fetches() == [(first, "a", URL)]
    harness.report_cached(first, "a")
    assert harness.requested_fetches() == [(second, "a", URL)]


def test_least_busy_holder_is_asked():
    """The least busy of the holders is asked."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.declare_file("other", size=LARGE, at_manager=True)
    first, second = readers(harness, 2)
    harness.report_cached(first, "data")
    harness.report_cached(second, "data")
    third = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    ((_, _, source),) = harness.requested_fetches()
    harness.connect_worker()
    harness.submit_tasks(single(2, "data"))
    ((_, _, another),) = harness.requested_fetches()
    assert {source, another} == {"host1:7", "host2:7"}
    assert third in harness.state.workers


# ---- what goes wrong


def test_after_a_failure_another_holder_is_asked():
    harness = SchedulerHarness()
    harness.declare_file("r1")
    harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE)
    harness.submit_tasks(single(2))
    second = harness.connect_worker()
    harness.submit_tasks(single(3, "r1"))
    harness.report_cached(second, "r1")
    third = harness.connect_worker()
    harness.submit_tasks(single(4, "r1"))
    ((_, _, source),) = harness.requested_fetches()
    harness.report_failed_fetch(third, "r1", source)
    ((_, _, another),) = harness.requested_fetches()
    assert {source, another} == {"host1:7", "host2:7"}
    assert "could not get r1 from" in harness.instructions_of(i.LogMessage)[0].text


def test_failed_pair_pauses_and_others_continue():
    """A pair that failed is left alone for a while and others are served."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    (first,) = readers(harness, 1)
    harness.report_cached(first, "data")
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    harness.report_failed_fetch(second, "data", "host1:7")
    assert harness.requested_fetches() == [(second, "data", "manager")]
    third = harness.connect_worker()
    harness.submit_tasks(single(2, "data"))
    assert harness.requested_fetches() == [(third, "data", "host1:7")]
    harness.declare_file("more", size=LARGE, at_manager=True)
    assert (harness.worker(second), harness.worker(first)) in harness.scheduler.transfers.excluded_pairs
    harness.advance_time(Tuning().transient_error_interval + 1)
    assert not harness.scheduler.transfers.excluded_pairs


def test_vanished_replica_is_removed_and_remade():
    """A replica that is gone is struck out and the file is made again."""
    harness = SchedulerHarness()
    harness.declare_file("r1")
    first = harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE)
    harness.submit_tasks(single(2))
    second = harness.connect_worker()
    harness.submit_tasks(single(3, "r1"))
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]
    harness.report_failed_fetch(second, "r1", "host1:7", gone=True)
    assert harness.replica_holders("r1") == set()
    assert harness.messages_sent(m.Cancel) == [(second, m.Cancel([3]))]
    assert harness.assignments() == {2: first, 1: second}
    harness.complete_task(1, size=LARGE)
    assert harness.assignments() == {2: first, 3: second}


def test_undeliverable_file_goes_through_manager():
    """A file that no peer can deliver goes through the manager."""
    harness = SchedulerHarness()
    harness.declare_file("r1")
    first = harness.connect_worker(port=0)
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE)
    harness.submit_tasks(single(2))
    second = harness.connect_worker()
    harness.submit_tasks(single(3, "r1"))
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    assert not harness.requested_fetches()
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert harness.requested_fetches() == [(second, "r1", "manager")]
    harness.report_cached(second, "r1")
    harness.complete_task(3)
    harness.complete_task(2)
    harness.send_events(e.FilesReleased(["r1"], prune=False))
    assert i.DropObject("r1") in harness.last_instructions


def test_unneeded_relayed_file_leaves_manager():
    """A relayed file that nobody needs any more does not stay at the manager."""
    harness = SchedulerHarness()
    harness.compute_graph(single(1), single(2, "r1"))
    harness.connect_worker(port=0)
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.FileRequested("r1"))
    harness.complete_task(2)
    harness.send_events(e.GraphClosed(1))
    assert harness.send_events(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")]


def test_disconnected_pair_is_served_by_manager():
    """A pair that cannot talk is helped by the manager."""
    harness = SchedulerHarness()
    harness.declare_file("r1")
    first = harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE)
    harness.submit_tasks(single(2))
    second = harness.connect_worker()
    harness.submit_tasks(single(3, "r1"))
    harness.report_failed_fetch(second, "r1", "host1:7")
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]


def test_isolated_worker_skips_further_peers():
    """A worker that reaches no peer does not have to try them all."""
    harness = SchedulerHarness()
    harness.declare_file("r1")
    harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE)
    harness.submit_tasks(single(2))
    for number in range(10, 30):
        worker = harness.connect_worker()
        harness.submit_tasks(single(number, "r1"))
        harness.report_cached(worker, "r1")
    poor = harness.connect_worker()
    harness.submit_tasks(single(99, "r1"))
    tries = 0
    while (poor, "r1", "manager") not in harness.requested_fetches(harness.log):
        tries += 1
        harness.report_failed_fetch(poor, "r1", "a peer")
        if harness.messages_sent(m.Upload):
            harness.send_events(e.ObjectStored("r1", LARGE))
    assert tries <= 4, "of twenty"


def test_failing_url_is_retried_then_abandoned():
    """An address that fails is tried again after a pause and given up after a few times."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    (worker,) = readers(harness, 1)
    tries = 1
    while not task_outcomes(harness):
        harness.report_failed_fetch(worker, "data", URL)
        assert not harness.requested_fetches(), "not at once"
        for _ in range(100):
            if harness.requested_fetches() or task_outcomes(harness):
                break
            harness.advance_time(0.25)
        tries += len(harness.requested_fetches())
    assert tries == MAX_FAILURES + 1
    (ended,) = (x for x in harness.log if isinstance(x, i.TaskFinished))
    assert ended.outcome == "input missing"
    assert URL in ended.info["reason"]
    assert "no route" in ended.info["reason"]


def test_failing_url_counts_for_all_workers():
    """A server that comes back within seconds fails nobody, however many workers it has failed meanwhile."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    readers(harness, 20)
    asked = harness.requested_fetches()
    while harness.now < 10:
        assert len(asked) <= 2, "two at a time"
        for worker, _name, _source in asked:
            harness.report_failed_fetch(worker, "data", URL)
        asked = harness.requested_fetches() or (harness.advance_time(0.25) and harness.requested_fetches())
        assert not task_outcomes(harness)
    while not asked:
        asked = harness.advance_time(0.25) and harness.requested_fetches()
    for worker, _name, _source in asked:
        harness.report_cached(worker, "data")
    assert len(harness.replica_holders("data")) == len(asked)
    assert not task_outcomes(harness)


def test_missing_url_fails_at_once():
    """An address that does not exist is given up at once."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    (worker,) = readers(harness, 1)
    harness.report_failed_fetch(worker, "data", URL, gone=True)
    assert task_outcomes(harness) == {100: "input missing"}


def test_working_url_survives_failures_of_one():
    """An address that works for others is not given up for the failures of one."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL, peer_transfer=False)
    (bad,) = readers(harness, 1)
    for number in range(200, 200 + 3 * MAX_FAILURES):
        harness.report_failed_fetch(bad, "data", URL)
        good = harness.connect_worker()
        harness.submit_tasks(single(number, "data"))
        assert harness.requested_fetches() == [(good, "data", URL)]
        harness.report_cached(good, "data")
        harness.advance_time(30.0)
        assert harness.requested_fetches() == [(bad, "data", URL)]
    assert not task_outcomes(harness)


def test_lost_worker_leaves_no_transfer():
    """The worker that was lost leaves no transfer behind."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    first, second = readers(harness, 2)
    harness.report_cached(first, "data")
    third, fourth = readers(harness, 2, first=300)
    assert harness.worker(first).outgoing + sources(harness.requested_fetches()).count("manager") == 2
    for worker in (second, third, fourth):
        harness.send_events(e.TasksCancelled(list(harness.assignments())))
        harness.disconnect_worker(worker)
    assert harness.worker(first).outgoing == 0
    assert not harness.scheduler.replicas.active_by_source
    assert not harness.scheduler.replicas.active_by_file_and_source
    assert not harness.file("data").fetching


def fetched_by_another(harness):
    """A worker that has made r1 and is busy, and another one that fetches it for task 2 of a run."""
    harness.compute_graph(single(1), single(2, "r1"))
    first = harness.connect_worker()
    harness.submit_tasks(single(50, priority=1.5))
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker()
    assert harness.assignments() == {50: first, 2: second}
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]
    return first, second


def test_finished_transfer_of_lost_source_counts():
    """A transfer from a lost worker that had ended well counts."""
    harness = SchedulerHarness()
    first, second = fetched_by_another(harness)
    harness.disconnect_worker(first)
    assert harness.task(2).missing_inputs == 1
    harness.report_cached(second, "r1")
    assert harness.replica_holders("r1") == {second}
    assert harness.task(2).missing_inputs == 0


def test_unneeded_arriving_replica_is_removed():
    """A copy that nobody needs any more is forgotten when it arrives."""
    harness = SchedulerHarness()
    _first, second = fetched_by_another(harness)
    harness.send_events(e.GraphClosed(1))
    assert harness.report_cached(second, "r1") == [i.Send(second, m.RemoveObjects(["r1"]))]


def test_stale_failure_does_not_end_transfer():
    """An old failure does not end a new transfer for good."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    (worker,) = readers(harness, 1)
    assert harness.worker_sends(worker, m.FetchFailed("unknown", "x", "y", False)) == []
    harness.report_cached(worker, "data")
    assert harness.report_failed_fetch(worker, "data", URL) == []
    assert harness.replica_holders("data") == {worker}
    assert harness.report_cached(worker, "data") == []


def test_forgotten_and_needed_file_arrives_later():
    """What is forgotten and needed in one breath arrives after it was forgotten."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=10, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    harness.send_events(
        e.MessageReceived(worker, m.TaskDone(1, 10, 0.1, {}, b"")),
        e.FilesReleased(["data"], prune=True),
        e.TasksSubmitted([single(2, "data")]),
    )
    order = [
        type(x).__name__ if isinstance(x, i.SendObject) else type(x.message).__name__
        for x in harness.last_instructions
        if isinstance(x, (i.SendObject, i.Send))
    ]
    assert order == ["PurgeObjects", "RemoveObjects", "SendObject", "RunTask"]


def test_stalled_workers_do_not_block_others():
    """Workers that get nowhere do not keep others from their turn."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    workers = readers(harness, 12)
    poor, others = workers[:4], set(workers[4:])
    for _ in range(12):
        for worker, name, source in [
            (w.id, "data", str(s)) for w, s in harness.file("data").fetching.items()
        ]:
            if worker in poor:
                harness.report_failed_fetch(worker, name, source)
            else:
                harness.report_cached(worker, name)
    assert harness.replica_holders("data") == others


def test_unobtainable_file_ends_graph():
    """A file that cannot be had ends the run that needs it."""
    harness = SchedulerHarness()
    harness.install_library()
    harness.declare_file("data", url=URL)
    worker = harness.connect_worker()
    harness.compute_graph(call(1, "data"), call(2))
    harness.report_failed_fetch(worker, "data", URL, gone=True)
    assert graph_outcomes(harness) == {1: "input missing"}
    assert harness.worker(worker).libraries["lib"].idle


def test_unobtainable_shared_object_fails_tasks():
    """A shared object that cannot be had fails those that share it."""
    harness = SchedulerHarness()
    harness.declare_file("function", size=LARGE, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, shared=("function",)), single(2))
    harness.report_failed_fetch(worker, "function", "manager", gone=True)
    assert task_outcomes(harness) == {1: "input missing"}
    assert harness.assignments() == {2: worker}


# ---- what is altered on its way


def altered(harness, worker, name, source):
    return harness.worker_sends(
        worker, m.FetchFailed(name, source, "it was altered", permanent=False, corrupt=True)
    )


def made(harness, *readers, digest="d1"):
    """The result r1 on worker 1, which is busy, and workers that fetch it; gives their numbers."""
    harness.declare_file("r1")
    harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.complete_task(1, size=LARGE, digest=digest)
    harness.submit_tasks(single(2))
    workers = []
    for number in readers:
        workers.append(harness.connect_worker())
        harness.submit_tasks(single(number, "r1", retries=50))
    return workers


def test_receiver_is_told_digest_of_source():
    """A receiver is told the digest of the copy that it is sent to."""
    harness = SchedulerHarness()
    (second,) = made(harness, 3)
    assert harness.messages_sent(m.Fetch) == [
        (second, m.Fetch("r1", LARGE, "host1:7", False, digest="d1", source_worker=1))
    ]


def test_replica_has_digest_of_receiver():
    """A copy has the digest that its receiver has computed."""
    harness = SchedulerHarness()
    harness.declare_file("data", url=URL)
    (first,) = readers(harness, 1)
    assert harness.messages_sent(m.Fetch) == [(first, m.Fetch("data", -1, URL, False, digest=""))]
    harness.worker_sends(first, m.Cached("data", LARGE, "d1"))
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.messages_sent(m.Fetch) == [
        (second, m.Fetch("data", LARGE, "host1:7", False, digest="d1", source_worker=1))
    ]


def test_manager_copy_is_verified_by_declaration():
    """What the manager has is checked by what it was when it was declared or brought."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True, digest="declared")
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    assert harness.messages_sent(m.Fetch) == [
        (worker, m.Fetch("data", LARGE, "manager", False, digest="declared"))
    ]
    harness.declare_file("r2", peer_transfer=False)
    harness.complete_task(1)
    harness.submit_tasks(single(2, peer_transfer=False))
    harness.complete_task(2, size=LARGE, digest="made")
    harness.send_events(e.FileRequested("r2"))
    assert harness.messages_sent(m.Upload) == [(worker, m.Upload("r2", "made"))]
    harness.send_events(e.ObjectStored("r2", LARGE, "made"))
    harness.submit_tasks(single(3))
    other = harness.connect_worker()
    harness.submit_tasks(single(4, "r2"))
    assert harness.messages_sent(m.Fetch) == [(other, m.Fetch("r2", LARGE, "manager", False, digest="made"))]


def test_outputs_beside_the_result_have_digests_too():
    harness = SchedulerHarness()
    harness.declare_file("out")
    harness.connect_worker()
    harness.submit_tasks(single(1, outputs=("out",)))
    harness.complete_task(1, outputs={"out": LARGE}, digests={"out": "d2"})
    harness.submit_tasks(single(2))
    second = harness.connect_worker()
    harness.submit_tasks(single(3, "out"))
    assert harness.messages_sent(m.Fetch) == [
        (second, m.Fetch("out", LARGE, "host1:7", False, digest="d2", source_worker=1))
    ]


def test_remade_result_may_have_other_digest():
    """A result that is made again may have another digest and each copy keeps its own."""
    harness = SchedulerHarness()
    harness.declare_file("other")
    second, third = made(harness, 3, 4)
    harness.worker_sends(second, m.Cached("r1", LARGE, "d1"))
    harness.scheduler.replicas.add_output(harness.worker(1), harness.file("r1"), "d2")
    copies = {worker.id: digest for worker, digest in harness.file("r1").replicas.items()}
    assert copies == {1: "d2", second: "d1"}
    assert third in {worker.id for worker in harness.file("r1").fetching}


def test_once_corrupt_replica_is_fetched_elsewhere():
    """A copy that arrives altered once is tried elsewhere and stays."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    harness.worker_sends(second, m.Cached("r1", LARGE, "d1"))
    altered(harness, third, "r1", "host1:7")
    assert harness.messages_sent(m.Fetch) == [
        (third, m.Fetch("r1", LARGE, "host2:7", False, digest="d1", source_worker=2))
    ]
    assert harness.replica_holders("r1") == {1, second}
    assert "it was altered" in harness.instructions_of(i.LogMessage)[0].text


def test_twice_corrupt_replica_counts_as_lost():
    """A copy that arrives altered twice counts as lost."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    assert harness.replica_holders("r1") == {1}
    altered(harness, second, "r1", "host1:7")
    assert harness.replica_holders("r1") == {1}
    altered(harness, third, "r1", "host1:7")
    assert harness.replica_holders("r1") == set()
    assert (1, "r1") in harness.removed_objects(), "it would be found there by tasks"
    assert any("counts as lost" in note.text for note in harness.instructions_of(i.LogMessage))
    assert harness.state_of(1) == "assigned", "it is made again"


def test_new_replica_is_not_blamed():
    """A copy that comes anew is not blamed for the one before."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    altered(harness, second, "r1", "host1:7")
    file, first = harness.file("r1"), harness.worker(1)
    assert first.corrupt == {file}
    harness.scheduler.replicas.add_output(first, file, "d3")
    assert not first.corrupt
    assert third


def test_corrupt_upload_counts_as_lost_once():
    """The copy that arrives altered at the manager counts as lost at once."""
    harness = SchedulerHarness()
    (second,) = made(harness, 3)
    altered(harness, second, "r1", "host1:7")
    assert harness.messages_sent(m.Upload) == [(1, m.Upload("r1", "d1"))], "the manager has a look"
    harness.worker_sends(1, m.UploadFailed("r1", "it was altered"))
    assert harness.replica_holders("r1") == set()
    harness.complete_task(1, size=LARGE, digest="d2")
    assert "d2" in harness.file("r1").replicas.values()


# ---- what is compared after it has come


def came(harness, worker, name="r1", digest="d1"):
    """All of a file is on a worker."""
    return harness.worker_sends(worker, m.Cached(name, LARGE, digest, verified=False))


def wrong(harness, worker, name="r1", source="host1:7"):
    """What came there is not what it should be."""
    failed = m.FetchFailed(name, source, "it was altered", permanent=False, corrupt=True, was_cached=True)
    return harness.worker_sends(worker, failed)


def test_unverified_replica_serves_peers():
    """A copy counts and serves others before it is compared."""
    harness = SchedulerHarness()
    second, third, fourth, fifth = made(harness, 3, 4, 5, 6)
    assert {worker for worker, _fetch in harness.messages_sent(m.Fetch, harness.log)} == {second, third}
    came(harness, second)
    assert harness.replica_holders("r1") == {1, second}
    assert harness.worker(1).outgoing == 2, "the place at the source is free, and taken again"
    assert sorted(harness.requested_fetches()) == [(fourth, "r1", "host2:7"), (fifth, "r1", "host1:7")]
    harness.worker_sends(second, m.Verified("r1"))
    assert not harness.worker(second).unverified


def test_corrupt_unverified_replica_is_replaced():
    """A copy that turns out to be altered is lost and comes from elsewhere."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    came(harness, second)
    harness.worker_sends(second, m.Verified("r1"))
    came(harness, third)
    assert harness.replica_holders("r1") == {1, second, third}
    wrong(harness, third)
    assert harness.replica_holders("r1") == {1, second}
    assert harness.messages_sent(m.Fetch) == [
        (third, m.Fetch("r1", LARGE, "host2:7", False, digest="d1", source_worker=2))
    ]
    assert (harness.worker(1).failed_reader, harness.worker(1).corrupt) == (third, {harness.file("r1")})
    assert "it was altered" in harness.instructions_of(i.LogMessage)[0].text


def test_replica_corrupt_everywhere_is_made_again():
    """A copy that is altered wherever it comes counts as lost and is made again."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    came(harness, second)
    came(harness, third)
    wrong(harness, second)
    assert harness.replica_holders("r1") == {1, third}
    wrong(harness, third)
    assert harness.replica_holders("r1") == set()
    assert harness.state_of(1) == "assigned", "it is made again"
    harness.complete_task(1, size=LARGE, digest="d2")
    assert {fetch.digest for _worker, fetch in harness.messages_sent(m.Fetch)} == {"d2"}


def test_sole_corrupt_replica_is_made_again():
    """An altered copy that was the only one is made again."""
    harness = SchedulerHarness()
    (second,) = made(harness, 3)
    came(harness, second)
    harness.disconnect_worker(1)
    harness.connect_worker()
    assert harness.replica_holders("r1") == {second}
    wrong(harness, second)
    assert harness.replica_holders("r1") == set()
    assert harness.state_of(1) == "assigned"


def test_relay_of_corrupt_replica_is_not_blamed():
    """Who passed on what came altered is not blamed."""
    harness = SchedulerHarness()
    second, *_others = made(harness, 3, 4, 5, 6, 7)
    came(harness, second)
    served = [worker for worker, _name, source in harness.requested_fetches() if source == "host2:7"]
    assert len(served) == 2
    altered(harness, served[0], "r1", "host2:7")
    wrong(harness, second)
    altered(harness, served[1], "r1", "host2:7")
    assert harness.worker(second).failed_reader == 0
    assert not any("nobody asks" in note.text for note in harness.instructions_of(i.LogMessage, harness.log))
    assert harness.worker(1).failed_reader == second


def test_verified_replicas_only_serve_after_corruption():
    """Where copies come altered only those that are compared serve."""
    harness = SchedulerHarness()
    second, third, fourth = made(harness, 3, 4, 5)
    came(harness, second)
    assert {worker.id for worker in harness.file("r1").fetching} == {third, fourth}
    altered(harness, third, "r1", "host1:7")
    assert (third, "r1", "host2:7") not in harness.requested_fetches()
    harness.worker_sends(second, m.Verified("r1"))
    assert (third, "r1", "host2:7") in harness.requested_fetches(), "what came is right: it is a source now"


def test_manager_with_corrupt_copy_is_abandoned():
    """The manager is given up if what it has comes altered again and again."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True, digest="declared")
    (worker,) = readers(harness, 1)
    for _ in range(MAX_FAILURES + 1):
        assert not task_outcomes(harness)
        harness.advance_time(Tuning().transient_error_interval + 1)
        assert worker in {w.id for w in harness.file("data").fetching}
        came(harness, worker, "data", "declared")
        wrong(harness, worker, "data", "manager")
    assert task_outcomes(harness) == {100: "input missing"}


def test_verification_after_pruning_is_ignored():
    """A comparison that ends after the copy was pruned is no news."""
    harness = SchedulerHarness()
    (second,) = made(harness, 3)
    came(harness, second)
    harness.scheduler.eviction.drop_replica(harness.worker(second), harness.file("r1"))
    harness.scheduler.transfers.request_copy(harness.worker(second), harness.file("r1"))
    assert harness.file("r1").fetching
    wrong(harness, second)
    assert not harness.instructions_of(i.LogMessage)
    assert harness.file("r1").fetching, "the copy that is on its way is another one"
    harness.worker_sends(second, m.Verified("r1"))
    came(harness, second)
    assert harness.worker(second).unverified == {harness.file("r1"): harness.worker(1)}


def test_upload_of_corrupt_replica_moves_on():
    """The upload of a copy that turns out to be altered is asked of another one."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    came(harness, second)
    came(harness, third)
    harness.disconnect_worker(1)
    harness.send_events(e.FileRequested("r1"))
    assert harness.messages_sent(m.Upload) == [(second, m.Upload("r1", "d1"))]
    wrong(harness, second)
    assert harness.messages_sent(m.Upload) == [(third, m.Upload("r1", "d1"))]
    harness.worker_sends(second, m.UploadFailed("r1", "it was altered"))
    assert harness.replica_holders("r1") == {third}


def test_verified_transfer_restores_source():
    """A source has its good name back when what came from it is compared."""
    harness = SchedulerHarness()
    second, third = made(harness, 3, 4)
    harness.report_failed_fetch(third, "r1", "host1:7")
    came(harness, second)
    assert harness.worker(1).failed_reader == third
    harness.worker_sends(second, m.Verified("r1"))
    assert harness.worker(1).failed_reader == 0


def test_source_failing_two_workers_is_paused():
    """A worker that fails two others is left alone by all for a while."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    first, second, third, fourth = readers(harness, 4)
    harness.report_cached(first, "data")
    assert {worker for worker, _, source in harness.requested_fetches() if source == "host1:7"} == {
        third,
        fourth,
    }
    harness.report_failed_fetch(third, "data", "host1:7")
    assert not any("nobody asks" in note.text for note in harness.instructions_of(i.LogMessage)), (
        "it may be the receiver"
    )
    harness.report_failed_fetch(fourth, "data", "host1:7")
    assert any("nobody asks worker 1 on host1" in note.text for note in harness.instructions_of(i.LogMessage))
    fifth = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    for worker in (second, third, fourth, fifth):
        harness.report_cached(worker, "data")
    assert "host1:7" not in sources(harness.requested_fetches(harness.log))[4:]
    harness.advance_time(PEER_BACKOFF_S + 1)
    for worker in (second, third, fourth, fifth):
        harness.disconnect_worker(worker)
    assert harness.replica_holders("data") == {first}
    sixth = harness.connect_worker()
    assert harness.requested_fetches() == [(sixth, "data", "host1:7")]


def test_single_receiver_excludes_no_source():
    """One receiver alone gives nobody a bad name."""
    harness = SchedulerHarness()
    for number in range(1, 6):
        harness.declare_file(f"r{number}")
    harness.connect_worker(cores=5)
    harness.submit_tasks(*(single(n) for n in range(1, 6)))
    for number in range(1, 6):
        harness.complete_task(number, size=LARGE)
    harness.submit_tasks(*(single(n) for n in range(900, 905)))
    poor = harness.connect_worker(cores=5)
    harness.submit_tasks(*(single(100 + n, f"r{n}") for n in range(1, 6)))
    for _worker, name, source in harness.requested_fetches():
        harness.report_failed_fetch(poor, name, source)
    assert harness.worker(1).excluded_until == 0.0


def test_spreading_peers_spare_the_origin():
    """While peers are spreading a file its origin is left in peace."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    first, _second, *others = readers(harness, 8)
    harness.report_cached(first, "data")
    assert sources(harness.requested_fetches()) == ["host1:7"] * MAX_TRANSFERS_PER_SOURCE_AND_FILE
    harness.report_cached(others[0], "data")
    assert "manager" not in sources(harness.requested_fetches())


def test_origin_is_asked_after_peers_fail():
    """An origin is asked again when no peer can deliver."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    first, second, third, fourth = readers(harness, 4)
    harness.report_cached(first, "data")
    harness.report_cached(second, "data")
    harness.disconnect_worker(second)
    for worker in (third, fourth):
        harness.report_failed_fetch(worker, "data", "host1:7")
    sent = [
        source for worker, _, source in harness.requested_fetches(harness.log) if worker in (third, fourth)
    ]
    assert "manager" in sent
