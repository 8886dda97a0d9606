"""Networks that are not one flat room: workers that no peer can reach, two interfaces, a worker beside the manager."""

from __future__ import annotations

from tests.cluster.network_namespaces import ip
from tests.cluster.test_peers import PYTHON, address_of, begin, worker_on
from tests.harness.processes import scheduler_state, wait_until, worker_summaries
from vinecore import Task

FILES = 6


def run(m, tasks):
    """Run tasks; give their outputs."""
    for task in tasks:
        m.submit(task)
    ended = [m.wait(60) for _ in tasks]
    assert all(task is not None and task.successful() for task in ended), [str(t.error()) for t in ended if t]
    return sorted(task.output for task in ended)


def make_on(local_cluster, m, feature, name):
    """Have some files made on the worker with a feature's cores; give them."""
    files = [m.declare_temp() for _ in range(FILES)]
    for number, file in enumerate(files):
        task = Task(
            f"echo made >> {local_cluster.path(f'{name}-{number}')}; yes {number} | head -c 300000 > out"
        )
        task.set_cores(feature)
        task.add_output(file, "out")
        m.submit(task)
    assert all(m.wait(60).successful() for _ in files)
    return files


def read_everywhere(local_cluster, m, files, name, count):
    """Have all files read on so many workers at the same time."""
    tasks = []
    for number in range(count):
        there = local_cluster.path(name)
        task = Task(
            f"echo {number} >> {there}; while [ $(wc -l < {there}) -lt {count} ]; do sleep 0.02; done; cat in* | wc -c"
        )
        task.set_cores(2)
        for n, file in enumerate(files):
            task.add_input(file, f"in{n}")
        tasks.append(task)
    assert run(m, tasks) == [f"{300000 * len(files)}\n"] * count


def failures(caplog, source):
    return [r.getMessage() for r in caplog.records if f"from {source}" in r.getMessage() and "could not get" in r.getMessage()]  # fmt: skip


def test_unreachable_worker_is_asked_rarely(local_cluster, hosts, caplog):
    """One behind a router that passes on nothing from outside, one behind a firewall that says nothing."""
    origin, router, *places = hosts.add(7)
    m = begin(local_cluster, origin)
    inner, silent, *open_places = places
    door = hosts.relay(router, 0, (origin.address, m.port))
    worker_on(local_cluster, m, inner, router, door.port)
    worker_on(local_cluster, m, silent, origin)
    hidden = [worker["id"] for worker in worker_summaries(m)]
    addresses = [":".join(map(str, address_of(m, number))) for number in hidden]
    assert addresses[0].startswith(router.address)
    silent.block(address_of(m, hidden[1])[1])
    files = make_on(local_cluster, m, 2, "first")
    makers = scheduler_state(
        m, lambda scheduler: {w.id for f in files for w in scheduler.state.files[f.cache_name].replicas}
    )
    assert makers == set(hidden)
    for place in open_places:
        worker_on(local_cluster, m, place, origin)
    read_everywhere(local_cluster, m, files, "reading", 5)
    assert all(failures(caplog, address) for address in addresses)
    assert all(f"nobody asks worker {number} " in caplog.text for number in hidden)
    assert [local_cluster.count_lines(f"first-{n}") for n in range(FILES)] == [1] * FILES

    caplog.clear()
    wait_until(lambda: len(worker_summaries(m)) == 5, "all to be there")
    more = make_on(local_cluster, m, 2, "second")
    read_everywhere(local_cluster, m, more, "again", 5)
    shunned = scheduler_state(
        m,
        lambda scheduler: all(
            scheduler.state.workers[n].excluded_until > scheduler.state.now for n in hidden
        ),
    )
    if shunned:  # else the machine was so slow that it is time for another try
        receivers = "|".join(map(str, hidden))
        new = [
            t
            for address in addresses
            for t in failures(caplog, address)
            if t.split()[1] not in receivers.split("|")
        ]
        assert new == []
    assert [local_cluster.count_lines(f"second-{n}") for n in range(FILES)] == [1] * FILES


def test_forwarded_port_reaches_hidden_worker(local_cluster, hosts, caplog):
    """A forwarded port makes a hidden worker reachable."""
    origin, router, inner, other = hosts.add(4)
    m = begin(local_cluster, origin)
    door = hosts.relay(router, 0, (origin.address, m.port))
    forwarded = hosts.relay(router, 0, (inner.address, 9300))
    options = ("--transfer-port", "9300", "--contact-hostport", f"{router.address}:{forwarded.port}")
    local_cluster.start_worker(
        door.port, "--debug", *options, command=(*inner.command, *PYTHON), host=router.address
    )
    m.wait_for_workers(1, 60)
    files = make_on(local_cluster, m, 2, "first")
    worker = worker_on(local_cluster, m, other, origin)
    read_everywhere(local_cluster, m, files, "reading", 2)
    assert worker.log.count(f"from {router.address}:{forwarded.port} in") == FILES
    assert "could not get" not in caplog.text


def test_peers_meet_in_managers_network(local_cluster, hosts, caplog):
    """Every host has two addresses, and not the one that a worker would be found by at first sight."""
    places = hosts.add(3)
    for number, place in enumerate(places, 1):
        ip("-n", place.namespace, "address", "add", f"10.72.0.{number}/24", "dev", "eth0")
    origin, *others = places
    with origin.inside():
        m = local_cluster.start_manager(address="")
    for place in others:
        before = m.workers_connected
        local_cluster.start_worker(m, command=(*place.command, *PYTHON), host="10.72.0.1")
        m.wait_for_workers(before + 1, 60)
    assert [address_of(m, w["id"])[0] for w in worker_summaries(m)] == ["10.72.0.2", "10.72.0.3"]
    files = make_on(local_cluster, m, 2, "first")
    read_everywhere(local_cluster, m, files, "reading", 2)
    assert "could not get" not in caplog.text


def test_worker_beside_manager_is_reachable(local_cluster, hosts, caplog):
    """A worker beside the manager is reached from other machines."""
    origin, other = hosts.add(2)
    with origin.inside():
        m = local_cluster.start_manager(address="")
    local_cluster.start_worker(m, command=(*origin.command, *PYTHON), host="127.0.0.1")
    m.wait_for_workers(1, 60)
    assert address_of(m, 1)[0] == "127.0.0.1"
    files = make_on(local_cluster, m, 2, "first")
    worker = worker_on(local_cluster, m, other, origin)
    read_everywhere(local_cluster, m, files, "reading", 2)
    assert worker.log.count(f"from {origin.address}:{address_of(m, 1)[1]} in") == FILES
    assert "could not get" not in caplog.text
