"""How long each shipped graph takes to load and how much memory it holds: the ``.ort`` made on this box, the ``.onnx`` given.

What this module keeps true: times are of loads in one process, interleaved; memory is of a new process each, which loads one
form and runs it once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.inference import forms, onnx
from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Cache
from tools.bench import _forms
from tools.bench.rows import Row, interleave, medians, row

ROUNDS, PROCESSES = 11, 3
_RESIDENT = """
import sys
from pathlib import Path
import numpy as np
from appliance.inference import onnx
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
engine = onnx.load(Path(sys.argv[1]))
engine.run(dict(np.load(sys.argv[2])))
print(resident() - before)
"""


def run(models: Path | None = None) -> Iterable[Row]:
    """Two rows for every INT8 graph: milliseconds to load, megabytes held."""
    for bundle, graph, feeds in _forms.graphs(models):
        with tempfile.TemporaryDirectory() as folder:
            yield from _graph(bundle, graph, feeds, Path(folder))


def _graph(bundle: Bundle, graph: Graph, feeds: _forms.Feeds, folder: Path) -> Iterator[Row]:
    import numpy as np

    made, source = forms.make(bundle, graph, Cache(folder / "cache")).path, bundle.path(graph.file)
    derived = folder / "derived.onnx"
    from appliance.inference import derive, device

    derive.write(source, derived, unsigned=device.cpu().unsigned_activations)
    runs: dict[str, Callable[[], object]] = {
        "ort": lambda: onnx.load(made).close(),
        "onnx": lambda: onnx.load(derived).close(),
        "shipped": lambda: onnx.load(source).close(),
    }
    middle = medians(interleave(runs, rounds=ROUNDS))
    name = f"{bundle.id}/{graph.name}"
    ours = middle["ort"] * 1e3
    yield row(f"{name} load", "ms", ours, middle["onnx"] * 1e3, peer_name="derived .onnx", limit=1.0, n=ROUNDS)
    yield row(f"{name} load", "ms", ours, middle["shipped"] * 1e3, peer_name="shipped .onnx", n=ROUNDS)
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]  # numpy types the keywords as flags too
    held, other = (_held(path, folder / "feeds.npz") / 1e6 for path in (made, source))
    yield row(f"{name} memory", "MB", held, other, peer_name="shipped .onnx", n=PROCESSES)


def _held(model: Path, feeds: Path) -> float:
    command = [sys.executable, "-c", _RESIDENT, str(model), str(feeds)]
    return statistics.median(int(subprocess.check_output(command)) for _ in range(PROCESSES))
