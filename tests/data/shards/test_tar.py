"""Headers of tar files: every format gives what tarfile reads, and what is damaged is refused by name."""

import io
import os
import tarfile

import pytest

from mimkit.core.errors import UserError
from mimkit.data.shards.tar import BLOCK, Window, ending, header, members, padding
from mimkit.data.stored import LocalFile, open_stored
from tars import tar

FORMS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
LONG = "d" * 60 + "/" + "e" * 60 + "/"


def listed(file) -> list[tuple[bytes, int, int]]:
    """Names, offsets and sizes of regular files, by us."""
    return [member[:3] for member in members(Window(open_stored(str(file)))) if member.regular]


def by_tarfile(file) -> list[tuple[bytes, int, int]]:
    with tarfile.open(file) as archive:
        return [(os.fsencode(member.name), member.offset_data, member.size) for member in archive if member.isreg()]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_format_gives_what_tarfile_reads(form, tmp_path):
    names = ["a.jpg", LONG + "b.jpg", "ü/ß.png", "x" * 99, "c/" * 40 + "d.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += [LONG * 3 + "far.jpg", "y" * 300]
    file = tar(tmp_path / "x.tar", {name: os.urandom(700 * number) for number, name in enumerate(names)}, form)
    with tarfile.open(file, "a", format=form) as archive:
        for kind, target in ((tarfile.DIRTYPE, ""), (tarfile.SYMTYPE, "a.jpg"), (tarfile.LNKTYPE, "a.jpg")):
            about = tarfile.TarInfo(f"odd{kind.decode()}")
            about.type, about.linkname = kind, target if form == tarfile.USTAR_FORMAT else target * 30
            archive.addfile(about)
        about = tarfile.TarInfo("last.jpg")
        about.size = 3
        archive.addfile(about, io.BytesIO(b"abc"))
    assert listed(file) == by_tarfile(file)
    assert [name for name, _, _ in listed(file)] == [os.fsencode(name) for name in [*names, "last.jpg"]]
    kinds = [(member.regular, member.folder) for member in members(Window(open_stored(str(file))))][-4:]
    assert kinds == [(False, True), (False, False), (False, False), (True, False)]


def test_notes_of_all_members_and_holes(tmp_path):
    file = tmp_path / "x.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "ü"}) as archive:
        for number in range(3):
            about = tarfile.TarInfo(f"{number}.jpg")
            about.size = 600
            about.pax_headers = {"GNU.sparse.name": "holes.jpg"} if number == 1 else {}
            archive.addfile(about, io.BytesIO(bytes(600)))
    assert [name for name, _, _ in listed(file)] == [b"0.jpg", b"2.jpg"]


def test_sizes_that_octal_digits_cannot_say(tmp_path):
    about = tarfile.TarInfo("large.tif")
    about.size = 9 * 2**30
    file = tmp_path / "x.tar"
    file.write_bytes(about.tobuf(tarfile.GNU_FORMAT))
    assert file.read_bytes()[124] == 0x80
    os.truncate(file, BLOCK + about.size + 2 * BLOCK)  # a file with a hole
    assert listed(file) == [(b"large.tif", BLOCK, 9 * 2**30)]
    file.write_bytes(about.tobuf(tarfile.PAX_FORMAT))
    os.truncate(file, 3 * BLOCK + about.size + 2 * BLOCK)
    assert listed(file) == [(b"large.tif", 3 * BLOCK, 9 * 2**30)]


def test_old_headers_without_a_magic_and_with_signed_checksums(tmp_path):
    about = tarfile.TarInfo("\xff.jpg")
    about.size = 1
    data = bytearray(about.tobuf(tarfile.USTAR_FORMAT, encoding="latin-1"))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in data)
    data[148:156] = f"{signed:06o}\0 ".encode()
    file = tmp_path / "x.tar"
    file.write_bytes(data + b"x" + padding(1) + bytes(1024))
    assert listed(file) == [(b"\xff.jpg", BLOCK, 1)]
    with tarfile.open(file, encoding="latin-1") as archive:
        assert [(member.name, member.offset_data, member.size) for member in archive] == [("\xff.jpg", BLOCK, 1)]


@pytest.mark.parametrize("size", [BLOCK + 5, 3 * BLOCK - 30, 5 * BLOCK + 100, BLOCK + 999])
def test_a_truncated_file_is_named(size, tmp_path):
    file = tar(tmp_path / "short.tar", {"a.jpg": bytes(1000), "b.jpg": bytes(1000)}, tarfile.USTAR_FORMAT)
    os.truncate(file, size)
    with pytest.raises(UserError, match=r"short\.tar is truncated: it ends.*; copy it again"):
        listed(file)


def test_what_is_no_tar_file_is_named(tmp_path):
    file = tmp_path / "x.tar"
    for data, says in (
        (b"no tar file" * 100, "x.tar is no tar file"),
        (b"\x1f\x8b" + bytes(1000), "compressed as a whole"),
    ):
        file.write_bytes(data)
        with pytest.raises(UserError, match=says):
            listed(file)
    tar(file, {"a.jpg": bytes(1000), "b.jpg": bytes(10)}, tarfile.USTAR_FORMAT)
    data = bytearray(file.read_bytes())
    data[3 * BLOCK + 10] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        listed(file)


def test_what_we_write_is_ustar_without_time_and_owner(tmp_path):
    data = {f"{'k' * 120}/{number:09}.jpg": bytes([number]) * (number * 300) for number in range(5)}
    whole = b"".join(header(name, len(item)) + item + padding(len(item)) for name, item in data.items())
    file = tmp_path / "x.tar"
    file.write_bytes(whole + ending(len(whole)))
    assert file.stat().st_size % 10_240 == 0 and listed(file) == by_tarfile(file)
    with tarfile.open(file) as archive:
        assert {(member.mtime, member.uid, member.uname, member.type) for member in archive} == {(0, 0, "", b"0")}
        assert [archive.extractfile(member).read() for member in archive] == list(data.values())


def test_members_are_skipped_not_read(tmp_path, monkeypatch):
    file = tar(tmp_path / "x.tar", {f"{number}.jpg": bytes(1_000_000) for number in range(20)}, tarfile.USTAR_FORMAT)
    sizes = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda self, offset, size: sizes.append(size) or read(self, offset, size))
    assert len(listed(file)) == 20 and sum(sizes) < 300_000
