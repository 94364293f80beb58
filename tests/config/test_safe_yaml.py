import os

import pytest
import yaml

from moco_d2.benchmark.runs.suite_values import file_settings
from moco_d2.benchmark.runs.suites import load_suite
from moco_d2.config.load import config_root, load_config
from moco_d2.config.safe_yaml import check_size, load_yaml
from moco_d2.errors import UserError


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


@pytest.mark.parametrize(
    "base", ["http://localhost:9/b.yaml", "https://x/b.yaml", "detectron2://b.yaml", "[s3://b]"]
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_base_elsewhere_is_not_fetched(tmp_path, base, linked):
    file = tmp_path / "a.yaml"
    file.write_text(f"_BASE_: {base}\n")
    if linked:
        (tmp_path / "links").mkdir()
        file = tmp_path / "links" / "b.yaml"
        file.symlink_to("../a.yaml")
    with pytest.raises(UserError, match="is not on this machine; fetch and read it first"):
        load_config(file)


def test_a_base_is_looked_for_beside_the_name_by_check_and_reader_alike(tmp_path):
    """A link's own folder has another base than that of the file it leads to."""
    for folder, base in (("real", "VERSION: 2\n"), ("links", "_BASE_: http://localhost:9/b\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.yaml").write_text(base)
    (tmp_path / "real" / "a.yaml").write_text("_BASE_: base.yaml\n")
    (tmp_path / "links" / "a.yaml").symlink_to(tmp_path / "real" / "a.yaml")
    assert load_config(tmp_path / "real" / "a.yaml").VERSION == 2
    with pytest.raises(UserError, match="is not on this machine"):
        load_config(tmp_path / "links" / "a.yaml")


def test_a_file_is_read_once(tmp_path, monkeypatch):
    """What changes after the check changes nothing."""
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\nSEED: 7\n")
    (tmp_path / "b.yaml").write_text("VERSION: 2\n")
    read = []

    def once(path, *more):
        read.append(path.name)
        text = path.read_text()
        path.write_text("_BASE_: http://localhost:9/b.yaml\n")
        return text

    monkeypatch.setattr("moco_d2.config.safe_yaml.read_text", once)
    assert load_config(tmp_path / "a.yaml").SEED == 7
    assert read == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "linked fifo"])
@pytest.mark.parametrize("place", ["base", "file"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind, place):
    name = tmp_path / "b.yaml"
    if kind == "device":
        name = "/dev/zero"
    elif kind == "folder":
        name.mkdir()
    else:
        os.mkfifo(tmp_path / "fifo")
        name.symlink_to("fifo") if kind.startswith("linked") else os.rename(tmp_path / "fifo", name)
    with pytest.raises(ValueError, match="is not a regular file"):
        load_yaml(name)
    if place == "base":
        (tmp_path / "a.yaml").write_text(f"_BASE_: {name}\n")
        with pytest.raises(UserError, match=r"^config .*a\.yaml: .* is not a regular file$"):
            load_config(tmp_path / "a.yaml")
    else:
        with pytest.raises(UserError, match="no config file"):
            load_config(name)


def chain(folder, number, times):
    for i in range(number):
        bases = ", ".join([f"{i + 1}.yaml"] * times)
        (folder / f"{i}.yaml").write_text(f"_BASE_: [{bases}]\n")
    (folder / f"{number}.yaml").write_text("VERSION: 2\n")
    return folder / "0.yaml"


@pytest.mark.parametrize(
    ("number", "times", "said"),
    [
        (600, 1, "of more than 20 files in a row"),
        (15, 2, "it reads more than 100 files through _BASE_"),
        (1, 120, "it reads more than 100 files through _BASE_"),
        (25, 2, "of more than 20 files in a row"),
    ],
)
def test_bases_without_end_are_one_sentence(tmp_path, number, times, said):
    file = chain(tmp_path, number, times)
    with pytest.raises(UserError, match=said):
        load_config(file)
    with pytest.raises(UserError, match=said):
        file_settings(file)


def test_bases_of_people_are_read(tmp_path):
    assert load_config(chain(tmp_path, 5, 2)).VERSION == 2


def test_all_bases_together_have_the_limits_of_one(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: [b.yaml, b.yaml, b.yaml]\n")
    (tmp_path / "b.yaml").write_text("VERSION: 2\nX: [" + "1, " * 40_000 + "1]\n")
    with pytest.raises(UserError, match="it has more than 100000 values"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "SOLVER:\n  BASE_LR: 0.1\nSOLVER:\n  MAX_ITER: 2\n",
            "line 3 repeats the key 'SOLVER'",
        ),
        ("A: {x: 1, 'x': 2}", "line 1 repeats the key 'x'"),
        ("A: &a x\nB: {*a : 1, x: 2}", "line 2 repeats the key 'x'"),
        ("A: &a {x: 1}\nB: {<<: *a, <<: *a}", "line 2 repeats the key '<<'"),
    ],
)
def test_a_key_of_which_one_would_be_lost_is_named(tmp_path, text, said):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        load_config(file)
    with pytest.raises(UserError, match=said):
        load_suite(file)


def test_equal_keys_at_different_places_are_none_of_these(tmp_path):
    text = "A: &a {x: 1, y: {x: 1}}\nB: [{x: 1}, {x: 2}]\nC: {<<: *a, x: 2}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load_yaml(tmp_path / "a.yaml")["C"] == {"x": 2, "y": {"x": 1}}


@pytest.mark.parametrize(
    "value",
    [
        *(
            "2001-99-99",
            "1:" * 3000 + "1.5",
            "9" * 5000,
            "0x" + "f" * 5000,
            "2001-01-01",
            "1.0e+9999",
        ),
        *("!!binary eA==", "!!set {a}", "!!omap [a: 1]", "!!timestamp x", "!!int x", "!!float x"),
        *("!!bool x", "!!null x", "!foo x", "!<tag:yaml.org,2002:python/name:os.system> x"),
    ],
    ids=lambda value: value[:12],
)
def test_scalars_that_are_no_config_value_are_one_sentence(tmp_path, value):
    file = tmp_path / "a.yaml"
    file.write_text(f"VERSION: 2\nSEED: {value}\n")
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read_to_its_end(tmp_path):
    file = tmp_path / "a.yaml"
    with file.open("wb") as f:
        f.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match="has more than 1048576 bytes"):
        load_config(file)


MERSENNE = 2**61 - 1  # hash(k * MERSENNE) == 0


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{k * MERSENNE}: 1\n" for k in range(1001)),
        "".join(f"{k / 7}: 1\n" for k in range(1001)),
        "".join(f"? !!int '{k}'\n: 1\n" for k in range(1001)),
        "".join(f"a{n}: &a{n} {{{', '.join(f'{k}: 1' for k in range(n, n + 10))}}}\n"
                for n in range(0, 1010, 10)),
        f"a: [{', '.join(f'&a{k} {k * MERSENNE}' for k in range(1001))}]\nb:\n"
        + "".join(f"  *a{k} : 1\n" for k in range(1001)),
    ],
    ids=["integers that collide", "floats", "tags", "in many mappings", "aliases"],
)  # fmt: skip
def test_many_keys_that_are_no_text_are_refused(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^line \d+: more than 1000 keys are no text"):
        load_yaml(file)
    file.write_text("_BASE_: a.yaml\n")
    file.rename(tmp_path / "b.yaml")
    file.write_text(text)
    with pytest.raises(UserError, match="more than 1000 keys are no text"):
        load_config(tmp_path / "b.yaml")


def test_few_keys_that_are_no_text_and_many_that_are_text_are_read(tmp_path):
    file = tmp_path / "a.yaml"
    lines = [*(f"{k * MERSENNE}: 1" for k in range(1000)), *(f"'{k}.0': 1" for k in range(5000))]
    lines += [*(f"a{k}: {k}" for k in range(5000)), *(f"? !!str {k}x\n: 1" for k in range(2000))]
    file.write_text("\n".join(lines) + "\n")
    assert len(load_yaml(file)) == 13_000


def test_links_in_a_circle_are_one_sentence(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "a.yaml").write_text("_BASE_: loop.yaml\n")
    with pytest.raises(UserError, match=r"^config .*a\.yaml: cannot read .*loop\.yaml: Too many"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"^cannot read the config .*a\.yaml: Too many"):
        file_settings(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("X:\n  Y: !!python/tuple [32, 64]\n", "line 2 has the tag python/tuple, which could build "
         "any object; write (32, 64) or [32, 64]"),
        ("X: !!python/tuple\n- 32\n", "line 1 has the tag python/tuple, which could build any "
         "object; write (32, 64) or [32, 64]"),
        ("X: !!python/name:os.system x\n", "line 1 has the tag python/name:os.system, which could "
         "build any object; remove the tag, and write a plain value"),
        ("X: !foo x\n", "line 1 has the tag !foo, which could build any object; remove the tag, "
         "and write a plain value"),
        ("X:\n\tY: 1\n", "line 2 has a tab, which YAML does not allow there; indent"),
        ("X:\n  Y: 1\n\tZ: 1\n", "line 3 has a tab, which YAML does not allow there; indent"),
        ("X:\n  Y:\t@\n", "check its colons and indentation"),
        ("X: [1, 2\nY: 3\n", "check its colons and indentation"),
        ("X: 1\n Y: 2\n", "check its colons and indentation"),
        ("X: a\x07\n", "its character 4 is not allowed in text; remove it"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_said_with_its_line_and_what_to_do(tmp_path, text, said):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    for read in (load_config, load_suite):
        with pytest.raises(UserError) as caught:
            read(file)
        message = str(caught.value)
        assert said in message and message.isprintable()
        assert str(file) in message and "unicode string" not in message
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "b.yaml")
    assert f"b.yaml: in its _BASE_ {file}, " in str(caught.value) and said in str(caught.value)
