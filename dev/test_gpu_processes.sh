#!/bin/sh
# The GPU program over two processes of one machine with two GPUs: NCCL between them as it comes, and with
# its peer-to-peer and shared-memory transports switched off, so that everything goes through sockets. Held:
# the losses are those of one process, a run goes on in one process, and one process that dies or hangs ends
# the other. All that the stand-in and the tests of one process cannot see of NCCL shows here or at a user's.
#
#     sh dev/test_gpu_processes.sh [PROGRAM]      make test-gpu2: ./train_gpt2_spcu
#
# The losses of two processes are compared with those of two ranks of one process: NCCL sums in another
# order, so they differ by roundings of fp32 that now and then become roundings of bf16 (2^-8 of a number):
# BOUND allows a few of those in a loss.
# shellcheck disable=SC2086
set -u
program=$(realpath "${1:-./train_gpt2_spcu}")
. "$(dirname "$0")/checks.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export NCCL_NVLS_ENABLE=0
unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_PROCID OMPI_COMM_WORLD_RANK PMI_RANK
port=$((12000 + $$ * 97 % 18000))
BOUND=0.01

if [ "$(nvidia-smi -L 2> /dev/null | grep -c '^GPU')" -lt 2 ]; then
    skip "runs over two processes" "needs two GPUs"
    finish
fi
yes 'It was the best of times, it was the worst of times. 0123456789' | head -n 400 > text.txt
"$program" prepare --out data.tok text.txt > out || exit 1
shape="--data data.tok --layers 2 --heads 4 --channels 256 --seq-len 1003 --lr 3e-4 --lr-schedule constant"
shape="$shape --steps 20 --sp 2"

# start NAME ARGUMENTS...: two processes, a rank and a GPU each.
start() {
    name=$1
    shift
    port=$((port + 1)) pids=
    for i in 0 1; do
        CUDA_VISIBLE_DEVICES=$i "$program" train "$@" --rank $i --world 2 --master 127.0.0.1:$port \
            > $name.$i.out 2> $name.$i.err &
        pids="$pids $!"
    done
}
patience=60
losses() { sed -n 's/.*"loss": \([-0-9.e]*\).*/\1/p' "$1/log.jsonl"; }
# Fails unless two logs have as many losses, each pair within BOUND. Shows the largest difference.
close() {
    losses "$1" > one.losses && losses "$2" > two.losses
    paste one.losses two.losses | awk -v bound=$BOUND '
        { d = $1 - $2; if (d < 0) d = -d; if (!(d <= bound) || NF != 2) bad++; if (d > worst) worst = d }
        END {
            printf "%d steps, largest difference of a loss %.2e, at most %s\n", NR, worst, bound
            exit bad > 0 || NR == 0
        }'
}
# matches NAME ARGUMENTS...: two processes have the losses of two ranks of one.
matches() {
    what=$1
    shift
    rm -rf one two
    "$program" train $shape "$@" --out one > one.out 2> one.err || { cat one.err; return 1; }
    start two $shape "$@" --out two
    finished
    [ "$statuses" = ' 0 0' ] || { cat two.*.err; return 1; }
    close one two
}
for zero in 0 1 2 3; do
    check "two processes have the losses of one, zero $zero" matches zero --zero $zero
done
for zero in 0 1 2 3; do
    check "two processes have the losses of one, positions by rank, zero $zero" \
        matches own --zero $zero --seq-len 1004
done
for kind in ring dist zigzag allgather ulysses; do
    check "two processes have the losses of one, $kind" matches $kind --schedule $kind
done
check "two processes have the losses of one, documents, layer mode, two passes" \
    matches docs --doc-mask 1 --recompute layer --grad-accum 2
inside() {
    rm -rf one two
    "$program" train $shape --out one > one.out 2>&1 &&
        "$program" train $shape --transport nccl --out two > two.out 2>&1 || { tail -n 1 two.out; return 1; }
    close one two
}
check "one process has the same losses by --transport nccl" inside
sockets() {
    export NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1
    matches sockets --zero 3
    status=$?
    unset NCCL_P2P_DISABLE NCCL_SHM_DISABLE
    return $status
}
check "two processes have the losses of one through sockets" sockets
resumes() {   # what two processes saved goes on in one, as two virtual ranks
    rm -rf two
    start two $shape --zero 3 --steps 8 --out two
    finished
    [ "$statuses" = ' 0 0' ] || { cat two.*.err; return 1; }
    "$program" train $shape --out two > one.out 2> one.err || { cat one.err; return 1; }
    grep -q 'resumed' one.out && "$program" train $shape --out one > whole.out 2> whole.err && close one two
}
rm -rf one
check "what two processes saved goes on in one" resumes

# died HOW: process 1 is killed or stopped in the middle; process 0 ends by itself with status 1 and one line
# that says so.
died() {
    start end $shape --steps 100000 --timeout 5
    tries=0
    until [ "$(grep -c '^step ' end.0.out)" -ge 5 ] || [ $tries = 400 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    one=$(echo $pids | cut -d ' ' -f 2)
    kill -"$1" "$one"
    pids=$(echo $pids | cut -d ' ' -f 1)
    finished
    kill -9 "$one" 2> /dev/null
    tail -n 2 end.0.err
    [ "$statuses" = ' 1' ] && [ "$seconds" -le "$2" ] && grep -q "$3" end.0.err
}
check "one of two processes killed is named by the other, which ends" died KILL 40 'process 1'
check "one of two processes stopped is told by the other, which ends" \
    died STOP 50 'waited\|gone\|did not finish'
finish
