#!/usr/bin/env python3
"""Compares data/bpe.h, token for token, with tiktoken, tokenizers and transformers, where those are installed.

    python3 dev/check_tokenizer.py [--ranks FILE.tiktoken]... [--program ./train_gpt2_sp] [FOLDER of texts]

The texts: every character, marks, white space, line ends, long runs, mixtures of all that by chance, the
files FOLDER/*.txt, and bytes that are no UTF-8, whose oracle is regex. Without --ranks, files of GPT-2's and
cl100k's ranks are looked for in the installed packages. GPT-2's ranks are tried with every pattern. The last
table is MB/s of one core, both programs in one run, and with --program that of `prepare` on one and on all. Prints what it compares and what it skips; the last line is
`N passed, N failed[, N skipped]`.
"""
import argparse
import glob
import importlib
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{SUFFIXES}|{LETTERS}|\p{{N}}{{1,3}}|{REST}",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
              r"\s*[\r\n]|\s+(?!\S)|\s",
    "qwen2": rf"{SUFFIXES}|{LETTERS}|\p{{N}}|{REST}",
}
counts = {"passed": 0, "failed": 0, "skipped": 0}
TOOL = ""


def check(ok, name, figure):
    counts["passed" if ok else "failed"] += 1
    print("ok  " if ok else "FAIL", f"{name}: {figure}", flush=True)


def skip(name, why):
    counts["skipped"] += 1
    print(f"skip {name}: {why}")


def module(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def run(*arguments, text=b""):
    done = subprocess.run([TOOL, *arguments], input=text, capture_output=True)
    if done.returncode:
        sys.exit(f"check_tokenizer.py: {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def encode(ranks, pattern, text, what="encode"):
    return memoryview(run(what, ranks, pattern, text=text)).cast("I").tolist()


def encode_all(ranks, pattern, texts):
    """The tokens of each of many texts, in one process."""
    answer = run("batch", ranks, pattern, text=b"".join(struct.pack("=I", len(text)) + text for text in texts))
    numbers, lists, at = memoryview(answer).cast("I"), [], 0
    while at < len(numbers):
        lists.append(numbers[at + 1:at + 1 + numbers[at]].tolist())
        at += 1 + numbers[at]
    return lists


def first_difference(a, b):
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"first at token {at}: {a[at:at + 6]} here, {b[at:at + 6]} there"


def inputs(folder):
    """(name, text) of valid texts."""
    random.seed(1)
    planes = [chr(c) for c in range(1, 0x110000)   # of the planes where nothing is assigned, some
              if not 0xD800 <= c < 0xE000 and (c < 0x32400 or 0xE0000 <= c < 0xE0200 or c % 97 == 0)]
    spaces = [chr(c) for c in [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
                               0x205F, 0x3000, 0x200B, 0x180E, 0xFEFF, 0x1C, 0x1F]]
    yield "every character", "".join(planes)
    yield "every character behind a space", "".join(" " + c for c in planes)
    yield "every character between letters", "".join("a" + c for c in planes)
    yield "every character behind an apostrophe", "".join("'" + c + " " for c in planes[:0x2000])
    yield "marks", "".join(random.choice("aeou\u0301\u0308\u0327\u20dd \u0915\u093f\u094d\u0e01\u0e34") 
                            for _ in range(20000))
    yield "white space", "".join(random.choice(spaces + ["a", "1", "!"]) for _ in range(40000))
    for length in (1, 2, 3, 7):
        for end in ("", "x", "\n", "7", "!", "\u3000"):
            for space in (" ", "\n", "\r\n", "\t", "\u3000", "\u2028", " \n", "\n "):
                yield "white space at the end", "a" + space * length + end
    yield "line ends", "".join(random.choice(["\r\n", "\n", "\r", " ", "word", "12345", "!?", "\n\n"])
                                for _ in range(40000))
    suffixes = ["'s", "'S", "'\u017f", "'ll", "'LL", "'Ll", "'ve", "'Re", "'d", "'M", "'t", "'x", "'", " '", "''", "l",
                "re"]
    yield "suffixes", "".join(random.choice(suffixes + ["we", " ", "I", "!"]) for _ in range(40000))
    for what in ("a", " ", "\n", "0", "!", "\u00e9", "ab", "\u6f22", "-=", " \n"):
        yield f"a run of {what!r}", what * (100000 // len(what))
    yield "letters without a space", "".join(random.choice("etaoinshrdlu") for _ in range(200000))
    few = "aA1 \n\r\t'.,!\u00e9\u0301\u3000\u6f22\U0001f600\u0663\u00bdlsrvedtm"
    for size in range(1, 300):
        yield "a few characters by chance", "".join(random.choice(few) for _ in range(size))
    yield "characters by chance", "".join(random.choice(planes) for _ in range(100000))
    for path in sorted(glob.glob(os.path.join(folder, "*.txt"))) if folder else []:
        yield os.path.basename(path), open(path, encoding="utf-8", errors="strict", newline="").read()


def compare(name, texts, ours, theirs):
    """ours is the tokens of each of the texts, theirs the function that gives them."""
    total, bad = 0, []
    for (title, text), a in zip(texts, ours):
        b = theirs(text)
        total += len(b)
        if a != b:
            bad.append(f"{title} {text[:20]!r}: {first_difference(a, b)}")
    check(not bad and len(ours) == len(texts), name, f"{total} tokens of {len(texts)} texts, {len(bad)} texts differ" +
          "".join("\n     " + line for line in bad[:5]))


def against_tiktoken(tiktoken, label, ranks, pattern, texts):
    encoding = tiktoken.Encoding(label, pat_str=PATTERNS[pattern], special_tokens={"<|endoftext|>": 200000},
                                 mergeable_ranks=tiktoken.load.load_tiktoken_bpe(ranks))
    compare(f"{label} with {pattern} as tiktoken {tiktoken.__version__}", texts,
            encode_all(ranks, pattern, [text.encode() for _, text in texts]), encoding.encode_ordinary)
    return encoding


def against_hugging_face(label, ranks, pattern, texts, folder):
    run("save", ranks, pattern, folder)
    tokenizers, transformers = module("tokenizers"), module("transformers")
    tokens = encode_all(folder, "-", [text.encode() for _, text in texts])
    check(tokens == encode_all(ranks, pattern, [text.encode() for _, text in texts]),
          f"{label} with {pattern}, saved and read again, is the same", f"{len(texts)} texts")
    if tokenizers:
        theirs = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        compare(f"{label} with {pattern} as tokenizers {tokenizers.__version__}", texts, tokens,
                lambda text: theirs.encode(text, add_special_tokens=False).ids)
    else:
        skip(f"{label} with {pattern} as tokenizers", "tokenizers is not installed")
    if not transformers:
        skip(f"{label} with {pattern} as transformers", "transformers is not installed")
        return
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    few = slice(None, None, 8)   # the classes wrap tokenizers, which has had all the texts
    classes = [transformers.AutoTokenizer] + [transformers.GPT2TokenizerFast] * (pattern == "gpt2")
    for kind in classes:
        theirs = kind.from_pretrained(folder)
        compare(f"{label} with {pattern} as {kind.__name__} ({type(theirs).__name__})", texts[few], tokens[few],
                lambda text: theirs(text, add_special_tokens=False)["input_ids"])
        special = "one<|endoftext|> two<|endoftext|><|endoftext|>\n <|endoftext|"
        check(encode(folder, "-", special.encode(), "encode-special") == theirs(special)["input_ids"] and
              theirs.eos_token == "<|endoftext|>",
              f"{label} with {pattern}, special tokens and end token as {kind.__name__}", repr(special))
        saved = os.path.join(folder, "saved by " + kind.__name__)
        theirs.save_pretrained(saved)
        same = run("info", saved) == run("info", folder)
        check(same, f"{label} with {pattern}, what {kind.__name__} writes is read with the same fingerprint",
              run("info", saved).decode().strip())


def against_regex(tiktoken, encoding, label, ranks, pattern):
    """Bytes that are no UTF-8: each is a character of its own, as Python's surrogateescape has it."""
    regex = module("regex")
    if not regex:
        skip(f"{label} with {pattern} on bytes that are no UTF-8", "regex is not installed")
        return
    random.seed(2)
    texts = [bytes(random.choices(range(256), k=random.randrange(1, 400))) for _ in range(100)]
    texts += [bytes(random.choices(  # and more of what starts and ends characters
        b"a '\n1!\xc3\xa9\xe3\x80\xf0\x9f\xff", k=random.randrange(1, 60))) for _ in range(200)]
    bad = total = 0
    for text, tokens in zip(texts, encode_all(ranks, pattern, texts)):
        pieces = regex.findall(PATTERNS[pattern], text.decode("utf-8", "surrogateescape"))
        want = [token for piece in pieces
                for token in encoding._encode_single_piece(piece.encode("utf-8", "surrogateescape"))]
        total += len(want)
        bad += tokens != want
    check(bad == 0, f"{label} with {pattern} on bytes that are no UTF-8", f"{total} tokens of {len(texts)} texts, "
          f"{bad} differ")
    everything = b"".join(texts) + bytes(range(256)) * 64
    back = run("decode", ranks, pattern, text=run("encode", ranks, pattern, text=everything))
    check(back == everything, f"{label} with {pattern}: any bytes come back", f"{len(everything)} bytes")


def speed(encoding, ranks, pattern, label, folder):
    paths = sorted(glob.glob(os.path.join(folder, "*.txt"))) if folder else []
    lines = run("bench", ranks, pattern, *paths).decode().splitlines() if paths else []
    for path, line in zip(paths, lines):
        text, best = open(path, encoding="utf-8", newline="").read(), 1e30
        for _ in range(5):
            start = time.process_time()
            encoding.encode_ordinary(text)
            best = min(best, time.process_time() - start)
        here, there = float(line.split()[4]), len(text.encode()) / best / 1e6
        check(here >= there, f"{label}, {os.path.basename(path)}: as fast as tiktoken on one core",
              f"{here:.1f} MB/s here, {there:.1f} tiktoken, {here / there:.1f} times")


def speed_of_prepare(program, encoding, ranks, label, folder, scratch):
    """All of `prepare`, files to a compressed shard, against tiktoken's encoding alone, by the clock."""
    texts = [open(path, encoding="utf-8", newline="").read() for path in sorted(glob.glob(os.path.join(folder, "*.txt")))]
    corpus, out = os.path.join(scratch, "corpus"), os.path.join(scratch, "corpus.tok")
    os.mkdir(corpus)
    for i, text in enumerate(texts * 8):
        with open(os.path.join(corpus, f"{i:03}.txt"), "w", encoding="utf-8", newline="") as file:
            file.write(text)
    total, cores = 8 * sum(len(text.encode()) for text in texts), len(os.sched_getaffinity(0))
    for threads in sorted({1, cores}):
        here = there = 1e30
        for _ in range(3):   # in turn, so that both meet the same machine
            report = subprocess.run([program, "prepare", "--tokenizer", ranks, "--out", out, "--threads", str(threads),
                                     "--json", corpus], capture_output=True, check=True)
            report = json.loads(report.stdout)
            here = min(here, report["seconds"])
            start = time.perf_counter()
            tokens = encoding.encode_ordinary_batch(texts * 8, num_threads=threads)
            there = min(there, time.perf_counter() - start)
        count = sum(len(one) for one in tokens)
        check(report["out"]["tokens"] == count + len(tokens) and here <= there,
              f"{label}, {threads} thread{'s' * (threads > 1)}: prepare is as fast as tiktoken's encoding alone",
              f"{count / here / 1e6:.2f} million tokens/s, {total / here / 1e6:.1f} MB/s here; "
              f"{count / there / 1e6:.2f}, {total / there / 1e6:.1f} tiktoken; {there / here:.1f} times")


def find_ranks(given):
    """(label, path): files given, else those of installed packages."""
    found = []
    for path in given or [p for place in sys.path if os.path.isdir(place)
                          for p in glob.glob(os.path.join(place, "*", "**", "*.tiktoken"), recursive=True)]:
        lines = sum(1 for _ in open(path, "rb"))
        label = {50256: "gpt2", 100256: "cl100k"}.get(lines)
        if label and label not in [name for name, _ in found]:
            found.append((label, path))
    return found


def main():
    global TOOL
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--ranks", action="append", metavar="FILE.tiktoken")
    parser.add_argument("--program", help="of which the speed of `prepare` is measured too")
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    arguments = parser.parse_args()
    here = os.path.dirname(os.path.abspath(__file__))
    tiktoken = module("tiktoken.load") and module("tiktoken")
    ranks = find_ranks(arguments.ranks)
    with tempfile.TemporaryDirectory() as scratch:
        TOOL = os.path.join(scratch, "bpe_tool")
        subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", os.path.join(here, "bpe_tool.c"),
                        "-o", TOOL, "-lm"], check=True)
        if not ranks:
            skip("everything", "no ranks of GPT-2 here; name them by --ranks, or install a package that has them")
        for label, path in ranks:
            texts = list(inputs(arguments.folder))
            for pattern in PATTERNS if label == "gpt2" else [label]:
                encoding = None
                if tiktoken:
                    encoding = against_tiktoken(tiktoken, label, path, pattern, texts)
                    against_regex(tiktoken, encoding, label, path, pattern)
                else:
                    skip(f"{label} with {pattern} as tiktoken", "tiktoken is not installed")
                folder = os.path.join(scratch, f"{label} {pattern}")
                os.mkdir(folder)
                against_hugging_face(label, path, pattern, texts, folder)
                if encoding and pattern == label:
                    speed(encoding, path, pattern, label, arguments.folder)
                    if arguments.program and arguments.folder:
                        speed_of_prepare(arguments.program, encoding, path, label, arguments.folder, scratch)
                texts = [one for one in texts if not one[0].endswith(".txt")]   # once is enough
    print(f"{counts['passed']} passed, {counts['failed']} failed" +
          (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
    return counts["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
