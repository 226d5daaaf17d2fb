"""The benchmarks of jupyter_kernelpool: `./dev bench`, which is `python -m benchmarks`.

Everything is measured from outside, over public HTTP, websockets and ZeroMQ, against real Jupyter
servers, so the harness knows nothing of the package's insides. Figures are compared as ratios
within one run, with the sides taking turns, because machines are noisy.

Acting code: `servers`, `client`, `raw`, `run` and one module a measure in `measures/`.
Pure code: `stats`, `figures`, `report`, `pool`. `plot` draws, `results` reads and writes JSON,
`machine` says where.
"""
