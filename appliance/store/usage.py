"""How many bytes went over the metered link, and to the disk, each day."""

from __future__ import annotations

from appliance.store.journal import Journal, Reader, Transaction


def add(tx: Transaction, day: str, count: int, critical: int) -> None:
    """Add bytes to a day (``YYYY-MM-DD``); ``critical`` of them were for critical results."""
    tx.run(
        "INSERT INTO usage (day, bytes, critical_bytes) VALUES (?, ?, ?) ON CONFLICT (day)"
        " DO UPDATE SET bytes = bytes + excluded.bytes, critical_bytes = critical_bytes + excluded.critical_bytes",
        day,
        count,
        critical,
    )


def of_day(journal: Journal, day: str) -> tuple[int, int]:
    """Bytes sent on a day: all, and those for critical results."""
    row = journal.one("SELECT bytes, critical_bytes FROM usage WHERE day = ?", day)
    return (row["bytes"], row["critical_bytes"]) if row else (0, 0)


def total(journal: Journal) -> int:
    """Bytes sent since the journal began."""
    row = journal.one("SELECT coalesce(sum(bytes), 0) AS n FROM usage")
    return row["n"] if row else 0


def add_written(tx: Transaction, day: str, written: int, kept: int) -> None:
    """Add bytes written to the disk on a day; ``kept`` of them were blobs of captures, previews and encoded originals."""
    tx.run(
        "INSERT INTO usage (day, written, kept) VALUES (?, ?, ?) ON CONFLICT (day)"
        " DO UPDATE SET written = written + excluded.written, kept = kept + excluded.kept",
        day,
        written,
        kept,
    )


def written_on(journal: Reader, day: str) -> tuple[int, int]:
    """Bytes written to the disk on a day: all, and those of blobs."""
    row = journal.one("SELECT written, kept FROM usage WHERE day = ?", day)
    return (row["written"], row["kept"]) if row else (0, 0)
