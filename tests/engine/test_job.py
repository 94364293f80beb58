"""A run whose record no reader would accept does not begin."""

import argparse

import pytest

from moco_d2.engine.job import load_job
from moco_d2.errors import UserError


def flags(*opts):
    return argparse.Namespace(config_file="voc_C4_random.yaml", opts=list(opts))


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "MOCO.TASK", "MODEL.WEIGHTS"])
@pytest.mark.parametrize(
    "value, reason",
    [
        ("a\u200bb", r"U\+200B ZERO WIDTH SPACE in a\?b"),
        ("a\u202eb", r"U\+202E RIGHT-TO-LEFT OVERRIDE in a\?b"),
        ("a\x1b[2Jb", "a control character in a"),
    ],
)
def test_a_value_that_readers_of_the_record_refuse_is_refused_first(key, value, reason):
    with pytest.raises(UserError, match=f"^{key} has .*{reason}.*write the value again"):
        load_job(flags(key, value, "MODEL.DEVICE", "cpu"))


def test_other_values_are_kept():
    cfg = load_job(flags("OUTPUT_DIR", "caf\u00e9/\u72d7", "MODEL.DEVICE", "cpu"))
    assert cfg.OUTPUT_DIR == "caf\u00e9/\u72d7"
