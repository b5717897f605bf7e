"""What the soak counts by: a trend is found whatever the noise, and nothing that was owed can be missing unseen."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from tools import arrivals
from tools.arrivals import Case
from tools.programs import Programs
from tools.soak import memory
from tools.soak.__main__ import Outcome, count
from tools.soak.ways import Owed


def samples(mb_an_hour: float, spikes: int = 0) -> list[tuple[float, float, int, int]]:
    random = np.random.default_rng(1)
    hours = np.linspace(0, 1, 360)
    megabytes = 100 + mb_an_hour * hours + random.normal(0, 0.5, hours.size)
    megabytes[random.integers(0, hours.size, spikes)] += 80
    return [(float(h), float(mb), 40, 20) for h, mb in zip(hours, megabytes, strict=True)]


@pytest.mark.parametrize("slope", [0.0, 6.0, 60.0])
def test_a_slope_is_found_among_spikes(slope: float) -> None:
    found = memory.trend(samples(slope, spikes=40))
    assert found.low - 0.2 <= slope <= found.high + 0.2
    assert found.high - found.low < 1.5
    assert found.most_mb > 170
    assert (found.files, found.threads) == (40, 20)


def test_a_process_that_hoards_is_named_and_one_that_came_late_is_not() -> None:
    hoard = "run = []\nwhile True:\n    run.append(bytearray(2_000_000))\n    import time; time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", hoard, "appliance.hoard"]) as process:
        watch = memory.Watch({"box": process.pid}, every_s=0.1)
        watch.start()
        time.sleep(2.5)
        process.kill()
        found = watch.stop()
    assert found["box: appliance.hoard"].low > 1000, "20 MB a second"


@pytest.fixture(scope="module")
def film() -> tuple[str, bytes]:
    made = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    written = io.BytesIO()
    made.save_as(written)
    return str(made.SOPInstanceUID), written.getvalue()


def judged(monkeypatch: pytest.MonkeyPatch, found: list[Case], owed: Owed) -> Outcome:
    monkeypatch.setattr(arrivals, "cases", lambda _: iter(found))
    monkeypatch.setattr(arrivals, "conflicts", lambda _: 0)
    outcome = Outcome()
    count(Programs(Path("/nowhere")), owed, outcome)
    return outcome


def case(number: int, uid: str = "", original: bytes | None = b"x") -> Case:
    sha256 = hashlib.sha256(original or b"").hexdigest()
    return Case(id=f"c{number}", instance_uid=uid, sha256=sha256, modality="chest-xray", original=original)


def test_what_is_owed_and_there_once_and_whole_is_good(
    monkeypatch: pytest.MonkeyPatch, film: tuple[str, bytes]
) -> None:
    uid, data = film
    there = [case(1, uid, data), case(2, original=b"sound"), case(3, original=b"clip")]
    owed = Owed(instances={uid: there[0].pixels()}, files={there[1].sha256}, captures={"c3"})
    outcome = judged(monkeypatch, there, owed)
    assert outcome.good
    assert (outcome.owed, outcome.at_hub, outcome.lost, outcome.doubled, outcome.corrupt) == (3, 3, 0, 0, 0)


def test_what_is_missing_doubled_or_damaged_is_counted(
    monkeypatch: pytest.MonkeyPatch, film: tuple[str, bytes]
) -> None:
    uid, data = film
    sound = hashlib.sha256(b"sound").hexdigest()
    missing = judged(monkeypatch, [case(1)], Owed(instances={uid: ""}, files={sound}, captures={"c9"}))
    assert (missing.lost, missing.good) == (3, False)
    twice = judged(monkeypatch, [case(1, original=b"sound"), case(2, original=b"sound")], Owed(files={sound}))
    assert (twice.doubled, twice.good) == (1, False)
    other = judged(monkeypatch, [case(1, uid, data)], Owed(instances={uid: "other pixels"}))
    assert (other.corrupt, other.good) == (1, False)
    nothing = judged(monkeypatch, [case(1, uid, None)], Owed(instances={uid: ""}))
    assert nothing.corrupt == 1
    assert not judged(monkeypatch, [], Owed()).good, "nothing was at stake"
