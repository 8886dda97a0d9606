from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from daskvine import progress as module
from daskvine.progress import (
    BarProgress,
    LineProgress,
    NotebookProgress,
    ProgressSnapshot,
    SilentProgress,
    make_progress,
)
from tests.harness.processes import PATIENCE_S

NO_WORKER = "no worker is connected; start one with vine_worker"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def snapshot(done=0, missing=None, total=10, running=2, workers=1, moved_bytes=0):
    waiting = total - done - running
    return ProgressSnapshot(total, done, running, waiting, workers, moved_bytes, missing)


def plain(text):
    """Return what a terminal shows of a text, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


class TestLines:
    @pytest.fixture
    def stream(self):
        return io.StringIO()

    @pytest.fixture
    def lines(self, stream, clock):
        return LineProgress("[green]tasks", stream=stream, clock=clock)

    def test_a_short_run_prints_nothing(self, lines, stream, clock):
        with lines:
            lines.update(snapshot())
            clock.advance(0.4)
            lines.update(snapshot(done=10, running=0))
        assert stream.getvalue() == ""

    def test_line_is_written_at_once(self, clock):
        """Other threads of a program compute, too: their lines do not get in between."""
        written = []

        class Stream(io.StringIO):
            def write(self, text):
                written.append(text)

        with LineProgress("[green]tasks", stream=Stream(), clock=clock) as lines:
            clock.advance(2)
            lines.update(snapshot(done=3))
        assert [text.count("\n") for text in written] == [1] * len(written) != []

    def test_no_snapshot_prints_nothing(self, lines, stream, clock):
        with lines:
            clock.advance(100)
        assert stream.getvalue() == ""

    def test_lines_come_at_intervals_and_end(self, lines, stream, clock):
        """One line each few seconds and a last one."""
        with lines:
            for _ in range(100):
                clock.advance(0.11)
                lines.update(snapshot(done=3, moved_bytes=1_234_567))
            lines.update(snapshot(done=10, running=0, moved_bytes=2_000_000_000))
        first, *middle, last = stream.getvalue().splitlines()
        assert first == "tasks: 3 of 10 done, 2 running, 5 waiting, 1 worker, 1.23 MB moved, 1 s"
        assert len(middle) == 2
        assert last == "tasks: 10 of 10 done in 11.0 s, 2 GB moved"

    def test_stall_is_reported_once_at_once(self, lines, stream):
        """What is missing is said at once and once."""
        with lines:
            for _ in range(3):
                lines.update(snapshot(missing=NO_WORKER, workers=0))
            assert stream.getvalue() == f"tasks: {NO_WORKER}\n"
            lines.update(snapshot(missing="no worker has 8 cores; the largest has 4"))
            assert stream.getvalue().splitlines()[1:] == ["tasks: no worker has 8 cores; the largest has 4"]

    def test_going_on_is_said_at_once(self, lines, stream):
        with lines:
            lines.update(snapshot(missing=NO_WORKER, workers=0))
            lines.update(snapshot())
        assert stream.getvalue().splitlines()[1].startswith("tasks: 0 of 10 done, 2 running")

    @pytest.mark.parametrize(
        ("kind", "how"), [(ZeroDivisionError, "failed"), (KeyboardInterrupt, "interrupted")]
    )
    def test_last_line_shows_failure(self, lines, stream, clock, kind, how):
        """The last line says that it has not ended well."""
        with pytest.raises(kind), lines:
            lines.update(snapshot(done=4))
            clock.advance(1)
            raise kind
        assert (
            stream.getvalue()
            == f"tasks: {how} after 1.0 s: 4 of 10 done, the others are dropped; 0 B moved\n"
        )

    def test_standard_error_is_the_default(self, clock, capsys):
        with LineProgress("[/]broken [markup", clock=clock) as lines:
            lines.update(snapshot(missing=NO_WORKER))
        captured = capsys.readouterr()
        assert captured.err.startswith(f"[/]broken [markup: {NO_WORKER}\n")
        assert captured.out == ""


class TestBar:
    @pytest.fixture
    def console(self):
        return Console(file=io.StringIO(), force_terminal=True, width=120, force_jupyter=False)

    @pytest.fixture
    def bar(self, console, clock):
        return BarProgress("[green]tasks", console=console, clock=clock)

    def test_a_short_run_draws_nothing(self, bar, console):
        with bar:
            bar.update(snapshot())
            bar.update(snapshot(done=10, running=0))
        assert console.file.getvalue() == ""

    def test_the_bar_tells_the_counts(self, bar, console, clock):
        with bar:
            clock.advance(1)
            bar.update(snapshot(done=3, moved_bytes=45_600))
        shown = plain(console.file.getvalue())
        assert "tasks ━" in shown
        assert "3/10" in shown
        assert "2 running, 5 waiting, 1 worker, 45.6 kB moved" in shown
        assert "[green]" not in shown

    def test_the_last_drawing_is_the_last_snapshot(self, bar, console, clock):
        with bar:
            clock.advance(1)
            bar.update(snapshot(done=3))
            bar.update(snapshot(done=9, running=1))  # too soon to be drawn
            assert "9/10" not in plain(console.file.getvalue())
        assert "9/10" in plain(console.file.getvalue())

    def test_stall_is_shown_below_bar(self, bar, console, clock):
        """What is missing is below the bar until it is there."""
        with bar:
            bar.update(snapshot(missing=NO_WORKER, workers=0))
            assert NO_WORKER in plain(console.file.getvalue())
            console.file.truncate(0)
            clock.advance(1)
            bar.update(snapshot(done=1))
            assert NO_WORKER not in plain(console.file.getvalue())

    def test_an_error_ends_the_bar(self, bar, console, clock):
        with pytest.raises(ZeroDivisionError), bar:
            clock.advance(1)
            bar.update(snapshot(done=4))
            raise ZeroDivisionError
        assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back

    def test_bar_leaves_redirected_output_alone(self, bar, clock, capsys):
        """The bar never takes standard output that goes elsewhere."""
        with bar:
            clock.advance(1)
            bar.update(snapshot(done=4))
            print("a result for the pipe")
        assert capsys.readouterr().out == "a result for the pipe\n"

    def test_a_graph_without_vertices(self, bar, clock):
        with bar:
            clock.advance(1)
            bar.update(snapshot(total=0, running=0))


class TestNotebookBar:
    @pytest.fixture
    def displayed(self, monkeypatch):
        """Stand in for IPython.display, and keep what was displayed."""
        shown = []
        handle = SimpleNamespace(update=lambda data, raw: shown.append(data))

        def display(data, raw, display_id):
            shown.append(data)
            return handle

        fake = SimpleNamespace(display=SimpleNamespace(display=display))
        monkeypatch.setitem(sys.modules, "IPython", fake)
        return shown

    def test_one_display_that_is_updated(self, displayed, clock):
        with NotebookProgress("[green]tasks", clock=clock) as bar:
            for done in range(4):
                clock.advance(1)
                bar.update(snapshot(done=done, missing=NO_WORKER if done == 1 else None))
        assert [re.search(r"\d+/10", data["text/plain"])[0] for data in displayed] == [
            *("0/10", "1/10", "2/10", "3/10"),
            "3/10",
        ]
        assert NO_WORKER in displayed[1]["text/plain"]
        assert displayed[1]["text/html"].startswith("<pre")
        assert "\x1b" not in displayed[1]["text/html"]

    def test_last_display_shows_interrupt(self, displayed, clock):
        """The last display says that it was interrupted."""
        with pytest.raises(KeyboardInterrupt), NotebookProgress("[green]tasks", clock=clock) as bar:
            clock.advance(1)
            bar.update(snapshot(done=4))
            raise KeyboardInterrupt
        assert "interrupted, the others are dropped" in displayed[-1]["text/plain"]
        assert "running" not in displayed[-1]["text/plain"]


class TestDisabled:
    def test_nothing_is_shown(self, capsys, caplog, clock):
        with SilentProgress("tasks", clock=clock) as progress:
            for done in range(10):
                clock.advance(60)
                progress.update(snapshot(done=done, running=0))
        assert capsys.readouterr() == ("", "")
        assert caplog.records == []

    def test_what_is_missing_is_logged_once(self, capsys, caplog):
        with SilentProgress("tasks") as progress:
            for _ in range(3):
                progress.update(snapshot(missing=NO_WORKER))
        assert caplog.record_tuples == [("daskvine", logging.WARNING, NO_WORKER)]
        assert capsys.readouterr() == ("", "")


class TestChoice:
    def test_disabled(self):
        assert type(make_progress("tasks", disable=True)) is SilentProgress

    def test_lines_where_standard_error_is_no_terminal(self):
        assert type(make_progress("tasks", disable=False)) is LineProgress

    def test_lines_where_there_is_no_standard_error(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        assert type(make_progress("tasks", disable=False)) is LineProgress

    @pytest.mark.parametrize(("term", "form"), [("xterm", BarProgress), ("dumb", LineProgress)])
    def test_a_terminal(self, monkeypatch, term, form):
        monkeypatch.setattr(module, "_is_terminal", lambda _: True)
        monkeypatch.setenv("TERM", term)
        assert type(make_progress("tasks", disable=False)) is form

    def test_a_notebook(self, monkeypatch):
        shell = type("ZMQInteractiveShell", (), {})()
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        assert type(make_progress("tasks", disable=False)) is NotebookProgress

    def test_a_terminal_with_ipython_is_no_notebook(self, monkeypatch):
        shell = type("TerminalInteractiveShell", (), {})()
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        assert type(make_progress("tasks", disable=False)) is LineProgress


def test_rich_is_imported_for_drawing_only():
    """Rich is not imported before something is drawn."""
    code = (
        "import sys, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('progress', {module.__file__!r})\n"
        "sys.modules['progress'] = progress = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(progress)\n"
        "with progress.make_progress('tasks', disable=False) as shown:\n"
        "    shown.update(progress.ProgressSnapshot(1, 1, 0, 0, 1, 0))\n"
        "assert 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (5e9, "5 GB"), (7.25e12, "7.25 TB")],
)
def test_sizes(n_bytes, text):
    assert module._format_size(n_bytes) == text
