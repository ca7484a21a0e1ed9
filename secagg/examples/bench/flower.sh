#!/bin/sh
# Sets up Flower 1.42.0 in a virtual environment of its own (once) and runs flower.py in it, for the comparison of
# `cargo run -p consilium-secagg --example bench -- all --long`. Needs python3 and the package index.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="${XDG_CACHE_HOME:-$HOME/.cache}/consilium/flower-1.42.0"
if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    # Without its declared dependencies: it pins some that this needs not at all, to releases not found everywhere.
    "$venv/bin/pip" -q install --no-deps flwr==1.42.0
    "$venv/bin/pip" -q install 'numpy>=1.26,<3' 'cryptography>=50,<51' 'pycryptodome>=3.18,<4' 'grpcio>=1.70,<2' \
        'grpcio-health-checking>=1.70,<2' 'protobuf>=5.28,<7' 'iterators>=0.0.2,<0.0.3' 'typer>=0.13,<0.21' tomli \
        tomli-w 'pathspec>=1.0.4,<2' 'rich>=14,<15' pyyaml requests httpx 'click>=8,<9' packaging sqlalchemy prompt-toolkit
    touch "$venv/ready"
fi
exec "$venv/bin/python" "$here/flower.py" "$@"
