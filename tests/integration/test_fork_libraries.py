"""Libraries with workers of their own, used before a fork, and afterwards on both sides of it.

What is in `WORKS` works in the fork; what is in `NAMED` does not, and the fork's manifest says so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from .kernelside_driver import Kernel

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# Two workers each. Every entry defines `work`, whose result is compared.
BEFORE = (
    "import os, numpy as np\n"
    "os.environ.update(OMP_NUM_THREADS='2', NUMBA_NUM_THREADS='2', POLARS_MAX_THREADS='2', MPLBACKEND='module://"
    "matplotlib_inline.backend_inline')\n"
    "r = np.random.default_rng(0); x, y = r.random((4000, 8)), r.random(4000)\n"
)
PRANGE = """
import numba
@numba.njit(parallel=True)
def total(values):
    found = 0.0
    for i in numba.prange(values.size):
        found += values[i]
    return found
def work(): return total(np.arange(100_000.0)), numba.threading_layer()
"""
WORKS = {
    "numpy": "a = r.random((400, 400))\ndef work(): return (a @ a).sum(), np.linalg.svd(a)[1][:3]",
    "scipy": """
import scipy.linalg as s
a = r.random((400, 400))
def work(): return s.lu(a)[2].sum(), s.eigh(a)[0][:2]
""",
    "scikit-learn": """
from sklearn.cluster import KMeans
def work(): return round(KMeans(5, n_init=1, random_state=0).fit(x).inertia_, 6)
""",
    "xgboost": """
import xgboost
def work(): return xgboost.XGBRegressor(n_estimators=4, n_jobs=2).fit(x, y).predict(x)[:5]
""",
    "lightgbm": """
import lightgbm
def work(): return lightgbm.LGBMRegressor(n_estimators=4, n_jobs=2, verbose=-1).fit(x, y).predict(x)[:5]
""",
    "numba, OpenMP": "os.environ['NUMBA_THREADING_LAYER'] = 'omp'\n" + PRANGE,
    "numba, workqueue": "os.environ['NUMBA_THREADING_LAYER'] = 'workqueue'\n" + PRANGE,
    "pyarrow": """
import tempfile, pyarrow as pa, pyarrow.dataset, pyarrow.parquet
pa.set_cpu_count(2)
folder = tempfile.mkdtemp(); table = pa.table({'a': np.arange(400_000), 'b': np.arange(400_000) % 7})
for n in range(3): pa.parquet.write_table(table, f'{folder}/{n}.parquet', row_group_size=50_000)
def work():
    read = pa.dataset.dataset(folder).to_table(filter=pa.dataset.field('b') < 3)
    return read.group_by('b').aggregate([('a', 'sum')]).sort_by('b').to_pylist()
""",
    "pandas": """
import pandas as pd
frame = pd.DataFrame({'a': np.arange(400_000), 'b': np.arange(400_000) % 7, 's': ['x', 'y'] * 200_000})
def work(): return frame.groupby(['b', 's']).a.sum().to_dict(), frame.eval('a * 2 + b').sum()
""",
    "matplotlib": """
import io, matplotlib.pyplot as plt
figure, axes = plt.subplots(); axes.plot(y[:9]); plt.show()
def work():
    file = io.BytesIO(); figure.savefig(file, metadata={'Software': None})
    other, on = plt.subplots(); on.hist(y); plt.show()
    return len(file.getvalue())
""",
    "duckdb": """
import duckdb
kept = duckdb.connect(config={'threads': 2})
kept.execute('create table t as select range a, range % 7 b from range(1_000_000)')
duckdb.sql('select 1').fetchall()
def work():
    query = 'select b, sum(a) from t group by b order by b'
    own = duckdb.connect(config={'threads': 2})
    made = own.execute('select sum(range) from range(1_000_000)').fetchall()
    own.close()
    threads = kept.execute("select current_setting('threads')").fetchall()
    return kept.execute(query).fetchall(), made, threads, duckdb.sql('select sum(range) from range(9)').fetchall()
""",
    "joblib": """
import operator, joblib
def work(): return [joblib.Parallel(n_jobs=2, prefer=how)(joblib.delayed(operator.neg)(n) for n in range(8))
                    for how in ('processes', 'threads')]
""",
}
# Too large for a test environment (gigabytes, where it comes with CUDA): tried where it is installed.
if importlib.util.find_spec("torch"):
    WORKS["torch"] = """
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # on a machine with a GPU, backward() would begin CUDA
import torch
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(8, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
start = {name: value.clone() for name, value in model.state_dict().items()}
a, b = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
def train(batches):
    model.load_state_dict(start)
    optimizer = torch.optim.Adam(model.parameters())
    for rows, wanted in batches:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(rows).squeeze(), wanted).backward()
        optimizer.step()
    return round(float(sum(value.detach().abs().sum() for value in model.parameters())), 3)
def work():
    data = torch.utils.data.TensorDataset(a, b)
    loader = torch.utils.data.DataLoader(data, batch_size=1000, num_workers=2)
    waits = [torch.jit.fork(torch.matmul, a, a.T) for _ in range(4)]
    products = [round(float(torch.jit.wait(one).sum()), -1) for one in waits]
    return train(loader), train([(a, b)] * 5), products, torch.linalg.svdvals(a)[:3].round()
"""
NAMED = {
    "polars": ("""
import polars
end = int
frame = polars.DataFrame({'a': range(10_000), 'b': [1, 2] * 5_000})
def work(): return frame.group_by('b').agg(polars.col('a').sum()).sort('b').rows()
""", "lost", "native_threads", "polars"),
    "multiprocessing's pool of threads": ("""
from multiprocessing.pool import ThreadPool
pool = ThreadPool(2); end = pool.terminate
def work(): return pool.map(abs, [-1, -2])
""", "warnings", "pool", "pool"),
    "multiprocessing's pool of processes": ("""
import multiprocessing
pool = multiprocessing.get_context('fork').Pool(2); end = pool.terminate
def work(): return pool.map(abs, [-1, -2])
""", "warnings", "pool", "pool"),
    "concurrent.futures' pool of processes": ("""
import concurrent.futures, multiprocessing
pool = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('fork')); end = pool.shutdown
def work(): return list(pool.map(abs, [-1, -2]))
""", "warnings", "pool", "pool"),
}  # fmt: skip
if importlib.util.find_spec("torch"):
    NAMED["torch's inter-op threads"] = (
        """
import pathlib, sys, tempfile
end, folder = int, tempfile.mkdtemp()
pathlib.Path(folder, 'scripted.py').write_text(
    'import torch\\n'
    'def double(a: torch.Tensor) -> torch.Tensor: return a * 2\\n'
    '@torch.jit.script\\n'
    'def work(a: torch.Tensor) -> torch.Tensor: return torch.jit.wait(torch.jit.fork(double, a))\\n')
sys.path.insert(0, folder)
import scripted, torch
def work(): return scripted.work(torch.ones(9)).sum()
""",
        "lost",
        "native_threads",
        "PTThreadPool",
    )


@pytest.mark.parametrize("code", WORKS.values(), ids=WORKS.keys())
def test_library_works_in_the_fork_and_in_the_parent(kp_kernel: Kernel, code: str) -> None:
    kp_kernel.run(BEFORE + code)
    expected = kp_kernel.run("print(work())")
    fork = kp_kernel.fork()
    for kernel in (fork, kp_kernel, fork.fork(), fork):
        assert kernel.run("print(work())") == expected
    assert fork.shutdown() == 0


def test_duckdb_connections_are_closed_in_a_fork_wherever_they_are(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import duckdb, os\nhidden = [duckdb.connect(config={'threads': 3})]; hidden.append(hidden[0].cursor())\n"
        "hidden[0].execute('create table t as select range a from range(1_000_000)')\n"
        "pending = hidden[0].cursor().execute('select range from range(3)')\n"
        "ask = \"select current_setting('threads'), sum(a) from t\""
    )
    parked = kp_kernel.park()
    kernels = [kp_kernel.fork(), kp_kernel]
    for _ in range(2):
        process = parked.fork()
        process.born()
        kernels.append(process.adopt(keep=True))
    for kernel in kernels:
        assert kernel.run("print(pending.fetchall())") == "[(0,), (1,), (2,)]"
        assert kernel.run("print(hidden[1].execute(ask).fetchall())") == "[(3, 499999500000)]"
        assert kernel.run("while hidden: hidden.pop().close()\nprint(duckdb.sql('select 7').fetchall())") == "[(7,)]"


def test_duckdb_database_in_a_file_is_named_and_one_in_memory_is_not(kp_kernel: Kernel, tmp_path: Path) -> None:
    kp_kernel.run(f"import duckdb; kept, m = duckdb.connect({str(tmp_path / 'file.db')!r}), duckdb.connect()")
    (entry,) = kp_kernel.park().facts["manifest"]["warnings"]
    assert (entry["kind"], entry["what"], bool(entry["hint"])) == ("database", "kept", True)


@pytest.mark.parametrize("code, part, kind, words", NAMED.values(), ids=NAMED.keys())
def test_what_does_not_work_in_a_fork_is_named(kp_kernel: Kernel, code: str, part: str, kind: str, words: str) -> None:
    kp_kernel.run(BEFORE + code)
    expected = kp_kernel.run("print(work())")
    fork = kp_kernel.fork()
    manifest: dict[str, list[dict[str, Any]]] = fork.process.facts["manifest"]
    (entry,) = [entry for entry in manifest[part] if entry["kind"] == kind and words in entry["what"]]
    assert entry["hint"]
    assert fork.run("print(x.sum())") == kp_kernel.run("print(x.sum())"), "the rest works"
    assert kp_kernel.run("print(work())") == expected
    assert fork.shutdown() == 0
    kp_kernel.run("end()")  # who kills the kernel leaves a pool's processes behind
