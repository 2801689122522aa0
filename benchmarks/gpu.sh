#!/bin/sh
# What only a GPU can tell, in ten minutes at most and without a network: benchmarks/gpu.py, by whatever python is here.
# Wheels that lie in benchmarks/wheels are installed first, into benchmarks/.gpu-venv.
#   sh benchmarks/gpu.sh [--dry] [--output FILE] ...
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
[ -x "$here/../.venv/bin/python" ] && python="$here/../.venv/bin/python"
if [ -d "$here/wheels" ]; then
    [ -x "$here/.gpu-venv/bin/python" ] || python3 -m venv "$here/.gpu-venv"
    python="$here/.gpu-venv/bin/python"
    "$python" -m pip install --quiet --no-index --find-links "$here/wheels" "$here"/wheels/*.whl
fi
export HF_HUB_OFFLINE=1 PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$here/gpu.py" "$@"
