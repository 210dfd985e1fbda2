"""What the scripts read of a run of gpt2_sp: its log.jsonl and its run.cfg. Needs Python 3.8."""
import json
import os
import sys

# What a file of each ending has among its first bytes, if it is one that these scripts write.
BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b'<meta name="generator" content="gpt2_sp">'}


def output(path, *endings):
    """The path of a script's output, which replaces only its like; else the script ends with a line."""
    script, ending = os.path.basename(sys.argv[0]), os.path.splitext(path)[1].lower()
    if ending not in endings:
        sys.exit(f"{script}: --out {path}: its name must end in {' or '.join(endings)}")
    try:
        with open(path, "rb") as file:
            if BEGINNINGS[ending] not in file.read(200):
                sys.exit(f"{script}: --out {path}: a file that no script of gpt2_sp wrote is there, and stays")
    except FileNotFoundError:
        pass
    except OSError as error:
        sys.exit(f"{script}: --out {path}: {error.strerror}")
    return path


def needs(module):
    """Imports a module of a package, or ends the script with a line."""
    try:
        return __import__(module)
    except ImportError:
        sys.exit(f"{os.path.basename(sys.argv[0])}: needs {module}: python3 -m pip install {module}")


class Log:
    """The lines of a log that count, in the order of their steps, taken in as they come.

    rows: dicts, one a step. A line of a step that is there already replaces it and all later ones: the run went on from
    an earlier step. A validation before the first step of a launch is a line of its own, without a loss: its val_loss goes into the row
    of its step, if there is one. damaged: numbers of the lines that are no line of a log."""

    def __init__(self):
        self.rows, self.damaged, self.lines = [], [], 0

    def add(self, line):
        """Takes in one line, bytes."""
        self.lines += 1
        text = line.strip(b"\0\r\n ")
        if not text:
            return
        try:
            row = json.loads(text.decode("utf-8"))
            step = row["step"]
            if not isinstance(step, int) or not isinstance(row["tokens"], int) or not all(map(self.sound, row.values())):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            self.damaged.append(self.lines)
            return
        alone = "loss" not in row
        while self.rows and (self.rows[-1]["step"] > step or (self.rows[-1]["step"] == step and not alone)):
            self.rows.pop()
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] = dict(self.rows[-1], val_loss=row.get("val_loss"))
        else:
            self.rows.append(row)

    @staticmethod
    def sound(value):
        """Whether a log's line can hold the value: a number, or null for one that was not finite."""
        return value is None or (isinstance(value, (int, float)) and abs(value) < 1e300)

    def series(self, name):
        """The rows that have a finite number of this name."""
        return [row for row in self.rows if row.get(name) is not None]


class Follower:
    """Takes in a log as it grows. read() gives whether it changed; a log that became shorter or another file begins anew."""

    def __init__(self, run):
        self.path = log_path(run)
        self.start()

    def start(self):
        self.log, self.at, self.rest, self.file = Log(), 0, b"", None

    def read(self):
        """Takes in the whole lines that are there now. A log that is not there has none."""
        try:
            with open(self.path, "rb") as file:
                state = os.fstat(file.fileno())
                changed = self.file not in (None, state.st_ino) or state.st_size < self.at
                if changed:
                    self.start()
                self.file = state.st_ino
                file.seek(self.at)
                data = file.read()
        except FileNotFoundError:
            changed = self.at > 0
            self.start()
            return changed
        self.at += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.log.add(line)
        return changed or bool(lines)


def log_path(run):
    return os.path.join(run, "log.jsonl") if os.path.isdir(run) or not run.endswith(".jsonl") else run


def read_log(run):
    """The whole log of a run, a folder or its log's file. A last line without its end counts if it is whole.
    Raises OSError."""
    log = Log()
    with open(log_path(run), "rb") as lines:
        for line in lines:
            log.add(line)
    return log


def run_options(run):
    """The options of a run, as its run.cfg has them; none where there is no run.cfg."""
    path = os.path.join(os.path.dirname(log_path(run)), "run.cfg")
    options = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, equals, value = line.partition("=")
                if equals and not line.startswith("#"):
                    options[name.strip()] = value.strip()
    return options


def name_of(path):
    """What a run, a log or an evaluation's file is called: its folder's name, or the file's without `.json`."""
    path = os.path.abspath(path)
    name = os.path.basename(os.path.dirname(path) if path.endswith("log.jsonl") else path)
    return name[:-5] if name.endswith(".json") else name
