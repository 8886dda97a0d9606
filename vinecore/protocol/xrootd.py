"""How a file is had from an XRootD server: by ``xrdcp`` or else by the Python bindings, in a process of its own either way.

The bindings start threads and keep them, and no user's environment is loaded into a worker; so both the worker, for an address, and a
task that makes a file of one run the same small shell script.
"""

from __future__ import annotations

import shlex

SCHEMES = ("root", "roots", "xroot", "xroots")
EXIT_NO_CLIENT = 69
"""Exit code where there is neither of the two."""
MISSING = (
    "root:// needs xrdcp or Python's XRootD where the file is fetched: "
    "install xrootd-client there (apt, dnf or conda), or pip install fsspec-xrootd, or ship an environment that has one of them"
)
SETTINGS = {"XRD_CONNECTIONWINDOW": "15", "XRD_CONNECTIONRETRY": "1", "XRD_REQUESTTIMEOUT": "120"}
"""An XRootD client waits very long for a server that is not there. Whoever runs it here tries again himself."""
PERMANENT_ERRORS = ("[3010]", "[3011]", "[3016]", "[3030]", "[3032]")
"""Answers that stay the same however often one asks: not authorized, not found, a directory, not authenticated."""

PYTHON = f"""
import os, sys
try:
    from XRootD import client
except ImportError:
    sys.exit({EXIT_NO_CLIENT})
copy = client.CopyProcess()
copy.add_job(sys.argv[1], sys.argv[2], force=True)
status = copy.prepare()
if status.ok:
    status = copy.run()[0]
if not status.ok:
    sys.stderr.write(status.message)
sys.stderr.flush()
os._exit(0 if status.ok else 1)  # its threads are not waited for
"""
SHELL = f"""
if command -v xrdcp >/dev/null 2>&1; then exec xrdcp --nopbar --force "$1" "$2"; fi
for python in "$4" python3 python; do
    if command -v "$python" >/dev/null 2>&1; then
        "$python" -c "$3" "$1" "$2" && exit 0
        code=$?
        [ $code -eq {EXIT_NO_CLIENT} ] || exit $code
    fi
done
exit {EXIT_NO_CLIENT}
"""


def command(url: str, path: str, python: str) -> list[str]:
    """Give the command that copies a file to a path.

    Parameters
    ----------
    python
        What is tried first where there is no ``xrdcp``.
    """
    return ["/bin/sh", "-c", SHELL, "vine-xrootd", url, path, PYTHON, python]


def script(url: str, path: str, proxy: str = "") -> str:
    """Give the shell command of a task that makes a file, in its folder, of what is at an address; it tries a few times.

    Parameters
    ----------
    proxy
        A file with an X.509 proxy; only its owner may be able to read what is used.
    """
    copy = " ".join(map(shlex.quote, command(url, path, "python")))
    own = (
        f'umask 077; cp {shlex.quote(proxy)} .proxy; export X509_USER_PROXY="$PWD/.proxy"\n' if proxy else ""
    )
    final = "|".join(f"*'{answer}'*" for answer in PERMANENT_ERRORS)
    return f"""{own}for pause in 1 2 4 8 0; do
    said=$({copy} 2>&1) && exit 0
    code=$?
    if [ $code -eq {EXIT_NO_CLIENT} ]; then said={shlex.quote(MISSING)}; fi
    printf '%s\\n' "$said" >&2
    case $code:$said in {EXIT_NO_CLIENT}:*|{final}) exit $code ;; esac
    sleep $pause
done
exit $code"""
