"""Values as users give them: what is one is taken, what is none is refused where it is given, and nothing else suffers."""

from __future__ import annotations

import math
from array import array
from datetime import timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import wait_for_task, wait_until
from vinecore import Factory, FunctionCall, Manager, PythonTask, Task, validators
from vinecore.manager.libraries import LibraryTask
from vinecore.resources.amounts import ResourceRequest

NO_NUMBERS = [
    "2",
    b"2",
    None,
    True,
    np.True_,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.5,
    10**30,
    [2],
    {},
    2j,
    timedelta(1),
]
NO_TEXTS = [b"bytes", 5, ["x"], Path("x"), "nul\0", "\udc80"]


def ids(value):
    return repr(value)[:20]


# ---- single values


@pytest.mark.parametrize(
    ("given", "plain"), [(np.int64(3), 3), (np.uint8(3), 3), (3.0, 3), (np.float32(3), 3), (Fraction(3), 3)]
)
def test_numpy_numbers_become_python_numbers(given, plain):
    """Numbers of numpy are numbers and come back as pythons own."""
    for check in (validators.number, validators.whole):
        value = check("n", given)
        assert value == plain
        assert type(value) is int
    assert type(validators.number("n", np.float64(0.5))) is float


@pytest.mark.parametrize("value", NO_NUMBERS, ids=ids)
def test_non_number_is_refused_with_limits(value):
    """What is no number is refused with its name and what is allowed."""
    for check in (validators.number, validators.whole):
        with pytest.raises((TypeError, ValueError), match=r"^n=.*: use a (whole )?number"):
            check("n", value)


def test_long_value_is_abbreviated():
    """A value that is long is not shown in full."""
    with pytest.raises(TypeError) as refused:
        validators.number("n", "9" * 10_000)
    assert len(str(refused.value)) < 400
    assert "10,002 characters" in str(refused.value)


@pytest.mark.parametrize(("given", "waited"), [("wait_forever", None), (None, None), (-1, None), (math.inf, None), (0, 0), (2.5, 2.5),
                                               (np.float32(0.5), 0.5), (timedelta(minutes=1), 60)])  # fmt: skip
def test_wait_accepts_seconds_or_timedelta(given, waited):
    """How long to wait is said in seconds or as a timedelta."""
    assert validators.timeout("timeout", given) == waited


@pytest.mark.parametrize("value", ["5", "forever", math.nan, True, [1], b"5"], ids=ids)
def test_what_is_no_time_is_refused(value):
    with pytest.raises((TypeError, ValueError), match="timeout="):
        validators.timeout("timeout", value)


# ---- tasks


@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value is not None], ids=ids)
@pytest.mark.parametrize("name", ["cores", "memory", "disk", "gpus"])
@pytest.mark.parametrize("make", [lambda: Task("true"), lambda: PythonTask(len, ""),
                                  lambda: LibraryTask("lib", [len])], ids=["Task", "PythonTask", "LibraryTask"])  # fmt: skip
def test_a_resource_is_a_number(make, name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}="):
        getattr(make(), f"set_{name}")(value)


def test_constructor_and_setters_accept_same():
    """What the constructor of a task takes its setters take."""
    task = Task(
        "true",
        cores=np.int64(2),
        memory=np.float32(99.5),
        gpus=0,
        time_max=timedelta(minutes=2),
        priority=np.float64(-1),
        retries=np.int8(3),
    )
    other = Task("true")
    other.set_cores(2)
    other.set_memory(100)
    other.set_gpus(0)
    other.set_time_max(120)
    other.set_priority(-1)
    other.set_retries(3)
    assert vars(task) == vars(other)
    assert task._request == ResourceRequest(2, 100, None, 0)
    for cores in ("2", math.nan, True):
        with pytest.raises((TypeError, ValueError), match="cores="):
            Task("true", cores=cores)


@pytest.mark.parametrize("value", ["5", math.nan, -1, 0, True, 10**30, b"5"], ids=ids)
def test_time_limit_is_duration(value):
    """How long a task may run is a duration."""
    for set_time in (lambda: Task("true", time_max=value), lambda: PythonTask(len).set_time_max(value)):
        with pytest.raises((TypeError, ValueError), match="time_max="):
            set_time()


@pytest.mark.parametrize("value", ["1", math.nan, math.inf, None, True, [1]], ids=ids)
def test_priority_is_finite_number(value):
    """A priority is a finite number also where it is assigned."""
    task = Task("true")
    with pytest.raises((TypeError, ValueError), match="priority="):
        task.set_priority(value)
    with pytest.raises((TypeError, ValueError), match="priority="):
        task.priority = value


def test_priority_may_be_very_large():
    """A program that separates levels of priority by powers of a million keeps their order."""
    task = Task("true")
    task.set_priority(10**24 + 1)
    assert type(task.priority) is float
    assert 10**18 < task.priority == 1e24
    with pytest.raises(ValueError, match="priority="):
        task.set_priority(10**301)


@pytest.mark.parametrize("value", NO_TEXTS, ids=ids)
def test_commands_tags_and_categories_are_texts(value):
    for name in ("command", "tag", "category"):
        task = Task("true")
        with pytest.raises((TypeError, ValueError), match=f"{name}="):
            setattr(task, name, value)
        with pytest.raises((TypeError, ValueError), match=f"{name}="):
            Task(**{"command": "true", name: value})
    if not isinstance(
        value, str
    ):  # any other text is the name of no library, which is said when the call is submitted
        with pytest.raises(TypeError, match="library="):
            FunctionCall(value, "f")
        with pytest.raises(TypeError, match="function="):
            FunctionCall("lib", value)
    with pytest.raises((TypeError, ValueError)):
        LibraryTask(value, [len])


@pytest.mark.parametrize("value", ["1", -1, 1.5, math.inf, None, True], ids=ids)
def test_retries_are_a_whole_number(value):
    with pytest.raises((TypeError, ValueError), match="retries="):
        Task("true", retries=value)


@pytest.mark.parametrize("command", ["", "  ", "\n"])
def test_task_without_command_is_refused(command):
    """A task without a command is refused when it is made."""
    words = r"command=.*use text that is not empty: a shell command, such as 'echo hello'"
    with pytest.raises(ValueError, match=words):
        Task(command)
    task = Task("true")
    with pytest.raises(ValueError, match=words):
        task.command = command
    assert task.command == "true"


def test_task_class_without_command_is_refused(m):
    """A task of a class that names no command is refused when it is submitted."""

    class Silent(Task):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="command=''"):
        m.submit(Silent())
    assert m.empty()


def test_sandbox_name_may_be_path(m, run):
    """A name in a sandbox may be a path."""
    data, copy = m.declare_buffer("abc"), m.declare_buffer()
    task = Task(
        "cp in/data.txt out.txt", inputs={data: Path("in") / "data.txt"}, outputs={copy: Path("out.txt")}
    )
    assert run(task).successful()
    assert m.fetch_file(copy) == "abc"
    for wrong in (Path("/etc/passwd"), Path(".."), Path(), b"x", 5, None, "\udc80"):
        with pytest.raises((TypeError, ValueError), match=r"remote_name=|not a name inside"):
            Task("true").add_input(data, wrong)


def test_unsendable_variables_are_refused():
    """Environment variables that cannot be sent are refused."""
    for name, value in (("A", "\udc80"), ("\udc80", "x"), (None, None), ("A", b"x"), ("A", Path("x"))):
        with pytest.raises(ValueError, match="environment variable"):
            Task("true").set_env_var(name, value)
        with pytest.raises(ValueError, match="environment variable"):
            LibraryTask("lib", [len]).set_env_var(name, value)


@pytest.mark.parametrize("value", ["x", b"x", 5, ["x"], {5: "x"}, {"x": "y"}, np.arange(2)], ids=ids)
def test_inputs_and_outputs_map_declared_files(value):
    """Inputs and outputs are dicts of declared files."""
    for name in ("inputs", "outputs"):
        with pytest.raises(TypeError, match=r"use a dict|declare it first"):
            Task("true", **{name: value})


def test_a_file_of_another_manager_is_refused(m, local_cluster):
    other = local_cluster.start_manager()
    with pytest.raises(ValueError, match="declared with another manager"):
        m.submit(Task("cat in", inputs={other.declare_buffer("x"): "in"}))
    assert m.empty()


# ---- libraries


@pytest.mark.parametrize("value", ["f", len, 5, [len, [], {}, 1], [5], [len, {}], [len, [], []], []], ids=ids)
def test_context_is_function_with_arguments(m, value):
    """A context is a function with its arguments."""
    with pytest.raises(TypeError, match=r"library_context_info=.*use \[function, args, kwargs\]"):
        m.create_library_from_functions("lib", len, library_context_info=value)


@pytest.mark.parametrize("value", ["numpy", np, 5, [5], None], ids=ids)
def test_modules_are_a_list(value):
    with pytest.raises(TypeError, match="modules"):
        LibraryTask("lib", [len], modules=value)
    # the name of a library that is a command
    if value != "numpy":
        with pytest.raises(TypeError, match="functions"):
            LibraryTask("lib", value)


def test_functions_of_equal_name_are_refused():
    """Two functions of one name are refused and both are shown."""
    with pytest.raises(
        ValueError,
        match=r"(?s)two functions of a library are called '<lambda>': line \d+ of .*test_validators.py and line \d+",
    ):
        LibraryTask("lib", [lambda: 1, lambda: 2])


def test_repeated_function_is_allowed_unnamed_refused():
    """The same function may be named twice and what has no name is refused."""
    assert LibraryTask("lib", [sample_tasks.add, sample_tasks.add]).functions == ["add"]
    for function in (5, "add", None, partial(sample_tasks.add, 1)):
        with pytest.raises(TypeError, match="a library takes functions"):
            LibraryTask("lib", [function])


@pytest.mark.parametrize("value", ["2", 0, 1.5, True, None, 1 << 17, math.nan], ids=ids)
def test_slots_are_positive_whole_number(value):
    """Slots are a whole number that a worker can have."""
    with pytest.raises((TypeError, ValueError), match="slots="):
        LibraryTask("lib", [len]).set_function_slots(value)


# ---- the manager


def test_manager_refuses_bad_value_and_continues(m, run):
    """A manager refuses what it cannot use and works on."""
    file = m.declare_buffer("x")
    for refused in (
        lambda: m.wait("5"), lambda: m.wait(math.nan), lambda: m.wait_for_tag(5, 0), lambda: m.wait_for_task_id("1", 0),
        lambda: m.cancel_by_task_id("1"), lambda: m.cancel_by_task_id([1]), lambda: m.cancel_by_task_id(None), lambda: m.cancel_by_task_id(math.nan),
        lambda: m.tune("temp-replica-count", "2"), lambda: m.tune("temp-replica-count", math.nan), lambda: m.tune("temp-replica-count", 1.5),
        lambda: m.tune("category-steady-n-tasks", 0), lambda: m.tune("worker-source-max-transfers", None),
        lambda: m.set_category_mode([], "max"), lambda: m.set_category_mode("c", 9), lambda: m.set_category_resources_max("c", {"cores": "2"}),
        lambda: m.set_category_resources_max("c", {"memory": math.nan}), lambda: m.set_category_resources_min(["c"], {"cores": 1}),
        lambda: m.set_category_resources_min("c", {"core": 1}), lambda: m.set_category_resources_max("c", [1]),
        lambda: m.declare_file(b"bytes"), lambda: m.declare_file(""), lambda: m.declare_file(None), lambda: m.declare_file("x", peer_transfer="no"),
        lambda: m.declare_file("x", cache=[1]), lambda: m.declare_buffer(5), lambda: m.declare_buffer([1, 2]), lambda: m.declare_buffer("\udc80"),
        lambda: m.declare_url(Path("http://x/y")), lambda: m.declare_url("http://x/\udc80"), lambda: m.declare_untar("x.tar"),
        lambda: m.declare_poncho(5), lambda: m.declare_starch(b"x"), lambda: m.undeclare_file("x"), lambda: m.prune_file(None),
        lambda: m.get_file_replica_count("x"), lambda: m.fetch_file(5), lambda: m.install_library("lib"), lambda: m.remove_library(["lib"]),
        lambda: m.wait_for_workers("1"), lambda: m.wait_for_workers(1, "x"), lambda: m.set_scheduler([]), lambda: m.submit("true"),
        lambda: m.tune([], 1), lambda: m.check_library_exists([]), lambda: m.declare_minitask(Task("true"), "\udc80"),
        lambda: Factory("local", manager_host_port=5), lambda: Factory("local", manager=m, password=5), lambda: Factory([], manager=m),
        lambda: m.declare_minitask(Task("true"), 5), lambda: m.create_library_from_functions(5, len),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            refused()
    assert run(Task("cat in", inputs={file: "in"})).output == "x"


def test_manager_accepts_numpy_values(m, run):
    """What a manager takes may come from numpy."""
    assert m.tune("temp-replica-count", np.int64(1)) == 0
    m.set_category_resources_max("numbers", {"cores": np.float64(1), "memory": np.int32(100), "disk": None})
    task = Task("echo $CORES", category="numbers", retries=np.int64(1), priority=np.float32(2))
    assert m.wait(np.float32(0)) is None
    assert run(task).output == "1\n"
    m.submit(Task("true"))
    task = m.wait(timedelta(minutes=1))
    assert task is not None
    m.cancel_by_task_id(np.int64(task.id))


@pytest.mark.parametrize(
    "value",
    [np.float32(1.5), np.int64(3), np.arange(3), array("i", [1, 2]), 1.5, True, ["a"], {"a": 1}, Path("x")],
    ids=ids,
)
def test_buffer_is_bytes_or_text_only(m, value):
    """A buffer is bytes or text and nothing that only has some in memory."""
    words = rf"buffer is of the type {type(value).__name__}: use bytes, or text.*str\(x\).*pickle\.dumps\(x\)"
    with pytest.raises(TypeError, match=words):
        m.declare_buffer(value)


def test_any_bytes_or_text_is_content(m):
    """Bytes in every form and texts are the content of a buffer."""
    for value in (b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"axbxcx")[::2], "abc", np.str_("abc"), np.bytes_(b"abc")):  # fmt: skip
        assert m.read_file(m.declare_buffer(value)) == b"abc"


# ---- names


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda _m: Manager(nam="x"), r"Manager has no option 'nam'; did you mean 'name'\?"),
        (lambda _m: DaskVine(prot=1), r"DaskVine has no option 'prot'; did you mean 'port'\?"),
        (lambda _m: DaskVine.local(worker=2), r"DaskVine\.local has no option 'worker'; did you mean 'workers'\?"),
        (lambda _m: DaskVine.local(run_info_pth="x"), "did you mean 'run_info_path'"),
        (lambda _m: Task("true", coers=1), r"Task has no option 'coers'; did you mean 'cores'\?"),
        (lambda m: Task("true").add_input(m.declare_buffer("x"), "x", mount_symlnk=True), "add_input.* did you mean 'mount_symlink'"),
        (lambda m: m.declare_file("x", peer_transfers=True), r"declare_file\(\) has no option 'peer_transfers'; did you mean 'peer_transfer'\?"),
        (lambda m: m.declare_buffer("x", cahe=True), "did you mean 'cache'"),
        (lambda m: m.create_library_from_functions("l", len, exec_mod="fork"), "did you mean 'exec_mode'"),
        (lambda m: Factory("local", maneger=m), "did you mean 'manager'"),
        (lambda m: Factory("local", manager=m, max_wrokers=2), "did you mean 'max_workers'"),
        (lambda m: Task("true", zzz=m), "Task has no option 'zzz'; it has: command, inputs, .*environment"),
    ],
    ids=range(12),
)  # fmt: skip
def test_mistyped_name_gets_right_one(m, call, words):
    """A name that is mistyped is told with the right one."""
    with pytest.raises((TypeError, ValueError), match=words):
        call(m)


def test_untunable_parameter_gets_nearest(m, caplog):
    """A number that cannot be tuned is told with the nearest that can."""
    assert m.tune("worker-source-max-transfer", 1) == -1
    assert "did you mean 'worker-source-max-transfers'?" in caplog.text
    caplog.clear()
    assert m.tune("zzz", 1) == -1
    assert "tune('zzz', 1) has no effect" in caplog.text
    assert "temp-replica-count" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"port": "9123"}, {"port": True}, {"port": None}, {"port": 9.5}, {"port": (1, 2, 3)}, {"port": (9100, 9000)}, {"port": -1}, {"port": 70000},
     {"name": 5}, {"name": b"x"}, {"address": 5}, {"password_file": 5}, {"run_info_path": 5}, {"run_info_path": ""}, {"resume": "yes"},
     {"shutdown": "no"}, {"validate": "yes"}, {"init_fn": 5}, {"name": "n", "registry": 5}, {"name": "n", "catalog": 5}],
    ids=ids,
)  # fmt: skip
def test_manager_with_bad_option_is_refused(local_cluster, options):
    """A manager is not begun with what it cannot use."""
    with pytest.raises((TypeError, ValueError)):
        Manager(**{"port": 0, "address": "127.0.0.1", "password_file": local_cluster.secret, **options})


def test_a_port_may_come_from_numpy(local_cluster):
    assert local_cluster.start_manager(port=np.int64(0)).port > 0


# ---- factories


@pytest.mark.parametrize(("name", "value"), [("cores", "2"), ("memory", math.nan), ("max_workers", True), ("timeout", "5"), ("gpus", -1),
                                             ("workers_per_cycle", 10**30), ("capacity", "no"), ("wall_time", [])])  # fmt: skip
def test_a_factory_takes_numbers(m, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Factory("local", manager=m, **{name: value})


def test_factory_accepts_numpy_and_timedeltas(m):
    """Settings of a factory may come from numpy and times be timedeltas."""
    factory = Factory(
        "local",
        manager=m,
        cores=np.int64(2),
        max_workers=np.int16(3),
        timeout=timedelta(minutes=5),
        capacity=np.True_,
    )
    assert (factory.cores, factory.max_workers, factory.timeout, factory.capacity) == (2, 3, 300.0, True)
    assert type(factory.cores) is int


def test_cluster_scales_to_zero_and_back():
    """A vine scales to no workers and back."""
    from daskvine import DaskVine

    with DaskVine.local(workers=0, cores=np.int64(1), memory_mb=500) as m:
        m.submit(Task("echo later"))
        assert m.workers_connected == 0
        m.scale(1)
        assert wait_for_task(m).output == "later\n"
        m.scale(0)
        wait_until(lambda: not m.workers_connected, "the worker to go")
        for wrong in (-1, "1", 1.5, None, True):
            with pytest.raises((TypeError, ValueError), match="count="):
                m.scale(wrong)


@pytest.mark.parametrize(("options", "words"), [
    ({"n_workers": 2}, "no option 'n_workers'; use workers="), ({"threads_per_worker": 2}, "use cores="), ({"memory_limit": "2GB"}, "use memory_mb="),
    ({"worker": 2}, "did you mean 'workers'"), ({"workers": "2"}, "workers='2'"), ({"workers": -1}, "workers=-1"), ({"cores": 0}, "cores=0"),
    ({"memory_mb": "2000"}, "memory_mb='2000'"), ({"disk_mb": math.nan}, "disk_mb=nan"), ({"workspace": b"x"}, "workspace="),
])  # fmt: skip
def test_a_local_vine_says_what_it_takes(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises((TypeError, ValueError), match=words):
        DaskVine.local(**options)
    assert not list(tmp_path.iterdir())
