# A thin face of CMake's presets (CMakePresets.json): each target is a few commands to read.

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)

.DEFAULT_GOAL := build
.PHONY: build install demo check unit format clean dependencies abi-baseline

dependencies:
	@tools/install-dependencies.sh $(if $(filter check,$(MAKECMDGOALS)),check,build)
	@tools/fetch-onednn.sh

# build/release/bin/amxtrain and build/release/lib/libamxtrain.so; the tests are built by unit and check
build: dependencies
	cmake --preset release
	cmake --build --preset release --parallel $(JOBS) --target product

install: build
	cmake --install build/release --prefix $(abspath $(PREFIX))

demo: build
	tools/demo.sh

unit: build
	cmake --build --preset release --parallel $(JOBS)
	ctest --preset release --label-regex unit --parallel $(JOBS)

check:
	tools/check.sh

format:
	tools/format.sh

# The committed description of the ABI that check compares with; docs/abi-policy.md says when it may change.
abi-baseline: build
	tools/abi.sh baseline

clean:
	rm -rf build/release build/debug build/asan build/tsan build/fuzz build/coverage build/check
