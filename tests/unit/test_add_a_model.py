"""The guide to adding a model can't fall behind the schema, and names only files and commands that are there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from appliance import records
from appliance.inference import bundle

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "add-a-model.md").read_text()
SECTIONS = {
    bundle.Description: "The top",
    bundle.Accepts: "accepts",
    bundle.Preprocess: "preprocess",
    bundle.Graph: "graphs",
    bundle.Tensor: "graphs.inputs and graphs.outputs",
    bundle.FindingSpec: "findings",
    records.Code: "code",
    bundle.Wording: "findings.wording",
    bundle.Score: "findings.scores",
    bundle.OperatingPoint: "findings.operating_points",
    bundle.Gate: "gate",
    bundle.RefusalText: "refusals",
    bundle.Golden: "golden",
}


def explained(heading: str) -> set[str]:
    """The fields in the first column of a section's table."""
    section = re.split(r"^##+ ", GUIDE.partition(f"\n### {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("table", SECTIONS, ids=lambda table: table.__name__)
def test_each_field_of_the_schema_is_explained_and_nothing_else(table: type[msgspec.Struct]) -> None:
    assert explained(SECTIONS[table]) == set(table.__struct_fields__)


def test_no_table_of_the_schema_is_left_out() -> None:
    tables = {kind for kind in vars(bundle).values() if isinstance(kind, type) and issubclass(kind, bundle._Table)}
    assert tables - {bundle._Table} == set(SECTIONS) - {records.Code}


def test_what_the_guide_points_to_is_there() -> None:
    named = set(re.findall(r"`((?:tools|tests|appliance)/[\w/.-]+\.(?:py|toml))`", GUIDE))
    assert len(named) >= 6
    assert not [name for name in named if not (ROOT / name).exists()]
    for module in re.findall(r"python -m ([\w.]+)", GUIDE):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
