"""Quality of service: how long patients wait for a human's word, and how often readers agree with the model.

What this module keeps true: every number is counted from reviews that were sent, and says of how many; a patient counts once
for the time to the first word, by the urgency the case has now. For agreement the last word counts: a finding that was not
changed is agreed with; a rejected reading says nothing about single findings and is counted by itself.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from sqlalchemy import Connection, func, select

from appliance.protocol.messages import Result, ReviewMessage, decode
from appliance.records import Triage
from hub import tables

Days = Annotated[int, Meta(ge=1, le=3650)]
_DAY_MS = 86_400_000
_capture, _review, _result = tables.capture.c, tables.review.c, tables.result.c
MOST = 20_000
"""Reviews looked at, the newest ones; more would make the page slow and change nothing."""


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Time from when the patient began to wait to the first review, in seconds. ``open``: still waiting now."""

    triage: Triage
    count: int
    median: float | None
    p90: float | None
    open: int


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of one bundle at one site: what model and reader said of it, and the 95 % interval of their agreement."""

    site: str
    bundle: str
    finding: str
    label: str
    both: int
    only_model: int
    only_reader: int
    neither: int
    share: float
    low: float
    high: float


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, over ``days``. ``decisions``: last words by kind."""

    days: int
    reviews: int
    decisions: dict[str, int]
    waits: list[Wait]
    agreement: list[Agreement]


def quality(connection: Connection, now_ms: int, *, days: int = 90) -> Quality:
    """The numbers over the last ``days``."""
    since = now_ms - days * _DAY_MS
    query = (
        select(_review.payload, _capture.device, _result.payload.label("result"))
        .join(tables.capture, _capture.review_id == _review.id)
        .join(tables.result, _result.id == _review.result_id)
        .where(_review.created_ms >= since)
        .order_by(_review.created_ms.desc())
        .limit(MOST)
    )
    decisions: Counter[str] = Counter()
    cells: dict[tuple[str, str, str], Counter[tuple[bool, bool]]] = defaultdict(Counter)
    labels: dict[tuple[str, str, str], str] = {}
    for row in connection.execute(query):
        word, result = decode(row.payload, ReviewMessage), decode(row.result, Result)
        decisions[word.decision] += 1
        if word.decision == "reject" or result.status != "read":
            continue
        for finding in result.findings:
            key = (row.device.split("/", 1)[0], result.model.bundle if result.model else "", finding.id)
            labels[key] = finding.label
            cells[key][finding.positive, word.findings.get(finding.id, finding.positive)] += 1
    return Quality(
        days=days,
        reviews=sum(decisions.values()),
        decisions={name: decisions[name] for name in ("accept", "modify", "reject")},
        waits=_waits(connection, since),
        agreement=[_agreement(key, labels[key], cells[key]) for key in sorted(cells)],
    )


def wilson(agreed: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which stays between 0 and 1 also for few cases."""
    if count == 0:
        return 0.0, 1.0
    z, share = 1.959964, agreed / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _waits(connection: Connection, since: int) -> list[Wait]:
    first = select(_review.capture_id, func.min(_review.created_ms).label("at")).group_by(_review.capture_id).subquery()
    query = select(_capture["rank"], _capture.waiting_ms, first.c.at).join(first, first.c.capture_id == _capture.id)
    times: dict[int, list[float]] = defaultdict(list)
    for row in connection.execute(query.where(first.c.at >= since).limit(MOST)):
        times[row.rank].append(max(0.0, (row.at - row.waiting_ms) / 1000))
    still = select(_capture["rank"], func.count().label("n")).where(_capture.open).group_by(_capture["rank"])
    waiting = {row.rank: int(row.n) for row in connection.execute(still)}
    found = []
    for triage in Triage:
        ordered = sorted(times[triage.rank])
        found.append(
            Wait(
                triage=triage,
                count=len(ordered),
                median=statistics.median(ordered) if ordered else None,
                p90=percentile(ordered, 0.9) if ordered else None,
                open=waiting.get(triage.rank, 0),
            )
        )
    return found


def _agreement(key: tuple[str, str, str], label: str, cell: Counter[tuple[bool, bool]]) -> Agreement:
    count, agreed = cell.total(), cell[True, True] + cell[False, False]
    low, high = wilson(agreed, count)
    return Agreement(
        site=key[0],
        bundle=key[1],
        finding=key[2],
        label=label,
        both=cell[True, True],
        only_model=cell[True, False],
        only_reader=cell[False, True],
        neither=cell[False, False],
        share=agreed / count,
        low=low,
        high=high,
    )
