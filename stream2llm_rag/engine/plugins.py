"""What vLLM's processes run when they start (entry point ``vllm.general_plugins``). Inert outside engines of ours."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys

from stream2llm_rag.engine.settings import ENGINE_VARIABLE

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # prctl(2)


def register() -> None:
    """Tie an engine process to its parent alone.

    A terminal's Ctrl-C goes to the whole foreground process group and would kill the engine in the middle of our orderly end:
    a group of its own spares it. A parent that is killed outright cannot end its children: the kernel does
    (PR_SET_PDEATHSIG, which follows the *thread* that started the child; the engine keeps that thread alive).
    """
    if ENGINE_VARIABLE not in os.environ or multiprocessing.parent_process() is None:
        return
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        logger.warning("prctl(PR_SET_PDEATHSIG): %s", os.strerror(ctypes.get_errno()))
