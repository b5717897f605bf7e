"""A capture's walk through its states, with a reading process that answers, dies or is stopped as the test says."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.config import LinkConfig
from appliance.inference.worker import Result
from appliance.pipeline import Pipeline
from appliance.protocol import messages
from appliance.reading.preview import Preview
from appliance.reading.requests import ReadRequest
from appliance.records import CaptureState, Modality, Triage
from appliance.store import audit
from appliance.store.errors import IllegalTransition
from appliance.store.store import Store
from tests.boxes import DEVICE, keep, open_store, reading


class SimulatedReaders:
    """Answers as ``script`` says, one entry a request, ``ok`` when it has ended; remembers what was asked."""

    def __init__(self, *script: str, triage: Triage = Triage.ROUTINE, sound: bytes = b"") -> None:
        self.script = list(script)
        self.sound = sound
        self.triage = triage
        self.asked: list[ReadRequest] = []

    def submit(self, request: bytes, priority: int, timeout_s: float) -> Future[Result]:
        asked = msgspec.msgpack.decode(request, type=ReadRequest)
        self.asked.append(asked)
        future: Future[Result] = Future()
        status = "ok" if asked.preview or not self.script else self.script.pop(0)
        body: Any = (
            Preview(media_type="image/jpeg", data=b"jpeg " + asked.sha256.encode(), sound=self.sound)
            if asked.preview
            else reading(asked.known.capture_id, self.triage)
        )
        future.set_result(
            Result(status=status, body=msgspec.msgpack.encode(body) if status == "ok" else b"", reason=status)  # type: ignore[arg-type]
        )
        return future

    @property
    def readings(self) -> int:
        return sum(not one.preview for one in self.asked)


def pipeline(store: Store, readers: SimulatedReaders, **config: Any) -> Pipeline:
    return Pipeline(store, readers, DEVICE, LinkConfig(**config), 5.0)


def test_a_capture_goes_from_kept_to_reported_with_result_preview_and_original(tmp_path: Path) -> None:
    store, readers = open_store(tmp_path), SimulatedReaders(triage=Triage.URGENT)
    capture_id = keep(store, b"film").capture_id
    pipeline(store, readers).step()
    assert store.captures.get(capture_id).state is CaptureState.REPORTED
    (item,) = store.outbox.waiting()
    result = messages.decode(store.outbox.payload(item.id), messages.Result)
    assert (result.capture.id, result.triage, result.findings[0].probability) == (capture_id, Triage.URGENT, 0.9)
    assert {one.kind for one, _ in store.transfers.of_capture(capture_id)} == {"preview", "original"}
    assert audit.verify(store.journal) is None
    store.close()


def test_a_result_costs_at_most_one_and_a_half_kilobytes_on_the_wire(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, b"film")
    pipeline(store, SimulatedReaders()).step()
    assert store.outbox.totals()[1] <= 1400
    store.close()


def test_a_capture_that_kills_the_reader_three_times_is_set_aside_and_still_reported(tmp_path: Path) -> None:
    store, readers = open_store(tmp_path), SimulatedReaders("died", "timed-out", "died")
    bad = keep(store, b"killer").capture_id
    pipeline(store, readers).step()
    entry = store.captures.get(bad)
    assert entry.state is CaptureState.REPORTED
    assert "3 times" in entry.set_aside
    assert readers.readings == 3
    (item,) = store.outbox.waiting()
    result = messages.decode(store.outbox.payload(item.id), messages.Result)
    assert (result.status, result.refusal_code) == ("not_read", "set-aside")
    store.close()


def test_strikes_are_counted_across_restarts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    bad = keep(store, b"killer").capture_id
    for _ in range(3):
        captures = store.captures
        store.journal.write(lambda tx, captures=captures: captures.begin_attempt(tx, bad))  # then the power goes
        store.close()
        store = open_store(tmp_path)
    store.close()
    store, readers = open_store(tmp_path), SimulatedReaders()
    pipeline(store, readers).step()
    assert readers.readings == 0, "it was not tried a fourth time"
    assert store.captures.get(bad).state is CaptureState.REPORTED
    store.close()


def test_a_killer_lets_others_go_first(tmp_path: Path) -> None:
    store, readers = open_store(tmp_path), SimulatedReaders("died")
    bad, good = keep(store, b"killer").capture_id, keep(store, b"good").capture_id
    pipeline(store, readers).step()
    order = [one.known.capture_id for one in readers.asked if not one.preview]
    assert order == [bad, good, bad]
    store.close()


def test_a_reading_cut_off_by_the_box_stopping_is_no_strike(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    capture_id = keep(store, b"film").capture_id
    one = pipeline(store, SimulatedReaders("stopped"))
    one.step()
    entry = store.captures.get(capture_id)
    assert entry.state is CaptureState.REPORTED
    assert entry.attempts == 1, "the attempt that was stopped was taken back, the one after it counts"
    store.close()


@pytest.mark.parametrize("stop_after", ["kept", "checked", "read", "reported"])
def test_a_restart_goes_on_from_each_state_and_reports_once(tmp_path: Path, stop_after: str) -> None:
    store = open_store(tmp_path)
    capture_id = keep(store, b"film").capture_id
    if stop_after != "kept":
        store.journal.write(lambda tx: store.captures.checked(tx, capture_id))
    if stop_after in ("read", "reported"):
        store.journal.write(lambda tx: store.captures.read(tx, reading(capture_id), "now"))
    if stop_after == "reported":
        pipeline(store, SimulatedReaders()).step()
    store.close()
    store, readers = open_store(tmp_path), SimulatedReaders()
    pipeline(store, readers).step()
    assert store.captures.get(capture_id).state is CaptureState.REPORTED
    assert len(store.outbox.waiting()) == 1
    assert readers.readings == (1 if stop_after in ("kept", "checked") else 0)
    store.close()


def test_a_capture_whose_file_is_gone_is_reported_as_not_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    capture_id = keep(store, b"film").capture_id
    store.vault.remove(store.captures.get(capture_id).capture.sha256)
    store.close()
    store = open_store(tmp_path)
    assert store.repair.missing == (capture_id,)
    pipeline(store, SimulatedReaders()).step()
    (item,) = store.outbox.waiting()
    result = messages.decode(store.outbox.payload(item.id), messages.Result)
    assert (result.status, result.refusal_code) == ("not_read", "set-aside")
    assert not store.transfers.of_capture(capture_id)
    store.close()


def test_originals_are_sent_only_as_configured(tmp_path: Path) -> None:
    for number, (wanted, triage, kinds) in enumerate(
        [
            ("never", Triage.CRITICAL, {"preview"}),
            ("urgent", Triage.ROUTINE, {"preview"}),
            ("urgent", Triage.URGENT, {"preview", "original"}),
        ]
    ):
        store = open_store(tmp_path / str(number))
        capture_id = keep(store, b"film").capture_id
        pipeline(store, SimulatedReaders(triage=triage), send_originals=wanted).step()
        assert {one.kind for one, _ in store.transfers.of_capture(capture_id)} == kinds
        store.close()


def test_no_state_can_be_skipped_or_gone_back_to(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    capture_id = keep(store, b"film").capture_id
    captures = store.captures
    with pytest.raises(IllegalTransition):
        store.journal.write(lambda tx: captures.read(tx, reading(capture_id), "now"))
    with pytest.raises(IllegalTransition):
        store.journal.write(lambda tx: captures.reported(tx, capture_id))
    store.journal.write(lambda tx: captures.checked(tx, capture_id))
    with pytest.raises(IllegalTransition):
        store.journal.write(lambda tx: captures.checked(tx, capture_id))
    assert captures.get(capture_id).state is CaptureState.CHECKED
    store.close()


def test_an_odd_header_does_not_keep_a_result_from_being_a_message(tmp_path: Path) -> None:
    from appliance.records import Capture, Moment, Patient
    from appliance.sync.report import result_of

    capture = Capture(
        id="0" * 32,
        sha256="0" * 64,
        size=1,
        modality=Modality.OTHER,
        media_type="application/dicom",
        source="test",
        received=Moment(boot_id="b", monotonic_ns=1, wall="w"),
        patient=Patient(name="N" * 5000),
        description="D" * 5000,
        study_uid="1." * 500,
    )
    payload = messages.encode(result_of(capture, reading("0" * 32), DEVICE, 1))
    assert messages.decode(payload, messages.Result).capture.description == "D" * 128
