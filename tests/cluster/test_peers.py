"""Files on their way between hosts, over links of which some are bad."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys

from tests.harness import sample_tasks
from tests.harness.processes import scheduler_state, wait_until, worker_summaries
from vinecore import PythonTask, Task

MB = 1 << 20
PYTHON = (sys.executable, "-m", "vineworker")


def begin(local_cluster, host):
    """A manager on a host."""
    with host.inside():
        return local_cluster.start_manager(address=host.address)


def worker_on(local_cluster, m, host, manager, port=None):
    """A worker on a host, which finds its manager there; gives it when it is connected."""
    before = m.workers_connected
    worker = local_cluster.start_worker(
        port or m, "--debug", command=(*host.command, *PYTHON), host=manager.address
    )
    m.wait_for_workers(before + 1, 60)
    return worker


def address_of(m, number):
    """Where a worker can be fetched from, by its number."""
    host, _, port = scheduler_state(
        m, lambda scheduler: scheduler.state.workers[number].data_address
    ).rpartition(":")
    return host, int(port)


def together(local_cluster, m, name, tasks):
    """Run a task on every worker at the same time: each takes a whole one, and waits for all the others."""
    for task in tasks:
        task.set_cores(2)
        m.submit(task)
    wait_until(
        lambda: (
            len(set(local_cluster.path(name).read_text().split())) == len(tasks)
            if local_cluster.count_lines(name)
            else 0
        )
    )
    local_cluster.path(f"{name}-gate").touch()
    ended = [m.wait(60) for _ in tasks]
    assert all(task is not None and task.successful() for task in ended), [str(t.error()) for t in ended if t]
    return ended


def digest_together(folder, name, number):
    """Look at the input when everybody has it."""
    sample_tasks.note(f"{folder}/{name}", number)
    sample_tasks.wait_for(f"{folder}/{name}-gate")
    return digest_of("data")


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(MB):
            digest.update(data)
    return digest.hexdigest()


def test_large_file_spreads_as_tree(local_cluster, hosts):
    """Eight workers, each of which needs the same 256 MB."""
    size, count = 256 * MB, 8
    origin, *places = hosts.add(1 + count)
    path = local_cluster.path("data")
    with path.open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(size // 256) * 16)
    m = begin(local_cluster, origin)
    data = m.declare_file(path)
    workers = [worker_on(local_cluster, m, host, origin) for host in places]
    tasks = []
    for number in range(count):
        task = PythonTask(digest_together, str(local_cluster.folder), "reading", number)
        task.add_input(data, "data", mount_symlink=True)
        tasks.append(task)
    before = origin.sent
    ended = together(local_cluster, m, "reading", tasks)
    assert [task.output for task in ended] == [digest_of(path)] * count
    assert origin.sent - before < 2.2 * size, "the origin has served it at most twice"
    source = {
        place.address: re.findall(rf"got {data.cache_name} from (\S+?)(?::\d+)? in", worker.log)
        for place, worker in zip(places, workers, strict=True)
    }
    assert all(len(found) == 1 for found in source.values()), source
    assert sum(found == ["manager"] for found in source.values()) <= 2, source

    def rounds(address):
        (other,) = source[address]
        return 1 if other == "manager" else 1 + rounds(other)

    assert max(map(rounds, source)) <= 2 + math.log2(count), source


def flip(data, at):
    """One byte in a megabyte, and not in the first words, comes as another one."""
    where = (100_000 - at) % MB
    if where >= len(data):
        return data
    return data[:where] + bytes([data[where] ^ 4]) + data[where + 1 :]


def cut(data, at):
    """A connection ends after a while."""
    return data if at < 100_000 else None


def test_bad_links_are_avoided(local_cluster, hosts, caplog):
    """Everybody makes a file that everybody needs: behind a firewall, behind links that alter and cut, over a slow link."""
    size = 3 * MB
    origin, alters, cuts, *places = hosts.add(9)
    m = begin(local_cluster, origin)
    blocked, altered, shortened, slow = places[:4]
    for place in places:
        front = {altered: alters, shortened: cuts}.get(place)
        if front is None:
            worker_on(local_cluster, m, place, origin)
        else:
            control = hosts.relay(front, 0, (origin.address, m.port))
            worker_on(local_cluster, m, place, front, control.port)
    count = len(places)
    where = {w["id"]: address_of(m, w["id"]) for w in worker_summaries(m)}
    numbers = dict(zip(places, sorted(where), strict=True))
    blocked.block(where[numbers[blocked]][1])
    for place, front, spoil in ((altered, alters, flip), (shortened, cuts, cut)):
        address, port = where[numbers[place]]
        assert address == front.address
        hosts.relay(front, port, (place.address, port), spoil=spoil)
    slow.slow("40mbit")

    files = [m.declare_temp() for _ in places]
    making = []
    for number, file in enumerate(files):
        task = Task(f"{gathering(local_cluster, 'making', number)}; {content(number, size)} > out")
        task.add_output(file, "out")
        making.append(task)
    together(local_cluster, m, "making", making)
    reading = []
    for number in range(count):
        task = Task(
            f"{gathering(local_cluster, 'reading', number)}; cat {' '.join(f'in{n}' for n in range(count))} | cksum"
        )
        for n, file in enumerate(files):
            task.add_input(file, f"in{n}")
        reading.append(task)
    ended = together(local_cluster, m, "reading", reading)
    every = "; ".join(content(number, size) for number in range(count))
    expected = subprocess.run(f"({every}) | cksum", shell=True, capture_output=True, text=True, check=True)
    assert {task.output for task in ended} == {expected.stdout}
    failed = [record.getMessage() for record in caplog.records if "could not get" in record.getMessage()]
    for place, reason in ((blocked, "timed out"), (altered, "altered"), (shortened, "connection ended")):
        host, port = where[numbers[place]]
        assert any(f"{host}:{port}" in text and reason in text for text in failed), (reason, failed)
        assert f"nobody asks worker {numbers[place]} " in caplog.text
    for place in places[3:]:
        assert f"nobody asks worker {numbers[place]} " not in caplog.text


def content(number, size):
    """A command that makes some bytes."""
    return f"yes {number} | head -c {size}"


def gathering(local_cluster, name, number):
    """A command that waits until everybody is there."""
    return f"echo {number} >> {local_cluster.path(name)}; while [ ! -e {local_cluster.path(name)}-gate ]; do sleep 0.02; done"
