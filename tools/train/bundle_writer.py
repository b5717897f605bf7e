"""Writes a bundle folder: graphs, golden cases, metrics, card, and last ``bundle.toml`` with the SHA-256 of each.

What this module keeps true: a bundle is complete when ``bundle.toml`` is there, because it is written last and renamed
into place; what was written is read back by ``appliance.inference.bundle.load``, so a folder that this module made can be
loaded. Golden outputs come from the shipped INT8 graph, never from the float one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.inference.bundle import DESCRIPTION, Bundle, Description, load
from tools.train.quantise import Batch, session

GOLDEN = "golden/golden.npz"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_golden(root: Path, graphs: Mapping[str, Path], cases: Mapping[str, Mapping[str, Batch]]) -> None:
    """Run ``cases[case][graph]`` through the shipped graphs and keep inputs and outputs in ``golden/golden.npz``.

    Args:
        root: The bundle's folder.
        graphs: Graph name → ONNX file.
        cases: Case name → graph name → inputs by tensor name. Inputs are generated, never training captures.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, path in graphs.items():
        running = session(path)
        names = [output.name for output in running.get_outputs()]
        for case, inputs in cases.items():
            if name not in inputs:
                continue
            for tensor, value in inputs[name].items():
                arrays[f"{name}/{case}/in/{tensor}"] = np.asarray(value)
            for tensor, value in zip(names, running.run(names, dict(inputs[name])), strict=True):
                arrays[f"{name}/{case}/out/{tensor}"] = np.asarray(value)
    path = root / GOLDEN
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def write(root: Path, description: Description, metrics: Mapping[str, Any], card: str, files: Sequence[str]) -> Bundle:
    """Complete the bundle in ``root`` and load it back.

    Args:
        root: The bundle's folder, where ``files`` already lie.
        description: Everything but ``files``, which is filled in here.
        metrics: Written as ``metrics.json``.
        card: Written as ``card.md``.
        files: Names of graphs and golden files relative to ``root``.

    Raises:
        appliance.inference.bundle.BundleError: The folder can't be loaded; nothing should ship it.
    """
    (root / "metrics.json").write_text(json.dumps(finite(metrics), indent=1, ensure_ascii=False) + "\n")
    (root / "card.md").write_text(card)
    names = [*files, "metrics.json", "card.md"]
    hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in sorted(names)}
    complete = msgspec.structs.replace(description, files=hashes)
    text = "# Written by tools/train; change the configuration there and train again.\n" + to_toml(
        msgspec.to_builtins(complete)
    )
    partial = root / (DESCRIPTION + ".part")
    partial.write_text(text)
    partial.replace(root / DESCRIPTION)
    return load(root)


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities as ``None`` and numpy scalars as Python's, as JSON wants it."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A mapping of strings, numbers, booleans, lists and mappings as TOML; ``None`` is left out.

    Source of the format: https://toml.io/en/v1.0.0. Strings are JSON strings, a subset of TOML's basic strings.
    """
    lines, tables = [], []
    for key, value in table.items():
        name = key if BARE_KEY.fullmatch(key) else _string(key)
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            tables.append(f"\n[{path}]\n{to_toml(value, path + '.')}")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            tables.extend(f"\n[[{path}]]\n{to_toml(item, path + '.')}" for item in value)
        elif value is not None:
            lines.append(f"{name} = {_value(value)}\n")
    return "".join(lines) + "".join(tables)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_string(key)} = {_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
