"""A capture far from what a model was trained on is answered with a warning, never refused for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from appliance.inference import bundle
from appliance.reading import quality

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.parametrize("name", ["chest-xray", "lung-ultrasound"])
def test_a_distance_beyond_the_limit_is_said_in_the_bundle_s_words(name: str) -> None:
    description = bundle.load(MODELS / name).description
    limit = description.gate.warn["distance"][1]

    def said(distance: float) -> tuple[str, ...]:
        outputs = {"net": {"distance": np.full((3, 1), distance, np.float32), "logits": np.zeros((3, 1), np.float32)}}
        return quality.warnings(quality.of_networks(outputs, description), description)

    assert said(limit * 0.9) == ()
    assert said(limit * 1.1) == (description.refusals["distance-high"].reason,)


def test_outputs_that_no_warning_names_are_left_alone() -> None:
    description = bundle.load(MODELS / "chest-xray").description
    assert quality.of_networks({"net": {"logits": np.zeros((1, 1))}}, description) == {}
