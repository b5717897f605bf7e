"""What this program is made of, and whether any of it is known to be vulnerable.

    python -m tools.supply sbom [FILE]    CycloneDX 1.6 JSON, from the hash-pinned lock (default artefacts/sbom.json)
    python -m tools.supply audit          asks the advisory database (PyPI) about each package of the lock; needs a network

What this module keeps true: both speak of the lock, which is what gets installed; a package that could not be asked about is
told and counted as not audited, never as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
SBOM = ROOT / "artefacts" / "sbom.json"


class Audited(NamedTuple):
    """What an audit found: known vulnerabilities as lines, how many packages were asked about and how many could not be."""

    known: tuple[str, ...]
    asked: int
    skipped: int


def make_sbom(target: Path) -> int:
    """Write the bill of materials; how many components. Raises ``RuntimeError`` with the tool's words."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [_program("cyclonedx-py"), "requirements", str(LOCK), "--pyproject", str(ROOT / "pyproject.toml")]
    command += [
        "--spec-version",
        "1.6",
        "--output-format",
        "JSON",
        "--output-reproducible",
        "--output-file",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cyclonedx-py: {done.stderr.strip()[-500:]}")
    return len(json.loads(target.read_text(encoding="utf-8"))["components"])


def read_audit(report: Any) -> Audited:
    """What pip-audit's JSON report says."""
    packages = report["dependencies"]
    known = [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no release'}"
        for one in packages
        for found in one.get("vulns", ())
    ]
    skipped = sum("skip_reason" in one for one in packages)
    return Audited(tuple(known), len(packages) - skipped, skipped)


def audit() -> int:
    """Ask about each package; 0 when all were asked about and none is known to be vulnerable."""
    command = [_program("pip-audit"), "--requirement", str(LOCK), "--disable-pip", "--no-deps"]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = read_audit(json.loads(done.stdout))
    except (ValueError, KeyError):
        lines = done.stderr.strip().splitlines()
        print(f"not audited: {lines[-1] if lines else 'pip-audit said nothing'}", file=sys.stderr)
        print("this needs a network that reaches pypi.org; run it where there is one", file=sys.stderr)
        return 2
    for line in found.known:
        print(line)
    print(f"{found.asked} packages audited, {len(found.known)} known vulnerabilities")
    if found.skipped:
        print(
            f"{found.skipped} packages NOT audited: the advisory database at pypi.org did not know or could not be asked; "
            "run it where there is a network",
            file=sys.stderr,
        )
    return 1 if found.known else 2 if found.skipped else 0


def main(arguments: list[str]) -> int:
    """See above."""
    if arguments[:1] == ["sbom"]:
        target = Path(arguments[1]) if len(arguments) > 1 else SBOM
        print(f"{target}: {make_sbom(target)} components")
        return 0
    if arguments == ["audit"]:
        return audit()
    print(__doc__)
    return 2


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
