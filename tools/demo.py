"""The main job on loopback: a box, a broker and a hub as the separate programs they are, real input, the link down at first.

    python -m tools.demo [--exit] [--json FILE] [--keep DIR]

A chest X-ray (pydicom-data's RG1, an adult's computed radiograph) arrives by C-STORE in three transfer syntaxes, an
extremity (RG3) too, then an ultrasound cine and two stethoscope recordings made by ``tools.simulate``. Every answer appears
at the bedside while the link is down.
Then the link comes up, all of it reaches the hub most urgent first, a review is entered there and returns.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pydicom
from rich.console import Console
from rich.table import Table

from tools.programs import Programs, get, post

REVIEWER = "Dr Demo"
say = Console(highlight=False)


class Summary(msgspec.Struct, kw_only=True):
    """What the demonstration counts."""

    captured: int = 0
    read: int = 0
    refused: int = 0
    delivered: int = 0
    lost: int = 0
    doubled: int = 0
    reviewed: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0


def inputs(folder: Path) -> Iterator[tuple[str, Path]]:
    """The captures: a name for people and a file. The X-rays are real, ultrasound and sounds are simulated."""
    from pydicom.data import get_testdata_file
    from pydicom.uid import JPEGLSLossless, generate_uid

    folder.mkdir()
    for name, source, syntax in (
        ("uncompressed", "RG1_UNCR.dcm", None),
        ("JPEG-LS", "RG1_UNCR.dcm", JPEGLSLossless),
        ("JPEG 2000", "RG1_J2KR.dcm", None),
    ):
        data_set = pydicom.dcmread(str(get_testdata_file(source)))
        if syntax is not None:
            data_set.compress(syntax, generate_instance_uid=False)
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"chest-{name.replace(' ', '-').lower()}.dcm"
        data_set.save_as(path)
        yield f"chest X-ray, {name}", path
    yield "extremity X-ray", Path(str(get_testdata_file("RG3_UNCR.dcm")))
    cine = folder / "lung.dcm"
    _simulate("ultrasound", str(cine), "--b-lines", "4", "--frames", "20")
    yield "lung ultrasound cine", cine
    heart, lung = folder / "heart.wav", folder / "lung.wav"
    _simulate("sounds", "heart", str(heart), "--seconds", "12", "--murmur", "systolic")
    yield "heart sound", heart
    _simulate("sounds", "lung", str(lung), "--seconds", "12", "--crackles")
    yield "lung sound", lung


def send(programs: Programs, path: Path) -> None:
    """Hand a capture over as its device would: DICOM by C-STORE, a sound into the watched folder."""
    if path.suffix == ".wav":
        target = programs.inbox / f"{path.stem}-sound" / path.name
        shutil.copy(path, target.with_suffix(".part"))
        target.with_suffix(".part").rename(target)
        return
    from pynetdicom import AE

    data_set = pydicom.dcmread(path)
    entity = AE(ae_title="DEMO-XRAY")
    entity.add_requested_context(data_set.SOPClassUID, data_set.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", programs.dicom, ae_title="BEDSIDE")
    if not association.is_established:
        sys.exit("the box did not accept the association; see bedside doctor")
    status = association.send_c_store(data_set)
    association.release()
    if status.get("Status") != 0:
        sys.exit(f"the box refused {path.name}: status 0x{status.get('Status', 0):04X}")


def offline(programs: Programs, summary: Summary) -> list[dict[str, Any]]:
    """All captures in, all answers out, without a link."""
    say.print("\n[bold]The link is down.[/] Captures arrive at the bedside:")
    known: set[str] = set()
    answers = []
    for name, path in inputs(programs.folder / "captures"):
        began = time.monotonic()
        send(programs, path)
        line = programs.wait(name, lambda: _answered(programs, known))
        known.add(line["id"])
        detail = get(f"{programs.bedside_url}/api/captures/{line['id']}")
        summary.captured += 1
        reading = detail["reading"]
        summary.read += reading["status"] == "read"
        summary.refused += reading["status"] != "read"
        answers.append(detail)
        say.print(f"  {time.monotonic() - began:5.2f} s  {name:28} {_words(reading)}")
    return answers


def online(programs: Programs, answers: list[dict[str, Any]], summary: Summary) -> None:
    """The link comes up: everything is delivered once, a review returns."""
    expected = {one["line"]["id"] for one in answers}
    say.print("\n[bold]The link comes up.[/] Most urgent first:")
    programs.link.refuse(False)
    shown: set[str] = set()

    def arrived() -> bool:
        cases = get(f"{programs.hub_url}/api/cases?shown=all&limit=200")["cases"]
        for case in cases:
            if case["id"] not in shown:
                shown.add(case["id"])
                say.print(f"  at the hub  {case['triage']:9} {case['modality']}")
        return shown >= expected

    programs.wait("all results at the hub", arrived)
    programs.wait(
        "all images confirmed",
        lambda: all(one["state"] == "delivered" for one in _captures(programs)),
    )
    cases = get(f"{programs.hub_url}/api/cases?shown=all&limit=200")["cases"]
    ids = [case["id"] for case in cases]
    summary.delivered = len(expected & set(ids))
    summary.lost = len(expected - set(ids))
    summary.doubled = len(ids) - len(set(ids))
    case = cases[0]["id"]
    say.print(f"\n[bold]{REVIEWER}[/] accepts the first case of the worklist at the hub.")
    seen = get(f"{programs.hub_url}/api/cases/{case}")["result"]["id"]
    review = {"result_id": seen, "decision": "accept", "note": "Seen, I agree. Treat as advised.", "reviewer": REVIEWER}
    post(f"{programs.hub_url}/api/cases/{case}/review", review)
    began = time.monotonic()
    programs.wait("the review", lambda: get(f"{programs.bedside_url}/api/captures/{case}")["reviews"])
    summary.reviewed = sum(
        bool(get(f"{programs.bedside_url}/api/captures/{one}")["reviews"]) for one in sorted(expected)
    )
    say.print(f"  back at the bedside after {time.monotonic() - began:.2f} s")
    summary.bytes_sent = programs.link.bytes_up


def main() -> int:
    """Run the demonstration; 0 when nothing was lost or doubled and the review came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exit", action="store_true", help="end at once, without keeping the pages open")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary here")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it")
    options = parser.parse_args()
    began, summary = time.monotonic(), Summary()
    with contextlib.ExitStack() as stack:
        if options.keep is not None:
            options.keep.mkdir(parents=True)
            folder = options.keep.resolve()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bedside-demo-")))
        programs = Programs(folder)
        stack.callback(programs.stop)
        say.print("Starting broker, hub and box …")
        programs.start()
        online(programs, offline(programs, summary), summary)
        summary.seconds = round(time.monotonic() - began, 1)
        _show(programs, summary)
        if options.json is not None:
            options.json.write_bytes(msgspec.json.encode(summary) + b"\n")
        if not options.exit and sys.stdout.isatty():
            say.print("The pages stay open until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return int(bool(summary.lost or summary.doubled or not summary.reviewed))


def _answered(programs: Programs, known: set[str]) -> dict[str, Any] | None:
    done = (line for line in _captures(programs) if line["id"] not in known and line["state"] == "reported")
    return next(done, None)


def _captures(programs: Programs) -> list[dict[str, Any]]:
    lines = get(f"{programs.bedside_url}/api/captures?limit=100")["captures"]
    return [{"state": "kept", **line} for line in lines]


def _words(reading: dict[str, Any]) -> str:
    if reading["status"] != "read":
        return f"[yellow]not read[/]: {reading['refusal']['reason']} {reading['refusal']['advice']}"
    found = [f"{one['label']} {one['probability']:.0%}" for one in reading["findings"] if one["positive"]]
    colour = {"critical": "red", "urgent": "dark_orange", "routine": "green"}[reading["triage"]]
    return f"[{colour}]{reading['triage']}[/]: {', '.join(found) or 'nothing above the operating point'}"


def _show(programs: Programs, summary: Summary) -> None:
    table = Table(title="What happened", title_justify="left", show_header=False)
    for name, value in msgspec.structs.asdict(summary).items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    say.print()
    say.print(table)
    say.print(f"bedside console  {programs.bedside_url}  (no sign-in in this demonstration, on this machine only)")
    say.print(f"hub worklist     {programs.hub_url}")
    say.print("Advice for a health worker, not a diagnosis.")


def _simulate(module: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", f"tools.simulate.{module}", *arguments], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    sys.exit(main())
