"""The bad link does what it is told: its rate, its delay, its cuts and its silence are measured."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tools.fault_proxy import FaultProxy


class Echo:
    """A server that counts what comes in and, if it is asked to, sends it back."""

    def __init__(self, *, back: bool) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.back = back
        self.received = 0
        self.last = 0.0
        self.errors: list[str] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                self.received += len(data)
                self.last = time.monotonic()
                if self.back:
                    connection.sendall(data)
        except OSError as error:
            self.errors.append(type(error).__name__)
        finally:
            connection.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(back=True)
    yield server
    server.listener.close()


@pytest.fixture
def sink() -> Iterator[Echo]:
    server = Echo(back=False)
    yield server
    server.listener.close()


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def wait_until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_bytes_arrive_whole_and_in_order_without_faults(echo: Echo) -> None:
    sent = bytes(range(256)) * 8192
    with FaultProxy(echo.port) as proxy, connect(proxy) as client:
        threading.Thread(target=client.sendall, args=(sent,), daemon=True).start()
        got = bytearray()
        while len(got) < len(sent):
            got += client.recv(1 << 16)
        assert bytes(got) == sent
        wait_until(lambda: (proxy.bytes_up, proxy.bytes_down) == (len(sent), len(sent)))


@pytest.mark.parametrize("rate", [64_000, 2_000_000])
def test_the_rate_is_kept_within_a_tenth(sink: Echo, rate: int) -> None:
    size = rate // 8 * 3 // 2  # a second and a half
    with FaultProxy(sink.port) as proxy:
        proxy.set(rate, 0)
        with connect(proxy) as client:
            began = time.monotonic()
            client.sendall(bytes(size))
            wait_until(lambda: sink.received == size)
            measured = size * 8 / (sink.last - began)
    assert measured == pytest.approx(rate, rel=0.1)


def test_two_connections_share_one_line(sink: Echo) -> None:
    with FaultProxy(sink.port) as proxy:
        proxy.set(1_000_000, 0)
        with connect(proxy) as one, connect(proxy) as other:
            began = time.monotonic()
            for client in (one, other):
                threading.Thread(target=client.sendall, args=(bytes(62_500),), daemon=True).start()
            wait_until(lambda: sink.received == 125_000)
            assert sink.last - began == pytest.approx(1.0, rel=0.15)


def test_the_delay_is_that_of_each_way(echo: Echo) -> None:
    with FaultProxy(echo.port) as proxy:
        proxy.set(None, 100, "up")
        proxy.set(None, 50, "down")
        with connect(proxy) as client:
            client.sendall(b"first")  # waits for the handshake as well
            client.recv(100)
            began = time.monotonic()
            client.sendall(b"second")
            client.recv(100)
            assert time.monotonic() - began == pytest.approx(0.150, rel=0.1)


def test_a_delay_does_not_cost_rate(sink: Echo) -> None:
    with FaultProxy(sink.port) as proxy:
        proxy.set(1_000_000, 300)
        with connect(proxy) as client:
            began = time.monotonic()
            client.sendall(bytes(125_000))
            wait_until(lambda: sink.received == 125_000)
            assert sink.last - began == pytest.approx(1.0 + 0.6 + 0.3, rel=0.1)  # line, handshake, way


def test_a_queue_stays_in_the_sender_not_in_the_proxy(sink: Echo) -> None:
    with FaultProxy(sink.port) as proxy, connect(proxy) as client:
        proxy.set(64_000, 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        client.settimeout(0.3)
        taken = 0
        with contextlib.suppress(TimeoutError):
            while taken < 1_000_000:
                taken += client.send(bytes(1024))
        assert taken < 200_000  # the kernel's buffers of both sockets, and no more


def test_a_cut_resets_both_sides_and_the_next_connection_is_taken(echo: Echo) -> None:
    with FaultProxy(echo.port) as proxy:
        with connect(proxy) as client:
            client.sendall(b"x")
            client.recv(1)
            assert proxy.cut() == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        wait_until(lambda: echo.errors == ["ConnectionResetError"])
        with connect(proxy) as client:
            client.sendall(b"y")
            assert client.recv(1) == b"y"


def test_bytes_on_their_way_are_lost_in_a_cut(sink: Echo) -> None:
    with FaultProxy(sink.port) as proxy:
        with connect(proxy) as client:
            client.sendall(b"x")
            wait_until(lambda: sink.received == 1)
            proxy.set(None, 500)
            client.sendall(bytes(1000))
            time.sleep(0.1)
            proxy.cut()
        time.sleep(0.6)
        assert sink.received == 1


def test_half_open_is_silent_and_nothing_is_lost_when_it_ends(echo: Echo) -> None:
    with FaultProxy(echo.port) as proxy, connect(proxy) as client:
        client.sendall(b"x")
        client.recv(1)
        proxy.half_open()
        client.sendall(b"hello")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.half_open(False)
        client.settimeout(5)
        assert client.recv(100) == b"hello"


def test_refusing_is_a_real_refusal_and_the_port_stays_ours(echo: Echo) -> None:
    with FaultProxy(echo.port) as proxy:
        for _ in range(2):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            proxy.refuse(False)
            with connect(proxy) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"


def test_lives_are_random_with_the_mean_that_was_set_and_the_same_for_the_same_seed(echo: Echo) -> None:
    def lives(seed: int) -> list[float]:
        measured = []
        with FaultProxy(echo.port, seed=seed) as proxy:
            proxy.mean_life(0.1)
            for _ in range(12):
                with connect(proxy) as client:
                    began = time.monotonic()
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                    measured.append(time.monotonic() - began)
            assert proxy.kills == 12
        return measured

    first, again = lives(3), lives(3)
    assert first == pytest.approx(again, abs=0.05)
    assert 0.03 < sum(first) / 12 < 0.3
    assert max(first) > 3 * min(first)


def test_a_target_that_is_not_there_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    # the reset may already be there when connect returns
    with FaultProxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)
