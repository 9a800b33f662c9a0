"""Faults that have broken other systems, planted one by one: the suite must catch each of them."""

import sys
from pathlib import Path

# `arguments` has a name of its own when tests are run: so it has as `python -m tests.bite`
if (_tests := str(Path(__file__).parent.parent)) not in sys.path:
    sys.path.append(_tests)
