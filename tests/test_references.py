"""What comments, docstrings and pages name is there: files, modules, their attributes, pages.

A file is named by its path in the repository, in the package, or beside the file that names it; a
function of another module as ``module.function``.
"""

import ast
import functools
import importlib.util
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "moco_d2"
FOLDERS = ("moco_d2", "tools", "benchmarks", "campaigns", "studies", "tests")
SOURCES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
PACKAGED = [file for file in SOURCES if ROOT / "tests" not in file.parents]
# CHANGELOG.md names what was.
PAGES = [
    file
    for file in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if file.name != "CHANGELOG.md"
]

SETTINGS = [
    ROOT / "Makefile",
    *(
        file
        for folder in ("configs", "moco_d2", "campaigns", ".github")
        for suffix in ("yaml", "yml")
        for file in sorted((ROOT / folder).rglob(f"*.{suffix}"))
    ),
]

# Files of Detectron2 and of the official MoCo code.
FOREIGN_FILES = {"main_moco.py", "main_lincls.py", "densepose/config.py"}
# What a user has, in examples, and what those of docs/how_to/ write.
OF_USERS = {"detectron2/tools/train_net.py", "moco_d2/configs"}
OF_USERS |= {
    written
    for page in (ROOT / "docs" / "how_to").glob("*.md")
    for written in re.findall(r"<!-- write: (\S+) -->", page.read_text())
}
# Dotted names that are no Python: tensors of a checkpoint or a model, files, a project.
NO_PYTHON = re.compile(
    r"module\.\w+.*|encoder_q\..*|backbone\.bottom_up|roi_heads\.res5.*|moco\.tensorflow|malloc\.h"
    r"|package\.module|model\.finish_step|nn\.\w+|cfg\.\w+.*|deeplearning\..*|e\.g"
)
FILE_ENDINGS = {
    *("py", "yaml", "json", "jsonl", "md", "pth", "tar", "txt", "html", "pkl", "csv", "log"),
    *("jpg", "png", "svg", "toml", "npz"),
}
TOP = "docs|configs|results|tools|benchmarks|campaigns|studies|tests|moco_d2"

_FILE = re.compile(r"(?<![\w.*}/{>-])(?:[\w-]+/)*[\w-]+\.py\b(?![\w*{])")
_DOTTED = re.compile(r"(?<![\w./@*~:{}<>\"'\\(-])[a-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w*{/-])")
_PATH = re.compile(rf"(?<![\w./{{<>*:-])(?:{TOP})/[\w./-]*\w(?![\w*{{<>/]|\[)")
_IN_TICKS = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]*)\)")
_EXAMPLE = re.compile(r"\n( *)(?:Examples?:)?\n? *::\n(?:(?:\1 .*)?\n)*")


def comments(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each comment and docstring."""
    source = file.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:  # without examples, whose names are their own
                yield node.body[0].lineno, _EXAMPLE.sub("\n", text + "\n")


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of a page."""
    yield from enumerate(file.read_text().splitlines(), 1)


def is_file(named: str, beside: Path) -> bool:
    near = beside.parent
    # A command by its name alone, and a file of the same room.
    places = [ROOT, PACKAGE, ROOT / "tools", near]
    places += [folder for folder in near.parents if ROOT in folder.parents]
    return named in FOREIGN_FILES or any((place / named).is_file() for place in places)


@functools.cache
def definitions(file: Path) -> dict[str, frozenset[str]]:
    """Names at the top of a module -> those in them, if they are classes."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.If | ast.Try):
            continue
        if isinstance(node, ast.ClassDef):
            inner = set()
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef):
                    inner.add(part.name)
                elif isinstance(part, ast.AnnAssign | ast.Assign):
                    targets = [part.target] if isinstance(part, ast.AnnAssign) else part.targets
                    inner |= {getattr(t, "id", getattr(t, "attr", "")) for t in targets}
            found[node.name] = frozenset(inner)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = frozenset()
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            found |= {t.id: frozenset() for t in targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(a.asname or a.name).split(".")[0]: frozenset() for a in node.names}
    return found


@functools.cache
def modules() -> dict[str, list[Path]]:
    """Last name of a module or a room -> its files."""
    found: dict[str, list[Path]] = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.parent.name if file.name == "__init__.py" else file.stem
        found.setdefault(name, []).append(file)
    return found


@functools.cache
def is_installed(name: str) -> bool:
    return name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None


@functools.cache
def bound(file: Path) -> frozenset[str]:
    """Every name that a file's code uses."""
    names = set()
    if file.suffix == ".py":
        for node in ast.walk(ast.parse(file.read_text())):
            names |= {getattr(node, key, None) for key in ("id", "arg", "attr", "name", "asname")}
    return frozenset(names - {None})


def resolves(dotted: str, file: Path) -> bool:
    """Whether a dotted name in a comment of a file leads somewhere."""
    first, *rest = dotted.split(".")
    if rest[-1] in FILE_ENDINGS:
        return True
    if first in modules():
        return any(leads(module, rest) for module in modules()[first]) or first in bound(file)
    return first in bound(file) or is_installed(first)


def leads(file: Path, rest: list[str]) -> bool:
    """Whether a module has this attribute, or a package this module."""
    if not rest:
        return True
    if file.name == "__init__.py":
        for inner in (file.parent / f"{rest[0]}.py", file.parent / rest[0] / "__init__.py"):
            if inner.is_file():
                return leads(inner, rest[1:])
    known = definitions(file)
    return rest[0] in known and (len(rest) == 1 or not known[rest[0]] or rest[1] in known[rest[0]])


def stale(file: Path, text: str) -> list[str]:
    """What a text in a source or a page names and is not there."""
    known = OF_USERS
    found = [
        named
        for named in _FILE.findall(text)
        if not is_file(named, file) and named not in known and "NAME" not in named
    ]
    for dotted in _DOTTED.findall(text):
        in_question = file.suffix == ".py" or dotted.startswith("moco_d2.")
        if in_question and not NO_PYTHON.fullmatch(dotted) and not resolves(dotted, file):
            found.append(dotted)
    if file.suffix == ".py":
        found += [name for name in _IN_TICKS.findall(text) if not is_known(name, file)]
    return found


def is_known(name: str, file: Path) -> bool:
    """Whether a file's code has a name, as a name or in quotes."""
    quoted = re.search(rf"[\"']{re.escape(name)}[\"']", file.read_text())
    return set(name.split(".")) <= bound(file) or bool(quoted) or resolves(f"{name}.", file)


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", SOURCES, ids=named)
def test_comments_and_docstrings_name_what_is_there(file):
    assert [(line, stale(file, text)) for line, text in comments(file) if stale(file, text)] == []


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_pages_name_what_is_there(file):
    assert [(line, stale(file, text)) for line, text in prose(file) if stale(file, text)] == []


@pytest.mark.parametrize("file", [*PACKAGED, *PAGES, *SETTINGS], ids=named)
def test_paths_of_the_repository_exist(file):
    """Also in strings: errors and help texts name files."""
    for path in _PATH.findall(file.read_text()):
        placeholder = any(Path(part).stem.isupper() for part in Path(path).parts)
        there = placeholder or (ROOT / path).exists() or (PACKAGE / path).exists()
        assert there or path in OF_USERS, path


@pytest.mark.parametrize("file", [*PAGES, ROOT / "CHANGELOG.md"], ids=named)
def test_links_of_pages_lead_somewhere(file):
    for link in _LINK.findall(file.read_text()):
        path, _, heading = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "text",
    [
        "As in record_schema.SCHEMA.",
        "see sweep_points.setting and no more",
        "`sweep_agreement.agreement` in words",
        "drawn by report.py",
        "a dataset (custom_datasets.py)",
        "of pretrain/x.py",
        "as hooks.StopOnNothing does",
        "`nothing_of_this_name`",
        "moco_d2.pretrain.nothing",
    ],
)
def test_a_stale_name_is_noticed(text):
    assert stale(PACKAGE / "cli.py", text)


def test_names_that_are_there_are_not():
    text = (
        "hooks.StopOnSignal, `run_command`, launch.launch, engine/slurm.py, cli.py, "
        "moco_d2.engine.launch, tools/demo.py, torch.nn.Module, ``module.queue``"
    )
    assert stale(PACKAGE / "cli.py", text) == []
