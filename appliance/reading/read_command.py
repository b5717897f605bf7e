"""``bedside read``: many files through one reader at full speed, one line a file.

What this module keeps true: lines come in the order of the files; models are opened once; files are decoded and prepared ahead
of the network in other threads, a bounded number at a time, and the network runs in this one; what goes wrong with one
file is that file's line and disturbs no other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from appliance.inference import heap
from appliance.inference.catalogue import Catalogue
from appliance.inference.engine import DeviceLostError
from appliance.reading.prepared import Picture
from appliance.reading.reader import Looked, Reader
from appliance.reading.requests import Known
from appliance.reading.triage import NOT_READ
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality, Reading, Refusal

if TYPE_CHECKING:
    from appliance.inference.trust import Trust

AHEAD = 4
"""How many captures beyond those being decoded may wait, decoded, for the network."""


class FindingLine(msgspec.Struct, frozen=True, kw_only=True):
    """A finding in a line; ``code`` is scheme and value, e.g. ``SCT:233604007``."""

    id: str
    label: str
    code: str
    probability: float
    positive: bool


class ReadLine(msgspec.Struct, frozen=True, kw_only=True):
    """One file's line, as ``--json`` prints it. ``reason`` begins with the refusal's stable code; empty when read."""

    file: str
    modality: str
    status: Literal["read", "not_read"]
    reason: str
    advice: str
    findings: tuple[FindingLine, ...]
    triage: str
    bundle: str
    engine: str
    provider: str
    milliseconds: float


class Job(NamedTuple):
    """A file to read and what is known of it."""

    path: Path
    known: Known


class Done(NamedTuple):
    """A file that was read, with what was decoded of it (``None`` if that failed)."""

    path: Path
    reading: Reading
    looked: Looked | None


def run_read(
    paths: Iterable[Path],
    *,
    models: Path | Sequence[Path],
    cache: Path,
    engine: str = "auto",
    modality: Modality | None = None,
    age: float | None = None,
    overlay_dir: Path | None = None,
    on_problem: Callable[[str], None] | None = None,
    trust: Trust | None = None,
) -> Iterator[ReadLine]:
    """Read files and yield a line for each.

    Args:
        paths: plain files: DICOM, PNG, JPEG, WAV, FLAC.
        models: folder of bundles, or several.
        cache: folder for what is derived from them on this box.
        engine: as in the configuration: ``auto``, ``cpu``, ``cuda``, ``tensorrt-ort``, ``tensorrt``.
        modality: what the files are of; taken from DICOM where ``None``.
        age: the patients' age in years, before what the files say.
        overlay_dir: where a PNG of each picture that was read goes, with its activation map.
        on_problem: told, at the end, what was wrong with bundles and engines.
        trust: who must vouch for a bundle; nobody where ``None``.
    """
    import cv2

    cv2.setNumThreads(
        1
    )  # the threads here are one network and one or more decoders; more would only wait for each other
    heap.keep()
    catalogue = Catalogue(models, cache, engine, trust)
    catalogue.open([])
    try:
        known = Known(modality=modality, age_years=age)
        names = _Names(overlay_dir) if overlay_dir is not None else None
        for done in stream(Reader(catalogue), (Job(path, known) for path in paths)):
            if names is not None:
                _write_overlay(done, names)
            yield line(done.path, done.reading)
    finally:
        if on_problem is not None:
            for problem in catalogue.problems:
                on_problem(problem)
        catalogue.close()


def stream(reader: Reader, jobs: Iterable[Job]) -> Iterator[Done]:
    """Read jobs in order, decoding ahead."""
    workers = max(1, min(4, (os.cpu_count() or 2) - 1))
    waiting: deque[tuple[Job, Future[Looked]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for job in jobs:
                waiting.append((job, pool.submit(reader.look, job.path, _named(job))))
                if len(waiting) > workers + AHEAD:
                    yield _finish(reader, *waiting.popleft())
            while waiting:
                yield _finish(reader, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def line(path: Path, reading: Reading) -> ReadLine:
    """The line of a reading."""
    refusal, engine = reading.refusal, reading.engine
    return ReadLine(
        file=str(path),
        modality=reading.modality.value,
        status=reading.status,
        reason=f"{refusal.code}: {refusal.reason}" if refusal else "",
        advice=reading.advice,
        findings=tuple(
            FindingLine(
                id=found.id,
                label=found.label,
                code=f"{found.code.scheme}:{found.code.value}",
                probability=round(found.probability, 6),
                positive=found.positive,
            )
            for found in reading.findings
        ),
        triage=reading.triage.value,
        bundle=f"{reading.bundle} {reading.bundle_version}".strip(),
        engine=engine.engine if engine else "",
        provider=engine.provider if engine else "",
        milliseconds=reading.milliseconds,
    )


def _named(job: Job) -> Known:
    return job.known if job.known.name else msgspec.structs.replace(job.known, name=job.path.name)


def _finish(reader: Reader, job: Job, future: Future[Looked]) -> Done:
    looked = None
    try:
        looked = future.result()
        return Done(job.path, reader.answer(looked), looked)
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 — the edge of one file's task: the line says it, the next file goes on
        refusal = Refusal(
            code="failed",
            reason=f"Reading failed ({type(error).__name__}: {error}).",
            advice="A human needs to read it; report the message to who maintains this program.",
        )
        return Done(
            job.path,
            Reading(
                capture_id=job.known.capture_id,
                modality=looked.modality if looked else job.known.modality or Modality.OTHER,
                status="not_read",
                triage=NOT_READ,
                advice=f"{refusal.advice} {ADVICE_NOT_DIAGNOSIS}",
                refusal=refusal,
            ),
            looked,
        )


class _Names:
    """File names for overlays: the capture's stem, numbered where two files share it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._used: dict[str, int] = {}

    def path(self, source: Path) -> Path:
        number = self._used.get(source.stem, 0) + 1
        self._used[source.stem] = number
        return self._folder / (f"{source.stem}.png" if number == 1 else f"{source.stem}-{number}.png")


def _write_overlay(done: Done, names: _Names) -> None:
    if done.reading.status != "read" or done.looked is None or not isinstance(done.looked.capture, Picture):
        return
    from appliance.reading import overlay

    names.path(done.path).write_bytes(overlay.png(overlay.blended(done.looked.capture, done.reading)))
