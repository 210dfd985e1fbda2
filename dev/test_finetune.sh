#!/bin/sh
# The recipe scripts/finetune_long.sh from one end to the other, with a small GPT-2 that is made here and this tree's own texts.
#
#     sh dev/test_finetune.sh ./train_gpt2_sp
#
# What is held: texts and a folder of Transformers go in, a folder with a longer context and a table come out, each row over the
# same tokens; run again, it does nothing twice; a download counts only with the status, the size and the hash that the server
# names. The server is a few lines of Python on this machine.
set -u
cd "$(dirname "$0")/.." || exit 1
. dev/checks.sh
program=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt2_sp_finetune_XXXXXX") || exit 1
server=
trap '[ -z "$server" ] || kill $server 2> /dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

mkdir "$work/texts" "$work/hub"
for file in README.md dev/REFERENCE.md data/json.h data/net.h data/text.h data/tok.h dev/test_cli.sh; do
    cp "$file" "$work/texts/$(basename "$file").txt"
done
tiny=$work/tiny

make_tiny() {
    "$program" prepare --out "$work/t.tok" "$work/texts" > "$work/log" 2>&1 &&
        "$program" train --data "$work/t.tok" --layers 1 --heads 2 --channels 16 --seq-len 64 --steps 2 --threads 1 --out "$work/r" \
            > "$work/log" 2>&1 && "$program" export --from "$work/r" --out "$tiny" > "$work/log" 2>&1
}
recipe() {   # recipe OUT, with the environment of the caller
    PROGRAM=$program CONTEXTS="${CONTEXTS:-128 256}" STEPS=4 BATCH=1024 LR=1e-2 timeout 200 sh scripts/finetune_long.sh "$work/texts" "$1" > "$work/log" 2>&1
}
says() { grep -q -- "$1" "$work/log" || { tail -n 3 "$work/log"; return 1; }; }
table() {   # four rows over the same tokens, and a loss that has fallen
    awk '$1 == "before" || $1 == "after" { n++; loss[n] = $3; tokens[n] = $6; context[n] = $2 }
        END { ok = n == 5 && context[5] == 256 && loss[5] < loss[2]
            for (i = 2; i <= n; i++) ok = ok && tokens[i] == tokens[1] && loss[i] > 0
            printf "%d rows, %.4f -> %.4f over %d tokens\n", n, loss[2], loss[5], tokens[1]; exit !ok }' "$work/log"
}

check "a small GPT-2 in a folder of Transformers is made" make_tiny
MODEL=$tiny
export MODEL
check "texts and a GPT-2 go in, a table comes out" recipe "$work/out"
check "each row is over the same tokens, and the loss has fallen" table
check "the result is a model with the longer context" grep -q '"n_positions": 256' "$work/out/gpt2/config.json"
check "the result continues a text" "$program" sample --from "$work/out/gpt2" --prompt "The " --length 8 --threads 1
before=$(cksum "$work"/out/run-*/step_*/model.safetensors)
check "run again, it ends as before" recipe "$work/out"
check "run again, no stage is trained again" [ "$before" = "$(cksum "$work"/out/run-*/step_*/model.safetensors)" ]

recipe_fails() { if recipe "$@"; then return 1; fi; }
check "other texts need another folder" sh -c 'if HELD=README.md PROGRAM=$1 sh scripts/finetune_long.sh README.md "$2" 2> "$3"; then exit 1; fi; grep -q "take another OUT" "$3"' \
    sh "$program" "$work/out" "$work/log"
other_steps() { if STEPS=8 PROGRAM=$program CONTEXTS="128 256" BATCH=1024 LR=1e-2 sh scripts/finetune_long.sh "$work/texts" "$work/out" 2> "$work/log"; then
    return 1; else grep -q 'take another OUT' "$work/log"; fi; }
check "other stages need another folder" other_steps
inside() { if PROGRAM=$program sh scripts/finetune_long.sh "$work/texts" "$work/texts/out" 2> "$work/log"; then return 1
    else grep -q 'inside the texts' "$work/log" && [ ! -e "$work/texts/out" ]; fi; }
check "a folder inside the texts is refused" inside
stopped() {   # a stage that a signal ends is not gone on from
    PROGRAM=$program CONTEXTS="128 256" STEPS=400 BATCH=1024 sh scripts/finetune_long.sh "$work/texts" "$work/stopped" > "$work/log" 2>&1 &
    recipe_pid=$!
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        grep -q '^step     3/' "$work/log" && break
        sleep 0.5
    done
    trainer=$(ps -o pid=,args= | awk '$2 ~ /train_gpt2_sp$/ && /stopped.run-128/ { print $1 }')
    [ -n "$trainer" ] && kill -TERM "$trainer"
    if wait $recipe_pid; then return 1; fi
    [ ! -e "$work/stopped/run-256" ]
}
check "a stage that is stopped is not gone on from" stopped
check "a stage that is stopped is told as that" says 'the stage of 128 was stopped'
MODEL=$work/nowhere
check "a model that is not there is refused" recipe_fails "$work/none"
check "it is told what would be one" says 'expected a folder, a run, a .bin of llm.c, or gpt2, gpt2-medium'

# ----- models that are no folder of Transformers ------------------------------------------------------

short() { CONTEXTS=256 recipe "$@"; }
MODEL=$work/out/run-128:best
check "the best checkpoint of a run is gone on from" short "$work/best"
check "a model file of llm.c is made" "$program" export --from "$work/out/run-128" --out "$work/tiny.bin" --format llmc
MODEL=$work/tiny.bin
check "a model file of llm.c without a tokenizer is refused" recipe_fails "$work/none"
check "it is told what it lacks" says 'carries no tokenizer: give TOKENIZER=PATH'
TOKENIZER=$tiny
export TOKENIZER
check "a model file of llm.c and a tokenizer go in" short "$work/llmc"
check "the result continues a text" "$program" sample --from "$work/llmc/gpt2" --prompt "The " --length 8 --threads 1
unset TOKENIZER

# ----- downloads ------------------------------------------------------------------------------------

cat > "$work/server.py" << 'PY'
import hashlib, http.server, os, sys
root, broken = sys.argv[1:3]
class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def log_message(self, *a): pass
    def answer(self, body):
        what = open(broken).read().strip()
        name = self.path.rsplit("/", 1)[1]
        path = os.path.join(root, name)
        if what == "absent" or not os.path.exists(path):
            self.send_error(404)
            return
        data = open(path, "rb").read()
        large = name.endswith(".safetensors")
        hash = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if body and large and what == "damaged": data = data[:-1] + bytes([data[-1] ^ 1])
        if body and large and what == "short": data = data[:-7]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if large: self.send_header("X-Linked-Size", str(os.path.getsize(path))), self.send_header("X-Linked-ETag", '"%s"' % hash)
        else: self.send_header("ETag", 'W/"%s"' % hash)
        self.end_headers()
        if body: self.wfile.write(data)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
PY
if command -v python3 > /dev/null && command -v curl > /dev/null; then
    cp "$tiny"/* "$work/hub/"
    echo whole > "$work/state"
    python3 "$work/server.py" "$work/hub" "$work/state" > "$work/port" &
    server=$!
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do [ -s "$work/port" ] && break; sleep 0.25; done
    MODEL=gpt2 HF_ENDPOINT=http://127.0.0.1:$(cat "$work/port")
    no_proxy=127.0.0.1
    export HF_ENDPOINT no_proxy
    for state in absent damaged short; do
        echo $state > "$work/state"
        check "a download that is $state is refused" recipe_fails "$work/hub-$state"
        check "a download that is $state: the way without a network is told" says 'run this again with MODEL=FOLDER'
    done
    check "what is damaged does not stay" [ ! -e "$work/hub-damaged/model/model.safetensors" ]
    echo whole > "$work/state"
    check "a whole download is trained on" recipe "$work/hub-damaged"
    check "each row is over the same tokens here too" table
else skip "downloads" "curl or python3 is not installed"
fi
finish
