"""The catalog server, those who use it, and those who abuse it."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import sys
import threading

import pytest

from tests.harness.http_servers import catalog_server
from tests.harness.processes import PATIENCE_S, find_python, wait_until
from vinecore import Task
from vinecore.discovery.announcer import make_record
from vinecore.discovery.catalog_server import MAX_RECORDS_PER_ADDRESS, RecordStore, parse_filter
from vinecore.protocol.discovery import catalog
from vinecore.protocol.discovery.catalog import CatalogClient, parse_servers
from vinecore.protocol.discovery.manager_record import MAX_RECORD_BYTES
from vinecore.security.shared_secret import write_secret


def record(name="mine", key="0123", **more):
    return {**make_record(name=name, key=key, bound="127.0.0.1", port=9123, ssl=False), **more}


OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def server(tmp_path):
    """A catalog server; gives its port."""
    with catalog_server(tmp_path) as port:
        yield port


def ask(port, path="/query.json", head=None, source="127.0.0.1"):
    """Ask, as any client of HTTP does; give the status and the content."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S, (source, 0)) as sock:
        sock.sendall(head or f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    status, _, body = answer.partition(b"\r\n\r\n")
    assert not answer or b"Content-Length: %d\r\n" % len(body) in status + b"\r\n"
    return status.partition(b"\r\n")[0][9:12].decode(), body


def report(port, content):
    with socket.create_connection(("127.0.0.1", port + 1), PATIENCE_S) as sock:
        try:
            sock.sendall(content if isinstance(content, bytes) else json.dumps(content).encode())
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)  # until it has been read
        except OSError:  # it has been cut off
            pass


# ---- managers and workers


@pytest.mark.parametrize("how", ["option", "variable"])
def test_worker_finds_manager_at_catalog(local_cluster, server, how, monkeypatch):
    """A worker finds its manager at a catalog which forgets it at its end."""
    where = f"127.0.0.1:{server}"
    if how == "variable":
        monkeypatch.setenv("CATALOG_HOST", where)
    given = where if how == "option" else None
    options = ("-C", where) if how == "option" else ()
    m = local_cluster.start_manager(name="mine", registry=False, catalog=given)
    wait_until(lambda: json.loads(ask(server)[1]))
    worker = local_cluster.start_worker(None, "-M", "m.*", *options)
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    m.close()
    assert worker.wait() == 0
    wait_until(lambda: json.loads(ask(server)[1]) == [], "the catalog to forget a manager that has ended")


def test_the_one_file_asks_a_catalog_too(local_cluster, server):
    from vineworker import zipapp_builder

    python, path = find_python("3.9"), zipapp_builder.write_zipapp(str(local_cluster.folder))
    m = local_cluster.start_manager(name="mine", registry=False, catalog=f"127.0.0.1:{server}")
    wait_until(lambda: json.loads(ask(server)[1]))
    local_cluster.start_worker(
        None, "-M", "mine", "-C", f"127.0.0.1:{server}", command=[python, path], PYTHONPATH=""
    )
    m.wait_for_workers(1, PATIENCE_S)


def test_report_is_compatible_and_secretless(local_cluster, server):
    """What is reported is what others expect and no secret."""
    m = local_cluster.start_manager(name="mine", registry=False, catalog=f"127.0.0.1:{server}")
    m.submit(Task("true"))
    [about] = wait_until(lambda: json.loads(ask(server)[1]))
    assert (about["type"], about["project"], about["port"], about["ssl"]) == (
        "vine_manager",
        "mine",
        m.port,
        False,
    )
    assert about["address"] == "127.0.0.1"
    assert {
        "owner",
        "version",
        "protocol",
        "starttime",
        "priority",
        "network_interfaces",
        "taskvine_uuid",
    } <= set(about)
    assert {"tasks_waiting", "tasks_running", "tasks_left", "workers_connected", "lastheardfrom"} <= set(
        about
    )
    assert local_cluster.secret.read_text().strip() not in str(about)


def test_nothing_is_reported_by_default(local_cluster, server, monkeypatch):
    """Nothing is reported that nobody has asked for."""
    monkeypatch.setenv("CATALOG_HOST", f"127.0.0.1:{server}")
    local_cluster.start_manager()
    local_cluster.start_manager(name="hidden", catalog=False)
    local_cluster.start_manager(name="seen")
    [about] = wait_until(lambda: json.loads(ask(server)[1]))
    assert about["project"] == "seen"


def test_absent_catalog_is_logged_only(local_cluster, caplog):
    """A catalog that is away is told of and harms nobody."""
    m = local_cluster.start_manager(name="mine", catalog="127.0.0.1:1")
    local_cluster.start_worker(None, "-M", "mine", "-C", "127.0.0.1:1")
    m.wait_for_workers(1, PATIENCE_S)
    wait_until(lambda: "cannot report to the catalog at 127.0.0.1:1" in caplog.text)
    worker = local_cluster.start_worker(None, "-M", "other", "-C", "127.0.0.1:1", "--timeout", "100")
    worker.wait_for_log("no catalog answers: 127.0.0.1:1: [Errno 111] Connection refused")


def test_lying_catalog_misleads_harmlessly(local_cluster, tmp_path, caplog):
    """A catalog that lies sends a worker to strangers and not into trouble."""
    write_secret(tmp_path / "theirs")
    thief = local_cluster.start_manager(name="mine", registry=False, password_file=tmp_path / "theirs")
    m = local_cluster.start_manager(name="mine", registry=False)
    stranger = OddServer(*[b"\x16\x03\x01" + b"[" * 2000 + b"\n"] * 20, hears=False)
    port = stranger.port
    told = [None, 7, [[]], {}, {"type": "vine_manager"}, record(port="x"), *(record(project=n) for n in (None, [], "x" * 10_000)),
            *(record(key=f"stranger-{n}", port=port, tasks_waiting=9) for n in range(3)), record(key="thief", port=thief.port, tasks_waiting=9)]  # fmt: skip
    true = record(key="true", port=m.port)
    liar = OddServer(*[OK + json.dumps([*told, true]).encode()] * 20)
    worker = local_cluster.start_worker(
        None, "-M", "mine", "-C", f"127.0.0.1:{liar.port}", "--timeout", "100"
    )
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    assert thief.workers_connected == 0
    wait_until(lambda: "wrong secret" in caplog.text, "a word about it")
    assert "Traceback" not in worker.log
    for server in (liar, stranger):
        server.close()


# ---- the client


def test_servers_are_named_as_in_cctools(monkeypatch):
    monkeypatch.delenv("CATALOG_PORT", raising=False)
    assert parse_servers("") == ()
    assert parse_servers("a.org, b:1234,[::1]:77,[::1]") == (
        ("a.org", 9097),
        ("b", 1234),
        ("::1", 77),
        ("::1", 9097),
    )
    monkeypatch.setenv("CATALOG_PORT", "4000")
    assert parse_servers("a") == (("a", 4000),)
    for text in ("a:", "a:b", "a:70000", "a:65535", "::1", "a b", "a:0"):
        with pytest.raises(ValueError, match="is not a catalog server"):
            parse_servers(text)


def test_next_server_replaces_silent_one(server):
    """The next server is asked where one does not answer."""
    report(server, record())
    both = CatalogClient((("127.0.0.1", 1), ("127.0.0.1", server)))
    assert [about["project"] for about in both.query()] == ["mine"]
    assert both._down.keys() == {("127.0.0.1", 1)}


class OddServer:
    """Answers each connection with what it is told to, after it has heard something."""

    def __init__(self, *answers, hears=True):
        self._hears = hears
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.asked = self.listener.getsockname()[1], []
        self._thread = threading.Thread(target=self._serve, args=(answers,), daemon=True)
        self._thread.start()

    def _serve(self, answers):
        for answer in answers:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # closed
                return
            with sock:
                if self._hears:
                    self.asked.append(sock.recv(4096))
                try:
                    sock.sendall(answer)
                except OSError:
                    pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self.listener.close()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b""], "does not speak HTTP"),
        ([b"SSH-2.0\r\n"], "does not speak HTTP"),
        ([OK + b"{}"], "not a list"),
        ([OK + b"[1"], "not a list"),
        ([OK + b"[" * 100_000], "not a list"),
        ([OK + b"\xff"], "not a list"),
        ([OK + b"[" + b" " * 3_000_000], "more than 2000000 bytes"),
        ([b"HTTP/1.1 500 no\r\n\r\n"] * 2, "does not know /query.json"),
    ],
)
def test_odd_server_is_left_with_reason(answers, said, monkeypatch):
    """An odd server is left with a reason."""
    monkeypatch.setattr(catalog, "MAX_REPLY_BYTES", 2_000_000)
    server = OddServer(*answers)
    with pytest.raises(OSError, match=said):
        CatalogClient((("127.0.0.1", server.port),)).query()
    server.close()


def test_server_without_filters_is_asked_all():
    """A server that knows no expressions is asked for all."""
    server = OddServer(b"HTTP/1.0 501 no\r\n\r\n", OK + b'[{"a": 1}]')
    assert CatalogClient((("127.0.0.1", server.port),)).query() == [{"a": 1}]
    server.close()
    first, second = (line.split(b" ")[1].decode() for line in server.asked)
    assert base64.b64decode(first.removeprefix("/query/")) == b'type=="vine_manager"'
    assert second == "/query.json"


def test_stalling_server_is_abandoned(monkeypatch):
    """A server that stalls is not waited for long."""
    monkeypatch.setattr(catalog, "QUERY_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(OSError, match="timed out"):
        CatalogClient((("127.0.0.1", listener.getsockname()[1]),)).query()


# ---- the server


def test_records_are_formatted_as_requested(server):
    """Records are given as they are asked for."""
    for name in ("a", "b"):
        report(server, record(name, key=name))
    report(server, {"type": "vine_factory", "port": -77, "project_regex": "a.*"})
    expression = lambda text: f"/query/{base64.b64encode(text.encode()).decode()}"  # noqa: E731
    names = lambda path: sorted(about.get("project", "") for about in json.loads(ask(server, path)[1]))  # noqa: E731
    assert names("/query.json") == ["", "a", "b"]
    assert names(expression('type=="vine_manager"')) == ["a", "b"]
    assert names(expression('((type == "vine_manager") && (project=="b"))')) == ["b"]
    assert names(expression("port==9123 && ssl==false")) == ["a", "b"]
    assert ask(server, "/")[0] == "200"
    report(server, record("b", key="b", tasks_waiting=5))
    waiting = [about["tasks_waiting"] for about in json.loads(ask(server)[1]) if about.get("project") == "b"]
    assert waiting == [5]


@pytest.mark.parametrize("text", ["", "type", "type==", 'type=="a" &&', "a==b", "a<1", '"a"==1', "a==1 || b==2", "a==" + "9" * 400, "a==1&&" * 16 + "a==1", "a\u0000==1"])  # fmt: skip
def test_expressions_that_are_not_understood_are_refused(text):
    with pytest.raises(ValueError, match="only comparisons"):
        parse_filter(text)


def test_hostile_requests_are_refused(server):
    """Hostile requests and reports are refused and the server goes on."""
    draw = random.Random(3)
    report(server, record())
    garbage = [b"", b"\x00" * 100, b"GET", b"GET / HTTP/1.1\r\n", b"POST /query.json HTTP/1.1\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
               b"GET /query/%ff%00 HTTP/1.1\r\n\r\n", b"GET /query/" + b"A" * 7000 + b" HTTP/1.1\r\n\r\n", b"x" * 1_000_000,
               *(draw.randbytes(300) for _ in range(100))]  # fmt: skip
    for data in garbage:
        with socket.create_connection(("127.0.0.1", server), PATIENCE_S) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                said = sock.recv(1 << 16)
                assert not said or said.startswith(b"HTTP/1.1 4"), said
            except OSError:
                pass
    deep = b'{"type": "x", "port": 1, "a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    less_deep = b'{"type": "x", "port": 1, "a": ' + b"[" * 30 + b"]" * 30 + b"}"
    for data in [*garbage, deep, less_deep, b"[]", b"null", b'{"port": 1}', b'{"type": 1, "port": 1}', b'{"type": "x"}', b'{"type": "x", "port": NaN}',
                 b'{"type": "x", "port": 1, "a": 1e999}', b'{"type": "x", "port": 1' + b"0" * 5000 + b"}", b'{"type": "\xff", "port": 1}',
                 json.dumps(record(more="a" * MAX_RECORD_BYTES)).encode()]:  # fmt: skip
        report(server, data)
    assert [about["project"] for about in json.loads(ask(server)[1])] == ["mine"]
    assert json.loads(ask(server)[1])[0]["address"] == "127.0.0.1"


def test_silent_connections_take_bounded_share(server):
    """One who opens many connections and says nothing takes no more than a part."""
    report(server, record())
    idle = [socket.create_connection(("127.0.0.1", server), PATIENCE_S) for _ in range(300)]
    try:
        assert idle[-1].recv(1) == b"", "the last one has been cut off"
        assert json.loads(ask(server, source="127.0.0.2")[1])[0]["project"] == "mine"
    finally:
        for sock in idle:
            sock.close()
    wait_until(lambda: ask(server)[1])


# ---- what is kept


def kept(records, now=0.0):
    return [json.loads(text) for text in records.select(lambda _record: True, now)]


def test_records_expire():
    records = RecordStore(100)
    records.add_report(json.dumps(record()).encode(), "10.0.0.1", 0, 1000)
    records.add_report(json.dumps(record(key="brief", lifetime=5)).encode(), "10.0.0.1", 0, 1000)
    assert [about["lastheardfrom"] for about in kept(records, 4)] == [1000, 1000]
    assert [about["taskvine_uuid"] for about in kept(records, 6)] == ["0123"]
    for now in range(1, 1000):
        records.add_report(json.dumps(record()).encode(), "10.0.0.1", now, 1000)
    assert len(records._expiry) < 110
    assert len(kept(records, 1098)) == 1
    assert kept(records, 1100) == []
    assert (records._bytes, records._of_one) == (0, {})


def test_what_is_kept_is_bounded(monkeypatch):
    records = RecordStore()
    text = lambda key: json.dumps(record(key=str(key))).encode()  # noqa: E731
    for key in range(MAX_RECORDS_PER_ADDRESS):
        records.add_report(text(key), "10.0.0.1", 0, 0)
    with pytest.raises(ValueError, match="too many records of one address"):
        records.add_report(text("one more"), "10.0.0.1", 0, 0)
    records.add_report(text(0), "10.0.0.1", 0, 0)
    records.add_report(text(0), "10.0.0.2", 0, 0)
    monkeypatch.setattr("vinecore.discovery.catalog_server.MOST_RECORDS", MAX_RECORDS_PER_ADDRESS + 1)
    with pytest.raises(ValueError, match="records already"):
        records.add_report(text(1), "10.0.0.2", 0, 0)
    monkeypatch.setattr("vinecore.discovery.catalog_server.MOST_TOTAL", records._bytes + 10)
    with pytest.raises(ValueError, match="exceed"):
        records.add_report(text(0), "10.0.0.2", 0, 0)
    assert len(kept(records)) == MAX_RECORDS_PER_ADDRESS + 1


def test_the_command_says_what_is_wrong():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            [["--address", "127.0.0.1", "--port", str(port)], "cannot listen"],
            [["--port", "65535"], "use a port"],
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "vinecore.discovery.catalog_server", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
            assert (ended.returncode, said in ended.stderr, "Traceback" in ended.stderr) == (2, True, False)
