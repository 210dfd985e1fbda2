#!/bin/sh
# The libraries as programs use them: built, installed, found, linked, run; against headers of other versions; from Python; packed.
#
#     sh dev/test_embed.sh        needs ./train_gpt2_sp and a C compiler; works in build/test/embed
#
# Everything is done with gcc and with clang, from C and from C++, with the shared and the static library, as far as they are there.
set -u
cd "$(dirname "$0")/.." || exit 1
. dev/checks.sh
make=${MAKE:-make}
work=$PWD/build/test/embed
warnings="-Wall -Wextra -Wpedantic -Werror"
kept=dev/abi/gpt2_sp-1.0.h
has() { command -v "$1" > /dev/null; }
rm -rf "$work" && mkdir -p "$work/before"

text=$work/text.tok base=$work/base/step_00000003
./train_gpt2_sp prepare --out "$text" LICENSE data > /dev/null &&
    ./train_gpt2_sp train --data "$text" --out "$work/base" --layers 2 --heads 2 --channels 32 --seq-len 128 --steps 3 > /dev/null || exit 1

# ----- the library and its header --------------------------------------------------------------------

soname() { readelf -d "$1" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p'; }

check "make lib builds the libraries and gpt2_sp.h" $make -s lib GPU=
version=$(sed -n 's/^#define GPT2_SP_VERSION "\(.*\)"/\1/p' gpt2_sp.h) major=
major=${version%%.*}
check "the version as text is that of its numbers" test "$version" = \
    "$(sed -n 's/^#define GPT2_SP_VERSION_[MP][A-Z]* //p' gpt2_sp.h | paste -sd .)"
check "the library exports its public functions and nothing else" exports_header libgpt2sp.so
check "its soname has the major version" test "$(soname libgpt2sp.so)" = "libgpt2sp.so.$major"
printf '#include <gpt2_sp.h>\nint main(void) { return gpt2_sp_options_new() == NULL; }\n' > "$work/alone.c"
for compiler in "gcc -std=c11" "clang -std=c11" "g++ -x c++ -std=c++17" "clang++ -x c++ -std=c++17"; do
    if has "${compiler%% *}"; then
        check "gpt2_sp.h alone: $compiler" $compiler $warnings -I. -c "$work/alone.c" -o "$work/alone.o"
    else skip "gpt2_sp.h alone: $compiler" "${compiler%% *} is not installed"
    fi
done

# ----- an installed tree -----------------------------------------------------------------------------

# Installed under one name, used under another: nothing in it may know where it was put.
tree="$work/a tree/opt"
listed() { (cd "$1" && find . ! -type d | sort); }
echo kept > "$work/before/file"
installed() {
    mkdir -p "$work/stage/opt/lib" && cp "$work/before/file" "$work/stage/opt/lib/file" &&
        $make -s install GPU= DESTDIR="$work/stage" PREFIX=/opt && mkdir "$work/a tree" && cp -a "$work/stage/opt" "$tree" && listed "$tree" | wc -l
}
check "make install puts programs, libraries, header and manual under DESTDIR and PREFIX" installed
check "make uninstall removes them and nothing else" sh -c '
    cd "$1" && $2 -s uninstall GPU= DESTDIR="$3/stage" PREFIX=/opt && test "$(cd "$3/stage" && find . ! -type d)" = ./opt/lib/file &&
    test ! -e "$3/stage/opt/lib/cmake/gpt2_sp" && test ! -e "$3/stage/opt/share/doc/gpt2_sp"' - "$PWD" "$make" "$work"
check "the installed program runs" "$tree/bin/train_gpt2_sp" --version
manual() {
    page="$tree/share/man/man1/train_gpt2_sp.1"
    for command in $(./train_gpt2_sp --help | sed -n 's/^  \([a-z]*\)  .*/\1/p'); do
        ./train_gpt2_sp "$command" --help | sed -n "s/^  --\([^ ]*\) .*/$command \1/p"
    done > "$work/options"
    awk '/^\.SS/ { command = $2 } /^\.BI/ { gsub(/[\\"]/, ""); sub(/^--/, "", $2); print command, $2 }' "$page" | diff "$work/options" - &&
        wc -l < "$work/options"
}
check "the manual has all options of all commands" manual
if has man; then
    check "the manual is right roff" sh -c 'complaint=$(man --warnings -l "$1" 2>&1 > /dev/null) && test -z "$complaint"' - \
        "$tree/share/man/man1/train_gpt2_sp.1"
else skip "the manual is right roff" "man is not installed"
fi

# What pkg-config says; without it, what it would say: the file has no more than these.
export PKG_CONFIG_PATH="$tree/lib/pkgconfig"
if has pkg-config; then
    flags() { pkg-config "$@" gpt2_sp; }
else
    skip "pkg-config reads gpt2_sp.pc" "pkg-config is not installed: the tests read it themselves"
    flags() {
        case $1 in --modversion) field=Version: ;; --cflags) field=Cflags: ;; --libs) field=Libs: ;; --variable=static) field=static= ;; esac
        sed -n "s|^$field *||p" "$tree/lib/pkgconfig/gpt2_sp.pc" |
            sed "s|\${libdir}|$tree/lib|g; s|\${includedir}|$tree/include|g; s| tree|\\\\ tree|g"
    }
fi
check "gpt2_sp.pc has the version" test "$(flags --modversion)" = "$version"

# Fine-tunes, goes on where it was, tells an error: PROGRAM, a name for its run.
works() {
    rm -rf "$work/run-$2"
    "$1" "$text" "$base" "$work/run-$2" 3 > "$work/$2.log" 2>&1 && tail -n 1 "$work/$2.log" | grep saved &&
        "$1" "$text" "$base" "$work/run-$2" 4 > "$work/$2.log" && test "$(grep -c '^step' "$work/$2.log")" = 1 &&
        ! "$1" "$text" nowhere "$work/run-$2-none" 3 2> "$work/$2.log" && grep -q '^--init-from nowhere: ' "$work/$2.log"
}
shared() { LD_LIBRARY_PATH="$tree/lib" works "$@"; }
# compiler and language, example, name, flags of linking
build() { eval "$1 -O1 $warnings $(flags --cflags) dev/$2 $4 -o '$work/$3'"; }
for pair in "gcc -std=c11:c" "clang -std=c11:c" "g++ -x c++ -std=c++17:c" "clang++ -x c++ -std=c++17:c" "g++ -std=c++17:cpp" \
    "clang++ -std=c++17:cpp"; do
    compiler=${pair%:*} example=example_embed.${pair##*:}
    name=$(echo "$compiler-$example" | tr -c 'a-z0-9+._\n' -)
    if has "${compiler%% *}"; then
        # -x c++ would take the libraries, too, for sources
        none= && [ "$compiler" = "${compiler%-x*}" ] || none='-x none'
        check "$compiler, $example, shared: it builds" build "$compiler" $example "$name-shared" "$none $(flags --libs)"
        check "$compiler, $example, shared: it works" shared "$work/$name-shared" "$name-shared"
        check "$compiler, $example, static: it builds" build "$compiler" $example "$name-static" "$none $(flags --variable=static)"
        check "$compiler, $example, static: it works without the library" works "$work/$name-static" "$name-static"
    else skip "$compiler, $example" "${compiler%% *} is not installed"
    fi
done

# Data, tensors and steps of the program's own: a cancelled step, a resumed run, a text that was learnt.
own_data() {
    rm -rf "$work/run-own"
    "$1" "$work/run-own" > "$work/own.log" && grep '^cancelled by the program' "$work/own.log" && grep '^goes on after step 100' "$work/own.log" &&
        grep '^the cat ' "$work/own.log"
}
own_again() { LD_LIBRARY_PATH="$tree/lib" "$1" "$work/run-own" > "$work/own.log" && ! grep '^goes on' "$work/own.log" && grep '^validation after step 200: ' "$work/own.log"; }
for pair in "cc -std=c11:" "c++ -x c++ -std=c++17:-x none"; do
    compiler=${pair%:*} none=${pair##*:}
    if has "${compiler%% *}"; then
        check "$compiler, example_own_data.c builds" build "$compiler" example_own_data.c own-static "$none $(flags --variable=static)"
        check "$compiler, example_own_data.c cancels, resumes and has learnt its sentence" own_data "$work/own-static"
        check "$compiler, example_own_data.c builds with the shared library" build "$compiler" example_own_data.c own-shared "$none $(flags --libs)"
        check "$compiler, example_own_data.c goes on with the other library" own_again "$work/own-shared"
    else skip "$compiler, example_own_data.c" "${compiler%% *} is not installed"
    fi
done

# CMake's way to the same, C and C++, shared and static.
cmake_project() {
    mkdir -p "$work/cmake" && cat > "$work/cmake/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.13)
project(embed C CXX)
find_package(gpt2_sp $1 REQUIRED)
foreach(language c cpp)
  add_executable(\${language}-shared $PWD/dev/example_embed.\${language})
  target_link_libraries(\${language}-shared PRIVATE gpt2_sp::gpt2_sp)
  add_executable(\${language}-static $PWD/dev/example_embed.\${language})
  target_link_libraries(\${language}-static PRIVATE gpt2_sp::static)
endforeach()
END
}
configure() { cmake -S "$work/cmake" -B "$work/cmake/$1" -DCMAKE_PREFIX_PATH="$tree" -DCMAKE_C_COMPILER="$1" -DCMAKE_CXX_COMPILER="$2" > "$work/cmake.log" 2>&1; }
for pair in "gcc g++" "clang clang++"; do
    cc=${pair% *} cxx=${pair#* }
    if has cmake && has "$cc" && has "$cxx"; then
        cmake_project "$major.0"
        check "CMake, $cc: find_package finds it" configure "$cc" "$cxx"
        check "CMake, $cc: the examples build" sh -c 'cmake --build "$1" > "$1.log" 2>&1' - "$work/cmake/$cc"
        for program in c-shared c-static cpp-shared cpp-static; do
            check "CMake, $cc: $program works" works "$work/cmake/$cc/$program" "cmake-$cc-$program"
        done
    else skip "CMake, $cc" "cmake, $cc or $cxx is not installed"
    fi
done
if has cmake; then
    for other in $((major + 1)).0 "$major.999"; do
        cmake_project "$other"
        check "CMake: version $other is not found" sh -c 'said=$(cmake -S "$1" -B "$1/other" -DCMAKE_PREFIX_PATH="$2" 2>&1) || echo "$said" | grep "requested version"' - \
            "$work/cmake" "$tree"
    done
fi

# ----- headers of other versions ---------------------------------------------------------------------

# A program that prints the numbers of the constants of header $1, and place and size of every member of its structs, as the header that
# it is compiled with has them. A struct may have no room at its end: there a later member would be taken for one that the caller knows.
layout() {
    printf '#include <gpt2_sp.h>\n#include <stdio.h>\nint main(void) {\n'
    { sed -n 's/^ *X(\([A-Z_0-9]*\), -*[0-9].*/GPT2_SP_\1/p' "$1"; sed -n '/^enum {.*};/s/[^A-Z_0-9]/\n/gp' "$1" | grep '^GPT2_SP_.*[A-Z]'
      echo GPT2_SP_TEXT; } | grep -v '^GPT2_SP_CODES*$' | sort -u | sed 's/.*/    printf("& %d\\n", (int)&);/'
    awk '
    { sub(/\/\/.*/, "") }
    /^typedef struct \{/ { inside = 1; body = ""; next }
    inside && /^\} [a-z0-9_]+;/ {
        type = substr($2, 1, length($2) - 1)
        inside = 0
        count = split(body, members, ";")
        for (i = 1; i < count; i++) {
            if (match(members[i], /\(\*[a-z_]+\)/)) members[i] = substr(members[i], RSTART + 2, RLENGTH - 3)
            many = split(members[i], names, ",")
            for (j = 1; j <= many; j++) {
                name = names[j]
                sub(/\[.*/, "", name)
                sub(/ *$/, "", name)
                sub(/.*[ *]/, "", name)
                printf "    printf(\"%s.%s %%zu %%zu\\n\", offsetof(%s, %s), sizeof((*(%s*)0).%s));\n", type, name, type, name, type, name
            }
        }
        printf "    printf(\"%s %%s\\n\", offsetof(%s, %s) + sizeof((*(%s*)0).%s) == sizeof(%s) ? \"is full\" : \"has room\");\n", type, type, name, type, name, type
    }
    inside { body = body " " $0 }' "$1"
    printf '    return 0;\n}\n'
}
# What the layouts of header $1 are where header $2 is; a folder for it.
laid_out() {
    mkdir -p "$work/$3" && cp "$2" "$work/$3/gpt2_sp.h" && layout "$1" > "$work/$3/layout.c" &&
        cc -I"$work/$3" "$work/$3/layout.c" -o "$work/$3/layout" && "$work/$3/layout"
}
# Header $1 where header $2 is: the same constants and structs, and functions that agree.
fits() {
    laid_out "$1" "$1" own > "$work/own.txt" && laid_out "$1" "$2" other > "$work/other.txt" && grep -q 'gpt2_sp_stats.loss 16 8' "$work/own.txt" &&
        diff "$work/own.txt" "$work/other.txt" && declared "$2" > "$work/declared" && test -z "$(declared "$1" | comm -23 - "$work/declared")" &&
        { echo '#include <gpt2_sp.h>'; awk '/^GPT2_SP_API/ { on = 1 } on { print } /;/ { on = 0 }' "$1"; } > "$work/other/functions.c" &&
        cc -Werror -I"$work/other" -c "$work/other/functions.c" -o "$work/other/functions.o" && wc -l < "$work/own.txt"
}
changed() {   # sed's command, in today's header: a program of version 1.0 cannot live with it
    sed "$1" gpt2_sp.h > "$work/changed.h" && ! cmp -s gpt2_sp.h "$work/changed.h" && ! fits $kept "$work/changed.h" > /dev/null 2>&1
}
check "constants, structs and functions of version 1.0 are those of today" fits $kept gpt2_sp.h
check "no struct but the failure has room at its end for what would be taken for a member" \
    sh -c 'grep "has room" "$1" | grep -vx "gpt2_sp_failure has room"; test $? = 1' - "$work/own.txt"
check "a struct that lost a member is found" changed '/double grad_norm;/d'
check "members that changed places are found" changed '/double ms;/d; s/double tok_per_s;/double tok_per_s; double ms;/'
check "a member of another size is found" changed 's/int64_t top_k;/int32_t top_k, unused;/'
check "a code of another number is found" changed 's/X(NO_MEMORY, -3/X(NO_MEMORY, -33/'
check "an argument of another type is found" changed 's/int64_t sequences, double/int32_t sequences, double/'
check "a function that is gone is found" changed '/^GPT2_SP_API int gpt2_sp_save/d'
if [ "${version%.*}" = 1.0 ]; then
    plain() { sed -e 's://.*::' -e 's/ *$//' -e '/^#define GPT2_SP_VERSION/d' -e '/^ \{0,1\}[/]*[*]/d' -e '/^$/d' "$1"; }
    plain gpt2_sp.h > "$work/plain.h"
    check "what today's header has more than $kept raises the minor version" sh -c 'diff "$1" -' - "$work/plain.h" <<END
$(plain $kept)
END
fi

# A program of version 1.0, with the library of today and with a later one: another option, more in every struct.
mkdir -p "$work/1.0" && cp $kept "$work/1.0/gpt2_sp.h"
cat > "$work/old.c" <<'END'
#include <gpt2_sp.h>
#include <stdio.h>
#include <string.h>
// A step, a sample and a tensor's name by a program whose structs are those of version 1.0, with other memory right behind them.
int main(int argc, char** argv) {
    struct { gpt2_sp_stats it; unsigned char behind[256]; } stats;
    struct { gpt2_sp_sampling it; unsigned char behind[256]; } how;
    struct { gpt2_sp_tensor it; unsigned char behind[256]; } tensor;
    gpt2_sp_options* o = gpt2_sp_options_new();
    int32_t prompt = 84, out[4];
    int kept = 0;
    char more[64] = "none";
    gpt2_sp_failure failure;
    memset(&stats, 77, sizeof stats), memset(&how, 77, sizeof how), memset(&tensor, 77, sizeof tensor);
    stats.it.size = sizeof stats.it, how.it.size = sizeof how.it, tensor.it.size = sizeof tensor.it;
    if (argc < 3 || gpt2_sp_set(o, "data", argv[1], &failure) != 0 || gpt2_sp_set(o, "init-from", argv[2], &failure) != 0) return 1;
    gpt2_sp_get(o, "novelty", more, sizeof more, NULL);
    gpt2_sp* trainer = gpt2_sp_create(o, &failure);
    if (!trainer) return fprintf(stderr, "%s\n", failure.text), 1;
    int status = gpt2_sp_step(trainer, &stats.it) | gpt2_sp_sampling_defaults(&how.it) | gpt2_sp_tensor_info(trainer, 0, &tensor.it);
    long long drawn = gpt2_sp_generate(trainer, &prompt, 1, out, 4, &how.it);
    for (int i = 0; i < 256; i++) kept += (stats.behind[i] == 77) + (how.behind[i] == 77) + (tensor.behind[i] == 77);
    printf("%s: status %d, step %d, loss %d, %lld tokens, %s, %d of 768 bytes behind kept, novelty %s\n", gpt2_sp_version(), status,
        (int)stats.it.step, stats.it.loss > 0 && stats.it.loss < 10, drawn, tensor.it.name, kept, more);
    gpt2_sp_destroy(trainer);
    gpt2_sp_options_free(o);
    return 0;
}
END
old_program() { cc -O1 $warnings -I"$work/1.0" "$1" -L. -lgpt2sp -o "$work/$2"; }
check "the example compiles against the header of version 1.0" old_program dev/example_embed.c old-example
check "it runs with the library of today" shared "$work/old-example" old-example
check "a program of version 1.0 compiles" old_program "$work/old.c" old
told() { LD_LIBRARY_PATH="$1" "$work/old" "$text" "$base" | tee "$work/told" && grep -Fq ": status 0, step 1, loss 1, 4 tokens, transformer.wte.weight, 768 of 768 bytes behind kept, novelty $2" "$work/told"; }
check "it works with the library of today" told . none
later() {
    mkdir -p "$work/later" && ln -sf "$PWD/data" "$work/later/data" &&
        sed -e 's/^#define GPT2_SP_VERSION "1\.[0-9.]*"/#define GPT2_SP_VERSION "1.999.0"/' \
            -e 's/^    TXT(model, "model",/    INT(novelty, "novelty", 7, 0, 9, TRAIN, "an option of a later version") \\\n&/' \
            -e '/HEADER ENDS HERE/,$!{/gpt2_sp_failure;/!s/^} gpt2_sp_[a-z]*;/    double later[8];\n&/}' train_gpt2_sp.c > "$work/later/train_gpt2_sp.c" &&
        cc -std=c11 -O0 -fPIC -fvisibility=hidden -fopenmp-simd -DGPT2_SP_NO_MAIN -shared -Wl,-soname,"libgpt2sp.so.$major" \
            "$work/later/train_gpt2_sp.c" -o "$work/later/libgpt2sp.so.$major" -lz -lm -lpthread
}
check "a later library builds" later
check "a program of version 1.0 works with a later library" told "$work/later" 7

# ----- from Python -----------------------------------------------------------------------------------

# A python3 with numpy: the one that there is, or one of its own.
python=$PWD/build/test/numpy/bin/python
! python3 -c 'import numpy' 2> /dev/null || python=python3
[ $python = python3 ] || $python -c 'import numpy' 2> /dev/null ||
    { python3 -m venv build/test/numpy && build/test/numpy/bin/pip install -q numpy; } > "$work/pip.log" 2>&1
if $python -c 'import numpy' 2> /dev/null; then
    check "example_plot.py trains" "$python" -B dev/example_plot.py "$text" "$work/run-python" 12
    check "it goes on" sh -c '"$1" -B dev/example_plot.py "$2" "$3" 13 | grep -c "^step 13" | grep -x 1' - "$python" "$text" "$work/run-python"
    check "it tells an error with its code" sh -c 'said=$("$1" -B dev/example_plot.py "$2" "$3" 5 2>&1) || echo "$said" | grep "(GPT2_SP_FILE)$"' - "$python" nowhere.tok "$work/run-none"
    check "gpt2_sp.py, installed" env PYTHONPATH="$tree/share/gpt2_sp" "$python" -B dev/test_python.py "$text" "$base"
else skip "gpt2_sp.py" "there is no python3 with numpy, and none can be made: $(tail -n 1 "$work/pip.log")"
fi

# ----- what is packed --------------------------------------------------------------------------------

packed() {   # folder: unpacked, without a network where that can be had, it makes the program and the libraries
    mkdir "$1" && tar -xzf "build/gpt2_sp-$version.tar.gz" -C "$1" &&
        $offline env -u MAKEFLAGS $make -s -C "$1/gpt2_sp-$version" GPU= CFLAGS=-O0 train_gpt2_sp lib && "$1/gpt2_sp-$version/train_gpt2_sp" --version |
        grep "$(git rev-parse HEAD | cut -c 1-12)"
}
if has git && git rev-parse HEAD > /dev/null 2>&1; then
    offline= && ! unshare -rn true 2> /dev/null || offline='unshare -rn'
    check "make dist packs the sources" $make -s dist
    cp "build/gpt2_sp-$version.tar.gz" "$work/first.tar.gz"
    check "packed again they are the same bytes" sh -c 'sleep 1; "$1" -s dist > /dev/null && cmp "$2" "$3"' - "$make" "$work/first.tar.gz" "build/gpt2_sp-$version.tar.gz"
    check "they build${offline:+ without a network}, and know their commit" packed "$work/packed"
else skip "make dist" "this is no git repository"
fi
finish
