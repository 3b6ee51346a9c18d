"""TailGuard beside LitServe, BentoML and a plain FastAPI script: the same bundle, decode, threads and load, in one run.

python -m tests.bench.peers --out tests/bench/peers/results.json [--markdown]
"""
