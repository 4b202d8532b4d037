"""Labels in use: what is unlabeled is left out, splits keep each class, and joined sources agree by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimkit.core.errors import UserError
from mimkit.core.randomness import rng_keys
from mimkit.data.classes import Labels
from mimkit.data.labels import label_subset, need_labels, only_labeled
from mimkit.data.pictures import Decoded, Joined, Subset, place_in_class, split_by_address


def pictures(labels, classes=None, name="set", named=None) -> Decoded:
    count = len(labels)
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    made = Decoded(name, pixels, None if labels[0] is None else torch.tensor(labels), classes)
    made.named = made.named if named is None else named
    return made


def shades(part) -> list[int]:
    return [int(part.read(i)[0, 0, 0]) for i in range(len(part))]


def test_a_set_of_unlabeled_pictures_has_no_labels():
    empty = pictures([-1, -1, -1], ("a", "b"))
    assert empty.labels is None and empty.classes is None and empty.all_classes == ("a", "b")
    assert empty.unlabeled_count == 0 and "none of these 3 pictures" in empty.no_labels
    with pytest.raises(UserError, match=r"measuring needs labels, and set has none \(none of these 3 .*\): put the"):
        need_labels(empty, "measuring")
    bare = pictures([5, 9, 5])  # numbers without names get their decimal text
    assert bare.classes == ("5", "9") and bare.labels.tolist() == [0, 1, 0] and not bare.named


def test_only_labeled_pictures_are_measured_and_taught():
    mixed = pictures([0, -1, 1, -1, 1, 0], ("a", "b"))
    assert mixed.unlabeled_count == 2
    assert shades(only_labeled(mixed)) == [0, 2, 4, 5] and only_labeled(mixed).labels.tolist() == [0, 1, 1, 0]
    assert shades(label_subset(mixed, 1.0)) == [0, 2, 4, 5]
    assert label_subset(mixed, 0.5).labels.sort().values.tolist() == [0, 1]
    whole = pictures([0, 1], ("a", "b"))
    assert only_labeled(whole) is whole


def test_a_split_by_address_keeps_each_class():
    labels = [0] * 190 + [1] * 10 + [2] * 2 + [3] + [-1] * 7
    whole = pictures(labels, ("normal", "lesion", "pair", "single"))
    test, train = split_by_address(whole, "test"), split_by_address(whole, "train")
    assert test.labels.bincount(minlength=4).tolist() == [38, 2, 1, 0] and test.unlabeled_count == 0
    assert train.labels[train.labels >= 0].bincount().tolist() == [152, 8, 1, 1] and train.unlabeled_count == 7
    assert sorted(shades(train) + shades(test)) == list(range(len(labels)))
    assert "classes of one picture, which only train: single" in train.notes
    assert split_by_address(whole, "all") is whole
    with pytest.raises(UserError, match="one picture of each class"):
        split_by_address(pictures([0, 1, 2, 3, 4], tuple("abcde")), "test")


@pytest.mark.parametrize("count", [5, 33, 200])
def test_without_labels_the_split_is_that_of_earlier_versions(count):
    whole, again = pictures([None] * count), pictures([0, 1] * count, ("a", "b"))
    order = rng_keys("split", torch.arange(count)).argsort()
    assert shades(split_by_address(whole, "test")) == order[: round(0.2 * count)].sort().values.tolist()
    half = Subset(again, torch.arange(count))
    assert shades(split_by_address(half, "test", by_class=False)) == shades(split_by_address(whole, "test"))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-1, 5), min_size=5, max_size=60))
def test_any_split_is_complete_disjoint_and_has_each_class(labels):
    whole = pictures(labels, tuple("abcdef"))
    counts = torch.tensor([labels.count(k) for k in range(6)])
    if whole.labels is not None and not (counts > 1).any():
        return
    test, train = split_by_address(whole, "test"), split_by_address(whole, "train")
    assert sorted(shades(train) + shades(test)) == list(range(len(labels)))
    if whole.labels is not None:
        tested = test.labels.bincount(minlength=6)
        assert (tested >= (counts > 1)).all() and (tested <= (0.2 * counts).round().clamp(min=1) * (counts > 1)).all()


def test_place_in_class():
    assert place_in_class(torch.tensor([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


def test_sources_with_names_are_joined_by_name_and_unlabeled_ones_are_unlabeled():
    joined = Joined(
        [pictures([0, 1], ("cat", "dog")), pictures([None] * 2), pictures([0, -1, 1], ("bird", "cat"), "third")]
    )
    assert joined.classes == ("bird", "cat", "dog") and joined.labels.tolist() == [1, 2, -1, -1, 0, -1, 1]
    assert joined.unlabeled_count == 3 and joined.named and joined.notes == ()


@pytest.mark.parametrize(
    "sources",
    [
        [pictures([0, 1], name="a"), pictures([0, 1], name="b")],
        [pictures([0, 1], ("cat", "dog"), "a"), pictures([0, 1], name="b")],
        [pictures([0, 1], name="a"), pictures([None, None]), pictures([0, 1], ("cat", "dog"), "b")],
        [pictures([0, 1], name="a"), pictures([0, 1], name="a")],
    ],
)
def test_bare_numbers_of_several_sources_are_not_matched(sources):
    joined = Joined(sources)
    assert joined.labels is None and joined.classes is None and joined.all_classes is None
    assert "name them (class folders, or words" in joined.no_labels and joined.notes[0].startswith(
        "labels are not used"
    )
    with pytest.raises(UserError, match=r"fine-tuning needs labels, and .* bare numbers, .*: name them"):
        need_labels(joined, "fine-tuning")


def test_bare_numbers_of_one_source_stay_beside_unlabeled_ones():
    joined = Joined([pictures([None] * 2), pictures([7, 10])])
    assert joined.labels.tolist() == [-1, -1, 0, 1] and joined.classes == ("7", "10") and not joined.named


def test_a_split_without_a_source_s_labels_numbers_classes_as_the_other_split():
    def split(labels) -> Decoded:
        part = pictures([0] * len(labels), ("x",))
        part.labels = part.classes = None
        part.set_labels(Labels(numbers=torch.tensor(labels), classes=("cow", "dog"), named=True))
        return part

    train = Joined([split([0, 1]), pictures([0, 1], ("ant", "cow"))])
    test = Joined([split([-1, -1]), pictures([0, 1], ("ant", "cow"))])
    assert train.classes == test.classes == ("ant", "cow", "dog") and test.labels.tolist() == [-1, -1, 0, 1]


SOURCES = st.lists(
    st.lists(st.sampled_from(["ant", "bee", "cow", None]), min_size=1, max_size=5), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=100)
@given(SOURCES, st.randoms())
def test_joined_in_any_order_every_picture_keeps_its_class(sources, random):
    random.shuffle(sources)
    parts = []
    for names in sources:
        classes = tuple(sorted({name for name in names if name})) or ("never",)
        parts.append(pictures([classes.index(name) if name else -1 for name in names], classes))
    if all(part.labels is None for part in parts):
        return
    joined = Joined(parts)
    names = [joined.classes[number] if number >= 0 else None for number in joined.labels.tolist()]
    assert names == [name for source in sources for name in source]
