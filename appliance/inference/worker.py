"""A process for decoding and inference, whose death costs nobody a capture.

What this module keeps true: every request gets exactly one ``Result``; one that killed its process or ran past its limit
says so (``died``, ``timed-out``), so that the journal can count strikes; a request that the process never took is not blamed
and is asked again. The process is started anew after a death, each time in a row later, by a random share; it is started by
one thread, this one's, and is killed with it. The most urgent request goes first, the oldest of them first.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import msgspec

from appliance.inference.frames import ANSWER, OUT_OF_MEMORY, READY, REQUEST, SETTINGS, WITHOUT_DEVICE, receive, send

Status = Literal["ok", "failed", "died", "timed-out", "superseded", "stopped"]

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 30.0
_STEADY_S = 60.0
_TRIES = 3
_FULL = 0.8
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Result(msgspec.Struct, frozen=True):
    """What became of a request.

    ``ok``: ``body`` is the answer. ``failed``: the entry point raised, the process lives. ``died``, ``timed-out``: the request
    took the process with it. ``superseded``: a newer preview took its place. ``stopped``: the worker was stopped first.
    """

    status: Status
    body: bytes = b""
    reason: str = ""
    seconds: float = 0.0


class _Ticket(msgspec.Struct, order=True):
    priority: int
    number: int
    request: bytes
    timeout_s: float
    preview: str
    future: Future[Result]
    tries: int = 0


class _NotTakenError(Exception):
    """The process was gone before it took the request."""


class _Process:
    """A started process and the socket to it."""

    def __init__(self, entry: str, settings: bytes, memory: int, niceness: int) -> None:
        self.link, theirs = socket.socketpair()
        self.born = time.monotonic()
        with theirs:
            command = [sys.executable, "-m", "appliance.inference.child", str(theirs.fileno()), str(os.getpid())]
            self.popen = subprocess.Popen(
                [*command, entry, str(memory), str(niceness)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
            )
        send(self.link, SETTINGS, settings)

    def ask(self, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send a request and wait for the frame that answers it."""
        self.link.settimeout(timeout_s)
        try:
            send(self.link, REQUEST, request)
        except OSError as error:
            raise _NotTakenError from error
        return receive(self.link)

    def end(self, grace_s: float = 0.0) -> int:
        """Close the link, wait ``grace_s`` for the process to leave, kill it if it has not; its exit status."""
        self.link.close()
        try:
            return self.popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def resident_bytes(self) -> int:
        """Memory that the process really holds."""
        try:
            pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """Runs ``entry`` in a process of its own.

    Args:
        entry: ``package.module:function``; called once with ``settings``, it returns what answers each request (bytes to
            bytes).
        settings: Bytes for the entry point.
        memory_limit: Bytes of heap the process may hold; 0 for no limit.
        niceness: Added to this process's own.
        start_limit_s: A process that is not ready by then is killed and started again.
    """

    def __init__(
        self,
        entry: str,
        settings: bytes = b"",
        *,
        memory_limit: int = 4 * 1024**3,
        niceness: int = 5,
        start_limit_s: float = 300.0,
    ) -> None:
        self._start = (entry, settings, memory_limit, niceness)
        self._start_limit_s = start_limit_s
        self._lock = threading.Lock()
        self._queue: list[_Ticket] = []
        self._count = 0
        self._failures = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._process: _Process | None = None
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self.restarts = 0
        self.answered = 0
        self.busy_since: float | None = None
        self.problem = ""
        """Why the process is not running, in words; empty while it is."""

    def start(self) -> None:
        """Start the process; returns at once. Requests may be submitted before it is ready."""
        self._thread = threading.Thread(target=self._supervise, name="worker", daemon=True)
        self._thread.start()

    def submit(self, request: bytes, priority: int, timeout_s: float, *, preview: str = "") -> Future[Result]:
        """Queue a request.

        Args:
            request: For the entry point's function.
            priority: The lower the sooner: 0 for a capture that looks critical or a nurse who waits, more for bulk.
            timeout_s: Time limit of the run itself; the process is killed when it is over.
            preview: When given, a waiting request of the same name is dropped for this one (``superseded``). Never given
                for a capture.
        """
        future: Future[Result] = Future()
        stale: list[_Ticket] = []
        with self._lock:
            stopping = self._stopping
            if not stopping:
                if preview:
                    stale = [ticket for ticket in self._queue if ticket.preview == preview]
                    self._queue = [ticket for ticket in self._queue if ticket.preview != preview]
                    heapq.heapify(self._queue)
                self._count += 1
                heapq.heappush(self._queue, _Ticket(priority, self._count, request, timeout_s, preview, future))
        if stopping:
            future.set_result(Result("stopped", reason="the worker was stopped"))
        for ticket in stale:
            _finish(ticket, Result("superseded", reason="a newer preview took its place"))
        self._wake()
        return future

    def stop(self, grace_s: float = 5.0) -> None:
        """Let the running request end within ``grace_s``, stop the process, answer what waits with ``stopped``."""
        with self._lock:
            self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join(grace_s)
            process = self._process
            if self._thread.is_alive() and process is not None:
                process.popen.kill()
            self._thread.join()
        with self._lock:
            waiting, self._queue = self._queue, []
        for ticket in waiting:
            _finish(ticket, Result("stopped", reason="the worker was stopped"))

    @property
    def alive(self) -> bool:
        """Whether the process runs and is ready."""
        process = self._process
        return process is not None and not self.problem and process.popen.poll() is None

    @property
    def idle(self) -> bool:
        """Whether the process is ready and has nothing to do."""
        with self._lock:
            return self.alive and self.busy_since is None and not self._queue

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        process = self._process
        return None if process is None else process.popen.pid

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._lock:
            return len(self._queue)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # bells enough are ringing already
            self._ring.send(b"!")

    def _supervise(self) -> None:
        self.problem = "starting"
        while not self._stopping:
            if self._process is None:
                self._begin()
            elif (ticket := self._next()) is not None:
                self._serve(self._process, ticket)
            else:
                self._idle(self._process)
        if self._process is not None:
            self._process.end(grace_s=1.0)
            self._process = None
        self.problem = "stopped"

    def _begin(self) -> None:
        """Start the process and wait until it is ready, or note why not and wait for the next try."""
        process = self._process = _Process(*self._start)
        process.link.settimeout(self._start_limit_s)
        try:
            kind, _ = receive(process.link)
        except TimeoutError:
            process.popen.kill()
            self._lost(f"not ready within {self._start_limit_s:g} s ({_why(process.end())})")
        except (EOFError, OSError):
            self._lost(f"did not start ({_why(process.end(grace_s=5.0))}); its own words are in the log")
        else:
            if kind == READY:
                self.problem = ""

    def _serve(self, process: _Process, ticket: _Ticket) -> None:
        if not (ticket.tries or ticket.future.set_running_or_notify_cancel()):
            return
        ticket.tries += 1
        begun = self.busy_since = time.monotonic()
        try:
            kind, body = process.ask(ticket.request, ticket.timeout_s)
        except TimeoutError:
            process.popen.kill()
            process.end()
            reason = f"took longer than {ticket.timeout_s:g} s and was stopped"
            self._taken_along(ticket, "timed-out", reason, time.monotonic() - begun)
        except _NotTakenError:
            reason = _why(process.end(grace_s=5.0))
            if ticket.tries < _TRIES:
                with self._lock:
                    heapq.heappush(self._queue, ticket)
                self._lost(reason)
            else:
                self._taken_along(ticket, "died", reason, time.monotonic() - begun)
        except (EOFError, OSError):
            self._taken_along(ticket, "died", _why(process.end(grace_s=5.0)), time.monotonic() - begun)
        else:
            self._answered(process, ticket, kind, body, time.monotonic() - begun)
        finally:
            self.busy_since = None

    def _taken_along(self, ticket: _Ticket, status: Status, reason: str, seconds: float) -> None:
        """Say that a request took the process with it, unless it was this worker's own stop that did."""
        self.busy_since = None
        if self._stopping:
            ticket.future.set_result(Result("stopped", reason="the worker was stopped", seconds=seconds))
        else:
            ticket.future.set_result(Result(status, reason=reason, seconds=seconds))
        self._lost(reason)

    def _answered(self, process: _Process, ticket: _Ticket, kind: int, body: bytes, seconds: float) -> None:
        self.answered += 1
        self._failures = 0
        if kind == ANSWER:
            ticket.future.set_result(Result("ok", body=body, seconds=seconds))
        else:
            ticket.future.set_result(Result("failed", reason=body.decode(errors="replace"), seconds=seconds))
        memory = self._start[2]
        if memory and process.resident_bytes() > _FULL * memory:
            # A library that leaks is caught here, between two requests, before it takes a capture with it.
            process.end(grace_s=1.0)
            self._process = None
            self.problem = "restarting: its memory was nearly full"
            self.restarts += 1

    def _lost(self, reason: str) -> None:
        """The process is gone: wait, longer each time in a row, then let it be started again."""
        process, self._process = self._process, None
        self.problem = reason
        if process is not None and time.monotonic() - process.born > _STEADY_S:
            self._failures = 0
        delay = min(_FIRST_DELAY_S * 2**self._failures, _LONGEST_DELAY_S) * random.uniform(0.5, 1.5)  # noqa: S311
        self._failures += 1
        self.restarts += 1
        until = time.monotonic() + delay
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._hear(left)

    def _idle(self, process: _Process) -> None:
        """Wait for a request, for the end, or for the process to die on its own."""
        if self._hear(None, process.link):
            self._lost(f"died while idle ({_why(process.end(grace_s=5.0))})")

    def _hear(self, timeout_s: float | None, link: socket.socket | None = None) -> bool:
        """Wait for the bell or for ``link``; whether it was ``link``, on which nothing but its end can come."""
        watch = select.poll()  # select() would fail in a program with more than 1024 files open
        watch.register(self._bell, select.POLLIN)
        if link is not None:
            watch.register(link, select.POLLIN)
        ready = {descriptor for descriptor, _ in watch.poll(None if timeout_s is None else timeout_s * 1000)}
        if self._bell.fileno() in ready:
            self._bell.recv(4096)
        return link is not None and link.fileno() in ready

    def _next(self) -> _Ticket | None:
        with self._lock:
            return heapq.heappop(self._queue) if self._queue else None


def _finish(ticket: _Ticket, result: Result) -> None:
    if ticket.future.set_running_or_notify_cancel():
        ticket.future.set_result(result)


def _why(status: int) -> str:
    """An exit status in words for a technician."""
    if status == OUT_OF_MEMORY:
        return "out of memory within its limit"
    if status == WITHOUT_DEVICE:
        return "the GPU's context was lost"
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
    return f"left with status {status}"
