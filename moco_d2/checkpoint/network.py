"""The interface of a kind of network: everything that the converter asks about one.

ResNets (resnets.py) and vision transformers (vit/) are behind it. A new kind is a class beside them
and an entry in convert.NETWORKS.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from moco_d2.checkpoint.families import Input
from moco_d2.checkpoint.recognition import Extracted
from moco_d2.checkpoint.stated import NOTHING, Stated
from moco_d2.checkpoint.targets import Target

A = TypeVar("A")  # the architecture: what names and shapes say about one network of the kind


@dataclass(frozen=True)
class Request:
    """What to read in a checkpoint.

    Attributes:
        branch: ``query`` or ``key``.
        file_name: The checkpoint's name.
        stated: What the files beside it say.
        drop: Patterns of tensors to leave out besides the known companions.
        heads: The number of attention heads of a ViT, if the user gives it.
    """

    branch: str = "query"
    file_name: str = ""
    stated: Stated = NOTHING
    drop: tuple[str, ...] = ()
    heads: int | None = None


class Network(ABC, Generic[A]):
    """One kind of network.

    Attributes:
        name: The name of the kind in reports. A report without it is that of a ResNet.
        reference: The project whose network the proof computes the source's features with.
        tolerance: The largest relative difference of two correct networks in float32.
        unseen: What the proof cannot see.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    tolerance: ClassVar[float]
    unseen: ClassVar[str]

    @abstractmethod
    def task(self, architecture: A) -> str:
        """Return the task of the commands that are shown."""

    @abstractmethod
    def recognizes(self, checkpoint: Mapping[Any, Any]) -> bool:
        """Return whether the names in a checkpoint are those of such a network."""

    @abstractmethod
    def extract(self, checkpoint: Mapping[Any, Any], request: Request) -> tuple[Extracted, A]:
        """Return the complete network of a checkpoint, and its architecture.

        Raises:
            UserError: If there is none, or two different ones; if a tensor is missing, unknown, of
                another shape or not finite; or if it computes what Detectron2's network does not.
        """

    @abstractmethod
    def target(self, target: Target, architecture: A) -> Target:
        """Return the format of the file for this network.

        Raises:
            UserError: If the framework cannot build the network.
        """

    @abstractmethod
    def check_depth(self, architecture: A, depth: int) -> None:
        """Refuse a network that is no ResNet of this depth.

        Raises:
            UserError: If it is another one.
        """

    @abstractmethod
    def convert(self, extracted: Extracted, architecture: A) -> dict[str, Tensor]:
        """Return the tensors to write, in float32: name in the room -> tensor."""

    @abstractmethod
    def prove(
        self,
        content: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        extracted: Extracted,
        architecture: A,
    ) -> dict[str, float]:
        """Load a file's content as Detectron2 does, and compare its features with the source's.

        Returns:
            The largest relative differences, and as "max" that over all of them.

        Raises:
            UserError: If a tensor does not arrive, or the features differ by more than `tolerance`.
        """

    @abstractmethod
    def facts(self, architecture: A) -> dict[str, Any]:
        """Return the entries of a report that describe the network, in JSON types."""

    @abstractmethod
    def architecture(self, report: Mapping[str, Any]) -> A:
        """Return the network that a report describes: the inverse of `facts`."""

    @abstractmethod
    def count(self, architecture: A) -> int:
        """Return the number of tensors that a checkpoint of the network has."""

    @abstractmethod
    def settings(self, architecture: A, pixels: Input) -> dict[str, Any]:
        """Return the keys of Detectron2's config that the converted weights need."""


def plain(tensor: Tensor) -> Tensor:
    """Return a contiguous float32 tensor. It is no view, so only its own values are saved."""
    tensor = tensor.float().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()
