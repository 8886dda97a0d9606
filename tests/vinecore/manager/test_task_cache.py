"""Tasks that are remembered across programs, and those that are not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task
from vinecore.manager.task_cache import NewContent, TaskCache, _copy
from vinecore.protocol.transfer.digests import digest_bytes


def subtract(x, y):
    return x - y


def make_multiplier(factor):
    return lambda x: x * factor


@pytest.fixture
def start_program(local_cluster, tmp_path):
    """Start what stands for a program: a manager with a cache and a worker, after the end of the one before."""
    managers = []

    def start():
        for manager in managers:
            manager.close()
        manager = local_cluster.start_manager()
        manager.enable_tasks_cache(tmp_path / "cache", tmp_path / "cache.log")
        local_cluster.start_worker(manager, "--cores", "2")
        managers.append(manager)
        return manager

    return start


def run(m, task):
    m.submit(task)
    found = m.wait(PATIENCE_S)
    assert found is task
    return task


def is_cached(m, task):
    return run(m, task).hostname == "CACHED"


def count_words(
    m, tmp_path, text, *, command="wc -w <in | tee copy >out; echo counted", cores=1, variable="a"
):
    """Return the task, and the path of its output, which is not there yet."""
    source, target = tmp_path / "in.txt", tmp_path / "sub" / "out.txt"
    source.write_text(text)
    target.unlink(missing_ok=True)
    task = Task(command, cores=cores, env={"VARIABLE": variable})
    task.add_input(m.declare_file(source), "in")
    task.add_output(m.declare_file(target), "out")
    buffer = m.declare_buffer()
    task.add_output(buffer, "copy")
    return task, target, buffer


def test_command_is_remembered_with_outputs(start_program, tmp_path):
    m = start_program()
    task, target, buffer = count_words(m, tmp_path, "one two")
    assert not is_cached(m, task)
    m = start_program()
    task, target, buffer = count_words(m, tmp_path, "one two")
    assert is_cached(m, task)
    assert target.read_text().strip() == "2"
    assert buffer.contents().strip() == b"2"
    assert (task.std_output, task.exit_code, task.successful()) == ("counted\n", 0, True)


def test_what_matters_makes_another_task(start_program, tmp_path):
    m = start_program()
    assert not is_cached(m, count_words(m, tmp_path, "one")[0])
    changes = [
        {"text": "one two"},
        {"text": "one", "command": "wc -w <in | tee out >copy"},
        {"text": "one", "cores": 2},
        {"text": "one", "variable": "b"},
    ]
    for change in changes:
        assert not is_cached(m, count_words(m, tmp_path, **change)[0]), change
    for change in [{"text": "one"}, *changes]:
        assert is_cached(m, count_words(m, tmp_path, **change)[0]), change


def test_function_is_remembered_by_what_it_does(start_program):
    m = start_program()
    assert not is_cached(m, PythonTask(make_multiplier(2), 3))
    again = PythonTask(make_multiplier(2), 3)
    assert is_cached(m, again)
    assert again.output == 6
    # the arguments are the same, the functions are not
    other = PythonTask(make_multiplier(5), 3)
    assert not is_cached(m, other)
    assert other.output == 15
    assert not is_cached(m, PythonTask(make_multiplier(2), 4))


def test_edited_module_makes_another_task(start_program, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_cache.py").write_text("def value():\n    return 1\n")
    import helper_of_cache

    def call():
        import helper_of_cache

        return helper_of_cache.value()

    m = start_program()
    assert not is_cached(m, PythonTask(call))
    assert is_cached(m, PythonTask(call))
    (tmp_path / "helper_of_cache.py").write_text("def value():\n    return 22\n")
    task = PythonTask(call)
    assert not is_cached(m, task)
    assert task.output == 22
    del sys.modules[helper_of_cache.__name__]
    # its text is not part of the key any more
    assert not is_cached(m, PythonTask(call))
    assert not is_cached(m, PythonTask(call))


def test_large_result_is_remembered(start_program):
    m = start_program()
    assert not is_cached(m, PythonTask(sample_tasks.make_bytes, 300_000))
    m = start_program()
    task = PythonTask(sample_tasks.make_bytes, 300_000)
    assert is_cached(m, task)
    assert task.output == sample_tasks.make_bytes(300_000)


def test_calls_are_remembered_by_their_library(start_program):
    for cached in (False, True):
        m = start_program()
        library = m.create_library_from_functions("lib", sample_tasks.add, max)
        library.set_cores(1)
        m.install_library(library)
        task = FunctionCall("lib", "add", 1, y=2)
        assert not is_cached(m, task)
        m.remove_library("lib")
        library = m.create_library_from_functions("lib", sample_tasks.add, subtract)
        library.set_cores(1)
        m.install_library(library)
        task = FunctionCall("lib", "add", 1, y=2)
        assert is_cached(m, task) is cached
        assert task.output == 3
        other = FunctionCall("lib", "subtract", 1, y=2)
        assert is_cached(m, other) is cached
        assert other.output == -1
    m.remove_library("lib")

    def add_otherwise(x, y):
        return x - y

    add_otherwise.__name__ = "add"
    library = m.create_library_from_functions("lib", add_otherwise)
    library.set_cores(1)
    m.install_library(library)
    task = FunctionCall("lib", "add", 1, y=2)
    assert not is_cached(m, task)
    assert task.output == -1


def test_output_of_task_is_known_input(start_program, tmp_path):
    """A task is remembered although its input was made by another one in the same program."""
    for cached in (False, True):
        m = start_program()
        middle = m.declare_file(tmp_path / "middle")
        first = Task("echo text >out", cores=1)
        first.add_output(middle, "out")
        second = Task("cat in", cores=1)
        second.add_input(middle, "in")
        assert is_cached(m, first) is cached
        assert is_cached(m, second) is cached
        assert second.std_output == "text\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Task("exit 3"),
        lambda: PythonTask(random.random),
        lambda: PythonTask(lambda: time.time() + 1),
        lambda: PythonTask(time.time),
        lambda: PythonTask(lambda: os.environ.get("ANALYSIS_MODE")),
        lambda: PythonTask(lambda: 1 / 0),
        lambda: PythonTask(lambda: subprocess.run(["true"], check=True).returncode),
        lambda: PythonTask(lambda: sorted(os.listdir("/tmp"))),
    ],
    ids=["exit", "random", "time", "C", "variable", "exception", "process", "folder"],
)
def test_unknown_dependencies_are_not_remembered(uncertain, make):
    assert [is_cached(uncertain, make()) for _ in range(2)] == [False, False]


@pytest.fixture(scope="module")
def uncertain(shared_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    manager = shared_cluster.start_manager()
    manager.enable_tasks_cache(folder / "cache", folder / "cache.log")
    shared_cluster.start_worker(manager, "--cores", "2")
    return manager


def test_temporary_files_are_not_remembered(uncertain):
    for _ in range(2):
        temp = uncertain.declare_temp()
        task = Task("echo >out", cores=1)
        task.add_output(temp, "out")
        assert not is_cached(uncertain, task)
        reader = Task("cat in", cores=1)
        reader.add_input(temp, "in")
        assert not is_cached(uncertain, reader)


def test_damaged_entries_run_again(start_program, tmp_path, caplog):
    m = start_program()
    assert not is_cached(m, PythonTask(make_multiplier(1), 1))
    assert not is_cached(m, PythonTask(make_multiplier(1), 2))
    m.close()
    records = [json.loads(line) for line in (tmp_path / "cache.log").read_text().splitlines() if line]
    (tmp_path / "cache" / records[0]["result"]["file"]).write_bytes(b"damaged")
    with (tmp_path / "cache.log").open("a") as log:
        log.write('{"version": 1, "key": ')
    m = start_program()
    first, second = PythonTask(make_multiplier(1), 1), PythonTask(make_multiplier(1), 2)
    assert not is_cached(m, first)
    assert first.output == 1
    assert "is damaged, so its task runs again" in caplog.text
    assert is_cached(m, second)
    # what is written after the line that another program could not complete is read
    m = start_program()
    assert is_cached(m, PythonTask(make_multiplier(1), 1))


def test_programs_with_other_hashes_share_entries(tmp_path, local_cluster):
    """Sets and dictionaries have another order in each program."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    found = []
    for seed in ("1", "2"):
        variables = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        made = subprocess.run([sys.executable, script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)  # fmt: skip
        found.append(made.stdout)
    assert "CACHED" not in found[0]
    assert found[1] == "CACHED 14\n"
    assert list((tmp_path / "vine-cache-outputs").glob("*.output"))


PROGRAM = """
from vinecore import Factory, Manager, PythonTask

def area(sizes, scale):
    return sizes["width"] * sizes["height"] + scale

with Manager(port=0) as m, Factory("local", manager=m, cores=1, max_workers=1):
    m.enable_tasks_cache()
    m.submit(PythonTask(area, {"width": 3, "height": 4}, scale=2))
    task = m.wait(60)
    print(task.hostname, task.output)
"""


def test_caches_of_several_programs_agree(tmp_path):
    """Many write the same entries at the same time, and each finds all of them."""
    caches = [TaskCache(str(tmp_path / "cache"), str(tmp_path / "log")) for _ in range(4)]
    threads = [
        threading.Thread(
            target=lambda cache=cache: [
                cache.add(f"{n:064}", NewContent(b"%d" % n), [], {}) for n in range(30)
            ]
        )
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cache in caches:
        cache.close()
    late = TaskCache(str(tmp_path / "cache"), str(tmp_path / "log"))
    for cache in (*caches, late):
        for n in range(30):
            _entry, contents = cache.find(f"{n:064}")
            assert contents == [b"%d" % n]
    late.close()
    lines = (tmp_path / "log").read_text().split("\n")
    assert len([line for line in lines if line]) == 30
    assert len(os.listdir(tmp_path / "cache")) == 30


def test_entry_of_other_program_is_kept(tmp_path):
    """A program that waits for the lock finds that another one has been faster."""
    key, line = "0" * 64, ""
    other = TaskCache(str(tmp_path / "cache"), str(tmp_path / "other log"))
    other.add(key, NewContent(b"first"), [], {})
    other.close()
    line = (tmp_path / "other log").read_text()
    cache = TaskCache(str(tmp_path / "cache"), str(tmp_path / "log"))
    with (tmp_path / "log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        cache.add(key, NewContent(b"second"), [], {})
        wait_until(lambda: list((tmp_path / "cache").glob(f".{key}*")), "the second content")
        log.write(line)
    cache.close()
    assert (tmp_path / "log").read_text() == line
    _entry, contents = cache.find(key)
    assert contents == [b"first"]


def test_changed_output_is_not_kept(tmp_path):
    """The worker's digest tells that the program has written to an output since."""
    with pytest.raises(ValueError, match="has been changed"):
        _copy(NewContent(b"changed", digest_bytes(b"made")), str(tmp_path / "copy"))


def test_cache_is_enabled_once(start_program, tmp_path):
    with pytest.raises(RuntimeError, match="enabled already"):
        start_program().enable_tasks_cache(tmp_path / "other")
