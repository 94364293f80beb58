"""Which checkpoint of a folder is continued."""

import os
import re

import pytest
import torch

from moco_d2.engine.last_checkpoint import holds_run, name_last, newest_intact
from moco_d2.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 3, 6 and 9, saved in this order, a second apart; 6 is named, after it was saved
    and before 9.
    """
    for iteration in (3, 6, 9):
        file = tmp_path / f"model_{iteration}.pth"
        # Of pretraining, and of fine-tuning.
        content = {"iteration": iteration}
        torch.save({"moco_d2": content} if iteration == 6 else content, file)
        os.utime(file, (iteration, iteration))
    (tmp_path / "last_checkpoint").write_text("model_6.pth")
    os.utime(tmp_path / "last_checkpoint", (7, 7))
    return tmp_path


PATTERN = "model_*.pth"


def found(folder):
    path, content = newest_intact(folder, PATTERN)
    assert content.get("moco_d2", content)["iteration"] == int(path.stem[6:])
    return path.name


def test_what_was_written_but_not_yet_named(folder):
    assert found(folder) == "model_9.pth"
    assert (folder / "last_checkpoint").read_text() == "model_6.pth"
    name_last(folder, folder / "model_9.pth")
    assert (folder / "last_checkpoint").read_text() == "model_9.pth"
    assert found(folder) == "model_9.pth"


@pytest.mark.parametrize("named_at", [9, 10])
def test_an_older_one_that_is_named_by_hand(folder, named_at):
    """Also where the clock of the file system is too coarse to tell."""
    (folder / "last_checkpoint").write_text("model_3.pth\n")
    os.utime(folder / "last_checkpoint", (named_at, named_at))
    assert found(folder) == "model_3.pth"
    name_last(folder, folder / "model_3.pth")
    assert (folder / "last_checkpoint").read_text() == "model_3.pth\n"


def test_a_younger_file_that_is_not_further_or_not_whole(folder, caplog):
    torch.save({"iteration": 5}, folder / "model_copied.pth")
    torch.save({"model": {}}, folder / "model_others.pth")
    (folder / "model_9.pth").write_bytes(b"")
    assert found(folder) == "model_6.pth"
    assert caplog.text == ""


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_damaged_one_gives_way_to_the_newest_that_is_whole(folder, unnamed, caplog):
    (folder / "model_6.pth").write_bytes(b"")
    if not unnamed:
        (folder / "model_9.pth").unlink()
    assert found(folder) == ("model_9.pth" if unnamed else "model_3.pth")
    assert "model_6.pth is empty" in caplog.text


def test_an_empty_last_checkpoint(folder):
    (folder / "last_checkpoint").write_text("")
    assert found(folder) == "model_9.pth"


def test_an_official_file_that_is_named(folder):
    """Which tells no iteration."""
    torch.save({"epoch": 1, "state_dict": {}}, folder / "given.pth")
    (folder / "last_checkpoint").write_text("given.pth")
    assert newest_intact(folder, PATTERN)[0].name == "given.pth"


def test_a_file_elsewhere_that_is_named(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "model_3.pth"
    torch.save({"iteration": 3}, elsewhere)
    (folder / "last_checkpoint").write_text(str(elsewhere))
    path, _ = newest_intact(folder, PATTERN)
    name_last(folder, path)
    assert path == elsewhere and (folder / "last_checkpoint").read_text() == str(elsewhere)


def test_none_that_is_whole(folder):
    for path in folder.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"model_6\.pth is empty"):
        newest_intact(folder, PATTERN)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"", b"x" * 5000])
def test_a_last_checkpoint_without_a_name(folder, name, caplog):
    (folder / "last_checkpoint").write_bytes(name)
    assert holds_run(folder, PATTERN)
    assert found(folder) == "model_9.pth"
    sentence = f"{folder}/last_checkpoint does not hold the name of a file: write the name of a"
    assert sentence in caplog.text
    for file in folder.glob("model_*.pth"):
        file.unlink()
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        newest_intact(folder, PATTERN)


@pytest.mark.parametrize("kind", ["folder", "broken link", "pipe"])
def test_a_last_checkpoint_that_is_no_file_is_refused(tmp_path, kind):
    """A run could not write it, and without this would start again from the beginning."""
    file = tmp_path / "last_checkpoint"
    assert not holds_run(tmp_path, PATTERN)
    make = {
        "folder": file.mkdir,
        "broken link": lambda: file.symlink_to("x"),
        "pipe": lambda: os.mkfifo(file),
    }
    make[kind]()
    with pytest.raises(UserError, match="last_checkpoint is not a file: replace it by a file with"):
        holds_run(tmp_path, PATTERN)


def test_a_run_without_last_checkpoint_is_continued_and_not_begun_again(folder, caplog):
    """A copy of ``*.pth`` leaves last_checkpoint behind."""
    (folder / "last_checkpoint").unlink()
    assert holds_run(folder, PATTERN)
    assert found(folder) == "model_9.pth"
    assert f"{folder}/last_checkpoint is gone: write the name of a" in caplog.text
    name_last(folder, folder / "model_9.pth")
    assert (folder / "last_checkpoint").read_text() == "model_9.pth"


def test_files_that_are_no_checkpoints_of_a_run_are_no_run(tmp_path):
    torch.save({"epoch": 200, "state_dict": {}}, tmp_path / "model_official.pth")
    (tmp_path / "model_empty.pth").write_bytes(b"")
    assert not holds_run(tmp_path, PATTERN)
