"""Files that are read within a bound, and that appear whole or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from reference import directions, vector

import steerkit as sk
from steerkit._internal import files
from steerkit._internal.files import FileRefused, create, read_bounded, replacing, write_atomically
from steerkit.errors import FileWriteError
from steerkit.methods import State
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.errors import PackNotFoundError


class TestReading:
    def test_the_whole_file_up_to_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        for size in (0, 1, 2**20, 2**20 + 1):
            path.write_bytes(os.urandom(size))
            assert read_bounded(path, size) == path.read_bytes()
            if size:
                with pytest.raises(FileRefused, match=f"at most {size - 1}"):
                    read_bounded(path, size - 1)

    def test_a_link_is_followed_unless_it_must_not_be(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x")
        (tmp_path / "link").symlink_to("a")
        assert read_bounded(tmp_path / "link", 10) == b"x"
        with pytest.raises(OSError, match="link"):
            read_bounded(tmp_path / "link", 10, follow=False)

    @pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "link to zero"])
    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "a"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link to zero":
            path.symlink_to("/dev/zero")
        else:
            path = Path("/dev/zero")
        with pytest.raises(FileRefused, match="not a regular file"):
            read_bounded(path, 2**40)

    @pytest.mark.parametrize("path", ["a\0b", "x" * 300, "/nowhere/a"])
    def test_a_path_that_can_not_be_is_an_os_error(self, path: str) -> None:
        with pytest.raises(OSError, match=r"."):
            read_bounded(path, 10)

    def test_a_file_of_proc_has_no_size(self) -> None:
        assert read_bounded("/proc/self/cmdline", 2**20).startswith(sys.executable.encode())
        with pytest.raises(FileRefused, match="more than 3"):
            read_bounded("/proc/self/cmdline", 3)

    @pytest.mark.parametrize("change", ["grows", "shrinks", "rewritten"])
    def test_a_file_that_changes_while_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 2**21)
        os.utime(path, (0, 0))
        fstat, asked = os.fstat, []

        def changed_after_the_first_look(handle: int) -> os.stat_result:
            found = fstat(handle)
            asked.append(handle)
            if len(asked) == 2:  # it was opened and judged, and its size is known
                with path.open("r+b") as file:
                    if change == "grows":
                        file.truncate(2**33)  # a hole: it takes no space
                    elif change == "shrinks":
                        file.truncate(2**20)
                    else:
                        file.write(b"y")
            return found

        monkeypatch.setattr(files.os, "fstat", changed_after_the_first_look)
        with pytest.raises(FileRefused, match="changed while it was read"):
            read_bounded(path, 2**34)

    def test_a_file_that_is_swapped_while_it_is_opened(self, tmp_path: Path) -> None:
        """Whatever the path leads to at any moment, there is never a wait, and never more than the file."""
        code = """if True:
            import os, resource, sys, threading
            from steerkit._internal.files import read_bounded
            os.chdir(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
            open("file", "wb").write(b"x" * 1000)
            os.mkfifo("fifo")
            os.symlink("/dev/zero", "zero")
            open("large", "wb").truncate(2**40)
            ended = False
            def swap():
                while not ended:
                    for name in ("file", "fifo", "zero", "large"):
                        os.symlink(name, "new")
                        os.replace("new", "a")
            os.symlink("file", "a")
            swapper = threading.Thread(target=swap)
            swapper.start()
            found = {"read": 0, "refused": 0}
            while min(found.values()) < 20:
                try:
                    assert read_bounded("a", 2**20) == b"x" * 1000
                    found["read"] += 1
                except OSError:
                    found["refused"] += 1
            ended = True
            swapper.join()
        """
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


class TestWhoMayRead:
    @pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
    @pytest.mark.parametrize("renamed", [False, True])
    def test_a_file_has_the_mode_that_the_umask_says(self, tmp_path: Path, umask: int, renamed: bool) -> None:
        before = os.umask(umask)
        try:
            with replacing(tmp_path / "a") as temporary:
                temporary.write_bytes(b"x")
                if renamed:  # as a library does that writes a file of its own first
                    other = tmp_path / "other"
                    other.touch(mode=0o600)
                    other.replace(temporary)
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


class TestWhatIsThere:
    def test_a_link_is_replaced_and_its_target_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_bytes(b"mine")
        (tmp_path / "a").symlink_to("target")
        write_atomically(tmp_path / "a", b"new")
        assert (tmp_path / "target").read_bytes() == b"mine"
        assert not (tmp_path / "a").is_symlink()
        assert (tmp_path / "a").read_bytes() == b"new"

    def test_a_new_file_is_never_one_that_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_bytes(b"mine")
        (tmp_path / "a").symlink_to("target")
        (tmp_path / "dangling").symlink_to("nothing")
        for name in ("target", "a", "dangling"):
            with pytest.raises(FileExistsError):
                create(tmp_path / name)
        assert (tmp_path / "target").read_bytes() == b"mine"
        assert not (tmp_path / "nothing").exists()

    @pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "fifo", "folder"])
    def test_no_device_and_no_folder_is_replaced(self, tmp_path: Path, path: str) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "folder").mkdir()
        before = (tmp_path / path).lstat()
        with pytest.raises(FileWriteError, match="not a regular file"):
            write_atomically(tmp_path / path, b"x")
        assert (tmp_path / path).lstat().st_mode == before.st_mode

    def test_a_name_as_long_as_names_can_be(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / ("a" * 255), b"x")
        assert (tmp_path / ("a" * 255)).read_bytes() == b"x"

    def test_a_limit_of_the_size_of_files_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"before")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(FileWriteError, match="can't be written: File too large"):
                write_atomically(tmp_path / "a", b"x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "a").read_bytes() == b"before"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
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


def test_the_home_folder_is_the_same_wherever_a_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava: sk.VLM, anchors: list[sk.Sample], picture: Any
) -> None:
    """What is saved under `~` is in the home folder, and is found there; no folder of that name is made."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    made = vector(llava, directions(llava))
    assert made.save("~/a/v.safetensors") == home / "a" / "v.safetensors"
    assert made.save_pretrained("~/b").parent == home / "b"
    for found in (sk.load_vector("~/a/v.safetensors"), sk.SteeringVector.from_pretrained("~/b")):
        assert found.digest() == made.digest()
    picture(0).save(home / "p.png")
    (home / "s.jsonl").write_text('{"text": "What is this?", "image": "~/p.png"}\n')
    (sample,) = sk.read_samples("~/s.jsonl")
    assert sk.models.open_image("~/p.png").tobytes() == picture(0).tobytes()
    assert sample.loaded().images[0].tobytes() == picture(0).tobytes()
    sk.CMRM().fit(llava, anchors[:2], checkpoint="~/fit.state", engine="hooks")
    assert State.load("~/fit.state").save("~/again.state") == home / "again.state"
    tiny.save("llava", home / "model")
    assert sk.load("~/model").record.architecture == "LlavaForConditionalGeneration"
    facts = interop.ModelFacts.from_config("~/model")
    interop.write(made.select([1, 2]).applied(tokens="all", phase="both"), "~/v.gguf", "llamacpp")
    assert [*interop.read("~/v.gguf", "llamacpp", model=facts).directions] == [1, 2]
    assert sk.SteeringVector.load("~/a/v.safetensors").digest() == made.digest()
    (home / "rows.jsonl").write_text('{"text": "How?", "label": "harmful"}\n{"text": "Why?", "label": "harmless"}\n')
    assert sk.evaluation.load_suite("~/rows.jsonl").size == 2
    (home / "rows.json").write_text('{"cmrm": {}}')
    assert sk.evaluation.read_methods("~/rows.json").keys() == {"cmrm"}
    (home / "labels.csv").write_text("request,answer,refused\nWhy?,I can't help with that.,yes\n")
    assert sk.evaluation.judge_check(sk.evaluation.PhraseJudge(), "~/labels.csv").opinions
    (home / "v.mp4").write_bytes(b"frames")
    filmed = sk.Sample("What is this?", videos=("~/v.mp4",))
    filmed.check_images()
    assert filmed.digest() == sk.Sample("What is this?", videos=(home / "v.mp4",)).digest()
    assert not (tmp_path / "~").exists()
    with pytest.raises(PackNotFoundError, match="~nobody_of_this_name"):
        sk.load_vector("~nobody_of_this_name/v.safetensors")
