"""A model bundle on disk: ``bundle.toml`` and the files it names, validated once, hashes checked before anything is loaded.

What this module keeps true: a ``Bundle`` object exists only if its description is complete and every file it names is
there with the SHA-256 written in it. Nothing here imports an engine. A new bundle of a known modality needs a folder and no
Python: all that differs between bundles of a modality is data in this description.

``docs/add-a-model.md`` explains each table for people; the field titles below are the reference.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from msgspec import Meta

from appliance.records import Code, Modality, Triage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT = 1
DESCRIPTION = "bundle.toml"

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]


class BundleError(Exception):
    """The bundle can't be used; the message names the file, what is wrong and what to do."""


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the tables of ``bundle.toml``: unknown keys are errors."""


class Tensor(_Table, frozen=True, kw_only=True):
    """A named input or output. ``shape`` uses names for free axes, e.g. ``["N", 1, 224, 224]``."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int64"]
    shape: list[int | str]


class Graph(_Table, frozen=True, kw_only=True):
    """One ONNX graph of the bundle and what may run it."""

    name: str
    file: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    engines: tuple[Literal["onnxruntime", "tensorrt"], ...] = ("onnxruntime", "tensorrt")
    precision: Literal["int8", "fp16", "fp32"] = "int8"


class Accepts(_Table, frozen=True, kw_only=True):
    """The captures the model was made for; all others are not read, with a reason (promise 6). Empty means any."""

    sop_classes: list[str] = []
    dicom_modalities: list[str] = []
    body_parts: list[str] = []
    views: list[str] = []
    age_years: tuple[float, float] = (0.0, 150.0)
    age_required: bool = False
    sample_rate_hz: tuple[float, float] = (0.0, 0.0)
    duration_s: tuple[float, float] = (0.0, 0.0)


class Preprocess(_Table, frozen=True, kw_only=True):
    """How a decoded capture becomes the graphs' inputs.

    ``kind`` names a step that ``appliance.reading`` knows (``chest-xray/1``, ``lung-ultrasound/1``, ``heart-sound/1``,
    ``lung-sound/1``); ``parameters`` are its numbers (sizes in pixels, rates in Hz, times in seconds, percentiles).
    """

    kind: str
    parameters: dict[str, Any] = {}


class Score(_Table, frozen=True, kw_only=True):
    """One term of a finding's logit: ``weight`` × output ``output`` of graph ``graph`` at ``index`` of its last axis.

    ``transform`` ``logit`` turns a probability output into a logit first (for tree ensembles).
    """

    graph: str
    output: str
    index: int = 0
    weight: float = 1.0
    transform: Literal["none", "logit"] = "none"


class OperatingPoint(_Table, frozen=True, kw_only=True):
    """A threshold on the calibrated probability, and what it was chosen for, measured on patients not trained on.

    ``sensitivity`` and ``specificity`` of 0 both mean that nothing was measured; people are then shown no figure.
    ``age_years`` limits it to an age band [from, to); the first operating point that matches is used.
    """

    threshold: Probability
    sensitivity: Probability
    specificity: Probability
    chosen_for: str
    age_years: tuple[float, float] = (0.0, 150.0)
    uncertain: tuple[float, float] | None = None


class Wording(_Table, frozen=True, kw_only=True):
    """What people see for an age band [from, to): label and advice when positive."""

    label: str
    advice_positive: str
    age_years: tuple[float, float] = (0.0, 150.0)
    code: Code | None = None


class FindingSpec(_Table, frozen=True, kw_only=True):
    """One finding: id, words, code, how its logit is summed, calibrated and cut.

    The calibrated probability is ``sigmoid((sum of scores + bias) / temperature)``. ``aggregate`` is how many windows or
    frames of a capture become one logit, before calibration. ``map`` names the graph output holding its activation map
    as ``[output name, channel]``. Outside ``age_years`` [from, to) the finding is not answered, while others are.
    """

    id: str
    code: Code
    wording: list[Wording]
    scores: list[Score]
    operating_points: list[OperatingPoint]
    bias: float = 0.0
    temperature: Annotated[float, Meta(gt=0.0)] = 1.0
    aggregate: Literal["none", "mean-logit", "max-logit"] = "none"
    map: tuple[str, int] | None = None
    age_years: tuple[float, float] = (0.0, 150.0)
    triage_positive: Triage = Triage.URGENT
    critical_probability: Probability | None = None
    experimental: bool = False


class Gate(_Table, frozen=True, kw_only=True):
    """The input gate: when the model does not answer.

    ``rules`` are limits of named quality indices, [lowest, highest] accepted. ``scores`` sum to a logit of "this is a good
    capture of the kind the model was made for"; below ``threshold`` (probability) the capture is refused as ``code``.
    ``warn`` limits give a warning and never a refusal (e.g. distance from the training hospitals).
    """

    scores: list[Score] = []
    bias: float = 0.0
    threshold: Probability = 0.5
    code: str = "not-this-kind"
    rules: dict[str, tuple[float, float]] = {}
    warn: dict[str, tuple[float, float]] = {}


class RefusalText(_Table, frozen=True, kw_only=True):
    """The words for a refusal code: why, and an instruction a nurse can follow."""

    reason: str
    advice: str


class Golden(_Table, frozen=True, kw_only=True):
    """Golden inputs and outputs, replayed by ``appliance.inference.golden``.

    ``file`` is an ``.npz`` in the bundle: for each graph and case ``<graph>/<case>/in/<tensor>`` and
    ``<graph>/<case>/out/<tensor>``. Tolerances are absolute, on the outputs named in ``outputs`` (all when empty).
    """

    file: str
    absolute: Annotated[float, Meta(gt=0.0)]
    outputs: dict[str, float] = {}


class Description(_Table, frozen=True, kw_only=True):
    """The whole of ``bundle.toml``."""

    format: Literal[1]
    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{1,63}$")]
    version: Annotated[str, Meta(pattern=r"^\d+\.\d+\.\d+$")]
    modality: Modality
    title: str
    licence: str
    intended_use: str
    not_for: list[str]
    accepts: Accepts
    preprocess: Preprocess
    graphs: list[Graph]
    findings: list[FindingSpec]
    gate: Gate
    refusals: dict[str, RefusalText]
    golden: Golden
    files: dict[str, str]
    advice_negative: str
    triage_negative: Triage = Triage.ROUTINE


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle: its folder, its description and ``sha256`` of the description (which names all other hashes)."""

    root: Path
    description: Description
    sha256: str

    @property
    def id(self) -> str:
        """The bundle's id, e.g. ``chest-xray``."""
        return self.description.id

    @property
    def version(self) -> str:
        """The bundle's version, ``major.minor.patch``."""
        return self.description.version

    def path(self, name: str) -> Path:
        """The path of a file that the description names."""
        if name not in self.description.files:
            raise BundleError(f"{self.root}: {name} is not among the files of {DESCRIPTION}; add it with its sha256")
        return self.root / name


def load(root: Path) -> Bundle:
    """Read and verify the bundle in ``root``; raises ``BundleError`` naming the file and the remedy."""
    path = root / DESCRIPTION
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: can't be read ({error.strerror}); a bundle is a folder with {DESCRIPTION}"
        ) from error
    description = described(raw, path)
    for name, expected in description.files.items():
        _verify(root, name, expected)
    _consistent(path, description)
    return Bundle(root=root, description=description, sha256=hashlib.sha256(raw).hexdigest())


def described(raw: bytes, path: Path) -> Description:
    """The description in the bytes of a ``bundle.toml``; raises ``BundleError`` naming ``path`` and the field."""
    try:
        return msgspec.convert(tomllib.loads(raw.decode()), Description)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BundleError(f"{path}: {error}; mend the field or install the bundle again") from error


def roots(*directories: Path) -> Iterator[Path]:
    """The folders of bundles in ``directories``, in name order in each; hidden ones are none."""
    for directory in directories:
        if directory.is_dir():
            inside = (path for path in directory.iterdir() if not path.name.startswith("."))
            yield from sorted(path for path in inside if (path / DESCRIPTION).exists())


def load_all(*directories: Path) -> Iterator[Bundle | BundleError]:
    """Every bundle in ``directories``, in the order of ``roots``; one that can't be used is yielded as its error."""
    for root in roots(*directories):
        try:
            yield load(root)
        except BundleError as error:
            yield error


def order(bundle: Bundle) -> tuple[int, ...]:
    """Sorts versions, the newest last."""
    return tuple(int(part) for part in bundle.version.split("."))


def _verify(root: Path, name: str, expected: str) -> None:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path}: lies outside the bundle; files of a bundle stay in its folder")
    try:
        with path.open("rb") as file:
            actual = _digest(file)
    except OSError as error:
        raise BundleError(
            f"{path}: named in {DESCRIPTION} but can't be read ({error.strerror}); install the bundle again"
        ) from error
    if actual != expected:
        raise BundleError(
            f"{path}: sha256 is {actual[:12]}…, {DESCRIPTION} says {expected[:12]}…; "
            "the file was changed or damaged, install the bundle again"
        )


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _consistent(path: Path, description: Description) -> None:
    graphs = {graph.name: graph for graph in description.graphs}
    for graph in description.graphs:
        if graph.file not in description.files:
            raise BundleError(f"{path}: graphs.{graph.name}.file {graph.file!r} has no sha256 under [files]")
    if description.golden.file not in description.files:
        raise BundleError(f"{path}: golden.file {description.golden.file!r} has no sha256 under [files]")
    scores = [score for finding in description.findings for score in finding.scores] + description.gate.scores
    for score in scores:
        if score.graph not in graphs or score.output not in {output.name for output in graphs[score.graph].outputs}:
            raise BundleError(f"{path}: a score names {score.graph}/{score.output}, which no graph offers")
    for finding in description.findings:
        if not finding.wording or not finding.operating_points or not finding.scores:
            raise BundleError(f"{path}: finding {finding.id!r} needs wording, scores and operating_points")
        if finding.map is not None and finding.map[0] not in {
            out.name for one in description.graphs for out in one.outputs
        }:
            raise BundleError(
                f"{path}: the map of finding {finding.id!r} names output {finding.map[0]!r}, which no graph offers; "
                "name an output that holds maps, or leave map out"
            )
    if description.gate.scores and description.gate.code not in description.refusals:
        raise BundleError(f"{path}: gate.code {description.gate.code!r} has no words under [refusals]")
