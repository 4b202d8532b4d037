"""The settings of images: what a person says of pictures enters, how they are read, cut and shown leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from mimkit.core.display import Display
from mimkit.core.errors import UserError, at_least
from mimkit.data.reading import Reading, Transform, window_range
from mimkit.data.values import Values
from mimkit.data.views import Flips, RandomResizedCrop, View
from mimkit.masks.informed import choice

StatisticsOf = Literal["data", "imagenet"]


@dataclass(kw_only=True, slots=True)
class Images:
    """How pictures become the images of a batch."""

    size: int | tuple[int, int] = 224
    """Side of the images in pixels, or height and width."""
    view: View = field(default_factory=RandomResizedCrop)
    """What part of a picture is seen, when it is mirrored, and what becomes of its colors."""
    other_views: tuple[View, ...] = ()
    """Further views of the same picture, each drawn by itself, for methods that compare views."""
    flips: Flips = "left-right"
    """How views are turned while training: left-right mirrors them as they say; dihedral, for pictures without an up,
    takes each of the 8 symmetries of a square alike often, of other shapes the 4 that keep them."""
    channels: int | None = None
    """1 gray, 3 color, N bands; by default as the pictures have them."""
    mean: tuple[float, ...] | None = None
    """Per channel, of pixels in 0..1; by default those of released weights, else as `statistics` says."""
    std: tuple[float, ...] | None = None
    """Per channel, of pixels in 0..1; by default as for `mean`."""
    statistics: StatisticsOf = "data"
    """Where neither settings nor weights say mean and std: computed from the data, or imagenet, the constants of the
    papers, for 8-bit color pictures."""
    value_range: tuple[float, ...] | None = None
    """What becomes black and white in 16-bit and float pictures: a pair, or a pair for each channel in turn; by default
    what nearly all of a sample lies between."""
    value_transform: Transform = "none"
    """Of values between black and white: none, log, or sqrt."""
    window: tuple[float, float] | None = None
    """Center and width of the values that are seen, as for CT; instead of value_range."""
    nodata: float | None = None
    """The value of pixels where nothing was measured, besides NaN and what a GeoTIFF says of itself: they are the mean,
    and count in no statistic and no loss."""
    bands: tuple[int, ...] | None = None
    """Which bands of a file are seen, in this order, counted from 1; by default all."""
    axes: str | None = None
    """Letters of a TIFF's axes where its own notes are wrong or missing, as ZCYX."""
    plane: int | None = None
    """Which plane of a stack is the picture, counted from 0."""
    tile: int | None = None
    """Cut pictures into tiles of this side, each of which is a picture; by default they are whole."""
    shown: tuple[int, ...] | None = None
    """Channels in pictures for people, counted from 1: one (gray), two (magenta and green) or three (red, green, blue);
    by default the first three."""
    stretch: bool | None = None
    """In pictures for people, spread the 2nd to the 98th percentile over black to white; by default for pictures of
    other depths than 8 bits. Nothing else sees it."""
    color_map: bool = False
    """In pictures for people, a single channel from dark violet to yellow instead of black to white."""
    bad_fraction: float = 0.01
    """The run stops when more than this share of the pictures cannot be read."""

    def check(self) -> None:
        """Refuse numbers that cannot be meant, before anything takes long."""
        at_least(1, **{"images.size": min(self.shape()), "images.channels": self.channels})
        if self.view.size is not None:
            raise UserError(
                f"the first view has images.size: give --images.size {self.view.size}, not images.view.size"
            )
        choice("statistics", self.statistics, get_args(StatisticsOf), of="images")
        choice("flips", self.flips, get_args(Flips), of="images")
        if self.flips == "dihedral" and any(view.aligned for view in self.other_views):
            raise UserError(
                "images.flips dihedral turns each view by itself, and these shall show one box: leave it away"
            )
        if not 0 <= self.bad_fraction <= 1:
            raise UserError(f"images.bad_fraction is a share between 0 and 1, got {self.bad_fraction}")
        if self.nodata is not None and math.isnan(self.nodata):
            self.nodata = None  # NaN is no data anyway, and equals no other setting
        self.reading().check()
        if self.shown is not None and not (1 <= len(self.shown) <= 3 and min(self.shown) >= 1):
            raise UserError(f"images.shown is one, two or three channels, counted from 1, got {self.shown}")

    def display(self, values: Values, mean: Sequence[float], std: Sequence[float]) -> Display:
        """How images of this mean and std are shown to people. Raises UserError for a channel that is not there."""
        if self.shown is not None and max(self.shown) > len(mean):
            raise UserError(f"images.shown {' '.join(map(str, self.shown))}: the images have {len(mean)} channels")
        stretch = not values.plain if self.stretch is None else self.stretch
        return Display(mean=mean, std=std, shown=self.shown, stretch=stretch, color_map=self.color_map)

    def reading(self) -> Reading:
        """How files become pictures, as far as the settings say."""
        channels = len(self.bands) if self.channels is None and self.bands is not None else self.channels
        return Reading(
            channels=channels,
            value_range=window_range(self.window, self.value_range),
            value_transform=self.value_transform,
            nodata=self.nodata,
            bands=self.bands,
            axes=self.axes,
            plane=self.plane,
            tile=self.tile,
        )

    def follow(self, reading: Reading) -> None:
        """Read files as a model was taught that learned from others."""
        self.channels, self.value_range, self.window = reading.channels, reading.value_range, None
        self.value_transform, self.nodata, self.bands = reading.value_transform, reading.nodata, reading.bands
        self.axes, self.plane, self.tile = reading.axes, reading.plane, reading.tile

    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])
