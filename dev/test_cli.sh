#!/bin/sh
# The command line as a user meets it: every command, its refusals, its JSON, its signals, resuming. Held:
# what is asked for is done and told, what cannot be is refused with status 1 and one line that names the
# reason, and a run that is stopped goes on as if it had not been. The groups of test_gpt2_sp call functions;
# a script of a user only has exit statuses, lines and files, and those are looked at here.
#
#     sh dev/test_cli.sh [PROGRAM] [JSON_KEYS]      built by `make test`: ./train_gpt2_sp, dev/json_keys.c
set -u
program=$(realpath "${1:-./train_gpt2_sp}")
to_jsonl=$(realpath "$(dirname "$0")/../data/to_jsonl.py")
json_keys=$(realpath "${2:-build/test/json_keys}")
scripts=$(realpath "$(dirname "$0")/../scripts")
. "$(dirname "$0")/checks.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# with TEST_SECONDS a command that takes longer has failed
g() { ${TEST_SECONDS:+timeout "$TEST_SECONDS"} "$program" "$@"; }
# a model that takes a millisecond a step
shape="--layers 2 --heads 2 --channels 32 --seq-len 64 --sp 2 --threads 1"
tiny="$shape --lr 3e-3"

# Fails unless the command succeeds, says nothing on stderr, and its output matches the pattern.
says() {
    pattern=$1
    shift
    "$@" > out 2> err || { echo "exit status $?: $(cat err)"; return 1; }
    [ ! -s err ] || { echo "stderr: $(cat err)"; return 1; }
    grep -qe "$pattern" out || { echo "no \`$pattern\` in: $(tail -3 out)"; return 1; }
}

# Fails unless the command exits with 1 and one line on stderr that holds the word. Shows that line.
refused() {
    word=$1
    shift
    g "$@" > out 2> err
    status=$?
    cat err
    [ $status = 1 ] && [ "$(wc -l < err)" = 1 ] && grep -qe "$word" err ||
        { echo "exit status $status, $(wc -l < err) lines, expected 1 with \`$word\`"; return 1; }
}

# Fails unless the command exits with 1 and, on stderr, the table of `plan $asked` above one line that holds
# the word. Shows that line.
short_of_memory() {
    word=$1
    shift
    g "$@" > out 2> err
    status=$?
    tail -n 1 err
    [ $status = 1 ] && [ ! -s out ] && tail -n 1 err | grep -qe "$word" ||
        { echo "exit status $status, expected 1 with \`$word\`: $(cat err)"; return 1; }
    sed '$d' err > table
    if [ "$asked" ]; then g plan $asked --gflops 1 --link-gbs 1 --copy-gbs 1 | sed '/^  total/q' | cmp - table
    else grep -q '^  total ' table && grep -q '^  gradients  *0 B$' table
    fi
}

# Fails unless `sample` succeeds, says its speed on stderr, and its output matches the pattern.
samples() {
    pattern=$1
    shift
    g sample "$@" > out 2> err || { echo "exit status $?: $(cat err)"; return 1; }
    cat err
    grep -qxe 'sample: [0-9]* tokens in [0-9.]* s, [0-9]* tok/s.*' err && [ "$(wc -l < err)" = 1 ] || return 1
    grep -qEe "$pattern" out || { echo "no \`$pattern\` in: $(tail -3 out)"; return 1; }
}

# Fails unless standard input is lines of JSON with these keys, by our own reader and by Python's if there is
# one.
json() {
    cat > json.txt
    "$json_keys" "$@" < json.txt || return 1
    command -v python3 > /dev/null || return 0
    python3 -c 'import json, sys
for line in open("json.txt"): json.loads(line, parse_constant=lambda x: sys.exit("not JSON: " + x))'
}

# ----- text and data ------------------------------------------------------------------------------

mkdir folder
yes 'It was the best of times, it was the worst of times. 0123456789' | head -n 400 > book1.txt
yes 'Call me Ishmael; some years ago, never mind how long precisely.' | head -n 300 > book2.txt
printf '# A document\n\nof a few words\n' > folder/notes.md
printf '{"text": "caf\\u00e9 au lait", "id": 1}\n{"text": "two\\nlines"}\n' > folder/lines.jsonl

check "prepare takes files and a folder" \
    says '^books.tok: 5 documents' g prepare --tokenizer byte --out books.tok book1.txt book2.txt folder/
check "prepare takes --name=value" \
    says 'documents' g prepare --tokenizer=byte --out=val.tok --block-tokens=4096 book2.txt
check "synth makes a shard" \
    says '8 documents of 2048 bytes' g synth --out synth.tok --docs 8 --doc-bytes 2048 --facts 2 \
        --distance 512 --seed 3
check "synth makes text" says '2 documents' g synth --out synth.jsonl --docs 2 --doc-bytes 1024
check "synth: every line of its text is JSON" json text facts < synth.jsonl
check "prepare takes synth's text" says '2 documents' g prepare --out again.tok synth.jsonl
check "prepare: no input is refused" refused 'no input' prepare --out x.tok
check "prepare: no --out is refused" refused '--out' prepare book1.txt
check "prepare: a missing file is refused" refused 'nowhere.txt' prepare --out x.tok nowhere.txt
printf '{"text": "fine"}\n{"text": 3}\n' > bad.jsonl
check "prepare: a line that has no text is named and refused" \
    refused 'bad.jsonl:2' prepare --out x.tok bad.jsonl
# what is read of a folder, and what is told of the rest
mkdir corpus
printf 'plain' > corpus/A.TXT
printf 'read me' > corpus/README
printf '<p>a page &amp; its text</p><script>x</script>' > corpus/page.html
printf '<?xml?>' > corpus/page.xml
printf 'a,b' > corpus/table.csv
gzip -c book1.txt > corpus/book1.txt.gz
printf '{"text": "one"}\n{"text": "two"}\n' | gzip > corpus/lines.jsonl.gz
g prepare --out corpus.tok corpus > out 2> err
check "prepare reads .gz, .html, README and endings in any case of letters" \
    grep '^corpus.tok: 6 documents, 25642 tokens, 25636 bytes' out
check "prepare names what it leaves out, with the reason" \
    sh -c '[ "$(wc -l < err)" = 2 ] && grep "left out corpus/page.xml: its tags" err &&
        grep "left out corpus/table.csv: a table" err'
check "prepare says nothing of the shard that it writes into the folder it reads" sh -c '
    for time in 1 2; do "$0" prepare --out corpus/of_it.tok corpus > out 2> err || exit 1; done
    [ "$(wc -l < err)" = 2 ] && ! grep of_it err && rm corpus/of_it.tok' "$program"
printf '{"messages": [{"role": "user", "content": "Who?"}]}\n' > asked.jsonl
check "prepare tells of a shard without a label" says 'nothing can be learnt from this' g prepare --out asked.tok asked.jsonl
for i in $(seq 30); do : > corpus/$i.csv; done
g prepare --out corpus.tok corpus > out 2> err
check "prepare counts what it does not name" \
    sh -c '[ "$(wc -l < err)" = 22 ] && grep "left out 11 more: a table" err && grep -q "left out 1 more: its tags" err'
check "prepare: a named .xml is refused, with the way to take it" \
    refused 'end in .txt' prepare --out x.tok corpus/page.xml

printf 'caf\351, d\351j\340 vu\n' > latin1.txt
check "prepare counts documents that are no UTF-8" says 'not UTF-8: 1 documents' g prepare --out latin1.tok latin1.txt book1.txt

# standard input, masks, duplicates, the side of validation, the report
check "prepare: standard input gives the shard of the file" sh -c '
    "$0" prepare --out one.tok book1.txt > out && "$0" prepare --out two.tok --input-format txt - < book1.txt > out &&
    cmp one.tok two.tok && cat corpus/page.html | "$0" prepare --out two.tok --input-format html - > out &&
    grep "two.tok: 1 documents, 19 tokens, 18 bytes" out' "$program"
check "prepare: standard input without --input-format is refused" sh -c '
    "$0" prepare --out x.tok - < book1.txt 2> err; [ $? = 1 ] && grep -- "--input-format txt" err' "$program"
check "prepare: --input-format without standard input is refused" \
    refused 'is for standard input' prepare --out x.tok --input-format txt book1.txt
check "prepare: standard input twice is refused" sh -c '
    "$0" prepare --out x.tok --input-format txt - - < book1.txt 2> err; [ $? = 1 ] && grep twice err' "$program"
printf '{"prompt": "ask", "completion": "tell"}\n{"text": "all"}\n' > pairs.jsonl
printf '{"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "tell"}]}\n' >> pairs.jsonl
check "prepare: prompts and the user's messages are masked" \
    sh -c '"$0" prepare --out pairs.tok pairs.jsonl --json > out && cat out &&
        grep -q "\"documents\": 3, \"tokens\": 22, \"masked\": 7, \"text_bytes\": 19" out' "$program"
printf '{"a": {"b": "deep"}, "text": "x"}\n' > deep.jsonl
check "prepare: --field a.b takes that" says '1 documents, 5 tokens' g prepare --out deep.tok --field a.b deep.jsonl
check "prepare: a --field that is not there is refused with its name" \
    refused 'one field "a.c"' prepare --out x.tok --field a.c deep.jsonl
i=0
while [ $i -lt 300 ]; do echo "{\"text\": \"document $((i % 200)) of some\"}"; i=$((i + 1)); done > many.jsonl
check "prepare --dedup leaves out what was there" sh -c '
    "$0" prepare --out dedup.tok --dedup many.jsonl > out && cat out && grep -q "^dedup.tok: 200 documents" out &&
        grep -q "duplicates left out: 100 documents, 1890 bytes" out &&
    head -n 200 many.jsonl > once.jsonl && "$0" prepare --out once.tok once.jsonl > out && cmp dedup.tok once.tok' \
    "$program"
check "prepare --val-fraction puts a document on one side, in any order, with any threads" sh -c '
    "$0" prepare --out t1.tok --val-out v1.tok --val-fraction 0.2 --threads 1 many.jsonl > out && cat out &&
    "$0" prepare --out t2.tok --val-out v2.tok --val-fraction 0.2 --threads 3 many.jsonl > out &&
    cmp t1.tok t2.tok && cmp v1.tok v2.tok && sort -r many.jsonl > turned.jsonl &&
    "$0" prepare --out t2.tok --val-out v2.tok --val-fraction 0.2 turned.jsonl > out2 &&
    sed -n "s/^[tv].*: \(.*\) bytes in.*/\1/p" out > a && sed -n "s/^[tv].*: \(.*\) bytes in.*/\1/p" out2 | cmp - a' \
    "$program"
check "prepare: --val-fraction without --val-out is refused" \
    refused '--val-out' prepare --out x.tok --val-fraction 0.5 book1.txt
check "prepare: --val-out without --val-fraction is refused" \
    refused '--val-fraction' prepare --out x.tok --val-out y.tok book1.txt
check "prepare: one file for both sides is refused" \
    refused 'one file' prepare --out x.tok --val-out x.tok --val-fraction 0.5 many.jsonl
check "prepare: a side without documents is refused" \
    refused 'none is on this side' prepare --out x.tok --val-out y.tok --val-fraction 0.5 book1.txt
check "and neither shard is there" sh -c '[ ! -e x.tok ] && [ ! -e y.tok ] && [ ! -e x.tok.tmp ] && [ ! -e y.tok.tmp ]'
g prepare --out dedup.tok --dedup --json many.jsonl book1.txt > report
check "prepare --json is one line of JSON" \
    json out bytes_per_token duplicates duplicate_bytes left_out seconds threads beyond lengths < report
check "prepare --json counts what lies far back in a document" \
    sh -c 'grep -o "\"1024\": 0.*\"32768\": 0.000000}" report && grep -o "\"from\": 16384, \"to\": 32767, \"documents\": 1, \"tokens\": 25601" report'
mkfifo slow
for signal in INT TERM; do
    "$program" prepare --out stopped.tok --input-format txt - < slow > out 2> err &
    pid=$!
    exec 3> slow
    echo 'a text that goes on' >&3
    while [ ! -e stopped.tok.tmp ] && kill -0 $pid 2> /dev/null; do :; done
    sleep 0.2
    kill -$signal $pid
    wait $pid
    status=$?
    exec 3>&-
    check "prepare: SIG$signal ends it with a line and leaves nothing" sh -c '
        cat err; [ "$0" = 1 ] && grep -q "stopped by a signal: nothing was written" err && [ ! -e stopped.tok ] &&
            [ ! -e stopped.tok.tmp ]' $status
done
if python3 -c 'import pyarrow' 2> err; then
    python3 -c 'import pyarrow as a, pyarrow.parquet as p
p.write_table(a.table({"text": ["one", "two \u00e9"], "n": [1, 2]}), "t.parquet")'
    check "data/to_jsonl.py makes lines of Parquet" sh -c '
        python3 "$1" t.parquet > t.jsonl && python3 "$1" t.parquet --columns text | "$0" prepare --out p.tok --input-format jsonl - > out &&
            grep "p.tok: 2 documents, 11 tokens" out' "$program" "$to_jsonl"
else skip "data/to_jsonl.py makes lines of Parquet" "pyarrow is not installed"
fi

# an output replaces a shard of this program, or nothing
untouched() {
    before=$(cksum < "$1")
    shift
    refused "$@" && [ "$before" = "$(cksum < book1.txt)" ]
}
ln -s books.tok link.tok
mkfifo pipe.tok
cp books.tok twin.tok
printf 'not ours' > ours.tok.tmp
check "prepare: an input as output is refused" untouched book1.txt 'and stays' prepare --out book1.txt book1.txt
check "prepare: the first of several texts as output is refused" \
    untouched book1.txt 'and stays' prepare --out book1.txt book2.txt
check "prepare: a link as output is refused" refused 'a link is there' prepare --out link.tok book2.txt
check "prepare: a pipe as output is refused" refused 'a device, pipe' prepare --out pipe.tok book2.txt
if mknod null.tok c 1 3 2> err; then   # one of our own: a program that is wrong would replace the machine's
    check "prepare: a device as output is refused" refused 'a device, pipe' prepare --out null.tok book2.txt
    check "and stays" test -c null.tok
else
    skip "prepare: a device as output is refused" "none can be made here: $(cat err)"
fi
check "prepare: a folder as output is refused" refused 'a folder is there' prepare --out corpus book2.txt
check "prepare: a foreign file at FILE.tmp is refused" refused 'ours.tok.tmp' prepare --out ours.tok book2.txt
check "prepare: the output among the inputs is refused" refused 'the output too' prepare --out twin.tok twin.tok
check "synth: a text as output is refused" untouched book1.txt 'and stays' synth --out book1.txt
cp bad.jsonl mine.jsonl
check "synth: foreign lines as output are refused" \
    sh -c '"$0" synth --out mine.jsonl 2> err; [ $? = 1 ] && cat err && cmp mine.jsonl bad.jsonl' "$program"
check "synth replaces its own text" says '2 documents' g synth --out synth.jsonl --docs 2 --doc-bytes 1024
synth_stopped() {   # a signal leaves nothing, and says so
    "$program" synth --out stopped.jsonl --docs 1000000 > out 2> err &
    for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e stopped.jsonl.tmp ] && break; sleep 0.1; done
    kill -INT $!
    wait $! && return 1
    grep 'nothing was written' err && [ ! -e stopped.jsonl ] && [ ! -e stopped.jsonl.tmp ]
}
check "synth that is stopped leaves nothing" synth_stopped
check "all that was refused is as it was" \
    sh -c '[ -L link.tok ] && [ -p pipe.tok ] && cmp books.tok twin.tok &&
        [ "$(cat ours.tok.tmp)" = "not ours" ] && [ ! -e ours.tok ] && ! ls *.tok.tmp | grep -v ours'
head -c 30000000 /dev/zero | tr '\0' x > big.txt
limited() { (ulimit -f 20; g "$@" > out 2> err); echo $?; }
check "synth: a disk that is full leaves nothing half" \
    sh -c '[ "$0" = 1 ] && cat err && [ ! -e half.jsonl ] && [ ! -e half.jsonl.tmp ]' \
        "$(limited synth --out half.jsonl --docs 64 --doc-bytes 65536)"
head -c 100000 /dev/urandom | od -An -tx1 > noise.txt
check "prepare: a limit of a file's size is an error, no end by a signal" \
    sh -c '[ "$0" = 1 ] && [ "$(wc -l < err)" = 1 ] && grep "^train_gpt2_sp prepare: half.tok.*: File too large" err &&
        [ ! -e half.tok ] && [ ! -e half.tok.tmp ]' "$(limited prepare --out half.tok noise.txt)"
check "schedule: so is one of what it prints" \
    sh -c '[ "$0" = 1 ] && [ "$(wc -l < err)" = 1 ] && grep "cannot write all of the output" err' \
        "$(limited schedule --sp 64 --messages 1)"
for kind in prepare synth; do
    case $kind in
    prepare) set -- prepare --out two.tok big.txt ;;
    synth) set -- synth --out two.jsonl --docs 400 --doc-bytes 65536 ;;
    esac
    "$program" "$@" > first 2>&1 &
    first=$!
    while [ ! -e "$3.tmp" ] && kill -0 $first 2> /dev/null; do :; done
    sleep 0.1
    g "$@" > second 2>&1
    second=$?
    wait $first
    check "$kind: of two at once on one output the second is refused" \
        sh -c '[ "$0" = 1 ] && cat second && grep -q "another process" second && grep documents first' $second
    "$program" "$@" > first 2>&1 &
    first=$!
    while [ ! -e "$3.tmp" ] && kill -0 $first 2> /dev/null; do :; done
    sleep 0.1
    kill -9 $first
    wait $first 2> /dev/null
    check "$kind: what a killed one has left does not stop the next" \
        sh -c 'test -e "$0.tmp" && "$@" > out 2>&1; cat out; test ! -e "$0.tmp"' "$3" "$program" "$@"
done

check "prepare leaves nothing behind when it refuses" test ! -e x.tok
check "prepare: an output that cannot be is refused" refused 'no/such' prepare --out no/such/x.tok book1.txt
check "synth: documents too small for their facts are refused" \
    refused 'bytes' synth --out x.tok --doc-bytes 256 --facts 1024

# ----- help, options, config ----------------------------------------------------------------------

check "--help lists the commands" says 'train.*train or resume' g --help
for command in train plan schedule sample eval prepare synth; do
    check "$command --help shows its usage" says "^usage: ./train_gpt2_sp $command" g $command --help
    check "$command --help fits in 100 columns, with every option" sh -c '
        "$0" $1 --help > out && awk "length > 100" out > wide && [ ! -s wide ] && [ "$(tail -c 1 out | wc -l)" = 1 ] &&
            ! grep " $" out && grep -c "^  --" out' "$program" $command
done
check "no arguments show the usage and end with status 1" \
    sh -c '"$0" > out 2> err; [ $? = 1 ] && [ ! -s out ] && grep -q usage err' "$program"
check "an unknown command is refused" refused 'fry' fry
check "an unknown option is refused with the one that was meant" refused '--seq-len' train --seq-length 64
check "an unknown option is refused" refused '--zzzzzzzzzz' train --zzzzzzzzzz 1
check "an option of another command is refused" refused '--docs' train --docs 3
check "an argument that is no option is refused" refused 'books.tok' train books.tok
check "an option without its value is refused" refused '--layers' train --layers
check "what is not a number is refused" refused '--layers' plan --layers many
check "a number with a tail is refused" refused '--layers' plan --layers 3x
check "what is not a whole number is refused" refused '--layers' plan --layers 2.5
check "a number below the range is refused" refused '--layers' plan --layers -1
check "a number above the range is refused" refused '--sp' plan --sp 257
check "nan is refused" refused '--lr' train --lr nan
check "infinity is refused" refused '--lr' train --lr inf
check "a huge number is refused" refused '--seq-len' plan --seq-len 99999999999999999999
check "a word that is none of the choice is refused with the choice" refused 'ring|dist' plan --schedule star
check "an unknown model size is refused with those there are" refused 'd12' plan --model d13
check "a text that is too long is refused" \
    refused '--data' train --data "$(head -c 5000 /dev/zero | tr '\0' x)"
check "32k is 32768" says '"seq_len": 32768' g plan --seq-len 32k --layers 1 --gflops 1 --link-gbs 1 --json
check "a flag without a value is on" says '"sp": 2' g schedule --json --sp 2
check "heads that do not divide the channels are refused" refused '--heads' plan --heads 3 --channels 64
check "ulysses: heads that --sp does not divide are refused" \
    refused 'ulysses' plan --schedule ulysses --sp 3 --heads 4
check "more ranks than tokens are refused" refused '--s' plan --seq-len 4 --sp 8
check "dist-paper: an odd P is refused" refused 'dist-paper' schedule --schedule dist-paper --sp 5
printf '%s\n' '# a comment' '' 'layers = 2' '  heads=2  ' 'channels = 32' 'seq-len = 64' 'sp = 2' \
    'threads = 1' 'lr = 3e-3' > run.cfg
check "a config file gives options" \
    says '^model *2 layers, 2 heads, 32 channels' g train --config run.cfg --data books.tok --steps 1
check "an option after a config file overrides it" \
    says '^model *1 layers' g train --config run.cfg --layers 1 --data books.tok --steps 1
check "an option of the GPU program is refused" \
    refused 'attention: only the GPU program' train --config run.cfg --data books.tok --attention portable
echo 'layer = 2' > bad.cfg
check "a config file's unknown option is named with its line and refused" \
    refused 'bad.cfg:1.*--layers' train --config bad.cfg
echo 'layers' > bad.cfg
check "a config file's line without a value is refused" refused 'bad.cfg:1' train --config bad.cfg
printf '\357\273\277layers = 2\nheads = 2\nchannels = 32\nseq-len = 64\n' > bom.cfg
check "a config file may begin with a byte order mark" \
    says '^model *2 layers' g train --config bom.cfg --threads 1 --data books.tok --steps 1
printf 'lr = 1\0e-3\n' > nul.cfg
check "a NUL in a config file is named with its line and refused" refused 'nul.cfg:1: a NUL' train --config nul.cfg
mkfifo pipe.cfg
check "a pipe as config file is refused" refused 'pipe.cfg is a pipe' train --config pipe.cfg
check "an endless config file is refused" refused '/dev/zero is a device' train --config /dev/zero
check "a config file that is missing is refused" refused 'none.cfg' train --config none.cfg

# ----- schedule and plan --------------------------------------------------------------------------

for kind in ring dist dist-paper zigzag allgather ulysses; do
    check "schedule $kind is drawn and proved" says 'proved' g schedule --schedule $kind --sp 8
    g schedule --schedule $kind --sp 8 --json > out
    check "schedule $kind --json has its figures" \
        json schedule sp forward.steps forward.makespan forward.ideal forward.elements_per_rank \
            backward.steps backward.makespan < out
done
check "schedule dist, 8 ranks, takes 6 steps without an idle half" \
    says '"forward": {"steps": 6, "makespan": 4, "ideal": 4,' g schedule --schedule dist --sp 8 --json
check "schedule dist-paper, 8 ranks, has an idle half step" \
    says '"forward": {"steps": 5, "makespan": 4.5, "ideal": 4,' g schedule --schedule dist-paper --sp 8 \
        --json
check "schedule dist, 256 ranks, has the ideal makespan" \
    says '"makespan": 128' g schedule --schedule dist --sp 256 --json
for kind in gpipe 1f1b interleaved slices slices-interleaved; do
    check "schedule --pipeline $kind is drawn and proved" says 'proved' g schedule --pipeline $kind
done
check "schedule --pipeline: an option of attention is refused" refused '--sp, which is of attention' schedule --pipeline gpipe --sp 2
check "schedule: --pp without --pipeline is refused" refused 'need --pipeline' schedule --pp 2
check "schedule of 1 rank is half a unit of work" says '"makespan": 0.5' g schedule --sp 1 --json
g plan --layers 12 --heads 12 --channels 768 --seq-len 32768 --sp 8 --json > out
check "plan --json has its figures" \
    json parameters memory_bytes.total step.tokens step.projected_seconds longest_seq_len \
        rates.attention_gflops best_split.speedup projected_splits projected_ranks < out
known="--gflops 100 --attention-gflops 200 --link-gbs 10 --copy-gbs 20"
check "plan at 256 ranks projects them" says ' 1 x 256 ' g plan --seq-len 32k --sp 256 $known
check "plan projects no more ranks than a length has chunks for" says '1 x 64 ' g plan --seq-len 100 $known
check "plan takes attention's own rate" says '(attention 200)' g plan $known
check "plan advises data parallelism" \
    says '--dp 8 --sp 1 would give' g plan --layers 2 --seq-len 4096 --sp 8 --gflops 1000 --link-gbs 1 \
        --copy-gbs 20
check "plan tells the --sp that a sequence needs at least" \
    says 'need --sp 2 at least' g plan --model d12 --seq-len 64k --sp 8 --memory-gb 8 $known
check "plan tells that no split has room" \
    says 'no split fits' g plan --model d12 --seq-len 64k --sp 2 --memory-gb 1 $known
check "plan, ulysses, tells the splits that it has no schedule for" \
    says 'no such schedule' g plan --schedule ulysses --heads 4 --sp 4 --dp 2 --seq-len 4096 $known
check "plan tells the longest context" says 'longest context' g plan $shape --vocab 257
check "plan tells what does not fit, and what would" \
    says 'this does not fit; the longest context that fits in .*: [1-9]' g plan --model d12 --seq-len 32k \
        --memory-gb 4 --gflops 100 --link-gbs 1 --copy-gbs 1
check "plan tells that no context fits" \
    says 'no context fits in 1' g plan --model d48 --memory-gb 16 --gflops 100 --link-gbs 1 --copy-gbs 1
check "a flag's value that is neither 0 nor 1 is refused" \
    refused '--center 2: must be from 0 to 1' plan --center 2

# what train says that it allocated, in the same words as plan's total
planned_is_allocated() {
    planned=$(g plan "$@" --vocab 257 --gflops 1 --link-gbs 1 | sed -n 's/^ *total *//p')
    allocated=$(g train "$@" --data books.tok --steps 0 | sed -n 's/^memory *\(.*\) per rank.*/\1/p')
    echo "$planned"
    [ "$planned" ] && [ "$planned" = "$allocated" ] || { echo "planned, $allocated allocated"; return 1; }
}
for recompute in none gelu attn layer sqrt; do
    check "plan is what train allocates, recompute $recompute" \
        planned_is_allocated --layers 3 --heads 2 --channels 64 --seq-len 256 --sp 2 --recompute $recompute
done
for zero in 1 2 3; do
    check "plan is what train allocates, zero $zero" \
        planned_is_allocated --layers 2 --heads 2 --channels 32 --seq-len 128 --sp 2 --dp 2 --zero $zero
done
check "plan is what train allocates, allgather, documents, accumulation" \
    planned_is_allocated --layers 2 --heads 2 --channels 32 --seq-len 128 --sp 4 --schedule allgather \
        --doc-mask 1 --grad-accum 3 --batch-size 2

# ----- train, resume ------------------------------------------------------------------------------

check "train on three ranks trains and saves" \
    says 'saved runs/a/step_00000020' g train --data books.tok --out runs/a --layers 2 --heads 2 \
        --channels 64 --seq-len 512 --batch-size 1 --sp 3 --schedule dist --recompute attn --steps 20 \
        --lr 3e-4 --seed 1
check "log.jsonl has its columns" json step loss grad_norm lr tokens ms tok_per_s < runs/a/log.jsonl
check "log.jsonl has a line per step" test "$(wc -l < runs/a/log.jsonl)" = 20
check "the same command again says that it is done already" \
    says 'done already' g train --data books.tok --out runs/a --layers 2 --heads 2 --channels 64 \
        --seq-len 512 --sp 3 --steps 20
check "no command word means train" says 'step *1/1 ' g --data books.tok $tiny --steps 1
check "the run's own run.cfg goes on with it" says 'done already' g train --config runs/a/run.cfg
cp books.tok 'it is # 1, "two".tok'
ln books.tok 'tail
 .tok'
for name in 'it is # 1\, "two".tok' 'tail
 .tok' './books.tok' ' books.tok'; do
    rm -rf runs/moved runs/named
    cp books.tok ' books.tok'
    g train $tiny --data "$name" --out runs/named --steps 2 > out 2>&1
    mv runs/named runs/moved
    g train --config runs/moved/run.cfg --steps 3 > out 2> err
    check "a run's run.cfg reads back its --data, and goes on where the run was moved: $name" \
        sh -c 'cat err; grep -q "it goes on in runs/moved$" err && grep "saved runs/moved/step_00000003" out &&
            grep -q "from step 2 to 3 (resumed)" out && [ ! -e runs/named ]'
done
check "the loss falls" sh -c 'sed -n "s/.*\"loss\": \([0-9.]*\).*/\1/p" runs/a/log.jsonl |
    awk "NR == 1 { first = \$1 } END { print first, \$1; exit !(\$1 < first) }"'

# the log of a run: of lines of a step that was done twice the later one counts
losses() {
    sed 's/, "ms.*//' "$1/log.jsonl" | awk -F '[:,]' '
        { while (n && step[n] >= $2 + 0) n--; step[++n] = $2 + 0; line[n] = $0 }
        END { for (i = 1; i <= n; i++) print line[i] }'
}
g train $tiny --data books.tok --val-data val.tok --val-every 4 --val-sequences 2 --out runs/whole \
    --steps 12 > out 2>&1
g train $tiny --data books.tok --val-data val.tok --val-every 4 --val-sequences 2 --out runs/parts \
    --steps 12 --save-every 5 > out 2>&1
check "log.jsonl has val_loss where it was validated" test "$(
    sed -n 's/.*"step": \([0-9]*\),.*val_loss.*/\1/p' runs/whole/log.jsonl | tr '\n' ' ')" = '0 4 8 12 '
rm -rf runs/parts/step_00000012
losses runs/whole > whole
check "resume goes on from step 10" \
    says 'from step 10 to 12 (resumed)' g train $tiny --data books.tok --val-data val.tok --val-every 4 \
        --val-sequences 2 --out runs/parts --steps 12 --save-every 5
losses runs/parts > parts
check "resume: the log is that of one run" cmp whole parts
check "resume: the weights are those of one run" \
    cmp runs/whole/step_00000012/model.safetensors runs/parts/step_00000012/model.safetensors
check "resume: the moments are those of one run" \
    cmp runs/whole/step_00000012/optimizer.safetensors runs/parts/step_00000012/optimizer.safetensors
check "--check finds four ranks' gradients to be one rank's" \
    says 'the worst gradient' g train $tiny --data books.tok --dp 2 --sp 2 --zero 3 --check 1 --steps 2
for zero in 0 1 2 3; do
    check "--check finds gradients of two ranks with own positions to be one's, zero $zero" \
        says 'the worst gradient' g train $tiny --data books.tok --zero $zero --check 1 --steps 2
done
check "resume goes on to more steps" \
    says 'from step 12 to 14' g train $tiny --data books.tok --out runs/parts --steps 14
check "resume: two checkpoints are kept" \
    test "$(echo runs/parts/step_*)" = "runs/parts/step_00000012 runs/parts/step_00000014"
check "resume: another shape is refused" \
    refused '--channels' train $tiny --channels 64 --data books.tok --out runs/parts --steps 16
check "resume: another context is refused" \
    refused '--seq-len' train $tiny --seq-len 32 --data books.tok --out runs/parts --steps 16
check "resume: other data are refused" refused '--data' train $tiny --data val.tok --out runs/parts --steps 16
check "resume goes on with another P, dp and zero" \
    says 'from step 14 to 16' g train --layers 2 --heads 2 --channels 32 --seq-len 64 --sp 3 --dp 2 --zero 3 \
        --threads 1 --data books.tok --out runs/parts --steps 16
check "--init-from starts another run" \
    says 'saved runs/tuned' g train $tiny --seq-len 128 --data val.tok --init-from runs/parts/step_00000016 \
        --out runs/tuned --steps 2
check "--init-from: another shape is refused" \
    refused '--init-from' train $tiny --layers 3 --data val.tok --init-from runs/parts/step_00000016 \
        --steps 1
check "--init-from gives the model's sizes, and takes a run's folder" \
    says '2 layers, 2 heads, 32 channels.*' g train --threads 1 --sp 2 --data val.tok --init-from runs/parts --steps 1
cp -r runs/parts runs/goes-on
check "a run gives its sizes when it goes on" \
    says 'from step 16 to 17' g train --threads 1 --sp 2 --data books.tok --out runs/goes-on --steps 17
cp -r runs/parts runs/begun-from
g train --threads 1 --sp 2 --data books.tok --out runs/begun --init-from runs/begun-from --steps 1 > out && rm -r runs/begun-from
check "--init-from is not looked for once the run has a checkpoint" \
    says '(resumed)' g train --threads 1 --sp 2 --data books.tok --out runs/begun --init-from runs/begun-from --steps 2
check "another --init-from than the run began with is refused" refused 'began from runs/begun-from' train --threads 1 --sp 2 \
    --data books.tok --out runs/begun --init-from runs/parts --steps 3
check "plan takes the sizes of a model" \
    says '"layers": 2, "heads": 2, "channels": 32, "seq_len": 64' g plan --init-from runs/parts --json --gflops 1 \
        --link-gbs 1 --copy-gbs 1
# edited NAME FROM TO: a copy of that model whose config.json says another thing.
edited() {
    rm -rf edited && cp -r runs/parts/step_00000016 edited && rm edited/manifest.txt
    sed "s/\"$1\": $2/\"$1\": $3/" runs/parts/step_00000016/config.json > edited/config.json
    ! cmp -s edited/config.json runs/parts/step_00000016/config.json || echo "no $1 in config.json"
}
edited eos_token_id 256 0
check "--init-from: another end token than the data's is refused" \
    refused 'another tokenizer' train $tiny --data val.tok --init-from edited --steps 1
check "eval: another end token than the data's is refused" refused 'another tokenizer' eval --from edited --data val.tok
edited eos_token_id 256 null
check "--init-from: a model that names no end token takes the data's" \
    says 'step *1/1' g train $tiny --data val.tok --init-from edited --steps 1
for wrong in 'layer_norm_epsilon 1e-05 "1e-5"' 'activation_function "gelu_new" ["relu"]' 'eos_token_id 256 "256"' \
    'tie_word_embeddings true 1' 'activation_function "gelu_new" "relu"'; do
    edited $wrong
    check "a config.json value of another type is refused: $wrong" \
        refused "${wrong%% *}" train $tiny --data val.tok --init-from edited --steps 1
done
edited n_embd 32 '32, "n_inner": 32'
check "a config.json of another inner size is refused" \
    refused 'n_inner 32, expected 128' train $tiny --data val.tok --init-from edited --steps 1
edited eos_token_id 256 256
mv edited/model.safetensors edited/pytorch_model.bin
check "a model in pytorch_model.bin alone is refused with the way to convert it" \
    refused 'save_pretrained' train $tiny --data val.tok --init-from edited --steps 1
check "--model knows GPT-2's names" says '"layers": 24, "heads": 16' g plan --model gpt2-medium --json --gflops 1 \
    --link-gbs 1 --copy-gbs 1
printf 'xyz' | dd of=runs/parts/step_00000016/model.safetensors bs=1 seek=3000 conv=notrunc 2> /dev/null
g train $tiny --data books.tok --out runs/parts --steps 16 > out 2> err
check "a damaged checkpoint is told on one line, the older one used" \
    sh -c '[ $(wc -l < err) = 1 ] && cat err && grep -q "step_00000016 is not whole" err &&
        grep -q "from step 14" out'
for file in runs/tuned/*/manifest.txt; do echo x >> "$file"; done
g train --layers 2 --heads 2 --channels 32 --seq-len 128 --sp 2 --data val.tok --out runs/tuned --steps 2 \
    > out 2> err
check "a run without a whole checkpoint is refused, not started afresh" \
    sh -c '[ "$0" = 1 ] && grep "none of the" err' $?

# ----- data that cannot be ------------------------------------------------------------------------

check "train without --data is refused" refused '--data' train --steps 1
mkdir 'set[1]' set1 'a,b'
cp books.tok 'set[1]/a.tok'
cp val.tok set1/a.tok
cp val.tok 'a,b/a.tok'
data_of() { g train $tiny --data "$1" --steps 0 | sed -n 's/^data *\([0-9]* tokens in [0-9]* shard\).*/\1/p'; }
check "a folder that exists is no pattern" test "$(data_of 'set[1]')" = "$(data_of books.tok)"
check "what does not exist is a pattern" test "$(data_of 'set[12]')" = "$(data_of val.tok)"
check "\\, is a comma of a name" test "$(data_of 'a\,b')" = "$(data_of val.tok)"
# 16-bit tokens of three vocabularies: 0 to 63 over and over; one of them 31,999; one of them 50,303
for last in 63 31999 50303; do
    for i in $(seq 0 255); do printf "\\$(printf %o $((i % 64)))\\0"; done > raw$last
    printf "\\$(printf %o $((last % 256)))\\$(printf %o $((last / 256)))" >> raw$last
done
for fit in 63/64 63/65 63/257 63/50257 63/50304 31999/32000 31999/50257 50303/50304 50303/65536; do
    data=raw${fit%/*} vocab=${fit#*/}
    check "raw tokens up to ${fit%/*} train a vocabulary of $vocab" \
        says "vocabulary $vocab" g train $tiny --raw-u16 --data $data --vocab $vocab --out runs/$data-$vocab --steps 1
    check "and are evaluated with it" \
        says '^loss ' g eval --from runs/$data-$vocab --raw-u16 --data $data --threads 1
done
check "a model that no token ends documents for needs a prompt" \
    refused 'give --prompt-tokens' sample --from runs/raw63-64 --length 2
check "and says so in its config.json" grep '"eos_token_id": null' runs/raw63-64/step_*/config.json
for unfit in 63/63 31999/31999 31999/257 50303/50303 50303/50256; do
    check "raw tokens up to ${unfit%/*} are refused for a vocabulary of ${unfit#*/}" \
        refused "token [0-9]* is ${unfit%/*}, expected below the vocabulary's ${unfit#*/}" \
        train $tiny --raw-u16 --data raw${unfit%/*} --vocab ${unfit#*/} --steps 1
done
check "a missing shard is refused" refused 'nowhere.tok' train --data nowhere.tok
check "an empty folder is refused" refused 'token shard' train --data runs
head -c 4096 /dev/urandom > noise.tok
check "garbage instead of a shard is refused" refused 'noise.tok' train --data noise.tok
: > empty.tok
check "an empty shard is refused" refused 'empty.tok' train --data empty.tok
head -c $(($(wc -c < books.tok) - 1)) books.tok > short.tok
check "a shard cut short is refused" refused 'short.tok' train --data short.tok
check "a shard shorter than a sequence is refused" \
    refused '--seq-len' train --data books.tok --seq-len 1m --sp 2
check "a vocabulary too small for the shard is refused" \
    refused 'vocabulary' train $tiny --vocab 100 --data books.tok
printf 'abcdefgh' > odd.bin; printf i >> odd.bin
check "raw u16 of an odd length is refused" refused 'odd.bin' train --data odd.bin --raw-u16 --seq-len 2
head -c 8192 /dev/zero > zeros.bin
check "raw u16 trains" \
    says 'step *1/1' g train $tiny --data zeros.bin --raw-u16 1 --steps 1 --out runs/numbers

# ----- memory that is short -----------------------------------------------------------------------

asked="--layers 500 --channels 65536 --heads 256 --seq-len 64 --vocab 257"
check "a model that no machine holds shows the plan and a line" \
    short_of_memory 'this needs .* GiB and the machine has .*: no context fits' train $asked \
        --data books.tok
asked="--layers 2 --channels 64 --heads 1 --seq-len 5000 --batch-size 60000 --sp 2 --vocab 257"
fits='2 ranks need .* the longest context that fits is [0-9]*, with --seq-len 5000 the largest batch is [0-9]'
check "a batch that no machine holds shows what would fit" \
    short_of_memory "$fits" train $asked --data books.tok
# a model whose context is longer than any machine holds, trained elsewhere
asked=
mkdir huge
sed 's/"n_layer": [0-9]*/"n_layer": 2/; s/"n_head": [0-9]*/"n_head": 256/; s/"n_embd": [0-9]*/"n_embd": 4096/
    s/"n_\(positions\|ctx\)": [0-9]*/"n_\1": 16777216/g' \
    runs/whole/step_00000012/config.json > huge/config.json
for command in "sample" "eval --data books.tok"; do
    check "$command: a context that no machine holds shows what would fit" \
        short_of_memory "of the model's context of 16777216 no more than [1-9][0-9]* would fit" $command \
            --from huge
done

# a shard that goes bad on the disk: the run reaches the damage, names the shard, and what it learnt so far is
# kept
g prepare --out long.tok --block-tokens 1024 book1.txt book2.txt > out
cp long.tok whole.tok
printf '\377\377\377' | dd of=long.tok bs=1 seek=$(($(wc -c < long.tok) / 2)) conv=notrunc 2> /dev/null
check "a shard damaged inside stops the run, which names it" \
    refused 'long.tok' train $tiny --data long.tok --out runs/bad --steps 1000
cp whole.tok long.tok
step=$(sed -n '$s/.*"step": \([0-9]*\),.*/\1/p' runs/bad/log.jsonl)   # 100 steps lead past what was read ahead
check "a shard restored lets the run go on" \
    says "from step $step to .*resumed" g train $tiny --data long.tok --out runs/bad --steps $((step + 100))

# ----- eval, sample -------------------------------------------------------------------------------

check "eval tells the loss by position" says 'loss by position' g eval --from runs/whole --data val.tok
g eval --from runs/a --data val.tok --needle 4 --facts 1 --json > out
check "eval --needle --json has its figures" \
    json loss tokens bits_per_byte loss_by_position needle needle_by_distance < out
g eval --from runs/a --data val.tok --val-sequences 4 --context-gain 16 --sliding 16,64 --json > out
check "eval --context-gain --sliding --json has their figures" \
    json loss perplexity context_gain short_loss long_loss gain_tokens key_tokens key_share gain_by_position sliding < out
g eval --from runs/a,runs/whole --data val.tok --val-sequences 4 --sliding 16 --json > out
check "eval of two models has both and their difference" \
    json models difference.loss difference.perplexity difference.loss_by_position difference.sliding < out
check "eval tells two models side by side" \
    says 'first *second *difference' g eval --from runs/a,runs/whole --data val.tok --val-sequences 2
check "eval of a model and one of another vocabulary is refused" \
    refused 'the second model' eval --from runs/a,runs/numbers --data val.tok --seq-len 8 --val-sequences 2
check "eval: a window longer than the context is refused" \
    refused 'sliding 65: must be from 2 to 64' eval --from runs/whole --data val.tok --sliding 65
check "eval: questions that the context has no room for are refused" \
    refused 'has no room' eval --from runs/whole --probe needle --probe-items 1
cp -r runs/a 'runs/a,b'
check "eval: a comma of a model's name" \
    says '^loss ' g eval --from 'runs/a\,b' --data val.tok --val-sequences 2
rm -r 'runs/a,b'
check "eval takes one checkpoint folder and several shards" \
    says 'bits per byte' g eval --from runs/whole/step_00000012 --data books.tok,val.tok --val-sequences 3
check "eval --needle alone tells the recall" says 'recall' g eval --from runs/a --needle 2 --facts 1
check "eval with nothing to do is refused" refused '--needle' eval --from runs/whole
check "eval without a model is refused" refused '--from' eval --from nowhere --data val.tok
labels() { g eval --from runs/whole --data "$@" --json | sed 's/.*"tokens": \([0-9]*\).*/\1/'; }
tokens=$(g prepare --out val.tok --block-tokens 4096 book2.txt | sed -n 's/.* documents, \([0-9]*\) tokens.*/\1/p')
for context in 64 63 50 1; do
    check "eval counts every token of the data but the first once, --seq-len $context" \
        test "$(labels val.tok --seq-len $context)" = $((tokens - 1))
done
check "eval takes as many sequences as it is told" test "$(labels val.tok --val-sequences 3)" = 192
check "eval: a context longer than the model's is refused" \
    refused "the model's context is 64" eval --from runs/whole --data val.tok --seq-len 65
i=0
while [ $i -lt 80 ]; do printf '\120\304' >> ends.bin; i=$((i + 1)); done   # 50256: each document is an end
check "eval: data without anything to predict is refused" \
    refused 'nothing to learn' eval --from runs/numbers --data ends.bin --raw-u16 --doc-mask
check "train: data without anything to learn is refused" \
    refused 'nothing to learn' train $tiny --data ends.bin --raw-u16 --doc-mask
check "train: validation data without anything to predict is refused at the start" \
    refused '--val-data: nothing' train $tiny --data zeros.bin --val-data ends.bin --raw-u16 --doc-mask
check "eval agrees with the run's last validation" sh -c '
    logged=$(sed -n "\$s/.*\"val_loss\": \([0-9.]*\).*/\1/p" runs/whole/log.jsonl)
    found=$("$0" eval --from runs/whole --data val.tok --val-sequences 2 --json |
        sed "s/.*\"loss\": \([0-9.]*\).*/\1/")
    echo "$logged $found"
    awk "BEGIN { d = $logged - $found; exit !(d < 1e-5 && d > -1e-5) }"' "$program"
check "sample continues the prompt" \
    samples '^It was' --from runs/whole --prompt 'It was' --length 20 --temperature 0.5 --top-k 5 \
        --top-p 0.9
check "sample: the same seed gives the same text" sh -c '
    "$0" sample --from runs/whole --length 30 --seed 7 > one 2> err
    "$0" sample --from runs/whole --length 30 --seed 7 > two 2> err
    cmp one two' "$program"
check "sample --count: the first continuation is what one gives, the others differ" sh -c '
    "$0" sample --from runs/whole --prompt-tokens 73,116 --length 9 --temperature 1 2> err > one
    "$0" sample --from runs/whole --prompt-tokens 73,116 --length 9 --temperature 1 --count 3 2> err > three
    cat err three
    grep -q "^sample: [0-9]* tokens" err && [ "$(wc -l < three)" = 3 ] && [ "$(sort -u three | wc -l)" = 3 ] &&
        head -n 1 three | cmp - one' "$program"
check "sample --dp draws and counts the same texts, in their order" sh -c '
    for how in "--temperature 1" "--temperature 1 --stop e" "--sp 2" "--draft runs/whole" "--draft runs/whole --sp 2"; do
        "$0" sample --from runs/whole --prompt It --length 20 --count 5 $how > one 2> err || exit 1
        sed "s/in [0-9.]* s, [0-9]* tok.s//g; s/[0-9.]* times as fast/times as fast/" err > err_one
        for dp in 2 5; do
            "$0" sample --from runs/whole --prompt It --length 20 --count 5 $how --dp $dp 2> err | cmp one - || exit 1
            sed "s/in [0-9.]* s, [0-9]* tok.s//g; s/[0-9.]* times as fast/times as fast/" err | diff err_one - || exit 1
        done
        cat err_one
    done' "$program"
check "sample does not tell a full context where the text ended before" sh -c '
    "$0" sample --from runs/whole --prompt It --length 200 --stop " " --temperature 0 2> err > out && cat err &&
        grep -q "came to --stop" err && ! grep "is full" err' "$program"
check "an error is one line, whatever the name in it" refused 'no?where' eval --data books.tok --from "no
where"
check "sample --dp: more replicas than continuations are refused" \
    refused '--count 3 has work for 3' sample --from runs/whole --count 3 --dp 4
check "sample --count tells texts apart" \
    samples '^--- 2 of 2$' --from runs/whole --prompt It --length 5 --count 2
check "sample --min-p 1 says the likeliest" sh -c '
    "$0" sample --from runs/whole --length 30 --temperature 0 > one 2> err
    "$0" sample --from runs/whole --length 30 --min-p 1 > two 2> err
    cmp one two' "$program"
check "sample --repetition-penalty repeats less" sh -c '
    for x in 1 50; do
        "$0" sample --from runs/whole --prompt-tokens 73 --length 20 --temperature 0 --repetition-penalty $x 2> err |
            tr , "\n" | sort -u | wc -l
    done > kinds
    cat kinds
    [ "$(sed -n 1p kinds)" -lt "$(sed -n 2p kinds)" ] && [ "$(sed -n 2p kinds)" = 20 ]' "$program"
check "sample --draft: greedy text is the same, and told is how much was taken" sh -c '
    "$0" sample --from runs/whole --prompt-tokens 73,116 --length 50 --temperature 0 > one 2> err
    for draft in runs/whole runs/a; do
        "$0" sample --from runs/whole --prompt-tokens 73,116 --length 50 --temperature 0 --draft $draft > two 2> err
        cat err
        cmp one two && grep -q "^sample: --draft: .* taken, .* tokens a pass; [0-9.]* times as fast as without" err || exit 1
    done' "$program"
check "sample --sp: the text is the same for every number of ranks" sh -c '
    for prompt in 73 73,116,32,119,97; do
        for how in "--temperature 0" "--count 3" "--temperature 0 --draft runs/a"; do
            "$0" sample --from runs/whole --prompt-tokens $prompt --length 40 $how > one 2> err || exit 1
            for sp in 2 3 4; do
                "$0" sample --from runs/whole --prompt-tokens $prompt --length 40 $how --sp $sp > many 2> err
                cmp one many || exit 1
            done
        done
    done' "$program"
check "sample: more ranks than the context has tokens are refused" \
    refused 'seq-len' sample --from runs/whole --sp 256
check "sample does not take --dp" refused '--dp' sample --from runs/whole --dp 2
check "sample: a draft of another tokenizer is refused" \
    refused 'runs/numbers.*runs/whole' sample --from runs/whole --draft runs/numbers
check "sample: a draft that is missing is refused" refused '--draft' sample --from runs/whole --draft nowhere
check "sample: too many tokens to draft are refused" \
    refused '--draft-tokens' sample --from runs/whole --draft runs/a --draft-tokens 16
check "sample: a penalty of 0 is refused" \
    refused '--repetition-penalty' sample --from runs/whole --repetition-penalty 0
check "sample is greedy at temperature 0" \
    samples '^It' --from runs/whole --prompt It --length 9 --temperature 0
check "sample says the same by numbers" sh -c '
    "$0" sample --from runs/whole --prompt It --length 9 --temperature 1 2> err | tail -c +3 | head -c 9 |
        od -A n -v -t u1 | tr -s " " , | sed "s/^,//" > text
    "$0" sample --from runs/whole --prompt-tokens 73,116 --length 9 --temperature 1 2> err | tee numbers
    cmp text numbers' "$program"
check "sample of GPT-2's vocabulary goes by numbers" \
    samples '^[0-9]+(,[0-9]+){11}$' --from runs/numbers --prompt-tokens 464,3290,318 --length 12
check "sample of GPT-2's vocabulary begins a document" \
    samples '^[0-9]+(,[0-9]+){11}$' --from runs/numbers --length 12 --top-k 100
check "sample: text for GPT-2's vocabulary is refused" \
    refused 'there is no tokenizer beside this model' sample --from runs/numbers --prompt It
check "sample: text and numbers together are refused" \
    refused 'one of them' sample --from runs/whole --prompt It --prompt-tokens 73
check "sample: a number beyond the vocabulary is refused" \
    refused '50257 is no token .*, 0 to 50256' sample --from runs/numbers --prompt-tokens 1,50257
check "sample: a number beyond the byte tokenizer's is refused" \
    refused '257 is no token .*, 0 to 256' sample --from runs/whole --prompt-tokens 257
check "sample: a number below 0 is refused" \
    refused '[-]1 is no token' sample --from runs/numbers --prompt-tokens=-1,2
for numbers in 12,x 12x ,12 12, 12,,13; do
    check "sample: numbers that are none are refused, $numbers" \
        refused 'expected token numbers' sample --from runs/numbers --prompt-tokens $numbers
done
mkdir noend
sed 's/"eos_token_id": [0-9]*/"eos_token_id": 4294967301/' runs/numbers/step_*/config.json > noend/config.json
check "sample: an end token beyond the vocabulary is refused" \
    refused 'config.json: eos_token_id 4294967301' sample --from noend --prompt-tokens 1
check "sample: more numbers than the context holds are refused" \
    refused '--prompt-tokens has 64 tokens' sample --from runs/numbers \
        --prompt-tokens "$(yes 7 | head -n 64 | paste -s -d , -)"
check "sample: a prompt longer than the context is refused" \
    refused '--prompt' sample --from runs/whole --prompt "$(head -c 64 /dev/zero | tr '\0' x)"
check "output that cannot be written is told on one line" sh -c '
    [ -e /dev/full ] || exit 0
    "$0" plan --gflops 1 --link-gbs 1 > /dev/full 2> err
    [ $? = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err' "$program"

# ----- export -------------------------------------------------------------------------------------

check "prepare takes the tokenizer of a run" sh -c '
    "$0" prepare --tokenizer runs/whole --out of_run.tok book1.txt > out && "$0" prepare --out of_bytes.tok book1.txt > out &&
    cmp of_run.tok of_bytes.tok' "$program"
check "prepare: merges without their vocabulary are refused" \
    refused 'name the vocab.json' prepare --tokenizer runs/whole/step_00000012/merges.txt --out x.tok book1.txt
check "a list of patterns may have blanks behind its commas" \
    says 'step *1/1' g train $tiny --data books.tok --steps 1 --freeze 'wte.weight, wpe.weight' --lr-scale 'h.0.*=2, h.1.*=3'
check "export writes a folder for Transformers" \
    says '^exports/hf: the model of runs/whole/step_00000012 in fp32, for Transformers$' g export --from runs/whole --out exports/hf
check "... of the weights and the tokenizer alone" test "$(ls exports/hf | tr '\n' ' ')" = \
    'config.json generation_config.json manifest.txt merges.txt model.safetensors tokenizer.json tokenizer_config.json vocab.json '
check "... which is the run's" cmp exports/hf/tokenizer.json runs/whole/step_00000012/tokenizer.json
check "sample of an export takes text" samples '^It was' --from exports/hf --prompt 'It was' --length 4
check "export writes llm.c's file" says 'for llm.c$' g export --from runs/whole --out m.bin --format llmc
for model in exports/hf m.bin; do
    check "eval of an export tells the run's loss: $model" test \
        "$(g eval --from $model --data val.tok --json | sed 's/.*"loss"/"loss"/')" = \
        "$(g eval --from runs/whole --data val.tok --json | sed 's/.*"loss"/"loss"/')"
    check "--init-from takes an export, and grows its positions: $model" \
        says 'step *1/1' g train --threads 1 --data val.tok --init-from $model --seq-len 100 --grow interp --steps 1
done
check "plan takes the sizes of llm.c's file" \
    says '"layers": 2, "heads": 2, "channels": 32, "seq_len": 64' g plan --init-from m.bin --json --gflops 1 --link-gbs 1 \
        --copy-gbs 1
check "export of an export, in another type" says 'in bf16' g export --from exports/hf/ --out exports/hf16/ --dtype bf16
check "... names it in config.json" grep -q '"torch_dtype": "bfloat16"' exports/hf16/config.json
if command -v python3 > /dev/null; then
    g train $tiny --center 0 --data books.tok --out runs/plain --steps 1 > made && g export --from runs/plain --out exports/plain > made
    check "the program of a model with RMSNorm is Python" python3 -c '
import ast, json
names = [n.name for n in ast.parse(open("exports/plain/modeling_gpt2_sp.py").read()).body if isinstance(n, ast.ClassDef)]
for path in json.load(open("exports/plain/config.json"))["auto_map"].values():
    assert path.split(".")[1] in names, path
print(names)'
fi
check "export without a model is refused" refused 'no model given' export --out exports/x
check "export to nowhere is refused" refused 'nowhere to write' export --from runs/whole
check "export of a folder to a file's name is refused" refused '--format llmc writes a file' export --from runs/whole --out x.bin
check "train: a folder that holds a model is no run's" \
    refused 'holds a model' train $tiny --data books.tok --steps 1 --out exports/hf
check "train: a checkpoint is no run's folder" \
    refused 'holds a model' train $tiny --data books.tok --steps 1 --out runs/whole/step_00000012
cp -r runs/whole runs/bare
g train --sp 2 --threads 1 --lr 3e-3 --data books.tok --out runs/bare --steps 13 > out 2> err
check "a run that goes on without its model's sizes keeps them" \
    sh -c 'cat err; ! grep -e "--layers\|--channels" out && grep "^layers = 2" runs/bare/run.cfg && grep "^channels = 32" runs/bare/run.cfg'
check "a command that is nearly one is named" refused 'did you mean train' traim
check "an export that takes another's place says so" says 'Transformers; the export that was there is replaced' \
    g export --from runs/whole --out exports/hf
check "export of fp16 to llm.c is refused" refused 'fp32 or bf16' export --from runs/whole --out x.bin --format llmc --dtype fp16
check "export of another type is refused" refused 'fp32|bf16|fp16' export --from runs/whole --out exports/x --dtype fp8
for name in . .. / exports/..; do
    check "export: a folder without a name is refused: $name" refused 'the name of a folder' export --from runs/whole --out $name
done

# what is not an export's own stays
listing() { find theirs* -exec sh -c 'for f; do [ -f "$f" ] && cksum "$f" || echo "$f"; done' sh {} + | sort; }
stays() {
    word=$1
    shift
    listing > before
    refused "$word" export --from runs/whole "$@" && listing > after && cmp before after
}
mkdir theirs theirs.hf && cp exports/hf/config.json exports/hf/model.safetensors theirs.hf && cp m.bin theirs.bin
printf '\0\0\0\0\0\0\0\0' | dd of=theirs.bin bs=1 seek=32 conv=notrunc 2> /dev/null   # as llm.c leaves it
cp -r exports/hf theirs.more && echo mine > theirs.more/README.md
echo text > theirs.file && ln -s exports/hf theirs.link
check "export: a folder of Transformers stays" stays 'theirs.hf is there and no export' --out theirs.hf
check "export: an export with another file in it stays" stays 'theirs.more holds README.md' --out theirs.more
check "export: a file stays" stays 'theirs.file is there' --out theirs.file
check "export: a link stays" stays 'theirs.link is there' --out theirs.link
check "export: a checkpoint stays" refused 'no export' export --from runs/whole --out runs/whole/step_00000012
check "export: llm.c's own file stays" stays 'theirs.bin: a file is there' --out theirs.bin --format llmc
check "export: a folder stays where llm.c's file is asked for" stays 'a folder is there' --out theirs --format llmc
check "export: a file in place of the folder above stays" stays 'not a folder' --out theirs.file/hf
cp exports/hf/model.safetensors before && mkdir -p exports/hf.tmp/ exports/hf.1.tmp exports/hf.2.tmp
printf 'gpt2_sp export 1\n' > exports/hf.tmp/manifest.txt && echo x > exports/hf.tmp/model.safetensors && echo x > exports/hf.2.tmp/notes
check "export replaces an export, and takes away what a killed one left" says 'in fp16' g export --from runs/whole --out exports/hf --dtype fp16
check "... and nothing else" sh -c '! cmp -s before exports/hf/model.safetensors && [ "$(echo exports/hf.*)" = exports/hf.2.tmp ] && cat exports/hf.2.tmp/notes'
check "export replaces its file of llm.c's" says 'in bf16' g export --from runs/whole --out m.bin --format llmc --dtype bf16
check "--grow without a model is refused" refused 'needs --init-from' train $tiny --data val.tok --grow interp --steps 1
check "a model that is a file, but not llm.c's, is refused" refused 'no model file of llm.c' eval --from book1.txt --data val.tok

# ----- numbers that are not finite ----------------------------------------------------------------

g train $tiny --data books.tok --out runs/nan --steps 30 --lr 10 --grad-clip 0 --eps 1e-16 --weight-decay 10 \
    > out 2> err
status=$?
check "a run that diverges never crashes" sh -c '
    [ "$0" = 0 ] && echo "$(grep -c "no update" out) steps without an update" ||
        { [ "$0" = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err; }' $status
check "its log.jsonl is JSON to the end" json step loss updated < runs/nan/log.jsonl

# weights that are not finite from the start: every step reports that nothing was updated, and the run
# gives up
cp -r runs/whole/step_00000012 poisoned && rm poisoned/manifest.txt
size=$(wc -c < poisoned/model.safetensors)
printf '\0\0\300\177' | dd of=poisoned/model.safetensors bs=1 seek=$((size - 4)) conv=notrunc 2> /dev/null
g train $tiny --data books.tok --init-from poisoned --out runs/poisoned --steps 30 > out 2> err
status=$?
check "not a number in the weights: nothing is updated, the run gives up with one line" sh -c '
    cat err; [ "$0" = 1 ] && [ "$(wc -l < err)" = 1 ] && grep -q "not been finite" err &&
        [ "$(grep -c "no update" out)" -ge 9 ]' $status
check "its log.jsonl says null" \
    sh -c 'grep -q "\"loss\": null" runs/poisoned/log.jsonl && ! grep -qi "nan" runs/poisoned/log.jsonl'
check "its log.jsonl is JSON" json step loss updated < runs/poisoned/log.jsonl
check "a run whose every step is not finite is an error" \
    refused 'nothing is learnt' train $tiny --data books.tok --init-from poisoned --out runs/vain --steps 3
check "eval of it is refused" refused 'not finite' eval --from poisoned --data val.tok
printf '\0\0\300\177' | dd of=poisoned/model.safetensors bs=1 seek=$((size / 2 / 4 * 4)) conv=notrunc 2> /dev/null
check "sample of such a model is refused" refused 'not finite' sample --from poisoned --prompt x

# ----- signals and locks --------------------------------------------------------------------------

# Starts a run of a million steps in the background and waits until it trains.
start() {
    rm -rf "$1"
    "$program" train $tiny --data books.tok --out "$1" --steps 1000000 > "$1.out" 2> "$1.err" &
    pid=$!
    tries=0
    until [ -s "$1/log.jsonl" ] || [ $tries = 100 ]; do sleep 0.05; tries=$((tries + 1)); done
}
for signal in TERM INT USR1 HUP; do
    start runs/signal
    kill -$signal $pid
    wait $pid
    status=$?
    check "SIG$signal saves and exits with 0" sh -c '[ "$0" = 0 ] && [ "$(wc -l < runs/signal.err)" = 1 ] &&
        grep -q "^stopping after this step" runs/signal.err && grep "^stopped by a signal; saved" runs/signal.out' $status
    step=$(sed -n '$s/.*"step": \([0-9]*\),.*/\1/p' runs/signal/log.jsonl)
    check "SIG$signal lets the same command go on" \
        says "from step $step to .*resumed" g train $tiny --data books.tok --out runs/signal \
            --steps $((step + 1))
done

sh -c 'trap "" HUP; exec "$0" "$@"' "$program" train $tiny --data books.tok --out runs/nohup --steps 300 > out &
pid=$!
sleep 0.3
kill -HUP $pid
wait $pid
check "under nohup SIGHUP changes nothing" says 'done already' g train $tiny --data books.tok --out runs/nohup --steps 300
{ "$program" train $tiny --data books.tok --out runs/pipe --steps 1000000 2> pipe.err; echo $? > pipe.status; } | head -n 12 > out
check "a pipe that nobody reads ends the run with a checkpoint" sh -c '
    cat pipe.err; [ "$(cat pipe.status)" = 1 ] && [ "$(wc -l < pipe.err)" = 1 ] && ls runs/pipe/step_*/manifest.txt'

start runs/locked
check "a second trainer in the same folder is refused" \
    refused 'another trainer' train $tiny --data books.tok --out runs/locked --steps 3
kill -TERM $pid
wait $pid
check "the first one is none the worse" test $? = 0
check "and the folder is free again" \
    says 'is done already, of 1' g train $tiny --data books.tok --out runs/locked --steps 1

# a step of a minute, of many sequences, so that the second signal finds it unfinished; the validation before it says that it
# has begun
for signal in INT TERM; do
    rm -rf runs/slow
    "$program" train $tiny --grad-accum 65536 --data books.tok --val-data val.tok --val-sequences 1 --out runs/slow \
        --steps 1000 > slow.out 2> slow.err &
    pid=$!
    tries=0
    until [ -s runs/slow/log.jsonl ] || [ $tries = 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    sleep 0.3
    kill -$signal $pid
    tries=0   # what comes within a tenth of a second of the first is not a second one
    until grep -q '^stopping' slow.err || [ $tries = 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    sleep 0.2
    kill -$signal $pid
    wait $pid
    status=$?
    check "a second SIG$signal leaves at once, the first is acknowledged" sh -c '
        cat slow.err; case $0 in 130 | 143) ;; *) echo "status $0"; exit 1 ;; esac
        grep -q "^stopping after this step" slow.err && ! ls runs/slow/step_* 2> /dev/null' $status
done

# ----- what a long run tells ----------------------------------------------------------------------

g train $tiny --data books.tok --val-data val.tok --val-every 15 --steps 30 --log-every 10 --out runs/told > out
check "--log-every prints the first, every tenth, the validated and the last step" \
    test "$(sed -n 's/^step *\([0-9]*\)\/30 .*/\1/p' out | tr '\n' ' ')" = '0 1 10 15 20 30 '
check "log.jsonl has every step and the validation before them, with the time of day" sh -c '
    now=$(date +%s)
    sed -n "s/.*\"time\": \([0-9]*\)[.].*/\1/p" runs/told/log.jsonl |
        awk -v now="$now" "now - \$1 > 600 || now - \$1 < -1 { bad++ } END { print NR; exit bad || NR != 31 }"'
check "a step tells the epoch, the time and what is left" \
    grep -q '^step *10/30 .*  epoch 0[.][0-9][0-9]  [0-9]*s, [0-9]*s left' out
g train $tiny --data books.tok --out runs/rates --steps 20 --save-every 15 --lr-schedule linear > out
cp -r runs/rates runs/again && rm -r runs/again/step_00000020
check "resuming with other steps tells both learning rates" \
    says '^warning   the learning rate of step 16 is [0-9.e-]*; by the options .* was to be [0-9.e-]*$' \
        g train $tiny --data books.tok --out runs/again --steps 40 --lr-schedule linear
check "... and of a run that was finished that its rate jumps" \
    says '^warning   the run was finished: its learning rate had come to 3.00e-04, and jumps to 1.[0-9e-]* with' \
        g train $tiny --data books.tok --out runs/rates --steps 40 --lr-schedule linear
check "resuming with the same options tells none" sh -c '
    "$0" train $1 --data books.tok --out runs/halt --steps 20 --save-every 10 > out
    rm -r runs/halt/step_00000020
    "$0" train $1 --data books.tok --out runs/halt --steps 20 > out; grep resumed out && ! grep warning out' \
    "$program" "$tiny"

# ----- validations, the best, early ends ----------------------------------------------------------

# learns book1 so fast that book2's loss rises: the best validation is an early one
habit="$shape --data books1.tok --val-data val.tok --val-sequences 2 --val-every 4 --lr 3e-2 --lr-schedule constant"
g prepare --out books1.tok book1.txt > out
best() { sed -n 's/.*"step": \([0-9]*\),.*"val_loss": \([0-9.]*\).*/\2 \1/p' "$1/log.jsonl" | sed '1d' | sort -g | head -n 1; }
g train $habit --out runs/early --steps 400 --patience 3 > out 2> err
status=$?
found=$(best runs/early)
step=${found#* }
check "--patience ends the run after so many validations without a better one, saved, with status 0" sh -c '
    cat err; grep "^stopped early" out
    [ "$0" = 0 ] && [ ! -s err ] && grep -q "^stopped early at step $2: none of the last 3 .* step $1; saved runs/early/step_" out &&
        [ -d runs/early/step_$(printf %08d $2) ]' $status $step $((step + 12))
check "the loss before the first step is printed" grep '^step *0/400  val 5[.]' out
check "and is the first line of log.jsonl, without a loss" sh -c '
    head -n 1 runs/early/log.jsonl | grep "\"step\": 0, .*\"val_loss\": 5[.]" | grep -v "\"loss\""'
check "the end tells the best validation" grep "^best .* after step $step: runs/early:best" out
check "the best and the newest are kept, no other" test "$(echo runs/early/step_*)" = \
    "runs/early/step_$(printf %08d $step) runs/early/step_$(printf %08d $((step + 12)))"
check "RUN:best is the model of the best validation, to every command that takes a model" sh -c '
    "$0" eval --from runs/early:best --data val.tok --val-sequences 2 --json > one &&
        "$0" eval --from runs/early/step_$(printf %08d $2) --data val.tok --val-sequences 2 --json > two
    sed "s/.*\"loss\"/loss/" one > a; sed "s/.*\"loss\"/loss/" two | cmp - a && head -c 30 a
    awk -v a="$(sed "s/loss: \([0-9.]*\).*/\1/" a)" -v b="$1" "BEGIN { exit !(a - b < 1e-5 && b - a < 1e-5) }" &&
        "$0" sample --from runs/early:best --length 3 > out 2>&1 && "$0" plan --init-from runs/early:best --gflops 1 --link-gbs 1 > out' \
    "$program" ${found% *} $step
cp -r runs/early/step_$(printf %08d $((step + 12))) 'runs/mine:best'
check "a folder whose name ends like that is that folder" \
    samples . --from runs/mine:best --length 3
check "a run that has ended early says so, and does nothing" \
    says "^stopped early at step $((step + 12)): .*a larger --patience, or 0, goes on" \
        g train $habit --out runs/early --steps 400 --patience 3
g train $habit --out runs/parted --steps 400 --patience 3 --save-every 5 --keep 100 > out 2>&1
for folder in runs/parted/step_*; do [ "${folder#*step_}" -le 00000010 ] || rm -r "$folder"; done
check "a run that goes on counts on" says "^stopped early at step $((step + 12))" \
    g train $habit --out runs/parted --steps 400 --patience 3 --save-every 5 --keep 100
check "and finds the same" cmp runs/early/step_$(printf %08d $((step + 12)))/state.json \
    runs/parted/step_$(printf %08d $((step + 12)))/state.json
check "a larger --patience goes on" says "from step $((step + 12)) to .*resumed" \
    g train $habit --out runs/early --steps $((step + 14)) --patience 30
check "the best stays, however many are newer" test -d runs/early/step_$(printf %08d $step)
g train $habit --out runs/early --steps $((step + 15)) --val-sequences 3 --patience 3 > out 2> err
check "validations of other data are told, and count anew" sh -c '
    cat err; [ "$(wc -l < err)" = 1 ] && grep -q "no longer counts" err && grep "^step *$0/.*  val" out' $((step + 14))
g train $habit --out runs/unkept --steps 16 --keep-best 0 > out
check "--keep-best 0 keeps the newest only" test "$(echo runs/unkept/step_*)" = runs/unkept/step_00000016
check "then RUN:best is refused with the step that it was" \
    refused "step $step, whose checkpoint is not whole" eval --from runs/unkept:best --data val.tok
check "RUN:best of a run without validations is refused" \
    refused 'not validated' eval --from runs/a:best --data val.tok
check "RUN:best of nothing is refused" refused 'nowhere:best' eval --from nowhere:best --data val.tok
check "--patience without validations is refused" \
    refused '--patience 2 needs --val-every' train $tiny --data books.tok --val-data val.tok --patience 2
g train $tiny --data books.tok --out runs/late --steps 4 > out
check "a run that was never validated is, where it goes on" \
    says '^step *4/6  val ' g train $tiny --data books.tok --val-data val.tok --out runs/late --steps 6
check "and not again" sh -c '
    "$0" train $1 --data books.tok --val-data val.tok --out runs/late --steps 7 > out; ! grep "^step *6/7  val" out' \
    "$program" "$tiny"
g train $tiny --data books.tok --out runs/minutes --steps 1000000 --max-minutes 0.01 > out 2> err
status=$?
step=$(sed -n '$s/.*"step": \([0-9]*\),.*/\1/p' runs/minutes/log.jsonl)
check "--max-minutes saves and exits with 0" sh -c '[ "$0" = 0 ] && [ ! -s err ] &&
    grep "^stopped after 0.01 minutes; saved runs/minutes/step_$(printf %08d $1)" out' $status $step
check "--max-minutes lets the same command go on" says "from step $step to 1000000 (resumed)" \
    g train $tiny --data books.tok --out runs/minutes --steps 1000000 --max-minutes 0.01
check "--max-minutes without --out ends too" says '^stopped after 0.01 minutes$' \
    g train $tiny --data books.tok --steps 1000000 --max-minutes 0.01

if command -v python3 > /dev/null; then
    # steps 1 to 6, of which 5 and 6 were done twice, and validations alone before steps 1 and 5
    printf '%s\n' '{"step": 0, "tokens": 0, "ms": 1, "time": 1.5, "updated": 0, "val_loss": 5}' > redone.jsonl
    for step in 1 2 3 4 5 6 5 6; do
        [ "$(wc -l < redone.jsonl)" != 7 ] ||
            echo '{"step": 4, "tokens": 4, "ms": 1, "time": 9, "updated": 0, "val_loss": 3}' >> redone.jsonl
        echo "{\"step\": $step, \"loss\": $(wc -l < redone.jsonl).5, \"tokens\": $step, \"ms\": 1, \"time\": 2, \"updated\": 1}"
    done >> redone.jsonl
    check "export_log.py: a table has every step once, the later line counts, validations stand beside" test \
        "$(python3 "$scripts/export_log.py" redone.jsonl --csv - | cut -d , -f 2,6,7 | tr '\n' ' ')" = \
        'step,updated,val_loss 0,0,5 1,1, 2,1, 3,1, 4,1,3 5,1, 6,1, '
    check "export_log.py: every step of a run" \
        test "$(python3 "$scripts/export_log.py" runs/whole --csv - | wc -l)" = 14
    : > mine.csv
    check "export_log.py: a file that exists stays" sh -c '
        python3 "$0/export_log.py" runs/whole --csv mine.csv 2> err; [ $? = 1 ] && cat err && [ ! -s mine.csv ]' "$scripts"
    check "export_log.py: without its package a line says what to install" sh -c '
        python3 -S "$0/export_log.py" runs/whole --tensorboard tb 2> err; [ $? = 1 ] && grep "pip install tensorboard" err' \
        "$scripts"
else
    skip "export_log.py" "no python3"
fi

# ----- parameters that are frozen or scaled -------------------------------------------------------

check "--freeze and --lr-scale tell what is trained" says '^trained   0.01M of the parameters, 0.01M at a rate' \
    g train $tiny --data books.tok --out runs/frozen --steps 2 --freeze 'h.0.*,wte.weight' --lr-scale 'h.1.*=0.5'
check "a run's run.cfg has them" says '^trained   0.01M of the parameters, 0.01M at a rate' \
    g train --config runs/frozen/run.cfg --steps 3
check "what was frozen can be trained later" sh -c '
    "$0" train $1 --data books.tok --out runs/frozen --steps 4 > out && grep resumed out && ! grep "^trained" out' \
    "$program" "$tiny"
check "--freeze: a pattern that matches nothing is refused with what is near" \
    refused 'near ones: wpe.weight' train $tiny --data books.tok --freeze wpe.wieght
check "--lr-scale: what is not PATTERN=X is refused" \
    refused 'expected PATTERN=X' train $tiny --data books.tok --lr-scale wpe.weight

# ----- words --------------------------------------------------------------------------------------

check "--version tells the version" says '^gpt2_sp [0-9]*[.][0-9]*[.][0-9]*\( of [0-9a-f]\{12\}\(+changes\)*\)*, the CPU program' g --version
check "-h is --help" says 'usage: .* eval' g eval -h
check "-h lists the commands" says 'train.*train or resume' g -h
check "an option that is like none is not mistaken" refused 'lists them' train --quiet 1
yes 'A prompt of many words. ' | tr -d '\n' | head -c 60 > prompt.txt
check "sample reads a prompt as long as the context" \
    samples '^A prompt of many words. A prompt' --from runs/whole --prompt-file prompt.txt --length 2
check "sample reads a prompt from standard input" \
    sh -c '"$0" sample --from runs/whole --prompt-file - --length 2 --threads 1 < prompt.txt 2> err | grep -q "^A prompt"' "$program"
yes x | head -c 1000 > long.txt
check "sample: a file longer than the context is refused" \
    refused 'at least 1000 tokens, the context holds 63 and one' sample --from runs/whole --prompt-file long.txt
check "sample: a prompt file that is missing is refused" \
    refused 'nowhere' sample --from runs/whole --prompt-file nowhere
printf '1, 2\n3\n' > numbers.txt
check "sample reads token numbers from a file" \
    samples '^[0-9]*,[0-9]*$' --from runs/numbers --prompt-file numbers.txt --length 2 --temperature 1
check "sample: two prompts are refused" \
    refused 'give one of them' sample --from runs/whole --prompt-file prompt.txt --prompt x
mkdir -p 'sub[1]' sub1 && cp val.tok 'sub[1]/a.tok' && cp books.tok sub1/a.tok
check "a pattern in a folder of brackets stays in that folder" \
    says "^data *$tokens tokens" g train $tiny --data 'sub[1]/*.tok' --steps 1
check "schedule without options draws dist on 4 ranks" says '^dist, 4 ranks' g schedule
for kind in ring dist dist-paper zigzag allgather ulysses; do
    for ranks in 2 4 6 12 64; do
        check "schedule $kind, $ranks ranks, fits 100 columns" sh -c '
            "$0" schedule --schedule $1 --sp $2 |
                awk "length > most { most = length } END { print most; exit !(NR > 4 && most <= 100) }"' \
            "$program" $kind $ranks
    done
done
# pairs DRAWN: the pairs of chunks of the first table, each by the share of the heads that its cell tells
pairs() {
    sed '/proved/q' | grep -o 'q[0-9]*k[0-9]*\(-[0-9]*\)\{0,1\}[*]\{0,1\}\( [0-9]*\/[0-9]*\)\{0,1\}' |
        sed 's/[*]//; s/q[0-9]*k//; s/ \([0-9]*\)\/\([0-9]*\)/ \1 \2/' | awk '{
            split($1, k, "-"); n = (k[2] == "" ? 1 : k[2] - k[1] + 1); sum += NF == 3 ? n * $2 / $3 : n
        } END { print sum }'
}
check "schedule draws every pair: dist" test "$(g schedule | pairs)" = 10
check "schedule draws every pair: zigzag" test "$(g schedule --schedule zigzag | pairs)" = 36
check "schedule draws every pair: allgather" test "$(g schedule --schedule allgather | pairs)" = 36
check "schedule draws every pair: ulysses" test "$(g schedule --schedule ulysses | pairs)" = 10
mkdir beside && echo 'a text' > beside/a.txt && echo 'a b' > beside/merges.txt && echo '{}' > beside/vocab.json
echo '{"step": 1}' > beside/log.jsonl && : > beside/run.cfg
g prepare --out beside.tok beside > out 2> err
check "prepare leaves a tokenizer's merges and a run's log out" \
    sh -c 'grep "merges.txt: a tokenizer.s file" err && grep "log.jsonl: a run.s log" err && grep "^beside.tok: 1 documents" out'
check "a picture is whole though who reads the text stops reading" \
    sh -c '"$0" schedule --sp 16 --messages 1 --svg unread.svg | head -n 1 > out && grep -q "</svg>" unread.svg' "$program"
g schedule --schedule zigzag --sp 4 --svg zigzag.svg > out
g plan --layers 2 --heads 4 --channels 64 --sp 4 --gflops 1 --link-gbs 1 --copy-gbs 1 --svg plan.svg > out
g train $tiny --data books.tok --sp 2 --steps 4 --trace step.json > out
if ! command -v python3 > /dev/null; then
    skip "Python reads the pictures and the trace" "there is no python3"
else
    check "Python reads the pictures as XML" python3 -c 'import sys, xml.etree.ElementTree as tree
for name in sys.argv[1:]: print(name, len(list(tree.parse(name).iter())), "elements", end=" ")' zigzag.svg plan.svg
    check "Python reads the trace as JSON" python3 -c 'import json
events = json.load(open("step.json"))["traceEvents"]
print(len(events), "events")
assert {event["pid"] for event in events if event["ph"] == "X"} == {0, 1}'
    if ! python3 -c 'import matplotlib' 2> /dev/null; then
        skip "scripts/trace.py draws a step" "there is no matplotlib"
    else
        check "scripts/trace.py draws a step" sh -c 'python3 "$0"/trace.py step.json --out step.png && [ -s step.png ]' "$scripts"
        check "scripts/trace.py draws a layer" \
            sh -c 'python3 "$0"/trace.py step.json --layer 0 --out step.svg && grep -q "<svg" step.svg' "$scripts"
        check "scripts/trace.py refuses what is no trace" \
            sh -c '! python3 "$0"/trace.py plan.svg --out no.png 2> err && grep "plan.svg: no trace" err && [ ! -e no.png ]' "$scripts"
    fi
fi
check "schedule --messages draws what travels" says 'kv0>1 *kv1>2 *kv2>3 *q3>0' g schedule --messages

finish
