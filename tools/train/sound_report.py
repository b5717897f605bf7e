"""From the held-out scores of a sound model to its bundle: calibration, operating points, metrics, golden cases, card.

What this module keeps true: calibration and thresholds come from held-out INT8 scores; every (source, label) cell weighs
the same in them, so the largest clinic does not set the cut; between the thresholds of a wanted sensitivity and a wanted
specificity lies the uncertain band, and the card says how many captures fall into it.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference import derive
from appliance.inference.bundle import Description
from appliance.reading import metrics as figures
from appliance.reading.prepared import Sound
from tools.train import bundle_writer, card, quantise, sound_fit
from tools.train.metrics import per_thousand, summary, temperature
from tools.train.sound_gate import Outcome
from tools.train.sound_model import Run, Scores

Doubles = npt.NDArray[np.float64]
CHOSEN_FOR = "best mean of sensitivity and specificity, held out (INT8), sources and classes weighing the same"
FILES = {"network": "network.onnx", "trees": "trees.onnx", "gate": "gate.onnx"}


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Calibration, threshold (raw logit) and uncertain band (probabilities) of one finding, and what they give held out."""

    temperature: float
    bias: float
    threshold: float
    uncertain: tuple[float, float]
    sensitivity: float
    specificity: float
    in_band: float

    def probability(self, logits: Doubles) -> Doubles:
        """Calibrated probability of raw logits."""
        return np.asarray(1.0 / (1.0 + np.exp(-(logits + self.bias) / self.temperature)))


def write(run: Run, scores: Scores, final: sound_fit.Fit, outcome: Outcome, golden: Mapping[str, Sound]) -> str:
    """Write the bundle and return a line with its main figures."""
    names = list(run.configuration["data"]["positive"])
    cuts = {name: _cut(run, scores, column) for column, name in enumerate(names)}
    fidelity = _fidelity(run, scores, cuts)
    run.out.mkdir(parents=True, exist_ok=True)
    for path, name in ((final.network, "network"), (final.trees, "trees"), (run.work / "gate.onnx", "gate")):
        shutil.copyfile(path, run.out / FILES[name])
    metrics = _metrics(run, scores, cuts) | {
        "int8": {name: msgspec.to_builtins(value) for name, value in fidelity.items()},
        "gate": outcome.table,
        "speed": _speed(run, final, next(iter(golden.values()))),
    }
    cases = {name: run.prepare(one, run.description).inputs for name, one in golden.items()}
    bundle_writer.write_golden(run.out, {name: run.out / file for name, file in FILES.items()}, cases)
    description = _description(run, cuts, outcome, _network_tolerance(run, cases))
    words = run.configuration["card"]
    sources = _sources(run)
    metrics |= {"sources": [msgspec.to_builtins(one) for one in sources]}
    text = card.Words(
        made=words["made"],
        evaluation=words["evaluation"] + _bands(cuts),
        limits=words["limits"],
        aggregation=words["aggregation"],
        tried=words.get("tried", ()),
        command=f"python -m tools.train.{run.description.id.replace('-', '_')} --data DIR --out models/{run.description.id}",
    )
    page = card.write(description, sources, text, bundle_writer.finite(metrics))
    bundle = bundle_writer.write(run.out, description, metrics, page, [*FILES.values(), bundle_writer.GOLDEN])
    headline = "; ".join(f"{name} {entry['auroc']['value']}" for name, entry in metrics["headline"].items())
    return f"{bundle.root}: {bundle.id} {bundle.version}; AUROC {headline}"


def _rows(run: Run, values: Doubles, column: int) -> npt.NDArray[np.intp]:
    return np.flatnonzero(run.used & np.isfinite(values[:, column]))


def _cut(run: Run, scores: Scores, column: int) -> Cut:
    logits = scores.folds["int8"]
    rows = _rows(run, logits, column)
    labels, values, weights = run.sample.targets[rows, column], logits[rows, column], run.sample.weigh(rows)
    for label in (0.0, 1.0):
        weights[labels == label] *= 0.5 / weights[labels == label].sum()
    heat, bias = temperature(labels, values, weights)
    false, true, thresholds = figures.roc_curve(labels, values, weights)
    threshold = float(thresholds[1:][int(np.argmax((true - false)[1:]))])
    told = run.configuration["operating"]
    low = figures.threshold_for_sensitivity(labels, values, told["uncertain_sensitivity"], weights)
    high = figures.threshold_for_specificity(labels, values, told["uncertain_specificity"], weights)
    low, high = min(low, threshold), max(high, threshold)
    plain = Cut(
        temperature=heat, bias=bias, threshold=threshold, uncertain=(0, 1), sensitivity=0, specificity=0, in_band=0
    )
    band = plain.probability(np.array([low, high]))
    rates = figures.rates_at(labels, values, threshold)
    return msgspec.structs.replace(
        plain,
        uncertain=(float(band[0]), float(band[1])),
        sensitivity=rates.sensitivity,
        specificity=rates.specificity,
        in_band=float(np.mean((values >= low) & (values <= high))),
    )


def _fidelity(run: Run, scores: Scores, cuts: Mapping[str, Cut]) -> dict[str, quantise.Fidelity]:
    """INT8 beside FP32 on held-out recordings, as shipped and as derived on x86; raises when a limit is passed."""
    found = {}
    for column, (name, cut) in enumerate(cuts.items()):
        rows = _rows(run, scores.folds["fp32"], column)
        labels = run.sample.targets[rows, column].astype(np.float64)
        before = scores.folds["fp32"][rows, column]
        for form, title in (("int8", "as shipped"), ("x86", "derived on x86")):
            measured = quantise.fidelity(labels, before, scores.folds[form][rows, column], cut.threshold)
            quantise.require(f"{name}, {title}", measured)
            found[f"{name}, {title}"] = measured
        alone, rounded = (scores.folds[f"network-{form}"][rows, column] for form in ("fp32", "int8"))
        found[f"{name}, the network alone"] = quantise.fidelity(labels, alone, rounded, 0.0)
    return found


def _metrics(run: Run, scores: Scores, cuts: Mapping[str, Cut]) -> dict[str, Any]:
    headline, per_source, elsewhere, errors, thousand, parts = {}, {}, {}, {}, {}, {}
    subgroups: dict[str, Any] = {}
    values, away = scores.folds["int8"], scores.elsewhere.get("int8")
    word = run.configuration["data"]["source"]
    for column, (name, cut) in enumerate(cuts.items()):
        truth = run.sample.targets[:, column].astype(np.float64)

        def one(rows: npt.NDArray[np.intp], given: Doubles, labels: Doubles, threshold: float) -> dict[str, Any]:
            return summary(labels[rows], given[rows], threshold, list(run.groups[rows]))

        rows = _rows(run, values, column)
        entry = one(rows, values[:, column], truth, cut.threshold)
        headline[f"{name}, all"] = entry
        kinds = [kind for kind in np.unique(run.sources[rows]) if 0 < truth[rows][run.sources[rows] == kind].mean() < 1]
        for kind in kinds:
            mine = rows[run.sources[rows] == kind]
            per_source[f"{name}, {word} {kind}"] = one(mine, values[:, column], truth, cut.threshold)
            if away is not None and np.isfinite(away[mine, column]).all():
                title = f"{name}, {word} {kind} never trained on"
                elsewhere[title] = one(mine, away[:, column], truth, cut.threshold)
        subgroups |= _sessions(run, values[:, column], truth, rows, name)
        probability = cut.probability(values[rows, column])
        errors[f"{name}, all"] = round(figures.expected_calibration_error(truth[rows], probability), 4)
        share = truth[rows].mean()
        balance = np.where(truth[rows] > 0.5, 0.5 / share, 0.5 / (1 - share))
        errors[f"{name}, both classes equal"] = round(
            figures.expected_calibration_error(truth[rows], probability, weights=balance), 4
        )
        rates = (entry["sensitivity"]["value"], entry["specificity"]["value"])
        thousand[name] = [per_thousand(*rates, prevalence) for prevalence in (0.05, 0.20)]
        for form, title in (("trees", "trees alone"), ("network-int8", "network alone")):
            parts[f"{name}, {title}"] = figures.auroc(truth[rows], scores.folds[form][rows, column])
        parts[f"{name}, share in the uncertain band"] = cut.in_band
    return {
        "headline": headline,
        "per_source": per_source,
        "subgroups": subgroups,
        "leave_one_source_out": elsewhere,
        "calibration_error": errors,
        "per_thousand": thousand,
        "parts": parts,
        "headline_mean_of_sources": {
            name: _mean(per_source, name, run.configuration["data"].get("headline_sources", [])) for name in cuts
        },
    }


def _bands(cuts: Mapping[str, Cut]) -> str:
    """How many held-out captures get no clear answer."""
    shares = ", ".join(f"{name} {cut.in_band:.0%}" for name, cut in cuts.items())
    return f" Share of held-out captures in the uncertain band, where the answer is shown as uncertain: {shares}."


def _sessions(
    run: Run, logits: Doubles, truth: Doubles, rows: npt.NDArray[np.intp], name: str
) -> dict[str, dict[str, Any]]:
    """Whole recordings in place of their parts: positive when any part is, scored by the parts' mean or highest logit."""
    sessions: dict[str, list[int]] = {}
    for row in rows:
        sessions.setdefault(run.recordings[row].session, []).append(int(row))
    sessions.pop("", None)
    found = {}
    if sessions:
        labels = np.array([truth[mine].max() for mine in sessions.values()])
        groups = [run.recordings[mine[0]].group for mine in sessions.values()]
        for title, join in (("mean", np.mean), ("highest", np.max)):
            values = np.array([join(logits[mine]) for mine in sessions.values()])
            middle = figures.balanced_accuracy_threshold(labels, values)
            found[f"{name}, whole recordings by their parts' {title} logit (at their own best cut)"] = summary(
                labels, values, middle, groups
            )
    return found


def _mean(per_source: Mapping[str, Any], finding: str, wanted: Sequence[str]) -> float | None:
    """The mean AUROC of the sources that the target names."""
    chosen = [
        entry["auroc"]["value"]
        for title, entry in per_source.items()
        if title.startswith(f"{finding}, ") and title.rsplit(" ", 1)[-1] in wanted
    ]
    return round(float(np.mean(chosen)), 4) if chosen else None


def _speed(run: Run, final: sound_fit.Fit, example: Sound) -> dict[str, Any]:
    """CPU milliseconds of one thread for 10 s of sound: preprocessing, each graph, the network in FP32 and INT8."""
    samples = np.resize(example.samples, int(10 * example.rate_hz)).astype(np.float32)
    ten = Sound(header=example.header, samples=samples, rate_hz=example.rate_hz)
    derived = run.work / "final-x86.onnx"
    derive.write(final.network, derived, unsigned=True)
    inputs = run.prepare(ten, run.description).inputs
    network, single = quantise.session(derived), quantise.session(final.network_fp32)
    others = {name: quantise.session(run.out / FILES[name]) for name in ("trees", "gate")}
    steps: dict[str, Callable[[], object]] = {
        "preprocessing and hand features": lambda: run.prepare(ten, run.description),
        "network, INT8 (x86 form)": lambda: network.run(None, inputs["network"]),
        "network, FP32": lambda: single.run(None, inputs["network"]),
        "trees": lambda: others["trees"].run(None, inputs["trees"]),
        "gate": lambda: others["gate"].run(None, inputs["gate"]),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(35):
        for name, step in steps.items():
            begun = time.thread_time()
            step()
            if turn >= 5:
                times[name].append(1000 * (time.thread_time() - begun))
    median = {name: float(np.median(taken)) for name, taken in times.items()}
    total = sum(value for name, value in median.items() if name != "network, FP32")
    sizes = sum((run.out / file).stat().st_size for file in FILES.values())
    return {
        **{f"10 s of sound, {name}, milliseconds": round(value, 2) for name, value in median.items()},
        "10 s of sound, all together in INT8, milliseconds": round(total, 2),
        "network, FP32 over INT8": round(median["network, FP32"] / median["network, INT8 (x86 form)"], 2),
        "processor": _processor(),
        "all graphs, megabytes": round(sizes / 1e6, 2),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"


def _network_tolerance(run: Run, cases: Mapping[str, Mapping[str, Any]]) -> float:
    """Thrice the step from the shipped form to x86's: engines round differently, another model differs by more."""
    derived = run.work / "golden-x86.onnx"
    shipped = run.out / FILES["network"]
    derive.write(shipped, derived, unsigned=True)
    worst = 0.0
    for inputs in cases.values():
        first, second = (quantise.outputs(path, [inputs["network"]], ["logit"])["logit"] for path in (shipped, derived))
        worst = max(worst, float(np.max(np.abs(first - second))))
    return round(max(0.1, 3.0 * worst), 3)


def _description(run: Run, cuts: Mapping[str, Cut], outcome: Outcome, tolerance: float) -> Description:
    """``bundle.toml`` from the configuration's words and what was measured."""
    words = dict(run.configuration["bundle"])
    length = round(run.settings.window_s * run.settings.rate_hz)
    widths = {"network": length, "trees": run.sample.table.features.shape[1], "gate": run.sample.table.indices.shape[1]}
    tensors = {"network": ("samples", "logit"), "trees": ("features", "probability"), "gate": ("indices", "good")}
    words["graphs"] = [
        {
            "name": name,
            "file": FILES[name],
            "inputs": [{"name": taken, "dtype": "float32", "shape": ["N", widths[name]]}],
            "outputs": [
                {"name": given, "dtype": "float32", "shape": ["N", 1 if name == "gate" else run.settings.outputs]}
            ],
            "engines": ["onnxruntime", "tensorrt"] if name == "network" else ["onnxruntime"],
            "precision": "int8" if name == "network" else "fp32",
        }
        for name, (taken, given) in tensors.items()
    ]
    words["gate"] = dict(words["gate"]) | {
        "scores": [{"graph": "gate", "output": "good", "transform": "logit"}],
        "threshold": round(outcome.threshold, 4),
        "rules": run.configuration["gate"]["rules"],
    }
    words["findings"] = []
    for column, told in enumerate(run.configuration["findings"]):
        cut = cuts[told["id"]]
        point = {
            "threshold": round(float(cut.probability(np.array([cut.threshold]))[0]), 5),
            "sensitivity": round(cut.sensitivity, 4),
            "specificity": round(cut.specificity, 4),
            "chosen_for": CHOSEN_FOR,
            "uncertain": [round(value, 4) for value in cut.uncertain],
        }
        weight = run.settings.network_weight
        words["findings"].append(
            dict(told)
            | {
                "scores": [
                    {"graph": "trees", "output": "probability", "index": column, "transform": "logit"},
                    {"graph": "network", "output": "logit", "index": column, "weight": weight},
                ],
                "operating_points": [point],
                "temperature": round(cut.temperature, 5),
                "bias": round(cut.bias, 5),
                "aggregate": "mean-logit",
            }
        )
    outputs = {"logit": tolerance, "probability": 1e-4, "good": 1e-4}
    words["golden"] = {"file": bundle_writer.GOLDEN, "absolute": tolerance, "outputs": outputs}
    return msgspec.convert(words | {"files": {}}, Description)


def _sources(run: Run) -> list[card.Source]:
    """One line per subset or device: how many files, and what they were used for."""
    told = run.configuration["data"]
    with (run.data / told["folder"] / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    title = {"name": rows[0]["source"], "licence": rows[0]["licence"]} | told.get("named", {})
    made = []
    for source in sorted(set(run.sources)):
        mine = run.sources == source
        use = "the models and the gate" if run.used[mine].any() else "good recordings for the gate only"
        made.append(
            card.Source(
                name=f"{title['name']}, {told['source']} {source}",
                licence=title["licence"],
                patients=len(set(run.groups[mine])),
                files=int(mine.sum()),
                use=use,
            )
        )
    return made
