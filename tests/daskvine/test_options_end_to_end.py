"""What every option of ``get`` does, seen where it does it. Values are checked in `test_options`."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tarfile
import time
import warnings
from operator import add

import dask
import pytest

from daskvine import DaskVine, daskvine_merge, progress
from daskvine.options import PRIORITY_MODES
from tests.daskvine import sample_graphs as v
from tests.harness.http_servers import web_server
from tests.harness.processes import PATIENCE_S, scheduler_state, wait_until
from vinecore import FunctionCall, Task
from vinecore.errors import InsufficientResources, LibraryError, TaskCrashed, TaskFailed
from vinecore.manager.policy_methods import PLACEMENT_POLICIES
from vinecore.protocol import messages
from vinecore.resources.categories import MODES
from vinecore.scheduler import events as e

LEARNING = [mode for mode in MODES if mode != "fixed"]
LARGE = 200_000  # bytes: too many for a message, so it is a file on the worker


def running(m):
    """How many tasks are on workers now."""
    return scheduler_state(
        m, lambda scheduler: sum(len(worker.tasks) for worker in scheduler.state.workers.values())
    )


def copies(m, *keys):
    """How many workers hold the result of each vertex of the last graph now."""
    names = [m.last_run._results[key] for key in keys]
    return scheduler_state(m, lambda scheduler: [len(scheduler.state.files[name].replicas) for name in names])


def at_manager(m, key):
    """Whether the result of a vertex of the last graph is at the manager now."""
    name = m.last_run._results[key]
    return (
        scheduler_state(m, lambda scheduler: scheduler.state.files[name].at_manager)
        and m._server.store.find_object(name) is not None
    )


def one_at_a_time(task_mode):
    """Options with which vertices run one after another on a worker with two cores."""
    return (
        {"lib_resources": {"cores": 2, "slots": 1}}
        if task_mode == "function-calls"
        else {"resources": {"cores": 2}}
    )


# ---- environments and files


@pytest.mark.parametrize("reuse", [False, True])
def test_missing_extra_file_fails_graph(m, tmp_path, task_mode, reuse):
    """An extra file that is not there fails the graph with its path."""
    extra = {m.declare_file(tmp_path / "missing.root"): "x"}
    with pytest.raises(TaskFailed, match=r"input missing: .*missing\.root"):
        m.get({"a": (add, 1, 2)}, "a", task_mode=task_mode, extra_files=extra, reuse=reuse)


def test_limited_submission_fails_for_missing_file(m, tmp_path, task_mode):
    """Few vertices at a time wait no longer for a file that is not there."""
    extra = {m.declare_file(tmp_path / "missing.root"): "x"}
    with pytest.raises(TaskFailed, match=r"missing\.root: it did not exist .* no submitted task makes it"):
        m.get(
            {"a": (add, 1, 2), "b": (add, "a", 3)},
            "b",
            task_mode=task_mode,
            extra_files=extra,
            max_pending=1,
        )


@pytest.mark.parametrize("declared", [False, True], ids=["path", "File"])
def test_vertices_run_in_the_environment(m, task_mode, packed, declared):
    def look():
        import only_in_archive

        return only_in_archive.WORD, sys.prefix

    environment = m.declare_poncho(packed) if declared else str(packed)
    word, prefix = m.get({"x": (look,)}, "x", task_mode=task_mode, environment=environment)
    assert word == "packed"
    assert prefix != sys.prefix


def test_a_library_imports_modules_of_the_environment(m, packed):
    loaded = m.get(
        {"x": (lambda: "only_in_archive" in sys.modules,)},
        "x",
        task_mode="function-calls",
        environment=packed,
        import_modules=["only_in_archive"],
    )
    assert loaded is True


def test_vertices_share_an_environment(m, packed):
    graph = {("x", n): (lambda _n: sys.prefix, n) for n in range(3)}
    assert len(set(m.get(graph, list(graph), environment=packed))) == 1


def test_env_per_task_unpacks_for_each_vertex(m, packed):
    """With env per task every vertex unpacks its own."""

    def look(_n):
        import only_in_archive

        return only_in_archive.WORD, sys.prefix

    graph = {("x", n): (look, n) for n in range(2)}
    found = m.get(graph, list(graph), environment=packed, env_per_task=True)
    assert [word for word, _prefix in found] == ["packed", "packed"]
    assert len({prefix for _word, prefix in found}) == 2
    assert (
        scheduler_state(m, lambda scheduler: [name for name in scheduler.state.files if "-for-" in name])
        == []
    )


def test_a_broken_environment_is_named(m, task_mode, tmp_path):
    archive = tmp_path / "broken.tar.gz"
    archive.write_bytes(os.urandom(1000))
    with pytest.raises(TaskFailed, match=f"{archive}.*unpacked"):
        m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode, environment=archive)


def test_an_environment_without_python_is_named(m, task_mode, tmp_path):
    archive = tmp_path / "empty.tar"
    tarfile.open(archive, "w").close()
    with pytest.raises((TaskFailed, LibraryError), match=f"environment {archive} has no bin/python"):
        m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode, environment=archive)


def test_a_missing_environment_is_named(m, task_mode, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar\.gz does not exist: pack one with conda-pack"):
        m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode, environment=tmp_path / "nowhere.tar.gz")


def test_extra_files_are_next_to_every_vertex(m, task_mode, tmp_path):
    path = tmp_path / "corrections.json"
    path.write_text("{}")
    files = {m.declare_file(path): "corrections.json", m.declare_buffer("lumi"): "data/lumi.txt"}
    graph = {"a": (v.text_of, "corrections.json"), "b": (v.text_of, "data/lumi.txt")}
    assert m.get(graph, ["a", "b"], task_mode=task_mode, extra_files=files) == ("{}", "lumi")


def test_extra_file_module_can_be_imported(m, task_mode):
    """A module among extra files can be imported."""

    def use():
        import only_among_files

        return only_among_files.ANSWER

    files = {m.declare_buffer("ANSWER = 42\n"): "only_among_files.py"}
    assert m.get({"x": (use,)}, "x", task_mode=task_mode, extra_files=files) == 42


def test_extra_files_from_server_or_minitask(m, task_mode, tmp_path):
    """Extra files may come from a server or be made when they are needed."""
    (tmp_path / "lumi").write_text("from the web")
    with web_server(tmp_path) as web:
        maker = Task("printf made > out")
        files = {
            m.declare_url(f"{web.url}/lumi"): "lumi.txt",
            m.declare_minitask(maker, "out"): "made.txt",
        }
        graph = {"a": (v.text_of, "lumi.txt"), "b": (v.text_of, "made.txt")}
        found = m.get(graph, ["a", "b"], task_mode=task_mode, extra_files=files)
    assert found == ("from the web", "made")


def test_server_stopping_midway_is_named(m, task_mode, tmp_path, monkeypatch):
    """A server that stops half way is named where a vertex needs its file."""
    monkeypatch.setattr("vinecore.scheduler.transfer_failures.RETRY_DELAY_S", 0.01)  # between the tries
    (tmp_path / "lumi").write_bytes(bytes(1000))
    with web_server(tmp_path) as web:
        url = f"{web.url}/half/lumi"
        with pytest.raises((TaskFailed, LibraryError), match="stopped half way: 500 bytes came") as caught:
            m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode, extra_files={m.declare_url(url): "lumi.txt"})
        assert url in str(caught.value)
        assert web.count("GET", "/half/lumi") > 2


# ---- where results are


def both_workers(gate, size):
    """Two roots that run at the same time, so one on each worker, and a vertex that needs what both make."""
    roots = {name: (v.make_bytes, size, (v.stop_at, gate.port, f"root {name}")) for name in "ab"}
    return {**roots, "c": (add, "a", "b")}


@pytest.mark.parametrize("spelling", ["worker_transfers", "lazy_transfers", "peer_transfers"])
def test_results_move_between_workers(two_workers, gate, meanwhile, listen_to, task_mode, spelling):
    m, wire = two_workers, listen_to(two_workers)
    computing = meanwhile(m.get, both_workers(gate, LARGE), "c", task_mode=task_mode, **{spelling: True})
    gate.wait_for(2)
    gate.open()
    assert len(computing.result()) == 2 * LARGE
    moved = [fetch for fetch in wire.of(messages.Fetch) if fetch.name.startswith("result-")]
    assert [fetch.source == "manager" for fetch in moved] == [False]
    assert wire.count(messages.Upload) == 1  # the target


@pytest.mark.parametrize("spelling", ["worker_transfers", "lazy_transfers", "peer_transfers"])
def test_without_transfers_results_come_to_manager(
    two_workers, gate, meanwhile, listen_to, task_mode, spelling
):
    """Without worker transfers every result comes to the manager."""
    m, wire = two_workers, listen_to(two_workers)
    computing = meanwhile(m.get, both_workers(gate, LARGE), "c", task_mode=task_mode, **{spelling: False})
    gate.wait_for(2)
    gate.open()
    assert len(computing.result()) == 2 * LARGE
    assert wire.count(messages.Upload) == 3
    assert {fetch.source for fetch in wire.of(messages.Fetch)} <= {"manager"}


def test_without_transfers_small_results_come_inline(m, listen_to, task_mode):
    """Without worker transfers small results come with the news."""
    wire = listen_to(m)
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, "b")}
    assert m.get(graph, "c", task_mode=task_mode, worker_transfers=False) == 4
    assert [bool(done.payload) for done in wire.of(messages.TaskDone)] == [True, True, True]


def test_small_intermediates_stay_where_they_are(m, listen_to, task_mode):
    wire = listen_to(m)
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, "b")}
    assert m.get(graph, "c", task_mode=task_mode) == 4
    assert [bool(done.payload) for done in wire.of(messages.TaskDone)] == [False, False, True]


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_checkpoint_is_at_the_manager(m, gate, meanwhile, task_mode, size):
    graph = {
        "a": (v.make_bytes, size),
        "b": (bytes, "a"),
        "c": (v.stop_at, gate.port, "here", 0, "b"),
        "d": (v.length, "a", "b", "c"),
    }
    options = {"task_mode": task_mode, "checkpoint_fn": lambda _dag, key: key == "a"}
    computing = meanwhile(m.get, graph, "d", **options)
    gate.wait_for(1)
    wait_until(lambda: at_manager(m, "a"))
    assert not at_manager(m, "b")
    gate.open()
    assert computing.result() == size


def test_the_checkpoint_function_sees_the_graph(m):
    seen = {}

    def checkpoint(dag, key):
        seen[key] = (dag.depth_of(key), dag.get_dependencies(key), dag.get_targets())
        return False

    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (add, "a", "b"), "d": (v.inc, "c")}
    m.get(graph, ["d", "b"], task_mode="function-calls", checkpoint_fn=checkpoint)
    assert seen == {"a": (1, set(), {"d", "b"}), "c": (3, {"a", "b"}, {"d", "b"})}


def test_checkpoint_function_error_is_raised(m):
    """An error of the checkpoint function is raised."""
    with pytest.raises(ZeroDivisionError):
        m.get({"a": (v.inc, 1), "b": (v.inc, "a")}, "b", checkpoint_fn=lambda _dag, _key: 1 / 0)
    assert m.get({"a": (v.inc, 1)}, "a") == 2


@pytest.mark.parametrize(("depth", "kept"), [(0, [1, 1, 1]), (1, [0, 0, 1]), (2, [0, 1, 1])])
def test_prune_depth_keeps_intermediates(m, gate, meanwhile, depth, kept):
    """Prune depth says how long intermediates are kept."""
    graph = {
        "a": (v.inc, 1),
        "b": (v.inc, "a"),
        "c": (v.inc, "b"),
        "d": (v.stop_at, gate.port, "here", 0, "c"),
    }
    graph["e"] = (v.inc, "d")
    computing = meanwhile(m.get, graph, "e", prune_depth=depth)
    gate.wait_for(1)
    wait_until(lambda: copies(m, "a", "b", "c") == kept)
    gate.open()
    assert computing.result() == 1


# ---- variables


def test_variables_are_texts_or_functions(m, task_mode):
    seen = []

    def choose(manager, task):
        seen.append((manager, task))
        return "chosen"

    options = {"task_mode": task_mode, "env_vars": {"VINE_TEXT": "text", "VINE_CHOSEN": choose}}
    graph = {"a": (v.variable, "VINE_TEXT"), "b": (v.variable, "VINE_CHOSEN")}
    assert m.get(graph, ["a", "b"], **options) == ("text", "chosen")
    assert all(manager is m and task is not None for manager, task in seen)


def test_variable_function_is_called_per_task(m):
    """A function for a variable is called with each task."""
    graph = {"a": (v.variable, "VINE_KEY"), "b": (v.variable, "VINE_KEY", "a")}
    options = {"env_vars": {"VINE_KEY": lambda _manager, task: f"{task.key}-{task.category}"}}
    assert m.get(graph, ["a", "b"], **options) == ("a-variable", "b-variable")


def test_users_import_path_comes_first(m, task_mode, tmp_path):
    """An import path of the user comes first."""
    (tmp_path / "only_on_my_path.py").write_text("ANSWER = 42\n")

    def use():
        import subprocess

        command = [sys.executable, "-c", "import only_on_my_path; print(only_on_my_path.ANSWER)"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert m.get({"x": (use,)}, "x", task_mode=task_mode, env_vars={"PYTHONPATH": str(tmp_path)}) == "42"


# ---- resources


def test_vertex_exceeding_memory_fails_with_numbers(m):
    """A vertex that uses too much memory fails with the numbers."""

    def use_memory():
        block = b"x" * (400 << 20)
        signal.pause()
        return len(block)

    with pytest.raises(TaskFailed, match=r"used \d{3} MB of memory, its limit is 150 MB") as caught:
        m.get({"x": (use_memory,)}, "x", resources={"memory": 150})
    assert "resources={'memory': ...}" in str(caught.value)
    assert "vertex 'x'" in str(caught.value)


def test_vertex_exceeding_disk_fails_with_numbers(m):
    """A vertex that uses too much disk fails with the numbers."""

    def use_disk():
        with open(f"{os.environ['VINE_SANDBOX']}/large", "wb") as file:
            file.write(bytes(40 << 20))
        signal.pause()

    with pytest.raises(TaskFailed, match=r"used \d\d MB of disk, its limit is 20 MB"):
        m.get({"x": (use_disk,)}, "x", resources={"disk": 20})


def test_resources_bound_concurrent_vertices(m, gate, meanwhile):
    """Resources say how many vertices run at once."""
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(3)}
    computing = meanwhile(m.get, graph, list(graph), resources={"cores": 2, "memory": 100})
    gate.wait_for(1)
    assert running(m) == 1
    gate.open()
    computing.result()
    assert m.get({"x": (v.variable, "MEMORY")}, "x", resources={"memory": 300}) == "300"
    assert m.get({"x": (v.variable, "CORES")}, "x", resources={"cores": 2}) == "2"


@pytest.mark.parametrize(
    ("resources", "fits"), [({"cores": 64}, "at most 2 cores"), ({"memory": 10**7}, "at most 4000 MB memory")]
)
def test_vertex_too_large_for_workers_fails(m, resources, fits):
    """A vertex that no worker is large enough for fails at once."""
    with pytest.raises(InsufficientResources, match=fits):
        m.get({"x": (v.inc, 1)}, "x", resources=resources)


@pytest.mark.parametrize("mode", LEARNING)
def test_allocations_are_learnt(m, gate, meanwhile, mode):
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(3)}
    computing = meanwhile(m.get, graph, list(graph), resources_mode=mode)
    (first,) = gate.wait_for(1)
    assert running(m) == 1  # it may use the whole worker
    gate.let(first)
    gate.wait_for(2)
    assert running(m) == 2
    gate.open()
    computing.result()


def test_vertex_exceeding_learned_size_gets_more(m, tmp_path):
    """A vertex that needs more than was learnt gets more."""
    log = tmp_path / "log"

    def use_memory(mb):
        v.write_down(log, mb)
        block = b"x" * (mb << 20)
        if log.read_text().split().count("500") == 1:
            signal.pause()  # until it is stopped
        return len(block) >> 20

    assert m.get({"x": (use_memory, 1)}, "x", resources_mode="max") == 1
    assert m.get({"x": (use_memory, 500)}, "x", resources_mode="max") == 500
    assert log.read_text().split() == ["1", "500", "500"]


def test_resources_are_upper_limit(m, tmp_path):
    """Resources are the most that is ever given."""

    def use_memory():
        block = b"x" * (400 << 20)
        signal.pause()
        return len(block)

    with pytest.raises(TaskFailed, match="its limit is 300 MB"):
        m.get({"x": (use_memory,)}, "x", resources={"memory": 300}, resources_mode="min waste")


# ---- libraries


@pytest.mark.parametrize("slots", [1, 3])
def test_slots_bound_concurrent_calls(m, gate, meanwhile, slots):
    """Slots are the calls that run at once."""
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(2 * slots + 2)}
    options = {"task_mode": "function-calls", "lib_resources": {"cores": 2, "slots": slots}}
    computing = meanwhile(m.get, graph, list(graph), **options)
    gate.wait_for(slots)
    gate.open()
    assert len(set(computing.result())) == slots


def test_library_has_slot_per_core(m, gate, meanwhile):
    """A library has a slot for each core."""
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(6)}
    computing = meanwhile(m.get, graph, list(graph), task_mode="function-calls", lib_resources={"cores": 2})
    gate.wait_for(2)
    gate.open()
    assert len(set(computing.result())) == 2


def test_a_library_takes_what_its_resources_say(m):
    options = {
        "task_mode": "function-calls",
        "lib_resources": {"cores": 1, "slots": 1, "memory": 700, "disk": 300},
    }
    assert m.get({"x": (v.variable, "CORES")}, "x", **options) == "1"
    (worker,) = m.summarize_workers()
    taken = {name: worker["total"][name] - worker["free"][name] for name in ("cores", "memory", "disk")}
    assert taken == {"cores": 1, "memory": 700, "disk": 300}


@pytest.mark.parametrize(
    ("resources", "fits"),
    [
        ({"cores": 12, "slots": 12}, "at most 2 cores"),
        ({"memory": 10**6}, "at most 4000 MB memory"),
        ({"disk": 10**6}, "at most 4000 MB disk"),
        ({"gpus": 1}, "at most 0 gpus"),
    ],
)
def test_library_too_large_for_workers_fails(m, resources, fits):
    """A library that no worker is large enough for fails at once."""
    with pytest.raises(InsufficientResources, match=fits):
        m.get({"x": (v.inc, 1)}, "x", task_mode="function-calls", lib_resources=resources)


WITNESS = "import os\nHERE = os.getpid()\n"


@pytest.mark.parametrize("spelling", ["lib_modules", "import_modules", "hoisting_modules"])
def test_modules_are_imported_before_fork(m, gate, meanwhile, spelling):
    """Modules are imported once before the slots are forked."""
    port = gate.port

    def look(name):
        loaded = "imported_once" in sys.modules
        import imported_once

        v.stop_at(port, name)
        return loaded, imported_once.HERE, os.getppid(), os.getpid()

    options = {spelling: ["imported_once"], "extra_files": {m.declare_buffer(WITNESS): "imported_once.py"}}
    graph = {("x", n): (look, str(n)) for n in range(2)}
    computing = meanwhile(m.get, graph, list(graph), task_mode="function-calls", **options)
    gate.wait_for(2)
    gate.open()
    first, second = computing.result()
    assert first[:3] == second[:3] == (True, first[2], first[2])
    assert first[3] != second[3]


def test_module_unknown_to_worker_is_named(m):
    """A module that the worker does not have is named."""
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found") as caught:
        m.get({"x": (v.inc, 1)}, "x", task_mode="function-calls", import_modules=["nowhere_to_be_found"])
    assert "take it out of import_modules" in "".join(caught.value.__notes__)


def test_extra_functions_are_in_the_library(m):
    def extra(x):
        return x + 100

    assert m.get({"x": (v.inc, 1)}, "x", task_mode="function-calls", lib_extra_functions=[extra]) == 2
    m.submit(FunctionCall("Dask-Library", "extra", 1))
    assert m.wait(PATIENCE_S).output == 101


def test_a_command_starts_the_library(m):
    options = {"task_mode": "function-calls", "lib_command": "env VINE_WORD='two words' nice -n 5"}
    graph = {"word": (v.variable, "VINE_WORD"), "nice": (os.nice, 0)}
    assert m.get(graph, ["word", "nice"], **options) == (
        "two words",
        os.nice(0) + 5,
    )


def test_missing_command_is_named(m):
    """A command that does not exist is named."""
    with pytest.raises(LibraryError, match="no-such-command"):
        m.get({"x": (v.inc, 1)}, "x", task_mode="function-calls", lib_command="no-such-command --fast")


def test_a_command_that_ends_is_an_error(m):
    with pytest.raises(LibraryError, match="ended with code 3"):
        m.get({"x": (v.inc, 1)}, "x", task_mode="function-calls", lib_command="sh -c 'exit 3'")


# ---- order


def order_of(log):
    return log.read_text().split()


@pytest.mark.parametrize("mode", ["FIFO", "LIFO", "random"])
def test_the_order_of_roots(m, tmp_path, task_mode, mode):
    log = tmp_path / "log"
    graph = {("x", n): (v.write_down, log, n) for n in range(20)}
    options = {"task_mode": task_mode, **one_at_a_time(task_mode)}
    m.get(graph, list(graph), task_priority_mode=mode, **options)
    submitted = [str(n) for n in range(20)]
    found = order_of(log)
    assert sorted(found) == sorted(submitted)
    assert (found == submitted, found == submitted[::-1]) == (mode == "FIFO", mode == "LIFO")


def own_library(name):
    """Options for a library of one slot that nobody has used yet: how long its calls take is not known."""
    return {"task_mode": "function-calls", "env_vars": {"VINE_TEST": name}, **one_at_a_time("function-calls")}


def two_steps(log, count):
    roots = {f"a{n}": (v.step, log, f"A{n}") for n in range(count)}
    return roots | {f"b{n}": (v.last_step, log, f"B{n}", f"a{n}") for n in range(count)}


@pytest.mark.parametrize(
    ("mode", "expected"), [(None, "ABAB"), ("depth-first", "ABAB"), ("breadth-first", "AABB")]
)
def test_depth_decides(m, tmp_path, task_mode, mode, expected):
    options = own_library(str(mode)) if task_mode == "function-calls" else one_at_a_time("tasks")
    m.get(two_steps(tmp_path / "log", 2), ["b0", "b1"], task_priority_mode=mode, **options)
    found = order_of(tmp_path / "log")
    assert "".join(word[0] for word in found) == expected
    if expected == "ABAB":  # what was begun is finished
        assert found[0][1] == found[1][1]


def test_the_largest_input_goes_first(m, tmp_path, task_mode):
    log = tmp_path / "log"
    sizes = [1000, 10, 50_000, 100]
    graph = {f"make-{n}": (v.make_bytes, n) for n in sizes}
    graph["all"] = (v.total, *((v.length, key) for key in list(graph)))
    graph |= {f"use-{n}": (v.write_down, log, n, 0, f"make-{n}", "all") for n in sizes}
    options = {"task_mode": task_mode, **one_at_a_time(task_mode)}
    m.get(graph, [f"use-{n}" for n in sizes], task_priority_mode="largest-input-first", **options)
    assert order_of(log) == [str(n) for n in sorted(sizes, reverse=True)]


@pytest.mark.parametrize("mode", ["longest-category-first", "shortest-category-first"])
def test_the_duration_of_what_is_alike_decides(m, tmp_path, task_mode, mode):
    """The long ones take at least what the computation of a short one has taken."""
    options = {"task_mode": task_mode, "task_priority_mode": mode, **one_at_a_time(task_mode)}

    def short(log):
        v.write_down(log, "short")

    def long(log, seconds):
        v.write_down(log, "long")
        time.sleep(seconds)

    for function in (short, long):
        function.__name__ += f" {mode} {task_mode}"  # no other test has any that are alike
    began = time.monotonic()
    m.get({"a": (short, tmp_path / "first")}, "a", **options)
    seconds = time.monotonic() - began
    m.get({"b": (long, tmp_path / "first", seconds)}, "b", **options)
    log = tmp_path / "log"
    graph = {("x", n): (long, log, 0.0) if n % 2 else (short, log) for n in range(6)}
    m.get(graph, list(graph), **options)
    found = order_of(log)
    assert found == sorted(found, reverse=mode.startswith("shortest"))


def test_every_priority_mode_is_tested():
    tested = {"FIFO", "LIFO", "random", "depth-first", "breadth-first", "largest-input-first"}
    assert set(PRIORITY_MODES) == tested | {"longest-category-first", "shortest-category-first"}


# ---- workers


@pytest.fixture(scope="module")
def pair():
    """Two workers for tasks only: no library takes their room."""
    with DaskVine.local(workers=2, cores=1, memory_mb=2000, disk_mb=2000) as m:
        m.wait_for_workers(2, timeout=PATIENCE_S)
        yield m  # a worker has one process that forks those of its tasks: `vertices.parent` tells workers apart


def chain_of(function, count):
    return {("x", n): (function, ("x", n - 1) if n else None) for n in range(count)}


def test_work_goes_where_its_input_is(pair, listen_to):
    wire = listen_to(pair)
    graph = {**chain_of(lambda before: before or bytes(LARGE), 10), "all": (v.length, ("x", 9))}
    pair.get(graph, "all", scheduling_mode="files")
    assert [fetch for fetch in wire.of(messages.Fetch) if fetch.name.startswith("result-")] == []


def test_work_goes_to_random_workers(pair):
    graph = chain_of(v.parent, 12)
    found = pair.get(graph, list(graph), scheduling_mode="rand")
    assert len(set(found)) == 2
    assert found != tuple(sorted(found))


def test_files_policy_takes_first_fit(pair):
    """Work goes to the first worker that fits."""
    graph = chain_of(v.parent, 6)
    assert len(set(pair.get(graph, list(graph), scheduling_mode="fcfs"))) == 1


def test_disk_policy_takes_most_free_disk(pair):
    """Work goes to the worker with most free disk."""
    graph = {
        "large": (lambda: (v.parent(), bytes(LARGE)),),
        "where": (v.parent, "large"),
        "holder": (lambda large, _where: large[0], "large", "where"),
    }
    holder, other = pair.get(graph, ["holder", "where"], scheduling_mode="disk")
    assert holder != other


def test_time_policy_takes_fastest_worker(gate, meanwhile):
    """Work goes to the worker that was fastest."""
    port = gate.port

    def first(name):
        v.stop_at(port, name)
        return v.parent()

    graph = {"one": (first, "1"), "two": (first, "2"), "begin": (max, "one", "two")}
    graph |= {"c": (v.parent, "begin"), "d": (v.parent, "c"), "e": (v.parent, "d")}
    with DaskVine.local(workers=2, cores=1) as m:
        m.wait_for_workers(2, timeout=PATIENCE_S)
        computing = meanwhile(m.get, graph, list(graph), scheduling_mode="time")
        slow, fast = gate.wait_for(2)  # who came first and goes last takes longer
        gate.let(fast)
        wait_until(lambda: running(m) == 1)
        gate.let(slow)
        places = dict(zip(graph, computing.result(), strict=True))
    ran = {"1": places["one"], "2": places["two"]}
    assert ran[fast] != ran[slow]
    assert {places[key] for key in "cde"} == {ran[fast]}


def test_worst_policy_takes_most_free_worker():
    """Work goes to the worker with most free resources."""
    with DaskVine.local(workers=2, cores=2) as m:
        m.wait_for_workers(2, timeout=PATIENCE_S)
        graph = {("x", n): (v.parent, n) for n in range(2)}
        assert len(set(m.get(graph, list(graph), scheduling_mode="worst"))) == 2


def test_every_scheduling_mode_is_tested():
    assert set(PLACEMENT_POLICIES) == {"files", "rand", "fcfs", "disk", "time", "worst"}


# ---- attempts and pace


@pytest.mark.parametrize("retries", [0, 2])
def test_dying_vertex_is_retried(m, tmp_path, task_mode, retries):
    """A vertex whose process dies is run again as often as retries says."""
    log = tmp_path / "log"

    def die():
        v.write_down(log, "tried")
        os._exit(3)

    with pytest.raises(
        TaskCrashed,
        match=rf"tried (once|{retries + 1} times), and .*(\n.*exited with code 3.*){{{retries + 1}}}",
    ):
        m.get({"x": (die,)}, "x", task_mode=task_mode, retries=retries)
    assert len(order_of(log)) == retries + 1


def test_vertex_dying_once_succeeds(m, tmp_path, task_mode):
    """A vertex that dies once succeeds with another attempt."""
    log = tmp_path / "log"

    def die_once():
        v.write_down(log, "tried")
        if len(log.read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    assert m.get({"x": (die_once,)}, "x", task_mode=task_mode, retries=1) == "alive"


@pytest.fixture
def submitted(m, monkeypatch):
    """How many vertices the engine was given at once, each time."""
    sizes, post = [], m._server.post_event

    def listen(event):
        if type(event) is e.TasksSubmitted:
            sizes.append(len(event.tasks))
        post(event)

    monkeypatch.setattr(m._server, "post_event", listen)
    return sizes


def test_submit_per_cycle(m, submitted, task_mode):
    graph = {("x", n): (v.inc, n) for n in range(10)}
    assert m.get(graph, list(graph), task_mode=task_mode, submit_per_cycle=4) == tuple(range(1, 11))
    assert submitted == [4, 4, 2]


def test_unlimited_submission_is_concurrent(m, submitted):
    """Without a limit many are submitted at once."""
    graph = {("x", n): (v.inc, n) for n in range(10)}
    m.get(graph, list(graph), task_mode="function-calls", submit_per_cycle=0, max_pending=-1)
    assert submitted == [10]


def test_max_pending(m, gate, meanwhile, submitted, task_mode):
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(6)}
    options = {"task_mode": task_mode, "max_pending": 2}
    computing = meanwhile(m.get, graph, list(graph), **options)
    first, _second = gate.wait_for(2)
    assert sum(submitted) == 2
    gate.let(first)
    gate.wait_for(1)  # the second one still runs, and another one does already
    assert sum(submitted) == 3
    gate.open()
    computing.result()
    assert sum(submitted) == 6


# ---- what is shown


def test_verbose_says_where_every_vertex_ran(m, task_mode, capsys):
    graph = {"a": (v.inc, 1), ("b", 0): (v.inc, "a")}
    m.get(graph, ("b", 0), task_mode=task_mode, verbose=True)
    host = m.summarize_workers()[0]["host"]
    assert capsys.readouterr().out.splitlines() == [f"a ran on {host}", f"('b', 0) ran on {host}"]


def test_nothing_is_printed_unless_asked_for(m, capsys):
    m.get({"a": (v.inc, 1)}, "a", progress_disable=True)
    assert capsys.readouterr() == ("", "")


def test_progress_has_the_label(m, capsys, monkeypatch):
    monkeypatch.setattr(progress.SilentProgress, "patience_s", 0)
    m.get({"a": (v.inc, 1)}, "a", progress_label="[red]muons")
    assert "muons: 1 of 1 done" in capsys.readouterr().err


def test_progress_can_be_disabled(m, capsys, monkeypatch):
    monkeypatch.setattr(progress.SilentProgress, "patience_s", 0)
    m.get({"a": (v.inc, 1)}, "a", progress_disable=True)
    assert capsys.readouterr().err == ""


# ---- other forms of the graph


@pytest.mark.parametrize(("reconstruct", "merge_size", "inputs"), [(False, 2, 9), (True, 2, 2), (True, 4, 4)])
def test_wide_merges_become_trees(m, task_mode, reconstruct, merge_size, inputs):
    @daskvine_merge
    def merge(*parts):
        return sum(parts, ())

    graph = {("x", n): (lambda n: (n,), n) for n in range(9)}
    graph["all"] = (merge, *list(graph))
    options = {"task_mode": task_mode, "reconstruct": reconstruct, "merge_size": merge_size}
    assert m.get(graph, "all", **options) == tuple(range(9))
    assert max(map(len, m.last_run._graph.dependencies.values())) == inputs


def test_wide_merges_of_delayed_become_trees(m):
    @daskvine_merge
    def merge(*parts):
        return sum(parts, ())

    parts = [dask.delayed(lambda n: (n,))(n) for n in range(5)]
    options = {"task_mode": "function-calls", "reconstruct": True, "merge_size": 2}
    assert dask.delayed(merge)(*parts).compute(scheduler=m.get, **options) == (0, 1, 2, 3, 4)
    assert m.last_run.vertices > 6


def test_a_wrapper_runs_every_vertex(m, task_mode):
    extras = []

    def wrapper(vertex, arguments):
        return (os.getpid(), dict(arguments)), vertex(arguments) * 10

    graph = {"a": (v.inc, 1), "b": (v.inc, "a")}
    options = {"task_mode": task_mode, "wrapper": wrapper, "wrapper_proc": extras.append}
    assert m.get(graph, "b", **options) == 210
    assert [arguments for _pid, arguments in extras] == [{}, {"a": 20}]
    assert os.getpid() not in [pid for pid, _arguments in extras]


def test_what_a_wrapper_adds_is_printed(m, task_mode, capsys):
    def wrapper(vertex, arguments):
        return "something extra", vertex(arguments)

    assert m.get({"a": (v.inc, 1)}, "a", task_mode=task_mode, wrapper=wrapper) == 2
    assert capsys.readouterr().out == "something extra\n"


def test_an_error_of_a_wrapper_is_raised(m, task_mode):
    def wrapper(vertex, arguments):
        raise LookupError(str(vertex.func))

    with pytest.raises(LookupError, match="inc"):
        m.get({"a": (v.inc, 1)}, "a", task_mode=task_mode, wrapper=wrapper)


# ---- options that cannot be


def test_errors_about_options_come_out_of_compute(m):
    with pytest.raises(TypeError, match=r"got an unknown option 'task_mod'; did you mean 'task_mode'"):
        dask.delayed(v.inc)(1).compute(scheduler=m.get, task_mod="tasks")
    with pytest.raises(ValueError, match="option 'task_mode' takes 'tasks' or 'function-calls'; got 'fast'"):
        dask.delayed(v.inc)(1).compute(scheduler=m.get, task_mode="fast")
    with pytest.raises(TypeError, match=r"unknown option 'num_workers': .*DaskVine\.local"):
        dask.compute(dask.delayed(v.inc)(1), scheduler=m.get, num_workers=4)


def test_code_from_talks_does_not_warn(m, caplog):
    options = {"lib_resources": {"cores": 2, "slots": 2}, "import_modules": [math], "peer_transfers": True}
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="daskvine"):
        warnings.simplefilter("error")
        m.get({"a": (v.inc, 1)}, "a", task_mode="function-calls", resources_mode="min waste", **options)
    assert "'resources_mode' has no effect with task_mode='function-calls'" in caplog.text


def test_library_options_warn_without_library(m):
    """Options of libraries warn where there is none."""
    with pytest.warns(UserWarning, match="'lib_resources' has no effect with task_mode='tasks'"):
        assert m.get({"a": (v.inc, 1)}, "a", lib_resources={"cores": 2}) == 2
