"""What a process can tell of the children that the kernel has given it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives children away")


def ask(text):
    """Run code in a process that adopts, and give what it says."""
    code = (
        "import json, os, signal, threading\nfrom vineworker.machine import descendants\ndescendants.become_subreaper()\n"
        + textwrap.dedent(text)
    )
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def test_process_knowing_its_children_has_none_stray():
    """A process that knows its children has no strays."""
    assert ask("""
        before = descendants.can_have_strays(())
        child = os.fork() or os._exit(signal.pause() or 0)
        print(json.dumps([before, descendants.can_have_strays({child}), descendants.can_have_strays(())]))
        os.kill(child, signal.SIGKILL)
    """) == [False, False, True]


def test_leftovers_of_child_are_noticed_with_threads():
    """What a child leaves behind is noticed also when threads run."""
    assert ask("""
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        child = os.fork()
        if not child:
            os.setsid()
            os.fork() or os._exit(signal.pause() or 0)
            os._exit(0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        noticed = descendants.can_have_strays({child})
        killed = len(descendants.kill_strays({child}))
        stop.set()
        print(json.dumps([noticed, killed]))
    """) == [True, 1]


def test_many_children_are_attributed_to_nobody():
    """More children than are listed at once may be anybodys."""
    assert ask("""
        descendants.MAX_LIST_BYTES = 4
        child = os.fork() or os._exit(signal.pause() or 0)
        print(json.dumps(descendants.can_have_strays({child})))
        os.kill(child, signal.SIGKILL)
    """)


def test_process_agrees_with_thread_list():
    """This process agrees with the list of all its threads."""
    from vineworker.machine import descendants

    known = descendants.children_of(os.getpid())
    assert not descendants.can_have_strays(known)
