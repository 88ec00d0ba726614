"""What the commands say: how far they are, and why something cannot be done."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} done, {remaining} left{postfix}"
"""Of tqdm."""


class Interrupted(BaseException):
    """Ctrl-C, on its way past click, which would make an exit code of it."""


class Messages(click.Group):
    """Turns the errors that say what to do into one line and exit code 1, and keeps to the habits of shells.

    Names are written whatever letters the output takes, Ctrl-C ends the process by its signal so that a loop around it ends too, and a
    reader of standard output that has had enough (`| head`) is no error.
    """

    def main(self, *args, **extra):
        """Run as the program, or for a test."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **extra)
        except Interrupted:
            end_by_interrupt()

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error
        except BrokenPipeError:
            close_output()
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            raise click.ClickException(one_line(str(error)) or "not enough memory") from error


def end_by_interrupt() -> None:
    """End as a program does that does nothing about Ctrl-C; a shell reports 130, and stops its loop."""
    if sys.platform == "win32":
        sys.exit(128 + signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def close_output() -> None:
    """Have Python not complain, at its end, about standard output that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
