"""What reading costs beyond preprocessing and the bare network, for the 1955 × 1841 film, everything warm.

The peer is the least that any reader must do: file to input tensors, then the network run once. Ours is the whole reading in
this process: header checks, gate, findings, triage, overlay, words. At most 1.5 times the peer, so a ratio of 0.667.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2

from appliance.inference.catalogue import Catalogue, Served
from appliance.reading import xray
from appliance.reading.decode import decode
from appliance.reading.prepared import Picture
from appliance.reading.reader import Reader
from appliance.records import Modality
from tools.bench.preprocess import film
from tools.bench.rows import Row, interleave, medians, row

MODELS = Path(__file__).parents[2] / "models"
ROUNDS = 15
ALLOWED = 1.5


def least(path: Path, served: Served) -> None:
    """Preprocessing and the network, nothing else."""
    picture = decode(path)
    if not isinstance(picture, Picture):
        raise TypeError(f"{path} is no picture")
    for graph, inputs in xray.prepare(picture, served.bundle.description).inputs.items():
        served.run(graph, inputs)


def run() -> Iterator[Row]:
    """The reader in process."""
    cv2.setNumThreads(1)
    path = film()
    with tempfile.TemporaryDirectory() as cache:
        catalogue = Catalogue(MODELS, Path(cache), "cpu")
        catalogue.open([Modality.CHEST_XRAY])
        served = catalogue.for_modality(Modality.CHEST_XRAY)
        if served is None:
            raise FileNotFoundError(f"{MODELS}: no chest X-ray bundle serves ({'; '.join(catalogue.problems)})")
        reader = Reader(catalogue)
        reading = reader.read(path)
        if reading.status != "read":
            raise ValueError(f"{path} was not read: {reading.refusal}")
        seconds = interleave({"ours": lambda: reader.read(path), "least": lambda: least(path, served)}, rounds=ROUNDS)
        catalogue.close()
    median = medians(seconds)
    yield row(
        "latency: a film read in process",
        "ms",
        1000 * median["ours"],
        1000 * median["least"],
        peer_name="preprocess + session.run",
        limit=1 / ALLOWED,
        n=ROUNDS,
    )
