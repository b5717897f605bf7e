"""From the held-out scores of the chest X-ray model to its bundle: operating points, gate, metrics, golden cases, card.

What this module keeps true: thresholds come from held-out INT8 scores; the bundle is not written when INT8 and FP32
disagree (``quantise.require``) for children alone or for adults alone, neither in the graph as shipped nor in the form derived
from it on x86.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import Bundle, Description
from appliance.reading import metrics as figures
from appliance.reading import xray
from tools.train import build, bundle_writer, card, chest_gate, explain, gate, hard, picture_gate, quantise, report
from tools.train.chest_data import NORMAL, OPACITY, Cache, Film
from tools.train.metrics import summary, temperature, threshold_for_sensitivity

Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.bool_]
SOURCES = {"kermany": "Kermany 2018, Guangzhou (children 1–5 years)", "nih": "NIH ChestX-ray14 with RSNA reads"}


class Run(msgspec.Struct, frozen=True):
    """What training left: films, cache, held-out scores, scores of a net that never saw the source, the graph for all."""

    data: Path
    work: Path
    out: Path
    found: list[Film]
    cache: Cache
    measured: dict[str, npt.NDArray[Any]]
    elsewhere: dict[str, npt.NDArray[Any]]
    model: Path

    def rows(self, wanted: Callable[[Film], bool]) -> Rows:
        """Which films are ``wanted``."""
        return np.array([wanted(film) for film in self.found])

    @property
    def truth(self) -> Floats:
        """1 where the finding is there by label (children) or by the radiologists' read (adults), else 0."""
        return np.array(
            [film.read == OPACITY if film.source == "nih" else film.label == "pneumonia" for film in self.found], float
        )

    def patients(self, rows: Rows) -> list[str]:
        """Patient of each row."""
        return [self.found[i].patient for i in np.flatnonzero(rows)]


class Cut(msgspec.Struct, frozen=True):
    """Calibration and the two thresholds, as logits and as calibrated probabilities."""

    temperature: float
    bias: float
    child: float
    adult: float

    def probability(self, logits: Floats) -> Floats:
        """Calibrated probability of raw logits."""
        return 1 / (1 + np.exp(-(np.asarray(logits, float) + self.bias) / self.temperature))


def write(run: Run, configuration: dict[str, Any], log: Callable[[str], None]) -> str:
    """Write the bundle and return a line with its main figures."""
    kermany, read = run.rows(lambda f: f.source == "kermany"), run.rows(lambda f: bool(f.read))
    cut = _cut(run, kermany, read, configuration["operating"])
    fidelity = _fidelity(run, kermany, read, cut)
    outcome = picture_gate.measure(
        chest_gate.captures(run.data, run.found), run.model, configuration["operating"]["refused_good"]
    )
    log("gate measured")
    run.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.model, run.out / "model.onnx")
    gate.attach(run.out / "model.onnx", outcome.fitted)
    metrics = _metrics(run, cut, kermany, read) | {
        "int8": {name: msgspec.to_builtins(value) for name, value in fidelity.items()},
        "gate": outcome.table,
        "explanation": _explanation(run, kermany, read),
        "speed": build.speed(run.model) | {"model.onnx, megabytes": (run.out / "model.onnx").stat().st_size / 1e6},
    }
    log("measured")
    description = _description(configuration, cut, metrics, outcome)
    bundle_writer.write_golden(run.out, {report.GRAPH: run.out / "model.onnx"}, _golden())
    bundle = _write(run, description, metrics, configuration["card"])
    headline = "; ".join(f"{k}: {v['auroc']['value']}" for k, v in metrics["headline"].items())
    return f"{bundle.root}: {bundle.id} {bundle.version}; AUROC {headline}"


def _cut(run: Run, kermany: Rows, read: Rows, operating: dict[str, float]) -> Cut:
    scores, truth = run.measured["int8"], run.truth
    weights = np.zeros(len(truth))
    for rows in (kermany, read):
        for label in (0.0, 1.0):
            weights[rows & (truth == label)] = 0.25 / np.sum(rows & (truth == label))
    used = weights > 0
    heat, bias = temperature(truth[used], scores[used], weights[used])
    child = threshold_for_sensitivity(truth[kermany], scores[kermany], operating["child_sensitivity"])
    adult = threshold_for_sensitivity(
        truth[read], scores[read], operating["adult_sensitivity"], operating["adult_slack"], scores[~kermany]
    )
    return Cut(heat, bias, child, adult)


def _fidelity(run: Run, kermany: Rows, read: Rows, cut: Cut) -> dict[str, quantise.Fidelity]:
    """INT8 beside FP32 on held-out films, as shipped and as derived on x86; raises when a limit is passed."""
    found: dict[str, quantise.Fidelity] = {}
    nih = run.rows(lambda f: f.source == "nih")
    for form, name in (("int8", "derived on x86"), ("shipped", "as shipped")):
        scores, before = run.measured[form], run.measured["fp32"]
        there = ~np.isnan(scores)
        for title, labelled, every, cut_at in (
            ("children", kermany, kermany, cut.child),
            ("adults", read, nih, cut.adult),
        ):
            one = quantise.fidelity(
                run.truth[labelled & there], before[labelled & there], scores[labelled & there], cut_at
            )
            # Decisions are counted on every adult film, read or not: 227 alone can't show one per cent.
            flipped = np.mean((before[every & there] >= cut_at) != (scores[every & there] >= cut_at))
            one = msgspec.structs.replace(one, flipped=float(flipped), n=int(np.sum(every & there)))
            quantise.require(f"chest X-ray, {title}, {name}", one)
            found[f"{title}, {name}"] = one
    return found


def _metrics(run: Run, cut: Cut, kermany: Rows, read: Rows) -> dict[str, Any]:
    truth, scores, elsewhere = run.truth, run.measured["int8"], run.elsewhere["int8"]
    normal = run.rows(lambda f: f.read in {OPACITY, NORMAL})

    def one(rows: Rows, threshold: float, values: Floats = scores) -> dict[str, object]:
        return summary(truth[rows], values[rows], threshold, run.patients(rows))

    def adults(wanted: Callable[[Film], bool]) -> Rows:
        return read & run.rows(wanted)

    bands = [(1, 15), (15, 40), (40, 60), (60, 120)]
    viral = run.rows(lambda f: f.source == "kermany" and (f.label == "normal" or "virus" in f.path.name))
    bacterial = run.rows(lambda f: f.source == "kermany" and (f.label == "normal" or "bacteria" in f.path.name))
    child, adult = one(kermany, cut.child), one(read, cut.adult)
    rest = read & run.rows(lambda f: f.read != NORMAL)
    return {
        "headline": {
            "children: pneumonia (Kermany)": child,
            "adults: lung opacity versus normal (RSNA reads)": one(normal, cut.adult),
            "adults: lung opacity versus all other reads": adult,
        },
        "per_source": {SOURCES["kermany"]: child, SOURCES["nih"]: adult},
        "subgroups": {
            "children: bacterial versus normal": one(bacterial, cut.child),
            "children: viral versus normal": one(viral, cut.child),
            "adults, PA": one(adults(lambda f: f.view == "PA"), cut.adult),
            "adults, AP": one(adults(lambda f: f.view == "AP"), cut.adult),
            "adults, women": one(adults(lambda f: f.sex == "F"), cut.adult),
            "adults, men": one(adults(lambda f: f.sex == "M"), cut.adult),
            "adults, opacity versus abnormal without opacity": one(rest, cut.adult),
            **{
                f"RSNA reads, {low} to {high - 1} years": one(adults(_aged(low, high)), cut.adult)
                for low, high in bands
            },
        },
        "leave_one_source_out": {
            "children, trained on NIH only": one(kermany, _same_rate(run, kermany, elsewhere, cut.child), elsewhere),
            "adults, trained on Kermany only, versus normal": one(
                normal, _same_rate(run, read, elsewhere, cut.adult), elsewhere
            ),
            "adults, trained on Kermany only, versus all other reads": one(
                read, _same_rate(run, read, elsewhere, cut.adult), elsewhere
            ),
        },
        "calibration_error": {
            "children, at the data's prevalence": _error(truth, scores, kermany, cut, balanced=False),
            "children, both classes equal": _error(truth, scores, kermany, cut, balanced=True),
            "adults (reads), both classes equal": _error(truth, scores, read, cut, balanced=True),
        },
        "per_thousand": {name: report.thousand(entry) for name, entry in (("children", child), ("adults", adult))},
    }


def _aged(low: float, high: float) -> Callable[[Film], bool]:
    return lambda film: film.age is not None and low <= film.age < high


def _same_rate(run: Run, rows: Rows, elsewhere: Floats, threshold: float) -> float:
    """The threshold at which as many of ``rows`` are called positive as the shipped one calls: sites shift the scale."""
    share = float(np.mean(run.measured["int8"][rows] >= threshold))
    return float(np.quantile(elsewhere[rows], 1 - share))


def _error(truth: Floats, scores: Floats, rows: Rows, cut: Cut, *, balanced: bool) -> float:
    labels = truth[rows]
    weights = np.where(labels > 0.5, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())) if balanced else None
    return round(figures.expected_calibration_error(labels, cut.probability(scores[rows]), weights=weights), 4)


def _explanation(run: Run, kermany: Rows, read: Rows) -> dict[str, float]:
    """Pointing on every read film with boxes; deletion on positives of the first fold, by the graph that held them out."""
    boxed = np.flatnonzero(read & run.rows(lambda f: bool(f.boxes)))
    table = explain.pointing(run.measured["cam"][boxed], [run.found[i].boxes for i in boxed])
    for name, rows in (("adults", read), ("children", kermany)):
        scored = ~np.isnan(run.measured["shipped"])
        chosen = np.flatnonzero(rows & scored & (run.truth > 0.5) & (run.measured["fold"] == 0))[:60]
        images = run.cache.images[chosen].astype(np.float32)
        found = explain.deletion(run.work / "chest-fold0.x86.onnx", images, run.measured["cam"][chosen], 0)
        table |= {f"{name}: {key}": value for key, value in found.items()}
    return table


def _golden() -> dict[str, dict[str, dict[str, Floats]]]:
    """Golden inputs: pydicom-data's adult chest CR and generated pictures, none of them from the training data."""
    import pydicom
    from pydicom.data import get_testdata_file

    from appliance.reading.prepared import Header, Picture

    film = pydicom.dcmread(get_testdata_file("RG1_UNCI.dcm"))
    picture = Picture(
        header=Header(media_type="application/dicom"),
        pixels=film.pixel_array[None],
        invert=True,
        window=(15000.0, 30000.0),
    )
    base = xray.tensor320(picture)
    made = hard.textures(np.random.default_rng(1))
    pictures = {
        "chest": base,
        "chest-mirrored": np.ascontiguousarray(base[:, ::-1]),
        "inverted": np.float32(1) - base,
        "noise": made["noise"][0],
        "shapes": made["shapes"][0],
    }
    return {
        name: {report.GRAPH: {"image": report.golden_image(xray.normalise(value))}} for name, value in pictures.items()
    }


def _description(
    configuration: dict[str, Any], cut: Cut, metrics: dict[str, Any], outcome: picture_gate.Outcome
) -> Description:
    """``bundle.toml`` from the configuration's words and what was measured."""
    table = dict(configuration["bundle"])
    adult_from = configuration["operating"]["adult_from"]
    child, _, adult = metrics["headline"].values()
    table["gate"] = dict(table["gate"]) | {
        "scores": [{"graph": report.GRAPH, "output": "gate"}],
        "threshold": round(outcome.threshold, 4),
        "warn": {"distance": (0.0, round(outcome.far, 3))},
    }
    table["graphs"] = [report.graph_table(1)]
    points = []
    for entry, threshold, ages, chosen in (
        (child, cut.child, (0.0, adult_from), "child_sensitivity"),
        (adult, cut.adult, (adult_from, 150.0), "adult_sensitivity"),
    ):
        points.append(
            {
                "threshold": round(float(cut.probability(np.array([threshold]))[0]), 5),
                "sensitivity": entry["sensitivity"]["value"],
                "specificity": entry["specificity"]["value"],
                "chosen_for": f"sensitivity {configuration['operating'][chosen]:g} on held-out patients (INT8)",
                "age_years": ages,
            }
        )
    table["findings"] = [
        dict(configuration["finding"])
        | {
            "scores": [{"graph": report.GRAPH, "output": "logits", "index": 0}],
            "operating_points": points,
            "temperature": cut.temperature,
            "bias": cut.bias,
            "map": ("cam", 0),
        }
    ]
    table["golden"] = {"file": bundle_writer.GOLDEN, "absolute": 0.5}
    return msgspec.convert(table | {"files": {}}, Description)


def _write(run: Run, description: Description, metrics: dict[str, Any], words: dict[str, Any]) -> Bundle:
    tolerances = report.tolerances(run.out / "model.onnx", run.work, _golden())
    golden = msgspec.structs.replace(description.golden, outputs=tolerances)
    description = msgspec.structs.replace(description, golden=golden)
    sources = []
    for name, title in SOURCES.items():
        films = [film for film in run.found if film.source == name]
        reads = sum(bool(film.read) for film in films)
        use = (
            "labels of the source"
            if name == "kermany"
            else f"{reads} films by the radiologists' read, the others by a soft label"
        )
        licence = "; ".join(sorted({film.licence.split(" (")[0] for film in films}))
        patients = len({film.patient for film in films})
        sources.append(card.Source(name=title, licence=licence, patients=patients, files=len(films), use=use))
    text = card.Words(
        made=words["made"],
        evaluation=words["evaluation"],
        limits=words["limits"],
        tried=words.get("tried", ()),
        command="python -m tools.train.chest_xray --data DIR --out models/chest-xray",
    )
    metrics = metrics | {"sources": [msgspec.to_builtins(source) for source in sources]}
    page = card.write(description, sources, text, bundle_writer.finite(metrics))
    return bundle_writer.write(run.out, description, metrics, page, ["model.onnx", bundle_writer.GOLDEN])
