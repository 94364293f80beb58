"""The site of the pages: complete, without a broken link, and loading nothing from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from support.paths import ROOT

DOCS = ROOT / "docs"
OUTSIDE = re.compile(r"(?:https?:)?//")
WITHOUT = next(
    (n for n in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(n) is None), None
)


def navigation():
    """The files in the navigation of the site."""
    nodes, found = [yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]], []
    while nodes:
        node = nodes.pop()
        if isinstance(node, str):
            found.append(node)
        else:
            nodes.extend(node.values() if isinstance(node, dict) else node)
    return found


def test_the_navigation_has_every_page_once():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    listed = [file for file in navigation() if not file.startswith("repository/")]
    assert sorted(listed) == sorted(pages)
    for file in navigation():
        if file.startswith("repository/"):
            assert (ROOT / file.removeprefix("repository/")).is_file()


def test_documentation_is_locked_with_hashes_and_no_address():
    lock = (ROOT / "requirements-docs.lock").read_text()
    packages = re.findall(r"(?m)^([\w-]+)==", lock)
    assert {"mkdocs", "mkdocs-material", "mkdocstrings-python"} <= set(packages)
    assert all("--hash=sha256:" in part for part in re.split(r"(?m)^(?=\S)", lock)[1:])
    assert "://" not in lock


class Loads(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        for name in ("src", "srcset", "poster", "data") + (("href",) if tag == "link" else ()):
            if OUTSIDE.match(values.get(name) or ""):
                self.found.append(f"{tag} {values[name]}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    if WITHOUT:
        pytest.skip(f"{WITHOUT} is not installed: make docs-env")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(navigation())
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert loads.found == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_every_function_of_the_reference_is_explained(site):
    named = re.findall(r"(?m)^::: (\S+)$", (DOCS / "api.md").read_text())
    page = (site / "api.html").read_text()
    assert len(named) > 20
    for name in named:
        assert f'id="{name}"' in page


def test_links_to_files_of_the_repository_lead_into_the_site(site):
    page = (site / "index.html").read_text()
    assert 'href="repository/CONTRIBUTING.html"' in page
    assert 'href="../glossary.html"' in (site / "repository/CONTRIBUTING.html").read_text()


@pytest.mark.parametrize(
    "tag", ['<script src="//a/b.js">', '<link rel="stylesheet" href="http://a">']
)
def test_a_load_from_elsewhere_is_noticed(tag):
    loads = Loads()
    loads.feed(tag)
    assert loads.found
