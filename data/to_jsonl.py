#!/usr/bin/env python3
"""Writes tables and Hugging Face data sets as JSON lines to standard output, for `prepare`.

    python3 data/to_jsonl.py FILE.parquet FOLDER table.csv > corpus.jsonl
    python3 data/to_jsonl.py --columns text FILE.parquet | ./train_gpt2_sp prepare --out corpus.tok --input-format jsonl -
    python3 data/to_jsonl.py --dataset OWNER/NAME --split train --columns text | ./train_gpt2_sp prepare ...

A line is an object with the columns of a row: all that JSON can hold, or those of --columns, which must be there.
.parquet, .arrow, .feather, .csv and .tsv are read by pyarrow, a data set by datasets (streamed: nothing is kept).
Of a folder the files of these kinds are read, also in its folders, in the order of their names. Rows come one
batch at a time, so memory does not grow with the table.
"""
import argparse
import json
import os
import sys

KINDS = (".parquet", ".arrow", ".feather", ".csv", ".tsv")


def files(path):
    """The tables that a path stands for."""
    if not os.path.isdir(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
             if name.lower().endswith(KINDS)]
    if not found:
        sys.exit(f"to_jsonl.py: {path}: no file that ends in {', '.join(KINDS)}")
    return sorted(found)


def batches(path, columns):
    """The record batches of a table."""
    kind = os.path.splitext(path)[1].lower()
    if kind == ".parquet":
        import pyarrow.parquet as parquet
        yield from parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=columns)
    elif kind in (".arrow", ".feather"):
        import pyarrow as arrow
        with open(path, "rb") as file:
            framed = file.read(6) == b"ARROW1"
        with arrow.OSFile(path) as source:
            if framed:
                reader = arrow.ipc.open_file(source)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)
            else:
                yield from arrow.ipc.open_stream(source)
    elif kind in (".csv", ".tsv"):
        import pyarrow.csv as csv
        yield from csv.open_csv(path, parse_options=csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",",
                                                                     newlines_in_values=True))
    else:
        sys.exit(f"to_jsonl.py: {path}: expected a file that ends in {', '.join(KINDS)}")


def rows(arguments):
    """All rows, as dictionaries."""
    if arguments.dataset:
        import datasets
        for row in datasets.load_dataset(arguments.dataset, arguments.config, split=arguments.split, streaming=True):
            yield arguments.dataset, row
    for source in arguments.sources:
        for path in files(source):
            for batch in batches(path, arguments.columns):
                for row in batch.to_pylist():
                    yield path, row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("sources", nargs="*", metavar="FILE_OR_FOLDER")
    parser.add_argument("--columns", type=lambda text: text.split(","), help="columns to write, with commas between")
    parser.add_argument("--dataset", help="a data set of the Hugging Face hub, or a folder of one")
    parser.add_argument("--config", help="which of its configurations")
    parser.add_argument("--split", default="train", help="which of its splits [train]")
    arguments = parser.parse_args()
    if not arguments.sources and not arguments.dataset:
        parser.error("nothing to read: files, folders or --dataset NAME")
    try:
        for path, row in rows(arguments):
            lacks = [name for name in arguments.columns or [] if name not in row]
            if lacks:
                sys.exit(f"to_jsonl.py: {path}: no column {lacks[0]}; there are {', '.join(row)}")
            if arguments.columns:
                row = {name: row[name] for name in arguments.columns}
            else:   # bytes, pictures and their like are no JSON
                row = {name: value for name, value in row.items() if is_json(value)}
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                sys.exit(f"to_jsonl.py: {path}: {error}: choose other columns by --columns")
            sys.stdout.buffer.write(line.encode("utf-8", "surrogatepass") + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:   # who reads has ended, and says why
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (ImportError, OSError) as error:
        sys.exit(f"to_jsonl.py: {error}")
    return 0


def is_json(value):
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
