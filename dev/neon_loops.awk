# Innermost loops with fused multiply-adds of whole registers, in assembly for AArch64: what `make` compiles, and whether it is vector code.
#
#     F="-std=c11 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -fopenmp"
#     aarch64-linux-gnu-gcc $F -march=armv8-a -S train_gpt2_sp.c -o build/neon.s
#     awk -f dev/neon_loops.awk build/neon.s
#
# A line for each such loop: its function, its fmla on .4s registers, its loads, its stores, all its instructions. Stores in
# a loop of a matrix product would be sums that the compiler spills.
/^[a-zA-Z_][a-zA-Z_0-9.]*:/ { name = $1; sub(/(\.[a-z_0-9.]*)?:/, "", name); label = ""; next }
/^\.L[0-9]+:/ { label = $1; sub(":", "", label); fmla = loads = stores = all = 0; next }
/^\t[a-z]/ {
    all++
    if ($1 == "fmla" && /\.4s/) fmla++
    if ($1 ~ /^ld/) loads++
    if ($1 ~ /^st/) stores++
    if ($1 ~ /^b/ && $NF == label && fmla > 0)
        printf "%s: %d fmla, %d loads, %d stores, %d instructions\n", name, fmla, loads, stores, all
}
