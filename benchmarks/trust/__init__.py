"""How often a verdict is wrong: fits of many model families, right ones and broken ones, beside their references."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "out" / "trust"  # git ignores it

if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))  # the families live with the tests
