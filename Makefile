# make upscale [IMAGE=image.png]   enlarge an image (a small example if none is named)
# make test                          run all tests
# make lint                          style and types
# make build                         wheel and sdist in dist/, each of them tried in an empty environment

PYTHON ?= python3
IMAGE ?= examples/sophia.png
BIN := .venv/bin

.PHONY: upscale test lint build

upscale: .venv/ready
	$(BIN)/transformersr upscale "$(IMAGE)" -o out --overwrite

test: .venv/ready
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/transformersr  # a type checker knows a package by its folder's name
	MYPYPATH=build/types $(BIN)/mypy

build: .venv/ready
	rm -rf dist && $(BIN)/python -m build
	for package in dist/*; do \
		rm -rf build/empty && $(PYTHON) -m venv build/empty && cd build/empty && \
		bin/pip install --quiet --constraint ../../constraints.txt "../../$$package" && \
		bin/transformersr upscale ../../examples/sophia.png -o "$$(basename "$$package").png" && cd ../.. || exit 1; \
	done

# spandrel asks for a torchvision that fits a GPU's torch; the tests need neither its operators nor its dependencies
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps spandrel torchvision
	touch $@
