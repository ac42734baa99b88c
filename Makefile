# make demo   distil the built-in digits dataset and compare with three baselines (two to three minutes on 2 CPU cores)
# make test   run the test suite          make lint   ruff and mypy          make bench   speed
# make same AGAINST=COMMIT   compare what the working tree distils with what a commit does, to the bit (a minute or two);
#                            RESUMED=1: the commit begins the runs, and the working tree finishes them
# make install   the virtual environment alone; also after a pull that a script answers with "run make install"
# VENV=DIR puts the virtual environment elsewhere; PYTHON=python3.12 chooses the interpreter it is made with.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The stamp is named by content, so an environment serves every checkout with the same requirements.
STAMP := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test lint bench same install env clean

demo: env
	$(BIN)/python demo.py

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# Folders whose names cannot be imported, each by itself, for their scripts share names.
	@for folder in ImageNet-abcde/ 3D-MNIST/ corruption-exp/; do echo "mypy $$folder" && $(BIN)/mypy "$$folder"*.py || exit 1; done

bench: env
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/trajectory.py

same: $(if $(AGAINST),env)
	@[ -n '$(AGAINST)' ] || { echo 'make same compares with a commit, and was given none: make same AGAINST=HEAD~1' >&2; exit 2; }
	$(BIN)/python tests/same.py '$(AGAINST)' $(if $(RESUMED),--resumed)

# Once more even where it is installed: the install knows the packages that there were at the time.
install: env
	$(BIN)/python -m pip install -q --no-deps -e .

# The editable install points to one checkout: say so again whenever another one used this environment last.
env: $(STAMP)
	@if [ "$$(cat '$(VENV)/.checkout' 2>/dev/null)" != '$(CURDIR)' ]; then \
	  $(BIN)/python -m pip install -q --no-deps -e . && printf '%s\n' '$(CURDIR)' > '$(VENV)/.checkout'; fi

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'FreD needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 2; }
	@[ -x '$(BIN)/python' ] || $(PYTHON) -m venv '$(VENV)'
	@echo 'installing requirements into $(VENV) (torch alone is several GB; once only)'
	$(BIN)/python -m pip install -q -r requirements.txt
	@printf '%s\n' '$(CURDIR)' > '$(VENV)/.checkout'
	@touch '$@'

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
