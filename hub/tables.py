"""The hub's tables, for SQLite and PostgreSQL alike.

What this module keeps true: every row of ``result``, ``review`` and ``report`` is written once and never changed; what changes
(``capture``, ``transfer``, ``outbox``, ``device``) is derived from them or is a state with a named set of values. Times
are milliseconds since 1970 in UTC by the hub's own clock, in columns that end in ``_ms``; the boxes' times stay inside
the payloads, with their uncertainty.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# SQLite numbers rows only in a column declared INTEGER; PostgreSQL needs 64 bits there.
_Serial = BigInteger().with_variant(Integer, "sqlite")

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

device = Table(
    "device",
    metadata,
    Column("key", String(80), primary_key=True, comment="site/device"),
    Column("site", String(40), nullable=False),
    Column("name", String(40), nullable=False),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("online", Boolean, nullable=False, default=False),
    Column("status", LargeBinary, nullable=True, comment="the last status message"),
    Column("status_ms", BigInteger, nullable=True),
    Column("telemetry", LargeBinary, nullable=True, comment="the last telemetry message"),
    Column("telemetry_ms", BigInteger, nullable=True),
)

capture = Table(
    "capture",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device", String(80), nullable=False),
    Column("result_id", String(64), nullable=False, comment="the result that counts: the highest revision"),
    Column("revision", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("modality", String(32), nullable=False),
    Column("status", String(16), nullable=False, comment="read or not_read"),
    Column("rank", Integer, nullable=False, comment="0 critical, 1 urgent, 2 routine"),
    Column("received_ms", BigInteger, nullable=False, comment="first result arrived"),
    Column("since_ms", BigInteger, nullable=False, comment="has had this urgency since"),
    Column("waiting_ms", BigInteger, nullable=False, comment="the patient waits since, as well as that is known"),
    Column("changed_ms", BigInteger, nullable=False),
    Column("open", Boolean, nullable=False, comment="a human still has to look"),
    Column("acknowledged_ms", BigInteger, nullable=True),
    Column("acknowledged_by", String(128), nullable=True),
    Column("claimed_by", String(128), nullable=True),
    Column("claimed_ms", BigInteger, nullable=True),
    Column("escalation", Integer, nullable=False, default=0, comment="how often it was raised again"),
    Column("review_id", String(64), nullable=True, comment="the last review"),
    Column("decision", String(16), nullable=True),
    Column("patient", String(32), nullable=False, server_default="", comment="whose, at one site (encounters.py)"),
    Index("capture_worklist", "open", "rank", "waiting_ms"),
    Index("capture_changes", "open", "changed_ms"),
    Index("capture_device", "device"),
    Index("capture_patient", "patient"),
)

result = Table(
    "result",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("capture_id", String(32), nullable=False),
    Column("device", String(80), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("result_capture", "capture_id"),
)

conflict = Table(
    "conflict",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("device", String(80), primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("seen_by", String(128), nullable=True, comment="who has taken note"),
)

rejection = Table(
    "rejection",
    metadata,
    Column("device", String(80), primary_key=True, comment="empty when the topic was not one of ours"),
    Column("leaf", String(16), primary_key=True),
    Column("cause", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("last_size", BigInteger, nullable=False),
    Column("last_sha256", String(64), nullable=False),
)

transfer = Table(
    "transfer",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", String(80), nullable=False),
    Column("capture_id", String(32), nullable=False),
    Column("kind", String(16), nullable=False, comment="preview or original"),
    Column("sha256", String(64), nullable=False, comment="of the whole, as transferred"),
    Column("total", BigInteger, nullable=False),
    Column("media_type", String(128), nullable=False),
    Column("encoding", String(64), nullable=False),
    Column("original", String(64), nullable=False, server_default="", comment="SHA-256 of what an encoding became"),
    Column("state", String(16), nullable=False, comment="open, whole (to be verified), stored"),
    Column("ranges", Text, nullable=False, comment="JSON: [[start, end), …] that are durable"),
    Column("durable", BigInteger, nullable=False, comment="bytes that are durable from the start"),
    Column("restarts", Integer, nullable=False, default=0, comment="how often the whole did not match its hash"),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Index("transfer_capture", "capture_id"),
    Index("transfer_state", "state", "changed_ms"),
)

blob = Table(
    "blob",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

review = Table(
    "review",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("capture_id", String(32), nullable=False),
    Column("result_id", String(64), nullable=False, comment="the result that the reviewer saw"),
    Column("previous", String(64), nullable=True, comment="the review before this one"),
    Column("decision", String(16), nullable=False),
    Column("reviewer", String(128), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False, comment="the review message as it goes down"),
    Index("review_capture", "capture_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", String(80), nullable=False),
    Column("leaf", String(16), nullable=False, comment="review or command"),
    Column("capture_id", String(32), nullable=True),
    Column("sha256", String(64), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("next_ms", BigInteger, nullable=True, comment="send (again) at; empty once closed"),
    Column("attempts", Integer, nullable=False, default=0),
    Column("closed_ms", BigInteger, nullable=True),
    Column("outcome", String(16), nullable=True, comment="the box's word: stored, conflict or refused"),
    Column("reason", Text, nullable=True),
    Index("outbox_due", "next_ms"),
    Index("outbox_device", "device"),
    Index("outbox_capture", "capture_id"),
)

enrolled = Table(
    "enrolled",
    metadata,
    Column("key_id", String(16), primary_key=True, comment="short name of the signing key (protocol/signing.py)"),
    Column("device", String(80), nullable=False),
    Column("public", LargeBinary, nullable=False, comment="Ed25519, 32 bytes"),
    Column("state", String(16), nullable=False, comment="active, replaced or revoked"),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=True),
    Column("reason", Text, nullable=False, default=""),
    Index("enrolled_device", "device"),
)

certificate = Table(
    "certificate",
    metadata,
    Column("serial", String(48), primary_key=True, comment="hexadecimal"),
    Column("device", String(80), nullable=False),
    Column("key_id", String(16), nullable=False, comment="the enrolment it belongs to"),
    Column("issued_ms", BigInteger, nullable=False),
    Column("ends_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger, nullable=True),
    Index("certificate_key", "key_id"),
)

enrolment_code = Table(
    "enrolment_code",
    metadata,
    Column("number", String(8), primary_key=True),
    Column("device", String(80), nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="the code's secret, sealed with the authority's key"),
    Column("created_ms", BigInteger, nullable=False),
    Column("ends_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, default=0, comment="wrong proofs"),
    Column("request", LargeBinary, nullable=True, comment="SHA-256 of the request that used it"),
    Column("answer", LargeBinary, nullable=True, comment="what that was answered"),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", String(80), nullable=False),
    Column("sequence", BigInteger, nullable=False, comment="entries of the box's audit log up to here"),
    Column("chain", String(64), nullable=False, comment="the chain's value after that entry"),
    Column("previous", BigInteger, nullable=False, comment="sequence of the checkpoint before"),
    Column("key_id", String(16), nullable=False, comment="the key that it was signed with; a new key begins anew"),
    Column("sha256", String(64), nullable=False, comment="of the payload"),
    Column("payload", LargeBinary, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Index("checkpoint_device", "device", "key_id", "sequence"),
)

audit_event = Table(
    "audit_event",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", Text, nullable=False, default=""),
    Index("audit_subject", "subject"),
)

person = Table(
    "person",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("roles", String(64), nullable=False, comment="viewer, reader, administrator; with commas"),
    Column("hash", Text, nullable=False, comment="argon2id"),
    Column(
        "line", String(64), nullable=False, comment="SHA-256 of their line of the users file; empty: not from there"
    ),
    Column("active", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
)

throttle = Table(
    "throttle",
    metadata,
    Column("subject", String(64), primary_key=True, comment="name or address, hashed"),
    Column("failures", Integer, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
)

web_session = Table(
    "web_session",
    metadata,
    Column("id", String(64), primary_key=True, comment="SHA-256 of the cookie"),
    Column("name", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False, comment="somebody did something"),
    Column("locked", Boolean, nullable=False),
)

api_token = Table(
    "api_token",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("label", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("by", String(128), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger, nullable=True),
    Column("ended_ms", BigInteger, nullable=True),
)

draft = Table(
    "draft",
    metadata,
    Column("capture_id", String(32), primary_key=True),
    Column("text", Text, nullable=False),
    Column("author", String(128), nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
)

report = Table(
    "report",
    metadata,
    Column("id", String(64), primary_key=True, comment="the review that took it to the bedside"),
    Column("capture_id", String(32), nullable=False),
    Column("number", Integer, nullable=False, comment="0 the report, 1 and on its addenda"),
    Column("result_id", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("signer", String(128), nullable=False),
    Column("signed_ms", BigInteger, nullable=False),
    Index("report_capture", "capture_id", "number", unique=True),
)
