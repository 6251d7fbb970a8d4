# Sourced by every script: makes or updates .venv in the project folder, puts it on PATH and changes to the project
# folder. Needs a package index and a python3 that pyproject.toml allows (to name another one: PYTHON=python3.12).
#
# .venv holds the packages of requirements-gpu.txt, where nvidia-smi finds a GPU, or of requirements-cpu.txt (or of the
# file that REQUIREMENTS names), and no others. It is reused until that file or pyproject.toml changes: then packages
# that you added yourself are removed. In a project folder that was copied or moved it is made again.
#
# A relative path given to a script, in DATA, MODEL_PATH, --source or --out, is relative to the current directory.
# Paths in settings (KEY=VALUE) are relative to the project folder.
#
# Signals such as SIGTERM from SLURM or Kubernetes reach the program, by `exec` or by run_until_signal below.

stop() {
    echo "error: $*" >&2
    exit 1
}

absolute() { case "$1" in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac; }

allowed() { # python: does it exist, and is its version within requires-python?
    "$1" -c 'import re, sys
low, high = re.search(r"requires-python = .>=3\.(\d+),<3\.(\d+)", open("pyproject.toml").read()).groups()
sys.exit(not (3, int(low)) <= sys.version_info[:2] < (3, int(high)))'
}

is_current() { [ "$(cat .venv/.installed 2>/dev/null)" = "$WANTED" ]; }

install_packages() { # lock file. `set -e` has no effect in here, so every step handles its own failure.
    local python="${PYTHON:-python3}" installed
    installed="$(cat .venv/.installed 2>/dev/null)"
    echo "setting up $ROOT/.venv from $1 (minutes, the first time)"
    rm -f .venv/.installed
    # The commands in .venv/bin name the folder where they were installed.
    case "$installed" in *" $FOLDER" | '') ;; *) rm -rf .venv ;; esac
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

check_driver() { # requirements-gpu.txt has CUDA 13: it needs driver R580, or an older one with NVIDIA's cuda-compat-13
    local driver
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null)" || return 0
    driver="${driver%%$'\n'*}"
    [[ "$driver" =~ ^[0-9]+ ]] && [ "${BASH_REMATCH[0]}" -lt 580 ] || return 0
    case "$(nvidia-smi 2>/dev/null)" in *"CUDA Version: 1"[3-9]*) return 0 ;; esac
    stop "the NVIDIA driver is $driver, and the packages of requirements-gpu.txt are built for CUDA 13, which needs" \
        "R580 or later. Update the driver; or, on a data-centre GPU, install the package cuda-compat-13-0 and put" \
        "/usr/local/cuda-13.0/compat first in LD_LIBRARY_PATH. To work without the GPU: REQUIREMENTS=requirements-cpu.txt bash $0"
}

run_until_signal() { # command...: runs it and forwards signals to it; after a signal the script ends, too
    local code=0 signal= name child
    set -m # a process group of its own: in the script's group, bash would make the command ignore Ctrl-C
    "$@" &
    set +m
    child=$!
    for name in INT TERM HUP; do trap "signal=$name; kill -$name $child" $name; done
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends `wait`, but not the command
    wait "$child" || code=$?
    trap - INT TERM HUP
    [ -z "$signal" ] || exit $((code > 0 ? code : 128 + $(kill -l "$signal")))
    return "$code"
}

setup_env() {
    local lock="${REQUIREMENTS:-requirements-cpu.txt}"
    if [ -z "${REQUIREMENTS:-}" ]; then
        case "$(nvidia-smi -L 2>/dev/null)" in *"GPU "[0-9]*) check_driver && lock=requirements-gpu.txt ;; esac
    fi
    FOLDER="$(pwd -P)"
    WANTED="$(cat "$lock" pyproject.toml | cksum) $lock $FOLDER"
    if ! is_current; then (
        # One script at a time: flock locks pyproject.toml, opened for appending but never written, until the ) below.
        if command -v flock >/dev/null; then
            flock -n 9 || { echo "waiting for another script that sets up $ROOT/.venv" && flock 9; }
        fi
        is_current || install_packages "$lock"
    ) 9>>pyproject.toml || exit 1; fi
    export PATH="$ROOT/.venv/bin:$PATH"
    # Each of a run's processes imports torch and transformers: 8 s of processor time, and 16 s where bytecode is not kept.
    unset PYTHONDONTWRITEBYTECODE
}

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[ -z "${DATA:-}" ] || DATA="$(absolute "$DATA")"
[ ! -d "${MODEL_PATH:-}" ] || MODEL_PATH="$(absolute "$MODEL_PATH")" # not a folder: a hub id
previous=
for argument; do # "$@" of the script that sources this, rewritten
    rewritten="$argument"
    case "$argument" in --source=* | --out=*) rewritten="${argument%%=*}=$(absolute "${argument#*=}")" ;; esac
    case "$previous" in --source | --out) rewritten="$(absolute "$argument")" ;; esac
    previous="$argument"
    shift
    set -- "$@" "$rewritten"
done
cd "$ROOT" || exit
setup_env
