import json
import math

import pytest

from moco_d2.benchmark.drawing import styles_of
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.report import plots
from moco_d2.benchmark.statistics import Summary
from moco_d2.errors import UserError

METRICS = [{"iteration": i, "loss_contrastive": 5 - i / 10, "total_loss": 9.0} for i in range(10)]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_training_curves(tmp_path, suffix, drawn):
    path = tmp_path / f"loss{suffix}"
    plots.training_curves(METRICS, path, dictionary_size=128)
    head = path.read_bytes()
    assert head.startswith(b"\x89PNG") or b"<svg" in head
    assert drawn["loss_contrastive"] == (list(range(1, 11)), [5 - i / 10 for i in range(10)])
    if suffix == ".svg":
        assert f"ln(128 + 1) = {math.log(129):.2f}".encode() in head
        plots.training_curves(METRICS, tmp_path / "again.svg", dictionary_size=128)
        assert (tmp_path / "again.svg").read_bytes() == head


def test_training_curves_need_a_loss(tmp_path):
    with pytest.raises(UserError, match="loss_contrastive"):
        plots.training_curves([{"iteration": 1}], tmp_path / "loss.png")
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        plots.training_curves(METRICS, tmp_path / "loss.jpg")
    assert not list(tmp_path.iterdir())


def test_read_metrics_of_a_resumed_and_killed_run(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [{"iteration": 0, "a": 1}, {"iteration": 1, "a": 2}, {"iteration": 1, "a": 3}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 2, "a"')
    assert plots.read_metrics(path) == [{"iteration": 0, "a": 1}, {"iteration": 1, "a": 3}]
    path.write_text("")
    with pytest.raises(UserError, match="no line"):
        plots.read_metrics(path)


def test_ap_curves_mean_over_seeds_and_final_point(tmp_path, make_content, write, drawn):
    for seed, ap in ((1, 50.0), (2, 54.0)):
        record = make_content(seed=seed, metrics={"bbox": {"AP": ap}}, max_iter=200)
        record["history"] = [{"iteration": 99, "bbox/AP": ap - 20, "bbox/AP50": None}]
        write(record)
    write(make_content(initialization="random", metrics={"bbox": {"AP": 9.0}}, max_iter=200))
    records = read_records([write.folder])
    plots.ap_curves(records, "bbox/AP", tmp_path / "ap.svg")
    assert drawn["moco (n=2)"] == ([100, 200], [32.0, 52.0])
    assert drawn["random (n=1)"] == ([200], [9.0])
    with pytest.raises(UserError, match="segm/AP"):
        plots.ap_curves(records, "segm/AP", tmp_path / "none.svg")


def test_ap_curves_of_one_task_only(tmp_path, make_content, write):
    write(make_content(task="a"))
    write(make_content(task="b"))
    with pytest.raises(UserError, match="several tasks"):
        plots.ap_curves(read_records([write.folder]), "bbox/AP", tmp_path / "ap.svg")


def test_knn_curve(tmp_path, drawn):
    knn = [{"iteration": 9, "knn_accuracy": 0.3}, {"iteration": 19, "knn_accuracy": 0.5}]
    plots.knn_curve({"moco": knn, "other": knn[:1]}, tmp_path / "knn.png", chance=0.1)
    assert drawn["moco"] == ([10, 20], [0.3, 0.5])
    with pytest.raises(UserError, match=r"MOCO\.KNN"):
        plots.knn_curve({"moco": METRICS}, tmp_path / "none.png")


def test_styles_differ_in_more_than_color():
    names = ["moco", "random", "supervised", "a", "b", "c", "d"]
    styles = styles_of(names)
    for part in range(4):
        assert len({str(styles[name][part]) for name in names}) == len(names)
    assert styles["moco"] == styles_of(["moco"])["moco"]


def test_more_names_than_styles_get_other_combinations():
    styles = styles_of([f"run {i}" for i in range(16)])
    assert len({str(style) for style in styles.values()}) == 16


def test_labels_are_drawn_as_they_are(tmp_path):
    """No mathematics, no markup, no legend wider than the figure."""
    names = ["$x_1$", "<b>&amp;", "$", "a" * 300]
    path = tmp_path / "bars.svg"
    kinds = {"Cls": Summary(1.0, 0.1, 2), "$Loc": Summary(2.0, None, 1)}
    plots.grouped_bars(dict.fromkeys(names, kinds), path, ylabel="points of $AP50$")
    text = path.read_text()
    assert "<b>" not in text and "a" * 50 not in text
    assert "<!-- $x_1$ -->" in text


def test_several_metrics_share_a_legend(tmp_path, make_content, write, drawn):
    write(make_content(metrics={"bbox": {"AP": 9.0, "AP50": 10.0}}, max_iter=200))
    records = read_records([write.folder])
    plots.ap_curves(records, ["bbox/AP50", "segm/AP", "bbox/AP"], tmp_path / "ap.svg")
    assert drawn == {"moco (n=1)": ([200], [9.0])}  # drawn last
    assert (tmp_path / "ap.svg").read_text().count("<!-- moco (n=1) -->") == 1
