"""What a suite asks a cluster for. Jobs that run are in test_runner.py."""

import types

import pytest

from moco_d2.benchmark.runs import cluster
from moco_d2.benchmark.runs.execution import Place
from moco_d2.benchmark.runs.suites import Cell


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], {"gpus_per_node": 8}),
        (["gpus-per-node=a100:8"], {"gpus_per_node": "a100:8"}),
        (["gres=gpu:8"], {"gres": "gpu:8"}),  # not a second time, which SLURM may refuse
    ],
)
def test_a_run_asks_once_for_its_gpus(monkeypatch, tmp_path, words, asked):
    options = []

    def queue(call, parameters, *, name):
        options.append(parameters)
        return types.SimpleNamespace(job_id="12")

    monkeypatch.setattr(cluster, "queue", queue)
    cell = Cell("a", "voc_C4", "random", 1, commands=())
    outcome = cluster.submit_cells([cell], tmp_path, Place(8), words, gpus=8)
    assert outcome == {"a": "submitted, job 12"}
    (parameters,) = options
    assert {key: parameters[key] for key in ("gpus_per_node", "gres") if key in parameters} == asked
    assert parameters["tasks_per_node"] == 1
