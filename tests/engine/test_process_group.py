"""Processes that do not fit together, or do not come, are one sentence before the first step."""

import datetime
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from support.commands import start_processes
from support.paths import ROOT, SUPPORT

from moco_d2.engine import process_group
from moco_d2.engine.launcher_environment import Place, place_of_process
from moco_d2.engine.process_group import timeout
from moco_d2.errors import UserError
from moco_d2.plugin import compat

LIMIT = datetime.timedelta(seconds=60)
FACTS = {"backend": "gloo", "gpu": None, "flags": {}}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """Set exactly these variables of torchrun."""

    def set_them(**variables: str) -> None:
        for name in (*TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE", *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_them


BATCH_SCRIPT = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}  # and a shell of salloc
SRUN = {**BATCH_SCRIPT, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_PORT": "0"},
        BATCH_SCRIPT,
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        {**SRUN, "WORLD_SIZE": "1"},  # independent runs
    ],
)
def test_a_single_process_has_no_place(environment, variables):
    environment(**variables)
    assert place_of_process() is None


def test_the_place_is_torchruns(environment):
    environment(**TORCHRUN)
    assert place_of_process() == Place(1, 4, 1, 2, "127.0.0.1", 29500)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "^WORLD_SIZE is 4 in the environment, without RANK, .*: .* unset"),
        ({**TORCHRUN, "MASTER_PORT": ""}, "without MASTER_PORT: "),
        *(
            ({**TORCHRUN, "MASTER_PORT": port}, f"^MASTER_PORT is '{port}': .* 1 to 65535$")
            for port in ("0", "-1", "65536", "http")
        ),
        ({"WORLD_SIZE": "1", "RANK": "3"}, "^RANK is 3 .*, but WORLD_SIZE is 1: .* unset RANK"),
        ({"RANK": "3"}, "^RANK is 3 in the environment, but WORLD_SIZE is not set: "),
        (SRUN, r"^srun has started 2 tasks \(SLURM_NTASKS, .* WORLD_SIZE is not set"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' in the environment"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK is '-1'"),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4 WORLD_SIZE=4 .* contradict each other"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "contradict each other"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, "contradict each other"),
    ],
)
def test_variables_left_in_the_shell_are_one_sentence(environment, variables, message):
    environment(**variables)
    with pytest.raises(UserError, match=message):
        place_of_process()


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "0", "-5"])
def test_a_timeout_is_a_positive_number(monkeypatch, value):
    monkeypatch.setenv("MOCO_D2_TIMEOUT", value)
    with pytest.raises(UserError, match="MOCO_D2_TIMEOUT is"):
        timeout()


def free_port() -> int:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store.port


def meet(*processes: tuple[Place, dict], late: int = 0) -> list[str]:
    """What each process says, "" for one that has met the others.

    So many of the last ones are `late`: they come when the one before them has had its say.
    """

    def work(process: tuple[Place, dict]) -> str:
        try:
            stores.append(process_group._meet(*process, LIMIT))
        except UserError as error:
            return str(error)
        return ""

    stores = []  # kept until all threads have ended
    with ThreadPoolExecutor(len(processes)) as pool:
        first = len(processes) - late
        said = [pool.submit(work, process) for process in processes[:first]]
        if late:
            said[-1].result()
        said += [pool.submit(work, process) for process in processes[first:]]
        return [one.result() for one in said]  # raises any other error


def processes_of(
    machines: list[int], *, world_sizes=None, backends="gloo", gpus=None, flags=None
) -> list:
    """Describe processes; machines: how many each has."""
    port, size = free_port(), sum(machines)
    places = [(local, count) for count in machines for local in range(count)]
    world_sizes = world_sizes or [size] * size
    backends = [backends] * size if isinstance(backends, str) else backends
    return [
        (
            Place(rank, world_sizes[rank], local, count, "127.0.0.1", port),
            {
                "backend": backends[rank],
                "gpu": gpus and gpus[rank],
                "flags": flags[rank] if flags else {},
            },
        )
        for rank, (local, count) in enumerate(places)
    ]


def test_processes_that_fit_meet():
    assert meet(*processes_of([2, 2], gpus=["a", "b", "c", "d"], backends="nccl")) == [""] * 4
    assert meet(*processes_of([1, 1])) == [""] * 2


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            {"machines": [2, 1]},
            "the number of processes on a machine is 2 for rank [01](, 1)? and 1 for rank 2: st",
        ),
        (
            {"machines": [1, 1], "backends": ["nccl", "gloo"]},
            "the backend of torch.distributed is nccl for rank 0 and gloo for rank 1: let all",
        ),
        (
            {"machines": [3], "gpus": ["a", "b", "a"], "backends": "nccl"},
            "rank 0 and rank 2 would share the GPU a: start one process per GPU",
        ),
        (
            {"machines": [2], "flags": [{"--force": "True", "--resume": "False"}, {}]},
            "--force is True for rank 0 and None for rank 1: start all processes with the same fl",
        ),
        (  # --num-machines 2 on one machine of four
            {"machines": [1, 1, 1, 1], "world_sizes": [4, 2, 4, 4], "late": 2},
            "the number of processes is 4 for rank 0 and 2 for rank 1: start the same number",
        ),
    ],
)
def test_processes_that_do_not_fit_all_say_so_at_once(described, message):
    described = {"late": 0, **described}
    late = described.pop("late")
    said = meet(*processes_of(**described), late=late)
    assert len(set(said)) == 1
    assert re.match(message, said[0])


def test_a_process_that_is_started_twice_is_refused():
    first, second = processes_of([2])
    sentence = "two processes have the rank 1: start each process once, with its own RANK"
    said = set(meet(first, second, second))
    assert sentence in said
    assert said <= {sentence, ""}  # of a process that comes too late to stop the others


def test_a_process_whose_store_goes_says_so():
    """As when rank 0 is killed, or has refused this run before this process came."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = Place(1, 2, 1, 2, "127.0.0.1", store.port)
    with ThreadPoolExecutor(1) as pool:
        met = pool.submit(process_group._meet, place, FACTS, LIMIT)
        store.wait(["moco_d2/0/arrival/1"])
        del store
        with pytest.raises(UserError, match=rf"^rank 0 .*:{place.port} has ended before rank 1 "):
            met.result()


def test_a_process_that_waits_says_for_whom(monkeypatch, capsys):
    monkeypatch.setattr(process_group, "_REPORT_S", 0.01)
    monkeypatch.setattr(process_group, "_LAST_WORD_S", 0.01)  # as nobody comes to read it
    place = Place(0, 3, 0, 3, "127.0.0.1", free_port())
    with pytest.raises(UserError, match="^rank 1, 2 of 3 processes did not come to 127"):
        process_group._meet(place, FACTS, datetime.timedelta(seconds=1))
    waiting = capsys.readouterr().err
    assert "waiting for rank 1, 2 of 3 processes at 127.0.0.1" in waiting
    assert "unset WORLD_SIZE" in waiting


def test_nobody_at_the_address(capfd):
    place = Place(1, 2, 1, 2, "127.0.0.1", free_port())
    with pytest.raises(UserError, match="^rank 0 of 2 processes did not come to 127"):
        process_group._connect(place, datetime.timedelta(seconds=0.2), host=False)
    assert "frame #" not in capfd.readouterr().err


@pytest.fixture
def listening():
    """A port on which a program listens that never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("agent", [False, True])
def test_a_program_that_listens_and_never_answers_does_not_outlast_the_limit(
    listening, agent, monkeypatch, capsys
):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(agent))
    monkeypatch.setattr(process_group, "_REPORT_S", 0.5)
    place = Place(1, 2, 1, 2, "127.0.0.1", listening)
    who = "torchrun on the machine of rank 0, which has the store" if agent else "rank 0 of 2 proc"
    with pytest.raises(UserError, match=f"^{who}.* 127.0.0.1:{listening} within 2 s .*listens on"):
        process_group._connect(place, datetime.timedelta(seconds=2), host=False)
    assert f"waiting for rank 0 of 2 processes at 127.0.0.1:{listening} (a program listens" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("host", [True, False])
def test_an_address_that_is_not_known_is_named_without_torchs_stack(host, capfd):
    place = Place(int(not host), 2, int(not host), 2, "nobody.invalid", 29500)
    with pytest.raises(UserError, match=r"the address nobody\.invalid \(MASTER_ADDR .* not known"):
        process_group._connect(place, datetime.timedelta(seconds=0.2), host=host)
    assert "frame #" not in capfd.readouterr().err


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = Place(0, 2, 0, 2, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(UserError, match=r"cannot meet at 127.*: set MASTER_PORT"):
            process_group._connect(place, LIMIT, host=True)


def test_detectron2s_gloo_group_beside_nccl_has_our_timeout(monkeypatch):
    monkeypatch.setattr(comm, "_get_global_gloo_group", comm._get_global_gloo_group)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        compat.set_timeout_of_gloo_group(datetime.timedelta(seconds=7))
        assert comm._get_global_gloo_group() is dist.group.WORLD
        comm._get_global_gloo_group.cache_clear()
        monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
        compat.set_timeout_of_gloo_group(datetime.timedelta(seconds=7))
        group = comm._get_global_gloo_group()
        assert group is comm._get_global_gloo_group()
        assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 7
    finally:
        dist.destroy_process_group()


def ended(*words: object, **options) -> list[tuple[int, list[str]]]:
    """Exit code and `error:` lines of two processes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = start_processes(2, *words, **streams, **options)
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any("Traceback" in text for text in said), said
    lines = [[x for x in text.splitlines() if x.startswith("error: ")] for text in said]
    return [(process.returncode, each) for process, each in zip(processes, lines, strict=True)]


def test_an_error_of_one_process_ends_the_others_wherever_they_wait():
    assert ended(SUPPORT / "group_job.py", "rank_1_fails") == [
        (
            2,
            [
                "error: rank 1 of this run has ended (the disk of this machine is full): see its "
                "output, and start all processes again with --resume"
            ],
        ),
        (2, ["error: the disk of this machine is full"]),
    ]


def test_flags_that_differ_are_one_sentence_in_all_processes():
    tool = ROOT / "tools" / "train_net.py"
    words = ["--config-file", "voc_C4_random.yaml", *["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out"]]
    code = (
        "import os, runpy, sys; del sys.argv[0]; "
        "sys.argv[1:1] = ['--force'] * (os.environ['RANK'] == '1'); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    sentence = (
        "error: --force is False for rank 0 and True for rank 1: start all processes with the same "
        "flags"
    )
    assert ended("-c", code, tool, *words) == [(2, [sentence])] * 2


def in_two_folders(tmp_path: Path, *words: object) -> list[tuple[int, list[str]]]:
    """Run a tool in two processes, each in the folder that its rank names."""
    enter = "import os, runpy, sys; os.chdir(os.environ['RANK']); del sys.argv[0]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__')"
    return ended("-c", enter + run, *words, cwd=tmp_path)


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("pretrain", ["--config-file", "moco_v2_R50_200ep.yaml", "--resume"]),
        ("train_net", ["--config-file", "voc_C4_random.yaml", "--resume"]),
    ],
)
def test_an_output_folder_that_is_not_shared_is_one_sentence(tmp_path, tool, words):
    out = ["OUTPUT_DIR", "out", "MODEL.DEVICE", "cpu"]
    (tmp_path / "1" / "out").mkdir(parents=True)
    for rank in "01":
        (tmp_path / rank).mkdir(exist_ok=True)
    sentence = (
        f"error: OUTPUT_DIR {tmp_path}/0/out of rank 0 is another folder than OUTPUT_DIR "
        f"{tmp_path}/1/out of rank 1: give the absolute path of a folder that all machines share"
    )
    said = in_two_folders(tmp_path, ROOT / "tools" / f"{tool}.py", *words, *out)
    assert said == [(2, [sentence])] * 2
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
