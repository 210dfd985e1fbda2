// net.h: joins the processes of a run by TCP, on one machine or several: how they meet, and messages between
// each two.
//
//     net_peers n; char error[NET_TEXT];
//     net_init(&n, &mutex, &changed, &aborted, reason);     // what the caller's own threads wait with, too
//     if (net_open(&n, process, processes, "host:29400", 30e3, &stop, error, sizeof error)) ...   // all met
//     net_send(&n, peer, message, data, deadline)           // a whole message; NET_OK, or why not
//     net_take(&n, peer, from, to, deadline, &frame, &why)  // its next frame, which the caller frees
//     net_tell(&n)                                          // after an abort: all others learn the reason
//     net_close(&n);
//
// Processes are numbered from 0; between each two there is one connection, a link. A thread per link reads
// frames into a queue as they come, so that no two processes ever wait for each other's sockets. A thread
// that takes a frame waits for `changed` with `mutex` held, as the caller's threads do among themselves: one
// wait ends by whatever comes first, a frame, the end of a connection, or an abort. Deadlines are in ms of
// net_now_ms; 0: none. Needs Linux (accept4, POLLRDHUP) and zlib; under -std=c11 define _GNU_SOURCE before
// the first include.
//
// A message is cut into frames of NET_FRAME_BYTES and a rest; one of no bytes is one frame. All integers of a
// frame are little-endian.
//
//     offset  bytes  frame
//          0      4  magic 47 32 53 50, "G2SP"
//          4      4  kind: 0 .. NET_ABORT - 1 are the caller's; NET_ABORT: why the sender's process stops
//          8      4  from, signed: who in the sender's process; the caller's numbers, -1 the process itself
//         12      4  to, signed: the same in the receiver's
//         16      8  operation: the caller's
//         24      8  bytes of the message
//         32      8  bytes of this frame, at most NET_FRAME_BYTES and the message's; of an abort < NET_TEXT
//         40      4  zero
//         44      4  CRC-32 of bytes 0 .. 43
//         48     ..  the bytes of this frame
//
// Memory is taken for what has a valid header, one frame at a time. A frame that is none ends its link.
//
// How processes meet: process 0 listens at the address that all were given; the others connect, say who they
// are and where they listen (hello); when all are there, each is told where the others are (welcome, with a
// place of each process) and connects to those with lower numbers, again with a hello. Integers here are in
// the machine's order, which the magic shows; texts end with a NUL.
//
//     offset  bytes  hello                             offset  bytes  welcome
//          0      8  magic "GPT2SPH1"                       0      8  magic "GPT2SPW1"
//          8      8  cookie: 0 to process 0, else           8      8  cookie, of this run; 0 in a refusal
//                    the welcome's                         16      4  processes; 0 in a refusal
//         16      4  process                               20      4  CRC-32 of this, zeros here, and of
//         20      4  processes                                        the places; 0 in a refusal
//         24      4  port where it listens;                24    512  refusal: why there is no run, or ""
//                    0: it does not                    offset  bytes  place, of each process in turn
//         28      4  CRC-32 of this, zeros here             0     64  address; "": process 0's machine
//         32     96  machine: host name, boot id           64     96  machine
//                                                         160      4  port
//                                                         164      4  zero
//
// Whatever else connects is hung up on, at once if its first bytes are no hello's, else after 5 s. There is
// no secret in this: the port belongs in a private network.
//
// net_open gives 0, or -1 with one line in the buffer that names the process and what it waited for or found;
// such lines call the process' number, their count and the address by the options that set them: --rank,
// --world, --master. net_launched and net_launched_master find the three in what torchrun, mpirun and srun
// have set.

#ifndef GPT2_SP_NET_H
#define GPT2_SP_NET_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum { NET_TEXT = 1024 };                              // bytes of a reason, its end included
enum { NET_FRAME_BYTES = 1 << 20, NET_HEADER = 48 };   // most bytes of a frame; before them
enum { NET_FRAME_MAGIC = 0x50533247 };                 // "G2SP"
enum { NET_ABORT = 5, NET_KINDS };                     // kinds of frames: see above
enum { NET_ITSELF = -1 };                              // from, to: the process itself
enum { NET_OK, NET_ABORTED, NET_LATE, NET_GONE };      // what becomes of a send or a take
#define NET_HELLO_MAGIC 0x3148505332545047ull          // "GPT2SPH1"
#define NET_WELCOME_MAGIC 0x3157505332545047ull        // "GPT2SPW1"

typedef struct net_frame net_frame;
struct net_frame {
    net_frame* next;
    int kind, from, to;
    uint64_t operation, message;   // message: bytes of all its frames
    size_t bytes;                  // of this one
    unsigned char* data;           // behind this struct
};

typedef struct net_peers net_peers;

// The connection to one other process.
typedef struct {
    net_peers* peers;
    int fd;             // -1: there is none
    pthread_t thread;   // reads what comes
    int reading;        // it runs
    pthread_mutex_t sending;
    int torn;                     // a frame was sent in part: nothing can follow it
    net_frame *oldest, *newest;   // come, but not taken; the peers' mutex guards these two and `gone`
    const char* gone;             // why nothing more will come
} net_link;

struct net_peers {
    // the caller's, by net_init
    pthread_mutex_t* mutex;    // guards the next three
    pthread_cond_t* changed;   // of CLOCK_MONOTONIC; broadcast with whatever comes
    int* aborted;              // set by the caller, or by a process that tells of its abort: all waits end
    char* reason;              // NET_TEXT bytes; the first one stays
    // by net_open
    int process, processes;               // this one, and all
    int local_process, local_processes;   // among those of this machine, in the order of their numbers
    net_link* links;                      // (processes); NULL: there are none
    int told;                             // the others know of the abort
};

typedef struct {
    uint64_t magic, cookie;
    uint32_t process, processes, port, crc;
    char machine[96];
} net_hello;
typedef struct {
    uint64_t magic, cookie;
    uint32_t processes, crc;
    char refusal[512];
} net_welcome;
typedef struct {
    char address[64], machine[96];
    uint32_t port, unused;
} net_place;

// ================================================================================
// time, messages, bytes

// Leaves one line in error and returns -1.
__attribute__((format(printf, 3, 4))) GPT2_SP_LEAF int net_error(
    char* error, size_t size, const char* format, ...) {
    va_list args;
    va_start(args, format);
    if (error && size) vsnprintf(error, size, format, args);
    va_end(args);
    return -1;
}

GPT2_SP_LEAF double net_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

GPT2_SP_LEAF int net_passed(double deadline) { return deadline > 0 && net_now_ms() > deadline; }

// Sleeps until something changes, with the mutex held. -1: the deadline has passed.
GPT2_SP_LEAF int net_await(pthread_cond_t* changed, pthread_mutex_t* mutex, double deadline) {
    if (deadline <= 0) return pthread_cond_wait(changed, mutex), 0;
    struct timespec until;
    until.tv_sec = (time_t)(deadline / 1e3);
    until.tv_nsec = (long)((deadline - 1e3 * (double)until.tv_sec) * 1e6);
    return pthread_cond_timedwait(changed, mutex, &until) == ETIMEDOUT ? -1 : 0;
}

GPT2_SP_LEAF void net_put(unsigned char* p, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (unsigned char)(value >> (8 * i));
}

GPT2_SP_LEAF uint64_t net_get(const unsigned char* p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

// ================================================================================
// frames and links

// Bytes of the next frame of a message of which `rest` are left.
GPT2_SP_LEAF size_t net_frame_bytes(uint64_t rest) {
    return rest < (uint64_t)NET_FRAME_BYTES ? (size_t)rest : (size_t)NET_FRAME_BYTES;
}

// Writes the NET_HEADER bytes that go before a frame's own.
GPT2_SP_LEAF void net_frame_encode(unsigned char* h, const net_frame* f) {
    net_put(h, NET_FRAME_MAGIC, 4), net_put(h + 4, (uint64_t)f->kind, 4);
    net_put(h + 8, (uint32_t)f->from, 4), net_put(h + 12, (uint32_t)f->to, 4);
    net_put(h + 16, f->operation, 8), net_put(h + 24, f->message, 8);
    net_put(h + 32, f->bytes, 8), net_put(h + 40, 0, 4);
    net_put(h + 44, (uint64_t)crc32(0, h, NET_HEADER - 4), 4);
}

// Reads a header; -1 if it is none, or promises what no sender sends.
GPT2_SP_LEAF int net_frame_decode(net_frame* f, const unsigned char* h) {
    memset(f, 0, sizeof *f);
    if (net_get(h, 4) != NET_FRAME_MAGIC || net_get(h + 44, 4) != (uint64_t)crc32(0, h, NET_HEADER - 4))
        return -1;
    uint64_t kind = net_get(h + 4, 4), bytes = net_get(h + 32, 8);
    if (kind >= NET_KINDS || bytes > NET_FRAME_BYTES || (kind == NET_ABORT && bytes >= NET_TEXT)) return -1;
    f->kind = (int)kind;
    f->from = (int32_t)net_get(h + 8, 4), f->to = (int32_t)net_get(h + 12, 4);
    f->operation = net_get(h + 16, 8), f->message = net_get(h + 24, 8);
    f->bytes = (size_t)bytes;
    return f->message >= bytes ? 0 : -1;
}

// What the caller lends: see net_peers. The condition's clock is CLOCK_MONOTONIC; nothing here may move while
// there are links.
GPT2_SP_LEAF void net_init(
    net_peers* n, pthread_mutex_t* mutex, pthread_cond_t* changed, int* aborted, char* reason) {
    memset(n, 0, sizeof *n);
    n->mutex = mutex, n->changed = changed;
    n->aborted = aborted, n->reason = reason;
}

GPT2_SP_LEAF int net_aborted(net_peers* n) {
    pthread_mutex_lock(n->mutex);
    int aborted = *n->aborted;
    pthread_mutex_unlock(n->mutex);
    return aborted;
}

// Why nothing more comes from a process, NULL while something may. With the mutex held.
GPT2_SP_LEAF const char* net_gone(const net_peers* n, int process) {
    return n->links ? n->links[process].gone : NULL;
}

// Reads exactly `bytes`: 0; -1: the connection was closed or broke before.
GPT2_SP_LEAF int net_socket_read(int fd, void* out, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = recv(fd, (char*)out + done, bytes - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        done += (size_t)n;
    }
    return 0;
}

// A process says why it stops, and so this one stops. What that process was told by another already names
// whose error it is. With the mutex held.
GPT2_SP_LEAF void net_hear_abort(net_peers* n, int process, const char* said) {
    if (*n->aborted) return;
    *n->aborted = 1;
    if (strncmp(said, "process ", 8) == 0) snprintf(n->reason, NET_TEXT, "%.1000s", said);
    else snprintf(n->reason, NET_TEXT, "process %d: %.980s", process, said);
}

// One frame off the link: into the queue, or, an abort, to all who wait. NULL, or why nothing more will come.
GPT2_SP_LEAF const char* net_link_read(net_link* l) {
    static const char* const closed = "connection closed";
    net_peers* n = l->peers;
    unsigned char header[NET_HEADER];
    net_frame f;
    if (net_socket_read(l->fd, header, sizeof header) != 0) return closed;
    if (net_frame_decode(&f, header) != 0) return "it sent what is no frame";
    net_frame* frame = (net_frame*)malloc(sizeof f + f.bytes + 1);
    if (!frame) return "no memory for what it sends";
    *frame = f;
    frame->data = (unsigned char*)(frame + 1);
    frame->data[f.bytes] = 0;
    if (net_socket_read(l->fd, frame->data, f.bytes) != 0) {
        free(frame);
        return closed;
    }
    pthread_mutex_lock(n->mutex);
    if (f.kind == NET_ABORT) {
        net_hear_abort(n, (int)(l - n->links), (const char*)frame->data);
        free(frame);
    } else {
        if (l->newest) l->newest->next = frame;
        else l->oldest = frame;
        l->newest = frame;
    }
    pthread_cond_broadcast(n->changed);
    pthread_mutex_unlock(n->mutex);
    return NULL;
}

GPT2_SP_LEAF void* net_link_thread(void* argument) {
    net_link* l = (net_link*)argument;
    const char* why = NULL;
    while (!why) why = net_link_read(l);
    pthread_mutex_lock(l->peers->mutex);
    l->gone = why;
    pthread_cond_broadcast(l->peers->changed);
    pthread_mutex_unlock(l->peers->mutex);
    return NULL;
}

// Writes all of it, with the link's `sending` held. `tells`: of an abort, which ends every other write.
GPT2_SP_LEAF int net_link_write(
    net_link* l, const void* data, size_t bytes, int more, double deadline, int tells) {
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0);
    for (size_t done = 0; done < bytes;) {
        ssize_t n = send(l->fd, (const char*)data + done, bytes - done, flags);
        if (n > 0) done += (size_t)n;
        if (n > 0 || (n < 0 && errno == EINTR)) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
            return errno == ETIMEDOUT ? NET_LATE : NET_GONE;   // TCP's own time limit
        struct pollfd full = {l->fd, POLLOUT, 0};
        poll(&full, 1, 100);
        if (!tells && net_aborted(l->peers)) return NET_ABORTED;
        if (net_passed(deadline)) return NET_LATE;
    }
    return NET_OK;
}

// Header and bytes of a frame, with the link's `sending` held.
GPT2_SP_LEAF int net_frame_write(
    net_link* l, const net_frame* f, const void* data, double deadline, int tells) {
    unsigned char header[NET_HEADER];
    net_frame_encode(header, f);
    if (l->torn) return NET_GONE;
    l->torn = 1;
    int status = net_link_write(l, header, sizeof header, f->bytes > 0, deadline, tells);
    if (status == NET_OK) status = net_link_write(l, data, f->bytes, 0, deadline, tells);
    if (status == NET_OK) l->torn = 0;
    return status;
}

// Sends a message to a process; f holds its kind, from, to, operation and bytes (`message`). Threads may send
// at the same time: no frame is mixed with another.
GPT2_SP_LEAF int net_send(net_peers* n, int process, net_frame f, const void* data, double deadline) {
    net_link* l = &n->links[process];
    if (net_aborted(n)) return NET_ABORTED;
    for (uint64_t at = 0; at == 0 || at < f.message; at += NET_FRAME_BYTES) {
        f.bytes = net_frame_bytes(f.message - at);
        pthread_mutex_lock(&l->sending);
        int status = net_frame_write(l, &f, (const char*)data + at, deadline, 0);
        pthread_mutex_unlock(&l->sending);
        if (status == NET_OK) continue;
        // a peer that left has said why, if it could: what it said is read first
        double patience = net_now_ms() + 1000;
        pthread_mutex_lock(n->mutex);
        while (status == NET_GONE && !*n->aborted && !l->gone &&
            net_await(n->changed, n->mutex, patience) == 0) {}
        if (*n->aborted) status = NET_ABORTED;
        pthread_mutex_unlock(n->mutex);
        return status;
    }
    return NET_OK;
}

// Takes the next frame that `from` there has sent to `to` here, waiting for it; the caller frees it. Where no
// more will come (NET_GONE), *why says why.
GPT2_SP_LEAF int net_take(
    net_peers* n, int process, int from, int to, double deadline, net_frame** frame, const char** why) {
    net_link* l = &n->links[process];
    net_frame *f = NULL, *before = NULL;
    int status = NET_OK, late = 0;
    pthread_mutex_lock(n->mutex);
    while (status == NET_OK) {
        for (before = NULL, f = l->oldest; f && (f->from != from || f->to != to); f = f->next) before = f;
        if (*n->aborted) status = NET_ABORTED;
        else if (f) break;
        else if (l->gone) status = NET_GONE;
        else if (late) status = NET_LATE;
        else late = net_await(n->changed, n->mutex, deadline) != 0;
    }
    if (status == NET_OK) {
        if (before) before->next = f->next;
        else l->oldest = f->next;
        if (l->newest == f) l->newest = before;
    }
    *frame = status == NET_OK ? f : NULL, *why = l->gone;
    pthread_mutex_unlock(n->mutex);
    return status;
}

// Tells all other processes, once, why this one stops, even if one of them told this one: then whoever finds
// a connection closed has heard why before, on that same connection.
GPT2_SP_LEAF void net_tell(net_peers* n) {
    char reason[NET_TEXT];
    pthread_mutex_lock(n->mutex);
    memcpy(reason, n->reason, sizeof reason);
    int told = n->told;
    n->told = 1;
    pthread_mutex_unlock(n->mutex);
    for (int process = 0; !told && n->links && process < n->processes; process++) {
        net_link* l = &n->links[process];
        net_frame f = {NULL, NET_ABORT, NET_ITSELF, NET_ITSELF, 0, strlen(reason), strlen(reason), NULL};
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);   // the only clock of pthread_mutex_timedlock
        soon.tv_sec += 1;
        if (l->fd < 0 || pthread_mutex_timedlock(&l->sending, &soon) != 0) continue;
        // one that cannot be told will see the connection close
        (void)net_frame_write(l, &f, reason, net_now_ms() + 1000, 1);
        pthread_mutex_unlock(&l->sending);
    }
}

// Room for the links to all processes, none of which is made.
GPT2_SP_LEAF int net_links_make(net_peers* n, int process, int processes) {
    n->links = (net_link*)calloc((size_t)processes, sizeof *n->links);
    if (!n->links) return -1;
    n->process = process, n->processes = processes;
    for (int i = 0; i < processes; i++) {
        n->links[i].fd = -1, n->links[i].peers = n;
        pthread_mutex_init(&n->links[i].sending, NULL);
    }
    return 0;
}

// Begins to read what comes from a process.
GPT2_SP_LEAF int net_link_start(net_link* l) {
    l->reading = pthread_create(&l->thread, NULL, net_link_thread, l) == 0;
    return l->reading ? 0 : -1;
}

// Ends all links. Closing with bytes unread could take back bytes sent: each end says first that it sends no
// more, and waits until the other has said so too, 5 s at most, 2 after an abort.
GPT2_SP_LEAF void net_close(net_peers* n) {
    struct timespec pause = {0, 5000000};
    if (!n->links) return;
    if (net_aborted(n)) net_tell(n);
    for (int i = 0; i < n->processes; i++)
        if (n->links[i].fd >= 0) shutdown(n->links[i].fd, SHUT_WR);
    double until = net_now_ms() + (net_aborted(n) ? 2000 : 5000);
    for (int i = 0; i < n->processes; i++) {
        net_link* l = &n->links[i];
        for (int gone = 0; l->reading && !gone && net_now_ms() < until;) {
            pthread_mutex_lock(n->mutex);
            gone = l->gone != NULL;
            pthread_mutex_unlock(n->mutex);
            if (!gone) nanosleep(&pause, NULL);
        }
        if (l->fd >= 0) shutdown(l->fd, SHUT_RDWR);
        if (l->reading) pthread_join(l->thread, NULL);
        if (l->fd >= 0) close(l->fd);
        for (net_frame* f = l->oldest; f; f = l->oldest) {
            l->oldest = f->next;
            free(f);
        }
        pthread_mutex_destroy(&l->sending);
    }
    free(n->links);
    n->links = NULL;
}

// ================================================================================
// addresses and sockets

typedef struct {
    char host[256], port[8];
} net_address;

// "host:port", "[v6 address]:port".
GPT2_SP_LEAF int net_address_parse(net_address* a, const char* text, char* error, size_t size) {
    const char* colon = strrchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    int bracket = n > 2 && text[0] == '[' && text[n - 1] == ']';
    char* end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : 0;
    if (!colon || n == 0 || n >= sizeof a->host || !isdigit((unsigned char)colon[1]) || *end || port < 1 ||
        port > 65535 || (!bracket && memchr(text, ':', n)))
        return net_error(error, size, "--master %.300s: expected HOST:PORT", text);
    snprintf(a->host, sizeof a->host, "%.*s", (int)(bracket ? n - 2 : n), text + bracket);
    snprintf(a->port, sizeof a->port, "%ld", port);
    return 0;
}

GPT2_SP_LEAF int net_is_loopback(const char* host) {
    return strcmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

GPT2_SP_LEAF void net_socket_options(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

// Listens at host:port ("": any address of this machine; port "0": any port). The socket, or -1.
GPT2_SP_LEAF int net_socket_listen(const char* host, const char* port, char* error, size_t size) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = host[0] ? AF_UNSPEC : AF_INET6;
    hints.ai_socktype = SOCK_STREAM, hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    int fd = -1, code = 0, on = 1, off = 0;
    // any: IPv6 and IPv4 in one, or IPv4 alone
    for (int family = 0; fd < 0 && family < (host[0] ? 1 : 2); family++) {
        if (family == 1) hints.ai_family = AF_INET;
        if (getaddrinfo(host[0] ? host : NULL, port, &hints, &found) != 0) continue;
        for (struct addrinfo* a = found; fd < 0 && a; a = a->ai_next) {
            fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (fd < 0) continue;
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
            if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0) break;
            code = errno;
            close(fd);
            fd = -1;
        }
        freeaddrinfo(found);
        if (code == EADDRINUSE) break;
    }
    if (fd < 0)
        net_error(error, size, "cannot listen at %.200s:%s: %s", host[0] ? host : "*", port,
            code ? strerror(code) : "no such address");
    return fd;
}

// The numeric address of a socket's own or other end.
GPT2_SP_LEAF void net_socket_name(
    int fd, int other, char* host, size_t host_size, char* port, size_t port_size) {
    struct sockaddr_storage name;
    socklen_t size = sizeof name;
    host[0] = port[0] = 0;
    int code = other ? getpeername(fd, (struct sockaddr*)&name, &size)
                     : getsockname(fd, (struct sockaddr*)&name, &size);
    if (code != 0) return;
    getnameinfo((struct sockaddr*)&name, size, host, (socklen_t)host_size, port, (socklen_t)port_size,
        NI_NUMERICHOST | NI_NUMERICSERV);
    if (strncmp(host, "::ffff:", 7) == 0 && strchr(host, '.'))
        memmove(host, host + 7, strlen(host + 7) + 1);   // IPv4 after all
}

// Whether both ends of a connection are the same: where nobody listens yet, a port of this machine may be
// connected to itself.
GPT2_SP_LEAF int net_socket_is_own(int fd) {
    char one[128], two[128], port_one[16], port_two[16];
    net_socket_name(fd, 0, one, sizeof one, port_one, sizeof port_one);
    net_socket_name(fd, 1, two, sizeof two, port_two, sizeof port_two);
    return strcmp(one, two) == 0 && strcmp(port_one, port_two) == 0;
}

// One attempt to connect, for at most a few seconds. The socket, or -1 and why.
GPT2_SP_LEAF int net_socket_connect(const char* host, const char* port, const char** why) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM, hints.ai_flags = AI_NUMERICSERV;
    int code = getaddrinfo(host, port, &hints, &found), fd = -1;
    *why = gai_strerror(code);
    if (code != 0) return -1;
    for (struct addrinfo* a = found; fd < 0 && a; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) continue;
        int error = 0;
        socklen_t size = sizeof error;
        struct pollfd wait = {fd, POLLOUT, 0};
        if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) error = errno;
        if (error == EINPROGRESS) {
            if (poll(&wait, 1, 3000) != 1) error = ETIMEDOUT;
            else getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        }
        if (error == 0 && net_socket_is_own(fd)) error = ECONNREFUSED;
        *why = strerror(error);
        if (error == 0) {
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
            break;
        }
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

// Small things, on connections without traffic.
GPT2_SP_LEAF int net_socket_send(int fd, const void* data, size_t bytes) {
    return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes ? 0 : -1;
}

// ================================================================================
// how processes meet

// What net_open was given, and what it found.
typedef struct {
    net_peers* peers;
    const char* master;
    double timeout_ms, deadline;
    const volatile sig_atomic_t* stop;
    char* error;
    size_t size;
    net_address address;   // the master's
    net_place* places;     // (processes)
} net_meeting;

#define NET_FAIL(m, ...) net_error((m)->error, (m)->size, __VA_ARGS__)

GPT2_SP_LEAF uint32_t net_hello_crc(net_hello h) {
    h.crc = 0;
    return (uint32_t)crc32(0, (const unsigned char*)&h, sizeof h);
}

GPT2_SP_LEAF uint32_t net_welcome_crc(net_welcome w, const net_place* places, int count) {
    w.crc = 0;
    uLong crc = crc32(0, (const unsigned char*)&w, sizeof w);
    return (uint32_t)crc32(crc, (const unsigned char*)places, (unsigned)((size_t)count * sizeof *places));
}

// This machine: machines may share a name, hence the number of its last start.
GPT2_SP_LEAF void net_machine(char* out, size_t size) {
    char name[48] = "", id[40] = "";
    FILE* boot = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (boot && !fgets(id, sizeof id, boot)) id[0] = 0;
    if (boot) fclose(boot);
    gethostname(name, sizeof name - 1);
    snprintf(out, size, "%.47s %.36s", name, id);
}

GPT2_SP_LEAF net_hello net_hello_make(const net_peers* n, uint64_t cookie, int port) {
    net_hello h;
    memset(&h, 0, sizeof h);
    h.magic = NET_HELLO_MAGIC, h.cookie = cookie;
    h.process = (uint32_t)n->process, h.processes = (uint32_t)n->processes;
    h.port = (uint32_t)port;
    net_machine(h.machine, sizeof h.machine);
    h.crc = net_hello_crc(h);
    return h;
}

// A number that another run at the same port does not have; not 0.
GPT2_SP_LEAF uint64_t net_cookie(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    return (ns ^ (uint64_t)getpid() << 32) | 1;
}

GPT2_SP_LEAF void net_refuse(int fd, const char* reason) {
    net_welcome w;
    memset(&w, 0, sizeof w);
    w.magic = NET_WELCOME_MAGIC;
    snprintf(w.refusal, sizeof w.refusal, "%.500s", reason);
    (void)net_socket_send(fd, &w, sizeof w);
}

// Reads exactly `bytes` before the deadline and the signal: 0 or -1.
GPT2_SP_LEAF int net_socket_read_until(const net_meeting* m, int fd, void* out, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        struct pollfd ready = {fd, POLLIN, 0};
        if (*m->stop || net_passed(m->deadline)) return -1;
        if (poll(&ready, 1, 100) <= 0) continue;
        ssize_t n = recv(fd, (char*)out + done, bytes - done, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return -1;
        if (n > 0) done += (size_t)n;
    }
    return 0;
}

// A connection that has not said yet who it is.
typedef struct {
    int fd;
    size_t fill;    // bytes of hello
    double until;   // then it is hung up on
    net_hello hello;
} net_caller;
enum { NET_CALLERS = 256 };                                          // at a time
enum { NET_REFUSED = -1, NET_STRANGER, NET_ADMITTED, NET_SPEAKS };   // what a caller is; not all has come

// A whole hello has come, to one that waits for the processes from `first` on: NET_ADMITTED, and the link is
// made; NET_STRANGER: it is none of ours; NET_REFUSED: the processes do not fit together.
GPT2_SP_LEAF int net_admit(net_meeting* m, const net_caller* c, int first, uint64_t cookie) {
    net_peers* n = m->peers;
    const net_hello* h = &c->hello;
    if (h->magic != NET_HELLO_MAGIC || h->crc != net_hello_crc(*h) || h->cookie != cookie)
        return NET_STRANGER;
    if ((int)h->processes != n->processes)
        return NET_FAIL(m, "process %u was started with --world %u, process %d with --world %d", h->process,
            h->processes, n->process, n->processes);
    if ((int)h->process < first || (int)h->process >= n->processes)
        return NET_FAIL(m, "another process was started with --rank %u; there are %d, one each of 0 to %d",
            h->process, n->processes, n->processes - 1);
    if (n->links[h->process].fd >= 0)
        return NET_FAIL(m, "two processes were started with --rank %u", h->process);
    n->links[h->process].fd = c->fd;
    net_place* place = &m->places[h->process];
    place->port = h->port;
    memcpy(place->machine, h->machine, sizeof place->machine);
    place->machine[sizeof place->machine - 1] = 0;
    return NET_ADMITTED;
}

// Reads what has come from a caller, and what that makes of it.
GPT2_SP_LEAF int net_caller_read(net_meeting* m, net_caller* c, int first, uint64_t cookie) {
    ssize_t n = recv(c->fd, (char*)&c->hello + c->fill, sizeof c->hello - c->fill, MSG_DONTWAIT);
    if (n > 0) c->fill += (size_t)n;
    if (c->fill == sizeof c->hello) return net_admit(m, c, first, cookie);
    if (c->fill >= sizeof c->hello.magic && c->hello.magic != NET_HELLO_MAGIC) return NET_STRANGER;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return NET_STRANGER;
    return net_now_ms() > c->until ? NET_STRANGER : NET_SPEAKS;
}

// The first process from `first` on that is not linked; all of them, if there is none.
GPT2_SP_LEAF int net_absent(const net_peers* n, int first) {
    while (first < n->processes && n->links[first].fd >= 0) first++;
    return first;
}

// Accepts connections until every process from `first` on is linked; one that leaves again ends it.
GPT2_SP_LEAF int net_accept(net_meeting* m, int listener, int first, uint64_t cookie) {
    net_peers* n = m->peers;
    net_caller* callers = (net_caller*)calloc(NET_CALLERS, sizeof *callers);
    struct pollfd* ready = (struct pollfd*)calloc(NET_CALLERS + 1 + (size_t)n->processes, sizeof *ready);
    int count = 0, status = callers && ready ? 0 : NET_FAIL(m, "out of memory");
    while (status == 0 && net_absent(n, first) < n->processes) {
        struct pollfd* linked = ready + 1 + count;
        ready[0].fd = listener;
        for (int i = 0; i < count; i++) ready[i + 1].fd = callers[i].fd;
        for (int i = 0; i < n->processes; i++) linked[i].fd = n->links[i].fd;
        for (int i = 0; i < 1 + count + n->processes; i++)
            ready[i].events = i < 1 + count ? POLLIN : POLLRDHUP, ready[i].revents = 0;
        poll(ready, (nfds_t)(1 + count + n->processes), 100);
        for (int i = 0; status == 0 && i < n->processes; i++)
            if (linked[i].revents)
                status = NET_FAIL(m, "process %d: process %d is gone (connection closed) before all had met",
                    n->process, i);
        // from the last, so that removing one moves only those seen
        for (int i = count - 1; status == 0 && i >= 0; i--) {
            net_caller* c = &callers[i];
            int verdict = ready[i + 1].revents ? net_caller_read(m, c, first, cookie)
                : net_now_ms() > c->until      ? NET_STRANGER
                                               : NET_SPEAKS;
            if (verdict == NET_SPEAKS) continue;
            if (verdict == NET_REFUSED) {
                status = -1;
                net_refuse(c->fd, m->error);
            }
            if (verdict == NET_ADMITTED) net_socket_options(c->fd);
            else close(c->fd);
            *c = callers[--count];
        }
        if (status == 0 && (ready[0].revents & POLLIN) && count < NET_CALLERS) {
            net_caller* c = &callers[count];
            c->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            c->fill = 0, c->until = net_now_ms() + 5000;
            count += c->fd >= 0;
        }
        int absent = net_absent(n, first);
        if (status != 0 || absent == n->processes) continue;
        if (*m->stop)
            status = NET_FAIL(
                m, "process %d: stopped by a signal while it waited for process %d", n->process, absent);
        else if (net_passed(m->deadline))
            status = NET_FAIL(m, "process %d: waited %g s for process %d of %d to connect", n->process,
                m->timeout_ms / 1e3, absent, n->processes);
    }
    for (int i = 0; i < count; i++) close(callers[i].fd);
    free(callers);
    free(ready);
    return status;
}

// Process 0: waits for all, then tells each where the others are, or why there is no run.
GPT2_SP_LEAF int net_host(net_meeting* m) {
    net_peers* n = m->peers;
    net_place* places = m->places;
    const char* at = net_is_loopback(m->address.host) ? m->address.host : "";
    int listener = net_socket_listen(at, m->address.port, m->error, m->size);
    if (listener < 0) return -1;
    int status = net_accept(m, listener, 1, 0);
    close(listener);
    net_machine(places[0].machine, sizeof places[0].machine);
    for (int i = 1; status == 0 && i < n->processes; i++) {
        char* address = places[i].address;
        char port[16];
        net_socket_name(n->links[i].fd, 1, address, sizeof places[i].address, port, sizeof port);
        if (net_is_loopback(address)) address[0] = 0;
    }
    net_welcome w;
    memset(&w, 0, sizeof w);
    w.magic = NET_WELCOME_MAGIC, w.cookie = net_cookie();
    w.processes = (uint32_t)n->processes;
    w.crc = net_welcome_crc(w, places, n->processes);
    for (int i = 1; i < n->processes; i++) {
        int fd = n->links[i].fd;
        if (status != 0 && fd >= 0) net_refuse(fd, m->error);
        if (status == 0 &&
            (net_socket_send(fd, &w, sizeof w) != 0 ||
                net_socket_send(fd, places, (size_t)n->processes * sizeof *places) != 0))
            status = NET_FAIL(m, "process %d is gone (connection closed) before all had met", i);
    }
    return status;
}

// The others first look for process 0, which may still have to come up.
GPT2_SP_LEAF int net_find_host(net_meeting* m) {
    net_peers* n = m->peers;
    const char* why = "";
    struct timespec pause = {0, 100000000};
    while ((n->links[0].fd = net_socket_connect(m->address.host, m->address.port, &why)) < 0) {
        if (*m->stop)
            return NET_FAIL(m, "process %d: stopped by a signal while it looked for process 0", n->process);
        if (net_passed(m->deadline))
            return NET_FAIL(m, "process %d: waited %g s for process 0 at %.300s (%s)", n->process,
                m->timeout_ms / 1e3, m->master, why);
        nanosleep(&pause, NULL);
    }
    net_socket_options(n->links[0].fd);
    return 0;
}

// Then they say where they listen, and read the welcome and the places of all.
GPT2_SP_LEAF int net_register(net_meeting* m, int port, uint64_t* cookie) {
    net_peers* n = m->peers;
    int fd = n->links[0].fd;
    net_hello h = net_hello_make(n, 0, port);
    net_welcome w;
    if (net_socket_send(fd, &h, sizeof h) != 0 || net_socket_read_until(m, fd, &w, sizeof w) != 0) {
        if (*m->stop)
            return NET_FAIL(m, "process %d: stopped by a signal while it waited for the others", n->process);
        if (net_passed(m->deadline))
            return NET_FAIL(m, "process %d: waited %g s at %.300s for all processes to meet", n->process,
                m->timeout_ms / 1e3, m->master);
        return NET_FAIL(m, "process %d: process 0 at %.300s is gone (connection closed) before all had met",
            n->process, m->master);
    }
    if (w.magic != NET_WELCOME_MAGIC)
        return NET_FAIL(m, "--master %.300s: what answers there is no process 0", m->master);
    if (w.refusal[0]) return NET_FAIL(m, "process 0: %.511s", w.refusal);
    if ((int)w.processes != n->processes ||
        net_socket_read_until(m, fd, m->places, (size_t)n->processes * sizeof *m->places) != 0 ||
        w.crc != net_welcome_crc(w, m->places, n->processes))
        return NET_FAIL(m, "--master %.300s: what answers there is no process 0 of %d processes", m->master,
            n->processes);
    *cookie = w.cookie;
    return 0;
}

// Connects to a process with a lower number; where no address is given, it is at process 0's.
GPT2_SP_LEAF int net_connect_to(net_meeting* m, int process, uint64_t cookie) {
    net_peers* n = m->peers;
    net_place* place = &m->places[process];
    net_hello h = net_hello_make(n, cookie, 0);
    const char* why = "";
    char zero[128], port[16];
    net_socket_name(n->links[0].fd, 1, zero, sizeof zero, port, sizeof port);
    snprintf(port, sizeof port, "%u", place->port);
    place->address[sizeof place->address - 1] = 0;
    const char* where = place->address[0] ? place->address : zero;
    int fd = n->links[process].fd = net_socket_connect(where, port, &why);
    if (fd < 0 || net_socket_send(fd, &h, sizeof h) != 0)
        return NET_FAIL(m, "process %d: cannot connect to process %d at %s:%s (%s)", n->process, process,
            where, port, why);
    net_socket_options(fd);
    return 0;
}

// The others: to process 0 first, then to those with lower numbers, then wait for those with higher ones.
// They listen where their connection to process 0 begins; at every address, if that is a loopback's while
// process 0 was named by another address of the machine, at which others would call.
GPT2_SP_LEAF int net_join(net_meeting* m) {
    net_peers* n = m->peers;
    char host[128], port[16], from[128];
    uint64_t cookie = 0;
    if (net_find_host(m) != 0) return -1;
    net_socket_name(n->links[0].fd, 0, from, sizeof from, port, sizeof port);
    const char* at = net_is_loopback(from) && !net_is_loopback(m->address.host) ? "" : from;
    int listener = net_socket_listen(at, "0", m->error, m->size);
    if (listener < 0) return -1;
    net_socket_name(listener, 0, host, sizeof host, port, sizeof port);
    int status = net_register(m, atoi(port), &cookie);
    for (int i = 1; status == 0 && i < n->process; i++) status = net_connect_to(m, i, cookie);
    if (status == 0) status = net_accept(m, listener, n->process + 1, cookie);
    close(listener);
    return status;
}

// Joins this process to the others: returns when all have met, or with an error after timeout_ms (0: never)
// or once *stop is set. What links there are then stay until net_close, so that net_tell reaches them.
GPT2_SP_LEAF int net_open(net_peers* n, int process, int processes, const char* master, double timeout_ms,
    const volatile sig_atomic_t* stop, char* error, size_t size) {
    net_meeting m = {n, master, timeout_ms, 0, stop, error, size, {{0}, {0}}, NULL};
    if (net_address_parse(&m.address, master, error, size) != 0) return -1;
    m.places = (net_place*)calloc((size_t)processes, sizeof *m.places);
    if (net_links_make(n, process, processes) != 0 || !m.places) {
        free(m.places);
        return NET_FAIL(&m, "out of memory for %d processes", processes);
    }
    m.deadline = timeout_ms > 0 ? net_now_ms() + timeout_ms : 0;
    int status = process == 0 ? net_host(&m) : net_join(&m);
    for (int i = 0; status == 0 && i < processes; i++) {
        if (i == process) n->local_process = n->local_processes;
        n->local_processes +=
            strncmp(m.places[i].machine, m.places[process].machine, sizeof m.places[i].machine) == 0;
    }
    free(m.places);
    for (int i = 0; status == 0 && i < processes; i++)
        if (i != process && net_link_start(&n->links[i]) != 0)
            status = NET_FAIL(&m, "cannot start a thread for the link to process %d", i);
    return status;
}

#undef NET_FAIL

// ================================================================================
// what launchers tell a process

// The names of a launcher's variables.
typedef struct {
    const char *rank, *world;   // the process' number, and how many there are
    const char* local_world;    // those on this machine: if that is all, the master may be missing
    const char* mark;   // must be set too: a batch script has Slurm's numbers, but is no task of a step
} net_launcher;

// The launcher that has set a process' number and their count: torchrun, mpirun of Open MPI or of MPICH, or
// srun; NULL: none. Those of mpirun come before Slurm's: it may itself use srun, whose numbers its processes
// then see too. RANK and WORLD_SIZE need no MASTER_ADDR where the master is given otherwise.
GPT2_SP_LEAF const net_launcher* net_launched(int master_given) {
    static const net_launcher launchers[] = {
        {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"},
        {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
            "OMPI_COMM_WORLD_RANK"},
        {"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"},
        {"SLURM_PROCID", "SLURM_NTASKS", "", "SLURM_STEP_NODELIST"},
    };
    for (int i = 0; i < 4; i++) {
        const net_launcher* l = &launchers[i];
        if (getenv(l->rank) && getenv(l->world) && (getenv(l->mark) || (i == 0 && master_given))) return l;
    }
    return NULL;
}

// The first machine of "node[03-07,9],other" or of a plain list.
GPT2_SP_LEAF void net_nodelist_first(const char* list, char* out, size_t size) {
    size_t prefix = strcspn(list, "[,"), first = list[prefix] == '[' ? strcspn(list + prefix + 1, "-,]") : 0;
    snprintf(out, size, "%.*s%.*s", prefix < 200 ? (int)prefix : 200, list, first < 40 ? (int)first : 40,
        list + prefix + (first > 0));
}

// Where process 0 of `world` listens by a launcher's environment, as host:port; -1 if that names no machine.
GPT2_SP_LEAF int net_launched_master(const net_launcher* l, int64_t world, char* out, size_t size) {
    char host[256];
    const char *address = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    const char *nodes = getenv("SLURM_STEP_NODELIST"), *job = getenv("SLURM_JOB_ID");
    const char *local = getenv(l->local_world), *store = getenv("TORCHELASTIC_USE_AGENT_STORE");
    if (address) snprintf(host, sizeof host, "%.255s", address);
    else if (nodes) net_nodelist_first(nodes, host, sizeof host);
    else if (local && strtoll(local, NULL, 10) == world) snprintf(host, sizeof host, "127.0.0.1");
    else return -1;
    // torchrun's own store may sit on MASTER_PORT: then the next one. Two jobs of Slurm on one machine need
    // two ports.
    long long number = port ? strtoll(port, NULL, 10) : job ? 15000 + strtoll(job, NULL, 10) % 15000 : 29400;
    number += port && store && strcmp(store, "True") == 0;
    snprintf(out, size, strchr(host, ':') ? "[%s]:%lld" : "%s:%lld", host, number);
    return 0;
}

#endif   // GPT2_SP_NET_H
