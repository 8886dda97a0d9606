"""How many pilots there are, decided by tables."""

from __future__ import annotations

import pytest

from vinecore.factory.adaptive import (
    GONE,
    HELD,
    IDLE,
    INITIAL_BACKOFF_S,
    MAX_BACKOFF_S,
    QUEUED_REPORT_DELAY_S,
    RUNNING,
    SURPLUS_DELAY_S,
    AdaptiveScaling,
    JobStatus,
    pilots_needed,
)
from vinecore.factory.settings import FactorySettings
from vinecore.scheduler.queue_stats import QueueStats

CALM = QueueStats()


class Site:
    """A batch system as the scaling sees it, and a clock."""

    def __init__(self, **settings):
        self.settings = FactorySettings().changed(
            **{"min_workers": 0, "max_workers": 10, "factory_period": 1.0, **settings}
        )
        self.scaling, self.now, self.jobs, self.count = AdaptiveScaling(), 0.0, {}, 0

    def step(self, demand=CALM, *, later=1.0, **jobs):
        """Look, and submit what is asked for."""
        self.now += later
        self.jobs.update(jobs)
        step = self.scaling.decide(self.now, self.settings, demand, dict(self.jobs))
        names = [f"j{self.count + n + 1}" for n in range(step.submit)]
        self.count += step.submit
        self.scaling.submitted(names)
        self.jobs.update(dict.fromkeys(names, JobStatus(IDLE)))
        for name in step.remove:
            del self.jobs[name]
        self.jobs = {name: job for name, job in self.jobs.items() if job.state != GONE}
        return step


@pytest.mark.parametrize(
    ("settings", "demand", "wanted"),
    [
        ({}, QueueStats(), 0),
        ({"min_workers": 3}, QueueStats(), 3),
        ({}, QueueStats(waiting=4), 4),
        ({}, QueueStats(waiting=4, running=3), 7),
        ({}, QueueStats(waiting=1000), 10),
        ({"cores": 4}, QueueStats(waiting=9, cores=9), 3),
        ({"cores": 4}, QueueStats(waiting=2, cores=16), 4),
        ({"cores": 4, "tasks_per_worker": 2}, QueueStats(waiting=6, cores=6), 3),
        ({"capacity": True}, QueueStats(waiting=1000, capacity=6), 6),
        ({"capacity": True}, QueueStats(waiting=1000), 10),
        ({"min_workers": 2, "capacity": True}, QueueStats(waiting=1000, capacity=1), 2),
        ({"min_workers": 7, "max_workers": 7}, QueueStats(waiting=1000), 7),
        ({"min_workers": 7, "max_workers": 7}, QueueStats(), 7),
        ({"workers_per_cycle": 2}, QueueStats(waiting=9), 2),
    ],
)
def test_submissions_match_waiting_work(settings, demand, wanted):
    """As many are submitted at once as there is work for."""
    assert Site(**settings).step(demand).submit == wanted


def test_unanswering_manager_gets_no_workers():
    """Nothing is submitted for a manager that does not answer."""
    site = Site(min_workers=2)
    assert site.step(None).submit == 0
    assert site.step(CALM).submit == 2


def test_unanswering_batch_system_stops_decisions():
    """Nothing is decided when the batch system does not answer."""
    site = Site(min_workers=2)
    assert site.scaling.decide(1.0, site.settings, QueueStats(waiting=5), None) == ((0, (), 0, (), ""))
    assert site.step().submit == 2


def test_each_cycle_has_its_number():
    """A cycle has a number of its own."""
    site = Site(workers_per_cycle=4, factory_period=10.0)
    assert [site.step(QueueStats(waiting=9), later=5.0).submit for _ in range(5)] == [4, 0, 4, 0, 1]


def test_queued_or_running_pilots_count():
    """What is queued or runs is not asked for again."""
    site = Site()
    site.step(QueueStats(waiting=3))
    assert site.step(QueueStats(waiting=3)).submit == 0
    assert site.step(QueueStats(waiting=5), j1=JobStatus(RUNNING)).submit == 2


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (JobStatus(HELD, "the disk is full"), "1 pilot is held: the disk is full; others in"),
        (
            JobStatus(GONE, "via condor_rm (by user root)"),
            "1 pilot is gone: via condor_rm (by user root); others in",
        ),
        (JobStatus(GONE), "no reason is known"),
    ],
)
def test_lost_pilot_is_replaced_after_pause(job, said):
    """A pilot that is lost is told and replaced after a pause."""
    site = Site(min_workers=2, max_workers=2)
    site.step()
    lost = site.step(j1=job)
    assert said in lost.messages[0] and not lost.submit
    assert lost.remove == (("j1",) if job.state == HELD else ())
    assert site.step(later=INITIAL_BACKOFF_S).submit == 1
    assert site.step(later=100.0) == (0, (), 0, (), "")


def test_reason_of_long_wait_is_logged_once():
    """What pilots wait for is said once when they have waited for long."""
    site = Site(min_workers=2, max_workers=2)
    site.step()
    jobs = {"j1": JobStatus(IDLE, "Priority"), "j2": JobStatus(IDLE, "Resources")}
    assert not site.step(**jobs).messages
    assert site.step(later=QUEUED_REPORT_DELAY_S, **jobs).messages == (
        "1 pilot is still queued: Priority",
        "1 pilot is still queued: Resources",
    )
    assert not site.step(later=QUEUED_REPORT_DELAY_S, **jobs).messages
    assert site.step(j1=JobStatus(RUNNING), j2=JobStatus(IDLE, "PartitionDown")).messages == (
        "1 pilot is still queued: PartitionDown",
    )


def test_equal_fates_are_told_once():
    site = Site(min_workers=5)
    site.step()
    lost = site.step(j1=JobStatus(HELD, "no"), j2=JobStatus(HELD, "no"), j3=JobStatus(HELD, "never"))
    assert sorted(text.partition(";")[0] for text in lost.messages) == [
        "1 pilot is held: never",
        "2 pilots are held: no",
    ]


def test_pilot_dying_before_connection_is_reported():
    """A pilot that dies before connecting is told as such."""
    site = Site(min_workers=1)
    site.step()
    site.step(j1=JobStatus(RUNNING))
    assert (
        "before connecting: exit code 127"
        in site.step(
            later=60, j1=JobStatus(GONE, "exit code 127"), demand=QueueStats(pilots=("other",))
        ).messages[0]
    )


def test_unseen_pilot_may_have_died():
    """A pilot that was never seen running may have died before connecting all the same."""
    site = Site(min_workers=1)
    site.step()
    assert (
        "before connecting: exit code 3" in site.step(j1=JobStatus(GONE, "exit code 3", ran=True)).messages[0]
    )


def test_worker_leaving_by_itself_is_normal():
    """A worker that leaves by itself is no trouble."""
    site = Site(min_workers=1)
    site.step()
    site.step(j1=JobStatus(RUNNING))
    assert site.step(j1=JobStatus(GONE, "exit code 0", True)) == (1, (), 0, (), "")


def test_preempted_pilot_is_not_replaced():
    """What is preempted is queued by the batch system and not replaced."""
    site = Site(min_workers=1)
    site.step()
    site.step(j1=JobStatus(RUNNING))
    again = site.step(j1=JobStatus(IDLE))
    assert "1 pilot is queued again" in again.messages[0] and not again.submit
    assert site.step(later=100).submit == 0


def test_backoff_is_bounded_and_reset():
    """Pauses grow up to a bound while nobody connects and are forgotten when somebody does."""
    site = Site(min_workers=1)
    site.step()
    pauses = []
    for _ in range(14):
        name = f"j{site.count}"
        site.step(**{name: JobStatus(HELD, "no")})
        pauses.append(site.scaling.pause_s)
        assert site.step(later=site.scaling.pause_s - 0.01).submit == 0
        assert site.step(later=0.02).submit == 1
    assert pauses == [min(INITIAL_BACKOFF_S * 2**n, MAX_BACKOFF_S) for n in range(14)]
    site.step(QueueStats(pilots=(f"j{site.count}",)), **{f"j{site.count}": JobStatus(RUNNING)})
    assert site.scaling.pause_s == 0


def test_refused_submission_causes_pause():
    """A submission that is refused is a reason to wait."""
    site = Site(min_workers=1)
    assert site.scaling.decide(1.0, site.settings, CALM, {}).submit == 1
    assert (
        "nothing could be submitted: no such group; again in"
        in site.scaling.submission_failed("no such group", 1.0)[0]
    )
    assert site.scaling.decide(1.0, site.settings, CALM, {}).submit == 0
    assert site.scaling.decide(1.0 + INITIAL_BACKOFF_S, site.settings, CALM, {}).submit == 1


def test_surplus_queued_pilots_are_removed_later():
    """Queued pilots are taken back when they have been too many for a while."""
    site = Site()
    site.step(QueueStats(waiting=4))
    site.step(QueueStats(waiting=4), j1=JobStatus(RUNNING))
    assert site.step(QueueStats(running=1)).remove == ()
    assert site.step(QueueStats(running=1), later=SURPLUS_DELAY_S).remove == ("j2", "j3", "j4")
    assert site.scaling.pilots == 1


def test_returning_need_finds_queued_pilots():
    """A need that comes back soon finds its pilots still queued."""
    site = Site()
    site.step(QueueStats(waiting=4))
    site.step(QueueStats())
    assert site.step(QueueStats(waiting=4), later=SURPLUS_DELAY_S - 2).submit == 0
    assert site.step(QueueStats(), later=5.0).remove == ()


def test_lower_maximum_releases_idle_workers():
    """Fewer allowed means queued ones go at once and idle workers are let go."""
    site = Site(min_workers=4, max_workers=4)
    site.step()
    site.step(j1=JobStatus(RUNNING), j2=JobStatus(RUNNING), j3=JobStatus(RUNNING))
    site.settings = site.settings.changed(min_workers=1, max_workers=1)
    step = site.step()
    assert step.remove == ("j4",) and step.release == 2
    step = site.step(j1=JobStatus(GONE, "exit code 0", True))
    assert step == (0, (), 1, (), "")


@pytest.mark.parametrize(
    ("demand", "words"), [(None, "no manager has answered for 10 s"), (CALM, "nothing to do for 10 s")]
)
def test_factory_without_work_ends_in_time(demand, words):
    """A factory without work ends when it is time."""
    site = Site(factory_timeout=10.0)
    site.step(QueueStats(running=1))
    assert site.step(demand, later=9.0).exit_reason == ""
    assert words in site.step(demand, later=1.0).exit_reason


@pytest.mark.parametrize(("settings", "pilots"), [({"tasks_per_worker": 2}, 4), ({"cores": 2}, 4), ({}, 8)])
def test_tasks_to_come_need_pilots(settings, pilots):
    """Eight tasks: two wait, one runs, and five will be submitted."""
    demand = QueueStats(waiting=2, running=1, cores=2.0, left=5)
    assert pilots_needed(FactorySettings().changed(**settings), demand) == pilots
