"""Tasks from submission to result, under TaskVine's names, with a real worker."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
import time

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import HURRY_S, PATIENCE_S, wait_until
from vinecore import FunctionCall, InsufficientResources, PythonTask, Task, TaskFailed
from vinecore.protocol import INLINE_LIMIT

LARGE = 3 * INLINE_LIMIT


# ---- shell commands


def test_output_of_command_includes_errors(run):
    """What a command prints is its output errors included."""
    task = run(Task("echo out; echo err >&2"))
    assert (task.output, task.std_output) == ("out\nerr\n", "out\nerr\n")
    assert (task.result, task.exit_code, task.completed(), task.successful()) == ("success", 0, True, True)


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 3", 3), ("no-such-program", 127), ("/etc/passwd", 126)],
)
def test_failing_command_returns_exit_code(run, command, code):
    """A command that fails has run and tells its exit code."""
    task = run(Task(command))
    assert (task.result, task.exit_code, task.completed(), task.successful()) == (
        "success",
        code,
        True,
        False,
    )


def test_task_reports_its_state(m):
    """A task says in which state it is, and what it was given."""
    task = Task("true", tag="mine", category="fits")
    assert (task.command, task.tag, task.category) == ("true", "mine", "fits")
    assert (task.state, task.id, task.result, task.exit_code, task.output) == (
        "INITIAL",
        None,
        "unknown",
        -1,
        "",
    )
    number = m.submit(task)
    assert (task.id, task.state) == (number, "READY")
    assert m.wait(PATIENCE_S) is task
    assert task.state == "DONE"
    assert task.hostname
    assert "done success" in repr(task)


def test_large_output_is_cut_at_beginning(run):
    """A large output is cut at its beginning."""
    task = run(Task("yes 0123456789 | head -n 200000; echo the end"))
    assert len(task.output) <= 1 << 20
    assert task.output.endswith("the end\n")


def test_non_text_output_is_shown_escaped(run):
    """Output that is not text is shown as well as it can be."""
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
def test_invalid_variable_is_refused_at_once(name, value):
    """What cannot be an environment variable is refused at once."""
    with pytest.raises(ValueError, match="environment variable"):
        Task("true").set_env_var(name, value)


def test_task_sees_its_allocation(run):
    """A task sees what it was given of the worker."""
    task = Task(
        "echo $CORES $MEMORY $DISK $GPUS $OMP_NUM_THREADS; test $TMPDIR -ef .vine && test $VINE_SANDBOX -ef . && echo inside"
    )
    task.set_cores(2)
    task.set_memory(300)
    task.set_disk(200)
    assert run(task).output == "2 300 200 0 2\ninside\n"


def test_unspecified_task_gets_whole_worker(run):
    """A task that says nothing gets a whole worker."""
    assert run(Task("echo $CORES $MEMORY")).output == "4 2000\n"


def test_tasks_run_concurrently_within_resources(m, shared_cluster):
    """Tasks run side by side as far as their resources allow."""
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
    assert sorted(m.wait(PATIENCE_S).output for _ in tasks) == ["side-0", "side-1", "side-2"]


def test_unplaceable_task_waits_with_reason(m):
    """A task that no worker can hold waits and says why."""
    task = Task("true")
    task.set_cores(1000)
    m.submit(task)
    assert "1000" in wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert m.wait(0) is None
    m.cancel_by_task_id(task.id)
    assert m.wait(PATIENCE_S).result == "cancelled"
    wait_until(lambda: not m.stalled_reason, "the complaint to end")


def test_impossible_task_fails(local_cluster):
    """A task that no worker can ever hold fails."""
    from daskvine import DaskVine

    with DaskVine.local(cores=1) as m:
        task = PythonTask(sample_tasks.add, 1, 2)
        task.set_memory(10**9)
        m.submit(task)
        assert m.wait(PATIENCE_S) is task
        assert task.result == "resource exhaustion"
        assert isinstance(task.error(), InsufficientResources)


def test_overlong_task_is_killed_keeping_output(local_cluster):
    """What runs too long is killed and what it has said is kept."""
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
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {command, function}
    assert {(task.result, task.exit_code, task.successful()) for task in (command, function)} == {
        ("max wall time", 9, False)
    }
    assert not command.completed()
    assert isinstance(command.error(), TaskFailed)
    assert (command.output, function.std_output) == ("begun\n", "begun\n")


@pytest.mark.parametrize("kind", ["command", "function", "fork", "direct", "mini task"])
def test_overlong_task_names_limit_and_duration(m, run, kind):
    """What ran too long names its limit and how long it ran."""
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
def test_impossible_output_is_named_as_declared(m, run, tmp_path, command, words):
    """An output that cannot be one is named as the task knows it."""
    for file in (m.declare_file(tmp_path / "o"), m.declare_temp()):
        task = run(Task(command, cores=1, outputs={file: "out"}))
        assert task.result == "output missing"
        assert str(task.error()).endswith((f"output missing: {words}", f"output missing: {words}, folders and links in them can be inputs and outputs"))  # fmt: skip


def test_unnamed_files_are_described(m, run):
    """Files without a name are called what they are."""
    unpacked = m.declare_untar(m.declare_buffer("no archive"))
    error = str(run(Task("ls in", cores=1, inputs={unpacked: "in"})).error())
    assert "a buffer could not be brought to worker" in error
    assert m.in_words("temp-48cd3c70-31, result-48cd3c70-7") == "a file of declare_temp, the result of task 7"


def test_input_removed_after_declaration_is_reported(m, run, tmp_path):
    """An input that was removed after it was declared is said to be."""
    path = tmp_path / "gone"
    path.write_bytes(bytes(3_000_000))
    file = m.declare_file(path)
    path.unlink()
    error = str(run(Task("wc in", cores=1, inputs={file: "in"})).error())
    assert f"{path} could not be brought to worker" in error
    assert "it was changed or removed" in error


def test_unused_time_limit_is_harmless(run):
    """Time that is not used up does no harm."""
    task = Task("echo fine")
    task.set_time_max(1000)
    assert run(task).output == "fine\n"


def test_function_exceeding_memory_is_killed(run):
    """A function that takes too much memory is killed and told how much."""

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


def test_command_exceeding_disk_is_killed(run):
    """A command that takes too much disk is killed."""
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
    assert task.resources_measured["wall_time"] >= 0.5
    assert task.resources_measured["memory"] >= 1


@pytest.mark.parametrize("name", ["../x", "/abs", "a/../../x", "..", ".", "", "a\0b", "\udcff"])
def test_escaping_file_name_is_refused(m, name):
    """A name that leads out of the sandbox is refused at once."""
    file = m.declare_buffer("x")
    with pytest.raises(ValueError):  # noqa: PT011 - the last one cannot be encoded
        Task("true").add_input(file, name)
    with pytest.raises(ValueError):  # noqa: PT011
        Task("true").add_output(m.declare_temp(), name)


@pytest.mark.parametrize("command", ["echo \0", "echo \udcff"])
def test_unsendable_command_is_refused_at_once(m, command):
    """A command that cannot be sent is refused at once."""
    with pytest.raises(ValueError):  # noqa: PT011 - the second one cannot be encoded
        m.submit(Task(command))
    assert m.empty()


def test_non_file_input_is_refused(m):
    """What is not a file cannot be an input."""
    with pytest.raises(TypeError, match="declare it first"):
        Task("true").add_input("/etc/hostname", "in")


def test_negative_retries_are_refused():
    with pytest.raises(ValueError, match="retries"):
        Task("true", retries=-1)


def test_returned_task_can_be_resubmitted(m, shared_cluster):
    """A task may be submitted again when it has come back."""
    task = Task(f"echo x >> {shared_cluster.path('again')}; wc -l < {shared_cluster.path('again')}")
    for expected in ("1\n", "2\n"):
        m.submit(task)
        with pytest.raises(ValueError, match="has been submitted already"):
            m.submit(task)
        assert m.wait(PATIENCE_S).output == expected


def test_resubmitted_python_task_has_new_result(m, shared_cluster):
    """A python task that is submitted again gives its new result."""
    task = PythonTask(sample_tasks.counted, str(shared_cluster.folder), "python-again", None)
    task._args = (str(shared_cluster.folder), "python-again", 1)
    m.submit(task)
    assert m.wait(PATIENCE_S).output == 1
    task._args = (str(shared_cluster.folder), "python-again", 2)
    m.submit(task)
    assert m.wait(PATIENCE_S).output == 2


# ---- Python functions


def test_a_function_is_called_with_its_arguments(run):
    assert run(PythonTask(lambda *args, **kwargs: (args, kwargs), 1, "two", key=[3])).output == (
        (1, "two"),
        {"key": [3]},
    )


def test_function_sees_globals_at_submission(run):
    """A function sees what its globals are when it is submitted."""
    value = 1

    def look():
        return value

    assert run(PythonTask(look)).output == 1
    value = 2
    assert run(PythonTask(look)).output == 2


def test_printed_output_is_beside_result(run):
    """What a function prints is kept beside its result."""

    def talk():
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.system("echo from a child")
        return 7

    task = run(PythonTask(talk))
    assert task.output == 7
    assert sorted(task.std_output.splitlines()) == ["from a child", "to stderr", "to stdout"]


def test_exception_is_output_with_traceback(run):
    """An exception is the output with its type and traceback."""

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


def test_unpicklable_exception_content_is_described(run):
    """What an exception holds that cannot be sent is told in words."""

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
def test_unloadable_result_is_failure(run, size):
    """A result that cannot be loaded here is no success."""
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
def test_sys_exit_is_ordinary_exception(run, code):
    """Sys exit in a function is an exception like others."""
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


def test_unsendable_result_is_exception(run):
    """A result that cannot be sent is an exception."""
    task = run(PythonTask(lambda: __import__("threading").Lock()))
    assert isinstance(task.output, TypeError)
    assert "pickle" in str(task.output)


def test_unsendable_argument_is_refused_at_once(m):
    """An argument that cannot be sent is refused at once."""
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


def test_unserialized_result_must_be_bytes(run):
    """Without serialization a result that is not bytes is an exception."""
    raw = PythonTask(lambda: "text")
    raw.disable_output_serialization()
    assert isinstance(run(raw).output, TypeError)


def test_returned_array_is_writable(run):
    """An array that comes back may be written to."""
    numpy = pytest.importorskip("numpy")
    for size in (10, 100_000):
        array = run(PythonTask(numpy.arange, size)).output
        array += 1
        assert array.sum() == size * (size + 1) // 2


@pytest.mark.parametrize("size", [100, LARGE])
def test_result_on_worker_serves_as_argument(m, run, size):
    """A result may stay on the worker and be the argument of others."""
    first = PythonTask(sample_tasks.make_bytes, size)
    first.enable_temp_output()
    second = PythonTask(sample_tasks.length, first.output_file)
    m.submit(first)
    second = PythonTask(sample_tasks.length, first.output_file)  # need not wait for the first
    keyword = PythonTask(sample_tasks.length, data=first.output_file)
    m.submit(second)
    m.submit(keyword)
    ended = {m.wait(PATIENCE_S) for _ in range(3)}
    assert ended == {first, second, keyword}
    expected = len(sample_tasks.make_bytes(size))
    assert second.output == keyword.output == expected
    assert first.output_file.value() == sample_tasks.make_bytes(size)
    assert first.output == sample_tasks.make_bytes(size)


def test_reader_of_failed_task_fails(m):
    """Who needs the result of a task that failed fails too."""
    first = PythonTask(sample_tasks.add, 1, None)
    first.enable_temp_output()
    m.submit(first)
    second = PythonTask(sample_tasks.length, first.output_file)
    m.submit(second)
    ended = {m.wait(PATIENCE_S).id: None for _ in range(2)}
    assert set(ended) == {first.id, second.id}
    assert isinstance(first.output, TypeError)
    assert second.result == "input missing"
    third = PythonTask(sample_tasks.length, first.output_file)
    m.submit(third)
    assert m.wait(PATIENCE_S) is third
    assert third.result == "input missing"


def test_function_has_own_folder_with_files(m, run):
    """A function has a folder of its own with its files."""

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


def test_non_callable_is_refused():
    """What is not callable cannot be a python task."""
    with pytest.raises(TypeError, match="cannot be called"):
        PythonTask(3)


def test_python_task_does_not_affect_next(run):
    """A python task does not change the next one."""

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


def test_unmade_output_is_missing(m, run):
    """An output that is not made is missing."""
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


def test_outputs_may_depend_on_success(m, run):
    """Outputs may be wanted of a success or of a failure only."""
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


def test_outputs_of_failing_command_are_fetched(m, run):
    """Outputs of a command that fails are brought all the same."""
    file = m.declare_buffer()
    task = Task("echo partial > out; exit 3")
    task.add_output(file, "out")
    assert run(task).exit_code == 3
    assert file.contents() == b"partial\n"


def test_output_in_made_folder_is_found(m, run):
    """An output in a folder that the task makes is found."""
    file = m.declare_buffer()
    task = Task("mkdir -p a/b; echo deep > a/b/out")
    task.add_output(file, "a/b/out")
    run(task)
    assert file.contents() == b"deep\n"


def test_linked_output_is_its_target(m, run, shared_cluster):
    """An output that is a link is what it points to."""
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


def test_file_mode_survives_all_transfers(m, run, shared_cluster):
    """The mode of a file survives every way it can take."""
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


def test_urgent_whole_worker_task_is_not_starved(m, shared_cluster):
    """An urgent task that needs a whole worker does not wait for all small ones."""
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
    order = [m.wait(PATIENCE_S) for _ in (*holders, *small, whole)]
    assert whole.output == "4\n"
    assert order.index(whole) < 15
    assert all(task.successful() for task in order)


# ---- what is too large to start a program with


def test_long_command_is_refused_with_remedy(run):
    """A command that is too long is called so with the limit and the way out."""
    task = run(Task(f"echo {'x' * 200_000}"))
    assert task.result == "forsaken"
    assert not task.completed()
    text = str(task.error())
    assert "its command has 200,005 bytes, and this system takes 131,071 in one argument" in text
    assert "m.declare_buffer" in text


def test_long_variable_is_named(run):
    """A variable that is too long is named."""
    task = run(Task("true", env={"SHORT": "x", "LONG": "y" * 200_000}))
    assert task.result == "forsaken"
    assert "its environment variable LONG has 200,005 bytes, and this system takes 131,071 for one" in str(
        task.error()
    )


def test_large_variables_together_are_refused(run):
    """Many variables that are too much together are called so."""
    task = run(Task("true", env={f"V{number}": "z" * 100_000 for number in range(80)}))
    assert task.result == "forsaken"
    assert "its command and its environment variables have 8," in str(task.error())


def test_script_in_buffer_may_be_long(m, run):
    """A script in a buffer may be as long as it likes."""
    script = m.declare_buffer(f"echo {'x' * 200_000} | wc -c\n")
    assert run(Task("sh script", inputs={script: "script"})).output.strip() == "200001"


def test_python_task_variables_may_be_long(run):
    """A python task starts no program so its variables may be long."""
    task = PythonTask(lambda: len(os.environ["LONG"]))
    task.set_env_var("LONG", "y" * 200_000)
    assert run(task).output == 200_000


def test_library_with_long_variable_is_refused(m):
    """A library with a variable that is too long says so at once."""
    library = m.create_library_from_functions("long", sample_tasks.add)
    library.set_env_var("LONG", "y" * 200_000)
    m.install_library(library)
    call = FunctionCall("long", "add", 1, 2)
    m.submit(call)
    assert m.wait(PATIENCE_S) is call
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


def test_inputs_do_not_count_as_written(m, run):
    """Inputs do not count as what a task writes."""
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


def test_unpicklable_result_names_function_and_type(run):
    """A result that cannot be pickled is told with the function and the type."""

    def make_lock():
        return threading.Lock()

    notes = "\n".join(run(PythonTask(make_lock)).error().__notes__)
    assert "a _thread.lock cannot be pickled" in notes
    assert "make_lock) failed" in notes


@pytest.mark.parametrize("value", [5, "text", [1, 2]])
def test_non_bytes_result_is_reported(run, value):
    """A function that says it returns bytes and does not is told."""
    task = PythonTask(lambda: value)
    task.disable_output_serialization()
    error = run(task).error()
    assert isinstance(error, TypeError)
    assert f"it returned a {type(value).__name__}" in str(error)
