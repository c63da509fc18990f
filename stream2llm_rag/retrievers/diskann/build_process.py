"""Builds the graph, in a process of its own: ``python build_process.py``, its settings as JSON in the last argument.

A builder that hangs or crashes takes nothing else with it. Run as a script, so that nothing of this library is imported.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Build, and write what DiskANN says on the way to the standard output."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import diskannpy
    import numpy as np

    settings = json.loads(sys.argv[1])
    diskannpy.build_disk_index(distance_metric="l2", vector_dtype=np.float32, **settings)


if __name__ == "__main__":
    main()
