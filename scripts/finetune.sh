#!/bin/sh
# A recipe: from a folder of long texts to a model with a long context. Copy it and change it.
#
#     sh scripts/finetune.sh TEXTS HELD_OUT [RUN]        .txt and .jsonl, files or folders; RUN: runs/finetune if left out
#     SP=4 CONTEXT=8192 STEPS=200 sh scripts/finetune.sh books/ other.txt
#
# Stopped at any point, by a signal or by a power cut, it goes on where its newest checkpoint stands when it is run again.
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 1; }
texts=$1 held_out=$2 run=${3:-runs/finetune}
sp=${SP:-4} context=${CONTEXT:-8192} short=${SHORT:-512} steps=${STEPS:-200}
[ -x train_gpt2_sp ] || make
mkdir -p "$run"

# 1. Text into token shards. Every file (every line of a .jsonl) is a document.
[ -s "$run/train.tok" ] || ./train_gpt2_sp prepare --out "$run/train.tok" "$texts"
[ -s "$run/val.tok" ] || ./train_gpt2_sp prepare --out "$run/val.tok" "$held_out"

# 2. What the long run will need: memory of a rank, the time of a step, the longest context that fits.
size="--layers 4 --heads 4 --channels 128"
./train_gpt2_sp plan $size --vocab 257 --seq-len "$context" --sp "$sp"

# 3. A short context first: a step of many short sequences teaches spelling and words for a fraction of the work.
#    (To start from a GPT-2 of Transformers instead, leave this out and give step 4 its folder as --init-from; its size must
#    be --model d12, d24, d36 or d48, and the shards must hold GPT-2's tokens, such as llm.c's .bin files.)
data="--data $run/train.tok --val-data $run/val.tok"
./train_gpt2_sp train $data $size --seq-len "$short" --batch-size $((context / short)) --sp "$sp" --lr 2e-3 --warmup 40 \
    --steps $((2 * steps)) --val-every "$steps" --val-sequences 64 --save-every "$steps" --out "$run/short"

# 4. The long context, split over the ranks. The positions beyond the short context start as copies of the ones within it.
base=$(ls -d "$run"/short/step_???????? | tail -1)
./train_gpt2_sp train $data $size --seq-len "$context" --sp "$sp" --schedule dist --recompute attn --init-from "$base" --lr 1e-3 --warmup 20 \
    --lr-schedule wsd --steps "$steps" --val-every $((steps / 4 + 1)) --save-every $((steps / 4 + 1)) --out "$run/long"

# 5. The same command line with more steps goes on from the newest checkpoint; the number of ranks, the schedule, what is
#    recomputed and what is sharded may be others than before.
./train_gpt2_sp train $data $size --seq-len "$context" --sp 2 --schedule zigzag --recompute layer --zero 1 --lr 1e-3 --warmup 20 \
    --lr-schedule wsd --steps $((steps + steps / 4)) --out "$run/long"

# 6. What it learned: the loss by position in the context, and a sample.
./train_gpt2_sp eval --from "$run/long" --data "$run/val.tok" --val-sequences 16
./train_gpt2_sp sample --from "$run/long" --prompt "It was " --length 400 --temperature 0.8 --top-p 0.95
