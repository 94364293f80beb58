import re

from support.checkpoint.outcomes import COMMITTED_TABLE
from support.commands import run_tool
from support.paths import ROOT, TOOLS

from moco_d2.checkpoint import documentation, weights_page
from moco_d2.checkpoint.families import FAMILIES
from moco_d2.checkpoint.published import PUBLISHED
from moco_d2.checkpoint.targets import TARGETS
from moco_d2.checkpoint.vit.names import FAMILIES as VIT_FAMILIES


def test_the_committed_page_is_made_from_the_families():
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    assert page == documentation.document()
    assert all(
        f"`{family.name}`" in page and family.example in page
        for family in (*FAMILIES, *VIT_FAMILIES)
    )


def test_the_page_of_weights_is_made_from_the_table():
    page = (ROOT / "docs" / "weights.md").read_text()
    assert page == weights_page.document()
    for entry in PUBLISHED:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{entry.name}` "))
        assert entry.url in row and (f"`{entry.hash}`" if entry.hash else "| unconfirmed |") in row
    assert "| `moco` |" in page and "`MODEL.RESNETS.NUM_GROUPS 32`" in page


def test_a_file_of_every_family_is_in_the_table():
    """Detectron2's own files have tests of their own."""
    recognized = set(re.findall(r"^\| \d+ \| [^|]*\| (\w+)", COMMITTED_TABLE.read_text(), re.M))
    assert {family.name for family in FAMILIES} - {"detectron2"} == recognized


def test_list_and_the_choices_of_the_command():
    def run_convert(*arguments):
        return run_tool(TOOLS / "convert.py", *arguments)

    listed = run_convert("--list")
    assert listed.returncode == 0 and listed.stdout == documentation.listing()
    assert listed.stdout.count("e.g. ") == len(FAMILIES) + len(VIT_FAMILIES)
    assert f"{{{','.join(TARGETS)}}}" in run_convert("--help").stdout
    nothing = run_convert()
    assert nothing.returncode == 2 and "needs SRC and DST" in nothing.stderr
