from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from daskvine import DaskVine
from tests.daskvine.file_barrier import Gate
from tests.harness.processes import PATIENCE_S, scheduler_state
from vinecore.scheduler import instructions as i

MODES = ("tasks", "function-calls")


@pytest.fixture(scope="session")
def one_worker():
    """A manager with one worker of two cores, for all tests that do not need their own."""
    with DaskVine.local(workers=1, cores=2, memory_mb=4000, disk_mb=4000) as m:
        yield m


@pytest.fixture(scope="module")
def two_workers():
    """A manager with two workers of one core each."""
    with DaskVine.local(workers=2, cores=1, memory_mb=2000, disk_mb=2000) as m:
        m.wait_for_workers(2, timeout=PATIENCE_S)
        yield m


@pytest.fixture
def m(one_worker):
    """The shared manager; nothing of what a test computed is left in its tables."""
    one_worker.set_scheduler("files")
    yield one_worker
    assert scheduler_state(one_worker, left_behind) == []


def left_behind(scheduler):
    files = [name for name in scheduler.state.files if name.startswith("result-")]
    return [*scheduler.state.tasks, *(run for run in scheduler.state.graphs if run), *files]


@pytest.fixture(params=MODES)
def task_mode(request):
    return request.param


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture
def meanwhile(gate):
    """Run something in another thread, while this one looks at what goes on; at the end the gate opens."""
    with ThreadPoolExecutor() as threads, ExitStack() as stack:
        stack.callback(gate.open)

        def start(function, *args, **kwargs):
            computing = threads.submit(function, *args, **kwargs)
            gate.watch(computing)
            return computing

        yield start


class Wire:
    """What a manager and its workers say to each other."""

    def __init__(self, m):
        self._server = m._server
        self._carriers = dict(m._server._executors)
        self._hear = m._server._connections.on_messages
        self.sent, self.heard = [], []
        m._server._executors |= {i.Send: self._send, i.SendObject: self._send_object}
        m._server._connections.on_messages = self._heard

    def _send(self, instruction):
        self.sent.append(instruction.message)
        self._carriers[i.Send](instruction)

    def _send_object(self, instruction):
        self.sent.append(instruction)
        self._carriers[i.SendObject](instruction)

    def _heard(self, peer, messages):
        self.heard.extend(messages)
        self._hear(peer, messages)

    def count(self, kind):
        """How many messages of a kind there were."""
        return len(self.of(kind))

    def of(self, kind):
        """The messages of a kind."""
        return [message for message in [*self.sent, *self.heard] if type(message) is kind]

    def cut(self):
        self._server._executors |= self._carriers
        self._server._connections.on_messages = self._hear


@pytest.fixture
def listen_to():
    """Hear what a manager and its workers say to each other."""
    with ExitStack() as stack:

        def listen(m):
            wire = Wire(m)
            stack.callback(wire.cut)
            return wire

        yield listen


@pytest.fixture
def run_script(tmp_path):
    """Run a script in a session of its own, as from a terminal; it finds what this process finds."""

    def run(text, *arguments):
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        return subprocess.run(
            [sys.executable, path, *arguments],
            capture_output=True,
            check=False,
            env=variables,
            start_new_session=True,
            text=True,
        )

    return run


HEAD = """
import sys
import dask
from daskvine import DaskVine

def everywhere(make, **options):
    usual = make().compute(scheduler="synchronous")
    for mode in ("tasks", "function-calls"):
        found = make().compute(scheduler=m.get, task_mode=mode, progress_disable=True, **options)
        assert found == usual, (mode, found, usual)
    return usual
"""


@pytest.fixture
def succeed(run_script):
    """Run a script that says at its end that all is well."""

    def succeed(text):
        done = run_script(HEAD + text + "\n    print('well')\n")
        assert done.stdout.endswith("well\n"), done.stdout + done.stderr

    return succeed
