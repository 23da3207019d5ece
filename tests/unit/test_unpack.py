"""Archives in parts, as a publisher gives them and as people end up with them."""

import io
import os
import shutil
import tarfile
import zipfile

import pytest

from ffnrepro.cli import main
from ffnrepro.data import unpack as module
from ffnrepro.data.unpack import unpack
from ffnrepro.errors import UserError

STEM = "20bn-something-something-v2"
FILES = {f"{STEM}/{number}.webm": os.urandom(1000 + number) for number in range(1, 41)}
SIZE = 7000


def archive(members):
    """Bytes of a .tar.gz: of names with content, and of ready members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        folder = tarfile.TarInfo(STEM)
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_parts(folder, members=FILES, zipped=(), size=SIZE):
    data = archive(members)
    folder.mkdir(exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(data), size)):
        path = folder / f"{STEM}-{number:02d}"
        path.write_bytes(data[start : start + size])
        if zipped == "all" or number in zipped:
            part, path = path, path.with_name(f"{path.name}.zip")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.write(part, part.name)
            part.unlink()
        paths.append(path)
    assert len(paths) >= 5
    return paths


def unpacked(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("zipped", [(), "all", (0, 3)], ids=["plain", "zipped", "some zipped"])
def test_parts_give_the_files(tmp_path, zipped):
    write_parts(tmp_path / "downloads", zipped=zipped)
    (tmp_path / "downloads" / f"{STEM}-labels.zip").write_bytes(b"another download")
    said = unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert unpacked(tmp_path / "into") == FILES
    assert said == f"40 files in {tmp_path / 'into' / STEM} (40 written, 0 already there)"


def test_a_zip_without_the_ending_is_a_zip(tmp_path):
    for path in write_parts(tmp_path / "downloads", zipped="all"):
        path.rename(path.with_suffix(""))
    unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert unpacked(tmp_path / "into") == FILES


def test_a_part_with_the_ending_of_a_zip_is_a_part(tmp_path):
    for path in write_parts(tmp_path / "downloads"):
        path.rename(path.with_name(f"{path.name}.zip"))
    unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert unpacked(tmp_path / "into") == FILES


def test_files_that_only_look_like_parts_are_ignored(tmp_path):
    write_parts(tmp_path / "downloads")
    for name in ("scan-2024-11", "notes-10.zip", "report-2024.pdf", f"{STEM}-02 (1)", f"{STEM}-06.part"):
        (tmp_path / "downloads" / name).write_bytes(b"something else")
    unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert unpacked(tmp_path / "into") == FILES


@pytest.mark.parametrize(
    ("local", "central", "value", "words"),
    [(8, 10, 9, "compression"), (6, 8, 1, "encrypted")],
    ids=["deflate64", "password"],
)
def test_a_zip_of_another_kind_is_named(tmp_path, local, central, value, words):
    path = write_parts(tmp_path / "downloads", zipped="all")[2]
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\3\4") + local] = content[content.index(b"PK\1\2") + central] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"-02\.zip: the archive cannot be read any further .*{words}"):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)


def test_no_joined_copy_is_written(tmp_path):
    paths = write_parts(tmp_path)
    unpack(tmp_path, tmp_path, expect=40)
    assert set(unpacked(tmp_path)) == set(FILES) | {path.name for path in paths}


def test_an_interrupted_call_can_be_repeated(tmp_path, monkeypatch):
    write_parts(tmp_path / "downloads")
    copy, copied = shutil.copyfileobj, []

    def interrupted(source, target, length):
        if len(copied) == 15:
            target.write(source.read(100))
            raise KeyboardInterrupt
        copied.append(target.name)
        copy(source, target, length)

    monkeypatch.setattr(module.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert unpacked(tmp_path / "into") == dict(list(FILES.items())[:15])  # no half of a file, under any name
    monkeypatch.undo()

    first = tmp_path / "into" / STEM / "1.webm"
    before = first.stat().st_mtime_ns
    (tmp_path / "into" / STEM / "2.webm").write_bytes(b"cut off")
    said = unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert "(26 written, 14 already there)" in said
    assert unpacked(tmp_path / "into") == FILES
    assert first.stat().st_mtime_ns == before
    assert "(0 written, 40 already there)" in unpack(tmp_path / "downloads", tmp_path / "into", expect=40)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path):
    content = bytearray(path.read_bytes())
    content[100:110] = bytes(10)
    path.write_bytes(content)


UNREADABLE = ["the archive cannot be read any further in this part", "again", "delete", "into"]
BROKEN = {
    "no part 02": (lambda paths: paths[2].unlink(), ["parts -02 are missing", "download"]),
    "no parts 00": (lambda paths: paths[0].unlink(), ["first part of no archive", f"{STEM}-00"]),
    "no part 03, which is a folder": (
        lambda paths: (paths[3].unlink(), paths[3].mkdir()),
        ["parts -03 are missing", "download"],
    ),
    "no last part": (lambda paths: paths[-1].unlink(), ["-04: ", "later parts are missing", *UNREADABLE]),
    "last part cut": (lambda paths: truncate(paths[-1], 50), ["-05: ", *UNREADABLE]),
    "last part without its end": (
        lambda paths: truncate(paths[-1], paths[-1].stat().st_size - 4),
        ["-05: ", *UNREADABLE],
    ),
    "middle part cut": (lambda paths: truncate(paths[3], 6500), ["this part or an earlier one", *UNREADABLE]),
    "bytes damaged": (lambda paths: flip(paths[3]), ["CRC check failed", "an earlier one", *UNREADABLE]),
    "one empty in the middle": (lambda paths: truncate(paths[2], 0), ["an earlier one", *UNREADABLE]),
    "first one empty": (lambda paths: truncate(paths[0], 0), ["-01: ", "an earlier one", *UNREADABLE]),
    "an error page": (
        lambda paths: paths[0].write_bytes(b"<html>404</html>"),
        ["-00: ", "Not a gzipped file", "<h", *UNREADABLE],
    ),
    "another archive": (
        lambda paths: paths[0].with_name("20bn-something-something-v1-00").write_bytes(b""),
        ["v1", "v2", "parts of one archive"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_downloads_are_one_line_with_the_fix(tmp_path, case):
    harm, words = BROKEN[case]
    paths = write_parts(tmp_path / "downloads")
    assert len(paths) == 6
    harm(paths)
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("harm", [flip, lambda path: truncate(path, 1000)], ids=["damaged", "cut"])
def test_a_damaged_zip_is_named(tmp_path, harm):
    paths = write_parts(tmp_path / "downloads", zipped="all")
    harm(paths[2])
    with pytest.raises(UserError, match=r"-02\.zip: the archive cannot be read any further.*again"):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)


@pytest.mark.parametrize(("expect", "fix"), [(41, "-05"), (39, "of this data set")])
def test_another_number_of_files_is_an_error(tmp_path, expect, fix):
    write_parts(tmp_path / "downloads")
    with pytest.raises(UserError, match=rf"40 files were unpacked instead of {expect}: .*{fix}.*--expect 40"):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=expect)


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../outside.webm", b"x"),
        (f"{STEM}/../../outside.webm", b"x"),
        ("/outside.webm", b"x"),
        (f"{STEM}/inner.webm", link(f"{STEM}/inner.webm", "1.webm", tarfile.SYMTYPE)),
        (f"{STEM}/link.webm", link(f"{STEM}/link.webm", "/etc/passwd", tarfile.SYMTYPE)),
        (f"{STEM}/hard.webm", link(f"{STEM}/hard.webm", "../../outside.webm", tarfile.LNKTYPE)),
        (f"{STEM}/pipe.webm", link(f"{STEM}/pipe.webm", "", tarfile.FIFOTYPE)),
    ],
)
def test_members_outside_the_folder_and_links_are_refused(tmp_path, name, content):
    write_parts(tmp_path / "downloads", FILES | {name: content})
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / "downloads", tmp_path / "into", expect=41)
    assert repr(name) in str(caught.value)
    assert "refused" in str(caught.value)
    assert set(unpacked(tmp_path / "into")) == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"downloads", "into"}


def test_a_link_that_leads_out_is_not_followed(tmp_path):
    write_parts(tmp_path / "downloads")
    (tmp_path / "into").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "into" / STEM).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="refused"):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_an_error_with_the_fix(tmp_path, monkeypatch):
    write_parts(tmp_path / "downloads")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"into: No space left on device.*repeat"):
        unpack(tmp_path / "downloads", tmp_path / "into", expect=40)


def test_folders_without_parts(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: No such file or directory"):
        unpack(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=rf"first part of no archive.*{STEM}-00"):
        unpack(tmp_path, tmp_path)


def test_the_command(tmp_path, capsys):
    write_parts(tmp_path)
    assert main(["unpack", str(tmp_path)]) == 1
    assert "error: " in (said := capsys.readouterr().err)
    assert "40 files were unpacked instead of 220,847" in said
    assert main(["unpack", str(tmp_path), "--into", str(tmp_path / "into"), "--expect", "40"]) == 0
    assert unpacked(tmp_path / "into") == FILES
