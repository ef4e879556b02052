# Two commands do all set-up on a fresh machine: `make demo` and `make test`.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-io test-jax sweep

# The environment is made anew when the dependencies change.
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

# Classes that show in all frames and classes that show briefly, which averaging misses.
DATA := --kinds=static,brief --num_classes=36 --max_frames=40
TRAIN := --train_data_pattern='demo/data/train/*.tfrecord' --num_classes=36 \
  --max_frames=40 --batch_size=128 --num_epochs=0 --max_steps=300
EVAL := --eval_data_pattern='demo/data/validate/*.tfrecord' --run_once

# Trains two models on embedded data, scores them, writes a submission, exports one.
demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/yt8m synthesize --output_dir=demo/data/train --num_videos=3000 --num_shards=8 $(DATA)
	$(BIN)/yt8m synthesize --output_dir=demo/data/validate --split=validate --num_videos=1000 $(DATA)
	$(BIN)/yt8m synthesize --output_dir=demo/data/test --split=test --num_videos=500 $(DATA)
	$(BIN)/python train.py --model=FrameLevelLogisticModel --base_learning_rate=0.03 \
	  --train_dir=demo/logistic $(TRAIN)
	$(BIN)/python eval.py --train_dir=demo/logistic $(EVAL)
	$(BIN)/python train.py --model=NetVLADModel --model_args="clusters=16,hidden_size=128" \
	  --base_learning_rate=0.01 --train_dir=demo/netvlad $(TRAIN)
	$(BIN)/python eval.py --train_dir=demo/netvlad $(EVAL)
	$(BIN)/python inference.py --train_dir=demo/netvlad \
	  --input_data_pattern='demo/data/test/*.tfrecord' --output_file=demo/submission.csv
	$(BIN)/yt8m validate-submission demo/submission.csv --num_classes=36 \
	  --input_data_pattern='demo/data/test/*.tfrecord'
	$(BIN)/python export_model.py --train_dir=demo/netvlad --output_dir=demo/export
	@echo "Look at demo/submission.csv, demo/netvlad/ and demo/export/."

# So many tests at once: more than half of the time they are on one core.
TEST_PROCESSES ?= 2

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

# A second environment, with tensorflow-io and the TensorFlow that it loads with, which
# is also the oldest one supported: shards over HTTP, and what most depends on a version.
IO_TESTS := remote records pipeline training_step export

$(VENV)-io/installed: setup.py
	$(PYTHON) -m venv $(VENV)-io
	$(VENV)-io/bin/pip install -q --upgrade pip
	$(VENV)-io/bin/pip install -q -e '.[io,dev]'
	touch $@

test-io: $(VENV)-io/installed
	$(VENV)-io/bin/python -m pytest $(IO_TESTS:%=tests/test_%.py)

# A third one, with JAX, the same Keras and no TensorFlow: there every model gives the
# numbers that it gives on TensorFlow.
KERAS = $(shell $(BIN)/python -c 'from importlib import metadata as m; print(m.version("keras"))')

$(VENV)-jax/installed: $(VENV)/installed-dev
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/pip install -q --upgrade pip
	$(VENV)-jax/bin/pip install -q keras==$(KERAS) jax numpy absl-py pytest
	touch $@

test-jax: export YT8M_NUMBERS = $(VENV)-jax/numbers.npz
test-jax: $(VENV)-jax/installed
	$(BIN)/python tests/jax_numbers.py
	$(VENV)-jax/bin/python -m benchmarks --device=cpu --backend=jax --quick
	KERAS_BACKEND=jax $(VENV)-jax/bin/python -m pytest --noconftest tests/jax_numbers.py

# Every recipe at reduced size; writes docs/models.md and docs/recipes.md. Then the tests
# that otherwise take one model of each family, of every model.
EVERY_MODEL_TESTS := models xla synchronized_norm distributed_evaluation

sweep: $(VENV)/installed-dev
	$(BIN)/yt8m models --format=markdown --output_file=docs/models.md
	$(BIN)/python -m benchmarks.sweep
	YT8M_EVERY_MODEL=1 $(BIN)/python -m pytest $(EVERY_MODEL_TESTS:%=tests/test_%.py)
