"""Files as a user declares them, on their way to tasks and back."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import pathlib
import stat
import subprocess
import sys
import tarfile
import threading

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, scheduler_state, wait_for_task, wait_until
from vinecore import FunctionCall, PythonTask, Task
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol.transfer import digests

LARGE = 3 * INLINE_LIMIT


def cat(file, command="cat in"):
    task = Task(command)
    task.set_cores(1)
    task.add_input(file, "in")
    return task


@pytest.fixture
def web(tmp_path):
    """A web server on loopback; ``web.asked`` are the paths that it was asked for."""
    (tmp_path / "www").mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
                self.close_connection = True
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "www")
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.asked, server.folder = asked, tmp_path / "www"
    server.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- what a task reads


@pytest.mark.parametrize("size", [0, 5, INLINE_LIMIT, INLINE_LIMIT + 1, LARGE])
def test_buffer_of_any_size_arrives_intact(m, run, size):
    """A buffer of any size arrives as it is."""
    data = os.urandom(size)
    assert (
        run(cat(m.declare_buffer(data), "sha256sum < in")).output.split()[0]
        == hashlib.sha256(data).hexdigest()
    )


def test_a_buffer_may_be_text(m, run):
    assert run(cat(m.declare_buffer("Grüße\n"))).output == "Grüße\n"


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_file_arrives_as_it_is(m, run, tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    file = m.declare_file(tmp_path / "file")
    assert run(cat(file, "sha256sum < in")).output.split()[0] == hashlib.sha256(data).hexdigest()
    assert (len(file), bool(file), file.contents()) == (size, True, data)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_program_runs_on_later_workers(local_cluster, tmp_path, kind):
    """A small file keeps its mode on a worker that gets it when another one has told its size."""
    m = local_cluster.start_manager()
    text, path = "#!/bin/sh\necho ran\n", tmp_path / "program"
    if kind == "input":
        path.write_text(text)
        path.chmod(0o755)
    program = m.declare_file(path, cache=True)
    for number in range(3):
        [worker] = local_cluster.start_workers(m, 1)
        if kind == "output" and number == 0:
            making = f"printf '{text}' > made; chmod 755 made"
            m.submit(Task(making, outputs={program: "made"}, cores=1))
            assert wait_for_task(m).successful()
        else:
            m.submit(Task("./program", inputs={program: "program"}, cores=1))
            assert wait_for_task(m).output == "ran\n"
        worker.kill()
        wait_until(lambda: m.workers_connected == 0, "the worker to be gone")


def test_directory_keeps_modes_links_and_empties(m, run, tmp_path):
    """A directory arrives with its modes links and empty folders."""
    top = tmp_path / "top"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "sub" / "program").write_text("#!/bin/sh\necho I run\n")
    (top / "sub" / "program").chmod(0o755)
    (top / "Grüße\nund mehr").write_text("odd name")
    (top / "link").symlink_to("sub/program")
    (top / "absolute").symlink_to("/nowhere/at/all")
    (top / "read-only").mkdir()
    (top / "read-only" / "inside").write_text("x")
    (top / "read-only").chmod(0o555)
    task = cat(
        m.declare_file(top),
        "cd in; ./link; ls -d sub/empty; readlink absolute; cat Gr*; stat -c %a read-only sub/program; cat read-only/inside",
    )
    output = run(task).output.splitlines()
    assert output[:3] == ["I run", "sub/empty", "/nowhere/at/all"]
    assert output[3:] == ["odd name555", "555", "x"] or output[3:] == ["odd name555", "755", "x"]
    (top / "read-only").chmod(0o755)


def test_directory_and_file_are_content_addressed(m, tmp_path):
    """A directory and a file of it are named by what they hold."""
    for name in "ab":
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("same")
        os.utime(tmp_path / name / "sub" / "file", (1e9, 1e9))
    first, second = (m.declare_file(tmp_path / name).cache_name for name in "ab")
    assert first == second
    (tmp_path / "b" / "sub" / "file").chmod(0o755)
    assert m.declare_file(tmp_path / "b").cache_name != first
    assert m.declare_buffer("same").cache_name == m.declare_buffer(b"same").cache_name


def test_input_may_have_odd_remote_name(m, run):
    """An input may be in a folder and under an odd name."""
    task = Task("cat 'deep/er/a b' \"it's\"")
    task.add_input(m.declare_buffer("one\n"), "deep/er/a b")
    task.add_input(m.declare_buffer("two\n"), "it's")
    assert run(task).output == "one\ntwo\n"


def test_one_file_may_have_several_names(m, run):
    file = m.declare_buffer("x")
    task = Task("cat a b")
    task.add_input(file, "a")
    task.add_input(file, "b")
    assert run(task).output == "xx"


def test_input_with_long_name_arrives(m, run):
    """An input with a very long name arrives."""
    name = "n" * 250
    task = Task("cat n*")
    task.add_input(m.declare_buffer("long"), name)
    assert run(task).output == "long"


def test_input_may_link_to_cache(m, run):
    """An input may be a link to the cache."""
    task = Task("test -L in && cat in")
    task.add_input(m.declare_buffer("linked"), "in", mount_symlink=True)
    assert run(task).output == "linked"


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("kind", ["buffer", "file", "temp", "directory"])
def test_damaged_input_does_not_damage_cache(m, run, tmp_path, kind, size):
    """Neither by writing to it, nor by removing it, nor after it has made it writable again."""
    data = bytes(size) + kind.encode()
    name = "in"
    if kind == "buffer":
        file = m.declare_buffer(data)
    elif kind == "temp":
        maker = Task(f"head -c {size} /dev/zero > out; printf {kind} >> out")
        file = m.declare_temp()
        maker.add_output(file, "out")
        run(maker)
    else:
        place = tmp_path / "place"
        if kind == "directory":
            place.mkdir()
            name = "in/inner"
        (place / "inner" if kind == "directory" else place).write_bytes(data)
        file = m.declare_file(place)
    for damage in (
        f"chmod u+w {name}; echo damaged > {name}",
        f"echo damaged >> {name}",
        f"rm -f {name}; echo other > {name}",
    ):
        run(cat(file, damage))
        assert run(cat(file, f"sha256sum < {name}")).output.split()[0] == hashlib.sha256(data).hexdigest()


def test_small_file_is_read_concurrently(m, run):
    """The same small file may be read by many tasks at once."""
    data = os.urandom(INLINE_LIMIT // 2)
    file = m.declare_buffer(data)
    tasks = [cat(file, "sha256sum < in") for _ in range(40)]
    assert {task.output.split()[0] for task in run(*tasks)} == {hashlib.sha256(data).hexdigest()}


# ---- addresses and archives


def test_url_is_fetched_once(m, run, web):
    """A file is fetched from the web once."""
    data = os.urandom(LARGE)
    (web.folder / "data").write_bytes(data)
    file = m.declare_url(f"{web.url}/data")
    tasks = run(*[cat(file, "sha256sum < in") for _ in range(4)])
    assert {task.output.split()[0] for task in tasks} == {hashlib.sha256(data).hexdigest()}
    assert web.asked == ["/data"]
    assert file.contents() == data


def test_file_url_reads_workers_disk(m, run, tmp_path):
    """A file is fetched from the workers own disk."""
    (tmp_path / "local").write_text("on disk")
    assert run(cat(m.declare_url(f"file://{tmp_path}/local"))).output == "on disk"


@pytest.mark.parametrize("where", ["missing", "file"])
def test_missing_url_fails_task_at_once(m, run, web, tmp_path, where):
    """An address where nothing is fails the task at once."""
    url = f"{web.url}/missing" if where == "missing" else f"file://{tmp_path}/missing"
    task = run(cat(m.declare_url(url)))
    assert (task.result, task.exit_code) == ("input missing", -1)
    assert url in str(task.error())
    assert len(web.asked) <= 1


def test_truncated_download_is_retried_and_discarded(m, run, web, monkeypatch):
    """An address that sends half is tried again and never used."""
    monkeypatch.setattr("vinecore.scheduler.transfer_failures.RETRY_DELAY_S", 0.01)  # between its tries
    task = run(cat(m.declare_url(f"{web.url}/cut")))
    assert task.result == "input missing"
    assert "4 bytes" in str(task.error()) or "IncompleteRead" in str(task.error())
    assert len(web.asked) > 2


def test_address_needs_scheme(m):
    """What has no scheme is not an address."""
    with pytest.raises(ValueError, match="not an address"):
        m.declare_url("localhost/file")


def make_archive(path, **members):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_an_archive_is_unpacked_on_the_worker(m, run, tmp_path):
    archive = make_archive(tmp_path / "archive.tar.gz", **{"a": "one ", "b/c": "two"})
    file = m.declare_untar(m.declare_file(archive))
    assert [task.output for task in run(cat(file, "cat in/a in/b/c"), cat(file, "cat in/b/c"))] == [
        "one two",
        "two",
    ]


def test_an_archive_from_the_web_is_unpacked(m, run, web):
    make_archive(web.folder / "archive.tar.gz", a="from the web")
    file = m.declare_untar(m.declare_url(f"{web.url}/archive.tar.gz"))
    assert run(cat(file, "cat in/a")).output == "from the web"


def test_archive_made_by_task_is_unpacked(m, run):
    """An archive that a task has made is unpacked."""
    made = m.declare_temp()
    maker = Task("echo packed > inner; tar czf out.tgz inner")
    maker.add_output(made, "out.tgz")
    run(maker)
    assert run(cat(m.declare_untar(made), "cat in/inner")).output == "packed\n"


def test_non_archive_fails_task(m, run):
    """What is not an archive fails the task."""
    task = run(cat(m.declare_untar(m.declare_buffer("no archive at all"))))
    assert task.result == "input missing"
    assert "not an archive" in str(task.error())


def test_truncated_archive_fails_task_at_once(m, run, tmp_path, caplog):
    """Half an archive fails the task at once."""
    archive = make_archive(tmp_path / "archive.tar.gz", a=os.urandom(100_000).hex())
    os.truncate(archive, 50_000)
    task = run(cat(m.declare_untar(m.declare_file(archive))))
    assert task.result == "input missing"
    assert "not an archive that can be unpacked" in str(task.error())
    assert len([r for r in caplog.records if "could not get" in r.message]) == 1


@pytest.mark.parametrize("name", ["../outside", "/tmp/vine-absolute"])
def test_escaping_archive_is_refused(m, run, tmp_path, name):
    """An archive that would be unpacked outside is refused."""
    archive = make_archive(tmp_path / "evil.tar.gz", **{name: "evil"})
    task = run(cat(m.declare_untar(m.declare_file(archive))))
    assert task.result == "input missing"
    assert "outside" in str(task.error())
    assert not os.path.exists("/tmp/vine-absolute")


def test_environment_runs_functions_and_commands(m, run, tmp_path):
    """A small one: a Python of this version whose site has one module more."""
    environment = tmp_path / "environment"
    site = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (site / "only_in_environment.py").write_text("WORD = 'packed'\n")
    for name in ("cloudpickle",):
        source = os.path.dirname(__import__(name).__file__)
        subprocess.run(["cp", "-r", source, site / name], check=True)
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (environment / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    (environment / "bin" / "tool").write_text("#!/bin/sh\necho tool of the environment\n")
    (environment / "bin" / "tool").chmod(0o755)
    archive = tmp_path / "environment.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(environment, ".")
    file = m.declare_poncho(archive)
    python = PythonTask(lambda: __import__("only_in_environment").WORD)
    python.add_environment(file)
    shell = Task("tool")
    shell.add_environment(file)
    assert [task.output for task in run(python, shell)] == ["packed", "tool of the environment\n"]


def test_missing_environment_is_warned_of(m, run, tmp_path, caplog):
    """An environment that does not exist is a warning; a task that needs it fails with its path."""
    path = tmp_path / "no.tar.gz"
    task = Task("true")
    task.add_environment(m.declare_poncho(path))
    assert f"{path} does not exist: pack one" in caplog.text
    assert run(task).result == "input missing"
    assert str(path) in str(task.error())


# ---- what a task writes


@pytest.mark.parametrize("size", [0, 10, LARGE])
def test_output_file_is_at_declared_path(m, run, tmp_path, size):
    """An output file is where it was declared when the task comes back."""
    place = tmp_path / "new" / "folder" / "out"
    task = Task(f"head -c {size} /dev/zero > out")
    task.add_output(m.declare_file(place), "out")
    assert run(task).successful()
    assert place.read_bytes() == bytes(size)
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_output_replaces_existing_file(m, run, tmp_path):
    """An output replaces the file that was there."""
    place = tmp_path / "out"
    place.write_text("old")
    for word in ("new", "newer"):
        file = m.declare_file(place)
        task = Task(f"echo {word} > out")
        task.add_output(file, "out")
        run(task)
        assert (place.read_text(), file.contents()) == (f"{word}\n", f"{word}\n".encode())


def test_task_may_overwrite_its_input(m, run, tmp_path):
    """A task may read a file and write it anew."""
    place = tmp_path / "counter"
    place.write_text("1")
    file = m.declare_file(place)
    for expected in ("2\n", "3\n"):
        task = Task("echo $(($(cat old) + 1)) > new")
        task.add_output(file, "new")
        task.add_input(file, "old")
        run(task)
        assert place.read_text() == expected


def test_output_directory_is_at_declared_path(m, run, tmp_path):
    """An output directory is where it was declared."""
    place = tmp_path / "out"
    place.mkdir()
    task = Task(
        "mkdir -p out/sub; echo x > out/sub/program; chmod 750 out/sub/program; ln -s sub/program out/link"
    )
    task.add_output(m.declare_file(place), "out")
    assert run(task).successful()
    assert sorted(path.name for path in place.iterdir()) == ["link", "sub"]
    assert stat.S_IMODE((place / "sub" / "program").stat().st_mode) == 0o750
    assert (place / "link").readlink() == (place / "sub" / "program").relative_to(place)


PROGRAM = """
import sys
from vinecore import Task
from daskvine import DaskVine

with DaskVine.local(cores=1) as m:
    task = Task(sys.argv[1])
    task.add_output(m.declare_file("outdir"), "out")
    m.submit(task)
    ended = m.wait(60)
    print(ended.result, ended.error())
"""


def test_rerun_program_replaces_output_directory(tmp_path):
    """A program with an output directory runs again."""
    for word in ("first", "second"):
        command = f"mkdir -p out/sub; echo {word} > out/sub/data; echo x > out/{word}"
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, command],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith("success"), done.stdout + done.stderr
    kept = tmp_path / "outdir"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*")) == [
        "first",
        "second",
        "sub",
        "sub/data",
    ]
    assert (kept / "sub" / "data").read_text() == "second\n"


def test_output_directory_merges_into_existing_one(m, run, tmp_path):
    """An output directory is merged into one that is there."""
    place = tmp_path / "out"
    (place / "sub").mkdir(parents=True)
    (place / "mine").write_text("mine")
    (place / "sub" / "mine").write_text("mine")
    (place / "sub" / "data").write_text("old")
    (place / "link").symlink_to("mine")
    file = m.declare_file(place)
    made = "mkdir -p out/sub out/new; echo new > out/sub/data; echo new > out/link; ln -s data out/sub/link"
    assert run(Task(made, outputs={file: "out"})).successful()
    assert {str(path.relative_to(place)) for path in place.rglob("*")} == {
        "mine", "sub", "sub/mine", "sub/data", "sub/link", "new", "link"
    }  # fmt: skip
    assert (place / "mine").read_text() == (place / "sub" / "mine").read_text() == "mine"
    assert (place / "sub" / "link").read_text() == (place / "link").read_text() == "new\n"
    # what another task gets is the output alone
    assert run(cat(file, "find in | sort")).output.split() == [
        "in", "in/link", "in/new", "in/sub", "in/sub/data", "in/sub/link"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_directory_may_be_a_link(m, run, tmp_path):
    (tmp_path / "disk").mkdir()
    place = tmp_path / "out"
    place.symlink_to("disk")
    assert run(Task("mkdir out; echo x > out/new", outputs={m.declare_file(place): "out"})).successful()
    assert place.is_symlink()
    assert (tmp_path / "disk" / "new").read_text() == "x\n"


@pytest.mark.parametrize(
    ("there", "made", "text"),
    [
        ("{place}/kept", "echo x > out", "there is a directory, and the task made a file: name a file in it"),
        ("{place}", "mkdir out", "there is a file, and the task made a directory"),
        ("{place}/new/kept", "mkdir out; echo x > out/a; echo x > out/new", "{place}/new is a directory"),
        ("{place}/new", "mkdir -p out/new; echo x > out/a; echo x > out/new/x", "{place}/new is a file"),
    ],
)
def test_an_output_of_another_kind_changes_nothing(m, run, tmp_path, there, made, text):
    place = tmp_path / "out"
    kept = pathlib.Path(there.format(place=place))
    # it comes while the task runs
    task = Task(f"{made}; mkdir -p {kept.parent}; echo kept > {kept}")
    task.add_output(m.declare_file(place), "out")
    ended = run(task)
    assert ended.result == "output transfer error"
    assert f"{place} cannot be written: {text.format(place=place)}" in str(ended.error())
    assert kept.read_text() == "kept\n"
    assert not (place / "a").exists()


def test_link_in_output_directory_is_not_followed(m, run, tmp_path):
    """A link in an output directory is not followed."""
    place, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    file = m.declare_file(place)
    assert run(Task(f"mkdir out; ln -s {outside} out/sub", outputs={file: "out"})).successful()
    ended = run(Task("mkdir -p out/sub; echo x > out/sub/new", outputs={file: "out"}))
    assert f"{place}/sub is a file" in str(ended.error())
    assert list(outside.iterdir()) == []


def test_file_does_not_replace_empty_directory(m, run, tmp_path):
    """A file does not take the place of an empty directory."""
    place = tmp_path / "out"
    place.mkdir()
    task = Task("echo x > out", outputs={m.declare_file(place): "out"})
    assert "there is a directory, and the task made a file" in str(run(task).error())
    assert list(place.iterdir()) == []


def test_directories_of_two_tasks_are_merged(m, run, tmp_path):
    """A directory that a task has made is merged with that of the next."""
    place = tmp_path / "out"
    file = m.declare_file(place)
    for name in ("first", "second"):
        assert run(Task(f"mkdir out; echo x > out/{name}", outputs={file: "out"})).successful()
        assert run(cat(file, "ls in")).output.split() == [name]
    # by its content
    again = m.declare_file(place)
    assert run(cat(again, "ls in")).output.split() == ["first", "second"]
    assert run(Task("mkdir out; echo x > out/third", outputs={again: "out"})).successful()
    assert sorted(path.name for path in place.iterdir()) == ["first", "second", "third"]


def test_buffer_gets_output_of_task(m, run):
    """A buffer that a task fills has its content."""
    buffer = m.declare_buffer()
    task = Task("printf filled > out")
    task.add_output(buffer, "out")
    run(task)
    assert (buffer.contents(), buffer.contents(bytes.decode)) == (b"filled", "filled")


def test_refilled_buffer_has_new_content(m, run):
    """A buffer that is filled again has the new content."""
    buffer = m.declare_buffer("first")
    for word in ("second", "third"):
        task = Task(f"printf {word} > out")
        task.add_output(buffer, "out")
        run(task)
        assert buffer.contents() == word.encode()


def test_fetched_bytes_survive_as_text(m):
    """A content that is no text can be fetched, as programs do that read it afterwards."""
    content = b"\xb5\x00\xff text"
    file = m.declare_buffer(content)
    assert m.fetch_file(file).encode("utf-8", "surrogateescape") == file.contents() == content


@pytest.mark.parametrize("size", [5, LARGE])
def test_temporary_file_passes_between_tasks(m, run, size):
    """A temporary file goes from task to task and may be fetched."""
    temp = m.declare_temp()
    maker = Task(f"head -c {size} /dev/zero | tr '\\0' x > out")
    maker.add_output(temp, "out")
    m.submit(maker)
    reader = cat(temp, "wc -c < in")  # submitted before there is anything to read
    m.submit(reader)
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {maker, reader}
    assert reader.output.strip() == str(size)
    assert m.fetch_file(temp) == "x" * size
    assert m.get_file_replica_count(temp) == 1


def test_temporary_directory_passes_between_tasks(m, run):
    """A temporary directory goes from task to task."""
    temp = m.declare_temp()
    maker = Task("mkdir out; echo x > out/x; chmod 755 out/x")
    maker.add_output(temp, "out")
    run(maker)
    assert run(cat(temp, "test -x in/x && ls in")).output == "x\n"


def test_an_address_cannot_be_an_output(m):
    with pytest.raises(TypeError, match="cannot be an output"):
        Task("true").add_output(m.declare_url("http://localhost/x"), "out")


# ---- when they are not needed any more


def test_pruned_file_is_fetched_again(m, run, tmp_path):
    """A pruned file keeps its name and is brought again."""
    (tmp_path / "file").write_bytes(bytes(LARGE))
    file = m.declare_file(tmp_path / "file", cache=True)
    run(cat(file, "true"))
    assert m.get_file_replica_count(file) == 1
    m.prune_file(file)
    assert m.get_file_replica_count(file) == 0
    assert run(cat(file, "wc -c < in")).output.strip() == str(LARGE)


def test_a_pruned_temporary_file_is_made_again(m, run, shared_cluster):
    temp = m.declare_temp()
    maker = Task(f"echo x >> {shared_cluster.path('prune-makers')}; echo precious > out")
    maker.add_output(temp, "out")
    run(maker)
    m.prune_file(temp)
    assert run(cat(temp)).output == "precious\n"
    assert shared_cluster.count_lines("prune-makers") == 2


@pytest.mark.parametrize("name", ["undeclare_file", "remove_file"])
def test_undeclared_file_leaves_worker(m, run, shared_cluster, name):
    """An undeclared file is removed from the worker."""
    data = os.urandom(LARGE)
    file = m.declare_buffer(data, cache=True)
    run(cat(file, "true"))
    cached = [
        path for path in shared_cluster.workspace.glob("*/session-*/cache/*") if path.name == file.cache_name
    ]
    assert len(cached) == 1
    getattr(m, name)(file)
    wait_until(lambda: not cached[0].exists(), "the copy in the cache to be removed")


def test_file_undeclared_early_still_serves_tasks(m, run, local_cluster):
    """A file may be undeclared while tasks that read it still wait."""
    waiting = local_cluster.start_manager()
    file = waiting.declare_buffer(b"x" * LARGE)
    small = waiting.declare_buffer("small")
    task = cat(file, "wc -c < in; cat small")
    task.add_input(small, "small")
    waiting.submit(task)
    for one in (file, small):
        waiting.undeclare_file(one)
    local_cluster.start_workers(waiting, 1)
    assert waiting.wait(PATIENCE_S) is task
    assert task.output == f"{LARGE}\nsmall"


def test_repeated_declarations_lose_nothing(m, run):
    """Declaring and undeclaring the same content over and over loses nothing."""
    for _ in range(100):
        file = m.declare_buffer("over and over")
        task = cat(file)
        m.submit(task)
        m.undeclare_file(file)
        assert m.wait(PATIENCE_S) is task
        assert task.output == "over and over"


@pytest.mark.parametrize("directory", [False, True])
def test_unlinked_file_goes_with_declaration_or_manager(local_cluster, tmp_path, directory):
    """A file to be unlinked goes when it is undeclared or with its manager."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        if directory:
            path.mkdir()
        (path / "file" if directory else path).write_text("x")
    with local_cluster.start_manager() as own:
        files = [own.declare_file(path, unlink_when_done=True) for path in paths]
        own.undeclare_file(files[0])
        assert [path.exists() for path in paths] == [False, True]
        paths[0].touch()
        own.undeclare_file(files[0])  # it is not the same any more
    assert [path.exists() for path in paths] == [True, False]


def test_what_nobody_has_made_cannot_be_read(m):
    with pytest.raises(FileNotFoundError, match="cannot read"):
        m.declare_temp().contents()


def test_several_threads_may_read_the_same_file(m, run):
    temp = m.declare_temp()
    maker = Task(f"head -c {LARGE} /dev/zero > out")
    maker.add_output(temp, "out")
    run(maker)
    contents = []
    threads = [threading.Thread(target=lambda: contents.append(temp.contents())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert contents == [bytes(LARGE)] * 8


@pytest.mark.parametrize("level", ["always", 4, None])
def test_an_unknown_cache_level_is_refused(m, level):
    with pytest.raises(ValueError, match="cache level"):
        m.declare_buffer("x", cache=level)


@pytest.mark.parametrize("peers", [False, True])
def test_without_peer_transfers_manager_relays(local_cluster, peers):
    """Without peer transfers everything goes through the manager, until they are enabled again."""
    m = local_cluster.start_manager()
    m.disable_peer_transfers()
    if peers:
        m.enable_peer_transfers()
    local_cluster.start_workers(m, 1)
    maker = PythonTask(sample_tasks.make_bytes, LARGE)
    maker.enable_temp_output()
    m.submit(maker)
    assert m.wait(PATIENCE_S).successful()
    blocker = PythonTask(sample_tasks.held, str(local_cluster.folder), "blocker", "gate")
    m.submit(blocker)
    wait_until(lambda: local_cluster.count_lines("blocker"), "the first worker to be busy")
    local_cluster.start_workers(m, 1)
    m.submit(PythonTask(sample_tasks.length, maker.output_file))
    assert m.wait(PATIENCE_S).output == len(sample_tasks.make_bytes(LARGE))
    name = maker.output_file.cache_name
    assert scheduler_state(m, lambda scheduler: scheduler.state.files[name].at_manager) != peers
    local_cluster.path("gate").touch()
    assert m.wait(PATIENCE_S) is blocker


# ---- what is known of it


@pytest.mark.parametrize("how", ["a call", "a call in a child", "a Python task", "a command", "a peer"])
def test_every_maker_and_receiver_reports_digest(local_cluster, how):
    """Whoever makes or receives an object tells its digest."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 2 if how == "a peer" else 1)
    size, held, gate = 5_000_000, local_cluster.path("held"), local_cluster.path("gate")
    if how.startswith("a call"):
        mode = "fork" if how.endswith("child") else "direct"
        m.install_library(m.create_library_from_functions("lib", sample_tasks.make_bytes, exec_mode=mode))
        task = FunctionCall("lib", "make_bytes", size)
        task.enable_temp_output()
    elif how == "a Python task":
        task = PythonTask(sample_tasks.make_bytes, size)
        task.enable_temp_output()
    else:
        task = Task(f"yes | head -c {size} > out")
        task.add_output(m.declare_temp(), "out")
    m.submit(task)
    assert m.wait(PATIENCE_S).successful()
    file = task.output_file if isinstance(task, PythonTask) else task.outputs[0]
    if how == "a peer":
        for number in (1, 2):
            reader = cat(file, f"echo >> {held}; while [ ! -e {gate} ]; do sleep 0.01; done")
            reader.set_cores(2)
            m.submit(reader)
            wait_until(lambda count=number: local_cluster.count_lines("held") == count)
        gate.touch()
        assert m.wait(PATIENCE_S).successful() and m.wait(PATIENCE_S).successful()
    told = scheduler_state(
        m, lambda scheduler: list(scheduler.state.files[file.cache_name].replicas.values())
    )
    kept = [
        digests.hash_file(str(path)) for path in local_cluster.workspace.glob(f"*/*/cache/{file.cache_name}")
    ]
    assert told == kept
    assert len(told) == (2 if how == "a peer" else 1)


# ---- what is not there yet, or never will be


def test_reader_may_be_submitted_before_maker(m, run):
    """A task may be submitted before the one that makes its input."""
    temp, buffer, copy = m.declare_temp(), m.declare_buffer(), m.declare_buffer()
    reader = Task("cat a b > c", inputs={temp: "a", buffer: "b"}, outputs={copy: "c"}, cores=1)
    m.submit(reader)
    wait_until(lambda: "no task makes yet" in m.stalled_reason, "the manager to say what is waited for")
    assert m.wait(0) is None
    writer = Task(
        "printf 'made '; printf 'made ' > x; printf here > y", outputs={temp: "x", buffer: "y"}, cores=1
    )
    m.submit(writer)
    assert {m.wait(PATIENCE_S).id, m.wait(PATIENCE_S).id} == {reader.id, writer.id}
    assert m.fetch_file(copy) == "made here"
    wait_until(lambda: not m.stalled_reason, "the complaint to end")


def test_missing_input_is_named_by_path(m, run, tmp_path):
    """An input that is not there is called by its path."""
    task = Task("cat in", inputs={m.declare_file(tmp_path / "mistyped.root"): "in"})
    assert run(task).result == "input missing"
    text = str(task.error())
    assert str(tmp_path / "mistyped.root") in text
    assert "did not exist when it was declared, and no submitted task makes it: check the path" in text
    assert "out-" not in text


@pytest.mark.parametrize("waiting", ["wait", "wait for nothing", "tag", "number"])
def test_path_may_be_read_before_made(m, tmp_path, waiting):
    """A path may be read before the task that makes it is submitted."""
    middle, last, never = (m.declare_file(tmp_path / name) for name in ("middle", "last", "mistyped"))
    reader = Task("cat in > out", inputs={middle: "in"}, outputs={last: "out"}, cores=1, tag="reader")
    maker = Task("printf made > out", outputs={middle: "out"}, cores=1)
    wrong = Task("cat in", inputs={never: "in"}, cores=1)
    ended = []
    for task in (wrong, reader, maker):
        m.submit(task)
    if waiting == "tag":
        ended.append(m.wait_for_tag("reader", PATIENCE_S))
    elif waiting == "number":
        ended.append(m.wait_for_task_id(reader.id, PATIENCE_S))
    while not m.empty():
        task = m.wait(0 if waiting == "wait for nothing" else 60)
        ended += [task] if task is not None else []
    assert {task.id: task.result for task in ended} == {
        wrong.id: "input missing",
        reader.id: "success",
        maker.id: "success",
    }
    assert (tmp_path / "last").read_text() == "made"


def test_missing_path_fails_without_worker(local_cluster, tmp_path):
    """A path that is not there fails its task also where no worker is."""
    with local_cluster.start_manager() as m:
        m.submit(Task("cat in", inputs={m.declare_file(tmp_path / "mistyped.root"): "in"}))
        assert m.wait(PATIENCE_S).result == "input missing"


def test_requesting_output_waits_for_task(m, run, tmp_path):
    """Whoever wants the output of a task waits for it."""
    temp = m.declare_temp()
    reader = Task(
        "cat in > out", inputs={m.declare_file(tmp_path / "mistyped.root"): "in"}, outputs={temp: "out"}
    )
    m.submit(reader)
    with pytest.raises(FileNotFoundError, match=r"mistyped\.root"):
        m.read_file(temp)
    assert m.wait(PATIENCE_S) is reader


def test_task_reading_its_output_is_refused(m, run, tmp_path):
    """A task that reads what it makes is told so."""
    place = m.declare_file(tmp_path / "both")
    task = Task("cat in > out", inputs={place: "in"}, outputs={place: "out"})
    assert run(task).result == "input missing"
    assert f"{tmp_path / 'both'} is made by the same task that reads it" in str(task.error())


def test_missing_output_is_named_as_declared(m, run):
    """What a task has not made is called by its name there."""
    temp = m.declare_temp()
    maker, reader = Task("true", outputs={temp: "sub/result.txt"}), Task("cat in", inputs={temp: "in"})
    run(maker, reader)
    assert "did not make sub/result.txt" in str(reader.error())
    assert temp.cache_name not in str(reader.error())
