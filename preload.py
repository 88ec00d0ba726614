"""The WebUI's command-line options of this extension, read before anything else of it is loaded."""

from __future__ import annotations

import argparse
import os


def preload(parser: argparse.ArgumentParser) -> None:
    """Called by the WebUI with its own parser."""
    parser.add_argument(
        "--transformersr-models-path",
        type=os.path.abspath,
        help="folder with further TransformerSR models, beside models/TransformerSR",
    )
