import msgspec
import pytest
from support.paths import ROOT

from moco_d2.records import documentation
from moco_d2.records.run_schema import RunRecord

PAGE = ROOT / "docs" / "records.md"


def test_the_committed_tables_are_made_from_the_structs():
    page = PAGE.read_text()
    assert page == documentation.document(page)


def test_a_page_without_its_markers_is_refused():
    with pytest.raises(ValueError, match=r"lacks <!-- fields of record.json -->"):
        documentation.document(PAGE.read_text().replace("<!-- fields of record.json -->", ""))


def _fields(kind: type, prefix: str = "") -> list[str]:
    """The dotted names of all fields, apart from those of structs in lists and mappings."""
    names = []
    for field in msgspec.structs.fields(kind):
        info = _plain(msgspec.inspect.type_info(field.type))
        options = map(_plain, getattr(info, "types", [info]))
        structs = [p.cls for p in options if isinstance(p, msgspec.inspect.StructType)]
        name = f"{prefix}{field.encode_name}"
        names += [n for s in structs for n in _fields(s, f"{name}.")] or [name]
    return names


def _plain(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    return info.type if isinstance(info, msgspec.inspect.Metadata) else info


@pytest.mark.parametrize("name", documentation.RECORDS)
def test_every_field_is_explained_in_a_sentence(name):
    fields = _fields(documentation.RECORDS[name])
    text = documentation.table(documentation.RECORDS[name])
    rows = {r.split("`")[1]: r for r in text.splitlines() if r.startswith("| `")}
    assert [field for field in fields if field not in rows] == []
    assert all(row.endswith(". |") for row in rows.values())


def test_the_fields_of_parts_are_found():
    fields = _fields(RunRecord)
    assert {"run.task", "weights.sha256", "cost.peak_memory_of", "errors"} <= set(fields)
