"""What of files and directories a task can see: links, modes, times, and what cannot be an input."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from tests.harness.processes import PATIENCE_S, find_paths, wait_until
from vinecore import Task
from vinecore.protocol import INLINE_LIMIT

SIZES = [10, 3 * INLINE_LIMIT]


def reading(file, command, name="in"):
    task = Task(command, cores=1)
    task.add_input(file, name)
    return task


@pytest.fixture
def tree(tmp_path):
    """A directory with a file in a folder, and beside it another one."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("inside\n")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "file").write_text("outside\n")
    return tmp_path / "tree"


# ---- links


def test_linked_directory_arrives_whole(m, run, tree, tmp_path):
    """A directory named by a link arrives whole."""
    (tmp_path / "link").symlink_to(tree, target_is_directory=True)
    named = m.declare_file(tmp_path / "link")
    assert run(reading(named, "cat in/sub/file")).output == "inside\n"
    assert m.declare_file(tree).cache_name == named.cache_name


def test_escaping_links_arrive_as_targets(m, run, tree, tmp_path):
    """Links that lead out of a directory arrive as what they point to."""
    (tree / "file").symlink_to("../other/deep/file")
    (tree / "folder").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "up").symlink_to("../tree/sub/file")
    (tmp_path / "other" / "own").symlink_to("deep/file")
    (tree / "absolute").symlink_to(tree / "sub")
    (tree / "out and in").symlink_to("../tree/sub/file")
    (tree / "stays").symlink_to("sub/../sub/file")
    (tree / "sub" / "stays").symlink_to("../sub/file")
    file = m.declare_file(tree)
    look = "cd in; cat file folder/deep/file folder/up folder/own absolute/file 'out and in' stays sub/stays; find -type l | sort"
    output = run(reading(file, look)).output.splitlines()
    assert output[:8] == ["outside", "outside", "inside", "outside", *["inside"] * 4]
    assert output[8:] == ["./folder/own", "./sub/stays"]


def test_content_behind_link_changes_name(m, run, tree, tmp_path):
    """Another content behind a link is another directory."""
    (tree / "file").symlink_to(tmp_path / "other" / "deep" / "file")
    assert run(reading(m.declare_file(tree), "cat in/file")).output == "outside\n"
    (tmp_path / "other" / "deep" / "file").write_text("changed\n")
    assert run(reading(m.declare_file(tree), "cat in/file")).output == "changed\n"


def test_dangling_links_are_preserved(m, run, tree):
    """Links that point nowhere stay what they are."""
    (tree / "nowhere").symlink_to("../nowhere")
    assert run(reading(m.declare_file(tree), "readlink in/nowhere")).output == "../nowhere\n"


@pytest.mark.parametrize("where", [".", "..", "/"])
def test_recursive_link_is_refused(m, tree, where):
    """A link to a folder that it is in is refused."""
    (tree / "sub" / "loop").symlink_to(os.path.abspath(tree / where))
    with pytest.raises(ValueError, match=r"sub/loop is a link to .*, a folder that it is in itself"):
        m.declare_file(tree)


# ---- what has no content that could travel


def named_pipe(place):
    os.mkfifo(place)


def listening_socket(place):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(place))


ODD = {"a named pipe": named_pipe, "a socket": listening_socket}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("inside", [False, True])
def test_pipe_or_socket_is_refused_by_name(m, tree, kind, inside):
    """A pipe or a socket is refused with its name."""
    place = tree / "sub" / "odd"
    ODD[kind](place)
    with pytest.raises(ValueError, match=f"sub/odd is {kind}: only files, folders"):
        m.declare_file(tree if inside else place)


def test_a_device_is_refused(m):
    with pytest.raises(ValueError, match="/dev/null is a device"):
        m.declare_file("/dev/null")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["sub", "sub/file"])
def test_unreadable_file_is_refused_by_name(m, tree, name, inside):
    """What cannot be read is refused with its name."""
    place = tree / name
    place.chmod(0)
    try:
        with pytest.raises(PermissionError, match=name):
            m.declare_file(tree if inside else place)
    finally:
        place.chmod(0o700)


# ---- modes and times


@pytest.mark.parametrize("size", SIZES)
def test_program_made_executable_later_runs(local_cluster, tmp_path, size):
    """Also in the next manager of a worker that has kept the first one."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho I run\n" + "#" * size)
    program.chmod(0o644)
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--keep-workspace")
    first = reading(m.declare_file(program, cache="forever"), "./in")
    m.submit(first)
    assert m.wait(PATIENCE_S).exit_code == 126
    wait_until(lambda: find_paths(local_cluster.workspace, "vine-kept/*/records/*"), "it to be kept")
    program.chmod(0o755)
    second = reading(m.declare_file(program, cache="forever"), "./in")
    m.submit(second)
    assert m.wait(PATIENCE_S).output == "I run\n"
    m.close()
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--keep-workspace")
    for mode, code in ((0o755, 0), (0o644, 126)):
        program.chmod(mode)
        m.submit(reading(m.declare_file(program, cache="forever"), "./in"))
        assert m.wait(PATIENCE_S).exit_code == code


def test_touched_file_is_newer_on_worker(m, run, tree):
    """A file of a directory that was touched is newer on the worker."""
    for name, changed in (("source", 1_000_000_000), ("made", 1_000_000_001.5)):
        (tree / name).write_text(name)
        os.utime(tree / name, (changed, changed))
    look = "cd in; if [ source -nt made ]; then echo source; else echo made; fi"
    assert run(reading(m.declare_file(tree, cache=True), look)).output == "made\n"
    os.utime(tree / "source", (1_000_000_002, 1_000_000_002))
    assert run(reading(m.declare_file(tree, cache=True), look)).output == "source\n"


def test_changed_directory_is_not_sent(m, run, tree):
    """A directory that was changed after it was declared is not sent under its name."""
    file = m.declare_file(tree)
    (tree / "sub" / "file").write_text("something else\n")
    task = run(reading(file, "cat in/sub/file"))
    assert not task.successful()
    assert run(reading(m.declare_file(tree), "cat in/sub/file")).output == "something else\n"


def test_small_file_keeps_declared_content(m, run, tmp_path):
    """A small file is what it was when it was declared whatever its mode."""
    files = []
    for mode in (0o600, 0o644, 0o700, 0o755):
        path = tmp_path / f"file-{mode:o}"
        path.write_text(f"{mode:o}\n")
        path.chmod(mode)
        files.append(m.declare_file(path))
        path.unlink()
    assert [run(reading(file, "cat in; stat -c %a in")).output.split() for file in files] == [
        ["600", "400"],
        ["644", "444"],
        ["700", "500"],
        ["755", "555"],
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("umask", ["000", "077"])
def test_transfers_are_independent_of_workers_umask(local_cluster, tmp_path, size, umask):
    """Inputs and outputs are the same whatever the umask of the worker."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(
        m, command=["/bin/sh", "-c", f'umask {umask}; exec "$0" "$@"', sys.executable, "-m", "vineworker"]
    )
    path = tmp_path / "input"
    path.write_bytes(bytes(size))
    path.chmod(0o644)
    files = {"file": m.declare_file(path), "buffer": m.declare_buffer(bytes(size))}
    task = Task(
        "stat -c '%a %Y' file buffer; cp file out; chmod 640 out; mkdir -p d/e; cp file d/e/inner; chmod 2775 d",
        cores=1,
    )
    for name, file in files.items():
        task.add_input(file, name)
    task.add_output(m.declare_file(tmp_path / "out"), "out")
    task.add_output(m.declare_file(tmp_path / "d"), "d")
    m.submit(task)
    assert m.wait(PATIENCE_S).output == "444 946684800\n" * 2
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o755
    assert os.access(tmp_path / "d" / "e" / "inner", os.W_OK)


def test_output_follows_managers_umask_and_group(local_cluster, tmp_path):
    """An output is as open as the umask of the manager lets it be and has the group of its folder."""
    before = os.umask(0o027)
    try:
        m = local_cluster.start_manager()
    finally:
        os.umask(before)
    local_cluster.start_worker(m)
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, os.getgroups()[-1] if os.getgroups() else os.getgid())
    shared.chmod(0o2770)
    task = Task("mkdir d; echo > d/file; echo > out; chmod 777 out d", cores=1)
    for name in ("out", "d"):
        task.add_output(m.declare_file(shared / name), name)
    m.submit(task)
    assert m.wait(PATIENCE_S).successful()
    found = {path.name: path.stat() for path in (shared / "out", shared / "d", shared / "d" / "file")}
    assert {name: about.st_mode & 0o777 for name, about in found.items()} == {
        "out": 0o750,
        "d": 0o750,
        "file": 0o640,
    }
    assert {about.st_gid for about in found.values()} == {shared.stat().st_gid}
    assert found["d"].st_mode & 0o2000


# ---- outputs


def test_internal_links_of_output_become_files(m, run):
    """Links of an output into the tasks folder come as what they point to."""
    made = m.declare_temp()
    task = reading(
        m.declare_buffer("input\n"),
        "mkdir d; echo other > other; ln -s ../other d/link; ln -s ../in d/in; ln -s link d/inner; ln -s /dev/null d/away",
    )
    task.add_output(made, "d")
    assert run(task).successful()
    look = "cd in; cat link in inner; readlink away; test ! -L link && test ! -L in"
    assert run(reading(made, look)).output.split() == ["other", "input", "other", "/dev/null"]


CLOSED = {
    "a read-only folder": ("mkdir d; echo x > d/file; chmod 555 d", "d", "cat in/file"),
    "a file in a read-only folder": ("mkdir d; echo x > d/file; chmod 555 d .", "d/file", "cat in"),
    "a folder with an unsearchable one": (
        "mkdir -p d/e; echo x > d/e/file; chmod 000 d/e",
        "d",
        "cat in/e/file",
    ),
    "a file that cannot be read": ("echo x > file; chmod 000 file", "file", "cat in"),
}


@pytest.mark.parametrize(("command", "name", "look"), CLOSED.values(), ids=CLOSED)
def test_an_output_may_be_closed(m, run, command, name, look):
    made = m.declare_temp()
    task = Task(command, cores=1)
    task.add_output(made, name)
    assert run(task).successful(), task.error()
    assert run(reading(made, look)).output == "x\n"


def test_nothing_closed_is_left_behind(m, run, shared_cluster):
    task = Task("mkdir -p a/b/c; echo x > a/b/c/file; chmod 000 a/b/c a/b; chmod 555 a .", cores=1)
    assert run(task).successful()
    wait_until(lambda: not find_paths(shared_cluster.workspace, "*/*/t*.d"), "the sandbox to be removed")


def test_output_with_pipe_is_refused_by_name(m, run):
    """An output with a pipe in it is refused with its name."""
    task = Task("mkdir d; mkfifo d/odd", cores=1)
    task.add_output(m.declare_temp(), "d")
    run(task)
    assert not task.successful()
    assert "d/odd is a named pipe" in str(task.error())
