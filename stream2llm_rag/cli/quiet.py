"""Keeps what engines write off the terminal."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from stream2llm_rag.cli.terminal import Terminal
from stream2llm_rag.errors import EngineError, Stream2LLMError


@contextmanager
def quiet_terminal() -> Iterator[Terminal]:
    """A terminal that is the command's alone: what anything else of this process and its children writes goes to a log.

    vLLM, torch and the processes they start report to the standard output and error from three languages, so these are led
    elsewhere where all of them meet: at the file descriptors. The log is deleted, unless the block ends with an error that it
    may explain: then a note of the error says where it lies. Of vLLM's own messages it has the errors, or what
    ``VLLM_LOGGING_LEVEL`` asks for.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with ExitStack() as stack:
        out, notes = (_console(stack, stream, number) for stream, number in ((sys.stdout, 1), (sys.stderr, 2)))
        log = Path(stack.enter_context(_led_to_a_log()))
        is_wanted = False
        try:
            yield Terminal(out, notes)
        except Exception as error:
            is_wanted = _has_to_do_with_the_engine(error) and log.stat().st_size > 0
            if is_wanted:
                error.add_note(f"What the engine wrote: {log}")
            raise
        finally:
            if not is_wanted:
                log.unlink()


def _has_to_do_with_the_engine(error: Exception) -> bool:
    """Whether the log may help: not with an error of ours that is about something else."""
    return isinstance(error, EngineError) or not isinstance(error, Stream2LLMError)


def _console(stack: ExitStack, stream: TextIO, number: int) -> Console:
    """A console on what file descriptor ``number`` is now; on ``stream`` itself where that is somewhere else already."""
    try:
        is_redirected = stream.fileno() != number
    except (OSError, io.UnsupportedOperation):
        is_redirected = True
    if is_redirected:
        return Console(file=stream)
    own = stack.enter_context(open(os.dup(number), "w", encoding=stream.encoding, errors="replace"))  # noqa: SIM115 - the stack closes it
    return Console(file=own)


@contextmanager
def _led_to_a_log() -> Iterator[str]:
    sys.stdout.flush()
    sys.stderr.flush()
    log, name = tempfile.mkstemp(prefix="stream2llm-", suffix=".log")
    saved = [os.dup(1), os.dup(2)]
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield name
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
