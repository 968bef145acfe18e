# `make lab`, `make run` and `make test` each work as the first command after `git clone`.
PYTHON ?= python3
ENV := .venv
READY := $(ENV)/ready
RUN := $(CURDIR)/$(ENV)/bin/python -m

.PHONY: lab run test bench models data colab
lab: $(READY)
	cd notebooks && $(RUN) jupyterlab
run: $(READY)
	$(RUN) helpers.notebooks
test: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder --doctest-modules --nbval --nbval-cell-timeout 600 helpers tests notebooks
bench: $(READY)
	$(RUN) tests.bench.bench
models: $(READY)
	$(RUN) helpers.models
	$(RUN) helpers.toxicity
data: $(READY)
	$(RUN) helpers.tldr
colab: $(READY)
	$(RUN) helpers.colab $(REF)

# The environment, made anew only when the requirements change.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} is too old or too new: the course needs 3.11, 3.12 or 3.13. Name one with: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv --clear $(ENV)
	$(RUN) pip install --quiet --requirement requirements.txt
	touch $@
