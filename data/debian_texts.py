#!/usr/bin/env python3
"""Texts to pretrain a small model on, from Debian's packages: sources and documentation of the kernel, and manuals.

    python3 data/debian_texts.py --out train.jsonl.xz --held held.jsonl.xz [--megabytes 700] [--held-bytes 60000]

Downloads the packages (apt-get download, on a Debian or Ubuntu; nothing is installed), takes their text files out of
them, a document each, and leaves out what is no UTF-8, empty, there twice, or a table that packs to a tenth. About one
in HELD documents is held out, chosen by a hash of its name, so that the same files are held out whatever else is
taken. --megabytes: of text, in an order that a hash gives. --held-bytes: only documents of at least so many bytes are
held out for measuring, long contexts want long documents; shorter ones of the held-out share are left out. The lines are read by

    xz -dc train.jsonl.xz | ./train_gpt2_sp prepare --tokenizer gpt2.tiktoken --input-format jsonl --out train.tok -

Prints documents and bytes of both files. Needs Python alone, and xz for .deb files of that kind (dpkg-deb has it).
"""
import argparse
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib

PACKAGES = ["linux-source", "manpages", "manpages-dev", "glibc-source", "postgresql-doc-15", "perl-doc", "emacs-el"]
ENDINGS = (".c", ".h", ".S", ".rst", ".txt", ".md", ".dts", ".dtsi", ".py", ".pl", ".sh", ".el", ".pod", ".html", ".texi")
HELD = 64


def fail(text):
    sys.exit(f"debian_texts.py: {text}")


def run(*command, **how):
    done = subprocess.run(command, capture_output=True, **how)
    if done.returncode:
        fail(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def download(package, folder):
    """The path of the package's .deb. linux-source stands for the newest source that it depends on."""
    depends = run("apt-cache", "show", package).decode()
    newer = re.search(r"^Depends:.*?(linux-source-[0-9.]+)", depends, re.M)
    if package == "linux-source" and newer:
        package = newer.group(1)
    run("apt-get", "download", package, cwd=folder)
    found = [name for name in os.listdir(folder) if name.startswith(package + "_")]
    return os.path.join(folder, found[0]) if found else fail(f"{package}: nothing was downloaded")


def members(tar, depth=0):
    """(name, bytes) of the files of a tar, and of the tars in it."""
    for entry in tar:
        if not entry.isfile():
            continue
        if depth == 0 and re.search(r"\.tar\.(xz|gz|bz2)$", entry.name):
            with tarfile.open(fileobj=tar.extractfile(entry)) as inner:
                yield from members(inner, 1)
        elif entry.name.endswith(ENDINGS) or re.search(r"/man/man\d/[^/]*\.gz$", entry.name):
            data = tar.extractfile(entry).read()
            yield entry.name, gzip.decompress(data) if entry.name.endswith(".gz") else data


def text_of(name, data):
    """The text of a file; None where it is none. Of a page of HTML what stands between its tags."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if name.endswith(".html"):
        text = re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(script|style)\b.*?</\1>", "", text))
    table = len(zlib.compress(data, 1)) * 10 < len(data)   # as the thousands of registers of a graphics chip
    return text if text.strip() and "\0" not in text and not table else None


def documents(packages, folder):
    seen = set()
    for package in packages:
        contents = run("dpkg-deb", "--fsys-tarfile", download(package, folder))
        with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
            for name, data in members(tar):
                text, key = text_of(name, data), hashlib.sha256(data).digest()
                if text is not None and key not in seen:
                    seen.add(key)
                    yield f"{package}/{name}", text


def number(name, salt):
    return int.from_bytes(hashlib.sha256(f"{salt} {name}".encode()).digest()[:8], "big")


def write(path, chosen):
    with lzma.open(path, "wt", encoding="utf-8", preset=6) as out:
        for _, text in chosen:
            out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    size = sum(len(text.encode()) for _, text in chosen)
    print(f"{path}: {len(chosen)} documents, {size} bytes of text in {os.path.getsize(path)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--held", required=True)
    parser.add_argument("--megabytes", type=float, default=700)
    parser.add_argument("--held-megabytes", type=float, default=20)
    parser.add_argument("--held-bytes", type=int, default=0)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        every = sorted(documents(options.packages, folder), key=lambda one: number(one[0], "order"))
    for path, held, megabytes, least in ((options.held, True, options.held_megabytes, options.held_bytes),
                                         (options.out, False, options.megabytes, 0)):
        chosen, left = [], megabytes * 1e6
        for name, text in every:
            size = len(text.encode())
            if (number(name, "held") % HELD == 0) == held and left > 0 and size >= least:
                chosen.append((name, text))
                left -= size
        write(path, chosen)


if __name__ == "__main__":
    main()
