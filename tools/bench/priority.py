"""A critical result behind a backlog on 64 kbit/s and 800 ms round trip: seconds from its commit to its receipt.

The backlog is originals that would take hours; the real box, mosquitto and hub worker. Results of at most 2 KB are committed at
random moments (seeded) and each is waited for. The p99 of n results is their largest but the hundredth part.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator

from appliance.protocol import messages
from appliance.protocol.messages import FindingPart
from appliance.store.outbox import Priority
from tools.bench._box import ADDRESS, Box, box, hub_worker
from tools.bench.hub import payload
from tools.bench.rows import Row, row
from tools.fault_proxy import FaultProxy
from tools.servers import running_mosquitto

RATE = 64_000.0
DELAY_MS = 400.0
BACKLOG = (32 << 20, 4)
RESULTS = 40
LIMIT_S = 5.0
LARGEST = 2048


def critical(number: int) -> bytes:
    """A critical result of nearly 2 KB."""
    message = messages.decode(payload(number, ADDRESS.key), messages.Result)
    while True:
        more = FindingPart(
            id=f"more-{len(message.findings)}", label="Finding", probability=0.99, positive=True, threshold=0.5
        )
        grown = messages.Result(
            **{
                **{name: getattr(message, name) for name in message.__struct_fields__},
                "findings": [*message.findings, more],
            }
        )
        if len(messages.encode(grown)) > LARGEST:
            return messages.encode(message)
        message = grown


def measure(one: Box, results: int, seed: int = 0) -> list[float]:
    """Seconds from commit to receipt of each of ``results`` critical results, one after another."""
    chance, taken = random.Random(seed), []
    for number in range(results):
        time.sleep(chance.uniform(0.2, 2.5))
        data = critical(1_000_000 + number)
        began = time.monotonic()
        ids = one.put_results([data], Priority.CRITICAL_RESULT)
        one.link.wake()
        one.wait_closed(ids, 120)
        taken.append(one.closed[ids[0]] - began)
    return taken


def run() -> Iterator[Row]:
    """The p99 and, for information, the median."""
    with running_mosquitto() as broker, hub_worker(broker), FaultProxy(broker.port) as proxy, box(proxy.port) as one:
        proxy.set(RATE, DELAY_MS)
        size, count = BACKLOG
        for number in range(count):
            one.put_original(size, number)
        print(f"priority: {RESULTS} results behind {size * count >> 20} MB, about three minutes", file=sys.stderr)
        one.link.start()
        time.sleep(20)  # until the window has settled
        taken = sorted(measure(one, RESULTS))
        p99 = taken[-1 - len(taken) // 100]
        yield row("critical result receipted, p99", "s", p99, LIMIT_S, peer_name="target", limit=1.0, n=len(taken))
        floor = 2 * DELAY_MS / 1000 + (LARGEST + 150) * 8 / RATE
        yield row(
            "critical result receipted, median",
            "s",
            statistics.median(taken),
            floor,
            peer_name="empty line",
            n=len(taken),
        )
