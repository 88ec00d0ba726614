"""Settings and images for all tests."""

import pytest
import torch

from synthetic_images import synthetic_image

torch.set_num_threads(1)  # the networks here are so small that sharing them out takes longer than running them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of six small drawings."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        synthetic_image(index).save(folder / f"{index}.png")
    return folder
