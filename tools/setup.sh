#!/usr/bin/env bash
# Make a virtual environment with everything a demo or a test needs: tools/setup.sh [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "There is no Python 3.11 or later on the PATH; install one and try again."
    exit 2
}

# Debian names. libgomp1 is what torch, XGBoost and LightGBM compute with; the others are Open3D's.
missing_packages() {
    if command -v dpkg-query >/dev/null; then
        for package in "$@"; do
            dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' ||
                printf '%s ' "$package"
        done
    elif ! ldconfig -p 2>/dev/null | grep -q libgomp.so.1; then
        printf 'libgomp1 '
    fi
}

install_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
    elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
        sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
    else
        say "Please install these system libraries (Debian's names): $*"
        exit 2
    fi
}

python=$(find_python)
wanted=(libgomp1 libusb-1.0-0 libegl1 libgl1 libx11-6)
# Debian ships ensurepip apart from Python.
"$python" -c 'import ensurepip' 2>/dev/null || wanted+=("python3-venv")
read -r -a missing <<<"$(missing_packages "${wanted[@]}")"
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"
# constraints.txt pins what was tested; among it the torch build without CUDA where there is one.
"$venv/bin/python" -m pip install -q -c constraints.txt \
    -e 'core[openvino,serve,train]' -e 'plugins/fraud[redis,serve,train]' \
    -e 'plugins/defect[review,serve,train]' -e 'plugins/medical[serve,train]' \
    -e 'plugins/lidar[serve,train]' -e 'plugins/clip[chinese,clip,faiss,pgvector,qdrant,serve,train]' \
    -e templates --group dev
"$venv/bin/python" -m pip check >&2
