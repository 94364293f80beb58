"""The runs that the campaign disturbs: commands that take seconds, and their results."""

import abc
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from support.small_network import SmallNetwork
from support.toy_data import SMALL_DETECTOR, make_class_folders, make_voc

from fault_kinds.jobs import Operations, import_as_well, note_imports, run
from moco_d2.checkpoint.io import load_checkpoint
from moco_d2.checkpoint.mapping import Architecture, build_torchvision
from moco_d2.errors import UserError
from moco_d2.pretrain.model import moco

# These metrics depend on the clock.
TIMES = frozenset({"time", "data_time", "eta_seconds"})
POINTER = "last_checkpoint"
_IMPORTED: set[str] = set()  # tools whose modules this process has imported
_NUMBERED = re.compile(r"(checkpoint_|model_)\d+\.pth")


@functools.cache
def ground() -> Path:
    """Return the folder with the input of all runs, which is removed at the end."""
    return Path(_ground().name)


@functools.cache
def _ground() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="moco_d2_faults_")


@functools.cache
def class_folders() -> Path:
    """Return a folder of 24 images in two classes."""
    return make_class_folders(ground() / "images", 12)


@functools.cache
def held_out_folders() -> Path:
    """Return a folder of 8 other images in the same two classes."""
    return make_class_folders(ground() / "held_out", 4, seed=1)


@functools.cache
def voc_year() -> Path:
    """Return a VOC year with 6 images per split."""
    return make_voc(ground() / "VOC2007")


def words_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as KEY VALUE words."""
    return [str(word) for pair in settings.items() for word in pair]


def small_network() -> None:
    """Make pretraining build a network of kilobytes, since only the other code is tested."""
    moco.build_encoder = lambda arch, *, dim, mlp=False, norm_layer=None, **widths: SmallNetwork(
        dim, mlp=mlp, norm_layer=norm_layer
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """The undisturbed run.

    Attributes:
        seconds: Its duration.
        operations: The number of its changes of the folder.
        result: Its result, see Workload.result.
    """

    seconds: float
    operations: int
    result: Any


class Workload(abc.ABC):
    """A command that writes into a folder.

    Attributes:
        name: The name in the log.
        tool: The file in tools/.
    """

    name: str
    tool: str

    @abc.abstractmethod
    def words(self, out: Path) -> list[str]:
        """Return its arguments, which are the same for the first start and every restart."""

    @abc.abstractmethod
    def result(self, out: Path) -> Any:
        """Return all results of a finished run that do not depend on the clock.

        They are nested dicts, tensors and plain values.
        """

    @abc.abstractmethod
    def broken(self, out: Path) -> Iterator[str]:
        """Yield the files of a killed run that are half-written under a final name."""

    def before(self) -> None:  # noqa: B027 - most need nothing
        """Prepare the process of the run, which calls this first."""

    def start_words(self, out: Path) -> dict[str, Any]:
        """Return the arguments of a job: fault_kinds/jobs.py."""
        return {"tool": self.tool, "words": self.words(out), "log": out.with_suffix(".log")}

    @functools.cached_property
    def reference_folder(self) -> Path:
        """Return the folder of the undisturbed run."""
        self.reference  # noqa: B018 - starts the run
        return self._reference_folder

    @functools.cached_property
    def reference(self) -> Reference:
        """Run it once without disturbance."""
        folder = Path(tempfile.mkdtemp(dir=ground()))
        self._reference_folder = folder / "out"
        if self.tool not in _IMPORTED:
            _IMPORTED.add(self.tool)

            def first() -> None:
                self.before()
                note_imports(folder / "imports")

            run(**self.start_words(folder / "first"), before=first)
            import_as_well(folder / "imports")
        operations = Operations(folder / "out")

        def before() -> None:
            self.before()
            operations.watch()

        job = run(**self.start_words(folder / "out"), before=before)
        return Reference(job.seconds, operations.count, self.result(folder / "out"))


class Training(Workload):
    """A run with checkpoints.

    Attributes:
        checkpoints: Pattern of the checkpoints' names.
        config: Name of a packaged config.
        settings: Overrides of the config.
    """

    checkpoints: str

    def __init__(self, name: str, config: str, settings: dict[str, Any]):
        self.name = name
        self.config = config
        self.settings = settings

    def words(self, out: Path) -> list[str]:
        settings = {**self.settings, "OUTPUT_DIR": out}
        return ["--config-file", self.config, "--resume", *words_of(settings)]

    def broken(self, out: Path) -> Iterator[str]:
        for path in sorted(out.glob(self.checkpoints)):
            try:
                load_checkpoint(path)
            except UserError as error:
                yield str(error)
        pointer = out / POINTER
        if pointer.exists() and not (out / pointer.read_text()).is_file():
            yield f"{pointer} names {pointer.read_text()!r}, which does not exist"
        for path in (out / "config.yaml", out / "record.json"):
            if path.exists():
                try:
                    yaml.safe_load(path.read_text())
                    if not path.read_text().endswith("\n"):
                        yield f"{path} is cut short"
                except yaml.YAMLError as error:
                    yield f"{path}: {error}"

    def lines(self, out: Path) -> list[dict[str, Any]]:
        """Return metrics.json sorted by iteration, since Detectron2 writes lines in any order."""
        lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
        kept = ({k: v for k, v in line.items() if k not in TIMES} for line in lines)
        return sorted(kept, key=lambda line: line["iteration"])

    def left(self, out: Path) -> list[str]:
        """Return the names of the final files that do not depend on the moment of a stop.

        Numbered checkpoints depend on it, and so do TensorBoard's files: each start adds one.
        """
        names = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        return sorted(n for n in names if "tfevents" not in n and not _NUMBERED.match(n))


def _drop_times(metrics: dict[str, Any]) -> None:
    metrics["smoothed"] = sorted(set(metrics["smoothed"]) - TIMES)
    for name in TIMES:
        metrics["histories"].pop(name, None)


class Pretraining(Training):
    tool = "pretrain.py"
    checkpoints = "checkpoint_*.pth.tar"

    def __init__(self, name: str, **settings: Any):
        tiny = {
            "DATASETS.TRAIN": f"('{class_folders()}',)",
            "MODEL.DEVICE": "cpu",
            "SEED": 1,
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 8,
            "SOLVER.CHECKPOINT_PERIOD": 5,
            "SOLVER.MAX_ITER": 33,
            "MOCO.REFERENCE_BATCH": 0,
            "MOCO.MONITOR.EXPECTED_LOSS": "()",
            "MOCO.EPOCHS": 0,
            "MOCO.ENCODER.ARCH": "resnet18",
            "MOCO.ENCODER.DIM": 16,
            "MOCO.DICTIONARY.SIZE": 20,
            "MOCO.BN_SPLITS": 2,
            "MOCO.AUGMENTATION.SIZE": 32,
        }
        super().__init__(name, "moco_v2_R50_200ep.yaml", tiny | settings)

    def before(self) -> None:
        small_network()

    def result(self, out: Path) -> Any:
        checkpoint = torch.load(out / "checkpoint_final.pth.tar", weights_only=True)
        del checkpoint["moco_d2"]["config"]["OUTPUT_DIR"]
        _drop_times(checkpoint["moco_d2"]["metrics"])
        return {"checkpoint": checkpoint, "metrics": self.lines(out), "files": self.left(out)}


class FineTuning(Training):
    tool = "train_net.py"
    checkpoints = "model_*.pth"

    def __init__(self, name: str, **settings: Any):
        small = dict(zip(SMALL_DETECTOR[::2], SMALL_DETECTOR[1::2], strict=True))
        tiny = {
            "DATASETS.TRAIN": f"('voc:{voc_year()}:trainval',)",
            "DATASETS.TEST": f"('voc:{voc_year()}:test',)",
            "MODEL.DEVICE": "cpu",
            "SOLVER.MAX_ITER": 7,
            "SOLVER.STEPS": "(3,5)",
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "TEST.EVAL_PERIOD": 3,
            # With this network a checkpoint has 5 MB.
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        }
        super().__init__(name, "voc_C4_random.yaml", small | tiny | settings)

    def result(self, out: Path) -> Any:
        state = torch.load(out / "model_final.pth", weights_only=True)
        for name in ("started", "seconds"):
            state["record"].pop(name)
        state["record"]["config"].pop("OUTPUT_DIR")
        _drop_times(state["trainer"]["moco_d2"]["metrics"])
        record = json.loads((out / "record.json").read_text())
        kept = {key: record[key] for key in ("metrics", "history", "coverage", "schedule")}
        return {
            "checkpoint": state,
            "metrics": self.lines(out),
            "record": kept,
            "files": self.left(out),
        }


class LinearEvaluation(Workload):
    """A linear evaluation: of a classifier or a whole network on images, or on cached features."""

    tool = "linear_eval.py"

    def __init__(self, name: str, *flags: str):
        """
        Args:
            name: The name in the log.
            flags: The flags of the protocol.
        """
        self.name = name
        self._flags = flags

    @functools.cached_property
    def images(self) -> Path:
        """Return a folder with train/ and val/, with two classes each."""
        folder = ground() / "labeled"
        if not folder.exists():
            make_class_folders(folder / "train", 11)
            make_class_folders(folder / "val", 5, seed=1)
        return folder

    def words(self, out: Path) -> list[str]:
        data = ["random", "--arch", "resnet18", "--data", str(self.images), "--output", str(out)]
        sizes = ["--size", "32", "--batch-size", "8", "--workers", "2", "--device", "cpu"]
        return [*data, *sizes, "--resume", *self._flags]

    def result(self, out: Path) -> Any:
        result = json.loads((out / "result.json").read_text())
        kept = ("accuracy", "settings", "backbone_sha256", "backbone_images", "effective_lr")
        content: dict[str, Any] = {"result": {key: result[key] for key in kept}}
        for file in sorted(out.glob("*.pth*")):
            content[file.name] = torch.load(file, weights_only=True)
        return content

    def broken(self, out: Path) -> Iterator[str]:
        for path in sorted(out.glob("*.pth*")):
            try:
                load_checkpoint(path)
            except UserError as error:
                yield str(error)


class Converting(Workload):
    name = "convert"
    tool = "convert.py"

    @functools.cached_property
    def source(self) -> Path:
        """Return a MoCo checkpoint of a slim ResNet-50."""
        torch.manual_seed(0)
        network = build_torchvision(Architecture(50, width_factor=1 / 16))
        file = ground() / "moco.pth.tar"
        names = {f"module.encoder_q.{k}": v for k, v in network.state_dict().items()}
        torch.save({"epoch": 1, "arch": "resnet50", "state_dict": names}, file)
        return file

    def words(self, out: Path) -> list[str]:
        paths = (self.source, out / "w.pth", "--report", out / "r.json")
        return [*map(str, paths), "--emit-config", str(out / "w.yaml")]

    def result(self, out: Path) -> Any:
        # The emitted config contains the folder, which differs between runs.
        return {
            path.name: path.read_bytes().replace(str(out).encode(), b"OUT")
            for path in sorted(out.iterdir())
            if path.is_file()
        }

    def broken(self, out: Path) -> Iterator[str]:
        whole = self.reference.result if out.is_dir() else {}
        for path in sorted(out.iterdir()) if out.is_dir() else ():
            if not path.name.startswith(".") and self.result(out)[path.name] != whole[path.name]:
                yield f"{path} is not what an undisturbed conversion writes"


class Tables(Converting):
    """A table of nine records, which replaces an older file."""

    name = "table"
    tool = "benchmark.py"
    FORMATS = ("markdown", "csv", "latex", "html")

    def __init__(self, fine_tuning: FineTuning, format: str):
        """
        Args:
            fine_tuning: The run from whose record the nine records are made.
            format: The format of the table.
        """
        self.name = f"table as {format}"
        self.format = format
        self._fine_tuning = fine_tuning

    @functools.cached_property
    def records(self) -> Path:
        """Return records of three initializations with three seeds each, made from a real one."""
        folder = Path(tempfile.mkdtemp(dir=ground())) / "out"
        run(**self._fine_tuning.start_words(folder), before=self._fine_tuning.before)
        real = (folder / "record.json").read_text()
        for i, initialization in enumerate(("random", "supervised", "moco")):
            for seed in range(3):
                record = json.loads(real)
                record["run"] |= {"initialisation": initialization, "seed": seed}
                value = 50.0 + 3 * i + 0.1 * seed
                record["metrics"]["bbox"] = dict.fromkeys(("AP", "AP50", "AP75"), value)
                path = ground() / "records" / f"{initialization}{seed}" / "record.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record))
        return ground() / "records"

    def words(self, out: Path) -> list[str]:
        file = str(out / f"table.{self.format}")
        return ["table", str(self.records), "--format", self.format, "--out", file]


class BenchmarkRun(Workload):
    """`tools/benchmark.py run` with a suite of two fine-tuning runs, one after the other."""

    name = "suite of two runs"
    tool = "benchmark.py"

    def __init__(self):
        self._run = FineTuning("voc_C4")

    @functools.cached_property
    def suite(self) -> Path:
        """Return the suite's YAML file."""
        shorter = {"SOLVER.MAX_ITER": 4, "SOLVER.STEPS": "(3,)", "TEST.EVAL_PERIOD": 0}
        content = {
            "title": "two runs",
            "tasks": ["voc_C4"],
            "initializations": ["random"],
            "seeds": [1, 2],
            "overrides": self._run.settings | shorter,
        }
        file = ground() / "two.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    @functools.cached_property
    def other_suite(self) -> Path:
        """Return the file of a suite with other runs."""
        content = yaml.safe_load(self.suite.read_text())
        file = ground() / "three.yaml"
        file.write_text(yaml.safe_dump(content | {"title": "one run", "seeds": [3]}))
        return file

    def words(self, out: Path) -> list[str]:
        suite = ["run", str(self.suite), "--folder", str(out)]
        return [*suite, "--gpus-per-run", "0", "--jobs", "1"]

    def result(self, out: Path) -> Any:
        return {
            str(record.parent.relative_to(out)): self._run.result(record.parent)
            for record in sorted(out.rglob("record.json"))
        }

    def broken(self, out: Path) -> Iterator[str]:
        for folder in sorted({file.parent for file in out.rglob("model_*.pth")}):
            yield from self._run.broken(folder)
