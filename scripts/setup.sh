#!/usr/bin/env bash
# Make .venv hold exactly what Pipfile.lock names. Safe to run again: a second run does nothing.
#
#   bash scripts/setup.sh            what training and sampling need
#   bash scripts/setup.sh --dev      that, and what the tests need
#   bash scripts/setup.sh --pipenv   only print the path of a working pipenv, installing a private one if need be
#
# PYTHON=/path/to/python chooses the interpreter of a new .venv. Nothing is written outside the project's folder.
set -euo pipefail

PIPENV_TESTED=2026.10.3 # installed when the machine has none as new as this
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# A command may exist and yet not run (the shims of version managers), so every candidate is tried.
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python; do
        if supported "$name"; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 runs here: install one, or point PYTHON=/path/to/python at it, and run this again."
}

# The version of the pipenv at $1, if it runs and is not older than the one this project was tested with.
new_enough() {
    local version
    version="$("$1" --version 2>/dev/null | awk '{ print $NF }')" || return 1
    [ -n "$version" ] && [ "$(printf '%s\n' "$PIPENV_TESTED" "$version" | sort -V | head -n 1)" = "$PIPENV_TESTED" ]
}

find_pipenv() {
    local own="$root/.tools/pipenv" python
    if new_enough pipenv; then
        command -v pipenv
        return
    fi
    if ! new_enough "$own/bin/pipenv"; then
        python="$(find_python)" || exit 1
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv), and run this again."
        say "Installing pipenv $PIPENV_TESTED into .tools/ (once)" >&2
        rm -rf "$own"
        "$python" -m venv "$own" >&2 || die "$python could not make a virtual environment (see above)."
        "$own/bin/python" -m pip install -qq --disable-pip-version-check "pipenv==$PIPENV_TESTED" >&2 ||
            die "pipenv could not be installed (see above): is a package index within reach?"
    fi
    say "$own/bin/pipenv"
}

# What .venv was made from and for; also proves that its interpreter still runs.
fingerprint() {
    .venv/bin/python - "$root" 2>/dev/null <<'PY'
import hashlib, pathlib, sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
print(hashlib.sha256(pathlib.Path("Pipfile.lock").read_bytes()).hexdigest(), sys.version.split()[0], sys.argv[1])
PY
}

# pipenv is silent for minutes: say every ten seconds how far it is.
progress() {
    while sleep 10 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        say "  ... $((SECONDS / 60))m$((SECONDS % 60))s, $(du -sh .venv .tools/tmp 2>/dev/null | awk '{ printf "%s%s in %s", sep, $1, $2; sep = ", " }')"
    done
}

dev=""
case "${1:-}" in
    "") ;;
    --dev) dev=--dev ;;
    --pipenv) find_pipenv; exit ;;
    *) die "there is no option '$1': bash scripts/setup.sh [--dev | --pipenv]" ;;
esac

[ -f Pipfile.lock ] || die "Pipfile.lock is missing in $root: restore it (git checkout Pipfile.lock)."
stamp=.venv/vcd-setup # last line of a finished setup: fingerprint and what for
done_already() {
    local now
    [ -f "$stamp" ] && now="$(fingerprint)" || return 1
    grep -qxF -e "$now --dev" -e "$now ${dev:-plain}" "$stamp"
}

if done_already; then
    say "Already set up in $root/.venv"
    exit
fi

mkdir -p .tools
if command -v flock >/dev/null; then # one setup at a time: the tests and the quickstart may start together
    exec 9>.tools/lock
    flock -n 9 || { say "Another setup is running: waiting for it"; flock 9; }
    if done_already; then
        say "Already set up in $root/.venv"
        exit
    fi
fi

export PIPENV_PIPFILE="$root/Pipfile" PIPENV_VENV_IN_PROJECT=1 PIPENV_IGNORE_VIRTUALENVS=1 PIPENV_NOSPIN=1 PIPENV_YES=1
unset PIPENV_ACTIVE PIPENV_CUSTOM_VENV_NAME PYTHONHOME PYTHONPATH

pipenv="$(find_pipenv)"
# Half-copied packages look installed: after an interruption, or without a working interpreter, start afresh.
if [ -e .venv ] && { [ -e .venv/vcd-incomplete ] || ! fingerprint >/dev/null; }; then
    say "Removing an unfinished or unusable .venv"
    rm -rf .venv
fi
if [ ! -e .venv ]; then
    python="$(find_python)"
    say "Making .venv with $("$python" --version) ($python)"
    "$pipenv" --quiet --python "$python" >.tools/setup.log 2>&1 ||
        { cat .tools/setup.log >&2; die "pipenv could not make .venv (see above)."; }
fi
rm -f "$stamp"
touch .venv/vcd-incomplete

say "Installing the packages of Pipfile.lock with pipenv: about 6 GB, two to five minutes on a good line"
rm -rf .tools/tmp && mkdir -p .tools/tmp # downloads beside the project: /tmp is often a small memory disk
progress 9>&- & watcher=$!
trap 'kill "$watcher" 2>/dev/null || true; rm -rf "$root/.tools/tmp"' EXIT
# No index is named here or in the lock: pipenv takes the one that pip is configured with, or pip's own.
log=.tools/setup.log
if ! TMPDIR="$root/.tools/tmp" "$pipenv" --quiet sync $dev >"$log" 2>&1; then
    grep -iE 'error|warning|no space' "$log" | cut -c 1-300 | sort -u | tail -n 15 >&2 || true
    die "the packages could not be installed (all pipenv said is in $root/$log); run this again to retry."
fi

# "import vcd" from any folder, and the command
.venv/bin/python - "$root" <<'PY'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "vcd.pth").write_text(sys.argv[1] + "\n")
command = pathlib.Path(sysconfig.get_path("scripts"), "vcd")
command.write_text(f"#!{sys.executable}\nfrom vcd.__main__ import main\n\nmain()\n")
command.chmod(0o755)
PY
fingerprint | sed "s|\$| ${dev:-plain}|" >"$stamp"
rm -f .venv/vcd-incomplete
say "Set up in $root/.venv in $((SECONDS / 60))m$((SECONDS % 60))s"
