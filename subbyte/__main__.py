"""The command line: the script `subbyte`, and `python -m subbyte`."""

import signal


def main() -> None:
    """Run the command that the arguments name; until it begins, Ctrl-C ends the process by the signal."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor another's
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt would end an import in a traceback

    from subbyte.cli import main as run

    run(prog_name="subbyte")


if __name__ == "__main__":
    main()
