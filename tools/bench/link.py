"""Goodput of the real link through a bad line: 256 kbit/s and 300 ms round trip, without drops and with connections that die.

One original goes through the fault proxy (``tools.fault_proxy``) to a real mosquitto and the real hub worker. Goodput is the
bytes that the hub confirmed, in bits a second, over the line's rate.

- without drops: from the first confirmation to the last, so that connecting (two round trips) is not measured twice over a
  short run;
- with drops: from the first connection to the receipt of the whole, reconnecting and all that is sent twice included.

Then a hundred or so disconnects in one original, on a faster line with short lives: how much of it reached the broker more
than once (a listener at the broker counts the pieces), and how much the box sent again, because a cut had destroyed it on
the way. Of the latter nobody can save more than the line holds: half a round trip, which is a twentieth of such a short life.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as mqtt
from typing_extensions import Self

from appliance.protocol.chunks import merge
from tools.bench._box import Box, box, hub_worker
from tools.bench.rows import Row, row
from tools.fault_proxy import FaultProxy
from tools.servers import Mosquitto, running_mosquitto

RATE = 256_000.0
DELAY_MS = 150.0
MEAN_LIFE_S = 20.0
STEADY_S = 40.0
LOSSY_BYTES = 2_400_000
SEEDS = (1, 2, 3)
CUT_RATE, CUT_DELAY_MS, CUT_LIFE_S, CUT_BYTES = 2_000_000.0, 50.0, 1.0, 12_000_000


def steady(broker: Mosquitto) -> float:
    """Share of the line's rate that confirmed bytes make up, without drops."""
    size = int(RATE / 8 * STEADY_S)
    with FaultProxy(broker.port) as proxy, box(proxy.port) as one:
        proxy.set(RATE, DELAY_MS)
        name = one.put_original(size)
        one.link.start()
        one.wait_closed([name], STEADY_S * 4)
        (began, before), (ended, after) = one.confirmed[0], one.confirmed[-1]
        return (after - before) * 8 / (ended - began) / RATE


def lossy(broker: Mosquitto, seed: int) -> tuple[float, int, float]:
    """(share of the line's rate, disconnects, share sent again) while connections die."""
    with FaultProxy(broker.port, seed=seed) as proxy, box(proxy.port) as one:
        proxy.set(RATE, DELAY_MS)
        proxy.mean_life(MEAN_LIFE_S)
        name = one.put_original(LOSSY_BYTES, number=seed)
        one.link.start()
        _wait_online(one)
        began = one.link.since
        one.wait_closed([name], LOSSY_BYTES * 8 / RATE * 5)
        seconds = one.closed[name] - began
        return LOSSY_BYTES * 8 / seconds / RATE, proxy.kills, one.uplink.sent_again_bytes / LOSSY_BYTES


def cut_often(broker: Mosquitto) -> tuple[float, float, int]:
    """(share of what arrived that was new, share of the original sent again, disconnects) over short connections."""
    with FaultProxy(broker.port, seed=9) as proxy, _Listener(broker) as listener:
        with box(proxy.port, reconnect_from=0.1, reconnect_to=0.2) as one:
            proxy.set(CUT_RATE, CUT_DELAY_MS)
            proxy.mean_life(CUT_LIFE_S)
            name = one.put_original(CUT_BYTES, number=99)
            one.link.start()
            one.wait_closed([name], 600)
            again = one.uplink.sent_again_bytes / CUT_BYTES
        if listener.once != CUT_BYTES:
            raise RuntimeError(f"the listener heard {listener.once} of {CUT_BYTES} bytes")
        return listener.once / listener.all, again, proxy.kills


class _Listener:
    """Hears every piece at the broker, beside the hub."""

    def __init__(self, broker: Mosquitto) -> None:
        self._heard: list[tuple[int, int]] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener", protocol=mqtt.MQTTv5)
        self._client.on_message = self._on_message
        self._client.connect(broker.host, broker.port)
        self._client.subscribe("bedside/v1/+/+/up/blob", qos=0)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _: Any, __: Any, message: mqtt.MQTTMessage) -> None:
        start = int(dict(message.properties.UserProperty)["o"])
        self._heard.append((start, start + len(message.payload)))

    @property
    def all(self) -> int:
        """Bytes heard."""
        return sum(end - start for start, end in self._heard)

    @property
    def once(self) -> int:
        """Bytes heard that lie at different places."""
        return sum(end - start for start, end in merge(self._heard))


def _wait_online(one: Box) -> None:
    deadline = time.monotonic() + 30
    while not one.link.online:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no connection: {one.link.problem}")
        time.sleep(0.002)


def run() -> Iterator[Row]:
    """Without drops; with drops, several seeds in turn (their median)."""
    settings: dict[str, Any] = {"better": "higher"}
    with running_mosquitto() as broker, hub_worker(broker):
        print(
            f"link: {STEADY_S:.0f} s without drops, then {len(SEEDS)} runs of a minute and a half, then a hundred cuts",
            file=sys.stderr,
        )
        whole = steady(broker)
        yield row("goodput, no drops", "of line", whole, 1.0, peer_name="line rate", limit=0.95, n=1, **settings)
        runs = sorted(lossy(broker, seed) for seed in SEEDS)
        middle, count = runs[len(runs) // 2], sum(disconnects for _, disconnects, _ in runs)
        of = f"{count} disconnects in {len(runs)} runs"
        yield row(
            f"goodput, {of}", "of line", middle[0], 1.0, peer_name="line rate", limit=0.80, n=len(runs), **settings
        )
        yield row(f"sent again, {of}", "of it", sum(again for _, _, again in runs) / len(runs), n=count)
        new, again, cuts = cut_often(broker)
        of = f"{cuts} disconnects in one original"
        yield row(f"new, {of}", "of arrived", new, 1.0, peer_name="all", limit=0.99, n=cuts, **settings)
        yield row(f"sent again, {of}", "of it", again, n=cuts)
