// net.h: joins the processes of a run by TCP, on one machine or several: how they meet, and messages between
// each two.
//
//     net_peers n; char error[NET_TEXT];
//     net_init(&n, &mutex, &changed, &aborted, reason);     // what the caller's own threads wait with, too
//     if (net_open(&n, process, processes, "host:29400", &secret, 30e3, &stop, error, sizeof error)) ...
//     net_ranks(&n, ranks)                                  // all have met; each process has so many ranks
//     net_send(&n, peer, frame, data, deadline)             // a frame of a message; NET_OK, or why not
//     net_take(&n, peer, from, to, deadline, &frame, &why)  // its next frame, which the caller frees
//     net_tell(&n)                                          // after an abort: all others learn the reason
//     net_close(&n);
//
// Processes are numbered from 0, and so are ranks: process p has those from p * ranks on. Between each two
// processes there is one connection, a link. A thread per link reads frames into a queue as they come, so
// that no two processes ever wait for each other's sockets. A thread that takes a frame waits for `changed`
// with `mutex` held, as the caller's threads do among themselves: one wait ends by whatever comes first, a
// frame, the end of that connection, or an abort. Deadlines are in ms of net_now_ms; 0: none. Needs Linux
// (accept4, getrandom, POLLRDHUP) and zlib; under -std=c11 define _GNU_SOURCE before the first include.
//
// A message is cut into frames of NET_FRAME_BYTES and a rest; one of no bytes is one frame. All integers of a
// frame are little-endian; what the bytes of a message mean is the caller's matter.
//
//     offset  bytes  frame
//          0      4  magic 47 32 53 50, "G2SP"
//          4      4  kind: 0 .. NET_ABORT - 1 are the caller's; NET_ABORT: why the sender's process stops;
//                    NET_TAKEN: frames from `to` to `from` were taken; NET_LEAVES: the sender's process is
//                    done, and nothing more comes of it
//          8      4  from, signed: a rank of the sender's process, -1 the process itself
//         12      4  to, signed: the same of the receiver's
//         16      8  operation: the caller's; of NET_TAKEN: how many frames
//         24      8  bytes of the message
//         32      8  bytes of this frame: NET_FRAME_BYTES, or the message's rest; of an abort < NET_TEXT
//         40      4  zero
//         44      4  CRC-32 of bytes 0 .. 43
//         48     ..  the bytes of this frame
//
// What one rank sends another is a stream of frames. Of a stream at most NET_WINDOW frames are under way: a
// sender waits until the receiver has taken some, which NET_TAKEN reports for every NET_WINDOW / 2 frames.
// So a link's queue holds at most NET_WINDOW MiB for each pair of ranks, whoever sends, and its thread never
// stops reading. Whoever sends several streams and takes others must do so by turns, a frame of each
// (train_gpt2_sp.c, links_move, says why nobody then waits for ever). A frame that is none, of ranks that are
// not at the two ends, or beyond the window ends its link, before memory is taken for it.
//
// A process that is done says so before it closes its links. One whose link ends without that is lost, by a
// signal or with its machine, and the run with it: all waits end at once, also those for others. The others
// may need minutes longer than the fastest process, so that a link which only ended would tell nothing.
//
// How processes meet: process 0 listens at the address that all were given; the others connect, say who they
// are and where they listen (hello); when all are there, each is told where the others are (welcome, with a
// place of each process) and connects to those with lower numbers, again with a hello. Integers are
// little-endian; texts end with a NUL; the last four bytes of each are the CRC-32 of all before.
//
//     offset  bytes  hello                             offset  bytes  welcome
//          0      8  magic "GPT2SPH3"                       0      8  magic "GPT2SPW2"
//          8      8  cookie: 0 to process 0, else           8      8  cookie, of this run
//                    the welcome's                         16      4  processes
//         16      4  process                               20    164  place, of each process in turn:
//         20      4  processes                                  0     64  address; "": process 0's machine
//         24      4  port where it listens;                    64     96  machine
//                    0: it does not                           160      4  port
//         28      4  1: it has a secret, 0: none           ..      4  CRC-32
//         32      4  01020304 hex, in the order of     offset  bytes  challenge, proof
//                    its machine: messages have it          0      8  magic "GPT2SPC2", "GPT2SPP2"
//         36     32  nonce: random, new for each            8     32  nonce; HMAC
//         68     96  machine: host name, boot id           40      4  CRC-32
//        164      4  CRC-32                            offset  bytes  refusal
//                                                           0      8  magic "GPT2SPR2"
//                                                           8    500  why
//                                                         508      4  CRC-32
//
// With a secret, which all processes of the run share, a hello is answered by a challenge with the listener's
// nonce. The caller proves that it knows the secret, then the listener does: HMAC-SHA256, with the secret as
// its key, of "caller" or "listener" (filled up with zeros to 8 bytes), the hello and the listener's nonce.
// Who does not know the secret is refused, and the run waits on. The secret keeps strangers out, no more:
// what travels afterwards is neither encrypted nor signed.
//
// Whatever else connects is hung up on, at once if its first bytes are no hello's, else after NET_PATIENCE,
// or sooner where another needs its place. Without a secret whoever can reach the port may take a process'
// part: then it belongs in a private network.
//
// net_open gives 0, or -1 with one line in the buffer that names the process and what it waited for or found;
// such lines call the process' number, their count, the address and the secret by the options that set them:
// --rank, --world, --master, --secret-file. net_launched and net_launched_host find who and where a process
// is in what torchrun, mpirun and srun have set; the numbers among that are the caller's to read.

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
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#include "sha256.h"

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum { NET_TEXT = 1024 };                                   // bytes of a reason, its end included
enum { NET_FRAME_BYTES = 1 << 20, NET_HEADER = 48 };        // most bytes of a frame; before them
enum { NET_FRAME_MAGIC = 0x50533247 };                      // "G2SP"
enum { NET_ABORT = 5, NET_TAKEN, NET_LEAVES, NET_KINDS };   // kinds of frames: see above
enum { NET_ITSELF = -1 };                                   // from, to: the process itself
enum { NET_WINDOW = 8 };                                    // frames of a stream that may be under way
// What becomes of a send or a take. NET_GONE: its process is gone; NET_LOST: another one is (net_lost).
enum { NET_OK, NET_ABORTED, NET_LATE, NET_GONE, NET_LOST };
enum { NET_PATIENCE = 5000 };   // with a caller that says nothing, in ms

typedef struct net_frame net_frame;
struct net_frame {
    net_frame* next;
    int kind, from, to;
    uint64_t operation, message;   // message: bytes of all its frames
    size_t bytes;                  // of this one
    unsigned char* data;           // behind this struct
};

typedef struct net_peers net_peers;

// The frames between a rank here and a rank there, both ways.
typedef struct {
    unsigned char sent;    // from here, and not reported as taken
    unsigned char held;    // come here, and not reported as taken
    unsigned char taken;   // of these, taken
} net_stream;

// The connection to one other process.
typedef struct {
    net_peers* peers;
    int fd;             // -1: there is none
    pthread_t thread;   // reads what comes
    int reading;        // it runs
    int torn;           // a frame was sent in part: nothing can follow it
    // the peers' mutex guards all that follows
    int writing, waiting;         // whether a thread writes a frame; how many wait to
    net_frame *oldest, *newest;   // come, but not taken
    const char* gone;             // why nothing more will come
    int leaves;                   // it has said that it is done
    net_stream itself, *ranks;    // between the processes themselves; (ranks here, ranks there)
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
    int told;                             // the others know that this process stops
    int ranks;                            // of each process, by net_ranks; until then only processes speak
};

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
    if (kind >= NET_KINDS || (kind == NET_ABORT && bytes >= NET_TEXT)) return -1;
    f->kind = (int)kind;
    f->from = (int32_t)net_get(h + 8, 4), f->to = (int32_t)net_get(h + 12, 4);
    f->operation = net_get(h + 16, 8), f->message = net_get(h + 24, 8);
    f->bytes = (size_t)bytes;
    if (kind == NET_TAKEN && (f->message > 0 || f->operation < 1 || f->operation > NET_WINDOW)) return -1;
    if (kind == NET_LEAVES && f->message > 0) return -1;
    uint64_t rest = f->message % NET_FRAME_BYTES;
    return bytes == net_frame_bytes(f->message) || (rest > 0 && bytes == rest) ? 0 : -1;
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

// The first process that is gone without having said that it is done; -1: there is none. With the mutex held.
GPT2_SP_LEAF int net_lost(const net_peers* n) {
    for (int i = 0; n->links && i < n->processes; i++)
        if (n->links[i].gone && !n->links[i].leaves) return i;
    return -1;
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

// What a process says of why it stops, as a line of this one. What that process was told by another already
// names whose error it is.
GPT2_SP_LEAF void net_reason(char* out, size_t size, int process, const char* said) {
    if (strncmp(said, "process ", 8) == 0) snprintf(out, size, "%.1000s", said);
    else snprintf(out, size, "process %d: %.980s", process, said);
}

// A process says why it stops, and so this one stops; the first reason counts. With the mutex held.
GPT2_SP_LEAF void net_hear_abort(net_peers* n, int process, const char* said) {
    if (*n->aborted) return;
    *n->aborted = 1;
    net_reason(n->reason, NET_TEXT, process, said);
}

// The stream between a rank here and one there; NULL: these are not ranks of the two processes.
GPT2_SP_LEAF net_stream* net_stream_find(net_link* l, int here, int there) {
    const net_peers* n = l->peers;
    int64_t i = here - (int64_t)n->process * n->ranks, j = there - (l - n->links) * (int64_t)n->ranks;
    if (here == NET_ITSELF && there == NET_ITSELF) return &l->itself;
    return i >= 0 && i < n->ranks && j >= 0 && j < n->ranks ? &l->ranks[i * n->ranks + j] : NULL;
}

// NULL, or why a frame is none that may come now. Counts it in its stream. With the mutex held.
GPT2_SP_LEAF const char* net_frame_count(net_link* l, const net_frame* f) {
    net_stream* s = net_stream_find(l, f->to, f->from);
    int last = f->kind == NET_ABORT || f->kind == NET_LEAVES;   // of the process itself, in no window
    if (!s || (last && s != &l->itself)) return "it sent a frame of ranks that are not there";
    if (f->kind == NET_TAKEN && f->operation > s->sent) return "it reports frames that it was not sent";
    if (f->kind == NET_TAKEN) s->sent = (unsigned char)(s->sent - f->operation);
    else if (!last && s->held == NET_WINDOW) return "it sent more frames than are taken";
    else if (!last) s->held++;
    return NULL;
}

// One frame off the link: into the queue, or, where it is for the whole process, to all who wait. NULL, or
// why nothing more will come.
GPT2_SP_LEAF const char* net_link_read(net_link* l) {
    static const char* const closed = "connection closed";
    net_peers* n = l->peers;
    unsigned char header[NET_HEADER];
    net_frame f;
    if (net_socket_read(l->fd, header, sizeof header) != 0) return closed;
    if (net_frame_decode(&f, header) != 0) return "it sent what is no frame";
    pthread_mutex_lock(n->mutex);
    const char* refused = net_frame_count(l, &f);
    if (!refused && f.kind == NET_LEAVES) l->leaves = 1;
    if (!refused && f.kind == NET_TAKEN && l->waiting > 0) pthread_cond_broadcast(n->changed);
    pthread_mutex_unlock(n->mutex);
    if (refused || f.kind == NET_TAKEN || f.kind == NET_LEAVES) return refused;
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

// Writes all of it, with the link claimed. `tells`: of an abort, which ends every other write.
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

// Header and bytes of a frame, with the link claimed.
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

// Waits until no other thread writes to the link and, if a stream is given, until another frame of it may be
// under way. NET_OK: the caller writes, and releases the link.
GPT2_SP_LEAF int net_link_claim(net_link* l, net_stream* s, double deadline, int tells) {
    net_peers* n = l->peers;
    int status = NET_OK, late = 0;
    pthread_mutex_lock(n->mutex);
    while (status == NET_OK) {
        if (*n->aborted && !tells) status = NET_ABORTED;
        else if (!l->writing && (!s || s->sent < NET_WINDOW)) break;
        else if (l->gone && !l->writing) status = NET_GONE;
        else if (net_lost(n) >= 0 && !tells) status = NET_LOST;
        else if (late) status = NET_LATE;
        else {
            l->waiting++;
            late = net_await(n->changed, n->mutex, deadline) != 0;
            l->waiting--;
        }
    }
    if (status == NET_OK) l->writing = 1;
    if (status == NET_OK && s) s->sent++;
    pthread_mutex_unlock(n->mutex);
    return status;
}

GPT2_SP_LEAF void net_link_release(net_link* l) {
    pthread_mutex_lock(l->peers->mutex);
    l->writing = 0;
    if (l->waiting > 0) pthread_cond_broadcast(l->peers->changed);
    pthread_mutex_unlock(l->peers->mutex);
}

// Claims, writes and releases.
GPT2_SP_LEAF int net_link_send(
    net_link* l, net_stream* s, const net_frame* f, const void* data, double deadline, int tells) {
    int status = net_link_claim(l, s, deadline, tells);
    if (status != NET_OK) return status;
    status = net_frame_write(l, f, data, deadline, tells);
    net_link_release(l);
    return status;
}

// Whether net_send would now not have to wait for the receiver.
GPT2_SP_LEAF int net_may_send(net_peers* n, int process, int from, int to) {
    pthread_mutex_lock(n->mutex);
    const net_stream* s = net_stream_find(&n->links[process], from, to);
    int may = s && s->sent < NET_WINDOW;
    pthread_mutex_unlock(n->mutex);
    return may;
}

// Sends a frame to a process, as soon as its stream's window allows; f holds its kind, from, to, operation
// and the bytes of its message and of itself. Threads may send at the same time: no frame is mixed with
// another.
GPT2_SP_LEAF int net_send(net_peers* n, int process, net_frame f, const void* data, double deadline) {
    net_link* l = &n->links[process];
    net_stream* s = net_stream_find(l, f.from, f.to);
    int status = s ? net_link_send(l, s, &f, data, deadline, 0) : (int)NET_GONE;
    if (status != NET_GONE) return status;
    // a peer that left has said why, if it could: what it said is read first
    double patience = net_now_ms() + 1000;
    pthread_mutex_lock(n->mutex);
    while (!*n->aborted && !l->gone && net_await(n->changed, n->mutex, patience) == 0) {}
    if (*n->aborted) status = NET_ABORTED;
    pthread_mutex_unlock(n->mutex);
    return status;
}

// Takes the next frame that `from` there has sent to `to` here, waiting for it; the caller frees it. Where no
// more will come (NET_GONE), *why says why.
GPT2_SP_LEAF int net_take(
    net_peers* n, int process, int from, int to, double deadline, net_frame** frame, const char** why) {
    net_link* l = &n->links[process];
    net_frame *f = NULL, *before = NULL;
    net_frame report = {NULL, NET_TAKEN, to, from, 0, 0, 0, NULL};
    int status = NET_OK, late = 0;
    pthread_mutex_lock(n->mutex);
    while (status == NET_OK) {
        for (before = NULL, f = l->oldest; f && (f->from != from || f->to != to); f = f->next) before = f;
        if (*n->aborted) status = NET_ABORTED;
        else if (f) break;
        else if (l->gone) status = NET_GONE;
        else if (net_lost(n) >= 0) status = NET_LOST;
        else if (late) status = NET_LATE;
        else late = net_await(n->changed, n->mutex, deadline) != 0;
    }
    if (status == NET_OK) {
        if (before) before->next = f->next;
        else l->oldest = f->next;
        if (l->newest == f) l->newest = before;
        net_stream* s = net_stream_find(l, to, from);   // there is one: the frame was counted in it
        if (s && ++s->taken == NET_WINDOW / 2) {
            report.operation = s->taken;
            s->held = (unsigned char)(s->held - s->taken), s->taken = 0;
        }
    }
    *frame = status == NET_OK ? f : NULL, *why = l->gone;
    pthread_mutex_unlock(n->mutex);
    // a sender that is gone needs no report; that it is gone, the next frame from it will tell
    if (report.operation > 0) (void)net_link_send(l, NULL, &report, NULL, deadline, 0);
    return status;
}

// Tells all other processes, once, that this one stops: why, after an abort, or that it is done. After an
// abort also if one of them told this one: then whoever finds a connection closed has heard why before, on
// that same connection.
GPT2_SP_LEAF void net_tell(net_peers* n) {
    char reason[NET_TEXT];
    pthread_mutex_lock(n->mutex);
    int told = n->told, aborted = *n->aborted;
    n->told = 1;
    memcpy(reason, n->reason, sizeof reason);
    if (!aborted) reason[0] = 0;
    pthread_mutex_unlock(n->mutex);
    net_frame f = {NULL, aborted ? (int)NET_ABORT : (int)NET_LEAVES, NET_ITSELF, NET_ITSELF, 0,
        strlen(reason), strlen(reason), NULL};
    for (int process = 0; !told && n->links && process < n->processes; process++) {
        net_link* l = &n->links[process];
        // one that cannot be told will see the connection close
        if (l->fd >= 0) (void)net_link_send(l, NULL, &f, reason, net_now_ms() + 1000, 1);
    }
}

// Room for the links to all processes, none of which is made.
GPT2_SP_LEAF int net_links_make(net_peers* n, int process, int processes) {
    n->links = (net_link*)calloc((size_t)processes, sizeof *n->links);
    if (!n->links) return -1;
    n->process = process, n->processes = processes;
    for (int i = 0; i < processes; i++) n->links[i].fd = -1, n->links[i].peers = n;
    return 0;
}

// How many ranks each process has: from now on they may speak. Called once, before any process can know that
// this one will listen to ranks. -1: no memory.
GPT2_SP_LEAF int net_ranks(net_peers* n, int ranks) {
    int status = 0;
    pthread_mutex_lock(n->mutex);
    for (int i = 0; i < n->processes; i++) {
        n->links[i].ranks = (net_stream*)calloc((size_t)ranks * (size_t)ranks, sizeof(net_stream));
        if (!n->links[i].ranks) status = -1;
    }
    if (status == 0) n->ranks = ranks;
    pthread_mutex_unlock(n->mutex);
    return status;
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
    net_tell(n);
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
        free(l->ranks);
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
        port > 65535 || (!bracket && strcspn(text, ":[]") < n))
        return net_error(error, size,
            "--master %.300s: expected HOST:PORT, or [ADDRESS]:PORT, a port from 1 to 65535", text);
    snprintf(a->host, sizeof a->host, "%.*s", (int)(bracket ? n - 2 : n), text + bracket);
    snprintf(a->port, sizeof a->port, "%ld", port);
    return 0;
}

// The other way: brackets around an address that holds colons. A host in brackets stays as it is.
GPT2_SP_LEAF void net_address_print(char* out, size_t size, const char* host, const char* port) {
    int bare = host[0] != '[' && strchr(host, ':') != NULL;
    snprintf(out, size, bare ? "[%.255s]:%.8s" : "%.255s:%.8s", host, port);
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
    if (fd < 0) {
        char where[300];
        net_address_print(where, sizeof where, host[0] ? host : "*", port);
        net_error(error, size, "cannot listen at %s: %s", where, code ? strerror(code) : "no such address");
    }
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

// Small things, on connections without traffic: they always fit.
GPT2_SP_LEAF int net_socket_send(int fd, const void* data, size_t bytes) {
    return send(fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)bytes ? 0 : -1;
}

// ================================================================================
// what travels while processes meet

#define NET_HELLO_MAGIC 0x3348505332545047ull                 // "GPT2SPH3"
#define NET_WELCOME_MAGIC 0x3257505332545047ull               // "GPT2SPW2"
#define NET_CHALLENGE_MAGIC 0x3243505332545047ull             // "GPT2SPC2"
#define NET_PROOF_MAGIC 0x3250505332545047ull                 // "GPT2SPP2"
#define NET_REFUSAL_MAGIC 0x3252505332545047ull               // "GPT2SPR2"
enum { NET_HELLO = 168, NET_NOTE = 44, NET_REFUSAL = 512 };   // bytes; a note: a challenge or a proof
enum { NET_PLACE = 164, NET_WELCOME = 24 };                   // of each process; of a welcome without places
enum { NET_NONCE = SHA256_BYTES };

// Who calls.
typedef struct {
    uint64_t cookie;
    uint32_t process, processes, port, secret, order;
    unsigned char nonce[NET_NONCE];
    char machine[96];
} net_hello;
typedef struct {
    char address[64], machine[96];
    uint32_t port;
} net_place;

// The last four bytes are the CRC-32 of all before.
GPT2_SP_LEAF void net_seal(unsigned char* bytes, size_t size) {
    net_put(bytes + size - 4, (uint64_t)crc32(0, bytes, (unsigned)size - 4), 4);
}
GPT2_SP_LEAF int net_sealed(const unsigned char* bytes, size_t size) {
    return net_get(bytes + size - 4, 4) == (uint64_t)crc32(0, bytes, (unsigned)size - 4);
}

GPT2_SP_LEAF void net_hello_encode(unsigned char out[NET_HELLO], const net_hello* h) {
    net_put(out, NET_HELLO_MAGIC, 8), net_put(out + 8, h->cookie, 8);
    net_put(out + 16, h->process, 4), net_put(out + 20, h->processes, 4);
    net_put(out + 24, h->port, 4), net_put(out + 28, h->secret, 4);
    memcpy(out + 32, &h->order, 4);
    memcpy(out + 36, h->nonce, NET_NONCE);
    memcpy(out + 68, h->machine, sizeof h->machine);
    net_seal(out, NET_HELLO);
}

// -1: these bytes are no hello.
GPT2_SP_LEAF int net_hello_decode(net_hello* h, const unsigned char in[NET_HELLO]) {
    if (net_get(in, 8) != NET_HELLO_MAGIC || !net_sealed(in, NET_HELLO)) return -1;
    h->cookie = net_get(in + 8, 8);
    h->process = (uint32_t)net_get(in + 16, 4), h->processes = (uint32_t)net_get(in + 20, 4);
    h->port = (uint32_t)net_get(in + 24, 4), h->secret = (uint32_t)net_get(in + 28, 4);
    memcpy(&h->order, in + 32, 4);
    memcpy(h->nonce, in + 36, NET_NONCE);
    memcpy(h->machine, in + 68, sizeof h->machine);
    h->machine[sizeof h->machine - 1] = 0;
    return 0;
}

GPT2_SP_LEAF size_t net_welcome_size(int processes) { return NET_WELCOME + (size_t)processes * NET_PLACE; }

GPT2_SP_LEAF void net_welcome_encode(
    unsigned char* out, uint64_t cookie, const net_place* places, int processes) {
    net_put(out, NET_WELCOME_MAGIC, 8), net_put(out + 8, cookie, 8);
    net_put(out + 16, (uint64_t)processes, 4);
    for (int i = 0; i < processes; i++) {
        unsigned char* place = out + 20 + (size_t)i * NET_PLACE;
        memcpy(place, places[i].address, 64);
        memcpy(place + 64, places[i].machine, 96);
        net_put(place + 160, places[i].port, 4);
    }
    net_seal(out, net_welcome_size(processes));
}

// -1: these bytes are no welcome of so many processes.
GPT2_SP_LEAF int net_welcome_decode(
    const unsigned char* in, uint64_t* cookie, net_place* places, int processes) {
    if (net_get(in, 8) != NET_WELCOME_MAGIC || net_get(in + 16, 4) != (uint64_t)processes ||
        !net_sealed(in, net_welcome_size(processes)))
        return -1;
    *cookie = net_get(in + 8, 8);
    for (int i = 0; i < processes; i++) {
        const unsigned char* place = in + 20 + (size_t)i * NET_PLACE;
        memcpy(places[i].address, place, 64);
        memcpy(places[i].machine, place + 64, 96);
        places[i].address[63] = places[i].machine[95] = 0;
        places[i].port = (uint32_t)net_get(place + 160, 4);
    }
    return 0;
}

// A challenge or a proof.
GPT2_SP_LEAF void net_note_encode(
    unsigned char out[NET_NOTE], uint64_t magic, const unsigned char bytes[SHA256_BYTES]) {
    net_put(out, magic, 8);
    memcpy(out + 8, bytes, SHA256_BYTES);
    net_seal(out, NET_NOTE);
}

GPT2_SP_LEAF void net_refuse(int fd, const char* reason) {
    unsigned char out[NET_REFUSAL] = {0};
    net_put(out, NET_REFUSAL_MAGIC, 8);
    snprintf((char*)out + 8, 500, "%.499s", reason);
    net_seal(out, NET_REFUSAL);
    (void)net_socket_send(fd, out, sizeof out);
}

// ================================================================================
// the secret

enum { NET_SECRET_LEAST = 16, NET_SECRET_MOST = 1024 };   // bytes

typedef struct {
    unsigned char bytes[NET_SECRET_MOST + 1];
    size_t size;   // 0: there is none
} net_secret;

// Reads a secret from a file, without the line break at its end. Only a plain file that not everybody may
// read will do.
GPT2_SP_LEAF int net_secret_read(net_secret* s, const char* path, char* error, size_t size) {
    struct stat at;
    memset(s, 0, sizeof *s);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // a FIFO would wait for a writer
    if (fd < 0) return net_error(error, size, "--secret-file %.900s: %s", path, strerror(errno));
    int status = fstat(fd, &at);
    ssize_t n = status == 0 && S_ISREG(at.st_mode) ? read(fd, s->bytes, sizeof s->bytes) : 0;
    close(fd);
    while (n > 0 && (s->bytes[n - 1] == '\n' || s->bytes[n - 1] == '\r')) n--;
    if (status != 0 || !S_ISREG(at.st_mode))
        return net_error(error, size, "--secret-file %.900s: expected a plain file", path);
    if (at.st_mode & 07)
        return net_error(
            error, size, "--secret-file %.900s: everybody may read or write it: `chmod 600` it", path);
    if (n < NET_SECRET_LEAST || n > NET_SECRET_MOST)
        return net_error(error, size,
            "--secret-file %.900s: expected %d to %d bytes, not a line break at the end", path,
            NET_SECRET_LEAST, NET_SECRET_MOST);
    s->size = (size_t)n;
    return 0;
}

// What only those who know the secret can make: of a hello and the listener's nonce. `who` is "caller" or
// "listener", so that neither's proof serves as the other's.
GPT2_SP_LEAF void net_prove(unsigned char proof[SHA256_BYTES], const net_secret* secret, const char* who,
    const unsigned char hello[NET_HELLO], const unsigned char nonce[NET_NONCE]) {
    unsigned char text[8 + NET_HELLO + NET_NONCE] = {0};
    memcpy(text, who, strlen(who));
    memcpy(text + 8, hello, NET_HELLO);
    memcpy(text + 8 + NET_HELLO, nonce, NET_NONCE);
    sha256_hmac(proof, secret->bytes, secret->size, text, sizeof text);
}

// ================================================================================
// how processes meet

// What net_open was given, and what it found.
typedef struct {
    net_peers* peers;
    const char* master;
    const net_secret* secret;
    double timeout_ms, deadline;
    const volatile sig_atomic_t* stop;
    char* error;
    size_t size;
    net_address address;   // the master's
    net_place* places;     // (processes)
    int denied;            // callers that did not know the secret
} net_meeting;

#define NET_FAIL(m, ...) net_error((m)->error, (m)->size, __VA_ARGS__)

// This machine: machines may share a name, hence the number of its last start.
GPT2_SP_LEAF void net_machine(char* out, size_t size) {
    char name[48] = "", id[40] = "";
    FILE* boot = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (boot && !fgets(id, sizeof id, boot)) id[0] = 0;
    if (boot) fclose(boot);
    gethostname(name, sizeof name - 1);
    snprintf(out, size, "%.47s %.36s", name, id);
}

// Numbers that nobody can guess; -1: the system gives none.
GPT2_SP_LEAF int net_random(void* out, size_t size) {
    return getrandom(out, size, 0) == (ssize_t)size ? 0 : -1;
}

// What a linked process said of why it stops, if that came before its connection was closed: 0, in `said`.
GPT2_SP_LEAF int net_farewell(int fd, char said[NET_TEXT]) {
    unsigned char header[NET_HEADER];
    net_frame f;
    for (;;) {
        if (recv(fd, header, sizeof header, MSG_DONTWAIT) != (ssize_t)sizeof header) return -1;
        if (net_frame_decode(&f, header) != 0) return -1;
        size_t room = f.kind == NET_ABORT ? f.bytes : 0;
        if (recv(fd, said, room, MSG_DONTWAIT) != (ssize_t)room) return -1;
        said[room] = 0;
        if (f.kind == NET_ABORT) return 0;
        for (ssize_t n = 1; f.bytes > 0; f.bytes -= (size_t)n) {   // what it sent before
            n = recv(fd, said, f.bytes < NET_TEXT ? f.bytes : (size_t)NET_TEXT, MSG_DONTWAIT);
            if (n <= 0) return -1;
        }
    }
}

// Before all have met there is no run without any of them: -1 where a linked process other than `but` has
// left, with the reason that it said, if it did.
GPT2_SP_LEAF int net_left(net_meeting* m, int but) {
    net_peers* n = m->peers;
    for (int i = 0; i < n->processes; i++) {
        struct pollfd link = {i == but ? -1 : n->links[i].fd, POLLRDHUP, 0};
        char said[NET_TEXT];
        if (link.fd < 0 || poll(&link, 1, 0) <= 0 || link.revents == 0) continue;
        if (net_farewell(link.fd, said) == 0) return net_reason(m->error, m->size, i, said), -1;
        return NET_FAIL(
            m, "process %d: process %d is gone (connection closed) before all had met", n->process, i);
    }
    return 0;
}

// The hello of this process on one connection.
GPT2_SP_LEAF int net_hello_make(net_meeting* m, net_hello* h, uint64_t cookie, int port) {
    memset(h, 0, sizeof *h);
    h->cookie = cookie, h->port = (uint32_t)port;
    h->process = (uint32_t)m->peers->process, h->processes = (uint32_t)m->peers->processes;
    h->secret = m->secret->size > 0, h->order = 0x01020304;
    net_machine(h->machine, sizeof h->machine);
    return net_random(h->nonce, sizeof h->nonce) == 0 ? 0 : NET_FAIL(m, "the system has no random numbers");
}

// A connection that has not said yet who it is.
typedef struct {
    int fd;
    int challenged;   // its hello is whole, and it was asked for a proof
    size_t fill;      // bytes that have come of its hello, then of its proof
    double since;     // when it came
    unsigned char hello[NET_HELLO], proof[NET_NOTE], nonce[NET_NONCE];
} net_caller;
enum { NET_CALLERS = 256 };   // at a time
// What a caller is: NET_SPEAKS: not all has come; NET_ADMITTED: the link is made; NET_STRANGER: it is none of
// ours; NET_DENIED: it is not let in, and the others go on; NET_REFUSED: the processes do not fit together.
enum { NET_REFUSED = -1, NET_STRANGER, NET_DENIED, NET_ADMITTED, NET_SPEAKS };

// Makes a link of a caller whose hello is good, and has been proved if there is a secret.
GPT2_SP_LEAF int net_admit(net_meeting* m, const net_caller* c, const net_hello* h, int first) {
    net_peers* n = m->peers;
    if (h->secret && m->secret->size == 0)
        return NET_FAIL(
            m, "process %u was started with --secret-file, process %d without", h->process, n->process);
    if (h->order != 0x01020304)
        return NET_FAIL(m, "process %u: its machine has another byte order", h->process);
    if ((int)h->processes != n->processes)
        return NET_FAIL(m, "process %u was started with --world %u, process %d with --world %d", h->process,
            h->processes, n->process, n->processes);
    if (h->process < (uint32_t)first || h->process >= (uint32_t)n->processes)
        return NET_FAIL(m, "another process was started with --rank %u; there are %d, one each of 0 to %d",
            h->process, n->processes, n->processes - 1);
    if (n->links[h->process].fd >= 0)
        return NET_FAIL(m, "two processes were started with --rank %u", h->process);
    n->links[h->process].fd = c->fd;
    net_place* place = &m->places[h->process];
    place->port = h->port;
    memcpy(place->machine, h->machine, sizeof place->machine);
    return NET_ADMITTED;
}

// A caller's hello is whole: it is admitted, or asked for a proof.
GPT2_SP_LEAF int net_hear_hello(net_meeting* m, net_caller* c, int first, uint64_t cookie) {
    net_hello h;
    unsigned char note[NET_NOTE];
    if (net_hello_decode(&h, c->hello) != 0 || h.cookie != cookie) return NET_STRANGER;
    if (m->secret->size == 0) return net_admit(m, c, &h, first);
    if (!h.secret) return NET_DENIED;
    if (net_random(c->nonce, sizeof c->nonce) != 0) return NET_FAIL(m, "the system has no random numbers");
    net_note_encode(note, NET_CHALLENGE_MAGIC, c->nonce);
    c->challenged = 1, c->fill = 0;
    return net_socket_send(c->fd, note, sizeof note) == 0 ? NET_SPEAKS : NET_STRANGER;
}

// Its proof is: if it is right, this process proves that it knows the secret too.
GPT2_SP_LEAF int net_hear_proof(net_meeting* m, net_caller* c, int first) {
    net_hello h;
    unsigned char proof[SHA256_BYTES], note[NET_NOTE];
    net_prove(proof, m->secret, "caller", c->hello, c->nonce);
    if (net_get(c->proof, 8) != NET_PROOF_MAGIC || !net_sealed(c->proof, NET_NOTE) ||
        !sha256_equal(proof, c->proof + 8) || net_hello_decode(&h, c->hello) != 0)
        return NET_DENIED;
    net_prove(proof, m->secret, "listener", c->hello, c->nonce);
    net_note_encode(note, NET_PROOF_MAGIC, proof);
    if (net_socket_send(c->fd, note, sizeof note) != 0) return NET_STRANGER;
    return net_admit(m, c, &h, first);
}

// Reads what has come from a caller, and what that makes of it.
GPT2_SP_LEAF int net_caller_read(net_meeting* m, net_caller* c, int first, uint64_t cookie) {
    unsigned char* bytes = c->challenged ? c->proof : c->hello;
    size_t size = c->challenged ? NET_NOTE : NET_HELLO;
    ssize_t n = recv(c->fd, bytes + c->fill, size - c->fill, MSG_DONTWAIT);
    if (n > 0) c->fill += (size_t)n;
    if (c->fill == size)
        return c->challenged ? net_hear_proof(m, c, first) : net_hear_hello(m, c, first, cookie);
    if (!c->challenged && c->fill >= 8 && net_get(bytes, 8) != NET_HELLO_MAGIC) return NET_STRANGER;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return NET_STRANGER;
    return net_now_ms() > c->since + NET_PATIENCE ? NET_STRANGER : NET_SPEAKS;
}

// The first process from `first` on that is not linked; all of them, if there is none.
GPT2_SP_LEAF int net_absent(const net_peers* n, int first) {
    while (first < n->processes && n->links[first].fd >= 0) first++;
    return first;
}

// Who knocks at a listener.
typedef struct {
    int listener, first;   // processes from `first` on are let in
    uint64_t cookie;       // that their hellos must have
    net_caller* callers;   // (NET_CALLERS)
    int count;
    int full;               // the process may open no more files: no caller is taken in for a moment
    struct pollfd* ready;   // (1 + NET_CALLERS + processes)
} net_door;

// Another needs the place, or the file descriptor, of a caller: of those that have said nothing the one that
// came first, else of all. -1: there are none.
GPT2_SP_LEAF int net_drop_caller(net_door* d) {
    int worst = -1;
    for (int i = 0; i < d->count; i++) {
        const net_caller *c = &d->callers[i], *w = worst < 0 ? c : &d->callers[worst];
        int silent = !c->challenged && c->fill == 0, worst_silent = !w->challenged && w->fill == 0;
        if (worst < 0 || silent > worst_silent || (silent == worst_silent && c->since < w->since)) worst = i;
    }
    if (worst < 0) return -1;
    close(d->callers[worst].fd);
    d->callers[worst] = d->callers[--d->count];
    return 0;
}

// Takes in those who wait at the door, half of all places at once: so those before them had a turn to speak.
GPT2_SP_LEAF void net_take_in(net_door* d) {
    d->full = 0;
    for (int i = 0; i < NET_CALLERS / 2; i++) {
        int fd = accept4(d->listener, NULL, NULL, SOCK_CLOEXEC);
        int short_of = fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM);
        if (short_of) d->full = net_drop_caller(d) != 0;
        if (short_of && !d->full) continue;
        if (fd < 0) return;
        if (d->count == NET_CALLERS) net_drop_caller(d);
        net_caller* c = &d->callers[d->count++];
        memset(c, 0, sizeof *c);
        c->fd = fd, c->since = net_now_ms();
    }
}

// Hears the callers of which something has come, or whose time is over. -1: there is no run.
GPT2_SP_LEAF int net_hear(net_meeting* m, net_door* d) {
    // from the last, so that removing one moves only those seen
    for (int i = d->count - 1; i >= 0; i--) {
        net_caller* c = &d->callers[i];
        int late = net_now_ms() > c->since + NET_PATIENCE;
        int verdict =
            d->ready[i + 1].revents || late ? net_caller_read(m, c, d->first, d->cookie) : NET_SPEAKS;
        if (verdict == NET_SPEAKS) continue;
        char text[128];
        snprintf(text, sizeof text, "--secret-file: process %d %s", m->peers->process,
            c->challenged ? "has another secret" : "was started with a secret, this one without");
        if (verdict == NET_DENIED) m->denied++, net_refuse(c->fd, text);
        if (verdict == NET_REFUSED) net_refuse(c->fd, m->error);
        if (verdict == NET_ADMITTED) net_socket_options(c->fd);
        else close(c->fd);
        *c = d->callers[--d->count];
        if (verdict == NET_REFUSED) return -1;
    }
    return 0;
}

// Waits until somebody knocks or speaks, or a linked process leaves, which ends it; 0.1 s at most.
GPT2_SP_LEAF int net_door_wait(net_meeting* m, net_door* d) {
    net_peers* n = m->peers;
    struct pollfd* linked = d->ready + 1 + d->count;
    d->ready[0].fd = d->full ? -1 : d->listener;
    for (int i = 0; i < d->count; i++) d->ready[i + 1].fd = d->callers[i].fd;
    for (int i = 0; i < n->processes; i++) linked[i].fd = n->links[i].fd;
    for (int i = 0; i < 1 + d->count + n->processes; i++)
        d->ready[i].events = i < 1 + d->count ? POLLIN : POLLRDHUP, d->ready[i].revents = 0;
    poll(d->ready, (nfds_t)(1 + d->count + n->processes), 100);
    return net_left(m, n->process);
}

// Why waiting has to end; 0: it goes on.
GPT2_SP_LEAF int net_wait_ends(net_meeting* m, const net_door* d, int absent) {
    int process = m->peers->process, processes = m->peers->processes;
    char more[96] = "";
    if (*m->stop)
        return NET_FAIL(m, "process %d: stopped by a signal while it waited for process %d", process, absent);
    if (!net_passed(m->deadline)) return 0;
    if (m->denied > 0)
        snprintf(
            more, sizeof more, "; %d times somebody called without the secret (--secret-file)", m->denied);
    else if (d->full) snprintf(more, sizeof more, "; it may open no more files (ulimit -n)");
    return NET_FAIL(m, "process %d: waited %g s for process %d of %d to connect%s", process,
        m->timeout_ms / 1e3, absent, processes, more);
}

// Accepts connections until every process from `first` on is linked; one that leaves again ends it.
GPT2_SP_LEAF int net_accept(net_meeting* m, int listener, int first, uint64_t cookie) {
    net_peers* n = m->peers;
    net_door d;
    memset(&d, 0, sizeof d);
    d.listener = listener, d.first = first;
    d.cookie = cookie;
    d.callers = (net_caller*)calloc(NET_CALLERS, sizeof *d.callers);
    d.ready = (struct pollfd*)calloc(NET_CALLERS + 1 + (size_t)n->processes, sizeof *d.ready);
    int status = d.callers && d.ready ? 0 : NET_FAIL(m, "out of memory");
    if (fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK) != 0) status = -1;
    while (status == 0 && net_absent(n, first) < n->processes) {
        status = net_door_wait(m, &d);
        if (status == 0) status = net_hear(m, &d);
        if (status == 0 && (d.full || d.ready[0].revents)) net_take_in(&d);
        int absent = net_absent(n, first);
        if (status == 0 && absent < n->processes) status = net_wait_ends(m, &d, absent);
    }
    for (int i = 0; i < d.count; i++) close(d.callers[i].fd);
    free(d.callers);
    free(d.ready);
    return status;
}

// Sends the same bytes to all linked processes, to all at once: one that does not read keeps no other
// waiting.
GPT2_SP_LEAF int net_send_all(net_meeting* m, const unsigned char* bytes, size_t size) {
    net_peers* n = m->peers;
    size_t* done = (size_t*)calloc((size_t)n->processes, sizeof *done);
    struct pollfd* ready = (struct pollfd*)calloc((size_t)n->processes, sizeof *ready);
    int status = done && ready ? 0 : NET_FAIL(m, "out of memory"), left = -1;
    while (status == 0 && left != 0) {
        left = 0;
        for (int i = 0; status == 0 && i < n->processes; i++) {
            int fd = n->links[i].fd;
            ssize_t sent = 0;
            if (fd >= 0 && done[i] < size)
                sent = send(fd, bytes + done[i], size - done[i], MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent > 0) done[i] += (size_t)sent;
            if (sent < 0 && errno != EAGAIN && errno != EINTR)
                status = NET_FAIL(m, "process %d is gone (connection closed) before all had met", i);
            ready[i].fd = fd >= 0 && done[i] < size ? fd : -1, ready[i].events = POLLOUT;
            if (ready[i].fd >= 0) left = i;
        }
        if (status != 0 || left == 0) break;
        if (net_left(m, n->process) != 0) status = -1;
        else if (*m->stop)
            status = NET_FAIL(m, "process %d: stopped by a signal while it told the others", n->process);
        else if (net_passed(m->deadline))
            status = NET_FAIL(m, "process %d: waited %g s for process %d to hear where the others are",
                n->process, m->timeout_ms / 1e3, left);
        else poll(ready, (nfds_t)n->processes, 100);
    }
    free(done);
    free(ready);
    return status;
}

// Process 0, when all are there: tells each where the others are.
GPT2_SP_LEAF int net_welcome_all(net_meeting* m) {
    net_peers* n = m->peers;
    net_place* places = m->places;
    uint64_t cookie = 0;
    net_machine(places[0].machine, sizeof places[0].machine);
    for (int i = 1; i < n->processes; i++) {
        char* address = places[i].address;
        char port[16];
        net_socket_name(n->links[i].fd, 1, address, sizeof places[i].address, port, sizeof port);
        if (net_is_loopback(address)) address[0] = 0;
    }
    while (cookie == 0)
        if (net_random(&cookie, sizeof cookie) != 0) return NET_FAIL(m, "the system has no random numbers");
    unsigned char* welcome = (unsigned char*)malloc(net_welcome_size(n->processes));
    if (!welcome) return NET_FAIL(m, "out of memory");
    net_welcome_encode(welcome, cookie, places, n->processes);
    int status = net_send_all(m, welcome, net_welcome_size(n->processes));
    free(welcome);
    return status;
}

// Process 0: waits for all, then tells each where the others are, or why there is no run.
GPT2_SP_LEAF int net_host(net_meeting* m) {
    net_peers* n = m->peers;
    const char* at = net_is_loopback(m->address.host) ? m->address.host : "";
    int listener = net_socket_listen(at, m->address.port, m->error, m->size);
    if (listener < 0) return -1;
    int status = net_accept(m, listener, 1, 0);
    close(listener);
    if (status == 0) return net_welcome_all(m);
    for (int i = 1; i < n->processes; i++)
        if (n->links[i].fd >= 0) net_refuse(n->links[i].fd, m->error);
    return -1;
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

// Reads exactly `bytes` of what a process answers: 0, or -1 with a line, also where another one has left.
GPT2_SP_LEAF int net_read(net_meeting* m, int process, void* out, size_t bytes) {
    net_peers* n = m->peers;
    for (size_t done = 0; done < bytes;) {
        struct pollfd ready = {n->links[process].fd, POLLIN, 0};
        if (*m->stop)
            return NET_FAIL(m, "process %d: stopped by a signal while it waited for the others", n->process);
        if (net_passed(m->deadline))
            return NET_FAIL(m, "process %d: waited %g s at %.300s for all processes to meet", n->process,
                m->timeout_ms / 1e3, m->master);
        if (net_left(m, process) != 0) return -1;
        if (poll(&ready, 1, 100) <= 0) continue;
        ssize_t got = recv(ready.fd, (char*)out + done, bytes - done, MSG_DONTWAIT);
        if (got > 0) done += (size_t)got;
        if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR))) continue;
        if (process > 0)
            return NET_FAIL(m, "process %d: process %d is gone (connection closed) before all had met",
                n->process, process);
        return NET_FAIL(m, "process %d: process 0 at %.300s is gone (connection closed) before all had met",
            n->process, m->master);
    }
    return 0;
}

// Reads what a process answers on a connection: `bytes` that begin with the magic, or its refusal.
GPT2_SP_LEAF int net_answer(net_meeting* m, int process, uint64_t magic, unsigned char* out, size_t bytes) {
    net_peers* n = m->peers;
    unsigned char refusal[NET_REFUSAL];
    if (net_read(m, process, refusal, 8) != 0) return -1;
    int refused = net_get(refusal, 8) == NET_REFUSAL_MAGIC, answered = net_get(refusal, 8) == magic;
    memcpy(out, refusal, 8);
    if (refused && net_read(m, process, refusal + 8, NET_REFUSAL - 8) != 0) return -1;
    if (answered && net_read(m, process, out + 8, bytes - 8) != 0) return -1;
    if (refused && net_sealed(refusal, NET_REFUSAL) && refusal[NET_REFUSAL - 5] == 0)
        return NET_FAIL(m, "process %d: %.499s", process, (const char*)refusal + 8);
    if (answered && net_sealed(out, bytes)) return 0;
    return NET_FAIL(m, "--master %.300s: what answers there is no process %d of %d processes", m->master,
        process, n->processes);
}

// Says hello to a process that was just connected to; with a secret, both prove that they know it.
GPT2_SP_LEAF int net_greet(net_meeting* m, int process, uint64_t cookie, int port) {
    net_hello h;
    unsigned char hello[NET_HELLO], note[NET_NOTE], nonce[NET_NONCE], proof[SHA256_BYTES];
    int fd = m->peers->links[process].fd;
    if (net_hello_make(m, &h, cookie, port) != 0) return -1;
    net_hello_encode(hello, &h);
    // where this fails, the connection is closed: the answer says so, or why
    (void)net_socket_send(fd, hello, sizeof hello);
    if (m->secret->size == 0) return 0;
    if (net_answer(m, process, NET_CHALLENGE_MAGIC, note, sizeof note) != 0) return -1;
    memcpy(nonce, note + 8, sizeof nonce);
    net_prove(proof, m->secret, "caller", hello, nonce);
    net_note_encode(note, NET_PROOF_MAGIC, proof);
    (void)net_socket_send(fd, note, sizeof note);
    if (net_answer(m, process, NET_PROOF_MAGIC, note, sizeof note) != 0) return -1;
    net_prove(proof, m->secret, "listener", hello, nonce);
    if (sha256_equal(proof, note + 8)) return 0;
    return NET_FAIL(m, "--secret-file: what answers at %.300s as process %d does not know the secret",
        m->master, process);
}

// Then they say where they listen, and read the welcome and the places of all.
GPT2_SP_LEAF int net_register(net_meeting* m, int port, uint64_t* cookie) {
    net_peers* n = m->peers;
    size_t size = net_welcome_size(n->processes);
    unsigned char* welcome = (unsigned char*)malloc(size);
    if (!welcome) return NET_FAIL(m, "out of memory");
    int status = net_greet(m, 0, 0, port);
    if (status == 0) status = net_answer(m, 0, NET_WELCOME_MAGIC, welcome, size);
    if (status == 0 && net_welcome_decode(welcome, cookie, m->places, n->processes) != 0)
        status = NET_FAIL(m, "--master %.300s: what answers there is no process 0 of %d processes", m->master,
            n->processes);
    free(welcome);
    return status;
}

// Connects to a process with a lower number; where no address is given, it is at process 0's.
GPT2_SP_LEAF int net_connect_to(net_meeting* m, int process, uint64_t cookie) {
    net_peers* n = m->peers;
    const net_place* place = &m->places[process];
    const char* why = "";
    char zero[128], port[16], at[300];
    net_socket_name(n->links[0].fd, 1, zero, sizeof zero, port, sizeof port);
    snprintf(port, sizeof port, "%u", place->port);
    const char* where = place->address[0] ? place->address : zero;
    int fd = n->links[process].fd = net_socket_connect(where, port, &why);
    net_address_print(at, sizeof at, where, port);
    if (fd < 0)
        return NET_FAIL(
            m, "process %d: cannot connect to process %d at %s (%s)", n->process, process, at, why);
    net_socket_options(fd);
    return net_greet(m, process, cookie, 0);
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
// or once *stop is set. What links there are then stay until net_close, so that net_tell reaches them. The
// secret: NULL, or the one of net_secret_read.
GPT2_SP_LEAF int net_open(net_peers* n, int process, int processes, const char* master,
    const net_secret* secret, double timeout_ms, const volatile sig_atomic_t* stop, char* error,
    size_t size) {
    static const net_secret none = {{0}, 0};
    net_meeting m;
    memset(&m, 0, sizeof m);
    m.peers = n, m.master = master;
    m.secret = secret ? secret : &none;
    m.timeout_ms = timeout_ms, m.stop = stop;
    m.error = error, m.size = size;
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
    if (status != 0) n->told = 1;   // closing its links must not look as if it were done
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

// Those of mpirun come before Slurm's: it may itself use srun, whose numbers its processes then see too.
enum { NET_LAUNCHERS = 4, NET_TORCHRUN = 0, NET_SLURM = 3 };
static const net_launcher net_launchers[NET_LAUNCHERS] = {
    {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"},
    {"SLURM_PROCID", "SLURM_NTASKS", "", "SLURM_STEP_NODELIST"},
};

// The launcher that has set a process' number and their count: torchrun, mpirun of Open MPI or of MPICH, or
// srun; NULL: none. RANK and WORLD_SIZE need no MASTER_ADDR where the master is given otherwise.
GPT2_SP_LEAF const net_launcher* net_launched(int master_given) {
    for (int i = 0; i < NET_LAUNCHERS; i++) {
        const net_launcher* l = &net_launchers[i];
        if (getenv(l->rank) && getenv(l->world) && (getenv(l->mark) || (i == NET_TORCHRUN && master_given)))
            return l;
    }
    return NULL;
}

// Where net_launched finds none: 0, or -1 with a line if a launcher's variables are there in part, as of one
// process of several that would train alone. A count of 1 is one that does. Slurm's are there in part also
// in a shell that asked it for machines only.
GPT2_SP_LEAF int net_launched_whole(char* error, size_t size) {
    for (int i = 0; i < NET_SLURM; i++) {
        const net_launcher* l = &net_launchers[i];
        const char *rank = getenv(l->rank), *world = getenv(l->world);
        if ((!rank && !world) || (world && strcmp(world, "1") == 0)) continue;
        return net_error(error, size,
            "%s is %.100s, but there is no %s: `--world 1` trains alone, else set it or give --world and "
            "--rank",
            world ? l->world : l->rank, world ? world : rank,
            !world      ? l->world
                : !rank ? l->rank
                        : l->mark);
    }
    return 0;
}

// The first machine of a list of Slurm's, such as "node[03-07,9]-ib,other" or "rack[1-2]node[3-4]": of each
// bracket its first number, and what follows it, up to a comma outside of brackets. -1: that is no list.
GPT2_SP_LEAF int net_nodelist_first(const char* list, char* out, size_t size) {
    size_t n = 0;
    for (const char* p = list; *p && *p != ','; p++) {
        size_t number = *p == '[' ? strspn(p + 1, "0123456789") : 1;
        const char* end = *p == '[' ? strchr(p, ']') : p;
        if (*p == ']' || number == 0 || !end || n + number >= size) return -1;
        if (*p == '[' && !strchr("-,]", p[1 + number])) return -1;
        memcpy(out + n, *p == '[' ? p + 1 : p, number);
        n += number;
        p = end;
    }
    out[n] = 0;
    return n > 0 ? 0 : -1;
}

// The machine of process 0 by a launcher's environment; `alone`: all processes are on this one. -1 with a
// line if none is named.
GPT2_SP_LEAF int net_launched_host(
    const net_launcher* l, int alone, char* out, size_t out_size, char* error, size_t size) {
    const char *address = getenv("MASTER_ADDR"), *nodes = getenv("SLURM_STEP_NODELIST");
    if (address && (!address[0] || strlen(address) >= out_size))
        return net_error(error, size, "MASTER_ADDR=%.300s: expected a machine's name or address", address);
    if (!address && nodes && net_nodelist_first(nodes, out, out_size) != 0)
        return net_error(error, size, "SLURM_STEP_NODELIST=%.300s: expected a list of machines", nodes);
    if (!address && !nodes && !alone)
        return net_error(error, size, "%s is %s, but no MASTER_ADDR: the machine of process 0", l->world,
            getenv(l->world));
    if (address || !nodes) snprintf(out, out_size, "%s", address ? address : "127.0.0.1");
    return 0;
}

#endif   // GPT2_SP_NET_H
