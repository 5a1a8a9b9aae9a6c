"""Starts workers: one in a thread of this process, or each in a process of its own.

Processes come from the fork server of `multiprocessing`: it loads all modules once and forks at any time, though
threads run here by then. They end when this process does, however that ends: their sockets tell them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver

Work = Callable[[socket.socket], None]
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Started:
    """A worker: the socket to it, the process that it is in, and how to wait so many seconds for its end, which comes
    when the socket is closed; a process that has not ended by then is killed."""

    connection: socket.socket
    process: int
    end: Callable[[float], None]


def in_thread(work: Work) -> Started:
    """Let a thread of this process do the work."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=work, args=(theirs,), name="funnel", daemon=True)
    thread.start()
    return Started(ours, os.getpid(), thread.join)


def prepare(module: str) -> None:
    """Let the fork server load a module, and what that imports, beside what is done here."""
    SERVER.set_forkserver_preload(["__main__", module])
    forkserver.ensure_running()


def in_process(work: Work) -> Started:
    """Let a process do the work, which has to be picklable. Raises `OSError` where none can be started."""
    ours, theirs = socket.socketpair()
    process = SERVER.Process(target=_alone, args=(work, theirs), daemon=True)
    with theirs:
        process.start()
    assert process.pid is not None

    def end(seconds: float) -> None:
        process.join(seconds)
        process.kill()
        process.join()

    return Started(ours, process.pid, end)


def _alone(work: Work, connection: socket.socket) -> None:
    """Do the work; signals to end are for the process that began it."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    work(connection)
