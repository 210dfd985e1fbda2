/*
 * test_pictures.h: the pictures that `schedule --svg` and `plan --svg` draw, part of test_gpt2_sp.c.
 *
 * Held: a picture is one XML document without anything from elsewhere; every op and every message of a table
 * is in it once, in its rank's row, as wide as its work, in its key chunk's colour; work and idle time of all
 * ranks are P times the makespan; no text lies on another or outside; the plan's picture has the plan's
 * figures. A picture replaces another picture and nothing else.
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
        !strstr(text, "href") && !strstr(text, "@import"),
        count = 0, overlaps = text ? svg_overlaps(text, &count) : -1, good = whole && overlaps == 0;
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
        for (int i = 0; i < (quick ? 6 : 7); i++) {
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

static void test_pictures(void) {
    pictures_schedules();
    pictures_plan();
    pictures_files();
}
