# make serve: the service on the embedded bundle. make test: everything CI tests, what needs a quiet machine at the end.
# Both start from Python 3.11 alone.
PYTHON ?= python3.11
BIN := .venv/bin
RUN := runs/digits
BUNDLES ?= runs/models

.PHONY: serve test lint bench gpu-check train-digits demo-traffic clean

serve: .venv/.serve
	$(BIN)/tailguard serve

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 5 --ignore tests/hard
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hard

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy service training

# What the service does under load beside what this machine can do at all: make bench ARGS="--framework".
bench: .venv/.dev
	$(BIN)/python -m tests.bench $(or $(ARGS),--quick)

# What only a machine with a GPU can say, in steps of at most 9 minutes: make gpu-check ARGS="--data DIR". Given again it
# goes on. An environment of its own, because onnxruntime and onnxruntime-gpu exclude each other; torch brings CUDA.
gpu-check: .venv-gpu/.done
	.venv-gpu/bin/python -m tests.gpu $(ARGS)

# The whole way on scikit-learn's digits: train, evaluate, calibrate, export, serve, decide.
train-digits: .venv/.train
	rm -rf $(RUN) $(BUNDLES)/digits
	$(BIN)/tailguard train --dataset digits --imbalance 10 --width 16 --batch-images 32 \
		--stage2-batch-images 32 --epochs 20 --stage2-epochs 5 --calibration-fraction 0.2 --out $(RUN)
	$(BIN)/tailguard evaluate $(RUN)
	$(BIN)/tailguard calibrate $(RUN)
	$(BIN)/tailguard export $(RUN) --out $(BUNDLES)
	$(BIN)/python -m tests.live $(BUNDLES)/digits/1

# Traffic like the training images, then out of distribution: rejection and drift move before your eyes.
demo-traffic: .venv/.dev
	$(BIN)/python -m tests.demo.traffic

clean:
	rm -rf .venv .venv-gpu runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch's default wheel for Linux brings gigabytes of CUDA; where there is a CPU wheel, it is found by its version.
.venv/.serve: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu]'
	touch $@

.venv/.train: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -e '.[cpu,train]' httpx
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu,train,dev]'
	touch $@ .venv/.serve .venv/.train

.venv-gpu/.done: pyproject.toml docker/constraints-gpu.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -q --disable-pip-version-check -e '.[gpu,train,backbones,client]' \
		"$$(grep ^onnxruntime-gpu docker/constraints-gpu.txt)"
	touch $@
