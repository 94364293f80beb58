"""The run record, ``record.json``, which every fine-tuning run writes.

`RunRecord` is its only definition. The writers build it, the reader converts a file to it, and
docs/records.md and the JSON schema are rendered from it. `upgrade` converts an older version to
the newest first, so the rest of the package knows only one version.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, UnsetType, field

from moco_d2.records.fields import (
    LARGEST,
    LONGEST_NAME,
    Amount,
    Count,
    Name,
    Number,
    Part,
    Percent,
    Points,
    Positive,
    Sha256,
    Text,
    Whole,
    about,
)
from moco_d2.version import __version__

RECORD_FILE = "record.json"
#: Increase it for a change that old readers would misread, and for a new field without a default.
SCHEMA_VERSION: Final = 2


class Origin(Part, frozen=True, kw_only=True):
    how: Annotated[
        Literal["trained", "imported"],
        about("Says whether moco_d2 trained the run or imported it from another Detectron2."),
    ]
    source: Annotated[
        Text | None,
        about("The folder that an imported run comes from; null for a run of our own."),
    ]


class Run(Part, frozen=True, kw_only=True, rename={"initialization": "initialisation"}):
    config_name: Annotated[str, about("The name of the config file, without `.yaml`.")]
    task: Annotated[Name, about("The task of the grid's cell.")]
    initialization: Annotated[Name, about("The initialization of the grid's cell.")]
    seed: Annotated[Whole, about("The seed; a negative seed means a random one, as in Detectron2.")]
    started: Annotated[
        Text | None, about("When the run began (ISO 8601); null for an imported run.")
    ]
    finished: Annotated[
        Text,
        about(
            "When the run ended (ISO 8601); for an imported run, when its metrics.json was last "
            "changed."
        ),
    ]
    seconds: Annotated[
        Amount | None,
        about("Wall-clock time with evaluations, without the time between a stop and a resume."),
    ]
    command: Annotated[
        Text | UnsetType | None, about("The command line; null if the run was started without one.")
    ] = UNSET


class Config(Part, frozen=True, kw_only=True):
    #: Only DATASETS is checked. Checking Detectron2's 300 keys would take longer than all the rest.
    resolved: Annotated[
        dict[str, Any],
        Meta(
            description="Every key of the config, after all scaling.",
            extra_json_schema={
                "properties": {
                    "DATASETS": {
                        "type": "object",
                        "properties": {
                            part: {"type": "array", "items": {"type": "string", "minLength": 1}}
                            for part in ("TRAIN", "TEST")
                        },
                        "required": ["TRAIN", "TEST"],
                    }
                },
                "required": ["DATASETS"],
            },
        ),
    ]
    sha256: Annotated[Sha256, about("The fingerprint of `config.resolved`.")]
    matched_sha256: Annotated[
        Sha256,
        about(
            "The fingerprint without `MODEL.WEIGHTS`, `SEED` and `OUTPUT_DIR`, which is equal for "
            "matched runs."
        ),
    ]

    def __post_init__(self) -> None:
        datasets = self.resolved.get("DATASETS")
        for part in ("TRAIN", "TEST"):
            names = datasets.get(part) if isinstance(datasets, dict) else None
            if type(names) is not list or not all(type(n) is str and n for n in names):
                raise ValueError(f"resolved.DATASETS.{part}: must be a list of dataset names")


class Data(Part, frozen=True, kw_only=True):
    train_images: Annotated[
        Count | None, about("The number of training images, without images that were left out.")
    ]
    test_images: Annotated[
        dict[str, Count], about("The number of images of each test set, by its name.")
    ]
    train_content: Annotated[
        Text | UnsetType,
        about(
            "The number of training images, and a fingerprint of their names (without folders), "
            "sizes, classes and boxes. With `MOCO.LABEL_FRACTION` they are the drawn images."
        ),
    ] = UNSET


class Weights(Part, frozen=True, kw_only=True):
    file: Annotated[Text, about("The name of the weights file.")]
    sha256: Annotated[Sha256 | None, about("The sha256 of the weights file.")]
    provenance: Annotated[
        dict[str, Any] | None, about("The converter's report, which is inside the weights file.")
    ]


class Coverage(Part, frozen=True, kw_only=True):
    expected: Annotated[
        Count,
        about("The number of the model's tensors that weights can fill; 0 if it is unknown."),
    ]
    loaded: Annotated[Count, about("The number of these tensors that were loaded.")]


class Schedule(Part, frozen=True, kw_only=True):
    """The schedule as it ran, scaled to its processes."""

    world_size: Annotated[Positive | None, about("The number of processes.")]
    ims_per_batch: Annotated[Positive, about("The images of one step, over all processes.")]
    base_lr: Annotated[Number, about("The base learning rate.")]
    max_iter: Annotated[Positive, about("The number of training steps.")]
    steps: Annotated[list[Count], about("The iterations at which the learning rate is lowered.")]
    norm: Annotated[str, about("The norm of the backbone.")]
    notes: Annotated[list[str], about("Sentences about values that were scaled.")]
    accumulation: Annotated[
        Positive | UnsetType, about("The number of passes of one step (gradient accumulation).")
    ] = UNSET
    warmup_iters: Annotated[Count | UnsetType, about("The steps of the warm-up.")] = UNSET
    eval_period: Annotated[
        Count | UnsetType, about("The steps between evaluations; 0: only at the end.")
    ] = UNSET
    checkpoint_period: Annotated[Count | UnsetType, about("The steps between checkpoints.")] = UNSET
    batchnorm_images: Annotated[
        Count | UnsetType | None,
        about("The images of one BatchNorm batch; null where BatchNorm is frozen."),
    ] = UNSET


class ResumeChange(Part, frozen=True, kw_only=True):
    iteration: Count
    key: Text
    before: Text
    after: Text


class PreflightFinding(Part, frozen=True, kw_only=True):
    key: str
    value: str
    message: str


class Preflight(Part, frozen=True, kw_only=True):
    forced: Annotated[bool, about("Says whether `--force` overruled the preflight check.")]
    findings: Annotated[
        list[PreflightFinding],
        about("The overruled findings: `key` is set to `value`, and `message` says what is wrong."),
    ]


class Hardware(Part, frozen=True, kw_only=True):
    device: Annotated[str | UnsetType, about("The device, `cuda` or `cpu`.")] = UNSET
    name: Annotated[str | UnsetType, about("The name of the device.")] = UNSET
    cpu_count: Annotated[int | UnsetType | None, about("The number of CPU cores.")] = UNSET


class Cost(Part, frozen=True, kw_only=True):
    seconds_per_iteration: Annotated[
        Amount | None, about("The median time of a training step, without evaluations.")
    ]
    peak_memory_gib: Annotated[Amount | None, about("The peak memory of the main process, in GiB.")]
    evaluation_seconds: Annotated[Amount | None, about("The time of the last evaluation.")]
    peak_memory_of: Annotated[
        Literal["gpu", "process", None] | UnsetType,
        about(
            "The kind of that memory: `gpu` is memory of torch on its GPU, and `process` is, on a "
            "CPU, the largest resident set."
        ),
    ] = UNSET


class BoxErrors(Part, frozen=True, kw_only=True):
    """The AP50 of a test set, and the loss of AP50 for each type of error.

    The types are those of TIDE (Bolya et al., 2020, section 2).
    """

    AP50: Percent | None
    Cls: Points | None
    Loc: Points | None
    Both: Points | None
    Dupe: Points | None
    Bkg: Points | None
    Miss: Points | None


class PerImageFile(Part, frozen=True):
    """A file that records.image_matches reads, in the folder of the record."""

    file: Annotated[str, Meta(pattern=r"^per_image(_[0-9]{1,3})?\.npz$", max_length=30)]
    sha256: Sha256
    bytes: Count


ERROR_TYPES = BoxErrors.__struct_fields__[1:]

#: For example ``{"iteration": 12000, "bbox/AP": 50.0}``. All fields except iteration are
#: percentages. A Struct cannot express this, so RunRecord checks it.
Evaluation = Annotated[
    dict[str, Count | Percent | None],
    Meta(
        extra_json_schema={
            "properties": {"iteration": {"type": "integer", "minimum": 0, "maximum": LARGEST}},
            "required": ["iteration"],
        }
    ),
]


class RunRecord(Part, frozen=True, kw_only=True):
    """The record of one fine-tuning run."""

    schema_version: Annotated[Literal[2], about("The version of this form.")]
    kind: Annotated[Literal["transfer"], about("Tells this record from those of other tools.")]
    origin: Origin
    run: Run
    config: Config
    data: Data | UnsetType = UNSET
    weights: Annotated[
        Weights | None,
        about("The weights that the run started from; null for random initialization."),
    ]
    coverage: Coverage
    schedule: Schedule
    changes: Annotated[
        list[ResumeChange],
        about(
            "The settings that changed when the run was resumed: after `iteration` iterations, "
            "`key` changed from `before` to `after`. A table marks such a run."
        ),
    ] = field(default_factory=list)
    preflight: Preflight
    environment: Annotated[
        dict[str, str], about("The versions of Python, torch, Detectron2 and other packages.")
    ]
    hardware: Hardware
    cost: Cost
    metrics: Annotated[
        dict[str, dict[str, Percent | None]],
        Meta(
            description='The final metrics in percent, `{"bbox": {"AP": 55.9}}`; with several test '
            'sets `{"voc_2007_test/bbox": ...}`, and without a test set `{}`.',
        ),
    ]
    history: Annotated[
        list[Evaluation],
        about('Every evaluation, `[{"iteration": 12000, "bbox/AP": 50.0}]`, in percent.'),
    ]
    per_image: Annotated[
        dict[str, PerImageFile],
        about(
            "For each test set, the `file` beside the record that has what AP needs of each image, "
            "its `sha256` and its size in `bytes`."
        ),
    ] = field(default_factory=dict)
    errors: Annotated[
        dict[str, BoxErrors] | None,
        about(
            "For each test set, AP50 and the AP50 points that each type of error costs (TIDE): "
            "`Cls`, `Loc`, `Both`, `Dupe`, `Bkg`, `Miss`. Null if it was not measured."
        ),
    ]

    def __post_init__(self) -> None:
        for i, evaluation in enumerate(self.history):
            if type(evaluation.get("iteration")) is not int:
                raise ValueError(f'history[{i}]: the integer field "iteration" is missing')
            for name, value in evaluation.items():
                if value is not None and value > 100 and name != "iteration":
                    raise ValueError(f"history[{i}].{name}: Expected `float` <= 100.0, got {value}")


def _to_version_2(content: dict[str, Any]) -> dict[str, Any]:
    """Add the fields that version 1 lacks: it had no imported runs, and no cost."""
    return {
        **content,
        "schema_version": 2,
        "origin": {"how": "trained", "source": None},
        "cost": {
            "seconds_per_iteration": None,
            "peak_memory_gib": None,
            "evaluation_seconds": None,
        },
        "errors": None,
    }


# The function of a version converts a record to the next version.
_UPGRADES = {1: _to_version_2}


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of any version to SCHEMA_VERSION, without checking its parts.

    Raises:
        ValueError: If the version is invalid, or newer than this package.
    """
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"$.schema_version must be a positive integer, got {version!r:.40}")
    if version > SCHEMA_VERSION:
        environment = content.get("environment")
        writer = environment.get("moco_d2") if isinstance(environment, dict) else None
        named = f" {writer}" if isinstance(writer, str) and len(writer) < LONGEST_NAME else ""
        raise ValueError(
            f"its schema has version {version}, but moco_d2 {__version__} reads versions 1 to "
            f"{SCHEMA_VERSION}; read it with the moco_d2{named} that wrote it, or a newer one"
        )
    while version < SCHEMA_VERSION:
        content = _UPGRADES[version](content)
        version += 1
    return content
