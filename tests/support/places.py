"""Where things lie: nothing enters, paths leave."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
OUTSIDE = TESTS / "outside"
