#!/bin/sh
# Runs the commands that stand in the documents and compares what they print with what stands below them.
#
#     sh dev/check_readme.sh [--long] [--update] [FILE...]      exit status 1, and differences, if one is not up to date
#     sh dev/check_readme.sh --folder FOLDER
#
#     --long       the blocks that are marked `long` too
#     --update     puts the outputs of today in their places
#     --folder F   makes a folder in which the commands may be typed, and does nothing else
#     FILE...      these instead of README.md, dev/REFERENCE.md, dev/RESULTS.md and dev/lecture.md
#
# In a block that begins with ```console every line that begins with `$ ` is a command, and so are the lines that follow
# it and begin with `> `. All others are output. The commands of a file run one after the other in one temporary folder,
# in which the programs, the sources and what is built lie under their names, and nothing else of the tree. What they
# print must be the same to the letter, unless words behind `console` say otherwise:
#
#     within X %   each number may differ by X percent; all else must be the same
#     measured     numbers are of one machine on one day and not compared; all else must be the same
#     long         needs more than a second or two, or ./test_gpt2_sp: run only with --long
#
# A block that begins with ```c FILE shows that file as it is. A picture FOLDER/NAME.svg beside the document FOLDER.md must
# be what a command of the document has written as NAME.svg.
set -eu
cd "$(dirname "$0")/.."
. dev/checks.sh
unset MAKEFLAGS MFLAGS MAKELEVEL
tree=$PWD long=no update=no

# Makes the folder $1, in which programs, sources and what is built lie under their names.
folder_make() {
    mkdir -p "$1"
    for entry in LICENSE Makefile README.md build data dev scripts train_gpt2_sp test_gpt2_sp *.c *.cu; do
        [ ! -e "$entry" ] || ln -sfn "$tree/$entry" "$1/$entry"
    done
}

while :; do
    case ${1:-} in
    --long) long=yes ;;
    --update) update=yes ;;
    --folder) folder_make "${2:?FOLDER}"; exit ;;
    -*) echo "check_readme.sh: no option $1" >&2; exit 1 ;;
    *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || set -- README.md dev/REFERENCE.md dev/RESULTS.md dev/lecture.md
[ -x train_gpt2_sp ] || { echo "check_readme.sh: build ./train_gpt2_sp first: make GPU=" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Takes the file $1 apart and prints how many commands it has: the Nth is $work/N.command, what stands below it N.want,
# the words behind `console` N.rule, and where it stands N.line. With $2 = 1: prints the file with the outputs N.put.
commands_of() {
    awk -v work="$work" -v today="${2:-0}" '
    function begin(command) {
        if (n) { close(work "/" n ".command"); close(work "/" n ".want") }
        name = work "/" ++n
        if (today) return
        print command > (name ".command"); printf "" > (name ".want")
        print rule > (name ".rule"); print NR > (name ".line")
        close(name ".rule"); close(name ".line")
    }
    function put(  line) {   # below the command: what it prints today
        if (today) while ((getline line < (name ".put")) > 0) print line
    }
    function text() { if (today) print }
    !inside && /^```console/ { inside = 1; part = "none"; rule = substr($0, 12); text(); next }
    !inside && /^```c / { inside = 1; rule = ""; text(); begin("cat " $2); part = "output"; put(); next }
    inside && /^[$] / { if (part == "command") put(); begin(substr($0, 3)); part = "command"; text(); next }
    inside && part == "command" && /^> / { if (!today) print substr($0, 3) > (name ".command"); text(); next }
    inside && part == "none" && $0 != "```" { begin("echo this block begins without a command") }
    inside && part == "command" { put() }
    inside && $0 == "```" { inside = 0; text(); next }
    inside { part = "output"; if (!today) print > (name ".want"); next }
    { text() }
    END { if (!today) print n + 0 }' "$1"
}

# Whether the file $2 is as $1 but for its numbers, of which each may differ by $3 percent; -1: by anything.
alike() {
    awk -v percent="$3" '
    function number(word) {   # the length of the number at its beginning, with brackets before it
        return match(word, /^[(]*[-+]?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?/) ? RLENGTH : 0
    }
    function value(word) { sub(/^[(]*/, "", word); return word + 0 }
    function differ(a, b,  i, j, d) {
        i = number(a); j = number(b)
        if (!i || !j) return a != b
        if (substr(a, i + 1) != substr(b, j + 1)) return 1
        d = value(substr(a, 1, i)) - value(substr(b, 1, j))
        if (d < 0) d = -d
        a = value(substr(a, 1, i))
        return percent >= 0 && d > (a < 0 ? -a : a) * percent / 100
    }
    NR == FNR { want[NR] = $0; lines = NR; next }
    {
        words = split(want[FNR], w)
        if (FNR > lines || words != NF) exit failed = 1
        for (i = 1; i <= NF; i++) if (differ(w[i], $i)) exit failed = 1
    }
    END { exit failed || FNR != lines }' "$1" "$2"
}

# Runs the command number $1 in the folder and compares.
same() {
    name=$work/$1
    (cd "$work/folder" && sh "$name.command") > "$name.got" 2>&1 < /dev/null || :
    cp "$name.want" "$name.put"
    case $(cat "$name.rule") in
    *within*) percent=$(sed 's/.*within *//;s/ *%.*//' "$name.rule") ;;
    *measured*) percent=-1 ;;
    *) percent= ;;
    esac
    if cmp -s "$name.want" "$name.got"; then return 0; fi
    if [ "$percent" ] && [ -s "$name.want" ] && alike "$name.want" "$name.got" "$percent"; then return 0; fi
    cp "$name.got" "$name.put"
    [ $update = yes ] || diff "$name.want" "$name.got"
}

# Whether the picture of this name was written, as it lies beside the document.
picture() {
    [ -e "$work/folder/${1##*/}" ] || { echo "no command writes it"; return 1; }
    cmp "$1" "$work/folder/${1##*/}" && return 0
    [ $update = yes ] && cp "$work/folder/${1##*/}" "$1"
}

for file; do
    rm -rf "${work:?}"/*
    folder_make "$work/folder"
    count=$(commands_of "$file") n=0 left=0
    while [ $n -lt "$count" ]; do
        n=$((n + 1))
        if [ $long = no ] && grep -q long "$work/$n.rule"; then
            cp "$work/$n.want" "$work/$n.put"
            left=$((left + 1))
        else check "$file:$(cat "$work/$n.line"): $(head -n 1 "$work/$n.command" | cut -c 1-90)" same $n
        fi
    done
    for svg in "${file%.md}"/*.svg; do
        [ ! -e "$svg" ] || check "$svg is what the command draws" picture "$svg"
    done
    [ $left = 0 ] || echo "$file: $left commands of blocks that are marked long are not run here (--long)"
    [ $update = no ] || { commands_of "$file" 1 > "$work/new" && cat "$work/new" > "$file"; }
done
finish
