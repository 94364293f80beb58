"""The export to the Hugging Face hub, read again by its own library."""

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from support.commands import run_tool
from support.paths import TOOLS
from support.run_records import content, write_record, write_table_2b

from moco_d2.benchmark.board.export import export
from moco_d2.errors import UserError

BENCHMARK = {"dataset_id": "owner/voc", "task_id": "detection"}


def test_the_card_has_every_metric_as_the_library_reads_it(table_2b, tmp_path):
    write_record(table_2b, content(task="voc07_C4"))
    (file,) = export([table_2b], "moco", tmp_path / "card")
    card = ModelCard.load(file)
    assert card.data.model_name == "moco"
    results = {r.metric_name: r for r in card.data.eval_results}
    assert len(results) == 6 and "voc07_C4, AP50 (mean, 1 seed)" in results
    ap = results["voc_C4, AP (mean, 5 seeds)"]
    assert ap.metric_value == pytest.approx(55.9) and ap.metric_type == "bbox/AP"
    assert ap.dataset_type == "voc_2007_test"
    assert "| moco | 55.9, rank 1 (n=1) | 55.9 \\[55.7, 56.1\\], rank 1 (n=5) |" in card.text


def test_the_entry_is_one_of_eval_results(table_2b, tmp_path):
    files = export([table_2b], "supervised", tmp_path, **BENCHMARK, source_url="https://a.b/c")
    assert files[1:] == [tmp_path / ".eval_results" / "voc_C4.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[1].read_text()))
    assert (entry.dataset_id, entry.task_id) == ("owner/voc", "detection")
    assert entry.value == pytest.approx(53.5) and entry.date == "2025-01-02"
    assert entry.source_url == "https://a.b/c"
    assert "53.5 [53.3, 53.7], mean of 5 " in entry.notes


def test_names_of_strangers_stay_values(write, tmp_path):
    name = "--- 'a': \"b\" # <c> [d]: |"
    write(content(initialization=name))
    (file,) = export([write.folder], name, tmp_path / "card")
    card = ModelCard.load(file)
    assert card.data.model_name == name and card.data.license is None
    title = "# --- 'a': \"b\" # \\<c\\> \\[d\\]: \\|"
    assert card.text.strip().splitlines()[0] == title


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mocco", {}, "no run of the initialization 'mocco'; .*moco"),
        ("moco", {"dataset_id": "owner/voc"}, "--dataset-id and --task-id go together"),
        ("moco", {"dataset_id": "a/b/c", "task_id": "x"}, "must be OWNER/NAME .*'a/b/c'"),
        ("moco", BENCHMARK, "an entry has one task, but there are voc07_C4, voc_C4"),
    ],
)
def test_a_mistake_writes_nothing(table_2b, tmp_path, name, arguments, message):
    write_record(table_2b, content(task="voc07_C4"))
    with pytest.raises(UserError, match=message):
        export([table_2b], name, tmp_path / "card", **arguments)
    assert not (tmp_path / "card").exists()


def test_a_library_that_lacks_the_format_is_named(table_2b, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setitem(vars(huggingface_hub), "EvalResultEntry", None)
    monkeypatch.delitem(vars(huggingface_hub), "EvalResultEntry")
    monkeypatch.setitem(vars(huggingface_hub), "__getattr__", None)
    monkeypatch.delitem(vars(huggingface_hub), "__getattr__")
    with pytest.raises(UserError, match=r"pip install -U 'moco_d2\[hub\]'"):
        export([table_2b], "moco", tmp_path)


def test_the_command(tmp_path):
    write_table_2b(tmp_path / "runs")
    words = ("export", tmp_path / "runs", "--initialization", "moco", "--out", tmp_path / "card")
    result = run_tool(TOOLS / "benchmark.py", *words)
    assert result.returncode == 0 and result.stdout == f"{tmp_path / 'card' / 'README.md'}\n"
