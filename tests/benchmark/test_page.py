"""The report: all its sections, escaped, self-contained, and what it says where something lacks."""

import base64
import copy
import csv
import dataclasses
import hashlib
import io
import json
import logging
import re
import zipfile
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.rendering import render
from moco_d2.benchmark.report import detections as detection_report
from moco_d2.benchmark.report import downloads
from moco_d2.benchmark.report.errors import error_section
from moco_d2.benchmark.report.page import page_sections, write_page
from moco_d2.benchmark.report.runs import command_section, config_section, cost_section
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.benchmark.tables.grouping import by_task
from moco_d2.errors import UserError

TITLES = [
    "Results",
    "AP of each class",
    "AP over iterations",
    "Errors by kind",
    "Detections",
    "Runs",
    "Configuration differences",
    "Cost and hardware",
    "Commands of the runs",
    "Environment",
]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>$\\frac{1}$'


class Page(HTMLParser):
    """Tags that are closed in order, addresses, words."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.addresses, self.titles, self.words = [], [], [], [], []
        self.alts, self.downloads, self.scripts = [], {}, []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "data", "action")]
        if "download" in dict(attrs):
            _, _, content = dict(attrs)["href"].partition(";base64,")
            self.downloads[dict(attrs)["download"]] = base64.b64decode(content)
        self.alts += [v for k, v in attrs if k == "alt"]
        assert not [k for k, _ in attrs if k.startswith("on") or k == "style"]
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "h2":
            self.titles.append(data)
        if self.stack and self.stack[-1] in ("script", "style"):
            self.scripts.append(data)
        else:
            self.words.append(data)


def full(make_content, *, loss=None, **kwargs):
    """A record of version 2 with all that it may have."""
    record = make_content(**kwargs)
    loss = loss or {"Cls": 2.0, "Loc": 5.0, "Both": 1.0, "Dupe": 0.5, "Bkg": 3.0, "Miss": 4.0}
    ap = record["metrics"]["bbox"]
    record |= {
        "schema_version": 2,
        "origin": {"how": "trained", "source": None},
        "cost": {
            "seconds_per_iteration": 0.4,
            "peak_memory_gib": 11.2,
            "evaluation_seconds": 300.0,
        },
        "errors": {"voc_2007_test": {"AP50": 80.0, **loss}},
        "history": [{"iteration": 11999, "bbox/AP": ap["AP"] - 9, "bbox/AP50": ap["AP50"] - 9}],
    }
    record["run"]["command"] = f"tools/train_net.py SEED {kwargs.get('seed', 1)} OUTPUT_DIR a"
    return record


def page_of(write, tmp_path):
    out = tmp_path / "out" / "report.html"
    write_page([write.folder], out)
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    kinds = r"image/(svg\+xml|jpeg)|text/(csv|markdown)|application/(zip|x-tex)"
    relative = r"\./[\w/%.-]+"
    for address in page.addresses:
        assert re.match(rf"data:({kinds});base64,|#section-\d+$|{relative}$", address), address
    assert not {"iframe", "object", "link", "base", "form"} & set(page.tags)
    # The browser is told so as well: it runs and styles these two and nothing else.
    assert "default-src 'none'" in text and "unsafe" not in text
    assert page.tags.count("script") == page.tags.count("style") == 1
    for part in page.scripts:
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"-src 'sha256-{digest}'" in text
    return text, page


def _log(losses):
    lines = [{"iteration": i, "total_loss": 2.0, "val_loss/total_loss": v} for i, v in losses]
    lines.append({"iteration": 10**30, "total_loss": float("nan"), "val_loss/total_loss": 1e300})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def test_the_validation_loss_is_drawn_beside_the_training_loss(
    write, make_content, tmp_path, drawn
):
    """Without the damaged numbers of anybody's file; a run without the key adds nothing."""
    for seed, losses in ((1, [(99, 1.0), (199, 0.5)]), (2, [(99, 3.0)])):
        record = full(make_content, seed=seed)
        record["config"]["resolved"]["MOCO"] = {"VAL_LOSS": 100}
        write(record).with_name("metrics.json").write_text(_log(losses))
    file = write(full(make_content, initialization="random"))
    file.with_name("metrics.json").write_text(_log([(99, 1.0)]))  # of another run, without the key
    _, page = page_of(write, tmp_path)
    assert "AP and losses over iterations" in page.titles
    assert drawn["moco, total_loss"] == ([100, 200], [2.0, 2.0])
    assert drawn["moco, val_loss"] == ([100, 200], [2.0, 0.5])
    assert not {"random, total_loss", "random, val_loss"} & drawn.keys()
    (alt,) = (alt for alt in page.alts if "val_loss" in alt)
    assert alt.endswith("val_loss ends at: moco 0.5.")


def test_every_section_is_there(write, make_content, tmp_path):
    for initialization in ("random", "supervised", "moco"):
        for seed in (1, 2):
            write(full(make_content, initialization=initialization, seed=seed))
    text, page = page_of(write, tmp_path)
    words = " ".join(page.words)
    assert page.titles == TITLES
    assert "voc_C4: 6 runs, from random, supervised, moco (seeds 1, 2)." in words
    assert (
        "80.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.0" in words
        and "with the right class, but an IoU of only 0.1 to 0.5" in words
    )
    assert "no run has kept its model: config.yaml and model_final.pth" in words
    assert "Matched, the configs differ only in MODEL.WEIGHTS: voc_C4." in words
    assert "8 processes" in words and "11.2" in words and "Total time: 18.4 h" in words
    assert "voc_C4, moco: seeds 1, 2; each with its own SEED and OUTPUT_DIR" in words
    # A figure says what it shows to who does not see it.
    assert len(page.alts) == text.count("<img") == 3
    assert "moco − random: AP50 0.0" in page.alts[0]
    assert "moco 55.9" in page.alts[1] and "Loc 5.0" in page.alts[2]
    assert "TEST.EVAL_PERIOD" not in words


def test_one_run_of_version_1(write, make_content, tmp_path):
    """Nothing but a final result: the sections say what lacks and how to get it."""
    write(make_content())
    _, page = page_of(write, tmp_path)
    words = " ".join(page.words)
    assert page.titles == TITLES
    assert "so there is no curve. To get one, set TEST.EVAL_PERIOD" in words
    assert "No record has the errors of its detector" in words
    assert "tools/train_net.py --config-file voc_C4_moco.yaml SEED 1" in words
    assert "Records without a command: 1." in words


def test_everything_in_a_record_is_escaped(write, make_content, tmp_path):
    for seed in (1, 2):
        record = full(make_content, task=HOSTILE, initialization=f"{HOSTILE}{seed}", seed=seed)
        record["run"]["config_name"] = HOSTILE
        record["run"]["command"] = f"{HOSTILE} ' {seed}"
        record["config"]["resolved"] |= {HOSTILE: f"{HOSTILE}{seed}"}
        record["config"]["resolved"]["DATASETS"] = {"TRAIN": [HOSTILE], "TEST": [HOSTILE]}
        record["environment"] = {HOSTILE: HOSTILE}
        record["hardware"]["name"] = HOSTILE
        record["errors"] = {HOSTILE: record["errors"]["voc_2007_test"]}
        record["metrics"] = {HOSTILE: record["metrics"]["bbox"]}
        record["history"] = []
        write(record)
    text, page = page_of(write, tmp_path)
    assert text.count("<script") == 1 and "<img src=x" not in text
    assert page.titles == TITLES
    words = " ".join(page.words)
    assert words.count(HOSTILE) > 20


def test_the_page_answers_first(table_2b, tmp_path):
    """The words before the first table are the sentence of the task, with its numbers."""
    write_page([table_2b], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    before = text[text.index("<h2>Results</h2>") : text.index("<table>")]
    before = before.replace("\N{NO-BREAK SPACE}", " ")
    assert "<strong>voc_C4:</strong> MoCo is above random in AP by 22.1 [21.8, 22.4] (5 " in (
        before.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert before.count("<img") == 1 and "moco − supervised: AP50 +0.2 [-0.1, +0.5], AP" in before


def test_classes_have_their_differences_and_no_test(write, make_content, tmp_path):
    for name, cat, dog in (("supervised", 60.0, 30.0), ("moco", 64.0, 29.96)):
        for seed in (1, 2):
            metrics = {"bbox": {"AP": 50.0, "AP50-cat": cat + seed, "AP50-=dog": dog, "APs": 1.0}}
            write(make_content(initialization=name, seed=seed, metrics=metrics))
    _, page = page_of(write, tmp_path)
    words = [w for w in page.words if w.strip()]
    cat = words[words.index("cat") :]
    space = "\N{NO-BREAK SPACE}"
    assert cat[1:3] == [f"61.5{space}±{space}0.7", f"65.5{space}±{space}0.7 (+4.0)"]
    assert words[words.index("=dog") + 2] == f"30.0{space}±{space}0.0 (0.0)"
    assert "APs" not in words and "Single classes are not tested" in " ".join(words)
    rows = list(csv.DictReader(io.StringIO(page.downloads["classes.csv"].decode())))
    assert [r["mean"] for r in rows if r["class"] == "cat"] == ["61.5", "65.5"]
    assert {r["class"] for r in rows} == {"cat", "'=dog"}  # no formula


def test_files_inside_the_page_are_those_of_the_runs(write, make_content, tmp_path):
    paths = [write(make_content(task="../../a b", seed=seed)) for seed in (1, 1, 2)]
    (paths[2].parent / "config.yaml").write_text("SEED: 2\n")
    text, page = page_of(write, tmp_path)
    records = read_records([write.folder])
    assert page.downloads["table.csv"].decode() == render(records, "csv")
    assert page.downloads["table.tex"].decode() == render(records, "latex")
    assert page.downloads["table.md"].decode() == render(records, "markdown")
    with zipfile.ZipFile(io.BytesIO(page.downloads["runs.zip"])) as archive:
        folder = "______a_b/moco/seed"  # and no way out of the folder where it is unpacked
        names = [f"{folder}1/record.json", f"{folder}2/record.json", f"{folder}2/config.yaml"]
        assert archive.namelist() == names
        assert archive.read(names[1]) == paths[2].read_bytes()
        assert archive.read(names[2]) == b"SEED: 2\n"
    write_page([write.folder], tmp_path / "again" / "report.html")
    assert (tmp_path / "again" / "report.html").read_text() == text


def test_files_of_many_runs_are_bounded(write, make_content, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_MOST_BYTES", 1000)
    for seed in range(4):
        write(make_content(seed=seed))
    _, page = page_of(write, tmp_path)
    assert "the files of 2 runs are only in their folders" in " ".join(page.words)
    with zipfile.ZipFile(io.BytesIO(page.downloads["runs.zip"])) as archive:
        assert len(archive.namelist()) == 2


def test_a_run_with_two_rows_is_one_run_in_the_files(write, make_content):
    """As with several test sets, whose rows come from one record."""
    write(make_content())
    records = read_records([write.folder])
    rows = [*records, dataclasses.replace(records[0], task="voc_C4, other set")]
    page = Page(downloads.download_html(measured_tables(records), by_task(rows)))
    with zipfile.ZipFile(io.BytesIO(page.downloads["runs.zip"])) as archive:
        assert archive.namelist() == ["voc_C4/moco/seed1/record.json"]


def test_links_lead_to_the_folders_of_the_runs(write, make_content, tmp_path):
    """Whatever the folders are called: a colon makes no address, and a quote ends none."""
    folder = write(make_content()).parent
    other = folder.rename(folder.parent / 'javascript:alert(1)"><b>&%41')
    _, page = page_of(write, tmp_path)
    (link,) = (a for a in page.addresses if a.startswith("./"))
    assert (tmp_path / "out" / unquote(link)).resolve() == other
    assert "b" not in page.tags


def test_imported_runs_have_no_command(write, make_content):
    record = full(make_content)
    record["origin"] = {"how": "imported", "source": "elsewhere"}
    record["run"] |= {"command": None, "seconds": None, "started": None}
    write(record)
    records = read_records([write.folder])
    section = command_section(records)
    assert "was imported: voc_C4 moco seed 1" in section.text and "train_net" not in section.html
    assert "The time of 1 runs is not known" in cost_section(by_task(records)).text


def test_runs_that_are_not_matched_are_named_with_their_keys(write, make_content):
    write(make_content(initialization="supervised"))
    write(make_content(initialization="moco", base_lr=0.01))
    write(make_content(initialization="moco", seed=2))
    section = config_section(by_task(read_records([write.folder])))
    assert "Not matched, see the keys below: voc_C4." in section.text
    (table,) = section.tables
    for value, who in (("0.02", "supervised"), ("0.01", r"moco \(1 of 2\)")):
        assert re.search(f"SOLVER.BASE_LR</th><td>{value}</td><td>[^<]*{who}", table)
    assert "SEED" not in table and "MODEL.WEIGHTS" in table


def test_commands_that_differ_in_more_than_seed_and_folder_are_all_shown(write, make_content):
    for seed, rate in ((1, "0.02"), (2, "0.02"), (3, "0.01")):
        record = full(make_content, seed=seed)
        record["run"]["command"] += f" SOLVER.BASE_LR {rate}"
        write(record)
    html = command_section(read_records([write.folder])).html
    assert html.count("<pre>") == 2
    assert "seeds 1, 2; each" in html and "voc_C4, moco: seed 3<" in html


@pytest.fixture
def losses(write, make_content):
    """Supervised loses 5 points to Loc in the mean, MoCo 3; all else is equal but for noise."""
    noise = (0.1, -0.1, 0.05, -0.05, 0.0)
    for initialization, loc in (("supervised", 5.0), ("moco", 3.0)):
        for seed, error in enumerate(noise, start=1):
            e = error if initialization == "moco" else -error
            loss = {"Cls": 2 + e, "Loc": loc + e, "Both": 1 + e, "Dupe": 1.0, "Bkg": 3.0, "Miss": 4}
            write(full(make_content, initialization=initialization, seed=seed, loss=loss))
    return by_task(read_records([write.folder]))


def test_where_moco_wins_is_said_only_as_far_as_the_runs_support_it(losses, tmp_path):
    section = error_section(losses, tmp_path)
    table = section.tables[1]  # after the meanings of the kinds
    assert re.search(r"supervised \(n=5\).*<td>5.0.±.0.1</td>", table)
    (said,) = re.findall(r"moco against supervised: (.*?)</p>", table)
    assert said == "a different loss to Loc (-2.0, p &lt;0.0001)."
    assert "blocked" in table and "not the 11-point AP50" in table


def test_without_spread_nothing_is_claimed(write, make_content, tmp_path):
    for initialization in ("supervised", "moco"):
        write(full(make_content, initialization=initialization))
    (_, table, _) = error_section(by_task(read_records([write.folder])), tmp_path).tables
    assert "no difference is claimed" in table and "moco against" not in table


def test_detections_are_of_runs_that_have_kept_their_models(
    write, make_content, tmp_path, monkeypatch
):
    """One seed for all, that most have; a failure to draw leaves the rest of the page."""
    for seed, name, kept in ((1, "moco", True), (2, "moco", True), (2, "random", True)):
        path = write(make_content(seed=seed, initialization=name))
        for file in ("config.yaml", "model_final.pth") if kept else ():
            (path.parent / file).touch()
    write(make_content(seed=2, initialization="supervised"))
    tasks = by_task(read_records([write.folder]))
    chosen, seed = detection_report._choose(tasks["voc_C4"])
    assert (list(chosen), seed) == (["random", "moco"], 2)

    def fail(*arguments):
        raise RuntimeError("<out of memory>")

    monkeypatch.setattr(detection_report, "_draw", fail)
    section = detection_report.detection_section(tasks, tmp_path)
    assert section.text == "voc_C4: not drawn, RuntimeError: <out of memory>."


def test_many_runs_make_a_page_of_bounded_length(write, make_content, tmp_path):
    template = full(make_content)
    records = []
    for i in range(100):
        record = copy.deepcopy(template)
        record["run"] |= {"seed": i, "initialisation": f"init {i % 20}"}
        record["run"]["command"] = f"tools/train_net.py {i}"
        records.append(record)
        write(record)
    sections = page_sections(read_records([write.folder]), tmp_path)
    assert sum(len(s.html) for s in sections) < 20_000
    assert (
        "60 more are in run.command of the records"
        in sections[TITLES.index("Commands of the runs")].text
    )


def test_no_runs_and_no_folder(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="fine-tune first"):
        write_page([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
