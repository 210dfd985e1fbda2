#!/bin/sh
# Runs the commands of the `console` blocks of README.md, dev/REFERENCE.md and dev/RESULTS.md and compares what they print with what
# stands there.
#
#     sh dev/check_readme.sh              exit status 1, and the difference, if one of the files is not up to date
#     sh dev/check_readme.sh --update     puts the outputs of today in their places
#
# In such a block every line that begins with `$ ./train_gpt2_sp` is a command, all others are output. Only commands whose output is
# the same on every machine stand in them; times and losses are in plain blocks, which this leaves alone. A block that begins with
# ```c FILE shows that file as it is.
set -eu
cd "$(dirname "$0")/.."
files="README.md dev/REFERENCE.md dev/RESULTS.md"
[ -x train_gpt2_sp ] || { echo "check_readme.sh: build ./train_gpt2_sp first: make GPU=" >&2; exit 1; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT

# The file on standard input, with the outputs of today.
refresh() {
    inside=no
    while IFS= read -r line; do
        case $inside:$line in
        no:'```console') inside=yes ;;
        no:'```c '*) printf '%s\n' "$line"; cat "${line#???? }" < /dev/null; inside=yes; continue ;;
        yes:'```') inside=no ;;
        yes:'$ ./train_gpt2_sp '*) printf '%s\n' "$line"; sh -c "${line#??}" 2>&1 < /dev/null || :; continue ;;
        yes:*) continue ;;
        esac
        printf '%s\n' "$line"
    done
}

status=0
for file in $files; do
    refresh < "$file" > "$new"
    if [ "${1:-}" = --update ]; then cmp -s "$new" "$file" || cat "$new" > "$file"
    else diff "$file" "$new" || status=1
    fi
done
[ $status = 1 ] || [ "${1:-}" = --update ] || echo "$files show what their commands print"
exit $status
