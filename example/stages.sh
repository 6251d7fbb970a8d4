# Sourced by scripts that run a whole job in stages, before setup_env.sh, because the first stage is the environment.

STARTED=$(date +%s.%N)
STAGE=environment
trap 'code=$?; [ $code -eq 0 ] || echo "error: $0 stopped in stage $STAGE (exit code $code)" >&2' EXIT

fresh_folder() { # folder: empties it and records there the peak memory of this script and of all its children
    mkdir -p "$1"
    exec 9<>"$1/.lock" # once locked, held until this script and its children end
    python -m timemaster.system.locks "$1" 9
    OUT=$1
    python -m timemaster.system.memory $$ "$OUT/peak_memory_gib" 9>&- &
}

stage() { # name, command...: runs the command; writes the seconds of the previous stage to $OUT/seconds
    echo "$STAGE $(echo "$(date +%s.%N) $STARTED" | awk '{printf "%.1f", $1 - $2}')" >>"$OUT/seconds"
    STARTED=$(date +%s.%N) STAGE=$1
    shift
    printf '\n=== %s\n' "$STAGE"
    run_until_signal "$@"
}
