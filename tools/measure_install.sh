#!/usr/bin/env bash
# What serving needs: megabytes of fresh environments, seconds to the first answer, resident memory.
#   tools/measure_install.sh [BUNDLE]        a fraud bundle; without one only sizes are measured
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1

for place in core plugins/fraud; do
    (cd "$place" && "$OLDPWD/$python" -m hatchling build -t wheel -d "$work/wheels") >/dev/null 2>&1
done

install() {  # folder, requirement
    "$python" -m venv --without-pip "$work/$1"
    "$python" -m pip --python "$work/$1" install --quiet --no-compile --find-links "$work/wheels" \
        --constraint constraints.txt "$2" 2>/dev/null
    packages=$(echo "$work/$1"/lib/python3.*/site-packages)
    printf '%-32s %5s MB  ' "$2" "$(du -sm "$packages" | cut -f 1)"
    du -sm "$packages"/* | sort -rn | head -n 6 | awk '{n = split($2, p, "/"); printf "%s %s, ", p[n], $1}'
    echo
}

install core 'pegboard[serve]'
install fraud 'pegboard-fraud[redis,serve]'
[ -n "${SKIP_TRAIN:-}" ] || install train 'pegboard-fraud[train]'

[ $# = 0 ] && exit
bundle=$(realpath "$1")
mkdir "$work/server"
cd "$work/server"
"$work/fraud/bin/python" -m compileall -q "$work/fraud/lib" || true  # As pip leaves an image.
for _ in 1 2 3; do
    "$work/fraud/bin/python" - "$bundle" <<'END'
import json, os, resource, subprocess, sys, time, urllib.request

bundle = sys.argv[1]
example = json.load(open(f"{bundle}/bundle.json"))["signature"]["request"]
began = time.perf_counter()
server = subprocess.Popen(
    [f"{sys.prefix}/bin/pegboard", "serve", "--bundle", bundle, "serve.port=8765"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
request = urllib.request.Request(
    "http://127.0.0.1:8765/predict", json.dumps(example).encode(),
    {"content-type": "application/json"},
)
def ask():
    with urllib.request.urlopen(request) as answer:
        return answer.read()
while True:
    try:
        ask()
        break
    except OSError:
        if server.poll() is not None:
            sys.exit("the server did not start")
        time.sleep(0.005)
first = time.perf_counter() - began
for _ in range(1000):
    ask()
status = dict(line.split(":", 1) for line in open(f"/proc/{server.pid}/status") if ":" in line)
memory = int(status["VmRSS"].split()[0]) / 1024
server.terminate()
server.wait()
print(f"first answer after {first:.2f} s, {memory:.0f} MB resident after 1000 requests")
END
done
