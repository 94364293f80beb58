import subprocess
import sys

import pytest
from support.commands import run_tool
from support.paths import TOOLS

TOOL = TOOLS / "benchmark.py"


def run_benchmark(*arguments):
    return run_tool(TOOL, *arguments)


def test_help_imports_nothing_heavy_and_has_an_example():
    code = "import runpy, sys; sys.argv = ['benchmark.py', '--help']\n"
    code += f"try: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "except SystemExit: print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "tools/benchmark.py table output" in result.stdout
    assert result.stdout.endswith("set()\n")


def test_table(table_2b, tmp_path):
    result = run_benchmark("table", table_2b)
    assert result.returncode == 0 and not result.stderr
    assert "55.9 ± 0.2 (n=5) **(+2.4)**" in result.stdout
    page = tmp_path / "out" / "table.html"
    result = run_benchmark("table", table_2b, "--format", "html", "--out", page)
    assert result.returncode == 0 and not result.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_damaged_record_is_named_on_stderr(table_2b):
    damaged = table_2b / "damaged" / "record.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    result = run_benchmark("table", table_2b)
    assert result.returncode == 0
    assert str(damaged) in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [("table", "{empty}"), ("paper", "--task", "nothing")])
def test_user_errors_exit_2_with_one_line(tmp_path, arguments):
    result = run_benchmark(*(word.format(empty=tmp_path) for word in arguments))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_paper():
    result = run_benchmark("paper", "--task", "coco_FPN_1x", "--format", "csv")
    assert result.returncode == 0
    assert "coco_FPN_1x,MoCo IN-1M,segm/AP75,37.7,,,-0.4" in result.stdout


def test_plan_of_a_suite(tmp_path):
    result = run_benchmark("plan", "smoke", "--folder", tmp_path / "out")
    assert result.returncode == 0 and not result.stderr
    assert "15 runs" in result.stdout and "15 to start" in result.stdout
    result = run_benchmark("run", "table_2c", "--folder", tmp_path / "out")
    assert result.returncode == 2 and "did you mean 'table_" in result.stderr
    assert not (tmp_path / "out").exists()


def test_needs_neither_torch_nor_detectron2():
    code = (
        "import sys; from moco_d2.benchmark.report import page; "
        "from moco_d2.benchmark.runs import planning, runner; "
        "print({'torch', 'detectron2'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("flag", ["--initialization", "--initialisation", "--init", "--initialis"])
def test_the_old_spelling_and_abbreviations_of_a_flag_work(tmp_path, flag):
    result = run_benchmark("import", tmp_path, "--task", "voc_C4", flag, "moco")
    assert result.returncode == 2 and "has no config.yaml" in result.stderr
