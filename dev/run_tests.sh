#!/bin/sh
# `make test`: every test there is, two parts at a time. The last line is the total.
#
#     sh dev/run_tests.sh                  all parts
#     sh dev/run_tests.sh cli faults       these
#
# A part is a function part_NAME below. It prints its lines and closes with `N passed, N failed[, N
# skipped]`; what it prints is also in build/test/NAME.log.
set -u
cd "$(dirname "$0")/.." || exit 1
make=${MAKE:-make}
unset MAKEFLAGS MFLAGS MAKELEVEL
. dev/checks.sh
work=build/test
mkdir -p $work
export OMP_WAIT_POLICY=passive   # ranks that wait leave the core to the other part

warnings="-Wall -Wextra -Wpedantic -Werror"
trial='#include <stdlib.h>\nint main(void) { return abs(0); }\n'

# Does this compiler, with these flags, make a program that runs here?
usable() { printf "$trial" | "$@" -x c - -o "$work/usable.$part" > /dev/null 2>&1 && "$work/usable.$part"; }
has() { command -v "$1" > /dev/null; }

# Builds the program $2 with the arguments $1 of make; its folder is then in $folder. Parts that run side by side take
# turns at a folder: none runs what another one links.
built() {
    eval "folder=\$($make -s path $1)"
    until mkdir "$work/${folder##*/}.turn" 2> /dev/null; do sleep 0.2; done
    eval "$make -s $1 $folder/$2"
    status=$?
    rmdir "$work/${folder##*/}.turn"
    return $status
}

# Builds test_gpt2_sp with these arguments of make, and runs it.
tests() {
    arguments=$1
    shift
    built "$arguments" test_gpt2_sp && "$folder/test_gpt2_sp" "$@"
}

part_float()  { tests ""; }
# The groups in which numbers are computed. Their tolerances follow the size of the numbers, and a mistake in the mathematics is
# as large in the first step as in the twentieth: the few cases show it. -Werror: warnings about the tests, optimised.
part_double() {
    tests "REAL=double CFLAGS=-O2 EXTRA=-Werror" quick attention layers model fixture runs rates positions memory resume sampling \
        commands library own-data tensors figures generated sharing import export evaluations
}

# AddressSanitizer (leaks too) and UndefinedBehaviorSanitizer, over the tests and over the command line.
# -g1: what a report shows of the source. -ftree-vrp, of gcc's -O2, takes out the checks of bounds that loops keep: without it
# the matrix products take three times as long.
ranges=-ftree-vrp
printf "$trial" | cc $ranges -Werror -x c - -fsyntax-only 2> /dev/null || ranges=
sanitized="CFLAGS='-O1 $ranges -g1 -fno-omit-frame-pointer -fsanitize=address,undefined"
sanitized="$sanitized -fno-sanitize-recover=undefined'"
part_asan() {
    if usable cc -fsanitize=address,undefined; then
        tests "$sanitized" few
    else
        skip "AddressSanitizer and UndefinedBehaviorSanitizer" "the compiler has none that run here"
        finish
    fi
}
part_asan_cli() {
    if usable cc -fsanitize=address,undefined; then
        built "$sanitized" train_gpt2_sp && sh dev/test_cli.sh "$folder/train_gpt2_sp" $work/json_keys
    else
        skip "the command line with AddressSanitizer" "the compiler has none that runs here"
        finish
    fi
}

# Without OpenMP, whose runtime ThreadSanitizer cannot see into: the threads are the ranks and the loader. The groups are those
# in which threads meet.
part_tsan() {
    if usable cc -fsanitize=thread; then
        tests "HAS_OPENMP= CFLAGS='-O1 -g1 -fsanitize=thread'" \
            few attention runs resume loader net transport commands library cancel own-data
    else
        skip "ThreadSanitizer" "the compiler has none that runs here"
        finish
    fi
}

part_cli()    { sh dev/test_cli.sh ./train_gpt2_sp $work/json_keys; }
part_asan_procs() {
    if usable cc -fsanitize=address,undefined; then
        built "$sanitized" train_gpt2_sp && sh dev/test_processes.sh "$folder/train_gpt2_sp"
    else
        skip "several processes with AddressSanitizer" "the compiler has none that runs here"
        finish
    fi
}
part_processes() { sh dev/test_processes.sh ./train_gpt2_sp; }
part_faults() { sh dev/test_faults.sh ./train_gpt2_sp; }
part_finetune() { sh dev/test_finetune.sh ./train_gpt2_sp; }

# A compiler's complaints of a program were kept: does one tell of a frame?
frames() { ! grep 'frame size' $work/$family-frames.log; }
takes_program() { "$@" -Wframe-larger-than=32768 2> $work/$family-frames.log || { cat $work/$family-frames.log; return 1; }; }

# Every source with one family of compilers, as C11 and as C++17, without a warning. As C11 the program is optimised,
# for the warnings and the frames that show then; what C++ and the other sources add needs no optimiser. The tests are optimised
# in the part `double`, to which a warning is an error too.
compilers() {
    family=$1 cc=$2 cxx=$3 optimised=$4 plain=$5
    if ! has "$cc"; then
        skip "$family" "$cc is not installed"
        finish
    fi
    for source in train_gpt2_sp.c test_gpt2_sp.c dev/bench_cpu.c dev/lecture_table.c dev/json_keys.c; do
        [ -e $source ] || continue
        object=$work/$family.o
        case $source in
        train*)
            check "$cc takes it as C11 without a warning: $source" \
                takes_program $cc -std=c11 $optimised $warnings -c $source -o $object
            check "$cc: no function's frame is above 32 KB: $source" frames
            check "$cc takes it as C11 in fp64 without a warning: $source" \
                $cc -std=c11 $plain -fopenmp-simd -DGPT2_SP_REAL_BYTES=8 $warnings -c $source -o $object
            ;;
        *) check "$cc takes it as C11 without a warning: $source" $cc -std=c11 $plain $openmp $warnings -c $source -o $object ;;
        esac
        if has "$cxx"; then
            check "$cxx takes it as C++17 without a warning: $source" \
                $cxx -x c++ -std=c++17 $plain -fopenmp-simd $warnings -c $source -o $object
        else skip "$cxx, C++17: $source" "$cxx is not installed"
        fi
    done
    for how in HEADER_ONLY NO_MAIN; do
        printf '#define GPT2_SP_%s\n#include "../../train_gpt2_sp.c"\n%s\n' $how \
            'int main(void) { gpt2_sp_options* o = gpt2_sp_options_new(); return gpt2_sp_set(o, "zero", "1", NULL); }' \
            > $work/$family-$how.c
        check "$cc takes it as C11, included with GPT2_SP_$how" \
            $cc -std=c11 -O0 -fopenmp-simd $warnings -c $work/$family-$how.c -o $work/$family.o
        ! has "$cxx" || check "$cxx takes it as C++17, included with GPT2_SP_$how" \
            $cxx -x c++ -std=c++17 -O0 -fopenmp-simd $warnings -c $work/$family-$how.c -o $work/$family.o
    done
    finish
}
part_gcc() {
    openmp=-fopenmp-simd
    ! usable gcc -fopenmp || openmp=-fopenmp
    compilers gcc gcc g++ "-O2 $openmp" -O0
}
part_clang() {
    warnings="$warnings -Wno-pass-failed"   # a remark about speed, not about the program
    openmp=-fopenmp-simd
    compilers clang clang clang++ "-O1 $openmp" -fsyntax-only   # its warnings come before the optimiser, the frames after it
}

# The CPU program for AArch64, run by qemu where this machine is another. Linked statically: it needs no
# libraries of that processor to run. What the linker then says of getaddrinfo and dlopen is not shown.
# The program is optimised as `make` does it; the tests are not, which halves the part's time.
part_aarch64() {
    cross=aarch64-linux-gnu-gcc qemu=qemu-aarch64
    has $qemu || qemu=qemu-aarch64-static
    for program in $cross $qemu; do
        has $program || { skip "AArch64" "$program is not installed"; finish; }
    done
    if ! { printf '#include <zlib.h>\nint main(void) { return zlibVersion()[0] == 0; }\n' |
        $cross -static -x c - -o $work/arm_trial -lz && $qemu $work/arm_trial; } > $work/arm_trial.log 2>&1; then
        skip "AArch64" "a program with zlib does not compile and run: $(head -n 1 $work/arm_trial.log)"
        finish
    fi
    flags="-std=c11 -O3 -march=armv8-a -ffp-contract=fast -fno-math-errno -fno-trapping-math -fopenmp"
    check "$cross takes it as C11 without a warning: train_gpt2_sp.c" \
        $cross $flags $warnings -S train_gpt2_sp.c -o $work/arm.s
    $cross -static -fopenmp $work/arm.s -o $work/arm_train -lz -lm -lpthread 2> /dev/null
    awk -f dev/neon_loops.awk $work/arm.s > $work/arm_loops
    check "AArch64: the matrix products' innermost loops hold 16 sums in vector registers and spill none" sh -c '
        grep -m 1 ": 16 fmla" "$0" && ! grep ": 16 fmla.* [1-9][0-9]* stores" "$0"' $work/arm_loops
    for name in cpu_gelu_forward cpu_gelu_backward cpu_crossentropy 'cpu_\(op\|attention_[a-z]*_head\)'; do
        check "AArch64: e^x is computed in vector registers" grep -m 1 "^$name: \([7-9]\|1.\) fmla" $work/arm_loops
    done
    how="CC=$cross MARCH=armv8-a GPU="
    check "make $how builds the tests without a warning" sh -c "
        $make -s $how CFLAGS=-O0 EXTRA='-static -Werror' \
            \$($make -s path $how CFLAGS=-O0 EXTRA='-static -Werror')/test_gpt2_sp 2> $work/arm_make.log"
    check "AArch64: the groups of tests for layers, the PyTorch fixture and options" aarch64_tests
    check "AArch64: a shard has the same bytes, and a run that x86-64 began goes on to the same loss" aarch64_run
    finish
}
aarch64_tests() {
    $qemu "$($make -s path $how CFLAGS=-O0 EXTRA='-static -Werror')/test_gpt2_sp" quick layers fixture options \
        > $work/arm_tests.log 2>&1
    status=$?
    grep '^FAIL' $work/arm_tests.log
    tail -n 1 $work/arm_tests.log
    return $status
}
# Both programs make a shard and 6 steps; that of AArch64 goes on from step 3 of the other's run.
aarch64_run() {
    here=$work/arm_run
    rm -rf $here && mkdir -p $here
    options="--layers 2 --heads 2 --channels 32 --seq-len 64 --batch-size 2 --threads 1 --data $here/a.tok"
    ./train_gpt2_sp prepare --out $here/a.tok LICENSE data/json.h > $here/log &&
        $qemu $work/arm_train prepare --out $here/b.tok LICENSE data/json.h >> $here/log &&
        cmp $here/a.tok $here/b.tok &&
        ./train_gpt2_sp train --out $here/x86 $options --steps 6 --save-every 3 >> $here/log &&
        cp -r $here/x86 $here/arm && rm -r $here/arm/step_00000006 && : > $here/arm/log.jsonl &&
        $qemu $work/arm_train train --out $here/arm $options --steps 6 --save-every 3 >> $here/log || return 1
    for run in x86 arm; do sed -n 's/.*"step": *6,.*"loss": *\([0-9.]*\).*/\1/p' $here/$run/log.jsonl; done |
        awk '{ loss[NR] = $1; print } END { apart = loss[1] - loss[2]
            exit !(NR == 2 && loss[1] > 0 && apart < 1e-6 && apart > -1e-6) }'
}

# The libraries: installed, and as programs embed them.
part_embed() { sh dev/test_embed.sh; }

# The GPU program: that it compiles for all its architectures, and that dev/check_ptxas.sh finds no fault in
# it and would find one. Running it needs a GPU.
spoiled() {
    sed "$1" build/nvcc.log > $work/spoiled.log && ! sh dev/check_ptxas.sh $work/spoiled.log > /dev/null
}
tests_gpu() {
    "./$1" > build/test-gpu.log 2>&1
    status=$?
    grep '^FAIL' build/test-gpu.log
    tail -n 1 build/test-gpu.log
    return $status
}
# A program of the GPU library: without a GPU it says so.
embed_gpu() {
    LD_LIBRARY_PATH=$tree/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$1" LICENSE nowhere $work/embed_gpu_run 1 > $work/embed_gpu.log 2>&1
    [ $? = 1 ] && cat $work/embed_gpu.log && grep -q 'GPU\|nowhere' $work/embed_gpu.log
}
part_gpu() {
    if has nvcc; then
        check "make train_gpt2_spcu builds the GPU program" $make -s train_gpt2_spcu
        check "ptxas: no attention kernel is serialised or spills too much" \
            sh dev/check_ptxas.sh build/nvcc.log
        check "ptxas: a serialised kernel is found" \
            spoiled '$s/.*/ptxas info : (C7510) Potential Performance Loss/'
        check "ptxas: a kernel that spills is found" \
            spoiled 's/ [0-9]* bytes spill stores/ 4096 bytes spill stores/'
        tree=$PWD/$work/gpu-tree/opt
        rm -rf $work/gpu-tree
        check "make install has the GPU program and library too" $make -s install DESTDIR=$PWD/$work/gpu-tree PREFIX=/opt
        check "the installed GPU program runs" "$tree/bin/train_gpt2_spcu" --version
        check "the GPU library exports the functions of gpt2_sp.h and nothing else" exports_header libgpt2spcu.so
        check "a program links with it" cc -I"$tree/include" dev/example_embed.c -L"$tree/lib" -lgpt2spcu -o $work/embed_gpu
        check "it says why it does not train, or fine-tunes" embed_gpu $work/embed_gpu
        # shellcheck disable=SC2046
        check "a program links with the static one" cc -I"$tree/include" dev/example_embed.c \
            $(sed -n "/^static=/{s///;s|\${libdir}|$tree/lib|p}" "$tree/lib/pkgconfig/gpt2_spcu.pc") -o $work/embed_gpu_static
        check "it says why it does not train, or fine-tunes, without the library" embed_gpu $work/embed_gpu_static
        tested=test_gpt2_spcu
        nvidia-smi -L > /dev/null 2>&1 ||
            { tested=build/test_gpt2_spcu-host; skip "make test-gpu" "needs a GPU of compute capability 8.0 or more"; }
        check "make $tested builds its tests" $make -s $tested
        check "the GPU program's tests pass, without a GPU those of its host" tests_gpu $tested
    else
        skip "the GPU program" "nvcc is not installed"
    fi
    finish
}

# The host side of the GPU program, several ranks and all, on a stand-in for the CUDA runtime.
part_standin() {
    if has nvcc && has objcopy; then
        sh dev/test_standin.sh
    else
        skip "the host side of the GPU program" "nvcc or objcopy is not installed"
        finish
    fi
}

part_fuzz() {
    sanitize=
    ! usable cc -fsanitize=address,undefined ||
        sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    for name in tok safetensors; do
        check "fuzz_$name builds" \
            cc -std=c11 -D_GNU_SOURCE -g -O1 -DSTANDALONE $sanitize dev/fuzz_$name.c -lz -lm \
                -o $work/fuzz_$name
        check "fuzz_$name finds no input that does harm" $work/fuzz_$name ${ROUNDS:-20000}
    done
    finish
}

# Whether the tests would notice a fault: 30 of those that `make mutate` plants.
part_mutate() {
    if has python3; then python3 dev/mutate.py --sample 30 --jobs 1
    else
        skip "make mutate" "python3 is not installed"
        finish
    fi
}

# The tokenizer against tiktoken, tokenizers and Transformers, in a Python of its own under build/. GPT-2's ranks come
# with the package mlx-whisper, of which nothing else is needed.
part_tokenizer() {
    python=$work/python
    { [ -x $python/bin/pip ] || python3 -m venv $python; } > $work/pip.log 2>&1 &&
        $python/bin/pip install -q --no-compile tiktoken tokenizers regex transformers >> $work/pip.log 2>&1 &&
        $python/bin/pip install -q --no-compile --no-deps mlx-whisper >> $work/pip.log 2>&1 ||
        { skip "the tokenizer beside tiktoken" "its packages cannot be installed: $(tail -n 1 $work/pip.log)"; finish; }
    exec $python/bin/python dev/check_tokenizer.py
}

# The page of a run and its curves in the terminal; the page's package comes into a Python under build/ if there is none.
part_report() {
    python=python3
    if ! python3 -c 'import matplotlib' > /dev/null 2>&1; then
        python=$PWD/$work/python_report/bin/python
        { [ -x "$python" ] || python3 -m venv $work/python_report; } > $work/pip_report.log 2>&1 &&
            "$python" -m pip install -q --no-compile matplotlib >> $work/pip_report.log 2>&1 && "$python" -c 'import matplotlib' || python=
    fi
    sh dev/test_report.sh ./train_gpt2_sp "$python"
}

# README.md and the documents in dev/ show what the program's commands print: dev/lecture.md too, of which `make lecture`
# runs the long ones as well. A document that shows something else is found.
documents() {
    sh dev/check_readme.sh > $work/documents.log 2>&1 || { grep -v '^ok ' $work/documents.log; return 1; }
    tail -n 1 $work/documents.log
}
wrong_document() {
    mkdir -p $work/wrong
    echo '<svg/>' > $work/wrong/ring.svg
    printf '```console%s\n$ %s\n%s\n```\n' '' 'echo 1' 2   '' 'echo right' right   '' 'echo two words |' "> wc -w
2"      ' within 1 %' 'echo loss 1.005 nats' 'loss 1.00 nats'   ' within 1 %' 'echo loss 1.02 nats' 'loss 1.00 nats' \
        ' measured' 'echo 7 ms' '5 ms'   ' measured' 'echo 5 ms: yes' '5 ms: no'   ' long' 'echo 1' 2 \
        '' './train_gpt2_sp schedule --schedule ring --sp 2 --svg ring.svg | wc -l' 15 > $work/wrong.md
    printf '```console\nan output without a command\n```\n' >> $work/wrong.md
    sh dev/check_readme.sh $work/wrong.md > $work/wrong.log
    [ "$(tail -n 1 $work/wrong.log)" = "$1" ] || { cat $work/wrong.log; return 1; }
}
part_readme() {
    check "the documents show what their commands print" documents
    check "wrong figures, words and pictures in a document are found" wrong_document '5 passed, 5 failed'
    finish
}

# ----- two at a time, the long ones first ---------------------------------------------------------

all='asan tsan standin gpu float asan_cli mutate faults double gcc tokenizer clang embed aarch64 report asan_procs cli processes readme finetune fuzz'
parts=${*:-$all}
for part in $parts; do
    type "part_$part" > /dev/null 2>&1 || { echo "run_tests.sh: no part $part" >&2; exit 1; }
done
start=$(date +%s)
$make -s -j2 train_gpt2_sp lib GPU= || exit 1   # here, for parts that run side by side must not build the same
cc -O1 dev/json_keys.c -o $work/json_keys || exit 1

rm -rf $work/taken $work/printing $work/*.turn
mkdir $work/taken
worker() {
    for part in $parts; do
        mkdir "$work/taken/$part" 2> /dev/null || continue
        began=$(date +%s)
        (part_"$part") > "$work/$part.log" 2>&1
        echo $? > "$work/taken/$part/status"
        until mkdir $work/printing 2> /dev/null; do sleep 0.1; done
        printf '\n==== %s, %d s\n' "$part" $(($(date +%s) - began))
        cat "$work/$part.log"
        rmdir $work/printing
    done
}
worker &
worker
wait

passed=0 failed=0 skipped=0
printf '\n==== all parts, %d s\n' $(($(date +%s) - start))
for part in $parts; do
    line=$(tail -n 1 "$work/$part.log" | grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$')
    status=$(cat "$work/taken/$part/status")
    # shellcheck disable=SC2046
    set -- $(echo "${line:-0 passed, 0 failed}" | tr -c '0-9\n' ' ')
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0}))
    [ "$line" ] && [ $(($2 > 0)) = $((status != 0)) ] ||
        { failed=$((failed + 1)) line="FAILED: ended with status $status and without its closing line"; }
    printf '  %-10s %s\n' "$part" "$line"
    [ "$status" = 0 ] || { grep -a '^FAIL' "$work/$part.log" | tail -n 5; tail -n 5 "$work/$part.log"; } | sed 's/^/      /'
done
finish
