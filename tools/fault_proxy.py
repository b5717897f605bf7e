"""A bad link on loopback: a TCP proxy with a rate, a delay, cuts, silence and refusals, for tests and benchmarks.

What this module keeps true: a direction is one line shared by all connections, as a modem is; bytes reach the other side in
order, at the line's rate, ``delay_ms`` after they left, and never sooner; hardly more is read than the line can carry
(``BUFFER_S``), so queues stay where they would be in the field, in the sender. Cut bytes are gone, as they are when
a modem loses its cell. A new connection's first bytes leave one round trip after it was accepted, which is what TCP's
handshake costs. Not simulated: slow start and the headers of TCP/IP; rates are of payload.

``python -m tools.fault_proxy TARGET_PORT [--port N] [--rate-kbit N] [--delay-ms N] [--mean-life-s N] [--seed N]``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

from typing_extensions import Self

BUFFER_S = 0.02
"""Seconds of the line's time that may wait inside the proxy."""
_PIECES = 1024
"""Pieces on their way at once: 10 s of a paced line."""
_RECEIVE_BUFFER = 32 << 10
_RESET = struct.pack("ii", 1, 0)

Way = Literal["up", "down"]
T = TypeVar("T")


class _Line:
    """One direction of the link: what it carries a second, how long it takes, and when it is free again."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.delay = 0.0
        self.free_at = 0.0
        self.carried = 0
        self.turn = asyncio.Lock()

    @property
    def piece(self) -> int:
        """Bytes read at a time: 10 ms of the line."""
        return 65536 if self.rate is None else int(min(65536.0, max(536.0, self.rate / 8 * 0.01)))

    async def send(self, size: int) -> float:
        """Wait for the line's turn to carry ``size`` bytes; when they will arrive (monotonic seconds)."""
        async with self.turn:
            now = time.monotonic()
            if self.rate is None:
                return now + self.delay
            self.free_at = max(self.free_at, now) + size * 8 / self.rate
            await asyncio.sleep(max(0.0, self.free_at - now - BUFFER_S))
            return self.free_at + self.delay


class _Connection:
    """A client's connection and ours to the target."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self.accepted = time.monotonic()

    async def run(self) -> None:
        """Carry both directions until both ended, or something broke."""
        loop = asyncio.get_running_loop()
        up, down = self._proxy.lines["up"], self._proxy.lines["down"]
        self._server = _socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        try:
            await asyncio.sleep(up.delay + down.delay)
            await self._proxy.flowing.wait()
            await loop.sock_connect(self._server, ("127.0.0.1", self._proxy.target_port))
            tasks = [
                asyncio.ensure_future(self._carry(up, self._client, self._server)),
                asyncio.ensure_future(self._carry(down, self._server, self._client)),
            ]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        except OSError:
            self._reset()
        except asyncio.CancelledError:
            self._reset()
            raise
        finally:
            self._close()

    async def _carry(self, line: _Line, source: socket.socket, target: socket.socket) -> None:
        flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        delivery = asyncio.ensure_future(self._deliver(line, flight, target))
        loop = asyncio.get_running_loop()
        try:
            while not delivery.done():
                await self._proxy.flowing.wait()
                data = await loop.sock_recv(source, line.piece)
                await self._proxy.flowing.wait()
                await flight.put((await line.send(len(data)), data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, line: _Line, flight: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await flight.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._proxy.flowing.wait()
            if not data:
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(target, data)
            line.carried += len(data)

    def _reset(self) -> None:
        for one in (self._client, self._server):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _close(self) -> None:
        for one in (self._client, self._server):
            if one is not None:
                one.close()


class FaultProxy:
    """Listens on ``port`` of 127.0.0.1 and forwards to ``target_port``, as badly as it is told.

    All methods may be called from any thread, and faults may change at any time.
    """

    def __init__(self, target_port: int, *, port: int = 0, seed: int = 0) -> None:
        self.target_port = target_port
        self.connections = 0
        self.kills = 0
        self._random = random.Random(seed)
        self._mean_life: float | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._listener = _listener(port or _free_port())
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self.lines: dict[Way, _Line] = {}
        self.flowing: asyncio.Event

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        self._call(self._begin)

    def stop(self) -> None:
        """End every connection and the listener."""
        if self._thread.is_alive():
            self._call(self._end)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            self._loop.close()
        self._listener.close()

    def set(self, rate_bits_s: float | None, delay_ms: float, way: Literal["both", "up", "down"] = "both") -> None:
        """Rate of payload in bits a second (``None``: as fast as can be) and delay of one way in milliseconds."""
        ways: tuple[Way, ...] = ("up", "down") if way == "both" else (way,)

        async def change() -> None:
            for one in ways:
                line = self.lines[one]
                line.rate, line.delay, line.free_at = rate_bits_s, delay_ms / 1000, 0.0

        self._call(change)

    def cut(self) -> int:
        """Reset all connections, as a lost cell does; how many there were. New ones are accepted."""

        async def kill() -> int:
            doomed = list(self._open)
            for task in doomed:
                task.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)
            self.kills += len(doomed)
            return len(doomed)

        return self._call(kill)

    def half_open(self, silent: bool = True) -> None:
        """Stop forwarding without a word, connections and new ones included; ``False``: go on."""

        async def change() -> None:
            (self.flowing.clear if silent else self.flowing.set)()

        self._call(change)

    def refuse(self, refused: bool = True) -> None:
        """Refuse new connections (ECONNREFUSED), on the same port; ``False``: accept again. Open ones live on."""
        self._call(self._stop_listening if refused else self._listen)

    def mean_life(self, seconds: float | None) -> None:
        """Connections accepted from now on are reset after a random life (exponential, from the seed); ``None``: never."""

        async def change() -> None:
            self._mean_life = seconds

        self._call(change)

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._open)

    @property
    def bytes_up(self) -> int:
        """Bytes delivered to the target."""
        return self.lines["up"].carried

    @property
    def bytes_down(self) -> int:
        """Bytes delivered to the clients."""
        return self.lines["down"].carried

    def _call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(10)

    async def _begin(self) -> None:
        self.lines = {"up": _Line(), "down": _Line()}
        self.flowing = asyncio.Event()
        self.flowing.set()
        await self._listen()

    async def _end(self) -> None:
        tasks = [*self._open, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        if self._accepting is None:
            self._listener.listen(128)
            self._accepting = asyncio.ensure_future(self._accept())

    async def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
            self._listener.shutdown(socket.SHUT_RDWR)  # Linux: no longer listening, still bound

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            task = asyncio.ensure_future(_Connection(self, client).run())
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            if self._mean_life is not None:
                loop.call_later(self._random.expovariate(1 / self._mean_life), self._kill, task)

    def _kill(self, task: asyncio.Task[None]) -> None:
        if not task.done():
            self.kills += 1
            task.cancel()


def _socket() -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def _listener(port: int) -> socket.socket:
    one = _socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # inherited when accepting
    one.bind(("127.0.0.1", port))
    return one


def _free_port() -> int:
    """Linux keeps a port over ``shutdown`` only if it was asked for by number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Proxy until Ctrl-C, with a line of figures every five seconds."""
    parser = argparse.ArgumentParser(prog="python -m tools.fault_proxy", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("target_port", type=int, help="port of 127.0.0.1 to forward to")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--rate-kbit", type=float, help="kbit/s in each direction (default: no limit)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="delay of one way (a round trip is twice that)")
    parser.add_argument("--mean-life-s", type=float, help="connections are reset after this long on average")
    parser.add_argument("--seed", type=int, default=0, help="of the connections' lives")
    given = parser.parse_args()
    with FaultProxy(given.target_port, port=given.port, seed=given.seed) as proxy:
        proxy.set(given.rate_kbit and given.rate_kbit * 1000, given.delay_ms)
        proxy.mean_life(given.mean_life_s)
        print(f"127.0.0.1:{proxy.port} → 127.0.0.1:{given.target_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(5)
                print(
                    f"{proxy.open} open, {proxy.connections} accepted, {proxy.kills} cut,"
                    f" {proxy.bytes_up:,} bytes up, {proxy.bytes_down:,} down",
                    flush=True,
                )


if __name__ == "__main__":
    main()
