"""DICOM: values are the stored ones in the scanner's units, headers agree with them, what cannot be read says why."""

import io
import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.decode import BadPicture, decode, header
from mimkit.data.dicom import opened_dicom
from mimkit.data.folders import walk
from mimkit.data.reading import Reading
from mimkit.data.sources import open_pictures
from mimkit.data.values import STORED, Storage

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_color_lut, pixel_array  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid  # noqa: E402

torch.set_num_threads(1)

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(FOLDER.glob("*.dcm"))
READABLE = 40  # of pydicom's own files: pictures whose compression Pillow or pydicom itself knows
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def dicom(pixels: np.ndarray, *, bits: int | None = None, syntax: UID = ExplicitVRLittleEndian, **notes) -> bytes:
    """A file with these stored values (frames in front, colors last) and notes."""
    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = syntax
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = generate_uid()
    color = pixels.ndim > 2 and pixels.shape[-1] == 3
    if pixels.ndim == 3 + color:
        about.NumberOfFrames = len(pixels)
    about.Rows, about.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    about.SamplesPerPixel, about.PhotometricInterpretation = (3, "RGB") if color else (1, "MONOCHROME2")
    if color:
        about.PlanarConfiguration = 0
    about.BitsAllocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind == "f":
        about.FloatPixelData = pixels.tobytes()
    else:
        about.BitsStored = bits or about.BitsAllocated
        about.HighBit = about.BitsStored - 1
        about.PixelRepresentation = int(pixels.dtype.kind == "i")
        about.PixelData = pixels.tobytes()
        about["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in notes.items():
        setattr(about, name, value)
    out = io.BytesIO()
    about.save_as(out, enforce_file_format=True)
    return out.getvalue()


def item(**notes) -> Sequence:
    """A sequence of one item."""
    entry = Dataset()
    for name, value in notes.items():
        setattr(entry, name, value)
    return Sequence([entry])


def values(data: bytes, storage: Storage | None = None, **reading) -> np.ndarray:
    """What a set of files like this gets, which is also what the header promises."""
    about = header(data, Reading(**reading))
    decoded = decode(data, storage or Storage(about.channels, STORED[about.dtype], about.nodata), Reading(**reading))
    assert decoded.shape[1:] == about[:2]
    if storage is None:
        assert decoded.shape[0] == about.channels and decoded.dtype == STORED[about.dtype]
    return decoded.numpy()


RAW = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pydicoms_own_files(path):
    """Equal to what pydicom itself computes, or refused in one line; the header says the same either way."""
    data = path.read_bytes()
    try:
        result = values(data, plane=0)
    except BadPicture as error:
        assert 0 < len(str(error)) < 140 and "\n" not in str(error)
        return
    about = pydicom.dcmread(path)
    expected = pixel_array(about, index=0 if about.get("NumberOfFrames", 1) > 1 else None)
    if about.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, about)
    expected = expected.transpose(2, 0, 1) if expected.ndim == 3 else expected[None]
    slope = about.get("RescaleSlope", about.get("DoseGridScaling", 1))
    expected = expected * float(slope) + float(about.get("RescaleIntercept", 0))
    if about.BitsStored == 1:
        expected = expected * 255
    if "PixelPaddingValue" in about and result.dtype == np.float32:
        padding = about.PixelPaddingValue * float(slope) + float(about.get("RescaleIntercept", 0))
        expected = np.where(expected == padding, np.nan, expected)
    assert np.array_equal(result, expected.astype(result.dtype), equal_nan=True)


def test_most_of_pydicoms_files_are_read():
    """The loop above compares something."""
    count = 0
    for path in FILES:
        with suppress(BadPicture):
            count += len(values(path.read_bytes(), plane=0)) > 0
    assert count >= READABLE, count


COMPRESSED = {
    "JPEG-lossy.dcm": "JPEG Extended: pip install pylibjpeg pylibjpeg-libjpeg",
    "JPEGLSNearLossless_16.dcm": "JPEG-LS Lossy: pip install pylibjpeg pylibjpeg-libjpeg",
    "MR_small_jpeg_ls_lossless.dcm": "JPEG-LS Lossless: pip install pylibjpeg pylibjpeg-libjpeg",
    "SC_rgb_jpeg_gdcm.dcm": "JPEG Lossless: pip install pylibjpeg pylibjpeg-libjpeg",
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_missing_decoder_is_named(name):
    data = (FOLDER / name).read_bytes()
    assert header(data).channels in (1, 3)
    try:
        import libjpeg  # noqa: F401
    except ImportError:
        with pytest.raises(BadPicture, match=COMPRESSED[name]):
            values(data)


def test_slope_and_intercept_give_hounsfield():
    ct = dicom(RAW, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(values(ct)[0], RAW.astype(np.int16) - 1024) and header(ct).dtype == "int16"
    pet = dicom(RAW, bits=12, RescaleSlope=0.37, RescaleIntercept=2.5)
    assert np.allclose(values(pet)[0], RAW * 0.37 + 2.5, rtol=1e-6) and header(pet).dtype == "float32"
    signed = (RAW.astype(np.int16) - 2048).astype(np.int16)
    assert np.array_equal(values(dicom(signed, bits=12))[0], signed)
    assert np.array_equal(values(dicom((RAW % 256).astype(np.uint8)))[0], RAW % 256)
    floats = (RAW / 7).astype(np.float32)
    assert np.array_equal(values(dicom(floats))[0], floats)


def test_values_of_other_types_count_in_the_same_units():
    """A series whose files have other bits, slopes or intercepts is one set."""
    wide = dicom((RAW.astype(np.int16) - 500).astype(np.int16), RescaleIntercept=-10, RescaleSlope=1)
    assert header(wide).dtype == "float32"
    narrow = values(wide, Storage(1, torch.int16))
    assert narrow.dtype == np.int16 and np.array_equal(narrow[0], RAW.astype(int) - 510)
    ct = dicom(RAW, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(values(ct, Storage(1, torch.float32))[0], RAW - 1024.0)
    with pytest.raises(BadPicture, match="is float, but the set is signed 16-bit"):
        values(dicom(RAW, bits=12, RescaleSlope=0.5, RescaleIntercept=0), Storage(1, torch.int16))


def test_monochrome1_is_turned_round_and_its_padding_with_it():
    filled = RAW.copy()
    filled[:5] = 0
    data = dicom(filled, bits=12, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    assert header(data).nodata == 4095
    assert np.array_equal(values(data)[0], 4095 - filled)
    signed = (filled.astype(np.int16) - 2048).astype(np.int16)
    turned = values(dicom(signed, bits=12, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(turned[0], -1 - signed)


@pytest.mark.parametrize("slope", [1, 0.5])
def test_padding_is_no_data(slope):
    filled = RAW.astype(np.int16)
    filled[:5], filled[5] = -2000, -1990
    notes = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1980, "RescaleSlope": slope}
    data = dicom(filled, bits=13, RescaleIntercept=-1000, **notes)
    nodata = -2000 * slope - 1000
    assert header(data).nodata == nodata
    result = values(data)[0]
    holes = np.isnan(result) if slope != 1 else result == nodata
    assert holes[:6].all() and not holes[6:].any()
    # The notes may give the number as if it had no sign.
    unsigned = dicom(filled, bits=16, PixelPaddingValue=-2000).replace(b"\x28\0\x20\x01SS", b"\x28\0\x20\x01US")
    assert pydicom.dcmread(io.BytesIO(unsigned)).PixelPaddingValue == 63536 and header(unsigned).nodata == -2000


def test_a_table_of_values():
    table = np.random.default_rng(1).integers(0, 60_000, 4096).astype(np.uint16)
    data = dicom(RAW, bits=12, ModalityLUTSequence=item(LUTDescriptor=[4096, 0, 16], LUTData=table.tobytes()))
    assert np.array_equal(values(data)[0], table[RAW])


def test_a_palette_becomes_colors():
    tables = np.random.default_rng(2).integers(0, 256, (3, 256)).astype(np.uint8)
    notes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        notes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        notes[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    indices = (RAW % 256).astype(np.uint8)
    assert np.array_equal(values(dicom(indices, **notes)), tables[:, indices])


def test_frames_of_a_stack():
    frames = np.random.default_rng(3).integers(0, 4096, (4, 20, 30)).astype(np.uint16)
    data = dicom(frames, bits=12)
    with pytest.raises(BadPicture, match=r"stack of 4 frames: give --images\.plane 0"):
        header(data)
    assert np.array_equal(values(data, plane=2)[0], frames[2])
    with pytest.raises(BadPicture, match="has 4 frames, none is number 4"):
        header(data, Reading(plane=4))
    color = np.random.default_rng(4).integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    assert np.array_equal(values(dicom(color), plane=1), color[1].transpose(2, 0, 1))


def test_each_frame_has_its_slope():
    """As in the newer kinds of CT and MR files."""
    frames = np.random.default_rng(3).integers(0, 4096, (2, 20, 30)).astype(np.uint16)
    rescaled = [
        item(PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept=-1000))[0]
        for slope in (1, 0.25)
    ]
    data = dicom(frames, bits=12, PerFrameFunctionalGroupsSequence=Sequence(rescaled))
    assert np.array_equal(values(data, plane=0)[0], frames[0].astype(int) - 1000)
    assert np.allclose(values(data, plane=1)[0], frames[1] * 0.25 - 1000)
    shared = dicom(frames, bits=12, SharedFunctionalGroupsSequence=Sequence(rescaled[:1]))
    assert np.array_equal(values(shared, plane=1)[0], frames[1].astype(int) - 1000)


class Counted(io.BytesIO):
    """A file that counts the bytes that are read."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("notes", [{}, {"NumberOfFrames": 1}])
def test_a_header_is_read_without_the_pixels(notes):
    data = dicom(np.zeros((1000, 1000), np.uint16), bits=12, **notes)
    file = Counted(data)
    assert header(file)[:2] == (1000, 1000)
    assert file.count < 20_000 < len(data)


def test_damaged_files_are_refused_in_a_line():
    data = dicom(RAW, bits=12)
    generator = np.random.default_rng(5)
    for number in range(150):
        damaged = bytearray(data)
        if number % 3 == 0:
            damaged = damaged[: generator.integers(140, len(data))]
        else:
            for place in generator.integers(132, len(data) - RAW.nbytes, 1 + number % 4):
                damaged[place] = generator.integers(256)
        try:
            values(bytes(damaged), plane=0)
        except BadPicture as error:
            assert 0 < len(str(error)) < 140 and "\n" not in str(error)
    with pytest.raises(BadPicture, match=r"truncated|decoded"):
        values(data[:-100])
    with pytest.raises(BadPicture, match="without a picture"):
        header((FOLDER / "rtplan.dcm").read_bytes())


def test_what_takes_much_memory_is_refused():
    data = dicom(RAW, bits=12)
    rows = pydicom.dcmread(io.BytesIO(data))
    rows.Rows, rows.Columns = 14_000, 12_500
    out = io.BytesIO()
    rows.save_as(out)
    with pytest.raises(BadPicture, match=r"takes 2\.8 GB of memory"):
        header(out.getvalue())
    # Pixels that are of another size than the notes say.
    large = io.BytesIO()
    Image.new("L", (3000, 3000)).save(large, "JPEG")
    about = pydicom.dcmread(io.BytesIO(dicom(np.zeros((20, 30), np.uint8))))
    about.PixelData = pydicom.encaps.encapsulate([large.getvalue()])
    about["PixelData"].is_undefined_length = True
    about.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    about.save_as(out := io.BytesIO())
    with pytest.raises(BadPicture, match="its pixels are 3000x3000, but it says 30x20"):
        values(out.getvalue())


def test_a_deflated_file_is_bounded(monkeypatch):
    deflated = (FOLDER / "image_dfl.dcm").read_bytes()
    assert values(deflated).shape == (1, 512, 512)
    begin = 144 + int.from_bytes(deflated[140:144], "little")
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflated[:begin] + b"".join(stream.compress(bytes(1 << 26)) for _ in range(10)) + stream.flush()
    assert len(bomb) < 1_000_000
    with pytest.raises(BadPicture, match="becomes more than 536,870,912 bytes"):
        header(bomb)


def test_folders_of_scanners(tmp_path):
    """Numbers for names, no endings, an index beside: all slices and nothing else are pictures."""
    for number, name in enumerate(["IM0001", "1.2.840.113619.2.5.78", "slice.dcm", "SLICE.DICOM"]):
        (tmp_path / name).write_bytes(dicom(RAW + number, bits=13, RescaleIntercept=-1024, RescaleSlope=1))
    (tmp_path / "DICOMDIR").write_bytes(dicom(RAW))
    (tmp_path / "README").write_text("words")
    os.mkfifo(tmp_path / "PIPE")
    assert len(walk(os.fsencode(tmp_path)).pictures) == 4
    pictures = open_pictures([str(tmp_path)], "all", Reading(value_range=(-160.0, 240.0)))
    assert len(pictures) == 4 and pictures.storage == Storage(1, torch.int16)
    levels = pictures.values.levels(pictures.read(0))
    stored = pictures.read(0).numpy()
    assert np.allclose(levels, np.clip((stored + 160.0) / 400, 0, 1) * 255, atol=1e-3)


def test_a_file_that_is_tiff_too_is_dicom():
    """Some scanners write both headers into one file."""
    data = (FOLDER / "CT_small.dcm").read_bytes()
    assert data[:4] == b"II*\0"
    assert values(data).min() == -896
    assert opened_dicom(data, Reading()).nodata == -3024


def test_tiles_of_a_radiograph(tmp_path):
    large = np.random.default_rng(6).integers(0, 4096, (100, 70)).astype(np.uint16)
    (tmp_path / "a.dcm").write_bytes(b"II*\0" + dicom(large, bits=12)[4:])
    pictures = open_pictures([str(tmp_path)], "all", Reading(tile=40))
    for number in range(len(pictures)):
        left, top = map(int, pictures.where(number).rpartition(" at ")[2].split(","))
        assert np.array_equal(pictures.read(number)[0].numpy(), large[top : top + 40, left : left + 40])
