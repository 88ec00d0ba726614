"""`python -m transformersr`: the same program as the `transformersr` command."""

from .upscale.cli import main

if __name__ == "__main__":
    main()
