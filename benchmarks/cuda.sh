#!/usr/bin/env bash
# The suite and the step timings on one CUDA device, with whatever torch the machine has. Fails loudly.
#
# On a machine that reaches a package index:       bash benchmarks/cuda.sh
# On one that does not, carry wheels of pyro-ppl, pyro-api, opt_einsum, arviz and what they lack in a folder:
#                                                  WHEELS=folder bash benchmarks/cuda.sh
# Output goes to $OUT (default: out/cuda): tests.log, svi.log.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-out/cuda}"
mkdir -p "$OUT"
SITE="$(mktemp -d)"
if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install --quiet --no-index --no-deps --target "$SITE" "$WHEELS"/*.whl
    export PYTHONPATH="$SITE"
fi
# Without an index the build tools may be missing too: lay the package out as the wheel would.
cp -r src/ingle "$SITE/ingle"
cp -r models "$SITE/ingle/models"
cp -r guides "$SITE/ingle/guides"
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -c "import torch; assert torch.cuda.is_available(), 'no CUDA device'; print(torch.__version__, torch.cuda.get_device_name())"
python3 -m pytest --device cuda --dtype float32 -q -x tests --deselect tests/test_house.py 2>&1 | tee "$OUT/tests.log"
python3 -m benchmarks.svi --device cuda --rounds 3 --steps 200 2>&1 | tee "$OUT/svi.log"
