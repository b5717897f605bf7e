"""A DICOM object leaves without its patient, or not at all."""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from appliance.interop.comments import jpeg, jpeg_2000
from appliance.interop.deidentify import Withheld, deidentified, mapped_uid, pseudonym
from appliance.interop.profile import Options, ProfileError, area
from appliance.store.keys import BoxKey

BLIND: Callable[[str], str] = BoxKey(bytes(range(32))).blind
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def an_object(modality: str = "DX", *, rows: int = 8, columns: int = 8, **values: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DX, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = DX
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = "PORTABLE1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.SpecificCharacterSet = modality, "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = "Okonkwo^Adaeze", "MRN-778812"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19310412", "F", "093Y"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20261101", "101500", "ACC-5521"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = np.full(rows * columns, 1000, "<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def file_of(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def left(dataset: Dataset, options: Options = Options()) -> Dataset:  # noqa: B008 - frozen
    return pydicom.dcmread(io.BytesIO(deidentified(file_of(dataset), BLIND, options).data))


def test_the_basic_profile_takes_the_patient_and_keeps_the_picture() -> None:
    before = an_object(InstitutionName="Clinic Aba", StationName="ROOM2", BodyPartExamined="CHEST")
    after = left(before)
    assert str(after.PatientName) == after.PatientID == pseudonym(BLIND, "", "MRN-778812")
    for name in ("StudyDate", "AccessionNumber", "PatientBirthDate"):
        assert not after.get(name)
    assert "PatientAge" not in after
    assert (after.InstitutionName, after.StationName) == ("removed", "removed")
    assert after.BodyPartExamined == "CHEST"
    assert after.PixelData == before.PixelData
    assert after.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in after.DeidentificationMethodCodeSequence] == ["113100"]
    assert "SourceApplicationEntityTitle" not in after.file_meta


def test_one_patient_and_one_study_stay_one() -> None:
    study = generate_uid()
    one, two = (left(an_object(StudyInstanceUID=study)) for _ in range(2))
    other = left(an_object(PatientID="MRN-1"))
    assert one.PatientID == two.PatientID != other.PatientID
    assert one.StudyInstanceUID == two.StudyInstanceUID != study
    assert one.SOPInstanceUID != two.SOPInstanceUID


def test_another_box_gives_other_pseudonyms() -> None:
    other = BoxKey(bytes(32)).blind
    assert pseudonym(BLIND, "", "1") != pseudonym(other, "", "1")
    assert mapped_uid(BLIND, "1.2.3") != mapped_uid(other, "1.2.3")
    assert mapped_uid(BLIND, DX) == DX


def test_options_let_out_what_a_site_chose() -> None:
    before = an_object(StationName="ROOM2", InstitutionName="Clinic Aba")
    options = Options(dates="shifted", characteristics=True, device=True, institution=True, uids=True)
    after = left(before, options)
    assert (after.PatientSex, after.PatientAge) == ("F", "090Y"), "ages over 89 are one"
    assert (after.StationName, after.InstitutionName) == ("ROOM2", "Clinic Aba")
    assert after.SOPInstanceUID == before.SOPInstanceUID
    assert after.StudyDate < before.StudyDate
    assert after.StudyTime == before.StudyTime
    assert not after.PatientBirthDate
    codes = {item.CodeValue for item in after.DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113108", "113109", "113112", "113110", "113107"}
    assert left(before, Options(dates="kept")).StudyDate == before.StudyDate


def test_shifted_dates_keep_their_distance() -> None:
    days = [left(an_object(StudyDate=day), Options(dates="shifted")).StudyDate for day in ("20261101", "20261108")]
    assert (np.datetime64(f"{days[1][:4]}-{days[1][4:6]}-{days[1][6:]}") - 7) == np.datetime64(
        f"{days[0][:4]}-{days[0][4:6]}-{days[0][6:]}"
    )


def test_text_that_holds_the_name_does_not_leave_wherever_it_stands() -> None:
    before = an_object(Manufacturer="for Adaeze", ManufacturerModelName="MODEL-7", SoftwareVersions="mrn778812 v2")
    after = left(before)
    assert "Manufacturer" not in after
    assert "SoftwareVersions" not in after
    assert after.ManufacturerModelName == "MODEL-7"


def test_private_unknown_and_other_alphabets_do_not_leave() -> None:
    before = an_object(Manufacturer="Рентген")
    before.add_new(0x00191001, "LO", "hidden")
    before.add_new(0x00190010, "LO", "VENDOR")
    after = left(before)
    assert "Manufacturer" not in after
    assert not [element for element in after if element.tag.is_private]


def test_documents_are_withheld() -> None:
    document = an_object()
    del document.PixelData
    with pytest.raises(Withheld, match="documents"):
        deidentified(file_of(document), BLIND, Options())
    with pytest.raises(Withheld, match=r"can.t be|neither"):
        deidentified(bytes(128) + b"DICM" + b"\xff" * 50, BLIND, Options())


def test_an_ultrasound_picture_with_text_is_withheld_until_its_areas_are_known() -> None:
    with pytest.raises(Withheld, match=r"deidentify\.areas"):
        deidentified(file_of(an_object("US")), BLIND, Options())
    after = left(an_object("US", rows=10), Options(areas=(area("US:0,0,1,0.2"),)))
    pixels = np.frombuffer(after.PixelData, "<u2").reshape(10, 8)
    assert not pixels[:2].any()
    assert (pixels[2:] == 1000).all()
    assert after.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in after.DeidentificationMethodCodeSequence]


def test_outside_the_machines_own_regions_nothing_is_left() -> None:
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 2, 3
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 5, 6
    pixels = np.frombuffer(left(an_object("US", SequenceOfUltrasoundRegions=[region])).PixelData, "<u2").reshape(8, 8)
    assert (pixels[3:7, 2:6] == 1000).all()
    assert np.count_nonzero(pixels) == 16


def test_a_detectors_picture_that_says_it_has_text_is_withheld() -> None:
    with pytest.raises(Withheld):
        deidentified(file_of(an_object(BurnedInAnnotation="YES")), BLIND, Options())


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_jpeg_no_color_transform.dcm", "emri_small_jpeg_ls_lossless.dcm"]
)
def test_comments_in_compressed_frames_go_and_the_picture_stays(name: str) -> None:
    path = get_testdata_file(name)
    if path is None:
        pytest.skip(f"pydicom has no {name} here")
    before = pydicom.dcmread(path)
    before.BurnedInAnnotation = "NO"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = left(before)
        assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        assert np.array_equal(after.pixel_array, before.pixel_array)


def test_a_comment_in_a_jpeg_is_dropped() -> None:
    path = get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")
    frame = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 14) + b"Okonkwo Adaeze"
    planted = frame[:2] + comment + frame[2:]
    assert b"Okonkwo" not in jpeg(planted)
    assert jpeg(planted) == jpeg(frame)
    with pytest.raises(ValueError, match=r"end|follow|longer"):
        jpeg(planted[: len(planted) // 2])


def test_a_comment_in_jpeg_2000_is_dropped() -> None:
    path = get_testdata_file("693_J2KR.dcm")
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == JPEG2000Lossless
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    comment = b"\xff\x64" + struct.pack(">HH", 4 + 7, 1) + b"Okonkwo"
    at = 4 + struct.unpack_from(">H", frame, 4)[0]
    planted = frame[:at] + comment + frame[at:]
    assert b"Okonkwo" not in jpeg_2000(planted)
    assert jpeg_2000(planted) == jpeg_2000(frame)


@pytest.mark.parametrize("text", ["US", "US:0,0,1", "US:0.5,0,0.5,1", "us:0,0,1,1", "US:0,0,2,1"])
def test_an_area_that_is_none_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ProfileError):
        area(text)


ALPHABETS = (
    "abcdefghijklmnop",
    "éèüñçøå",
    "йцукенг",
    "αβγδεζ",
    "ابتثجح",
    "अआइईउ",
    "ぁあぃい",
    "漢字名前",
    "ƒɐʇɥ",
    "𝒜𝒷𝒸𝓭",
)


def an_identity(chance: random.Random) -> str:
    alphabet = chance.choice(ALPHABETS)
    body = "".join(chance.choice(alphabet) for _ in range(chance.randint(6, 12)))
    return f"{body[:1].upper()}{body[1:]}{chance.randint(1000, 9999)}"


def hidden_in_odd_places(chance: random.Random) -> tuple[Dataset, list[str]]:
    names = [an_identity(chance) for _ in range(3)]
    family, number, other = names
    item = Dataset()
    item.RequestedProcedureDescription, item.ScheduledProcedureStepID = f"for {family}", number[:16]
    item.ReasonForTheRequestedProcedure = other
    dataset = an_object(
        PatientName=f"{family}^{other}",
        PatientID=number,
        OtherPatientNames=other,
        StudyDescription=f"chest of {family}",
        SeriesDescription=other,
        ImageComments=f"{number} {family}",
        Manufacturer=f"made for {family}",
        ManufacturerModelName=number,
        ReferringPhysicianName=other,
        StudyID=number[:16],
        ProtocolName=family,
        DerivationDescription=f"{other}, derived",
        RequestAttributesSequence=[item],
        UnformattedTextValue=family,
        RetrieveURL=f"http://hub/{names[0].encode().hex()}",
    )
    block = dataset.private_block(0x0041, "VENDOR", create=True)
    block.add_new(0x01, "LT", family)
    block.add_new(0x02, "UN", other.encode())
    return dataset, names


def leaks(out: bytes, names: list[str]) -> list[str]:
    return [name for name in names for code in ("utf-8", "utf-16-le", "utf-16-be") if name.encode(code) in out]


def test_odd_identities_in_odd_places_leave_nowhere() -> None:
    none_of_these_leave(400)


def none_of_these_leave(count: int) -> None:
    chance = random.Random(20261123)
    for _ in range(count):
        dataset, names = hidden_in_odd_places(chance)
        before = file_of(dataset)
        assert leaks(before, names), "the test plants what it looks for"
        assert not leaks(deidentified(before, BLIND, Options()).data, names)
        everything = Options(dates="kept", characteristics=True, device=True, institution=True, uids=True)
        assert not leaks(deidentified(before, BLIND, everything).data, names)


@pytest.mark.slow
def test_ten_thousand_odd_identities_leave_nowhere() -> None:
    none_of_these_leave(10_000)
