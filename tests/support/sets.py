"""Sets of pictures for tests: names and labels enter; files in all the layouts that people write leave."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def png(shade: int = 0) -> bytes:
    """A picture of 16 x 12 pixels whose first value is its number."""
    data = io.BytesIO()
    Image.new("RGB", (16, 12), (shade % 256, 0, 0)).save(data, "PNG")
    return data.getvalue()


def put(root: Path, *names: str) -> Path:
    """Pictures of these names below a folder, numbered as they come; `a/b*2.png` stands for `a/b0.png`, `a/b1.png`."""
    number = 0
    for name in names:
        stem, star, count = name.partition("*")
        count, _, ending = count.partition(".")
        for file in [root / f"{stem}{i}.{ending}" for i in range(int(count))] if star else [root / name]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
            number += 1
    return root


def parquet(
    file: Path,
    labels: list | None,
    *,
    name: str = "label",
    image: str = "image",
    names: list[str] | None = None,
    rows: int | None = None,
    binary: bool = False,
    columns: dict[str, Any] | None = None,
) -> Path:
    """A Parquet file of pictures; `names` are those that Hugging Face notes in the schema."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    count = rows if labels is None else len(labels)
    data = [png(i) for i in range(count or 0)]
    table: dict[str, Any] = {image: data if binary else [{"bytes": item, "path": None} for item in data]}
    table |= {} if labels is None else {name: labels}
    table = pa.table(table | (columns or {}))
    if names:
        features = {name: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def packed(folder: Path, file: Path, *, stored: bool = False, prefix: str = "") -> Path:
    """All files below a folder as a zip or tar archive."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    else:
        with tarfile.open(file, "w" + (":gz" if file.suffix in (".gz", ".tgz") else "")) as archive:
            for path in files:
                archive.add(path, prefix + path.relative_to(folder).as_posix())
    return file
