"""What a suite declares before its numbers are seen, from its file to the table."""

import csv
import html
import io
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from support.fake_suite import TOOLS
from support.run_records import content, write_record, write_table_2b

from moco_d2.benchmark.records.design import DESIGN_FILE, Design, declare
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.rendering import FORMATS, render_folders
from moco_d2.benchmark.runs.cell_state import note_started
from moco_d2.benchmark.runs.planning import plan
from moco_d2.benchmark.runs.runner import run
from moco_d2.benchmark.runs.suites import Cell, Suite, load_suite, packaged_suites
from moco_d2.benchmark.runs.trials import is_trial
from moco_d2.benchmark.tables.answer import answer
from moco_d2.benchmark.tables.comparison import measured_tables, planned_metrics
from moco_d2.errors import UserError

PAIR = ("moco", "supervised")
LATER = "2999-01-01T00:00:00+00:00"


def suite_file(folder, **more):
    file = folder / "mine.yaml"
    rows = ["random", "supervised", "moco"]
    file.write_text(yaml.safe_dump({"tasks": ["voc_C4"], "initializations": rows, **more}))
    return file


def table_of(folder):
    (table,) = measured_tables(read_records([folder]))
    return table


def claimed(table):
    """The comparisons that are corrected, by pair and metric."""
    return {
        (pair.label, pair.against, metric)
        for pair in table.pairs
        for metric, c in zip(table.metrics, pair.comparisons, strict=True)
        if c and c.p_holm is not None
    }


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"primary": ["bbox/AP", "bbox/AP"]}, "primary names a metric twice"),
        ({"primary": ["bbox/APP"]}, "primary names 'bbox/APP', which is no metric; write one of"),
        ({"comparisons": [["moco", "mocco"]]}, "comparisons names 'mocco', .* of random, super"),
        ({"comparisons": [["moco"]]}, r"comparisons must be a list of pairs .* as in \[\[moco"),
        ({"comparisons": []}, "comparisons is empty"),
        (
            {"comparisons": [["moco", "moco"]]},
            "comparisons must be different pairs of",
        ),
        ({"comparisons": [PAIR, PAIR[::-1]]}, ".*; remove the second moco and supervised"),
        ({"primary": "bbox/AP"}, "primary must be a list of metrics"),
        ({"margin": 0}, "margin must be a number of points above 0"),
        ({"margin": "wide"}, "margin must be a number of points above 0"),
        ({"comparison": [PAIR]}, "unknown key 'comparison'; did you mean 'comparisons'"),
    ],
)
def test_what_a_suite_may_not_declare_is_one_sentence(tmp_path, declared, message):
    declared = json.loads(json.dumps(declared))
    with pytest.raises(UserError, match=rf"mine\.yaml: {message}") as raised:
        load_suite(suite_file(tmp_path, **declared))
    assert "\n" not in str(raised.value)


def test_the_declared_comparisons_are_the_family(tmp_path):
    """Holm corrects for the one that is declared; the rest is shown and claims nothing."""
    keys = {"comparisons": [list(PAIR)], "primary": ["bbox/AP75"], "margin": 5}
    file = suite_file(tmp_path, seeds=[1, 2, 3], **keys)
    design = load_suite(file).design
    assert design == Design(primary=("bbox/AP75",), comparisons=(PAIR,), margin=5)
    assert "corrected for 1 comparison(s)" in plan(file, folder=tmp_path / "plan").split("\n")[-1]
    folder = tmp_path / "out"
    declare(folder, design)
    write_table_2b(folder / "voc_C4", lambda r: _finished(r, LATER))
    table = table_of(folder)
    assert claimed(table) == {(*PAIR, "bbox/AP75")}
    tested = table.comparison(*PAIR, "bbox/AP75")
    assert tested.p_holm == tested.p and tested.supported and tested.equivalent
    assert all(c.test for pair in table.pairs for c in pair.comparisons)
    text = answer(table)
    assert "MoCo is above supervised in AP75 by 3.8" in text and "random" not in text
    assert (table.declared, "beforehand" in str(table.notes)) == ("beforehand", False)


def test_a_row_without_runs_makes_it_no_easier_for_the_others(tmp_path):
    others = tuple((f"moco_{i}", "supervised") for i in range(3))
    declare(tmp_path, Design(comparisons=(PAIR, *others)))
    write_table_2b(tmp_path / "voc_C4", lambda r: _finished(r, LATER))
    tested = table_of(tmp_path).comparison(*PAIR, "bbox/AP")
    assert tested.p_holm == pytest.approx(4 * tested.p)
    assert "4 comparison(s) in AP" in str(table_of(tmp_path).notes)


# The outputs that the evaluation of each kind of task has.
OUTPUTS = {
    "voc_semantic": ["sem_seg"],
    "cityscapes_semantic": ["sem_seg"],
    "cityscapes_instance": ["segm"],
    "coco_keypoint": ["bbox", "keypoints"],
    "coco_densepose": ["bbox", "densepose_gps"],
    "coco": ["bbox", "segm"],
    "lvis": ["bbox", "segm"],
    "voc": ["bbox"],
}


@pytest.mark.parametrize("name", [None, *packaged_suites()])
def test_the_plan_is_corrected_for_the_comparisons_of_the_table(tmp_path, name):
    """None is a suite that declares nothing, one of whose tasks has masks."""
    file = suite_file(tmp_path, tasks=["coco_C4_1x", "voc_C4"], seeds=[1, 2, 3])
    suite = load_suite(name or file)
    folder = tmp_path / "out"
    declare(folder, suite.design)
    cells = [c for c in suite.cells if c.kind == "transfer" and not is_trial(c)]
    for cell in cells:
        outputs = next(out for kind, out in OUTPUTS.items() if cell.task.startswith(kind))
        values = dict.fromkeys(["AP", "AP50", "mIoU"], 50 + random.Random(cell.name).random())
        row = {"initialization": cell.initialization, "seed": cell.seed, "task": cell.task}
        data = {"train": ["some"], "test": [str(cell.settings["DATASETS.TEST"])]}
        record = content(**row, metrics=dict.fromkeys(outputs, values), data=data)
        write_record(folder / cell.task, _finished(record, LATER))
    planned = re.findall(r"^(.+): .*corrected for (\d+) ", plan(name or file), re.MULTILINE)
    tables = measured_tables(read_records([folder])) if cells else []
    noted = [
        (table.task, *found)
        for table in tables
        if (found := re.findall(r"(\d+) comparison\(s\) in", str(table.notes)))
    ]
    if name not in ("smoke", "demo"):  # two seeds, and no order will be claimed
        assert sorted(planned) == noted
    if name is None:
        assert noted == [("coco_C4_1x", "6"), ("voc_C4", "3")]
    if name == "table_A1":
        assert noted == [("coco_FPN_2x", "4"), ("coco_FPN_6x", "4")]


def test_masks_on_data_named_voc_are_planned_as_their_table_shows_them(tmp_path):
    """Its table has the paper's columns of VOC, which are those of boxes."""
    data = {"DATASETS.TEST": "('coco:/nowhere/voc_test.json:/nowhere',)"}
    file = suite_file(tmp_path, tasks=["coco_C4_1x"], seeds=[1, 2, 3], overrides=data)
    cell = load_suite(file).cells[0]
    assert planned_metrics(cell.settings) == ["bbox/AP"]
    assert planned_metrics({**cell.settings, "DATASETS.TEST": ()}) == ["bbox/AP", "segm/AP"]


def test_the_plan_is_corrected_for_declared_pairs_that_a_task_leaves_out(tmp_path):
    pairs = [list(PAIR), ["random", "supervised"]]
    only = {"voc_C4": ["supervised", "moco"]}
    tasks = ["voc_C4", "voc_dilated_C5"]
    file = suite_file(tmp_path, comparisons=pairs, only=only, tasks=tasks, seeds=[1, 2, 3])
    assert plan(file, folder=tmp_path / "plan").count("corrected for 2 comparison(s)") == 2


def _finished(record, time):
    return {**record, "run": {**record["run"], "started": time, "finished": time}}


def test_a_run_that_is_evaluated_again_is_as_old_as_before(tmp_path):
    declare(tmp_path, Design(comparisons=(PAIR,)))
    write_record(tmp_path / "voc_C4", content(finished=LATER))
    assert table_of(tmp_path).declared == "after 1 of 1 runs"


def test_records_have_whole_seconds(tmp_path):
    declare(tmp_path, Design(comparisons=(PAIR,)))
    declared = json.loads((tmp_path / DESIGN_FILE).read_text())["declared"]
    write_record(tmp_path / "voc_C4", _finished(content(), declared[:19] + "Z"))
    assert table_of(tmp_path).declared == "beforehand"


@pytest.mark.parametrize("format", FORMATS)
def test_a_declaration_after_the_runs_is_marked_in_each_format(tmp_path, format):
    write_table_2b(tmp_path / "voc_C4")
    declare(tmp_path, Design(comparisons=(PAIR,)))
    write_record(tmp_path / "voc_C4", _finished(content(seed=6), LATER))
    text = render_folders([tmp_path], format)
    if format == "csv":
        lines = list(csv.DictReader(io.StringIO(text)))
        assert {line["declared"] for line in lines} == {"after 15 of 16 runs"}
    else:
        assert "declared after 15 of 16 runs had started, so it was not fixed" in text


@pytest.mark.parametrize("format", FORMATS)
def test_a_declaration_that_somebody_removed_is_missed_in_each_format(tmp_path, format):
    """Without it the default family would count, silently."""
    declare(tmp_path, Design(comparisons=(PAIR,)))
    write_table_2b(tmp_path / "voc_C4", lambda r: _finished(r, LATER))
    for record in sorted(tmp_path.rglob("record.json"))[:4]:
        name = str(record.parent.relative_to(tmp_path))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), tmp_path, processes=1, completed=0)
    assert table_of(tmp_path).declared == "beforehand"
    (tmp_path / DESIGN_FILE).unlink()
    table = table_of(tmp_path)
    assert table.declared == "missing for 4 of 15 runs" and table.design == Design()
    text = render_folders([tmp_path], format)
    assert "missing for 4 of 15 runs" in text
    assert format == "csv" or "put design.json back" in html.unescape(text).replace("\\", "")


def test_the_declaration_of_another_suite_is_not_that_of_the_runs(tmp_path):
    """It is older than the runs and nobody edited it, so only its fingerprint tells."""
    other = tmp_path / "other"
    other.mkdir()
    declare(other, Design(comparisons=(PAIR,)))
    declare(tmp_path, Design(comparisons=(PAIR,), margin=0.7))
    write_table_2b(tmp_path / "voc_C4", lambda r: _finished(r, LATER))
    for record in sorted(tmp_path.rglob("record.json"))[:4]:
        name = str(record.parent.relative_to(tmp_path))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), tmp_path, processes=1, completed=0)
    shutil.copy(other / DESIGN_FILE, tmp_path / DESIGN_FILE)
    table = table_of(tmp_path)
    assert table.declared == "not that of 4 of 15 runs" and table.design == Design()
    assert "put their own design.json back" in render_folders([tmp_path], "markdown").replace(
        "\\", ""
    )


def test_a_declaration_put_beside_runs_without_one_is_not_theirs(tmp_path):
    write_table_2b(tmp_path / "voc_C4", lambda r: _finished(r, LATER))
    for record in sorted(tmp_path.rglob("record.json")):
        name = str(record.parent.relative_to(tmp_path))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), tmp_path, processes=1, completed=0)
    declare(tmp_path, Design(comparisons=(PAIR,)))
    assert table_of(tmp_path).declared == "not that of 15 of 15 runs"


def _noted(folder):
    """A suite with the declaration PAIR, and runs that started under it."""
    declare(folder, Design(comparisons=(PAIR,)))
    write_table_2b(folder / "voc_C4", lambda r: _finished(r, LATER))
    for record in sorted(folder.rglob("record.json")):
        name = str(record.parent.relative_to(folder))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), folder, processes=1, completed=0)


def test_a_declaration_that_is_written_again_is_still_that_of_the_runs(tmp_path):
    """After a damaged file was removed, as its error says, and when folders are merged."""
    _noted(tmp_path)
    (tmp_path / DESIGN_FILE).unlink()
    declare(tmp_path, Design(comparisons=(PAIR,)))
    assert table_of(tmp_path).declared == "beforehand"


def test_clocks_that_differ_accuse_nobody(tmp_path):
    _noted(tmp_path)
    file = tmp_path / DESIGN_FILE
    for record in tmp_path.rglob("record.json"):
        record.write_text(record.read_text().replace(LATER, "2019-01-01T00:00:00+00:00"))
    assert table_of(tmp_path).declared == "beforehand" and file.is_file()


def test_a_run_keeps_the_design_under_which_it_first_started(tmp_path):
    """A run that is resumed writes its note again."""
    _noted(tmp_path)
    declare(tmp_path, Design(primary=("bbox/AP75",)))
    for record in tmp_path.rglob("record.json"):
        record.write_text(record.read_text().replace(LATER, "2019-01-01T00:00:00+00:00"))
        name = str(record.parent.relative_to(tmp_path))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), tmp_path, processes=1, completed=0)
    assert table_of(tmp_path).declared == "after 15 of 15 runs"


def test_who_declares_after_the_trials_has_seen_numbers(tmp_path):
    trial = Cell("voc_C4/moco/tuning/lr0.01", "voc_C4", "moco", 9, ())
    note_started(trial, tmp_path, processes=1, completed=1)
    declare(tmp_path, Design(comparisons=(PAIR,)))
    for seed in (1, 2):
        name = f"voc_C4/moco/seed{seed}"
        (tmp_path / name).mkdir()
        record = json.dumps(_finished(content(seed=seed), LATER))
        (tmp_path / name / "record.json").write_text(record)
        note_started(Cell(name, "voc_C4", "moco", seed, ()), tmp_path, processes=1, completed=1)
    assert table_of(tmp_path).declared == "not that of 2 of 2 runs"


def test_a_note_that_cannot_be_read_is_no_proof(tmp_path):
    _noted(tmp_path)
    next(tmp_path.rglob("cell.json")).write_text("{")
    assert table_of(tmp_path).declared == "not that of 1 of 15 runs"


def test_the_start_of_an_imported_run_is_unknown(tmp_path):
    """The time of a copied file is that of the copy."""
    declare(tmp_path, Design(comparisons=(PAIR,)))

    def imported(record):
        return {**record, "run": {**_finished(record, LATER)["run"], "started": None}}

    write_table_2b(tmp_path / "voc_C4", imported)
    assert table_of(tmp_path).declared == "unknown for 15 of 15 runs"
    text = render_folders([tmp_path], "markdown")
    assert "the start is unknown for 15 of 15 runs" in text


def test_the_declaration_is_found_from_any_way_to_the_records(tmp_path, monkeypatch):
    _noted(tmp_path / "suite")
    row = next((tmp_path / "suite").rglob("record.json")).parent.parent
    (tmp_path / "link").symlink_to(row)
    assert table_of(tmp_path / "link").declared == "beforehand"
    monkeypatch.chdir(row)
    assert table_of(Path(f"../{row.name}")).declared == "beforehand"


def test_runs_of_a_suite_without_a_declaration_miss_none(tmp_path):
    write_table_2b(tmp_path / "voc_C4")
    for record in tmp_path.rglob("record.json"):
        name = str(record.parent.relative_to(tmp_path))
        note_started(Cell(name, "voc_C4", "moco", 1, ()), tmp_path, processes=1, completed=0)
    assert table_of(tmp_path).declared == ""


def test_a_suite_that_changes_its_mind_declares_anew(tmp_path):
    declare(tmp_path, Design())
    assert not (tmp_path / DESIGN_FILE).exists()  # the default needs no file
    declare(tmp_path, Design(comparisons=(PAIR,)))
    first = (tmp_path / DESIGN_FILE).read_text()
    declare(tmp_path, Design(comparisons=(PAIR,)))
    assert (tmp_path / DESIGN_FILE).read_text() == first
    declare(tmp_path, Design())
    assert json.loads((tmp_path / DESIGN_FILE).read_text())["design"]["comparisons"] == []


def test_a_declaration_that_somebody_edited_is_marked(tmp_path):
    declare(tmp_path, Design(comparisons=(PAIR,)))
    write_table_2b(tmp_path / "voc_C4", lambda r: _finished(r, LATER))
    file = tmp_path / DESIGN_FILE
    file.write_text(file.read_text().replace('"moco"', '"random"'))
    table = table_of(tmp_path)
    assert table.declared == "by hand" and "edited by hand" in str(table.notes)
    declare(tmp_path, Design(comparisons=(("random", "supervised"),)))
    assert table_of(tmp_path).declared == "beforehand"  # these runs finished after it
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=f"cannot read {re.escape(str(file))}: .*; remove it, and"):
        table_of(tmp_path)


def test_a_file_of_another_program_above_the_runs_is_no_declaration(tmp_path):
    """The name is common, and tables look for it in four folders."""
    (tmp_path / DESIGN_FILE).write_text('{"colors": ["red"]}')
    write_table_2b(tmp_path / "output")
    assert table_of(tmp_path / "output").declared == ""
    with pytest.raises(UserError, match="not a declaration of a suite"):  # it is not overwritten
        declare(tmp_path, Design(comparisons=(PAIR,)))


def test_suites_that_declare_differently_get_the_default(tmp_path):
    declare(tmp_path / "a", Design(comparisons=(PAIR,)))
    write_table_2b(tmp_path / "a")
    write_record(tmp_path / "b", content(initialization="moco_v2"))
    table = table_of(tmp_path)
    assert table.declared == "differently"
    assert "declare different comparisons, so the default ones count" in str(table.notes)
    assert ("moco", "random", "bbox/AP") in claimed(table)


def test_a_metric_of_another_task_leaves_the_default(tmp_path):
    declare(tmp_path, Design(primary=("sem_seg/mIoU",)))
    write_table_2b(tmp_path / "voc_C4")
    assert {metric for *_, metric in claimed(table_of(tmp_path))} == {"bbox/AP"}


def test_the_runner_writes_the_declaration(tmp_path):
    design = Design(comparisons=(PAIR,))
    run(Suite("s", "t", (), design=design), folder=tmp_path, gpus_per_run=0, tools=TOOLS)
    assert json.loads((tmp_path / DESIGN_FILE).read_text())["design"]["comparisons"] == [list(PAIR)]


def test_the_suites_of_the_paper_compare_with_what_the_paper_compares_with():
    """Table 2 and after: with supervised; Table 3: with the other mechanisms. Random is for
    reference.
    """
    for name in packaged_suites():
        if not name.startswith(("table", "lvis", "v2_table_1")) or name.endswith(
            ("pretext", "vitdet")
        ):
            continue
        suite = load_suite(name)
        rows = {cell.initialization for cell in suite.cells}
        assert suite.design.comparisons
        assert all(one.startswith("moco") for one, _ in suite.design.comparisons)
        compared = {row for pair in suite.design.comparisons for row in pair}
        assert rows - compared <= {"random", "supervised"}
