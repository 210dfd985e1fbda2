# The pairs that DistFlashAttention's Algorithm 2 leaves out: awk -f algorithm2.awk
# At step t worker p does its own pair (p, p - t) if p > t. Else it helps worker p - t + P, but not at the last
# step t = P/2, rounded down. Workers are counted from 1, as in the paper; the diagonal is step 0.
BEGIN {
    for (P = 2; P <= 9; P++) {
        for (p = 1; p <= P; p++) done[P, p, p]
        for (t = 1; t <= int(P / 2); t++)
            for (p = 1; p <= P; p++) {
                if (p > t) done[P, p, p - t]
                else if (t != int(P / 2)) done[P, p - t + P, p]
            }
        line = ""
        for (q = 1; q <= P; q++) for (k = 1; k <= q; k++) if (!((P, q, k) in done)) line = line " q" q "k" k
        print "P = " P ":" (line ? line : " none")
    }
}
