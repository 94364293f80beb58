"""What the steps of gpu.py share: sizes, the report of a step, trainers and processes."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
V1, V2 = "moco_v1_R50_200ep.yaml", "moco_v2_R50_200ep.yaml"
V3, V3_VIT = "moco_v3_R50_100ep.yaml", "moco_v3_ViT_S_300ep.yaml"


class SkippedError(Exception):
    """A step cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of all steps."""

    arch: str
    width: float  # factor on the channels of the network
    vit_width: float  # the same of a ViT
    vit_hidden: int  # width of the hidden layers of a ViT's heads
    side: int  # pixels of a view
    batch: int  # of the checks
    queue: int
    lr: float  # differences of rounding grow with it, and with the depth of the network
    splits: int  # groups of BatchNorm
    supervised: str  # torchvision's network, which steps are measured beside
    batches: tuple[int, ...]  # of the measured steps
    steps: int  # in a timed turn
    turns: int
    run_arch: str  # of runs through tools/pretrain.py
    run_steps: int
    run_batch: int
    workers: tuple[int, ...]
    jpegs: int
    fed: int  # batches that are read in a measurement of feeding
    detector_side: int


GPU = Size(
    **{
        "arch": "resnet50",
        "width": 1.0,
        "vit_width": 1.0,
        "vit_hidden": 4096,
        "side": 96,
        "batch": 64,
        "queue": 4096,
        "lr": 0.001,
        "splits": 8,
    },
    **{"supervised": "resnet50", "batches": (256, 32), "steps": 10, "turns": 5},
    **{"run_arch": "resnet18", "run_steps": 400, "run_batch": 64},
    **{"workers": (8, 16), "jpegs": 4096, "fed": 16, "detector_side": 512},
)
CPU = Size(
    **{
        "arch": "resnet18",
        "width": 0.125,
        "vit_width": 0.125,
        "vit_hidden": 512,
        "side": 32,
        "batch": 16,
        "queue": 64,
        "lr": 0.003,
        "splits": 2,
    },
    **{"supervised": "shufflenet_v2_x0_5", "batches": (4,), "steps": 1, "turns": 1},
    **{"run_arch": "resnet18", "run_steps": 24, "run_batch": 8},
    **{"workers": (1, 2), "jpegs": 16, "fed": 2, "detector_side": 64},
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The surroundings of a step.

    Attributes:
        device: cuda or cpu.
        folder: An empty folder.
        file: The lines of the report.
        ends: The time.monotonic() at which the step is stopped.
    """

    device: str
    folder: Path
    file: Path
    ends: float

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def size(self) -> Size:
        return GPU if self.on_gpu else CPU

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    @property
    def processes(self) -> Any:
        """Return multiprocessing's context: a forked process could not use CUDA's driver."""
        return multiprocessing.get_context("spawn" if self.on_gpu else "fork")

    def note(self, sentence: str) -> None:
        """Report a sentence."""
        self._write("notes", sentence)

    def check(self, what: str, value: float, **limit: float) -> None:
        """Report a figure with a limit (harness.check), without which the step has failed."""
        self._write("checks", _figure(what, value, limit))

    def holds(self, what: str, is_so: bool) -> None:
        """Report whether something is so, without which the step has failed."""
        self.check(what, float(is_so), unit="of 1", at_least=1)

    def goal(self, what: str, value: float, **limit: float) -> None:
        """Report a measured figure. On a CPU it has no limit, as its sizes only show that it runs.

        A missed limit is no failure of the step.
        """
        if not self.on_gpu:
            limit.pop("at_least", None), limit.pop("at_most", None)
        self._write("figures", _figure(what, value, limit))

    def _write(self, kind: str, value: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([kind, value]) + "\n")

    def perform(self, step: str) -> None:
        """Run a step ``module:function`` as a process of its own, and report how it ends."""
        os.setsid()  # its end takes all that it has started with it
        log = os.open(self.file.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        self.folder.mkdir()
        try:
            module, function = step.split(":")
            try:
                __import__(module)
            except ModuleNotFoundError as error:
                raise SkippedError(f"{error}: --wheels lists what is missing") from error
            getattr(sys.modules[module], function)(self)
            self._write("end", "done")
        except SkippedError as reason:
            self.note(str(reason))
            self._write("end", "skipped")
        except BaseException:
            self._write("error", traceback.format_exc()[-4000:])

    def started(self, job: Callable[..., None], *arguments: Any, log: str = "") -> Any:
        """Start a function in a process, whose output goes to a file of this folder."""
        words = (self.folder / (log or job.__name__), job, *arguments)
        process = self.processes.Process(target=_with_log, args=words)
        process.start()
        return process

    def ended(self, process: Any, seconds: float = 600) -> int | None:
        """Return the exit code of a process. It is None if the process outlasts its time."""
        process.join(max(0.1, min(seconds, self.seconds_left - 1)))
        return process.exitcode


def _figure(what: str, value: float, limit: dict[str, Any]) -> dict[str, Any]:
    from harness import check

    return check(what, value, **limit)


def _with_log(log: Path, job: Callable[..., None], *arguments: Any) -> None:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    job(*arguments)


def tool(script: str, words: Sequence[object], deterministic: bool = False) -> None:
    """Run a script of tools/, in a process of its own."""
    import torch

    if deterministic:
        # Not all operators have such a form. Where one has none, torch warns.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    path = ROOT / "tools" / script
    sys.argv = [str(path), *map(str, words)]
    runpy.run_path(str(path), run_name="__main__")


def words_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as words of a command line."""
    return [str(word) for pair in settings.items() for word in pair]


def write_images(folder: Path, count: int) -> Path:
    """Write a class folder of tiny images, of two classes."""
    from PIL import Image

    for i in range(count):
        file = folder / ("dark", "light")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(file)
    return folder


def few_blocks(run: Run) -> None:
    """On a CPU, give a ResNet-18 of this process half of its blocks, which compile in half of the
    time.
    """
    from moco_d2.resnet import BASIC_DEPTHS

    if not run.on_gpu:
        BASIC_DEPTHS[18] = (1, 1, 1, 1)


def pretrainer(
    run: Run,
    config: str,
    settings: dict[str, Any],
    *,
    batch: int,
    device: str | None = None,
    kind: Any = None,
) -> Any:
    """Return a trainer that is ready for its first step. It is used without the hooks of a run."""
    from moco_d2.config.load import load_config
    from moco_d2.engine.launch import seed
    from moco_d2.pretrain.pretrainer import Pretrainer

    common = {
        "DATASETS.TRAIN": (str(write_images(run.folder / f"images{batch}", batch)),),
        "OUTPUT_DIR": run.folder / "out",
        "MODEL.DEVICE": device or run.device,
        "SEED": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": run.size.lr,
        "MOCO.REFERENCE_BATCH": 0,
        "MOCO.MONITOR.EXPECTED_LOSS": (),
        "MOCO.ENCODER.ARCH": run.size.arch,
        "MOCO.ENCODER.WIDTH_FACTOR": run.size.width,
        "MOCO.DICTIONARY.SIZE": run.size.queue,
        "MOCO.AUGMENTATION.SIZE": run.size.side,
    }
    cfg = load_config(config, words_of(common | settings))
    seed(cfg)
    few_blocks(run)
    trainer = (kind or Pretrainer)(cfg)
    trainer.model.train()
    trainer.iter = trainer.start_iter = 0
    return trainer


@contextlib.contextmanager
def graphs(run: Run, mode: str | None = None) -> Iterator[None]:
    """Compile in a mode of torch.compile. On a CPU, compile to a graph of torch's own operators:
    C++ code would take minutes.
    """
    from unittest import mock

    from torch import nn

    compile_ = nn.Module.compile
    with contextlib.ExitStack() as stack:
        changes = {"mode": mode} if run.on_gpu else {"backend": "eager"}
        if not run.on_gpu or mode:

            def compiled(self: Any, *args: Any, **kwargs: Any) -> None:
                compile_(self, *args, **{**kwargs, **changes})

            stack.enter_context(mock.patch.object(nn.Module, "compile", compiled))
        yield


def release(run: Run) -> None:
    """Free what the last measurement has left."""
    import gc

    import torch

    gc.collect()
    torch._dynamo.reset()
    if run.on_gpu:
        torch.cuda.empty_cache()


def wait_for(run: Run, condition: Callable[[], bool]) -> bool:
    """Return whether a condition comes true in time."""
    while run.seconds_left > 1:
        if condition():
            return True
        time.sleep(0.01)
    return False
