"""What the reports of both picture models share: the net's table in ``bundle.toml`` and the golden tolerances.

What this module keeps true: tolerances are measured between the shipped form and the form derived on x86, so that an engine
that rounds differently passes the golden check and another model does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.inference import derive
from tools.train import quantise
from tools.train.metrics import per_thousand

Floats = npt.NDArray[np.floating]
Cases = Mapping[str, Mapping[str, quantise.Batch]]
FLOORS = {"logits": 0.15, "cam": 0.5, "gate": 0.5, "distance": 0.1}
GRAPH = "net"


def graph_table(findings: int) -> dict[str, Any]:
    """The one graph of a picture bundle."""
    shapes: dict[str, list[int | str]] = {
        "logits": ["N", findings],
        "cam": ["N", findings, 7, 7],
        "gate": ["N", 1],
        "distance": ["N", 1],
    }
    return {
        "name": GRAPH,
        "file": "model.onnx",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["N", 1, 224, 224]}],
        "outputs": [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()],
    }


def tolerances(model: Path, work: Path, cases: Cases) -> dict[str, float]:
    """What each output may differ by: thrice the step from the shipped form to x86's on the golden cases, or a floor."""
    derived = work / "golden-x86.onnx"
    derive.write(model, derived, unsigned=True)
    allowed = {}
    for name, floor in FLOORS.items():
        worst = 0.0
        for case in cases.values():
            first, second = (quantise.outputs(path, [case[GRAPH]], [name])[name] for path in (model, derived))
            worst = max(worst, float(np.max(np.abs(first - second))))
        allowed[name] = round(max(floor, 3 * worst), 2)
    return allowed


def golden_image(image: Floats) -> npt.NDArray[np.float32]:
    """A model input ``[224, 224]`` as ``[1, 1, 224, 224]`` on 256 levels, so that the golden file stays small."""
    return (np.round(image * 255) / np.float32(255))[None, None].astype(np.float32)


def thousand(entry: Mapping[str, Any]) -> list[dict[str, float]]:
    """Missed and false alarms among 1,000 at 5 % and 20 % prevalence, from an entry of ``metrics.summary``."""
    rates = (entry["sensitivity"]["value"], entry["specificity"]["value"])
    return [per_thousand(*rates, prevalence) for prevalence in (0.05, 0.20)]
