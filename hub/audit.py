"""The audit log: who did what to which case, when.

What this module keeps true: an event is written in the transaction of what it tells of; it names cases and reviews by
id, and holds no patient's name.
"""

from __future__ import annotations

from sqlalchemy import Connection

from hub import tables


def note(connection: Connection, actor: str, action: str, subject: str, now_ms: int, detail: str = "") -> None:
    """Write one event, in the caller's transaction."""
    row = {"at_ms": now_ms, "actor": actor, "action": action, "subject": subject, "detail": detail}
    connection.execute(tables.audit_event.insert(), row)
