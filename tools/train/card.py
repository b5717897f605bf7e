"""The model card: the description and ``metrics.json`` of a bundle as a page that a clinician and an engineer can read.

What this module keeps true: every number on the card is a number of ``metrics.json``; the words around them come from the
model's configuration. The same function writes the card of every bundle.

``metrics`` has these keys, each optional but ``headline``: ``headline``, ``per_source``, ``subgroups``,
``leave_one_source_out`` (title → entry of ``tools.train.metrics.summary``), ``calibration_error`` (title → number),
``int8`` (finding → ``tools.train.quantise.Fidelity`` as a mapping), ``per_thousand`` (title → list of entries of
``tools.train.metrics.per_thousand``), ``gate`` (title → {n, refused}), ``explanation`` (title → number or text) and
``speed`` (title → number or text).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance.inference.bundle import Description


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source of training data. ``use`` says what it was used for."""

    name: str
    licence: str
    patients: int
    files: int
    use: str


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What a person must write: how the figures came about, and the limits of the model in plain words."""

    made: str
    evaluation: str
    limits: Sequence[str]
    aggregation: str = ""
    command: str = ""
    tried: Sequence[str] = ()
    """What was tried and left out, so that nobody tries it again by accident."""


def write(description: Description, sources: Sequence[Source], words: Words, metrics: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    parts = [
        f"# {description.title}\n",
        f"Bundle `{description.id}` version {description.version}. Licence of the weights: {description.licence}\n",
        f"**Advice for a health worker, never a diagnosis.** {description.intended_use}\n",
        "## Not for\n\n" + _bullets(description.not_for),
        "## Limits\n\n" + _bullets(words.limits),
        _sources(sources),
        f"## How it was made\n\n{words.made}\n",
        f"Made again by `{words.command}`.\n" if words.command else "",
        "## Tried and left out\n\n" + _bullets(words.tried) if words.tried else "",
        f"## How it was measured\n\n{words.evaluation}\n",
        f"Several frames or windows of one capture: {words.aggregation}\n" if words.aggregation else "",
        _codes(description),
        _operating_points(description),
        _summaries("Figures", metrics.get("headline", {})),
        _summaries("Per source", metrics.get("per_source", {})),
        _summaries("Subgroups", metrics.get("subgroups", {})),
        _summaries("A site never trained on (leave one source out)", metrics.get("leave_one_source_out", {})),
        _per_thousand(metrics.get("per_thousand", {})),
        _pairs("Calibration error (expected, after temperature)", metrics.get("calibration_error", {})),
        _int8(metrics.get("int8", {})),
        _gate(metrics.get("gate", {})),
        _pairs("Is the overlay about the finding?", metrics.get("explanation", {})),
        _pairs("Speed and size", metrics.get("speed", {})),
    ]
    return "\n".join(part for part in parts if part)


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _codes(description: Description) -> str:
    told = [(one.id, one.code) for one in description.findings]
    told += [(word.label, word.code) for one in description.findings for word in one.wording if word.code]
    rows = [[name, code.scheme, code.value, code.meaning] for name, code in told]
    return "## Codes\n\n" + _table(["finding", "scheme", "code", "meaning"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def _with_interval(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return "–"
    if entry.get("low") is None:
        return _figure(entry["value"])
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _sources(sources: Sequence[Source]) -> str:
    rows = [[s.name, s.licence, str(s.patients), str(s.files), s.use] for s in sources]
    return "## Trained on\n\n" + _table(["source", "licence", "patients", "files", "use"], rows)


def _operating_points(description: Description) -> str:
    rows = []
    for finding in description.findings:
        mark = " (experimental)" if finding.experimental else ""
        for point in finding.operating_points:
            ages = f"{point.age_years[0]:g}–{point.age_years[1]:g}"
            rows.append(
                [
                    finding.id + mark,
                    ages,
                    f"{point.threshold:.3f}",
                    f"{point.sensitivity:.3f}",
                    f"{point.specificity:.3f}",
                    point.chosen_for,
                ]
            )
    header = ["finding", "age, years", "threshold", "sensitivity", "specificity", "chosen for"]
    return "## Operating points\n\n" + _table(header, rows)


def _summaries(title: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    rows = [
        [
            name,
            f"{entry.get('cases', '–')} ({entry.get('positives', '–')})",
            str(entry.get("patients", "–")),
            _with_interval(entry.get("auroc")),
            _with_interval(entry.get("sensitivity")),
            _with_interval(entry.get("specificity")),
        ]
        for name, entry in entries.items()
    ]
    header = ["", "cases (positive)", "patients", "AUROC [95 %]", "sensitivity [95 %]", "specificity [95 %]"]
    return f"## {title}\n\n" + _table(header, rows)


def _per_thousand(entries: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    rows = [
        [name, f"{one['prevalence']:.0%}", f"{one['missed']:g}", f"{one['false_alarms']:g}"]
        for name, several in entries.items()
        for one in several
    ]
    return "## Among 1,000 captures\n\n" + _table(["", "prevalence", "missed", "false alarms"], rows) if rows else ""


def _pairs(title: str, entries: Mapping[str, Any]) -> str:
    if not entries:
        return ""
    return f"## {title}\n\n" + _table(["", ""], [[name, _figure(value)] for name, value in entries.items()])


def _int8(entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    rows = [
        [
            name,
            str(entry["n"]),
            f"{entry['auroc_fp32']:.4f}",
            f"{entry['auroc_int8']:.4f}",
            f"{entry['auroc_difference']:.4f}",
            f"{entry['flipped']:.2%}",
        ]
        for name, entry in entries.items()
    ]
    header = ["", "cases", "AUROC FP32", "AUROC INT8", "difference", "decisions flipped"]
    return "## INT8 beside FP32\n\n" + _table(header, rows)


def _gate(entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    rows = [[name, str(entry["n"]), f"{entry['refused']:.1%}"] for name, entry in entries.items()]
    return "## When it does not answer\n\n" + _table(["input", "cases", "refused"], rows)
