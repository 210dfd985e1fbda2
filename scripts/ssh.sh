#!/bin/sh
# A run over several machines with nothing but ssh: one process on each, all started from here.
#
#     HOSTS="node0 node1" sh scripts/ssh.sh --data books.tok --out runs/a --dp 2 --sp 2
#
#     PORT=29400                        where the first host listens for the others
#     PROGRAM=./train_gpt2_spcu         the same path on all machines, as are this folder and the data
#     SSH="ssh -o BatchMode=yes"        what starts a command on a host
#
# A host named twice gets two processes. Ctrl-C stops the run with a checkpoint: a signal to one process is heard by all.
set -eu
cd "$(dirname "$0")/.."
: "${HOSTS:?the machines of the run, the first one is the master}"
port=${PORT:-29400} ssh=${SSH:-ssh -o BatchMode=yes} program=${PROGRAM:-./train_gpt2_sp}
pid_file=/tmp/gpt2_sp-$port.pid   # on the first host, of process 0

# One word as the other side's shell will read it.
quote() { printf "'%s' " "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }
arguments=
for word; do arguments="$arguments$(quote "$word")"; done

world=0
for host in $HOSTS; do world=$((world + 1)); done
first=${HOSTS%% *} rank=0 started=
for host in $HOSTS; do
    record=
    [ $rank != 0 ] || record="echo \$\$ > $pid_file &&"
    $ssh "$host" "cd $(quote "$PWD")&& $record exec $(quote "$program")train --rank $rank --world $world --master $first:$port $arguments" < /dev/null &
    started="$started $!" rank=$((rank + 1))
done
# shellcheck disable=SC2064
trap "$ssh '$first' 'kill -TERM \$(cat $pid_file)' < /dev/null" INT TERM

status=0
for process in $started; do
    until wait "$process"; do
        code=$?
        if kill -0 "$process" 2> /dev/null; then continue; fi   # only the wait was interrupted
        status=$code
        break
    done
done
exit $status
