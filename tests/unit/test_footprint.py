"""Claims about the receiving process: it stays small, and what it must still do with what it did not load, it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.console.sound import wav_of
from tests.simulated_models import dicom, film, written
from tests.unit.test_decode_sound import sound_file, tone, waveform

START = """
import json, sys
from appliance.capture import footprint
footprint.one_heap()
assert footprint.never_decodes()
"""


def as_the_daemon_does(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", START + script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_daemon_loads_no_decoder_and_no_engine() -> None:
    loaded = as_the_daemon_does("import appliance.daemon\nprint(json.dumps([n for n, m in sys.modules.items() if m]))")
    unwanted = {"cv2", "onnxruntime", "onnx", "gdcm", "rich", "scipy", "soundfile", "PIL", "pylibjpeg"}
    assert not unwanted & set(json.loads(loaded))


@pytest.mark.parametrize("kind", ["wav", "dicom"])
def test_a_recording_can_still_be_listened_to_there(tmp_path: Path, kind: str) -> None:
    data = sound_file(tone()) if kind == "wav" else waveform((tone() * 20000).astype("<i2")[:, None], "SS")
    (tmp_path / "sound").write_bytes(data)
    script = """
from pathlib import Path
from appliance.console.sound import wav_of
Path(sys.argv[2]).write_bytes(wav_of(Path(sys.argv[1]).read_bytes()) or b"")
"""
    as_the_daemon_does(script, str(tmp_path / "sound"), str(tmp_path / "wav"))
    assert (tmp_path / "wav").read_bytes() == wav_of(data)


def test_the_facts_of_a_dicom_file_are_still_read_there(tmp_path: Path) -> None:
    from appliance.capture.facts import FileReader
    from appliance.records import Modality

    (tmp_path / "film.dcm").write_bytes(data := written(dicom(film(), PatientAge="040Y", PatientID="7")))
    script = """
from pathlib import Path
from appliance.capture.facts import FileReader
from appliance.records import Modality
import msgspec
reader = FileReader("test", Modality.OTHER)
reader.feed(Path(sys.argv[1]).read_bytes())
facts = reader.finish()
print(repr(facts))
"""
    reader = FileReader("test", Modality.OTHER)
    reader.feed(data)
    assert as_the_daemon_does(script, str(tmp_path / "film.dcm")).strip() == repr(reader.finish())
