#!/bin/sh
# The host side of the GPU program without a GPU, under dev/standin_cuda.cpp: no deadlock, no leak, no race
# between streams.
#
#     sh dev/test_standin.sh          needs nvcc and ./train_gpt2_sp; builds in build/standin
#
# What is tested: that a table of runs ends well; that a run in which any call fails, or a GPU stops, ends
# with an error, soon and cleanly; and that the stand-in's eye for order is sharp: each place where the
# program makes a stream wait, or records what a stream waits for, is taken out in turn, and each must be
# missed. Then two runs under ThreadSanitizer, without OpenMP, whose runtime it cannot see into. A missing
# wait is right by luck on one GPU and one driver, for months, and nothing that computes numbers can hold
# that it is there.
set -u
. dev/checks.sh
folder=build/standin
mkdir -p $folder
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1

# What is compiled is the host code and no more of the device's than nvcc insists on. Calls of these go
# through the stand-in, which follows what host threads learn from each other.
build() {   # name, flags of the host compiler, optimisation
    nvcc $nccl $3 -g -w -std=c++17 -gencode=arch=compute_80,code=compute_80 -Xcicc -O0 -Xcompiler "-w,-g,$2" \
        -c train_gpt2_sp.cu -o $folder/$1.o &&
        nvcc $nccl -O1 -g -std=c++17 -I$folder -Xcompiler "-Wall,-Wextra,$2" -c dev/standin_cuda.cpp \
            -o $folder/$1-standin.o
}
redirect() {
    for name in mutex_lock mutex_timedlock mutex_unlock cond_wait cond_timedwait create join; do
        set -- "$@" --redefine-sym pthread_$name=standin_pthread_$name
    done
    objcopy "$@"
}
sed -n "/^\/\/ --- arguments of attention ---/,/^\/\/ What the rest/p" train_gpt2_sp.cu > $folder/standin_arguments.h
tsan= nccl=
! printf '#include <nccl.h>\n' | nvcc -x cu - -E -o $folder/usable.i > /dev/null 2>&1 || nccl=-DGPT2_SP_NCCL
! printf 'int main(void) { return 0; }' | c++ -x c++ - -fsanitize=thread -o $folder/usable > /dev/null 2>&1 ||
    ! $folder/usable || tsan=yes
# -O1: what nvcc puts before a launch otherwise writes to a variable of all threads that nobody reads
[ -z "$tsan" ] || build tsan -fsanitize=thread -O1 > $folder/tsan.log 2>&1 &
compiling=$!
check "the program compiles" build program -fopenmp -O1   # most of a short run is to draw the weights
link() {
    redirect $folder/program.o $folder/linked.o &&
        c++ -no-pie $folder/linked.o $folder/program-standin.o -o $folder/train -fopenmp -lz -lm -lpthread
}
check "it links with the stand-in" link
text=$folder/text.tok
./train_gpt2_sp prepare --out $text LICENSE data README.md train_gpt2_sp.c > /dev/null || exit 1
small="--data $text --layers 3 --heads 4 --channels 256 --seq-len 512 --steps 3 --timeout 30"

# ----- order that is taken away: beside the other tests, judged below --------------------------------

# Every place of these runs where a stream waits, or where is recorded what one waits for. A place is an
# address; what is found missing at it in one of the runs is seen.
sites() {   # GPUs, arguments
    gpus=$1
    shift
    STANDIN_GPUS=$gpus STANDIN_SITES=1 $folder/train train $small --steps 2 "$@" 2>&1 |
        sed -n 's/^standin: site \([^ ]*\) \([^ ]*\) .*/\1 \2/p' |
        while read -r site kind; do
            grep -q "$site $kind seen" $folder/sites && continue
            STANDIN_GPUS=$gpus STANDIN_DROP=$site timeout 60 $folder/train train $small --steps 2 "$@" \
                > $folder/sites.log 2>&1
            if [ $? = 98 ]; then echo "$site $kind seen"; else echo "$site $kind not"; fi >> $folder/sites
        done
}
mutate() {
    : > $folder/sites
    sites 1 --sp 1
    sites 2 --sp 3 --grad-accum 2 --zero 0
    sites 2 --dp 2 --sp 2 --zero 3 --grad-accum 2
    sites 2 --sp 4 --zero 1
    sites 2 --sp 2 --recompute layer
    [ -z "$nccl" ] || sites 4 --sp 3 --zero 3 --transport nccl
}
mutate &
mutating=$!

# ----- runs that must end well --------------------------------------------------------------------

# One run; what the stand-in complains of, and how often a queue was full, is the detail.
run() {   # GPUs, queues, depth, arguments
    log=$folder/run.log
    export STANDIN_GPUS=$1 STANDIN_QUEUES=$2 STANDIN_DEPTH=$3
    shift 3
    timeout 60 $folder/train "$@" > $log 2>&1
    status=$?
    if [ $status = 0 ]; then sed -n 's/^standin: \(.* operations, .* full\), 0 kinds.*/\1/p' $log
    else echo "status $status" && grep -a -v '^step ' $log | tail -n 12
    fi
    return $status
}
while read -r gpus queues depth arguments; do
    case $gpus in '#' | '') continue ;; esac
    # shellcheck disable=SC2086
    check "$gpus GPUs, $queues queues of $depth, end well: $arguments" \
        run $gpus $queues $depth train $small $arguments
done << END
# one rank; as many ranks as GPUs; more; queues as they are, and so few and short that calls wait for them
1 8 1024  --doc-mask 1 --profile 1
2 8 1024  --sp 2
2 1 6     --sp 2 --doc-mask 1
1 2 20    --sp 2 --zero 1
4 3 8     --sp 4 --batch-size 2 --grad-accum 2
2 1 6     --sp 4 --batch-size 2 --grad-accum 2 --zero 1
2 1 6     --dp 2 --sp 2 --recompute sqrt
2 8 1024  --dp 2 --sp 2 --zero 3 --recompute layer
4 1 6     --dp 2 --sp 2 --zero 2 --recompute none --center 0
2 3 8     --dp 3 --zero 1 --recompute gelu
1 1 6     --dp 3 --sp 1 --zero 2
# schedules, odd and even numbers of ranks
4 3 8     --sp 4 --schedule ring --zero 0
3 1 6     --sp 3 --schedule ring --zero 3 --doc-mask 1
4 3 8     --sp 4 --schedule dist-paper --doc-mask 1
2 1 6     --sp 6 --schedule dist-paper --zero 1 --seq-len 516
4 3 8     --sp 4 --schedule zigzag
2 1 6     --sp 3 --schedule zigzag --doc-mask 1 --zero 2 --seq-len 516
4 3 8     --sp 4 --schedule allgather --zero 2
2 1 6     --sp 3 --schedule allgather --doc-mask 1 --recompute sqrt
4 3 8     --sp 4 --schedule ulysses --zero 3
2 1 6     --sp 2 --schedule ulysses --doc-mask 1
2 8 1024  --sp 3 --zero 3 --grad-accum 2
2 1 6     --sp 7 --zero 2
# the ranks' own positions, beside those above that divide 512: state and gradients shared too, gathers, one
# GPU
2 1 6     --sp 4 --zero 2 --grad-accum 2
2 8 1024  --sp 2 --zero 3 --recompute layer
2 1 6     --sp 2 --zero 1 --recompute layer
4 3 8     --sp 4 --recompute layer --schedule ring --batch-size 2
1 2 20    --sp 4 --zero 0 --center 0
8 2 16    --dp 2 --sp 4 --zero 0 --grad-accum 3
# fewer heads than ranks, head sizes and kernels
2 1 6     --sp 5 --heads 1 --channels 64
4 3 8     --sp 4 --heads 2 --channels 64 --schedule dist --doc-mask 1
2 1 6     --sp 3 --attention portable --deterministic 1
# evaluation, --check, --trace, checkpoints
2 1 6     --sp 2 --val-every 2 --val-data $text --val-sequences 3
2 1 6     --dp 2 --sp 2 --freeze=h.1.mlp.*,wte.weight --lr-scale=*.bias=2 --doc-mask 1
2 8 1024  --sp 3 --zero 3 --freeze=*.bias,wpe.weight,h.0.* --val-data $text --val-sequences 3
2 8 1024  --sp 3 --zero 3 --val-every 1 --val-data $text --val-sequences 3 --doc-mask 1
2 1 6     --sp 2 --zero 1 --val-every 1 --val-data $text --val-sequences 3
4 3 8     --dp 2 --sp 2 --zero 2 --val-every 1 --val-data $text --val-sequences 3
2 1 6     --sp 2 --check 1
2 8 1024  --sp 3 --zero 3 --check 1 --grad-accum 2
2 1 6     --sp 2 --zero 0 --trace $folder/trace.json --steps 4
4 3 8     --dp 2 --sp 2 --zero 3 --trace $folder/trace.json --steps 4
END
if [ "$nccl" ]; then   # a GPU for each rank
    while read -r queues depth arguments; do
        # shellcheck disable=SC2086
        check "NCCL, $queues queues of $depth, ends well: $arguments" \
            run 6 $queues $depth train $small --transport nccl $arguments
    done << END
8 1024  --sp 2 --doc-mask 1
1 6     --sp 4 --zero 0 --grad-accum 2 --out $folder/nccl
3 8     --sp 4 --zero 1 --val-every 1 --val-data $text --val-sequences 3
1 6     --sp 4 --zero 2
1 6     --dp 2 --sp 2 --zero 1 --grad-accum 2
3 8     --dp 2 --sp 3 --zero 2 --schedule zigzag --doc-mask 1
1 6     --sp 4 --zero 3 --schedule ulysses
1 6     --sp 5 --zero 0 --heads 1 --channels 64
2 16    --sp 3 --zero 3 --grad-accum 2 --val-every 1 --val-data $text --val-sequences 3
END
else
    skip "NCCL" "there is no nccl.h"
fi
rm -rf $folder/run $folder/nccl
for zero in 0 1 2 3; do   # each goes on from what the one before it saved
    check "--zero $zero is saved and resumed" run 2 1 6 train $small --sp 2 --zero $zero --out $folder/run \
        --save-every 2 --steps $((3 + 2 * zero))
done
check "sample ends well" run 1 1 6 sample --from $folder/run --length 20
check "sample by numbers ends well" run 1 1 6 sample --from $folder/run --length 20 --prompt-tokens 73,116
for sp in 2 3; do
    check "sample ends well by $sp ranks" run 2 1 6 sample --from $folder/run --length 20 --sp $sp
done
i=0   # a prompt that the kernels of training read
while [ $((i += 1)) -le 30 ]; do echo 73 32 105 115; done > $folder/prompt
check "sample of a long prompt ends well" run 1 1 6 sample --from $folder/run --length 5 --prompt-file $folder/prompt
check "sample of a long prompt ends well by 2 ranks" \
    run 2 1 6 sample --from $folder/run --length 5 --prompt-file $folder/prompt --sp 2
check "eval ends well" run 1 1 6 eval --from $folder/run --data $text --val-sequences 3
check "plan ends well" run 2 8 1024 plan --sp 2 --seq-len 1024

# more than the GPUs have: the plan's table, a line that says what would fit, and nothing else
short_of_memory() {
    STANDIN_GPUS=2 timeout 60 $folder/train train $small --sp 2 --recompute none --batch-size 65536 \
        > $folder/run.log 2>&1
    status=$?
    grep -a '^train train: ' $folder/run.log
    [ $status = 1 ] && [ "$(grep -a -c '^  total  ' $folder/run.log)" = 1 ] &&
        grep -a -q '^train train: 2 ranks need .* the largest batch is [0-9]' $folder/run.log
}
check "memory that is short is told with what would fit" short_of_memory

# host threads held up at random
for seed in 1 4; do
    check "hosts that dawdle do no harm, seed $seed" \
        env STANDIN_HOST=1 STANDIN_SEED=$seed STANDIN_DEPTH=12 STANDIN_QUEUES=3 \
        sh -c "$folder/train train $small --dp 2 --sp 2 --zero $((seed - 1)) 2>&1 |
            grep '0 kinds of races, 0 leaks, 0 other'"
done

# ----- runs in which a call fails -----------------------------------------------------------------

# The run must end with status 1 and a message: not by a signal, a time limit or a complaint of the stand-in.
failing() {   # first call, distance, last, arguments
    ended=0 failures=0 calls=$(seq "$1" "$2" "$3")
    shift 3
    for call in $calls; do
        failures=$((failures + 1))
        STANDIN_GPUS=3 STANDIN_QUEUES=8 STANDIN_DEPTH=1024 STANDIN_FAIL=$call \
            timeout 60 $folder/train train $small --layers 2 --steps 2 --sp 3 --zero $((call % 4)) "$@" \
                > $folder/run.log 2>&1
        status=$?
        [ $status != 1 ] || { ended=$((ended + 1)) && continue; }
        echo "call $call fails, --zero $((call % 4)): status $status" && tail -n 3 $folder/run.log
    done
    echo "$ended of $failures"
    [ $ended = $failures ]
}
# A GPU that stops in the middle of a step: the program says so at its time limit; without one the stand-in
# does.
stopped() {   # time limit, text
    STANDIN_LOSE=300 timeout 60 $folder/train train $small --sp 3 --timeout "$1" > $folder/run.log 2>&1
    grep -a -m 1 -o "$2" $folder/run.log
}
check "a GPU that stops is told by the program" stopped 2 "did not finish the step within .*"
check "a GPU that stops is told by the stand-in" stopped 0 "nothing moves after .* calls"
check "a call that fails ends the run with a message: the first ones" failing 1 1 16
check "a call that fails ends the run with a message: here and there" failing 17 89 1500
[ -z "$nccl" ] ||
    check "a call that fails ends the run with a message: NCCL" failing 18 197 1900 --transport nccl

# ----- order that was taken away ------------------------------------------------------------------

judged() {   # waits or records: all must have been seen, but those of op_turn, on which no memory depends
    seen=$(grep "$1 seen" $folder/sites | sort -u | wc -l) unseen=
    for site in $(grep "$1 not" $folder/sites | cut -d ' ' -f 1 | sort -u); do
        addr2line -f -e $folder/train "$site" | grep -q op_turn || grep -q "$site $1 seen" $folder/sites ||
            unseen="$unseen $(addr2line -e $folder/train "$site" | sed 's,.*/,,')"
    done
    echo "$seen seen, unseen:${unseen:- none}"
    [ -z "$unseen" ] && [ "$seen" -ge 8 ]
}
wait $mutating
check "a missing wait is seen, by place" judged wait
check "a missing record is seen, by place" judged record
missing() {
    STANDIN_GPUS=2 timeout 60 env "$1" $folder/train train $small --layers 2 --dp 2 --sp 2 --zero "$2" \
        > $folder/run.log 2>&1
    [ $? = 98 ] && echo "$(grep -a -c RACE $folder/run.log) kinds of races told"
}
for every in 2 7 23 47; do
    check "every ${every}th wait missing, --zero $((every % 4)), is seen" \
        missing STANDIN_DROP_EVERY=$every $((every % 4))
done
check "hosts that do not wait are seen" missing STANDIN_DROP_SYNC=1 3

# ----- host threads -------------------------------------------------------------------------------

threads() {
    STANDIN_GPUS=2 STANDIN_ORDER=0 timeout 120 $folder/train_tsan train $small --layers 2 "$@" \
        > $folder/run.log 2>&1 && return
    grep -a -A 30 WARNING $folder/run.log | head -n 60
    false
}
wait $compiling
objects="$folder/tsan.o $folder/tsan-standin.o"
# shellcheck disable=SC2086
if [ "$tsan" ] && c++ -no-pie -fsanitize=thread $objects -o $folder/train_tsan -lz -lm -lpthread; then
    check "ThreadSanitizer finds no race in overlapped sums" \
        threads --dp 2 --sp 2 --zero 0 --val-every 2 --val-data $text --val-sequences 2
    check "ThreadSanitizer finds no race in --zero 3" \
        threads --sp 3 --zero 3 --grad-accum 2 --trace $folder/trace.json --steps 4
else
    skip "ThreadSanitizer" "the compiler has none that runs here"
fi
finish
