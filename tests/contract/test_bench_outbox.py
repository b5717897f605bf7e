"""The benchmark of the outbox measures a whole way: everything is confirmed, more than any client's window at once."""

from __future__ import annotations

from tools.bench._box import responder
from tools.bench.outbox import grouped
from tools.servers import running_mosquitto


def test_the_least_hub_there_can_be_confirms_everything() -> None:
    with running_mosquitto() as broker, responder(broker):
        assert grouped(broker, range(3000)) > 0
