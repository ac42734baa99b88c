# make demo   distil the built-in digits dataset and compare with three baselines (three to six minutes on 2 CPU cores)
# make test   run the test suite          make lint   run ruff and mypy          make bench   measure the speed
# make same AGAINST=COMMIT   check that the working tree distils the same results as a commit, bit for bit (one or two
#                            minutes); with RESUMED=1 the commit begins the runs, and the working tree finishes them
# make gpu   measure what a GPU is for, in calls of ten minutes that go on where the last one stopped (OUT, MINUTES,
#            AUTHORS=PATH, DATA=PATH); DEVICE=cpu SCALE=smoke shows in minutes that it works
# make install   only make the virtual environment; needed after a pull if a script says "run make install"
# make api       make the API reference from the docstrings, in build/api       make links   open every external link
# make test-faults   kills, damaged files, option sets and full disks by the thousand, not part of make test (under half
#                    an hour on two idle cores); SHARE=0.01 runs a hundredth, SEED=1 repeats the cases of that seed
# VENV=DIR puts the virtual environment elsewhere. PYTHON=python3.12 chooses the interpreter for the environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The stamp's name is a checksum of the requirements, so checkouts with equal requirements can share an environment.
STAMP := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: demo test test-faults lint bench gpu same api links install env clean

demo: env
	$(BIN)/python demo.py

# Processes of one thread each, since threads of several would wait for each other; three, since some tests wait.
test: env
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile

test-faults: env
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m tests.faults $(if $(SHARE),--share $(SHARE)) $(if $(SEED),--seed $(SEED))

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# The names of these folders cannot be imported. Each is checked by itself, because their scripts share names.
	@for folder in ImageNet-abcde/ 3D-MNIST/ corruption-exp/; do echo "mypy $$folder" && $(BIN)/mypy "$$folder"*.py || exit 1; done

# Ours alone and eager, seven minutes on 2 CPU cores; compiled versions and the other scripts are in benchmarks/README.md.
bench: env
	$(BIN)/python benchmarks/steps.py --repeats 2 --compiled False
	$(BIN)/python benchmarks/trajectory.py --syn_steps 2 --images 80 --repeats 2 --compiled False

gpu: env
	$(BIN)/python gpu.py $(if $(OUT),--output '$(OUT)') $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DEVICE),--device $(DEVICE)) \
	  $(if $(SCALE),--scale $(SCALE)) $(if $(AUTHORS),--authors '$(AUTHORS)') $(if $(DATA),--data_path '$(DATA)')

same: $(if $(AGAINST),env)
	@[ -n '$(AGAINST)' ] || { echo 'make same compares with a commit, and was given none: make same AGAINST=HEAD~1' >&2; exit 2; }
	$(BIN)/python tests/same.py '$(AGAINST)' $(if $(RESUMED),--resumed)

# pdoc is in the extra docs, which no other target needs. It is given every module, because it would skip those that
# __all__ does not name. Its warnings are about inherited types, which it then shows as they are written.
MODULES = find common DM DC TM -name '*.py' ! -name __main__.py | sed 's|/__init__\.py$$||; s|\.py$$||; s|/|.|g' | sort
api: env
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/python -W ignore -m pdoc --docformat google -o build/api $$($(MODULES))

# Of all documents; the links within the repository are checked by the tests.
links: env
	$(BIN)/python -m tests.documents

# This installs the checkout again even if it is installed: an install knows only the packages that existed then.
install: env
	$(BIN)/python -m pip install -q --no-deps -e .

# The editable install points to one checkout. It is repeated if another checkout has used this environment since.
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
