"""Workers that know the secret and say what cannot be; `tests/fuzz/protocol_messages.py` says a million such things to the minds of both ends."""

from __future__ import annotations

import logging
import sys

import pytest

from tests.harness.processes import wait_for_task, wait_until
from vinecore import Task


def test_worker_with_impossible_greeting_is_refused(local_cluster, caplog):
    """A worker that says impossible things of itself is refused."""
    caplog.set_level(logging.WARNING, "vinecore")
    m = local_cluster.start_manager()
    program = (
        "from vineworker import cli\nfrom vineworker.machine import resources\ndetect = resources.detect_resources\n"
        "cli.detect_resources = lambda *args: detect(*args)._replace(cores='many')\ncli.main()"
    )
    worker = local_cluster.start_worker(m, command=[sys.executable, "-c", program])
    assert worker.wait() == 0
    wait_until(lambda: "a field that cannot be" in caplog.text, "a word about it")
    assert "cores='many'" in caplog.text
    local_cluster.start_workers(m, 1)
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"


@pytest.mark.parametrize(
    "said",
    [
        "m.TaskDone('one', 2, 0.1, {}, b'')",
        "m.TaskFailed(1, 'crash', {'outputs': 7}, b'')",
        "m.PersistentObjects(['a'], [], [])",
    ],
)
def test_impossible_message_disconnects_its_worker_only(local_cluster, caplog, said):
    """A worker that says something impossible is cut off and the others go on."""
    caplog.set_level(logging.INFO, "vinecore")
    m = local_cluster.start_manager()
    program = (
        "from vineworker import cli\nfrom vineworker.session import session\nfrom vinecore.protocol import messages as m\nreceived = session.ManagerSession._on_messages\n"
        f"def lie(self, messages):\n    received(self, messages)\n    self.send({said})\n"
        "session.ManagerSession._on_messages = lie\ncli.main()"
    )
    local_cluster.start_worker(m, command=[sys.executable, "-c", program])
    wait_until(lambda: "a field that cannot be" in caplog.text, "the manager to have heard it")
    local_cluster.start_workers(m, 1)
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"
