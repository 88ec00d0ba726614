"""The extension's command-line options for the WebUI, which reads them before it loads anything else of the extension."""

from __future__ import annotations

import argparse
import os


def preload(parser: argparse.ArgumentParser) -> None:
    """Add our options to the WebUI's parser."""
    parser.add_argument(
        "--transformersr-models-path",
        type=os.path.abspath,
        help="folder with more TransformerSR models, in addition to models/TransformerSR",
    )
