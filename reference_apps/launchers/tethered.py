"""Runs a program that knows nothing of its launcher so that it ends with it: `python -m ….tethered PROGRAM ARGUMENTS`.

    launcher ══ stdin (a pipe that says nothing) ══▶ watcher, forked beside it     its end means: the launcher is gone
             ── SIGTERM ──▶ PROGRAM, in this very process                          the watcher stops it by signals

The program has the process that the launcher started, so that its number, its end and its processor time are its own.
A program of ours watches the pipe by itself (reference_apps/serving.py) and needs none of this.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 5.0  # from SIGTERM to SIGKILL
LOOK_S = 0.05


def run(words: list[str]) -> None:
    """Becomes the program of `words`, with a watcher as its child; does not return."""
    program = os.getpid()
    if os.fork() == 0:
        try:
            _watch(program)
        finally:
            os._exit(0)
    os.execv(words[0], words)


def _watch(program: int) -> None:
    """Waits for the end of stdin, and then for that of the program, which is made to come."""
    for ended in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended, signal.SIG_IGN)  # those are the program's to hear
    while os.read(0, 4096):
        pass
    deadline_s, told = time.monotonic() + GRACE_S, False
    # Once the program has ended this is somebody else's child, and its number may be another's.
    while os.getppid() == program:
        if not told or time.monotonic() > deadline_s:
            os.kill(program, signal.SIGKILL if told else signal.SIGTERM)
            told = True
        time.sleep(LOOK_S)


if __name__ == "__main__":
    run(sys.argv[1:])
