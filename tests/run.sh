#!/usr/bin/env bash
# Installs diffax with what its tests need, in .venv or $VENV, and runs them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q -e '.[experiments,test]'
exec "$venv/bin/python" -m pytest "$@"
