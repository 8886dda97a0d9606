"""Libraries in other languages: programs that keep to the protocol of docs/library-programs.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, LibraryError, LibraryTask, PythonTask, TaskCrashed

PAGE = (Path(__file__).parents[3] / "docs" / "library-programs.md").read_text()
PYTHON_EXAMPLE, USE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
(SHELL_EXAMPLE,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# The example with functions that misbehave.
HARD_EXAMPLE = PYTHON_EXAMPLE.replace(
    "\n\nsignal.signal",
    """

def wait_for(own, other):
    open(own, "w").close()
    while not os.path.exists(other):
        pass
    return os.getppid()


def end_program(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.write(2, b"the program is killed")
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return "survived"


def hang(marker):
    open(marker, "w").close()
    signal.pause()


def copy(source, target):
    with open(source) as read, open(target, "w") as write:
        write.write(read.read())
    return "copied"


def write_elsewhere(folder):
    os.chdir(folder)


def talk(size):
    print("x" * size)
    os.write(1, b"y" * size)
    return os.environ["WORD"]


def end_always():
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


signal.signal""",
    1,
).replace('{"scale": scale}', "globals()")


def write_program(folder, text, name="program"):
    path = folder / name
    path.write_text(text.replace("#!/usr/bin/env python3", f"#!{sys.executable}"))
    path.chmod(0o755)
    return path


@pytest.fixture
def install(m):
    installed = []

    def install(library, cores=2, slots=None):
        library.set_cores(cores)
        if slots:
            library.set_function_slots(slots)
        m.install_library(library)
        installed.append(library.name)

    yield install
    for name in installed:
        m.remove_library(name)


@pytest.fixture
def hard(m, install, tmp_path):
    """The library "factors" with functions that misbehave, in two slots."""
    library = m.create_library_from_command(write_program(tmp_path, HARD_EXAMPLE), "factors")
    library.set_env_var("WORD", "of the library")
    install(library)


def test_python_example_of_page_runs(m, install, run, tmp_path):
    install(m.create_library_from_command(write_program(tmp_path, PYTHON_EXAMPLE), "factors"))
    found = run(*(FunctionCall("factors", "scale", n, factor=3) for n in range(50)))
    assert [task.output for task in found] == [n * 1.5 for n in range(50)]
    assert found[7].std_output == "scale has got 7\n"


def test_use_on_page_runs(shared_cluster, tmp_path, monkeypatch, capsys):
    write_program(tmp_path, PYTHON_EXAMPLE, "factors.py")
    monkeypatch.chdir(tmp_path)
    exec(compile(USE, "library-programs.md", "exec"), {})
    assert capsys.readouterr().out == "15.0\n"


def test_shell_example_of_page_runs(m, install, run, tmp_path):
    install(m.create_library_from_command(str(write_program(tmp_path, SHELL_EXAMPLE)), "words"))
    upper = FunctionCall("words", "upper", b"some words\0\xff")
    upper.disable_output_serialization()
    other = FunctionCall("words", "lower", b"")
    run(upper, other)
    assert upper.output == b"SOME WORDS\0\xff"
    assert isinstance(other.output, RuntimeError)
    assert "status 2: there is no function lower" in str(other.output)
    assert run(FunctionCall("words", "count", b"some more words")).output == 3


@pytest.mark.parametrize(("slots", "programs"), [(2, 1), (1, 2)])
def test_calls_run_at_once_within_slots(m, install, run, tmp_path, slots, programs):
    """A program gets as many calls as it has slots; each unit of a library has a program."""
    program = write_program(tmp_path, HARD_EXAMPLE)
    install(m.create_library_from_command(program, "factors"), cores=1, slots=slots)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    calls = run(FunctionCall("factors", "wait_for", a, b), FunctionCall("factors", "wait_for", b, a))
    assert all(call.successful() for call in calls)
    assert len({call.output for call in calls}) == programs


def test_exception_of_program_has_its_output(hard, run):
    task = run(FunctionCall("factors", "scale", 1, factor=-1))
    assert isinstance(task.output, RuntimeError)
    assert "KeyError: -1" in str(task.output)
    assert task.completed()


def test_killed_program_gets_its_calls_again(hard, run, tmp_path):
    marker = str(tmp_path / "ended once")
    first, other = run(FunctionCall("factors", "end_program", marker), FunctionCall("factors", "scale", 2))
    assert (first.output, other.output) == ("survived", 1.0)


def test_program_that_always_ends_crashes_its_call(hard, run):
    call = FunctionCall("factors", "end_always")
    call.set_retries(1)
    error = run(call).error()
    assert isinstance(error, TaskCrashed)
    assert "it was tried 2 times" in str(error)
    assert "exited with code 137" in str(error)
    assert run(FunctionCall("factors", "scale", 2)).output == 1.0


def test_result_has_to_be_written(hard, run, tmp_path):
    error = run(FunctionCall("factors", "write_elsewhere", str(tmp_path))).output
    assert isinstance(error, FileNotFoundError)
    assert "no outfile" in str(error)


def test_cancelled_call_leaves_the_program(hard, m, run, tmp_path):
    """The slots are free again, and the other calls are not lost."""
    started, other = tmp_path / "started", tmp_path / "other"
    hanging = m.submit(FunctionCall("factors", "hang", str(started)))
    waiting = FunctionCall("factors", "wait_for", str(other), str(tmp_path / "go on"))
    m.submit(waiting)
    wait_until(lambda: started.exists() and other.exists(), "both calls")
    m.cancel_by_task_id(hanging)
    assert m.wait(PATIENCE_S).result == "cancelled"
    other.unlink()
    wait_until(other.exists, "the other call again")
    (tmp_path / "go on").touch()
    assert m.wait(PATIENCE_S) is waiting
    assert waiting.successful()


def test_time_limit_ends_call_of_program(hard, run, tmp_path):
    call = FunctionCall("factors", "hang", str(tmp_path / "started"))
    call.set_time_max(0.5)
    assert run(call).result == "max wall time"
    assert run(FunctionCall("factors", "scale", 4)).output == 2.0


def test_long_output_of_program_is_shortened(hard, run):
    task = run(FunctionCall("factors", "talk", 300_000))
    assert task.output == "of the library"
    assert "bytes before this are left out" in task.std_output
    assert 60_000 < len(task.std_output) < 70_000


def test_arguments_of_program_have_to_be_json(hard, run):
    task = run(FunctionCall("factors", "scale", {1, 2}))
    assert isinstance(task.output, TypeError)
    assert "as JSON" in "".join(task.output.__notes__)


def test_result_of_task_is_argument_of_program(hard, m, run):
    made = PythonTask(pow, 2, 5)
    made.enable_temp_output()
    m.submit(made)
    assert m.wait(PATIENCE_S) is made
    assert run(FunctionCall("factors", "scale", made.output_file)).output == 16.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\necho no licence; exit 3\n", r"before it was ready.*code 3.*no licence"),
        (PYTHON_EXAMPLE.replace('"factors"', '"other"'), "it is the library 'other', not 'factors'"),
        ("#!/bin/sh\necho hello >/dev/fd/$4; sleep 100\n", "'hello' where the length"),
    ],
)
def test_failed_start_of_program_is_explained(m, install, run, tmp_path, text, reason):
    install(m.create_library_from_command(write_program(tmp_path, text), "factors"))
    task = run(FunctionCall("factors", "scale", 1))
    assert task.result == "missing library"
    assert isinstance(task.error(), LibraryError)
    assert re.search(reason, str(task.error()), re.DOTALL)


def test_program_runs_in_packed_environment(m, install, run, tmp_path, packed):
    text = PYTHON_EXAMPLE.replace("/usr/bin/env python3", "/usr/bin/env python").replace(
        "return value", "import only_in_archive\n    return only_in_archive.WORD, value"
    )
    path = tmp_path / "program"
    path.write_text(text)
    path.chmod(0o755)
    install(m.create_library_from_command(path, "factors", env=packed))
    assert run(FunctionCall("factors", "scale", 2)).output == ["packed", 1.0]


def test_command_may_be_one_that_workers_have(m, install, run, tmp_path):
    path = write_program(tmp_path, PYTHON_EXAMPLE, "by hand.py")
    install(m.create_library_from_command(f"{sys.executable} -I '{path}'", "factors"))
    assert run(FunctionCall("factors", "scale", 2)).output == 1.0


def test_library_of_command_in_form_of_taskvine(m, install, run, tmp_path):
    library = LibraryTask(f"MODE=x {sys.executable} ./here.py", "factors")
    library.add_input(m.declare_file(write_program(tmp_path, PYTHON_EXAMPLE)), "here.py")
    install(library)
    assert run(FunctionCall("factors", "scale", 2)).output == 1.0


def test_serverized_files_exchange_pickles(m, install, run, tmp_path):
    text = PYTHON_EXAMPLE.replace("import json\n", "import json\nimport pickle\n")
    text = text.replace('with open("infile") as file:\n                    given = json.load(file)', 'with open("infile", "rb") as file:\n                    given = pickle.load(file)')  # fmt: skip
    text = text.replace('(*given["args"], **given["kwargs"])', '(*given["fn_args"], **given["fn_kwargs"])')
    text = text.replace('"outfile", "w"', '"outfile", "wb"').replace(
        "json.dump(result, file)",
        'pickle.dump({"Success": result != 0, "Result": result, "Reason": "it is zero"}, file)',
    )
    path = write_program(tmp_path, text)
    install(m.create_library_from_serverized_files("factors", path))
    good, bad = run(FunctionCall("factors", "scale", 2 + 0j), FunctionCall("factors", "scale", 0))
    assert good.output == 1 + 0j
    assert isinstance(bad.output, RuntimeError)
    assert "it is zero" in str(bad.output)


def test_files_of_call_are_in_its_folder(hard, m, run):
    call = FunctionCall("factors", "copy", "given", "made")
    call.add_input(m.declare_buffer("of the call"), "given")
    made = m.declare_buffer()
    call.add_output(made, "made")
    assert run(call).output == "copied"
    assert made.contents() == b"of the call"


def test_function_names_of_programs_are_words(hard, m):
    with pytest.raises(ValueError, match="spaces"):
        m.submit(FunctionCall("factors", "two words"))
