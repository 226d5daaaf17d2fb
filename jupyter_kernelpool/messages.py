"""Of what a kernel's message consists, as ZeroMQ brings it; what comes may be anything."""

from __future__ import annotations

HEADER, PARENT, METADATA, CONTENT = 1, 2, 3, 4  # places in a message after its identities; 0 is the signature
NO_MESSAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)  # what reading one raises
