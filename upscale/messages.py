"""What the commands say when something cannot be done."""

from __future__ import annotations

import click


class Messages(click.Group):
    """Turns the errors that say what to do into one line and exit code 1."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error
