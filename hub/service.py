"""The wiring of the hub's programs: which parts run, in which thread, and how they end.

What this module keeps true: SIGTERM and SIGINT end everything in an orderly way, nothing that is uncommitted is
acknowledged; if a part dies the whole program ends with an error (the service's supervisor starts it again), so the hub is
never half alive.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from hub.blobs import BlobStore
from hub.config import BrokerConfig, Config, LogConfig
from hub.database import Database, DatabaseError
from hub.downlink import Downlink
from hub.ingest import Worker, shared_filters, status_filters
from hub.receive import Receiver
from hub.transfers import TransferStore

_LOG = structlog.get_logger("hub.service")


class ServiceError(Exception):
    """The program can't start or had to end; the message names the cause and the remedy."""


def set_up_log(config: LogConfig) -> None:
    """Lines on standard error, as text or JSON."""
    level = logging.getLevelName(config.level.upper())
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def open_store(config: Config) -> tuple[Database, BlobStore]:
    """The database, brought up to date, and the blob store; raises ``ServiceError``."""
    try:
        database = Database(config.database_url, busy_timeout=config.database.busy_timeout)
        database.migrate()
        blobs = BlobStore(config.blobs)
        blobs.open()
    except DatabaseError as error:
        raise ServiceError(str(error)) from error
    except OSError as error:
        raise ServiceError(
            f"{error.filename}: {error.strerror}; make the folder and give it to the hub's user"
        ) from error
    return database, blobs


def make_receiver(config: Config, database: Database, blobs: BlobStore) -> Receiver:
    """A receiver as the configuration says."""
    return Receiver(
        database,
        blobs,
        sender=config.hub.name,
        uncertainty_s=config.hub.clock_uncertainty,
        refuse_below=config.storage.refuse_below * 1_000_000,
    )


class Parts:
    """Threads that live and die together."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, name: str, target: Callable[[], None]) -> None:
        """Run ``target`` in a thread; when it ends or raises, ``ended`` is set."""

        def guarded() -> None:
            try:
                target()
            except Exception as error:  # noqa: BLE001 - the edge of the part: it is told, and everything ends
                self.failure = error
                _LOG.exception("part failed", part=name)
            finally:
                self.ended.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def join(self, seconds: float = 15.0) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join(seconds)


def run_worker(config: Config, name: str) -> None:
    """``bedside-hub worker``: one ingest worker until a signal; raises ``ServiceError``."""
    set_up_log(config.log)
    database, blobs = open_store(config)
    client_id = f"{config.hub.name}-{name or f'{socket.gethostname()[:20]}-{secrets.token_hex(4)}'}"
    broker = config.broker
    if not name:  # a session nobody comes back for must not keep messages from the others
        broker = _with_expiry(config, 0)
    worker = Worker(
        broker,
        config.ingest,
        make_receiver(config, database, blobs),
        client_id=client_id,
        filters=shared_filters(config.ingest.share),
    )
    _until_signal([worker], {"ingest": worker.run})
    database.close()


def run_hub(config: Config) -> None:
    """``bedside-hub run``: everything in one process until a signal; raises ``ServiceError``."""
    set_up_log(config.log)
    database, blobs = open_store(config)
    receiver = make_receiver(config, database, blobs)
    repaired = TransferStore(database, blobs, refuse_below=0).repair(receiver.now_ms())
    _LOG.info("started", **repaired)
    ingest = Worker(
        config.broker,
        config.ingest,
        receiver,
        client_id=f"{config.hub.name}-ingest",
        filters=shared_filters(config.ingest.share),
    )
    downlink = Downlink(database, config.outbox, config.escalation)
    down = Worker(
        config.broker,
        config.ingest,
        make_receiver(config, database, blobs),
        client_id=f"{config.hub.name}-down",
        filters=status_filters(),
        tick=downlink.tick,
        tick_every=config.outbox.poll,
    )
    parts: dict[str, Callable[[], None]] = {"ingest": ingest.run, "down": down.run}
    _until_signal([ingest, down], parts)
    database.close()


def _with_expiry(config: Config, seconds: int) -> BrokerConfig:
    return msgspec.structs.replace(config.broker, session_expiry=seconds)


def _until_signal(workers: list[Worker], targets: dict[str, Callable[[], None]]) -> None:
    parts = Parts()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: parts.ended.set())
    for name, target in targets.items():
        parts.start(name, target)
    while not parts.ended.wait(0.5):
        pass
    for worker in workers:
        worker.stop()
    parts.join()
    if parts.failure is not None:
        raise ServiceError(f"a part of the hub failed: {parts.failure}; the log above says where") from parts.failure
