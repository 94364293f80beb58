"""Small WebDataset shards for the tests; each image is of one color that tells which it is."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def color(index: int) -> tuple[int, int, int]:
    """The color of image `index` of a set."""
    return (index % 256, index // 256, 99)


def png(index: int, side: int = 8) -> bytes:
    """Image `index` as the bytes of a file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), color(index)).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file of named members in their order."""
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def make_shards(folder: Path, counts: list[int], *, labels: bool = False) -> str:
    """Shards of so many images, numbered through; returns their pattern."""
    index = 0
    for number, count in enumerate(counts):
        members = {}
        for _ in range(count):
            members[f"{index:04d}.png"] = png(index)
            if labels:
                members[f"{index:04d}.cls"] = str(index % 3).encode()
            index += 1
        write_shard(folder / f"{number}.tar", members)
    return f"{folder}/{{0..{len(counts) - 1}}}.tar"
