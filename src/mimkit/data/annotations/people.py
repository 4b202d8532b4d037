"""People, one an item: pictures of several enter; each person cut out, with its joints in the cut, leaves."""

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mimkit.core.annotation import Annotation
from mimkit.core.errors import UserError
from mimkit.data.annotations.annotated import PERSON_MARGIN, Annotated
from mimkit.data.annotations.cut import cut_annotation
from mimkit.data.annotations.objects import Objects
from mimkit.data.decode import Header
from mimkit.data.pictures import digest

ASPECT = 4 / 3
"""Height over width of what a person is seen in, where nothing else is said."""


class People(Annotated):
    """Every person with a labeled joint, who is no crowd; the picture of each is a box around the person.

    Where a box leaves the picture, it is gray (128) in 8-bit pictures, no data in float ones, and in others no data or
    midway between black and white.
    """

    task = "keypoints"

    def __init__(self, of: Objects, *, aspect: float = ASPECT, margin: float = PERSON_MARGIN) -> None:
        """
        Args:
            aspect: height over width of the boxes.
            margin: how much larger a box is than the person's own, which it covers at least.

        Raises UserError where nobody has a labeled joint.
        """
        super().__init__(of.whole)
        self._of, self._aspect, self._margin = of, aspect, margin
        self.notes, self.has_test = of.notes, of.has_test
        self.categories, self.joints = of.categories, of.joints
        self.category_ids, self.image_ids = of.category_ids, of.image_ids
        table = of.table
        if table.keypoints is None:
            raise UserError(f"{of.name} has no joints")
        # Numbers of rows of the table.
        self._rows = torch.from_numpy(((table.keypoints[..., 2] > 0).any(1) & ~table.crowd).nonzero()[0])
        self._pictures = torch.from_numpy(table.owners)[self._rows]
        self._boxes = person_boxes(torch.from_numpy(table.boxes)[self._rows], aspect, margin)
        if not len(self._rows):
            raise UserError(f"{of.name} has nobody with a labeled joint in {len(of):,} pictures")

    def __len__(self) -> int:
        return len(self._rows)

    def origin(self, i: int) -> tuple[int, int, Int64[Tensor, " 4"]]:
        """Which picture and which of its objects item `i` is, and its box there (top, left, height, width).

        A place (column, row) of the item lies at (left + column, top + row) of that picture.
        """
        picture = int(self._pictures[i])
        first, _ = self._of.table.of(picture)
        return picture, int(self._rows[i]) - first, self._boxes[i]

    def annotation(self, i: int) -> Annotation:
        picture, number, box = self.origin(i)
        person = self._of.annotation(picture).at(torch.tensor([number]))
        return cut_annotation(person, box, False, self.size(i), self.joints)

    @property
    def annotations_fingerprint(self) -> str:
        return digest(self._of.annotations_fingerprint, self._aspect, self._margin)

    def size(self, i: int) -> tuple[int, int]:
        return int(self._boxes[i, 2]), int(self._boxes[i, 3])

    def header(self, i: int) -> Header:
        height, width = self.size(i)
        return self._of.header(int(self._pictures[i]))._replace(height=height, width=width)

    def where(self, i: int) -> str:
        picture, number, _ = self.origin(i)
        return f"{self._of.where(picture)} person {number}"

    def read(self, i: int) -> Shaped[Tensor, "C H W"]:
        picture, _, (top, left, height, width) = self.origin(i)
        pixels = self._of.read(picture)
        whole = pixels.new_full((len(pixels), int(height), int(width)), self._empty(pixels.dtype))
        rows = slice(max(0, int(top)), min(pixels.shape[1], int(top + height)))
        columns = slice(max(0, int(left)), min(pixels.shape[2], int(left + width)))
        inside = pixels[:, rows, columns]
        row, column = rows.start - int(top), columns.start - int(left)
        whole[:, row : row + inside.shape[1], column : column + inside.shape[2]] = inside
        return whole

    def read_box(self, i: int, box: tuple[int, int, int, int]) -> Shaped[Tensor, "C h w"]:
        row, column, height, width = box
        return self.read(i)[:, row : row + height, column : column + width]

    def _empty(self, dtype: torch.dtype) -> float:
        if dtype == torch.uint8:
            return 128
        if dtype == torch.float32:
            return torch.nan
        values = self.values
        return values.nodata if values.nodata is not None else round((values.low[0] + values.high[0]) / 2)


def person_boxes(boxes: Shaped[Tensor, "n 4"], aspect: float, margin: float) -> Int64[Tensor, "n 4"]:
    """Boxes (left, top, right, bottom) grown to an aspect and by a margin: (top, left, height, width) in whole pixels.

    The middle stays; the side that is too short for the aspect grows to it.
    """
    left, top, right, bottom = boxes.double().unbind(1)
    height = margin * torch.maximum(bottom - top, (right - left) * aspect)
    width = height / aspect
    starts = torch.stack([(top + bottom - height) / 2, (left + right - width) / 2], 1)
    sides = torch.stack([height, width], 1).round().clamp(min=1)
    return torch.cat([starts.round(), sides], 1).long()
