"""Who gets a file from whom, and when."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings, outcomes, single
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.transfer_failures import MAX_FAILURES
from vinecore.scheduler.transfers import (
    MAX_TRANSFERS_PER_SOURCE,
    MAX_TRANSFERS_PER_SOURCE_AND_FILE,
    PAIR_BACKOFF_S,
    PEER_BACKOFF_S,
)

URL = "https://example.org/x"


def readers(vine, count, name="data", first=100, **worker):
    """Workers that each get a task that reads a file; gives their numbers."""
    workers = [vine.join(**worker) for _ in range(count)]
    vine.submit(*(single(n, name, retries=50) for n in range(first, first + count)))
    return workers


def sources(out):
    return [source for _worker, _name, source in out]


# ---- what travels how


def test_a_small_object_rides_with_the_messages():
    vine = Vine()
    vine.declare("data", size=INLINE_LIMIT, at_manager=True)
    worker = vine.join()
    vine.submit(single(1, "data"))
    assert vine.out[0] == i.SendObject(worker, "data")
    assert vine.holders("data") == {worker}


def test_a_large_object_is_fetched():
    vine = Vine()
    vine.declare("data", size=INLINE_LIMIT + 1, at_manager=True)
    worker = vine.join()
    vine.submit(single(1, "data"))
    assert vine.sent(m.Fetch) == [(worker, m.Fetch("data", INLINE_LIMIT + 1, "manager", False))]
    assert vine.holders("data") == set()
    vine.cached(worker, "data", INLINE_LIMIT + 1)
    assert vine.holders("data") == {worker}
    assert vine.mind.tables.moved_bytes == INLINE_LIMIT + 1


def test_a_directory_is_fetched_however_small_it_is():
    vine = Vine()
    vine.declare("data", size=10, at_manager=True, directory=True)
    worker = vine.join()
    vine.submit(single(1, "data"))
    assert vine.sent(m.Fetch) == [(worker, m.Fetch("data", 10, "manager", True))]


def test_an_object_travels_to_a_worker_once():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    vine.declare("small", size=10, at_manager=True)
    worker = vine.join(cores=4)
    vine.submit(*(single(n, "data", shared=("small",)) for n in range(1, 5)))
    assert len(vine.fetches()) == 1
    assert vine.told(i.SendObject) == [i.SendObject(worker, "small")]


def test_an_address_outside_is_fetched_by_the_worker_itself_and_its_size_is_learned():
    vine = Vine()
    vine.declare("data", url=URL)
    worker = vine.join()
    vine.submit(single(1, "data"))
    assert vine.sent(m.Fetch) == [(worker, m.Fetch("data", -1, URL, False))]
    vine.cached(worker, "data", 12345)
    assert vine.file("data").size == 12345


def test_a_file_comes_before_the_task_that_reads_it():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    vine.join()
    vine.submit(single(1, "data"))
    assert [type(x.message).__name__ for x in vine.told(i.Send)] == ["Fetch", "RunTask"]


def test_an_archive_is_brought_and_unpacked():
    vine = Vine()
    vine.declare("archive", size=LARGE, at_manager=True)
    vine.declare("folder", archive="archive", directory=True)
    worker = vine.join()
    vine.submit(single(1, "folder"))
    assert vine.fetches() == [(worker, "archive", "manager")]
    assert vine.sent(m.Unpack) == [(worker, m.Unpack("folder", "archive"))]


def test_an_archive_that_a_task_makes_is_waited_for():
    vine = Vine()
    vine.declare("r1")
    vine.declare("folder", archive="r1", directory=True)
    first = vine.join()
    vine.submit(single(1), single(2, "folder"))
    assert not vine.sent(m.Unpack)
    vine.done(1, size=LARGE)
    assert vine.sent(m.Unpack) == [(first, m.Unpack("folder", "r1"))]
    assert vine.where() == {2: first}


def test_an_archive_that_could_not_be_brought_is_brought_again():
    vine = Vine()
    vine.declare("archive", url=URL)
    vine.declare("folder", archive="archive", directory=True)
    worker = vine.join()
    vine.submit(single(1, "folder"))
    vine.fetch_failed(worker, "archive", URL)
    vine.tick()
    assert vine.fetches() == [(worker, "archive", URL)]
    assert not vine.sent(m.Unpack), "it still waits there for its archive"


def test_what_is_no_archive_fails_who_needs_it():
    vine = Vine()
    vine.declare("archive", size=LARGE, at_manager=True)
    vine.declare("folder", archive="archive", directory=True)
    worker = vine.join()
    vine.submit(single(1, "folder"))
    vine.cached(worker, "archive")
    for _ in range(MAX_FAILURES + 1):
        assert not outcomes(vine)
        vine.say(worker, m.FetchFailed("folder", "archive", "not an archive that can be unpacked", False))
    (ended,) = vine.told(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "not an archive" in ended.info["reason"]


# ---- from whom


def test_peers_come_before_the_manager():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    (first,) = readers(vine, 1)
    vine.cached(first, "data")
    second = vine.join()
    vine.submit(single(1, "data"))
    assert vine.fetches() == [(second, "data", "host1:7")]


def test_a_worker_that_nobody_can_reach_is_no_source():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    (first,) = readers(vine, 1, port=0)
    vine.cached(first, "data")
    second = vine.join()
    vine.submit(single(1, "data"))
    assert vine.fetches() == [(second, "data", "manager")]


@pytest.mark.parametrize("how", ["file", "everywhere"])
def test_peers_are_not_asked_where_that_is_not_wanted(how):
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True, peer_transfer=how != "file")
    if how == "everywhere":
        vine.feed(e.SettingChanged("peer-transfers", False))
    (first,) = readers(vine, 1)
    vine.cached(first, "data")
    second = vine.join()
    vine.submit(single(1, "data"))
    assert vine.fetches() == [(second, "data", "manager")]


def test_one_source_sends_a_file_to_a_few_at_a_time():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    readers(vine, 10)
    assert len(vine.fetches()) == MAX_TRANSFERS_PER_SOURCE_AND_FILE == 2


def test_a_popular_file_spreads_as_a_tree_that_doubles():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    readers(vine, 100)
    rounds = []
    under_way = vine.fetches()
    while under_way:
        rounds.append(len(under_way))
        under_way = [
            f for worker, name, _ in under_way for f in (vine.cached(worker, name), vine.fetches())[1]
        ]
    assert sum(rounds) == 100
    assert rounds[:4] == [2, 4, 12, 36], "every holder serves two at a time, the manager at the beginning"
    assert sources(vine.fetches(vine.log)).count("manager") == 2


def test_one_source_serves_a_bounded_number_of_transfers():
    vine = Vine()
    for number in range(1, 31):
        vine.declare(f"r{number}")
    maker = vine.join(cores=30)
    vine.submit(*(single(n) for n in range(1, 31)))
    for number in range(1, 31):
        vine.done(number, size=LARGE)
    vine.submit(*(single(n) for n in range(900, 930)))
    reader = vine.join(cores=30)
    vine.submit(*(single(100 + n, f"r{n}") for n in range(1, 31)))
    assert len(vine.fetches()) == MAX_TRANSFERS_PER_SOURCE == vine.worker(maker).outgoing
    vine.cached(reader, vine.fetches()[0][1])
    assert len(vine.fetches()) == 1


def test_limits_can_be_set():
    vine = Vine()
    vine.feed(
        e.SettingChanged("file-source-max-transfers", 1), e.SettingChanged("worker-source-max-transfers", 1)
    )
    vine.declare("a", url=URL, peer_transfer=False)
    first, second, _third = readers(vine, 3, "a")
    assert vine.fetches() == [(first, "a", URL)]
    vine.cached(first, "a")
    assert vine.fetches() == [(second, "a", URL)]


def test_the_least_busy_of_the_holders_is_asked():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    vine.declare("other", size=LARGE, at_manager=True)
    first, second = readers(vine, 2)
    vine.cached(first, "data")
    vine.cached(second, "data")
    third = vine.join()
    vine.submit(single(1, "data"))
    ((_, _, source),) = vine.fetches()
    vine.join()
    vine.submit(single(2, "data"))
    ((_, _, another),) = vine.fetches()
    assert {source, another} == {"host1:7", "host2:7"}
    assert third in vine.tables.workers


# ---- what goes wrong


def test_after_a_failure_another_holder_is_asked():
    vine = Vine()
    vine.declare("r1")
    vine.join()
    vine.submit(single(1))
    vine.done(1, size=LARGE)
    vine.submit(single(2))
    second = vine.join()
    vine.submit(single(3, "r1"))
    vine.cached(second, "r1")
    third = vine.join()
    vine.submit(single(4, "r1"))
    ((_, _, source),) = vine.fetches()
    vine.fetch_failed(third, "r1", source)
    ((_, _, another),) = vine.fetches()
    assert {source, another} == {"host1:7", "host2:7"}
    assert "could not get r1 from" in vine.told(i.LogMessage)[0].text


def test_a_pair_that_failed_is_left_alone_for_a_while_and_others_are_served():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    (first,) = readers(vine, 1)
    vine.cached(first, "data")
    second = vine.join()
    vine.submit(single(1, "data"))
    vine.fetch_failed(second, "data", "host1:7")
    assert vine.fetches() == [(second, "data", "manager")]
    third = vine.join()
    vine.submit(single(2, "data"))
    assert vine.fetches() == [(third, "data", "host1:7")]
    vine.declare("more", size=LARGE, at_manager=True)
    assert (vine.worker(second), vine.worker(first)) in vine.mind.transfers.excluded_pairs
    vine.tick(PAIR_BACKOFF_S + 1)
    assert not vine.mind.transfers.excluded_pairs


def test_a_replica_that_is_gone_is_struck_out_and_the_file_is_made_again():
    vine = Vine()
    vine.declare("r1")
    first = vine.join()
    vine.submit(single(1))
    vine.done(1, size=LARGE)
    vine.submit(single(2))
    second = vine.join()
    vine.submit(single(3, "r1"))
    assert vine.fetches() == [(second, "r1", "host1:7")]
    vine.fetch_failed(second, "r1", "host1:7", gone=True)
    assert vine.holders("r1") == set()
    assert vine.sent(m.Cancel) == [(second, m.Cancel([3]))]
    assert vine.where() == {2: first, 1: second}
    vine.done(1, size=LARGE)
    assert vine.where() == {2: first, 3: second}


def test_a_file_that_no_peer_can_deliver_goes_through_the_manager():
    vine = Vine()
    vine.declare("r1")
    first = vine.join(port=0)
    vine.submit(single(1))
    vine.done(1, size=LARGE)
    vine.submit(single(2))
    second = vine.join()
    vine.submit(single(3, "r1"))
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]
    assert not vine.fetches()
    vine.feed(e.ObjectStored("r1", LARGE))
    assert vine.fetches() == [(second, "r1", "manager")]
    vine.cached(second, "r1")
    vine.done(3)
    vine.done(2)
    vine.feed(e.FilesReleased(["r1"], prune=False))
    assert i.DropObject("r1") in vine.out


def test_a_relayed_file_that_nobody_needs_any_more_does_not_stay_at_the_manager():
    vine = Vine()
    vine.compute(single(1), single(2, "r1"))
    vine.join(port=0)
    vine.done(1, size=LARGE)
    vine.feed(e.FileRequested("r1"))
    vine.done(2)
    vine.feed(e.GraphClosed(1))
    assert vine.feed(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")]


def test_a_pair_that_cannot_talk_is_helped_by_the_manager():
    vine = Vine()
    vine.declare("r1")
    first = vine.join()
    vine.submit(single(1))
    vine.done(1, size=LARGE)
    vine.submit(single(2))
    second = vine.join()
    vine.submit(single(3, "r1"))
    vine.fetch_failed(second, "r1", "host1:7")
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]


def test_a_worker_that_reaches_no_peer_does_not_have_to_try_them_all():
    vine = Vine()
    vine.declare("r1")
    vine.join()
    vine.submit(single(1))
    vine.done(1, size=LARGE)
    vine.submit(single(2))
    for number in range(10, 30):
        worker = vine.join()
        vine.submit(single(number, "r1"))
        vine.cached(worker, "r1")
    poor = vine.join()
    vine.submit(single(99, "r1"))
    tries = 0
    while (poor, "r1", "manager") not in vine.fetches(vine.log):
        tries += 1
        vine.fetch_failed(poor, "r1", "a peer")
        if vine.sent(m.Upload):
            vine.feed(e.ObjectStored("r1", LARGE))
    assert tries <= 4, "of twenty"


def test_an_address_that_fails_is_tried_again_after_a_pause_and_given_up_after_a_few_times():
    vine = Vine()
    vine.declare("data", url=URL)
    (worker,) = readers(vine, 1)
    tries = 1
    while not outcomes(vine):
        vine.fetch_failed(worker, "data", URL)
        assert not vine.fetches(), "not at once"
        for _ in range(100):
            if vine.fetches() or outcomes(vine):
                break
            vine.tick(0.25)
        tries += len(vine.fetches())
    assert tries == MAX_FAILURES + 1
    (ended,) = (x for x in vine.log if isinstance(x, i.TaskFinished))
    assert ended.outcome == "input missing"
    assert URL in ended.info["reason"]
    assert "no route" in ended.info["reason"]


def test_an_address_that_is_down_is_down_for_all_workers_and_is_given_up_as_late():
    """A server that comes back within seconds fails nobody, however many workers it has failed meanwhile."""
    vine = Vine()
    vine.declare("data", url=URL)
    readers(vine, 20)
    asked = vine.fetches()
    while vine.now < 10:
        assert len(asked) <= 2, "two at a time"
        for worker, _name, _source in asked:
            vine.fetch_failed(worker, "data", URL)
        asked = vine.fetches() or (vine.tick(0.25) and vine.fetches())
        assert not outcomes(vine)
    while not asked:
        asked = vine.tick(0.25) and vine.fetches()
    for worker, _name, _source in asked:
        vine.cached(worker, "data")
    assert len(vine.holders("data")) == len(asked)
    assert not outcomes(vine)


def test_an_address_that_does_not_exist_is_given_up_at_once():
    vine = Vine()
    vine.declare("data", url=URL)
    (worker,) = readers(vine, 1)
    vine.fetch_failed(worker, "data", URL, gone=True)
    assert outcomes(vine) == {100: "input missing"}


def test_an_address_that_works_for_others_is_not_given_up_for_the_failures_of_one():
    vine = Vine()
    vine.declare("data", url=URL, peer_transfer=False)
    (bad,) = readers(vine, 1)
    for number in range(200, 200 + 3 * MAX_FAILURES):
        vine.fetch_failed(bad, "data", URL)
        good = vine.join()
        vine.submit(single(number, "data"))
        assert vine.fetches() == [(good, "data", URL)]
        vine.cached(good, "data")
        vine.tick(30.0)
        assert vine.fetches() == [(bad, "data", URL)]
    assert not outcomes(vine)


def test_the_worker_that_was_lost_leaves_no_transfer_behind():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    first, second = readers(vine, 2)
    vine.cached(first, "data")
    third, fourth = readers(vine, 2, first=300)
    assert vine.worker(first).outgoing + sources(vine.fetches()).count("manager") == 2
    for worker in (second, third, fourth):
        vine.feed(e.TasksCancelled(list(vine.where())))
        vine.lose(worker)
    assert vine.worker(first).outgoing == 0
    assert not vine.mind.replicas.active_by_source
    assert not vine.mind.replicas.active_by_file_and_source
    assert not vine.file("data").fetching


def fetched_by_another(vine):
    """A worker that has made r1 and is busy, and another one that fetches it for task 2 of a run."""
    vine.compute(single(1), single(2, "r1"))
    first = vine.join()
    vine.submit(single(50, priority=1.5))
    vine.done(1, size=LARGE)
    second = vine.join()
    assert vine.where() == {50: first, 2: second}
    assert vine.fetches() == [(second, "r1", "host1:7")]
    return first, second


def test_a_transfer_from_a_lost_worker_that_had_ended_well_counts():
    vine = Vine()
    first, second = fetched_by_another(vine)
    vine.lose(first)
    assert vine.task(2).missing_inputs == 1
    vine.cached(second, "r1")
    assert vine.holders("r1") == {second}
    assert vine.task(2).missing_inputs == 0


def test_a_copy_that_nobody_needs_any_more_is_forgotten_when_it_arrives():
    vine = Vine()
    _first, second = fetched_by_another(vine)
    vine.feed(e.GraphClosed(1))
    assert vine.cached(second, "r1") == [i.Send(second, m.RemoveObjects(["r1"]))]


def test_an_old_failure_does_not_end_a_new_transfer_for_good():
    vine = Vine()
    vine.declare("data", url=URL)
    (worker,) = readers(vine, 1)
    assert vine.say(worker, m.FetchFailed("unknown", "x", "y", False)) == []
    vine.cached(worker, "data")
    assert vine.fetch_failed(worker, "data", URL) == []
    assert vine.holders("data") == {worker}
    assert vine.cached(worker, "data") == []


def test_what_is_forgotten_and_needed_in_one_breath_arrives_after_it_was_forgotten():
    vine = Vine()
    vine.declare("data", size=10, at_manager=True)
    worker = vine.join()
    vine.submit(single(1, "data"))
    vine.feed(
        e.MessageReceived(worker, m.TaskDone(1, 10, 0.1, {}, b"")),
        e.FilesReleased(["data"], prune=True),
        e.TasksSubmitted([single(2, "data")]),
    )
    order = [
        type(x).__name__ if isinstance(x, i.SendObject) else type(x.message).__name__
        for x in vine.out
        if isinstance(x, (i.SendObject, i.Send))
    ]
    assert order == ["PurgeObjects", "RemoveObjects", "SendObject", "RunTask"]


def test_workers_that_get_nowhere_do_not_keep_others_from_their_turn():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    workers = readers(vine, 12)
    poor, others = workers[:4], set(workers[4:])
    for _ in range(12):
        for worker, name, source in [(w.id, "data", str(s)) for w, s in vine.file("data").fetching.items()]:
            if worker in poor:
                vine.fetch_failed(worker, name, source)
            else:
                vine.cached(worker, name)
    assert vine.holders("data") == others


def test_a_file_that_cannot_be_had_ends_the_run_that_needs_it():
    vine = Vine()
    vine.library()
    vine.declare("data", url=URL)
    worker = vine.join()
    vine.compute(call(1, "data"), call(2))
    vine.fetch_failed(worker, "data", URL, gone=True)
    assert endings(vine) == {1: "input missing"}
    assert vine.worker(worker).libraries["lib"].idle


def test_a_shared_object_that_cannot_be_had_fails_those_that_share_it():
    vine = Vine()
    vine.declare("function", size=LARGE, at_manager=True)
    worker = vine.join()
    vine.submit(single(1, shared=("function",)), single(2))
    vine.fetch_failed(worker, "function", "manager", gone=True)
    assert outcomes(vine) == {1: "input missing"}
    assert vine.where() == {2: worker}


# ---- what is altered on its way


def altered(vine, worker, name, source):
    return vine.say(worker, m.FetchFailed(name, source, "it was altered", permanent=False, corrupt=True))


def made(vine, *readers, digest="d1"):
    """The result r1 on worker 1, which is busy, and workers that fetch it; gives their numbers."""
    vine.declare("r1")
    vine.join()
    vine.submit(single(1))
    vine.done(1, size=LARGE, digest=digest)
    vine.submit(single(2))
    workers = []
    for number in readers:
        workers.append(vine.join())
        vine.submit(single(number, "r1", retries=50))
    return workers


def test_a_receiver_is_told_the_digest_of_the_copy_that_it_is_sent_to():
    vine = Vine()
    (second,) = made(vine, 3)
    assert vine.sent(m.Fetch) == [
        (second, m.Fetch("r1", LARGE, "host1:7", False, digest="d1", source_worker=1))
    ]


def test_a_copy_has_the_digest_that_its_receiver_has_computed():
    vine = Vine()
    vine.declare("data", url=URL)
    (first,) = readers(vine, 1)
    assert vine.sent(m.Fetch) == [(first, m.Fetch("data", -1, URL, False, digest=""))]
    vine.say(first, m.Cached("data", LARGE, "d1"))
    second = vine.join()
    vine.submit(single(1, "data"))
    assert vine.sent(m.Fetch) == [
        (second, m.Fetch("data", LARGE, "host1:7", False, digest="d1", source_worker=1))
    ]


def test_what_the_manager_has_is_checked_by_what_it_was_when_it_was_declared_or_brought():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True, digest="declared")
    worker = vine.join()
    vine.submit(single(1, "data"))
    assert vine.sent(m.Fetch) == [(worker, m.Fetch("data", LARGE, "manager", False, digest="declared"))]
    vine.declare("r2", peer_transfer=False)
    vine.done(1)
    vine.submit(single(2, peer_transfer=False))
    vine.done(2, size=LARGE, digest="made")
    vine.feed(e.FileRequested("r2"))
    assert vine.sent(m.Upload) == [(worker, m.Upload("r2", "made"))]
    vine.feed(e.ObjectStored("r2", LARGE, "made"))
    vine.submit(single(3))
    other = vine.join()
    vine.submit(single(4, "r2"))
    assert vine.sent(m.Fetch) == [(other, m.Fetch("r2", LARGE, "manager", False, digest="made"))]


def test_outputs_beside_the_result_have_digests_too():
    vine = Vine()
    vine.declare("out")
    vine.join()
    vine.submit(single(1, outputs=("out",)))
    vine.done(1, outputs={"out": LARGE}, digests={"out": "d2"})
    vine.submit(single(2))
    second = vine.join()
    vine.submit(single(3, "out"))
    assert vine.sent(m.Fetch) == [
        (second, m.Fetch("out", LARGE, "host1:7", False, digest="d2", source_worker=1))
    ]


def test_a_result_that_is_made_again_may_have_another_digest_and_each_copy_keeps_its_own():
    vine = Vine()
    vine.declare("other")
    second, third = made(vine, 3, 4)
    vine.say(second, m.Cached("r1", LARGE, "d1"))
    vine.mind.replicas.add_output(vine.worker(1), vine.file("r1"), "d2")
    copies = {worker.id: digest for worker, digest in vine.file("r1").replicas.items()}
    assert copies == {1: "d2", second: "d1"}
    assert third in {worker.id for worker in vine.file("r1").fetching}


def test_a_copy_that_arrives_altered_once_is_tried_elsewhere_and_stays():
    vine = Vine()
    second, third = made(vine, 3, 4)
    vine.say(second, m.Cached("r1", LARGE, "d1"))
    altered(vine, third, "r1", "host1:7")
    assert vine.sent(m.Fetch) == [
        (third, m.Fetch("r1", LARGE, "host2:7", False, digest="d1", source_worker=2))
    ]
    assert vine.holders("r1") == {1, second}
    assert "it was altered" in vine.told(i.LogMessage)[0].text


def test_a_copy_that_arrives_altered_twice_counts_as_lost():
    vine = Vine()
    second, third = made(vine, 3, 4)
    assert vine.holders("r1") == {1}
    altered(vine, second, "r1", "host1:7")
    assert vine.holders("r1") == {1}
    altered(vine, third, "r1", "host1:7")
    assert vine.holders("r1") == set()
    assert (1, "r1") in vine.unlinked(), "it would be found there by tasks"
    assert any("counts as lost" in note.text for note in vine.told(i.LogMessage))
    assert vine.state(1) == "assigned", "it is made again"


def test_a_copy_that_comes_anew_is_not_blamed_for_the_one_before():
    vine = Vine()
    second, third = made(vine, 3, 4)
    altered(vine, second, "r1", "host1:7")
    file, first = vine.file("r1"), vine.worker(1)
    assert first.corrupt == {file}
    vine.mind.replicas.add_output(first, file, "d3")
    assert not first.corrupt
    assert third


def test_the_copy_that_arrives_altered_at_the_manager_counts_as_lost_at_once():
    vine = Vine()
    (second,) = made(vine, 3)
    altered(vine, second, "r1", "host1:7")
    assert vine.sent(m.Upload) == [(1, m.Upload("r1", "d1"))], "the manager has a look"
    vine.say(1, m.UploadFailed("r1", "it was altered"))
    assert vine.holders("r1") == set()
    vine.done(1, size=LARGE, digest="d2")
    assert "d2" in vine.file("r1").replicas.values()


# ---- what is compared after it has come


def came(vine, worker, name="r1", digest="d1"):
    """All of a file is on a worker."""
    return vine.say(worker, m.Cached(name, LARGE, digest, verified=False))


def wrong(vine, worker, name="r1", source="host1:7"):
    """What came there is not what it should be."""
    failed = m.FetchFailed(name, source, "it was altered", permanent=False, corrupt=True, was_cached=True)
    return vine.say(worker, failed)


def test_a_copy_counts_and_serves_others_before_it_is_compared():
    vine = Vine()
    second, third, fourth, fifth = made(vine, 3, 4, 5, 6)
    assert {worker for worker, _fetch in vine.sent(m.Fetch, vine.log)} == {second, third}
    came(vine, second)
    assert vine.holders("r1") == {1, second}
    assert vine.worker(1).outgoing == 2, "the place at the source is free, and taken again"
    assert sorted(vine.fetches()) == [(fourth, "r1", "host2:7"), (fifth, "r1", "host1:7")]
    vine.say(second, m.Verified("r1"))
    assert not vine.worker(second).unverified


def test_a_copy_that_turns_out_to_be_altered_is_lost_and_comes_from_elsewhere():
    vine = Vine()
    second, third = made(vine, 3, 4)
    came(vine, second)
    vine.say(second, m.Verified("r1"))
    came(vine, third)
    assert vine.holders("r1") == {1, second, third}
    wrong(vine, third)
    assert vine.holders("r1") == {1, second}
    assert vine.sent(m.Fetch) == [
        (third, m.Fetch("r1", LARGE, "host2:7", False, digest="d1", source_worker=2))
    ]
    assert (vine.worker(1).failed_reader, vine.worker(1).corrupt) == (third, {vine.file("r1")})
    assert "it was altered" in vine.told(i.LogMessage)[0].text


def test_a_copy_that_is_altered_wherever_it_comes_counts_as_lost_and_is_made_again():
    vine = Vine()
    second, third = made(vine, 3, 4)
    came(vine, second)
    came(vine, third)
    wrong(vine, second)
    assert vine.holders("r1") == {1, third}
    wrong(vine, third)
    assert vine.holders("r1") == set()
    assert vine.state(1) == "assigned", "it is made again"
    vine.done(1, size=LARGE, digest="d2")
    assert {fetch.digest for _worker, fetch in vine.sent(m.Fetch)} == {"d2"}


def test_an_altered_copy_that_was_the_only_one_is_made_again():
    vine = Vine()
    (second,) = made(vine, 3)
    came(vine, second)
    vine.lose(1)
    vine.join()
    assert vine.holders("r1") == {second}
    wrong(vine, second)
    assert vine.holders("r1") == set()
    assert vine.state(1) == "assigned"


def test_who_passed_on_what_came_altered_is_not_blamed():
    vine = Vine()
    second, *_others = made(vine, 3, 4, 5, 6, 7)
    came(vine, second)
    served = [worker for worker, _name, source in vine.fetches() if source == "host2:7"]
    assert len(served) == 2
    altered(vine, served[0], "r1", "host2:7")
    wrong(vine, second)
    altered(vine, served[1], "r1", "host2:7")
    assert vine.worker(second).failed_reader == 0
    assert not any("nobody asks" in note.text for note in vine.told(i.LogMessage, vine.log))
    assert vine.worker(1).failed_reader == second


def test_where_copies_come_altered_only_those_that_are_compared_serve():
    vine = Vine()
    second, third, fourth = made(vine, 3, 4, 5)
    came(vine, second)
    assert {worker.id for worker in vine.file("r1").fetching} == {third, fourth}
    altered(vine, third, "r1", "host1:7")
    assert (third, "r1", "host2:7") not in vine.fetches()
    vine.say(second, m.Verified("r1"))
    assert (third, "r1", "host2:7") in vine.fetches(), "what came is right: it is a source now"


def test_the_manager_is_given_up_if_what_it_has_comes_altered_again_and_again():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True, digest="declared")
    (worker,) = readers(vine, 1)
    for _ in range(MAX_FAILURES + 1):
        assert not outcomes(vine)
        vine.tick(PAIR_BACKOFF_S + 1)
        assert worker in {w.id for w in vine.file("data").fetching}
        came(vine, worker, "data", "declared")
        wrong(vine, worker, "data", "manager")
    assert outcomes(vine) == {100: "input missing"}


def test_a_comparison_that_ends_after_the_copy_was_pruned_is_no_news():
    vine = Vine()
    (second,) = made(vine, 3)
    came(vine, second)
    vine.mind.eviction.drop_replica(vine.worker(second), vine.file("r1"))
    vine.mind.transfers.request_copy(vine.worker(second), vine.file("r1"))
    assert vine.file("r1").fetching
    wrong(vine, second)
    assert not vine.told(i.LogMessage)
    assert vine.file("r1").fetching, "the copy that is on its way is another one"
    vine.say(second, m.Verified("r1"))
    came(vine, second)
    assert vine.worker(second).unverified == {vine.file("r1"): vine.worker(1)}


def test_the_upload_of_a_copy_that_turns_out_to_be_altered_is_asked_of_another_one():
    vine = Vine()
    second, third = made(vine, 3, 4)
    came(vine, second)
    came(vine, third)
    vine.lose(1)
    vine.feed(e.FileRequested("r1"))
    assert vine.sent(m.Upload) == [(second, m.Upload("r1", "d1"))]
    wrong(vine, second)
    assert vine.sent(m.Upload) == [(third, m.Upload("r1", "d1"))]
    vine.say(second, m.UploadFailed("r1", "it was altered"))
    assert vine.holders("r1") == {third}


def test_a_source_has_its_good_name_back_when_what_came_from_it_is_compared():
    vine = Vine()
    second, third = made(vine, 3, 4)
    vine.fetch_failed(third, "r1", "host1:7")
    came(vine, second)
    assert vine.worker(1).failed_reader == third
    vine.say(second, m.Verified("r1"))
    assert vine.worker(1).failed_reader == 0


def test_a_worker_that_fails_two_others_is_left_alone_by_all_for_a_while():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    first, second, third, fourth = readers(vine, 4)
    vine.cached(first, "data")
    assert {worker for worker, _, source in vine.fetches() if source == "host1:7"} == {third, fourth}
    vine.fetch_failed(third, "data", "host1:7")
    assert not any("nobody asks" in note.text for note in vine.told(i.LogMessage)), "it may be the receiver"
    vine.fetch_failed(fourth, "data", "host1:7")
    assert any("nobody asks worker 1 on host1" in note.text for note in vine.told(i.LogMessage))
    fifth = vine.join()
    vine.submit(single(1, "data"))
    for worker in (second, third, fourth, fifth):
        vine.cached(worker, "data")
    assert "host1:7" not in sources(vine.fetches(vine.log))[4:]
    vine.tick(PEER_BACKOFF_S + 1)
    for worker in (second, third, fourth, fifth):
        vine.lose(worker)
    assert vine.holders("data") == {first}
    sixth = vine.join()
    assert vine.fetches() == [(sixth, "data", "host1:7")]


def test_one_receiver_alone_gives_nobody_a_bad_name():
    vine = Vine()
    for number in range(1, 6):
        vine.declare(f"r{number}")
    vine.join(cores=5)
    vine.submit(*(single(n) for n in range(1, 6)))
    for number in range(1, 6):
        vine.done(number, size=LARGE)
    vine.submit(*(single(n) for n in range(900, 905)))
    poor = vine.join(cores=5)
    vine.submit(*(single(100 + n, f"r{n}") for n in range(1, 6)))
    for _worker, name, source in vine.fetches():
        vine.fetch_failed(poor, name, source)
    assert vine.worker(1).excluded_until == 0.0


def test_while_peers_are_spreading_a_file_its_origin_is_left_in_peace():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    first, _second, *others = readers(vine, 8)
    vine.cached(first, "data")
    assert sources(vine.fetches()) == ["host1:7"] * MAX_TRANSFERS_PER_SOURCE_AND_FILE
    vine.cached(others[0], "data")
    assert "manager" not in sources(vine.fetches())


def test_an_origin_is_asked_again_when_no_peer_can_deliver():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    first, second, third, fourth = readers(vine, 4)
    vine.cached(first, "data")
    vine.cached(second, "data")
    vine.lose(second)
    for worker in (third, fourth):
        vine.fetch_failed(worker, "data", "host1:7")
    sent = [source for worker, _, source in vine.fetches(vine.log) if worker in (third, fourth)]
    assert "manager" in sent
