"""`python -m training`."""

from transformersr.training.cli import main

if __name__ == "__main__":
    main(prog_name="python -m training")
