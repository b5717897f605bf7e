"""A critical result behind 5 GB of backlog on 64 kbit/s and 800 ms round trip: seconds from its commit to its receipt.

The real box, mosquitto and hub worker. The backlog stands in the journal as a box would have it after weeks: 320 originals of
16 MB, 300 previews and 500 results, each of a capture of its own. The originals share four blobs in the vault (64 MB on
the disk instead of 5 GB): the scheduler sees rows, and reads a blob a frame at a time, so it can't tell. A hundred results
of at most 2 KB are committed at random moments (seeded, 4 s apart on average) while the backlog goes out; none waits for
the one before. The p99 of a hundred is the second largest.
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
BLOBS, BLOB_BYTES, ORIGINALS = 4, 16 << 20, 320
PREVIEWS, PREVIEW_BYTES = 300, 40 << 10
RESULTS_WAITING = 500
RESULTS, GAP_S = 100, 4.0
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


def fill(one: Box) -> int:
    """Make the backlog; its bytes."""
    blobs = [one.put_blob(BLOB_BYTES) for _ in range(BLOBS)]
    previews = [one.put_blob(PREVIEW_BYTES) for _ in range(BLOBS)]
    one.put_transfers(blobs, ORIGINALS, "original", Priority.ORIGINAL)
    one.put_transfers(previews, PREVIEWS, "preview", Priority.PREVIEW)
    one.put_results(payload(number, ADDRESS.key) for number in range(RESULTS_WAITING))
    return one.store.transfers.totals()[1] + one.store.outbox.totals()[1]


def measure(one: Box, results: int, seed: int = 0) -> list[float]:
    """Seconds from commit to receipt of each of ``results`` critical results, committed at random moments."""
    chance, began = random.Random(seed), {}
    for number in range(results):
        time.sleep(chance.expovariate(1 / GAP_S))
        data = critical(1_000_000 + number)
        now = time.monotonic()
        (name,) = one.put_results([data], Priority.CRITICAL_RESULT)
        began[name] = now
        one.link.wake()
    one.wait_closed(began, 300)
    return [one.closed[name] - now for name, now in began.items()]


def run() -> Iterator[Row]:
    """The p99 and, for information, the median."""
    with running_mosquitto() as broker, hub_worker(broker), FaultProxy(broker.port) as proxy, box(proxy.port) as one:
        proxy.set(RATE, DELAY_MS)
        waiting = fill(one)
        print(f"priority: {RESULTS} results behind {waiting / 1e9:.1f} GB, about seven minutes", file=sys.stderr)
        one.link.start()
        time.sleep(20)  # until the window has settled
        taken = sorted(measure(one, RESULTS))
        p99 = taken[-1 - len(taken) // 100]
        yield row("critical result receipted, p99", "s", p99, LIMIT_S, peer_name="target", limit=1.0, n=len(taken))
        yield row("critical result receipted, slowest", "s", taken[-1], n=len(taken))
        floor = 2 * DELAY_MS / 1000 + (LARGEST + 150) * 8 / RATE
        middle = statistics.median(taken)
        yield row("critical result receipted, median", "s", middle, floor, peer_name="empty line", n=len(taken))
