# make upscale [IMAGE=image.png]   upscale an image (by default a small example)
# make test                        run all tests
# make lint                        check style and types
# make build                       build the wheel and sdist in dist/ and test each in a fresh environment

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
	mkdir -p build/types && ln -sfn ../.. build/types/transformersr  # mypy takes a package's name from its folder
	MYPYPATH=build/types $(BIN)/mypy

build: .venv/ready
	rm -rf dist && $(BIN)/python -m build
	for package in dist/*; do \
		rm -rf build/fresh && $(PYTHON) -m venv build/fresh && cd build/fresh && \
		bin/pip install --quiet --constraint ../../constraints.txt "../../$$package" && \
		bin/transformersr upscale ../../examples/sophia.png -o "$$(basename "$$package").png" && cd ../.. || exit 1; \
	done

# spandrel would pull in a torchvision built for a GPU's torch; the tests need neither its operators nor its dependencies
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps spandrel torchvision
	touch $@
