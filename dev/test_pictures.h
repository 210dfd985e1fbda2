/*
 * test_pictures.h: what shows people a schedule, a plan and a step: `schedule --svg`, `plan --svg`,
 * `train --trace` and `--profile`, part of test_gpt2_sp.c.
 *
 * Held: a picture is one XML document without anything from elsewhere; every op and every message of a table
 * is in it once, in its rank's row, as wide as its work, in its key chunk's colour; work and idle time of all
 * ranks are P times the makespan; no text lies on another or outside; the plan's picture has the plan's
 * figures. A picture replaces another picture and nothing else. A trace is JSON; a lane's spans follow or
 * hold each other; every rank has the ops and messages of its tables once for each layer, pass and run;
 * recording changes no bit of a run.
 */

// --- reading a picture ---

// Goes over a name of XML.
static const char* xml_name(const char* p) {
    if (!isalpha((unsigned char)*p)) return NULL;
    while (isalnum((unsigned char)*p) || *p == '-' || *p == ':') p++;
    return p;
}
// Goes over characters of a text or an attribute up to `end`; NULL if it is not there or XML forbids one.
static const char* xml_characters(const char* p, char end) {
    static const char* const entities[] = {"&lt;", "&gt;", "&amp;", "&quot;"};
    for (; *p && *p != end; p++) {
        int known = *p != '&';
        for (int i = 0; i < 4; i++) known |= strncmp(p, entities[i], strlen(entities[i])) == 0;
        if (!known || *p == '<' || ((unsigned char)*p < ' ' && *p != '\n')) return NULL;
    }
    return *p == end ? p : NULL;
}
// Whether a text is one element, after comments, whose elements nest and whose attributes are quoted and
// there once.
static int xml_whole(const char* text) {
    enum { DEPTH = 16 };
    const char *open[DEPTH], *p = text;
    size_t length[DEPTH];
    int depth = 0, roots = 0;
    while (*p) {
        if (strncmp(p, "<!--", 4) == 0) {
            if (!(p = strstr(p + 4, "-->"))) return 0;
            p += 3;
        } else if (strncmp(p, "</", 2) == 0) {
            const char* end = xml_name(p += 2);
            if (!end || *end != '>' || --depth < 0) return 0;
            if ((size_t)(end - p) != length[depth] || strncmp(p, open[depth], length[depth]) != 0) return 0;
            p = end + 1;
        } else if (*p == '<') {
            const char *end = xml_name(++p), *seen[32];
            int attributes = 0;
            if (!end || depth == DEPTH || (depth == 0 && roots++)) return 0;
            open[depth] = p, length[depth] = (size_t)(end - p);
            for (depth++, p = end; *p == ' ';) {
                if (!(end = xml_name(++p)) || strncmp(end, "=\"", 2) != 0 || attributes == 32) return 0;
                for (int i = 0; i < attributes; i++)
                    if (strncmp(seen[i], p, (size_t)(end + 1 - p)) == 0) return 0;
                seen[attributes++] = p;
                if (!(p = xml_characters(end + 2, '"'))) return 0;
                p++;
            }
            if (*p == '/') p++, depth--;
            if (*p++ != '>') return 0;
        } else if (depth == 0 && *p != '\n') return 0;
        else if (depth == 0) p++;
        else if (!(p = xml_characters(p, '<'))) return 0;
    }
    return depth == 0 && roots == 1;
}

// An attribute of the element at p, as a number; NAN: it has none.
static double svg_number(const char* p, const char* name) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, " %s=\"", name);
    const char *at = strstr(p, wanted), *end = strchr(p, '>');
    return at && end && at < end ? strtod(at + strlen(wanted), NULL) : NAN;
}
// The next element that begins so, from p on and before `end`; NULL: there is none.
static const char* svg_next(const char* p, const char* end, const char* head) {
    const char* at = strstr(p, head);
    return at && at < end ? at : NULL;
}

// How many pairs of a picture's texts lie on each other or stick out of it; by a font as wide as any.
static int svg_overlaps(const char* text, int* count) {
    enum { MOST = 4096 };
    double(*box)[4] = (double(*)[4])need(MOST, sizeof *box);   // left, right, top, bottom
    const char* root = strstr(text, "<svg");
    double width = root ? svg_number(root, "width") : NAN, height = root ? svg_number(root, "height") : NAN;
    int n = 0, found = 0;
    for (const char* p = text; (p = strstr(p, "<text ")) && n < MOST; p++) {
        const char* end = strchr(p, '>');
        double size = svg_number(p, "font-size"), x = svg_number(p, "x"), y = svg_number(p, "y");
        double wide = 0.6 * size * (double)(strchr(end, '<') - end - 1);
        int middle = strstr(p, "anchor=\"middle\"") && strstr(p, "anchor=\"middle\"") < end,
            last = strstr(p, "anchor=\"end\"") && strstr(p, "anchor=\"end\"") < end;
        const char* halo = strstr(p, "fill=\"none\"");
        if (halo && halo < end) continue;   // the light around a text
        box[n][0] = x - (middle ? wide / 2 : last ? wide : 0), box[n][1] = box[n][0] + wide;
        box[n][2] = y - 0.75 * size, box[n][3] = y + 0.2 * size;
        found += !(box[n][0] >= 0 && box[n][1] <= width && box[n][2] >= 0 && box[n][3] <= height);
        for (int i = 0; i < n; i++)
            found += box[i][0] < box[n][1] && box[n][0] < box[i][1] && box[i][2] < box[n][3] &&
                box[n][2] < box[i][3];
        n++;
    }
    free(box);
    *count = n;
    return n == MOST ? -1 : found;
}

// --- the pictures of schedules ---

// What is wrong with a table's part of a picture.
typedef struct {
    int ops, messages, displaced;   // that it has; those in a wrong row, colour or order
    double worst;                   // width, against the work: of the boxes and of all together
} PanelFigures;

// Reads the boxes and arrows between p and end, and compares each with its row of the table.
static PanelFigures panel_read(const Schedule* s, const ScheduleCost* cost, const char* p, const char* end) {
    PanelFigures f = {0, 0, 0, 0};
    double total = 0, pitch = row_height(s->P), top = NAN, last[FIGURE_RANKS] = {0};
    for (const char* at = p; (at = svg_next(at, end, "<rect class=\"")); at++)
        total += svg_number(at, "width");
    const double scale = total / (s->P * cost->makespan);
    for (const char* at = p; (at = svg_next(at, end, "<rect class=\"op\"")); at++, f.ops++) {
        if (f.ops >= s->op_count) continue;
        const ScheduleOp* op = &s->ops[f.ops];
        char colour[8], fill[32];
        double x = svg_number(at, "x"), width = svg_number(at, "width");
        svg_colour(colour, op->k, s->chunks);
        snprintf(fill, sizeof fill, " fill=\"%s\"", colour);
        if (f.ops == 0) top = svg_number(at, "y");
        const char *close = strchr(at, '>'), *filled = strstr(at, fill);
        f.displaced += !(fabs(svg_number(at, "y") - top - op->rank * pitch) < 0.011) || !filled ||
            filled > close || !(x >= last[op->rank] - 0.011);
        last[op->rank] = x + width;
        f.worst = worst(f.worst, fabs(width - scale * op_units(s, op)));
    }
    for (const char* at = p; (at = svg_next(at, end, "<path class=\"message\"")); at++, f.messages++) {
        double y1, y2;
        if (f.messages >= s->message_count) continue;
        const ScheduleMessage* m = &s->messages[f.messages];
        // from (x1, y1); the last point but one of the head is (x2, y2)
        if (sscanf(at, "<path class=\"message\" d=\"M%*f %lfL%*f %*fM%*f %*fL%*f %lf", &y1, &y2) != 2)
            y1 = y2 = NAN;
        f.displaced += !(floor((y1 - top) / pitch) == m->from && floor((y2 - top) / pitch) == m->to);
    }
    return f;
}

// The picture of a kind for P ranks, drawn by the command. Returns whether all of it holds.
static int picture_holds(int kind, int P, double* most, int* texts) {
    char path[512];
    Error e = {0, {0}};
    size_t size;
    snprintf(path, sizeof path, "%s", scratch("schedule.svg"));
    if (command("schedule --schedule %s --sp %d --svg %s", schedule_name(kind), P, path) != 0) return 0;
    char* text = file_read_text(path, 1 << 24, &size, &e);
    int whole = text && xml_whole(text) && strstr(text, "<title>") && !strstr(text, "<script") &&
        !strstr(text, "href") && !strstr(text, "@import");
    int count = 0, overlaps = text ? svg_overlaps(text, &count) : -1;
    int good = whole && overlaps == 0;
    *texts += count;
    for (int backward = 0; good && backward < 2; backward++) {
        Schedule s;
        ScheduleCost cost;
        if (schedule_build(&s, kind, P, backward, 0, &e) != 0 || schedule_cost(&s, &cost, &e) != 0) return 0;
        const char* begin = strstr(text, backward ? "<g class=\"backward\">" : "<g class=\"forward\">");
        PanelFigures f = {-1, -1, -1, NAN};
        if (begin) f = panel_read(&s, &cost, begin, strstr(begin, "</g>"));
        *most = worst(*most, f.worst);
        // a number is rounded by 0.005, and so is the sum of all widths for each of its parts
        good = f.ops == s.op_count && f.messages == s.message_count && f.displaced == 0 && f.worst <= 0.011;
        if (!good)
            printf("     %s, P=%d, %s: %d of %d ops, %d of %d messages, %d displaced, width off by %.3g\n",
                schedule_name(kind), P, backward ? "backward" : "forward", f.ops, s.op_count, f.messages,
                s.message_count, f.displaced, f.worst);
        schedule_free(&s);
    }
    if (!whole || overlaps)
        printf("     %s, P=%d: whole %d, %d overlaps\n", schedule_name(kind), P, whole, overlaps);
    free(text);
    return good;
}

static void pictures_schedules(void) {
    static const int ranks[] = {1, 2, 4, 5, 8, 16, 32};
    for (int kind = 0; kind < GPT2_SP_SCHEDULES; kind++) {
        int good = 0, count = 0, texts = 0;
        double most = 0;
        char name[96];
        for (int i = 0; i < (quick ? 5 : 7); i++) {
            if (SCHEDULES[kind].even_ranks && ranks[i] % 2 && ranks[i] > 1) continue;
            good += picture_holds(kind, ranks[i], &most, &texts), count++;
        }
        snprintf(
            name, sizeof name, "pictures: %s shows every op and message once, to scale", schedule_name(kind));
        check(good == count, name, "%d of %d pictures, %d texts, widths within %.3g of %d", good, count,
            texts, most, FIGURE_WIDTH);
    }
}

// --- the picture of the plan ---

// The picture of a plan against the numbers that `plan --json` prints for it.
static void pictures_plan(void) {
    char path[512];
    Error e = {0, {0}};
    size_t size = 0;
    snprintf(path, sizeof path, "%s", scratch("plan.svg"));
    int status =
        command("plan --layers 6 --heads 4 --channels 256 --vocab 257 --seq-len 8k --sp 4 --gflops 100 "
                "--attention-gflops 80 --link-gbs 5 --copy-gbs 20 --memory-gb 1 --threads 1 --json "
                "--svg %s",
            path);
    char* text = status == 0 ? file_read_text(path, 1 << 20, &size, &e) : NULL;
    int texts = 0, bars = 0, points = 0, overlaps = text ? svg_overlaps(text, &texts) : -1;
    check(text && xml_whole(text) && overlaps == 0, "pictures: the plan's is one document",
        "%zu bytes, %d texts apart from each other", size, texts);
    double off = 0, total = command_number("memory_bytes", "total"), first = NAN, grid[2] = {NAN, NAN};
    const char *end = text ? text + size : NULL, *all = text ? strstr(text, "<rect class=\"total\"") : NULL;
    double full = all ? svg_number(all, "width") : NAN;
    for (const char* p = text; p && (p = svg_next(p, end, "<rect class=\"memory\"")); p++, bars++) {
        double bytes = command_number("memory_bytes", bars < MEMORY_GROUP_COUNT ? MEMORY_NAMES[bars] : "");
        off = worst(off, fabs(svg_number(p, "width") - full * bytes / total));
    }
    check(bars == MEMORY_GROUP_COUNT && off <= 0.011, "pictures: the plan's bars are as long as its parts",
        "%d bars, off by %.3g of %.4g", bars, off, full);
    off = 0;
    const char* line = text;
    for (int i = 0; i < 2 && line && (line = svg_next(line, end, "<line class=\"grid\"")); i++, line++)
        grid[i] = svg_number(line, "y1");
    const char* numbers = strstr(command_out, "\"projected_ranks\"");
    double speed[PLAN_RANKS];
    for (const char* p = text; p && (p = svg_next(p, end, "<rect class=\"point\"")) && points < PLAN_RANKS;
         p++, points++) {
        numbers = numbers ? strstr(numbers + 1, "\"tok_per_s\": ") : NULL;
        speed[points] = numbers ? strtod(numbers + 13, NULL) : NAN;
        if (points == 0) first = svg_number(p, "y");
        off = worst(
            off, fabs(first - svg_number(p, "y") - log2(speed[points] / speed[0]) * (grid[0] - grid[1])));
    }
    check(points == PLAN_RANKS && off <= 0.05 && !strstr(numbers + 1, "\"tok_per_s\": "),
        "pictures: the plan's points are its speeds", "%d numbers of ranks, off by %.3g of %.4g", points, off,
        grid[0] - grid[1]);
    free(text);
}

// --- what a text may have in it ---

static void pictures_texts(void) {
    static const char* const texts[] = {"a < b", "a & b", "<b>", "say \"a\"", "a\001\nb"};
    static const char* const written[] = {"a &lt; b", "a &amp; b", "&lt;b&gt;", "say &quot;a&quot;", "ab"};
    int good = 0, count = (int)(sizeof texts / sizeof texts[0]);
    for (int i = 0; i < count; i++) {
        char *text = NULL, title[64], tip[64], label[64];
        size_t size = 0;
        FILE* out = open_memstream(&text, &size);
        if (!out) break;
        svg_open(out, 10, 10, texts[i]);
        svg_rect(out, "op", "#000000", 1, 1, 1, 1, texts[i]);
        svg_text(out, 10, SVG_START, 0, 0, "%s", texts[i]);
        svg_close(out);
        fclose(out);
        snprintf(title, sizeof title, "<title>%s</title>\n<defs>", written[i]);
        snprintf(tip, sizeof tip, "<title>%s</title></rect>", written[i]);
        snprintf(label, sizeof label, ">%s</text>", written[i]);
        good += xml_whole(text) && strstr(text, title) && strstr(text, tip) && strstr(text, label);
        free(text);
    }
    check(good == count, "pictures: what XML takes for its own is escaped", "%d of %d texts", good, count);
}

// --- what a picture may replace ---

static void pictures_files(void) {
    char own[512], other[512], line[64] = "";
    snprintf(own, sizeof own, "%s", scratch("own.svg"));
    snprintf(other, sizeof other, "%s", scratch("other.svg"));
    FILE* f = fopen(other, "w");
    if (f) fputs("<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n", f), fclose(f);
    int drawn = command("schedule --sp 2 --svg %s", own) == 0 &&
        command("plan --gflops 1 --link-gbs 1 "
                "--copy-gbs 1 --svg %s",
            own) == 0;
    int refused = command("schedule --sp 2 --svg %s", other) != 0 && command_said("no picture, and stays");
    refused &= command("plan --svg %s", other) != 0 && command_said("no picture, and stays");
    f = fopen(other, "r");
    int kept = f && fgets(line, sizeof line, f) && strncmp(line, "<svg ", 5) == 0;
    if (f) fclose(f);
    check(drawn && refused && kept, "pictures: one replaces a picture of this program and nothing else",
        "drawn twice %d, refused %d, kept %d", drawn, refused, kept);
    int many = command("schedule --sp 33 --svg %s", own) != 0 && command_said("at most 32 ranks");
    int odd = command("schedule --schedule dist-paper --sp 5 --svg %s.new", own) != 0;
    char left[600];
    snprintf(left, sizeof left, "%s.new", own);
    int clean = access(left, F_OK) != 0;
    snprintf(left, sizeof left, "%s.new.tmp", own);
    clean &= access(left, F_OK) != 0;
    check(many && odd && clean, "pictures: what cannot be drawn is refused and leaves nothing",
        "33 ranks %d, an odd number %d, no file %d", many, odd, clean);
}

// --- the trace of a step ---

// A span of a trace's file, and times in us.
typedef struct {
    int rank, lane;
    char kind[16], name[32];
    double from, to;
} Event;

// The spans of a trace, in its order; the caller frees them. NULL: it is no JSON.
static Event* trace_events(const char* path, int* count) {
    Error e = {0, {0}};
    size_t size = 0;
    char* text = file_read_text(path, 1 << 26, &size, &e);
    Event* events = NULL;
    *count = 0;
    if (!text || !json_whole(text)) printf("     %s: %s\n", path, text ? "no JSON" : e.text);
    else events = (Event*)need(size / 32 + 1, sizeof *events);
    for (char* line = events ? strtok(text, "\n") : NULL; line; line = strtok(NULL, "\n")) {
        Event* x = &events[*count];
        double length;
        if (sscanf(line,
                "{\"ph\": \"X\", \"pid\": %d, \"tid\": %d, \"cat\": \"%15[^\"]\", \"name\": \"%31[^\"]\", "
                "\"ts\": %lf, \"dur\": %lf}",
                &x->rank, &x->lane, x->kind, x->name, &x->from, &length) != 6)
            continue;
        x->to = x->from + length, ++*count;
    }
    free(text);
    return events;
}

// Numbers of a trace are rounded by half a thousandth of a us, an end is the sum of two.
static const double TRACE_ROUNDING = 0.002;

// How many spans lie where none of their kind may: across another's end, an op or a wait outside of a group,
// an op of another group than attention's, a group inside another or not where the one before it ended.
static int trace_misplaced(const Event* x, int count) {
    const Event* open[8];
    int depth = 0, wrong = 0;
    double ended = 0;   // the group before
    for (int i = 0; i < count; i++) {
        const Event* at = &x[i];
        if (i == 0 || at->rank != at[-1].rank || at->lane != at[-1].lane) depth = 0, ended = 0;
        while (depth > 0 && open[depth - 1]->to <= at->from + TRACE_ROUNDING) depth--;
        const Event* holder = depth > 0 ? open[depth - 1] : NULL;
        const char *kind = at->kind, *inside = holder ? holder->kind : "";
        wrong += holder && !(at->to <= holder->to + TRACE_ROUNDING);
        if (strcmp(kind, "layer") == 0) wrong += holder != NULL;
        else if (strcmp(kind, "group") == 0) {
            wrong += (holder && strcmp(inside, "layer") != 0) || !(fabs(at->from - ended) <= TRACE_ROUNDING);
            ended = at->to;
        } else if (strcmp(kind, "op") == 0 || strcmp(kind, "wait") == 0)
            wrong += strcmp(inside, "group") != 0 || (*kind == 'o' && strncmp(holder->name, "attention", 9));
        else wrong += holder && strcmp(inside, "gather") != 0;
        wrong += !(at->to >= at->from) || depth == 8;
        if (depth < 8) open[depth++] = at;
    }
    return wrong;
}

// How many spans of a kind and name a rank has.
static int trace_count(const Event* x, int count, int rank, const char* kind, const char* name) {
    int found = 0;
    for (int i = 0; i < count; i++)
        found += x[i].rank == rank && strcmp(x[i].kind, kind) == 0 && strcmp(x[i].name, name) == 0;
    return found;
}

// Counts the ops of a table in a rank's trace, and those that there should be, `runs` times each; *wrong: the
// pairs of which there are not as many.
static int trace_ops(const Event* x, int count, const Schedule* s, int rank, int runs, int* wrong) {
    int all = 0;
    for (int q = 0; q < s->chunks; q++)
        for (int k = 0; k < s->chunks; k++) {
            char name[32];
            int ops = 0;
            for (int i = 0; i < s->op_count; i++)
                ops += s->ops[i].q == q && s->ops[i].k == k && s->ops[i].rank == rank % s->P;
            snprintf(name, sizeof name, s->backward ? "q%d k%d backward" : "q%d k%d", q, k);
            *wrong += trace_count(x, count, rank, "op", name) != ops * runs;
            all += ops * runs;
        }
    return all;
}
// How often a rank of a sequence takes what another one sends at a step of a table.
static int trace_arrivals(const Schedule* s, int from, int to) {
    int arrivals = 0;
    for (int step = 0; step < s->steps; step++) {
        int some = 0;
        for (int i = 0; i < s->message_count; i++)
            some |= s->messages[i].step == step && s->messages[i].from == from && s->messages[i].to == to;
        arrivals += some;
    }
    return arrivals;
}

// The same run with and without recording; its trace against the tables and the shape.
static void trace_case(const char* more) {
    char path[512], options[700];
    snprintf(path, sizeof path, "%s", scratch("trace.json"));
    snprintf(options, sizeof options, "%s trace=%s", more, path);
    Run plain = run_steps(more, TRACED_STEP + 1), recorded = run_steps(options, TRACED_STEP + 1);
    int same = run_equal(&plain, &recorded), count, wrong = 0, ops = 0, layers = 0, messages = 0;
    free(plain.weights);
    free(recorded.weights);
    Event* x = trace_events(path, &count);
    gpt2_sp_options o = run_options(more);
    const int L = (int)o.layers, P = (int)o.sp, ranks = (int)o.dp * P, passes = (int)o.grad_accum;
    const int again = !activation_kept(A_atty, o.recompute), sequences = L * passes * (int)o.batch_size;
    Schedule s[2];
    Error e = {0, {0}};
    for (int d = 0; d < 2; d++)
        if (schedule_build(&s[d], o.schedule, P, d, o.heads, &e) != 0) exit(1);
    for (int r = 0; x && r < ranks; r++) {
        for (int d = 0; d < 2; d++)
            ops += trace_ops(x, count, &s[d], r, sequences * (d ? 1 : 1 + again), &wrong);
        for (int l = 0; l < L; l++)
            for (int d = 0; d < 3; d++, layers++) {
                static const char* const ways[] = {"forward", "backward", "recompute"};
                char name[48];
                snprintf(name, sizeof name, "layer %d %s", l, ways[d]);
                int most = d == 2 && o.recompute == GPT2_SP_NONE ? 0 : passes;
                wrong += trace_count(x, count, r, "layer", name) != most;
            }
        for (int from = 0; from < P; from++) {
            char name[32];
            int taken = sequences *
                ((1 + again) * trace_arrivals(&s[0], from, r % P) + trace_arrivals(&s[1], from, r % P));
            snprintf(name, sizeof name, "from rank %d", r - r % P + from);
            wrong += trace_count(x, count, r, "message", name) != taken;
            messages += taken;
        }
        wrong += trace_count(x, count, r, "group", "gradient norm") != 1;
    }
    int misplaced = x ? trace_misplaced(x, count) : -1;
    char name[256];
    snprintf(name, sizeof name, "pictures: a trace has what the tables say, once: %s", more);
    check(x && wrong == 0 && misplaced == 0 && ops > 0, name,
        "%d spans, %d wrong, %d misplaced: %d ops, %d layers' passes, %d messages", count, wrong, misplaced,
        ops, layers, messages);
    snprintf(name, sizeof name, "pictures: recording changes no bit: %s", more);
    check(same, name, "%d steps: losses, norms, weights", TRACED_STEP + 1);
    for (int d = 0; d < 2; d++) schedule_free(&s[d]);
    free(x);
}

// What --profile prints adds up, and nothing is recorded that nobody asks for.
static void pictures_profile(void) {
    const char* shape = "--layers 2 --heads 4 --channels 32 --seq-len 61 --threads 1 --sp 2 --steps 5";
    char path[512];
    int status = command("train --data %s %s --profile 1", run_data(), shape), groups = 0, totals = 0;
    double sum = 0, total = 0, most = 0, step = 0, off = 0, share = 0;
    for (const char* line = command_out; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        char name[32];
        double ms, percent;
        int times;
        if (sscanf(line, "  %26c %lf ms %lf %% %d times", name, &ms, &percent, &times) == 4)
            sum += ms, share += percent, groups++;
        else if (sscanf(line, "  total %lf ms", &total) == 1) {
            off = worst(off, fabs(sum - total));
            most = worst(most, fabs(share - 100)), sum = share = 0;
            totals++;
        } else if (sscanf(line, "step %*d/%*d loss %*f norm %*f lr %*f %lf ms", &step) == 1)
            off = worst(off, total <= step + 0.06 ? 0 : total - step);
    }
    // a group's time is rounded by 0.0005, its share by 0.05; a step has some 23 of them
    check(status == 0 && totals == 5 && groups == 5 * 22 && off <= 0.013 && most <= 1.2,
        "pictures: the groups of --profile are the step", "%d steps, %d groups, off by %.3g ms, %.3g %%",
        totals, groups, off, most);
    snprintf(path, sizeof path, "%s", scratch("none.json"));
    int early = command("train --data %s %s --steps 3 --trace %s", run_data(), shape, path) != 0 &&
        command_said("--trace") && access(path, F_OK) != 0;
    FILE* f = fopen(path, "w");
    if (f) fputs("{\"mine\": 1}\n", f), fclose(f);
    int refused = command("train --data %s %s --trace %s", run_data(), shape, path) != 0 &&
        command_said("no trace, and stays");
    check(early && refused, "pictures: a trace that cannot be is refused", "3 steps %d, another's file %d",
        early, refused);
}

static void pictures_traces(void) {
    static const char* const cases[] = {"recompute=none", "sp=4 recompute=attn",
        "sp=3 schedule=ring recompute=layer zero=3", "sp=4 schedule=zigzag grad-accum=2 batch-size=2",
        "dp=2 sp=2 schedule=allgather recompute=sqrt zero=2 layers=4", "sp=4 schedule=ulysses zero=1",
        "sp=4 schedule=dist-paper recompute=gelu"};
    for (int i = 0; i < (int)(sizeof cases / sizeof cases[0]); i++) trace_case(cases[i]);
}

static void test_pictures(void) {
    pictures_schedules();
    pictures_plan();
    pictures_texts();
    pictures_files();
    pictures_traces();
    pictures_profile();
}
