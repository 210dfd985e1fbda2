#!/bin/sh
# Runs over several processes, here all on this machine: the same numbers as one process to the last bit, refusals that name what
# differs, and the end of a run when one process dies, hangs or is asked to stop.
#
#     sh dev/test_processes.sh [PROGRAM]      built by `make test`: ./train_gpt2_sp
# shellcheck disable=SC2086
set -u
program=$(realpath "${1:-./train_gpt2_sp}")
scripts=$(realpath "$(dirname "$0")/../scripts")
. "$(dirname "$0")/checks.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_PROCID OMPI_COMM_WORLD_RANK PMI_RANK
port=$((20000 + $$ % 10000))   # below the range that the system gives out

yes 'It was the best of times, it was the worst of times. 0123456789' | head -n 400 > text1.txt
yes 'Call me Ishmael; some years ago, never mind how long precisely.' | head -n 300 > text2.txt
"$program" prepare --out data.tok text1.txt text2.txt text1.txt > out || exit 1
"$program" prepare --out val.tok text2.txt > out || exit 1
mkdir elsewhere
"$program" prepare --out elsewhere/data.tok text1.txt text2.txt > out || exit 1
shape="--data data.tok --layers 2 --heads 4 --channels 32 --seq-len 64 --threads 1 --lr 3e-3"

# start NAME WORLD ARGUMENTS...: starts the processes of a run; `$extra_I` are process I's own arguments. The output of process I is
# NAME.I.out and NAME.I.err, its number $pid_I.
start() {
    name=$1 world=$2
    shift 2
    port=$((port + 1)) i=0
    while [ $i -lt $world ]; do
        eval "extra=\${extra_$i-}"
        "$program" train "$@" --rank $i --world $world --master 127.0.0.1:$port $extra > $name.$i.out 2> $name.$i.err &
        eval "pid_$i=$!"
        i=$((i + 1))
    done
}
# Waits for them, at most 20 seconds: $statuses, and $seconds that it took.
finished() {
    statuses="" i=0 began=$(date +%s)
    ( sleep 20; kill -9 $(jobs -p) ) 2> /dev/null &
    eval "watch=$!; set -- $(while [ $i -lt $world ]; do printf '$pid_%d ' $i; i=$((i + 1)); done)"
    watch_list=$*
    ( sleep 20 && kill -9 $watch_list ) > /dev/null 2>&1 &
    guard=$!
    kill $watch 2> /dev/null
    for pid; do
        wait $pid 2> /dev/null
        statuses="$statuses$? "
    done
    kill $guard 2> /dev/null
    wait $watch $guard 2> /dev/null
    seconds=$(($(date +%s) - began))
}
run() { start "$@"; finished; }
