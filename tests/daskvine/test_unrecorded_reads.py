"""With `reuse`, files that libraries in other languages read by themselves are read again when nothing names them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from daskvine import DaskVine
from tests.daskvine.sample_graphs import by_value
from tests.daskvine.test_outside_reads import runs_again

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")


@pytest.fixture(scope="module")
def m():
    with DaskVine.local(workers=1, cores=1, memory_mb=2000, disk_mb=2000) as m:
        yield m


# each opens a file by Python, too, so that not only what is read behind it counts
START = "def f(x):\n    open(x).close()\n    path = '/'.join(PARTS)\n    "
READING = {
    "a parquet file": "import pyarrow.parquet as pq; return pq.read_table(path + '.parquet').num_rows",
    "a parquet file with pandas": "import pandas as pd; return len(pd.read_parquet(path + '.parquet'))",
    "a mapped parquet file": "import pyarrow.parquet as pq; return pq.read_table(path + '.parquet', memory_map=True).num_rows",
    "a table of texts": "import pyarrow.csv; return pyarrow.csv.read_csv(path + '.csv').num_rows",
    "a data set": "import pyarrow.dataset as ds; return ds.dataset(path + '.parquet').to_table().num_rows",
    "a feather file": "import pyarrow.feather as feather; return feather.read_table(path + '.feather').num_rows",
    "a mapped file": "import pyarrow as pa\n    with pa.memory_map(path + '.csv') as file: return file.read()",
    "a file": "import pyarrow as pa\n    with pa.OSFile(path + '.csv') as file: return file.read()",
    "a stream of a file system": "import pyarrow.fs\n    with pyarrow.fs.LocalFileSystem().open_input_stream(path + '.csv') as file: return file.read()",
}  # fmt: skip
LOADED = {
    "nothing more": "import pyarrow.parquet, numpy as np; return np.load(x.replace('.csv', '.npy')).sum()",
    "memory": "import pyarrow as pa; return pa.allocate_buffer(1000).size",
}


@pytest.fixture
def place(tmp_path):
    table = pd.DataFrame({"a": range(1000)})
    table.to_parquet(tmp_path / "data.parquet")
    table.to_csv(tmp_path / "data.csv")
    feather.write_feather(pa.table({"a": [1, 2]}), str(tmp_path / "data.feather"), compression="uncompressed")
    np.save(tmp_path / "named.npy", np.arange(3))
    (tmp_path / "named.csv").write_text("a\n1\n")
    return tmp_path


def test_pyarrow_reads_of_built_paths_repeat(m, task_mode, place):
    """What pyarrow reads of a path that is built is read again."""
    parts = ["", *(place / "data").parts[1:]]
    vertices = [(by_value(START + text, PARTS=parts), str(place / "named.csv")) for text in READING.values()]
    for _ in range(2):  # the second time all is loaded
        assert runs_again(m, vertices, task_mode) == len(READING)


def test_loaded_pyarrow_prevents_no_reuse(m, task_mode, place):
    """That pyarrow is loaded or makes something stops no use."""
    loaded = [(by_value(f"def f(x, y):\n    {text}"), str(place / "named.csv"), str(place / "named.npy")) for text in LOADED.values()]  # fmt: skip
    assert runs_again(m, loaded, task_mode) == 0
