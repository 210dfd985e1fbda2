#!/usr/bin/env python3
"""Counts what STYLE asks of the sources: line width, comment share, length and parameters of functions, chains of
assignments, questions that have one answer, names in the documents. Exit status 1 if a bound is broken.

    python3 dev/house.py            a row for each file, and what is beyond its bound
    python3 dev/house.py FILE...    these files only
"""
import re
import sys

WIDTH, CHAIN, PARAMETERS, LAUNCHER_PARAMETERS = 110, 2, 10, 12
FILES = ["train_gpt2_sp.c", "train_gpt2_sp.cu", "test_gpt2_sp.c", "data/bpe.h", "data/html.h", "data/json.h",
         "data/modeling.h", "data/net.h", "data/prepare.h", "data/probe.h",
         "data/safetensors.h", "data/sha256.h", "data/svg.h", "data/synth.h", "data/text.h", "data/tok.h", "data/unicode.h",
         "dev/bpe_tool.c", "dev/test_bpe.h", "dev/test_data.h", "dev/test_evaluations.h", "dev/test_export.h", "dev/test_figures.h", "dev/test_gpu.h",
         "dev/test_gpu_products.h", "dev/test_gpu_ranks.h", "dev/test_library.h", "dev/test_net.h", "dev/test_pictures.h", "dev/test_pipelines.h", "dev/test_positions.h",
         "dev/test_prepare.h", "dev/test_rates.h",
         "dev/test_safetensors.h", "dev/test_sampling.h"]
LONGEST = {"test": 80, "train": 110}      # lines of a function in tests; in the programs
COMMENTS = {"train_gpt2_sp.c": 12, "train_gpt2_sp.cu": 12}   # percent of the lines, at least


def code_only(line):
    line = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'', '""', line)
    return re.sub(r"//.*|/\*.*?\*/", "", line)


def functions(lines):
    """(name, first line, last line, number of parameters, is a kernel or launches one)."""
    depth, start, found = 0, None, []
    head, head_start = "", 0
    for number, line in enumerate(lines, 1):
        code = code_only(line)
        if depth == 0 and not line.startswith("#"):
            if not head:
                head_start = number
            head += " " + code.strip()
        opened = code.count("{") - code.count("}")
        if depth == 0 and opened > 0 and not re.match(r"\s*(namespace|extern)\b", head):
            match = re.search(r"([\w~]+)\s*\(([^{]*)\)\s*(const)?\s*\{", head)
            start = (match.group(1), match.group(2), head_start) if match and "=" not in head.split("(")[0] else None
        if re.match(r"\s*(namespace \w+|extern \"\") \{", code):
            head = ""
            continue
        depth = max(0, depth + opened)
        if depth == 0:
            if start:
                inner = re.sub(r"\([^()]*\)|<[^<>]*>", "", start[1])
                count = 0 if inner.strip() in ("", "void") else inner.count(",") + 1
                body = "\n".join(lines[start[2] - 1:number])
                found.append((start[0], start[2], number, count, "__global__" in body or "<<<" in body))
                start = None
            if opened < 0 or code.rstrip().endswith((";", "}")):
                head = ""
    return found


def names_gone():
    """Names with an underscore that README.md and dev/REFERENCE.md put between backticks, and no source has."""
    sources = "".join(open(name, encoding="utf-8").read() for name in FILES)
    known = {"requires_grad", "test_gpt2_sp"}
    return [f"{document}: `{name}` is nowhere in the sources" for document in ("README.md", "dev/REFERENCE.md")
            for name in sorted(set(re.findall(r"`([a-z]+_[a-z_]*[a-z])`", open(document, encoding="utf-8").read())))
            if name not in sources and name not in known]


def main():
    names, broken = sys.argv[1:] or FILES, []
    print(f"{'file':26} {'lines':>6} {'functions':>9} {'median':>6} {'longest':>7} {'parameters':>10} {'wide':>5} "
          f"{'chains':>6} {'comments':>8}")
    for name in names:
        lines = open(name, encoding="utf-8").read().split("\n")
        all_functions = functions(lines)
        lengths = sorted(last - first + 1 for _, first, last, _, _ in all_functions) or [0]
        kind = "test" if "test" in name else "train"
        wide = [i for i, line in enumerate(lines, 1) if len(line) > WIDTH]
        chains = [i for i, line in enumerate(lines, 1)
                  if re.match(r"\s*[\w>.*\[\]()-]+ [-+*|&^]?= ", line) and code_only(line).rstrip().endswith((";", ","))
                  and len(re.findall(r"(?:^|, )[\w>.*\[\]()-]+ [-+*|&^]?= ", code_only(line).strip())) > CHAIN]
        comments = sum(bool(re.match(r"\s*(//|/\*|\*)", line)) for line in lines)
        share = 100 * comments / len(lines)
        most = max((f[3] for f in all_functions), default=0)
        print(f"{name:26} {len(lines):6} {len(all_functions):9} {lengths[len(lengths) // 2]:6} {lengths[-1]:7} {most:10} "
              f"{len(wide):5} {len(chains):6} {share:7.1f}%")
        broken += [f"{name}:{i}: {len(lines[i - 1])} columns" for i in wide]
        broken += [f"{name}:{i}: more than {CHAIN} assignments in a line" for i in chains]
        for function, first, last, parameters, launches in all_functions:
            if last - first + 1 > LONGEST[kind]:
                broken.append(f"{name}:{first}: {function} has {last - first + 1} lines, at most {LONGEST[kind]}")
            if parameters > (LAUNCHER_PARAMETERS if launches else PARAMETERS):
                broken.append(f"{name}:{first}: {function} has {parameters} parameters")
        if share < COMMENTS.get(name, 0):
            broken.append(f"{name}: {share:.1f} % of the lines are comments, at least {COMMENTS[name]}")
    if not sys.argv[1:]:
        broken += names_gone()
    print("\n".join(broken) or "all within")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
