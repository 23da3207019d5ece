"""A file appears whole or not at all."""

import json
from pathlib import Path

import pytest

from ffnrepro.files import file_digest, read_record, replacing, write_json


def test_a_failure_leaves_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of i")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_the_temporary_file_is_a_neighbour_with_the_same_ending(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".png")
        assert not path.exists()
    assert path.exists()


def test_other_users_may_read_written_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '"text"'])
def test_a_record_that_cannot_be_read_is_empty(tmp_path: Path, text: str | None) -> None:
    write_json(tmp_path / "whole.json", {"a": [1]})
    assert read_record(tmp_path / "whole.json") == {"a": [1]}
    if text is not None:
        (tmp_path / "broken.json").write_text(text)
    assert read_record(tmp_path / "broken.json") == {}


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
