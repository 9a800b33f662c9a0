"""The command `invoke-retry`: sees into a store, and decides over what is in it."""

import sys


def main() -> None:
    """Run the command with the arguments of this process; never returns.

    Without the extra `cli` it ends with a line that says how to install it.
    """
    try:
        from invoke_retry.cli.app import app  # noqa: PLC0415
        from invoke_retry.cli.encoding import accept_every_character  # noqa: PLC0415
        from invoke_retry.cli.errors import ExitCode  # noqa: PLC0415
        from invoke_retry.cli.streams import discard_output, open_closed_streams  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(
            f"invoke-retry: {error.name} is not installed, but the command needs it; install it "
            "with: pip install 'invoke-retry[cli]'"
        )
    open_closed_streams()
    accept_every_character()
    try:
        app(prog_name="invoke-retry")
    except OSError as error:  # a full disk behind standard output, no folder for temporary files
        discard_output()
        sys.stderr.write(f"invoke-retry: {error}\n")
        sys.exit(ExitCode.SYSTEM)
