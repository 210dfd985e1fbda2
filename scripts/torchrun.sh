#!/bin/sh
# A run over several nodes, its processes started by torchrun: the same command on each node.
#
#     NODES=2 NODE=0 MASTER_ADDR=node0 sh scripts/torchrun.sh --data books.tok --out runs/a --dp 2 --sp 2      on the first node
#     NODES=2 NODE=1 MASTER_ADDR=node0 sh scripts/torchrun.sh --data books.tok --out runs/a --dp 2 --sp 2      on the second
#
#     PER_NODE=2              processes of a node (1): dp x sp ranks are divided evenly over all processes
#     PROGRAM=./train_gpt2_spcu
#
# torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; its own store listens on MASTER_PORT, so the program takes the next
# one. The program ends all of its processes when one fails, so torchrun must not start some of them again: --max-restarts 0. The
# same command, given again, resumes from the newest checkpoint, which every node must be able to read.
set -eu
cd "$(dirname "$0")/.."
exec torchrun --no-python --max-restarts 0 --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${PER_NODE:-1}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29400}" "${PROGRAM:-./train_gpt2_sp}" train "$@"
