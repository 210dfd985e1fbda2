#!/bin/sh
# scripts/report.py and scripts/watch.py on small runs.
#
#     sh dev/test_report.sh PROGRAM [PYTHON]       PYTHON has matplotlib; without it the page is not tested
set -u
program=$(realpath "$1")
python=${2:-}
dev=$(realpath "$(dirname "$0")")
scripts=$(realpath "$dev/../scripts")
. "$dev/checks.sh"
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt2_sp_report.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

shape="--layers 1 --heads 2 --channels 16 --seq-len 256 --threads 1 --data text.tok"
"$program" prepare --out text.tok "$dev/../LICENSE" "$dev/../scripts" > /dev/null 2>&1
odd='a <b> & "c" $d$'
"$program" train $shape --val-data text.tok --val-every 2 --val-sequences 2 --steps 5 --out "runs/$odd" > /dev/null
"$program" train $shape --steps 3 --lr 1e-3 --sp 2 --out runs/_plain > /dev/null   # without a validation
"$program" train $shape --steps 1 --out runs/one > /dev/null
"$program" eval --from "runs/$odd" --data text.tok --needle 2 --facts 1 --json 1 > eval.json
mkdir runs/going runs/damaged runs/empty runs/none
head -n 4 "runs/$odd/log.jsonl" > runs/going/log.jsonl
printf '{"step": 4, "lo' >> runs/going/log.jsonl
cp "runs/$odd/run.cfg" runs/going
{ head -n 2 "runs/$odd/log.jsonl"; printf 'no <line\n{"step": "x"}\n[1]\n{"step": 2}\n\0\0\n'; tail -n 4 "runs/$odd/log.jsonl"; } > runs/damaged/log.jsonl
: > runs/empty/log.jsonl

if ! command -v python3 > /dev/null; then
    skip "report.py, watch.py" "no python3"
    finish
fi
watch() { COLUMNS=$1 LINES=$2 PYTHONIOENCODING=utf-8 python3 "$scripts/watch.py" "$3" --once; }
widest() { python3 -c 'import sys; print(max(len(line.rstrip("\n")) for line in open(sys.argv[1], encoding="utf-8")))' "$1"; }

check "watch.py --once prints the last loss" sh -c 'printf %s "$0" | grep -F "loss $1"' "$(watch 100 40 "runs/$odd")" \
    "$(printf %.4f "$(sed -n '$s/.*"loss": \([0-9.]*\),.*/\1/p' "runs/$odd/log.jsonl")")"
for width in 32 80 150; do
    watch $width 30 "runs/$odd" > screen
    check "watch.py fills a terminal of $width columns and no more" test "$(widest screen)" = $width
    check "watch.py: the scale's ends are the largest and smallest figure" sh -c '
        grep -q "│" screen && grep "^ *0.0003 │" screen && grep "^ *3e-05 │" screen'
done
check "watch.py leaves a small terminal's last line free" test "$(watch 60 12 "runs/$odd" | wc -l)" -lt 12
check "watch.py without UTF-8 draws in ASCII" sh -c '
    PYTHONIOENCODING=ascii python3 "$0/watch.py" "$1" --once > screen; ! LC_ALL=C grep "[^ -~]" screen && grep -c "\*" screen' "$scripts" "runs/$odd"
check "watch.py: a run that has not begun to log" sh -c 'printf %s "$0" | grep "no step is logged yet"' "$(watch 80 24 runs/none)"
check "watch.py: a run that is not there" sh -c '! python3 "$0/watch.py" runs/nowhere --once 2> err && grep "no such run" err' "$scripts"
check "watch.py: damaged lines are counted" sh -c 'printf %s "$0" | grep "4 lines of the log are damaged"' "$(watch 80 24 runs/damaged)"
check "watch.py: a run without a validation says so" sh -c 'printf %s "$0" | grep "not validated"' "$(watch 80 24 runs/_plain)"
check "watch.py: a run of one step" sh -c 'printf %s "$0" | grep "step 1 of 1"' "$(watch 80 24 runs/one)"

# It follows: the log comes, grows, in the middle of a line too, and is made anew.
mkdir runs/live
python3 "$scripts/watch.py" runs/live --every 0.05 > live.out 2> live.err &
pid=$!
shows() { for _ in $(seq 200); do grep -q "$1" live.out && return 0; sleep 0.05; done; tail -n 3 live.out; return 1; }
check "watch.py waits for the log" shows "no step is logged yet"
sed -n 1,3p "runs/$odd/log.jsonl" > runs/live/log.jsonl
check "watch.py shows it when it comes" shows "^step 2"
sed -n 4p "runs/$odd/log.jsonl" | head -c 30 >> runs/live/log.jsonl
sleep 0.3
check "watch.py waits for the end of a line" sh -c '! grep "^step 3" live.out'
sed -n 4p "runs/$odd/log.jsonl" | tail -c +31 >> runs/live/log.jsonl
check "watch.py goes on with it" shows "^step 3"
head -n 2 "runs/$odd/log.jsonl" > runs/live/log.jsonl
check "watch.py begins anew with a log that became shorter" shows "^step 1"
check "watch.py counts none of these lines as damaged" sh -c '! grep damaged live.out'
kill -INT $pid
kill -TERM $pid 2> /dev/null   # a shell without job control starts it with SIGINT ignored
wait $pid 2> /dev/null
check "watch.py says nothing on stderr" sh -c 'cat live.err; [ ! -s live.err ]'

page() { "$python" "$scripts/report.py" --program "$program" "$@"; }
if [ "$python" ]; then
    check "report.py makes a page of two runs" page "runs/$odd" runs/_plain --eval eval.json --out page.html
    check "the page is whole, holds all it needs, and has the last steps' figures" \
        python3 "$dev/check_report.py" page.html "runs/$odd" runs/_plain
    check "names are escaped" sh -c 'grep -c "a &lt;b&gt; &amp; &quot;c&quot;" page.html && ! grep "<b>" page.html'
    check "curves of loss, rate, norm and speed, of the loss by position; needles, plan, schedule" sh -c '
        for text in "alt=\"Loss\"" "alt=\"Learning rate\"" "alt=\"Gradient norm\"" "alt=\"Speed\"" "alt=\"evaluation\"" \
            "Needles" "optimizer state" "Schedule of attention: dist, 2 ranks"; do
            grep -q "$text" page.html || { echo "no $text"; exit 1; }
        done'
    check "the schedule's picture is the one that schedule --svg draws" sh -c '
        "$0" schedule --schedule dist --sp 2 --svg dist.svg > out &&
            grep "alt=\"schedule dist of 2 ranks\"" page.html | grep -cF "base64,$(base64 -w 0 dist.svg)\""' "$program"
    check "the plan's total is what plan says" sh -c '
        total=$("$0" plan --json 1 --config runs/_plain/run.cfg | sed "s/.*\"total\": \([0-9]*\).*/\1/")
        total=$(awk "BEGIN { printf \"%.2f\", $total / 1048576 }")
        echo "$total MiB" && grep ">total<" page.html | grep "<td>$total</td></tr>"' "$program"
    check "options that differ, and no others" sh -c '
        grep ">--lr</th><td>0.0003</td><td>0.001</td>" page.html && ! grep ">--layers<" page.html'
    check "a run without a validation is named" grep '_plain: it was not validated' page.html
    for run in one going damaged empty; do
        check "report.py makes a page of a run that is: $run" page runs/$run --out $run.html
    done
    check "a run of one step has its figures" python3 "$dev/check_report.py" one.html runs/one
    check "a run that goes on says how far it is" grep 'step 3 of 5: it goes on, or was stopped' going.html
    check "damaged lines are named" grep 'of the 11 lines of log.jsonl 4 cannot be read and were left out: 3, 4, 5, 6' damaged.html
    printf 'mine\n' > mine.html && cp "runs/$odd/log.jsonl" kept.jsonl
    check "report.py replaces only a page of its own" sh -c '
        ! "$0" "$1/report.py" "$2" --out "$2/log.jsonl" 2> err && cmp kept.jsonl "$2/log.jsonl" && grep "must end in" err &&
        ! "$0" "$1/report.py" "$2" --out mine.html 2> err && grep "and stays" err && grep -q mine mine.html' "$python" "$scripts" "runs/$odd"
    check "report.py replaces its page" page runs/_plain --out page.html
    check "a run that has logged nothing is told" grep 'empty: no step with a loss' empty.html
    check "a run that is not there is an error in a line" sh -c '
        "$0" "$1/report.py" runs/nowhere --out no.html 2> err; [ $? = 1 ] && [ "$(wc -l < err)" = 1 ] && cat err && [ ! -e no.html ]' "$python" "$scripts"
    echo '{"from": 1' > broken.json
    check "a file that eval did not write is an error in a line" sh -c '
        "$0" "$1/report.py" runs/one --eval broken.json --out no.html 2> err; [ $? = 1 ] && [ "$(wc -l < err)" = 1 ] &&
            grep "broken.json: .*eval" err' "$python" "$scripts"
    check "without the program the page says so" sh -c '
        "$0" "$1/report.py" runs/one --program ./nowhere --out without.html && grep "no plan: .*nowhere" without.html' "$python" "$scripts"
else
    skip "report.py" "its package matplotlib is not there: python3 -m pip install matplotlib"
fi
check "watch.py and report.py: a log that cannot be read is an error in a line" sh -c '
    mkdir -p runs/folder/log.jsonl
    for script in "watch.py runs/folder --once" "${1:+report.py runs/folder --out no.html}"; do
        [ "$script" ] || continue
        "${1:-python3}" "$0/"$script 2> err
        [ $? = 1 ] && [ "$(wc -l < err)" = 1 ] && grep "runs/folder/log.jsonl: Is a directory" err || exit 1
    done' "$scripts" "$python"
check "without matplotlib report.py says what to install" sh -c '
    python3 -S "$0/report.py" runs/one --out no.html 2> err; [ $? = 1 ] && grep "pip install matplotlib" err' "$scripts"
finish
