"""With `reuse`, what comes from outside of a graph is asked for again: the time, the process, the machine, what is on a disk beside contents of files."""

from __future__ import annotations

import datetime as dt
import os
import time
import uuid

import numpy as np
import pytest

from daskvine import DaskVine
from tests.daskvine.sample_graphs import by_value


@pytest.fixture(scope="module")
def m():
    with DaskVine.local(workers=1, cores=1, memory_mb=2000, disk_mb=2000) as m:
        yield m


BUILT = "'/'.join(PARTS)"  # a path that nothing names
ASKING = {
    "NumPy's time": "import numpy as np\ndef f(x): return str(np.datetime64('now'))",
    "NumPy's day": "import numpy as np\ndef f(x): return str(np.array('today', 'M8[D]'))",
    "pandas's time": "import pandas as pd\ndef f(x): return str(pd.Timestamp('now'))",
    "pandas's day": "import pandas as pd\ndef f(x): return str(pd.to_datetime('today'))",
    "the time by a built name": "import time\ndef f(x): return getattr(time, 'ti' + 'me')()",
    "the time by another name": "from time import time as t\ndef f(x): return t()",
    "the time in a text": "def f(x): return eval('__import__(\"time\").time()')",
    "the time in a program": "def f(x):\n    space = {}\n    exec('import time\\ny = time.time_ns()', space)\n    return space['y']",
    "a day by a built name": "import datetime\ndef f(x): return str(getattr(datetime.datetime, 'now')())",
    "the time as a text": "import time\ndef f(x): return time.strftime('%s')",
    "the process": "import os\ndef f(x): return getattr(os, 'getp' + 'id')()",
    "the thread": "import threading\ndef f(x): return getattr(threading, 'get_' + 'ident')()",
    "the machine": "import platform\ndef f(x): return platform.node()",
    "the machine by a built name": "import os\ndef f(x): return tuple(getattr(os, 'una' + 'me')())",
    "the load": "import os\ndef f(x): return os.getloadavg()",
    "the hash of a text": "def f(x): return hash('abc')",
    "an address in memory": "def f(x): return id(object())",
    "a copy of the environment": "import os\ndef f(x): return len(dict(os.environ))",
    "a variable of a copy": "import os\ndef f(x): return os.environ.copy().get('HO' + 'ME2')",
    "an entropy device": "def f(x):\n    with open('/dev/urandom', 'rb') as file: return file.read(8)",
    "the names of the environment": "import os\ndef f(x): return len(list(os.environ))",
    "a temporary name": "import tempfile\ndef f(x): return getattr(tempfile, 'mkt' + 'emp')()",
    "a temporary folder": "import tempfile\ndef f(x): return tempfile.mkdtemp()",
    "the folder of temporary files": "import tempfile\ndef f(x): return tempfile.gettempdir()",
    "the kernel": "def f(x):\n    with open('/proc/self/stat') as file: return file.read()",
    "the hardware": "import os\ndef f(x): return os.listdir('/sys/class')",
    "a program": "import subprocess\ndef f(x): return subprocess.check_output(['date', '+%N'])",
    "a call of C": "import ctypes\ndef f(x): return ctypes.CDLL(None).time(None)",
    "whether a file is there": f"import os\ndef f(x): return os.path.exists({BUILT})",
    "whether a path is there": f"import pathlib\ndef f(x): return pathlib.Path({BUILT}).is_file()",
    "the size of a file": f"import os\ndef f(x): return os.path.getsize({BUILT})",
    "the time of a file": f"import os\ndef f(x): return os.stat({BUILT}).st_mtime",
    "a link": f"import os\ndef f(x): return os.readlink({BUILT} + 'link')",
    "what is in a folder": f"import os\ndef f(x): return len(list(os.scandir(os.path.dirname({BUILT}))))",
    "what is in an open folder": f"import os\ndef f(x): return os.listdir(os.open(os.path.dirname({BUILT}), 0))",
    "a language": "import locale\ndef f(x): return locale.getlocale()",
}  # fmt: skip


def runs_again(m, functions, task_mode):
    """How many of these vertices are run the second time; of each the function and its arguments."""
    graph = {("vertex", n): vertex for n, vertex in enumerate(functions)}
    for _ in range(2):
        m.get(graph, [*graph], task_mode=task_mode, reuse=True)
    return m.last_run.executed


def test_outside_queries_are_repeated(m, task_mode, tmp_path):
    """What is asked of the outside is asked again."""
    (tmp_path / "data").write_text("1")
    (tmp_path / "datalink").symlink_to("data")
    parts = ["", *(tmp_path / "data").parts[1:]]
    vertices = [(by_value(text, PARTS=parts), 0) for text in ASKING.values()]
    assert runs_again(m, vertices, task_mode) == len(ASKING)


def test_outside_queries_of_libraries_are_repeated(m, task_mode):
    """So is what a function that is not the users asks for."""
    vertices = [(time.strftime, "%s"), (np.datetime64, "now"), (time.clock_gettime, 0), (hash, "abc"), (time.time,), (os.getpid,), (uuid.uuid4,),
                (dt.datetime.now,)]  # fmt: skip
    assert runs_again(m, vertices, task_mode) == len(vertices)


def test_named_pipe_is_read_again(m, task_mode, tmp_path):
    """A pipe that is named is read again."""
    os.mkfifo(tmp_path / "pipe")
    f = by_value("import os\ndef f(x):\n    os.close(os.open(x, os.O_RDONLY | os.O_NONBLOCK))\n    return 1")
    assert runs_again(m, [(f, str(tmp_path / "pipe"))], task_mode) == 1


KNOWN = {
    "a file that is named": "import os\ndef f(x): return os.path.getsize(x), os.path.exists(x), os.stat(x).st_size",
    "its folder": "import os\ndef f(x): return os.path.isdir(os.path.dirname(x)), os.path.realpath(x)",
    "a warning": "import warnings\ndef f(x): warnings.warn('x'); return 1",
    "a log": "import logging\ndef f(x): logging.getLogger('x').warning('x'); return 1",
    "a hash that is asked of a class": "class A:\n    def __hash__(self): return hash(1)\ndef f(x): return len({A()})",
}


def test_named_or_harmless_reads_are_reused(m, task_mode, tmp_path):
    """What is named or tells nothing is used again."""
    (tmp_path / "data").write_text("1")
    vertices = [(by_value(text), str(tmp_path / "data")) for text in KNOWN.values()]
    assert runs_again(m, vertices, task_mode) == 0
