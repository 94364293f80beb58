#!/usr/bin/env python3
"""Render docs/performance.md from results/benchmarks/*.json. No figure is typed by hand.

python benchmarks/render.py
"""

import json
from pathlib import Path
from typing import Any

from harness import RESULTS, met

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_HEAD = """# Performance

This page shows how fast each part is, compared with other programs and with its limits. You can
measure all parts on your machine, or one part quickly:

```sh
make bench
python benchmarks/start_up.py --small
```

All figures are of CPUs; no GPU was measured. Each section names its command and the machine.
Sections may come from different machines, so do not compare their figures with each other. The
compared programs take turns in one run, so a busy machine slows all of them alike. A ratio is the
median of the ratios within a turn, so it can differ from the quotient of the two medians below it.
`benchmarks/render.py` writes this page from the results in `results/benchmarks/`.
"""


def section(result: dict[str, Any]) -> str:
    """Return one benchmark as Markdown."""
    on = result["machine"]
    bf16 = "with" if on["bf16_in_hardware"] else "without"
    lines = [
        f"## {result['title']}",
        "",
        f"`{result['command']}` on {result['date']}: {on['name']}, {on['cores']} cores, "
        f"{on['threads']} threads, {bf16} bf16 in hardware, device {on['device']}, "
        f"torch {on['torch']}, Python {on['python']}.",
        "",
        "| figure | measured | limit | |",
        "|---|---|---|---|",
    ]
    for entry in result["checks"]:
        unit = "x" if entry["unit"] == "x" else f" {entry['unit']}"
        limit = "" if entry["limit"] is None else f"{entry['sense']} {entry['limit']:g}{unit}"
        verdict = {True: "met", False: "**missed**", None: ""}[met(entry)]
        lines.append(f"| {entry['what']} | {entry['value']:g}{unit} | {limit} | {verdict} |")
    for table in result["tables"]:
        lines += ["", f"{table['title']}:", "", "| " + " | ".join(table["columns"]) + " |"]
        lines.append("|" + "---|" * len(table["columns"]))
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in table["rows"]]
    for note in result["notes"]:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text("\n".join([_HEAD, *map(section, results)]))


if __name__ == "__main__":
    main()
