"""Functions that make the content of a checkpoint hostile, in place, and whether it is refused."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from moco_d2.errors import UserError


def put(*path, value):
    """Function that sets an entry of a checkpoint."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path):
    """Function that deletes an entry of a checkpoint."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def not_refused(
    hostile: Mapping[str, tuple[Callable[[Any], object], str]],
    file: Path,
    resume: Callable[[], object],
    everything: Callable[[], dict[Path, bytes]],
) -> list[tuple[str, str]]:
    """The cases whose resume is not refused in the sentence that it should be, or writes a file.

    Args:
        hostile: by name, what changes a checkpoint's content, and a part of the sentence.
        file: a sound checkpoint, which each case replaces.
        resume: continues from `file`.
        everything: the content of all files of the run.
    """
    sound = torch.load(file, weights_only=True)
    wrong = []
    for case, (change, message) in hostile.items():
        content = copy.deepcopy(sound)
        change(content)
        torch.save(content, file)
        before = everything()
        sentence = rf"^{re.escape(str(file))} cannot be continued: its? .*{message}.*; copy"
        try:
            resume()
            wrong.append((case, "accepted"))
        except UserError as error:
            if not re.search(sentence, str(error)):
                wrong.append((case, str(error)))
        if everything() != before:
            wrong.append((case, "written"))
    return wrong
