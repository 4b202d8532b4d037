"""Pictures of which more is known than a label: a number enters, a picture or its Annotation leaves."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from mimkit.core.annotation import Annotation, DenseTask, Joints
from mimkit.data.decode import Header
from mimkit.data.pictures import Pictures, Subset, digest
from mimkit.data.tiff import Box
from mimkit.data.values import Storage, Values

PERSON_MARGIN = 1.25
"""How much larger than a person's box is what keypoints are looked for in (ViTAE-Transformer/ViTPose)."""


class Annotated(Pictures, ABC):
    """Pictures with an Annotation each. They stream: each keeps its own size, and none has a label of its own."""

    task: DenseTask
    categories: tuple[str, ...] = ()
    """Names of the classes of pixels or objects; of both splits together."""
    joints: Joints | None = None
    """The skeleton, of keypoints."""
    has_masks: bool = False
    """Whether objects have masks."""
    category_ids: tuple[int | str, ...] = ()
    """What the file of annotations calls each class, for predictions that are compared with it; empty: nothing."""
    image_ids: np.ndarray | None = None
    """What it calls each picture: whole numbers, or texts."""

    def __init__(self, pictures: Pictures) -> None:
        """`pictures`: which these are, in their order."""
        self.whole = pictures
        self.name, self.notes, self.has_test = pictures.name, pictures.notes, pictures.has_test
        self.reading, self.remote = pictures.reading, pictures.remote

    @property
    def taught(self) -> "Annotated":
        """The pictures to learn from: all, unless a task leaves out those of which it would learn nothing."""
        return self

    @abstractmethod
    def annotation(self, i: int) -> Annotation:
        """What is known of picture `i`, in its own pixels. Raises BadPicture when that cannot be read."""

    @property
    @abstractmethod
    def annotations_fingerprint(self) -> str:
        """Changes when what is known of the pictures does."""

    @property
    def fingerprint(self) -> str:
        return digest(self.whole.fingerprint, self.annotations_fingerprint)

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def storage(self) -> Storage:
        return self.whole.storage

    @property
    def values(self) -> Values:
        return self.whole.values

    def read(self, i: int) -> Shaped[Tensor, "C H W"]:
        return self.whole.read(i)

    def read_box(self, i: int, box: Box) -> Shaped[Tensor, "C h w"]:
        return self.whole.read_box(i, box)

    def size(self, i: int) -> tuple[int, int]:
        return self.whole.size(i)

    def header(self, i: int) -> Header:
        return self.whole.header(i)

    def where(self, i: int) -> str:
        return self.whole.where(i)


class SomeAnnotated(Annotated):
    """Some pictures of an annotated set, by number."""

    def __init__(self, of: Annotated, index: Int64[Tensor, " m"]) -> None:
        super().__init__(Subset(of.whole, index))
        self._of, self._index = of, index
        self.task, self.categories, self.joints, self.has_masks = of.task, of.categories, of.joints, of.has_masks
        self.notes, self.has_test = of.notes, of.has_test
        self.category_ids = of.category_ids
        self.image_ids = None if of.image_ids is None else of.image_ids[index.numpy()]

    def annotation(self, i: int) -> Annotation:
        return self._of.annotation(int(self._index[i]))

    @property
    def annotations_fingerprint(self) -> str:
        return digest(self._of.annotations_fingerprint, self._index.numpy().tobytes())
