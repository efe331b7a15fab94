"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerkit._internal.files import replacing, write_atomically


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o644
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"before")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert path.read_bytes() == b"whole"


def test_a_writer_that_renames_its_own_file_over_the_temporary_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with replacing(path) as temporary:
        other = tmp_path / "other"
        other.write_bytes(b"renamed")
        other.replace(temporary)
    assert path.read_bytes() == b"renamed"
