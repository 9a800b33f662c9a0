"""The command `invoke-retry`: sees into a store, and decides over what is in it."""

import sys


def main() -> None:
    """Run the command with the arguments of this process; never returns.

    Without the extra `cli` it ends with a line that says how to install it.
    """
    try:
        from invoke_retry.cli.app import app  # noqa: PLC0415
        from invoke_retry.cli.encoding import accept_every_character  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(
            f"invoke-retry: {error.name} is not installed, but the command needs it; install it "
            "with: pip install 'invoke-retry[cli]'"
        )
    accept_every_character()
    app(prog_name="invoke-retry")
