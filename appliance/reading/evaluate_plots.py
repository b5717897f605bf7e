"""The plots of an evaluation: ROC and calibration, side by side in one PNG.

What this module keeps true: matplotlib (the extra ``plots``) is imported only here, and draws to a file, never to a screen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from appliance.reading import metrics
from appliance.reading.evaluate import Cases


class PlotsMissingError(Exception):
    """matplotlib is not installed."""


def plot(cases: Cases, path: Path) -> None:
    """Write ROC (with the operating point) and calibration (with how many cases stand behind each point) to ``path``."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsMissingError("plots need matplotlib; install it with: uv pip install 'bedside[plots]'") from error
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    roc, calibration = figure.subplots(1, 2)
    y, p = cases.labels, cases.probabilities
    false_positive_rate, sensitivity, _ = metrics.roc_curve(y, p)
    area = metrics.bootstrap_by_patient(y, p, cases.patients)
    point = metrics.rates_at(y, cases.called, 0.5)
    roc.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    roc.step(false_positive_rate, sensitivity, where="post", color="#1f4e79")
    roc.plot(1 - point.specificity, point.sensitivity, "o", color="#c00000", label="operating point")
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(-0.03, 1.03), aspect="equal")
    roc.set_title(f"{cases.finding}: AUROC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]")
    roc.legend(loc="lower right")
    curve = metrics.calibration_curve(y, p)
    calibration.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    calibration.plot([bin_.predicted for bin_ in curve], [bin_.observed for bin_ in curve], "-", color="#1f4e79")
    sizes = 20 + 180 * np.asarray([bin_.weight for bin_ in curve]) / max(float(y.size), 1.0)
    calibration.scatter([bin_.predicted for bin_ in curve], [bin_.observed for bin_ in curve], s=sizes, color="#1f4e79")
    for bin_ in curve:
        calibration.annotate(
            f"{bin_.weight:.0f}", (bin_.predicted, bin_.observed), (4, -10), textcoords="offset points"
        )
    calibration.set(
        xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1.01), aspect="equal"
    )
    calibration.set_title(f"calibration error {metrics.expected_calibration_error(y, p):.3f}, n = {y.size}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
