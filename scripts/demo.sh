#!/bin/sh
# From nothing to a trained model in two minutes on two cores: `make demo`, or `sh scripts/demo.sh` where there is no make yet.
#
#     sh scripts/demo.sh              about a minute of training, in runs/demo
#     sh scripts/demo.sh --short      a few seconds of it, in runs/demo-short, always from the start
#     DEMO_SECONDS=600 sh scripts/demo.sh
#
# It installs what is missing (a C compiler, make, zlib's headers) if it may, or prints the command that does; builds; turns the
# sources and documents of this tree into token shards; trains a byte-level model whose context of 4096 tokens is split over 4 ranks.
# Needs no network once these are installed, and no Python. Run again, it goes on from the checkpoint it finds.
set -eu
cd "$(dirname "$0")/.."

out=runs/demo seconds=${DEMO_SECONDS:-55}
case ${1:-} in
'') ;;
--short) out=runs/demo-short seconds=6; rm -rf "$out" ;;
*) echo "demo.sh: unknown option $1 (there is --short)" >&2; exit 1 ;;
esac

say() { printf '\n== %s\n' "$*"; }
show() {   # prints a command as one would type it, and runs it
    printf '$'
    for word; do case $word in *[!A-Za-z0-9_./,=:+-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac; done
    echo
    "$@"
}

# ----- what it takes ------------------------------------------------------------------------------

compiler() { for c in ${CC:-gcc clang cc}; do command -v "$c" && return; done; }
has_zlib() { printf '#include <zlib.h>\nint main(void) { return zlibVersion() == 0; }\n' | "$(compiler)" -x c - -lz -o /dev/null 2> /dev/null; }

missing=
[ "$(compiler)" ] || missing="$missing gcc"
command -v make > /dev/null || missing="$missing make"
[ "$(compiler)" ] && has_zlib || missing="$missing zlib"

if [ "$missing" ]; then
    say "missing:$missing"
    if command -v apt-get > /dev/null; then install="apt-get install -y gcc libc6-dev make zlib1g-dev" before="apt-get update"
    elif command -v dnf > /dev/null; then install="dnf install -y gcc make zlib-devel" before=
    elif command -v apk > /dev/null; then install="apk add gcc musl-dev make zlib-dev" before="apk update"
    else echo "Install a C compiler, make and the headers of zlib, then run this again." >&2; exit 1
    fi
    if [ "$(id -u)" = 0 ]; then as=
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then as="sudo -n"
    else echo "This needs the rights of root. Run:  sudo $install" >&2; exit 1
    fi
    [ -z "$before" ] || $as $before || true
    DEBIAN_FRONTEND=noninteractive show $as $install
fi

# ----- build --------------------------------------------------------------------------------------

start=$(date +%s)
say "building"
show make --no-print-directory GPU=

# ----- text into token shards ---------------------------------------------------------------------

say "turning the text of this tree into token shards"
mkdir -p "$out"
if [ -s "$out/val.tok" ]; then
    echo "$out has them already: going on with that run (remove the folder to start afresh)"
else
    val=data/text.h     # held out
    set --
    for file in *.md *.c data/*.h dev/*.h dev/*.c dev/*.py dev/*.sh scripts/*.sh scripts/*.py Makefile; do
        [ -f "$file" ] && [ "$file" != "$val" ] && set -- "$@" "$file"
    done
    ./train_gpt2_sp prepare --tokenizer byte --out "$out/train.tok" "$@"
    ./train_gpt2_sp prepare --tokenizer byte --out "$out/val.tok" "$val"
fi

# ----- who computes what --------------------------------------------------------------------------

say "how 4 ranks share the attention of one sequence"
show ./train_gpt2_sp schedule --schedule dist --sp 4

# ----- train --------------------------------------------------------------------------------------

say "training: a context of 4096 tokens on 4 ranks, each a thread"
if [ -s "$out/run.cfg" ]; then
    set -- --config "$out/run.cfg"
else
    set -- --data "$out/train.tok" --val-data "$out/val.tok" --layers 2 --heads 2 --channels 128 --seq-len 4096 --sp 4 --schedule dist \
        --recompute attn --lr 1e-3
    # as many steps as fit into the time, from how long the fourth one takes here
    ms=$(./train_gpt2_sp train "$@" --steps 4 | sed -n 's/^step *4.* \([0-9]*\)\.[0-9]* ms .*/\1/p')
    steps=$((seconds * 1000 / (ms + 1)))
    [ "$steps" -ge 12 ] || steps=12
    [ "$steps" -le 2000 ] || steps=2000
    set -- "$@" --steps "$steps" --warmup $((steps / 5)) --val-every $((steps / 4)) --out "$out"
fi
echo "\$ ./train_gpt2_sp train $*"
failed=$out/failed
rm -f "$failed"
{ ./train_gpt2_sp train "$@" || : > "$failed"; } | {
    number=0 skipped= every=$((seconds / 3 + 1))
    while IFS= read -r line; do
        skipped=
        case $line in
        step*ms*val*) echo "$line" ;;
        step*ms*)
            [ $((number % every)) = 0 ] && echo "$line" || skipped=$line
            number=$((number + 1)) ;;
        *) echo "$line" ;;
        esac
    done
    [ -z "$skipped" ] || echo "$skipped"
}
[ ! -e "$failed" ]
sed -n -e '1s/.*"loss": \([0-9.]*\).*/the loss fell from \1/p' -e '$s/.*"loss": \([0-9.]*\).*/                to \1 nats per byte/p' "$out/log.jsonl"

# ----- look at it ---------------------------------------------------------------------------------

say "loss by position in the context, on text that it has not seen"
show ./train_gpt2_sp eval --from "$out" --data "$out/val.tok"

say "a sample"
show ./train_gpt2_sp sample --from "$out" --prompt "static int " --length 300 --temperature 0.7 --top-p 0.95

say "the checkpoint: a model folder in Hugging Face's layout, and what it takes to go on"
show ls -l "$out"/step_*

say "done in $(($(date +%s) - start)) seconds"
