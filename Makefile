# Every target sets up what it needs; CI calls the same ones.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
SOURCES := pyproject.toml constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
PATHS := flextopo tests benchmarks examples interop docs/figures

.PHONY: install docs links pages figures interop format lint type test test-slow fuzz cover compare tables results planning learnt seeds recorded reproduce fit stress gangs in-range leaderboard replay report serve train-zoo train-imitation ablation bench-serve bench bench-ppo ppo-table bench-peers bench-compare bench-baseline wheel dist lowest newest check clean

$(VENV)/.core: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[report]"
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,report,export,serve,kube,agent,sweep,docs,dev]"
	@touch $@

install: $(VENV)/.dev  ## everything for development, in .venv

compare: $(VENV)/.core  ## all selectors and the shipped policies on the embedded workload
	$(BIN)/flextopo compare $(ARGS)

test: $(VENV)/.dev  ## all tests but the slow ones
	$(BIN)/python -m pytest --numprocesses 2 --quiet -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev  ## tests that take minutes
	$(BIN)/python -m pytest -m "slow and not fuzz" $(ARGS)

fuzz: $(VENV)/.dev  ## damaged files, five minutes a reader; ARGS="--fuzz-seconds 60 -k trace"
	$(BIN)/python -m pytest tests/fuzz -m fuzz $(ARGS)

cover: $(VENV)/.dev  ## coverage; the kernels run as plain Python to be seen, so this takes longer
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest --numprocesses 2 --quiet -m "not slow" --cov $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format $(PATHS)
	$(BIN)/ruff check --fix $(PATHS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/ruff check $(PATHS)
	$(BIN)/codespell $(PATHS) README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs/*.md docs/*/*.md .github

type: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev  ## build the wheel and install it alone in a fresh environment
	rm -rf dist build/bare
	$(BIN)/python -m build --quiet --wheel
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && bare/bin/python -c "import flextopo; print(flextopo.__file__)" && bare/bin/flextopo --version

dist: $(VENV)/.dev  ## sdist and wheels, checked and tried alone: what a release is made of
	rm -rf dist build/release build/twine
	$(BIN)/python -m build --quiet
	$(BIN)/python deploy/machine_code.py dist/*-none-any.whl
	$(PYTHON) -m venv build/twine
	build/twine/bin/python -m pip install --quiet --constraint constraints.txt twine==6.2.0
	build/twine/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet --constraint constraints.txt dist/*-cp3*.whl
	cd build/release && bin/flextopo list && bin/flextopo topology show rtx4090 && bin/python -c "import time; begin = time.perf_counter(); import gymnasium, flextopo; env = gymnasium.make('flextopo/Preempt-RTX4090-v0', servers='2*rtx4090'); env.reset(seed=0); print(env.step(0)[1], f'after {time.perf_counter() - begin:.1f} s')"

BOUNDS := $(addprefix tests/,conformance/test_environments.py conformance/test_vector.py \
  property/test_candidates.py $(addprefix unit/test_,captures.py captures_xml.py cli.py compare.py \
  features.py kernels.py placement.py policies.py selectors.py service.py simulator.py state.py \
  topology_resource.py vec_env.py workload.py))

lowest: ARGS := --requirement build/lowest/pins.txt
newest: ARGS := "$(TORCH)"
lowest newest:  ## what pyproject.toml says works: its lowest versions, or the newest, without constraints
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	build/$@/bin/python -m pip install --quiet uv==0.13.9
	build/$@/bin/uv pip compile pyproject.toml --quiet --python build/$@/bin/python --extra train --extra report --extra runtime --extra serve --resolution lowest-direct --no-deps --no-header --no-annotate --output-file build/$@/pins.txt
	build/$@/bin/python -m pip install --quiet $(ARGS) --editable ".[train,report,runtime,serve]" pytest hypothesis httpx
	build/$@/bin/python -m pip freeze
	cd build/$@ && bin/flextopo compare --seeds 2
	build/$@/bin/python -m pytest --quiet -m "not slow" $(BOUNDS)

TRACES ?= ../shared/data

tables: $(VENV)/.core  ## every table played again, hours of it; goes on where it was stopped; ARGS=--plan
	$(BIN)/python benchmarks/tables.py --traces $(TRACES) $(ARGS)
	$(MAKE) report
	@echo "not among them: measured times (make bench bench-ppo ppo-table, on a quiet machine), make in-range leaderboard, python -m flextopo.train.distil, planning_knowledge.py of the benchmarks, and ablation.json, which is of the simulator of version 0.1"

# The groups of tables, each played whether or not it is done.
GROUP = $(BIN)/python benchmarks/tables.py $@ --traces $(TRACES)

results: $(VENV)/.core  ## the comparisons behind most tables of README and docs/results.md
	$(GROUP)

planning: $(VENV)/.core  ## the tables of looking ahead in docs/results.md; 42 minutes
	$(GROUP)

learnt: $(VENV)/.core  ## the tables of the policy that learnt from plans; five minutes; TRACES=FOLDER
	$(GROUP)

seeds: $(VENV)/.core  ## the table of its training seeds; half an hour; TRACES=FOLDER
	$(GROUP)

recorded: $(VENV)/.core  ## the comparisons on recorded demand and jobs; TRACES=FOLDER has them
	$(GROUP)

reproduce: $(VENV)/.core  ## the paper's hit rates, and what they depend on
	$(GROUP)

fit: $(VENV)/.core  ## the hours of requeue-aware, on validation days; a minute
	$(GROUP)

gangs: $(VENV)/.core  ## the tables of docs/gangs.md; half an hour
	$(GROUP)

stress: $(VENV)/.core  ## the table of disturbed worlds in docs/results.md; two to ten minutes
	$(GROUP)

replay: $(VENV)/.dev  ## a tenth of the saved seeds again, bit for bit; ARGS="--part 3"
	$(BIN)/python benchmarks/replay_results.py --traces $(TRACES) $(ARGS)

RANKED := random kubernetes godel flextopo-best-effort flextopo-guaranteed flextopo kubernetes-workload kueue volcano greedy-cost gfs requeue-aware lookahead oracle-lookahead requeue-aware+plan@64 deepset-imitation deepset-imitation@0 deepset-planning deepset-planning@0
RECORDED ?= recorded

leaderboard: $(VENV)/.core  ## play what is missing of our entries, and write the page; RECORDED=FOLDER of docs/benchmark.md
	for each in $(RANKED); do \
	  $(BIN)/flextopo bench run $$each --by flextopo --traces $(RECORDED) --out leaderboard/v1/$$each.json || exit; \
	done
	$(BIN)/flextopo bench run exact --by flextopo --traces $(RECORDED) --tracks rtx4090,a100,mixed,recorded,stress --out leaderboard/v1/exact.json
	$(BIN)/flextopo bench table leaderboard/v1 --out docs/leaderboard.md

in-range: $(VENV)/.core  ## the table of a policy within its training ranges; five minutes
	$(BIN)/python benchmarks/in_range.py --json docs/results/in-range.json

report: $(VENV)/.core  ## write the generated blocks of README.md and docs
	$(BIN)/flextopo report
	$(BIN)/flextopo report --readme docs/results.md
	$(BIN)/flextopo report --readme docs/environment.md
	$(BIN)/flextopo report --readme docs/gangs.md
	$(BIN)/flextopo report --readme docs/benchmark.md
	$(BIN)/flextopo report --readme docs/how-to/train-with-ppo.md
	$(BIN)/python -m flextopo.cli.reference docs/command-line.md

docs: $(VENV)/.dev  ## the site, into build/site; warnings and broken links are errors
	$(BIN)/python tests/website.py

links: $(VENV)/.dev  ## links between pages, from their text; ARGS=--external asks other hosts
	$(BIN)/python tests/links.py $(ARGS)

figures: $(VENV)/.core  ## the drawings of docs/method.md
	$(BIN)/python docs/figures/draw.py

interop: $(VENV)/.core  ## other libraries, each in an environment of its own under build/interop; ARGS="rllib"
	$(BIN)/python interop/run.py $(ARGS)

pages: $(VENV)/.dev  ## run the code of docs, and write what it prints into the pages; a minute
	$(BIN)/python tests/pages.py docs/*.md docs/how-to/*.md

ablation: $(VENV)/.dev  ## what each ingredient buys; after train-imitation
	$(BIN)/flextopo ablate runs/zoo --json docs/results/ablation.json

train-zoo: $(VENV)/.dev  ## train deepset-planning again, into runs/planned: the shipped bits
	$(BIN)/flextopo train --algorithm planning --out runs/planned

train-imitation: $(VENV)/.dev  ## imitation and improvement as for deepset-imitation, into runs/zoo
	$(BIN)/flextopo train --algorithm imitation --out runs/zoo

serve: $(VENV)/.dev  ## the service on port 8080; ARGS="--snapshot cluster.json"
	$(BIN)/flextopo serve $(ARGS)

bench-serve: $(VENV)/.dev  ## latencies of the extender under load
	$(BIN)/python benchmarks/serving.py $(ARGS)

bench: $(VENV)/.dev  ## speeds, as ratios measured in one run
	$(BIN)/python benchmarks/speed.py --out docs/results

bench-gangs: $(VENV)/.dev  ## the search for victims of gangs, by the size of the cluster
	$(BIN)/python benchmarks/gangs.py $(ARGS)

bench-ppo: $(VENV)/.dev  ## examples/ppo.py beside MaskablePPO with the same network: speed and loss
	$(BIN)/python benchmarks/ppo.py --json docs/results/ppo-speed.json $(ARGS)

ppo-table: $(VENV)/.dev  ## what PPO makes of minutes; half an hour
	for decisions in 400000 2000000 5000000; do $(BIN)/python benchmarks/ppo_budget.py example $$decisions || exit; done
	for decisions in 600000 1200000; do $(BIN)/python benchmarks/ppo_budget.py MaskablePPO $$decisions || exit; done

bench-peers: $(VENV)/.dev  ## other scheduling environments in the same run, each installed by itself
	$(BIN)/python benchmarks/peers.py $(ARGS)

bench-compare: $(VENV)/.dev  ## fail if anything is a fifth slower than benchmarks/baseline.json
	$(BIN)/python benchmarks/regression.py compare $(ARGS)

bench-baseline: $(VENV)/.dev  ## write benchmarks/baseline.json anew
	$(BIN)/python benchmarks/regression.py baseline $(ARGS)

check: lint type wheel docs test  ## all that CI runs

clean:
	rm -rf $(VENV) build dist results .mypy_cache .ruff_cache .pytest_cache
