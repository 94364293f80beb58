import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import stat

import pytest

from moco_d2.errors import UserError
from moco_d2.files import (
    atomic_write,
    check_own,
    open_own,
    read_regular_file,
    remove_leftovers,
    sha256,
    sha256_of_json,
    write_json,
    write_text,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_gives_the_file_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
        assert temporary.suffix == ".json"  # writers that look at the suffix still work
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["x.json"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing_behind_and_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "x.txt"
    for before in ([], ["x.txt"]):
        with pytest.raises(failure), atomic_write(path) as temporary:
            temporary.write_text("half")
            raise failure
        assert names(tmp_path) == before
        if before:
            assert path.read_text() == "old"
        path.write_text("old")


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*/file/x\.txt: .*choose a folder"):
        write_text(tmp_path / "file" / "x.txt", "y")


def test_a_folder_in_the_files_place_is_a_user_error(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*/x\.txt"):
        write_text(tmp_path / "x.txt", "y")
    assert names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("before", [True, False])
def test_a_folder_that_is_removed_meanwhile_is_a_user_error(tmp_path, before):
    file = tmp_path / "out" / "x.txt"
    refused = pytest.raises(UserError, match=rf"cannot write {file}: No such file")
    with refused, atomic_write(file) as temporary:
        if before:
            shutil.rmtree(file.parent)
        temporary.write_text("whole")
        shutil.rmtree(file.parent)
    assert not file.parent.exists()


def test_an_error_of_another_file_is_not_the_writers(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "x.txt"):
        (tmp_path / "elsewhere").read_text()


def test_write_json_refuses_what_json_has_not(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, 2], "a": "é"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "é", "b": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"a": float("nan")})
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 7])
def test_sha256_is_of_the_content(tmp_path, size):
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_sha256_of_json_follows_the_content_and_not_the_order():
    digest = sha256_of_json({"a": 1, "b": [1, 2]})
    assert digest == hashlib.sha256(b'{"a":1,"b":[1,2]}').hexdigest()
    assert digest == sha256_of_json({"b": (1, 2), "a": 1})
    assert digest != sha256_of_json({"a": 1, "b": [2, 1]})


def killed_writer(path) -> None:
    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    for name in ("x.pth.tar", "x.pth", "y.pth.tar"):
        killed_writer(tmp_path / name)
    (tmp_path / ".x.pth.notours.tmp.tar").write_text("kept")
    assert len(names(tmp_path)) == 4
    with atomic_write(tmp_path / "x.pth.tar") as at_work:
        write_text(tmp_path / "x.pth.tar", "whole")
        assert at_work.exists()  # of a writer that lives
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([at_work.name, ".x.pth.notours.tmp.tar", "x.pth.tar"])
        at_work.write_text("later")
    assert names(tmp_path) == [".x.pth.notours.tmp.tar", "x.pth.tar"]
    assert (tmp_path / "x.pth.tar").read_text() == "later"
    remove_leftovers(tmp_path / "absent")


def test_only_leftovers_of_the_same_file_are_removed(tmp_path):
    killed_writer(tmp_path / "x.pth")
    killed_writer(tmp_path / "y.pth")
    write_text(tmp_path / "x.pth", "whole")
    left = names(tmp_path)
    assert len(left) == 2 and left[0].startswith(".y.") and left[1] == "x.pth"


def test_only_regular_files_of_a_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345678")
    assert read_regular_file(tmp_path / "file", 8) == b"12345678"
    with pytest.raises(ValueError, match="more than 7 bytes"):
        read_regular_file(tmp_path / "file", 7)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link", ""):
        with pytest.raises(ValueError, match="not a regular file"):
            read_regular_file(tmp_path / name, 8)
    with pytest.raises(OSError):
        read_regular_file(tmp_path / "absent", 8)


@pytest.mark.parametrize("flags", [os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND, os.O_RDONLY])
def test_a_file_of_our_own_is_no_link(tmp_path, flags):
    """Nor a pipe, which would wait, nor a device, nor a folder."""
    file, victim = tmp_path / "own", tmp_path / "victim"
    victim.write_text("precious")
    makers = (
        lambda: file.symlink_to(victim),
        lambda: file.symlink_to("/dev/null"),
        lambda: file.symlink_to(file),
        lambda: os.link(victim, file),
        lambda: os.mkfifo(file),
    )
    for make in makers:
        make()
        with pytest.raises(UserError, match=r"own must be a plain file, .*; remove it$"):
            os.close(open_own(file, flags))
        with pytest.raises(UserError, match=r"own must be a plain file"):
            check_own(file)
        file.unlink()
    assert victim.read_text() == "precious"
    check_own(file)  # nothing is there
    os.close(open_own(file, flags | os.O_CREAT))
    check_own(file)
