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


def test_a_process_that_knows_its_children_has_no_strays():
    assert ask("""
        before = descendants.can_have_strays(())
        child = os.fork() or os._exit(signal.pause() or 0)
        print(json.dumps([before, descendants.can_have_strays({child}), descendants.can_have_strays(())]))
        os.kill(child, signal.SIGKILL)
    """) == [False, False, True]


def test_what_a_child_leaves_behind_is_noticed_also_when_threads_run():
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


def test_more_children_than_are_listed_at_once_may_be_anybodys():
    assert ask("""
        descendants.MAX_LIST_BYTES = 4
        child = os.fork() or os._exit(signal.pause() or 0)
        print(json.dumps(descendants.can_have_strays({child})))
        os.kill(child, signal.SIGKILL)
    """)


def test_this_process_agrees_with_the_list_of_all_its_threads():
    from vineworker.machine import descendants

    known = descendants.children_of(os.getpid())
    assert not descendants.can_have_strays(known)
