"""Declare the options of a command line, a line each, and say in one sentence what was mistyped. A leaf."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, with the word that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with 2."""
        typed = re.search(r"(?:invalid choice: '|unrecognized arguments: )([^' =]+)", message)
        near = difflib.get_close_matches(typed[1], set(_words(self)), 1) if typed else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        if typed and typed[1] in near:
            hint = f"another command takes it; see {self.prog} --help"
        self.exit(2, f"{self.prog}: {message.partition(' (choose from')[0]}; {hint}\n")


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield all commands, options and choices that a parser and those below it know."""
    for action in parser._actions:
        yield from action.option_strings
        yield from map(str, action.choices or ())
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _words(command)


def add_option(
    group: Any, name: str, kind: Any, metavar: str | None, text: str, default: Any = None, **more: Any
) -> None:
    """Add an option that takes a value; its help names the default where there is one.

    >>> import argparse
    >>> parser = argparse.ArgumentParser(add_help=False)
    >>> add_option(parser, "--holes", int, "N", "lines to fill in", 200)
    >>> parser.parse_args([]).holes, "N  lines to fill in (default: 200)" in parser.format_help()
    (200, True)
    """
    if default not in (None, "", [], math.inf):
        text += " (default: %(default)s)"
    group.add_argument(name, type=kind, metavar=metavar, help=text, default=default, **more)
