"""Originals made ready for the link, in a process of their own and after everything else.

What this module keeps true:

1. An original leaves the box bit-exact: its encoded form is queued only after it was restored here and compared with the
   original's SHA-256; whatever can't be encoded, or not smaller, or kills the process, goes as it is.
2. An answer never waits for it: a capture is reported first, its result and preview are on their way, and encoding runs in a
   process with lower priority than reading.
3. For a hub that must not know the patient (``clean``) the process is that of ``pseudonymous``: nothing goes as it is, what
   can't be cleaned is withheld with its reason, and pictures' previews are made with the originals.
4. Which originals are due stands in the journal (``Transfers``): a restart at any instruction goes on from there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # the builtin one only from Python 3.11 on
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from appliance.inference.worker import Result
from appliance.protocol.originals import ENCODING, restored
from appliance.records import Capture
from appliance.store import audit
from appliance.store.attachments import within
from appliance.store.errors import StoreError
from appliance.store.journal import Transaction
from appliance.store.outbox import Priority
from appliance.store.store import Store
from appliance.store.transfers import Due

_log = structlog.get_logger(__name__)

SMALLEST = 32 << 10
"""Originals of fewer bytes go as they are: what encoding could save is a few seconds on the slowest link."""
LARGEST = 128 << 20
"""Originals of more bytes go as they are: encoding needs about five times their size in memory."""
MEMORY = 1 << 30
WORTH = 0.97
"""An encoded original is sent only if it is at most so large, as a share of the plain one."""
TIME_LIMIT = 90.0
_PAUSE = 1.0
_TRIES_TO_CLEAN = 2
_BEFORE = {
    Priority.CRITICAL_ORIGINAL: Priority.CRITICAL_PREVIEW,
    Priority.URGENT_ORIGINAL: Priority.URGENT_PREVIEW,
    Priority.ORIGINAL: Priority.PREVIEW,
}


def queue(
    store: Store, tx: Transaction, capture: Capture, priority: int, *, critical: bool, clean: bool = False
) -> None:
    """Queue a capture's original, in the transaction that reports it: at once, or once it is prepared if that may help.

    ``clean``: it must be prepared, whatever its size: nothing goes as it is.
    """
    if clean or SMALLEST <= capture.size <= LARGEST:
        store.transfers.put_due(tx, capture.id, priority, critical=critical)
        return
    store.transfers.put(
        tx,
        capture_id=capture.id,
        kind="original",
        priority=priority,
        sha256=capture.sha256,
        size=capture.size,
        media_type=capture.media_type,
        critical=critical,
    )


class EncodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is started with: the folders of the vault and of the box key."""

    vault: str
    key: str


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A blob to encode, and of what media type it is said to be. ``capture``: whose patient must not leave."""

    sha256: str
    media_type: str
    capture: Capture | None = None


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """The blob that the encoded original is now; ``sha256`` is empty when it is not worth it.

    ``media_type`` is given where it is another file, complete in itself, with a preview of it or none; ``withheld`` is why
    nothing may leave.
    """

    sha256: str = ""
    size: int = 0
    media_type: str = ""
    preview_sha256: str = ""
    preview_size: int = 0
    preview_media_type: str = ""
    withheld: str = ""


class Encoder(Protocol):
    """The encoding process, as far as this room needs it: see ``inference.worker.Worker``."""

    def start(self) -> None: ...  # noqa: D102
    def stop(self, grace_s: float = ...) -> None: ...  # noqa: D102
    def submit(self, request: bytes, priority: int, timeout_s: float) -> Future[Result]: ...  # noqa: D102


def serve(settings: bytes) -> Callable[[bytes], bytes]:
    """Entry point of the process: ``EncodeRequest`` to ``Encoded``, msgpack. The encoded blob is durable when it answers."""
    from appliance.store.files import RealFiles
    from appliance.store.keys import open_key
    from appliance.store.vault import Vault
    from appliance.sync.lossless import encoded

    wanted = msgspec.msgpack.decode(settings, type=EncodeSettings)
    vault = Vault(Path(wanted.vault), open_key(Path(wanted.key), RealFiles()))

    def answer(request: bytes) -> bytes:
        asked = msgspec.msgpack.decode(request, type=EncodeRequest)
        plain = vault.read(asked.sha256)
        container = encoded(plain, asked.media_type)
        if len(container) > WORTH * len(plain) or not exact(container, asked.sha256, len(plain)):
            return msgspec.msgpack.encode(Encoded())
        blob = vault.put(container)
        return msgspec.msgpack.encode(Encoded(sha256=blob.sha256, size=blob.size))

    return answer


def exact(container: bytes, sha256: str, size: int) -> bool:
    """Whether the container becomes the original of this hash and size again."""
    digest = hashlib.sha256()
    for plain in restored(container, size):
        digest.update(plain)
    return digest.hexdigest() == sha256


class Originals:
    """One thread that prepares what is due. ``queued`` is called after each original that waits for the link now."""

    def __init__(
        self, store: Store, encoder: Encoder, queued: Callable[[], None] = lambda: None, *, clean: bool = False
    ) -> None:
        self._clean = clean
        self._store = store
        self._encoder = encoder
        self._queued = queued
        self._encoding = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="originals", daemon=True)
        self._due = False
        self.counts: Counter[str] = Counter()

    @property
    def working(self) -> bool:
        """Whether something is due that should be moving."""
        return self._due

    @property
    def progress(self) -> int:
        """A number that grows with every original that is dealt with."""
        return self.counts.total()

    def start(self) -> None:
        """Start with what is due from before."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is half done is due again."""
        self._stop.set()
        self._wake.set()
        if self._encoding:
            self._encoder.stop(0.5)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def notify(self) -> None:
        """Something may be due."""
        self._wake.set()

    def step(self) -> bool:
        """Prepare the most urgent original that is due; whether there was one."""
        due = self._store.transfers.next_due()
        self._due = due is not None
        if due is None:
            return False
        store = self._store
        capture = store.captures.get(due.capture_id).capture
        if not store.vault.has(capture.sha256):
            _log.error("an original is gone from the disk and can't be sent", capture=capture.id)
            store.journal.write(lambda tx: store.transfers.give_up(tx, due))
            store.journal.write(lambda tx: store.captures.delivered_if_complete(tx, due.capture_id))
            self.counts["gone"] += 1
            return True
        made = self._encode(due, capture)
        if made is None:
            return False
        if self._clean and not made.sha256:
            self._withhold(due, made.withheld or "it could not be cleaned")
            return True
        store.journal.write(lambda tx: self._prepared(tx, due, capture, made))
        self.counts["encoded" if made.sha256 else "plain"] += 1
        self._queued()
        return True

    def _prepared(self, tx: Transaction, due: Due, capture: Capture, made: Encoded) -> None:
        sha256, size = (made.sha256, made.size) if made.sha256 else (capture.sha256, capture.size)
        encoding = ENCODING if made.sha256 and not made.media_type else ""
        media_type = made.media_type or capture.media_type
        transfers = self._store.transfers
        if made.preview_sha256:
            transfers.put(
                tx,
                capture_id=due.capture_id,
                kind="preview",
                priority=_BEFORE[Priority(due.priority)],
                sha256=made.preview_sha256,
                size=made.preview_size,
                media_type=made.preview_media_type,
                critical=due.critical,
            )
        transfers.prepared(tx, due, sha256=sha256, size=size, media_type=media_type, encoding=encoding)

    def _withhold(self, due: Due, reason: str) -> None:
        """Nothing of it may leave: said in the audit log, and the capture is done without it."""
        store = self._store
        _log.warning("an original is withheld", capture=due.capture_id, reason=reason)

        def give_up(tx: Transaction) -> None:
            store.transfers.give_up(tx, due)
            audit.append(tx, store.now(), "withheld", due.capture_id, reason[:300])
            store.captures.delivered_if_complete(tx, due.capture_id)

        store.journal.write(give_up)
        self.counts["withheld"] += 1

    def _encode(self, due: Due, capture: Capture) -> Encoded | None:
        """What the original became, or ``None`` when the box is stopping (or must wait for space to clean it)."""
        store = self._store
        short = store.free() < 4 * capture.size
        if short and self._clean:
            self._due = False  # it waits for space, which is no stall: a restart would not make any
            return None
        if short or due.attempts > (_TRIES_TO_CLEAN if self._clean else 0):
            return Encoded()
        store.journal.write(lambda tx: store.transfers.begin_preparing(tx, due.capture_id))
        if not self._encoding:
            self._encoding = True
            self._encoder.start()
        whose = self._whose(capture) if self._clean else None
        request = EncodeRequest(sha256=capture.sha256, media_type=capture.media_type, capture=whose)
        future = self._encoder.submit(msgspec.msgpack.encode(request), 0, TIME_LIMIT)
        while not self._stop.is_set():
            try:
                answer = future.result(timeout=0.5)
            except NotYet:
                continue
            if answer.status == "ok":
                return msgspec.msgpack.decode(answer.body, type=Encoded)
            if answer.status == "stopped":
                return None
            self.counts["failed"] += 1
            _log.warning("an original could not be prepared", capture=due.capture_id, reason=answer.reason)
            return None if self._clean else Encoded()  # withheld for good only after ``_TRIES_TO_CLEAN`` more
        return None

    def _whose(self, capture: Capture) -> Capture:
        """The capture with the patient whom a person confirmed: a technician may have typed that name anywhere in the file."""
        word = self._store.attachments.current(capture.id)
        visit = self._store.patients.visit(word.visit) if word is not None and word.visit else None
        return capture if visit is None else within(capture, visit, word)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                moved = self.step()
            except (StoreError, OSError) as error:
                self.counts["trouble"] += 1
                _log.error("an original could not be prepared; it is tried again", error=str(error))
                moved = False
            if not moved:
                self._wake.wait(_PAUSE)
