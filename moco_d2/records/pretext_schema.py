"""The linear-evaluation record, ``result.json``: the accuracy of a checkpoint, and its pretraining.

`LinearEvalRecord` is its only definition. tools/linear_eval.py builds it, and
moco_d2/benchmark/records/pretext_records.py converts a file to it.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from moco_d2.records.fields import Count, Number, Part, Percent, Sha256, ShortText, about

RESULT_FILE = "result.json"
KIND: Final = "pretext"
#: Version 2 added the pretraining run, the hardware and the name of the data. In version 1 the kind
#: was "linear_eval".
SCHEMA_VERSION: Final = 2

Protocol = Literal["linear", "linear-fast", "knn", "finetune"]


class Checkpoint(Part, frozen=True, kw_only=True):
    source: Annotated[ShortText, about("The name of the checkpoint, or `random`.")]
    sha256: Annotated[ShortText | None, about("The sha256 of the file; null for `random`.")]
    family: Annotated[ShortText, about("The kind of checkpoint (see checkpoints.md).")]
    branch: Annotated[ShortText | None, about("The encoder, `query` or `key`.")]
    architecture: Annotated[ShortText, about("The network, `ResNet-50`.")]


class Pretraining(Part, frozen=True, kw_only=True):
    """The pretraining run, see moco_d2.checkpoint.pretraining.pretraining_run."""

    config: Annotated[
        dict[str, Any],
        Meta(
            description="`MOCO`, `SOLVER`, `DATASETS` and `SEED` of the config as it ran.",
            extra_json_schema={"required": ["MOCO", "SOLVER", "SEED"]},
        ),
    ]
    config_sha256: Annotated[Sha256, about("The fingerprint of this config.")]
    iterations: Annotated[Count, about("The number of training steps.")]
    images: Annotated[Count | None, about("The number of images of the dataset.")]
    processes: Annotated[Count | None, about("The number of processes.")]
    version: Annotated[ShortText, about("The version of moco_d2.")]
    environment: Annotated[dict[str, Any], about("The versions of Python, torch and others.")]
    hardware: Annotated[dict[str, Any], about("The device, its name and the CPU cores.")]
    seconds_per_iteration: Annotated[Number | None, about("The median time of the last steps.")]
    peak_memory_gib: Annotated[Number | None, about("The peak memory of the main process's GPU.")]

    def __post_init__(self) -> None:
        for section in ("MOCO", "SOLVER", "SEED"):
            if section not in self.config:
                raise ValueError(f'config: the field "{section}" is missing')


class Images(Part, frozen=True, kw_only=True):
    name: Annotated[ShortText | None, about("The name of the folder that holds both sets.")]
    train_images: Annotated[Count, about("The number of training images.")]
    val_images: Annotated[Count, about("The number of validation images.")]
    classes: Annotated[Count, about("The number of classes.")]


class Accuracy(Part, frozen=True, kw_only=True):
    top1: Annotated[Percent, about("The top-1 accuracy in percent.")]
    top5: Annotated[Percent | UnsetType, about("The top-5 accuracy in percent.")] = UNSET


class LinearEvalRecord(Part, frozen=True, kw_only=True):
    """The result of one linear evaluation."""

    schema_version: Annotated[Literal[2], about("The version of this form.")]
    kind: Annotated[Literal["pretext"], about("Tells this record from those of other tools.")]
    checkpoint: Checkpoint
    pretraining: Annotated[
        Pretraining | None,
        about("The run that made the checkpoint; null if it was not tools/pretrain.py."),
    ]
    protocol: Annotated[
        Protocol,
        about(
            "The protocol of the evaluation. `knn` compares features of the backbone, as "
            "`MOCO.KNN.PROTOCOL backbone` does."
        ),
    ]
    settings: Annotated[dict[str, Any], about("The settings of the protocol.")]
    effective_lr: Annotated[Number | None, about("The learning rate, scaled to the batch.")]
    data: Images
    accuracy: Accuracy
    backbone_images: Annotated[
        Count, about("The images that went through the backbone, training and evaluation together.")
    ]
    backbone_sha256: Annotated[ShortText | None, about("The fingerprint of the backbone.")]
    seed: Annotated[int, about("The seed of the classifier.")]
    processes: Annotated[Count, about("The number of processes of the evaluation.")]
    hardware: Annotated[dict[str, Any], about("The device, its name and the CPU cores.")]
    versions: Annotated[dict[str, ShortText], about("The versions of Python, torch and others.")]
    started: Annotated[ShortText, about("When the evaluation began (ISO 8601).")]
    seconds: Annotated[Number, about("The wall-clock time of the evaluation.")]
    learning_rates: Annotated[
        list[Any] | UnsetType, about("The rates that `--fast` tried, with their accuracies.")
    ] = UNSET
