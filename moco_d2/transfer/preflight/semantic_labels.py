"""Checks that the label files of semantic segmentation can be trained on and evaluated.

The headers of all files are read, and the values of some; a value in another file is found when
the file is used.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from moco_d2.errors import UserError
from moco_d2.transfer.data.registered import missing_files
from moco_d2.transfer.data.semantic_mapper import check_label_header, check_labels, read_labels
from moco_d2.transfer.evaluation.build import evaluator_types
from moco_d2.transfer.evaluation.known_classes import dataset_classes, head_classes
from moco_d2.transfer.preflight.findings import Finding, Refusal

SAMPLED = 64  # label files whose values are read
_FEWEST = 2  # classes between which a network can choose
_TYPES = frozenset({"sem_seg", "cityscapes_sem_seg"})


def check_semantic_labels(
    cfg: CfgNode, split: str, name: str, dicts: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Yield a Refusal if a label file is no image of one byte per pixel, or has a value that is no
    class, or if no pixel has a class; and a Finding if all pixels have the same class, or an image
    is listed twice. The processes of a machine share the work, so all must call this function.

    Args:
        cfg: The config as it will run.
        split: "TRAIN" or "TEST".
        name: The name of the dataset.
        dicts: Its dicts. Missing files are accepted.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        return
    if split == "TEST" and not _TYPES.intersection(evaluator_types(name)):
        return
    labels = {d["sem_seg_file_name"] for d in dicts if "sem_seg_file_name" in d}
    files = sorted(labels - missing_files(dicts))
    if not files:
        return
    key, names = f"DATASETS.{split}", str(tuple(cfg.DATASETS[split]))
    image, most = Counter(d["file_name"] for d in dicts).most_common(1)[0]
    if most > 1:
        yield Finding(
            key, names, f"dataset {name!r} lists image {image} {most} times; list it once"
        )
    number, ignored = head_classes(cfg)[0], cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if split == "TEST":
        number = len(dataset_classes(cfg, name)) or number
        ignored = MetadataCatalog.get(name).get("ignore_label", ignored)

    def values(file: str) -> list[int]:
        return check_labels(read_labels(file), file, number, ignored).tolist()

    sampled = files[:: max(len(files) // SAMPLED, 1)][:SAMPLED]
    try:
        _of_all(files, check_label_header)
        present = _of_all(sampled, values)
        if len(present) < _FEWEST:  # the sample may have missed the others
            present |= _of_all(files, values)
    except UserError as error:
        yield Refusal(key, names, f"dataset {name!r}: {error}")
        return
    if len(present) >= _FEWEST:
        return
    found = f"have only class {min(present)} and" if present else "have only"
    yield (Finding if present else Refusal)(
        key,
        names,
        f"dataset {name!r}: the {len(files)} label files {found} the value to ignore "
        f"({ignored}), first {files[0]}; write the number of its class for each pixel (in masks of "
        "0 and 255, 1 for 255)",
    )


def _of_all(files: Sequence[str], values: Callable[[str], Iterable[int] | None]) -> set[int]:
    """Return the values of all files, of which the processes of a machine share the work.

    Raises:
        UserError: That of the first file with one, in all processes.
    """
    found: set[int] = set()
    problems: list[tuple[str, str]] = []
    for file in files[comm.get_local_rank() :: comm.get_local_size()]:
        try:
            found.update(values(file) or ())
        except UserError as error:
            problems.append((file, str(error)))
    parts = comm.all_gather((found, problems))
    if first := min((pair for _, problems in parts for pair in problems), default=None):
        raise UserError(first[1])
    return set().union(*(values for values, _ in parts))
