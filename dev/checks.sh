# checks.sh: what the shell tests share; they read it with `. dev/checks.sh`. POSIX sh.
#
# shellcheck shell=sh
#     check NAME COMMAND...    counts a result: passed if the command succeeds; its output is the detail
#     skip NAME REASON         counts a test that cannot be made here
#     exports_header LIBRARY   whether it exports the functions of gpt2_sp.h and nothing else; prints how many
#     finished                 waits for the processes $pids, at most $patience seconds: $statuses of all, $seconds that it took
#     finish                   prints `N passed, N failed[, N skipped]` and exits, 1 if any failed
passed=0 failed=0 skipped=0

check() {
    checked=$1
    shift
    if detail=$("$@" 2>&1); then passed=$((passed + 1)) verdict=ok; else failed=$((failed + 1)) verdict=FAILED; fi
    printf '%-6s  %s%s\n' "$verdict" "$checked" "${detail:+: $detail}"
}

skip() {
    skipped=$((skipped + 1))
    printf 'skip    %s: %s\n' "$1" "$2"
}

declared() { sed -n 's/^GPT2_SP_API .*[ *]\(gpt2_sp_[a-z_0-9]*\)(.*/\1/p' "$1" | sort; }
exports_header() {
    nm -D --defined-only "$1" | sed -n 's/.* [A-Z] //p' | sort > build/test/exported &&
        declared gpt2_sp.h | diff build/test/exported - && wc -l < build/test/exported
}

# shellcheck disable=SC2086,SC2034
finished() {
    statuses='' began=$(date +%s)
    ( sleep $patience && kill -9 $pids ) > /dev/null 2>&1 &
    guard=$!
    for p in $pids; do
        wait $p 2> /dev/null
        statuses="$statuses $?"
    done
    kill $guard 2> /dev/null
    wait $guard 2> /dev/null
    seconds=$(($(date +%s) - began))
}

finish() {
    printf '%d passed, %d failed' "$passed" "$failed"
    [ "$skipped" = 0 ] || printf ', %d skipped' "$skipped"
    printf '\n'
    exit "$((failed > 0))"
}
