# Everything here works in a fresh clone. What it brings lies in .cache (tools, Python
# environments), in the user's cache (ONNX Runtime's library) or in bin and demo.

SHELL := /bin/sh
GO ?= go
PREFIX ?= /usr/local
# The build of ONNX Runtime to bring: cpu, or cuda (linux/amd64 only).
RUNTIME ?= cpu
# Where to measure: cpu or cuda.
PROVIDER ?= cpu
FUZZTIME ?= 30s
REQUESTS ?= 20000
SOAK_TIME ?= 10m
TESTFLAGS ?= -timeout 20m
DEMO_LEVEL ?= 1
# Folders with data sets that quality is measured on beside the drawn ones; none by default.
DATASETS ?=
export DATASETS
DATASET ?= $(firstword $(DATASETS))
DEFECT ?= crack
ADDR ?= 127.0.0.1:5029

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GRPCIO_TOOLS := grpcio-tools==1.85.1

# onnxruntime_go is C, and so is the race detector.
export CGO_ENABLED := 1
# Nobody is asked anything.
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo build runtime serve test venv snippets lint bench bench-serve soak quality quality-quick false-alarms ablation pictures interop proto fuzz fuzz-http install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: build runtime ## train on real tiles, then say which of the test images are anomalous
	@mkdir -p demo
	bin/anomaly train testdata/tiles/train/good --level $(DEMO_LEVEL) --image-size 128 --out demo/model.zip --force
	@echo 'bin/anomaly detect --model demo/model.zip --heatmap demo/heatmaps testdata/tiles/test/good testdata/tiles/test/blowhole testdata/tiles/test/crack'
	@code=0; bin/anomaly detect --model demo/model.zip --heatmap demo/heatmaps \
		testdata/tiles/test/good testdata/tiles/test/blowhole testdata/tiles/test/crack || code=$$?; \
	if [ $$code -gt 1 ]; then exit $$code; fi

build: ## compile bin/anomaly
	$(GO) build -trimpath -o bin/anomaly ./cmd/anomaly

runtime: ## bring ONNX Runtime's library, where it is not in the cache (RUNTIME=cpu|cuda)
	@scripts/fetch-onnxruntime.sh $(RUNTIME)

serve: build runtime ## serve HTTP on ADDR, 127.0.0.1:5029
	bin/anomaly serve --addr $(ADDR)

test: runtime venv snippets ## all tests, with the race detector
	@if [ -z "$$ANOMALY_TEST_PYTHON" ] && [ -x .cache/venv/bin/python ] && [ -e .cache/venv/ready ]; then \
		ANOMALY_TEST_PYTHON='$(CURDIR)/.cache/venv/bin/python'; export ANOMALY_TEST_PYTHON; \
	fi; \
	ANOMALY_TEST_SNIPPETS="$${ANOMALY_TEST_SNIPPETS:-$(CURDIR)/.cache/snippets}"; export ANOMALY_TEST_SNIPPETS; \
	echo "go test -race $(TESTFLAGS) ./..."; \
	$(GO) test -race $(TESTFLAGS) ./...

# The Python that tests run the README's examples and predict.py with.
venv:
	@[ -n "$$ANOMALY_TEST_PYTHON" ] || scripts/test-venv.sh

snippets: ## bring what the tests need to run the programs in a model's README
	@[ -n "$$ANOMALY_TEST_SNIPPETS" ] || scripts/snippets.sh

lint: ## go vet, gofmt, staticcheck, govulncheck, warnings of the C compiler
	$(GO) vet ./...
	@bad=$$(find . -name '*.go' -not -path './.*' -exec gofmt -l {} +); \
	if [ -n "$$bad" ]; then echo "not as gofmt writes it:"; echo "$$bad"; exit 1; fi
	@for f in internal/kernels/*.c; do \
		case $$f in *_amd64.c) [ "$$($(GO) env GOARCH)" = amd64 ] || continue ;; esac; \
		$$($(GO) env CC) -O2 -Wall -Wextra -Werror -c -o /dev/null "$$f" || exit 1; \
	done
	@for f in scripts/*.sh; do sh -n "$$f" || exit 1; done
	$(GO) run $(STATICCHECK) ./...
	@scripts/govulncheck.sh

bench: build runtime ## training and serving beside PyTorch and Flask, in one run (PROVIDER=cuda: the step on a GPU)
	@if [ '$(PROVIDER)' = cuda ]; then $(MAKE) runtime RUNTIME=cuda && scripts/bench-cuda.sh; else scripts/bench.sh; fi

quality: runtime ## how well defects are found, beside the Python recipe (DATASETS="folder ...")
	scripts/quality.sh measure

quality-quick: runtime ## the same at level 1, without the recipe; fails below the floors
	scripts/quality.sh quick

false-alarms: runtime ## the promise on false alarms over random splits; fails when it is off
	scripts/quality.sh splits

ablation: runtime ## what each ingredient of the measure is worth
	scripts/quality.sh ablation

pictures: runtime ## draw what is found and missed of DEFECT in DATASET, into docs
	@if [ -z '$(DATASET)' ]; then echo 'There is no data set to draw from: name its folder, make pictures DATASET=folder DEFECT=crack' >&2; exit 1; fi
	scripts/quality.sh pictures '$(DATASET)' '$(DEFECT)' --found 'docs/$(DEFECT)s-found.jpg' --missed 'docs/$(DEFECT)s-missed.jpg'

bench-serve: build runtime ## /detect beside PyTorch and Flask: one client, eight, memory, cold start
	scripts/bench.sh -only serve

soak: build runtime ## keep a service busy for SOAK_TIME, 10m, with more than it likes
	SOAK_TIME='$(SOAK_TIME)' $(GO) test ./bench -run '^TestSoak$$' -v -count=1 -timeout 0

interop: build runtime ## models in PyTorch, ONNX Runtime, OpenCV, tract, Gorgonia and browsers
	scripts/interop.sh

proto: ## write internal/onnx/onnx.pb.go from onnx.proto
	@mkdir -p .cache/tools
	GOBIN='$(CURDIR)/.cache/tools' $(GO) install $(PROTOC_GEN_GO)
	@if [ ! -x .cache/venv-proto/bin/python ]; then python3 -m venv .cache/venv-proto; fi
	.cache/venv-proto/bin/python -m pip install --quiet $(GRPCIO_TOOLS)
	.cache/venv-proto/bin/python -m grpc_tools.protoc --plugin=protoc-gen-go=.cache/tools/protoc-gen-go \
		--proto_path=internal/onnx --go_out=internal/onnx --go_opt=paths=source_relative onnx.proto

fuzz: runtime ## run each fuzz target for FUZZTIME, 30s
	@FUZZTIME='$(FUZZTIME)' GO='$(GO)' scripts/fuzz.sh

fuzz-http: build runtime ## fuzz the service from its OpenAPI document with REQUESTS requests, 20000
	REQUESTS='$(REQUESTS)' scripts/fuzz-http.sh

install: build runtime ## bin/anomaly and the library, under PREFIX
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib'
	install -m 755 bin/anomaly '$(DESTDIR)$(PREFIX)/bin/anomaly'
	@dir=$$(scripts/fetch-onnxruntime.sh $(RUNTIME) --path) && \
	for f in "$$dir"/libonnxruntime*; do install -m 755 "$$f" '$(DESTDIR)$(PREFIX)/lib/' || exit 1; done

clean: ## remove what was built here; the library in the user's cache stays
	rm -rf bin demo .cache
