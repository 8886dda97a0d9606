"""What is set for a function call counts for it, or is refused: nothing is ignored."""

from __future__ import annotations

import inspect
import os
import time

import psutil
import pytest

from tests.harness import sample_tasks
from tests.harness.processes import HURRY_S, wait_for_task, wait_until
from vinecore import FunctionCall, PythonTask, Task, TaskFailed

MODES = ("fork", "direct")
SLOTS = 4  # one for each core of the worker


def process():
    return os.getpid()


def parent():
    return os.getppid()


def stay():
    time.sleep(600)


def look(name):
    import tempfile

    return os.getpid(), os.environ.get(name), time.tzname[0], tempfile.gettempdir()


def slow_context(folder):
    sample_tasks.held(folder, "context", "gate")
    return {}


@pytest.fixture(scope="module", params=MODES)
def library(request, shared_manager):
    name = f"settings-{request.param}"
    library = shared_manager.create_library_from_functions(
        name, process, parent, stay, look, exec_mode=request.param
    )
    library.set_cores(1)
    library.set_function_slots(1)
    shared_manager.install_library(library)
    yield name
    shared_manager.remove_library(name)


def test_call_beyond_time_ends_alone(library, run):
    """A call that runs too long is ended and no other call with it."""
    above = psutil.Process(run(FunctionCall(library, "parent")).output)
    host = above if library.endswith("direct") else above.parent()
    before = [FunctionCall(library, "process") for _ in range(20)]
    timed = FunctionCall(library, "stay")
    timed.set_time_max(0.25)
    after = [FunctionCall(library, "process") for _ in range(20)]
    run(*before, timed, *after)
    assert all(call.successful() for call in before + after)
    assert timed.result == "max wall time"
    assert not timed.successful()
    assert isinstance(timed.output, TaskFailed)
    assert "time_max of 0.25" in str(timed.output)
    wait_until(
        lambda: len(host.children(recursive=True)) == SLOTS, "the end of the call: nothing but slots is left"
    )


def test_call_within_time_succeeds(library, run):
    """A call that is in time is as any other."""
    calls = [FunctionCall(library, "process") for _ in range(30)]
    for call in calls:
        call.set_time_max(600)
    run(*calls)
    assert all(call.successful() for call in calls)


def test_time_of_call_starts_with_it(local_cluster):
    """The time of a call begins when it begins."""
    m = local_cluster.start_manager()
    local_cluster.start_hurried_worker(m)
    library = m.create_library_from_functions(
        "slow",
        process,
        exec_mode="direct",
        context_per_slot=True,
        library_context_info=[slow_context, [str(local_cluster.folder)], {}],
    )
    library.set_cores(1)
    library.set_function_slots(1)
    m.install_library(library)
    call = FunctionCall("slow", "process")
    call.set_time_max(HURRY_S - 50)
    timed = Task(f"echo >> {local_cluster.path('begun')}; sleep 1000", cores=1, time_max=HURRY_S - 50)
    for task in (call, timed):
        m.submit(task)
    wait_until(
        lambda: local_cluster.count_lines("context") and local_cluster.count_lines("begun"),
        "the context and the task to have begun",
    )
    local_cluster.let_time_pass()
    # so the worker has looked at its clock
    assert wait_for_task(m) is timed
    local_cluster.path("gate").touch()
    assert wait_for_task(m) is call
    assert call.successful(), call.output


def test_variables_exist_in_their_call_only(library, run):
    """Variables of a call are there in that call only."""
    plain = FunctionCall(library, "look", "VINE_TEST")
    special = FunctionCall(library, "look", "VINE_TEST")
    special.set_env_var("VINE_TEST", "1")
    special.set_env_var("TZ", "XYZ-3")
    special.set_env_var("TMPDIR", "/var/tmp")
    again = FunctionCall(library, "look", "VINE_TEST")
    without = FunctionCall(library, "look", "HOME")
    without.set_env_var("HOME", None)
    run(plain, special, again, without)
    assert special.output[1:] == ("1", "XYZ", "/var/tmp")
    # temporary folders are those of their slots
    assert again.output[1:3] == plain.output[1:3]
    assert "/var/tmp" not in (again.output[3], plain.output[3])
    assert plain.output[1] is None
    assert without.output[1] is None


def test_time_zone_counts_from_task_start(run):
    """A time zone of a task counts from its beginning."""
    task = PythonTask(look, "TZ")
    task.set_env_var("TZ", "XYZ-3")
    task.set_cores(1)
    assert run(task).output[1:3] == ("XYZ-3", "XYZ")


REFUSED = {
    "add_environment": (None,), "add_starch_package": (None,), "add_poncho_package": (None,), "add_execution_context": (None,),
    "set_function_slots": (2,), "add_nopen": (None,),
}  # fmt: skip


@pytest.mark.parametrize(("setter", "values"), REFUSED.items(), ids=REFUSED)
def test_impossible_setting_of_call_is_refused(setter, values):
    """What a call cannot have is refused with what to do instead."""
    with pytest.raises(TypeError, match=r"is not for a function call.*(library\.|library's|returns)"):
        getattr(FunctionCall("any", "function"), setter)(*values)


AMOUNTS = ("cores", "memory", "disk", "gpus")


@pytest.mark.parametrize("name", AMOUNTS)
def test_resources_of_call_must_fit_library(m, run, name):
    """What a call needs has to fit its library and changes nothing else."""
    library = m.create_library_from_functions(f"with-{name}", sample_tasks.add)
    library.set_cores(1)
    getattr(library, f"set_{name}")(0 if name == "gpus" else 1 if name == "cores" else 400)
    m.install_library(library)
    fits, greedy = (FunctionCall(library.name, "add", 1, 2) for _ in range(2))
    getattr(fits, f"set_{name}")(0 if name == "gpus" else 1)
    getattr(greedy, f"set_{name}")(500)
    assert run(fits).output == 3
    with pytest.raises(ValueError, match=rf"asks for {name}=500, but its library .* library\.set_{name}"):
        m.submit(greedy)
    m.remove_library(library.name)


def test_calls_know_all_setters_of_tasks():
    """Every setter of a task is known to calls."""
    counts = {"set_category", "set_tag", "set_priority", "set_retries", "set_time_max", "set_env_var"}
    counts |= {f"set_{name}" for name in AMOUNTS}
    # test_call_files.py
    counts |= {"add_input", "add_output"}
    # test_task_conditions.py
    counts |= {"add_feature", "set_scheduler", "set_time_start", "set_time_end", "set_time_min"}
    # test_task_settings.py
    counts |= {"set_command", "set_library_required", "set_max_forsaken", "set_monitor_output"}
    counts |= {"set_function_exec_mode_from_string", "set_snapshot_file"}
    # refused for all functions: test_task_settings.py
    counts |= {"set_library_provided"}
    setters = {
        name for name, _ in inspect.getmembers(Task, inspect.isfunction) if name.startswith(("set_", "add_"))
    }
    assert setters == counts | REFUSED.keys()
