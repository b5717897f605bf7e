"""The boxes as the hub knows them: seen, online, what they said of themselves, and what of theirs was rejected.

What this module keeps true: a device has a row before anything of it has; ``last_seen_ms`` is written at most every few
seconds a worker, not with each message; rejections are counters, so that a flood of them fills nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from appliance.protocol.topics import Address
from hub import tables
from hub.arrivals import Rejected, StateArrival
from hub.database import Database

_SEEN_EVERY_MS = 5_000
_device, _rejection = tables.device.c, tables.rejection.c


class DeviceStore:
    """The statements about devices, and what this worker remembers of the last ones it saw."""

    def __init__(self, database: Database) -> None:
        insert = database.insert(tables.device)
        self._seen = insert.on_conflict_do_update(
            index_elements=["key"], set_={"last_seen_ms": insert.excluded.last_seen_ms}
        )
        count = database.insert(tables.rejection)
        new = count.excluded
        self._reject = count.on_conflict_do_update(
            index_elements=["device", "leaf", "cause"],
            set_={
                "count": _rejection["count"] + new["count"],
                "last_ms": new.last_ms,
                "last_size": new.last_size,
                "last_sha256": new.last_sha256,
            },
        )
        self._written: dict[Address, int] = {}
        self._pending: dict[Address, int] = {}

    def seen(self, connection: Connection, addresses: Iterable[Address], now_ms: int) -> None:
        """Note that these were heard of now."""
        stale = {
            address
            for address in addresses
            if not 0 <= now_ms - self._written.get(address, -_SEEN_EVERY_MS) < _SEEN_EVERY_MS
        }
        if stale:
            rows = [
                {
                    "key": address.key,
                    "site": address.site,
                    "name": address.device,
                    "first_seen_ms": now_ms,
                    "last_seen_ms": now_ms,
                    "online": False,
                }
                for address in sorted(stale)
            ]
            connection.execute(self._seen, rows)
            self._pending = dict.fromkeys(stale, now_ms)

    def committed(self) -> None:
        """What ``seen`` wrote is durable: it need not be written again for a while."""
        self._written.update(self._pending)
        self._pending = {}

    def undone(self) -> None:
        """The transaction was rolled back."""
        self._pending = {}

    def state(self, connection: Connection, arrivals: list[StateArrival], now_ms: int) -> list[str]:
        """Keep the last status and telemetry; the keys of the devices that came online with it."""
        statuses = {a.address.key: a for a in arrivals if a.status is not None}
        for arrival in arrivals:
            if arrival.status is None:
                values: dict[str, Any] = {"telemetry": arrival.payload, "telemetry_ms": now_ms}
                connection.execute(update(tables.device).where(_device.key == arrival.address.key).values(**values))
        if not statuses:
            return []
        keys = sorted(statuses)
        before = {
            row.key: row.online
            for row in connection.execute(select(_device.key, _device.online).where(_device.key.in_(keys)))
        }
        change = (
            update(tables.device)
            .where(_device.key == bindparam("of"))
            .values(status=bindparam("new"), online=bindparam("now_online"), status_ms=now_ms)
        )
        now_online = {key: bool(a.status and a.status.online) for key, a in statuses.items()}
        connection.execute(
            change, [{"of": key, "new": statuses[key].payload, "now_online": now_online[key]} for key in keys]
        )
        return [key for key in keys if now_online[key] and not before.get(key)]

    def rejected(self, connection: Connection, rejections: list[Rejected], now_ms: int) -> None:
        """Count what was rejected, by device, leaf and cause."""
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for item in rejections:
            row = rows.setdefault(
                (item.device, item.leaf, item.cause),
                {"device": item.device, "leaf": item.leaf, "cause": item.cause, "count": 0},
            )
            last = {"first_ms": now_ms, "last_ms": now_ms, "last_size": item.size, "last_sha256": item.sha256}
            row.update(last, count=row["count"] + 1)
        if rows:
            connection.execute(self._reject, [rows[key] for key in sorted(rows)])
