#!/bin/sh
# What becomes of a run when the machine fails it while it writes a checkpoint: nothing that was learnt
# before is lost, nothing half written is ever taken for whole, and the failure is told. And what becomes of
# what lies in its folder and is somebody else's: nothing.
#
#     sh dev/test_faults.sh [PROGRAM]
#
# strace makes the faults: it kills the program at a chosen system call, or lets the call fail. It counts
# calls by their name, so every name is gone through on its own; the calls are those that a run without
# faults makes from the end of its last step on. After each fault the same command must go on from the
# checkpoint before or from the new one, save again over what was left lying about, and end with weights and
# moments that equal, byte for byte, those of a run that nothing happened to. A fault of a save shows in one
# run of thousands, and then costs all of it.
# shellcheck disable=SC2086
set -u
program=$(realpath "${1:-./train_gpt2_sp}")
. "$(dirname "$0")/checks.sh"
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export OMP_NUM_THREADS=1

yes 'the quick brown fox jumps over the lazy dog; 0123456789' | head -n 200 > text.txt
"$program" prepare --out data.tok text.txt > prepared || exit 1
# two ranks with sharded state: rank 0 (the first thread, the only one that strace sees) does all the writing
shape="--data data.tok --out run --layers 1 --heads 1 --channels 64 --seq-len 32 --sp 2 --zero 1 --threads 1"
shape="$shape --lr-schedule constant"
train() { "$program" train $shape "$@"; }
# base: checkpoints of steps 1 and 2. reference: what steps 3, 4 and 5 lead to.
{
    train --steps 1 && train --steps 2 && cp -r run base && train --steps 3 && train --steps 4 &&
        train --steps 5 --keep 9 && mv run reference
} > out 2>&1 || { cat out; exit 1; }
again() { rm -rf run && cp -r base run; }

# The checkpoint of this step in run is the reference's, and nothing half done lies beside it.
same() {
    for file in model optimizer; do
        cmp -s run/$1/$file.safetensors reference/$1/$file.safetensors || return 1
    done
    [ "$(echo run/*.tmp)" = 'run/*.tmp' ]
}

# After a fault: runs the command to `steps`, which must resume at step 2 (the checkpoint before) or 3 (the
# new one). Prints which: old, new, or what is wrong.
resumed() {
    train --steps "$1" > out 2> err || { echo "wrong: $(cat err)"; return; }
    from=$(sed -n 's/^step .*from step \([0-9]*\) .*/\1/p' out)
    if ! same "step_0000000$1"; then echo "wrong: step $1 differs, or debris: $(ls run)"
    elif [ "$from" = 2 ]; then echo old
    elif [ "$from" = 3 ]; then echo new
    else echo "wrong: resumed at step $from"
    fi
}

# ----- what needs no strace -----------------------------------------------------------------------

again
( ulimit -f 8; train --steps 4 --save-every 3 > out 2> err; echo $? > status )
check "a file size limit lets the run go on and end with status 1" sh -c '
    [ "$(cat status)" = 1 ] && grep "step *4/4" out && [ "$(wc -l < err)" = 2 ] &&
        grep -q "step 3 failed, training goes on: .*File too large" err'
check "a file size limit: the checkpoint before it serves" test "$(resumed 4)" = old

again
head -n 1 run/log.jsonl > line
i=0
while [ $i -lt 14 ]; do cat line line > lines && mv lines line && i=$((i + 1)); done
cat line >> run/log.jsonl
( ulimit -f 3000; train --steps 4 > out 2> err; echo $? > status )
check "a log that cannot be written is told on one line, with status 1" \
    sh -c '[ "$(cat status)" = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err && grep -q log.jsonl err'
check "a log that cannot be written loses nothing" test "$(resumed 4)" = new

again
"$program" train $shape --steps 1000000 > out 2> err &
pid=$!
tries=0
until [ "$(wc -l < run/log.jsonl)" -gt 4 ] || [ $tries = 500 ]; do sleep 0.02; tries=$((tries + 1)); done
rm -rf run
kill -TERM $pid
wait $pid
check "the run's folder removed while it runs is told on one line, with status 1" \
    sh -c '[ $0 = 1 ] && [ "$(grep -vc "^stopping after" err)" = 1 ] && cat err' $?

: > file
"$program" train --data data.tok --out file --steps 1 --seq-len 32 > out 2> err
check "--out that is a file is refused on one line" \
    sh -c '[ $0 = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err' $?
"$program" train --data data.tok --out /dev/null/run --steps 1 --seq-len 32 > out 2> err
check "--out under a file is refused on one line" sh -c '[ $0 = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err' $?

if [ "$(id -u)" != 0 ]; then as=
else
    as="setpriv --reuid=65534 --regid=65534 --clear-groups"
    command -v setpriv > /dev/null && $as "$program" --help > out 2>&1 || as=no
fi
if [ "$as" = no ]; then
    skip "read-only folder" "root may write anywhere, and there is no setpriv to be someone else"
else
    again
    chmod 777 . && chmod -R a+rX,a-w run && touch run/.lock &&
        chmod 666 run/.lock run/run.cfg run/log.jsonl && chmod 555 run
    $as "$program" train $shape --steps 4 > out 2> err
    check "a read-only folder is told on one line before the run trains, with status 1" \
        sh -c '[ $0 = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err' $?
    chmod -R u+w run
    check "a folder that is writable again lets the run go on" test "$(resumed 4)" = old
fi

# ----- what belongs to somebody else --------------------------------------------------------------
# Whatever lies in a run's folder and is not the run's own stays as it is, bytes and names.

# What is in a folder, as lines: names, kinds, where links lead, sums of files.
listing() {
    ( cd "$1" && find . ! -name .lock ! -path . -exec sh -c '
        for f; do
            if [ -h "$f" ]; then echo "$f -> $(readlink "$f")"
            elif [ -f "$f" ]; then echo "$f $(cksum < "$f")"
            else echo "$f"
            fi
        done' sh {} + | sort )
}
all() { listing run; listing theirs; }
# refused WORD ARGUMENTS: train ends with status 1 and one line that holds the word.
refused() {
    word=$1
    shift
    timeout 20 "$program" train $shape "$@" > refused.out 2> refused.err
    status=$?
    cat refused.err
    [ $status = 1 ] && [ "$(wc -l < refused.err)" = 1 ] && grep -qe "$word" refused.err
}
# stays LINES WORD ARGUMENTS: train is refused with so many lines, the last of which holds the word, and all
# is as it was.
stays() {
    lines=$1 word=$2
    shift 2
    all > before
    timeout 20 "$program" train $shape "$@" > out 2> err
    status=$?
    cat err
    all > after
    [ $status = 1 ] && [ "$(wc -l < err)" = "$lines" ] && tail -n 1 err | grep -qe "$word" && cmp before after
}

rm -rf run && mkdir -p theirs run/step_mine.tmp && echo x > run/step_mine.tmp/file
cp base/log.jsonl base/run.cfg theirs
printf '{"epoch": 1, "step": 1}\n' > run/log.jsonl
check "a log.jsonl of somebody else is refused" stays 1 'run/log.jsonl was not written' --steps 1
rm run/log.jsonl && printf 'layers = 1\nmy = notes\n' > run/run.cfg
check "a run.cfg of somebody else is refused" stays 1 'run/run.cfg was not written' --steps 1
rm run/run.cfg && ln -s ../theirs/log.jsonl run/log.jsonl
check "a log.jsonl that is a link is refused" stays 1 'run/log.jsonl was not' --steps 1
rm run/log.jsonl && ln -s ../theirs/run.cfg run/run.cfg
check "a run.cfg that is a link is refused" stays 1 'run/run.cfg was not' --steps 1
rm run/run.cfg && mkfifo run/log.jsonl
check "a log.jsonl that is a pipe is refused" stays 1 'run/log.jsonl was not' --steps 1
rm run/log.jsonl && ln -s ../theirs/run.cfg run/.lock
check "a .lock that is a link is refused" stays 1 'run/.lock' --steps 1
rm run/.lock && mkdir run/step_00000009 && echo x > run/step_00000009/file
check "a folder of somebody else with a checkpoint's name is refused" stays 2 'none of the 1' --steps 1
again && mkdir run/step_00000009 && echo x > run/step_00000009/model.safetensors
check "... in a run, too, if the run would save there" stays 2 'step_00000009 was not written' --steps 9
again && echo x > run/run.cfg.tmp
check "a run.cfg.tmp of somebody else is refused" stays 1 'run/run.cfg.tmp was not written' --steps 9
again && head -n 40 run/run.cfg > run/run.cfg.tmp
check "one that a killed run left is taken away" test "$(resumed 4)" = old
again && grep -v '^#' base/run.cfg > run/run.cfg
check "a run.cfg as it was before its first line said whose it is is taken" test "$(resumed 4)" = old

# names like a checkpoint's, links, files in the way: the run goes on, saves, and names them once
strange() {
    again
    mkdir -p archive && cp -r base/step_00000001 archive/keepme && cp -r base/step_00000001 archive/half
    rm -rf run/step_00000001 && ln -s ../archive/keepme run/step_00000001
    ln -s ../archive/half run/step_00000002.tmp
    cp -r base/step_00000001 run/step_6 && cp -r base/step_00000001 run/step_+6
    echo plain > run/step_x.tmp && echo plain > run/step_00000003.tmp
    mkdir run/step_00000003.1.tmp && echo x > run/step_00000003.1.tmp/model.safetensors
    echo mine > run/step_00000002/notes.txt
}
others() {
    listing run | grep -v 'log.jsonl\|run.cfg\|step_0000000[0-9]/[cmostv]\|step_0000000[345]$'
    listing archive
}
strange
others > before
train --steps 5 --save-every 1 > out 2> err
status=$?
others > after
check "links, near names, files in the way: the run saves, all of it stays" \
    sh -c '[ $0 = 0 ] && cmp before after && echo "$(wc -l < after) entries" &&
        [ -e run/step_00000005/manifest.txt ] && [ -e run/step_00000004/manifest.txt ] &&
        [ ! -e run/step_00000003 ] && [ ! -e run/step_00000002/manifest.txt ]' $status
check "... they are named once" sh -c 'cat err; [ "$(wc -l < err)" = 2 ] &&
    head -n 1 err | grep "left alone.*step_6" | grep "step_x.tmp" | grep -q "step_00000001" &&
    tail -n 1 err | grep -q "step_00000002 holds files that are not"'
rm -rf run archive

# ----- logs ---------------------------------------------------------------------------------------

again
cp run/log.jsonl before
{ head -n 1 before; head -c 4096 /dev/zero; tail -n 1 before | tr -d '\n'; } > run/log.jsonl
train --steps 3 > out 2> err
check "NUL bytes in a log are set aside and named, its lines stay" sh -c '
    cat err; grep -q "4096 bytes" err && head -n 2 run/log.jsonl | cmp - before &&
        [ "$(wc -l < run/log.jsonl)" = 3 ] && [ "$(tr -d "\0\n" < run/log.unreadable | wc -c)" = 0 ]'
again
printf '{"step": 2, "lo' >> run/log.jsonl
train --steps 3 > out 2> err
check "half a line at a log's end is set aside and named" sh -c '
    cat err; head -n 2 run/log.jsonl | cmp - before && [ "$(wc -l < run/log.jsonl)" = 3 ] &&
        [ "$(cat run/log.unreadable)" = "{\"step\": 2, \"lo" ]'
again
tr -d '\n' < before | sed 's/}{/}\n{/' > run/log.jsonl
train --steps 3 > out 2> err
check "a whole line without its end stays a line" sh -c '
    [ ! -s err ] && head -n 2 run/log.jsonl | cmp - before && [ "$(wc -l < run/log.jsonl)" = 3 ]'
again
train --steps 4 > out 2> err
rm -rf run/step_00000004 run/step_00000003 && cp -r base/step_00000002 run && cp run/log.jsonl before
train --steps 3 > out 2> err
check "going on from an earlier step deletes no line" sh -c '
    head -n 4 run/log.jsonl | cmp - before && [ "$(wc -l < run/log.jsonl)" = 5 ] && [ ! -s err ]'

# ----- pipes, endless files, locks, closed descriptors, small stacks -------------------------------

again
mkdir hf && cp run/step_00000002/config.json run/step_00000002/model.safetensors hf
for file in config.json manifest.txt model.safetensors; do
    for kind in fifo zero folder; do
        rm -rf there && cp -r hf there && rm -f there/$file
        case $kind in
        fifo) mkfifo there/$file ;;
        zero) ln -s /dev/zero there/$file ;;
        folder) mkdir there/$file ;;
        esac
        timeout 20 "$program" sample --from there --length 1 > out 2> err
        check "a $file that is a $kind is refused" \
            sh -c '[ $0 = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err && grep -q $1 err' $? $file
    done
done
for file in config.json manifest.txt state.json optimizer.safetensors; do
    again
    rm run/step_00000002/$file && mkfifo run/step_00000002/$file
    timeout 20 "$program" train $shape --steps 3 > out 2> err
    check "a checkpoint whose $file is a pipe is passed over" \
        sh -c '[ $0 = 0 ] && grep -q "from step 1" out && cat err && grep -q "$1 is a pipe" err' $? $file
done

again
"$program" train $shape --steps 1000000 > out 2> err &
pid=$!
tries=0
until [ "$(wc -l < run/log.jsonl)" -gt 4 ] || [ $tries = 500 ]; do sleep 0.02; tries=$((tries + 1)); done
check "a line is in the file when it is printed" sh -c 'grep "^step  *3/" out | tail -n 1'
rm run/.lock
check "with .lock removed a second trainer is refused still" refused 'another trainer' --steps 3
kill -TERM $pid
wait $pid

again
for closed in '<&-' '>&-' '2>&-' '<&- >&- 2>&-'; do
    again
    eval "train --steps 3 > out 2> err $closed"
    status=$?
    check "a run with closed descriptors is whole: $closed" sh -c '[ $0 = 0 ]' $status
    check "... and goes on: $closed" test "$(resumed 4)" = new
done

again
( ulimit -s 512; "$program" train $shape --threads 2 --steps 3 > out 2> err; echo $? > status )
check "a stack of 512 KB is enough" sh -c 'cat err; [ "$(cat status)" = 0 ]'
check "... for the same numbers" test "$(resumed 4)" = new

again
train --steps 4 > out 2> err
listing run > before
train --steps 2 --sp 1 --lr 1 > out 2> err
listing run > after
check "fewer steps than are done change nothing" \
    sh -c 'cmp before after && grep "at step 4 already" out && [ ! -s err ]'

# ----- strace -------------------------------------------------------------------------------------

if ! command -v strace > /dev/null; then
    skip "faults at every system call of a save" "there is no strace"
    finish
elif ! strace -o log true 2> err; then
    skip "faults at every system call of a save" "strace may not trace here: $(head -n 1 err)"
    finish
fi

# Tracer and traced on one processor: between two of them every call waits for the other one to wake.
beside=$(taskset -cp $$ 2> /dev/null | sed -n 's/.*[^0-9]\([0-9]*\)$/taskset -c \1/p')

# Runs the training command (with "$@") under strace, whose log is left in `log`.
traced() {
    options=$1
    shift
    $beside strace -o log $options "$program" train $shape "$@" > out 2> err
}

# Prints "NAME FIRST LAST": the calls by name, numbered as strace counts them, between two lines of the log
# that match.
calls() {
    awk -v from="$1" -v to="$2" '
        { name = $0; sub(/\(.*/, "", name) }
        name ~ /^[a-z0-9_]+$/ {
            count[name]++
            if (inside) { if (!(name in first)) first[name] = count[name]; last[name] = count[name] }
        }
        $0 ~ from { inside = 1 }
        $0 ~ to { inside = 0 }
        END { for (name in first) print name, first[name], last[name] }' log | sort
}

# The order of a save: files and folders are on the disk before the rename, the rename before anything is
# removed.
again
traced -y --steps 3
cp log order.log
check "order: all is synced before the rename, the rename before older checkpoints go" awk '
    function path(text) { match(text, /<[^>]*>/); return substr(text, RSTART + 1, RLENGTH - 2) }
    /^(write|pwrite64)\([0-9]+<[^>]*\/step_[^>]*\.tmp\// { dirty[path($0)] = 1; writes++ }
    /^openat\([0-9]+<[^>]*\.tmp>, "[^"]*", O_WRONLY/ { folder = 1 }
    /^fsync\([0-9]+<[^>]*\/step_[^>]*\.tmp>/ { folder = 0; syncs++ }
    /^fsync\([0-9]+<[^>]*\.tmp\// { dirty[path($0)] = 0; syncs++ }
    /^renameat.*\.tmp", [0-9]+<[^>]*\/run>, "step_[0-9]*"\) += 0/ {
        renamed = 1; parent = 1
        for (p in dirty) if (dirty[p]) bad = bad " unsynced " p
        if (folder) bad = bad " unsynced folder"
    }
    /^fsync\([0-9]+<[^>]*\/run>/ { parent = 0; syncs++ }
    /^unlinkat\([0-9]+<[^>]*\/step_[0-9]*>/ {
        removed++
        if (!renamed || parent) bad = bad " removed too early"
    }
    END {
        print writes + 0 " writes, " syncs + 0 " fsyncs, " removed + 0 " files removed" bad
        exit bad != "" || syncs != 12 || !renamed || !removed
    }' order.log

# A file system that gives no lock says so.
again
traced "-e inject=flock:error=ENOLCK" --steps 3
check "a lock that the file system cannot give is said, and the run goes on" sh -c '
    cat err; [ "$(wc -l < err)" = 1 ] && grep -q "run cannot be locked" err && grep -q "^saved" out'
again
traced "-e inject=flock:error=ENOLCK:when=1" --steps 3
check "... and one of its two is enough" sh -c '[ ! -s err ] && grep "^saved" out'

# SIGKILL at every call from the last step on, whatever its name.
total=0 total_old=0 total_new=0 total_wrong=0
printf '\nSIGKILL at every system call after the last step (first .. last: its number by name)\n'
printf '  %-16s %5s %5s %7s %5s %5s %6s\n' call first last kills old new wrong
calls '^write.*step *3/3' 'never' > list
while read -r name first last; do
    [ "$name" != exit_group ] || continue
    kills=0 old=0 new=0 wrong=0
    number=$first
    while [ "$number" -le "$last" ]; do
        again
        traced "-e inject=$name:signal=KILL:when=$number" --steps 3
        if grep -q 'killed by SIGKILL' log; then
            kills=$((kills + 1))
            case $(resumed 4) in
            old) old=$((old + 1)) ;;
            new) new=$((new + 1)) ;;
            *) wrong=$((wrong + 1)) ;;
            esac
        fi
        number=$((number + 1))
    done
    printf '  %-16s %5d %5d %7d %5d %5d %6d\n' "$name" "$first" "$last" "$kills" "$old" "$new" "$wrong"
    total=$((total + kills)) total_wrong=$((total_wrong + wrong))
    total_old=$((total_old + old)) total_new=$((total_new + new))
done < list
outcome="$total_old times the old checkpoint, $total_new times the new one, never neither or a mixture"
check "SIGKILL at $total system calls leaves a whole checkpoint: $outcome" \
    test $total -ge 40 -a $total_wrong = 0 -a $total_old -gt 0 -a $total_new -gt 0

# ENOSPC and EIO at every call of a save in the middle of the run that can fail: once, and from then on for
# ever.
again
traced "" --steps 4 --save-every 3
names='openat|write|fsync|close|mkdir|mkdirat|rename|renameat|renameat2|unlink|unlinkat|rmdir|getdents64'
calls '^write.*step *3/4' '^write.*step *4/4' | grep -E "^($names|newfstatat|fstat) " > list
printf '\na system call of a save fails\n'
printf '  %-16s %-7s %6s %6s %10s %10s %6s\n' call error how points 'goes on' 'ends 1' wrong
faults=0 faults_wrong=0
: > details
while read -r name first last; do
    for error in ENOSPC EIO; do
        for how in once ever; do
            points=0 goes_on=0 ends=0 wrong=0
            number=$first
            while [ "$number" -le "$last" ]; do
                again
                plus=
                [ $how = once ] || plus=+
                traced "-e inject=$name:error=$error:when=$number$plus" --steps 4 --save-every 3
                status=$?
                points=$((points + 1))
                lines=$(wc -l < err)
                cp err said
                # 0: trained to the end; what failed was told on a line per save, or did not matter (a close
                # of a folder). 1: the end failed too, told on one line more (if lines can be written at
                # all).
                least=1 most=1
                [ $name$how != writeever ] || least=0
                [ $how = once ] || most=2
                if [ $status = 0 ] && [ "$lines" -le $most ]; then goes_on=$((goes_on + 1))
                elif [ $status = 1 ] && [ "$lines" -ge $least ] && [ "$lines" -le 2 ]; then ends=$((ends + 1))
                else
                    wrong=$((wrong + 1))
                    echo "$name $error $how $number: status $status, $lines lines: $(cat said)" >> details
                fi
                # the state left behind: the next run resumes at 2, 3 or 4 and ends at 5 as the reference does
                result=$(train --steps 5 2>&1) || {
                    wrong=$((wrong + 1))
                    echo "$name $error $how $number: resuming: $result" >> details
                }
                same step_00000005 || {
                    wrong=$((wrong + 1))
                    echo "$name $error $how $number: step 5 differs, or debris: $(ls run)" >> details
                }
                number=$((number + 1))
            done
            printf '  %-16s %-7s %6s %6d %10d %10d %6d\n' "$name" $error $how $points $goes_on $ends $wrong
            faults=$((faults + points)) faults_wrong=$((faults_wrong + wrong))
        done
    done
done < list
cat details
check "ENOSPC and EIO at $faults points of a save: told, survived, and the next run is exact" \
    test $faults -ge 100 -a $faults_wrong = 0

# An export over an export: killed at any call, or one of its calls failing, it leaves the old folder or the new
# one, whole, and the next export takes away what lies about.
"$program" export --from base/step_00000001 --out exp > out && cp -r exp old &&
    "$program" export --from base/step_00000002 --out new > out
export_traced() {
    rm -rf exp exp.* && cp -r old exp
    $beside strace -o log $1 "$program" export --from base/step_00000002 --out exp > out 2> err
}
export_traced ""
check "an export over an export takes its place" diff -r exp new
names='openat|pread64|write|fsync|close|mkdirat|renameat2|unlinkat|flock|getdents64'
calls '^openat.*base/step_00000002/model.safetensors' 'never' | grep -E "^($names) " > list
exports=0 exports_old=0 exports_new=0 exports_wrong=0
: > details
while read -r name first last; do
    for fault in signal=KILL error=EIO; do
        number=$first
        while [ "$number" -le "$last" ]; do
            export_traced "-e inject=$name:$fault:when=$number"
            status=$?
            exports=$((exports + 1))
            if diff -r exp old > differ; then exports_old=$((exports_old + 1))
            elif diff -r exp new > differ; then exports_new=$((exports_new + 1))
            else exports_wrong=$((exports_wrong + 1)) && echo "$name $fault $number: $(cat differ)" >> details
            fi
            # a failure is one line; a call that fails without harm, a close of what was only read, is none
            case $fault:$status:$(wc -l < err) in
            signal=KILL:137:* | error=EIO:0:0 | error=EIO:1:1) ;;
            *) exports_wrong=$((exports_wrong + 1)) && echo "$name $fault $number: status $status, $(cat err)" >> details ;;
            esac
            "$program" export --from base/step_00000002 --out exp > out 2> err && diff -r exp new > differ &&
                [ "$(echo exp*)" = exp ] || {
                exports_wrong=$((exports_wrong + 1))
                echo "$name $fault $number: the next export: $(cat err differ) $(echo exp*)" >> details
            }
            number=$((number + 1))
        done
    done
done < list
cat details
check "faults at $exports points of an export: $exports_old times the old one, $exports_new times the new one" \
    test $exports -ge 100 -a $exports_wrong = 0 -a $exports_old -gt 0 -a $exports_new -gt 0
export_traced "-e inject=renameat2:error=EINVAL"
check "a file system that cannot exchange two folders: the export takes its place all the same" sh -c '
    diff -r exp new && [ "$(echo exp*)" = exp ] && grep -q "^exp: " out && [ ! -s err ]'

# EIO while the run starts: it may refuse, or fall back to the checkpoint before and say so, but never start
# afresh.
again
traced "" --steps 3
names='openat|read|pread64|close|newfstatat|fstat|getdents64|lseek|flock|ftruncate|mmap|write|fsync'
calls '^openat.*data.tok' '^write.*from step' | grep -E "^($names) " > list
starts=0 starts_wrong=0 refused=0
: > details
while read -r name first last; do
    number=$first
    while [ "$number" -le "$last" ]; do
        again
        traced "-e inject=$name:error=EIO:when=$number" --steps 3
        status=$?
        starts=$((starts + 1))
        if [ $status = 1 ] && [ "$(wc -l < err)" = 1 ]; then refused=$((refused + 1))
        elif [ $status = 0 ] && grep -q 'from step [12] to' out && same step_00000003; then :
        else
            starts_wrong=$((starts_wrong + 1))
            echo "$name $number: status $status: $(grep 'from step' out) $(cat err)" >> details
        fi
        number=$((number + 1))
    done
done < list
cat details
check "EIO at $starts points of a start: refused on one line $refused times, else resumed, never afresh" \
    test $starts -ge 40 -a $starts_wrong = 0

finish
