"""What the command lines of the workflow share: description, mistyped names, user, folder, and how they end.

Standard library only: launchers and node programs import this.
"""

import argparse
import difflib
import getpass
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROKEN_PIPE, INTERRUPTED = 141, 130  # what a shell shows for a program that the signal ended
MOST_LISTED = 40  # names in one sentence


def nearest(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return the end of a sentence about an unknown name: the known names that are most like it, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known are {', '.join(known)}." if 0 < len(known) <= MOST_LISTED else "."


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistyped option, value or command with the nearest that there is."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):  # type: ignore[override]
        """Parse as argparse does, after a check for options that are unknown.

        argparse itself complains first of required options that are missing, such as the one that was mistyped.
        """
        if self._subparsers is None:  # else the options are those of the command's own parser
            self._refuse_unknown_options(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        for word in words:
            option = word.partition("=")[0]
            if option == "--":  # what follows are no options
                return
            if option.startswith("--") and not any(name.startswith(option) for name in known):
                self.error(f"there is no option {option}{nearest(option, known)}")

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is unknown{nearest(str(value), map(str, action.choices))}")


def parser(documentation: str | None, **options) -> Parser:
    """Return a parser described by the first sentence or line of a module's documentation.

    Python drops docstrings under PYTHONOPTIMIZE=2; the parser then has no description.
    """
    description = (documentation or "").split("\n\n")[0] or None
    return Parser(description=description, **options)


def run(main: Callable[[], None], in_clone: bool = False) -> None:
    """Run a program's main function, and end quietly on Ctrl-C or when nobody reads its output.

    `in_clone`: the program uses paths below the clone, so refuse to start in another folder.
    """
    name_user()
    if in_clone:
        check_folder()
    try:
        try:
            main()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        unread = [number for number in (1, 2) if _has_no_reader(number)]
        if not unread:
            raise  # another pipe than our output
        for number in unread:  # Python flushes both once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        sys.exit(BROKEN_PIPE)


def name_user() -> None:
    """Give this process and its children a user's name and a home where the system knows none.

    A container that runs as a mere number has neither, and torch, MLflow and Snakemake ask for them.
    """
    number = os.getuid()
    try:
        getpass.getuser()
    except (KeyError, OSError):  # by Python's version
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{number}"
    if os.path.expanduser("~") == "~":
        home = os.path.join(tempfile.gettempdir(), f"home-uid{number}")
        os.makedirs(home, mode=0o700, exist_ok=True)
        os.environ["HOME"] = home


def check_folder() -> None:
    """End the program with one sentence unless it was started in the folder of the clone."""
    if not ROOT.samefile(Path.cwd()):
        sys.exit(f"This was started in {Path.cwd()}, but results are kept in the clone's own folder; first: cd {ROOT}")


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
