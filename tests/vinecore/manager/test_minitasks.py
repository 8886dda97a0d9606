"""Files that a task makes on a worker when they are needed, and what is built on that: packages, files of XRootD servers with a proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.harness.http_servers import xrootd_server
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task


@pytest.fixture
def place(shared_cluster, request):
    """A path for this test alone."""
    return shared_cluster.path(f"mini-{request.node.name}".replace("/", "-"))


def reading(file, command="cat in"):
    task = Task(command)
    task.set_cores(1)
    task.add_input(file, "in")
    return task


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_file_is_made_once_on_demand(m, run, place):
    """A file is made when it is needed and once."""
    maker = Task(f"echo made >> {place}; tr a-z A-Z < in > out")
    maker.add_input(m.declare_buffer("text"), "in")
    file = m.declare_minitask(maker, "out", cache=True)
    run(Task("true"))
    assert lines(place) == 0
    assert {task.output for task in run(*[reading(file) for _ in range(4)])} == {"TEXT"}
    assert lines(place) == 1
    assert m.get_file_replica_count(file) == 1
    assert run(reading(file)).output == "TEXT"
    assert lines(place) == 1


def test_task_level_file_is_made_per_task(m, run, place):
    """A file of level task is made for each task that comes alone."""
    file = m.declare_minitask(Task(f"echo made | tee -a {place} > out"), "out")
    for turn in range(1, 25):  # far more often than what is lost is made again
        assert run(reading(file)).output == "made\n"
        assert lines(place) == turn
        assert m.get_file_replica_count(file) == 0


def test_what_is_declared_twice_is_made_once(m, run, place):
    files = [m.declare_minitask(Task(f"echo made | tee -a {place} > out"), "out") for _ in range(3)]
    assert len({file.cache_name for file in files}) == 1
    run(*map(reading, files))
    assert lines(place) == 1
    m.undeclare_file(files[0])
    assert run(reading(files[1])).output == "made\n"
    other = m.declare_minitask(Task(f"echo made | tee -a {place} > out", env={"A": "b"}), "out")
    assert other.cache_name != files[0].cache_name


def test_its_content_can_be_asked_for(m):
    assert m.declare_minitask(Task("printf asked > out"), "out").contents() == b"asked"


def test_lost_file_is_made_again(m, run, place):
    """It is made again when all copies are lost."""
    file = m.declare_minitask(Task(f"echo made | tee -a {place} > out"), "out")
    run(reading(file))
    m.prune_file(file)
    assert run(reading(file)).output == "made\n"
    assert lines(place) == 2


def test_directory_is_made_of_made_directory(m, run):
    """A directory is made of a directory that is made."""
    first = m.declare_minitask(Task("mkdir -p out/sub; echo deep > out/sub/file"), "out")
    second = Task("cp -r in out; echo top > out/file")
    second.add_input(first, "in")
    file = m.declare_minitask(second, "out")
    assert run(reading(file, "cat in/sub/file in/file")).output == "deep\ntop\n"


def test_an_archive_that_is_made_is_unpacked(m, run):
    archive = m.declare_minitask(Task("echo packed > a; tar czf out.tgz a"), "out.tgz")
    assert run(reading(m.declare_untar(archive), "cat in/a")).output == "packed\n"


def test_it_is_the_argument_of_a_function(m, run):
    maker = PythonTask(str.upper, "value")
    maker.enable_temp_output()
    run(maker)
    copy = Task("cp in out")
    copy.add_input(maker.output_file, "in")
    assert run(PythonTask(len, m.declare_minitask(copy, "out"))).output == 5


def test_a_command_that_fails_has_made_nothing(m, run, place):
    file = m.declare_minitask(Task(f"echo x >> {place}; echo half > out; echo no luck >&2; exit 3"), "out")
    task = run(reading(file))
    assert task.result == "input missing"
    error = str(task.error())
    assert "no luck" in error
    assert "exit code 3" in error
    assert f"echo x >> {place}" in error
    assert m.get_file_replica_count(file) == 0
    assert run(reading(file)).result == "input missing"  # another reader, another try
    assert lines(place) == 2


def test_command_making_other_file_is_named(m, run):
    """A command that makes something else is named."""
    error = str(run(reading(m.declare_minitask(Task("echo x > other"), "out"))).error())
    assert "did not make out" in error


def test_unobtainable_input_is_named(m, run):
    """An input that cannot be had is named."""
    copy = Task("cp in out")
    copy.add_input(m.declare_url("file:///nowhere/at/all"), "in")
    error = str(run(reading(m.declare_minitask(copy, "out"))).error())
    assert "/nowhere/at/all" in error


def unread(m, file):
    """Why a file cannot be read, asked twice: the second answer does not depend on what was running at the first."""
    told = set()
    for read in (m.read_file, m.fetch_file):
        with pytest.raises(FileNotFoundError) as caught:
            read(file)
        told.add(str(caught.value).partition(">: ")[2])
    return told


@pytest.mark.parametrize(
    ("command", "settings", "reason"),
    [
        ("echo no luck >&2; exit 3", {}, "exit code 3, no luck"),
        ("sleep 300", {"time_max": 0.1}, "time_max of 0.1 s"),
        ("head -c 60000000 /dev/zero > out", {"cores": 1, "disk": 20}, "its limit is 20 MB"),
    ],
)
def test_reader_of_failed_file_gets_reason(m, command, settings, reason):
    """Who reads a file that could not be made is told why each time."""
    file = m.declare_minitask(Task(command, **settings), "out")
    assert all(reason in told for told in unread(m, file))


def test_reader_of_missing_output_gets_reason(m, run):
    """Who reads a file that a task has not made is told why."""
    file = m.declare_temp()
    run(Task("echo no luck >&2; exit 3", outputs={file: "out"}, cores=1))
    (told,) = unread(m, file)
    assert "the task did not make out: exit code 3, no luck" in told


def test_reader_of_failed_function_gets_reason(m, run):
    """Who reads the result of a function that raised is told why."""
    task = PythonTask(int, "three")
    task.enable_temp_output()
    run(task)
    (told,) = unread(m, task.output_file)
    assert "ValueError: invalid literal" in told


def test_reader_of_directory_gets_advice(m):
    """Who reads a directory is told what else to do."""
    folder = m.declare_minitask(Task("mkdir out"), "out")
    for file in (folder, m.declare_untar(folder)):
        with pytest.raises(IsADirectoryError, match="have a task read it"):
            m.read_file(file)


def test_workers_get_it_from_each_other(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 3)
    file = m.declare_minitask(
        Task(f"echo made >> {local_cluster.path('made')}; head -c 300000 /dev/zero > out"), "out", cache=True
    )
    wait = "echo x >> {0}; while [ $(wc -l < {0}) -lt 3 ]; do sleep 0.02; done; wc -c < in"
    for _ in range(3):  # each has a worker of its own
        task = Task(wait.format(local_cluster.path("here")))
        task.add_input(file, "in")
        m.submit(task)
    assert {m.wait(PATIENCE_S).output.strip() for _ in range(3)} == {"300000"}
    assert local_cluster.count_lines("made") == 1
    assert m.get_file_replica_count(file) == 3


def test_file_is_remade_after_worker_loss(local_cluster):
    """It is made again when its worker is lost."""
    m = local_cluster.start_manager()
    (first,) = local_cluster.start_workers(m, 1)
    file = m.declare_minitask(Task(f"echo made | tee -a {local_cluster.path('made')} > out"), "out")
    m.submit(reading(file))
    m.wait(PATIENCE_S)
    first.kill()
    wait_until(lambda: m.workers_connected == 0)
    local_cluster.start_workers(m, 1)
    m.submit(reading(file))
    assert m.wait(PATIENCE_S).output == "made\n"
    assert local_cluster.count_lines("made") == 2


def read_word():
    with open("word") as file:
        return file.read()


def test_whole_worker_library_waits_for_files(local_cluster):
    """A library that takes the whole worker waits for what it needs."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    library = m.create_library_from_functions("reads", read_word)
    library.add_input(m.declare_minitask(Task("printf here > out"), "out"), "word")
    m.install_library(library)
    for _ in range(4):
        m.submit(FunctionCall("reads", "read_word"))
    assert {m.wait(PATIENCE_S).output for _ in range(4)} == {"here"}


def test_impossible_minitask_is_refused(m, run):
    """What cannot be done on demand is refused."""
    done = run(Task("true"))
    filled = Task("true")
    filled.add_output(m.declare_temp(), "x")
    for task, why in [
        (PythonTask(len, ""), "shell command"),
        ("cat", "shell command"),
        (filled, "no outputs"),
    ]:
        with pytest.raises(TypeError, match=why):
            m.declare_minitask(task, "out")
    with pytest.raises(ValueError, match="submitted already"):
        m.declare_minitask(done, "out")
    with pytest.raises(ValueError, match="inside of a task's folder"):
        m.declare_minitask(Task("true"), "../out")
    with pytest.raises(ValueError, match="cache level"):
        m.declare_minitask(Task("true"), "out", cache="always")
    used = Task("echo > out")
    m.declare_minitask(used, "out")
    with pytest.raises(ValueError, match="submitted already"):
        m.submit(used)


# ---- packages

SFX = """#!/bin/sh
# as those that starch makes, in short
if [ "$SFX_EXTRACT_FORCE" = 1 ]; then
    mkdir -p "$SFX_DIR"
    tail -n +9 "$0" | tar xz -C "$SFX_DIR"
fi
if [ "$SFX_EXTRACT_ONLY" = 1 ]; then exit; fi
exit 1
"""


@pytest.fixture
def package(tmp_path):
    """A self-extracting package with a program, a script that sets a variable, and what runs it."""
    content = {
        "bin/greet": "#!/bin/sh\necho greetings, $NAME\n",
        "env/name": "export NAME=physicist\n",
        "run.sh": "#!/bin/sh\nexit 1\n",
    }
    for name, text in content.items():
        path = tmp_path / "content" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    packed = subprocess.run(
        ["tar", "cz", "-C", tmp_path / "content", "."], capture_output=True, check=True
    ).stdout
    path = tmp_path / "package.sfx"
    path.write_bytes(SFX.encode() + packed)
    return path


def test_task_runs_with_package(m, run, package):
    """A task runs with the programs of a package."""
    starch = m.declare_starch(package)
    task = Task("greet")
    task.add_starch_package(starch)
    assert run(task).output == "greetings, physicist\n"
    assert run(reading(starch, "ls in; NAME=you in/bin/greet")).output == "bin\nenv\nrun.sh\ngreetings, you\n"


def test_what_is_no_package_is_named(m, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        m.declare_starch(tmp_path / "none.sfx")
    with pytest.raises(TypeError, match="declare_starch"):
        Task("x").add_starch_package(m.declare_buffer("x"))
    path = tmp_path / "wrong.sfx"
    path.write_text("#!/bin/sh\nexit 0\n")
    assert str(path) in str(run(reading(m.declare_starch(path))).error())


# ---- XRootD with a proxy or an environment


@pytest.fixture
def environment(tmp_path, place):
    """An environment with an ``xrdcp`` of its own, which says what it is run with."""
    if shutil.which("xrdcp") is None:
        pytest.skip("needs xrdcp: apt-get install xrootd-client")
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(os.path.realpath(sys.executable))
    (folder / "xrdcp").write_text(
        f'#!/bin/sh\n[ -z "$X509_USER_PROXY" ] || cat "$X509_USER_PROXY" >> {place}\n'
        f'stat -c %a "${{X509_USER_PROXY:-$0}}" >> {place}\nexec {shutil.which("xrdcp")} "$@"\n'
    )
    (folder / "xrdcp").chmod(0o755)
    path = tmp_path / "environment.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder.parent, ".")
    return path


def test_xrootd_file_is_fetched_with_proxy(m, run, tmp_path, environment, place):
    """A file of an xrootd server is fetched with a proxy in an environment."""
    with xrootd_server() as server:
        url = server.put("file", b"over xrootd")
        assert run(reading(m.declare_xrootd(url))).output == "over xrootd"
        assert lines(place) == 0
        proxy = tmp_path / "proxy"
        proxy.write_text("secret of mine\n")
        file = m.declare_xrootd(url, proxy=proxy, env=environment)
        assert run(reading(file)).output == "over xrootd"
        said, mode = place.read_text().splitlines()
        assert (said, mode[1:]) == ("secret of mine", "00")  # or else XRootD would not take it
        other = server.put("other", b"another")
        assert run(reading(m.declare_xrootd(other, env=environment))).output == "another"
        assert lines(place) == 3


def test_file_missing_on_xrootd_is_named(m, run, environment, place):
    """What an xrootd server does not have is named."""
    with xrootd_server() as server:
        url = f"{server.url}/nothing"
        error = str(run(reading(m.declare_xrootd(url, env=environment))).error())
    assert url in error
    assert "no such file" in error.lower()
    assert lines(place) == 1  # it is not asked again for what it does not have


def test_only_xrootd_addresses_are_taken_for_xrootd(m):
    with pytest.raises(ValueError, match="root://server//path"):
        m.declare_xrootd("http://server/path")
