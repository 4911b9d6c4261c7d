# What a person runs is what CI runs.

.PHONY: help install test lint format bench bench-compare fuzz soak reliability ci clean

help:
	@echo "make install   install for development, native code included"
	@echo "make test      every test but those that need a GPU"
	@echo "make lint      ruff, mypy strict"
	@echo "make format    let ruff rewrite what it can"
	@echo "make bench     every benchmark, records appended"
	@echo "make bench-compare  what is not the model's in a token, against the last committed record"
	@echo "make fuzz      100,000 random edits of models, and ten minutes of coverage-guided ones (atheris); 100,000 requests"
	@echo "make soak      the server under mixed load and faults for 30 minutes: memory, descriptors, threads flat"
	@echo "make reliability  every promise of the README, tried as often as it says"
	@echo "make ci        what CI runs: a fresh environment, the README's commands, lint"

install:
	pip install -e '.[dev]'

test:
	pytest

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

bench:
	python benchmarks/sampler.py --record
	python benchmarks/detokenizer.py --record
	python benchmarks/decode.py --record
	python benchmarks/decode.py --stages --threads 1 --tokens 1500 --record
	python benchmarks/batching.py --record
	python benchmarks/neighbour.py --record
	python benchmarks/prefix.py --record
	python benchmarks/session.py --record
	python benchmarks/latency.py --record
	python benchmarks/speculation.py --record
	python benchmarks/serve.py --record
	python benchmarks/batch.py --record
	python benchmarks/startup.py --record
	python benchmarks/isolation.py --record
	python benchmarks/cancel.py --record
	python benchmarks/interrupts.py --record
	python benchmarks/preflight.py --record
	python tools/bench_compare.py --record

bench-compare:
	python tools/bench_compare.py

fuzz:
	python tools/fuzz_gguf.py --count 100000 --seed 1 --workers 2 --save fuzz-findings
	python tools/fuzz_reader.py --seconds 600 --save fuzz-findings
	python tools/fuzz_server.py --count 100000 --record

soak:
	python tools/soak.py --minutes 30 --record

reliability:
	python tools/reliability.py --record

ci:
	.ci/run

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .hypothesis gguf_engine/sampling/_native*.so gguf_engine/backend/_native*.so
