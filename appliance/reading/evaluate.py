"""``bedside models evaluate``: any bundle on a clinic's own labelled files, with the metrics of its card.

What this module keeps true: the deployed engine reads the files, by the very path that a capture takes; captures that were
refused are counted with their reasons, per source, and never scored; every figure has an interval by patient; a threshold is
suggested, never set, and comes with what it did on these data. Frames of one clip, where the labels name clips, are one
case: the mean of their logits.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference import bundle as bundles
from appliance.inference import catalogue, choice
from appliance.inference.cache import Cache
from appliance.reading import metrics
from appliance.reading.labels import LabelsError, Row, choose_findings, read_labels, truths
from appliance.reading.metrics import Interval, PerThousand
from appliance.reading.read_command import Job, stream
from appliance.reading.reader import Reader, Served
from appliance.records import Finding, Modality, Reading

PREVALENCES = (0.05, 0.20)
FEW = 30
"""Fewer positives, negatives or patients than this are said to be few: the interval is then wider than it is useful."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Captures of one source that were not read for one reason."""

    source: str
    code: str
    reason: str
    count: int


class AtThreshold(msgspec.Struct, frozen=True, kw_only=True):
    """What calling positive from a threshold on does. ``threshold`` is ``None`` where it depends on the age."""

    threshold: float | None
    sensitivity: Interval
    specificity: Interval
    positive_predictive_value: float
    negative_predictive_value: float
    per_thousand: tuple[PerThousand, ...]


class SourceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one source."""

    source: str
    positives: int
    negatives: int
    auroc: Interval
    sensitivity: float
    specificity: float


class FindingFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one finding. ``suggested`` reaches ``wanted_sensitivity`` on these very data."""

    finding: str
    unit: str
    positives: int
    negatives: int
    patients: int
    auroc: Interval
    operating_point: AtThreshold
    calibration_error: float
    brier: float
    wanted_sensitivity: float
    suggested: AtThreshold | None
    by_source: tuple[SourceFigures, ...]
    notes: tuple[str, ...]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on a set of labelled files."""

    bundle: str
    version: str
    engine: str
    provider: str
    files: int
    read: int
    refused: tuple[Refused, ...]
    findings: tuple[FindingFigures, ...]
    milliseconds_median: float


class Cases(msgspec.Struct, frozen=True, kw_only=True):
    """The scored cases of one finding, row by row."""

    finding: str
    labels: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    called: npt.NDArray[np.float64]
    thresholds: frozenset[float]
    patients: tuple[str, ...]
    sources: tuple[str, ...]
    by_clip: bool


class _Only:
    """A catalogue of one bundle, whatever the modality asked for."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def for_modality(self, modality: Modality) -> Served | None:
        return self._served if modality is self._served.bundle.description.modality else None


def run_evaluate(
    bundle: Path,
    labels: Path,
    *,
    cache: Path,
    root: Path | None = None,
    engine: str = "auto",
    finding: str | None = None,
    positive: Sequence[str] = (),
    sensitivity: float = 0.90,
    age: float | None = None,
    plots: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Read the labelled files with the bundle in folder ``bundle`` and judge what it says.

    Args:
        bundle: folder of the bundle.
        labels: CSV file, see ``appliance.reading.labels``.
        cache: folder for what is derived on this box.
        root: folder that ``file`` is relative to; the CSV file's own when ``None``.
        engine: as in the configuration.
        finding: which finding the labels are of, where the bundle has several.
        positive: labels that mean the finding is there.
        sensitivity: what the suggested threshold should reach.
        age: age in years of rows that say none.
        plots: folder for ROC and calibration plots (needs the extra ``plots``).
        on_progress: told how many of how many files are done.

    Raises:
        LabelsError: the labels can't be used. PlotsMissingError: plots were asked for without matplotlib.
        appliance.inference.bundle.BundleError, appliance.inference.engine.EngineError: the bundle can't serve.
    """
    rows = read_labels(labels, root, age)
    loaded = bundles.load(bundle)
    ids = choose_findings(loaded.description, rows, finding, positive)
    said = {id_: truths(rows, id_, positive) for id_ in ids}
    for id_, truth in said.items():
        if not any(truth):
            raise LabelsError(
                f"{labels}: no row is positive for {id_}; name its labels with --positive "
                f"(there are: {', '.join(sorted({row.label for row in rows})[:12])})"
            )
    served = catalogue.serve(loaded, choice.setting(engine), Cache(cache / "artefacts"))
    try:
        evaluation, cases = evaluate(served, rows, said, sensitivity=sensitivity, on_progress=on_progress)
    finally:
        served.close()
    if plots is not None:
        from appliance.reading.evaluate_plots import plot

        for one in cases:
            plot(one, plots / f"{loaded.id}-{one.finding}.png")
    return evaluation


def evaluate(
    served: Served,
    rows: Sequence[Row],
    said: Mapping[str, Sequence[bool | None]],
    *,
    sensitivity: float = 0.90,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, list[Cases]]:
    """Read the rows and judge the findings of which ``said`` holds the truth, row by row."""
    readings = _readings(served, rows, on_progress)
    cases = [_cases(id_, rows, truth, readings) for id_, truth in said.items()]
    record = served.engine_record()
    evaluation = Evaluation(
        bundle=served.bundle.id,
        version=served.bundle.version,
        engine=record.engine,
        provider=record.provider,
        files=len(rows),
        read=sum(reading.status == "read" for reading in readings),
        refused=_refused(rows, readings),
        findings=tuple(figures(one, sensitivity) for one in cases),
        milliseconds_median=float(np.median([reading.milliseconds for reading in readings])),
    )
    return evaluation, cases


def figures(cases: Cases, wanted_sensitivity: float = 0.90) -> FindingFigures:
    """All figures of one finding's cases."""
    y, p = cases.labels, cases.probabilities
    threshold = next(iter(cases.thresholds)) if len(cases.thresholds) == 1 else None
    suggested = metrics.threshold_for_sensitivity(y, p, wanted_sensitivity)
    return FindingFigures(
        finding=cases.finding,
        unit="clip" if cases.by_clip else "file",
        positives=int(y.sum()),
        negatives=int((1 - y).sum()),
        patients=len(set(cases.patients)),
        auroc=metrics.bootstrap_by_patient(y, p, cases.patients),
        operating_point=_at(cases, cases.called, 0.5, threshold),
        calibration_error=metrics.expected_calibration_error(y, p),
        brier=metrics.brier(y, p),
        wanted_sensitivity=wanted_sensitivity,
        suggested=None if math.isnan(suggested) else _at(cases, p, suggested, suggested),
        by_source=tuple(_source(cases, source) for source in sorted(set(cases.sources))),
        notes=tuple(_notes(cases)),
    )


def _readings(served: Served, rows: Sequence[Row], on_progress: Callable[[int, int], None] | None) -> list[Reading]:
    modality = served.bundle.description.modality
    jobs = (Job(row.path, msgspec.structs.replace(row.known, modality=modality)) for row in rows)
    readings = []
    for done in stream(Reader(_Only(served)), jobs):
        readings.append(msgspec.structs.replace(done.reading, overlay=b""))
        if on_progress is not None:
            on_progress(len(readings), len(rows))
    return readings


def _cases(id_: str, rows: Sequence[Row], said: Sequence[bool | None], readings: Sequence[Reading]) -> Cases:
    """The cases that were read and labelled; rows of one unit are one case."""
    units: dict[str, list[tuple[Row, bool, Finding]]] = defaultdict(list)
    for row, truth, reading in zip(rows, said, readings, strict=True):
        found = next((one for one in reading.findings if one.id == id_), None)
        if truth is not None and found is not None:
            units[row.unit].append((row, truth, found))
    groups = list(units.values())
    probabilities = [_mean_logit([found.probability for _, _, found in group]) for group in groups]
    return Cases(
        finding=id_,
        labels=np.asarray([any(truth for _, truth, _ in group) for group in groups], dtype=np.float64),
        probabilities=np.asarray(probabilities, dtype=np.float64),
        called=np.asarray(
            [p >= group[0][2].threshold for p, group in zip(probabilities, groups, strict=True)], np.float64
        ),
        thresholds=frozenset(found.threshold for group in groups for _, _, found in group),
        patients=tuple(group[0][0].patient for group in groups),
        sources=tuple(group[0][0].source for group in groups),
        by_clip=any(len(group) > 1 for group in groups),
    )


def _mean_logit(probabilities: Sequence[float]) -> float:
    if len(probabilities) == 1:
        return probabilities[0]
    clipped = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return float(1 / (1 + np.exp(-np.mean(np.log(clipped / (1 - clipped))))))


def _at(cases: Cases, scores: npt.NDArray[np.float64], cut: float, threshold: float | None) -> AtThreshold:
    rates = metrics.rates_at(cases.labels, scores, cut)
    y, patients = cases.labels, cases.patients
    return AtThreshold(
        threshold=threshold,
        sensitivity=metrics.bootstrap_by_patient(y, scores, patients, metrics.sensitivity_at(cut)),
        specificity=metrics.bootstrap_by_patient(y, scores, patients, metrics.specificity_at(cut)),
        positive_predictive_value=rates.positive_predictive_value,
        negative_predictive_value=rates.negative_predictive_value,
        per_thousand=tuple(metrics.per_thousand(rates.sensitivity, rates.specificity, share) for share in PREVALENCES),
    )


def _source(cases: Cases, source: str) -> SourceFigures:
    chosen = np.asarray([one == source for one in cases.sources])
    y, p = cases.labels[chosen], cases.probabilities[chosen]
    rates = metrics.rates_at(y, cases.called[chosen], 0.5)
    patients = [patient for patient, one in zip(cases.patients, cases.sources, strict=True) if one == source]
    return SourceFigures(
        source=source,
        positives=int(y.sum()),
        negatives=int((1 - y).sum()),
        auroc=metrics.bootstrap_by_patient(y, p, patients),
        sensitivity=rates.sensitivity,
        specificity=rates.specificity,
    )


def _refused(rows: Sequence[Row], readings: Sequence[Reading]) -> tuple[Refused, ...]:
    """Per source and code, the commonest first, with the first capture's own words."""
    counts: Counter[tuple[str, str]] = Counter()
    reasons: dict[tuple[str, str], str] = {}
    for row, reading in zip(rows, readings, strict=True):
        if reading.refusal is not None:
            key = (row.source, reading.refusal.code)
            counts[key] += 1
            reasons.setdefault(key, reading.refusal.reason)
    return tuple(
        Refused(source=source, code=code, reason=reasons[source, code], count=count)
        for (source, code), count in counts.most_common()
    )


def _notes(cases: Cases) -> list[str]:
    positives, negatives = int(cases.labels.sum()), int((1 - cases.labels).sum())
    patients = len(set(cases.patients))
    notes = [
        f"Only {count} {what} were read: take the figures as a first impression."
        for what, count in (("positives", positives), ("negatives", negatives), ("patients", patients))
        if count < FEW
    ]
    if patients == len(cases.patients) and len(cases.patients) > 1:
        notes.append(
            "Every case counts as its own patient; if some are of the same patient, say so in a column 'patient'."
        )
    notes.append("The suggested threshold was chosen on these data: expect a little less on the next patients.")
    return notes
