#!/usr/bin/env bash
# The Quickstart of README.md: install, train on digits, draw and evaluate 1,000 samples. Run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${VENV:-.venv}
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q -e '.[experiments]'
python=$venv/bin/python
"$python" -m experiments.train --config=digits --workdir=runs/digits
"$python" -m experiments.sample --checkpoint=runs/digits --out=runs/digits/drawn --num=1000
"$python" -m experiments.evaluate --samples=runs/digits/drawn
