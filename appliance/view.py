"""What the console is shown of the daemon: the parts it may see, as the records that it knows.

Wiring, like ``daemon``: a module of its own so that each stays short.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet  # the builtin one only from Python 3.11 on
from typing import TYPE_CHECKING, Any

import msgspec

from appliance import __version__
from appliance.capture.add import SOURCE
from appliance.capture.facts import FileReader
from appliance.capture.header import NotDicom
from appliance.capture.intake import Facts, IntakeError
from appliance.capture.video_messages import Picture
from appliance.capture.video_takes import Also, Attach, Whose
from appliance.console.binding import Held, Who, compare, held
from appliance.console.context import Context, Door, Serving, StatusView, Upload
from appliance.health.power import power
from appliance.reading.requests import Raw, ReadRequest, known_of
from appliance.reading.stream import Frame, Live, PreviewReader
from appliance.records import Modality, Moment, Patient, Reading
from appliance.store import audit, usage
from appliance.store.captures import Kept
from appliance.store.store import Store
from appliance.sync.report import report_again

if TYPE_CHECKING:
    from appliance.daemon import Daemon

_LIVE_FOR_S = 4.0
_AGREED = "agreement"
_PIXELS = 3  # after every capture that waits to be read


def bedside_view(daemon: Daemon) -> Context:
    """The console's context over a daemon's parts."""
    return Context(
        store=daemon.store,
        status=lambda: _status(daemon),
        preview=lambda capture_id: _preview(daemon, capture_id),
        add=lambda upload: _add(daemon, upload),
        note_agreement=lambda capture_id, agree, by: _note(daemon, capture_id, by, agree=agree),
        agreement=lambda capture_id: _agreement(daemon, capture_id),
        pixels=lambda capture_id: _pixels(daemon, capture_id),
        ultrasound=daemon.ultrasound,
        live_reading=_live_reading(daemon),
        stethoscope=daemon.stethoscope,
        report_again=lambda tx, one: report_again(daemon.store, tx, daemon.address.key, one, daemon.hide),
        wake=daemon.wake_link,
        device=daemon.address.key,
    )


def _live_reading(daemon: Daemon) -> Callable[[], Reading | None]:
    """Has the live ultrasound read while somebody looks; gives the newest reading, unless it has grown old."""
    if daemon.ultrasound is None:
        return lambda: None
    heard: list[tuple[float, Reading]] = []

    def hear(live: Live) -> None:
        heard[:] = [(time.monotonic(), live.reading)]

    reader = PreviewReader(daemon.worker, Modality.LUNG_ULTRASOUND, at_most_hz=2.0, heard=hear)

    def offer(picture: Picture) -> None:
        reader.offer(
            Frame(
                number=picture.number,
                rows=picture.rows,
                columns=picture.columns,
                channels=1,
                pixels=picture.pixels,
            )
        )

    def newest() -> Reading | None:
        found = heard[:1]
        return found[0][1] if found and time.monotonic() - found[0][0] < _LIVE_FOR_S else None

    daemon.ultrasound.on_picture = offer
    return newest


def attaching(store: Store, now: Callable[[], Moment]) -> Attach:
    """How a freeze or clip becomes attached when it is kept: by the word with which it began, if that still holds."""

    def attach(whose: Whose) -> Also | None:
        found = held(store, Who(id=whose.by, session=whose.session), whose.ticket, now)
        return None if found is None else found.attach

    return attach


def _status(daemon: Daemon) -> StatusView:
    store, link = daemon.store, daemon.link
    messages, message_bytes = store.outbox.totals()
    transfers, transfer_bytes = store.transfers.totals()
    now = daemon.clock.now()
    supply = power()
    return StatusView(
        version=__version__,
        link_configured=link is not None,
        link_online=link is not None and link.online,
        link_since_s=time.monotonic() - link.since if link is not None else None,
        link_problem=link.problem if link is not None else "",
        waiting_messages=messages + transfers,
        waiting_bytes=message_bytes + transfer_bytes,
        sent_bytes=max(usage.total(store.journal), daemon.uplink.sent_bytes),
        captures=store.captures.counts(),
        free_bytes=store.free(),
        clock_uncertainty_s=now.uncertainty_s,
        wall=now.wall,
        models=tuple(
            Serving(
                bundle=one.bundle,
                version=one.version,
                modality=one.modality,
                engine=one.engine.engine,
                provider=one.engine.provider,
                golden=one.engine.golden,
                state=one.state,
            )
            for one in daemon.described.serving
        ),
        model_problems=daemon.described.problems,
        building=daemon.described.building,
        on_mains=supply.on_mains,
        battery=supply.battery,
        doors=tuple(_door(daemon, name) for name in daemon.doors),
        problems=tuple(daemon.problems()),
    )


def _door(daemon: Daemon, name: str) -> Door:
    closed = daemon.closed_doors.get(name)
    config = daemon.config
    words = {
        "dicom": f"listening on {config.dicom.address}:{config.dicom.port} as {config.dicom.ae_title}",
        "worklist": f"asking {config.worklist.host}:{config.worklist.port} every {config.worklist.refresh:g} s",
        "folder": "watching its folder",
        "stethoscope": "recorded from the console",
        "ultrasound": "live, while somebody looks",
        "console": f"this page, on port {config.console.port}",
    }
    return Door(name=name, state=closed or words[name], open=closed is None)


def _preview(daemon: Daemon, capture_id: str) -> tuple[str, bytes] | None:
    for transfer, _ in daemon.store.transfers.of_capture(capture_id):
        if transfer.kind == "preview" and daemon.store.vault.has(transfer.sha256):
            return transfer.media_type, daemon.store.vault.read(transfer.sha256)
    return None


def _pixels(daemon: Daemon, capture_id: str) -> Raw | None:
    """The stored values of a picture, from the reading process; a nurse waits, and captures go before her all the same."""
    entry = daemon.store.captures.get(capture_id)
    reading = daemon.store.captures.reading(capture_id)
    if entry.removed or not daemon.store.vault.has(entry.capture.sha256):
        return None
    frame = reading.overlay_frame if reading is not None and reading.overlay else None
    request = ReadRequest(known=known_of(entry.capture), sha256=entry.capture.sha256, pixels=True, frame=frame)
    limit = daemon.config.models.time_limit
    future = daemon.worker.submit(msgspec.msgpack.encode(request), _PIXELS, limit, preview="pixels")
    try:
        result = future.result(timeout=limit)
    except NotYet:
        future.cancel()
        return None
    return msgspec.msgpack.decode(result.body, type=Raw) if result.status == "ok" else None


def _add(daemon: Daemon, upload: Upload) -> Kept:
    reader = FileReader(SOURCE, upload.modality or Modality.OTHER)
    try:
        reader.feed(upload.data)
        facts = reader.finish()
    except NotDicom as error:
        raise IntakeError(str(error)) from error
    sure = upload.held
    if sure is not None and any(one.agrees is False for one in compare(sure.visit.known, facts.patient)):
        sure = None  # the file names somebody else: a person has to look at both
    with daemon.intake.open() as incoming:
        incoming.write(upload.data)
        if sure is None:
            return incoming.keep(_completed(facts, upload))
        return incoming.keep(_of_visit(facts, upload, sure), sure.attach)


def _of_visit(facts: Facts, upload: Upload, sure: Held) -> Facts:
    """What was taken within a visit is of its patient; a DICOM file keeps what it says, beside that."""
    given = _completed(facts, upload)
    fields = {name: getattr(given, name) for name in given.__struct_fields__}
    patient = facts.patient if facts.patient != Patient() else sure.patient
    return Facts(**{**fields, "patient": patient, "encounter_id": sure.visit.id})


def _completed(facts: Facts, upload: Upload) -> Facts:
    """What a person says beside the file goes before what the file says."""
    said = facts.patient
    patient = Patient(
        id=upload.patient_id or said.id,
        issuer=said.issuer if not upload.patient_id else "",
        name=upload.patient_name or said.name,
        birth_date=said.birth_date,
        sex=upload.sex if upload.sex in ("M", "F", "O") else said.sex,  # type: ignore[arg-type]
        age_years=said.age_years if upload.age_years is None else upload.age_years,
    )
    fields = {name: getattr(facts, name) for name in facts.__struct_fields__}
    changes: dict[str, Any] = {"patient": patient, "position": upload.position or facts.position}
    if upload.modality is not None:
        changes["modality"] = upload.modality
    return Facts(**{**fields, **changes})


def _note(daemon: Daemon, capture_id: str, by: str, *, agree: bool) -> None:
    moment = daemon.clock.now()
    detail = f"{'agree' if agree else 'disagree'} by={by}"
    daemon.store.journal.write(lambda tx: audit.append(tx, moment, _AGREED, capture_id, detail))


def _agreement(daemon: Daemon, capture_id: str) -> bool | None:
    row = daemon.store.journal.one(
        "SELECT detail FROM audit WHERE event = ? AND subject = ? ORDER BY sequence DESC LIMIT 1", _AGREED, capture_id
    )
    return None if row is None else row["detail"].split()[0] == "agree"
