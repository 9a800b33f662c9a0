"""What stands on a real NATS server."""

import sys
from pathlib import Path

# `chaos` has a name of its own there when tests are run: so it has as `python -m tests.jetstream.x`
if (_tests := str(Path(__file__).parent.parent)) not in sys.path:
    sys.path.append(_tests)
