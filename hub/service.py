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
from pathlib import Path
from typing import Any

import msgspec
import structlog
from starlette.routing import Route

from hub.authority import AuthorityError
from hub.blobs import BlobStore
from hub.config import Config, LogConfig, is_loopback
from hub.database import Database, DatabaseError
from hub.downlink import Downlink
from hub.enrolment import Enrolments
from hub.identity import make_enrolments, make_voice
from hub.ingest import Worker, shared_filters, status_filters
from hub.people import People
from hub.receive import Receiver
from hub.sessions import Sessions
from hub.transfers import TransferStore
from hub.trust import Trust, Voice
from hub.users import Users, UsersError
from hub.web.app import host_names, make_app
from hub.web.site import Site

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
        trust=Trust(database) if config.authority.folder else None,
        enrolments=_enrolments(config, database),
    )


def _enrolments(config: Config, database: Database) -> Enrolments | None:
    try:
        return make_enrolments(config, database) if config.authority.folder else None
    except AuthorityError as error:
        raise ServiceError(f"authority.folder: {error}") from error


def _voice(config: Config) -> Voice | None:
    try:
        return make_voice(config)
    except AuthorityError as error:
        raise ServiceError(f"authority.folder: {error}") from error


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
    broker = config.reached_broker
    if not name:  # a session nobody comes back for must not keep messages from the others
        broker = msgspec.structs.replace(broker, session_expiry=0)
    worker = Worker(
        broker,
        config.ingest,
        make_receiver(config, database, blobs),
        client_id=client_id,
        filters=shared_filters(config.ingest.share),
        voice=_voice(config),
    )
    _until_signal({"ingest": (worker.run, worker.stop)})
    database.close()


def run_hub(config: Config) -> None:
    """``bedside-hub run``: everything in one process until a signal; raises ``ServiceError``."""
    set_up_log(config.log)
    database, blobs = open_store(config)
    receiver = make_receiver(config, database, blobs)
    repaired = TransferStore(database, blobs, refuse_below=0).repair(receiver.now_ms())
    _LOG.info("started", database=database.url.get_backend_name(), **repaired)
    voice = _voice(config)
    ingest = Worker(
        config.reached_broker,
        config.ingest,
        receiver,
        client_id=f"{config.hub.name}-ingest",
        filters=shared_filters(config.ingest.share),
        voice=voice,
    )
    downlink = Downlink(database, config.outbox, config.escalation)
    down = Worker(
        config.reached_broker,
        config.ingest,
        make_receiver(config, database, blobs),
        client_id=f"{config.hub.name}-down",
        filters=status_filters(),
        tick=downlink.tick,
        tick_every=config.outbox.poll,
        voice=voice,
    )
    parts = {"ingest": (ingest.run, ingest.stop), "down": (down.run, down.stop)}
    if config.web.enabled:
        parts["web"] = _web(config, database, blobs, down.nudge)
    _until_signal(parts)
    database.close()


def make_site(config: Config, database: Database, blobs: BlobStore, nudge: Callable[[], None]) -> Site:
    """What the pages lean on; raises ``ServiceError`` where others could come in and nobody may sign in yet."""
    web = config.web
    try:
        people = People(database, Users(Path(web.users_file)) if web.users_file else None)
    except UsersError as error:
        raise ServiceError(f"web.users_file: {error}") from error
    if not is_loopback(web.address) and not people.needed():
        raise ServiceError(
            f"web.address ({web.address}) is not loopback and nobody may sign in yet, so anybody could read and review cases; "
            "add the first person with: bedside-hub user add NAME --role administrator"
        )
    return Site(
        database,
        blobs,
        people,
        nudge,
        sessions=Sessions(database, people, idle_ms=int(web.idle * 60_000)),
        secure=bool(web.certificate_file) or web.proxy,
        models=Path(web.models) if web.models else None,
    )


Part = tuple[Callable[[], None], Callable[[], None]]
"""How a part is run (it blocks) and how it is told to end."""


def _web(config: Config, database: Database, blobs: BlobStore, nudge: Callable[[], None]) -> Part:
    import uvicorn

    web = config.web
    site = make_site(config, database, blobs, nudge)
    app = make_app(site, host_names(config), _doors(config, database))
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ssl_certfile=web.certificate_file or None,
        ssl_keyfile=web.key_file or None,
        timeout_graceful_shutdown=2,
    )
    listener = _listen(web.address, web.port)
    server = uvicorn.Server(settings)

    def stop() -> None:
        site.closing.set()
        server.should_exit = True

    scheme = "https" if web.certificate_file else "http"
    _LOG.info("pages", address=f"{scheme}://{web.address}:{web.port}/")
    return lambda: server.run(sockets=[listener]), stop


def _doors(config: Config, database: Database) -> list[Route]:
    from hub.web.enrol import Door

    enrolments = _enrolments(config, database)
    return Door(enrolments, enrolments.authority_pem).routes() if enrolments is not None else []


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ServiceError(f"web.address {address}, port {port}: {error.strerror}; choose another web.port") from error
    listener.listen(128)
    return listener


def _until_signal(parts: dict[str, Part]) -> None:
    running = Parts()
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    for name, (run, _) in parts.items():
        running.start(name, run)
    while not asked.wait(0.2) and not running.ended.is_set():
        pass
    for _, stop in parts.values():
        stop()
    running.join()
    if not asked.is_set():
        raise ServiceError(f"a part of the hub ended by itself ({running.failure}); the log above says where")
