# What each rank computes of attention's forward pass in a recorded step: awk -v expected=RATIO -f work.awk TRACE
# An op takes what it took in the layer where it was fastest, for other work on the machine makes it only slower.
# A unit is the mean time of the full pairs: all but the diagonal (q0 k0, q1 k1, ...) and those that two ranks share.
function field(name) {   # the value behind "name":
    value = $0
    sub(".*\"" name "\": \"?", "", value)
    sub(/[",}].*/, "", value)
    return value
}
/"cat": "layer", "name": "layer [0-9]+ forward"/ && field("pid") == 0 { layers[field("name")] }
/"cat": "op"/ && !/backward/ {
    rank = field("pid") + 0; pair = field("name"); took = field("dur") + 0
    ops[rank, pair]++
    if (rank > last) last = rank
    if (!((rank, pair) in fastest) || took < fastest[rank, pair]) fastest[rank, pair] = took
}
END {
    for (l in layers) L++
    for (key in ops) { split(key, part, SUBSEP); owners[part[2]]++ }
    for (key in ops) {
        split(key, part, SUBSEP)
        split(part[2], chunk, " ")
        per_rank[part[1]] += ops[key] / L
        work[part[1]] += fastest[key] * ops[key] / L
        if (owners[part[2]] == 1 && substr(chunk[1], 2) != substr(chunk[2], 2)) {
            full += fastest[key]
            pairs++
        }
    }
    for (r = 0; r <= last; r++) {
        units = work[r] / (full / pairs)
        if (r == 0 || units > most) most = units
        if (r == 0 || units < least) least = units
        printf "rank %d: %d ops a layer, %.2f units\n", r, per_rank[r], units
    }
    ratio = most / least / expected
    printf "busiest to idlest: expected %g, measured %.1f, within a factor of two: %s\n",
        expected, most / least, (ratio > 0.5 && ratio < 2 ? "yes" : "no")
}
