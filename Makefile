# Everything is one command; each installs what it needs, once. Variables: DEMO_SECONDS, SOURCE, SPECIES,
# TRAIN_MINUTES, PYTHON, and for install-systemd PREFIX and DESTDIR.
# Without a GPU set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, or `make test` takes PyTorch's CUDA build.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# GStreamer has no wheels: it comes from the distribution, and so does the Python that can use it.
APT_RUNTIME := python3-venv python3-gi python3-gst-1.0 gir1.2-gstreamer-1.0 gir1.2-gst-plugins-base-1.0 \
	gir1.2-gst-rtsp-server-1.0 gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-rtsp
APT_TEST := systemd

# Two helpers, and what compares training runs that have to be there.
BENCH_APART := $(addprefix benchmarks/,machine.py slope.py distillation.py)

TRAIN_MINUTES ?= 120
PREFIX ?= /opt/barnsight
DESTDIR ?=

export DEMO_SECONDS SOURCE SPECIES

# Install the packages in $(1) that are missing: one question to dpkg, apt only if the answer asks for it.
define apt_install
	@missing=$$(comm -23 <(printf '%s\n' $(1) | sort) \
		<(dpkg-query --show --showformat '$${db:Status-Status} $${Package}\n' $(1) 2>/dev/null \
			| sed -n 's/^installed //p' | sort)); \
	if [[ -n $$missing ]]; then \
		command -v apt-get >/dev/null || { echo "No apt here: install these by other means, then run make with" \
			"APT_RUNTIME= APT_TEST= :" $$missing >&2; exit 69; }; \
		echo "Installing system packages:" $$missing; \
		$(SUDO) apt-get update -q; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
endef

.PHONY: help install install-dev system-packages system-packages-test demo test check compile bench train \
	install-systemd clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install what the daemon and the demonstration need

install-dev: $(VENV)/.installed-dev  ## Install what training, export and the tests need too

demo: install  ## Follow a simulated pen (DEMO_SECONDS=60), or your own SOURCE=rtsp://… or file
	@$(BIN)/python examples/demo.py

test: install-dev system-packages-test  ## Run every test
	$(BIN)/python -m pytest

check: install-dev  ## Lint, formatting, types and floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

compile: install-dev  ## Compile every network, full size too, with TensorRT-RTX (no GPU; ten minutes, 4 GB)
	$(BIN)/python benchmarks/compile.py

bench: install-dev  ## Run every benchmark that needs no training run, short form
	for benchmark in $(filter-out $(BENCH_APART),$(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; $(BIN)/python "$$benchmark" --quick --json; \
	done

train: install-dev  ## Train the nano networks from nothing (hours) and export them to build/nano
	$(BIN)/barnsight-export simulate --pictures train --count 16000 --workers "$$(nproc)" --out build/pictures/train
	$(BIN)/barnsight-export simulate --pictures val --count 400 --workers "$$(nproc)" --out build/pictures/val
	$(BIN)/barnsight-export train detector --recipe nano --data build/pictures --out build/training \
		--minutes $(TRAIN_MINUTES) $(if $(wildcard build/training/checkpoint.pt),--resume)
	$(BIN)/barnsight-export train detector --recipe nano-crowds --data build/pictures --out build/training-crowds \
		--minutes $(TRAIN_MINUTES) \
		$(if $(wildcard build/training-crowds/checkpoint.pt),--resume,--init build/training/checkpoint.pt)
	$(BIN)/barnsight-export export --preset nano --checkpoint build/training-crowds/checkpoint.pt \
		--data build/pictures --out build/nano

system-packages:
	$(call apt_install,$(APT_RUNTIME))

system-packages-test: system-packages
	$(call apt_install,$(APT_TEST))

$(BIN)/python: | system-packages
	$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/.installed: pyproject.toml | system-packages $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[export,dev]'
	$(PIP_INSTALL) --no-deps trackeval==1.3.0  # its own dependencies would replace OpenCV: docs/adr/0002
	@touch $@

install-systemd:  ## Install into /opt/barnsight as a systemd service (DESTDIR= stages the files alone)
ifeq ($(DESTDIR),)
	$(call apt_install,$(APT_RUNTIME))
	$(SUDO) $(PYTHON) -m venv --system-site-packages $(PREFIX)
	$(SUDO) $(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade .
endif
	$(SUDO) install -d $(DESTDIR)$(PREFIX)/engines/nano $(DESTDIR)/etc/barnsight
	$(SUDO) install -m 0644 $(wildcard engines/nano/*.json engines/nano/*.onnx engines/nano/*.npz) \
		$(DESTDIR)$(PREFIX)/engines/nano
	sed 's|/opt/barnsight|$(PREFIX)|g' systemd/barnsight.service \
		| $(SUDO) install -D -m 0644 /dev/stdin $(DESTDIR)/etc/systemd/system/barnsight.service
	$(SUDO) install -D -m 0644 systemd/barnsight.sysusers.conf $(DESTDIR)/usr/lib/sysusers.d/barnsight.conf
	$(SUDO) install -D -m 0644 systemd/barnsight.tmpfiles.conf $(DESTDIR)/usr/lib/tmpfiles.d/barnsight.conf
	test -e $(DESTDIR)/etc/barnsight/barnsight.yaml \
		|| sed 's|/opt/barnsight|$(PREFIX)|g' systemd/example/barnsight.yaml \
		| $(SUDO) install -m 0644 /dev/stdin $(DESTDIR)/etc/barnsight/barnsight.yaml
	$(SUDO) install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/cameras.d systemd/example/cameras.d/*.yaml
	$(SUDO) install -d $(DESTDIR)/usr/local/bin
	$(SUDO) ln -sfn $(PREFIX)/bin/barnsight $(DESTDIR)/usr/local/bin/barnsight
ifeq ($(DESTDIR),)
	$(SUDO) systemd-sysusers barnsight.conf
	$(SUDO) systemd-tmpfiles --create barnsight.conf
	if [[ -d /run/systemd/system ]]; then $(SUDO) systemctl daemon-reload; fi
	@echo "Next: a camera file in /etc/barnsight/cameras.d (examples: $(PREFIX)/share/cameras.d), then"
	@echo "      sudo -u barnsight barnsight config check && sudo systemctl enable --now barnsight"
endif

clean:  ## Remove what was installed and made in this folder
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
