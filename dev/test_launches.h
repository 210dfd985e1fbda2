/*
 * Launches of `train` as a user makes them, in a tenth of the time that dev/test_cli.sh takes: what is saved and
 * kept, what ends a run, and what is refused before it begins. test_gpt2_sp.c includes this file.
 *
 * Held: the best validation is known, kept and found again, however the run goes on; a run ends when it was told
 * to, and not before; options of several processes and a model that no machine holds are refused in a line.
 */

// A run of one layer whose validations get worse: it learns one text by heart, and is validated on another. The
// command line up to --steps.
typedef struct {
    char line[2048], out[512], other[512];   // `other`: the data that it is validated on
} Habit;

static void habit_shard(char out[512], const char* name, const char* sentence, int count) {
    char text[512];
    snprintf(text, sizeof text, "%s.txt", scratch(name));
    snprintf(out, 512, "%s.tok", scratch(name));
    FILE* f = fopen(text, "w");
    for (int i = 0; f && i < count; i++) fputs(sentence, f);
    if (f) fclose(f);
    command("prepare --out %s %s", out, text);
}

static void habit_make(Habit* h) {
    char learnt[512];
    habit_shard(
        learnt, "habit_learnt", "It was the best of times, it was the worst of times. 0123456789\n", 200);
    habit_shard(
        h->other, "habit_other", "Call me Ishmael; some years ago, never mind how long precisely.\n", 40);
    snprintf(h->out, sizeof h->out, "%s", scratch("habit"));
    remove_tree(h->out);
    snprintf(h->line, sizeof h->line,
        "train --data %.400s --val-data %.400s --out %.400s --layers 1 --heads 1 --channels 16 --seq-len 32 "
        "--threads 1 "
        "--val-sequences 2 --val-every 2 --lr 3e-2 --lr-schedule constant",
        learnt, h->other, h->out);
}

// How often a text stands in what the last command printed. A validation is `  val ` in its step's line; the line
// of the best has it too.
static int command_count(const char* text) {
    int count = 0;
    for (const char* at = command_out; (at = strstr(at, text)) != NULL; at += strlen(text)) count++;
    return count;
}

static int habit_has(const Habit* h, int step) {
    char path[600];
    snprintf(path, sizeof path, "%.500s/step_%08d", h->out, step);
    return access(path, F_OK) == 0;
}

// The best validation of a run that ends by --patience, which it finds by the log's figures; what RUN:best
// names; and how the run goes on.
static void launches_best(void) {
    Habit h;
    int best = -1, ended = -1;
    habit_make(&h);
    int status = command("%s --steps 400 --patience 3", h.line);
    const char* end = strstr(command_out, "stopped early at step ");
    if (end)
        sscanf(end,
            "stopped early at step %d: none of the last 3 validations was better than that of step %d",
            &ended, &best);
    check(status == 0 && best > 0 && ended == best + 6 && habit_has(&h, best) && habit_has(&h, ended) &&
            !habit_has(&h, best + 2),
        "launches: --patience ends a run, and the best stays beside the newest",
        "best %d, ended %d, status %d", best, ended, status);
    double losses[2] = {0, 1};
    char step[600], mine[600], again[512];
    snprintf(step, sizeof step, "%.500s/step_%08d", h.out, best);
    for (int i = 0; i < 2; i++) {
        command("eval --from %s%s --data %s --val-sequences 2 --json --threads 1", i ? step : h.out,
            i ? "" : ":best", h.other);
        json_get_double(command_out, strlen(command_out), "loss", &losses[i]);
    }
    check(losses[0] == losses[1], "launches: RUN:best is the model of the best validation", "%.6f, %.6f",
        losses[0], losses[1]);
    snprintf(mine, sizeof mine, "%.500s/mine:best", h.out);
    int named = rename(step, mine) == 0 &&
        command("sample --from %s --length 2 --threads 1 --prompt It", mine) == 0 && rename(mine, step) == 0;
    check(named, "launches: a folder whose name ends in :best is that folder", "%.60s", command_out);
    status = command("%s --steps %d --patience 30 --save-every 1", h.line, ended + 4);
    check(status == 0 && habit_has(&h, best) && habit_has(&h, ended + 4) && !habit_has(&h, ended),
        "launches: the best stays, however many are newer", "best %d, newest %d", best, ended + 4);
    remove_tree(step);
    snprintf(again, sizeof again, "eval --from %.400s:best --data x", h.out);
    int refused = told_by(again, "whose checkpoint is not whole");
    status = command("%s --steps %d --val-sequences 3 --patience 30", h.line, ended + 6);
    check(refused && status == 0 && command_count("  val ") == 2,
        "launches: validations of other data count anew", "%d validations", command_count("  val "));
}

// When a run saves, is validated and ends.
static void launches_ends(void) {
    Habit h;
    habit_make(&h);
    int status = command("%s --steps 5 --save-every 2 --keep 9 --keep-best 0 --val-every 9", h.line),
        folders = 0;
    for (int i = 1; i <= 5; i++) folders |= habit_has(&h, i) << i;
    check(status == 0 && folders == (1 << 2 | 1 << 4 | 1 << 5),
        "launches: a run saves when it is told to, and at its end", "%x", (unsigned)folders);
    int first = command_count("  val ");
    status = command("%s --steps 6 --keep-best 0 --val-every 9", h.line);
    check(status == 0 && first == 2 && command_count("  val ") == 2 && command_said("step     6/6"),
        "launches: a run that goes on is not validated again before its first step", "%d and %d validations",
        first, command_count("  val "));
    remove_tree(h.out);
    status = command("%s --steps 2 --val-every 1 --lr 0", h.line);
    check(status == 0 && command_said(", after step 1"),
        "launches: what stands before the first step is not the best", "%.200s",
        command_out + strlen(command_out) / 2);
    status =
        command("%s --steps 600 --keep-best 0 --val-every 1000 --log-every 100 --max-minutes 0.15", h.line);
    check(status == 0 && command_said("step   600/600"), "launches: --max-minutes counts minutes",
        "status %d", status);
    status = command(
        "%s --steps 100000000 --keep-best 0 --val-every 100000000 --log-every 1000000 --max-minutes 0.002",
        h.line);
    check(status == 0 && command_said("stopped after 0.002 minutes"), "launches: --max-minutes ends a run",
        "status %d", status);
}

// Launches that are refused before anything is computed; and --check, that compares all ranks with one.
static void launches_refused(const char* shard) {
    static const struct {
        const char *format, *part;
    } cases[] = {
        {"train --data %s --rank 1 --layers 1 --heads 1 --channels 8 --seq-len 16", "--rank 1 needs --world"},
        {"train --data %s --rank 2 --world 2 --master 127.0.0.1:1 --layers 1 --heads 1 --channels 8 "
         "--seq-len 16",
            "--world 2 has processes 0 to 1"},
        {"train --data %s --layers 500 --channels 65536 --heads 256 --seq-len 16", "no context fits"}};
    int told = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        char line[2048];
        snprintf(line, sizeof line, cases[i].format, shard);
        told += told_by(line, cases[i].part);
    }
    check(told == count, "launches: what cannot be is refused before it begins", "%d of %d", told, count);
    int status = command(
        "train --data %s --layers 1 --heads 2 --channels 16 --seq-len 24 --batch-size 2 --dp 2 --sp 2 "
        "--threads 1 --steps 1 --check 1 --zero 3",
        shard);
    check(status == 0 && command_said("--check"),
        "launches: --check finds four ranks' gradients to be one rank's", "%.80s", status ? command_out : "");
}

static void test_launches(void) {
    gpt2_sp_options o = tiny_run("launches");
    launches_best();
    launches_ends();
    launches_refused(o.data);
}
