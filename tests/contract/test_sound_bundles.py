"""The sound bundles as shipped: whole, replayed, answering of made-up hearts and lungs, silent on all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from appliance.inference import golden
from appliance.inference.bundle import load
from appliance.reading import auscultation, findings, quality
from appliance.reading.prepared import Header, Sound
from tools.simulate import sounds
from tools.train import sound_hard_set

MODELS = Path(__file__).parents[2] / "models"
PREPARE = {"heart-sound": auscultation.prepare_heart, "lung-sound": auscultation.prepare_lung}
MAKE = {"heart-sound": sounds.heart, "lung-sound": sounds.lung}


@pytest.fixture(scope="module", params=list(PREPARE))
def served(request):
    bundle = load(MODELS / request.param)
    sessions = {
        graph.name: onnxruntime.InferenceSession(bundle.path(graph.file), providers=["CPUExecutionProvider"])
        for graph in bundle.description.graphs
    }
    return bundle, sessions


def outputs(served, samples, rate_hz):
    """Graph outputs for a sound, or the code under which it is refused."""
    bundle, sessions = served
    made = Sound(header=Header(media_type="audio/wav"), samples=np.asarray(samples, np.float32), rate_hz=rate_hz)
    verdict = quality.accepts(made, made.header, bundle.description, None).refusal
    prepared = PREPARE[bundle.id](made, bundle.description)
    verdict = verdict or prepared.refusal or quality.judge(prepared.quality, bundle.description).refusal
    if verdict:
        return verdict.code
    return {
        name: dict(
            zip([one.name for one in session.get_outputs()], session.run(None, prepared.inputs[name]), strict=True)
        )
        for name, session in sessions.items()
    }


def refused(served, samples, rate_hz=4000):
    found = outputs(served, samples, rate_hz)
    if isinstance(found, str):
        return True
    description = served[0].description
    probability = findings.gate_probability(description, found)
    assert probability is not None
    return probability < description.gate.threshold


def test_a_bundle_loads_and_its_golden_cases_replay(served):
    bundle, sessions = served
    for name, session in sessions.items():
        names = [one.name for one in session.get_outputs()]
        outcome = golden.replay(
            bundle, name, lambda inputs, s=session, n=names: dict(zip(n, s.run(n, dict(inputs)), strict=True))
        )
        assert outcome.passed, outcome.failures


def test_golden_inputs_are_made_up_and_can_be_made_again(served):
    bundle, _ = served
    assert len(golden.cases(bundle)) >= 3 * len(bundle.description.graphs)


def test_made_up_good_sounds_are_answered(served):
    bundle, _ = served
    answered = [not refused(served, MAKE[bundle.id](10.0, seed=seed)[0]) for seed in range(500, 512)]
    assert np.mean(answered) >= 0.9


@pytest.mark.parametrize("kind", ["noise", "speech-like", "hum", "friction", "tones"])
def test_what_is_not_of_the_body_is_refused(served, kind):
    caught = [refused(served, sound_hard_set.made(kind, seed, 8.0, 4000)) for seed in range(9000, 9012)]
    assert np.mean(caught) >= 0.9


def test_made_up_sounds_of_the_other_kind_are_refused(served):
    bundle, _ = served
    other = sounds.lung if bundle.id == "heart-sound" else sounds.heart
    caught = [refused(served, other(10.0, seed=seed)[0]) for seed in range(500, 512)]
    assert np.mean(caught) >= 0.9


def test_silence_and_a_second_of_sound_are_refused(served):
    bundle, _ = served
    assert refused(served, np.zeros(40000))
    assert refused(served, MAKE[bundle.id](0.4, seed=1)[0])


def test_every_finding_gets_a_probability_between_its_limits(served):
    bundle, _ = served
    found = outputs(served, MAKE[bundle.id](12.0, seed=7)[0], 4000)
    for answer in findings.answers(bundle, found, None):
        assert 0.0 < answer.finding.probability < 1.0


def test_the_bundles_stay_small_and_state_their_licence(served):
    bundle, _ = served
    assert sum(path.stat().st_size for path in bundle.root.rglob("*.onnx")) < 6e6
    assert "attribut" in bundle.description.licence.lower() or "research" in bundle.description.licence.lower()
