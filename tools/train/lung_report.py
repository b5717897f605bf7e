"""From the held-out scores of the lung ultrasound model to its bundle: operating points, gate, metrics, golden cases, card.

What this module keeps true: thresholds come from held-out INT8 clip scores; the bundle is not written when INT8 and FP32
disagree (``quantise.require``), neither for the graph as shipped nor for the form derived from it on x86.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Description
from appliance.reading import metrics as figures
from appliance.reading import ultrasound
from tools.train import build, bundle_writer, card, explain, gate, hard, lung_gate, picture_gate, quantise, report
from tools.train.lung_data import FINDINGS, Cache, Clip
from tools.train.metrics import summary, temperature, threshold_for_sensitivity

Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.bool_]
SLACK = 0.10
"""How much more sensitivity than wanted a firmer threshold may give."""
HOSPITAL = "Northumbria"
"""The one site with many healthy and many ill patients."""


class Run(msgspec.Struct, frozen=True):
    """What training left: clips, cache, held-out scores, scores of a net that never saw the hospital, the graph for all."""

    data: Path
    work: Path
    out: Path
    found: list[Clip]
    cache: Cache
    measured: dict[str, npt.NDArray[Any]]
    elsewhere: dict[str, npt.NDArray[Any]]
    model: Path

    @property
    def labels(self) -> Floats:
        """``[clips, F]``, NaN where unknown."""
        return np.array([clip.labels for clip in self.found])

    def rows(self, wanted: Callable[[Clip], bool]) -> Rows:
        """Which clips are ``wanted``."""
        return np.array([wanted(clip) for clip in self.found])


class Cut(msgspec.Struct, frozen=True):
    """Calibration of one finding and its threshold as a logit."""

    temperature: float
    bias: float
    threshold: float

    def probability(self, logits: Floats) -> Floats:
        """Calibrated probability of raw clip logits."""
        return 1 / (1 + np.exp(-(np.asarray(logits, float) + self.bias) / self.temperature))


def write(run: Run, configuration: dict[str, Any], log: Callable[[str], None]) -> str:
    """Write the bundle and return a line with its main figures."""
    allowed = run.rows(lambda clip: clip.trainable)
    cuts = [
        _cut(run, index, allowed, configuration["operating"]["sensitivity"][name])
        for index, name in enumerate(FINDINGS)
    ]
    fidelity = _fidelity(run, cuts)
    outcome = picture_gate.measure(
        lung_gate.captures(run.data, run.found), run.model, configuration["operating"]["refused_good"]
    )
    log("gate measured")
    run.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.model, run.out / "model.onnx")
    gate.attach(run.out / "model.onnx", outcome.fitted)
    metrics = _metrics(run, cuts, allowed) | {
        "int8": {name: msgspec.to_builtins(value) for name, value in fidelity.items()},
        "gate": outcome.table,
        "explanation": _explanation(run),
        "speed": build.speed(run.model) | {"model.onnx, megabytes": (run.out / "model.onnx").stat().st_size / 1e6},
    }
    cases = golden_cases()
    bundle_writer.write_golden(run.out, {report.GRAPH: run.out / "model.onnx"}, cases)
    tolerances = report.tolerances(run.out / "model.onnx", run.work, cases)
    description = _description(configuration, cuts, metrics, outcome, tolerances)
    words = card.Words(
        **configuration["card"], command="python -m tools.train.lung_ultrasound --data DIR --out models/lung-ultrasound"
    )
    sources = _sources(run)
    metrics |= {"sources": [msgspec.to_builtins(source) for source in sources]}
    page = card.write(description, sources, words, bundle_writer.finite(metrics))
    bundle = bundle_writer.write(run.out, description, metrics, page, ["model.onnx", bundle_writer.GOLDEN])
    headline = "; ".join(f"{k}: {v['auroc']['value']}" for k, v in metrics["headline"].items())
    return f"{bundle.root}: {bundle.id} {bundle.version}; AUROC {headline}"


def _cut(run: Run, index: int, allowed: Rows, wanted: float) -> Cut:
    labels, scores = run.labels[:, index], run.measured["int8"][:, index]
    known = allowed & ~np.isnan(labels)
    heat, bias = temperature(labels[known], scores[known])
    return Cut(heat, bias, threshold_for_sensitivity(labels[known], scores[known], wanted, SLACK))


def _fidelity(run: Run, cuts: list[Cut]) -> dict[str, quantise.Fidelity]:
    """INT8 beside FP32 on every held-out clip; decisions flipped are counted over all findings together."""
    found: dict[str, quantise.Fidelity] = {}
    for form, title in (("int8", "as shipped"), ("x86", "derived on x86")):
        each = []
        for index, name in enumerate(FINDINGS):
            known = ~np.isnan(run.labels[:, index])
            labels, before, after = (v[known, index] for v in (run.labels, run.measured["fp32"], run.measured[form]))
            each.append(quantise.fidelity(labels, before, after, cuts[index].threshold))
            found[f"{name}, {title}"] = each[-1]
        flipped = float(np.mean([one.flipped for one in each]))
        for name, one in zip(FINDINGS, each, strict=True):
            quantise.require(f"{name}, {title}", msgspec.structs.replace(one, flipped=flipped))
    return found


def _metrics(run: Run, cuts: list[Cut], allowed: Rows) -> dict[str, Any]:
    scores, elsewhere = run.measured["int8"], run.elsewhere["int8"]

    def one(index: int, rows: Rows, values: Floats = scores) -> dict[str, object]:
        known = rows & ~np.isnan(run.labels[:, index])
        patients = [run.found[i].patient for i in np.flatnonzero(known)]
        return summary(run.labels[known, index], values[known, index], cuts[index].threshold, patients)

    def each(rows: Rows, title: str, values: Floats = scores) -> dict[str, Any]:
        return {f"{name}{title}": one(index, rows, values) for index, name in enumerate(FINDINGS)}

    headline = each(allowed, "")
    sites = sorted({clip.site for clip in run.found if clip.trainable})
    errors = {}
    for index, name in enumerate(FINDINGS):
        known = allowed & ~np.isnan(run.labels[:, index])
        labels = run.labels[known, index]
        weights = np.where(labels > 0.5, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
        probability = cuts[index].probability(scores[known, index])
        errors[f"{name}, both classes equal"] = figures.expected_calibration_error(labels, probability, 5, weights)
    return {
        "headline": headline,
        "per_source": {
            f"abnormal, {site}": one(0, allowed & run.rows(lambda c, site=site: c.site == site))  # type: ignore[misc]
            for site in sites
        }
        | each(~allowed, ", websites never trained on (licence)"),
        "subgroups": {
            "abnormal, convex probe": one(0, allowed & run.rows(lambda c: c.probe == "convex")),
            "abnormal, linear probe": one(0, allowed & run.rows(lambda c: c.probe == "linear")),
            "abnormal, stills": one(0, allowed & run.rows(lambda c: len(c.frames) == 1)),
            "abnormal, bacterial pneumonia versus healthy": one(0, allowed & _groups(run, "Bacterial pneumonia")),
            "abnormal, COVID-19 versus healthy": one(0, allowed & _groups(run, "COVID-19")),
        },
        "leave_one_source_out": each(
            run.rows(lambda c: c.site == HOSPITAL), f", trained without {HOSPITAL}", elsewhere
        ),
        "calibration_error": errors,
        "per_thousand": {name: report.thousand(entry) for name, entry in headline.items()},
    }


def _groups(run: Run, group: str) -> Rows:
    return run.rows(lambda clip: clip.group in {group, "regular"})


def _explanation(run: Run) -> dict[str, float]:
    """Deletion test on middle frames of the first fold's positives, by the graph that held them out."""
    table: dict[str, float] = {}
    model = run.work / "lung-fold0.x86.onnx"
    own = [np.flatnonzero(run.cache.image_owner == clip) for clip in range(len(run.found))]
    for index, name in enumerate(FINDINGS):
        chosen = np.flatnonzero((run.labels[:, index] > 0.5) & (run.measured["fold"] == 0))
        images = np.stack([run.cache.images[own[i][len(own[i]) // 2]] for i in chosen]).astype(np.float32)
        cams = build.scored(model, images, ["cam"])["cam"][:, index]
        found = explain.deletion(model, images, cams, index)
        table |= {f"{name}: {key}": value for key, value in found.items()}
    return table


def golden_cases() -> dict[str, dict[str, dict[str, Floats]]]:
    """Golden inputs: a still and a cine frame of pydicom-data and generated pictures, none from the training data."""
    from pydicom.data import get_testdata_file
    from pydicom.pixels import pixel_array

    from appliance.reading.prepared import Header, Picture

    pixels = pixel_array(get_testdata_file("gdcm-US-ALOKA-16.dcm"))
    still = Picture(header=Header(media_type="application/dicom"), pixels=pixels[None])
    made = hard.textures(np.random.default_rng(2))
    pictures = {
        "still": ultrasound.tensor(still, 0, ultrasound.sector(still, [0]) or (0, 0, *pixels.shape[:2]), 224),
        "noise": lung_gate.shrunk(made["noise"][0]),
        "shapes": lung_gate.shrunk(made["shapes"][0]),
        "sector": lung_gate.made_sector(np.random.default_rng(4)),
    }
    return {name: {report.GRAPH: {"image": report.golden_image(value)}} for name, value in pictures.items()}


def _description(
    configuration: dict[str, Any],
    cuts: list[Cut],
    metrics: dict[str, Any],
    outcome: picture_gate.Outcome,
    tolerances: dict[str, float],
) -> Description:
    table = dict(configuration["bundle"])
    table["gate"] = dict(table["gate"]) | {
        "scores": [{"graph": report.GRAPH, "output": "gate"}],
        "threshold": round(outcome.threshold, 4),
        "warn": {"distance": (0.0, round(outcome.far, 3))},
    }
    table["graphs"] = [report.graph_table(len(FINDINGS))]
    findings = []
    for index, (words, cut) in enumerate(zip(configuration["finding"], cuts, strict=True)):
        entry = metrics["headline"][words["id"]]
        point = {
            "threshold": round(float(cut.probability(np.array([cut.threshold]))[0]), 5),
            "sensitivity": entry["sensitivity"]["value"],
            "specificity": entry["specificity"]["value"],
            "chosen_for": f"sensitivity {configuration['operating']['sensitivity'][words['id']]:g} on held-out patients (INT8)",
        }
        findings.append(
            dict(words)
            | {
                "scores": [{"graph": report.GRAPH, "output": "logits", "index": index}],
                "operating_points": [point],
                "temperature": cut.temperature,
                "bias": cut.bias,
                "aggregate": "mean-logit",
                "map": ("cam", index),
            }
        )
    table["findings"] = findings
    table["golden"] = {"file": bundle_writer.GOLDEN, "absolute": 0.5, "outputs": tolerances}
    return msgspec.convert(table | {"files": {}}, Description)


def _sources(run: Run) -> list[card.Source]:
    sources = []
    for licence in sorted({clip.licence for clip in run.found}):
        own = [clip for clip in run.found if clip.licence == licence]
        sites = ", ".join(sorted({clip.site for clip in own}))
        use = "training and held-out figures" if own[0].trainable else "held-out figures only, never trained on"
        sources.append(
            card.Source(
                name=f"POCUS data set (covid19_ultrasound): {sites}",
                licence=licence,
                patients=len({clip.patient for clip in own}),
                files=len(own),
                use=use,
            )
        )
    return sources
