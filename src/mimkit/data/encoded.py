"""Pictures held as encoded bytes: a number enters, the decoded picture or a box of it leaves."""

import io
from abc import abstractmethod
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from io import BufferedIOBase

import torch
from torch import Tensor

from mimkit.data.decode import BadPicture, Header, decode, decode_box, header
from mimkit.data.dicom import START, is_dicom
from mimkit.data.pictures import Joined, Pictures, sample
from mimkit.data.tiff import Box, OnlyWhole, is_tiff
from mimkit.data.values import STORED, Storage

_DECODED = 1 << 29  # bytes of whole pictures that a process keeps for further boxes of them


class Encoded(Pictures):
    """Pictures held as encoded bytes somewhere; a subclass says where with `data`."""

    @abstractmethod
    def data(self, i: int) -> bytes:
        """The encoded bytes of picture `i`. Raises OSError."""

    def read(self, i: int) -> Tensor:
        if self.reading.plane is not None and (plane := self._part(i, None)) is not None:
            return plane
        return decode(self.stored(i), self.storage, self.reading)

    def _part(self, i: int, box: Box | None) -> Tensor | None:
        """A box of picture `i`, or its plane of a stack, where no more of the file needs to be read: of most TIFFs."""
        with self._handle(i) as file:
            start = file.read(START)
            file.seek(0)
            if not is_tiff(start) or is_dicom(start):
                return None
            try:
                return decode_box(file, box, self.storage, self.reading)
            except OnlyWhole:
                return None

    def size(self, i: int) -> tuple[int, int]:
        return self.header(i)[:2]

    @cached_property
    def storage(self) -> Storage:
        """By the headers of up to 64 pictures: all gray 1 channel, N for a TIFF of N, else 3; the usual type."""
        headers = []
        for i in sample(len(self), 64):
            try:
                headers.append(self.header(i))
            except BadPicture:
                continue
        counts = {about.channels for about in headers}
        channels = self.reading.channels or (counts.pop() if len(counts) == 1 else 3)
        dtypes = Counter(STORED[about.dtype] for about in headers)
        dtype = dtypes.most_common(1)[0][0] if dtypes else torch.uint8
        nodata = Counter(about.nodata for about in headers if about.nodata is not None).most_common(1)
        if dtype == torch.float32:
            return Storage(channels, dtype)
        return Storage(
            channels,
            dtype,
            self.reading.nodata if self.reading.nodata is not None else nodata[0][0] if nodata else None,
        )

    def file(self, i: int) -> BufferedIOBase:
        """Picture `i` as a file, of which one can read a part. Raises OSError."""
        return io.BytesIO(self.data(i))

    def read_box(self, i: int, box: Box) -> Tensor:
        # Of a TIFF the part that is needed; whatever else is decoded as a whole is worth keeping for its other boxes.
        whole = self._decoded.get(i)
        if whole is None:
            if (pixels := self._part(i, box)) is not None:
                return pixels
            whole = self.read(i)
            while self._decoded and sum(picture.nbytes for picture in self._decoded.values()) > _DECODED:
                self._decoded.pop(next(iter(self._decoded)))
            self._decoded[i] = whole
        row, column, height, width = box
        return whole[:, row : row + height, column : column + width]

    def header(self, i: int) -> Header:
        with self._handle(i) as file:
            return header(file, self.reading)

    @cached_property
    def _decoded(self) -> dict[int, Tensor]:
        """Pictures of which boxes were read, the latest last."""
        return {}

    @contextmanager
    def _handle(self, i: int) -> Generator[BufferedIOBase]:
        try:
            with self.file(i) as file:
                yield file
        except OSError as error:
            raise BadPicture(f"cannot be opened: {error.strerror or error}") from error

    def stored(self, i: int) -> bytes:
        """As `data`. Raises BadPicture."""
        try:
            return self.data(i)
        except OSError as error:
            raise BadPicture(f"cannot be opened: {error.strerror or error}") from error


def encoded_bytes(pictures: Pictures, i: int) -> bytes | None:
    """The bytes of the file that picture `i` is, None for a set that holds pixels. Raises BadPicture."""
    if isinstance(pictures, Joined):
        return encoded_bytes(*pictures.locate(i))
    return pictures.stored(i) if isinstance(pictures, Encoded) else None
