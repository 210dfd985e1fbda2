#!/bin/sh
# Texts and a GPT-2 in, a GPT-2 of a longer context out, and a table of what it gained.
#
#     sh scripts/finetune_long.sh TEXTS [OUT]             .txt, .jsonl, .html and more, files or folders; OUT: runs/long
#     MODEL=gpt2-medium sh scripts/finetune_long.sh books/    gpt2, gpt2-medium, gpt2-large, gpt2-xl: downloaded into OUT
#     MODEL=/path/to/gpt2 sh scripts/finetune_long.sh books/  a folder of Transformers, a run of this program (RUN:best too) or a model
#                                                             file of llm.c, with TOKENIZER=PATH beside it: no network needed
#
# Contexts grow in stages, CONTEXTS="4096 8192 32768": each starts from the stage before, as far as the memory allows and the
# texts reach. Attention stays inside a document, and in a stage it grows from the context before to the stage's; new positions learn
# ten times as fast: recipe (i) of dev/RESULTS.md, From 1,024 to 32,768 tokens. STEPS (60) optimizer steps a stage, of BATCH (131072) tokens each; LR (1e-4) is the first stage's peak learning
# rate, each later stage has half of the one before. RANKS: devices that share a sequence, all of them if left out. HELD: texts to
# measure on; if left out, a tenth of the documents (VAL=0.1), or of few documents as many as it takes, is kept from training. The
# table is made over the first MEASURE (262144) held-out tokens, a multiple of every context, so that the rows have the same ones. DTYPE
# (fp32): of the result, or bf16, fp16. THREADS: of each rank, all cores if left out.
#
# PROGRAM: a program that is built already; else it is built, for the GPUs where there are any. HF_ENDPOINT: another server.
#
# OUT/model holds the downloaded GPT-2, OUT/data.tok and OUT/data.val.tok the tokens, OUT/run-4096 ... the stages, OUT/gpt2 the result:
# AutoModelForCausalLM.from_pretrained("OUT/gpt2") opens it. Stopped at any point, it goes on there when it is run again.
set -eu
cd_from=$(pwd)
cd "$(dirname "$0")/.."
[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0" >&2; exit 1; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$cd_from/$1" ;; esac; }
texts=$(absolute "$1") out=$(absolute "${2:-runs/long}") model=${MODEL:-gpt2}
contexts=${CONTEXTS:-4096 8192 32768} steps=${STEPS:-60} batch=${BATCH:-131072} lr=${LR:-1e-4}
case $out/ in "$texts"/*) echo "finetune_long.sh: $out lies inside the texts: take an OUT elsewhere" >&2; exit 1 ;; esac
[ -e "$texts" ] || { echo "finetune_long.sh: $texts is not there" >&2; exit 1; }
case $contexts in *[!0-9\ ]*) echo "finetune_long.sh: CONTEXTS=\"$contexts\": numbers of tokens, separated by blanks" >&2; exit 1 ;; esac
say() { printf '\n== %s\n' "$*"; }
stop() { echo "finetune_long.sh: $*" >&2; exit 1; }
number() { sed -n "s/.*\"$1\": \([0-9.e+-]*\).*/\1/p"; }   # of a line of JSON

# ----- the program: for GPUs where there are any ----------------------------------------------------

if [ "${PROGRAM:-}" ]; then program=$(absolute "$PROGRAM") ranks=${RANKS:-1}
elif command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1 && command -v nvcc > /dev/null; then
    make --no-print-directory train_gpt2_spcu
    program=./train_gpt2_spcu ranks=${RANKS:-$(nvidia-smi -L | wc -l)}
else
    make --no-print-directory GPU=
    program=./train_gpt2_sp ranks=${RANKS:-1}
fi
mkdir -p "$out"

# ----- the model: a folder, or one that is downloaded -----------------------------------------------

# fetch FILE: downloads a file of the model, and believes it only if its status, its size and its hash are those that the server
# names: of a large file its SHA-256, of a small one the hash that git gives it.
fetch() {
    url=${HF_ENDPOINT:-https://huggingface.co}/openai-community/$model/resolve/main/$1 file=$out/model/$1
    [ ! -s "$file" ] || return 0
    head=$(curl -sSIL --max-time 60 "$url") || return 1
    status=$(printf '%s\n' "$head" | sed -n 's/^HTTP[^ ]* \([0-9]*\).*/\1/p' | tail -n 1)
    [ "$status" = 200 ] || { echo "$url: status $status" >&2; return 1; }
    field() { printf '%s\n' "$head" | tr -d '\r"' | sed -n "s/^$1: *\(W\/\)*//Ip" | tail -n 1; }
    size=$(field x-linked-size) hash=$(field x-linked-etag)
    [ "$size" ] || size=$(field content-length)
    [ "$hash" ] || hash=$(field etag)
    curl -fSL --max-time 7200 -o "$file.part" "$url" || return 1
    found=$(wc -c < "$file.part" | tr -d ' ')
    [ "$found" = "$size" ] || { echo "$url: $found bytes, expected $size" >&2; return 1; }
    case ${#hash} in
    64) sum=$(sha256sum < "$file.part" | cut -d ' ' -f 1) ;;
    40) sum=$({ printf 'blob %s\0' "$size"; cat "$file.part"; } | sha1sum | cut -d ' ' -f 1) ;;
    *) echo "$url: the server names no hash" >&2; return 1 ;;
    esac
    [ "$sum" = "$hash" ] || { echo "$url: hash $sum, expected $hash" >&2; return 1; }
    mv "$file.part" "$file"
}

case $model in
gpt2 | gpt2-medium | gpt2-large | gpt2-xl)
    if [ -d "$cd_from/$model" ]; then model=$cd_from/$model
    else
        say "downloading $model"
        command -v curl > /dev/null || stop "curl is missing: install it, or give MODEL=FOLDER"
        mkdir -p "$out/model"
        for file in config.json tokenizer.json vocab.json merges.txt model.safetensors; do
            fetch "$file" || stop "$model cannot be downloaded. Where there is no network: fetch the folder elsewhere
  (huggingface-cli download openai-community/$model --local-dir FOLDER) and run this again with MODEL=FOLDER"
        done
        model=$out/model
    fi ;;
*) model=$(absolute "$model")
    [ -e "$model" ] || [ -d "${model%:best}" ] ||
        stop "MODEL=$model is not there; expected a folder, a run, a .bin of llm.c, or gpt2, gpt2-medium, gpt2-large, gpt2-xl" ;;
esac

# ----- texts into tokens, a tenth of the documents held out ------------------------------------------

if [ "${TOKENIZER:-}" ]; then tokenizer=$(absolute "$TOKENIZER")
elif [ -d "$model" ]; then tokenizer=$model
else tokenizer=${model%:best}
fi
[ "${TOKENIZER:-}" ] || [ -e "$tokenizer/tokenizer.json" ] || [ -e "$tokenizer/vocab.json" ] || [ -e "$tokenizer/run.cfg" ] ||
    stop "$model carries no tokenizer: give TOKENIZER=PATH, as prepare's --tokenizer"

# What OUT was begun with: other inputs, or other stages, need another OUT, for each stage goes on from the one before.
inputs="model $model,${TOKENIZER:+ tokenizer $tokenizer,} texts $texts, held out ${HELD:-${VAL:-0.1}}, stages of $steps steps of $batch tokens, rate $lr"
[ ! -e "$out/inputs" ] || [ "$(cat "$out/inputs")" = "$inputs" ] ||
    stop "$out was begun with $(cat "$out/inputs"), and now there is $inputs: take another OUT"
data=$out/data.tok val=$out/data.val.tok
if [ ! -s "$data" ] || [ ! -s "$val" ]; then
    say "turning the texts into tokens"
    if [ "${HELD:-}" ]; then
        $program prepare --tokenizer "$tokenizer" --out "$data" "$texts"
        $program prepare --tokenizer "$tokenizer" --out "$val" "$(absolute "$HELD")"
    else
        # few documents may all fall on one side: then another choice of them
        fraction=${VAL:-0.1}
        for seed in 1 2 3 4 5 6 7 8 9 10; do
            $program prepare --tokenizer "$tokenizer" --val-fraction "$fraction" --seed "$seed" --out "$data" --val-out "$val" "$texts" \
                2> "$out/prepare.err" && break
            grep -q 'none is on this side' "$out/prepare.err" || { cat "$out/prepare.err" >&2; exit 1; }
            echo "all documents fell on one side: another choice of them"
            fraction=$(awk -v f="$fraction" 'BEGIN { print f < 0.25 ? 2 * f : 0.5 }')
        done
        [ -s "$data" ] && [ -s "$val" ] || stop "no choice of documents leaves some to train on and some to measure on: give HELD=FILE"
    fi
fi

# ----- how good it is, before ------------------------------------------------------------------------

# measure NAME MODEL CONTEXT: a row of the table. The held-out tokens are the same in every row.
measure() {
    row=$out/row-$1-$3-$measured
    if [ "$1" != before ] || [ ! -s "$row" ]; then
        $program eval --threads "${THREADS:-0}" --from "$2" --data "$val" --doc-mask 1 --seq-len "$3" --val-sequences $(((measured + $3 - 1) / $3)) --sp "$ranks" --json > "$row.part"
        mv "$row.part" "$row"
    fi
    loss=$(number loss < "$row") tokens=$(number tokens < "$row") bits=$(number bits_per_byte < "$row")
    awk -v name="$1" -v context="$3" -v loss="$loss" -v bits="$bits" -v tokens="$tokens" 'BEGIN {
        printf "%-12s %9d %10.4f %12.3f %15.4f %12d\n", name, context, loss, exp(loss), bits, tokens }'
}
measured=${MEASURE:-262144}
own=$($program plan --init-from "$model" --gflops 1 --link-gbs 1 --copy-gbs 1 --json | number seq_len)
[ "$own" ] || stop "$model cannot be read"
echo "$inputs" > "$out/inputs"
say "before"
measure before "$model" "$own"

# ----- one stage after the other ----------------------------------------------------------------------

from=$model last=$own
set --
for context in $contexts; do
    [ "$context" -gt "$own" ] || continue
    run=$out/run-$context accumulate=$((batch / context))
    [ "$accumulate" -ge 1 ] || accumulate=1
    longest=$($program plan --init-from "$from" --seq-len "$context" --sp "$ranks" --recompute attn --gflops 1 --link-gbs 1 --copy-gbs 1 \
        --json | number longest_seq_len)
    if [ "${longest%.*}" -lt "$context" ]; then
        echo "a context of $context does not fit in the memory (at most $longest): the last stage is $last"
        break
    fi
    say "a context of $context, from $last"
    if ! $program train --threads "${THREADS:-0}" --init-from "$from" --data "$data" --val-data "$val" --seq-len "$context" --grad-accum "$accumulate" \
        --sp "$ranks" --recompute attn --lr "$lr" --warmup $((steps / 10)) --lr-schedule wsd --steps "$steps" \
        --doc-mask 1 --window-ramp "$last" --lr-scale-new 10 \
        --val-every $((steps / 4 + 1)) --val-sequences 4 --save-every $((steps / 4 + 1)) --out "$run"; then
        [ -e "$run" ] && stop "the stage of $context has failed; it goes on when this is run again"
        echo "the stage of $context is left out: the last one is $last"
        break
    fi
    [ -d "$run/step_$(printf '%08d' "$steps")" ] || stop "the stage of $context was stopped; it goes on when this is run again"
    from=$run last=$context lr=$(awk -v lr="$lr" 'BEGIN { print lr / 2 }')
    set -- "$@" "$context"
done
[ $# -gt 0 ] || stop "no stage could be trained: see above"

# ----- the result ---------------------------------------------------------------------------------------

say "writing $out/gpt2"
$program export --from "$from" --out "$out/gpt2" --dtype "${DTYPE:-fp32}"

say "held-out text, before and after"
printf '%-12s %9s %10s %12s %15s %12s\n' model context loss perplexity "bits per byte" tokens
measure before "$model" "$own"
measure after "$out/gpt2" "$own"
for context; do measure after "$out/gpt2" "$context"; done
