#!/usr/bin/env python3
"""Print what this machine has for pretraining and fine-tuning, and what is missing."""

import argparse
import sys

try:
    from moco_d2.cli import command_parser, run_command
except ModuleNotFoundError as error:  # this Python is not that of the environment
    print(f"error: {error}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Return the flags of the command line."""
    return command_parser(
        "Print versions, devices and datasets that are found, and the fix for what is missing.\n"
        "Exit code 0: every command can run. Exit code 1: something that all need is missing.",
        "tools/doctor.py",
    ).parse_args()


def main() -> int:
    """Run the command."""
    parse_args()
    from moco_d2.doctor import examine

    report = examine()
    print(report.text())
    return 1 if report.missing else 0


if __name__ == "__main__":
    run_command(main)
