#!/bin/sh
# What a context of 8,192 tokens recalls and one of 1,024 does not: a model of bytes that learns to find facts again in
# sequences of 1,024, and the same after it went on with 8,192. Two minutes on one H200.
#
#     sh dev/needles.sh [FOLDER]                runs/needles
#
# PROGRAM=./train_gpt2_spcu is the program. The documents are synth's, of many lengths, each as long as its shard's name says
# less the token that ends it, so that a sequence holds whole documents. They are dense with facts: with a few in a document the
# answers are too small a share of the loss. At the end: FOLDER/needles.json, and the picture where matplotlib is.
set -eu
cd "$(dirname "$0")/.."
program=$(realpath "${PROGRAM:-./train_gpt2_spcu}")
plot=$PWD/scripts/plot.py
mkdir -p "${1:-runs/needles}"
cd "${1:-runs/needles}"

for shard in 512:2:120000 1024:5:60000 2048:11:10000 4096:22:7000 8192:44:6000; do
    IFS=: read -r tokens facts documents << END
$shard
END
    [ -e "$tokens.tok" ] ||
        "$program" synth --out "$tokens.tok" --docs "$documents" --doc-bytes $((tokens - 1)) --facts "$facts" --seed 7
done

often="--doc-mask 1 --lr-schedule wsd --log-every 50"
"$program" train --out short --data 512.tok,1024.tok $often --layers 6 --heads 4 --channels 256 \
    --seq-len 1024 --batch-size 64 --steps 1600 --warmup 200 --lr 1e-3
"$program" train --out long --data 1024.tok,2048.tok,4096.tok,8192.tok $often --init-from short \
    --seq-len 8192 --batch-size 8 --steps 1200 --warmup 60 --lr 3e-4 \
    --grow tile --window-ramp 1024 --lr-scale-new 3

# The short model with as many positions, its own again and again, so that it reads the same texts.
"$program" train --out short-8192 --data 1024.tok --doc-mask 1 --init-from short --n-positions 8192 --seq-len 1024 --steps 0
"$program" eval --from short-8192,long --data 8192.tok --doc-mask 1 --seq-len 8192 --val-sequences 8 \
    --needle 400 --probe needle --json 1 > needles.json
"$program" eval --from short-8192,long --data 8192.tok --doc-mask 1 --seq-len 8192 --val-sequences 8 --needle 400 | sed -n '/^needle/,$p'
if python3 -c 'import matplotlib' 2> /dev/null; then
    python3 "$plot" --eval needles.json --labels 'trained with 1,024 tokens' 'then with 8,192 tokens' --out needles.png
fi
