# Sourced by scripts that run a whole job in stages, before setup_env.sh: the first stage is the environment.

STARTED=$(date +%s.%N)
STAGE=environment
trap 'code=$?; [ $code -eq 0 ] || echo "error: $0 stopped in stage $STAGE (exit code $code)" >&2' EXIT

fresh_folder() { # folder: empties it, and measures there the memory of this script and all it starts
    OUT="$1"
    mkdir -p "$OUT"
    if command -v flock >/dev/null; then # this script holds .lock in the folder, a run the one in its own folder
        exec 8>>"$OUT/.lock"
        flock -n 8 || [ $? -ne 1 ] || stop "another script works in $OUT. Wait for its end, or end it."
        while IFS= read -r -d '' lock; do
            flock -n "$lock" true || [ $? -ne 1 ] || stop "${lock%/*} is in use: $(cat "$lock"). Wait for its end, or end it."
        done < <(find "$OUT" -mindepth 2 -name .lock -print0)
    fi
    find "$OUT" -mindepth 1 -maxdepth 1 -not -name .lock -exec rm -rf {} +
    python -m timemaster.memory $$ "$OUT/peak_memory_gib" 8>&- &
}

stage() { # name, command...: runs it; the seconds of the stage before go to $OUT/seconds
    echo "$STAGE $(echo "$(date +%s.%N) $STARTED" | awk '{printf "%.1f", $1 - $2}')" >>"$OUT/seconds"
    STARTED=$(date +%s.%N) STAGE=$1
    shift
    printf '\n=== %s\n' "$STAGE"
    run_until_signal "$@" 8>&-
}
