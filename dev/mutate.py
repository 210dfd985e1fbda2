#!/usr/bin/env python3
"""Do the tests notice a fault? Plants the faults of dev/mutations.txt, one at a time, and runs the tests that should.

    make mutate                 all of them, at most 40 minutes on two cores; results in build/mutate/results.txt
    make mutate SAMPLE=30       so many of them, always the same ones, and no others are compiled in: a part of `make test`
    python3 dev/mutate.py --only 'schedule_prove|sampling'     those whose number or text matches
    python3 dev/mutate.py --again                              those that the last results do not have as noticed
    python3 dev/mutate.py --quick                              without the tests that are scripts, which take long
    python3 dev/mutate.py --check                              only whether each text still stands in its file once

All faults are compiled in at once (of a sample those of it), into a copy of the tree in build/mutate/tree: each old text becomes
`(mutant == 17 ? (new) : (old))`, or `{ if (mutant == 17) { new } else { old } }` where it ends in a semicolon. The
environment variable MUTANT chooses one; the sources of the project have no trace of it.

A fault is noticed if a test fails, the program crashes, or it takes far longer than without the fault. The lines of
dev/mutations.txt are explained at its head. Exit status 1 if less than 95 % are noticed, if a text does not stand
in its file exactly once, or if the tests fail without a fault.
"""
import argparse
import concurrent.futures
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "build", "mutate")
TREE = os.path.join(WORK, "tree")
LEAST = 0.95    # share that must be noticed
SEED = 13       # of the sample
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}

# The number of the fault, read from the environment before main. No header is included: what the sources define
# before theirs must still count.
HEADER = """static int mutant;
#ifdef __cplusplus
extern "C" char** environ;
#else
extern char** environ;
#endif
static void __attribute__((constructor)) mutant_read(void) {
    for (char** e = environ; e && *e; e++) {
        const char *p = *e, *name = "MUTANT=";
        while (*name && *p == *name) p++, name++;
        if (*name) continue;
        for (mutant = 0; *p >= '0' && *p <= '9'; p++) mutant = 10 * mutant + (*p - '0');
    }
}
"""

# Tests that are not groups of test_gpt2_sp.
SHELL = {
    "cli": "sh dev/test_cli.sh ./train_gpt2_sp ./json_keys",
    "processes": "sh dev/test_processes.sh ./train_gpt2_sp",
    "faults": "sh dev/test_faults.sh ./train_gpt2_sp",
    "host": "./test_gpt2_spcu host",
}


class Fault:
    """One line of the list. span: where in its file the old text stands."""

    def __init__(self, number, file, scope, old, new, reason, groups):
        self.number, self.file, self.scope, self.old, self.new = number, file, scope, old, new
        self.reason, self.groups, self.section, self.span = reason, groups, "", None

    def equivalent(self):
        return self.reason.startswith("equivalent:")

    def text(self):
        scope = f" {self.scope}" if self.scope else ""
        return f"{self.file}{scope}: {self.old} => {self.new or 'nothing'} ({self.reason})"

    def __str__(self):
        return f"{self.number:4} {self.text()}"


def stop(text):
    print(f"mutate: {text}")
    sys.exit(1)


def faults_read(path):
    faults, file, of_file, groups, scope = [], None, [], [], None
    for number, line in enumerate(open(path, encoding="utf-8"), 1):
        line = line.rstrip("\n")
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("== "):
            file, _, names = line[3:].partition(":")
            file, of_file, scope = file.strip(), names.split(), None
            groups = of_file
        elif line.startswith("@"):
            scope, _, names = line[1:].partition(":")
            scope, groups = scope.strip() or None, names.split() or of_file
        else:
            match = re.match(r"\s+(.*?) +=>(?: (.*?))? +## (.*?)(?: \[([\w -]+)\])?$", line)
            if not match or not file:
                stop(f"dev/mutations.txt:{number}: expected `    old => new  ## reason [groups]`: {line}")
            old, new, reason, own = match.groups()
            faults.append(Fault(len(faults) + 1, file, scope, old.strip(), (new or "").strip(), reason,
                                own.split() if own else groups))
    return faults


def scope_range(text, name):
    """The first and last place of the definition of a function, struct or macro that begins a line."""
    # of a definition, not of a prototype: its first stop is no semicolon
    head = re.search(rf"^(?!//|\s|\}})(#define {re.escape(name)}\b|.*\b{re.escape(name)}\()(?![^{{;]*;)", text, re.M)
    if not head:
        return None
    if head.group().startswith("#define"):
        end = re.compile(r"[^\\]\n").search(text, head.start())
        return head.start(), end.end()
    line = text[head.start():text.index("\n", head.start())]
    if line.endswith("}") and "{" in line:   # a function of one line
        return head.start(), head.start() + len(line)
    end = re.compile(r"^\}", re.M).search(text, head.end())
    return (head.start(), end.end()) if end else None


def place(fault, text):
    """Finds the old text; a blank in it stands for any white space. Returns what is wrong, or None."""
    begin, end = 0, len(text)
    if fault.scope:
        found = scope_range(text, fault.scope)
        if not found:
            return f"there is no {fault.scope} in {fault.file}"
        begin, end = found
    pattern = r"\s+".join(re.escape(word) for word in fault.old.split())
    if re.match(r"\w", fault.old):
        pattern = r"(?<!\w)" + pattern
    if re.search(r"\w$", fault.old):
        pattern += r"(?!\w)"
    found = [m.span() for m in re.compile(pattern).finditer(text, begin, end)]
    if len(found) != 1:
        return f"the text stands there {len(found)} times"
    fault.span = found[0]
    before = text.rfind("\n// ===== ", 0, fault.span[0])
    fault.section = fault.file + (", " + text[before + 10:text.index("\n", before + 1)].strip(" =") if before > 0 else "")
    return None


def planted(text, faults, begin, end):
    """The text from begin to end with these faults, which lie in it, planted. Faults of one span share a place; a
    fault may lie within another's old text."""
    out, at = "", begin
    faults = sorted(faults, key=lambda f: (f.span[0], -f.span[1], f.number))
    while faults:
        outer = faults[0].span
        same = [f for f in faults if f.span == outer]
        inner = [f for f in faults if f.span != outer and f.span[0] < outer[1]]
        for fault in inner:
            if fault.span[1] > outer[1]:
                stop(f"{fault}\n        overlaps {same[0]}")
        old = planted(text, inner, *outer)
        for fault in same:
            if fault.old.endswith(";"):
                old = f"{{ if (mutant == {fault.number}) {{ {fault.new} }} else {{ {old} }} }}"
            else:
                old = f"(mutant == {fault.number} ? ({fault.new}) : ({old}))"
        out += text[at:outer[0]] + old
        at = outer[1]
        faults = [f for f in faults if f.span[0] >= outer[1]]
    return out + text[at:end]


def tree_make(faults):
    """A copy of what git knows of the tree, with the faults planted. Files that are as they were keep their time."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = names.stdout.split("\n") if names.returncode == 0 else []
    names = [n for n in names if n and os.path.isfile(os.path.join(ROOT, n))]
    if not names:   # no git: everything but what is built
        for folder, folders, files in os.walk(ROOT):
            folders[:] = [f for f in folders if f not in ("build", "runs", ".git")]
            names += [os.path.relpath(os.path.join(folder, f), ROOT) for f in files]
    for name in names:
        source, target = os.path.join(ROOT, name), os.path.join(TREE, name)
        data = open(source, "rb").read()
        mine = [f for f in faults if f.file == name]
        if mine:
            text = data.decode()
            data = planted(text, mine, 0, len(text)).encode()
        if os.path.exists(target) and open(target, "rb").read() == data:
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as f:
            f.write(data)
        shutil.copymode(source, target)
    with open(os.path.join(TREE, "mutant.h"), "w", encoding="utf-8") as f:
        f.write(HEADER)


def build(commands):
    for command in commands:
        done = subprocess.run(command, cwd=TREE, shell=True, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stdout.split("\n") if "error" in line] or done.stdout.split("\n")
            stop("the faults do not compile:\n" + "\n".join(errors[:20]))


def compiles(text):
    return subprocess.run("nvcc -x cu - -E -o /dev/null", shell=True, input=text, text=True, capture_output=True,
                          check=False).returncode == 0


def limits():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)   # under nohup too: tests send it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, 1 << 31))


def run(group, number, whole_seconds=None):
    """Runs a group of tests with a fault planted. What noticed it, or None; and the time. Where the group took
    whole_seconds without a fault, it gets three times that and ten seconds, and each command of its scripts an eighth
    of it, at least 20 s."""
    command = SHELL.get(group, f"./test_gpt2_sp quick {group}")
    temporary = os.path.join(WORK, "t", f"{number}-{group}")
    os.makedirs(temporary, exist_ok=True)
    environment = dict(ENVIRONMENT, MUTANT=str(number), TMPDIR=temporary, OMP_WAIT_POLICY="passive")
    seconds = 900
    if whole_seconds is not None:
        seconds = 10 + 3 * whole_seconds
        environment["TEST_SECONDS"] = str(max(20, int(whole_seconds / 8)))
    start = time.time()
    process = subprocess.Popen(command, cwd=TREE, shell=True, env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=limits)
    late = threading.Event()

    def end():
        late.set()
        kill(process)

    timer = threading.Timer(seconds, end)
    timer.start()
    found = None
    for line in process.stdout:
        if line.startswith(b"FAIL"):
            found = line.decode(errors="replace").strip()[:150]
            break
    kill(process)
    if not found:
        status = process.wait()
        if late.is_set():
            found = f"still running after {seconds:.0f} s"
        elif status not in (0, -signal.SIGKILL):
            found = f"ended with status {status}"
    timer.cancel()
    process.stdout.close()
    process.wait()
    shutil.rmtree(temporary, ignore_errors=True)
    return found, time.time() - start


def kill(process):
    """Ends what a run has started and left. Without a failure the run has ended by itself: its output has."""
    if process.poll() is None:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Whole:
    """What the groups take without a fault, which they must pass. Each is run when it is first needed; one that
    fails three times, though it may only be that the machine is busy, is used no more."""

    def __init__(self):
        self.lock, self.locks, self.seconds, self.wrong = threading.Lock(), {}, {}, []

    def of(self, group):
        """Its seconds; None: it fails."""
        with self.lock:
            lock = self.locks.setdefault(group, threading.Lock())
        with lock:
            for _ in range(3):
                if group in self.seconds:
                    break
                found, seconds = run(group, 0)
                if not found:
                    self.seconds[group] = seconds
            if group not in self.seconds:
                self.seconds[group] = None
                self.wrong.append(f"without a fault, {group}: {found}")
                print(self.wrong[-1], flush=True)
        return self.seconds[group]


def try_fault(fault, whole):
    """Runs the fault's groups until one notices. (group, what it said, seconds)."""
    spent = 0.0
    for group in fault.groups:
        whole_seconds = whole.of(group)
        if whole_seconds is None:
            continue
        found, seconds = run(group, fault.number, whole_seconds)
        spent += seconds
        if found:
            return group, found, spent
    return None, "", spent


def report(results, seconds, broken):
    sections, noticed, total = {}, 0, 0
    for fault, group, _, _ in results:
        row = sections.setdefault(fault.section, [0, 0, 0])
        if fault.equivalent():
            row[2] += 1
            continue
        row[0] += group is not None
        row[1] += 1
        noticed, total = noticed + (group is not None), total + 1
    print(f"\n{'':52} noticed   of  equivalent")
    for name in dict.fromkeys(f.section for f, *_ in results):
        print("  {:50} {:7} {:4} {:11}".format(name, *sections[name]))
    survivors = [f for f, group, _, _ in results if group is None and not f.equivalent()]
    wrong = [f for f, group, _, _ in results if group is not None and f.equivalent()]
    for title, faults in (("not noticed", survivors), ("noticed, and said to be equivalent", wrong)):
        if faults:
            print(f"\n{title}")
            for fault in faults:
                print(fault)
    share = noticed / max(1, total)
    print(f"\n{noticed} of {total} noticed, {100 * share:.1f} %, at least {100 * LEAST:.0f} %, in {seconds:.0f} s")
    print("".join(line + "\n" for line in broken) +
          f"{noticed} passed, {total - noticed + len(wrong) + len(broken)} failed")
    return share >= LEAST and not wrong


def noticed_before():
    path, noticed = os.path.join(WORK, "results.txt"), set()
    lines = open(path, encoding="utf-8").read().split("\n") if os.path.exists(path) else []
    for line, then in zip(lines, lines[1:]):
        if re.match(r" *\d+ ", line) and not then.strip().startswith("NOT NOTICED"):
            noticed.add(line.split(None, 1)[1])
    return noticed


def select(faults, options):
    if options.again:
        before = noticed_before()
        faults = [f for f in faults if f.text() not in before]
    if options.only:
        return [f for f in faults if options.only == str(f.number) or
                re.search(options.only, f"{f.section} {f}")]
    if options.sample:   # not of the GPU program, which takes nvcc and minutes
        some = [f for f in faults if not f.equivalent() and f.file != "train_gpt2_sp.cu"]
        return sorted(random.Random(SEED).sample(some, min(options.sample, len(some))), key=lambda f: f.number)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int)
    parser.add_argument("--only")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    start = time.time()
    faults, lost = faults_read(os.path.join(ROOT, "dev", "mutations.txt")), []
    texts = {name: open(os.path.join(ROOT, name), encoding="utf-8").read() for name in {f.file for f in faults}}
    for fault in faults:
        wrong = place(fault, texts[fault.file])
        if wrong:
            lost.append(f"{fault}\n        {wrong}")
    if lost:
        stop("dev/mutations.txt no longer fits the sources:\n" + "\n".join(lost))
    chosen = select(faults, options)
    for fault in chosen:   # no script need show what the groups show
        if options.quick or fault.equivalent():
            fault.groups = [g for g in fault.groups if g not in SHELL or g == "host"]
    chosen = [f for f in chosen if f.groups]
    print(f"{len(faults)} faults, {sum(f.equivalent() for f in faults)} of them equivalent; {len(chosen)} to try")
    if options.check:
        return 0

    gpu = any(f.file == "train_gpt2_sp.cu" for f in chosen)
    if gpu and not shutil.which("nvcc"):
        print("skip    the GPU program's faults: nvcc is not installed")
        chosen, gpu = [f for f in chosen if f.file != "train_gpt2_sp.cu"], False
    tree_make(chosen if options.sample else faults)
    flags = "GPU= CFLAGS=-O1 EXTRA='-w -include mutant.h'"
    commands = [f"make -s {flags} train_gpt2_sp test_gpt2_sp", f"cc -O1 {ROOT}/dev/json_keys.c -o json_keys"]
    if gpu:   # what runs without a GPU; its code needs no more than to compile
        nccl = "-DGPT2_SP_NCCL -lnccl" if compiles("#include <nccl.h>") else ""
        commands.append("nvcc -O0 -w -std=c++17 -gencode=arch=compute_80,code=compute_80 -Xcicc -O0 -DATTN_HOPPER=0 "
                        "-Xcompiler -w,-fopenmp,-O1 -include mutant.h -x cu -DGPT2_SP_GPU test_gpt2_sp.c "
                        f"-o test_gpt2_spcu {nccl} -lcublasLt -lz -lm -lpthread")
    build(commands)
    print(f"built in {time.time() - start:.0f} s", flush=True)

    results, whole = [], Whole()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool, \
            open(os.path.join(WORK, "results.txt"), "a" if options.again else "w", encoding="utf-8") as out:
        futures = {pool.submit(try_fault, f, whole): f for f in chosen}
        for future in concurrent.futures.as_completed(futures):
            fault, (group, found, seconds) = futures[future], future.result()
            results.append((fault, group, found, seconds))
            out.write(f"{fault}\n      {group or 'NOT NOTICED'}, {seconds:.1f} s: {found}\n")
            out.flush()
            if len(results) % 25 == 0:
                print(f"  {len(results)} of {len(chosen)}, {time.time() - start:.0f} s", flush=True)
    results.sort(key=lambda r: r[0].number)
    enough = report(results, time.time() - start, whole.wrong)
    return 0 if enough and not whole.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
