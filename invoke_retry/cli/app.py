"""The commands, by what they are for."""

from __future__ import annotations

import typer

from invoke_retry.cli import (
    counting,
    deciding,
    doctor,
    listing,
    prune,
    scheduling,
    showing,
    touring,
    watching,
    working,
)

app = typer.Typer(
    name="invoke-retry",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "See into a store of invoke-retry, and decide over what is in it.\n\n"
        "Name the store by --store, or once by the environment variable INVOKE_RETRY_STORE. "
        "A delivery is missing? 'list --state failed' finds it, 'show CID' says why, and "
        "'resubmit CID' runs it again ('redeliver CID' where only the callback failed, state "
        "dead; 'run-now CID' where it still waits)."
    ),
)
for part in (
    listing, showing, counting, watching, deciding, working, doctor, prune, scheduling, touring,
):  # fmt: skip
    part.register(app)
