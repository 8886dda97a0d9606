"""What Slurm's words mean; a real one is in ``tests/cluster``."""

from __future__ import annotations

import pytest

from vinecore.factory.adaptive import GONE, HELD, IDLE, RUNNING, JobStatus
from vinecore.factory.slurm import _job_status, _SqueueRow


def row(state, reason="None", code="0:0", comment="(null)"):
    return _SqueueRow("17", state, code, reason, comment)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (row("PENDING", "Priority"), JobStatus(IDLE, "Priority")),
        (row("PENDING", "QOSUsageThreshold"), JobStatus(IDLE, "QOSUsageThreshold")),
        (row("PENDING", "JobHeldAdmin"), JobStatus(HELD, "an administrator holds it: JobHeldAdmin")),
        (row("PENDING", "launch failed requeued held"), JobStatus(HELD, "launch failed requeued held")),
        (row("SPECIAL_EXIT"), JobStatus(HELD, "SPECIAL_EXIT")),
        (row("COMPLETING"), JobStatus(RUNNING)),
        (row("SUSPENDED"), JobStatus(RUNNING)),
        (row("COMPLETED"), JobStatus(GONE, exited_cleanly=True, ran=True)),
        (row("FAILED", code="3:0", comment="vine: no licence"), JobStatus(GONE, "exit code 3: no licence", ran=True)),
        (row("FAILED", code="0:9", comment="of the user"), JobStatus(GONE, "signal 9", ran=True)),
        (row("PREEMPTED"), JobStatus(GONE, "others were preferred", ran=True)),
        (row("TIMEOUT"), JobStatus(GONE, "its time limit is over", ran=True)),
        (row("CANCELLED"), JobStatus(GONE, "it was cancelled (scancel)")),
        (row("SOMETHING_NEW"), JobStatus(GONE, "SOMETHING_NEW", ran=True)),
    ],
)  # fmt: skip
def test_job_states_of_slurm_are_parsed(said, meant):
    """What slurm says of a job is understood."""
    assert _job_status(said) == meant
