"""tools/train_net.py, in this process: what it trains, writes, resumes and refuses."""

import itertools
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from support.recording_tracker import Recording
from support.toy_data import make_coco, make_voc

from moco_d2.benchmark.image_bootstrap import WeightedAP
from moco_d2.benchmark.records.compare import compare
from moco_d2.benchmark.records.importing import import_run
from moco_d2.benchmark.records.run_records import read_records
from moco_d2.benchmark.records.test_sets import by_test_set
from moco_d2.benchmark.tables.comparison import measured_tables
from moco_d2.errors import UserError
from moco_d2.files import sha256
from moco_d2.plugin.compat import has_compiled_operators
from moco_d2.records.image_matches import read_per_image
from moco_d2.transfer.evaluation import precise_bn
from moco_d2.transfer.evaluation.tide import KINDS
from moco_d2.transfer.trainer import Trainer

EVERY_BOX = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")


@pytest.fixture(scope="module")
def finished(run_into, voc, tmp_path_factory):
    """OUTPUT_DIR of a finished run, which tests only read."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run_into(folder, "voc_C4_random.yaml", voc, *EVERY_BOX)
    return folder


@pytest.mark.parametrize(
    ("config", "kind", "metrics"),
    [
        ("voc_C4_random.yaml", "voc", {"bbox"}),
        ("coco_FPN_1x_random.yaml", "coco", {"bbox", "segm"}),
    ],
)
def test_two_steps_and_an_evaluation_leave_a_valid_record(
    finetune_run, request, config, kind, metrics
):
    typed = f"tools/train_net.py --config-file {config}"
    data = request.getfixturevalue(kind)
    folder = finetune_run(config, data, "TEST.EVAL_PERIOD", "1", command=typed)
    (record,) = read_records([folder])
    raw = json.loads((folder / "record.json").read_text())
    assert raw["run"]["task"] == config.removesuffix("_random.yaml")
    assert raw["run"]["initialisation"] == record.initialization == "random"
    assert raw["run"]["seed"] == 1
    assert set(raw["metrics"]) == metrics
    assert {"AP", "AP50", "AP75"} <= set(raw["metrics"]["bbox"])
    assert raw["weights"] is None
    assert raw["coverage"] == {"expected": 265, "loaded": 0}
    assert raw["schedule"]["max_iter"] == 2
    assert raw["config"]["resolved"]["MODEL"]["RESNETS"]["NORM"] == "BN"
    assert [entry["iteration"] for entry in raw["history"]] == [0, 2]
    assert not raw["preflight"]["forced"]
    (train_set,), (test_set,) = record.datasets_train, record.datasets_test
    assert re.fullmatch(r"\d images, [0-9a-f]{16}", raw["data"].pop("train_content"))
    assert raw["data"] == {
        "train_images": len(DatasetCatalog.get(train_set)),
        "test_images": {test_set: len(DatasetCatalog.get(test_set))},
    }
    assert 0 < raw["cost"]["evaluation_seconds"] < record.seconds
    assert 0.1 < raw["cost"]["peak_memory_gib"] < 64
    assert record.command == typed
    # COCO's AP50, and what it lacks; VOC's has other points of the curve.
    assert set(record.errors) == {test_set}
    lost = dict(record.errors[test_set])
    if kind == "coco":
        assert lost["AP50"] == pytest.approx(record.metrics["bbox/AP50"], abs=1e-9)
    assert 0 <= lost.pop("AP50") <= 100 and set(lost) == set(KINDS)
    # What AP needs of each image gives the numbers of the record.
    kept = raw["per_image"][test_set]
    outputs, _ = read_per_image(folder / kept["file"])
    assert kept["sha256"] == sha256(folder / "per_image.npz")
    assert kept["bytes"] == (folder / "per_image.npz").stat().st_size
    assert set(outputs) == metrics
    for output, part in outputs.items():
        names = [f"{output}/{metric}" for metric in ("AP", "AP50", "AP75")]
        again = WeightedAP(part)(np.ones(part.images))
        assert again.tolist() == pytest.approx([record.metrics[n] for n in names], abs=1e-9)
    by = record.environment.get("evaluated by")
    assert by == (None if kind == "voc" or has_compiled_operators() else "hotcoco")
    # The record that is made of its config.yaml and metrics.json says the same.
    imported = import_run(
        folder,
        task=record.task,
        initialization="random",
        destination=folder / "imported.json",
    )
    (theirs,) = read_records([imported])
    for name in ("config", "matched_sha256", "metrics", "history", "seed", "images"):
        assert getattr(theirs, name) == getattr(record, name), name
    assert theirs.cost["seconds_per_iteration"] == record.cost["seconds_per_iteration"]
    assert compare(folder, imported).startswith("**Matched**: the configs are equal.")


@pytest.mark.parametrize(
    ("config", "kind"), [("voc_C4_random.yaml", "voc"), ("coco_FPN_1x_random.yaml", "coco")]
)
def test_amp_on_a_cpu_is_bfloat16(finetune_run, request, config, kind):
    """Detectron2's own AMPTrainer refuses to run without CUDA."""
    data = request.getfixturevalue(kind)

    def first_loss(*overrides, out):
        folder = finetune_run(config, data, *overrides, out=out)
        return json.loads((folder / "metrics.json").read_text().splitlines()[0])["total_loss"]

    exact = first_loss(out="fp32")
    mixed = first_loss("SOLVER.AMP.ENABLED", "True", out="bf16")
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.2)  # regions are sampled by their scores


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    finetune_run, finished, voc, monkeypatch
):
    """Also if a run is tracked; the tracker ends with the values of the record."""
    recording = Recording.stand_in(monkeypatch, "wandb")
    first, tracker = finished, ("MOCO.TRACKERS", "wandb")
    second = finetune_run("voc_C4_random.yaml", voc, *EVERY_BOX, *tracker, out="b")
    other = finetune_run("voc_C4_random.yaml", voc, *EVERY_BOX, "SEED", "2", out="c")

    def weights(folder):
        return torch.load(folder / "model_final.pth", weights_only=True)["model"]

    a, b, c = map(weights, (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    name = "backbone.stem.conv1.weight"
    assert not torch.equal(a[name], c[name])
    records = read_records([first, second, other])
    assert len({r.matched_sha256 for r in records}) == 1
    assert recording.calls[-1] == ("finish", "finished")
    metrics = json.loads((second / "record.json").read_text())["metrics"]["bbox"]
    tracked = recording.values()
    assert {name: tracked[f"bbox/{name}"] for name in metrics} == metrics


def test_rates_are_the_schedules_and_statistics_come_before_the_evaluation(
    finetune_run, voc, monkeypatch
):
    rates, events = [], []
    run_step, evaluate = Trainer.run_step, Trainer.test.__func__

    def step(self):
        rates.append(self.optimizer.param_groups[0]["lr"])
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", step)
    test = classmethod(lambda cls, *args: events.append("test") or evaluate(cls, *args))
    monkeypatch.setattr(Trainer, "test", test)
    monkeypatch.setattr(precise_bn, "update_statistics", lambda *args: events.append("statistics"))
    schedule = {
        "SOLVER.MAX_ITER": "4",
        "SOLVER.STEPS": "(3,)",
        "SOLVER.BASE_LR": "0.01",
        "SOLVER.WARMUP_ITERS": "2",
        "SOLVER.WARMUP_FACTOR": "0.5",
    }
    finetune_run("voc_C4_random.yaml", voc, *itertools.chain(*schedule.items()))
    assert rates == pytest.approx([0.005, 0.0075, 0.01, 0.001])
    assert events == ["statistics", "test"]


def test_the_rest_of_a_detector_starts_alike_whatever_the_backbone_starts_from(
    finetune_run, voc, tmp_path, monkeypatch
):
    """Matched initializations of one seed share the heads' initial values."""

    class BuiltError(Exception):
        pass

    def train(self):
        raise BuiltError(self.model.state_dict())

    monkeypatch.setattr(Trainer, "train", train)
    weights = tmp_path / "weights.pth"
    content = {"stem.conv1.weight": torch.zeros(8, 3, 7, 7)}
    torch.save({"model": content, "__author__": "", "matching_heuristics": True}, weights)
    states = []
    for name, words in (("random", ()), ("moco", ("MODEL.WEIGHTS", str(weights)))):
        with pytest.raises(BuiltError) as built:
            finetune_run(f"voc_C4_{name}.yaml", voc, *words, out=name, force=True)
        states.append(built.value.args[0])
    first, second = states
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "backbone.stem.conv1.weight"
    }


def test_checkpoint_holds_the_optimizer(finetune_run, finished, voc, tmp_path):
    """Stock v0.6 leaves it out, so that --resume starts with no momentum (detectron2 #4110)."""
    folder = shutil.copytree(finished, tmp_path / "out")
    state = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
    assert state["iteration"] == 1
    buffers = state["_trainer"]["optimizer"]["state"]
    assert buffers
    assert any(s["momentum_buffer"].abs().sum() > 0 for s in buffers.values())
    more = finetune_run("voc_C4_random.yaml", voc, "SOLVER.MAX_ITER", "3", resume=True)
    assert torch.load(more / "model_final.pth", weights_only=True)["iteration"] == 2


def test_a_signal_leaves_a_state_to_resume(finetune_run, voc, monkeypatch):
    original = Trainer.run_step

    def run_step(self):
        original(self)
        if self.iter == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    with pytest.raises(KeyboardInterrupt):
        finetune_run("voc_C4_random.yaml", voc)
    monkeypatch.undo()
    folder = finetune_run("voc_C4_random.yaml", voc, resume=True)
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(folder / "model_0000000.pth", weights_only=True)["iteration"] == 0
    assert "starting training from iteration 1" in (folder / "log.txt").read_text().lower()


def test_finished_detector_is_evaluated_to_the_same_numbers(finetune_run, finished, voc, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    trained = json.loads((folder / "record.json").read_text())["metrics"]
    weights = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    # Where the training images are is of no concern to an evaluation.
    data = voc | {"DATASETS.TRAIN": ("nowhere",)}
    finetune_run("voc_C4_random.yaml", data, *EVERY_BOX, *weights, out="evaluated", eval_only=True)
    assert finetune_run.results == trained
    assert finetune_run.results["bbox"]["AP50"] > 0
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(UserError, match=r"out has a training run, .*: choose .*out/evaluation"):
        finetune_run("voc_C4_random.yaml", data, *EVERY_BOX, *weights, eval_only=True)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    other = make_voc(tmp_path / "other")
    (other / "classes.txt").write_text("light\ndark\n")
    data["DATASETS.TEST"] = (f"voc:{other}:test",)
    with pytest.raises(UserError, match=r"class 0 is 'light' in .* learned it as 'dark'"):
        finetune_run("voc_C4_random.yaml", data, *weights, out="swapped", eval_only=True)


@pytest.mark.parametrize("content", [{"model": {"conv1.weight": torch.zeros(1)}}, {"epoch": 7}])
def test_an_evaluation_that_is_refused_leaves_nothing(finetune_run, voc, tmp_path, content):
    torch.save(content, tmp_path / "backbone.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "backbone.pth"))
    with pytest.raises(UserError, match=r"backbone\.pth.* model_final"):
        finetune_run("voc_C4_random.yaml", voc, *weights, eval_only=True)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_test_set_has_no_metrics_until_it_is_evaluated(finetune_run, voc, capsys):
    folder = finetune_run("voc_C4_random.yaml", voc | {"DATASETS.TEST": "()"})
    raw = json.loads((folder / "record.json").read_text())
    assert raw["metrics"] == {} and raw["history"] == [] and raw["data"]["test_images"] == {}
    assert (
        "none: DATASETS.TEST names no set, so the record has no metrics" in capsys.readouterr().out
    )
    assert read_records([folder], required=False) == []
    said = capsys.readouterr().out
    assert "it has no metrics, because its run had no test set; evaluate the run" in said
    with pytest.raises(UserError, match="no record.json with metrics under"):
        read_records([folder])
    trained = (folder / "model_final.pth").read_bytes()
    finetune_run("voc_C4_random.yaml", voc, resume=True)
    (record,) = read_records([folder])
    assert record.metrics.keys() >= {"bbox/AP", "bbox/AP50"}
    assert (folder / "model_final.pth").read_bytes() == trained


def test_several_test_sets_have_their_own_metrics_predictions_and_tables(
    finetune_run, coco, tmp_path
):
    (first,) = coco["DATASETS.TEST"]
    other = make_coco(tmp_path / "other", images=4, seed=5)
    second = f"coco:{other}/test.json:{other}/images"
    every_box = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.EVAL_PERIOD", "1")
    config = "coco_FPN_1x_random.yaml"
    folder = finetune_run(config, coco | {"DATASETS.TEST": (first, second)}, *every_box)
    raw = json.loads((folder / "record.json").read_text())
    assert raw["metrics"].keys() == {
        f"{n}/{kind}" for n in (first, second) for kind in ("bbox", "segm")
    }
    assert raw["data"]["test_images"] == {first: 6, second: 4}
    assert raw["errors"].keys() == {first, second}
    files = [raw["per_image"][name]["file"] for name in (first, second)]
    assert files == ["per_image.npz", "per_image_1.npz"]
    assert [read_per_image(folder / f)[0]["bbox"].images for f in files] == [6, 4]
    predictions = sorted((folder / "inference").glob("*/coco_instances_results.json"))
    assert [file.parent.name[:2] for file in predictions] == ["0_", "1_"]
    (record,) = read_records([folder])
    alone, further = by_test_set([record])
    # Both sets are a test.json with images, so their folders tell them apart.
    assert (alone.task, further.task) == ("coco_FPN_1x", f"coco_FPN_1x on {second}")
    for part, name in ((alone, first), (further, second)):
        assert part.metrics["bbox/AP50"] == raw["metrics"][f"{name}/bbox"]["AP50"]
        assert [entry["iteration"] for entry in part.history] == [0, 2]
        assert part.errors.keys() == {name} and part.datasets_test == (name,)
    assert [table.task for table in measured_tables([record])] == [alone.task, further.task]
    # Each set is evaluated as it is alone.
    single = finetune_run(config, coco | {"DATASETS.TEST": (second,)}, *every_box, out="single")
    expected = json.loads((single / "record.json").read_text())["metrics"]
    assert {kind: raw["metrics"][f"{second}/{kind}"] for kind in expected} == expected


def _as_runs(item, side=64):
    """The mask of a box as an uncompressed run-length code."""
    x, y, width, height = item["bbox"]
    gap = side - height
    runs = [x * side + y, *([height, gap] * width)]
    runs[-1] = side * side - sum(runs[:-1])
    return {"size": [side, side], "counts": runs}


def test_run_length_codes_are_trained_on_and_the_record_says_how(finetune_run, tmp_path):
    root = make_coco(tmp_path / "coco")
    for file in root.glob("*.json"):
        content = json.loads(file.read_text())
        for item in content["annotations"]:
            item["segmentation"] = _as_runs(item)
        file.write_text(json.dumps(content))
    data = {
        f"DATASETS.{key}": (f"coco:{root}/{split}.json:{root}/images",)
        for key, split in (("TRAIN", "train"), ("TEST", "test"))
    }
    folder = finetune_run("coco_FPN_1x_random.yaml", data)
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["resolved"]["INPUT"]["MASK_FORMAT"] == "bitmask"
    (note,) = (n for n in record["schedule"]["notes"] if "MASK_FORMAT" in n)
    assert "6 of 6 masks" in note
    assert set(record["metrics"]) == {"bbox", "segm"}
    assert not record["preflight"]["findings"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_image_of_either_set_stops_the_run_before_it_begins(
    finetune_run, tmp_path, split
):
    root = make_coco(tmp_path / "coco")
    first = json.loads((root / f"{split}.json").read_text())["images"][0]["file_name"]
    os.truncate(root / "images" / first, 100)
    data = {
        f"DATASETS.{key}": (f"coco:{root}/{name}.json:{root}/images",)
        for key, name in (("TRAIN", "train"), ("TEST", "test"))
    }
    with pytest.raises(UserError, match=f"1 of its 6 images cannot be used, first .*{first}"):
        finetune_run("coco_FPN_1x_random.yaml", data)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_arrive_stop_the_run_and_leave_nothing(finetune_run, voc, tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(8, 3, 7, 7)}}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="only 0 of 265 backbone tensors arrived"):
        finetune_run("voc_C4_moco.yaml", voc, "MODEL.WEIGHTS", str(tmp_path / "foreign.pth"))
    assert not (tmp_path / "out").exists()


def test_a_finished_detector_as_weights_stops_the_run_or_begins_its_heads_anew(
    finetune_run, finished, voc, tmp_path
):
    weights = ("MODEL.WEIGHTS", str(finished / "model_final.pth"))
    with pytest.raises(UserError, match=r"it is a detector: \d+ tensors outside .*BACKBONE_ONLY"):
        finetune_run("voc_C4_moco.yaml", voc, *weights, out="detector")
    assert not (tmp_path / "detector").exists()
    folder = finetune_run("voc_C4_moco.yaml", voc, *weights, "MOCO.BACKBONE_ONLY", "True", out="b")
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["resolved"]["MOCO"]["BACKBONE_ONLY"] is True
    assert record["coverage"]["loaded"] == record["coverage"]["expected"] > 0


@pytest.mark.parametrize("nested", [True, False])
def test_an_unconverted_checkpoint_is_sent_to_the_converter(finetune_run, voc, tmp_path, nested):
    state = {"module.encoder_q.conv1.weight": torch.zeros(8, 3, 7, 7)}
    content = {"state_dict": state, "epoch": 200} if nested else state
    torch.save(content, tmp_path / "raw.pth.tar")
    with pytest.raises(UserError, match=r"raw\.pth\.tar.* tools/convert\.py"):
        finetune_run("voc_C4_moco.yaml", voc, "MODEL.WEIGHTS", str(tmp_path / "raw.pth.tar"))
    assert not (tmp_path / "out").exists()


def test_force_runs_it_and_marks_the_record(finetune_run, tmp_path):
    """What can be trained in spite of findings: another backbone, an image less, a class more."""
    torch.save({"model": {"conv1.weight": torch.zeros(8, 3, 7, 7)}}, tmp_path / "foreign.pth")
    root = make_voc(tmp_path / "VOC2007")
    (root / "JPEGImages/trainval001.jpg").unlink()
    data = {"DATASETS.TRAIN": (f"voc:{root}:trainval",), "DATASETS.TEST": (f"voc:{root}:test",)}
    overrides = (
        *("MODEL.WEIGHTS", str(tmp_path / "foreign.pth"), "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),  # so that the third class is found, too
    )
    keys = ["DATASETS.TRAIN", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.WEIGHTS"]
    with pytest.raises(UserError, match=r"has 3 findings; --force runs it anyway") as caught:
        finetune_run("voc_C4_moco.yaml", data, *overrides)
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == keys
    assert not (tmp_path / "out").exists()
    folder = finetune_run("voc_C4_moco.yaml", data, *overrides, force=True)
    raw = json.loads((folder / "record.json").read_text())
    assert raw["preflight"]["forced"]
    assert [finding["key"] for finding in raw["preflight"]["findings"]] == keys
    assert raw["weights"]["provenance"] is None
    assert {"AP", "AP50", "AP75"} <= set(raw["metrics"]["bbox"])


def test_diverged_loss_is_one_sentence(finetune_run, voc):
    with pytest.raises(UserError, match="loss is no longer finite at iteration .*SOLVER.BASE_LR"):
        finetune_run(
            "voc_C4_random.yaml",
            voc,
            *("SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "5"),
        )


def test_pretraining_config_is_sent_to_the_other_tool(finetune_run, voc):
    with pytest.raises(UserError, match=r"names no task: add --task .*tools/pretrain\.py"):
        finetune_run("moco_v2_R50_200ep.yaml", voc)
