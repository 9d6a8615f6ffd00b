"""Files that survive a power cut: written whole, forced to the disk, and only then put in the place of the old ones.

    text ──▶ .name.pid.new ── fsync ──▶ rename ──▶ name ── fsync of the folder ──▶ it is there, whatever happens next

A reader sees the old text or the new one. The disk is trusted to have what it says that it has; a folder on a network
file system may not be told by fsync. No twin: the simulator keeps nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_POLL_S = 0.01


def replace_durably(path: Path, text: str) -> None:
    """Replaces the file's text. When it returns, the new text is on the disk. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    write_synced(fresh, text.encode())
    fresh.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and forces it to the disk; whether its folder knows of it is another matter. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file of lines and forces it to the disk; one that was cut off before it stays by itself.

    Raises OSError.
    """
    with path.open("ab+") as file:
        if file.tell():  # at its end, where whoever wrote last may have been killed
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = f"\n{line}"
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Forces to the disk which files a folder has. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, shared: bool = False) -> Iterator[None]:
    """Inside, nobody else on this machine holds the lock of that file, or only others who share it; it ends with the
    process that holds it.

    Raises TimeoutError when it is not to be had in time, and OSError.
    """
    deadline_s = time.monotonic() + timeout_s
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise TimeoutError(f"{path}: is held by another process for more than {timeout_s:g} s") from None
                time.sleep(LOCK_POLL_S)
        yield
