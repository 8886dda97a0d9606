"""The numbers of a manager as gauges for Prometheus, over HTTP on this machine."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable

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

    Attributes
    ----------
    port : int
        The port.

    Raises
    ------
    OSError
        The port is not free.
    """

    def __init__(self, port: int, gauges: Callable[[], str]) -> None:
        self._server = _Server((HOST, port), _Handler)
        self._server.gauges = gauges
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
    gauges: Callable[[], str]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404, "the gauges are at /metrics")
            return
        try:
            body = self.server.gauges().encode()
        except RuntimeError as error:
            self.send_error(503, str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_about: object) -> None:
        pass
