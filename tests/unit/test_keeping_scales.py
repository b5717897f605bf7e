"""Keeping the next capture costs the same however many are kept already."""

from __future__ import annotations

import time

from appliance.capture.intake import Facts, Intake
from appliance.config import StorageConfig
from appliance.records import Modality, Moment, Patient
from appliance.store.store import Store


def now() -> Moment:
    return Moment(boot_id="test", monotonic_ns=time.monotonic_ns(), wall="2026-01-01T00:00:00Z")


def keep(intake: Intake, number: int) -> None:
    facts = Facts(
        modality=Modality.CHEST_XRAY,
        media_type="application/dicom",
        source="test",
        patient=Patient(id=f"P{number}"),
        instance_uid=f"1.2.{number}",
    )
    with intake.open() as incoming:
        incoming.write(b"%d" % number)
        incoming.keep(facts)


def test_the_work_of_the_journal_does_not_grow_with_the_captures_kept(tmp_path):
    store = Store(StorageConfig(state=str(tmp_path), refuse_below=16, reserve=4), now)
    intake = Intake(store, "site/box")
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    try:
        keep(intake, 0)
        store.journal._connection.set_progress_handler(count, 10)
        work = []
        for round_ in (1, 2):
            steps = 0
            for number in range(20):
                keep(intake, 1000 * round_ + number)
            work.append(steps)
            store.journal._connection.set_progress_handler(None, 0)
            for number in range(120):
                keep(intake, 10_000 * round_ + number)
            store.journal._connection.set_progress_handler(count, 10)
        assert work[1] < work[0] * 1.5
    finally:
        store.journal._connection.set_progress_handler(None, 0)
        store.close()
