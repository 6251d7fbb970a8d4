# Sourced by every script: makes .venv in the project, or brings it up to date, puts it on PATH, and goes to the project
# folder. Needs a python3 that pyproject.toml allows (another one: PYTHON=python3.12) and a package index.
#
# .venv holds the packages of requirements-gpu.txt, where nvidia-smi finds a GPU, or of requirements-cpu.txt, and no
# others: what you add yourself goes when that file or pyproject.toml changes. Until then nothing is done.
#
# A relative path given to a script, in DATA, MODEL_PATH, --source or --out, is seen from the folder the script is
# started in. Settings (KEY=VALUE) are the programs' own: their paths are seen from the project folder.

stop() {
    echo "error: $*" >&2
    exit 1
}

seen_from_here() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

allowed() { # python: is it there, and within requires-python?
    "$1" -c 'import re, sys
low, high = re.search(r"requires-python = .>=3\.(\d+),<3\.(\d+)", open("pyproject.toml").read()).groups()
sys.exit(not (3, int(low)) <= sys.version_info[:2] < (3, int(high)))'
}

is_current() { [ "$(cat .venv/.installed 2>/dev/null)" = "$WANTED" ]; }

install_packages() { # lock file. `set -e` does not reach into here, so every step says what to do when it fails.
    local python="${PYTHON:-python3}"
    echo "setting up $ROOT/.venv from $1 (minutes, the first time)"
    rm -f .venv/.installed
    if ! { allowed .venv/bin/python && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
        allowed "$python" 2>/dev/null ||
            stop "$python is $("$python" -V 2>/dev/null || echo missing); pyproject.toml says" \
                "$(grep requires-python pyproject.toml). Name another one: PYTHON=python3.12 bash $0"
        "$python" -m venv --clear .venv ||
            stop "'$python -m venv' failed. On Debian and Ubuntu it needs the package python3-venv."
    fi
    .venv/bin/python -m pip install --quiet uv ||
        stop "'pip install uv' failed. Is a package index reachable?"
    printf '%s\n' "-r $1" "-e ." | .venv/bin/uv pip sync --quiet --python .venv/bin/python - ||
        stop "'uv pip sync' of $1 failed. Start again to go on; if that does not help, remove .venv first."
    echo "$WANTED" >.venv/.installed
}

setup_env() {
    local lock=requirements-cpu.txt
    case "$(nvidia-smi -L 2>/dev/null)" in *"GPU "[0-9]*) lock=requirements-gpu.txt ;; esac
    WANTED="$(cat "$lock" pyproject.toml | cksum) $lock"
    if ! is_current; then (
        # One script at a time: flock holds pyproject.toml, opened for appending but never written, until the ) below.
        if command -v flock >/dev/null; then
            flock -n 9 || { echo "waiting for another script that sets up $ROOT/.venv" && flock 9; }
        fi
        is_current || install_packages "$lock"
    ) 9>>pyproject.toml || exit 1; fi
    export PATH="$ROOT/.venv/bin:$PATH"
}

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ -z "${DATA:-}" ] || DATA="$(seen_from_here "$DATA")"
[ ! -d "${MODEL_PATH:-}" ] || MODEL_PATH="$(seen_from_here "$MODEL_PATH")" # no folder: a hub id
previous=
for argument; do # "$@" of the script that sources this, rewritten
    case "$previous $argument" in
        "--source "* | "--out "*) argument="$(seen_from_here "$argument")" ;;
        *" --source="* | *" --out="*) argument="${argument%%=*}=$(seen_from_here "${argument#*=}")" ;;
    esac
    previous="$argument"
    shift
    set -- "$@" "$argument"
done
cd "$ROOT"
setup_env
