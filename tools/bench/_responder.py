"""The least hub there can be: it receipts every result with its id and SHA-256, in groups, and keeps nothing.

It reads through the hub's own session, so that the box is measured and not a slower reader than the real one.
Run as a process of its own: ``python -m tools.bench._responder PORT``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec

from appliance.protocol.messages import Receipt, ReceiptItem, encode, sha256
from hub.session import Delivered, Session

GROUP = 100
WAIT_S = 0.003


class _Named(msgspec.Struct):
    id: str


class _Responder:
    """One session; ``groups`` has the receipts that wait, by the topic that they go to."""

    def __init__(self, port: int) -> None:
        self._decoder = msgspec.json.Decoder(_Named)
        self._groups: dict[str, list[ReceiptItem]] = {}
        self._unacknowledged: list[int] = []
        self._since = 0.0
        self._session = Session("responder", self._take)
        self._session.on_connect = self._connected
        self._session.on_subscribe = lambda *_: print("connected", file=sys.stderr, flush=True)
        self._session.connect("127.0.0.1", port)

    def _connected(self, session: Session, _data: Any, _flags: Any, _reason: Any, properties: Any) -> None:
        session.begin(properties)
        session.subscribe("bedside/v1/+/+/up/result", qos=1)

    def run(self) -> None:
        """Answer until the connection is gone."""
        while self._session.turn(WAIT_S if self._groups else 0.5):
            before = -1
            while before < len(self._unacknowledged) < GROUP:
                before = len(self._unacknowledged)
                self._session.loop_read()
            if self._groups and (len(self._unacknowledged) >= GROUP or time.monotonic() - self._since > WAIT_S):
                self._answer()

    def _take(self, delivered: Delivered) -> None:
        if not self._groups:
            self._since = time.monotonic()
        message = delivered.message
        name = self._decoder.decode(message.payload).id
        item = ReceiptItem(id=name, sha256=sha256(message.payload), status="stored")
        self._groups.setdefault(message.topic.rpartition("/up/")[0] + "/down/receipt", []).append(item)
        self._unacknowledged.append(delivered.mid)

    def _answer(self) -> None:
        for topic, items in self._groups.items():
            for start in range(0, len(items), GROUP):
                self._session.post(topic, encode(Receipt(items=items[start : start + GROUP])))
        for mid in self._unacknowledged:
            self._session.acknowledge(mid)
        self._groups.clear()
        self._unacknowledged.clear()


if __name__ == "__main__":
    _Responder(int(sys.argv[1])).run()
