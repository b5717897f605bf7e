"""The bill of materials names what the lock installs, and an audit that could not ask says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tools.supply import LOCK, Audited, make_sbom, read_audit


def test_the_bill_of_materials_names_every_package_of_the_lock_with_its_hashes(tmp_path: Path) -> None:
    target = tmp_path / "sbom.json"
    count = make_sbom(target)
    made = json.loads(target.read_text(encoding="utf-8"))
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "bedside"
    named = {(one["name"], one["version"]) for one in made["components"]}
    locked = set(re.findall(r"^([a-z0-9-]+(?:\[[a-z,]+\])?)==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE))
    assert {(re.sub(r"\[.*", "", name), version) for name, version in locked} == named
    assert count >= len(named) > 50
    assert all(reference["hashes"] for one in made["components"] for reference in one["externalReferences"][:1])


def test_a_package_that_could_not_be_asked_about_is_not_called_well() -> None:
    report = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]},
            {"name": "c", "skip_reason": "not found"},
        ]
    }
    assert read_audit(report) == Audited(("b 2: PYSEC-1, fixed in 2.1",), 2, 1)
