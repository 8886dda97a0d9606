"""Show the progress of a graph, drawn from plain snapshots.

The computation calls `Progress.update` with a `ProgressSnapshot` as often as it likes, from one thread at a
time; how often something is drawn, and where, is decided here:

=============  ==================================================================================
in a terminal  a bar on standard error, a few times a second
in a notebook  the same bar as HTML, which stays in the saved notebook
elsewhere      lines on standard error, at most one each few seconds, and a last one
disabled       nothing
=============  ==================================================================================

When nothing can run, a snapshot says what is missing. That is shown at once in every form; where progress is
disabled it goes to the logger ``daskvine``. A run that is over in a moment shows nothing.

rich is imported when the first bar is drawn, so that short runs do not pay for it.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.live import Live
    from typing_extensions import Self

__all__ = ["ProgressSnapshot", "SilentProgress", "make_progress"]

Clock = Callable[[], float]

logger = logging.getLogger("daskvine")


@dataclass(frozen=True)
class ProgressSnapshot:
    """The state of one graph at one moment.

    Attributes
    ----------
    total, done, running, waiting : int
        Vertices in all, with a result, on a worker, and not yet there.
    workers : int
        Connected workers.
    moved_bytes : int
        Bytes sent to, from and between workers so far.
    missing : str or None
        A sentence that says what is missing when nothing can run.
    looking : bool
        Whether it is not known yet which vertices have a result from before.
    """

    total: int
    done: int
    running: int
    waiting: int
    workers: int
    moved_bytes: int
    stalled_reason: str | None = None
    looking: bool = False

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        if self.looking:
            return f"looking for results of earlier computations, {workers}"
        return f"{self.running} running, {self.waiting} waiting, {workers}, {_format_size(self.moved_bytes)} moved"


class SilentProgress:
    """Shows nothing but what is missing, which it logs; the other forms build on it.

    Parameters
    ----------
    label : str
        The label of the counted tasks; may contain rich's markup.
    clock : Callable[[], float]
        Seconds from some moment on.
    """

    # The pause before the first drawing, and between two.
    patience_s = 0.5
    interval_s = 5.0

    def __init__(self, label: str, *, clock: Clock = time.monotonic) -> None:
        self.label = label
        self._clock = clock
        self._started = clock()
        self._next_s = self._started + self.patience_s
        self._last: ProgressSnapshot | None = None
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._last is not None and (self._shown or self.elapsed_s >= self.patience_s):
            self._render_last(self._last, _describe_end(kind))

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since this was made."""
        return self._clock() - self._started

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Take the state of the graph, and draw it if it is time."""
        news = snapshot.stalled_reason != (self._last.stalled_reason if self._last else None)
        self._last = snapshot
        now = self._clock()
        if news or now >= self._next_s:
            self._next_s = now + self.interval_s
            self._shown = True
            self._render(snapshot, news=news)

    def _render(self, snapshot: ProgressSnapshot, *, news: bool) -> None:
        if news and snapshot.stalled_reason:
            logger.warning("%s", snapshot.stalled_reason)

    def _render_last(self, snapshot: ProgressSnapshot, how: str) -> None:
        """Draw it for the last time; ``how`` it ended, "" for well."""


class LineProgress(SilentProgress):
    """Lines of text, for logs and pipes."""

    def __init__(self, label: str, *, stream: TextIO | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(label, clock=clock)
        self._stream = stream

    def _render(self, snapshot: ProgressSnapshot, *, news: bool) -> None:
        if news and snapshot.stalled_reason:
            self._print(snapshot.stalled_reason)
        else:
            self._print(f"{snapshot.done} of {snapshot.total} done, {snapshot}, {self.elapsed_s:.0f} s")

    def _render_last(self, snapshot: ProgressSnapshot, how: str) -> None:
        done, moved = f"{snapshot.done} of {snapshot.total} done", _format_size(snapshot.moved_bytes)
        if how:
            self._print(f"{how} after {self.elapsed_s:.1f} s: {done}, the others are dropped; {moved} moved")
        else:
            self._print(f"{done} in {self.elapsed_s:.1f} s, {moved} moved")

    def _print(self, text: str) -> None:
        from rich.text import Text

        # looked up each time, because a program that captures standard error replaces it
        stream = self._stream or sys.stderr
        # at once, with its end: other threads of the program compute, too
        stream.write(f"{Text.from_markup(_sanitize_markup(self.label)).plain}: {text}\n")
        stream.flush()


class BarProgress(SilentProgress):
    """A bar in a terminal, with a line below it for what is missing."""

    patience_s = 0.2
    interval_s = 0.1

    def __init__(self, label: str, *, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        super().__init__(label, clock=clock)
        self._console = console
        self._live: Live | None = None
        self._bar: Any = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        finally:
            if self._live is not None:
                self._live.stop()

    def _render(self, snapshot: ProgressSnapshot, *, news: bool) -> None:
        self._draw_bar(snapshot, str(snapshot))

    def _draw_bar(self, snapshot: ProgressSnapshot, status: str) -> None:
        if self._bar is None:
            self._bar = self._make_bar()
        task = self._bar.task_ids[0]
        self._bar.update(task, total=snapshot.total, completed=snapshot.done, status=status)
        self._show(self._make_renderable(snapshot))

    def _render_last(self, snapshot: ProgressSnapshot, how: str) -> None:
        if self._shown:
            moved = f"{_format_size(snapshot.moved_bytes)} moved"
            self._draw_bar(
                snapshot, f"[red]{how}[/red], the others are dropped, {moved}" if how else str(snapshot)
            )

    def _make_bar(self) -> Any:
        from rich import progress

        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            progress.TextColumn("{task.fields[status]}"),
            auto_refresh=False,
            get_time=self._clock,
        )
        bar.add_task(_sanitize_markup(self.label), status="")
        # the bar is made a moment after the run began
        bar.tasks[0].start_time = self._started
        return bar

    def _make_renderable(self, snapshot: ProgressSnapshot) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        missing = [Text(snapshot.stalled_reason, style="yellow")] if snapshot.stalled_reason else []
        return Group(self._bar.get_renderable(), *missing)

    def _show(self, renderable: RenderableType) -> None:
        if self._live is None:
            self._live = self._make_live()
            self._live.start()
        self._live.update(renderable, refresh=True)

    def _make_live(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        # What is printed meanwhile appears above the bar. Where standard output goes somewhere else than the
        # bar, it has to arrive there, so it is left alone.
        return Live(
            console=self._console or Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
        )


class NotebookProgress(BarProgress):
    """The bar as HTML. It needs no widgets, and is still there when the notebook is opened again."""

    interval_s = 0.25

    def __init__(self, label: str, *, width: int = 110, clock: Clock = time.monotonic) -> None:
        super().__init__(label, clock=clock)
        self._width = width
        self._handle: Any = None

    def _show(self, renderable: RenderableType) -> None:
        from IPython import display

        mime = self._make_mime_bundle(renderable)
        if self._handle is None:
            self._handle = display.display(mime, raw=True, display_id=True)
        else:
            self._handle.update(mime, raw=True)

    def _make_mime_bundle(self, renderable: RenderableType) -> dict[str, str]:
        from rich.console import Console

        console = Console(
            file=io.StringIO(), record=True, width=self._width, force_terminal=True, force_jupyter=False
        )
        console.print(renderable)
        html = console.export_html(
            inline_styles=True,
            code_format='<pre style="white-space:pre;overflow-x:auto">{code}</pre>',
            clear=False,
        )
        return {"text/html": html, "text/plain": console.export_text()}


def make_progress(label: str, disable: bool) -> SilentProgress:
    """Return the form of progress that fits where this runs.

    Parameters
    ----------
    label : str
        The label of the counted tasks; may contain rich's markup.
    disable : bool
        Show nothing, and log what is missing.
    """
    if disable:
        return SilentProgress(label)
    if _is_notebook():
        return NotebookProgress(label)
    if _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
        return BarProgress(label)
    return LineProgress(label)


def _describe_end(kind: type[BaseException] | None) -> str:
    """Return the text about the end of a computation; "" if it has succeeded."""
    if kind is None:
        return ""
    return "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" or type(shell).__module__.startswith("google.colab")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _sanitize_markup(label: str) -> str:
    """Return a label whose markup is sound: as it is, or taken literally."""
    from rich.errors import MarkupError
    from rich.markup import escape, render

    try:
        render(label)
    except MarkupError:
        return escape(label)
    return label


def _format_size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
