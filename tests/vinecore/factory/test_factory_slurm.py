"""What Slurm's words mean; a real one is in ``tests/cluster``."""

from __future__ import annotations

import pytest

from vinecore.factory.mind import GONE, HELD, IDLE, RUNNING, Job
from vinecore.factory.slurm import _job, _Row


def row(state, reason="None", code="0:0", comment="(null)"):
    return _Row("17", state, code, reason, comment)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (row("PENDING", "Priority"), Job(IDLE, "Priority")),
        (row("PENDING", "QOSUsageThreshold"), Job(IDLE, "QOSUsageThreshold")),
        (row("PENDING", "JobHeldAdmin"), Job(HELD, "an administrator holds it: JobHeldAdmin")),
        (row("PENDING", "launch failed requeued held"), Job(HELD, "launch failed requeued held")),
        (row("SPECIAL_EXIT"), Job(HELD, "SPECIAL_EXIT")),
        (row("COMPLETING"), Job(RUNNING)),
        (row("SUSPENDED"), Job(RUNNING)),
        (row("COMPLETED"), Job(GONE, clean=True, ran=True)),
        (row("FAILED", code="3:0", comment="vine: no licence"), Job(GONE, "exit code 3: no licence", ran=True)),
        (row("FAILED", code="0:9", comment="of the user"), Job(GONE, "signal 9", ran=True)),
        (row("PREEMPTED"), Job(GONE, "others were preferred", ran=True)),
        (row("TIMEOUT"), Job(GONE, "its time limit is over", ran=True)),
        (row("CANCELLED"), Job(GONE, "it was cancelled (scancel)")),
        (row("SOMETHING_NEW"), Job(GONE, "SOMETHING_NEW", ran=True)),
    ],
)  # fmt: skip
def test_what_slurm_says_of_a_job_is_understood(said, meant):
    assert _job(said) == meant
