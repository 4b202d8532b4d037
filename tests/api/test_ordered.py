"""Sets put in order: neighbors, near-duplicates, clusters, outliers and balanced lists, from planted vectors."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import mimkit
from commandline import mimkit as command
from commandline import refused
from mimkit.api import ordered
from mimkit.api.ordered import clusters, curate, duplicates, neighbors, outliers

SIZES = (40, 20, 12, 4)


def planted() -> mimkit.Embeddings:
    """Four groups of directions: 0 to 39, 40 to 59, 60 to 71, 72 to 75. The vectors 76 and 77 are like nothing else."""
    generator = np.random.default_rng(0)
    centers = np.eye(8)[:4]
    vectors = np.concatenate(
        [center + 0.03 * generator.normal(size=(n, 8)) for center, n in zip(centers, SIZES, strict=True)]
    )
    vectors = np.concatenate([vectors, np.eye(8)[[5, 6]]]).astype(np.float32) + 10.0  # which all share
    labels = np.repeat(np.arange(5), [*SIZES, 2])
    paths = [f"/nowhere/{number}.png" for number in range(len(vectors))]
    return mimkit.Embeddings(vectors, paths, labels, ("a", "b", "c", "d", "odd"))


def test_neighbors_share_the_group():
    result = neighbors(planted(), 3)
    assert result.numbers["agreement"] > 0.95
    assert f"{100 * result.numbers['agreement']:.0f} % of the neighbors have the picture's own class" in result.lead
    assert len(result.table) == 78 * 3 and result.table[0]["path"] == "/nowhere/0.png"
    assert [row["rank"] for row in result.table[:3]] == [1, 2, 3]
    assert result.groups[0].rows[0] == 0 and len(result.groups[0].words) == 4


def test_near_duplicates_form_groups():
    ours = planted()
    ours.vectors[30] = ours.vectors[3] + 1e-3
    ours.vectors[7] = ours.vectors[3] - 1e-3
    ours.vectors[50] = ours.vectors[45]
    result = duplicates(ours, 0.9999)
    assert [[*group.rows] for group in result.groups] == [[3, 7, 30], [45, 50]]
    assert result.numbers["surplus"] == 3 and result.lead.startswith("3 of 78 pictures")
    kept = [(row["path"], row["keep"]) for row in result.table]
    assert kept[0] == ("/nowhere/3.png", True) and [keep for _, keep in kept] == [True, False, False, True, False]
    assert not duplicates(planted(), 1.0).groups


def test_clusters_are_the_groups_the_largest_first():
    result = clusters(planted(), 5)
    sizes = [len(group.rows) for group in result.groups]
    assert sizes == sorted(sizes, reverse=True) and sizes[:3] == [*SIZES[:3]]
    assert {*result.groups[0].rows} == {*range(40)} and result.groups[0].title == "cluster 1: 40 pictures, 100 % a"
    typical = [row["typical"] for row in result.table if row["cluster"] == 1]
    assert typical == sorted(typical, reverse=True) and typical[0] > 0.9
    assert len(clusters(planted()).groups) == 6  # the root of half of 78
    assert result.table == clusters(planted(), 5).table
    with pytest.raises(mimkit.UserError, match="use --clusters 78 or fewer"):
        clusters(planted(), 79)


def test_outliers_stand_first():
    result = outliers(planted(), 5)
    assert {*result.groups[0].rows[:2]} == {76, 77} and len(result.groups[0].rows) == 5
    assert len(result.table) == 78 and result.table[0]["score"] > 2 * result.numbers["median"]


@pytest.mark.parametrize(("count", "most"), [(None, 12), (30, 8), (20, 5)])
def test_a_curated_list_is_balanced(count, most):
    ours = planted()
    ours.vectors[1] = ours.vectors[0]
    result = curate(ours, count, number_of_clusters=5, threshold=0.9999)
    rows = [int(re.findall(r"\d+", row["path"])[0]) for row in result.table]
    assert rows == sorted(set(rows)) and not {0, 1} <= set(rows)
    assert count is None or len(rows) == count
    groups = np.bincount(ours.labels[rows], minlength=4)
    assert groups.max() <= most and groups[0] == pytest.approx(most, abs=1), (
        "the largest group gives no more than others"
    )
    assert result.numbers["duplicates"] == 1
    assert [row["path"] for row in result.table] == [
        row["path"] for row in curate(ours, count, number_of_clusters=5, threshold=0.9999).table
    ]


def test_what_cannot_be_put_in_order_is_refused(monkeypatch):
    few = mimkit.Embeddings(np.eye(2, dtype=np.float32), ["a", "b"])
    with pytest.raises(mimkit.UserError, match="give three or more"):
        outliers(few)
    with pytest.raises(mimkit.UserError, match="only 78 pictures are left"):
        curate(planted(), 79, threshold=1.0)
    monkeypatch.setattr(ordered, "EXACT", 50)
    with pytest.raises(mimkit.UserError, match="give --limit 50"):
        neighbors(planted())


@pytest.mark.parametrize("kind", ["neighbors", "duplicates", "clusters", "outliers", "curate"])
def test_a_folder_with_a_sheet_and_a_table(kind, run, labeled, tmp_path):
    more = {"neighbors": "--k 3", "duplicates": "--threshold 0.9999", "clusters": "--clusters 3"}.get(kind, "")
    out = tmp_path / kind
    said = command(
        f"{kind} {run.folder} --data {labeled} --out {out} --workers 0 {more} --json {tmp_path}/{kind}.json"
    ).out
    assert f"wrote {out}: index.html" in said
    result = json.loads((tmp_path / f"{kind}.json").read_text())
    assert result["kind"] == kind and result["lead"] in said and result["pictures"] == 40
    page = (out / "index.html").read_text()
    assert page.count('<img src="data:image/') >= 2 and "http" not in page.replace("http-equiv", "")
    table = [*csv.DictReader((out / f"{kind}.csv").open())]
    assert all(Path(row["path"]).is_file() for row in table)
    if kind == "duplicates":  # the last two are equal
        assert {Path(row["path"]).name for row in table} >= {"38.png", "39.png"}
    if kind == "curate":
        again = command(f"doctor {out}/pictures.txt").out
        assert f"{result['chosen']} pictures" in again or str(result["chosen"]) in again
    assert "is not empty" in refused(f"{kind} {run.folder} --data {labeled} --out {out}")


def test_a_list_needs_files(tmp_path):
    assert "no file of its own" in refused(f"curate pixels --data photos --out {tmp_path}/c --limit 40 --workers 0")
    assert not (tmp_path / "c").exists()
