"""Tasks from submission to result, under TaskVine's names, with a real worker."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import HURRY_S, wait_until
from vinecore import FunctionCall, InsufficientResources, PythonTask, Task, TaskFailed
from vinecore.protocol import INLINE_LIMIT

LARGE = 3 * INLINE_LIMIT


# ---- shell commands


def test_what_a_command_prints_is_its_output_errors_included(run):
    task = run(Task("echo out; echo err >&2"))
    assert (task.output, task.std_output) == ("out\nerr\n", "out\nerr\n")
    assert (task.result, task.exit_code, task.completed(), task.successful()) == ("success", 0, True, True)


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 3", 3), ("no-such-program", 127), ("/etc/passwd", 126), ("kill -TERM $$", signal.SIGTERM)],
)
def test_a_command_that_fails_has_run_and_tells_its_exit_code(run, command, code):
    task = run(Task(command))
    assert (task.result, task.exit_code, task.completed(), task.successful()) == (
        "success",
        code,
        True,
        False,
    )


def test_a_task_says_in_which_state_it_is(m):
    task = Task("true")
    assert (task.state, task.id, task.result, task.exit_code, task.output) == (
        "INITIAL",
        None,
        "unknown",
        -1,
        "",
    )
    number = m.submit(task)
    assert (task.id, task.state) == (number, "READY")
    assert m.wait(60) is task
    assert task.state == "DONE"
    assert task.hostname
    assert "done success" in repr(task)


def test_a_large_output_is_cut_at_its_beginning(run):
    task = run(Task("yes 0123456789 | head -n 200000; echo the end"))
    assert len(task.output) <= 1 << 20
    assert task.output.endswith("the end\n")


def test_output_that_is_not_text_is_shown_as_well_as_it_can_be(run):
    assert run(Task(r"printf '\377ok'")).output == "\ufffdok"


def test_environment_variables_are_set_and_taken_away(run, monkeypatch):
    task = Task('echo "$WORD,${HOME-none}"', env={"WORD": "two words"})
    task.set_env_var("HOME")
    assert run(task).output == "two words,none\n"
    python = PythonTask(lambda: (os.environ["WORD"], os.environ.get("HOME")))
    python.set_env_var("WORD", "x=y")
    python.set_env_var("HOME", None)
    assert run(python).output == ("x=y", None)


@pytest.mark.parametrize(("name", "value"), [("A=B", "1"), ("", "1"), ("A", 1), ("A", "nul\0"), (1, "x")])
def test_what_cannot_be_an_environment_variable_is_refused_at_once(name, value):
    with pytest.raises(ValueError, match="environment variable"):
        Task("true").set_env_var(name, value)


def test_a_task_sees_what_it_was_given_of_the_worker(run):
    task = Task(
        "echo $CORES $MEMORY $DISK $GPUS $OMP_NUM_THREADS; test $TMPDIR -ef .vine && test $VINE_SANDBOX -ef . && echo inside"
    )
    task.set_cores(2)
    task.set_memory(300)
    task.set_disk(200)
    assert run(task).output == "2 300 200 0 2\ninside\n"


def test_a_task_that_says_nothing_gets_a_whole_worker(run):
    assert run(Task("echo $CORES $MEMORY")).output == "4 2000\n"


def test_tasks_run_side_by_side_as_far_as_their_resources_allow(m, shared_cluster):
    tasks = [
        PythonTask(sample_tasks.held, str(shared_cluster.folder), f"side-{n}", "side-gate") for n in range(3)
    ]
    for task in tasks:
        task.set_cores(2)
        m.submit(task)
    wait_until(
        lambda: sum(shared_cluster.count_lines(f"side-{n}") for n in range(3)) == 2,
        "two of three to be running",
    )
    assert m.summarize_workers()[0]["tasks"] == 2
    shared_cluster.path("side-gate").touch()
    assert sorted(m.wait(60).output for _ in tasks) == ["side-0", "side-1", "side-2"]


def test_a_task_that_no_worker_can_hold_waits_and_says_why(m):
    task = Task("true")
    task.set_cores(1000)
    m.submit(task)
    assert "1000" in wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert m.wait(0) is None
    m.cancel_by_task_id(task.id)
    assert m.wait(60).result == "cancelled"
    wait_until(lambda: not m.stalled_reason, "the complaint to end")


def test_a_task_that_no_worker_can_ever_hold_fails(local_cluster):
    from daskvine import DaskVine

    with DaskVine.local(cores=1) as m:
        task = PythonTask(sample_tasks.add, 1, 2)
        task.set_memory(10**9)
        m.submit(task)
        assert m.wait(60) is task
        assert task.result == "resource exhaustion"
        assert isinstance(task.output, InsufficientResources)


def test_what_runs_too_long_is_killed_and_what_it_has_said_is_kept(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_hurried_worker(m)
    command = Task(f"echo begun; touch {local_cluster.path('command')}; sleep 1000")
    function = PythonTask(
        lambda path: (print("begun", flush=True), sample_tasks.note(path), time.sleep(1000)),
        str(local_cluster.path("function")),
    )
    for task in (command, function):
        task.set_cores(1)
        task.set_time_max(HURRY_S)
        m.submit(task)
    wait_until(
        lambda: local_cluster.path("command").exists() and local_cluster.count_lines("function"),
        "both to have said something",
    )
    local_cluster.let_time_pass()
    assert {m.wait(60), m.wait(60)} == {command, function}
    assert {(task.result, task.exit_code, task.successful()) for task in (command, function)} == {
        ("max wall time", 9, False)
    }
    assert not command.completed()
    assert isinstance(command.error(), TaskFailed)
    assert (command.output, function.std_output) == ("begun\n", "begun\n")


@pytest.mark.parametrize("kind", ["command", "function", "fork", "direct", "mini task"])
def test_what_ran_too_long_names_its_limit_and_how_long_it_ran(m, run, kind):
    if kind == "command":
        task = Task("sleep 60", cores=1, time_max=0.25)
    elif kind == "mini task":
        made = m.declare_minitask(Task("sleep 60; touch out", time_max=0.25), "out")
        task = Task("cat in", inputs={made: "in"}, cores=1)
    elif kind == "function":
        task = PythonTask(time.sleep, 60)
        task.set_cores(1)
        task.set_time_max(0.25)
    else:
        library = m.create_library_from_functions(f"sleep-{kind}", time.sleep, exec_mode=kind)
        library.set_cores(1)
        m.install_library(library)
        task = FunctionCall(library.name, "sleep", 60)
        task.set_time_max(0.25)
    error = str(run(task).error())
    if kind in ("fork", "direct"):
        m.remove_library(f"sleep-{kind}")
    said = re.search(r"ended after (\d+\.\d) s, because it ran longer than its time_max of 0\.25 s", error)
    assert float(said[1]) >= 0.2
    assert "memory" not in error
    if kind != "mini task":
        assert (task.result, task.exit_code) == ("max wall time", 9)
        assert "give it more with set_time_max" in error


@pytest.mark.parametrize(("command", "words"), [
    ("mkfifo out", "out is a named pipe: only files"), ("mkdir out; mkfifo out/x", "out/x is a named pipe: only files"),
    ("ln -s /dev/zero out", "out is a device: only files"), ("true", "the task did not make out"),
])  # fmt: skip
def test_an_output_that_cannot_be_one_is_named_as_the_task_knows_it(m, run, tmp_path, command, words):
    for file in (m.declare_file(tmp_path / "o"), m.declare_temp()):
        task = run(Task(command, cores=1, outputs={file: "out"}))
        assert task.result == "output missing"
        assert str(task.error()).endswith((f"output missing: {words}", f"output missing: {words}, folders and links in them can be inputs and outputs"))  # fmt: skip


def test_files_without_a_name_are_called_what_they_are(m, run):
    unpacked = m.declare_untar(m.declare_buffer("no archive"))
    error = str(run(Task("ls in", cores=1, inputs={unpacked: "in"})).error())
    assert "a buffer could not be brought to worker" in error
    assert m.in_words("temp-48cd3c70-31, result-48cd3c70-7") == "a file of declare_temp, the result of task 7"


def test_an_input_that_was_removed_after_it_was_declared_is_said_to_be(m, run, tmp_path):
    path = tmp_path / "gone"
    path.write_bytes(bytes(3_000_000))
    file = m.declare_file(path)
    path.unlink()
    error = str(run(Task("wc in", cores=1, inputs={file: "in"})).error())
    assert f"{path} could not be brought to worker" in error
    assert "it was changed or removed" in error


def test_time_that_is_not_used_up_does_no_harm(run):
    task = Task("echo fine")
    task.set_time_max(1000)
    assert run(task).output == "fine\n"


def test_a_function_that_takes_too_much_memory_is_killed_and_told_how_much(run):
    def hoard():
        hoarded = [bytearray(b"x" * (1 << 20)) for _ in range(1000)]
        time.sleep(1000)
        return len(hoarded)

    task = PythonTask(hoard)
    task.set_memory(100)
    task.set_cores(1)
    run(task)
    assert (task.result, task.exit_code, task.successful()) == ("resource exhaustion", 9, False)
    assert "its limit is 100 MB" in str(task.output)
    assert "resources" in str(task.output)


def test_a_command_that_takes_too_much_disk_is_killed(run):
    task = Task("dd if=/dev/zero of=big bs=1M count=64 2>/dev/null; sleep 1000")
    task.set_disk(16)
    task.set_cores(1)
    run(task)
    assert (task.result, task.exit_code) == ("resource exhaustion", 9)
    assert "16 MB" in str(task.error())


def test_what_a_task_used_is_measured(run):
    task = Task("sleep 0.5")
    task.set_cores(1)
    run(task)
    assert task.resources_measured["wall_s"] >= 0.5
    assert task.resources_measured["memory"] >= 1


@pytest.mark.parametrize("name", ["../x", "/abs", "a/../../x", "..", ".", "", "a\0b", "\udcff"])
def test_a_name_that_leads_out_of_the_sandbox_is_refused_at_once(m, name):
    file = m.declare_buffer("x")
    with pytest.raises(ValueError):  # noqa: PT011 - the last one cannot be encoded
        Task("true").add_input(file, name)
    with pytest.raises(ValueError):  # noqa: PT011
        Task("true").add_output(m.declare_temp(), name)


@pytest.mark.parametrize("command", ["echo \0", "echo \udcff"])
def test_a_command_that_cannot_be_sent_is_refused_at_once(m, command):
    with pytest.raises(ValueError):  # noqa: PT011 - the second one cannot be encoded
        m.submit(Task(command))
    assert m.empty()


def test_what_is_not_a_file_cannot_be_an_input(m):
    with pytest.raises(TypeError, match="declare it first"):
        Task("true").add_input("/etc/hostname", "in")


def test_negative_retries_are_refused():
    with pytest.raises(ValueError, match="retries"):
        Task("true", retries=-1)


def test_a_task_may_be_submitted_again_when_it_has_come_back(m, shared_cluster):
    task = Task(f"echo x >> {shared_cluster.path('again')}; wc -l < {shared_cluster.path('again')}")
    for expected in ("1\n", "2\n"):
        m.submit(task)
        with pytest.raises(ValueError, match="has been submitted already"):
            m.submit(task)
        assert m.wait(60).output == expected


def test_a_python_task_that_is_submitted_again_gives_its_new_result(m, shared_cluster):
    task = PythonTask(sample_tasks.counted, str(shared_cluster.folder), "python-again", None)
    task._args = (str(shared_cluster.folder), "python-again", 1)
    m.submit(task)
    assert m.wait(60).output == 1
    task._args = (str(shared_cluster.folder), "python-again", 2)
    m.submit(task)
    assert m.wait(60).output == 2


# ---- Python functions


def test_a_function_is_called_with_its_arguments(run):
    assert run(PythonTask(lambda *args, **kwargs: (args, kwargs), 1, "two", key=[3])).output == (
        (1, "two"),
        {"key": [3]},
    )


def test_a_function_sees_what_its_globals_are_when_it_is_submitted(run):
    value = 1

    def look():
        return value

    assert run(PythonTask(look)).output == 1
    value = 2
    assert run(PythonTask(look)).output == 2


def test_what_a_function_prints_is_kept_beside_its_result(run):
    def talk():
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
        return 7

    task = run(PythonTask(talk))
    assert task.output == 7
    assert sorted(task.std_output.splitlines()) == ["from a child", "to stderr", "to stdout"]


def test_an_exception_is_the_output_with_its_type_and_traceback(run):
    def fail():
        print("about to fail")
        cause = ValueError("the cause")
        raise KeyError("the key") from cause

    task = run(PythonTask(fail))
    assert isinstance(task.output, KeyError)
    assert isinstance(task.output.__cause__, ValueError)
    assert (task.completed(), task.successful(), task.exit_code, task.std_output) == (
        True,
        False,
        1,
        "about to fail\n",
    )
    frames = []
    traceback = task.output.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "fail" in frames


def test_what_an_exception_holds_that_cannot_be_sent_is_told_in_words(run):
    class Odd(Exception):
        def __init__(self):
            super().__init__("odd words")
            self.lock = __import__("threading").Lock()

    def fail():
        raise Odd

    output = run(PythonTask(fail)).output
    assert type(output).__name__ == "Odd"
    assert output.args == ("odd words",)
    assert "its attribute 'lock'" in output.__notes__[0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit, RecursionError])
def test_whatever_a_function_raises_comes_back_once(run, tmp_path, kind):
    def fail():
        with open(tmp_path / "log", "a") as log:
            log.write("ran\n")
        raise kind("said so")

    task = run(PythonTask(fail))
    assert (type(task.output), task.output.args, task.successful()) == (kind, ("said so",), False)
    assert (tmp_path / "log").read_text() == "ran\n"


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_result_that_cannot_be_loaded_here_is_no_success(run, size):
    here = os.getpid()

    class OnlyThere:
        def __reduce__(self):
            return only_elsewhere, (here, b"x" * size)

    def only_elsewhere(pid, _content):
        if os.getpid() == pid:
            raise RuntimeError("not in this process")
        return OnlyThere()

    task = run(PythonTask(OnlyThere))
    assert task.completed()
    assert not task.successful()
    assert isinstance(task.output, RuntimeError)
    assert task.error() is task.output
    assert f"task {task.id} has a result that could not be loaded here" in task.output.__notes__


@pytest.mark.parametrize("code", [0, 5, "words"])
def test_sys_exit_in_a_function_is_an_exception_like_others(run, code):
    task = run(PythonTask(sys.exit, code))
    assert isinstance(task.output, SystemExit)
    assert task.output.code == code
    assert not task.successful()


BUILTIN = [
    UnicodeDecodeError("utf-8", b"abc", 1, 2, "invalid"),
    SyntaxError("bad", ("file.py", 3, 4, "x = = 1")),
    FileNotFoundError(2, "No such file", "name"),
    ImportError("no", name="module"),
    StopIteration(3),
    KeyError("key"),
]


@pytest.mark.parametrize("error", BUILTIN, ids=lambda error: type(error).__name__)
def test_exceptions_of_python_itself_arrive_complete(run, error):
    def fail():
        try:
            raise error
        except Exception as first:
            raise RuntimeError("second") from first

    found = run(PythonTask(fail)).output.__cause__
    assert (type(found), str(found), found.args) == (type(error), str(error), error.args)
    assert found.__traceback__ is not None


def test_a_result_that_cannot_be_sent_is_an_exception(run):
    task = run(PythonTask(lambda: __import__("threading").Lock()))
    assert isinstance(task.output, TypeError)
    assert "pickle" in str(task.output)


def test_an_argument_that_cannot_be_sent_is_refused_at_once(m):
    import threading

    with pytest.raises(TypeError, match="pickle"):
        m.submit(PythonTask(sample_tasks.length, threading.Lock()))
    assert m.empty()


@pytest.mark.parametrize("size", [0, 10, LARGE])
def test_results_of_any_size_come_back(run, size):
    assert run(PythonTask(lambda: bytes(size))).output == bytes(size)
    raw = PythonTask(lambda: b"r" * size)
    raw.disable_output_serialization()
    assert run(raw).output == b"r" * size


def test_without_serialization_a_result_that_is_not_bytes_is_an_exception(run):
    raw = PythonTask(lambda: "text")
    raw.disable_output_serialization()
    assert isinstance(run(raw).output, TypeError)


def test_an_array_that_comes_back_may_be_written_to(run):
    numpy = pytest.importorskip("numpy")
    for size in (10, 100_000):
        array = run(PythonTask(numpy.arange, size)).output
        array += 1
        assert array.sum() == size * (size + 1) // 2


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_result_may_stay_on_the_worker_and_be_the_argument_of_others(m, run, size):
    first = PythonTask(sample_tasks.make_bytes, size)
    first.enable_temp_output()
    second = PythonTask(sample_tasks.length, first.output_file)
    m.submit(first)
    second = PythonTask(sample_tasks.length, first.output_file)  # need not wait for the first
    keyword = PythonTask(sample_tasks.length, data=first.output_file)
    m.submit(second)
    m.submit(keyword)
    ended = {m.wait(60) for _ in range(3)}
    assert ended == {first, second, keyword}
    expected = len(sample_tasks.make_bytes(size))
    assert second.output == keyword.output == expected
    assert first.output_file.value() == sample_tasks.make_bytes(size)
    assert first.output == sample_tasks.make_bytes(size)


def test_who_needs_the_result_of_a_task_that_failed_fails_too(m):
    first = PythonTask(sample_tasks.add, 1, None)
    first.enable_temp_output()
    m.submit(first)
    second = PythonTask(sample_tasks.length, first.output_file)
    m.submit(second)
    ended = {m.wait(60).id: None for _ in range(2)}
    assert set(ended) == {first.id, second.id}
    assert isinstance(first.output, TypeError)
    assert second.result == "input missing"
    third = PythonTask(sample_tasks.length, first.output_file)
    m.submit(third)
    assert m.wait(60) is third
    assert third.result == "input missing"


def test_a_function_has_a_folder_of_its_own_with_its_files(m, run):
    def work():
        with open("in") as source, open("out", "w") as target:
            target.write(source.read().upper())
        return sorted(name for name in os.listdir() if not name.startswith("."))

    output = m.declare_buffer()
    task = PythonTask(work)
    task.add_input(m.declare_buffer("text"), "in")
    task.add_output(output, "out")
    assert run(task).output == ["in", "out"]
    assert output.contents() == b"TEXT"


def test_what_is_not_callable_cannot_be_a_python_task():
    with pytest.raises(TypeError, match="cannot be called"):
        PythonTask(3)


def test_a_python_task_does_not_change_the_next_one(run):
    def change():
        os.chdir("/")
        os.environ["CHANGED"] = "1"
        sys.modules["changed"] = sys
        return os.getpid()

    def look():
        return os.environ.get("CHANGED"), "changed" in sys.modules, os.getcwd() == "/", os.getpid()

    first = run(PythonTask(change)).output
    assert run(PythonTask(look)).output[:3] == (None, False, False)
    assert run(PythonTask(look)).output[3] != first


# ---- outputs


def test_an_output_that_is_not_made_is_missing(m, run):
    task = Task("echo printed")
    task.add_output(m.declare_temp(), "never-made")
    run(task)
    assert (task.result, task.completed(), task.std_output, task.exit_code) == (
        "output missing",
        False,
        "printed\n",
        0,
    )
    assert "never-made" in str(task.error())


def test_outputs_may_be_wanted_of_a_success_or_of_a_failure_only(m, run):
    for code, expected in ((0, [b"log\n", None]), (1, [None, b"log\n"])):
        files = [m.declare_buffer(), m.declare_buffer()]
        task = Task(f"echo log | tee of-success > of-failure; exit {code}")
        task.add_output(files[0], "of-success", success_only=True)
        task.add_output(files[1], "of-failure", failure_only=True)
        assert run(task).exit_code == code
        for file, content in zip(files, expected, strict=True):
            if content is None:
                with pytest.raises(FileNotFoundError):
                    file.contents()
            else:
                assert file.contents() == content


def test_outputs_of_a_command_that_fails_are_brought_all_the_same(m, run):
    file = m.declare_buffer()
    task = Task("echo partial > out; exit 3")
    task.add_output(file, "out")
    assert run(task).exit_code == 3
    assert file.contents() == b"partial\n"


def test_an_output_in_a_folder_that_the_task_makes_is_found(m, run):
    file = m.declare_buffer()
    task = Task("mkdir -p a/b; echo deep > a/b/out")
    task.add_output(file, "a/b/out")
    run(task)
    assert file.contents() == b"deep\n"


def test_an_output_that_is_a_link_is_what_it_points_to(m, run, shared_cluster):
    outside = shared_cluster.path("outside")
    outside.write_text("outside\n")
    inner, outer, dangling = m.declare_buffer(), m.declare_buffer(), m.declare_buffer()
    task = Task(f"echo inner > real; ln -s real link; ln -s {outside} out; ln -s nowhere dangling")
    task.add_output(inner, "link")
    task.add_output(outer, "out")
    run(task)
    assert (inner.contents(), outer.contents(), outside.read_text()) == (
        b"inner\n",
        b"outside\n",
        "outside\n",
    )
    task = Task("ln -s nowhere dangling")
    task.add_output(dangling, "dangling")
    assert run(task).result == "output missing"


def test_the_mode_of_a_file_survives_every_way_it_can_take(m, run, shared_cluster):
    script = shared_cluster.path("script.sh")
    script.write_text("#!/bin/sh\necho I run\n")
    script.chmod(0o755)
    task = Task("./script")
    task.add_input(m.declare_file(script), "script")
    assert run(task).output == "I run\n"
    temp, brought = m.declare_temp(), m.declare_file(shared_cluster.path("brought"))
    make = Task("printf '#!/bin/sh\\necho made\\n' | tee one > two; chmod 755 one two")
    make.add_output(temp, "one")
    make.add_output(brought, "two")
    run(make)
    assert stat.S_IMODE(shared_cluster.path("brought").stat().st_mode) == 0o755
    for file in (temp, brought):
        task = Task("./program")
        task.add_input(file, "program")
        assert run(task).output == "made\n"


# ---- who needs more than is ever free at once


def test_an_urgent_task_that_needs_a_whole_worker_does_not_wait_for_all_small_ones(m, shared_cluster):
    holders = [
        PythonTask(sample_tasks.held, str(shared_cluster.folder), f"small-{n}", f"small-gate-{n}")
        for n in range(4)
    ]
    for task in holders:
        task.set_cores(1)
        m.submit(task)
    wait_until(
        lambda: all(shared_cluster.count_lines(f"small-{n}") for n in range(4)), "all cores to be taken"
    )
    small = [Task("true", cores=1) for _ in range(30)]
    for task in small:
        m.submit(task)
    whole = Task("echo $CORES", priority=1)
    m.submit(whole)
    for n in range(4):
        shared_cluster.path(f"small-gate-{n}").touch()
    order = [m.wait(60) for _ in (*holders, *small, whole)]
    assert whole.output == "4\n"
    assert order.index(whole) < 15
    assert all(task.successful() for task in order)


# ---- what is too large to start a program with


def test_a_command_that_is_too_long_is_called_so_with_the_limit_and_the_way_out(run):
    task = run(Task(f"echo {'x' * 200_000}"))
    assert task.result == "not started"
    assert not task.completed()
    text = str(task.error())
    assert "its command has 200,005 bytes, and this system takes 131,071 in one argument" in text
    assert "m.declare_buffer" in text


def test_a_variable_that_is_too_long_is_named(run):
    task = run(Task("true", env={"SHORT": "x", "LONG": "y" * 200_000}))
    assert task.result == "not started"
    assert "its environment variable LONG has 200,005 bytes, and this system takes 131,071 for one" in str(
        task.error()
    )


def test_many_variables_that_are_too_much_together_are_called_so(run):
    task = run(Task("true", env={f"V{number}": "z" * 100_000 for number in range(80)}))
    assert task.result == "not started"
    assert "its command and its environment variables have 8," in str(task.error())


def test_a_script_in_a_buffer_may_be_as_long_as_it_likes(m, run):
    script = m.declare_buffer(f"echo {'x' * 200_000} | wc -c\n")
    assert run(Task("sh script", inputs={script: "script"})).output.strip() == "200001"


def test_a_python_task_starts_no_program_so_its_variables_may_be_long(run):
    task = PythonTask(lambda: len(os.environ["LONG"]))
    task.set_env_var("LONG", "y" * 200_000)
    assert run(task).output == 200_000


def test_a_library_with_a_variable_that_is_too_long_says_so_at_once(m):
    library = m.create_library_from_functions("long", sample_tasks.add)
    library.set_env_var("LONG", "y" * 200_000)
    m.install_library(library)
    call = FunctionCall("long", "add", 1, 2)
    m.submit(call)
    assert m.wait(60) is call
    assert "its environment variable LONG has 200,005 bytes" in str(call.output)
    m.remove_library("long")


@pytest.mark.parametrize("slow", [False, True], ids=["over before anybody looks", "while it runs"])
@pytest.mark.parametrize("function", [False, True])
def test_what_a_task_prints_counts_as_disk(run, function, slow):
    command = "head -c 20000000 /dev/zero" + ("; sleep 100" if slow else "")
    task = PythonTask(subprocess.call, command, shell=True) if function else Task(command)
    task.set_cores(1)
    task.set_disk(10)
    run(task)
    assert task.result == "resource exhaustion"
    # it may be looked at before all is written
    assert re.search(r"it used [12]\d MB of disk, its limit is 10 MB", str(task.error()))


def test_inputs_do_not_count_as_what_a_task_writes(m, run):
    file = m.declare_buffer(bytes(15_000_000))
    task = Task("sleep 0.5; cat in in in in > /dev/null; head -c 5000000 /dev/zero > out")
    task.set_cores(1)
    task.set_disk(10)
    task.add_input(file, "in")
    assert run(task).successful()


# ---- what cannot be sent


def test_unpicklable_argument_is_named(m):
    for task, name in (
        (PythonTask(sample_tasks.add, 1, {"a": threading.Lock()}), "argument 2"),
        (PythonTask(sample_tasks.add, 1, y={"a": threading.Lock()}), "y"),
    ):
        with pytest.raises(TypeError) as caught:
            m.submit(task)
        (note,) = caught.value.__notes__
        assert note.startswith(
            f"{name} cannot be sent to a worker: a dict cannot be pickled, because ['a'] is a _thread.lock"
        )


def test_unpicklable_function_is_named(m):
    lock = threading.Lock()
    with pytest.raises(TypeError) as caught:
        m.submit(PythonTask(lambda: lock))
    assert "because lock is a _thread.lock" in " ".join(caught.value.__notes__)


def test_a_result_that_cannot_be_pickled_is_told_with_the_function_and_the_type(run):
    def make_lock():
        return threading.Lock()

    notes = "\n".join(run(PythonTask(make_lock)).error().__notes__)
    assert "a _thread.lock cannot be pickled" in notes
    assert "make_lock) failed" in notes


@pytest.mark.parametrize("value", [5, "text", [1, 2]])
def test_a_function_that_says_it_returns_bytes_and_does_not_is_told(run, value):
    task = PythonTask(lambda: value)
    task.disable_output_serialization()
    error = run(task).error()
    assert isinstance(error, TypeError)
    assert f"it returned a {type(value).__name__}" in str(error)
