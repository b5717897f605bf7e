"""Makes a bundle of a network from elsewhere: an ONNX file and a TOML of words and limits go in, a loadable folder comes out.

What this module keeps true: no network becomes a claim by being imported. The card, ``metrics.json`` and the advice that
the health worker reads say "not validated"; each new finding is experimental (its level is at most urgent and no statement
rests on it alone); what is missing (words, operating points, licences, sources) is an error, never a default. The inputs of
the golden cases and of the calibration are made by the very code that the box reads with. docs/add-a-model.md walks through it.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from appliance.inference import derive
from appliance.inference.bundle import FORMAT, Bundle, Description, FindingSpec, Golden, Graph, Tensor, load
from appliance.reading.decode import decode
from appliance.reading.reader import PREPARE
from tools.train import bundle_writer, card, import_graph, settings
from tools.train.bundle_writer import GOLDEN
from tools.train.import_graph import IMAGE, Adapted, NetworkError
from tools.train.quantise import outputs, quantise

Floats = npt.NDArray[np.float32]
LEAST_TOLERANCE = 0.02
"""Golden outputs may differ at least so much: engines round differently."""
FEW = 32
NOT_VALIDATED = "not validated"
WARNING = "Not validated, do not act on this answer: "


class Import(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[import]``: see ``tools.train.import_graph.adapt``."""

    name: str
    output: str = ""
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    precision: Literal["int8", "fp32"] = "int8"
    keep_float: tuple[str, ...] = ()


class CardWords(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[card]``: where the weights come from."""

    made: str
    sources: list[card.Source]
    limits: tuple[str, ...] = ()


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole TOML file. ``bundle`` and ``findings`` become tables of ``bundle.toml``."""

    settings: Import = msgspec.field(name="import")
    bundle: dict[str, Any]
    findings: list[dict[str, Any]]
    card: CardWords


def build(
    network: Path,
    words_file: Path,
    root: Path,
    *,
    golden: Sequence[Path] = (),
    calibrate: Sequence[Path] = (),
    beside: Path | None = None,
) -> Bundle:
    """Write the bundle of ``network`` to the new folder ``root`` and load it back.

    Args:
        network: The ONNX file.
        words_file: The TOML file; ``tools/train/examples/tuberculosis.toml`` is one.
        root: Must not exist; nothing is left there when something is wrong.
        golden: Files (DICOM, PNG, JPEG) whose inputs and outputs are replayed at every start; pydicom's chest film when empty.
        calibrate: Files whose inputs give INT8 its ranges, some dozens of training patients; the golden ones when empty.
        beside: A bundle whose graphs, findings, gate and words the new one goes on with: both then read each capture.

    Raises:
        NetworkError: Something is missing or does not fit; the message says what to do.
        appliance.inference.bundle.BundleError: The written folder can't be loaded.
    """
    words = _words(words_file)
    host = load(beside) if beside is not None else None
    adapted = import_graph.adapt(
        network, words.settings.name, words.settings.output, words.settings.scale, words.settings.shift
    )
    described = _description(words, adapted, words_file, host)
    cases = {path.stem: _input(path, described) for path in golden or [_film()]}
    if root.exists():
        raise NetworkError(f"{root}: is there already; name a new folder")
    root.mkdir(parents=True)
    try:
        return _write(root, words, adapted, described, cases, calibrate, host)
    except BaseException:
        shutil.rmtree(root)
        raise


def _words(path: Path) -> Words:
    try:
        words = msgspec.convert(settings.read(path), Words)
    except (msgspec.ValidationError, OSError) as error:
        raise NetworkError(f"{path}: {error}; see tools/train/examples/tuberculosis.toml") from error
    if not words.findings:
        raise NetworkError(f"{path}: has no [[findings]]; a bundle that answers nothing is none")
    if not words.card.sources or not all(source.licence for source in words.card.sources):
        raise NetworkError(f"{path}: [[card.sources]] must name each source of the weights with its licence")
    for finding in words.findings:
        for table in ("wording", "operating_points"):
            if not finding.get(table):
                what = finding.get("id", "?")
                raise NetworkError(
                    f"{path}: finding {what!r} has no [[findings.{table}]]; nobody can choose it for you"
                )
    return words


def _description(words: Words, adapted: Adapted, path: Path, host: Bundle | None) -> Description:
    name = words.settings.name
    shapes: dict[str, list[int | str]] = {f"{name}-scores": ["N", adapted.scores]}
    if adapted.map_side:
        shapes[f"{name}-map"] = ["N", adapted.scores, adapted.map_side, adapted.map_side]
    graph = Graph(
        name=name,
        file=f"{name}.onnx",
        inputs=[Tensor(name=IMAGE, dtype="float32", shape=["N", 1, adapted.side, adapted.side])],
        outputs=[Tensor(name=output, dtype="float32", shape=shape) for output, shape in shapes.items()],
        precision=words.settings.precision,
    )
    findings = [_finding(dict(one), name, adapted, path) for one in words.findings]
    fixed = {"format": FORMAT, "graphs": [], "findings": [], "golden": {"file": GOLDEN, "absolute": 1.0}, "files": {}}
    try:
        new = msgspec.convert({"gate": {}, "refusals": {}, **words.bundle, **fixed}, Description)
        specs = [msgspec.convert(one, FindingSpec) for one in findings]
    except msgspec.ValidationError as error:
        raise NetworkError(f"{path}: {error}") from error
    if not new.licence.strip():
        raise NetworkError(f"{path}: bundle.licence is empty; say under which licence the weights may be used")
    title = new.title if NOT_VALIDATED in new.title else f"{new.title} ({NOT_VALIDATED})"
    negative = WARNING + new.advice_negative
    new = msgspec.structs.replace(new, title=title, graphs=[graph], findings=specs, advice_negative=negative)
    return new if host is None else _joined(new, host.description, path)


def _finding(table: dict[str, Any], name: str, adapted: Adapted, path: Path) -> dict[str, Any]:
    index, probability = table.pop("index", 0), table.pop("probability", False)
    if not isinstance(index, int) or not 0 <= index < adapted.scores:
        raise NetworkError(
            f"{path}: index {index} of finding {table.get('id')!r}, the network has {adapted.scores} scores"
        )
    score = {"graph": name, "output": f"{name}-scores", "index": index, "transform": "logit" if probability else "none"}
    worded = [{**one, "advice_positive": WARNING + str(one.get("advice_positive", ""))} for one in table["wording"]]
    made: dict[str, Any] = {"scores": [score], **table, "wording": worded, "experimental": True}
    if adapted.map_side and "map" not in table:
        made["map"] = [f"{name}-map", index]
    return made


def _joined(new: Description, host: Description, path: Path) -> Description:
    """The host's description with the new graph and findings; both graphs get the same input."""
    if (new.modality, new.preprocess) != (host.modality, host.preprocess):
        raise NetworkError(
            f"{path}: modality and preprocess differ from those of {host.id}; graphs of a bundle share them"
        )
    taken = {graph.name for graph in host.graphs} | {finding.id for finding in host.findings}
    clash = taken & {one.name for one in new.graphs} | taken & {one.id for one in new.findings}
    if clash:
        raise NetworkError(f"{path}: {host.id} has {', '.join(sorted(clash))} already; choose other names")
    return msgspec.structs.replace(
        host,
        id=new.id,
        version=new.version,
        title=f"{host.title}; {new.title}",
        licence=f"{host.licence}; {new.graphs[0].name}: {new.licence}",
        intended_use=f"{host.intended_use} {new.intended_use}",
        not_for=[*host.not_for, *new.not_for],
        advice_negative=f"{host.advice_negative} {new.advice_negative}",
        graphs=[*host.graphs, *new.graphs],
        findings=[*host.findings, *new.findings],
    )


def _film() -> Path:
    from pydicom.data import get_testdata_file

    found = get_testdata_file("RG1_UNCR.dcm")
    if found is None:
        raise NetworkError("pydicom-data is not installed; install it or name films with --golden")
    return Path(str(found))


def _input(path: Path, described: Description) -> Floats:
    """What the box would give the graphs for this file, float32 ``[N, 1, side, side]``."""
    module, function = PREPARE[described.preprocess.kind]
    prepared = getattr(importlib.import_module(module), function)(decode(path), described)
    graph = described.graphs[-1]
    tensor: Floats = prepared.inputs[graph.name][IMAGE]
    if prepared.refusal is not None or tensor.shape[1:] != tuple(graph.inputs[0].shape[1:]):
        raise NetworkError(
            f"{path}: becomes an input of {list(tensor.shape)}, the network takes {graph.inputs[0].shape}; "
            "set preprocess.parameters.size to the network's side"
        )
    return tensor


def _write(
    root: Path,
    words: Words,
    adapted: Adapted,
    described: Description,
    cases: Mapping[str, Floats],
    calibrate: Sequence[Path],
    host: Bundle | None,
) -> Bundle:
    name = words.settings.name
    shipped, float_path = root / f"{name}.onnx", root / f"{name}.fp32.onnx"
    onnx.save(adapted.model, float_path)
    batches = [{IMAGE: _input(path, described)} for path in calibrate] or [{IMAGE: one} for one in cases.values()]
    if words.settings.precision == "int8":
        quantise(float_path, shipped, batches, keep_float=[*adapted.keep_float, *words.settings.keep_float])
    else:
        shutil.copyfile(float_path, shipped)
    metrics = _compared(float_path, shipped, batches, described.findings, name)
    bundle_writer.write_golden(root, {name: shipped}, {case: {name: {IMAGE: value}} for case, value in cases.items()})
    tolerances = _tolerances(root, shipped, cases)
    float_path.unlink()
    if host is not None:
        tolerances |= _with_host(root, host)
    complete = msgspec.structs.replace(
        described, golden=Golden(file=GOLDEN, absolute=max(tolerances.values()), outputs=tolerances)
    )
    files = [*(graph.file for graph in complete.graphs), GOLDEN]
    limits = [f"**{NOT_VALIDATED.capitalize()}**: nobody has measured what its answers are worth.", *words.card.limits]
    text = card.write(
        complete,
        words.card.sources,
        card.Words(
            made=words.card.made,
            limits=limits,
            evaluation=f"Not at all: {NOT_VALIDATED}. Run `bedside models evaluate` on labelled captures of the place of use.",
        ),
        {"speed": metrics["int8_beside_fp32"]},
    ).replace("## Speed and size", "## INT8 beside FP32, without labels: no measure of worth")
    return bundle_writer.write(root, complete, metrics, text, files)


def _compared(
    before: Path, after: Path, batches: Sequence[Mapping[str, Floats]], findings: Sequence[FindingSpec], name: str
) -> dict[str, Any]:
    """How far the shipped graph's scores lie from the float one's; says nothing of whether either is right."""
    output = f"{name}-scores"
    fp32, int8 = (outputs(path, batches, [output])[output] for path in (before, after))
    mine = [score.index for finding in findings for score in finding.scores if score.graph == name]
    apart = np.abs(fp32[:, mine] - int8[:, mine])
    table = {
        "pictures": len(fp32),
        "largest difference of a score": float(apart.max()),
        "median difference of a score": float(np.median(apart)),
        "enough pictures to trust this": "yes" if len(fp32) >= FEW else f"no, take {FEW} or more",
    }
    return {"status": NOT_VALIDATED, "headline": {}, "int8_beside_fp32": table}


def _tolerances(root: Path, shipped: Path, cases: Mapping[str, Floats]) -> dict[str, float]:
    """By output, three times what the form for x86 differs by on the golden cases, and never less than the least."""
    derived = root / "x86.onnx"
    derive.write(shipped, derived, unsigned=True)
    names = [value.name for value in onnx.load(shipped).graph.output]
    batches = [{IMAGE: value} for value in cases.values()]
    here, there = outputs(shipped, batches, names), outputs(derived, batches, names)
    derived.unlink()
    return {name: round(max(LEAST_TOLERANCE, 3 * float(np.abs(here[name] - there[name]).max())), 4) for name in names}


def _with_host(root: Path, host: Bundle) -> dict[str, float]:
    """Copy the host's graphs and join its golden cases; its tolerances by output."""
    for graph in host.description.graphs:
        (root / graph.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(host.path(graph.file), root / graph.file)
    with np.load(host.path(host.description.golden.file)) as theirs, np.load(root / GOLDEN) as mine:
        arrays = {**dict(theirs), **dict(mine)}
    np.savez_compressed(root / GOLDEN, allow_pickle=False, **arrays)
    given = host.description.golden
    every = [output.name for graph in host.description.graphs for output in graph.outputs]
    return given.outputs or dict.fromkeys(every, given.absolute)


def main() -> None:
    """Read the arguments and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("network", type=Path, help="ONNX file")
    parser.add_argument("words", type=Path, help="TOML file of words and limits")
    parser.add_argument("out", type=Path, help="the bundle's new folder")
    parser.add_argument("--golden", type=Path, nargs="*", default=[], help="captures to replay at every start")
    parser.add_argument("--calibrate", type=Path, nargs="*", default=[], help="captures of training patients, for INT8")
    parser.add_argument("--beside", type=Path, help="a bundle whose findings the new one keeps")
    given = parser.parse_args()
    try:
        made = build(
            given.network, given.words, given.out, golden=given.golden, calibrate=given.calibrate, beside=given.beside
        )
    except NetworkError as error:
        raise SystemExit(str(error)) from error
    print(f"{made.root}: {made.id} {made.version} is written and loads. It is {NOT_VALIDATED}: see card.md.")


if __name__ == "__main__":
    main()
