# One row of attention by four ranks in a ring, in two passes and in one: awk -f softmax.awk
# A rank has two keys. score[i] is the query's product with key i, value[i] that key's value, here one number.
# A program would take the largest score out of every exp, as the first pass does, so that none overflows.
BEGIN {
    n = split("1 0 3 2 5 4 2 1", score, " ")
    split("1 2 3 4 5 6 7 8", value, " ")

    # Two passes. The first needs the keys: the largest score, and the sum of exp(score - largest).
    largest = score[1]
    for (i = 2; i <= n; i++) if (score[i] > largest) largest = score[i]
    for (i = 1; i <= n; i++) denominator += exp(score[i] - largest)
    # The second needs the keys again, and the values.
    for (i = 1; i <= n; i++) output += exp(score[i] - largest) / denominator * value[i]
    printf "two passes: largest score %d, denominator %.4f, then output %.4f\n", largest, denominator, output

    # One pass. Each chunk gives an output and a log-sum-exp of its own; two such pairs are merged into one.
    output = 0; lse = "none"
    for (chunk = 0; chunk < n / 2; chunk++) {
        i = 2 * chunk + 1
        part_lse = log(exp(score[i]) + exp(score[i + 1]))
        part = exp(score[i] - part_lse) * value[i] + exp(score[i + 1] - part_lse) * value[i + 1]
        merged = lse == "none" ? part_lse : log(exp(lse) + exp(part_lse))
        output = (lse == "none" ? 0 : output * exp(lse - merged)) + part * exp(part_lse - merged)
        lse = merged
        printf "one pass, after k%d: log-sum-exp %.4f, output %.4f\n", chunk, lse, output
    }
}
