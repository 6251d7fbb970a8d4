# Sourced by every script: makes (or reuses) .venv in the project and puts it on PATH. Needs python3 >= 3.11 and a
# package registry. A GPU decides between requirements-gpu.txt and requirements-cpu.txt; nothing is done when neither
# the chosen file nor pyproject.toml changed.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

setup_env() {
    local lock=requirements-cpu.txt
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then lock=requirements-gpu.txt; fi
    local stamp="$ROOT/.venv/.installed" want
    want="$(cat "$ROOT/$lock" "$ROOT/pyproject.toml" | cksum) $lock"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        echo "setting up $ROOT/.venv from $lock"
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "error: python3 is $(python3 -V), TimeMaster needs 3.11 or newer" >&2; return 1; }
        [ -x "$ROOT/.venv/bin/python" ] || python3 -m venv "$ROOT/.venv"
        "$ROOT/.venv/bin/python" -m pip install --quiet uv
        VIRTUAL_ENV="$ROOT/.venv" "$ROOT/.venv/bin/uv" pip install --quiet -r "$ROOT/$lock"
        VIRTUAL_ENV="$ROOT/.venv" "$ROOT/.venv/bin/uv" pip install --quiet --no-deps -e "$ROOT"
        echo "$want" >"$stamp"
    fi
    export PATH="$ROOT/.venv/bin:$PATH"
}

setup_env || exit 1
cd "$ROOT"
