"""Whether a page of scripts/report.py is sound, and has the figures of a run's last step.

    python3 dev/check_report.py PAGE RUN [RUN ...]

Prints the figures compared; the first fault ends it with status 1. dev/test_report.sh calls it.
"""
import html.parser
import json
import os
import sys

VOID = ("meta", "img", "br")


class Page(html.parser.HTMLParser):
    """The page's text by headings and cells, its images; faults: tags that do not match, things fetched from elsewhere."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.headings, self.rows, self.images, self.tags = [], [], [], [], [], set()
        self.viewport = False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "meta" and given.get("name") == "viewport":
            self.viewport = "width=device-width" in given.get("content", "")
        if tag == "img":
            self.images.append(given.get("src", ""))
            if not given.get("alt"):
                self.faults.append("an image without a text")
        if any(name.startswith("on") or (name in ("src", "href") and not value.startswith("data:")) for name, value in attributes):
            self.faults.append(f"<{tag}> refers to something outside the page")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings[-1] += data


def need(holds, what):
    if not holds:
        sys.exit(what)


def main():
    path, runs = sys.argv[1], sys.argv[2:]
    with open(path, encoding="utf-8") as file:
        written = file.read()
    page = Page()
    page.feed(written)
    page.close()
    need(not page.faults, page.faults[:1])
    need(not page.open, f"not closed: {page.open}")
    need(page.viewport, "no viewport")
    need(not page.tags & {"script", "link", "iframe", "object"}, "it needs more than itself")
    need("http:" not in written and "https:" not in written, "it refers to an address")
    need(all(image.startswith("data:image/svg+xml;base64,") for image in page.images), "an image that is not in the page")
    names = [os.path.basename(run) for run in runs]
    for name in names:
        need(name in page.headings[0], f"no {name} in the heading")
    # The table of the last step: its head names the runs, its rows are columns of log.jsonl.
    head = next((i for i, row in enumerate(page.rows) if row[0] == "log.jsonl"), None)
    need(head is not None and page.rows[head][1:] == names, "no table of the last step with the runs' names")
    compared = 0
    for place, run in enumerate(runs, 1):
        with open(os.path.join(run, "log.jsonl"), encoding="utf-8") as file:
            last = json.loads(file.read().splitlines()[-1])
        found = {row[0]: row[place] for row in page.rows[head + 1:head + 1 + len(last)]}
        for column, value in last.items():
            if column == "time":
                continue
            need(column in found and json.loads(found[column]) == value, f"{run}: {column} is {value}, the page has {found.get(column)}")
            compared += 1
    print(f"{len(page.images)} images, {compared} figures of {len(runs)} runs, {', '.join(page.headings[1:])}")


main()
