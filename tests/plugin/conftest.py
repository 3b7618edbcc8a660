"""Tests run on the sources, whether or not the distribution is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
