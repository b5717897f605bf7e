"""Transfers: pieces in any order, more than once, through any worker, become a verified whole.

What this module keeps true: a byte range is in a transfer's row only after the bytes were fsynced; the row is locked while
its part file is written, so two workers never write one file at once and a whole that is being verified is not written
to; the first bytes at a place stay (a duplicate never overwrites); a whole whose SHA-256 is wrong starts again from
nothing. An encoded original is ``stored`` only once it was restored and has the hash that its capture's id derives from;
what lies here then is the original itself. A full disk refuses pieces with a reason and keeps what there is.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, Row, bindparam, select, update

from appliance.protocol.chunks import Chunk, merge, missing
from appliance.protocol.messages import Command, make_id
from appliance.protocol.originals import ENCODING
from appliance.records import capture_id
from hub import outbox, tables
from hub.arrivals import ChunkArrival, Reply, rfc3339
from hub.blobs import BlobStore
from hub.database import Database
from hub.restore import RestoreError, restore

_LOG = structlog.get_logger("hub.transfers")

MAXIMUM_RANGES = 2048
"""A transfer in more fragments than this (far beyond any sender's window) refuses pieces that open another one."""

RECENT = 500
"""Stored transfers whose blobs are looked for at once at the start."""

_MAXIMUM_RESTARTS = 3
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}

_transfer = tables.transfer.c
_LOCKED = (
    select(tables.transfer).where(_transfer.id.in_(bindparam("ids", expanding=True))).order_by(_transfer.id)
).with_for_update()
_OWNERS = select(tables.capture.c.id, tables.capture.c.device).where(
    tables.capture.c.id.in_(bindparam("ids", expanding=True))
)
_UPDATE = (
    update(tables.transfer)
    .where(_transfer.id == bindparam("key"))
    .values(
        state=bindparam("new_state"),
        ranges=bindparam("new_ranges"),
        durable=bindparam("new_durable"),
        changed_ms=bindparam("now_ms"),
    )
)


class TransferStore:
    """Puts pieces away and verifies wholes."""

    def __init__(self, database: Database, blobs: BlobStore, *, refuse_below: int) -> None:
        """``refuse_below``: free bytes under which pieces are refused."""
        self._database = database
        self._blobs = blobs
        self._refuse_below = refuse_below
        self._insert = database.insert(tables.transfer).on_conflict_do_nothing(index_elements=["id"])
        self._insert_conflict = database.insert(tables.conflict).on_conflict_do_nothing()
        self._insert_blob = database.insert(tables.blob).on_conflict_do_nothing(index_elements=["sha256"])

    def store(self, connection: Connection, arrivals: list[ChunkArrival], now_ms: int) -> tuple[list[Reply], set[str]]:
        """Take pieces in, inside the caller's transaction; the answers, and the ids of transfers that are now whole."""
        ordered = sorted(arrivals, key=lambda a: (a.chunk.id, a.chunk.offset))
        groups = {key: list(group) for key, group in itertools.groupby(ordered, key=lambda a: a.chunk.id)}
        captures = sorted({a.chunk.capture_id for a in arrivals})
        owners = {row.id: row.device for row in connection.execute(_OWNERS, {"ids": captures})}
        connection.execute(self._insert, [_row(group[0], now_ms) for group in groups.values()])
        rows = {row.id: row for row in connection.execute(_LOCKED, {"ids": sorted(groups)})}
        full = self._blobs.free() < self._refuse_below
        replies, changes, whole = [], [], set()
        for key, group in groups.items():
            row = rows[key]
            accepted = []
            for arrival in group:
                reason = _contradiction(row, arrival, owners.get(arrival.chunk.capture_id))
                if arrival.chunk.encoding not in ("", ENCODING):
                    replies.append(_reply(arrival, "conflict", 0, "this hub does not know this encoding"))
                elif reason:
                    replies.append(_reply(arrival, "refused", 0, reason))
                else:
                    accepted.append(arrival)
            if accepted:
                reply, change = self._put(row, accepted, full, now_ms)
                replies.append(reply)
                changes += change
                if row.state == "whole" or (change and change[0]["new_state"] == "whole"):
                    whole.add(key)
        if changes:
            connection.execute(_UPDATE, changes)
        return replies, whole

    def _put(
        self, row: Row[Any], arrivals: list[ChunkArrival], full: bool, now_ms: int
    ) -> tuple[Reply, list[dict[str, Any]]]:
        first = arrivals[0]
        if row.state == "stored":
            return _reply(first, "stored", row.total), []
        if row.state == "whole":
            return _reply(first, "partial", row.total), []
        before = _ranges(row.ranges)
        if before and self._blobs.part_size(row.id) < before[-1][1]:
            before = []  # the part file was lost (a restored backup): what it held is asked for again
        pieces = list(_new_pieces(before, [a.chunk for a in arrivals]))
        after = merge([*before, *((offset, offset + len(data)) for offset, data in pieces)])
        reason = _FULL if full else _FRAGMENTS if len(after) > max(MAXIMUM_RANGES, len(before)) else ""
        if pieces and not reason:
            try:
                self._blobs.write(row.id, pieces)
            except OSError as error:
                if error.errno not in _SPACE:
                    raise
                reason = f"{_FULL}: {error.strerror}"
        if reason:
            return _reply(first, "refused", _contiguous(before), reason), []
        durable = _contiguous(after)
        change = {
            "key": row.id,
            "new_state": "whole" if durable == row.total else "open",
            "new_ranges": msgspec.json.encode(after).decode(),
            "new_durable": durable,
            "now_ms": now_ms,
        }
        return _reply(first, "partial", durable), [change]

    def finish(self, key: str, now_ms: int) -> tuple[str, int, str]:
        """Verify a whole transfer and give it its name, in a transaction of its own; (status, offset, reason)."""
        with self._database.read() as connection:
            row = connection.execute(_ONE, {"id": key}).one()
        if row.state == "stored":
            return "stored", row.total, ""
        problem, original = "", ""
        good = self._blobs.finish(key, row.sha256, row.total)
        if good and row.encoding:
            try:
                original = self._restored(row)
            except RestoreError as error:
                if error.full:
                    return "refused", row.total, _FULL
                problem = str(error)
        if good and not problem:
            self._stored(row, original, now_ms)
            return "stored", row.total, ""
        return self._undo(row, problem, now_ms)

    def _undo(self, row: Row[Any], problem: str, now_ms: int) -> tuple[str, int, str]:
        """Begin again, and alarm if the bytes are those announced and yet not the original (``problem``)."""
        with self._database.write() as connection:
            if connection.execute(_ONE, {"id": row.id}).one().state == "stored":  # another worker was quicker
                return "stored", row.total, ""
            values = {"state": "open", "ranges": "[]", "durable": 0, "restarts": row.restarts + 1}
            _set(connection, row.id, **values, changed_ms=now_ms)
            if problem:
                connection.execute(self._insert_conflict, _alarm(row, problem, now_ms))
        if problem:
            self._blobs.drop(row.sha256)
            _LOG.error("not the original", capture=row.capture_id, device=row.device, reason=problem)
            return "conflict", 0, problem
        return ("refused", 0, _WRONG) if row.restarts + 1 >= _MAXIMUM_RESTARTS else ("partial", 0, "")

    def _restored(self, row: Row[Any]) -> str:
        """The SHA-256 of the original that a whole transfer with an encoding becomes; raises ``RestoreError``.

        The capture's id derives from the device and the original's SHA-256: so it shows whether this is that original,
        also where the capture's result has not come yet.
        """
        work = self._blobs.parts / f"{row.id.removeprefix('blob:')}-{os.urandom(4).hex()}.restored"
        original = restore(self._blobs.path(row.sha256), work)
        if capture_id(row.device, original) != row.capture_id:
            work.unlink()
            raise RestoreError("the restored original does not have the SHA-256 of its capture")
        self._blobs.adopt(work, original)
        return original

    def _stored(self, row: Row[Any], original: str, now_ms: int) -> None:
        content = original or row.sha256
        size = self._blobs.path(content).stat().st_size
        with self._database.write() as connection:
            _touch_capture(connection, row.capture_id, now_ms)  # captures are locked before transfers everywhere
            connection.execute(self._insert_blob, {"sha256": content, "size": size, "created_ms": now_ms})
            _set(connection, row.id, state="stored", original=original, changed_ms=now_ms)
        if original:
            self._blobs.drop(row.sha256)

    def _ask_again(self, connection: Connection, row: Row[Any], now_ms: int) -> None:
        """The box has closed what was confirmed: only a command makes it send that again."""
        key = make_id("command", "resend", row.id, str(row.changed_ms))
        command = Command(id=key, kind="resend", capture_id=row.capture_id, issued_at=rfc3339(now_ms))
        outbox.add(connection, self._database, row.device, command, now_ms)

    def repair(self, now_ms: int) -> dict[str, int]:
        """Mend what a crash or a restored backup left behind; how many of each. For the start of the hub.

        The work is that of what is open, and of what was stored last: a crash leaves its traces there, and a backup that was
        restored lacks the newest blobs. It goes back in time as long as it finds any missing (``RECENT`` at a time).
        """
        counts = {"verified": 0, "restarted": 0, "discarded": 0, "missing": 0}
        with self._database.read() as connection:
            whole = connection.execute(select(_transfer.id).where(_transfer.state == "whole")).all()
        for row in whole:
            status, _, _ = self.finish(row.id, now_ms)
            counts["verified" if status == "stored" else "restarted"] += 1
        counts["missing"] = self._repair_stored(now_ms)
        counts["discarded"] = self._discard_unknown()
        for work in self._blobs.parts.glob("*.restored"):
            work.unlink()
        return counts

    def _repair_stored(self, now_ms: int) -> int:
        """Ask again for stored blobs that are gone, the newest first; how many."""
        total, before = 0, 1 << 62
        while True:
            with self._database.read() as connection:
                rows = connection.execute(_NEWEST, {"before": before}).all()
            missing = 0
            for row in rows:
                if not self._blobs.path(row.original or row.sha256).exists():
                    with self._database.write() as connection:
                        _set(connection, row.id, was="stored", state="open", ranges="[]", durable=0, changed_ms=now_ms)
                        self._ask_again(connection, row, now_ms)
                    missing += 1
                elif row.original:
                    self._blobs.drop(row.sha256)
            total += missing
            if not missing or len(rows) < RECENT:
                return total
            before = rows[-1].changed_ms

    def _discard_unknown(self) -> int:
        """Remove part files that belong to no open transfer; how many."""
        there = sorted(set(self._blobs.part_ids()))
        unknown = []
        for start in range(0, len(there), RECENT):
            some = there[start : start + RECENT]
            with self._database.read() as connection:
                known = {row.id for row in connection.execute(_KNOWN, {"ids": some})}
            unknown += [key for key in some if key not in known]
        for key in unknown:
            self._blobs.discard(key)
        return len(unknown)


_FULL = "the hub's disk for images and recordings is nearly full"
_WRONG = "the whole does not have the SHA-256 that was announced, again; check the sender's disk"
_FRAGMENTS = "the transfer is in too many fragments; send it in order"
_NEWEST = (
    select(tables.transfer)
    .where(_transfer.state == "stored", _transfer.changed_ms <= bindparam("before"))
    .order_by(_transfer.changed_ms.desc())
    .limit(RECENT)
)
_KNOWN = select(_transfer.id).where(_transfer.id.in_(bindparam("ids", expanding=True)))
_ONE = select(tables.transfer).where(_transfer.id == bindparam("id"))


def _row(arrival: ChunkArrival, now_ms: int) -> dict[str, Any]:
    chunk = arrival.chunk
    return {
        "id": chunk.id,
        "device": arrival.address.key,
        "capture_id": chunk.capture_id,
        "kind": chunk.kind,
        "sha256": chunk.sha256,
        "total": chunk.total,
        "media_type": chunk.media_type,
        "encoding": chunk.encoding,
        "state": "open",
        "ranges": "[]",
        "durable": 0,
        "restarts": 0,
        "created_ms": now_ms,
        "changed_ms": now_ms,
    }


def _contradiction(row: Row[Any], arrival: ChunkArrival, owner: str | None) -> str:
    chunk = arrival.chunk
    if arrival.address.key != row.device or arrival.address.key != (owner or row.device):
        return "this capture belongs to another device"
    if (chunk.total, chunk.media_type, chunk.encoding) != (row.total, row.media_type, row.encoding):
        return "total, content type or encoding differ from the transfer's first piece"
    return ""


def _alarm(row: Row[Any], reason: str, now_ms: int) -> dict[str, Any]:
    key = {"id": row.id, "sha256": row.sha256, "device": row.device}
    return {**key, "received_ms": now_ms, "reason": reason, "payload": b""}


def _reply(arrival: ChunkArrival, status: Any, offset: int, reason: str = "") -> Reply:
    return Reply(arrival.address, arrival.chunk.id, arrival.chunk.sha256, status, offset, reason)


def _ranges(text: str) -> list[tuple[int, int]]:
    return msgspec.json.decode(text.encode(), type=list[tuple[int, int]])


def _contiguous(ranges: list[tuple[int, int]]) -> int:
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0


def _new_pieces(before: list[tuple[int, int]], chunks: list[Chunk]) -> Iterator[tuple[int, bytes]]:
    """The parts of ``chunks`` that are not there yet: what was there first stays."""
    have = list(before)
    for chunk in chunks:
        start, end = chunk.offset, chunk.offset + len(chunk.data)
        inside = [(max(s, start) - start, min(e, end) - start) for s, e in have if s < end and e > start]
        for gap_start, gap_end in missing(inside, end - start):
            yield start + gap_start, chunk.data[gap_start:gap_end]
        have = merge([*have, (start, end)])


def _set(connection: Connection, key: str, *, was: str = "whole", **values: Any) -> None:
    change = update(tables.transfer).where(_transfer.id == key, _transfer.state == was)
    connection.execute(change.values(**values))


def _touch_capture(connection: Connection, capture_id: str, now_ms: int) -> None:
    captures = tables.capture
    connection.execute(update(captures).where(captures.c.id == capture_id).values(changed_ms=now_ms))
