"""The numbers of a manager over HTTP on this machine: as gauges for Prometheus, and as JSON."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

from vinecore.scheduler.statistics import ManagerStats

HOST = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def format_gauges(stats: ManagerStats, manager: str) -> str:
    """Return statistics in Prometheus's text format, each as the gauge ``vine_<field>``.

    Parameters
    ----------
    stats
        The statistics.
    manager
        The name of the manager, which is a label of each gauge.
    """
    label = manager.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = []
    for field, value in stats._asdict().items():
        name = f"vine_{field}"
        lines += [
            f"# HELP {name} {field} of Manager.stats",
            f"# TYPE {name} gauge",
            f'{name}{{manager="{label}"}} {value}',
        ]
    return "\n".join(lines) + "\n"


class PrometheusServer:
    """Serves gauges on a port of the loopback interface, in threads of its own.

    Parameters
    ----------
    port
        The port; 0 for any free one.
    gauges
        Returns the text to send; may raise RuntimeError if the manager is closed.
    describe
        Returns the record of the manager, in a list, for ``/manager_status``.

    Attributes
    ----------
    port : int
        The port.

    Raises
    ------
    OSError
        The port is not free.
    """

    def __init__(
        self, port: int, gauges: Callable[[], str], describe: Callable[[], list[dict[str, Any]]]
    ) -> None:
        self._server = _Server((HOST, port), _Handler)
        self._server.answers = dict.fromkeys(("/", "/metrics"), (CONTENT_TYPE, gauges))
        self._server.answers["/manager_status"] = ("application/json", lambda: json.dumps(describe()))
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="vine-prometheus", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # paths, with the types of their contents
    answers: dict[str, tuple[str, Callable[[], str]]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        found = self.server.answers.get(self.path.partition("?")[0])
        if found is None:
            self.send_error(404, "the gauges are at /metrics")
            return
        content_type, answer = found
        try:
            body = answer().encode()
        except RuntimeError as error:
            self.send_error(503, str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_about: object) -> None:
        pass
