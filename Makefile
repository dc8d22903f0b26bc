PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo examples test long lint bench clean

demo: $(READY)
	$(BIN)/python examples/quickstart.py

examples: $(READY)
	for example in examples/*.py; do echo "== $$example" && $(BIN)/python $$example || exit 1; done

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

long: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal --long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p ingle

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.svi
	$(BIN)/python -m benchmarks.evidence

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings editable_mode=strict --editable '.[bench]'
	touch $@

# Strict, so that mypy sees ingle.models. It links each file, so folders whose list of files changed ask for it again.
$(READY): pyproject.toml constraints.txt $(shell find src models guides -type d -not -name '__pycache__' -not -name '*.egg-info')
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--config-settings editable_mode=strict --editable '.[examples,lint,test]'
	touch $(READY)

clean:
	rm -rf $(VENV) build out
