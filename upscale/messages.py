"""Terminal output of the commands: progress bar, log and error messages."""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed} done, {remaining} left{postfix}"
"""Format of tqdm's progress bar."""


class Interrupted(BaseException):
    """Carries Ctrl-C past click, which would turn it into an exit code."""


class Messages(click.Group):
    """Command group that reports expected errors in one line with exit code 1, and follows shell conventions.

    Characters that the output's encoding lacks are escaped. Ctrl-C ends the process by its signal, so that a shell loop around it stops
    too. A closed standard output (`| head`) is not an error.
    """

    def main(self, *args, **extra):
        """Run the command line, as the program or in a test."""
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
    """Die from SIGINT, like a program that does not handle Ctrl-C: the shell reports 130 and stops its loop."""
    if sys.platform == "win32":
        sys.exit(128 + signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def close_output() -> None:
    """Redirect standard output to the null device, so that Python does not complain at exit about a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class OneLine(logging.Formatter):
    """Escapes control characters in log lines, because file names are untrusted. A traceback below a line is left as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def log_to_terminal() -> None:
    """Send the log to standard error; standard output is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def one_line(text: str) -> str:
    """Escape control characters and line ends, which a file name or a file's content may hold, for output on a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
