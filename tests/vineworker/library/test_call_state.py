"""What a call changes in its process is put back before the next; what cannot be is told. Each case runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PUT_BACK = {
    "errors of numpy": ("np.seterr(divide='ignore'); np.seterrcall(print)", "np.geterr(), np.geterrcall()"),
    "output of numpy": ("np.set_printoptions(precision=2)", "str(np.array([1 / 3]))"),
    "decimal": ("decimal.getcontext().prec = 3", "decimal.Decimal(1) / 3"),
    "another decimal context": ("decimal.setcontext(decimal.ExtendedContext)", "decimal.getcontext().traps"),
    "a variable more": ("os.environ['NEW'] = '1'", "os.environ.get('NEW'), shell('echo $NEW')"),
    "a variable less": ("del os.environ['HOME']", "os.environ.get('HOME'), shell('echo $HOME')"),
    "another variable": ("os.environ['HOME'] = '/x'", "os.environ.get('HOME'), shell('echo $HOME')"),
    "all variables": ("os.environ.clear()", "dict(os.environ), shell('/usr/bin/env | sort')"),
    "another environment": ("os.environ = {}", "dict(os.environ)"),
    "time zone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", "time.tzname, time.localtime(0).tm_hour"),
    "temporary folder": ("os.environ['TMPDIR'] = '/'; tempfile.tempdir = None; tempfile.gettempdir()", "tempfile.gettempdir()"),
    "umask": ("os.umask(0o777)", "umask()"),
    "alarm": ("signal.alarm(100)", "signal.getitimer(signal.ITIMER_REAL)"),
    "alarm by its pickle": ("pickle.loads(alarm)(100)", "signal.getitimer(signal.ITIMER_REAL)"),
    "interval": ("signal.setitimer(signal.ITIMER_PROF, 100, 100)", "signal.getitimer(signal.ITIMER_PROF)"),
    "handler": ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "signal.getsignal(signal.SIGUSR1)"),
    "interrupt": ("signal.signal(signal.SIGINT, signal.SIG_DFL)", "signal.getsignal(signal.SIGINT)"),
    "blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})", "signal.pthread_sigmask(0, ())"),
    "a signal that was blocked": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); signal.raise_signal(signal.SIGUSR1)",
        "signal.sigpending()",
    ),
    "wakeup": ("signal.set_wakeup_fd(quiet)", "signal.set_wakeup_fd(-1)"),
    "soft limit": ("resource.setrlimit(resource.RLIMIT_CORE, (0, hard_core))", "resource.getrlimit(resource.RLIMIT_CORE)"),
    "filters of warnings": ("warnings.simplefilter('error')", "warnings.filters"),
    "shown warnings": ("warnings.showwarning = print", "warnings.showwarning"),
    "level of the log": ("logging.basicConfig(level=1)", "logging.root.level, logging.root.handlers"),
    "disabled log": ("logging.disable()", "logging.root.manager.disable"),
    "path": ("sys.path.insert(0, '/x')", "sys.path"),
    "another path": ("sys.path = []", "sys.path"),
    "arguments": ("sys.argv.append('x')", "sys.argv"),
    "output": ("sys.stdout = io.StringIO()", "sys.stdout"),
    "errors": ("sys.stderr = None", "sys.stderr"),
    "input": ("sys.stdin = io.StringIO('x')", "sys.stdin"),
    "depth": ("sys.setrecursionlimit(5000)", "sys.getrecursionlimit()"),
    "collection": ("gc.disable()", "gc.isenabled()"),
    "trace": ("sys.settrace(lambda *_: None)", "sys.gettrace()"),
    "time-out of sockets": ("socket.setdefaulttimeout(1)", "socket.getdefaulttimeout()"),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C.UTF-8')", "locale.setlocale(locale.LC_ALL)"),
    "variable of a context": ("variable.set(1)", "variable.get(0)"),
    "import in between": ("os.environ['NEW'] = '1'; sys.path.insert(0, '/x'); import this_does", "os.environ.get('NEW'), '/x' in sys.path"),
}  # fmt: skip
STAYS = {
    "variable": ("os.environ.get('MADE')", "'1'"),
    "path": ("'/made' in sys.path", "True"),
    "errors of numpy": ("np.geterr()['divide']", "'raise'"),
    "decimal": ("decimal.getcontext().prec", "7"),
    "depth": ("sys.getrecursionlimit()", "4321"),
    "filters of warnings": ("warnings.filters[0][0]", "'error'"),
}
NOT_PUT_BACK = {
    "closed output": "os.close(1)",
    "other output": "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
    "other input": "os.dup2(os.open('/dev/null', os.O_RDONLY), 0)",
    "closed output and an import": "os.close(2); import this_does",
    "all closed": "os.closerange(3, 100)",
    "hard limit": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); refuse()",
}
START = """
    import pickle, signal
    alarm = pickle.dumps(signal.alarm)
    import decimal, gc, io, locale, logging, os, resource, signal, socket, subprocess, sys, tempfile, time, warnings
    import contextvars
    from vineworker.library.call_state import CallState
    import numpy as np

    open("this_does.py", "w").write('''if True:
        import decimal, os, sys, warnings
        import numpy as np
        os.environ["MADE"] = "1"
        sys.path.insert(0, "/made")
        np.seterr(divide="raise")
        decimal.getcontext().prec = 7
        sys.setrecursionlimit(4321)
        warnings.simplefilter("error")
    ''')
    sys.path.insert(0, os.getcwd())
    os.environ.setdefault("HOME", "/")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1) )
    hard_core = resource.getrlimit(resource.RLIMIT_CORE)[1]
    variable = contextvars.ContextVar("variable")
    end, write_end = os.pipe()
    quiet = os.dup(write_end)
    os.set_blocking(quiet, False)
    result = os.dup(1)  # for what is told after a call has closed it
    os.dup2(result, 600)

    def shell(command):
        return subprocess.run(command, shell=True, capture_output=True, executable="/bin/sh").stdout

    def umask():
        mask = os.umask(0)
        os.umask(mask)
        return mask

    def refuse():
        def refused(*_):
            raise ValueError
        resource.setrlimit = refused
"""


def run(folder, text):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(text)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize(("change", "look"), PUT_BACK.values(), ids=PUT_BACK)
def test_what_a_call_changes_is_put_back(tmp_path, change, look):
    text = f"""
        def change():
            {change}
            return repr(({look},))

        def look():
            return repr(({look},))

        state = CallState()
        before = state.run(look)
        assert state.restore() is None
        within = state.run(change)
        assert state.restore() is None
        assert state.run(look) == before, (before, state.run(look))
        assert within != before, "this changes nothing"
        print("right")
    """
    assert run(tmp_path, text).endswith("right")


@pytest.mark.parametrize(("look", "value"), STAYS.values(), ids=STAYS)
def test_import_effects_of_call_stay(tmp_path, look, value):
    """What a module does when a call imports it stays."""
    text = f"""
        def call():
            import this_does

        state = CallState()
        state.run(call)
        assert state.restore() is None
        print(repr(state.run(lambda: {look})))
    """
    assert run(tmp_path, text) == value


@pytest.mark.parametrize("change", NOT_PUT_BACK.values(), ids=NOT_PUT_BACK)
def test_what_cannot_be_put_back_is_told(tmp_path, change):
    text = f"""
        def change():
            {change}

        state = CallState()
        state.run(change)
        os.write(600, (state.restore() or "nothing").encode())
    """
    told = run(tmp_path, text)
    assert told in ("closed descriptors", "standard descriptors", "resource limits")


def test_unmarkable_output_is_reported(tmp_path):
    """Another output is told where what is open cannot be marked."""
    text = """
        import fcntl
        vars(fcntl).pop("F_SETSIG", None)  # as on macOS
        state = CallState()
        state.run(int)
        same = state.restore()
        state.run(os.dup2, os.open('/dev/null', os.O_WRONLY), 1)
        os.write(600, f"{same} {state.restore()}".encode())
    """
    assert run(tmp_path, text) == "None standard descriptors"


def test_loaded_state_stays_and_changes_vanish(tmp_path):
    """What was loaded for many calls stays and what a call then changes does not."""
    text = """
        def change():
            os.environ["MADE"] = "1"
            decimal.getcontext().prec = 7
            np.seterr(divide="raise")
            state.accept_current()
            os.environ["MADE"] = "2"
            decimal.getcontext().prec = 3
            np.seterr(divide="ignore")

        state = CallState()
        state.run(change)
        assert state.restore() is None
        print(state.run(lambda: (os.environ["MADE"], decimal.getcontext().prec, np.geterr()["divide"])))
    """
    assert run(tmp_path, text) == "('1', 7, 'raise')"


def test_failed_import_shows_user_frames_only(tmp_path):
    """An import that fails shows only frames of the user."""
    text = """
        import traceback
        state = CallState()
        try:
            state.run(__import__, "no_such_module")
        except ImportError as error:
            print({frame.filename for frame in traceback.extract_tb(error.__traceback__)} - {"<string>"})
    """
    assert "bootstrap" not in run(tmp_path, text)
