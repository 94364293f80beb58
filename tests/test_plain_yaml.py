import pytest
import yaml

from moco_d2.config import config_root, load_config
from moco_d2.errors import UserError
from moco_d2.plain_yaml import check_size, load_yaml


def laughs(levels: int) -> str:
    """A billion values in a few hundred bytes, if there are nine levels."""
    lines = ["a0: &a0 [1, 2]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(9), "it unfolds to more than 100000 values"),
        ("a: &a [*a]", "it unfolds to more than 100000 values"),
        ("a: " + "[" * 3000 + "]" * 3000, "it nests deeper than 50 levels"),
        ("a: " + "{b: " * 3000 + "}" * 3000, "it nests deeper than 50 levels"),
        ("- 1\n" * 100_001, "it unfolds to more than 100000 values"),
    ],
    ids=["aliases", "itself", "lists", "mappings", "values"],
)
def test_what_would_not_fit_is_refused_before_it_is_built(tmp_path, text, said):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_yaml(file)
    with pytest.raises(UserError, match=rf"^config .*a\.yaml: {said}"):
        load_config(file)


def test_a_tag_builds_no_object(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/ran']")
    with pytest.raises(yaml.YAMLError):
        load_yaml(file)
    assert not (tmp_path / "ran").exists()


def test_aliases_of_people_are_read(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n")
    assert load_yaml(file) == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}] * 2}
    for packaged in config_root().rglob("*.yaml"):
        check_size(packaged.read_text())


def test_a_file_that_is_its_own_base_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: [a.yaml]\n")
    with pytest.raises(UserError, match=r"^config .*a\.yaml: .*a\.yaml is its own _BASE_$"):
        load_config(tmp_path / "a.yaml")


def test_a_bomb_in_the_base_is_found_too(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text(laughs(9))
    with pytest.raises(UserError, match="unfolds to more than"):
        load_config(tmp_path / "a.yaml")


def test_a_base_elsewhere_is_not_fetched(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: http://localhost:9/b.yaml\n")
    with pytest.raises(UserError, match="is not on this machine; fetch and read it first"):
        load_config(tmp_path / "a.yaml")
