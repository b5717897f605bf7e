"""A clinic's own labels: a CSV file with one row a file, and what it says of each finding.

What this module keeps true: a row says yes, no or nothing of a finding, and never something that was guessed; what can't be
understood is refused with the row's number. Columns: ``file`` (relative to the CSV file's folder or the root given), ``label``,
and optionally ``patient``, ``block`` (stands in where there is no patient), ``source``, ``clip``, ``age`` (years), ``sex``,
``view``; a column named like a finding (``b-lines`` or ``blines``) holds 0 or 1 and goes before ``label``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from appliance.inference.bundle import Description
from appliance.reading.requests import Known

_YES, _NO, _UNSAID = {"1", "true", "yes", "positive"}, {"0", "false", "no", "negative"}, {"", "na", "nan", "unknown"}


class LabelsError(Exception):
    """The labels can't be used; the message names the file, the row where there is one, and what to do."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled file. ``unit`` is what is scored as one: the clip where the labels name one, else the file."""

    number: int
    path: Path
    label: str
    patient: str
    source: str
    unit: str
    known: Known
    columns: dict[str, str]


def read_labels(path: Path, root: Path | None = None, age: float | None = None) -> list[Row]:
    """The rows of a CSV file; raises ``LabelsError``.

    ``age`` (years) counts for rows that say none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            records = [
                (reader.line_num, dict(zip(columns, (value or "" for value in row.values()), strict=False)))
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{path}: can't be read as CSV in UTF-8 ({error}); export the table again") from error
    if "file" not in columns:
        raise LabelsError(
            f"{path}: has no column 'file'; its first line must name the columns file,label[,patient,source]"
        )
    if not records:
        raise LabelsError(f"{path}: has no rows; add one for each file")
    return [_row(path, number, record, root or path.parent, age) for number, record in records]


def truths(rows: Sequence[Row], finding: str, positive: Iterable[str]) -> list[bool | None]:
    """What each row says of ``finding``: its own column, else whether the label is among ``positive``; ``None`` for nothing.

    Without ``positive`` a label that reads like the finding's id is positive.
    """
    wanted = {_plain(label) for label in positive} or {_plain(finding)}
    column = next((name for name in rows[0].columns if _plain(name) == _plain(finding)), None) if rows else None
    return [_said(row, column, wanted) for row in rows]


def choose_findings(
    description: Description, rows: Sequence[Row], asked: str | None, positive: Sequence[str]
) -> list[str]:
    """Which findings these labels can judge: the one asked for, else those with a column, else the only one there is."""
    ids = [spec.id for spec in description.findings]
    if asked is not None:
        if asked not in ids:
            raise LabelsError(f"{description.id} has no finding {asked!r}; it has {', '.join(ids)}")
        return [asked]
    columns = {_plain(name) for name in rows[0].columns} - {"label"}
    named = [id_ for id_ in ids if _plain(id_) in columns]
    if named and not positive:
        return named
    if len(ids) > 1:
        raise LabelsError(
            f"{description.id} has several findings; say which the labels are of: --finding {'|'.join(ids)}"
        )
    return ids


def _row(path: Path, number: int, record: Mapping[str, str], root: Path, age: float | None) -> Row:
    values = {name: value.strip() for name, value in record.items()}
    if not values.get("file"):
        raise LabelsError(f"{path}, line {number}: no file is named; fill the column 'file' or remove the line")
    if (said := values.get("age", "")) and said.lower() not in _UNSAID:
        try:
            age = float(said)
        except ValueError as error:
            raise LabelsError(f"{path}, line {number}: age {said!r} is no number of years; mend or empty it") from error
    source = values.get("source", "") or values.get("subset", "")
    whose = values.get("patient", "") or values.get("block", "") or values["file"]
    clip = values.get("clip", "")
    return Row(
        number=number,
        path=root / values["file"],
        label=values.get("label", ""),
        patient=f"{source}\0{whose}",
        source=source or "(no source)",
        unit=f"{source}\0{whose}\0{clip}" if clip else values["file"],
        known=Known(
            name=Path(values["file"]).name, age_years=age, sex=values.get("sex", ""), view=values.get("view", "")
        ),
        columns=values,
    )


def _said(row: Row, column: str | None, wanted: set[str]) -> bool | None:
    if column is None or column == "label":
        return None if row.label.lower() in _UNSAID else _plain(row.label) in wanted
    value = row.columns[column].lower()
    value = value.removesuffix(".0")
    if value in _UNSAID:
        return None
    if value not in _YES | _NO:
        raise LabelsError(
            f"line {row.number}: column {column!r} says {row.columns[column]!r}; write 1 or 0, or nothing"
        )
    return value in _YES


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
