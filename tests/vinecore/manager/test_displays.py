"""The statistics of a manager outside of its program: for Prometheus, and as a table."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import socket
import subprocess
import sys

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import Task
from vinecore.scheduler.statistics import ManagerStats

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{(\w+)="((?:[^"\\\n]|\\["\\n])*)"\} (\S+)')


def parse_exposition(text):
    """Parse Prometheus's text format 0.0.4, as far as samples with one label are concerned, and check its rules."""
    assert text.endswith("\n")
    types, helped, samples = {}, set(), {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in helped, f"two HELP lines for {name}"
            helped.add(name)
        elif line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name not in types, f"two TYPE lines for {name}"
            assert name not in samples, f"the TYPE line of {name} is after its samples"
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
            types[name] = kind
        else:
            name, label, value, number = SAMPLE.fullmatch(line).groups()
            assert name not in samples
            samples[name] = (
                label,
                re.sub(r'\\(["\\n])', lambda m: "\n" if m[1] == "n" else m[1], value),
                float(number),
            )
    assert types.keys() == samples.keys() == helped
    return types, samples


def fetch(port, path="/metrics"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_prometheus_gets_every_number(local_cluster):
    m = local_cluster.start_manager(name='with "quotes" and \\', registry=False, prometheus_port=0)
    assert m.prometheus_port > 0
    for number in range(3):
        m.submit(Task("sleep 600", cores=1, tag=str(number)))
    answer, body = fetch(m.prometheus_port)
    assert (answer.status, answer.getheader("Content-Type")) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    types, samples = parse_exposition(body)
    assert set(samples) == {f"vine_{field}" for field in ManagerStats._fields}
    assert set(types.values()) == {"gauge"}
    assert samples["vine_tasks_waiting"] == ("manager", m.name, 3.0)
    assert samples["vine_workers_connected"][2] == 0
    local_cluster.start_worker(m)
    m.wait_for_workers(1, PATIENCE_S)
    assert parse_exposition(fetch(m.prometheus_port, "/")[1])[1]["vine_workers_connected"][2] == 1
    assert fetch(m.prometheus_port, "/other")[0].status == 404
    port = m.prometheus_port
    m.close()
    with pytest.raises(ConnectionRefusedError):
        fetch(port)


def test_manager_status_is_served_as_json(local_cluster):
    m = local_cluster.start_manager(prometheus_port=0)
    m.submit(Task("secret --token 123", cores=1))
    answer, body = fetch(m.prometheus_port, "/manager_status")
    assert (answer.status, answer.getheader("Content-Type")) == (200, "application/json")
    [about] = json.loads(body)
    assert (about["project"], about["tasks_waiting"], about["workers"]) == (m.name, 1, 0)
    assert "token" not in body


def test_prometheus_is_off_by_default(m):
    assert m.prometheus_port is None


def test_taken_prometheus_port_leaves_no_manager(local_cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        local_cluster.start_manager(prometheus_port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="prometheus_port"):
        local_cluster.start_manager(prometheus_port=70000)


PROGRAM = """
import sys
from vinecore import Manager, Task

class Application(Manager):
    def application_info(self):
        return {"application_info": {"values": {"events": 12345}, "units": {"events": "M"}}}

with Application(port=0, password_file=sys.argv[1], status_display_interval=0.05) as m:
    m.submit(Task("true", cores=1))
    m.wait(float(sys.argv[2]))
print("end of the program")
"""


def test_table_is_redrawn_in_a_terminal(local_cluster):
    mine, its = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(local_cluster.secret), "600"], stdin=subprocess.DEVNULL, stdout=its, stderr=its,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    os.close(its)
    seen = bytearray()

    def read_more():
        seen.extend(os.read(mine, 4096))
        return seen.count(b"0 done, 0 running, 1 waiting") >= 3

    try:
        wait_until(read_more, "three tables")
        assert b"12,345 events M" in seen
        # each is drawn over the one before
        assert seen.count(b"F\x1b[J") >= 2
    finally:
        program.kill()
        program.wait()
        os.close(mine)


def test_nothing_is_drawn_into_a_file(local_cluster):
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(local_cluster.secret), "0.3"], capture_output=True, text=True, timeout=PATIENCE_S, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert program.stdout == "end of the program\n"
    assert "waiting" not in program.stderr


def test_table_is_shown_in_a_notebook(local_cluster):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cell = f"""
from vinecore import Manager, Task
import threading
seen = threading.Event()

class Watched(Manager):
    drawn = 0
    def application_info(self):
        self.drawn += 1
        if self.drawn >= 3:
            seen.set()
        return {{"application_info": {{"values": {{"drawn": self.drawn}}, "units": {{}}}}}}

with Watched(port=0, password_file={str(local_cluster.secret)!r}, status_display_interval=0.05) as m:
    m.submit(Task("true", cores=1))
    assert seen.wait({PATIENCE_S})
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=PATIENCE_S).execute(env=env)
    # one output, which was replaced
    [output] = notebook.cells[0].outputs
    table = output["data"]["text/html"]
    assert table.startswith("<pre>manager ")
    assert "0 done, 0 running, 1 waiting" in table
    assert int(re.search(r"(\d+) drawn", table)[1]) >= 3
