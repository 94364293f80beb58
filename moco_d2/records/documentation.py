"""Renders the tables of fields in docs/records.md from the structs of the records."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from moco_d2.records.pretext_schema import RESULT_FILE, LinearEvalRecord
from moco_d2.records.run_schema import RECORD_FILE, RunRecord

#: The records whose tables are in the page, by the name of their file.
RECORDS: dict[str, type[msgspec.Struct]] = {RECORD_FILE: RunRecord, RESULT_FILE: LinearEvalRecord}
_TYPES = {"string": "text", "object": "object", "array": "list", "boolean": "true or false"}


def document(page: str) -> str:
    """Return the page with newly rendered tables between its markers.

    Raises:
        ValueError: If the page has no markers for a record.
    """
    for name, record in RECORDS.items():
        begin, end = f"<!-- fields of {name} -->\n", "<!-- end of fields -->"
        before, marker, rest = page.partition(begin)
        after = rest.partition(end)[2]
        if not marker or not after:
            raise ValueError(f"the page lacks {begin.strip()} or {end}")
        page = f"{before}{begin}{table(record)}{end}{after}"
    return page


def table(record: type[msgspec.Struct]) -> str:
    """Return a Markdown table with one line per field of a record and of its parts."""
    schema = msgspec.json.schema(record)
    parts = schema["$defs"]
    rows = (
        f"| `{name}` | {kind} | {sentence} |\n"
        for name, kind, sentence in _rows(parts[record.__name__], parts, "")
    )
    return "| field | type | |\n|---|---|---|\n" + "".join(rows)


def _rows(part: dict[str, Any], parts: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in part["properties"].items():
        sentence = field.get("description", "").replace("|", "\\|")
        if sentence:
            optional = "" if name in part["required"] else ", may be absent"
            yield f"{prefix}{name}", _type(field) + optional, sentence
        references = re.findall(r"#/\$defs/(\w+)", str(field.get("$ref", field.get("anyOf", ""))))
        if "additionalProperties" not in str(field):  # values of a mapping are not listed
            for reference in references:
                yield from _rows(parts[reference], parts, f"{prefix}{name}.")


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "enum" in field:
        return ", ".join("null" if value is None else f"`{value}`" for value in field["enum"])
    if field.get("type") in ("integer", "number"):
        least, most = field.get("minimum"), field.get("maximum")
        if (least, most) == (0, 100):
            return "percent"
        return field["type"] + (f" ≥ {least}" if least in (0, 1) else "")
    return _TYPES.get(field.get("type", "object"), field.get("type", "object"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the tables of fields in a page.")
    parser.add_argument("--page", type=Path, default=Path("docs/records.md"))
    path = parser.parse_args().page
    path.write_text(document(path.read_text()))
