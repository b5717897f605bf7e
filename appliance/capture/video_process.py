"""One run of the decoding process, as the daemon sees it: what it says, and that it ends.

What this module keeps true: a process that says nothing for too long is killed; however it ends, ``run`` returns with a
reason in words; nobody waits for it longer than that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec

from appliance.capture.video_messages import Gone, Heard, Message, Order, Picture, Ready, Settings, send

_PROGRAM = "appliance.capture.video_child"
_OPEN_S = 25.0
_SILENT_S = 8.0
_GRACE_S = 3.0
_QUIET = {
    # Their messages hold addresses with passwords; one thread each, there are two cores.
    "OPENCV_LOG_LEVEL": "OFF",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_TYPES = Ready | Heard | Picture | Gone


class Decoding:
    """A decoding process with its settings. ``program``: the module that is run."""

    def __init__(
        self, settings: Settings, *, program: str = _PROGRAM, open_s: float = _OPEN_S, silent_s: float = _SILENT_S
    ) -> None:
        self._settings, self._program = settings, program
        self._open_s, self._silent_s = open_s, silent_s
        self._lock = threading.Lock()
        self._link: Connection | None = None
        self._stopped = threading.Event()
        self.pid = 0
        self.crashed = False
        """Whether it ended otherwise than by saying why: a signal, an exit status, silence."""

    def run(self, heard: Callable[[Message], None]) -> str:
        """Start it and pass on what it says until it ends; why, in words. To be called once."""
        ours, theirs = socket.socketpair()
        with theirs:
            popen = subprocess.Popen(
                [sys.executable, "-m", self._program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_QUIET},
            )
        self.pid = popen.pid
        link = Connection(ours.detach())
        try:
            send(link, self._settings)
            with self._lock:
                self._link = link
            reason = self._listen(link, heard)
        except OSError:
            reason = ""
        finally:
            with self._lock:
                self._link = None
                link.close()
            status = _end(popen)
        if self._stopped.is_set():
            return ""
        return reason or self._died(status)

    def order(self, order: Order) -> bool:
        """Say what is wanted; whether it could be said."""
        with self._lock, contextlib.suppress(OSError):
            if self._link is not None:
                send(self._link, order)
                return True
        return False

    def stop(self) -> None:
        """End it; ``run`` returns soon after."""
        self._stopped.set()

    def _listen(self, link: Connection, heard: Callable[[Message], None]) -> str:
        until = time.monotonic() + self._open_s
        while not self._stopped.is_set():
            if not link.poll(0.25):
                if time.monotonic() > until:
                    self.crashed = True
                    return f"the video decoder gave no sign for {self._silent_s:g} s and was stopped; it starts again"
                continue
            try:
                message = msgspec.msgpack.decode(link.recv_bytes(), type=_TYPES)
            except (EOFError, OSError):
                return ""
            until = time.monotonic() + self._silent_s
            if isinstance(message, Gone):
                return message.reason
            heard(message)
        return ""

    def _died(self, status: int) -> str:
        self.crashed = True
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"the video decoder ended unexpectedly ({how}); it starts again"


def _end(popen: subprocess.Popen[bytes]) -> int:
    """Its exit status; it leaves by itself once the link is closed, or is killed."""
    try:
        return popen.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()
