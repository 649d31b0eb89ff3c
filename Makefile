# Everything sets itself up: the first target that needs it makes .venv and installs into it.

VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
SOLUTION ?= fraud
DEMO     := demo/my-$(SOLUTION)
# Two cores: one thread a process, or tests and training starve one another.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint types imports docs check bench-clip bench-defect bench-fraud bench-lidar bench-medical bench-serve bench-decisions clean

demo: $(READY)  ## Scaffold a project and run every stage on the embedded data
	@test -d $(DEMO) || $(BIN)/pegboard new $(SOLUTION) my-$(SOLUTION) --output-dir demo --no-input
	@cd $(DEMO) && ../../$(BIN)/pegboard run

test: $(READY)  ## The fast tests, below ten minutes
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not own_process"
	$(BIN)/pytest -m "own_process and not slow"

test-slow: $(READY)  ## The tests that train, kill and export at length
	$(BIN)/pytest -n 2 --dist worksteal --durations 12 -m "slow and not own_process"
	$(BIN)/pytest -m "own_process and slow"

check: lint types imports docs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python tools/hooks_page.py --check

bench-fraud: $(READY)  ## Prequential folds on the handbook's data, beside XGBoost and LightGBM
	$(BIN)/python benchmarks/fraud.py

bench-clip: $(READY)  ## Emoji by their names, search among 100,000, a ViT-B/16 on every runtime
	$(BIN)/python benchmarks/clip.py
	$(BIN)/python benchmarks/clip_search.py

bench-defect: $(READY)  ## ELPV solar cells: augmentation and pretraining on and off, beside HOG + SVM
	$(BIN)/python benchmarks/defect.py

bench-lidar: $(READY)  ## Generated scenes, real frames of KITTI, and a scan of 120,000 points
	$(BIN)/python benchmarks/lidar.py

bench-medical: $(READY)  ## Hippocampus, lung nodules, and a whole CT through the exported model
	$(BIN)/python benchmarks/medical.py
	$(BIN)/python benchmarks/medical_classification.py

bench-decisions: $(READY)  ## Whole fraud decisions over HTTP, 300 a second
	$(BIN)/python benchmarks/decisions.py

bench-serve: $(READY)  ## Our server beside KServe's, MLServer, LitServe and a bare endpoint
	$(BIN)/python benchmarks/serve.py

$(READY): tools/setup.sh constraints.txt pyproject.toml core/pyproject.toml plugins/clip/pyproject.toml plugins/defect/pyproject.toml plugins/fraud/pyproject.toml plugins/lidar/pyproject.toml plugins/medical/pyproject.toml templates/pyproject.toml
	tools/setup.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) demo bench-results
