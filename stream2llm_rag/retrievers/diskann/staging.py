"""A folder that is written beside its place, and moved there when it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream2llm_rag.errors import IndexBuildError, InvalidInputError


def require_free(directory: Path, overwrite: bool) -> None:
    """InvalidInputError where a folder cannot be put at ``directory``."""
    if not directory.parent.is_dir():
        raise InvalidInputError(f"{directory.parent} is no folder. Make it first.")
    if directory.exists() and not directory.is_dir():
        raise InvalidInputError(f"{directory} is a file. Name a folder that is not there yet.")
    if directory.exists() and any(directory.iterdir()) and not overwrite:
        raise InvalidInputError(f"{directory} is not empty. Name another folder, or write overwrite=True.")


@contextmanager
def folder_beside(directory: Path) -> Iterator[Path]:
    """An empty folder next to ``directory``, gone at the end. What an interrupted build left there is thrown away."""
    folder = directory.with_name(f".{directory.name}.building")
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder):
            _empty(folder)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise IndexBuildError(f"{folder} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of ``folder``. The lock goes with this process, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BlockingIOError  # it was moved into its place meanwhile
        yield
    except (BlockingIOError, FileNotFoundError) as error:
        raise IndexBuildError(f"{folder} is in use: another process builds the same index. Wait for it to end.") from error
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync(path: Path) -> None:
    """Have the disk hold it before it is moved into place."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(folder: Path, directory: Path, overwrite: bool) -> None:
    """Move the whole index to its place; one that is there makes room only then."""
    if not (overwrite and directory.exists()):
        folder.rename(directory)  # which replaces an empty folder
        return
    old = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    folder.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
