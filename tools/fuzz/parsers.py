"""What is given broken input: ``python -m tools.fuzz.parsers KIND``, cases on standard input, answers on standard output.

What this module keeps true: each is the function that the box or the hub uses itself; what it raises beside its named refusal
is said as escaped, and a refusal without words as well.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = tuple[list[str], str]
"""How each parser ended, and what escaped."""


def _tried(
    name: str, parse: Callable[[], Any], refusal: type[Exception], words: Callable[[Any], str] = str
) -> tuple[str, str]:
    """How one parser ended, and what escaped."""
    try:
        parse()
    except refusal as error:
        code = getattr(error, "code", "")
        return f"{name}: refused {code}".rstrip(), "" if words(error).strip() else f"{name}: a refusal without words"
    except Exception as error:  # noqa: BLE001 - what is looked for
        return f"{name}: escaped", f"{name}: {type(error).__name__}: {error}"[:300]
    return f"{name}: taken", ""


def _all(*ended: tuple[str, str]) -> Answer:
    return [how for how, _ in ended], next((escaped for _, escaped in ended if escaped), "")


def files() -> Callable[[bytes], Answer]:
    """A DICOM file at the door and before a model."""
    from appliance.capture.facts import facts_of
    from appliance.capture.header import NotDicom
    from appliance.reading.decode import DecodeError, Limits, decode

    limits = Limits(file_bytes=1 << 26, decoded_bytes=1 << 27, frame_pixels=1 << 25)
    return lambda data: _all(
        _tried("door", lambda: facts_of(data, "fuzz"), NotDicom),
        _tried("decode", lambda: decode(data, "x.dcm", limits=limits), DecodeError, _both),
    )


def sounds() -> Callable[[bytes], Answer]:
    """A WAV or FLAC file at the door, before a model, on its way out without its patient, and as a DICOM waveform."""
    from appliance.capture.facts import FileReader, media_type_of
    from appliance.capture.header import NotDicom
    from appliance.interop.deidentify import Withheld
    from appliance.interop.outgoing import cleaned
    from appliance.interop.profile import Options
    from appliance.interop.waveform import NotASound, general_audio
    from appliance.reading.decode import DecodeError, decode
    from appliance.records import Capture, Modality, Moment, Patient

    capture = Capture(
        id="0" * 32, sha256="0" * 64, size=1, modality=Modality.HEART_SOUND, media_type="audio/wav", source="fuzz",
        patient=Patient(), received=Moment(boot_id="b", monotonic_ns=0, wall="2026-01-01T00:00:00Z"),
    )  # fmt: skip

    def door(data: bytes) -> None:
        reader = FileReader("fuzz", Modality.HEART_SOUND)
        reader.feed(data)
        reader.finish()

    return lambda data: _all(
        _tried("kind", lambda: media_type_of(data), NotDicom),
        _tried("door", lambda: door(data), NotDicom),
        _tried("decode", lambda: decode(data, "x.wav"), DecodeError, _both),
        _tried("bare", lambda: cleaned(capture, data, lambda text: text.ljust(32, "0")[:32], Options()), Withheld),
        _tried("waveform", lambda: general_audio(capture, data), NotASound),
    )


def config() -> Callable[[bytes], Answer]:
    """The file of a box, a hub and a site, each read as all three."""
    import appliance.config
    import appliance.provision.site
    import hub.config
    from appliance.settings import ConfigError

    path = Path(f"/dev/shm/fuzz-{os.getpid()}.toml")  # noqa: S108 - memory, not a disk

    def parse(data: bytes) -> Answer:
        path.write_bytes(data)
        try:
            return _all(
                _tried("box", lambda: appliance.config.load(path), ConfigError),
                _tried("hub", lambda: hub.config.load(path), ConfigError),
                _tried("site", lambda: appliance.provision.site.load(path), ConfigError),
            )
        finally:
            path.unlink()

    return parse


KINDS: dict[str, Callable[[], Callable[[bytes], Answer]]] = {"files": files, "sounds": sounds, "config": config}


def _both(error: Any) -> str:
    """What a refusal says, if it says the cause and the remedy."""
    return error.message if error.message and error.remedy else ""


def _most_memory() -> int:
    """The most memory that this process held, in bytes (``ru_maxrss`` would begin with that of the one that started it)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def serve(kind: str) -> None:
    """Answer cases until there are none."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a codec prints must not be taken for an answer
    parse = KINDS[kind]()
    print(json.dumps({}), file=out, flush=True)
    while head := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(struct.unpack("<I", head)[0])
        start = time.perf_counter()
        answers, escaped = parse(data)
        said = {"answers": answers, "escaped": escaped, "seconds": time.perf_counter() - start, "rss": _most_memory()}
        print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
