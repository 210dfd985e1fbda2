#!/bin/sh
# Runs over several processes, here all on this machine. Held: they have the numbers of one process to the
# last bit; processes that disagree are refused with what differs; and when one dies, hangs or is asked to
# stop, all end, with a line that says so. On a hundred machines one is always about to fail: what the others
# do then is what a user sees of the program.
#
#     sh dev/test_processes.sh [PROGRAM]      built by `make test`: ./train_gpt2_sp
# shellcheck disable=SC2086
set -u
program=$(realpath "${1:-./train_gpt2_sp}")
scripts=$(realpath "$(dirname "$0")/../scripts")
. "$(dirname "$0")/checks.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT SLURM_PROCID OMPI_COMM_WORLD_RANK PMI_RANK
# below the range that the system gives out
port=$((12000 + $$ * 97 % 18000)) free=$((port + 500)) held=$((port + 501))

yes 'It was the best of times, it was the worst of times. 0123456789' | head -n 400 > text1.txt
yes 'Call me Ishmael; some years ago, never mind how long precisely.' | head -n 300 > text2.txt
"$program" prepare --out data.tok text1.txt text2.txt text1.txt > out || exit 1
"$program" prepare --out val.tok text2.txt > out || exit 1
mkdir elsewhere
"$program" prepare --out elsewhere/data.tok text1.txt text2.txt > out || exit 1
shape="--data data.tok --layers 2 --heads 4 --channels 32 --seq-len 64 --threads 1 --lr 3e-3"

# start NAME WORLD ARGUMENTS...: starts the processes of a run; $own_I are process I's own arguments. The
# output of process I is in NAME.I.out and NAME.I.err; $pids are their numbers.
start() {
    name=$1 world=$2
    shift 2
    port=$((port + 1)) i=0 pids=
    rm -f $name.*.out $name.*.err
    while [ $i -lt $world ]; do
        eval "own=\${own_$i-}"
        "$program" train "$@" --rank $i --world ${of:-$world} --master 127.0.0.1:$port $own > $name.$i.out \
            2> $name.$i.err &
        pids="$pids $!" i=$((i + 1))
    done
    own_0='' own_1='' own_2=''
}
pid() { echo $pids | cut -d ' ' -f $(($1 + 1)); }
patience=60
run() { start "$@"; finished; }
trains() {   # waits until a run is at its fifth step
    tries=0
    until [ "$(grep -c '^step  ' $name.0.out 2> /dev/null)" -ge 5 ] 2> /dev/null || [ $tries = 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
}

# Fails unless the processes ended with these statuses.
ended() {
    [ "$statuses" = "$1" ] || { echo "exit statuses$statuses, expected$1: $(cat $name.*.err)"; return 1; }
}
# Fails unless every process but those numbered in $1 ended with status 1 and one line on stderr that holds
# the pattern. Shows them.
told() {
    except=$1 pattern=$2 i=0
    for status in $statuses; do
        case " $except " in *" $i "*) ;;
        *)
            cat $name.$i.err
            [ $status = 1 ] && [ "$(grep -vc "^stopping after this step" $name.$i.err)" = 1 ] &&
                grep -qe "$pattern" $name.$i.err ||
                { echo "process $i: status $status, expected one line with \`$pattern\`"; return 1; }
            ;;
        esac
        i=$((i + 1))
    done
}
losses() { sed 's/, "ms.*"updated/, "updated/' "$1/log.jsonl"; }

# ----- the same numbers ---------------------------------------------------------------------------

# equal NAME WORLD ARGUMENTS: a run over processes has the log, the weights and the moments of the run in one.
equal() {
    what=$1 over=$2
    shift 2
    rm -rf one several
    "$program" train $shape "$@" --out one > one.out 2> one.err || { cat one.err; return 1; }
    run several $over $shape "$@" --out several
    for status in $statuses; do [ $status = 0 ] || { echo "exit statuses$statuses: $(cat several.*.err)"; return 1; }; done
    [ ! -s several.1.out ] && [ -z "$(cat several.*.err)" ] ||
        { echo "process 1 printed: $(cat several.1.out several.*.err)"; return 1; }
    losses one > one.log && losses several > several.log && cmp one.log several.log || return 1
    for step in one/step_*; do
        for file in model.safetensors optimizer.safetensors state.json config.json; do
            cmp $step/$file several/${step#one/}/$file || return 1
        done
    done
    echo "$(wc -l < one.log) steps, last loss $(sed -n '$s/.*"loss": \([0-9.]*\).*/\1/p' one.log)"
}
for kind in ring dist dist-paper zigzag allgather ulysses; do
    check "2 processes, 4 ranks of a sequence have the numbers of one process: $kind" \
        equal $kind 2 --sp 4 --schedule $kind --steps 4
done
for zero in 0 1 2 3; do
    check "2 processes, dp 2 x sp 2, have the numbers of one process, zero $zero" \
        equal zero 2 --dp 2 --sp 2 --zero $zero --grad-accum 2 --steps 4
done
check "3 processes, zero 3, documents, validation, checkpoints: the numbers of one process" \
    equal three 3 --dp 2 --sp 3 --zero 3 --doc-mask 1 --val-data val.tok --val-every 2 --val-sequences 3 \
        --save-every 2 --steps 5
check "3 processes, 3 ranks, zero 1: the numbers of one process" equal three 3 --sp 3 --zero 1 --steps 4
check "2 processes, frozen and scaled parameters: the numbers of one process" \
    equal rates 2 --dp 2 --sp 2 --zero 2 --freeze 'h.0.*,wte.weight' --lr-scale '*.bias=2' --steps 4
check "2 processes, --patience: they keep the best, and end early, where one process does" \
    equal early 2 --sp 2 --val-data val.tok --val-every 2 --val-sequences 2 --patience 2 --lr 0.3 --steps 400
check "it was early" grep '^stopped early at step [0-9]*: none of the last 2' several.0.out
run minutes 2 $shape --sp 2 --out minutes --steps 1000000 --max-minutes 0.01
check "2 processes, --max-minutes: all end after the same step, saved, with status 0" \
    sh -c '[ "$0" = " 0 0" ] && grep "^stopped after 0.01 minutes; saved minutes/step_" minutes.0.out &&
        [ -z "$(cat minutes.*.err minutes.1.out)" ]' "$statuses"
rm -f trace.json trace.json.*
run traced 2 $shape --sp 4 --dp 1 --zero 1 --steps 4 --trace trace.json
traced() {   # each process its own ranks, and what other processes' ranks sent them
    [ "$1" = " 0 0" ] && [ ! -e trace.json ] || { cat traced.*.err; return 1; }
    for process in 0 1; do
        ranks=$(grep -o '"rank [0-9]*, CPU"' trace.json.$process | tr -dc '0-9\n' | tr '\n' ' ')
        [ "$ranks" = "$((2 * process)) $((2 * process + 1)) " ] || { echo "trace.json.$process has ranks $ranks"; return 1; }
        grep -q "\"pid\": $((3 * process)), \"tid\": 2.*\"message\".*rank $((2 - process))\"" trace.json.$process || return 1
        grep -q '"tid": 3.*"name": "parts of unit 1"' trace.json.$process || return 1
        grep -q "^rank $((2 * process)), CPU: step" traced.$process.out || return 1
        ! command -v python3 > /dev/null || python3 -m json.tool trace.json.$process > /dev/null || return 1
    done
    grep -c '"ph": "X"' trace.json.0 trace.json.1 | tr '\n' ' '
}
check "2 processes, --trace: each writes what its own ranks did" traced "$statuses"
check "4 processes, a rank each: the numbers of one process" equal four 4 --sp 4 --batch-size 2 --steps 4
check "messages longer than a frame arrive whole" \
    equal long 2 --layers 1 --channels 384 --heads 4 --seq-len 768 --sp 2 --steps 2

address=$(hostname -I 2> /dev/null | tr ' ' '\n' | grep -m 1 '[.]')
by_address() {   # as between machines: not by the loopback interface
    port=$((port + 1))
    given="$shape --sp 3 --steps 4 --world 3 --master $address:$port"
    for i in 1 2; do "$program" train $given --rank $i > address.$i 2>&1 & done
    "$program" train $given --rank 0 > address.0 2>&1 && wait && grep '^step *4/4' address.0
}
if [ "$address" ]; then check "3 processes meet by the machine's address" by_address
else skip "3 processes by the machine's address" "it has none, or no hostname -I"
fi

# ----- resuming -----------------------------------------------------------------------------------

"$program" train $shape --sp 2 --steps 8 --out whole > out 2>&1
run parts 2 $shape --sp 2 --steps 8 --save-every 5 --out parts
rm -rf parts/step_00000008
cp -r parts stale
run parts 2 $shape --sp 2 --steps 8 --out parts
check "several processes resume from step 5" grep '^step .*from step 5 to 8 (resumed)' parts.0.out
check "resumed by several processes, the weights are those of one run" \
    cmp whole/step_00000008/model.safetensors parts/step_00000008/model.safetensors
own_1='--out stale'
run stale 2 $shape --sp 2 --steps 9 --out parts
check "a process that would resume from another step is refused" \
    told '' 'process 1 has `the checkpoint of step 5.*process 0 has `the checkpoint of step 8'
own_1='--out nowhere'
run stale 2 $shape --sp 2 --steps 9 --out parts
check "a process that does not see the checkpoint is refused" \
    told '' 'process 1 has `a fresh start.*process 0 has `the checkpoint of step 8'
check "a process that is not the first writes nothing" test ! -e nowhere
start locked 2 $shape --sp 2 --steps 100000 --out locked
trains
locking=$pids
run second 2 $shape --sp 2 --steps 10 --out locked
check "a second run in the same folder is refused on all" told '' 'another trainer'
pids=$locking name=locked
kill -TERM $(pid 0)
finished
check "the first run is none the worse" ended ' 0 0'
"$program" train --config parts/run.cfg > out 2> err
check "run.cfg of several processes serves one" grep 'done already' out

# ----- processes that do not agree ----------------------------------------------------------------

own_1='--lr 1e-3'
run differ 2 $shape --sp 2 --steps 3
check "another option is named and refused" told '' 'process 1 has `--lr 0.001`, process 0 has `--lr 0.003`'
own_2='--schedule ring'
run differ 3 $shape --sp 3 --steps 3
check "another schedule is named and refused" \
    told '' 'process 2 has `--schedule ring`, process 0 has `--schedule dist`'
own_1='--seed 2'
run differ 2 $shape --sp 2 --steps 3
check "another seed is named and refused" told '' 'process 1 has `--seed 2`, process 0 has `--seed 1`'
mkdir changed
sed '200s/best/west/' text1.txt > changed/text1.txt
"$program" prepare --out changed/data.tok changed/text1.txt text2.txt text1.txt > out
own_1='--data changed/data.tok'
run differ 2 $shape --sp 2 --steps 3
check "a shard of the same name and length, in which one letter differs, is named and refused" told '' \
    'process 1 has .*, of \([0-9]*\) tokens, fingerprint .*process 0 has .*, of \1 tokens, fingerprint'
own_1='--data elsewhere/data.tok'
run differ 2 $shape --sp 2 --steps 3
check "another shard of the same name is named and refused" \
    told '' 'process 1 has `--data shard 1, data.tok, of .*process 0 has `--data shard 1, data.tok'
own_1='--data data.tok,val.tok'
run differ 2 $shape --sp 2 --steps 3
check "a shard more is named and refused" told '' 'process 1 has `--data shard 2, val.tok'
own_1='--data missing.tok'
run differ 2 $shape --sp 2 --steps 3
check "a shard that one does not have is named on all" told '' 'missing.tok'
own_1="--data $dir/data.tok --threads 2 --timeout 500"
run own 2 $shape --sp 2 --steps 3
check "paths, threads and timeouts are each process' own" ended ' 0 0'
own_1='--world 3'
run world 2 $shape --sp 2 --steps 3
check "another --world is named and refused" \
    told '' 'process 1 was started with --world 3, process 0 with --world 2'
own_2='--rank 1'
run twice 3 $shape --sp 3 --steps 3
check "the same --rank twice is named and refused" told '' 'two processes were started with --rank 1'
run uneven 2 $shape --sp 3 --steps 3
check "ranks that do not divide evenly are refused" \
    told '' '3 ranks .* cannot be divided evenly over --world 2'

run unchosen 3 $shape --dp 2 --steps 3
check "--sp 0 that does not divide by --dp is refused" \
    told '' '3 ranks .* cannot be divided evenly among the replicas'

run short 2 $shape --sp 2 --steps 3 --layers 500 --channels 65536 --heads 256
check "memory that is short is told in a line from each" told 0 '2 ranks need .* and the machine has'
check "... and with the plan from the first" \
    sh -c 'grep "^  total" short.0.err && tail -n 1 short.0.err | grep "and the machine has"'

# a model of which the machine holds one process' ranks, but not both processes': 1.5 times what it has
# (its weights grow with the square of the channels)
large="$shape --sp 2 --steps 1 --layers 512"
run both 2 $large --channels 4096 --heads 64
heads=$(sed -n 's/.* need \([0-9.]*\) GiB and the machine has \([0-9.]*\).*/\1 \2/p' both.1.err |
    awk '{ printf "%.0f", 64 * sqrt(1.5 * $2 / $1) }')
run both 2 $large --heads ${heads:-1} --channels $((${heads:-1} * 64))
check "the memory of processes of one machine is counted together" \
    told 0 '2 ranks need [0-9.]* GiB and the machine has'

alone() {   # a single process is refused with this
    pattern=$1
    shift
    "$program" train $shape --steps 2 "$@" > out 2> err
    status=$?
    cat err
    [ $status = 1 ] && [ "$(wc -l < err)" = 1 ] && grep -qe "$pattern" err
}
check "--world without --master is refused" alone 'needs --master' --sp 2 --rank 0 --world 2
check "--rank without --world is refused" alone 'needs --world' --sp 2 --rank 1
check "--master without --world and --rank is refused" alone 'needs --world' --sp 2 --master 127.0.0.1:$port
check "--rank beyond --world is refused" \
    alone 'processes 0 to 1' --sp 2 --rank 2 --world 2 --master 127.0.0.1:$port
check "--secret-file without --world is refused" alone 'needs --world' --sp 2 --secret-file secret
check "--master without a port is refused" alone 'HOST:PORT' --sp 2 --rank 0 --world 2 --master localhost
check "--master with a port that is none is refused" \
    alone 'HOST:PORT' --sp 2 --rank 0 --world 2 --master localhost:70000
check "a process that finds nobody at --master gives up at its time limit" \
    alone "waited 1 s for process 0 at 127.0.0.1:$free" --sp 2 --rank 1 --world 2 --master 127.0.0.1:$free \
        --timeout 1
check "a process that nobody comes to gives up at its time limit" \
    alone 'waited 1 s for process 1 of 2 to connect' --sp 2 --rank 0 --world 2 --master 127.0.0.1:$free \
        --timeout 1
"$program" train $shape --sp 2 --rank 0 --world 2 --master 127.0.0.1:$held --timeout 4 > first.out \
    2> first.err &
first=$!
sleep 0.3
check "a port in use is told" \
    alone "cannot listen at 127.0.0.1:$held: Address already in use" --sp 2 --rank 0 --world 2 \
        --master 127.0.0.1:$held
kill -TERM $first
wait $first
check "a signal while others are waited for ends the wait" \
    sh -c '[ $0 = 1 ] && grep "stopped by a signal" first.err' $?

# Strangers at the port: text, noise, silence, a connection that closes. The run starts and is none the worse.
if command -v python3 > /dev/null; then
    of=2
    start strangers 1 $shape --sp 2 --steps 4 --out strangers
    of=
    python3 - $port << 'END' > strangers.log 2>&1
import os, socket, sys, time
for i in range(50):
    try: socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close(); break
    except OSError: time.sleep(0.1)
held = []
for i in range(40):
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    noise = b"GPT2SPH1" + os.urandom(500)
    s.sendall([b"GET / HTTP/1.0\r\n\r\n", os.urandom(3000), b"", noise, b"GPT2SPH1" + bytes(7)][i % 5])
    (held.append if i % 2 else socket.socket.close)(s)
END
    "$program" train $shape --sp 2 --steps 4 --out strangers --rank 1 --world 2 --master 127.0.0.1:$port \
        > strangers.1.out 2> strangers.1.err
    finished
    check "strangers at the port do the run no harm" sh -c '
        cat strangers.log strangers.*.err
        [ "$0" = " 0" ] && [ ! -s strangers.log ] && [ ! -s strangers.1.err ] &&
            [ "$(wc -l < strangers/log.jsonl)" = 4 ]' "$statuses"
else
    skip "strangers at the port" "there is no python3"
fi

# A crowd, and one that lies. crowd.py PORT COUNT: COUNT connections that say nothing, until it is killed.
cat > crowd.py << 'END'
import resource, socket, sys, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
held = []
while len(held) < int(sys.argv[2]):
    try: held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    except OSError: time.sleep(0.1)
open("crowded", "w").close()
time.sleep(60)
END
# flood.py PORT: takes the part of process 1 of 2, then sends frames to a rank that is not there.
cat > flood.py << 'END'
import socket, struct, sys, time, zlib
def sealed(b): return b + struct.pack("<I", zlib.crc32(b))
for i in range(100):
    try: s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); break
    except OSError: time.sleep(0.1)
s.sendall(sealed(b"GPT2SPH3" + struct.pack("<Q5I", 0, 1, 2, 0, 0, 0x01020304) + bytes(32 + 96)))
s.recv(4096)
head = struct.pack("<4sIiiQQQI", b"G2SP", 0, 1, 77, 1, 1 << 20, 1 << 20, 0)
try:
    for i in range(2000): s.sendall(sealed(head) + bytes(1 << 20))
except OSError: pass
print(i, "MiB sent")
END
# crowded LIMIT COUNT ARGUMENTS...: a run whose first process may open LIMIT files, and has COUNT silent callers
crowded() {
    limit=$1 callers=$2
    shift 2
    port=$((port + 1)) name=crowded pids=
    rm -f crowded crowded.*
    (ulimit -n $limit && exec "$program" train $shape "$@" --rank 0 --world 2 --master 127.0.0.1:$port) \
        > crowded.0.out 2> crowded.0.err &
    pids=" $!"
    python3 crowd.py $port $callers > crowd.log 2>&1 &
    crowd=$! tries=0
    until [ -e crowded ] || [ $tries = 100 ]; do sleep 0.1; tries=$((tries + 1)); done
    busy=$(awk '{ print $14 + $15 }' /proc/${pids# }/stat)   # hundredths of a second of processor time
    sleep 1
    busy=$(($(awk '{ print $14 + $15 }' /proc/${pids# }/stat) - busy))
    "$program" train $shape "$@" --rank 1 --world 2 --master 127.0.0.1:$port > crowded.1.out 2> crowded.1.err &
    pids="$pids $!"
    finished
    kill $crowd
    [ "$statuses" = " 0 0" ] && [ $seconds -le 8 ] && [ $busy -lt 50 ] && [ -e crowded ] ||
        { echo "statuses$statuses, $seconds s, busy $busy: $(cat crowd.log crowded.*.err)"; return 1; }
    echo "after $seconds s, with $busy % of a processor while it waited"
}
flooded() {
    of=2
    start flooded 1 $shape --sp 2 --steps 3
    of=
    python3 flood.py $port > flood.log 2>&1 &
    flood=$! most=0
    while kill -0 $(pid 0) 2> /dev/null && now=$(awk '/^VmHWM/ { print $2 }' /proc/$(pid 0)/status 2> /dev/null); do
        most=${now:-$most}
        [ $most -lt 500000 ] || break
        sleep 0.02
    done
    finished
    wait $flood
    echo "$(cat flood.log), at most $((most / 1024)) MiB: $(cat flooded.0.err)"
    [ "$statuses" = " 1" ] && [ $most -gt 0 ] && [ $most -lt 50000 ] &&
        grep -q "process 1 is gone (it sent a frame of ranks that are not there)" flooded.0.err
}
if command -v python3 > /dev/null; then
    check "1,000 silent callers keep nobody out" crowded 1024 1000 --sp 2 --steps 3
    check "nor do callers that take all files that a process may open" crowded 40 100 --sp 2 --steps 3
    check "frames for a rank that is not there end the run, and take no memory" flooded
else
    skip "silent callers and floods" "there is no python3"
fi

head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > secret && chmod 600 secret
echo 'another secret that is long enough' > secret.other && chmod 600 secret.other
mkdir copy && cp -p secret copy/
own_1='--secret-file copy/secret'
run secret 3 $shape --sp 3 --steps 3 --secret-file secret
check "processes that share a secret meet" ended ' 0 0 0'
# others OPTIONS: what becomes of process 1, and that process 0 waits on for one that knows the secret
others() {
    expected=$1
    shift
    of=2
    start others 1 $shape --sp 2 --steps 3 --secret-file secret
    of=
    "$program" train $shape --sp 2 --steps 3 "$@" --rank 1 --world 2 --master 127.0.0.1:$port > other.out 2>&1
    other=$?
    "$program" train $shape --sp 2 --steps 3 --secret-file secret --rank 1 --world 2 \
        --master 127.0.0.1:$port > others.1.out 2>&1
    right=$?
    finished
    cat other.out
    [ $other = 1 ] && grep -q "$expected" other.out && [ $right = 0 ] && [ "$statuses" = " 0" ]
}
check "a process without the secret is refused, and the others wait on" \
    others 'process 0: --secret-file: process 0 was started with a secret, this one without'
check "a process with another secret is refused, and the others wait on" \
    others 'process 0: --secret-file: process 0 has another secret' --secret-file secret.other
own_1='--secret-file secret'
run secret 2 $shape --sp 2 --steps 3
check "a secret that process 0 has not is named on all" \
    told '' 'process 1 was started with --secret-file, process 0 without'
chmod 644 secret.other
check "a secret that everybody may read is refused" alone 'chmod 600' --sp 2 --rank 0 --world 2 \
    --master 127.0.0.1:$free --secret-file secret.other
own_0='--out secrets'
run secret 2 $shape --sp 2 --steps 2 --secret-file secret --out secrets
check "a run's run.cfg holds nothing of the secret" sh -c '! grep secret-file secrets/run.cfg && ls secrets/run.cfg'

# one of three that leaves, or is killed, before all have met
for other in 0 1; do
    of=3
    start early 2 $shape --sp 3 --steps 3
    of=
    sleep 0.5
    kill -9 $(pid $other)
    finished
    check "process $other killed before all have met is named by the others" \
        told $other "process $other .*is gone (connection closed) before all had met"
done

# ----- processes that die, hang, fail, are stopped -------------------------------------------------

for zero in 0 3; do
    start killed 3 $shape --dp 3 --sp 2 --zero $zero --steps 1000000
    trains
    kill -9 $(pid 1)
    finished
    gone='rank [0-9]*, step [0-9]*: process 1 (ranks 2-3) is gone (connection closed)[,;] waited for'
    gone="$gone\|process 1"
    check "one process killed, zero $zero, is named by the others, which end" told 1 "$gone"
    check "... after $seconds seconds" test $seconds -le 5
done
start killed 2 $shape --sp 4 --steps 1000000
trains
kill -9 $(pid 0)
finished
check "the first process killed is named by the others" told 0 'process 0 (ranks 0-1) is gone'
start hung 2 $shape --sp 2 --steps 1000000 --timeout 3
trains
kill -STOP $(pid 1)
tries=0
while kill -0 $(pid 0) 2> /dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -CONT $(pid 1)
finished
hangs='rank 0, step [0-9]*: waited 3 s for rank 1 in an\? '
hangs="$hangs\|process 0, step [0-9]*: waited 3 s for process 1 (rank 1) in an agreement"
check "a process that hangs is named by the other, with rank, step and wait" told 1 "$hangs"
check "... after $((tries / 10)) seconds, and the one that hung ends too" \
    sh -c '[ $0 -le 70 ] && [ "$1" = " 1 1" ] && cat hung.1.err' $tries "$statuses"

# process 0 hangs, the others wait for it; then one of these is lost
start lost 3 $shape --sp 3 --steps 1000000 --timeout 60
trains
kill -STOP $(pid 0)
sleep 0.5
kill -9 $(pid 2)
tries=0
while kill -0 $(pid 1) 2> /dev/null && [ $tries -lt 200 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -CONT $(pid 0)
finished
check "a process that is lost ends a wait for another one that hangs" told 2 'process 2 (rank 2) is gone'
check "... after $((tries / 10)) seconds" test $tries -le 50

for signal in TERM INT USR1; do
    rm -rf signal
    start signal 3 $shape --sp 3 --steps 1000000 --out signal
    trains
    kill -$signal $(pid 2)
    finished
    check "SIG$signal to one makes all save and end with 0" \
        sh -c '[ "$0" = " 0 0 0" ] && grep "^stopped by a signal; saved" signal.0.out && cat signal.*.err' \
            "$statuses"
done
step=$(sed -n '$s/.*"step": \([0-9]*\),.*/\1/p' signal/log.jsonl)
run signal 3 $shape --sp 3 --steps $((step + 1)) --out signal
check "... and go on from there" grep "from step $step to" signal.0.out

# not finite from the start: a weight of the last rank's slice is NaN; no process updates, all give up
# together and save
"$program" train $shape --steps 1 --out plain > out 2>&1
cp -r plain/step_00000001 poisoned && rm poisoned/manifest.txt
size=$(wc -c < poisoned/model.safetensors)
printf '\0\0\300\177' | dd of=poisoned/model.safetensors bs=1 seek=$((size - 4)) conv=notrunc 2> /dev/null
run nan 2 $shape --sp 2 --zero 3 --init-from poisoned --steps 30
check "a value that is not finite updates no process, all give up" told '' 'not been finite for 10 steps'
check "... and each of these steps was skipped" test "$(grep -c 'no update' nan.0.out)" = 9
own_1='--init-from plain/step_00000001'
run differ 2 $shape --sp 2 --init-from poisoned --steps 3
check "other weights to start from are refused" told '' 'process 1 has `--init-from weights'
cp -r plain/step_00000001 heads && rm heads/manifest.txt   # the same weights in other heads
heads=$(sed -n 's/.*"n_head": \([0-9]*\).*/\1/p' heads/config.json)
sed -i "s/\"n_head\": $heads/\"n_head\": $((heads * 2))/" heads/config.json
own_1='--init-from plain/step_00000001'
run differ 2 --data data.tok --dp 2 --sp 1 --threads 1 --steps 3 --init-from heads
check "other heads of the same weights are refused" told '' "process 1 has \`$heads heads"

# a shard of process 1 goes bad on its disk: all stop, all name it, and what was learnt is kept
"$program" prepare --out elsewhere/data.tok --block-tokens 1024 text1.txt text2.txt text1.txt > out
mkdir whole.d && cp elsewhere/data.tok whole.d
size=$(wc -c < elsewhere/data.tok)
printf '\377\377\377' | dd of=elsewhere/data.tok bs=1 seek=$((size / 2)) conv=notrunc 2> /dev/null
own_0='--data whole.d/data.tok' own_1='--data elsewhere/data.tok'
run bad 2 $shape --sp 2 --steps 100000 --out bad
check "a shard of one process damaged stops all, which name it" told '' 'elsewhere/data.tok'
check "... and the run is saved" sh -c 'ls -d bad/step_*'

# the folder of process 0 vanishes: the checkpoint fails there, which all are told
start lost 2 $shape --sp 2 --zero 1 --steps 1000000 --out lost
trains
rm -rf lost
kill -TERM $(pid 1)
finished
check "a checkpoint that cannot be written is told on all" told '' 'lost'

# a log that cannot be written, on the one process that writes it
"$program" train $shape --sp 2 --steps 1 --out full > full.out 2>&1
head -n 1 full/log.jsonl > line
i=0
while [ $i -lt 15 ]; do cat line line > lines && mv lines line && i=$((i + 1)); done
cat line >> full/log.jsonl
limit=$(ulimit -f)
ulimit -S -f 6000
run full 2 $shape --sp 2 --steps 5 --out full
ulimit -S -f "$limit"
check "a log that cannot be written ends all" told '' 'log.jsonl: File too large'

# ----- launchers ----------------------------------------------------------------------------------

# launched ENVIRONMENT0 ENVIRONMENT1: two processes that only the environment tells who they are
launched() {
    env $1 "$program" train $shape --sp 2 --steps 3 > env.0 2>&1 &
    p=$!
    env $2 "$program" train $shape --sp 2 --steps 3 > env.1 2>&1
    one=$?
    wait $p
    [ $? = 0 ] && [ $one = 0 ] && grep -q '^step *3/3' env.0 && [ ! -s env.1 ] ||
        { cat env.0 env.1; return 1; }
}
port=$((port + 1))
check "torchrun's environment tells processes who they are" \
    launched "RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port" \
        "RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port"
port=$((port + 1))
named() {   # the numbers by environment, the master by hand
    RANK=1 WORLD_SIZE=2 "$program" train $shape --steps 3 --master 127.0.0.1:$port > env.1 2>&1 &
    RANK=0 WORLD_SIZE=2 "$program" train $shape --steps 3 --master 127.0.0.1:$port > env.0 2>&1 &&
        wait $! && grep 'dp 1 x sp 2' env.0
}
check "RANK and WORLD_SIZE serve beside --master, and --sp is the number of processes" named
port=$((port + 1))
check "torchrun's environment serves where its store has the port" \
    launched "RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=$port TORCHELASTIC_USE_AGENT_STORE=True" \
        "RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=$port TORCHELASTIC_USE_AGENT_STORE=True"
port=$((port + 2))
check "srun's environment tells processes who they are" \
    launched "SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_JOB_ID=$port" \
        "SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_JOB_ID=$port"
check "mpirun's environment tells processes who they are, Open MPI" \
    launched "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 MASTER_PORT=$port" \
        "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 MASTER_PORT=$port"
port=$((port + 1))
check "mpirun's environment tells processes who they are, MPICH" \
    launched "PMI_RANK=0 PMI_SIZE=2 MPI_LOCALNRANKS=2 MASTER_PORT=$port" \
        "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALNRANKS=2 MASTER_PORT=$port"
check "a batch script of Slurm is no task of a step" \
    env SLURM_PROCID=0 SLURM_NTASKS=2 "$program" train $shape --steps 1
check "a master that nobody names is asked for" sh -c '
    export OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=2
    ! "$0" train --data data.tok --sp 4 --steps 1 2>&1 | grep -v MASTER_ADDR' "$program"

# environment LINE VARIABLES: a single process with this environment is refused with this line
environment() {
    pattern=$1
    shift
    env "$@" "$program" train $shape --timeout 1 --steps 1 > out 2>&1 && return 1
    cat out
    [ "$(wc -l < out)" = 1 ] && grep -q "$pattern" out
}
torch="WORLD_SIZE=2 MASTER_ADDR=127.0.0.1"
check "a count of processes without this one's number is refused" \
    environment 'WORLD_SIZE is 2, but there is no RANK' WORLD_SIZE=2
check "a number of this process without their count is refused" \
    environment 'RANK is 1, but there is no WORLD_SIZE' RANK=1
check "both without a master are refused" environment 'WORLD_SIZE is 2, but there is no MASTER_ADDR' RANK=1 WORLD_SIZE=2
check "--world 1 trains alone all the same" env WORLD_SIZE=2 "$program" train $shape --steps 1 --world 1
for number in x 1x '' 1.5 -1 4096; do
    check "a number of the environment that is none is refused: RANK=$number" \
        environment "RANK=$number: \(expected a whole number\|must be from\)" "RANK=$number" $torch
done
for number in x 2x 0 4097; do
    check "a number of the environment that is none is refused: WORLD_SIZE=$number" \
        environment "WORLD_SIZE=$number: \(expected a whole number\|must be from\)" RANK=1 \
            WORLD_SIZE=$number MASTER_ADDR=127.0.0.1
done
for number in abc 29400abc 99999 0 '' 80.5; do
    check "a number of the environment that is none is refused: MASTER_PORT=$number" \
        environment "MASTER_PORT=$number: \(expected a whole number\|must be from 1 to 65535\)" RANK=1 $torch \
            "MASTER_PORT=$number"
done
for name in OMPI_COMM_WORLD_LOCAL_SIZE MPI_LOCALNRANKS LOCAL_WORLD_SIZE SLURM_JOB_ID; do
    case $name in
    OMPI*) given="OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2" ;;
    MPI*) given="PMI_RANK=1 PMI_SIZE=2" ;;
    LOCAL*) given="RANK=1 $torch" ;;
    *) given="SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost" ;;
    esac
    check "a number of the environment that is none is refused: $name=2x" \
        environment "$name=2x: expected a whole number" $given $name=2x
done
slurm="SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_JOB_ID=7"
for list in 'gpu[001-002]-ib gpu001-ib' 'rack[1-2]node[3-4] rack1node3' 'a[1-2].invalid,b a1.invalid' \
    'node[03-07,9],other node03'; do
    check "the first node of Slurm's list is process 0's: ${list% *}" \
        environment "process 0 at ${list#* }:15007 (" $slurm "SLURM_STEP_NODELIST=${list% *}"
done
check "a list of Slurm's that is none is refused" \
    environment 'SLURM_STEP_NODELIST=a\[1-: expected a list of machines' $slurm 'SLURM_STEP_NODELIST=a[1-'
check "an IPv6 address of the environment is read with brackets and without" sh -c '
    for a in ::1 "[::1]"; do
        RANK=1 WORLD_SIZE=2 MASTER_ADDR=$a MASTER_PORT=29400 "$0" train --data data.tok --timeout 0.1 2>&1
    done | grep -c "process 0 at \[::1\]:29400 (" | grep -x 2' "$program"

# the recipes, with stand-ins for torchrun, srun and ssh that do what those do here
mkdir bin
cat > bin/torchrun << 'END'
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --no-python) shift; continue ;;
    --nproc-per-node) count=$2 ;;
    --master-addr) MASTER_ADDR=$2 ;;
    --master-port) MASTER_PORT=$2 ;;
    --*) ;;
    *) break ;;
    esac
    shift 2
done
export MASTER_ADDR MASTER_PORT WORLD_SIZE=$count TORCHELASTIC_USE_AGENT_STORE=True
RANK=1 "$@" & RANK=0 "$@"; status=$?; wait $! && exit $status
END
cat > bin/srun << 'END'
#!/bin/sh
shift
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost
SLURM_PROCID=1 "$@" & SLURM_PROCID=0 "$@"; status=$?; wait $! && exit $status
END
printf '#!/bin/sh\nshift\nexec sh -c "$*"\n' > bin/ssh
chmod +x bin/*
recipe() {
    env PATH="$dir/bin:$PATH" PROGRAM="$program" "$@" > recipe.out 2>&1 && grep '^step *3/3' recipe.out &&
        grep 'in 2 processes' recipe.out || { cat recipe.out; return 1; }
}
given="$shape --data $dir/data.tok --sp 2 --steps 3"
port=$((port + 2))
check "scripts/torchrun.sh starts a run" recipe PER_NODE=2 MASTER_PORT=$port sh "$scripts/torchrun.sh" $given
check "scripts/slurm.sh starts a run" recipe SLURM_JOB_ID=$port sh "$scripts/slurm.sh" $given
port=$((port + 2))
check "scripts/ssh.sh starts a run" \
    recipe SSH=ssh HOSTS="localhost localhost" PORT=$port sh "$scripts/ssh.sh" $given \
        --out "$dir/it's quoted"
check "... with its arguments as given" test -e "it's quoted/step_00000003"
env PATH="$dir/bin:$PATH" PROGRAM="$program" SSH=ssh HOSTS="localhost localhost" PORT=$((port + 1)) \
    sh "$scripts/ssh.sh" $given --steps 1000000 --out "$dir/stopped" > ssh.0.out 2>&1 &
pids=" $!" name=ssh
trains
kill -TERM $pids
finished
check "scripts/ssh.sh stopped saves and ends with 0" \
    sh -c '[ "$0" = " 0" ] && grep "stopped by a signal; saved" ssh.0.out || { cat ssh.0.out; exit 1; }' \
        "$statuses"

finish
