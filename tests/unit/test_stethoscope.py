"""The stethoscope: on the disk while it goes on, through the door once, and with the right patient or none."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from appliance import config
from appliance.capture.intake import Intake
from appliance.capture.stethoscope import UNDECIDED_S, Busy, Live, Stethoscope
from appliance.capture.stethoscope_device import choose, inputs, stable_name
from appliance.capture.stethoscope_judge import Heard, Judge
from appliance.capture.stethoscope_messages import Failure, Input
from appliance.capture.stethoscope_positions import HEART, LUNG, PLACES, following
from appliance.capture.stethoscope_source import Source
from appliance.capture.video_takes import Also, Whose
from appliance.config import StethoscopeConfig, StorageConfig
from appliance.health.clock import Clock
from appliance.reading.listening import listener
from appliance.records import Capture, Modality, Patient
from appliance.store.spool import SpoolWriter
from appliance.store.store import Store
from tests.simulated_stethoscope import PlayedSource, int32
from tools.simulate import sounds

HEART_SOUND = int32(sounds.heart(20.0, 4000)[0])
UNPLUGGED = Failure(
    code="gone", what="Simulated stethoscope stopped giving sound", remedy="check its plug and its battery"
)


class _Deaf:
    def feed(self, _samples: npt.NDArray[np.float32]) -> Heard:
        return Heard()


def deaf(_modality: Modality, _rate: int) -> Judge:
    return _Deaf()


class Bench:
    """A store, an intake and a stethoscope that plays what it is given."""

    def __init__(self, folder: Path, source: Source, judge: Callable[[Modality, int], Judge] = deaf) -> None:
        config = StorageConfig(state=str(folder), refuse_below=16, reserve=4)
        self.store = Store(config, Clock().now)
        self.intake = Intake(self.store, "site/box")
        self.time = 0.0
        self.stethoscope = Stethoscope(
            StethoscopeConfig(longest=30),
            self.intake,
            judge,
            open_source=lambda _wanted: source,
            clock=lambda: self.time,
        )
        self.folder = folder
        self.closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.stethoscope.stop()
            self.store.close()

    def until(self, *phases: str) -> Live:
        deadline = time.monotonic() + 10
        while (live := self.stethoscope.live()).phase not in phases:
            assert time.monotonic() < deadline, live
            time.sleep(0.005)
        return live

    def captures(self) -> list[Capture]:
        return [entry.capture for entry in self.store.captures.latest()]

    def samples(self, capture: Capture) -> npt.NDArray[np.int32]:
        return soundfile.read(io.BytesIO(self.store.vault.read(capture.sha256)), dtype="int32")[0]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(source: Source, judge: Callable[[Modality, int], Judge] = deaf) -> Bench:
        made.append(Bench(tmp_path / "state", source, judge))
        return made[-1]

    yield bench
    for one in made:
        one.close()


def test_what_is_kept_is_what_the_card_gave_bit_for_bit(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND)
    bench = make(source)
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    live = bench.until("stopped")
    kept = bench.stethoscope.keep(live.recording)
    capture = bench.captures()[0]
    assert capture.id == kept.capture_id == bench.stethoscope.live().kept
    assert np.array_equal(bench.samples(capture), HEART_SOUND)
    assert (capture.modality, capture.position, capture.media_type) == (Modality.HEART_SOUND, "mitral", "audio/flac")
    assert "20.0 s at 4000 Hz from Simulated stethoscope; stopped by hand" in capture.description
    assert bench.stethoscope.spool.names() == []


def test_two_recordings_of_silence_are_two_captures_of_two_patients(make: Callable[..., Bench]) -> None:
    source = PlayedSource(np.zeros(8000, np.int32))
    bench = make(source)
    for patient in ("P1", "P2"):
        source.reached.clear()
        source.stopped.clear()
        bench.stethoscope.begin("mitral", Whose(patient=Patient(id=patient)))
        assert source.reached.wait(10)
        bench.stethoscope.end()
        kept = bench.stethoscope.keep(bench.until("stopped").recording)
        assert not kept.duplicate
    assert [capture.patient.id for capture in bench.captures()] == ["P2", "P1"]


def test_a_power_cut_while_recording_keeps_what_was_on_the_disk(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND, waits=90)
    bench = make(source)
    bench.stethoscope.begin("aortic", Whose(patient=Patient(id="P1"), encounter_id="E1"))
    assert source.reached.wait(10)
    cut = bench.stethoscope.spool.names()[0]
    left = (bench.folder / "spool" / f"{cut}.spool").read_bytes()
    bench.close()
    (bench.folder / "spool" / f"{cut}.spool").write_bytes(left)  # what the disk held at second 9
    again = make(PlayedSource(HEART_SOUND))
    assert len(again.stethoscope.recover()) == 1
    capture = again.captures()[0]
    samples = again.samples(capture)
    assert 8.0 <= samples.size / 4000 <= 9.0
    assert np.array_equal(samples, HEART_SOUND[: samples.size])
    assert "interrupted" in capture.description
    assert (capture.patient.id, capture.encounter_id) == ("P1", "E1")
    assert again.stethoscope.spool.names() == []


@pytest.mark.parametrize("holds", [True, False])
def test_a_recording_goes_to_whom_it_was_confirmed_for_or_to_nobody(make: Callable[..., Bench], *, holds: bool) -> None:
    source, judged, written = PlayedSource(HEART_SOUND[:8000]), [], []
    bench = make(source)

    def attach(whose: Whose) -> Also | None:
        judged.append(whose)
        return (lambda _tx, kept: written.append(kept.capture_id)) if holds else None

    bench.stethoscope._attach = attach
    whose = Whose(patient=Patient(id="P1"), encounter_id="E1", ticket="T", by="nurse", session="S")
    bench.stethoscope.begin("mitral", whose)
    assert source.reached.wait(10)
    bench.stethoscope.end()
    kept = bench.stethoscope.keep(bench.until("stopped").recording)
    capture = bench.captures()[0]
    assert judged == [whose]
    assert written == ([kept.capture_id] if holds else [])
    assert (capture.patient.id, capture.encounter_id) == (("P1", "E1") if holds else ("", ""))


def test_a_cut_between_the_vault_and_the_end_of_the_spool_makes_one_capture(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:40000])
    bench = make(source)
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    live = bench.until("stopped")
    path = bench.folder / "spool" / f"{live.recording}.spool"
    left = path.read_bytes()
    bench.stethoscope.keep(live.recording)
    path.write_bytes(left)
    bench.stethoscope.recover()
    assert len(bench.captures()) == 1
    assert not path.exists()


def test_a_stethoscope_pulled_out_leaves_what_was_recorded_and_says_why(make: Callable[..., Bench]) -> None:
    bench = make(PlayedSource(HEART_SOUND[:20000], failure=UNPLUGGED))
    bench.stethoscope.begin("tricuspid")
    live = bench.until("stopped")
    assert (live.why, live.trouble, live.remedy) == ("device", "gone", UNPLUGGED.remedy)
    bench.stethoscope.keep(live.recording)
    assert bench.samples(bench.captures()[0]).size == 20000
    assert "ended because the stethoscope was lost" in bench.captures()[0].description


def test_no_stethoscope_at_all_is_said_with_what_to_do(make: Callable[..., Bench]) -> None:
    bench = make(PlayedSource(np.zeros(0, np.int32), failure=UNPLUGGED))
    bench.stethoscope.begin("mitral")
    live = bench.until("idle")
    assert live.problem == UNPLUGGED.what
    assert bench.stethoscope.spool.names() == []


def test_lost_samples_are_counted_in_the_record_and_filled_with_silence(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:20000], gaps={10: 600}, overflows=3)
    bench = make(source)
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    live = bench.until("stopped")
    assert (live.overflows, live.lost_s) == (3, 0.15)
    bench.stethoscope.keep(live.recording)
    capture = bench.captures()[0]
    samples = bench.samples(capture)
    assert np.array_equal(samples[:4000], HEART_SOUND[:4000])
    assert not samples[4000:4600].any()
    assert np.array_equal(samples[4600:], HEART_SOUND[4000:20000])
    assert "3 overflows of the sound card; 0.15 s lost on the way" in capture.description
    comment = soundfile.SoundFile(io.BytesIO(bench.store.vault.read(capture.sha256))).comment
    assert comment.startswith(f"{capture.description}; begun ")


def test_it_stops_by_itself_when_enough_clean_beats_are_in(make: Callable[..., Bench]) -> None:
    bench = make(PlayedSource(int32(sounds.heart(30.0, 4000)[0])), listener)
    bench.stethoscope.begin("mitral")
    live = bench.until("stopped")
    assert live.why == "enough"
    assert live.heard.clean >= 12
    assert 8.0 <= live.seconds <= 16.0


class _Broken:
    def feed(self, _samples: npt.NDArray[np.float32]) -> Heard:
        raise IndexError("a fault in the judgement")


def test_a_fault_in_judging_costs_the_judgement_and_not_the_recording(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:20000])
    bench = make(source, lambda _modality, _rate: _Broken())
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    bench.stethoscope.keep(bench.until("stopped").recording)
    assert np.array_equal(bench.samples(bench.captures()[0]), HEART_SOUND[:20000])


def test_a_discarded_recording_is_gone_and_stands_in_the_audit_log(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:8000])
    bench = make(source)
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    live = bench.until("stopped")
    bench.stethoscope.discard(live.recording)
    assert bench.stethoscope.spool.names() == []
    assert bench.captures() == []
    events = [row["event"] for row in bench.store.journal.all("SELECT event FROM audit")]
    assert "discarded" in events


def test_an_old_page_can_neither_keep_nor_discard_the_present_recording(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:8000])
    bench = make(source)
    bench.stethoscope.begin("mitral")
    with pytest.raises(Busy):
        bench.stethoscope.begin("aortic")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    live = bench.until("stopped")
    for call in (bench.stethoscope.keep, bench.stethoscope.discard):
        with pytest.raises(Busy, match="look at the page again"):
            call("0" * 32)
    assert bench.stethoscope.live() == live


def test_what_nobody_decides_about_is_kept(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:8000])
    bench = make(source)
    bench.stethoscope.begin("mitral", Whose(patient=Patient(id="P7"), encounter_id="E7"))
    assert source.reached.wait(10)
    bench.stethoscope.end()
    bench.until("stopped")
    bench.stethoscope.tend()
    assert bench.captures() == []
    bench.time += UNDECIDED_S + 1
    bench.stethoscope.tend()
    assert [(one.patient.id, one.encounter_id) for one in bench.captures()] == [("P7", "E7")]


def test_a_new_recording_keeps_the_one_before_first(make: Callable[..., Bench]) -> None:
    source = PlayedSource(HEART_SOUND[:8000])
    bench = make(source)
    bench.stethoscope.begin("mitral")
    assert source.reached.wait(10)
    bench.stethoscope.end()
    bench.until("stopped")
    bench.stethoscope.begin("aortic")
    assert [one.position for one in bench.captures()] == ["mitral"]


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("", "Thinklabs One: USB Audio"),
        ("littmann", "Littmann CORE"),
        ("*one*usb*", "Thinklabs One: USB Audio"),
        ("mic", "Built-in Mic"),
        ("nothing", None),
    ],
)
def test_the_device_is_chosen_by_its_name_whatever_its_number(pattern: str, chosen: str | None) -> None:
    names = [
        "default",
        "HDMI: LG (hw:0,3)",
        "Built-in Mic (hw:1,0)",
        "Littmann CORE",
        "Thinklabs One: USB Audio (hw:2,0)",
    ]
    devices = [
        {"index": n, "name": name, "max_input_channels": 1, "default_samplerate": 4000.0}
        for n, name in enumerate(names)
    ]
    found = choose(inputs(devices), pattern)
    assert (found.name if found else None) == chosen
    assert stable_name("X: USB Audio (hw:2,0)") == stable_name("X: USB Audio (hw:0,0)") == "X: USB Audio"


def test_outputs_are_no_inputs() -> None:
    devices = [{"index": 0, "name": "Speaker", "max_input_channels": 0, "default_samplerate": 48000.0}]
    assert inputs(devices) == ()
    assert choose((), "") is None
    assert choose((Input(index=0, name="default", channels=2, rate_hz=44100),), "") is not None


def test_the_places_are_walked_in_the_order_of_an_examination() -> None:
    for sequence in (HEART, LUNG):
        walked = [sequence[0].id]
        while (place := following(walked[-1])) is not None:
            walked.append(place.id)
        assert walked == [one.id for one in sequence]
    assert {place.side for place in LUNG} == {"front", "back"}
    right_on_the_front = PLACES["lung-front-upper-right"]
    assert right_on_the_front.x < 0.5, "facing the patient, the right lung is on the left"
    assert PLACES["lung-back-upper-right"].x > 0.5


def test_the_codes_of_the_places_are_snomeds() -> None:
    from pydicom.sr._concepts_dict import concepts

    known: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for code, meanings in codes.items():
            known.setdefault(code, set()).add(meanings[0].casefold())
    for place in PLACES.values():
        for one in (place.code, *place.modifiers):
            assert one.meaning.casefold() in known[one.value], (one, known[one.value])


def test_the_live_record_can_be_sent_as_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Live()), type=Live) == Live()


def test_a_full_disk_ends_the_recording_with_what_is_on_it(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    room, append = [6], SpoolWriter.append

    def full(writer: SpoolWriter, piece: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(writer, piece)

    monkeypatch.setattr(SpoolWriter, "append", full)
    bench = make(PlayedSource(HEART_SOUND))
    bench.stethoscope.begin("mitral")
    live = bench.until("stopped")
    assert (live.why, live.trouble) == ("disk", "disk")
    bench.stethoscope.keep(live.recording)
    capture = bench.captures()[0]
    samples = bench.samples(capture)
    assert samples.size == 5 * 4000, "five pieces of a second fitted after the first word"
    assert np.array_equal(samples, HEART_SOUND[: samples.size])
    assert "interrupted" in capture.description, "its end could not be written, and nothing is made up"


@pytest.mark.parametrize(("rate", "fine"), [(0, True), (4000, True), (48000, True), (2000, False), (96000, False)])
def test_a_rate_that_no_model_takes_is_refused_in_the_configuration(rate: int, *, fine: bool) -> None:
    text = f"[stethoscope]\nrate = {rate}\n"
    if fine:
        assert config.parse(text).stethoscope.rate == rate
    else:
        with pytest.raises(config.ConfigError, match=r"stethoscope\.rate"):
            config.parse(text)
