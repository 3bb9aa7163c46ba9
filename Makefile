# Front door of flanmoe; thin over CMake. `make help` lists what there is.
# Settings: JOBS=n compilers at a time, PRESET=release|debug|asan|clang, ARGS="..." for run (overrides) and bench.
SHELL := /bin/bash
JOBS ?= $(shell nproc)
PRESET ?= release
BUILD := build$(if $(filter-out release,$(PRESET)),-$(PRESET))
# Open MPI in containers and on small machines: root may start ranks, ranks may outnumber cores, and messages do not
# need the right to read another process's memory.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_rmaps_base_oversubscribe := 1
export OMPI_MCA_btl_vader_single_copy_mechanism := none
sources = $$(git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' 'tests/cuda_host/include/*')

.PHONY: help deps configure build run test bench scaling format format-check lint docs clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

deps:  ## install the Debian packages that are missing
	@tools/setup run

configure: deps
	@cmake --preset $(PRESET) --log-level=WARNING

build: configure  ## build the programs, without the tests
	@cmake --build $(BUILD) --parallel $(JOBS) --target programs

run: build  ## train and evaluate a small MoE model and its dense twin on real text (about 10 minutes)
	@tools/setup --lists run
	@BUILD=$(BUILD) jobs/tutorial.sh $(ARGS)

test: configure  ## build and run all tests
	@tools/setup test
	@cmake --build $(BUILD) --parallel $(JOBS)
	@ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)

bench: configure  ## measure operations and a training step against the machine's matrix-product peak
	@cmake --build $(BUILD) --parallel $(JOBS) --target flanmoe-bench
	@$(BUILD)/flanmoe-bench --json $(BUILD)/bench.json $(ARGS)

scaling: build  ## time the decks of input/scaling on 1 and 2 ranks, and compare with what is predicted
	@mkdir -p runs/scaling
	@for deck in input/scaling/*.ini; do \
	  name=$$(basename $$deck .ini); mkdir -p runs/scaling/$$name; \
	  cp runs/scaling/machine_*.json runs/scaling/$$name/ 2>/dev/null; \
	  $(BUILD)/flanmoe-scaling $$deck --output runs/scaling/$$name --calibrate $(ARGS) || exit 1; \
	  cp runs/scaling/$$name/machine_*.json runs/scaling/; done

format:  ## lay out the sources
	@tools/setup style
	@clang-format-14 -i $(sources)

format-check:  ## fail when a source is not laid out
	@tools/setup style
	@clang-format-14 --dry-run -Werror $(sources)

lint: configure  ## clang-tidy, matching file names, sizes
	@tools/setup style
	@tools/lint $(BUILD) $(JOBS)

docs: configure  ## write input/README.md from the table of deck keys
	@cmake --build $(BUILD) --parallel $(JOBS) --target flanmoe-deck-reference
	@$(BUILD)/flanmoe-deck-reference > input/README.md

clean:  ## remove what was built
	@rm -rf build build-debug build-asan build-clang
