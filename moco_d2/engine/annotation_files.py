"""Check the annotation files of a registered dataset, which must not block a run."""

from collections.abc import Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog

from moco_d2.errors import UserError
from moco_d2.untrusted_images import check_regular

_JSON_KEYS = ("json_file", "panoptic_json")


def check_annotation_files(name: str) -> None:
    """Refuse a dataset whose annotations are a pipe, a device or a folder.

    Detectron2's readers would wait forever for a pipe without a writer. They report missing files
    themselves.

    Raises:
        UserError: If an annotation file is not a regular file.
    """
    for file in _annotation_files(name):
        try:
            check_regular(file)
        except OSError as error:
            raise UserError(
                f"dataset {name!r}: its annotations cannot be read, because {error}; put a file "
                "there"
            ) from error


def _annotation_files(name: str) -> Iterator[Path]:
    metadata = MetadataCatalog.get(name)
    yield from (Path(metadata.get(key)) for key in _JSON_KEYS if metadata.get(key))
    if metadata.get("dirname") and metadata.get("split"):  # a VOC year
        root = Path(metadata.dirname)
        yield root / "ImageSets" / "Main" / f"{metadata.split}.txt"
        yield from (root / "Annotations").glob("*.xml")
