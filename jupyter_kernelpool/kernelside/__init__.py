"""What runs inside the kernel's own environment.

Nothing has to be installed there: the launcher puts this folder in the process by path. It therefore
imports only the standard library and what a Python kernel has anyway (ipykernel, IPython, traitlets,
pyzmq, tornado), works from Python 3.10 and ipykernel 6.29 on, and imports nothing else of ours.

`wire` alone is shared with the server's side: both ends of one socket speak it.
"""

import os

# The environment that the process was started with, before anything could change it.
FIRST_ENVIRONMENT = dict(os.environ)
