"""Tests of the library, one folder per room; what crosses rooms stands here."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN_FOLDER = Path(__file__).parent / "golden"
