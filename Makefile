# Every target works in a fresh clone. Fetched files are in .cache (tools, Python
# environments) and in the user's cache (ONNX Runtime's library), built ones in bin and demo.

SHELL := /bin/sh
GO ?= go
PREFIX ?= /usr/local
# The build of ONNX Runtime to fetch: cpu, or cuda (linux/amd64 only).
RUNTIME ?= cpu
# The execution provider of the benchmark: cpu or cuda.
PROVIDER ?= cpu
FUZZTIME ?= 30s
REQUESTS ?= 20000
SOAK_TIME ?= 10m
FAULT_ROUNDS ?= 50
CLUSTER_FAULT_TIME ?= 15m
# The time of model-faults.
MODEL_FAULT_TIME ?= 2m
# A binary of an earlier version, for cluster-upgrade.
ANOMALY_PREVIOUS ?=
TESTFLAGS ?= -timeout 40m
DEMO_LEVEL ?= 1
# Folders of data sets to measure quality on, in addition to the generated ones.
DATASETS ?=
export DATASETS
DATASET ?= $(firstword $(DATASETS))
DEFECT ?= crack
ADDR ?= 127.0.0.1:5029

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GRPCIO_TOOLS := grpcio-tools==1.85.1

# onnxruntime_go and the race detector need C.
export CGO_ENABLED := 1
# pip must not wait for input.
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo build runtime serve test venv snippets lint bench bench-serve soak quality quality-quick false-alarms scratches ablation pictures interop proto fuzz fuzz-http faults cluster-faults model-faults cluster-upgrade deploy-check scaling scaling-validate page browser install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: build runtime ## train on real images of tiles, then judge others
	@mkdir -p demo
	bin/anomaly train testdata/tiles/train/good --level $(DEMO_LEVEL) --image-size 128 --out demo/model.zip --force
	@echo 'bin/anomaly detect --model demo/model.zip --heatmap demo/heatmaps testdata/tiles/test/good testdata/tiles/test/blowhole testdata/tiles/test/crack'
	@code=0; bin/anomaly detect --model demo/model.zip --heatmap demo/heatmaps \
		testdata/tiles/test/good testdata/tiles/test/blowhole testdata/tiles/test/crack || code=$$?; \
	if [ $$code -gt 1 ]; then exit $$code; fi

build: ## compile bin/anomaly
	$(GO) build -trimpath -o bin/anomaly ./cmd/anomaly

runtime: ## fetch ONNX Runtime's library, unless it is in the cache (RUNTIME=cpu|cuda)
	@scripts/fetch-onnxruntime.sh $(RUNTIME)

serve: build runtime ## serve HTTP at ADDR (127.0.0.1:5029)
	bin/anomaly serve --addr $(ADDR)

# Packages of arithmetic in one goroutine, or in those of internal/workers: the race detector
# makes their tests take many times as long.
WITHOUT_RACE = bench/quality bench/cluster/sim internal/calibration internal/decision internal/dicom internal/drift internal/imagefile \
	internal/importer internal/jpeg2000 internal/jpegextended internal/jpeglossless internal/jpegls internal/kernels

# Code of arithmetic and formats that the tests with the race detector are compiled with, and that
# it does not watch: it has no goroutines, or those of internal/workers alone. A package with
# atomic operations must not be here: they order what others do only where it watches.
UNWATCHED = image/color image/draw image/jpeg image/png $(addprefix gonum.org/v1/gonum/,internal/asm/... lapack/... stat/...) \
	$(addprefix github.com/deepmed/anomaly/internal/,kernels jpeg2000 jpegextended jpeglossless jpegls jpegmarkers optimizer synthetic)
RACE = -race $(foreach p,$(UNWATCHED),-gcflags=$(p)=-race=false)

test: runtime venv snippets ## all tests, most with the race detector
	@if [ -z "$$ANOMALY_TEST_PYTHON" ] && [ -x .cache/venv/bin/python ] && [ -e .cache/venv/ready ]; then \
		ANOMALY_TEST_PYTHON='$(CURDIR)/.cache/venv/bin/python'; export ANOMALY_TEST_PYTHON; \
	fi; \
	ANOMALY_TEST_SNIPPETS="$${ANOMALY_TEST_SNIPPETS:-$(CURDIR)/.cache/snippets}"; export ANOMALY_TEST_SNIPPETS; \
	echo "go test -race $(TESTFLAGS), all but $(WITHOUT_RACE)"; \
	$(GO) test $(RACE) $(TESTFLAGS) $$($(GO) list ./... | grep -v -E "$$(echo '$(WITHOUT_RACE)' | sed 's/\./\\./g; s/ /$$|/g')\$$") && \
	echo "go test $(TESTFLAGS) $(WITHOUT_RACE)" && $(GO) test $(TESTFLAGS) $(addprefix ./,$(WITHOUT_RACE))

# The Python environment for the README's examples and predict.py in the tests.
venv:
	@[ -n "$$ANOMALY_TEST_PYTHON" ] || scripts/test-venv.sh

snippets: ## fetch the packages for tests of the programs in a model's README
	@[ -n "$$ANOMALY_TEST_SNIPPETS" ] || scripts/snippets.sh

lint: ## go vet, gofmt, go mod tidy, staticcheck, govulncheck, warnings of the C compiler
	$(GO) vet ./...
	@bad=$$(find . -name '*.go' -not -path './.*' -exec gofmt -l {} +); \
	if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) mod tidy -diff
	@for f in internal/kernels/*.c; do \
		case $$f in *_amd64.c) [ "$$($(GO) env GOARCH)" = amd64 ] || continue ;; esac; \
		$$($(GO) env CC) -O2 -Wall -Wextra -Werror -c -o /dev/null "$$f" || exit 1; \
	done
	@for f in scripts/*.sh; do sh -n "$$f" || exit 1; done
	$(GO) run $(STATICCHECK) ./...
	@scripts/govulncheck.sh

bench: build runtime ## measure training and serving beside PyTorch and Flask (PROVIDER=cuda: a training step on a GPU)
	@if [ '$(PROVIDER)' = cuda ]; then $(MAKE) runtime RUNTIME=cuda && scripts/bench-cuda.sh; else scripts/bench.sh; fi

quality: runtime ## measure detection quality beside the Python recipe (DATASETS="folder ...")
	scripts/quality.sh measure

quality-quick: runtime ## measure quality at level 1 only; fails below the floors
	scripts/quality.sh quick

false-alarms: runtime ## measure the false alarm rate over random splits; fails off the target
	scripts/quality.sh splits

scratches: build runtime ## measure small scratches on large photos, squeezed and in tiles
	$(GO) run ./bench/quality scratches .cache/quality/scratches
	bin/anomaly evaluate .cache/quality/scratches --level 1 --image-size 256
	bin/anomaly evaluate .cache/quality/scratches --level 1 --tile 256

ablation: runtime ## measure quality without each ingredient of the measure
	scripts/quality.sh ablation

pictures: runtime ## draw found and missed images of DEFECT in DATASET, into docs
	@if [ -z '$(DATASET)' ]; then echo 'DATASET is not set: make pictures DATASET=folder DEFECT=crack' >&2; exit 1; fi
	scripts/quality.sh pictures '$(DATASET)' '$(DEFECT)' --found 'docs/$(DEFECT)s-found.jpg' --missed 'docs/$(DEFECT)s-missed.jpg'

bench-serve: build runtime ## measure /detect beside PyTorch and Flask: one client, eight, memory, cold start
	scripts/bench.sh -only serve

soak: build runtime ## overload a service for SOAK_TIME (10m)
	SOAK_TIME='$(SOAK_TIME)' $(GO) test ./bench -run '^TestSoak$$' -v -count=1 -timeout 0

interop: build runtime ## compare models in PyTorch, ONNX Runtime, OpenCV, tract, Gorgonia and browsers
	scripts/interop.sh

proto: ## generate internal/onnx/onnx.pb.go from onnx.proto
	@mkdir -p .cache/tools
	GOBIN='$(CURDIR)/.cache/tools' $(GO) install $(PROTOC_GEN_GO)
	@if [ ! -x .cache/venv-proto/bin/python ]; then python3 -m venv .cache/venv-proto; fi
	.cache/venv-proto/bin/python -m pip install --quiet $(GRPCIO_TOOLS)
	.cache/venv-proto/bin/python -m grpc_tools.protoc --plugin=protoc-gen-go=.cache/tools/protoc-gen-go \
		--proto_path=internal/onnx --go_out=internal/onnx --go_opt=paths=source_relative onnx.proto

fuzz: runtime ## run each fuzz target for FUZZTIME (30s)
	@FUZZTIME='$(FUZZTIME)' GO='$(GO)' scripts/fuzz.sh

fuzz-http: build runtime ## send REQUESTS (20000) requests generated from the OpenAPI document
	REQUESTS='$(REQUESTS)' scripts/fuzz-http.sh

faults: runtime ## kill a service in FAULT_ROUNDS (50) rounds of jobs, set its clock, fill its disk
	ANOMALY_FAULTS='$(FAULT_ROUNDS)' $(GO) test ./cmd/anomaly -v -count=1 -timeout 0 \
		-run '^TestServe_(LosesNoJobWhenKilled|LosesNoJobOnAFullDisk|ContinuesATrainingThatWasKilled|RemovesTheJobsOfAKilledServer|GivesARunningJobBackAtSIGTERM)$$'

deploy-check: ## validate what is in deploy: compose, Helm, NATS, Prometheus, Grafana
	@GO='$(GO)' scripts/deploy-check.sh

scaling: runtime ## measure service times, and simulate how many machines the service needs
	$(GO) run ./bench/cluster measure && $(GO) run ./bench/cluster plan

scaling-validate: runtime ## compare the simulation with real processes, on an idle machine
	$(GO) run ./bench/cluster validate

cluster-faults: build runtime ## kill, stop and cut off the processes of a cluster for CLUSTER_FAULT_TIME (15m)
	CLUSTER_FAULT_TIME='$(CLUSTER_FAULT_TIME)' $(GO) test ./bench/clusterfaults -run '^TestClusterFaults$$' -v -count=1 -timeout 0

model-faults: ## kill and stop NATS servers while models change, for MODEL_FAULT_TIME (2m)
	MODEL_FAULT_TIME='$(MODEL_FAULT_TIME)' $(GO) test ./internal/registry -run WhileServersFail -v -count=1 -timeout 0

cluster-upgrade: build runtime ## run this version beside ANOMALY_PREVIOUS=binary, in a folder and in a cluster
	ANOMALY_PREVIOUS='$(ANOMALY_PREVIOUS)' $(GO) test ./bench/clusterfaults -run '^TestUpgrade' -v -count=1 -timeout 0

page: ## build the web page from web/src into web/dist
	cd web && npm ci --no-audit --no-fund --silent && npm run --silent check && npm run --silent build

browser: runtime ## test the web page in Chromium, and draw the pictures of docs/page.md
	@scripts/browser.sh

install: build runtime ## install bin/anomaly and the library under PREFIX
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib'
	install -m 755 bin/anomaly '$(DESTDIR)$(PREFIX)/bin/anomaly'
	@dir=$$(scripts/fetch-onnxruntime.sh $(RUNTIME) --path) && \
	for f in "$$dir"/libonnxruntime*; do install -m 755 "$$f" '$(DESTDIR)$(PREFIX)/lib/' || exit 1; done

clean: ## remove built and fetched files, but not the library in the user's cache
	rm -rf bin demo .cache
