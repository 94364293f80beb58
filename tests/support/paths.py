"""Where things are in a checkout, whatever folder a test is in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
BENCHMARKS = ROOT / "benchmarks"
CAMPAIGNS = ROOT / "campaigns"
