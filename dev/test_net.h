// test_net.h: the tests of data/net.h and data/sha256.h, included by test_gpt2_sp.c, as one function
// test_net(), the group `net`. Before including it, define
//     static void check(int ok, const char* name, const char* format, ...);
//     static const char* scratch(const char* name);         // a path in the tests' own folder
//
// Here a test plays the other process by hand, byte by byte: one that lies about who it is, says nothing,
// sends what it may not, or does not know the secret. Held: it gets no place, no memory and no wait out of a
// process but what its kind has coming, it is told why where it may be one of ours, and the others meet all
// the same.

#include "../data/net.h"

// A process that meets the others in a thread of this one.
typedef struct {
    net_peers peers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int aborted, process, processes, port, status, done;
    char reason[NET_TEXT], error[NET_TEXT];
    const net_secret* secret;
    double timeout;
    volatile sig_atomic_t stop;
    pthread_t thread;
} NtProcess;

static void nt_lend(NtProcess* p) {
    pthread_condattr_t clock;
    memset(p, 0, sizeof *p);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, &clock);
    pthread_condattr_destroy(&clock);
    net_init(&p->peers, &p->mutex, &p->changed, &p->aborted, p->reason);
}
static void nt_return(NtProcess* p) {
    net_close(&p->peers);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->changed);
}

static void* nt_thread(void* argument) {
    NtProcess* p = (NtProcess*)argument;
    char master[64];
    snprintf(master, sizeof master, "127.0.0.1:%d", p->port);
    int status = net_open(&p->peers, p->process, p->processes, master, p->secret, p->timeout, &p->stop,
        p->error, sizeof p->error);
    pthread_mutex_lock(&p->mutex);
    p->status = status, p->done = 1;
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

// A port that nobody has; a second one where others are to listen.
static int free_port(void) {
    struct sockaddr_in a;
    socklen_t size = sizeof a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET, a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int bound =
        bind(fd, (struct sockaddr*)&a, sizeof a) == 0 && getsockname(fd, (struct sockaddr*)&a, &size) == 0;
    close(fd);
    return bound ? ntohs(a.sin_port) : 0;
}

static double nt_timeout = 20e3;   // of the processes that begin, in ms
static void nt_begin(NtProcess* p, int process, int processes, int port, const net_secret* secret) {
    nt_lend(p);
    p->process = process, p->processes = processes;
    p->port = port, p->secret = secret;
    p->timeout = nt_timeout;
    pthread_create(&p->thread, NULL, nt_thread, p);
}
static int nt_done(NtProcess* p) {
    pthread_mutex_lock(&p->mutex);
    int done = p->done;
    pthread_mutex_unlock(&p->mutex);
    return done;
}
static void* nt_close_thread(void* argument) {   // each end waits until the other closes too
    nt_return((NtProcess*)argument);
    return NULL;
}
static int nt_end(NtProcess* p) {
    pthread_join(p->thread, NULL);
    nt_return(p);
    return p->status;
}

// A connection to process 0, which may still have to come up; what is read from it comes within 10 s or
// fails.
static int nt_dial(int port) {
    char text[16];
    const char* why;
    struct timespec pause = {0, 10000000};
    struct timeval patience = {10, 0};
    snprintf(text, sizeof text, "%d", port);
    for (int i = 0; i < 500; i++) {
        int fd = net_socket_connect("127.0.0.1", text, &why);
        if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (fd >= 0) return fd;
        nanosleep(&pause, NULL);
    }
    return -1;
}

static net_hello nt_hello(int process, int processes) {
    net_hello h;
    memset(&h, 0, sizeof h);
    h.process = (uint32_t)process, h.processes = (uint32_t)processes;
    h.order = 0x01020304;
    snprintf(h.machine, sizeof h.machine, "another");
    return h;
}
static void nt_say(int fd, const net_hello* h) {
    unsigned char bytes[NET_HELLO];
    net_hello_encode(bytes, h);
    (void)!write(fd, bytes, sizeof bytes);
}

// What is answered: "welcome", a refusal's text, "challenge", "closed", or "?".
static const char* nt_answer(int fd, unsigned char* bytes, size_t welcome) {
    static char text[512];
    if (net_socket_read(fd, bytes, 8) != 0) return "closed";
    uint64_t magic = net_get(bytes, 8);
    size_t size = NET_NOTE;
    if (magic == NET_WELCOME_MAGIC) size = welcome;
    if (magic == NET_REFUSAL_MAGIC) size = NET_REFUSAL;
    if (net_socket_read(fd, bytes + 8, size - 8) != 0 || !net_sealed(bytes, size)) return "?";
    snprintf(text, sizeof text, "%.499s", (const char*)bytes + 8);
    return magic == NET_WELCOME_MAGIC ? "welcome"
        : magic == NET_REFUSAL_MAGIC  ? text
        : magic == NET_PROOF_MAGIC    ? "proof"
                                      : "challenge";
}
static const char* nt_verdict(int fd) {
    unsigned char bytes[4096];
    return nt_answer(fd, bytes, net_welcome_size(2));
}

// --- what travels ---

static void nt_sha256(void) {
    // FIPS 180-4's examples, and RFC 4231's test cases 1, 2 and 6
    static const struct {
        const char *key, *text, *sum;
    } cases[] = {{NULL, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {NULL, "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {NULL, "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v\v", "Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {"Jefe", "what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
        {"131", "Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"}};
    int count = (int)(sizeof cases / sizeof cases[0]), right = 0;
    for (int i = 0; i < count; i++) {
        unsigned char sum[SHA256_BYTES], key[131];
        char text[2 * SHA256_BYTES + 1];
        size_t size = i == count - 1 ? sizeof key : cases[i].key ? strlen(cases[i].key) : 0;
        memset(key, 0xaa, sizeof key);
        if (cases[i].key && i < count - 1) memcpy(key, cases[i].key, size);
        sha256_sum s;
        sha256_begin(&s);
        sha256_add(&s, cases[i].text, strlen(cases[i].text));
        sha256_end(&s, sum);
        if (cases[i].key) sha256_hmac(sum, key, size, cases[i].text, strlen(cases[i].text));
        for (int k = 0; k < SHA256_BYTES; k++) snprintf(text + 2 * k, 3, "%02x", sum[k]);
        right += strcmp(text, cases[i].sum) == 0;
    }
    check(right == count, "net: SHA-256 and its HMAC have the sums of their standards", "%d of %d", right,
        count);
}

// Whether a hello is written as these bytes.
static int nt_same(const net_hello* h, const unsigned char bytes[NET_HELLO]) {
    unsigned char written[NET_HELLO];
    net_hello_encode(written, h);
    return memcmp(written, bytes, NET_HELLO) == 0;
}

// What processes of two builds would say to each other: the bytes are those of the tables in data/net.h.
static void nt_bytes(void) {
    unsigned char hello[NET_HELLO], welcome[NET_WELCOME + 2 * NET_PLACE], note[NET_NOTE];
    net_hello h = nt_hello(2, 3), back;
    net_place places[2], found[2];
    uint64_t cookie = 0;
    int taken = 0;
    memset(places, 0, sizeof places);
    h.cookie = 0x1122334455667788ull, h.port = 29400;
    h.secret = 1;
    for (int i = 0; i < NET_NONCE; i++) h.nonce[i] = (unsigned char)(i + 1);
    places[1].port = 29400;
    snprintf(places[1].address, sizeof places[1].address, "10.0.0.2");
    snprintf(places[1].machine, sizeof places[1].machine, "a machine");
    net_hello_encode(hello, &h);
    net_welcome_encode(welcome, h.cookie, places, 2);
    net_note_encode(note, NET_PROOF_MAGIC, h.nonce);
    uint32_t sums[3] = {(uint32_t)crc32(0, hello, sizeof hello - 4),
        (uint32_t)crc32(0, welcome, sizeof welcome - 4), (uint32_t)crc32(0, note, sizeof note - 4)};
    check(sums[0] == 0xdf0c8cee && sums[1] == 0xb669e6f5 && sums[2] == 0x4e23f09b,
        "net: a hello, a welcome and a proof have the bytes of their tables", "CRC-32 %08x, %08x and %08x",
        sums[0], sums[1], sums[2]);
    int same = net_hello_decode(&back, hello) == 0 && nt_same(&back, hello) &&
        net_welcome_decode(welcome, &cookie, found, 2) == 0 && cookie == h.cookie &&
        memcmp(found, places, sizeof places) == 0;
    check(same, "net: a hello and a welcome are read as they were written", "read back as written");
    for (int bit = 0; bit < 8 * NET_HELLO; bit++) {
        hello[bit / 8] ^= (unsigned char)(1 << bit % 8);
        taken += net_hello_decode(&back, hello) == 0;
        hello[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    for (int bit = 0; bit < 8 * (int)sizeof welcome; bit++) {
        welcome[bit / 8] ^= (unsigned char)(1 << bit % 8);
        taken += net_welcome_decode(welcome, &cookie, found, 2) == 0;
        welcome[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    check(taken == 0, "net: a hello or a welcome with a bit turned is none", "%d of %d taken", taken,
        8 * (NET_HELLO + (int)sizeof welcome));
    int numbers = 0, two = 0;   // sealed, and as long as one of two processes
    for (uint64_t i = 0; i < 5; i++) {
        net_put(welcome + 16, i, 4), net_seal(welcome, sizeof welcome);
        int good = net_welcome_decode(welcome, &cookie, found, 2) == 0;
        numbers += good, two += good && i == 2;
    }
    check(numbers == 1 && two == 1, "net: a welcome of another number of processes is none",
        "of 0 to 4 processes %d taken, that of 2: %d", numbers, two);
}

static void nt_addresses(void) {
    static const struct {
        const char *list, *first;   // NULL: refused
    } lists[] = {{"node", "node"}, {"a,b", "a"}, {"node[03-07,9],other", "node03"}, {"node[7]", "node7"},
        {"gpu[001-002]-ib", "gpu001-ib"}, {"rack[1-2]node[3-4]", "rack1node3"},
        {"r[1,3]n[04-05,9]-ib.local,b", "r1n04-ib.local"}, {"a[1-2].dom.local,b", "a1.dom.local"},
        {"[1-2]x", "1x"}, {"", NULL}, {",a", NULL}, {"a[1-2", NULL}, {"a[]", NULL}, {"a]", NULL},
        {"a[x]", NULL}, {"a[1:2]", NULL}};
    static const struct {
        const char *host, *port, *printed, *back;
    } addresses[] = {{"node0", "29400", "node0:29400", "node0"}, {"::1", "1", "[::1]:1", "::1"},
        {"[::1]", "65535", "[::1]:65535", "::1"}, {"10.0.0.2", "80", "10.0.0.2:80", "10.0.0.2"}};
    static const char* const none[] = {
        "host", "host:", "host:0", "host:65536", "host:1x", ":1", "::1:80", "[]:1"};
    int right = 0, count = (int)(sizeof lists / sizeof lists[0]), wrong = 0;
    char out[300], error[NET_TEXT];
    net_address a;
    for (int i = 0; i < count; i++) {
        int status = net_nodelist_first(lists[i].list, out, sizeof out);
        right += lists[i].first ? status == 0 && strcmp(out, lists[i].first) == 0 : status == -1;
    }
    check(right == count, "net: the first machine of a list of Slurm's is found", "%d of %d lists", right,
        count);
    right = 0;
    for (int size = 1; size < 12; size++) right += net_nodelist_first("gpu[001]-ib", out, (size_t)size) == 0;
    check(right == 2, "net: a machine's name that does not fit is refused, not cut", "%d of 11 sizes fit",
        right);
    for (int i = 0; i < 4; i++) {
        net_address_print(out, sizeof out, addresses[i].host, addresses[i].port);
        wrong += strcmp(out, addresses[i].printed) != 0 ||
            net_address_parse(&a, out, error, sizeof error) != 0 || strcmp(a.host, addresses[i].back) != 0 ||
            strcmp(a.port, addresses[i].port) != 0;
    }
    for (int i = 0; i < 8; i++) wrong += net_address_parse(&a, none[i], error, sizeof error) == 0;
    check(wrong == 0, "net: an address is printed with its brackets, and read back", "%d of 12 wrong", wrong);
}

// Environments that hold a launcher in part: one process of several would train alone. No count, or 1, may.
static void nt_launched(void) {
    static const char* const names[] = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "SLURM_PROCID", "SLURM_NTASKS",
        "SLURM_STEP_NODELIST"};
    static const struct {
        const char* set[3];     // NAME=VALUE
        const char* expected;   // of the error; NULL: it trains alone; "": a launcher is found
    } cases[] = {{{NULL}, NULL}, {{"WORLD_SIZE=2"}, "WORLD_SIZE is 2, but there is no RANK: `--world 1`"},
        {{"RANK=1"}, "RANK is 1, but there is no WORLD_SIZE"}, {{"WORLD_SIZE=1"}, NULL},
        {{"WORLD_SIZE=1", "RANK=0"}, NULL},
        {{"WORLD_SIZE=2", "RANK=0"}, "WORLD_SIZE is 2, but there is no MASTER_ADDR"},
        {{"WORLD_SIZE=2", "RANK=0", "MASTER_ADDR=a"}, ""},
        {{"WORLD_SIZE=2", "MASTER_ADDR=a"}, "WORLD_SIZE is 2, but there is no RANK"},
        {{"MASTER_ADDR=a"}, NULL}, {{"WORLD_SIZE=two"}, "WORLD_SIZE is two"},
        {{"OMPI_COMM_WORLD_SIZE=4"}, "OMPI_COMM_WORLD_SIZE is 4, but there is no OMPI_COMM_WORLD_RANK"},
        {{"PMI_RANK=0"}, "PMI_RANK is 0, but there is no PMI_SIZE"}, {{"PMI_RANK=0", "PMI_SIZE=2"}, ""},
        {{"SLURM_NTASKS=2"}, NULL}, {{"SLURM_NTASKS=2", "SLURM_PROCID=0"}, NULL},
        {{"SLURM_NTASKS=2", "SLURM_PROCID=0", "SLURM_STEP_NODELIST=a"}, ""}};
    enum { NAMES = (int)(sizeof names / sizeof names[0]) };
    char kept[NAMES][256], error[NET_TEXT];
    int was[NAMES], right = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < NAMES; i++) {
        const char* value = getenv(names[i]);
        was[i] = value != NULL;
        snprintf(kept[i], sizeof kept[i], "%s", value ? value : "");
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < NAMES; k++) unsetenv(names[k]);
        for (int k = 0; k < 3 && cases[i].set[k]; k++) {
            const char* equals = strchr(cases[i].set[k], '=');
            char name[64];
            snprintf(name, sizeof name, "%.*s", (int)(equals - cases[i].set[k]), cases[i].set[k]);
            setenv(name, equals + 1, 1);
        }
        error[0] = 0;
        int found = net_launched(0) != NULL, whole = net_launched_whole(error, sizeof error) == 0;
        const char* expected = cases[i].expected;
        int good = !expected ? !found && whole
            : expected[0]    ? !found && !whole && strstr(error, expected) != NULL
                             : found;
        if (!good) printf("     %s: launcher %d; %s\n", cases[i].set[0], found, error);
        right += good;
    }
    for (int i = 0; i < NAMES; i++) {
        if (was[i]) setenv(names[i], kept[i], 1);
        else unsetenv(names[i]);
    }
    check(right == count, "net: a launcher that is there in part is refused", "%d of %d environments", right,
        count);
}

// --- callers ---

// Callers that are none of ours, then the right one: the run is none the worse. How long each was kept.
static void nt_strangers(void) {
    static const char* const what[] = {
        "text", "a hello with a bit turned", "a hello with a cookie", "half a hello, then closed"};
    NtProcess p;
    double longest = 0;
    int closed = 0, port = free_port();
    nt_begin(&p, 0, 2, port, NULL);
    for (int i = 0; i < 4; i++) {
        unsigned char bytes[NET_HELLO];
        net_hello h = nt_hello(1, 2);
        int fd = nt_dial(port);
        if (i == 2) h.cookie = 5;
        net_hello_encode(bytes, &h);
        if (i == 0) memcpy(bytes, "GET / HTTP/1.1\r\n", 16);
        if (i == 1) bytes[20] ^= 1;
        double start = net_now_ms();
        (void)!write(fd, bytes, i == 3 ? 20 : sizeof bytes);
        if (i == 3) shutdown(fd, SHUT_WR);
        const char* verdict = nt_verdict(fd);
        closed += strcmp(verdict, "closed") == 0;
        if (strcmp(verdict, "closed") != 0) printf("     %s: %s\n", what[i], verdict);
        if (net_now_ms() - start > longest) longest = net_now_ms() - start;
        close(fd);
    }
    check(closed == 4 && longest < 1000, "net: what is no hello of this run is hung up on at once",
        "%d of 4, after %.0f ms at most", closed, longest);
    int fd = nt_dial(port);
    net_hello h = nt_hello(1, 2);
    nt_say(fd, &h);
    const char* verdict = nt_verdict(fd);
    close(fd);
    int status = nt_end(&p);
    check(strcmp(verdict, "welcome") == 0 && status == 0, "net: after strangers the right process is welcome",
        "%s", verdict);
}

// Hellos that end the run, because processes do not fit together: both sides say why.
static void nt_misfits(void) {
    static const struct {
        int process, processes, order, secret;
        const char* expected;
    } cases[] = {{2, 2, 0x01020304, 0, "another process was started with --rank 2; there are 2"},
        {0, 2, 0x01020304, 0, "another process was started with --rank 0; there are 2"},
        {-1, 2, 0x01020304, 0, "another process was started with --rank 4294967295"},
        {1, 3, 0x01020304, 0, "process 1 was started with --world 3, process 0 with --world 2"},
        {1, 2, 0x04030201, 0, "process 1: its machine has another byte order"},
        {1, 2, 0x01020304, 1, "process 1 was started with --secret-file, process 0 without"}};
    for (int i = 0; i < (int)(sizeof cases / sizeof cases[0]); i++) {
        NtProcess p;
        int port = free_port();
        nt_begin(&p, 0, 2, port, NULL);
        int fd = nt_dial(port);
        net_hello h = nt_hello(cases[i].process, cases[i].processes);
        h.order = (uint32_t)cases[i].order, h.secret = (uint32_t)cases[i].secret;
        nt_say(fd, &h);
        const char* verdict = nt_verdict(fd);
        int status = nt_end(&p);
        check(status == -1 && strstr(p.error, cases[i].expected) && strcmp(verdict, p.error) == 0,
            "net: a hello that does not fit is refused, and both are told why", "%s", p.error);
        close(fd);
    }
    NtProcess p;
    int port = free_port();
    nt_begin(&p, 0, 3, port, NULL);
    int one = nt_dial(port), two;
    net_hello h = nt_hello(1, 3);
    nt_say(one, &h);
    two = nt_dial(port);
    nt_say(two, &h);
    char first[512];
    snprintf(first, sizeof first, "%s", nt_verdict(two));
    const char* second = nt_verdict(one);
    int status = nt_end(&p);
    check(status == -1 && strcmp(first, second) == 0 && strcmp(first, p.error) == 0 &&
            strstr(first, "two processes were started with --rank 1"),
        "net: two of the same rank end the run, and all are told", "%s", first);
    close(one);
    close(two);
}

// One that says nothing, and one that stops in the middle of its hello, keep their places for a while only.
static void nt_silent(void) {
    NtProcess p;
    int port = free_port(), fds[2], closed = 0;
    nt_timeout = NET_PATIENCE + 2000;
    nt_begin(&p, 0, 2, port, NULL);
    nt_timeout = 20e3;
    unsigned char bytes[NET_HELLO];
    net_hello h = nt_hello(1, 2);
    net_hello_encode(bytes, &h);
    for (int i = 0; i < 2; i++) fds[i] = nt_dial(port);
    (void)!write(fds[1], bytes, 100);
    double start = net_now_ms();
    for (int i = 0; i < 2; i++) {
        closed += strcmp(nt_verdict(fds[i]), "closed") == 0;
        close(fds[i]);
    }
    double took = net_now_ms() - start;
    check(closed == 2 && took > NET_PATIENCE - 500 && took < NET_PATIENCE + 1500,
        "net: silent callers are hung up on", "%d of 2 after %.1f s", closed, took / 1e3);
    int status = nt_end(&p);
    check(status == -1 && strstr(p.error, "process 0: waited 7 s for process 1 of 2 to connect"),
        "net: no wait for callers is longer than its limit", "%s", p.error);
}

// More silent callers than there are places: the oldest go first, and the right one gets in at once.
static void nt_crowd(void) {
    enum { MORE = 144, CROWD = NET_CALLERS + MORE };
    NtProcess p;
    int port = free_port(), fds[CROWD], dropped = 0, oldest = 0;
    nt_begin(&p, 0, 2, port, NULL);
    double start = net_now_ms();
    for (int i = 0; i < CROWD; i++) fds[i] = nt_dial(port);
    for (int tries = 0; tries < 100 && dropped < MORE; tries++) {
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL);
        dropped = oldest = 0;
        for (int i = 0; i < CROWD; i++) {
            char byte;
            int gone = recv(fds[i], &byte, 1, MSG_DONTWAIT) == 0;
            dropped += gone, oldest += gone && i < MORE;
        }
    }
    double took = net_now_ms() - start;
    check(dropped == MORE && oldest == MORE && took < NET_PATIENCE - 1000,
        "net: where places are short, the longest silent callers are hung up on sooner",
        "%d of %d after %.0f ms, %d of them the oldest", dropped, CROWD, took, oldest);
    start = net_now_ms();
    int fd = nt_dial(port);
    net_hello h = nt_hello(1, 2);
    nt_say(fd, &h);
    const char* verdict = nt_verdict(fd);
    took = net_now_ms() - start;
    for (int i = 0; i < CROWD; i++) close(fds[i]);
    close(fd);
    int status = nt_end(&p);
    check(status == 0 && strcmp(verdict, "welcome") == 0 && took < 1500,
        "net: a crowd of silent callers keeps nobody out", "%s after %.0f ms behind %d callers in %d places",
        verdict, took, CROWD, NET_CALLERS);
}

// Whose place is taken: who has said nothing goes before who has spoken, the longest there before the others.
static void nt_dropped(void) {
    static const struct {
        double since[4];
        int fill[4], challenged[4], expected;
    } cases[] = {{{1, 2, 3, 4}, {9, 0, 0, 5}, {0, 0, 0, 0}, 1}, {{4, 3, 2, 1}, {0, 0, 7, 5}, {0, 0, 0, 0}, 1},
        {{1, 4, 3, 2}, {0, 0, 0, 0}, {1, 0, 0, 1}, 2}, {{3, 2, 4, 5}, {1, 2, 3, 4}, {0, 0, 0, 0}, 1},
        {{3, 4, 2, 5}, {0, 0, 0, 0}, {0, 0, 0, 0}, 2}};
    int right = 0, count = (int)(sizeof cases / sizeof cases[0]);
    for (int i = 0; i < count; i++) {
        net_caller callers[4];
        net_door d;
        int pipes[4][2], ends = 0, dropped = -1;
        memset(callers, 0, sizeof callers);
        memset(&d, 0, sizeof d);
        d.callers = callers, d.count = 4;
        for (int k = 0; k < 4; k++) {
            if (pipe(pipes[k]) != 0) exit(1);
            callers[k].fd = pipes[k][1], callers[k].since = cases[i].since[k];
            callers[k].fill = (size_t)cases[i].fill[k], callers[k].challenged = cases[i].challenged[k];
        }
        int status = net_drop_caller(&d);
        for (int k = 0; k < 4; k++) {
            char byte;
            fcntl(pipes[k][0], F_SETFL, O_NONBLOCK);
            if (read(pipes[k][0], &byte, 1) == 0) dropped = k, ends++;
            close(pipes[k][0]);
        }
        for (int k = 0; k < d.count; k++) close(callers[k].fd);
        right += status == 0 && d.count == 3 && ends == 1 && dropped == cases[i].expected;
    }
    check(right == count, "net: who has said nothing goes before who has spoken", "%d of %d", right, count);
}

// Process 0 by hand: what is no welcome is none.
static void nt_false_hosts(void) {
    static const struct {
        const char *what, *expected;   // of the error; NULL: this one is good
    } cases[] = {{"a good welcome", NULL},
        {"a welcome with a bit turned", "what answers there is no process 0"},
        {"a welcome of 3 processes", "what answers there is no process 0"},
        {"a refusal", "process 0: the house is full"},
        {"a refusal with a bit turned", "what answers there is no process 0"},
        {"a challenge", "what answers there is no process 0"}, {"nothing", "is gone (connection closed)"}};
    for (int i = 0; i < (int)(sizeof cases / sizeof cases[0]); i++) {
        NtProcess p;
        char port[16], error[NET_TEXT];
        unsigned char bytes[NET_WELCOME + 3 * NET_PLACE] = {0}, hello[NET_HELLO];
        net_place places[3];
        memset(places, 0, sizeof places);
        int number = free_port();
        snprintf(port, sizeof port, "%d", number);
        int listener = net_socket_listen("127.0.0.1", port, error, sizeof error);
        nt_begin(&p, 1, 2, number, NULL);
        int fd = accept(listener, NULL, NULL);
        net_socket_read(fd, hello, sizeof hello);
        if (i == 3 || i == 4) net_put(bytes, NET_REFUSAL_MAGIC, 8);
        snprintf((char*)bytes + 8, 100, "the house is full");
        size_t size = net_welcome_size(2 + (i == 2));
        if (i >= 3) size = i == 6 ? (size_t)0 : (size_t)(i == 5 ? NET_NOTE : NET_REFUSAL);
        if (i < 3) net_welcome_encode(bytes, 7, places, 2 + (i == 2));
        if (i == 3 || i == 4) net_seal(bytes, NET_REFUSAL);
        if (i == 5) net_note_encode(bytes, NET_CHALLENGE_MAGIC, hello);
        if (i == 1 || i == 4) bytes[30] ^= 4;
        (void)!write(fd, bytes, size);
        shutdown(fd, SHUT_WR);
        int status = nt_end(&p);
        check(cases[i].expected ? status == -1 && strstr(p.error, cases[i].expected) : status == 0,
            "net: what process 0 says is checked", "%s: %s", cases[i].what,
            cases[i].expected ? p.error : "taken");
        close(fd);
        close(listener);
    }
}

typedef struct {
    int fd;
    size_t come;
} NtReader;
static void* nt_read_all(void* argument) {
    NtReader* r = (NtReader*)argument;
    static char bytes[1 << 16];
    for (ssize_t n = 1; n > 0; r->come += n > 0 ? (size_t)n : 0) n = read(r->fd, bytes, sizeof bytes);
    return NULL;
}

// The welcome goes to all at once: one that does not read delays no other.
static void nt_welcome(void) {
    enum { BYTES = 4 << 20 };
    NtProcess p;
    int ends[3][2], small = 4096;
    net_meeting m;
    nt_lend(&p);
    memset(&m, 0, sizeof m);
    unsigned char* bytes = (unsigned char*)calloc(BYTES, 1);
    m.peers = &p.peers, m.stop = &p.stop;
    m.error = p.error, m.size = sizeof p.error;
    m.timeout_ms = 1500, m.deadline = net_now_ms() + 1500;
    if (net_links_make(&p.peers, 0, 3) != 0) exit(1);
    for (int i = 1; i < 3; i++) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends[i]) != 0) exit(1);
        setsockopt(ends[i][0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        p.peers.links[i].fd = ends[i][0];
    }
    NtReader reader = {ends[2][1], 0};   // process 2 reads all, process 1 nothing
    pthread_t thread;
    pthread_create(&thread, NULL, nt_read_all, &reader);
    int status = net_send_all(&m, bytes, BYTES);
    shutdown(ends[2][0], SHUT_RDWR);
    pthread_join(thread, NULL);
    check(status == -1 && reader.come == BYTES && strstr(p.error, "waited 1.5 s for process 1 to hear where"),
        "net: a process that does not read its welcome keeps no other from it",
        "the other has %zu of %d bytes; %s", reader.come, BYTES, p.error);
    for (int i = 1; i < 3; i++) close(ends[i][1]);
    free(bytes);
    nt_return(&p);
}

// --- the secret ---

static net_secret nt_secret(const char* text) {
    net_secret s;
    memset(&s, 0, sizeof s);
    s.size = strlen(text);
    memcpy(s.bytes, text, s.size);
    return s;
}

// Calls with a secret as process 1 of 2: the last answer. `proof` keeps the note that was sent.
static const char* nt_call(int port, const char* secret, const char* who, unsigned char proof[NET_NOTE]) {
    static char text[512];
    unsigned char hello[NET_HELLO], bytes[4096], sum[SHA256_BYTES];
    net_secret s = nt_secret(secret);
    net_hello h = nt_hello(1, 2);
    h.secret = 1;
    net_hello_encode(hello, &h);
    int fd = nt_dial(port);
    (void)!write(fd, hello, sizeof hello);
    const char* verdict = nt_answer(fd, bytes, net_welcome_size(2));
    if (strcmp(verdict, "challenge") == 0) {
        net_prove(sum, &s, who, hello, bytes + 8);
        if (who[0]) net_note_encode(proof, NET_PROOF_MAGIC, sum);
        (void)!write(fd, proof, NET_NOTE);
        verdict = nt_answer(fd, bytes, net_welcome_size(2));
        if (strcmp(verdict, "proof") == 0) verdict = nt_answer(fd, bytes, net_welcome_size(2));
    }
    snprintf(text, sizeof text, "%s", verdict);
    close(fd);
    return text;
}

static void nt_secrets(void) {
    static const char right[] = "a secret that all know", wrong[] = "a secret that one has";
    net_secret s = nt_secret(right), other = nt_secret(wrong);
    unsigned char proof[NET_NOTE];
    NtProcess p, q;
    int port = free_port();
    nt_begin(&p, 0, 2, port, &s);
    char none[512], bad[512], listener[512], again[512];
    int fd = nt_dial(port);
    net_hello h = nt_hello(1, 2);
    nt_say(fd, &h);
    snprintf(none, sizeof none, "%s", nt_verdict(fd));
    close(fd);
    h.process = 7;   // nor may one without the secret end the run
    fd = nt_dial(port);
    nt_say(fd, &h);
    snprintf(again, sizeof again, "%s", nt_verdict(fd));
    close(fd);
    check(strstr(none, "was started with a secret, this one without") && strcmp(none, again) == 0,
        "net: a caller without the secret is refused and told", "%s", none);
    snprintf(bad, sizeof bad, "%s", nt_call(port, wrong, "caller", proof));
    snprintf(listener, sizeof listener, "%s", nt_call(port, right, "listener", proof));
    check(strstr(bad, "has another secret") && strcmp(bad, listener) == 0,
        "net: a caller with another secret, or a listener's proof, is refused and told", "%s", bad);
    check(!nt_done(&p), "net: callers without the secret do not end the run", "process 0 waits on");
    const char* good = nt_call(port, right, "caller", proof);
    int status = nt_end(&p);
    check(strcmp(good, "welcome") == 0 && status == 0, "net: who knows the secret is let in", "%s", good);
    nt_timeout = 500;
    port = free_port();
    nt_begin(&p, 0, 2, port, &s);
    snprintf(again, sizeof again, "%s", nt_call(port, right, "", proof));
    check(strstr(again, "has another secret") != NULL, "net: a proof serves once", "sent again: %s", again);
    status = nt_end(&p);
    check(status == -1 && strstr(p.error, "; 1 times somebody called without the secret"),
        "net: who waited in vain is told of callers without the secret", "%s", p.error);
    nt_timeout = 20e3;
    port = free_port();
    nt_begin(&p, 0, 3, port, &s);
    NtProcess r;
    nt_begin(&q, 1, 3, port, &s);
    nt_begin(&r, 2, 3, port, &s);
    pthread_join(p.thread, NULL);
    pthread_join(q.thread, NULL);
    pthread_join(r.thread, NULL);
    int met = p.status | q.status | r.status;
    NtProcess* all[3] = {&p, &q, &r};
    for (int i = 0; i < 3; i++) pthread_create(&all[i]->thread, NULL, nt_close_thread, all[i]);
    for (int i = 0; i < 3; i++) pthread_join(all[i]->thread, NULL);
    check(met == 0, "net: three processes that know the secret meet", "%s%s%s", p.error, q.error, r.error);
    port = free_port();
    nt_timeout = 1000;
    nt_begin(&p, 0, 2, port, &s);
    nt_timeout = 20e3;
    nt_begin(&q, 1, 2, port, &other);
    status = nt_end(&q);
    check(status == -1 && strstr(q.error, "process 0: --secret-file: process 0 has another secret"),
        "net: a process with another secret ends with a line", "%s", q.error);
    nt_end(&p);
}

// Process 0 by hand, without the secret: the caller finds out.
static void nt_false_listener(void) {
    NtProcess p;
    char port[16], error[NET_TEXT];
    unsigned char hello[NET_HELLO], note[NET_NOTE], nonce[NET_NONCE] = {1, 2, 3};
    net_secret s = nt_secret("a secret that all know");
    int number = free_port(), sent[2] = {0, 0};
    for (int reflects = 0; reflects < 2; reflects++) {
        snprintf(port, sizeof port, "%d", number);
        int listener = net_socket_listen("127.0.0.1", port, error, sizeof error);
        nt_begin(&p, 1, 2, number, &s);
        int fd = accept(listener, NULL, NULL);
        net_socket_read(fd, hello, sizeof hello);
        net_note_encode(note, NET_CHALLENGE_MAGIC, nonce);
        (void)!write(fd, note, sizeof note);
        net_socket_read(fd, note, sizeof note);
        if (!reflects) net_note_encode(note, NET_PROOF_MAGIC, nonce);
        (void)!write(fd, note, sizeof note);   // its own proof, sent back
        int status = nt_end(&p);
        sent[reflects] = status == -1 && strstr(p.error, "does not know the secret") != NULL;
        close(fd);
        close(listener);
    }
    check(sent[0] && sent[1], "net: a listener that does not know the secret is left, with a line", "%s",
        p.error);
}

static void nt_secret_files(void) {
    static const struct {
        int bytes, breaks, mode, good;
    } files[] = {{16, 0, 0600, 1}, {16, 1, 0600, 1}, {15, 0, 0600, 0}, {15, 3, 0600, 0}, {1024, 1, 0640, 1},
        {1025, 0, 0600, 0}, {0, 0, 0600, 0}, {32, 1, 0644, 0}, {32, 1, 0602, 0}};
    int right = 0, count = (int)(sizeof files / sizeof files[0]);
    char error[NET_TEXT] = "";
    net_secret s;
    const char* path = scratch("secret");
    for (int i = 0; i < count; i++) {
        FILE* f = fopen(path, "w");
        for (int k = 0; k < files[i].bytes; k++) fputc('a' + k % 26, f);
        for (int k = 0; k < files[i].breaks; k++) fputc('\n', f);
        fclose(f);
        chmod(path, (mode_t)files[i].mode);
        int status = net_secret_read(&s, path, error, sizeof error);
        int ok = files[i].good ? status == 0 && s.size == (size_t)files[i].bytes : status == -1;
        if (!ok) printf("     %d bytes, mode %o: %d\n", files[i].bytes, (unsigned)files[i].mode, status);
        right += ok;
        remove(path);
    }
    check(right == count, "net: a secret has 16 to 1024 bytes, and not everybody reads it",
        "%d of %d files: %s", right, count, error);
    int refused = net_secret_read(&s, path, error, sizeof error) == -1;
    refused += net_secret_read(&s, "/", error, sizeof error) == -1;
    (void)!mkfifo(path, 0600);
    refused += net_secret_read(&s, path, error, sizeof error) == -1;
    remove(path);
    check(refused == 3, "net: no file, a folder and a FIFO are no secret", "%d of 3: %s", refused, error);
}

// --- frames ---

// A process 1 of 2, two ranks each (2 and 3; 0 and 1 are played by this test at the other end).
static int nt_link(NtProcess* p) {
    int ends[2];
    nt_lend(p);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || net_links_make(&p->peers, 1, 2) != 0 ||
        net_ranks(&p->peers, 2) != 0)
        exit(1);
    p->peers.links[0].fd = ends[0];
    if (net_link_start(&p->peers.links[0]) != 0) exit(1);
    return ends[1];
}
static void nt_frame(int fd, int kind, int from, int to, uint64_t operation, size_t bytes) {
    unsigned char frame[NET_HEADER + 64] = {0};
    net_frame f = {NULL, kind, from, to, operation, bytes, bytes, NULL};
    net_frame_encode(frame, &f);
    (void)!write(fd, frame, NET_HEADER + bytes);
}
// Why nothing more will come, within 5 s; "" if the link is well.
static const char* nt_gone(NtProcess* p) {
    double until = net_now_ms() + 5000;
    pthread_mutex_lock(&p->mutex);
    while (!p->peers.links[0].gone && net_await(&p->changed, &p->mutex, until) == 0) {}
    const char* gone = p->peers.links[0].gone;
    pthread_mutex_unlock(&p->mutex);
    return gone ? gone : "";
}
static int nt_queued(NtProcess* p) {
    int count = 0;
    pthread_mutex_lock(&p->mutex);
    for (net_frame* f = p->peers.links[0].oldest; f; f = f->next) count++;
    pthread_mutex_unlock(&p->mutex);
    return count;
}

static void nt_places(void) {
    static const struct {
        int kind, from, to, good;
    } frames[] = {{0, 0, 2, 1}, {0, 1, 3, 1}, {0, -1, -1, 1}, {0, 0, 4, 0}, {0, 0, 1, 0}, {0, 2, 2, 0},
        {0, -1, 2, 0}, {0, 0, -1, 0}, {0, 77, 2, 0}, {0, 0, 1 << 30, 0}, {0, -5, 2, 0}, {NET_ABORT, 0, 2, 0}};
    int right = 0, count = (int)(sizeof frames / sizeof frames[0]), kept = 0;
    for (int i = 0; i < count; i++) {
        NtProcess p;
        int fd = nt_link(&p);
        nt_frame(fd, frames[i].kind, frames[i].from, frames[i].to, 1, 8);
        shutdown(fd, SHUT_WR);
        const char* gone = nt_gone(&p);
        kept += nt_queued(&p);
        right +=
            strcmp(gone,
                frames[i].good ? "connection closed" : "it sent a frame of ranks that are not there") == 0;
        close(fd);
        nt_return(&p);
    }
    check(right == count && kept == 3, "net: frames of ranks that are not at the two ends are not kept",
        "%d of %d frames, %d kept", right, count, kept);
    NtProcess p;   // before net_ranks only the processes themselves speak
    int fd = nt_link(&p);
    pthread_mutex_lock(&p.mutex);
    p.peers.ranks = 0;
    pthread_mutex_unlock(&p.mutex);
    nt_frame(fd, 0, 0, 2, 1, 8);
    const char* gone = nt_gone(&p);
    check(strstr(gone, "ranks that are not there") != NULL,
        "net: no rank is spoken to before the processes have agreed on them", "%s", gone);
    close(fd);
    nt_return(&p);
}

// A peer sends without end to a rank that takes nothing.
static void nt_window(void) {
    NtProcess p;
    int fd = nt_link(&p);
    for (int i = 0; i < 40; i++) nt_frame(fd, 0, 0, 2, 1, 64);
    const char* gone = nt_gone(&p);
    int queued = nt_queued(&p);
    check(queued == NET_WINDOW && strcmp(gone, "it sent more frames than are taken") == 0,
        "net: a queue is bounded, whoever sends", "of 40 frames %d are kept; %s", queued, gone);
    close(fd);
    nt_return(&p);
    // what is taken is reported, and makes room for as many
    fd = nt_link(&p);
    int taken = 0, reported = 0;
    net_frame f, *frame = NULL;
    const char* why = NULL;
    unsigned char header[NET_HEADER];
    for (int i = 0; i < 40; i++) {
        nt_frame(fd, 0, 1, 2, 1, 64);
        if (net_take(&p.peers, 0, 1, 2, net_now_ms() + 5000, &frame, &why) != NET_OK) break;
        free(frame);
        taken++;
        if (taken % (NET_WINDOW / 2) != 0) continue;
        net_socket_read(fd, header, sizeof header);
        reported += net_frame_decode(&f, header) == 0 && f.kind == NET_TAKEN && f.from == 2 && f.to == 1 &&
            f.operation == NET_WINDOW / 2;
    }
    check(taken == 40 && reported == 80 / NET_WINDOW, "net: taken frames are reported to their sender",
        "%d frames, %d reports", taken, reported);
    // a report of what was never sent
    nt_frame(fd, NET_TAKEN, 0, 2, 1, 0);
    gone = nt_gone(&p);
    check(strcmp(gone, "it reports frames that it was not sent") == 0, "net: a false report ends its link",
        "%s", gone);
    close(fd);
    nt_return(&p);
}

// This side sends to a rank that takes nothing: it waits, no longer than it should, and goes on after a
// report.
static void nt_sender(void) {
    NtProcess p;
    int fd = nt_link(&p), sent = 0, other;
    net_frame f = {NULL, 0, 2, 0, 1, 8, 8, NULL};
    double start = net_now_ms();
    while (net_send(&p.peers, 0, f, "12345678", net_now_ms() + 300) == NET_OK) sent++;
    double took = net_now_ms() - start;
    int may = net_may_send(&p.peers, 0, 2, 0), may_other = net_may_send(&p.peers, 0, 2, 1);
    f.to = 1;   // another rank's stream is another matter
    other = net_send(&p.peers, 0, f, "12345678", net_now_ms() + 300);
    check(sent == NET_WINDOW && !may && may_other && other == NET_OK && took > 250 && took < 3000,
        "net: a sender waits for the receiver, stream by stream", "after %d frames, for %.0f ms", sent, took);
    nt_frame(fd, NET_TAKEN, 0, 2, NET_WINDOW / 2, 0);
    f.to = 0;
    for (sent = 0; net_send(&p.peers, 0, f, "12345678", net_now_ms() + 500) == NET_OK;) sent++;
    check(sent == NET_WINDOW / 2, "net: a report lets the sender go on", "%d frames more", sent);
    // telling of an abort waits for the link by the monotonic clock, a second at most
    pthread_mutex_lock(&p.mutex);
    p.aborted = 1, p.peers.links[0].writing = 1;
    pthread_mutex_unlock(&p.mutex);
    start = net_now_ms();
    net_tell(&p.peers);
    took = net_now_ms() - start;
    check(took > 900 && took < 2500,
        "net: an abort is told without waiting for ever for a link that is taken", "%.0f ms", took);
    pthread_mutex_lock(&p.mutex);
    p.peers.links[0].writing = 0;
    pthread_mutex_unlock(&p.mutex);
    close(fd);
    nt_return(&p);
}

// A process says twice why it stops: the first reason counts, also before one of this process.
static void nt_reasons(void) {
    static const char* const reasons[] = {"the disk is full", "process 7: another reason"};
    NtProcess p;
    int fd = nt_link(&p);
    for (int i = 0; i < 2; i++) {
        unsigned char frame[NET_HEADER] = {0};
        size_t n = strlen(reasons[i]);
        net_frame f = {NULL, NET_ABORT, NET_ITSELF, NET_ITSELF, 0, n, n, NULL};
        net_frame_encode(frame, &f);
        (void)!write(fd, frame, sizeof frame);
        (void)!write(fd, reasons[i], n);
    }
    shutdown(fd, SHUT_WR);
    const char* gone = nt_gone(&p);   // both have been read
    check(strcmp(gone, "connection closed") == 0 && strcmp(p.reason, "process 0: the disk is full") == 0,
        "net: of two reasons to stop the first counts", "%s; %s", p.reason, gone);
    close(fd);
    nt_return(&p);
}

// Process 1 of 3, whose two links end in this test: ends[0] and ends[2].
static void nt_two_links(NtProcess* p, int ends[3]) {
    nt_lend(p);
    if (net_links_make(&p->peers, 1, 3) != 0 || net_ranks(&p->peers, 1) != 0) exit(1);
    for (int i = 0; i < 3; i += 2) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) exit(1);
        p->peers.links[i].fd = pair[0], ends[i] = pair[1];
        if (net_link_start(&p->peers.links[i]) != 0) exit(1);
    }
}

// A process that is lost ends waits for another at once; one that is done ends none, and its own frames can
// still be taken.
static void nt_lost(void) {
    static const char* const whats[] = {"take", "send"};
    for (int sends = 0; sends < 2; sends++)
        for (int done = 0; done < 2; done++) {
            NtProcess p;
            int ends[3], status = NET_OK, sent = 0;
            net_frame f = {NULL, 0, 1, 0, 1, 8, 8, NULL}, *frame = NULL;
            const char* why = NULL;
            nt_two_links(&p, ends);
            nt_frame(ends[2], 0, 2, 1, 1, 8);
            if (done) nt_frame(ends[2], NET_LEAVES, NET_ITSELF, NET_ITSELF, 0, 0);
            shutdown(ends[2], SHUT_WR);
            double start = net_now_ms(), until = start + (done ? 300 : 10e3);
            if (!sends) status = net_take(&p.peers, 0, 0, 1, until, &frame, &why);
            while (sends && (status = net_send(&p.peers, 0, f, "12345678", until)) == NET_OK && sent < 99)
                sent++;
            double took = net_now_ms() - start;
            int kept = done && net_take(&p.peers, 2, 2, 1, until, &frame, &why) == NET_OK;
            if (kept) free(frame);
            pthread_mutex_lock(&p.mutex);
            int lost = net_lost(&p.peers);
            pthread_mutex_unlock(&p.mutex);
            check(done ? status == NET_LATE && lost == -1 && kept && took > 250
                       : status == NET_LOST && lost == 2 && took < 3000,
                "net: a process that is lost ends all waits, one that is done none",
                "to %s, process 2 %s: status %d after %.0f ms, lost %d", whats[sends], done ? "done" : "lost",
                status, took, lost);
            for (int i = 0; i < 3; i += 2) close(ends[i]);
            nt_return(&p);
        }
    // and says so itself: the last that comes of a process that closes its links
    for (int aborts = 0; aborts < 2; aborts++) {
        NtProcess p;
        unsigned char header[NET_HEADER];
        net_frame f;
        int fd = nt_link(&p);
        pthread_mutex_lock(&p.mutex);
        p.aborted = aborts;
        pthread_mutex_unlock(&p.mutex);
        shutdown(fd, SHUT_WR);
        nt_return(&p);
        int whole = net_socket_read(fd, header, sizeof header) == 0 && net_frame_decode(&f, header) == 0;
        int kind = whole ? f.kind : -1, more = net_socket_read(fd, header, 1) == 0;
        check(kind == (aborts ? (int)NET_ABORT : (int)NET_LEAVES) && !more,
            "net: a process that closes its links says that it is done, or why it stops", "kind %d", kind);
        close(fd);
    }
}

// Process 1 of 3 has met process 0, which stops, and waits for process 2, which never comes: it hears why.
// What process 0 sent before is passed over.
static void nt_farewell(void) {
    static const char* const reasons[] = {"the disk is full", "process 5: the disk is full", NULL};
    static const char* const expected[] = {"process 0: the disk is full", "process 5: the disk is full",
        "process 0 is gone (connection closed)"};
    int right = 0;
    NtProcess p;
    for (int i = 0; i < 3; i++) {
        char port[16], error[NET_TEXT];
        unsigned char bytes[NET_WELCOME + 3 * NET_PLACE] = {0}, hello[NET_HELLO], frame[NET_HEADER];
        static unsigned char before[5000];
        net_place places[3];
        memset(places, 0, sizeof places);
        int number = free_port();
        snprintf(port, sizeof port, "%d", number);
        int listener = net_socket_listen("127.0.0.1", port, error, sizeof error);
        nt_begin(&p, 1, 3, number, NULL);
        int fd = accept(listener, NULL, NULL);
        net_socket_read(fd, hello, sizeof hello);
        net_welcome_encode(bytes, 7, places, 3);
        (void)!write(fd, bytes, sizeof bytes);
        nt_frame(fd, 4, NET_ITSELF, NET_ITSELF, 1, 8);
        net_frame f = {NULL, 4, NET_ITSELF, NET_ITSELF, 2, sizeof before, sizeof before, NULL};
        net_frame_encode(frame, &f);
        (void)!write(fd, frame, sizeof frame);
        (void)!write(fd, before, sizeof before);
        f.kind = NET_ABORT, f.message = f.bytes = reasons[i] ? strlen(reasons[i]) : 0;
        net_frame_encode(frame, &f);
        if (reasons[i]) (void)!write(fd, frame, sizeof frame), (void)!write(fd, reasons[i], f.bytes);
        double start = net_now_ms();
        shutdown(fd, SHUT_WR);
        int status = nt_end(&p);
        double took = net_now_ms() - start;
        int good = status == -1 && strstr(p.error, expected[i]) && took < 3000;
        if (!good) printf("     %s, after %.0f ms\n", p.error, took);
        right += good;
        close(fd);
        close(listener);
    }
    check(right == 3, "net: a process that still waits for others hears why one stops", "%d of 3: %s", right,
        p.error);
}

// Process 2 of 3 waits for the answer of process 1, which hangs, while process 0 leaves: that ends it.
static void nt_left(void) {
    static const char right[] = "a secret that all know";
    net_secret s = nt_secret(right);
    NtProcess p;
    char port[16], error[NET_TEXT];
    unsigned char bytes[NET_WELCOME + 3 * NET_PLACE] = {0}, hello[NET_HELLO], note[NET_NOTE],
                                          nonce[NET_NONCE] = {1}, sum[SHA256_BYTES];
    net_place places[3];
    memset(places, 0, sizeof places);
    int numbers[2] = {free_port(), 0}, listeners[2];
    for (int i = 0; i < 2; i++) {
        if (i) numbers[1] = free_port();
        snprintf(port, sizeof port, "%d", numbers[i]);
        listeners[i] = net_socket_listen("127.0.0.1", port, error, sizeof error);
    }
    places[1].port = (uint32_t)numbers[1];
    nt_begin(&p, 2, 3, numbers[0], &s);
    int fd = accept(listeners[0], NULL, NULL);
    net_socket_read(fd, hello, sizeof hello);
    net_note_encode(note, NET_CHALLENGE_MAGIC, nonce);
    (void)!write(fd, note, sizeof note);
    net_socket_read(fd, note, sizeof note);
    net_prove(sum, &s, "listener", hello, nonce);
    net_note_encode(note, NET_PROOF_MAGIC, sum);
    (void)!write(fd, note, sizeof note);
    net_welcome_encode(bytes, 7, places, 3);
    (void)!write(fd, bytes, sizeof bytes);
    int silent = accept(listeners[1], NULL, NULL);
    net_socket_read(silent, hello, sizeof hello);
    double start = net_now_ms();
    close(fd);
    int status = nt_end(&p);
    double took = net_now_ms() - start;
    check(status == -1 && strstr(p.error, "process 0 is gone (connection closed) before all had met") &&
            took < 3000,
        "net: nobody waits for one process where another has left before all had met", "%s, after %.0f ms",
        p.error, took);
    close(silent);
    for (int i = 0; i < 2; i++) close(listeners[i]);
}

static void test_net(void) {
    nt_sha256();
    nt_bytes();
    nt_addresses();
    nt_launched();
    nt_strangers();
    nt_misfits();
    nt_silent();
    nt_crowd();
    nt_dropped();
    nt_false_hosts();
    nt_welcome();
    nt_secrets();
    nt_false_listener();
    nt_secret_files();
    nt_places();
    nt_window();
    nt_sender();
    nt_reasons();
    nt_lost();
    nt_farewell();
    nt_left();
}
