"""The weights that come with the package, one `.safetensors` and one card (`.md`) a model."""
