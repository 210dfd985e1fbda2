# How many messages a recorded step has, by the group of work in which each arrives: awk -f messages.awk TRACE
# (`train --trace TRACE` writes a line for each event).
function field(name) {   # the value behind "name":
    value = $0
    sub(".*\"" name "\": \"?", "", value)
    sub(/[",}].*/, "", value)
    return value
}
/"ph": "X"/ {
    rank = field("pid") + 0; begin = field("ts") + 0; end = begin + field("dur"); what = field("cat")
    if (what == "group") {
        n = ++groups[rank]
        name[rank, n] = field("name"); from[rank, n] = begin; to[rank, n] = end
    }
    if (what == "message" || what == "gather") {
        m = ++messages
        of[m] = rank; at[m] = (begin + end) / 2
    }
}
END {
    for (m = 1; m <= messages; m++) {
        inside = "nowhere"
        for (n = 1; n <= groups[of[m]]; n++)
            if (from[of[m], n] <= at[m] && at[m] <= to[of[m], n]) inside = name[of[m], n]
        count[inside]++
    }
    for (r in groups)
        for (n = 1; n <= groups[r]; n++)
            if (!(name[r, n] in count) && !seen[name[r, n]]++) quiet++
    for (group in count) printf "%-20s %4d messages\n", group, count[group] | "sort"
    close("sort")
    printf "the other %d groups   none\n", quiet
}
