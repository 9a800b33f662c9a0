"""Hours of steady work, with restarts in between: what grows, and whether the books balance."""

import sys
from pathlib import Path

# `chaos` has a name of its own when tests are run: so it has as `python -m tests.soak`
if (_tests := str(Path(__file__).parent.parent)) not in sys.path:
    sys.path.append(_tests)
