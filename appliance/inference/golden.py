"""Golden inputs replayed through a loaded engine: the check between "it loads" and "it may answer".

What this module keeps true (promise 5): an engine serves only after every golden case of its graph gave the expected
outputs within the bundle's tolerance; a case that can't be run, a missing output, a wrong shape or a value that is not a
number is a failure; a graph without a case can't pass.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from appliance.inference.bundle import Bundle, BundleError
from appliance.inference.engine import Array, Arrays, EngineError

Run = Callable[[Mapping[str, Array]], Arrays]


class Case(msgspec.Struct, frozen=True):
    """One replay: arrays by tensor name."""

    graph: str
    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True):
    """What a replay found. ``worst`` is the largest absolute difference by output; ``failures`` is empty when passed."""

    graph: str
    cases: int
    worst: dict[str, float]
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        return self.cases > 0 and not self.failures


def cases(bundle: Bundle) -> list[Case]:
    """The golden cases of ``bundle`` in the order of their names; raises ``BundleError`` when the file can't be read."""
    path = bundle.path(bundle.description.golden.file)
    found: dict[tuple[str, str], Case] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                parts = key.split("/", 3)
                if len(parts) != 4 or parts[2] not in {"in", "out"}:
                    continue
                graph, name, side, tensor = parts
                case = found.setdefault((graph, name), Case(graph, name, {}, {}))
                (case.inputs if side == "in" else case.outputs)[tensor] = arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: golden cases can't be read ({error}); install the bundle again") from error
    return [found[key] for key in sorted(found)]


def replay(bundle: Bundle, graph: str, run: Run, known: list[Case] | None = None) -> Outcome:
    """Run the golden cases of ``graph`` and compare.

    Args:
        bundle: Whose tolerances hold.
        graph: Name of the graph.
        run: The engine's ``run``.
        known: The bundle's cases when they have been read already.
    """
    mine = [case for case in (cases(bundle) if known is None else known) if case.graph == graph]
    worst: dict[str, float] = {}
    failures: list[str] = [] if mine else [f"the bundle has no golden case for graph {graph!r}"]
    for case in mine:
        try:
            given = run(case.inputs)
        except EngineError as error:
            failures.append(f"case {case.name}: {error}")
            continue
        for name, allowed in _tolerances(bundle, case).items():
            wanted = case.outputs.get(name)
            difference = np.inf if wanted is None else _difference(wanted, given.get(name))
            worst[name] = max(worst.get(name, 0.0), difference)
            if not difference <= allowed:
                failures.append(f"case {case.name}: {name} is off by {difference:.4g}, allowed {allowed:.4g}")
    return Outcome(graph=graph, cases=len(mine), worst=worst, failures=tuple(failures))


def _tolerances(bundle: Bundle, case: Case) -> dict[str, float]:
    golden = bundle.description.golden
    offered = next(graph.outputs for graph in bundle.description.graphs if graph.name == case.graph)
    named = {output.name: golden.outputs[output.name] for output in offered if output.name in golden.outputs}
    return named or {output.name: golden.absolute for output in offered}


def _difference(wanted: Array, given: Array | None) -> float:
    """The largest absolute difference; infinite for a missing output, another shape or a value that is not finite."""
    if given is None or given.shape != wanted.shape or not np.all(np.isfinite(given)):
        return float("inf")
    return float(np.max(np.abs(given.astype(np.float64) - wanted.astype(np.float64)), initial=0.0))
