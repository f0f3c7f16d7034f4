"""Declare the options of a command line, a line each. A leaf."""

from __future__ import annotations

import math
from typing import Any


def add_option(
    group: Any, name: str, kind: Any, metavar: str, text: str, default: Any = None, **more: Any
) -> None:
    """Add an option that takes a value; its help names the default where there is one.

    >>> import argparse
    >>> parser = argparse.ArgumentParser(add_help=False)
    >>> add_option(parser, "--holes", int, "N", "lines to fill in", 200)
    >>> parser.parse_args([]).holes, "N  lines to fill in (default: 200)" in parser.format_help()
    (200, True)
    """
    if default not in (None, "", math.inf):
        text += " (default: %(default)s)"
    group.add_argument(name, type=kind, metavar=metavar, help=text, default=default, **more)
