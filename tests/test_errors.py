import pytest

from moco_d2.cli import run_command
from moco_d2.errors import UserError, closest


def code_of(main) -> int:
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def fail(error):
    raise error


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    assert code_of(lambda: fail(UserError("no such thing; do this"))) == 2
    assert capsys.readouterr() == ("", "error: no such thing; do this\n")


def test_ctrl_c_says_how_to_go_on(capsys):
    assert code_of(lambda: fail(KeyboardInterrupt())) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_what_main_returns(returned, code):
    assert code_of(lambda: returned) == code


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_closest_is_part_of_a_sentence_or_nothing():
    candidates = ["voc_2007_test", "voc_2012_test", "coco_2017_val"]
    assert closest("voc_2007_tset", candidates[:1]) == "did you mean 'voc_2007_test'?"
    both = closest("voc_2007_tset", candidates)
    assert both.startswith("did you mean 'voc_2007_test' or 'voc_2012_test'")
    assert closest("xyzzy", candidates) == ""
