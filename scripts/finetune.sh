#!/bin/sh
# A recipe: from long texts to a model with a long context, its sequences split over ranks. Copy it and change it.
#
#     sh scripts/finetune.sh TEXTS HELD_OUT [RUN]        .txt and .jsonl, files or folders; RUN: runs/finetune if left out
#     SP=4 CONTEXT=8192 STEPS=200 sh scripts/finetune.sh books/ other.txt
#     INIT=runs/a sh scripts/finetune.sh ...                    starts from that run's newest checkpoint, with its size
#
# Stopped at any point, by a signal or by a power cut, it goes on where its newest checkpoint stands when it is run again.
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1; }
texts=$1 held_out=$2 run=${3:-runs/finetune}
sp=${SP:-4} context=${CONTEXT:-8192} steps=${STEPS:-200}
[ -x train_gpt2_sp ] || make GPU=
mkdir -p "$run"

# 1. Text into token shards. Every file (every line of a .jsonl) is a document.
[ -s "$run/train.tok" ] || ./train_gpt2_sp prepare --out "$run/train.tok" "$texts"
[ -s "$run/val.tok" ] || ./train_gpt2_sp prepare --out "$run/val.tok" "$held_out"

# 2. What it will need: the memory of a rank, the time of a step, the longest context that fits. With too little memory: more ranks,
#    --recompute layer, --zero 1 to 3, in this order of what they cost (`plan` tells what each spares).
set -- --seq-len "$context"
if [ "${INIT:-}" ]; then set -- "$@" --init-from "$INIT"
else set -- "$@" --layers 4 --heads 4 --channels 128 --vocab 257
fi
./train_gpt2_sp plan "$@" --sp "$sp"

# 3. Train. A checkpoint every quarter; wsd holds the learning rate until the last fifth of the steps.
#    INIT may also be a GPT-2 folder of Transformers, with shards of GPT-2's tokens.
#    A checkpoint with a shorter context fits too: positions beyond its own start as copies of the ones it has.
set -- "$@" --data "$run/train.tok" --val-data "$run/val.tok" --lr 1e-3 --warmup $((steps / 10)) --lr-schedule wsd --out "$run/model"
./train_gpt2_sp train "$@" --sp "$sp" --schedule dist --recompute attn \
    --steps "$steps" --val-every $((steps / 4 + 1)) --save-every $((steps / 4 + 1))

# 4. The same command with more steps goes on from the newest checkpoint. How the run is split may change at any time: the number of
#    ranks, the schedule, what is computed again, what is sharded. The losses stay the same within rounding.
./train_gpt2_sp train "$@" --sp 2 --schedule zigzag --recompute layer --zero 1 --steps $((steps + steps / 4))

# 5. What it learned: the loss by position in the context, on text it has not seen, and a sample.
./train_gpt2_sp eval --from "$run/model" --data "$run/val.tok" --val-sequences 16
./train_gpt2_sp sample --from "$run/model" --prompt "It was " --length 400 --temperature 0.8 --top-p 0.95 --threads 1
