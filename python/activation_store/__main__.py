"""The program `activation-store`, which inspects and verifies recordings: also `python -m activation_store`."""

import signal
import sys

from ._native import command_line


def main() -> None:
    """Runs it with the arguments of the process, and exits."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it in the middle of a file
    sys.exit(command_line(["activation-store", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
