"""Claims about any capture at all: through the real preprocessing it ends in a reading, read or not, with words."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.inference.bundle import Accepts, Gate, Score
from appliance.reading.prepared import Header, Picture, Sound
from appliance.reading.reader import Reader
from appliance.reading.requests import Known
from appliance.records import ADVICE_NOT_DIAGNOSIS, Modality
from tests.simulated_models import CHEST, NET, SimulatedModels, SimulatedServed

SOUND = {"window_s": 3.2, "step_s": 1.6, "least_s": 1.0, "most_s": 30.0, "silent_db": -75.0}


def simulated(modality: Modality, kind: str) -> Reader:
    graphs = [msgspec.structs.replace(NET, name=name) for name in ("net", "network", "trees", "gate")]
    names = {"chest-xray/1": ["net"], "lung-ultrasound/1": ["net"]}.get(kind, ["network", "trees", "gate"])
    graphs = [graph for graph in graphs if graph.name in names]
    spec = msgspec.structs.replace(
        CHEST.findings[0], scores=[Score(graph=names[0], output="logits")], aggregate="mean-logit"
    )
    description = msgspec.structs.replace(
        CHEST, id=modality.value, modality=modality, accepts=Accepts(), gate=Gate(), graphs=graphs, findings=[spec],
        preprocess=msgspec.structs.replace(CHEST.preprocess, kind=kind, parameters=SOUND if kind.endswith("sound/1") else {}),
    )  # fmt: skip

    def finite(graph, inputs):
        for tensor in inputs.values():
            assert np.isfinite(tensor).all()
            assert len(tensor) > 0
        count = len(next(iter(inputs.values())))
        return {"logits": np.zeros((count, 3), np.float32), "map": np.ones((count, 1, 7, 7), np.float32)}

    return Reader(SimulatedModels(SimulatedServed(description, finite)))


CHEST_READER = simulated(Modality.CHEST_XRAY, "chest-xray/1")
LUNG_READER = simulated(Modality.LUNG_ULTRASOUND, "lung-ultrasound/1")
HEART_READER = simulated(Modality.HEART_SOUND, "heart-sound/1")
BREATH_READER = simulated(Modality.LUNG_SOUND, "lung-sound/1")

shapes = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70))
grey = st.sampled_from([np.uint8, np.uint16, np.int16]).flatmap(
    lambda kind: arrays.arrays(kind, shapes, elements=st.integers(0, 255), fill=st.just(3))
)
colour = shapes.flatmap(lambda shape: arrays.arrays(np.uint8, (*shape, 3), fill=st.just(9)))
windows = st.one_of(st.none(), st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)))


def answered(reader: Reader, capture, modality: Modality):
    looked = reader._prepare(capture, capture.header, Known(), modality)
    reading = reader.answer(looked)
    assert reading.advice.endswith(ADVICE_NOT_DIAGNOSIS)
    assert (reading.status == "read") == (reading.refusal is None)
    assert len(reading.overlay) == reading.overlay_shape[0] * reading.overlay_shape[1]
    assert all(0 <= share <= 1 for share in reading.overlay_box)
    return reading


@settings(max_examples=80, deadline=None)
@given(st.one_of(grey, colour), windows, st.booleans(), st.booleans())
def test_any_picture_ends_in_a_reading(pixels, window, invert, sigmoid):
    picture = Picture(
        header=Header(media_type="image/png", frames=len(pixels)), pixels=pixels, window=window if pixels.ndim == 3 else None,
        invert=invert, sigmoid=sigmoid,
    )  # fmt: skip
    answered(CHEST_READER, picture, Modality.CHEST_XRAY)
    answered(LUNG_READER, picture, Modality.LUNG_ULTRASOUND)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1000.0, 2000.0, 4000.0, 11025.0, 48000.0]),
    st.floats(0.0, 6.0),
    st.sampled_from(["silence", "constant", "noise", "clicks", "clipped", "tiny", "huge"]),
    st.integers(0, 99),
)
def test_any_sound_ends_in_a_reading(rate, seconds, kind, seed):
    count = int(rate * seconds)
    random = np.random.default_rng(seed)
    samples = {
        "silence": lambda: np.zeros(count),
        "constant": lambda: np.full(count, 0.7),
        "noise": lambda: random.normal(0, 0.1, count),
        "clicks": lambda: (random.uniform(0, 1, count) > 0.999).astype(float),
        "clipped": lambda: np.sign(random.normal(0, 1, count)),
        "tiny": lambda: random.normal(0, 1e-9, count),
        "huge": lambda: random.normal(0, 1e6, count),
    }[kind]()
    sound = Sound(header=Header(media_type="audio/wav"), samples=samples.astype(np.float32), rate_hz=rate)
    answered(HEART_READER, sound, Modality.HEART_SOUND)
    answered(BREATH_READER, sound, Modality.LUNG_SOUND)
