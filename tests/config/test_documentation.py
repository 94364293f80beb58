import re

import yaml
from support.paths import ROOT

from moco_d2.config import documentation
from moco_d2.config.keys import KEYS
from moco_d2.config.load import load_config

PAGE = ROOT / "docs" / "config.md"


def test_the_committed_page_is_made_from_the_table():
    page = PAGE.read_text()
    assert page == documentation.document()
    assert set(re.findall(r"^\| `([A-Z_.]+)` \|", page, re.M)) == set(KEYS)
    assert all(row.count("|") in (4, 6) for row in page.splitlines() if row.startswith("|"))


def test_the_examples_of_the_page_are_loaded(tmp_path):
    page = PAGE.read_text()
    command = re.search(r"--config-file (\S+) (.*)\n", page)
    typed = load_config(command[1], command[2].split())
    file = tmp_path / "mine.yaml"
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert set(yaml.safe_load(text)) == {"_BASE_", "DATASETS", "MOCO"}
    file.write_text(text.replace("configs/", f"{ROOT}/configs/"))
    assert load_config(file) == typed
    assert typed.DATASETS.TRAIN == ("my/images",) and typed.MOCO.TEMPERATURE == 0.1
