"""Speed of every shipped INT8 graph on this CPU, one thread, one row: ours against the peers.

What this module keeps true: ours is what serves, the derived ``.ort`` behind the engine interface. The peers run the same
graph: its float form and a form quantised as U8S8 from the start in ONNX Runtime, OpenVINO on its faster form. Times are
processor times, all threads together: on an idle core the same as by the clock, on a busy one still fair. The limits against
FP32 and OpenVINO hold for pictures; graphs of sounds spend most of their time in their float log-mel front.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import onnxruntime as ort

from appliance.inference import forms, onnx
from appliance.inference.bundle import Bundle, Graph
from appliance.inference.cache import Cache
from tools.bench import _forms
from tools.bench.rows import Row, interleave, medians, row, speedup

ROUNDS = 25
WRAPPER_ROUNDS = 75
ENOUGH_S = 0.004
FLOAT_LIMIT, OPENVINO_LIMIT, UNSIGNED_LIMIT, WRAPPER_LIMIT = 1.8, 0.85, 0.95, 0.97


def run(models: Path | None = None) -> Iterable[Row]:
    """The rows of every INT8 graph."""
    for bundle, graph, feeds in _forms.graphs(models):
        with tempfile.TemporaryDirectory() as folder:
            yield from _graph(bundle, graph, feeds, Path(folder))


def _graph(bundle: Bundle, graph: Graph, feeds: _forms.Feeds, folder: Path) -> Iterator[Row]:
    made = forms.make(bundle, graph, Cache(folder / "cache"))
    source = bundle.path(graph.file)
    _forms.write_float(source, folder / "float.onnx")
    _forms.write_unsigned(source, folder / "float.onnx", folder / "unsigned.onnx", [feeds])
    engine, bare = onnx.load(made.path), _session(made.path)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: engine.run(feeds),
        "bare": _running(bare, feeds),
        "shipped": _running(_session(source), feeds),
        "float": _running(_session(folder / "float.onnx"), feeds),
        "unsigned": _running(_session(folder / "unsigned.onnx"), feeds),
        **_openvino(source, folder, feeds),
    }
    once = medians(interleave({"ours": runs["ours"]}, rounds=5))["ours"]
    inner = max(1, round(ENOUGH_S / once))
    wrapper = {"ours": runs["ours"], "bare": runs.pop("bare")}
    seconds = interleave(runs, rounds=ROUNDS, inner=inner, clock=time.process_time)
    overhead = interleave(wrapper, rounds=WRAPPER_ROUNDS, inner=inner, clock=time.process_time)
    peer = min((name for name in runs if name.startswith("OpenVINO")), key=medians(seconds).__getitem__)
    picture = any(len(tensor.shape) == 4 for tensor in graph.inputs)
    for other, words, limit, measured in (
        ("float", "FP32, ONNX Runtime", FLOAT_LIMIT if picture else None, seconds),
        ("shipped", "as shipped, not derived", None, seconds),
        ("unsigned", "U8S8 from the start", UNSIGNED_LIMIT, seconds),
        (peer, peer, OPENVINO_LIMIT if picture else None, seconds),
        ("bare", "bare session.run", WRAPPER_LIMIT, overhead),
    ):
        middle, rounds = medians(measured), len(measured["ours"])
        ours, theirs = middle["ours"] * 1e3, middle[other] * 1e3
        made_row = row(f"{bundle.id}/{graph.name}", "ms", ours, theirs, peer_name=words, limit=limit, n=rounds)
        yield _steady(made_row, speedup(measured, "ours", other))


def _steady(made: Row, ratio: float) -> Row:
    """The row with the ratio taken round by round, which a drifting clock does not move."""
    return msgspec.structs.replace(made, ratio=ratio)


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), onnx.options(), providers=["CPUExecutionProvider"])


def _running(session: ort.InferenceSession, feeds: _forms.Feeds) -> Callable[[], object]:
    return lambda: session.run(None, feeds)


def _openvino(source: Path, folder: Path, feeds: _forms.Feeds) -> dict[str, Callable[[], object]]:
    """OpenVINO on the shipped and on the U8S8 form, as its guide sets one thread for latency."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    runs: dict[str, Callable[[], object]] = {}
    for words, path in (("shipped form", source), ("U8S8 form", folder / "unsigned.onnx")):
        model = core.read_model(path)
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        runs[f"OpenVINO {ov.__version__.split('-')[0]}, {words}"] = _inferring(request, feeds)
    return runs


def _inferring(request: object, feeds: _forms.Feeds) -> Callable[[], object]:
    infer = request.infer  # type: ignore[attr-defined]  # the library has no types
    return lambda: infer(feeds, share_inputs=True, share_outputs=True)
