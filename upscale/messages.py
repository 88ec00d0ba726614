"""What the commands say: how far they are, and why something cannot be done."""

from __future__ import annotations

import logging
import sys

import click

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} done, {remaining} left{postfix}"
"""Of tqdm."""


class Messages(click.Group):
    """Turns the errors that say what to do into one line and exit code 1."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            raise click.ClickException(one_line(str(error)) or "not enough memory") from error


class OneLine(logging.Formatter):
    """Log lines without what moves a cursor: names of files come from anybody. A traceback after one is as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def log_to_terminal() -> None:
    """Send the log to the terminal, where results are not."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def one_line(text: str) -> str:
    """Text for a terminal, with escapes for the control characters and line ends that a name or a file may hold."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
