// safetensors.h: reads and writes the safetensors format.
//
//     offset  bytes  what
//     0       8      n, little-endian: the length of the header
//     8       n      JSON: {"name": {"dtype": "F32", "shape": [2,3], "data_offsets": [begin,end]}, ...
//                    "__metadata__": {"any": "string"}} and spaces; begins with '{'
//     8+n            the tensors' data, row-major, little-endian; offsets count from here
//
// A file is taken only if all of this holds, so that one file has one meaning and no header can ask for
// memory or a read that the file itself does not back:
//   the header's length is at most ST_MAX_HEADER and inside the file, checked before anything is allocated;
//   it is strict UTF-8 JSON (json.h) with no key twice and none but the three above, metadata only strings;
//   shape product times element size, multiplied with overflow checks, equals end - begin;
//   by offset each tensor begins where the one before ends: no hole, no overlap; the last ends with the file.
//
// Reading:  st_file f; char err[256];
//           if (st_open(&f, path, err, sizeof(err))) ...
//           const st_tensor* t = st_find(&f, "wte.weight");
//           if (!t || st_read_f32(&f, t, 0, st_elements(t), out, err, sizeof(err))) ...
//           st_close(&f);
//           A model's tensors may be shared out over several files: st_set_open, st_set_find, st_set_close.
// Writing:  st_header h; st_header_init(&h); st_header_add(&h, ...) for each tensor; st_header_finish(&h,
// ...) gives the bytes of
//           the header; write them, then the data of each tensor in the order of adding; st_header_free(&h).
// Functions return 0, or -1 with one line in err: the file, the tensor, what was found, what was expected.
// Nothing is global; several threads may read one open file. POSIX, little-endian; include it before the
// system's headers when compiling with -std=c11.

#ifndef GPT2_SP_SAFETENSORS_H
#define GPT2_SP_SAFETENSORS_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1   // pread under -std=c11
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h reads numbers as they lie in the file and needs a little-endian machine"
#endif

enum {
    ST_MAX_HEADER = 100000000,   // bytes, the limit of the reference implementation
    ST_MAX_TENSORS = 65536,
    ST_MAX_METADATA = 1024,   // entries
    ST_MAX_FILES = 1024,      // of a set
    ST_MAX_INDEX = 1 << 25,   // bytes
    ST_MAX_RANK = 8,
    ST_NAME_MAX = 256,   // bytes of a name with its final NUL; metadata keys too
    ST_PATH_MAX = 2048
};

// name and bytes of each element type; values can be read from the first four
#define ST_DTYPES(X) \
    X(F64, 8) \
    X(F32, 4) \
    X(F16, 2) \
    X(BF16, 2) \
    X(I64, 8) \
    X(I32, 4) X(I16, 2) X(I8, 1) X(U64, 8) X(U32, 4) X(U16, 2) X(U8, 1) X(BOOL, 1) X(F8_E4M3, 1) \
        X(F8_E5M2, 1)
#define ST_ENUM(name, bytes) ST_##name,
#define ST_NAME(name, bytes) #name,
#define ST_SIZE(name, bytes) bytes,
enum { ST_DTYPES(ST_ENUM) ST_DTYPE_COUNT };

typedef struct {
    char name[ST_NAME_MAX];        // UTF-8
    int dtype;                     // ST_F32, ...
    int ndim;                      // 0 for a single number
    uint64_t shape[ST_MAX_RANK];   // (shape[0], ..., shape[ndim-1]), row-major
    uint64_t begin, end;           // bytes, counted from data_start
    int named;                     // by a set's index
} st_tensor;

typedef struct {
    int fd;                   // -1 when closed
    char path[ST_PATH_MAX];   // for messages
    st_tensor* tensors;       // sorted by name
    int count;
    int capacity;
    uint64_t data_start;   // offset of the data in the file
    uint64_t data_bytes;
    char* metadata;   // JSON text of __metadata__, for json_get_string; "{}" when absent
} st_file;

// The files that hold the tensors of a model together.
typedef struct {
    st_file* files;
    int count;
} st_set;

typedef struct {
    st_tensor* tensors;   // in order of adding
    int count;
    int capacity;
    uint64_t data_bytes;   // so far
} st_header;

GPT2_SP_LEAF const char* st_dtype_name(int dtype) {
    static const char* const names[] = {ST_DTYPES(ST_NAME)};
    return dtype >= 0 && dtype < ST_DTYPE_COUNT ? names[dtype] : "unknown";
}

GPT2_SP_LEAF uint64_t st_dtype_bytes(int dtype) {
    static const unsigned char sizes[] = {ST_DTYPES(ST_SIZE)};
    return dtype >= 0 && dtype < ST_DTYPE_COUNT ? sizes[dtype] : 0;
}

// Number of elements of a tensor that st_open or st_header_add accepted.
GPT2_SP_LEAF uint64_t st_elements(const st_tensor* t) {
    return (t->end - t->begin) / st_dtype_bytes(t->dtype);
}

// Writes a message and returns -1. Control characters are replaced: names and paths come from outside.
__attribute__((format(printf, 3, 4))) GPT2_SP_LEAF int st_fail(
    char* err, size_t err_size, const char* format, ...) {
    if (err == NULL || err_size == 0) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err, err_size, format, args);
    va_end(args);
    for (char* p = err; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F) *p = '?';
    return -1;
}

// Bytes of a tensor of this type and shape. Returns 0, or -1 when the product passes 2^64.
GPT2_SP_LEAF int st_bytes(int dtype, int ndim, const uint64_t* shape, uint64_t* bytes) {
    uint64_t n = st_dtype_bytes(dtype);
    for (int i = 0; i < ndim; i++) {
        if (shape[i] != 0 && n > UINT64_MAX / shape[i]) return -1;
        n *= shape[i];
    }
    *bytes = n;
    return 0;
}

// Makes room for one more tensor in a list of at most ST_MAX_TENSORS. Returns it zeroed, or NULL.
GPT2_SP_LEAF st_tensor* st_append(st_tensor** list, int* count, int* capacity) {
    if (*count == *capacity) {
        int more = *capacity ? 2 * *capacity : 64;
        st_tensor* p =
            more <= ST_MAX_TENSORS ? (st_tensor*)realloc(*list, (size_t)more * sizeof(st_tensor)) : NULL;
        if (p == NULL) return NULL;
        *list = p;
        *capacity = more;
    }
    st_tensor* t = *list + (*count)++;
    memset(t, 0, sizeof(*t));
    return t;
}

// ---------------------------------------------------------------------------
// reading the header

// Reads exactly n bytes at an offset. Returns 0, or -1 with errno (0 when the file ends before).
GPT2_SP_LEAF int st_pread(int fd, void* out, uint64_t n, uint64_t offset) {
    for (uint64_t done = 0; done < n;) {
        uint64_t want = n - done < (1u << 30) ? n - done : 1u << 30;
        ssize_t got = pread(fd, (char*)out + done, (size_t)want, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = 0;
        if (got <= 0) return -1;
        done += (uint64_t)got;
    }
    return 0;
}

// Reads an array of at most max unsigned integers. Returns how many, max + 1 when there are more, -1 when it
// is none.
GPT2_SP_LEAF int st_numbers(json_span v, uint64_t* out, int max) {
    json_iter it;
    json_span x;
    int n = 0, more = json_array(v, &it);
    while (more >= 0 && (more = json_next(&it, NULL, &x)) == 1) {
        if (n == max) return max + 1;
        if (json_u64(x, &out[n++])) return -1;
    }
    return more < 0 ? -1 : n;
}

// Takes {"dtype", "shape", "data_offsets"} into t, whose name is set. Returns NULL, or what is wrong.
GPT2_SP_LEAF const char* st_parse_tensor(st_tensor* t, json_span v) {
    json_iter it;
    json_span key, x;
    uint64_t offsets[2], bytes;
    int seen = 0, more = json_object(v, &it);
    if (more < 0) return "is not an object";
    while ((more = json_next(&it, &key, &x)) == 1) {
        int which = json_equal(key, "dtype")  ? 1
            : json_equal(key, "shape")        ? 2
            : json_equal(key, "data_offsets") ? 4
                                              : 0;
        if (which == 0) return "has a key other than dtype, shape and data_offsets";
        if (seen & which) return "has a duplicate key";
        seen |= which;
        if (which == 1) {
            for (t->dtype = 0; t->dtype < ST_DTYPE_COUNT && !json_equal(x, st_dtype_name(t->dtype));)
                t->dtype++;
            if (t->dtype == ST_DTYPE_COUNT) return "has an unknown dtype";
        } else if (which == 2) {
            t->ndim = st_numbers(x, t->shape, ST_MAX_RANK);
            if (t->ndim < 0) return "has a shape that is not an array of unsigned integers";
            if (t->ndim > ST_MAX_RANK) return "has more than 8 dimensions (ST_MAX_RANK)";
        } else if (st_numbers(x, offsets, 2) != 2)
            return "has data_offsets that are not two unsigned integers";
    }
    if (more < 0 || seen != 7) return "lacks one of dtype, shape, data_offsets";
    t->begin = offsets[0];
    t->end = offsets[1];
    if (t->begin > t->end) return "has data_offsets whose begin is after its end";
    if (st_bytes(t->dtype, t->ndim, t->shape, &bytes)) return "has a shape whose product overflows 64 bits";
    if (bytes != t->end - t->begin) return "has data_offsets that do not match its dtype and shape";
    return NULL;
}

// Checks that __metadata__ holds strings only, no key twice. Returns NULL, or what is wrong.
GPT2_SP_LEAF const char* st_parse_metadata(json_span v) {
    json_iter it;
    json_span key, x, keys[ST_MAX_METADATA];
    char name[ST_NAME_MAX];
    int n = 0, more = json_object(v, &it);
    if (more < 0) return "is not an object";
    while ((more = json_next(&it, &key, &x)) == 1) {
        if (*x.s != '"') return "holds a value that is not a string";
        if (json_string(key, name, sizeof(name)) < 0)
            return "has a key with a NUL or of 256 bytes or more (ST_NAME_MAX)";
        if (n == ST_MAX_METADATA) return "has more than 1024 entries (ST_MAX_METADATA)";
        for (int i = 0; i < n; i++)
            if (json_equal(keys[i], name)) return "has a duplicate key";
        keys[n++] = key;
    }
    return more < 0 ? "is malformed" : NULL;
}

GPT2_SP_LEAF int st_by_offset(const void* a, const void* b) {
    const st_tensor *s = (const st_tensor*)a, *t = (const st_tensor*)b;
    if (s->begin != t->begin) return s->begin < t->begin ? -1 : 1;
    return (s->end > t->end) - (s->end < t->end);
}

GPT2_SP_LEAF int st_by_name(const void* a, const void* b) {
    return strcmp(((const st_tensor*)a)->name, ((const st_tensor*)b)->name);
}

// Reads the JSON of the header, len bytes, into f, whose path, data_start and data_bytes are set.
GPT2_SP_LEAF int st_parse(st_file* f, const char* text, size_t len, char* err, size_t err_size) {
    json_span doc = {text, len}, key, v;
    json_iter it;
    const char* wrong;
    uint64_t at = 0;
    int more, metadata = 0;
    if (len == 0 || text[0] != '{')
        return st_fail(err, err_size, "%s: the header does not begin with '{'", f->path);
    size_t utf8 = (size_t)(json_utf8_check(text, text + len) - text);
    if (utf8 < len) return st_fail(err, err_size, "%s: the header is not UTF-8 at byte %zu", f->path, utf8);
    if ((f->metadata = (char*)calloc(1, 3)) == NULL) return st_fail(err, err_size, "%s: no memory", f->path);
    memcpy(f->metadata, "{}", 2);
    json_object(doc, &it);
    while ((more = json_next(&it, &key, &v)) == 1) {
        if (json_equal(key, "__metadata__")) {
            wrong = metadata++ ? "is a duplicate key" : st_parse_metadata(v);
            if (wrong) return st_fail(err, err_size, "%s: __metadata__ %s", f->path, wrong);
            free(f->metadata);
            f->metadata = (char*)calloc(1, v.n + 1);
            if (f->metadata == NULL)
                return st_fail(err, err_size, "%s: no memory for %zu bytes of metadata", f->path, v.n);
            memcpy(f->metadata, v.s, v.n);
            continue;
        }
        if (f->count == ST_MAX_TENSORS)
            return st_fail(
                err, err_size, "%s: more than %d tensors (ST_MAX_TENSORS)", f->path, ST_MAX_TENSORS);
        st_tensor* t = st_append(&f->tensors, &f->count, &f->capacity);
        if (t == NULL) return st_fail(err, err_size, "%s: no memory for tensor %d", f->path, f->count);
        if (json_string(key, t->name, sizeof(t->name)) < 0)
            return st_fail(err, err_size,
                "%s: the name of tensor %d holds a NUL or more than %d bytes (ST_NAME_MAX)", f->path,
                f->count - 1, ST_NAME_MAX - 1);
        wrong = st_parse_tensor(t, v);
        if (wrong)
            return st_fail(err, err_size, "%s: tensor %s %s: %.*s", f->path, t->name, wrong,
                v.n < 200 ? (int)v.n : 200, v.s);
    }
    if (more < 0)
        return st_fail(
            err, err_size, "%s: the header is not strict JSON at byte %zu", f->path, (size_t)(it.p - text));

    if (f->count) qsort(f->tensors, (size_t)f->count, sizeof(st_tensor), st_by_offset);
    for (int i = 0; i < f->count; i++) {
        const st_tensor* t = &f->tensors[i];
        if (t->begin != at)
            return st_fail(err, err_size, "%s: tensor %s begins at %" PRIu64 ", expected %" PRIu64 " (%s)",
                f->path, t->name, t->begin, at, t->begin < at ? "overlap" : "hole");
        at = t->end;
        if (at > f->data_bytes)
            return st_fail(err, err_size,
                "%s: tensor %s ends at %" PRIu64 ", but the file holds %" PRIu64 " bytes of data", f->path,
                t->name, at, f->data_bytes);
    }
    if (at != f->data_bytes)
        return st_fail(err, err_size, "%s: %" PRIu64 " bytes after the last tensor, expected none", f->path,
            f->data_bytes - at);
    if (f->count) qsort(f->tensors, (size_t)f->count, sizeof(st_tensor), st_by_name);
    for (int i = 1; i < f->count; i++)
        if (st_by_name(&f->tensors[i - 1], &f->tensors[i]) == 0)
            return st_fail(
                err, err_size, "%s: duplicate key: tensor %s is there twice", f->path, f->tensors[i].name);
    return 0;
}

// Closes the file and frees the list. Harmless when st_open failed, and when called again.
GPT2_SP_LEAF void st_close(st_file* f) {
    if (f->fd >= 0) close(f->fd);
    free(f->tensors);
    free(f->metadata);
    memset(f, 0, sizeof(*f));
    f->fd = -1;
}

// Opens a file and checks its header in full. After a failure nothing stays open.
GPT2_SP_LEAF int st_open(st_file* f, const char* path, char* err, size_t err_size) {
    struct stat s;
    uint64_t n = 0, size = 0;
    char* text = NULL;
    int bad = -1;
    memset(f, 0, sizeof(*f));
    snprintf(f->path, sizeof(f->path), "%s", path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // not to wait for the other end if it is a pipe
    if (f->fd < 0 || fstat(f->fd, &s)) st_fail(err, err_size, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(s.st_mode)) st_fail(err, err_size, "%s: not a regular file", path);
    else if ((size = (uint64_t)s.st_size) < 8)
        st_fail(err, err_size, "%s: %" PRIu64 " bytes, expected at least 8", path, size);
    else if (st_pread(f->fd, &n, 8, 0))
        st_fail(err, err_size, "%s: reading the header: %s", path,
            errno ? strerror(errno) : "the file ends early");
    else if (n > ST_MAX_HEADER)
        st_fail(err, err_size, "%s: header of %" PRIu64 " bytes, expected at most %d (ST_MAX_HEADER)", path,
            n, ST_MAX_HEADER);
    else if (n > size - 8)
        st_fail(err, err_size, "%s: header of %" PRIu64 " bytes in a file with %" PRIu64 " after its length",
            path, n, size - 8);
    else if ((text = (char*)malloc((size_t)n + 1)) == NULL)
        st_fail(err, err_size, "%s: no memory for a header of %" PRIu64 " bytes", path, n);
    else if (st_pread(f->fd, text, n, 8))
        st_fail(err, err_size, "%s: reading the header: %s", path,
            errno ? strerror(errno) : "the file ends early");
    else {
        f->data_start = 8 + n;
        f->data_bytes = size - 8 - n;
        bad = st_parse(f, text, (size_t)n, err, err_size);
    }
    free(text);
    if (bad) st_close(f);
    return bad;
}

// Returns the tensor of that name, or NULL.
GPT2_SP_LEAF const st_tensor* st_find(const st_file* f, const char* name) {
    int low = 0, high = f->count;
    while (low < high) {
        int mid = low + (high - low) / 2, order = strcmp(f->tensors[mid].name, name);
        if (order == 0) return &f->tensors[mid];
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    return NULL;
}

// ---------------------------------------------------------------------------
// several files: model.safetensors.index.json says which tensor is in which
//
//     {"metadata": {...}, "weight_map": {"wte.weight": "model-00001-of-00002.safetensors", ...}}

GPT2_SP_LEAF void st_set_close(st_set* set) {
    for (int i = 0; i < set->count; i++) st_close(&set->files[i]);
    free(set->files);
    set->files = NULL, set->count = 0;
}

// Opens folder/name as the set's next file, unless it is among them. Returns 0, or -1.
GPT2_SP_LEAF int st_set_add(st_set* set, const char* folder, const char* name, char* err, size_t err_size) {
    char path[ST_PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path)
        return st_fail(err, err_size, "%.1000s/%.200s: the path is too long", folder, name);
    for (int i = 0; i < set->count; i++)
        if (strcmp(set->files[i].path, path) == 0) return 0;
    st_file* more = set->count < ST_MAX_FILES
        ? (st_file*)realloc(set->files, (size_t)(set->count + 1) * sizeof(st_file))
        : NULL;
    if (more == NULL) return st_fail(err, err_size, "%s: no room for another file", path);
    set->files = more;
    if (st_open(&more[set->count], path, err, err_size) != 0) return -1;
    set->count++;
    return 0;
}

// Returns the tensor of that name and the file it is in, or NULL.
GPT2_SP_LEAF const st_tensor* st_set_find(const st_set* set, const char* name, const st_file** file) {
    for (int i = 0; i < set->count; i++) {
        const st_tensor* t = st_find(&set->files[i], name);
        if (t) {
            *file = &set->files[i];
            return t;
        }
    }
    return NULL;
}

// Opens the files that an index (text) names. Each tensor must be in the file that it is said to be in, and
// no file may hold another: so every tensor is there once.
GPT2_SP_LEAF int st_set_index(
    st_set* set, const char* folder, const char* path, json_span text, char* err, size_t err_size) {
    json_span map = {NULL, 0}, key, value;
    json_iter it;
    char name[ST_NAME_MAX], file[ST_NAME_MAX];
    int tensors = 0, held = 0;
    if (json_get(text.s, text.n, "weight_map", &map) != 1)
        return st_fail(err, err_size, "%s: no `weight_map`", path);
    int more = json_object(map, &it);
    while (more >= 0 && (more = json_next(&it, &key, &value)) == 1) {
        if (json_string(key, name, sizeof name) < 0 || json_string(value, file, sizeof file) < 0 ||
            strchr(file, '/') != NULL)
            return st_fail(
                err, err_size, "%s: `weight_map` is to name a file of this folder for each tensor", path);
        if (st_set_add(set, folder, file, err, err_size) != 0) return -1;
        const st_file* in = NULL;
        const st_tensor* t = st_set_find(set, name, &in);
        if (t == NULL || strcmp(strrchr(in->path, '/') + 1, file) != 0)
            return st_fail(err, err_size, "%s: tensor %s is not in %s alone", path, name, file);
        st_tensor* held_there = &in->tensors[t - in->tensors];
        if (held_there->named++) return st_fail(err, err_size, "%s: tensor %s is named twice", path, name);
        tensors++;
    }
    if (more < 0) return st_fail(err, err_size, "%s: `weight_map` is no object", path);
    for (int i = 0; i < set->count; i++) held += set->files[i].count;
    if (tensors == 0 || tensors != held)
        return st_fail(err, err_size, "%s: it names %d tensors, its files hold %d", path, tensors, held);
    return 0;
}

// Opens folder/STEM.safetensors or, where there is none, the files that folder/STEM.safetensors.index.json
// names. Returns 0, or -1 with the set empty.
GPT2_SP_LEAF int st_set_open(st_set* set, const char* folder, const char* stem, char* err, size_t err_size) {
    char path[ST_PATH_MAX], name[ST_NAME_MAX];
    set->files = NULL, set->count = 0;
    snprintf(name, sizeof name, "%.64s.safetensors", stem);
    if ((size_t)snprintf(path, sizeof path, "%s/%s.index.json", folder, name) >= sizeof path)
        return st_fail(err, err_size, "%.1000s: the path is too long", folder);
    struct stat info;
    int fd = -1, bad = -1;
    char* whole = strrchr(path, '/') + 1 + strlen(name);   // where the path of the one file ends
    *whole = 0;
    if (stat(path, &info) != 0) {
        *whole = '.';
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    }
    if (fd < 0) {
        bad = st_set_add(set, folder, name, err, err_size);
        if (bad) st_set_close(set);
        return bad;
    }
    char* text = NULL;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size > ST_MAX_INDEX)
        st_fail(err, err_size, "%s: expected a file of at most %d bytes", path, ST_MAX_INDEX);
    else if ((text = (char*)malloc((size_t)info.st_size + 1)) == NULL)
        st_fail(err, err_size, "%s: no memory for %lld bytes", path, (long long)info.st_size);
    else if (st_pread(fd, text, (uint64_t)info.st_size, 0))
        st_fail(err, err_size, "%s: %s", path, errno ? strerror(errno) : "the file ends early");
    else {
        json_span all = {text, (size_t)info.st_size};
        bad = st_set_index(set, folder, path, all, err, err_size);
    }
    free(text);
    close(fd);
    if (bad) st_set_close(set);
    return bad;
}

// ---------------------------------------------------------------------------
// reading values

// IEEE half to float, exact: 1 sign, 5 exponent (bias 15), 10 fraction bits.
GPT2_SP_LEAF float st_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = (h >> 10) & 31u, fraction = h & 1023u, bits;
    float x;
    if (exponent == 0) {   // zero or subnormal: fraction * 2^-24
        x = (float)fraction * 0x1p-24f;
        return sign ? -x : x;
    }
    bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    memcpy(&x, &bits, 4);
    return x;
}

// bfloat16 to float: the upper half of its bits.
GPT2_SP_LEAF float st_from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Reads count elements from first_element on, into float (out64 NULL) or double. What the file stores in the
// type asked for comes bit for bit; F64 to float rounds to nearest; the rest is exact.
GPT2_SP_LEAF int st_read(const st_file* f, const st_tensor* t, uint64_t first, uint64_t count, float* out32,
    double* out64, char* err, size_t err_size) {
    uint64_t bytes = st_dtype_bytes(t->dtype), total = st_elements(t), piece = 0, at;
    unsigned char buf[16384];
    if (t->dtype > ST_BF16)
        return st_fail(err, err_size, "%s: tensor %s is %s, expected F64, F32, F16 or BF16", f->path, t->name,
            st_dtype_name(t->dtype));
    if (first > total || count > total - first)
        return st_fail(err, err_size,
            "%s: tensor %s has %" PRIu64 " elements, asked for %" PRIu64 " from %" PRIu64, f->path, t->name,
            total, count, first);
    int direct = t->dtype == (out64 ? ST_F64 : ST_F32);
    for (uint64_t done = 0; done < count; done += piece) {
        piece = direct || count - done < sizeof(buf) / bytes ? count - done : sizeof(buf) / bytes;
        at = f->data_start + t->begin + (first + done) * bytes;
        void* into = !direct ? (void*)buf : out64 ? (void*)out64 : (void*)out32;
        if (st_pread(f->fd, into, piece * bytes, at))
            return st_fail(err, err_size, "%s: reading tensor %s at byte %" PRIu64 ": %s", f->path, t->name,
                at, errno ? strerror(errno) : "the file ends early");
        for (uint64_t i = 0; i < piece && !direct; i++) {
            double wide = 0;
            float x = 0;
            uint16_t half = 0;
            if (t->dtype == ST_F64) memcpy(&wide, buf + 8 * i, 8);
            else if (t->dtype == ST_F32) memcpy(&x, buf + 4 * i, 4);
            else memcpy(&half, buf + 2 * i, 2);
            if (t->dtype == ST_F64) x = (float)wide;
            else if (t->dtype == ST_F16) x = st_from_f16(half);
            else if (t->dtype == ST_BF16) x = st_from_bf16(half);
            if (out64) out64[done + i] = (double)x;
            else out32[done + i] = x;
        }
    }
    return 0;
}

GPT2_SP_LEAF int st_read_f32(const st_file* f, const st_tensor* t, uint64_t first_element, uint64_t count,
    float* out, char* err, size_t err_size) {
    return st_read(f, t, first_element, count, out, NULL, err, err_size);
}

GPT2_SP_LEAF int st_read_f64(const st_file* f, const st_tensor* t, uint64_t first_element, uint64_t count,
    double* out, char* err, size_t err_size) {
    return st_read(f, t, first_element, count, NULL, out, err, err_size);
}

// ---------------------------------------------------------------------------
// writing

// The nearest number of a binary format of 16 bits, ties to the even one: a sign, so many bits of
// exponent, and the rest of fraction. Rounded once, from the double. What is too large becomes infinite,
// what is too small a subnormal or zero, NaN a quiet one.
GPT2_SP_LEAF uint16_t st_to_half(double x, int exponent_bits) {
    const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1, least = 1 - bias;
    const uint32_t infinite = ((1u << exponent_bits) - 1) << fraction_bits;
    uint64_t bits;
    memcpy(&bits, &x, 8);
    const uint32_t sign = (uint32_t)(bits >> 63) << 15;
    const int exponent = (int)(bits >> 52 & 2047) - 1023;
    const uint64_t fraction = bits & 0xFFFFFFFFFFFFFull;
    if (exponent == 1024 && fraction != 0) return (uint16_t)(sign | infinite | 1u << (fraction_bits - 1));
    if (exponent > bias) return (uint16_t)(sign | infinite);
    if (exponent < least - fraction_bits - 1) return (uint16_t)sign;   // less than half of the smallest
    const int subnormal = exponent < least, drop = 52 - fraction_bits + (subnormal ? least - exponent : 0);
    const uint64_t whole = fraction | 1ull << 52, rest = whole & ((1ull << drop) - 1),
                   half = 1ull << (drop - 1);
    uint32_t kept = (uint32_t)(whole >> drop);
    kept += rest > half || (rest == half && (kept & 1u));
    // a carry out of the fraction counts the exponent up, to infinity too: both lie next to each other
    const uint32_t from = subnormal ? 0 : (uint32_t)(exponent + bias - 1) << fraction_bits;
    return (uint16_t)(sign | (from + kept));
}
GPT2_SP_LEAF uint16_t st_to_f16(double x) { return st_to_half(x, 5); }
GPT2_SP_LEAF uint16_t st_to_bf16(double x) { return st_to_half(x, 8); }

GPT2_SP_LEAF void st_header_init(st_header* h) { memset(h, 0, sizeof(*h)); }

GPT2_SP_LEAF void st_header_free(st_header* h) {
    free(h->tensors);
    memset(h, 0, sizeof(*h));
}

// Adds a tensor; its data follows that of the tensor added before.
GPT2_SP_LEAF int st_header_add(
    st_header* h, const char* name, int dtype, int ndim, const uint64_t* shape, char* err, size_t err_size) {
    uint64_t bytes = 0;
    const char* end = name + strlen(name);
    if (json_utf8_check(name, end) != end)
        return st_fail(err, err_size, "safetensors header: tensor %s: its name is not UTF-8", name);
    if (strlen(name) >= ST_NAME_MAX || ndim < 0 || ndim > ST_MAX_RANK || st_dtype_bytes(dtype) == 0)
        return st_fail(err, err_size,
            "safetensors header: tensor %s: name of %zu bytes, dtype %d, rank %d; expected at most %d, a "
            "known one, 0..%d",
            name, strlen(name), dtype, ndim, ST_NAME_MAX - 1, ST_MAX_RANK);
    if (st_bytes(dtype, ndim, shape, &bytes) || bytes > UINT64_MAX - h->data_bytes)
        return st_fail(err, err_size, "safetensors header: tensor %s: its size overflows 64 bits", name);
    st_tensor* t = st_append(&h->tensors, &h->count, &h->capacity);
    if (t == NULL)
        return st_fail(err, err_size, "safetensors header: tensor %s: no memory, or more than %d tensors",
            name, ST_MAX_TENSORS);
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->dtype = dtype;
    t->ndim = ndim;
    for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
    t->begin = h->data_bytes;
    t->end = h->data_bytes += bytes;
    return 0;
}

// Makes the head of the file: the 8 bytes of length and the JSON, padded with spaces to a multiple of 8. The
// metadata is the text of a JSON object of strings, e.g. {"format":"pt"}, or NULL. *bytes is the caller's to
// free. The result has passed st_parse, so duplicate names, bad metadata and too long a header are refused
// here and not by the next reader.
GPT2_SP_LEAF int st_header_finish(
    st_header* h, const char* metadata_json, unsigned char** bytes, size_t* n, char* err, size_t err_size) {
    size_t size = 64 + (metadata_json ? strlen(metadata_json) : 0), at = 8;
    for (int i = 0; i < h->count; i++)
        size += 6 * strlen(h->tensors[i].name) + 320;   // escapes; 10 numbers of up to 20 digits, keys
    char* text = (char*)malloc(size);
    st_file check;
    memset(&check, 0, sizeof(check));
    check.fd = -1;
    check.data_bytes = h->data_bytes;
    snprintf(check.path, sizeof(check.path), "safetensors header");
    int bad = -1;
    if (text == NULL) st_fail(err, err_size, "safetensors header: no memory for %zu bytes", size);
    else if (metadata_json && json_validate(metadata_json, strlen(metadata_json), 2, NULL))
        st_fail(err, err_size, "safetensors header: the metadata is not JSON: %s", metadata_json);
    else {
        text[at++] = '{';
        if (metadata_json)
            at += (size_t)snprintf(
                text + at, size - at, "\"__metadata__\":%s%s", metadata_json, h->count ? "," : "");
        for (int i = 0; i < h->count; i++) {
            const st_tensor* t = &h->tensors[i];
            json_append_string(text, size, &at, t->name);
            at += (size_t)snprintf(
                text + at, size - at, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(t->dtype));
            for (int d = 0; d < t->ndim; d++)
                at += (size_t)snprintf(text + at, size - at, "%s%" PRIu64, d ? "," : "", t->shape[d]);
            at += (size_t)snprintf(text + at, size - at, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}%s",
                t->begin, t->end, i + 1 < h->count ? "," : "");
        }
        text[at++] = '}';
        while (at % 8) text[at++] = ' ';
        uint64_t length = at - 8;
        memcpy(text, &length, 8);
        if (length > ST_MAX_HEADER)
            st_fail(err, err_size,
                "safetensors header: %" PRIu64 " bytes, expected at most %d (ST_MAX_HEADER)", length,
                ST_MAX_HEADER);
        else bad = st_parse(&check, text + 8, (size_t)length, err, err_size);
    }
    st_close(&check);
    if (bad) free(text);
    *bytes = bad ? NULL : (unsigned char*)text;
    *n = bad ? 0 : at;
    return bad;
}

#endif
