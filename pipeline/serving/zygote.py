"""Starts workers: one in a thread of this process, or each in a process of its own.

A zygote is a process that was forked before this one had a thread or had opened anything, and forks another whenever it
is told to: that one begins with every module loaded, in memory that it shares, and at any time, though threads run here
by then. All of them end when this process does, however that ends: their sockets tell them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[socket.socket], None]
WIDTH = 4


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


class Zygote:
    """Lets processes do the work. To be made before there are threads. On Linux only."""

    def __init__(self, work: Work) -> None:
        self._connection, theirs = socket.socketpair()
        if not os.fork():
            self._connection.close()
            _alone(_fork_when_told, theirs, work)
        theirs.close()

    def start(self) -> Started:
        """Raises `OSError` where the zygote is no more."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._connection, [b"fork"], [theirs.fileno()])
        process = int.from_bytes(self._connection.recv(WIDTH, socket.MSG_WAITALL))
        if not process:
            raise ConnectionError("the zygote has ended")
        watched = os.pidfd_open(process)

        def end(seconds: float) -> None:
            ended = select.poll()
            ended.register(watched, select.POLLIN)
            if not ended.poll(1e3 * seconds):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                ended.poll()
            os.close(watched)

        return Started(ours, process, end)

    def close(self) -> None:
        self._connection.close()


def _alone(work: Callable[..., None], *arguments: object) -> None:
    """Do it as the only thing this process does: signals to end are for the process that began it."""
    status = 1
    try:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        work(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _fork_when_told(connection: socket.socket, work: Work) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        told, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
        if not told:
            return
        theirs = socket.socket(fileno=descriptors[0])
        process = os.fork()
        if not process:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _alone(work, theirs)
        theirs.close()
        connection.sendall(process.to_bytes(WIDTH))
