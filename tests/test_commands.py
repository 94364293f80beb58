"""A program that is forked from the server says what a new one says."""

from support.commands import run_python

CODE = """
import logging, warnings
import torch
warnings.warn("one")
warnings.warn("two", FutureWarning)
warnings.warn("three", DeprecationWarning)
warnings.warn("hidden", PendingDeprecationWarning)
logging.getLogger("torch.distributed").warning("four")
"""


def test_a_program_shows_its_warnings_and_those_of_torch():
    said = run_python("-c", CODE).stderr.splitlines()
    assert said[:3] == [
        "<string>:4: UserWarning: one",
        "<string>:5: FutureWarning: two",
        "<string>:6: DeprecationWarning: three",
    ]
    assert len(said) == 4 and said[3].endswith("four")
