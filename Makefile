# make demo | demo-text | demo-speech | test | check | style | test-slow | bench | clean
# Every target sets up .venv by itself; python3 (3.10 or newer) and a package index are all that is needed.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1
.PHONY: demo demo-text demo-speech test test-slow check style bench clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python 3.10 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	@echo "Installing into .venv (once; a minute or more, PyTorch is large) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@rm -rf runs/demo
	$(LAUNCH) training/train_vqvae.py --recipe training/recipes/vqvae_digits.yaml --output_dir runs/demo
	$(BIN)/python training/demo.py runs/demo/final --picture runs/demo/demo.png

TEXT := training/recipes/seq2seq2seq_docstrings
demo-text: $(INSTALLED)
	@rm -rf runs/demo-text
	$(BIN)/python training/train_tokenizer.py --vocab_size 3000 --output_dir runs/demo-text/tokenizer
	$(LAUNCH) training/train_seq2seq2seq.py --recipe $(TEXT)_1_warm_start.yaml
	$(LAUNCH) training/train_seq2seq2seq.py --recipe $(TEXT)_2_autoencode.yaml
	$(LAUNCH) training/train_seq2seq2seq.py --recipe $(TEXT)_3_adversarial.yaml

# Synthetic voices of espeak-ng: no download. Converted clips to hear, and a picture of them, are in runs/demo-speech.
demo-speech: $(INSTALLED)
	@rm -rf runs/demo-speech
	$(LAUNCH) training/train_voice_conversion.py --recipe training/recipes/voice_conversion_espeak.yaml --output_dir runs/demo-speech/voice_conversion
	$(LAUNCH) training/train_speech_vqvae.py --recipe training/recipes/speech_vqvae_espeak.yaml --output_dir runs/demo-speech/speech_vqvae
	@echo "Listen to runs/demo-speech/voice_conversion/final/example-*.wav, and look at conversions.png beside them"

# The model tests of transformers itself run against every variant; they ship in its source distribution only.
test: $(INSTALLED)
	@$(BIN)/python scripts/fetch_transformers_tests.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_promises.py

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/fill_readme.py

bench: $(INSTALLED)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv .cache runs out
