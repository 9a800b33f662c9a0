"""What strangers might pass, store, publish or type: random, by a seed, as much as one likes."""

import sys
from pathlib import Path

# the folders of tests import each other as pytest has them: so they do as `python -m tests.fuzz`
_tests = Path(__file__).parent.parent
for _folder in map(str, (_tests, _tests / "cli")):
    if _folder not in sys.path:
        sys.path.append(_folder)
