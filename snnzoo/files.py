"""Files that are whole or not there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from snnzoo.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it if the block ends well and deleted if it does not.

    Folders that are made for it go again with it.

    Args:
        path: the file to write; processes that write it at the same time do not disturb each other.
        durable: have the disk confirm the contents before the rename and the rename after it, so that a power cut
            leaves the old file or the new one. Not worth its milliseconds for what can be made again, like a cache.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a name that is too long cannot be deleted either
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's file is in it by now
            for folder in made:
                folder.rmdir()
        raise


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """:func:`atomic_path` of a file that the user has named, tried out before the block begins its work.

    Raises:
        InputError: no file can be written there.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            if path.exists() and not path.is_file():  # a rename would put a file in the place of /dev/null
                raise OSError("it is no regular file")
            temporary = stack.enter_context(atomic_path(path))
            temporary.touch()
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"{str(path)!r} cannot be written ({why}): name another file") from error
        yield temporary


@contextlib.contextmanager
def new_files(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """:func:`new_file` of several: all are tried out before the block begins, and appear after it, the first one last.

    Raises:
        InputError: one of them cannot be written.
    """
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(new_file(path)) for path in paths)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file by way of a temporary name."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def copy(source: Path, target: Path) -> None:
    """Copy a file, which may be there already; by way of a temporary name.

    Raises:
        InputError: there is no such file.
    """
    if not source.is_file():
        raise InputError(f"no file at {str(source)!r}")
    if source.resolve() != target.resolve():
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed processes have left in ``folder``; nobody may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
