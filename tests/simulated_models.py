"""Models that answer what a test tells them, behind the reader's own interface, and captures for them to read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from appliance.inference.bundle import (
    Accepts,
    Bundle,
    Description,
    FindingSpec,
    Gate,
    Golden,
    Graph,
    OperatingPoint,
    Preprocess,
    RefusalText,
    Score,
    Tensor,
    Wording,
)
from appliance.records import Code, Engine, Modality

CHILDREN, ADULTS = (0.0, 15.0), (15.0, 150.0)
NET = Graph(
    name="net",
    file="model.onnx",
    inputs=[Tensor(name="image", dtype="float32", shape=["N", 1, 224, 224])],
    outputs=[
        Tensor(name="logits", dtype="float32", shape=["N", 3]),
        Tensor(name="map", dtype="float32", shape=["N", 1, 7, 7]),
    ],
)
PNEUMONIA = FindingSpec(
    id="pneumonia",
    code=Code(scheme="SCT", value="233604007", meaning="Pneumonia"),
    wording=[
        Wording(label="Pneumonia pattern", advice_positive="Looks like pneumonia.", age_years=CHILDREN),
        Wording(
            label="Lung opacity",
            advice_positive="Shows an opacity.",
            age_years=ADULTS,
            code=Code(scheme="RADLEX", value="RID28530", meaning="lung opacity"),
        ),
    ],
    scores=[Score(graph="net", output="logits", index=0)],
    operating_points=[
        OperatingPoint(threshold=0.3, sensitivity=0.97, specificity=0.9, chosen_for="children", age_years=CHILDREN),
        OperatingPoint(
            threshold=0.6,
            sensitivity=0.8,
            specificity=0.85,
            chosen_for="adults",
            age_years=ADULTS,
            uncertain=(0.5, 0.7),
        ),
    ],
    map=("map", 0),
    critical_probability=0.98,
)
CHEST = Description(
    format=1,
    id="chest-xray",
    version="1.2.3",
    modality=Modality.CHEST_XRAY,
    title="Simulated",
    licence="none",
    intended_use="tests",
    not_for=[],
    accepts=Accepts(
        dicom_modalities=["CR", "DX"], body_parts=["CHEST", "THORAX"], views=["PA", "AP"], age_years=(1.0, 120.0)
    ),
    preprocess=Preprocess(kind="chest-xray/1", parameters={"size": 224}),
    graphs=[NET],
    findings=[PNEUMONIA],
    gate=Gate(
        scores=[Score(graph="net", output="logits", index=2)],
        threshold=0.5,
        code="not-this-kind",
        rules={"contrast": (0.05, 1.0)},
    ),
    refusals={
        "not-this-kind": RefusalText(reason="No frontal chest X-ray.", advice="Take one."),
        "contrast-low": RefusalText(reason="The picture is flat.", advice="Raise the dose."),
    },
    golden=Golden(file="golden/golden.npz", absolute=0.1),
    files={},
    advice_negative="No sign of pneumonia.",
)


class SimulatedServed:
    """A bundle whose networks give the logits they are told: finding, second, gate."""

    def __init__(
        self, description: Description, logits: tuple[float, float, float] | Callable[..., Any] = (0.0, 0.0, 5.0)
    ) -> None:
        self.bundle = Bundle(root=Path(), description=description, sha256="5" * 64)
        self.logits = logits
        self.seen: list[Mapping[str, Any]] = []

    def run(self, graph: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        self.seen.append(inputs)
        count = len(next(iter(inputs.values())))
        if callable(self.logits):
            return self.logits(graph, inputs)
        map_ = np.zeros((count, 1, 7, 7), np.float32)
        map_[:, 0, 2, 3] = 4.0
        map_[:, 0, 6, 6] = -4.0
        return {"logits": np.tile(np.float32(self.logits), (count, 1)), "map": map_}

    def engine_record(self) -> Engine:
        return Engine(engine="simulated", provider="None", device="test", precision="fp32", golden="passed")


class SimulatedModels:
    """A catalogue of such bundles."""

    def __init__(self, *served: SimulatedServed) -> None:
        self.served = {one.bundle.description.modality: one for one in served}

    def for_modality(self, modality: Modality) -> SimulatedServed | None:
        return self.served.get(modality)


def chest(logits: Any = (0.0, 0.0, 5.0), **changes: Any) -> SimulatedModels:
    """A catalogue with one chest X-ray bundle that answers ``logits``."""
    return SimulatedModels(SimulatedServed(msgspec.structs.replace(CHEST, **changes), logits))


def film(rows: int = 60, columns: int = 50, seed: int = 0) -> np.ndarray:
    """A smooth 12-bit picture, ``[rows, columns]`` uint16."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    return (
        (2000 + 1500 * np.sin(x / 9) * np.cos(y / 11) + random.normal(0, 20, (rows, columns)))
        .clip(0, 4095)
        .astype(np.uint16)
    )


def dicom(pixels: np.ndarray | None, **elements: Any) -> FileDataset:
    """An uncompressed CR of ``pixels`` (``[r, c]``, ``[f, r, c]`` or colour); ``elements`` by keyword, ``None`` removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID") or UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    if pixels is not None:
        colour = pixels.shape[-1] == 3 and pixels.ndim > 2
        frames = pixels.reshape(-1, *(pixels.shape[-3:] if colour else pixels.shape[-2:]))
        dataset.SamplesPerPixel = 3 if colour else 1
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.Rows, dataset.Columns = frames.shape[1:3]
        if len(frames) > 1:
            dataset.NumberOfFrames = len(frames)
        bits = pixels.dtype.itemsize * 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset) -> bytes:
    """The dataset as the bytes of a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
