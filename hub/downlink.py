"""What the hub does on its own: sends what is due on the way down, and raises again what nobody has taken note of.

What this module keeps true: an escalation step happens once, however many hubs look (the row's state decides, and the
command's id derives from capture, revision and step); it counts from the arrival at the hub, by the hub's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from sqlalchemy import exc, select, update

from appliance.protocol.messages import Command, make_id
from hub import audit, outbox, tables
from hub.arrivals import rfc3339
from hub.config import EscalationConfig, OutboxConfig
from hub.database import Database
from hub.receive import Published, StoreUnavailable

_LOG = structlog.get_logger("hub.downlink")
_capture = tables.capture.c


class Downlink:
    """The tick of the session that publishes down."""

    def __init__(
        self,
        database: Database,
        config: OutboxConfig,
        escalation: EscalationConfig,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.escalated = 0
        self._database = database
        self._config = config
        self._steps_ms = [round(minutes * 60_000) for minutes in escalation.critical_after]
        self._check = escalation.check
        self._next_check = 0.0
        self._clock_ms = clock_ms

    def tick(self) -> list[Published]:
        """Look for escalations when it is time to, then take what is due. Raises ``StoreUnavailable``."""
        try:
            if time.monotonic() >= self._next_check:
                self._next_check = time.monotonic() + self._check
                self.escalate()
            now_ms = self._clock_ms()
            with self._database.read() as connection:
                due = outbox.any_due(connection, now_ms)
            if not due:
                return []
            with self._database.write() as connection:
                rows = outbox.take_due(
                    connection, now_ms, retry_from=self._config.retry_from, retry_to=self._config.retry_to
                )
        except exc.DBAPIError as error:
            raise StoreUnavailable(f"database: {type(error).__name__}; check database.url and its server") from error
        return [(row.topic, row.payload) for row in rows]

    def escalate(self) -> int:
        """Raise again what has waited past its next step; how many."""
        raised = 0
        for step, after_ms in enumerate(self._steps_ms):
            now_ms = self._clock_ms()
            late = (
                select(_capture.id, _capture.device, _capture.revision)
                .where(
                    _capture.open,
                    _capture["rank"] == 0,
                    _capture.acknowledged_ms.is_(None),
                    _capture.escalation == step,
                    _capture.since_ms <= now_ms - after_ms,
                )
                .limit(500)
            )
            with self._database.read() as connection:
                rows = connection.execute(late).all()
            for row in rows:
                raised += self._raise(row.id, row.device, row.revision, step, now_ms)
        self.escalated += raised
        return raised

    def _raise(self, capture: str, device: str, revision: int, step: int, now_ms: int) -> int:
        command = Command(
            id=make_id("command", "escalate", capture, str(revision), str(step + 1)),
            kind="escalate",
            capture_id=capture,
            issued_at=rfc3339(now_ms),
        )
        change = update(tables.capture).where(
            _capture.id == capture, _capture.escalation == step, _capture.acknowledged_ms.is_(None)
        )
        with self._database.write() as connection:
            changed = connection.execute(change.values(escalation=step + 1, changed_ms=now_ms)).rowcount
            if changed:
                outbox.add(connection, self._database, device, command, now_ms)
                audit.note(connection, "hub", "escalated", capture, now_ms, f"step {step + 1}")
        if changed:
            _LOG.warning("critical result raised again", capture=capture, device=device, step=step + 1)
        return changed
