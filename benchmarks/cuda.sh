#!/usr/bin/env bash
# On one CUDA device, in about ten minutes: the engine's tests (same noise, same losses; fresh noise at every step), the
# examples in short, then the timings, which begin with the same question for every case. Fails loudly, after it has run
# what it can.
#
# On a machine that reaches a package index:       bash benchmarks/cuda.sh
# On one that does not, carry wheels of pyro-ppl, pyro-api, opt_einsum, arviz, pytest, scikit-learn and what they lack
# in a folder:
#                                                  WHEELS=folder bash benchmarks/cuda.sh
# NumPyro is compared with where it is installed with a JAX for the device, and its rows say so where it is not.
# With MNIST=mnist.npz the autoencoder of examples/mnist.py is trained too, for MNIST_MINUTES (default: 3) of MNIST_EPOCHS
# (default: 300) with MNIST_PARTICLES (default: 1), and tells its test NLL; its checkpoint in $OUT goes on at the next call.
# Output goes to $OUT (default: out/cuda): tests.log, examples.log, svi.md, svi.log, svi.json, evidence.md, mnist.log. TESTS,
# TESTS_SECONDS, EXAMPLES_SECONDS, SVI_SECONDS, EVIDENCE_SECONDS and the options of benchmarks.svi after the name of this
# script change what is run.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-out/cuda}"
mkdir -p "$OUT"
SITE="$(mktemp -d)"
trap 'rm -rf "$SITE"' EXIT
if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl
fi
# Without an index the build tools may be missing too: lay the package out as the wheel would.
cp -r src/ingle "$SITE/ingle"
cp -r models "$SITE/ingle/models"
cp -r guides "$SITE/ingle/guides"
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 - <<'PYTHON'
import importlib.util
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("no CUDA device")
missing = [name for name in ("pyro", "arviz", "pandas", "pytest", "sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"carry wheels of: {', '.join(missing)}")
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.cuda.get_device_name()}")
PYTHON

# A part that hangs must leave the other its time, and what it printed so far is kept.
failed=""
# shellcheck disable=SC2086  # TESTS may name several files
timeout "${TESTS_SECONDS:-180}" python3 -m pytest --device cuda --dtype float32 -q ${TESTS:-tests/engine tests/evidence/test_log_evidence.py} 2>&1 |
    tee "$OUT/tests.log" || failed="the tests"
timeout "${EXAMPLES_SECONDS:-150}" bash -e -o pipefail -c 'for example in examples/*.py; do
    echo "== $example"
    python3 "$example" --smoke --device cuda --out "$0/examples"
done' "$OUT" 2>&1 | tee "$OUT/examples.log" || failed="${failed:+$failed and }the examples"
timeout "${SVI_SECONDS:-280}" python3 -m benchmarks.svi --device cuda --threads "$(nproc)" --rounds 5 --seconds 0.5 \
    --json "$OUT/svi.json" "$@" 2> >(tee "$OUT/svi.log" >&2) | tee "$OUT/svi.md" ||
    failed="${failed:+$failed and }the timings"
timeout "${EVIDENCE_SECONDS:-120}" python3 -m benchmarks.evidence --device cuda --threads "$(nproc)" --rounds 3 \
    2>&1 | tee "$OUT/evidence.md" || failed="${failed:+$failed and }the evidence"
if [ -n "${MNIST:-}" ]; then
    python3 examples/mnist.py --device cuda --data "$MNIST" --minutes "${MNIST_MINUTES:-3}" --epochs "${MNIST_EPOCHS:-300}" \
        --particles "${MNIST_PARTICLES:-1}" --test-images 10000 --checkpoint "$OUT/mnist.pt" --out "$OUT" 2>&1 |
        tee "$OUT/mnist.log" || failed="${failed:+$failed and }MNIST"
fi
if [ -n "$failed" ]; then
    echo "FAILED: $failed" >&2
    exit 1
fi
