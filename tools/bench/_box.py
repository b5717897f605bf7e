"""A box's sending half for benchmarks: the real store, uplink and link in this process, against real servers.

What this module keeps true: nothing of ours is replaced; the hub is its own program in a process of its own (the real worker,
or ``_responder`` where only the box is measured), so that it takes no time from the box's interpreter.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.config import LinkConfig, StorageConfig
from appliance.health.clock import Clock
from appliance.protocol import messages
from appliance.protocol.chunks import Kind, transfer_id
from appliance.protocol.messages import ReceiptItem, Status
from appliance.protocol.topics import Address
from appliance.records import capture_id
from appliance.store.journal import Transaction
from appliance.store.outbox import Priority
from appliance.store.store import Store
from appliance.store.vault import Blob
from appliance.sync.inbox import Downlink
from appliance.sync.link import Link
from appliance.sync.uplink import Uplink
from tools.servers import Mosquitto

ADDRESS = Address("site", "box")


class Box:
    """Store, uplink, link. ``closed`` has the monotonic time at which each id's receipt was applied, durably."""

    def __init__(self, folder: Path, port: int, **link: float) -> None:
        config = LinkConfig(port=port, **link)  # type: ignore[arg-type]  # its own fields
        self.clock = Clock()
        self.store = Store(StorageConfig(state=str(folder), refuse_below=64, reserve=4), self.clock.now)
        self.uplink = _Noted(self.store, config, time.monotonic, lambda: "2026-01-01")
        self.link = Link(config, ADDRESS, self.uplink, self._received, _status, self.clock.now)
        self.downlink = Downlink(self.store, self.uplink, self.clock, self.link.reply)
        self.closed = self.uplink.closed
        self.confirmed = self.uplink.confirmed

    def _received(self, leaf: str, payload: bytes) -> None:
        self.downlink.received(leaf, payload)

    def put_results(self, payloads: Iterable[bytes], priority: Priority = Priority.RESULT) -> list[str]:
        """Commit results to the outbox in one transaction; their ids. The caller wakes the link."""
        rows = [(messages.decode(payload, messages.Result), payload) for payload in payloads]

        def put(tx: Transaction) -> None:
            for message, payload in rows:
                self.store.outbox.put(
                    tx,
                    message_id=message.id,
                    capture_id=message.capture.id,
                    leaf="result",
                    priority=priority,
                    sha256=messages.sha256(payload),
                    payload=payload,
                )

        self.store.journal.write(put)
        return [message.id for message, _ in rows]

    def put_blob(self, size: int) -> Blob:
        """Keep ``size`` random bytes in the vault."""
        writer = self.store.vault.writer()
        for start in range(0, size, 1 << 20):
            writer.write(os.urandom(min(1 << 20, size - start)))
        return writer.finish()

    def put_original(self, size: int, number: int = 0) -> str:
        """Keep ``size`` random bytes and queue them as an original; the transfer's id."""
        (name,) = self.put_transfers([self.put_blob(size)], 1, "original", Priority.ORIGINAL, number)
        return name

    def put_transfers(self, blobs: list[Blob], count: int, kind: Kind, priority: Priority, first: int = 0) -> list[str]:
        """Queue ``count`` transfers, each of another capture, of these blobs in turn; their ids."""
        captures = [capture_id(ADDRESS.key, f"{first + number:064x}") for number in range(count)]
        wanted = [(capture, blobs[number % len(blobs)]) for number, capture in enumerate(captures)]

        def put(tx: Transaction) -> None:
            for capture, blob in wanted:
                self.store.transfers.put(
                    tx,
                    capture_id=capture,
                    kind=kind,
                    priority=priority,
                    sha256=blob.sha256,
                    size=blob.size,
                    media_type="application/octet-stream",
                )

        self.store.journal.write(put)
        return [transfer_id(capture, kind, blob.sha256) for capture, blob in wanted]

    def wait_closed(self, ids: Iterable[str], seconds: float) -> None:
        """Wait until all ``ids`` are closed; raises ``RuntimeError`` saying how many are not."""
        deadline = time.monotonic() + seconds
        waiting = list(ids)
        while waiting:
            while waiting and waiting[-1] in self.closed:  # the times are noted there: looking may be late, and cheap
                waiting.pop()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(waiting)} are not confirmed after {seconds:.0f} s ({self.link.problem})")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the link, close the store."""
        self.link.stop()
        self.store.close()


def _status(online: bool) -> Status:
    return Status(online=online)


class _Noted(Uplink):
    """Notes when receipts were applied; changes nothing."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.closed: dict[str, float] = {}
        self.confirmed: list[tuple[float, int]] = []

    def receipts(self, items: Iterable[ReceiptItem]) -> list[str]:
        """See ``Uplink.receipts``."""
        items = list(items)
        delivered = super().receipts(items)
        now = time.monotonic()
        for item in items:
            if item.status == "stored":
                self.closed[item.id] = now
            elif item.status == "partial":
                self.confirmed.append((now, item.offset))
        return delivered


@contextlib.contextmanager
def box(port: int, **link: float) -> Iterator[Box]:
    """A box whose broker is at ``port``; its link is not started yet."""
    with tempfile.TemporaryDirectory(prefix="bench-box-") as folder:
        one = Box(Path(folder), port, **link)
        try:
            yield one
        finally:
            one.stop()


@contextlib.contextmanager
def hub_worker(broker: Mosquitto) -> Iterator[None]:
    """The hub's real worker (SQLite, blobs on disk) as a process of its own, connected."""
    with tempfile.TemporaryDirectory(prefix="bench-hub-") as folder:
        configuration = Path(folder) / "hub.toml"
        configuration.write_text(
            f'[storage]\nstate = "{folder}"\nrefuse_below = 1\n[broker]\nport = {broker.port}\n', encoding="utf-8"
        )
        start = "import sys; from hub.cli import main; sys.argv[0] = 'bedside-hub'; main()"
        command = [sys.executable, "-c", start, "worker", "--config", str(configuration), "--name", "bench"]
        with _process(command, "connected"):
            yield


@contextlib.contextmanager
def responder(broker: Mosquitto) -> Iterator[None]:
    """A process that only receipts results, in groups."""
    with _process([sys.executable, "-m", "tools.bench._responder", str(broker.port)], "connected"):
        yield


@contextlib.contextmanager
def _process(command: list[str], word: str) -> Iterator[None]:
    said = threading.Event()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def listen() -> None:
        for line in process.stderr or ():
            if word in line:
                said.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        if not said.wait(30):
            raise RuntimeError(f"{command[2]} did not connect")
        yield
    finally:
        process.terminate()
        process.wait(20)
        listener.join(5)
