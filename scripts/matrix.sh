#!/usr/bin/env bash
# vcd on another Python, with the oldest or the newest torch that pyproject.toml allows: installed as a user installs it,
# without the lock and without extras, in an environment that is made for this and deleted; then a few tests.
#
#   bash scripts/matrix.sh                one of them, by the day of the year
#   bash scripts/matrix.sh 3.13 oldest    this one; oldest or newest
#
# Where that Python is not on this machine, the disk has no room or the packages are not to be had, it says so and ends well.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"

ROOM=13 # GB: 7.5 of packages, 4 of wheels as they are unpacked, and some to spare
pairs=("3.12 newest" "3.13 oldest" "3.11 oldest" "3.13 newest" "3.12 oldest" "3.11 newest")
read -r version torch <<<"${1:+$1 ${2:-newest}}"
[ -n "${version:-}" ] || read -r version torch <<<"${pairs[10#$(date +%j) % ${#pairs[@]}]}"

# Of the path, or of a version manager; a command may exist and yet not run.
find_python() {
    local candidate
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        if "$candidate" -c "import sys, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}
python="$(find_python)" || { echo "skipped: no Python $version is on this machine (matrix: Python $version, $torch torch)"; exit; }

free="$(df -Pk . | awk 'NR == 2 { print int($4 / 1e6) }')" # GB
[ "$free" -ge "$ROOM" ] || { echo "skipped: $free GB of disk are free, and Python $version with the $torch torch takes $ROOM GB while it is installed"; exit; }

constraint=() lowest="$(sed -n 's/^ *"torch>=\([0-9.]*\),.*/\1/p' pyproject.toml)"
[ "$torch" = newest ] || constraint=("torch==$lowest.*")
mkdir -p .tools
work="$(mktemp -d "$root/.tools/matrix.XXXXXX")"
trap 'rm -rf "$work"' EXIT
echo "Python $version with the $torch torch: installing (about two minutes, $ROOM GB of disk that are free again afterwards)"
"$python" -m venv "$work/venv"
if ! log="$(TMPDIR="$work" "$work/venv/bin/python" -m pip install -qq --no-compile --no-cache-dir --disable-pip-version-check . \
    ${constraint[@]+"${constraint[@]}"} pytest pytest-timeout beartype 2>&1)"; then
    grep -iE 'error|no matching' <<<"$log" | tail -n 3 || true
    # a package that does not build or resolve is a failure; no network, or a disk that was filled meanwhile, is none
    if grep -qiE 'connection|timed out|temporary failure|network is unreachable|no space left' <<<"$log"; then
        echo "skipped: the packages cannot be had here, or the disk is full"
        exit
    fi
    exit 1
fi
"$work/venv/bin/python" -c 'import platform, torch, pytorch_lightning as L; print("Python", platform.python_version(), "torch", torch.__version__, "Lightning", L.__version__)'
echo "installed in ${SECONDS} s, $(du -sm "$work/venv" | cut -f1) MB"
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider \
    tests/test_api.py tests/test_pretrained.py tests/test_randomness.py
echo "Python $version with the $torch torch: $((SECONDS / 60))m$((SECONDS % 60))s"
