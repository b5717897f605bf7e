"""One capture to one reading: decode, is it for us, prepare, is it good enough, run, gate, findings, triage, overlay, words.

What this module keeps true: whatever the file, a ``Reading`` comes out, read or not read with code, reason and advice
(promise 6); an exception means the engine failed (``EngineError``) or the program is wrong. ``look`` needs no engine and may
run ahead in another thread; ``answer`` runs the networks and belongs to one thread.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from appliance import records
from appliance.inference.bundle import Bundle
from appliance.reading import findings, quality, triage
from appliance.reading.decode import DEFAULT_LIMITS, DecodeError, Limits, decode, modality_of
from appliance.reading.prepared import Header, Picture, Prepared, Sound
from appliance.reading.requests import Known
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality, Reading, Refusal

Source = Path | bytes | bytearray | memoryview

PREPARE = {
    "chest-xray/1": ("appliance.reading.xray", "prepare"),
    "lung-ultrasound/1": ("appliance.reading.ultrasound", "prepare"),
    "heart-sound/1": ("appliance.reading.auscultation", "prepare_heart"),
    "lung-sound/1": ("appliance.reading.auscultation", "prepare_lung"),
}
"""The preprocessing step that each ``preprocess.kind`` of a bundle names: module and function."""

_SOUNDS = {Modality.HEART_SOUND, Modality.LUNG_SOUND}


class Served(Protocol):
    """A bundle with its engines: what a reader needs of ``appliance.inference.catalogue.Served``."""

    @property
    def bundle(self) -> Bundle: ...  # noqa: D102 — the protocol's own words are above

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]: ...  # noqa: D102

    def engine_record(self) -> records.Engine: ...  # noqa: D102


class Models(Protocol):
    """Which bundle serves which modality: what a reader needs of ``appliance.inference.catalogue.Catalogue``."""

    def for_modality(self, modality: Modality) -> Served | None: ...  # noqa: D102


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """A capture that was decoded and prepared: a refusal, or what the networks need."""

    known: Known
    modality: Modality
    seconds: float
    age_years: float | None = None
    capture: Picture | Sound | None = None
    served: Served | None = None
    prepared: Prepared | None = None
    refusal: Refusal | None = None
    warnings: tuple[str, ...] = ()


class Reader:
    """Reads captures with the bundles of a catalogue."""

    def __init__(self, models: Models, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._models = models
        self._limits = limits
        self._opening = threading.Lock()

    def read(
        self,
        source: Source,
        *,
        modality: Modality | None = None,
        age_years: float | None = None,
        capture_id: str = "",
        name: str = "",
    ) -> Reading:
        """Read a file or its bytes.

        Raises:
            appliance.inference.engine.EngineError: an engine failed; the capture itself is not to blame.
        """
        known = Known(modality=modality, age_years=age_years, capture_id=capture_id, name=name)
        return self.answer(self.look(source, known))

    def look(self, source: Source, known: Known) -> Looked:
        """Decode, check and prepare; no network runs."""
        start = time.perf_counter()
        modality = known.modality or Modality.OTHER
        try:
            capture = decode(source, known.name, limits=self._limits)
        except DecodeError as error:
            refusal = Refusal(code=error.code, reason=_sentence(error.message), advice=_sentence(error.remedy))
            return Looked(known=known, modality=modality, refusal=refusal, seconds=time.perf_counter() - start)
        looked = self.look_at(capture, known)
        return msgspec.structs.replace(looked, seconds=time.perf_counter() - start)

    def look_at(self, capture: Picture | Sound, known: Known) -> Looked:
        """Check and prepare what is decoded already."""
        start = time.perf_counter()
        modality = known.modality or Modality.OTHER
        header = _header(capture.header, known)
        if known.modality is None or known.modality is Modality.OTHER:
            modality = modality_of(header)
        looked = self._prepare(capture, header, known, modality)
        return msgspec.structs.replace(looked, seconds=time.perf_counter() - start)

    def answer(self, looked: Looked) -> Reading:
        """Run the networks on what was prepared and say what they found."""
        start = time.perf_counter()
        reading = self._answer(looked)
        elapsed = 1000.0 * (looked.seconds + time.perf_counter() - start)
        return msgspec.structs.replace(reading, milliseconds=round(elapsed, 3))

    def _prepare(self, capture: Picture | Sound, header: Header, known: Known, modality: Modality) -> Looked:
        age = header.age_years
        looked = Looked(known=known, modality=modality, seconds=0.0, age_years=age, capture=capture)

        def refused(refusal: Refusal, served: Served | None = None, warnings: tuple[str, ...] = ()) -> Looked:
            return msgspec.structs.replace(looked, refusal=refusal, served=served, warnings=warnings)

        if modality is Modality.OTHER:
            code = "other-modality" if header.dicom_modality not in {"", "AU", "OT"} else "which-modality"
            return refused(
                quality.words_for(code, {}, f"the file says {header.dicom_modality}" if header.dicom_modality else "")
            )
        if (modality in _SOUNDS) != isinstance(capture, Sound):
            return refused(quality.words_for("not-a-sound" if modality in _SOUNDS else "not-a-picture", {}))
        with self._opening:
            served = self._models.for_modality(modality)
        if served is None:
            return refused(quality.words_for("no-model", {}, f"{modality.value}"))
        description = served.bundle.description
        step = _step(description.preprocess.kind)
        if step is None:
            detail = f"{served.bundle.id} needs the step {description.preprocess.kind}, update this program"
            return refused(quality.words_for("no-model", {}, detail), served)
        accepted = quality.accepts(capture, header, description, age)
        if accepted.refusal is not None:
            return refused(accepted.refusal, served, accepted.warnings)
        prepared = step(capture, description)
        judged = quality.judge(prepared.quality, description)
        warnings = accepted.warnings + judged.warnings
        refusal = _worded(prepared.refusal, description.refusals) or judged.refusal
        if refusal is not None:
            looked = msgspec.structs.replace(looked, prepared=prepared)
            return refused(refusal, served, warnings)
        if age is None and _age_matters(served.bundle):
            warnings += ("The age is not known; the words and limits for adults were used.",)
        return msgspec.structs.replace(looked, served=served, prepared=prepared, warnings=warnings)

    def _answer(self, looked: Looked) -> Reading:
        served, prepared = looked.served, looked.prepared
        if looked.refusal is not None or served is None or prepared is None:
            return _not_read(looked, looked.refusal or quality.words_for("no-model", {}), None)
        description = served.bundle.description
        outputs = {graph: served.run(graph, inputs) for graph, inputs in prepared.inputs.items()}
        engine = served.engine_record()
        gate = findings.gate_probability(description, outputs)
        if gate is not None and not gate >= description.gate.threshold:
            return _not_read(looked, quality.words_for(description.gate.code, description.refusals), engine)
        far = quality.warnings(quality.of_networks(outputs, description), description)
        found = findings.answers(served.bundle, outputs, looked.age_years)
        if not found:
            return _not_read(looked, quality.words_for("age-outside", description.refusals), engine)
        if not all(math.isfinite(one.finding.probability) for one in found):
            return _not_read(looked, _NO_NUMBER, engine)
        overlay = findings.overlay(found, outputs)
        return Reading(
            capture_id=looked.known.capture_id,
            modality=looked.modality,
            status="read",
            triage=triage.triage(found, description),
            advice=triage.advice(found, description),
            findings=tuple(one.finding for one in found),
            measures=prepared.measures,
            warnings=looked.warnings + far,
            bundle=served.bundle.id,
            bundle_version=served.bundle.version,
            bundle_sha256=served.bundle.sha256,
            engine=engine,
            overlay=overlay.data if overlay else b"",
            overlay_shape=overlay.shape if overlay else (0, 0),
            overlay_finding=overlay.finding if overlay else "",
            overlay_box=_box(looked.capture, prepared),
            overlay_frame=_frame(looked.capture, prepared, overlay.row) if overlay else 0,
        )


_NO_NUMBER = Refusal(
    code="no-answer",
    reason="The model gave no number for this capture.",
    advice="A human needs to read it; report it to who maintains this box.",
)


def _not_read(looked: Looked, refusal: Refusal, engine: records.Engine | None) -> Reading:
    bundle = looked.served.bundle if looked.served is not None else None
    return Reading(
        capture_id=looked.known.capture_id,
        modality=looked.modality,
        status="not_read",
        triage=triage.NOT_READ,
        advice=f"{refusal.advice} {ADVICE_NOT_DIAGNOSIS}",
        refusal=refusal,
        measures=looked.prepared.measures if looked.prepared is not None else (),
        warnings=looked.warnings,
        bundle=bundle.id if bundle else "",
        bundle_version=bundle.version if bundle else "",
        bundle_sha256=bundle.sha256 if bundle else "",
        engine=engine,
    )


def _header(header: Header, known: Known) -> Header:
    changes: dict[str, Any] = {}
    if known.age_years is not None:
        changes["age_years"] = known.age_years
    for name in ("sex", "body_part", "view"):
        if value := getattr(known, name):
            changes[name] = value.upper()
    return msgspec.structs.replace(header, **changes) if changes else header


def _step(kind: str) -> Callable[..., Prepared] | None:
    """The preprocessing function that ``kind`` names; ``None`` when this program has none."""
    if kind not in PREPARE:
        return None
    module, function = PREPARE[kind]
    step: Callable[..., Prepared] = getattr(importlib.import_module(module), function)
    return step


def _worded(refusal: Refusal | None, refusals: Mapping[str, Any]) -> Refusal | None:
    return (
        None if refusal is None else quality.words_for(refusal.code, refusals) if refusal.code in refusals else refusal
    )


def _age_matters(bundle: Bundle) -> bool:
    """Whether any finding has more than one operating point or wording by age, or is not answered at every age."""
    return any(
        len(spec.operating_points) > 1 or len(spec.wording) > 1 or spec.age_years != (0.0, 150.0)
        for spec in bundle.description.findings
    )


def _box(capture: Picture | Sound | None, prepared: Prepared) -> tuple[float, float, float, float]:
    if prepared.map_box is None or not isinstance(capture, Picture):
        return (0.0, 0.0, 1.0, 1.0)
    rows, columns = np.shape(capture.pixels)[1:3]
    top, left, bottom, right = prepared.map_box
    return (top / rows, left / columns, bottom / rows, right / columns)


def _frame(capture: Picture | Sound | None, prepared: Prepared, row: int) -> int:
    """The frame of the original cine that a row of the inputs came from (only some frames are decoded)."""
    if not isinstance(capture, Picture) or row >= len(prepared.frames):
        return 0
    return int(prepared.frames[row]) * -(-capture.header.frames // len(capture.pixels))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
