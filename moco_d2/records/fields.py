"""The base class of a record's parts, and the types of their fields with bounds."""

from typing import Annotated

import msgspec
from msgspec import Meta

#: More than any time or size of a run. It also excludes infinity, which JSON's 1e999 gives.
LARGEST = 10**12
LONGEST_NAME = 300  # characters

Text = Annotated[str, Meta(min_length=1)]
ShortText = Annotated[str, Meta(max_length=LONGEST_NAME)]
# The end is a look-ahead because Python's $ also matches before a last line feed.
Name = Annotated[
    str,
    Meta(min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\x00-\x1f\x7f]+(?![\x00-\x1f\x7f])$"),
]
Sha256 = Annotated[str, Meta(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Percent = Annotated[float, Meta(ge=0, le=100)]
#: A difference of two percentages.
Points = Annotated[float, Meta(ge=-100, le=100)]


class Part(msgspec.Struct, frozen=True):
    """A JSON object of a record. It may hold unknown fields, so that a version can grow."""


def about(sentence: str) -> Meta:
    """Document a field with a sentence, for the JSON schema and docs/records.md."""
    return Meta(description=sentence)
