"""Files that come from servers: by what name, from whom, and what is done about a server that breaks down."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.options import TRANSFER_THREADS as FETCHES
from vineworker.storage.downloads import Downloader

from tests.harness.http_servers import Relay, web_server, xrootd_server
from tests.harness.processes import PATIENCE_S, free_port, is_alive, wait_until
from vinecore import PythonTask, Task
from vinecore.manager import url_metadata
from vinecore.protocol import INLINE_LIMIT

LARGE = 8 * INLINE_LIMIT
OLD = 1_700_000_000  # seconds: a date that is not of this moment


@pytest.fixture
def web(tmp_path):
    with web_server(tmp_path) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """Short pauses between the tries at an address."""
    monkeypatch.setattr("vinecore.scheduler.transfer_failures.RETRY_DELAY_S", 0.01)


@pytest.fixture(scope="module")
def xrootd():
    with xrootd_server() as server:
        yield server


def place(web, name, data=None):
    """Put a file on the web server, as old as any."""
    path = web.folder / name
    path.write_bytes(os.urandom(LARGE) if data is None else data)
    os.utime(path, (OLD, OLD))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum(file, command="sha256sum < in"):
    task = Task(command)
    task.set_cores(1)
    task.add_input(file, "in")
    return task


# ---- names


def test_name_follows_address_and_metadata(m, web):
    """A name is made of the address and of what the server says."""
    place(web, "a", b"one")
    place(web, "b", b"one")
    first = m.declare_url(f"{web.url}/a")
    assert (len(first), first.source()) == (3, f"{web.url}/a")
    assert m.declare_url(f"{web.url}/a").cache_name == first.cache_name
    assert m.declare_url(f"{web.url}/b").cache_name != first.cache_name
    place(web, "a", b"two")
    assert m.declare_url(f"{web.url}/a").cache_name != first.cache_name
    assert {method for method, _path in web.asked} == {"HEAD"}


def test_unknown_metadata_gets_new_name(m, run, web):
    """A server that says nothing of its content gets a new name each time."""
    expected = place(web, "file")
    for way in ("plain", "refused"):
        files = [m.declare_url(f"{web.url}/{way}/file") for _ in range(2)]
        assert files[0].cache_name != files[1].cache_name
        assert {task.output.split()[0] for task in run(*map(checksum, files))} == {expected}


@pytest.mark.parametrize(
    ("said", "validator"),
    [
        ({}, ()),
        ({"ETag": '"x"'}, ('"x"', "")),
        ({"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, ()),  # without a length
        (
            {"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT", "Content-Length": "5"},
            ("", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ),
        ({"Last-Modified": "now", "Content-Length": "5"}, ()),  # it may change within the same second
        ({"Last-Modified": "yesterday", "Content-Length": "5"}, ()),
    ],
)
def test_what_tells_one_content_from_another(web, said, validator):
    (web.folder / "file").write_bytes(b"12345")
    web.headers = said
    look = url_metadata.stat_url(f"{web.url}/said/file")
    assert look.validator == validator
    assert look.verified_size == (5 if validator and "Content-Length" in said else -1)


def test_local_file_is_named_by_stat(m, tmp_path):
    """A file on a disk is named by what is there if it is here too."""
    path = tmp_path / "file"
    path.write_text("one")
    first, again = (m.declare_url(path.as_uri()) for _ in range(2))
    assert first.cache_name == again.cache_name
    path.write_text("other")
    assert m.declare_url(path.as_uri()).cache_name != first.cache_name
    nowhere = [m.declare_url("file:///only/on/the/workers") for _ in range(2)]
    assert nowhere[0].cache_name != nowhere[1].cache_name


def test_unreachable_server_is_asked_once(m, monkeypatch):
    """A server that cannot be reached from here is no error and is asked once."""
    monkeypatch.setattr(url_metadata, "HEAD_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        names = {m.declare_url(f"{url}/{number}").cache_name for number in range(20)}
        assert len(names) == 20
        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
    m.declare_url(f"http://127.0.0.1:{free_port()}/refused")
    m.declare_url("http://no-such-host.invalid/file")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost/file", "no ://"),
        ("s3://bucket/file", "not from s3"),
        ("http:///file", "names no server"),
        ("http://host/a file", "%20"),
        ("root://host", "names no file"),
    ],
)
def test_what_is_not_an_address_is_refused(m, url, why):
    with pytest.raises(ValueError, match=why):
        m.declare_url(url)
    with pytest.raises(ValueError, match="cache level"):
        m.declare_url("http://host/file", cache="always")


# ---- from a web server


def test_a_file_that_has_moved_is_found(m, run, web):
    expected = place(web, "file")
    file = m.declare_url(f"{web.url}/moved/file")
    assert len(file) == LARGE
    assert {method for method, _path in web.asked} == {"HEAD"}
    assert run(checksum(file)).output.split()[0] == expected


@pytest.mark.parametrize("peers", [True, False])
def test_workers_exchange_fetched_file_if_allowed(local_cluster, web, peers):
    """Workers fetch a file from each other unless they may not."""
    expected = place(web, "file")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 4)
    file = m.declare_url(f"{web.url}/file", cache=True, peer_transfer=peers)
    wait = "echo x >> {0}/here; while [ $(wc -l < {0}/here) -lt {1} ]; do sleep 0.02; done; sha256sum < in"
    for count in (1, 5):  # first one, then all of them: each has a worker of its own
        tasks = [Task(wait.format(local_cluster.folder, count)) for _ in range(1 if count == 1 else 4)]
        for task in tasks:
            task.add_input(file, "in")
            m.submit(task)
        assert {m.wait(PATIENCE_S).output.split()[0] for _ in tasks} == {expected}
    asked = web.count("GET", "/file")
    assert asked <= 2 if peers else asked == 4
    assert m.get_file_replica_count(file) == 4


def test_changed_content_is_not_used(m, run, web):
    """A content that has changed since is not used."""
    place(web, "file", b"old content")
    file = m.declare_url(f"{web.url}/file")
    (web.folder / "file").write_bytes(b"new content")
    task = run(checksum(file))
    assert task.result == "input missing"
    assert f"{web.url}/file" in str(task.error())
    assert "changed since it was declared" in str(task.error())
    assert web.count("GET", "/file") == 1
    assert run(checksum(m.declare_url(f"{web.url}/file"), "cat in")).output == "new content"


def test_server_stopping_once_is_asked_again(m, run, web, impatient):
    """A server that stops half way once is asked again."""
    expected = place(web, "file")
    assert run(checksum(m.declare_url(f"{web.url}/half-once/file"))).output.split()[0] == expected
    assert web.count("GET", "/half-once/file") == 2


def test_server_stopping_always_fails_task(m, run, web, impatient):
    """A server that always stops half way fails the task and is named."""
    place(web, "file")
    url = f"{web.url}/half/file"
    task = run(checksum(m.declare_url(url)))
    assert task.result == "input missing"
    assert url in str(task.error())
    assert f"stopped half way: {LARGE // 2} bytes came, {LARGE} were announced" in str(task.error())
    assert 2 < web.count("GET", "/half/file") < 10
    value = PythonTask(len, m.declare_url(url))
    assert url in str(run(value).output)


def test_url_content_is_fetched_by_worker(m, run, web):
    """The content of an address is brought here by a worker."""
    place(web, "file", b"content")
    file = m.declare_url(f"{web.url}/file")
    assert file.contents() == m.fetch_file(file).encode() == b"content"
    with pytest.raises(FileNotFoundError, match=r"missing could not be brought to worker .*404"):
        m.declare_url(f"{web.url}/missing").contents()


# ---- from an XRootD server


@pytest.fixture
def by(request, local_cluster):
    """Start a manager whose worker fetches with this, and with nothing else."""
    way = request.param
    if way == "xrdcp" and shutil.which("xrdcp") is None:
        pytest.skip("needs xrdcp: apt-get install xrootd-client")
    if way == "python" and importlib.util.find_spec("XRootD") is None:
        pytest.skip("needs XRootD for Python: pip install fsspec-xrootd")
    hidden = local_cluster.folder / "hidden"
    (hidden / "XRootD").mkdir(parents=True)
    (hidden / "XRootD" / "__init__.py").write_text("raise ImportError('hidden by a test')")
    variables = {"XRD_CONNECTIONWINDOW": "1"}
    if way != "xrdcp":
        variables["PATH"] = str(hidden)
    if way != "python":
        path = os.pathsep.join(p for p in os.sys.path if p)
        variables["PYTHONPATH"] = f"{hidden}{os.pathsep}{path}"
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, **variables)
    m.wait_for_workers(1, PATIENCE_S)

    def fetch(url):
        m.submit(checksum(m.declare_url(url), "/usr/bin/sha256sum < in"))
        return m.wait(PATIENCE_S)

    return fetch


both = pytest.mark.parametrize("by", ["xrdcp", "python"], indirect=True)


@both
def test_xrootd_file_is_fetched(by, xrootd):
    """A file is fetched from an xrootd server."""
    data = os.urandom(LARGE)
    task = by(xrootd.put("file", data))
    assert task.error() is None
    assert task.output.split()[0] == hashlib.sha256(data).hexdigest()


@both
def test_missing_xrootd_file_fails_task(by, xrootd, caplog):
    """What an xrootd server does not have fails the task at once."""
    url = f"{xrootd.url}/nothing"
    error = str(by(url).error())
    assert sum("could not get" in line for line in caplog.messages) == 1
    assert url in error
    assert "No such file" in error or "no such file" in error


@both
def test_stopping_xrootd_server_fails_task(by, xrootd, impatient):
    """An xrootd server that stops half way fails the task and is named."""
    path = xrootd.put("large", os.urandom(64 * LARGE)).partition(str(xrootd.port))[2]
    relay = Relay(xrootd.port, 4 * LARGE)
    try:
        url = f"root://127.0.0.1:{relay.port}{path}"
        task = by(url)
        assert relay.broken.is_set()
        assert task.result == "input missing"
        assert url in str(task.error())
        assert "[" in str(task.error()).partition(url)[2]  # what the client has said
    finally:
        relay.close()
        relay.wait()


@pytest.mark.parametrize("by", ["nothing"], indirect=True)
def test_missing_xrootd_client_names_fixes(by):
    """Without any way to fetch from xrootd the error names the fixes."""
    error = str(by(f"root://127.0.0.1:{free_port()}//data/file").error())
    assert "xrootd-client" in error
    assert "pip install fsspec-xrootd" in error


@pytest.mark.skipif(shutil.which("xrdfs") is None, reason="needs xrdfs: apt-get install xrootd-client")
def test_xrootd_file_is_named_by_stat(m, xrootd):
    """A file on an xrootd server is named by its date and length."""
    url = xrootd.put("named", b"one")
    first = m.declare_url(url)
    assert len(first) == 3
    assert m.declare_url(url).cache_name == first.cache_name
    xrootd.put("named", b"other")
    assert m.declare_url(url).cache_name != first.cache_name
    absent = {m.declare_url(f"{xrootd.url}/absent").cache_name for _ in range(2)}
    assert len(absent) == 2


@pytest.mark.parametrize("killed", [True, False])
def test_fetching_process_ends_with_worker(local_cluster, xrootd, killed):
    """The server accepts and says nothing, so the client waits."""
    if shutil.which("xrdcp") is None:
        pytest.skip("needs xrdcp: apt-get install xrootd-client")
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m)
    m.wait_for_workers(1, PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"root://127.0.0.1:{silent.getsockname()[1]}//data/file"
        url_metadata._unresponsive_until[f"127.0.0.1:{silent.getsockname()[1]}"] = float("inf")
        m.submit(checksum(m.declare_url(url)))
        (client,) = wait_until(lambda: [child for child in worker.descendants if "xrdcp" in child.name()])
        client.suspend()  # so that it does not end by itself
        try:
            if killed:
                worker.kill()
            else:
                m.close()
            wait_until(lambda: not is_alive(client), "the client to end with its worker")
        finally:
            if client.is_running():
                client.kill()


def test_fetching_process_ends_with_session(tmp_path):
    """The worker lives on, for another manager."""
    process_reaper = ProcessReaper(str(tmp_path / "worker"))
    fetching = Downloader(process_reaper)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as threads:
            url = f"root://127.0.0.1:{silent.getsockname()[1]}//data/file"
            fetched = threads.submit(fetching.download, url, str(tmp_path / "file"), -1, ())
            (child,) = wait_until(lambda: list(fetching._processes))
            child.send_signal(signal.SIGSTOP)  # so that it does not end by itself
            fetching.close()
            with pytest.raises(OSError, match="ended with code -9"):
                fetched.result(PATIENCE_S)
    finally:
        process_reaper.close()


def test_fetches_do_not_delay_uploads(local_cluster, web):
    """What a worker fetches does not hold up what it brings to the manager."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--cores", str(FETCHES + 1))
    for number in range(FETCHES):
        place(web, f"file{number}")
        m.submit(checksum(m.declare_url(f"{web.url}/late/file{number}")))
    wait_until(lambda: sum(method == "GET" for method, _path in web.asked) == FETCHES)
    made = PythonTask(bytes, LARGE)
    made.set_cores(1)
    m.submit(made)
    assert m.wait(PATIENCE_S) is made
    assert made.output == bytes(LARGE)
    web.gate.set()
    assert all(m.wait(PATIENCE_S).successful() for _ in range(FETCHES))
