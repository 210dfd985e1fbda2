#!/usr/bin/env python3
"""Writes data/unicode.h: which characters are letters, numbers and white space, in the Unicode version below.

    python3 dev/make_unicode.py > data/unicode.h       the file
    python3 dev/make_unicode.py --compare              what tiktoken, Hugging Face's tokenizers and regex say, where
                                                       they are installed: how many code points differ

Letters and numbers are the general categories L* and N*. White space is the property White_Space: the categories
Z*, U+0009 to U+000D and U+0085. The version is that of the Rust regex that tiktoken 0.14 and tokenizers 0.23 are
built with, found by --compare. It needs a Python whose unicodedata has it (3.14), or
`pip install unicodedata2==16.0.0`.
"""
import sys

VERSION = "16.0.0"
OTHER, LETTER, NUMBER, SPACE = range(4)
HEAD = """// unicode.h: which characters are letters, numbers and white space, by Unicode {version}.
//
// Made by `python3 dev/make_unicode.py > data/unicode.h`; with --compare it says where the tables of other
// programs differ. Letters and numbers are the general categories L* and N*, white space is the property
// White_Space. Whatever is in no range is none of the three: marks, punctuation, symbols, controls, what is
// not assigned.

#ifndef GPT2_SP_UNICODE_H
#define GPT2_SP_UNICODE_H

#include <stdint.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

#define UNICODE_VERSION "{version}"

enum {{ UNICODE_OTHER = 0, UNICODE_LETTER = 1, UNICODE_NUMBER = 2, UNICODE_SPACE = 3 }};

typedef struct {{
    uint32_t first, last, kind;
}} unicode_range;

// {count} ranges in ascending order: {letters} letters, {numbers} numbers, {spaces} white space.
// clang-format off
GPT2_SP_LEAF const unicode_range UNICODE_RANGES[] = {{
"""
TAIL = """};
// clang-format on
enum { UNICODE_RANGE_COUNT = (int)(sizeof UNICODE_RANGES / sizeof UNICODE_RANGES[0]) };

#endif
"""


def database():
    """The module that has VERSION, or the end."""
    for name in ("unicodedata", "unicodedata2"):
        try:
            module = __import__(name)
        except ImportError:
            continue
        if module.unidata_version == VERSION:
            return module
    sys.exit(f"make_unicode.py: no Unicode {VERSION} here: Python 3.14 has it, or pip install unicodedata2=={VERSION}")


def kind_of(data, code):
    category = data.category(chr(code))
    if 9 <= code <= 13 or code == 0x85 or category[0] == "Z":
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(category[0], OTHER)


def write(kinds):
    ranges, first = [], 0
    for code in range(1, 0x110001):
        if code == 0x110000 or kinds[code] != kinds[first]:
            if kinds[first]:
                ranges.append((first, code - 1, kinds[first]))
            first = code
    print(HEAD.format(version=VERSION, count=len(ranges), letters=kinds.count(LETTER), numbers=kinds.count(NUMBER),
                      spaces=kinds.count(SPACE)), end="")
    line = "   "
    for one in ranges:
        item = " {0x%X, 0x%X, %d}," % one
        if len(line) + len(item) > 110:
            print(line)
            line = "   "
        line += item
    print(line)
    print(TAIL, end="")


def compare(kinds):
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    text = "".join(map(chr, codes))
    for pattern, kind in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)):
        ours = {code for code in codes if kinds[code] == kind}
        for name, find in (("tiktoken", by_tiktoken), ("tokenizers", by_tokenizers), ("regex", by_regex)):
            try:
                theirs, version = find(pattern, codes, text)
            except ImportError:
                print(f"skip {name}: not installed")
                continue
            differ = sorted(ours ^ theirs)
            print(f"{pattern:6} {len(ours):6} here, {len(theirs):6} in {name} {version}: {len(differ)} differ",
                  " ".join(f"U+{code:04X}" for code in differ[:8]))


def by_tiktoken(pattern, codes, text):
    import tiktoken
    ranks = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    kept = bytes(encoding.encode_ordinary(text)).decode()
    return set(map(ord, kept)), tiktoken.__version__


def by_tokenizers(pattern, codes, text):
    import tokenizers
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
    kept = "".join(piece for piece, _ in split.pre_tokenize_str(text))
    return set(codes) - set(map(ord, kept)), tokenizers.__version__


def by_regex(pattern, codes, text):
    import regex
    return set(map(ord, regex.findall(pattern, text))), regex.__version__


def main():
    data = database()
    kinds = [kind_of(data, code) for code in range(0x110000)]
    if "--compare" in sys.argv[1:]:
        compare(kinds)
    else:
        write(kinds)


if __name__ == "__main__":
    main()
