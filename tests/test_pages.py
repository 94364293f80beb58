"""The pages and forms for people: complete, short, and about this repository."""

import itertools
import re
import subprocess
import sys

import pytest
import yaml
from support.paths import ROOT

from moco_d2.version import __version__

DOCS = ROOT / "docs"
GITHUB = ROOT / ".github"
MOST_WORDS = 40


def test_the_index_has_every_page_once_with_a_sentence():
    entries = re.findall(r"(?m)^- \[.+?\]\((.+?)\): (.+)$", (DOCS / "index.md").read_text())
    listed = [link for link, _ in entries if not link.startswith("../")]
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}
    assert sorted(listed) == sorted(pages)
    assert all(sentence.endswith(".") for _, sentence in entries)
    assert "docs/index.md" in (ROOT / "README.md").read_text()


def test_the_glossary_has_few_words_with_a_sentence_each():
    rows = re.findall(r"(?m)^\| (?!word |-)(.+?) \| (.+) \|$", (DOCS / "glossary.md").read_text())
    words = [word for word, _ in rows]
    assert 20 <= len(words) <= MOST_WORDS and len(set(words)) == len(words)
    for word, meaning in rows:
        assert meaning[0].isupper() and meaning.endswith("."), word
        assert len(re.findall(r"\.(?: |$)", meaning)) == 1, word


def test_the_floors_in_the_contributors_page_are_those_that_lint_checks():
    settings = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r'"(.+?)"', re.search(r"layers = \[(.*?)\]", settings, re.DOTALL)[1])
    table = re.search(r"\| floor \|.*?\n\n", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[0]
    floors = re.findall(r"(?m)^\| (`.+?) \|", table)
    assert [floor.replace("`", "").split(", ") for floor in floors] == [
        layer.split(" | ") for layer in layers
    ]


def test_targets_of_make_that_pages_name_are_there():
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    files = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *GITHUB.rglob("*.y*ml")]
    for file in (*files, *DOCS.glob("*.md"), GITHUB / "pull_request_template.md"):
        named = re.findall(r"(?:^|`|run: )make ([\w-]+)", file.read_text(), re.MULTILINE)
        assert set(named) <= targets, file


def test_the_citation_is_of_this_version_and_of_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    papers = {paper["url"].rpartition("/")[2] for paper in citation["references"]}
    assert papers == {"1911.05722", "2003.04297"}
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year"} <= paper.keys()
        assert all({"family-names", "given-names"} == set(one) for one in paper["authors"])


def test_changes_begin_with_what_is_next_and_have_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"(?m)^## (.+)$", text)
    assert versions[0] == "Unreleased" and __version__ in versions
    kinds = re.findall(r"(?m)^### (.+)$", text)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("form", sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml")), ids=lambda f: f.stem)
def test_an_issue_form_is_one(form):
    content = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert set(content) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= content.keys()
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    for field in content["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        assert field["validations"]["required"] in (True, False)


def test_the_workflow_tries_every_combination_with_stock_actions_only():
    jobs = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert set(itertools.product(*matrix.values())) == set(
        itertools.product(("3.10", "3.12"), ("0.6", "main"), ("locked", "newest"))
    )
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", s["uses"]) for s in steps if "uses" in s)
    # A leg that is not the locked one replaces what `make env` has installed, before the tests.
    test = jobs["test"]["steps"]
    order = [i for i, s in enumerate(test) if s.get("run", "").startswith("make ") or "if" in s]
    assert [test[i].get("if", test[i].get("run")) for i in order] == [
        "make env",
        "matrix.torch == 'newest'",
        "matrix.detectron2 == 'main'",
        "make test",
    ]


def test_the_page_on_installing_names_all_that_importing_the_package_registers():
    """Each note that `import moco_d2` leaves has its item in the page's list."""
    code = (
        "import moco_d2.plugin.after_import as notes\n"
        "names = []\n"
        "notes.after_import = lambda name, callback: names.append(name)\n"
        "import importlib, moco_d2\n"
        "importlib.reload(moco_d2)\n"
        "print(len(names))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    page = (DOCS / "install.md").read_text()
    listed = re.search(r"`import moco_d2`[^\n]*:\n\n((?:- .*\n(?:  .*\n)*)+)", page)[1]
    assert listed.count("\n- ") + 1 == int(result.stdout)
