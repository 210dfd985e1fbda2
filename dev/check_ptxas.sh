#!/bin/sh
# Reads what nvcc printed with -Xptxas -v and fails where a kernel is not what it should be.
#
#     sh dev/check_ptxas.sh build/nvcc.log [release of CUDA]
#
# 1. A C75xx line: the wgmma instructions of a kernel were put one after the other, which costs half of its speed in silence.
# 2. An attention kernel that spills more bytes of registers than the table below allows, or that is not in it.
# 3. No attention kernel at all: this is not such a log.
#
# The ptxas of CUDA before 12.8 does worse than the table whatever the source: there 1 and 2 are said and are no error.
set -eu
awk -v release="${2:-13.0}" '
BEGIN {   # kernel (D: columns that it is made for), architecture: bytes of spill stores, as ptxas of CUDA 13.0 makes them and a little more
    most["attention_forward 64", "sm_90a"] = 0;    most["attention_forward 64", "sm_80"] = 0   # no body on sm_80
    most["attention_forward 128", "sm_90a"] = 0;   most["attention_forward 128", "sm_80"] = 0
    most["attention_backward 64", "sm_90a"] = 96;  most["attention_backward 64", "sm_80"] = 0
    most["attention_backward 128", "sm_90a"] = 72; most["attention_backward 128", "sm_80"] = 0
    most["portable_forward 32", "sm_90a"] = 0;     most["portable_forward 32", "sm_80"] = 0
    most["portable_forward 64", "sm_90a"] = 16;    most["portable_forward 64", "sm_80"] = 16
    most["portable_forward 96", "sm_90a"] = 48;    most["portable_forward 96", "sm_80"] = 64
    most["portable_forward 128", "sm_90a"] = 24;   most["portable_forward 128", "sm_80"] = 32
    most["portable_backward 32", "sm_90a"] = 0;    most["portable_backward 32", "sm_80"] = 0
    most["portable_backward 64", "sm_90a"] = 64;   most["portable_backward 64", "sm_80"] = 80
    most["portable_backward 96", "sm_90a"] = 16;   most["portable_backward 96", "sm_80"] = 16
    most["portable_backward 128", "sm_90a"] = 32;  most["portable_backward 128", "sm_80"] = 32
}
# The lines of two architectures may come mixed, so each is known by the mangled name of its kernel.
/C75[0-9][0-9]/ { print "serialised: " $0; bad++ }
/Compiling entry function/ { split($0, quoted, "\047"); arch[quoted[2]] = quoted[4] }
/Function properties for/ { name = $NF }
/bytes spill stores/ && match(name, /(attention|portable)_(forward|backward)_kernelILi[0-9]+/) {
    kernel = substr(name, RSTART, RLENGTH)
    columns = kernel
    sub(/_kernel.*/, "", kernel)
    sub(/.*ILi/, "", columns)
    kernel = kernel " " columns
    spill = $0
    sub(/ bytes spill stores.*/, "", spill)
    sub(/.* /, "", spill)
    where = arch[name]
    seen++
    if (!((kernel, where) in most)) { print "no figure for " kernel " on " where; bad++ }
    else if (spill + 0 > most[kernel, where]) { print name " on " where " spills " spill " bytes, more than " most[kernel, where]; bad++ }
}
END {
    if (!seen) print "no attention kernel in this log"
    split(release, part, ".")
    if (bad && part[1] * 100 + part[2] < 1208) {
        print "CUDA " release " makes slower attention kernels than CUDA 12.8 and later ones"
        bad = 0
    }
    exit bad || !seen
}' "$1"
