#!/bin/sh
# The manual page of the program, from what it says of itself: its commands, and the options that `COMMAND --help` lists.
#
#     sh dev/man.sh ./train_gpt2_sp > train_gpt2_sp.1
set -eu
program=$1
version=$($program --version | sed -n '1s/^gpt2_sp \([0-9.]*\).*/\1/p')
# Plain text for roff: no escape, no line that begins with a request.
plain() { sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^[.']/\\\\\&&/"; }

cat <<END
.TH TRAIN_GPT2_SP 1 "" "gpt2_sp $version" "User Commands"
.SH NAME
train_gpt2_sp, train_gpt2_spcu \\- train small GPT\\-2 models on long documents
.SH SYNOPSIS
.B train_gpt2_sp
[\\fICOMMAND\\fR] [\\fB\\-\\-\\fIoption value\\fR ...]
.SH DESCRIPTION
Turns text into token shards, trains a GPT\\-2 model on them, evaluates, samples from and exports it. A sequence can be split over several
ranks, so that a context may be longer than one of them has memory for. Without a command it trains.
.B train_gpt2_spcu
is the same program with the model's work done by GPUs; \\fItrain_gpt2_sp \\-\\-version\\fR tells what a program was built for.
.SH EXAMPLES
.nf
train_gpt2_sp prepare \\-\\-out books.tok book.txt folder/
train_gpt2_sp train \\-\\-data books.tok \\-\\-out runs/a \\-\\-seq\\-len 4096 \\-\\-sp 4
train_gpt2_sp sample \\-\\-from runs/a \\-\\-prompt "Once upon a time"
.fi
.SH COMMANDS
In brackets stands what holds where an option is not given. Whole numbers may end in k or m: times 1024 and 1024*1024.
END
$program --help | sed -n 's/^  \([a-z][a-z]*\)  *\(.*\)$/\1 \2/p' | while read -r command what; do
    printf '.SS %s\n%s.\n.PP\n.B train_gpt2_sp\n' "$command" "$(echo "$what" | plain)"
    $program "$command" --help | sed -n 's/^usage: [^ ]* //p' | plain
    $program "$command" --help | sed -n -e 's/^  \(--[^ ]*\) \([A-Z]*\) *\(.*\)/@\1 \2\n\3/p' -e 's/^      *//p' | plain |
        sed 's/^@\([^ ]*\) \(.*\)/.TP\n.BI "\1 " \2/'
done
cat <<END
.SH EXIT STATUS
0, or 1 after a line on standard error that says why. A run that a signal ends is saved and exits with 0.
.SH SEE ALSO
REFERENCE.md has formats, schedules, several processes and the library, and \\fIgpt2_sp.h\\fR a comment above each of its functions
(\\fBpkg\\-config \\-\\-cflags \\-\\-libs gpt2_sp\\fR).
END
