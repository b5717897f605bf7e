"""From the interpreter's start to the first X-ray's answer: ours, which imports what it uses, against everything eager.

What this module keeps true: both runs are new processes that read the same film with the same warm cache and print the same
line; the eager one first imports every module of the appliance and every library it declares.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydicom.data import get_testdata_file

from appliance.config import shipped_models
from tools.bench.rows import Row, interleave, medians, row, speedup

ROUNDS = 7
LIMIT = 2.0
FILM = "RG1_UNCR.dcm"

_READ = "from appliance.cli import main; main()"
_EAGER = """
import contextlib, importlib, importlib.metadata, pkgutil, re
import appliance
for module in pkgutil.walk_packages(appliance.__path__, "appliance."):
    if module.name not in {"appliance.inference.child"}:
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
distributions = importlib.metadata.packages_distributions()
wanted = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in DECLARED}
for name, owners in distributions.items():
    if wanted & {owner.lower() for owner in owners} and name.isidentifier():
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)
"""


def run() -> Iterable[Row]:
    """One row: seconds to the first line of ``bedside read``."""
    with tempfile.TemporaryDirectory() as cache:
        film = get_testdata_file(FILM)
        arguments = ["read", str(film), "--json", "--models", str(shipped_models()), "--cache", cache]
        eager = f"DECLARED = {_declared()!r}\n{_EAGER}\n{_READ}"
        runs = {"ours": _started(_READ, arguments), "eager": _started(eager, arguments)}
        seconds = interleave(runs, rounds=ROUNDS, warm_up=1)
    middle = medians(seconds)
    made = row("first X-ray", "s", middle["ours"], middle["eager"], peer_name="all eager", limit=LIMIT, n=ROUNDS)
    yield made
    yield row("first X-ray, round by round", "x", speedup(seconds, "ours", "eager"), n=ROUNDS)


def _declared() -> list[str]:
    """The dependencies that ``pyproject.toml`` declares."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    found: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
    return found


def _started(script: str, arguments: list[str]) -> Callable[[], object]:
    def start() -> float:
        begun = time.perf_counter()
        command = [sys.executable, "-c", script, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            said, complained = process.communicate()
        if process.returncode != 0 or '"read"' not in said:
            raise SystemExit(f"{FILM} was not read: {said} {complained}")
        return time.perf_counter() - begun

    return start
