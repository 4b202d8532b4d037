"""Tar files for tests: names and bytes enter, a file as tarfile writes it in any format leaves."""

import io
import tarfile
from pathlib import Path


def tar(file: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of these members, with times that pax has to write into headers of their own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(data), 1.5
            archive.addfile(about, io.BytesIO(data))
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
