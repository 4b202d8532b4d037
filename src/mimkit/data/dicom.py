"""DICOM files through pydicom: bytes enter, size and values in their own units (Hounsfield for CT) leave."""

import io
from typing import Any

import numpy as np

from mimkit.core.errors import missing_extra
from mimkit.data.header import BadPicture, Header, check_size
from mimkit.data.reading import Reading


def is_dicom(data: bytes) -> bool:
    """Whether these bytes begin like a DICOM file."""
    return data[128:132] == b"DICM"


def dicom_header(data: bytes, reading: Reading) -> Header:
    """What a file says about itself. Raises BadPicture; UserError when pydicom is not installed."""
    about = _read(data, stop_before_pixels=True)
    if "Rows" not in about or "Columns" not in about:
        raise BadPicture("a DICOM file without a picture")
    _plane(about, reading)
    check_size(about.Columns, about.Rows)
    padding = about.get("PixelPaddingValue")
    nodata = None if padding is None else float(padding) * _slope(about) + _intercept(about)
    channels, planes = 3 if about.get("SamplesPerPixel", 1) == 3 else 1, int(about.get("NumberOfFrames", 1) or 1)
    return Header(about.Rows, about.Columns, channels, _dtype(about), nodata, planes)


def dicom_values(data: bytes, reading: Reading) -> np.ndarray:
    """The samples (C, H, W) of the file, or of one of its frames: stored values times slope plus intercept.

    MONOCHROME1, where low values are white, is turned round, so that air is dark in every X-ray.
    """
    import pydicom.pixels

    about = _read(data)
    plane = _plane(about, reading)
    try:
        values = pydicom.pixels.pixel_array(
            io.BytesIO(data), index=plane if about.get("NumberOfFrames", 1) > 1 else None
        )
    except (NotImplementedError, RuntimeError) as error:  # a compression whose decoder is not installed
        raise BadPicture(f"needs a decoder: pip install pylibjpeg pylibjpeg-libjpeg ({str(error)[:60]})") from error
    values = values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
    if about.get("PhotometricInterpretation") == "MONOCHROME1":
        low = -(1 << (about.BitsStored - 1)) if about.get("PixelRepresentation", 0) else 0
        values = low + (1 << about.BitsStored) - 1 + low - values.astype(np.int64)
    values = values * _slope(about) + _intercept(about)
    return values.astype(_dtype(about))


def _read(data: bytes, **settings: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise missing_extra("reading DICOM files", "science") from None
    return pydicom.dcmread(io.BytesIO(data), **settings)


def _slope(about: Any) -> float:
    return float(about.get("RescaleSlope", 1) or 1)


def _intercept(about: Any) -> float:
    return float(about.get("RescaleIntercept", 0) or 0)


def _dtype(about: Any) -> str:
    """The type that holds every value of the file after slope and intercept."""
    bits, signed = about.get("BitsStored", 16), about.get("PixelRepresentation", 0) == 1
    if _slope(about) != 1 or _intercept(about) != round(_intercept(about)):
        return "float32"
    least = _intercept(about) - (1 << (bits - 1) if signed else 0)
    most = least + (1 << bits) - 1
    for name in ("uint8", "uint16", "int16"):
        if np.iinfo(name).min <= least and most <= np.iinfo(name).max:
            return name
    return "float32"


def _plane(about: Any, reading: Reading) -> int:
    frames = int(about.get("NumberOfFrames", 1) or 1)
    if frames > 1 and reading.plane is None:
        raise BadPicture(f"is a stack of {frames} frames: give --images.plane 0")
    plane = reading.plane or 0
    if frames > 1 and plane >= frames:
        raise BadPicture(f"has {frames} frames, none is number {plane}: lower --images.plane")
    return plane
