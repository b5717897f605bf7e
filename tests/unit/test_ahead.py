"""Claims about looking ahead: only while nothing else is to be done, and without blame."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from appliance.capture.intake import Facts, Intake
from appliance.inference.worker import Result
from appliance.reading.ahead import LookAhead
from appliance.reading.requests import ReadRequest
from appliance.records import Modality
from tests.boxes import DEVICE, open_store


class Process:
    """Takes requests; idle as told."""

    def __init__(self) -> None:
        self.idle = True
        self.asked: list[ReadRequest] = []

    def submit(self, request: bytes, priority: int, timeout_s: float, *, preview: str = "") -> Future[Result]:
        assert (preview, priority > 2, timeout_s) == ("ahead", True, 60.0)
        self.asked.append(msgspec.msgpack.decode(request, type=ReadRequest))
        future: Future[Result] = Future()
        future.set_result(Result("died", reason="killed"))
        return future


@pytest.mark.parametrize(("idle", "behind", "looks"), [(True, False, 1), (False, False, 0), (True, True, 0)])
def test_a_capture_is_looked_at_before_its_row_is_written_if_nothing_else_is_to_be_done(
    tmp_path: Path, idle: bool, behind: bool, looks: int
) -> None:
    process = Process()
    process.idle = idle
    store = open_store(tmp_path)
    intake = Intake(store, DEVICE, ahead=LookAhead(process, 60.0, lambda: behind))
    with intake.open() as incoming:
        incoming.write(b"film")
        kept = incoming.keep(Facts(modality=Modality.CHEST_XRAY, media_type="image/png", source="test"))
    assert len(process.asked) == looks
    for asked in process.asked:
        assert (asked.ahead, asked.known.capture_id) == (True, kept.capture_id)
        assert store.vault.has(asked.sha256)
    assert store.captures.get(kept.capture_id).attempts == 0
    store.close()
