"""The least hub there can be: it receipts every result with its id and SHA-256, in groups, and keeps nothing.

Run as a process of its own: ``python -m tools.bench._responder PORT``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
import paho.mqtt.client as mqtt

from appliance.protocol.messages import Receipt, ReceiptItem, encode, sha256
from appliance.protocol.topics import parse

GROUP = 100
WAIT_S = 0.003


class _Named(msgspec.Struct):
    id: str


def main() -> None:
    """Answer until killed."""
    decoder = msgspec.json.Decoder(_Named)
    groups: dict[str, list[ReceiptItem]] = {}
    since = 0.0

    def on_message(_: Any, __: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal since
        if not groups:
            since = time.monotonic()
        address, _, _ = parse(message.topic)
        item = ReceiptItem(
            id=decoder.decode(message.payload).id, sha256=sha256(message.payload), status="stored", offset=0, reason=""
        )
        groups.setdefault(address.down("receipt"), []).append(item)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="responder", protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(1000)
    client.on_message = on_message
    client.on_connect = lambda c, *_: c.subscribe("bedside/v1/+/+/up/result", qos=1)
    client.on_subscribe = lambda *_: print("connected", file=sys.stderr, flush=True)
    client.connect("127.0.0.1", int(sys.argv[1]))
    while client.loop(WAIT_S if groups else 0.5) == mqtt.MQTT_ERR_SUCCESS:
        ripe = time.monotonic() - since > WAIT_S or any(len(items) >= GROUP for items in groups.values())
        if groups and ripe:
            for topic, items in groups.items():
                for start in range(0, len(items), GROUP):
                    client.publish(topic, encode(Receipt(items=items[start : start + GROUP])), qos=1)
            groups.clear()


if __name__ == "__main__":
    main()
