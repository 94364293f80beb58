"""What an earlier call of tools/transfer.py was asked, and of which files: transfer.json.

The plan is made for the content of the files. A later call with other content must neither repeat
the old answer nor mix it with a new one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_d2.errors import UserError, printable
from moco_d2.files import read_plain_json, sha256, sha256_of_json, write_json

SUITE, STATE = "transfer.yaml", "transfer.json"
_FILES = "sha256"  # of the question: name of a checkpoint or of a dataset -> its hash
_MOST_BYTES = 1 << 20


def read_state(folder: Path, runs: Path) -> dict[str, Any] | None:
    """Return the state of an earlier call; None if there is none.

    Args:
        folder: Output directory.
        runs: Folder of the runs of the task, inside it.

    Raises:
        UserError: If it is damaged, or if it is missing beside runs.
    """
    file = folder / STATE
    if file.exists():
        try:
            state = read_plain_json(file, _MOST_BYTES)
            parts = [state["asked"], state["asked"][_FILES], state["weights"]]
            if all(isinstance(part, dict) for part in parts) and isinstance(state["lines"], list):
                return _with_suite(state, folder, runs)
            problem = "it is no state of tools/transfer.py"
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = str(error)
        problem = f"{file} is damaged ({printable(problem)})"
    elif runs.is_dir():
        problem = f"{file} is missing beside the runs in {runs}"
    else:
        return None
    if not runs.is_dir():
        raise UserError(f"{problem}; remove it, and the command starts again")
    raise UserError(
        f"{problem}; remove {folder}, and the command starts again, or finish the runs with "
        f"tools/benchmark.py run {folder / SUITE} --folder {folder}"
    )


def _with_suite(state: dict[str, Any], folder: Path, runs: Path) -> dict[str, Any] | None:
    if (folder / SUITE).is_file():
        return state
    if not runs.is_dir():
        return None  # nothing is lost by another plan
    raise UserError(
        f"{folder / SUITE} is missing beside the runs in {runs}; put it back, or remove {folder}, "
        "and the command starts again"
    )


def write_state(
    folder: Path, asked: dict[str, Any], weights: dict[str, Any], lines: list[str]
) -> None:
    """Write the state: the question, the files of the rows (weights.as_state), and the plan."""
    write_json(folder / STATE, {"asked": asked, "weights": weights, "lines": lines})


def asked_of(question: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return a question in the form of the state.

    Args:
        question: The arguments of the command. Names hold from any current folder.
        hashes: Name of a checkpoint or of a dataset -> hash of its content.
    """
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in question.items()}
    return {**plain, _FILES: dict(hashes)}


def check_same(asked: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    """Check that the state of a folder belongs to a question.

    Raises:
        UserError: If it does not. The message names the argument or the file.
    """
    for key in asked:
        if key != _FILES and before.get(key) != asked[key]:
            raise UserError(
                f"{folder} holds the answer to another question ({key} was "
                f"{before.get(key)!r:.200}, and is {asked[key]!r:.200}); choose another --folder"
            )
    for name, digest in asked[_FILES].items():
        if before[_FILES].get(name) != digest:
            raise UserError(
                f"{printable(name)} has changed since {folder} was planned; restore it, or choose "
                "another --folder for its present content"
            )


def dataset_hashes(names: tuple[str, ...]) -> dict[str, str]:
    """Return a hash of the annotations of each dataset. Call it in a process of its own
    (runs.children.in_child), because it registers them.

    The images do not take part. A dataset without files of annotations that we know gets "".

    Raises:
        UserError: If a dataset is unknown or its annotations are missing.
    """
    from moco_d2.engine.annotation_files import check_annotation_files
    from moco_d2.transfer.data.registered import register_datasets

    register_datasets(names)
    hashes = {}
    for name in names:
        check_annotation_files(name)
        hashes[name] = _dataset_hash(name)
    return hashes


def _dataset_hash(name: str) -> str:
    from detectron2.data import MetadataCatalog

    from moco_d2.transfer.data.voc_annotations import read_split, split_file

    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file"):
        return sha256_of_json([_hash_of_file(Path(metadata.json_file))])
    if not (metadata.get("dirname") and metadata.get("split")):
        return ""
    split = Path(split_file(metadata.dirname, metadata.split))
    if not split.is_file():
        return ""  # the reader reports it
    annotations = Path(metadata.dirname) / "Annotations"
    images = read_split(metadata.dirname, metadata.split)
    files = [split, *(annotations / f"{image}.xml" for image in images)]
    # The names of the classes come from all splits of the folder.
    return sha256_of_json([list(metadata.thing_classes), *map(_hash_of_file, files)])


def _hash_of_file(file: Path) -> str:
    return sha256(file) if file.is_file() else ""  # the reader reports a missing file
