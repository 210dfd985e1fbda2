#!/bin/sh
# Runs the commands of README.md's `console` blocks and compares what they print with what stands there.
#
#     sh dev/check_readme.sh              exit status 1, and the difference, if README.md is not up to date
#     sh dev/check_readme.sh --update     puts the outputs of today in their places
#
# In such a block every line that begins with `$ ./train_gpt2_sp` is a command, all others are output. Only commands whose output is
# the same on every machine stand in them; times and losses are in plain blocks, which this leaves alone.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
inside=no
while IFS= read -r line; do
    case $inside:$line in
    no:'```console') inside=yes ;;
    yes:'```') inside=no ;;
    yes:'$ ./train_gpt2_sp '*) printf '%s\n' "$line"; sh -c "${line#??}" 2>&1 < /dev/null || :; continue ;;
    yes:*) continue ;;
    esac
    printf '%s\n' "$line"
done < README.md > "$new"
if [ "${1:-}" = --update ]; then cat "$new" > README.md
else diff README.md "$new" && echo "README.md shows what its commands print"
fi
