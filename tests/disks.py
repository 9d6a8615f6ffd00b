"""Real disks that are too small: file systems of a few MiB, for what happens when one is full, and when it grows."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MOUNT_S = 30.0


@contextlib.contextmanager
def disk_of(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size ("1m") at `folder`, which is made. Skips where nobody may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=MOUNT_S)
    if done.returncode != 0:
        pytest.skip(f"only root may mount a file system: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=MOUNT_S)


def grow(disk: Path, size: str) -> None:
    """The disk has that size from now on, with all that is on it."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True, timeout=MOUNT_S)
