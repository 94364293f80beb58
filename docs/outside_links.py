"""Lets the pages of the site link to files outside of docs/, as they do in the repository.

MkDocs knows the files in docs/ only. Each file of the repository that a page links to becomes a
file of the site below repository/, and the links lead there.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FOLDER = "repository"  # of the site, for files outside of docs/
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def place(file: Path) -> str:
    """Return the place in the site of a file of the repository."""
    if DOCS in file.parents:
        return file.relative_to(DOCS).as_posix()
    return f"{FOLDER}/{file.relative_to(ROOT).as_posix()}"


def linked(page: Path) -> set[Path]:
    """Return the files of the repository that a page links to."""
    targets = {(page.parent / link).resolve() for link in _LINK.findall(page.read_text())}
    return {target for target in targets if ROOT in target.parents and target.is_file()}


def on_files(files: Files, config: Any) -> Files:
    """Add all files outside of docs/ that pages link to, and those that these link to."""
    known = {Path(file.abs_src_path) for file in files if file.abs_src_path}
    to_read = [file for file in known if file.suffix == ".md"]
    while to_read:
        for target in linked(to_read.pop()) - known:
            known.add(target)
            files.append(File.generated(config, place(target), abs_src_path=str(target)))
            if target.suffix == ".md":
                to_read.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page lead to the places of their files in the site."""
    file = Path(page.file.abs_src_path)

    def moved(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        if target not in linked(file):
            return match[1]
        return posixpath.relpath(place(target), posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)
