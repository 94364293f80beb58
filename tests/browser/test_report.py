"""The report in a browser: what its script does, what its policy forbids, its widths and colors."""

import csv
import io
import re
import subprocess
import sys
import zipfile

import pytest
from PIL import Image
from support.paths import ROOT
from support.run_records import content, write_record, write_table_2b

from moco_d2.benchmark.report.page import write_page

HOSTILE = (
    "</script><script>window.stolen=1</script>\"'><img src=http://127.0.0.1:9/x onerror=alert(1)>"
)
DARK, WHITE = "rgb(31, 31, 31)", "rgb(255, 255, 255)"
COST = {"seconds_per_iteration": 0.4, "peak_memory_gib": 11.2, "evaluation_seconds": 300.0}
A4 = 658  # pixels between the margins


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The paper's Table 2b with curves and classes."""
    folder = tmp_path_factory.mktemp("report")

    def change(record):
        ap = record["metrics"]["bbox"]["AP"]
        record["metrics"]["bbox"] |= {f"AP50-class {c}": ap + i for i, c in enumerate("abcdefgh")}
        record |= {"schema_version": 2, "origin": {"how": "trained", "source": None}}
        record |= {"cost": COST, "errors": None}
        record["history"] = [{"iteration": 11999, "bbox/AP": ap - 9}]
        record["run"]["command"] = (
            f"tools/train_net.py SEED {record['run']['seed']} " + "KEY 1 " * 99
        )
        return record

    write_table_2b(folder / "runs", change)
    write_page([folder / "runs"], folder / "report.html")
    return folder / "report.html"


def column(table, number):
    """The words of a column of a table's body up to the first space."""
    cells = table.locator(f"tbody tr > :nth-child({number})").all_text_contents()
    return [re.split(r"\s", cell.strip("▲ "))[0] for cell in cells]


def test_tables_are_sorted_by_their_heads_and_keep_the_rows_of_the_paper(visit, report):
    table = visit(report).locator("table").first
    ap, name = table.get_by_role("button", name="AP", exact=True), table.get_by_role("button").first
    assert column(table, 1) == ["random", "paper:", "supervised", "paper:", "moco", "paper:"]
    ap.click()
    assert column(table, 3) == ["55.9", "55.9,", "53.5", "53.5,", "33.8", "33.8,"]
    ap.press("Enter")  # a button, so the keyboard does it too
    assert column(table, 3)[::2] == ["33.8", "53.5", "55.9"]
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    name.click()
    assert column(table, 1)[::2] == ["moco", "random", "supervised"]
    assert table.locator("[aria-sort]").count() == 1
    name.click()
    name.click()
    assert column(table, 1)[::2] == ["random", "supervised", "moco"]


def test_tables_and_commands_are_copied(visit, report):
    page = visit(report, permissions=["clipboard-read", "clipboard-write"])
    page.locator(".table .copy").first.click()
    page.get_by_text("Copied").wait_for()
    lines = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert lines[0] == "initialization\tAP50\tAP\tAP75"
    assert lines[5].split("\t")[0] == "moco" and "55.9 ± 0.2 (n=5) (+2.4)" in lines[5]
    page.get_by_text("Show as LaTeX").click()
    page.locator("details[open] .copy").click()
    page.locator("details[open]").get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("% needs \\usepackage{book")


def test_copying_where_pages_of_files_have_no_clipboard(visit, report):
    page = visit(report, before="Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator("pre .copy").last.click()
    page.get_by_text("Copied").wait_for()
    page.evaluate("document.body.append(document.createElement('textarea'))")
    page.locator("textarea").focus()
    page.keyboard.press("Control+V")
    assert page.locator("textarea").input_value().startswith("tools/train_net.py SEED 1 KEY 1")
    assert "Cop" not in page.locator("textarea").input_value()


@pytest.mark.parametrize("script", [True, False])
def test_files_are_saved_from_inside_the_page(visit, report, script, tmp_path):
    page = visit(report, java_script_enabled=script)

    def save(name):
        with page.expect_download() as started:
            page.locator(f"a[download='{name}']").click()
        assert started.value.suggested_filename == name
        started.value.save_as(tmp_path / name)
        return (tmp_path / name).read_bytes()

    rows = list(csv.DictReader(io.StringIO(save("table.csv").decode())))
    assert len(rows) == 3 * 3 + 2 * 3 - 3 and rows[0]["task"] == "voc_C4"
    with zipfile.ZipFile(io.BytesIO(save("runs.zip"))) as archive:
        assert (
            len(archive.namelist()) == 15 and "voc_C4/moco/seed5/record.json" in archive.namelist()
        )


def test_pictures_are_enlarged(visit, report):
    page = visit(report, viewport={"width": 600, "height": 700})
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    page.locator("figure img").first.click()
    assert dialog.is_visible()
    assert dialog.locator("img").bounding_box()["width"] > 700
    assert dialog.get_attribute("aria-label").startswith("Differences for voc_C4")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("figure .enlarge").nth(1).press("Enter")
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_are_the_systems_until_they_are_chosen(visit, report):
    assert background(visit(report, color_scheme="light")) == WHITE
    page = visit(report, color_scheme="dark")
    assert background(page) == DARK
    switch = page.locator("#theme")
    seen = []
    for _ in range(3):
        switch.click()
        seen.append((switch.text_content(), background(page)))
    assert seen == [("Colors: light", WHITE), ("Colors: dark", DARK), ("Colors: auto", DARK)]
    switch.click()
    page.reload()
    while background(page) != WHITE:  # it is remembered, once Chromium has written it
        page.reload()
    assert switch.text_content() == "Colors: light"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(visit, report, scheme):
    """A contrast of 4.5 at least, WCAG 2.2's AA for text."""
    page = visit(report, color_scheme=scheme)
    names = ("text", "muted", "accent", "gain", "page", "panel")
    colors = {
        name: page.evaluate(
            """name => {
                const probe = document.createElement("p");
                document.body.append(probe);
                probe.style.color = `var(--${name})`;
                return getComputedStyle(probe).color.match(/\\d+/g).map(Number);
            }""",
            name,
        )
        for name in names
    }

    def luminance(rgb):
        parts = [c / 255 for c in rgb]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for behind in ("page", "panel"):
        for name in ("text", "muted", "accent", "gain"):
            low, high = sorted(luminance(colors[c]) + 0.05 for c in (name, behind))
            assert high / low >= 4.5, (name, behind)


@pytest.mark.parametrize("width", [360, 700, 1280, 1920])
def test_the_page_is_as_wide_as_the_window(visit, report, width):
    """Tables scroll within their boxes. On a wide screen, tables and figures use its right side."""
    page = visit(report, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:
        box = page.locator(".scroll").first
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    if width == 1280:
        for part in ("table", "figure img"):
            box = page.locator(part).first.bounding_box()
            assert width - 60 < box["x"] + box["width"] <= width


def test_printing_on_a4(visit, report):
    page = visit(report, color_scheme="dark", viewport={"width": A4, "height": 900})
    page.locator("#theme").click(click_count=2)  # dark is chosen, and paper is white
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert 3 <= pages <= 7
    page.emulate_media(media="print")
    assert background(page) == WHITE
    for part in ("nav", "button.copy", "#theme", ".downloads", "details"):
        assert not page.locator(part).first.is_visible()
    assert page.locator("figure img").first.is_visible()
    ends = "parts => parts.map(part => part.getBoundingClientRect().right)"
    assert max(page.locator("table, figure img, pre").evaluate_all(ends)) <= A4


def test_the_policy_forbids_all_that_the_page_does_not_bring(visit, report):
    page = visit(report)
    page.evaluate(
        """() => {
            window.violated = [];
            const note = event => window.violated.push(event.effectiveDirective);
            document.addEventListener("securitypolicyviolation", note);
            const make = tag => document.createElement(tag);
            const add = (tag, parts) => document.body.append(Object.assign(make(tag), parts));
            add("img", {src: "http://127.0.0.1:9/x.png"});
            add("script", {textContent: "window.stolen = 1"});
            add("style", {textContent: "p { color: red }"});
            add("p", {innerHTML: "<b onclick='window.stolen = 1' style='color: red'>text</b>"});
            document.querySelector("body > p > b").click();
            fetch("http://127.0.0.1:9/x").catch(() => {});
        }"""
    )
    kinds = {"script-src-elem", "script-src-attr", "style-src-elem", "style-src-attr"}
    kinds |= {"img-src", "connect-src"}
    page.wait_for_function("count => new Set(window.violated).size === count", arg=len(kinds))
    assert set(page.evaluate("window.violated")) == kinds
    assert page.evaluate("window.stolen") is None


def test_the_pictures_of_the_documentation_can_be_taken(browser, report, tmp_path):
    """In a process of its own, because one has one playwright."""
    script = ROOT / "docs" / "report" / "take_pictures.py"
    subprocess.run([sys.executable, script, report, "--out", tmp_path], check=True, timeout=300)
    sizes = {file.name: Image.open(file).size for file in tmp_path.iterdir()}
    assert sizes == {
        f"{window}_{scheme}.png": size
        for window, size in (("desktop", (1280, 1100)), ("phone", (390, 844)))
        for scheme in ("light", "dark")
    }
    assert all((script.parent / name).is_file() for name in sizes)


def test_names_of_strangers_run_nothing(visit, tmp_path):
    for seed in (1, 2):
        record = content(task=HOSTILE, initialization=f"{HOSTILE}{seed}", seed=seed)
        record["run"] |= {"config_name": HOSTILE, "command": HOSTILE}
        record["config"]["resolved"] |= {HOSTILE: f"{HOSTILE}{seed}"}
        record["environment"] = {HOSTILE: HOSTILE}
        record["metrics"] = {"bbox": {"AP": 1.0 + seed, f"AP-{HOSTILE}": 2.0 + seed}}
        write_record(tmp_path / "runs", record)
    write_page([tmp_path / "runs"], tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    page.locator(".sort").first.click()
    page.locator("figure img").first.click()
    assert page.evaluate("[window.stolen, document.scripts.length]") == [None, 1]
    assert HOSTILE in page.locator("h1").text_content()
