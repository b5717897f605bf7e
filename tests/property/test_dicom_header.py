"""The reader of data sets: it agrees with pydicom on real files, and nothing makes it hang, grow or crash."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

import data_store
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from appliance.capture.facts import WANTED, FileReader, UnknownKind, facts_of
from appliance.capture.header import DataSetReader, Fragments, NotDicom, file_meta, scan
from appliance.capture.store_messages import StoreRequest, store_request, store_response
from appliance.records import Modality

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
BROKEN_ON_PURPOSE = {
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    "MR_truncated.dcm",
    "rtplan_truncated.dcm",
    "no_meta.dcm",
}


def real_files() -> list[str]:
    """Those that are installed; pydicom's own list would download the others."""
    folders = (Path(pydicom.__file__).parent / "data" / "test_files", Path(data_store.__file__).parent / "data")
    return [
        str(path) for folder in folders for path in sorted(folder.glob("*.dcm")) if path.name not in BROKEN_ON_PURPOSE
    ]


def part_10(ds: Dataset, syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def x_ray(**more: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    ds.Modality, ds.PatientName, ds.PatientID = "DX", "Okoro^Ada", "P1"
    ds.Rows = ds.Columns = 8
    ds.BitsAllocated = 16
    ds.PixelData = bytes(128)
    for key, value in more.items():
        setattr(ds, key, value)
    return ds


@pytest.mark.parametrize("path", real_files(), ids=lambda path: Path(path).name)
def test_it_finds_in_real_files_what_pydicom_finds(path):
    try:
        expected = pydicom.dcmread(path, stop_before_pixels=True)
        wanted = expected.get("SOPInstanceUID")
    except Exception:  # noqa: BLE001
        pytest.skip("pydicom itself can't read this one")
    if not wanted or not expected.get("SOPClassUID") or "TransferSyntaxUID" not in expected.file_meta:
        with pytest.raises(NotDicom):
            facts_of(Path(path), "test")
        return
    if expected.SOPClassUID == "1.2.840.10008.1.3.10":
        with pytest.raises(UnknownKind, match="DICOMDIR"):
            facts_of(Path(path), "test")
        return
    facts = facts_of(Path(path), "test")
    assert facts.instance_uid == wanted
    assert facts.sop_class_uid == expected.SOPClassUID
    assert facts.study_uid == expected.get("StudyInstanceUID", "")
    assert facts.patient.id == (expected.get("PatientID") or "")
    assert facts.patient.name == str(expected.get("PatientName") or "").strip("^= ")
    assert facts.body_part == (expected.get("BodyPartExamined") or "").upper()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_each_encoding_with_nested_sequences_of_both_lengths_is_read(syntax):
    inner = Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "43799004", "SCT", "Chest"
    outer = Dataset()
    outer.AnatomicRegionModifierSequence = Sequence([inner, Dataset()])
    outer.CodeMeaning = "Chest"
    for undefined in (False, True):
        ds = x_ray(AnatomicRegionSequence=Sequence([outer]))
        ds.private_block(0x0009, "SOMEONE", create=True).add_new(1, "SQ", Sequence([outer, Dataset()]))
        ds["AnatomicRegionSequence"].is_undefined_length = undefined
        outer.is_undefined_length_sequence_item = undefined
        facts = facts_of(part_10(ds, syntax), "test")
        assert facts.body_part == "CHEST"
        assert facts.patient.name == "Okoro^Ada"
        assert facts.modality is Modality.CHEST_XRAY


def test_a_header_longer_than_the_first_look_is_read_to_its_end():
    ds = x_ray()
    ds.private_block(0x0009, "SOMEONE", create=True).add_new(1, "OB", bytes(1_000_000))
    reader = FileReader("test")
    content = part_10(ds, ExplicitVRLittleEndian)
    for start in range(0, len(content), 10_000):
        reader.feed(content[start : start + 10_000])
    assert reader.finish().patient.id == "P1"


@pytest.mark.parametrize("syntax", SYNTAXES[:3])
def test_a_file_cut_anywhere_is_refused_or_gives_the_same_facts(syntax):
    content = part_10(x_ray(), syntax)
    whole = facts_of(content, "test")
    for size in range(0, len(content) - 1, 7):
        try:
            facts = facts_of(content[:size], "test")
        except NotDicom:
            continue
        assert facts.instance_uid == whole.instance_uid
        assert size < len(content) - 128 - 12  # only a cut before the pixel data can go unnoticed


def test_compressed_pixel_data_cut_between_any_two_bytes_of_a_fragment_are_noticed():
    content = Path(str(get_testdata_file("JPEG2000.dcm"))).read_bytes()
    assert facts_of(content, "test").instance_uid
    for cut in (9, 50, 300):
        with pytest.raises(NotDicom, match="cut off"):
            facts_of(content[:-cut], "test")


def test_feeding_by_single_bytes_gives_the_same_as_feeding_at_once():
    content = Path(str(get_testdata_file("JPEG2000.dcm"))).read_bytes()
    reader = FileReader("test")
    for index in range(len(content)):
        reader.feed(content[index : index + 1])
    assert reader.finish() == facts_of(content, "test")


@given(st.binary(max_size=4000), st.sampled_from([str(syntax) for syntax in SYNTAXES]))
@settings(max_examples=300)
def test_no_bytes_make_the_scan_do_anything_but_answer_or_refuse(data, syntax):
    reader = DataSetReader(syntax, WANTED)
    try:
        reader.feed(data)
        reader.finish()
    except NotDicom:
        pass


@given(st.data())
@settings(max_examples=300)
def test_a_real_file_with_bytes_overwritten_is_answered_or_refused(data):
    content = bytearray(Path(str(get_testdata_file("JPEG2000.dcm"))).read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(128, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotDicom):
        facts_of(bytes(content), "test")


@pytest.mark.parametrize(
    "name", [b"a\0b", b"\0", b"\xff", b"ISO_IR\0 6\\ISO 2022 IR 87", b"rot13", b"undefined", b"idna"]
)
def test_no_name_of_a_character_set_keeps_an_object_out(name):
    ds = x_ray()
    content = part_10(ds, ExplicitVRLittleEndian)
    at = content.index(b"\x08\x00\x16\x00UI")
    element = b"\x08\x00\x05\x00CS" + (len(name) + len(name) % 2).to_bytes(2, "little") + name + b" " * (len(name) % 2)
    assert facts_of(content[:at] + element + content[at:], "test").patient.id == "P1"


def test_a_million_nested_sequences_are_refused_in_no_time():
    nest = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    start = time.perf_counter()
    with pytest.raises(NotDicom, match="nested"):
        scan(nest * 50_000, ExplicitVRLittleEndian, WANTED)
    assert time.perf_counter() - start < 1


def test_a_length_of_four_gigabytes_allocates_nothing():
    element = b"\x08\x00\x05\x00OB\x00\x00\xfe\xff\xff\xff" + bytes(100)
    reader = DataSetReader(ExplicitVRLittleEndian, WANTED)
    reader.feed(element)
    with pytest.raises(NotDicom):
        reader.finish()


def test_a_deflate_bomb_is_inflated_no_further_than_the_header_needs():
    import zlib

    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(200_000_000)) + bomb.flush()
    start = time.perf_counter()
    reader = DataSetReader(DeflatedExplicitVRLittleEndian, WANTED)
    with pytest.raises(NotDicom):
        reader.feed(data)
        reader.finish()
    assert time.perf_counter() - start < 2


@given(st.binary(max_size=300))
def test_fragments_never_fail_but_by_saying_so(data):
    fragments = Fragments()
    try:
        fragments.feed(data)
    except NotDicom:
        assert not fragments.ended


@given(st.binary(max_size=600))
def test_file_meta_answers_or_refuses(data):
    with contextlib.suppress(NotDicom):
        assert file_meta(bytes(128) + b"DICM" + data) is not None


@given(st.binary(max_size=300))
def test_a_c_store_request_is_understood_or_none(data):
    found = store_request(memoryview(data))
    assert found is None or isinstance(found, StoreRequest)


@given(st.integers(0, 0xFFFF), st.sampled_from([0x0000, 0xA700, 0xA900, 0xC000]), st.text(max_size=100))
def test_the_answer_to_a_c_store_is_read_by_pydicom_as_it_was_meant(message_id, status, comment):
    request = StoreRequest("1.2.840.10008.5.1.4.1.1.1", "1.2.3", message_id)
    data = store_response(request, status, comment)
    found = pydicom.filereader.read_dataset(io.BytesIO(data), is_implicit_VR=True, is_little_endian=True)
    assert (found.CommandField, found.MessageIDBeingRespondedTo, found.Status) == (0x8001, message_id, status)
    assert found.CommandGroupLength == len(data) - 12
    assert found.AffectedSOPInstanceUID == "1.2.3"
    assert len(found.get("ErrorComment", "")) <= 64


@pytest.mark.parametrize(
    ("age", "birth", "study", "years"),
    [
        ("045Y", "", "", 45.0),
        ("018M", "", "", 1.5),
        ("010W", "", "", 0.192),
        ("003D", "", "", 0.008),
        ("", "20000101", "20260101", 26.0),
        ("", "20260101", "20000101", None),
        ("", "2000", "20260101", None),
        ("unknown", "", "", None),
    ],
)
def test_the_age_is_taken_as_given_or_worked_out(age, birth, study, years):
    ds = x_ray(PatientBirthDate=birth, StudyDate=study)
    ds.add_new(0x00101010, "LO", age)
    content = part_10(ds, ImplicitVRLittleEndian)
    assert facts_of(content, "test").patient.age_years == (years if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("position", "meaning", "view"),
    [
        ("PA", "", "PA"),
        ("ap ", "", "AP"),
        ("", "postero-anterior", "PA"),
        ("", "antero-posterior", "AP"),
        ("", "left lateral", "LL"),
        ("", "", ""),
    ],
)
def test_the_view_comes_from_its_position_or_its_code(position, meaning, view):
    ds = x_ray(ViewPosition=position)
    if meaning:
        code = Dataset()
        code.CodeValue, code.CodeMeaning = "1", meaning
        ds.ViewCodeSequence = Sequence([code])
    assert facts_of(part_10(ds, ExplicitVRLittleEndian), "test").view == view


@pytest.mark.parametrize(
    ("description", "code", "modality"),
    [
        ("Heart, aortic", "", Modality.HEART_SOUND),
        ("", "109114", Modality.HEART_SOUND),
        ("Lung sounds, left base", "", Modality.LUNG_SOUND),
        ("Breath sounds", "", Modality.LUNG_SOUND),
        ("Dictation", "", Modality.OTHER),
    ],
)
def test_a_waveform_is_a_heart_or_a_lung_sound_only_when_it_says_so(description, code, modality):
    ds = x_ray(SOPClassUID="1.2.840.10008.5.1.4.1.1.9.4.2", SeriesDescription=description)
    del ds.PixelData
    source = Dataset()
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = code or "1", "DCM", "source"
    channel, group = Dataset(), Dataset()
    channel.ChannelSourceSequence = Sequence([source])
    group.ChannelDefinitionSequence = Sequence([channel])
    group.WaveformData = bytes(1000)
    group["WaveformData"].VR = "OW"
    ds.WaveformSequence = Sequence([group])
    assert facts_of(part_10(ds, ExplicitVRLittleEndian), "test").modality is modality
