"""Which bundle serves which modality now, on which engine.

What this module keeps true (promise 5): a bundle serves only after each of its graphs passed the golden check on the very
engine that will run it. When the newest version of a bundle is damaged, unsigned or refused, the newest one that passes
serves in its place (the copy of the last good one is kept in the cache), and ``problems`` says so in words for people. While
a TensorRT plan is missing or being built the next engine serves and ``Served.state`` says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from appliance import records
from appliance.inference import bundle as bundles
from appliance.inference import choice, golden, install
from appliance.inference.bundle import Bundle, BundleError, Graph
from appliance.inference.cache import Cache
from appliance.inference.engine import Array, Arrays, Engine, EngineError, EngineMissingError, NotBuiltError

if TYPE_CHECKING:
    from appliance.inference import plans
    from appliance.inference.trust import Trust

State = Literal["ready", "unbuilt", "building"]


class _Running(msgspec.Struct):
    """A graph's engine after its golden check, and what was passed over on the way to it."""

    engine: Engine
    record: records.Engine
    outcome: golden.Outcome
    passed_over: tuple[str, ...]
    state: State


class Served:
    """A bundle whose graphs are loaded and checked. For one thread at a time."""

    def __init__(self, bundle: Bundle, running: dict[str, _Running]) -> None:
        self.bundle = bundle
        self._running = running

    def run(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """Run one graph of the bundle: see ``appliance.inference.engine.Engine.run``."""
        return self._running[graph].engine.run(inputs, outputs)

    def engine_record(self, graph: str | None = None) -> records.Engine:
        """What runs ``graph`` (the bundle's first graph when ``None``), golden result included."""
        return self._running[graph or self.bundle.description.graphs[0].name].record

    @property
    def state(self) -> State:
        """``ready``, or why a better engine does not serve yet."""
        states = {running.state for running in self._running.values()}
        return "building" if "building" in states else "unbuilt" if "unbuilt" in states else "ready"

    @property
    def golden(self) -> dict[str, golden.Outcome]:
        """The outcome of the golden check by graph."""
        return {name: running.outcome for name, running in self._running.items()}

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The engines that were tried first and why they do not serve."""
        return tuple(reason for running in self._running.values() for reason in running.passed_over)

    def close(self) -> None:
        """Give back the engines."""
        for running in self._running.values():
            running.engine.close()


class Catalogue:
    """The bundles of a folder, opened and checked.

    Args:
        models: Folders of bundles, one folder each; two versions of one bundle may lie side by side.
        cache: Folder for what is derived on this box.
        engine: ``auto``, ``cpu``, ``cuda``, ``tensorrt-ort`` or ``tensorrt``.
        trust: When given, only bundles that it vouches for are served.
    """

    def __init__(
        self, models: Path | Sequence[Path], cache: Path, engine: str = "auto", trust: Trust | None = None
    ) -> None:
        self.bundles: dict[str, Served] = {}
        self.problems: list[str] = []
        self._models = (models,) if isinstance(models, Path) else tuple(models)
        self._trust = trust
        self._setting = choice.setting(engine)
        self._cache = Cache(cache / "artefacts")
        self._kept = cache / "last-good"
        self._found: dict[str, list[Bundle]] = {}
        self._tried: set[str] = set()
        self._fingerprint = self._seen()

    def open(self, modalities: Collection[records.Modality] | None = None) -> None:
        """Find the bundles and make those of ``modalities`` (all when ``None``) ready; the rest on first use.

        Nothing is raised for a bundle that can't serve: it is missing from ``bundles`` and named in ``problems``.
        """
        self.close()
        for found in bundles.load_all(*self._models):
            if isinstance(found, BundleError):
                self.problems.append(str(found))
            else:
                self._found.setdefault(found.id, []).append(found)
        self._find_kept()
        if not self._found:
            self.problems.append(
                f"{' and '.join(map(str, self._models))}: no model bundle can be used; install one with "
                "bedside models install"
            )
        pinned = set[str]().union(*(install.forced(folder) for folder in self._models))
        for name, versions in sorted(self._found.items()):
            versions.sort(key=lambda one: (one.sha256 in pinned, bundles.order(one)), reverse=True)
            if modalities is None or any(version.description.modality in modalities for version in versions):
                self._prepare(name)
        self._fingerprint = self._seen()

    def for_modality(self, modality: records.Modality) -> Served | None:
        """The bundle that reads ``modality``; the first in order of ids when there are several."""
        for name, versions in sorted(self._found.items()):
            if any(version.description.modality == modality for version in versions):
                self._prepare(name)
                served = self.bundles.get(name)
                if served is not None and served.bundle.description.modality == modality:
                    return served
        return None

    def refresh(self) -> bool:
        """Open again when bundles came or went, or when what was waited for has been built; whether it did.

        Costs two looks at folders; meant for between two captures.
        """
        now = self._seen()
        waiting = any(served.state != "ready" for served in self.bundles.values())
        if now[0] == self._fingerprint[0] and not (waiting and now[1] != self._fingerprint[1]):
            return False
        wanted = {served.bundle.description.modality for served in self.bundles.values()}
        self.open(wanted or None)
        return True

    @property
    def building(self) -> plans.Step | None:
        """The build of a plan that runs on this box now, by whichever process."""
        from appliance.inference import plans

        return plans.building(self._cache.root)

    def close(self) -> None:
        """Close every engine and forget what was found."""
        for served in self.bundles.values():
            served.close()
        self.bundles.clear()
        self.problems.clear()
        self._found.clear()
        self._tried.clear()

    def _seen(self) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
        """What tells that bundles, trust or the folder of artefacts changed."""
        descriptions = (folder / bundles.DESCRIPTION for folder in bundles.roots(*self._models))
        trust = (0 if self._trust is None else self._trust.changed(), 0)
        return (*(_changed(path) for path in descriptions), trust), _changed(self._cache.root)

    def _find_kept(self) -> None:
        """Add the copies of last good bundles; one whose folder was taken away on purpose does not come back."""
        folders = [path.name for models in self._models if models.is_dir() for path in models.iterdir()]
        for kept in bundles.load_all(self._kept):
            if isinstance(kept, BundleError) or not any(folder.startswith(kept.id) for folder in folders):
                continue
            versions = self._found.setdefault(kept.id, [])
            if all(version.sha256 != kept.sha256 for version in versions):
                versions.append(kept)

    def _prepare(self, name: str) -> None:
        """Serve the newest version of bundle ``name`` that may serve."""
        if name in self._tried:
            return
        self._tried.add(name)
        for version in self._found[name]:
            try:
                if self._trust is not None:
                    self._trust.check(version.root)
                served = serve(version, self._setting, self._cache)
            except (EngineError, BundleError) as error:
                self.problems.append(f"{name} {version.version}: {error}")
                continue
            self.bundles[name] = served
            newest = self._found[name][0]
            if version is not newest:
                self.problems.append(
                    f"{name}: {newest.version} does not serve, the last good one ({version.version}) does"
                )
            self.problems += [f"{name} {version.version}: {reason}" for reason in served.passed_over]
            self._keep(version)
            return

    def _keep(self, version: Bundle) -> None:
        """Copy the bundle that serves to where it outlives a bad update; a full or read-only disk is a problem to tell."""
        kept = self._kept / version.id
        try:
            if (kept / bundles.DESCRIPTION).read_bytes() == (version.root / bundles.DESCRIPTION).read_bytes():
                return
        except OSError:
            pass
        try:
            self._kept.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._kept) as partial:
                copy = Path(partial) / version.id
                shutil.copytree(version.root, copy)
                bundles.load(copy)
                shutil.rmtree(kept, ignore_errors=True)
                copy.rename(kept)
        except (OSError, shutil.Error, BundleError) as error:
            self.problems.append(f"{version.id}: no copy of the last good version could be kept ({error})")


def serve(bundle: Bundle, wanted: choice.Setting, cache: Cache) -> Served:
    """Load and check every graph of ``bundle``.

    Raises:
        EngineError: No engine passes the golden check, or (``EngineMissingError``) the one asked for is not there.
        BundleError: The golden cases can't be read.
    """
    known = golden.cases(bundle)
    running: dict[str, _Running] = {}
    try:
        for graph in bundle.description.graphs:
            running[graph.name] = _serve_graph(bundle, graph, wanted, cache, known)
    except BaseException:
        for one in running.values():
            one.engine.close()
        raise
    return Served(bundle, running)


def _serve_graph(
    bundle: Bundle, graph: Graph, wanted: choice.Setting, cache: Cache, known: list[golden.Case]
) -> _Running:
    passed_over: list[str] = []
    state: State = "ready"
    for candidate in choice.candidates(bundle, graph, wanted, cache):
        try:
            engine = candidate.load()
        except NotBuiltError as error:
            state = "building" if error.building else "unbuilt"
            passed_over.append(f"{graph.name}, {candidate.label}: {error}")
            continue
        except EngineError as error:
            if candidate.strict and isinstance(error, EngineMissingError):
                raise
            passed_over.append(f"{graph.name}, {candidate.label}: {error}")
            continue
        outcome = golden.replay(bundle, graph.name, engine.run, known)
        if outcome.passed:
            record = msgspec.structs.replace(engine.describe(), golden="passed")
            return _Running(engine, record, outcome, tuple(passed_over), state)
        engine.close()
        passed_over.append(f"{graph.name}, {candidate.label}: refused by the golden check ({outcome.failures[0]})")
        if candidate.discard is not None:
            candidate.discard()
    raise EngineError(f"no engine may serve it: {'; '.join(passed_over)}")


def _changed(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_ino)
