# The project's verbs; CI calls the same ones. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help run test check bench chaos images compose-test k8s-check lock clean

VENV := .venv
PYTHON := $(VENV)/bin/python
# python3.11 where one runs, else python3
SYSTEM_PYTHON ?= $(shell for p in python3.11 python3; do $$p -c "" 2>/dev/null && command -v $$p && break; done)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
UV_VERSION := 0.13.9
# one lock for every platform and Python; hashed, and free of index addresses so that any mirror serves it
COMPILE = $(VENV)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate
INSTALL = $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes

help:  ## List the verbs
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 19

run: $(VENV)/installed-run  ## Start everything on this machine: URL http://localhost:8080, Ctrl-C stops it
	@$(PYTHON) -m tools.dev

test: $(VENV)/installed-dev  ## Run the tests; ARGS go to pytest: make test ARGS="-k relay -x"
	@$(PYTHON) -m pytest -n auto --dist worksteal $(ARGS)

check: $(VENV)/installed-dev  ## Format, lint and types, without changing a file
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

bench: $(VENV)/installed-dev  ## Measure the numbers in the README
	@$(PYTHON) -m bench $(ARGS)

chaos: $(VENV)/installed-dev  ## Break everything for a while and count what was lost: make chaos SEED=7 SECONDS=60 TOPOLOGY=cluster
	@$(PYTHON) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(TOPOLOGY),--topology $(TOPOLOGY))

images:  ## Build the images foretell-gateway and foretell-processor, also tagged with their version
	@command -v docker >/dev/null || { echo "Images need a container engine: install docker." >&2; exit 1; }
	@for target in gateway processor; do \
		docker build --target $$target --tag foretell-$$target --tag foretell-$$target:$(VERSION) \
			--label org.opencontainers.image.revision=$$(git rev-parse HEAD 2>/dev/null) . || exit 1; \
	done

compose-test: $(VENV)/installed-dev  ## Start docker compose, ask the contract of it, break it under load; needs a container engine
	@$(PYTHON) -m tests.compose

k8s-check: $(VENV)/installed-dev  ## Render and validate the Kubernetes manifests, lint YAML and Dockerfiles
	@$(PYTHON) -m tools.k8s_check

lock: $(PYTHON)  ## Resolve pyproject.toml into requirements/*.txt again, newest versions
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(COMPILE) --extra otel -o requirements/gateway.txt
	@$(COMPILE) --extra otel --extra demo -o requirements/processor.txt
	@$(COMPILE) --extra otel --extra demo --extra embedded -o requirements/run.txt
	@$(COMPILE) --extra otel --extra demo --extra embedded --extra dev -o requirements/dev.txt

clean:  ## Remove what the other verbs made, except the predictions in .data
	rm -rf $(VENV) build dist *.egg-info .coverage* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything below makes .venv. A stamp is newer than the lock it was installed from, or the install runs again.

$(PYTHON):
	@test -n "$(SYSTEM_PYTHON)" || { echo "Foretell needs Python 3.11 or newer: install it and try again." >&2; exit 1; }
	@"$(SYSTEM_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Foretell needs Python 3.11 or newer, $(SYSTEM_PYTHON) is older: install python3.11 and try again." >&2; exit 1; }
	@"$(SYSTEM_PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(SYSTEM_PYTHON) cannot make a virtual environment: install its venv package (Debian: python3.11-venv)." >&2; \
		exit 1; }

# the tests' packages contain all that `make run` needs at the same versions, so neither undoes the other
$(VENV)/installed-%: requirements/%.txt | $(PYTHON)
	@echo "Installing $< into $(VENV) ..."
	@$(INSTALL) -r $<
	@touch $@
