import pytest

from moco_d2.benchmark.records.compare import compare
from moco_d2.config.plain import matched_sha256
from moco_d2.errors import UserError


@pytest.fixture
def page(make_content, write):
    """The page of two records, the second changed by a function; both with right fingerprints."""

    def page(change=lambda content: None, **kwargs):
        contents = make_content(initialization="supervised"), make_content(**kwargs)
        change(contents[1])
        for content in contents:
            config = content["config"]
            config["matched_sha256"] = matched_sha256(config["resolved"])
        return compare(*map(write, contents))

    return page


def row(text, key):
    """The cells of a row beside its key."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{key}` ")]
    return [cell.strip().strip("`") for cell in line.strip("|").split(" | ")][1:]


def test_matched_runs_differ_only_where_they_may(page):
    text = page(seed=2)
    first = text.splitlines()[0]
    assert first == "**Matched**: the configs differ only in `MODEL.WEIGHTS` and `SEED`."
    assert row(text, "MODEL.WEIGHTS") == ["supervised.pth", "moco.pth"]
    assert row(text, "initialization") == ["supervised", "moco"]
    assert "The same in both: schedule, preflight, environment, hardware" in text
    assert "A: " not in text and "B: " not in text  # no reservations


def test_equal_configs(page):
    text = page(initialization="supervised")
    assert text.startswith("**Matched**: the configs are equal.\n")


def test_what_differs_in_the_config_is_named_first_and_shown(page):
    def change(content):
        solver = content["config"]["resolved"]["SOLVER"]
        solver["BASE_LR"], solver["NESTEROV"] = 0.01, None

    text = page(change)
    first = text.splitlines()[0]
    assert first == "**Not matched**: the configs differ in `SOLVER.BASE_LR` and `SOLVER.NESTEROV`."
    assert row(text, "SOLVER.BASE_LR") == ["0.02", "0.01"]
    assert row(text, "SOLVER.NESTEROV") == ["–", "null"]  # not having it is another thing


def test_a_section_that_only_one_has_is_one_row(page):
    keys = {f"KEY_{i}": i for i in range(40)}
    text = page(lambda content: content["config"]["resolved"].update(MOCO=keys, NEW={"KEY": 1}))
    assert "and 35 more" in text.splitlines()[0]
    assert row(text, "MOCO.*") == ["–", "40 keys"]
    assert row(text, "NEW.KEY") == ["–", "1"]
    assert "KEY_39`" not in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["run"].update(task="coco_FPN_1x"), "the tasks are `voc_C4` and `coco_FPN_1x`"),
        (
            lambda c: c["config"]["resolved"]["DATASETS"].update(TEST=["voc_2012_val"]),
            "differ in `DATASETS.TEST`",
        ),
    ],
)
def test_other_tasks_and_data_are_not_matched(page, change, reason):
    first = page(change).splitlines()[0]
    assert first.startswith("**Not matched**") and reason in first


def test_other_images_under_the_same_name_are_not_matched(make_content, write):
    contents = [make_content(), make_content()]
    for content, images in zip(contents, (16551, 16000), strict=True):
        content["data"] = {"train_images": images, "test_images": {"voc_2007_test": 4952}}
    upgraded = [{**c, "schema_version": 2, **NEW} for c in contents]
    text = compare(*map(write, upgraded))
    assert text.startswith("**Not matched**: the training set has 16551 and 16000 images.\n")
    assert row(text, "test_images.voc_2007_test") == ["4952", "4952"]


def test_other_training_images_of_the_same_number_are_not_matched(make_content, write):
    contents = [{**make_content(), "schema_version": 2, **NEW} for _ in range(2)]
    for content, images in zip(contents, ("5 images, ab", "5 images, cd"), strict=True):
        content["data"] = {"train_images": 5, "test_images": {}, "train_content": images}
    first = compare(*map(write, contents)).splitlines()[0]
    assert first == "**Not matched**: the training set has 5 images, ab and 5 images, cd."


NEW = {
    "origin": {"how": "trained", "source": None},
    "cost": {"seconds_per_iteration": 0.42345, "peak_memory_gib": 5, "evaluation_seconds": None},
    "errors": None,
}


def test_reservations_follow(page):
    def change(content):
        finding = {"key": "SEED", "value": "-1", "message": "set it"}
        content["preflight"] = {"forced": True, "findings": [finding]}
        content["coverage"]["loaded"] = 0

    text = page(change)
    assert "B: not every backbone tensor" in text and "the run was forced" in text
    assert row(text, "forced") == ["false", "true"]
    assert row(text, "loaded") == ["265", "0"]


def test_metrics_cost_and_errors_with_their_difference(make_content, write):
    lost = {
        "AP50": 50.0,
        "Cls": 1.0,
        "Loc": 20.0,
        "Both": 0.0,
        "Dupe": 0.0,
        "Bkg": 4.0,
        "Miss": 5.0,
    }
    contents = [{**make_content(), "schema_version": 2, **NEW} for _ in range(2)]
    classes = [{f"AP-{i}": 50.0 + i * j for i in range(30)} for j in (0, 1)]
    contents[0]["metrics"] = {"bbox": {"AP": 53.5, "AP50": 81.3, "AP75": None, **classes[0]}}
    contents[1]["metrics"] = {"bbox": {"AP": 55.9, "AP50": 81.25, "APl": 60.0, **classes[1]}}
    contents[0]["errors"] = {"voc_2007_test": lost}
    contents[1]["errors"] = {"voc_2007_test": {**lost, "Loc": 15.0}}
    text = compare(*map(write, contents))
    assert row(text, "bbox/AP") == ["53.50", "55.90", "+2.40"]
    assert row(text, "bbox/AP50") == ["81.30", "81.25", "-0.05"]
    assert row(text, "bbox/AP75") == ["–", "–", "–"]
    assert row(text, "bbox/APl") == ["–", "60.00", "–"]
    assert row(text, "bbox/AP-29") == ["50.00", "79.00", "+29.00"]
    assert "AP-19`" not in text  # ten classes
    assert row(text, "voc_2007_test.Loc") == ["20.00", "15.00", "-5.00"]
    assert row(text, "seconds_per_iteration") == ["0.4234", "0.4234"]
    assert "evaluation_seconds" not in text  # not known of either


def test_long_values_show_where_they_differ(make_content, write):
    contents = make_content(), make_content()
    for content, end in zip(contents, "12", strict=True):
        content["environment"] = {"path": "/data/" + "x" * 200 + end, "same": "y" * 200}
    text = compare(*map(write, contents))
    first, second = row(text, "path")
    assert (first[0], first[-1], second[-1]) == ("…", "1", "2")
    assert "yyy" not in text


def test_a_name_cannot_break_the_page(page):
    hostile = "a|b`</td><script>\n# title"
    text = page(lambda c: c["config"]["resolved"]["MODEL"].update(WEIGHTS=hostile))
    (line,) = [line for line in text.splitlines() if "script" in line]
    assert "`a\\|b'</td><script>?# title`" in line


def test_folders_and_files(make_content, write):
    file = write(make_content())
    assert compare(file.parent, str(file)).startswith("**Matched**")


def test_mistakes_are_named(make_content, write, tmp_path):
    file = write(make_content())
    with pytest.raises(UserError, match="no record .*benchmark.py import"):
        compare(file, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no record"):
        compare(tmp_path, file)
    with pytest.raises(UserError, match="not a record of fine-tuning"):
        compare(file, write({"kind": "pretext"}))
    (damaged := tmp_path / "damaged.json").write_text(file.read_text()[:-50])
    with pytest.raises(UserError, match="damaged.json: damaged, not JSON"):
        compare(damaged, file)
