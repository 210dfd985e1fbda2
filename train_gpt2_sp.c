/* gpt2_sp: a trainer for small GPT-2 models on long documents, split over ranks along the sequence.
 *
 * This file is the manual, the public header, the host services and the CPU reference of the trainer.
 *
 *     make                                                       builds ./train_gpt2_sp
 *     ./train_gpt2_sp prepare --out books.tok book.txt folder/   turns text into token shards
 *     ./train_gpt2_sp train --data books.tok --out runs/a --seq-len 4096 --sp 4
 *
 * Used as a header (a program that embeds the trainer; see dev/example_embed.c):
 *     #define GPT2_SP_HEADER_ONLY
 *     #include "train_gpt2_sp.c"           and link libgpt2sp.a
 * GPT2_SP_NO_MAIN leaves `main` out: the GPU program and the tests include the whole file that way.
 *
 * The letters used for shapes everywhere
 *     B   sequences of a batch on one replica      T   tokens of a sequence
 *     P   sequence-parallel ranks                  Tl  tokens of a sequence that this rank holds (about T/P)
 *     C   channels     L   layers                  NH  heads     HS  head size = C/NH
 *     V   vocabulary   Vp  vocabulary padded to a multiple of 128
 *     R   rows = B*Tl: the tokens that this rank works on at a time
 *
 * The life of one step
 *     1. the loader hands every rank its own rows of each sample, and one token more for the last label
 *     2. embedding: wte[token] + wpe[position], the mean of the row subtracted (--center)
 *     3. for each layer: RMSNorm, QKV; attention over all ranks' keys, by the schedule's table;
 *        projection added to the residual stream; RMSNorm, MLP, added to the residual stream
 *     4. RMSNorm; logits for a chunk of tokens at a time, their loss and at once their gradient
 *     5. the layers backward; what --recompute did not keep is computed again from what it kept
 *     6. gradients are summed over all ranks (never averaged: the loss is already divided by the
 *        number of valid tokens of the whole step, so no number depends on P or dp)
 *     7. the global norm, clipping, AdamW; a loss or norm that is not finite updates nothing
 *
 * The exchange between ranks in the forward pass, at P = 4 with --schedule dist (rows: steps; columns:
 * ranks; qikj: query chunk i against key chunk j; *: done by the keys' owner, who was sent the queries;
 * 1/2: for half of the heads)
 *              rank 0      rank 1      rank 2      rank 3
 *     step 0   q0k0 1/2    q1k1 1/2    q2k2 1/2    q3k3 1/2      the diagonal, half of the heads
 *     step 1   q3k0*       q1k0        q2k1        q3k2          a whole pair; operands came during step 0
 *     step 2   q2k0* 1/2   q3k1* 1/2   q2k0 1/2    q3k1 1/2      the last pair, shared by heads
 *     step 3   q0k0 1/2    q1k1 1/2    q2k2 1/2    q3k3 1/2      the diagonal's rest; results go home
 * A rank that has no earlier keys left helps a later rank: it is sent that rank's queries, returns a
 * partial (O, LSE), and the owner merges it by the rule of the online softmax. Each schedule is a
 * table of such steps (section 5); one executor (section 7) runs any of them, forward and backward.
 *
 * Contents (`grep -n '^// =====' train_gpt2_sp.c` prints them with their lines)
 *     public header
 *      1. errors and files               9. optimizer
 *      2. options                       10. trainer
 *      3. shards and loader             11. checkpoints
 *      4. transports                    12. evaluation and sampling
 *      5. schedules                     13. plan
 *      6. parameters and memory plan    14. training loop
 *      7. layers (forward, backward)    15. commands and main
 *      8. model
 *
 * Rules that hold everywhere: parameter gradients +=, activation gradients =, the residual stream's
 * gradient +=. Functions that can fail return 0 or -1 and leave one line in an Error; only main prints it.
 */
#if !defined(GPT2_SP_HEADER_ONLY) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE   // pread, posix_memalign and glob under -std=c11
#endif
#ifndef GPT2_SP_H
#define GPT2_SP_H

#include <stddef.h>
#include <stdint.h>

// ===== public header ============================================================================

#define GPT2_SP_VERSION_MAJOR 1
#define GPT2_SP_VERSION_MINOR 0
#define GPT2_SP_VERSION_PATCH 0
#define GPT2_SP_VERSION "1.0.0"
#define GPT2_SP_TEXT 1024         // bytes of a text option or a line, its end included
#define GPT2_SP_DRAFT_TOKENS 15   // that a draft model proposes at a time, at most

// What a function that fails returns, and what is in gpt2_sp_failure: the name, the number, the cause.
#define GPT2_SP_CODES(X) \
    X(OK, 0, "it worked") \
    X(FAILED, -1, "none of those below") \
    X(INVALID, -2, "an argument or an option is not what it must be") \
    X(NO_MEMORY, -3, "it does not fit in memory") \
    X(FILE, -4, "a file is not there, cannot be read or written, or is damaged") \
    X(MISMATCH, -5, "model, data, tokenizer or the run's earlier steps do not go together") \
    X(NOT_FINITE, -6, "the loss or the gradient was not finite for ten steps") \
    X(LOST, -7, "another rank or process failed or was lost; the trainer can only be destroyed") \
    X(CANCELLED, -8, "a callback asked for it; nothing has changed") \
    X(UNSUPPORTED, -9, "this program, or these options together, cannot do it")
#define GPT2_SP_CODE(NAME, number, cause) GPT2_SP_##NAME = number,
enum { GPT2_SP_CODES(GPT2_SP_CODE) };
#undef GPT2_SP_CODE

// Why a call failed: one of the codes above and a line for a person. Functions that take one accept NULL.
typedef struct {
    int code;
    char text[GPT2_SP_TEXT];
} gpt2_sp_failure;

// Every struct below begins with `size`, which whoever passes it sets to its sizeof: a library newer than the
// program fills in or reads only what the program knows of.

// What one step did. Loss, norm and tokens do not depend on P, dp or the ZeRO stage (up to rounding).
typedef struct {
    size_t size;        // of this struct
    int64_t step;       // optimizer steps done, this one included
    double loss;        // mean over the step's valid tokens, in nats
    double grad_norm;   // global norm before clipping
    double lr;          // learning rate that was used
    int64_t tokens;     // valid tokens seen since the run began
    double ms;          // wall time of the step
    double tok_per_s;   // tokens of the step per second
    int updated;      // 0: no rank updated, for the loss or the norm was not finite, or no token had a label
    int64_t window;   // tokens of a block that attention stayed in (--window-ramp); 0: there are none
} gpt2_sp_stats;

// How tokens are drawn, in this order, which is Transformers': the penalty, the temperature, top_k, top_p,
// min_p. Equally likely tokens count in the order of their numbers.
typedef struct {
    size_t size;          // of this struct
    double temperature;   // softmax of logits / temperature; 0: always the likeliest token, after the penalty
    int64_t top_k;        // among the k likeliest; 0: all
    double top_p;         // among the likeliest that make up this probability, at least one
    double min_p;         // among those at least so many times as probable as the likeliest
    double repetition_penalty;   // logits of tokens in the text, prompt included: > 0 divided, < 0 multiplied
    uint64_t seed;               // token i of a continuation depends on both of these, i and the logits alone
    uint64_t continuation;
    int64_t draft_tokens;   // that the draft model proposes at a time, 1 to GPT2_SP_DRAFT_TOKENS
    // Called for every token as soon as it is drawn, the one that ends a document excepted; nonzero: the
    // continuation ends with it. NULL: nobody is told.
    int (*token)(void* user, int32_t token);
    void* user;
} gpt2_sp_sampling;

// What a generator has done, over all its continuations.
typedef struct {
    size_t size;        // of this struct
    int64_t prompt;     // tokens of the prompt
    double prompt_ms;   // to read it
    int64_t tokens;     // drawn, without those that ended a document
    double ms;          // to draw them
    int64_t passes;     // of the model over them
    int64_t drafted;    // tokens that the draft model proposed,
    int64_t accepted;   // and those of them that the model took
    double plain_ms;    // with a draft: of the fastest pass that drew one token without it; 0: there was none
} gpt2_sp_generated;

// How far a step or a validation is.
enum { GPT2_SP_IN_STEP, GPT2_SP_IN_VALIDATION, GPT2_SP_IN_READING };
typedef struct {
    size_t size;    // of this struct
    int doing;      // GPT2_SP_IN_...: a step or its gradients, a validation, the losses of given tokens
    int64_t step;   // that is under way, from 1; else how many are done
    int64_t pass, passes;   // the pass that is under way, from 0, of so many: --grad-accum, or a validation's
    int64_t done, total;    // layers, forward and backward, of each sequence of a replica; over all passes
} gpt2_sp_progress;

enum { GPT2_SP_LOG_WARNING = 1 };   // levels of a line of the log; there may be others one day

// What data of the program's own are for (gpt2_sp_feed).
enum { GPT2_SP_TRAINING, GPT2_SP_VALIDATION };

// A sample that the program gives. It is filled in beforehand with what the comments say.
enum { GPT2_SP_NO_LABEL = -1, GPT2_SP_NEXT = -2 };
typedef struct {
    size_t size;          // of this struct
    uint64_t sample;      // its number in the run, from 0; a run that goes on goes on with the next one
    int64_t seq_len;      // T
    int32_t* tokens;      // (T + 1) 0; the last one is only a label
    int32_t* labels;      // (T) GPT2_SP_NEXT: the token behind; GPT2_SP_NO_LABEL: no loss; or any token
    int32_t* doc_start;   // (T) 0: where token t's document begins in the sample; NULL without --doc-mask
} gpt2_sp_sample;

// A parameter of the model: its name and shape as in model.safetensors. Numbers lie in the order of the
// shape, the last index the fastest.
typedef struct {
    size_t size;   // of this struct
    char name[64];
    int dims;           // 1 or 2
    int64_t shape[2];   // of two, (in, out) for the four matrices of a layer; (V, C), (N, C) for embeddings
    int64_t elements;
    double rate;   // its learning rate is so many times the step's (--lr-scale); 0: it is frozen
} gpt2_sp_tensor;
// What there is of each. Moments are AdamW's, of the first and the second order.
enum { GPT2_SP_WEIGHTS, GPT2_SP_GRADIENTS, GPT2_SP_MOMENT1, GPT2_SP_MOMENT2 };

typedef struct gpt2_sp_options gpt2_sp_options;       // options by their names
typedef struct gpt2_sp gpt2_sp;                       // a trainer: ranks, memory, data; one user at a time
typedef struct gpt2_sp_generator gpt2_sp_generator;   // a prompt that was read, to be continued

#ifndef GPT2_SP_API   // what a library exports
#define GPT2_SP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Functions that return an int give 0 (GPT2_SP_OK), or one of the codes below zero; then
// gpt2_sp_error(trainer) has a line that says why, unless there is no trainer, or a callback called its own.

// Threads: a trainer is used by one thread at a time, and so are options; several trainers in several threads
// at the same time are fine. `progress` and `token` are called on the thread that called the library, with
// its locale, number of OpenMP threads and floating-point state, `fill` on a thread of the library's, `line`
// on either. Of its own trainer it may ask gpt2_sp_steps; another call gives GPT2_SP_INVALID and does
// nothing, and none may destroy it. All that belong to another trainer, and those that take none, may be
// called. A call leaves the calling thread's locale, number of OpenMP threads and floating-point state as
// they were. The library ends no program, handles no signal and prints nothing. (OpenMP ends a program that
// gets no more threads from the system.) It reads no environment variable; OpenMP, CUDA and NCCL read theirs.

// The library's version, "1.0.0"; and with how it was built: compiler, numbers, what it can do.
GPT2_SP_API const char* gpt2_sp_version(void);
GPT2_SP_API const char* gpt2_sp_build(void);
// Whether the library has "gpu", "nccl", "openmp", "fp64": 1, or 0, also for names that it does not know.
GPT2_SP_API int gpt2_sp_has(const char* feature);
// "GPT2_SP_INVALID" of GPT2_SP_INVALID, and so on; "unknown" of other numbers.
GPT2_SP_API const char* gpt2_sp_code_name(int code);

// All options with their defaults; NULL if there is no memory. `train_gpt2_sp train --help` lists them.
GPT2_SP_API gpt2_sp_options* gpt2_sp_options_new(void);
// NULL is no error. A trainer keeps its own copy.
GPT2_SP_API void gpt2_sp_options_free(gpt2_sp_options* options);
// Sets one option by its name on the command line ("seq-len", "4096").
GPT2_SP_API int gpt2_sp_set(
    gpt2_sp_options* options, const char* name, const char* value, gpt2_sp_failure* failure);
// An option's value as gpt2_sp_set takes it, in text (size bytes, 2048 hold any; 0: only its length is
// asked). Its length, or a code.
GPT2_SP_API int gpt2_sp_get(
    const gpt2_sp_options* options, const char* name, char* text, size_t size, gpt2_sp_failure* failure);
// Sets what a file of `name = value` lines says, as --config does; if a line is wrong, those before it.
GPT2_SP_API int gpt2_sp_load_config(gpt2_sp_options* options, const char* path, gpt2_sp_failure* failure);
// Data of the program's in place of the shards of `data` (use GPT2_SP_TRAINING) or `val-data` (_VALIDATION).
// The model's vocabulary must be known, by the option `vocab` or from a model; every token is checked against
// it.
//
// feed: samples from a callback, which fills in a sample and returns 0; anything else is an error of the step
// that needs the sample, and of all after it: save, and make another trainer. It is called on a thread of
// the library's, one call at a time, in the order of the samples, each once: ahead of the step that learns
// from it, and again only by another trainer. Of several processes each asks for all samples of a step and
// must be given the same. A run goes on with the sample behind its last; it refuses another fingerprint,
// which stands for all that the callback would give. With --doc-mask the label GPT2_SP_NEXT of a token whose
// successor begins a document is none; whether a sample's last token ends one is the program's to say. A
// validation of n sequences asks for samples 0 to n - 1. fill NULL: the option's again.
//
// feed_tokens: a stream of `count` tokens, copied, cut into windows and shuffled anew each epoch as a shard
// with these tokens is, of which `eot`, negative for none, ends documents. Losses are those of the shard.
GPT2_SP_API int gpt2_sp_feed(gpt2_sp_options* options, int use,
    int (*fill)(void* user, gpt2_sp_sample* sample), void* user, uint64_t fingerprint,
    gpt2_sp_failure* failure);
GPT2_SP_API int gpt2_sp_feed_tokens(gpt2_sp_options* options, int use, const int32_t* tokens, int64_t count,
    int64_t eot, gpt2_sp_failure* failure);
// Has lines that are neither a result nor an error told to `line` from now on, by gpt2_sp_load_config and by
// trainers with these options as long as they live: GPT2_SP_LOG_WARNING, such as that a damaged checkpoint is
// passed over. NULL, the default: they are told to nobody; the library itself prints nothing.
GPT2_SP_API int gpt2_sp_on_log(
    gpt2_sp_options* options, void (*line)(void* user, int level, const char* text), void* user);
// Makes a trainer: opens the data, plans and allocates memory, resumes from the newest whole checkpoint in
// the folder `out`, or, where there is none, takes the weights of `init-from` or those of the seed. NULL if
// anything does not fit. Options hold as they are given here, also where a run goes on: run.cfg and log.jsonl
// are the commands', the library writes neither.
GPT2_SP_API gpt2_sp* gpt2_sp_create(const gpt2_sp_options* options, gpt2_sp_failure* failure);
// One optimizer step. The schedule of the learning rate ends with the option `steps`; steps after it have its
// last rate. A step without a label has loss 0.
GPT2_SP_API int gpt2_sp_step(gpt2_sp* trainer, gpt2_sp_stats* stats);
// Mean loss in nats per token over the first `sequences` windows of the shards of the option val-data (all of
// them if it has fewer).
GPT2_SP_API int gpt2_sp_validate(gpt2_sp* trainer, int64_t sequences, double* loss);
// Gives every field but size the default of the option of its name; no callback.
GPT2_SP_API int gpt2_sp_sampling_defaults(gpt2_sp_sampling* how);
// Continues `prompt` by up to `count` tokens (0 < prompt_count, prompt_count + count <= T); how NULL: the
// defaults, their seed too, so that the same text comes again. Gives the number of tokens in `out`, or a
// code. It ends early before the token that ends a document. Where ranks of several processes hold parts of
// the weights (--zero 3, or --sp with positions of their own) all processes call it; on GPUs over NCCL it is
// refused there.
GPT2_SP_API int64_t gpt2_sp_generate(gpt2_sp* trainer, const int32_t* prompt, int64_t prompt_count,
    int32_t* out, int64_t count, const gpt2_sp_sampling* how);
// The same in three steps, for several continuations of a prompt that is read once: open reads it and takes
// memory for `count` more tokens; run continues it, each time from its end; close frees, NULL is no error.
// NULL or a code: gpt2_sp_error(trainer) tells. Close before a trainer is destroyed; after a step of either
// run is refused, for the prompt was read with older weights.
// draft, NULL for none, is a smaller model of the same vocabulary and end token: it proposes tokens, of which
// the trainer's model reads several at once. What is drawn has the distribution that it has without; at
// temperature 0 it is the same, token for token. Beyond the draft's context the model goes on alone.
GPT2_SP_API gpt2_sp_generator* gpt2_sp_generator_open(
    gpt2_sp* trainer, gpt2_sp* draft, const int32_t* prompt, int64_t prompt_count, int64_t count);
GPT2_SP_API int64_t gpt2_sp_generator_run(
    gpt2_sp_generator* generator, int32_t* out, int64_t count, const gpt2_sp_sampling* how);
// What the generator has done since it was opened.
GPT2_SP_API int gpt2_sp_generator_stats(const gpt2_sp_generator* generator, gpt2_sp_generated* stats);
GPT2_SP_API void gpt2_sp_generator_close(gpt2_sp_generator* generator);
// Writes OUT/step_%08d, OUT being the option `out`: a Hugging Face model folder and the optimizer's state;
// all of it or nothing.
GPT2_SP_API int gpt2_sp_save(gpt2_sp* trainer);
// Steps done so far (a resumed trainer starts where its checkpoint stood).
GPT2_SP_API int64_t gpt2_sp_steps(const gpt2_sp* trainer);
// Has `progress` called while a step, a validation or a reading of losses is under way, on the thread that
// called for it, at least once for every layer's forward and once for every layer's backward pass. NULL:
// no more. What it returns decides: 0 goes on, anything else cancels the call, which then returns
// GPT2_SP_CANCELLED and leaves weights, moments, number of steps and place in the data as they were, so that
// the next step computes, to the bit, what it would have without (on GPUs with --deterministic 1). Of several
// processes any may have one, and a cancel by one cancels all. Without one nothing is slower.
GPT2_SP_API int gpt2_sp_on_progress(
    gpt2_sp* trainer, int (*progress)(void* user, const gpt2_sp_progress* progress), void* user);
// A step in two: the gradients of the next step's batch, summed over all passes and ranks; and the update,
// for which norm and clipping are computed from the gradients as they are then. Between both the program may
// read and write tensors, validate and generate. Both together are gpt2_sp_step, to the bit. gradients again,
// or gpt2_sp_step, begins anew with the same batch. stats: of gradients, what the step would tell (updated
// 0); of update, what the step tells. A gpt2_sp_save in between takes the gradients away, and update is an
// error.
GPT2_SP_API int gpt2_sp_gradients(gpt2_sp* trainer, gpt2_sp_stats* stats);
GPT2_SP_API int gpt2_sp_update(gpt2_sp* trainer, gpt2_sp_stats* stats);
// The learning rate of the steps from here on, in place of the schedule's; negative: the schedule's again.
// --warmup does not change it, and a checkpoint does not have it. All processes call it with the same.
GPT2_SP_API int gpt2_sp_set_lr(gpt2_sp* trainer, double lr);
// Tensors of the model, whole, whatever --zero, --sp and --dp are, and the processes: all of them call read
// and write, and all get the whole, or bring the same. count: how many there are; info: number i of them, in
// the order of model.safetensors. read: `elements` numbers, which must be as many as the tensor has, to out;
// write takes them from there. what: GPT2_SP_WEIGHTS, ...; name: with "transformer." in front or without.
// Gradients can be read after gpt2_sp_gradients and after a step, until anything is saved; written after
// gpt2_sp_gradients, but not of a frozen tensor. What was written is read again to the bit. With --center 1
// the weights of the projections are as they are trained; model.safetensors has them so too.
GPT2_SP_API int64_t gpt2_sp_tensor_count(const gpt2_sp* trainer);
GPT2_SP_API int gpt2_sp_tensor_info(const gpt2_sp* trainer, int64_t i, gpt2_sp_tensor* tensor);
GPT2_SP_API int gpt2_sp_tensor_read(
    gpt2_sp* trainer, int what, const char* name, float* out, int64_t elements);
GPT2_SP_API int gpt2_sp_tensor_write(
    gpt2_sp* trainer, int what, const char* name, const float* numbers, int64_t elements);
// The losses of `count` given tokens (2 to T + 1 of them) as one document: losses (count - 1) in nats, number
// i that of token i + 1 behind tokens 0..i. All ranks read it together, as in a validation; all processes
// call it with the same tokens.
GPT2_SP_API int gpt2_sp_losses(gpt2_sp* trainer, const int32_t* tokens, int64_t count, float* losses);
// The logits of what follows the tokens first .. first + rows - 1 of `count` given ones (1 to T), each behind
// all before it: out (rows, V). Read as gpt2_sp_generate reads a prompt; see there for several processes.
GPT2_SP_API int gpt2_sp_logits(
    gpt2_sp* trainer, const int32_t* tokens, int64_t count, int64_t first, int64_t rows, float* out);
// The line and the code of the last call, if it failed; else an empty line and GPT2_SP_OK. on_progress,
// steps, tensor_count, tensor_info and generator_stats change neither: what they return is all that they say.
GPT2_SP_API const char* gpt2_sp_error(const gpt2_sp* trainer);
GPT2_SP_API int gpt2_sp_code(const gpt2_sp* trainer);
// Frees everything; NULL is no error. What was not saved is lost.
GPT2_SP_API void gpt2_sp_destroy(gpt2_sp* trainer);

#ifdef __cplusplus
}
#endif
#endif   // GPT2_SP_H

// HEADER ENDS HERE
#ifndef GPT2_SP_HEADER_ONLY

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <float.h>
#include <fnmatch.h>
#include <glob.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "data/bpe.h"
#include "data/json.h"
#include "data/modeling.h"
#include "data/net.h"
#include "data/prepare.h"
#include "data/probe.h"
#include "data/safetensors.h"
#include "data/svg.h"
#include "data/synth.h"
#include "data/text.h"
#include "data/tok.h"

// `real` is what the CPU computes in: float, or double to prove the mathematics (make REAL=double).
#ifndef GPT2_SP_REAL_BYTES
#define GPT2_SP_REAL_BYTES 4
#endif
#if GPT2_SP_REAL_BYTES == 8
typedef double real;
#define REAL_DTYPE ST_F64
#else
typedef float real;
#define REAL_DTYPE ST_F32
#endif

#ifdef _OPENMP
// Both share a loop among the rank's threads: PARALLEL_FOR hands out iterations one by one, for few large or
// uneven ones; PARALLEL_STATIC splits them evenly, for many alike.
#define PARALLEL_FOR _Pragma("omp parallel for schedule(dynamic, 1)")
#define PARALLEL_STATIC _Pragma("omp parallel for schedule(static)")
#else
#define PARALLEL_FOR
#define PARALLEL_STATIC
#endif
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(variable) GPT2_SP_PRAGMA(omp simd reduction(+ : variable))
#ifdef __clang__   // does not vectorise a maximum that honours NaN, and warns
#define SIMD_MAX(variable)
#else
#define SIMD_MAX(variable) GPT2_SP_PRAGMA(omp simd reduction(max : variable))
#endif
#if GPT2_SP_REAL_BYTES == 8   // loops that call exp or tanh: libm's have no vector form here
#define SIMD_EXP
#define SIMD_EXP_SUM(variable)
#else
#define SIMD_EXP SIMD
#define SIMD_EXP_SUM(variable) SIMD_SUM(variable)
#endif
#define GPT2_SP_PRAGMA(text) _Pragma(#text)

#define MAIN_ONLY __attribute__((unused))   // called by main, which GPT2_SP_NO_MAIN leaves out

static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// Milliseconds of a clock that never jumps; only differences mean anything. It is the clock of net.h's
// deadlines.
static double now_ms(void) { return net_now_ms(); }

// ===== 1. errors and files ======================================================================
//
// A function that can fail returns 0, or -1 with one line for the user in an Error. Who finds the error
// writes the line, with the file, option or rank, what was found and what was expected; callers hand it on,
// and only main prints it. A check then reads
//
//     if (s->C % s->NH != 0) return fail(e, "--channels %lld is not divisible by --heads %lld", ...);
//
// Four rules keep what belongs to somebody else:
//
//     path_in       makes every path out of a folder and a name. One that does not fit is an error: cut, it
//                   would name something else
//     input_open    opens what the program looks for by itself: a regular file, so that no pipe is waited
//                   for and no device read for ever. (data/*.h open shards, models and the secret in the same
//                   way; --prompt-file may be a pipe)
//     Folder        what is written or removed is reached from an open folder, by a name without a slash, and
//                   no link is followed on the way: a link leads to what belongs to somebody else
//     OutFile       is a new file, never one that is there. It is written once, front to back, and counts its
//                   bytes and their CRC-32 on the way
//
// Only a file that file_close has brought to the disk, in a folder that folder_sync has, outlives a crash:
// checkpoints (section 11) rely on both.

typedef gpt2_sp_failure Error;   // one line for the user, empty: no error; code 0: nobody has named the cause

// Writes the line and gives -1, so that a check reads `return fail(e, ...)`. The cause is left to a caller.
static int fail(Error* e, const char* format, ...) __attribute__((format(printf, 2, 3)));
static int fail(Error* e, const char* format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    e->code = 0;
    return -1;
}
// The same, where the cause is known.
static int fail_as(int code, Error* e, const char* format, ...) __attribute__((format(printf, 3, 4)));
static int fail_as(int code, Error* e, const char* format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    e->code = code;
    return -1;
}
// Names the cause of an error for which nobody has yet; gives -1.
static int failed_as(int code, Error* e) {
    if (e->code == GPT2_SP_OK) e->code = code;
    return -1;
}

// "cannot open PATH: No such file or directory", by errno, which stays as it is.
static int fail_file(Error* e, const char* doing, const char* path) {
    int code = errno;
    fail_as(GPT2_SP_FILE, e, "cannot %s %.900s: %s", doing, path, strerror(code));
    errno = code;
    return -1;
}

// Bytes of a path, its end included: a text option and the longest name that this program appends to one.
enum { PATH_SIZE = GPT2_SP_TEXT + 128 };

// out = folder/name.
static int path_in(char out[PATH_SIZE], const char* folder, const char* name, Error* e) {
    int length = snprintf(out, PATH_SIZE, "%s/%s", folder, name);
    if (length < PATH_SIZE) return 0;
    out[0] = 0;
    return fail(
        e, "%.300s.../%.100s: a path of %d bytes, at most %d fit", folder, name, length, PATH_SIZE - 1);
}

// A folder that is held open.
typedef struct {
    int fd;                 // -1: not open
    char path[PATH_SIZE];   // as it was reached, for messages and for files that are only read
} Folder;

// Opens a folder by a path that the user gave, through links if he put some there.
static int folder_open(Folder* f, const char* path, Error* e) {
    snprintf(f->path, sizeof f->path, "%s", path);
    f->fd = -1;
    if (strlen(path) >= sizeof f->path) return fail(e, "%.300s...: a path too long for a folder", path);
    f->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return f->fd < 0 ? fail_file(e, "open folder", path) : 0;
}

// Opens the folder `name` of a folder, which must not be a link.
static int folder_enter(Folder* f, const Folder* parent, const char* name, Error* e) {
    f->fd = -1;
    if (path_in(f->path, parent->path, name, e) != 0) return -1;
    f->fd = openat(parent->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return f->fd < 0 ? fail_file(e, "open folder", f->path) : 0;
}

// A folder's entries, for readdir and closedir; NULL, with a line in e.
static DIR* folder_entries(const Folder* f, Error* e) {
    int fd = openat(f->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir) return dir;
    fail_file(e, "read folder", f->path);
    if (fd >= 0) close(fd);
    return NULL;
}

static void folder_close(Folder* f) {
    if (f->fd >= 0) close(f->fd);
    f->fd = -1;
}

// Who is told what is no error and no result: the program around the library, by its callback, or nobody.
typedef struct {
    void (*line)(void* user, int level, const char* text);   // NULL: nobody
    void* user;
} Log;
static const Log SILENT = {NULL, NULL};
static void warn(const Log* log, const char* format, ...) __attribute__((format(printf, 2, 3)));
static void warn(const Log* log, const char* format, ...) {
    char text[2 * GPT2_SP_TEXT];
    va_list args;
    if (!log->line) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log->line(log->user, GPT2_SP_LOG_WARNING, text);
}

// Where the commands tell it.
MAIN_ONLY static void log_print(void* user, int level, const char* text) {
    (void)user, (void)level;
    fprintf(stderr, "%s\n", text);
}
MAIN_ONLY static const Log PRINTED = {log_print, NULL};

// What a public function borrows from the program around it and gives back when it returns: the thread's
// locale, which would write 0,5 and sort otherwise, its number of OpenMP threads, and its floating-point
// state: another rounding, or numbers below the normal ones taken for zero, would give other losses.
typedef struct {
    locale_t locale;
    int threads;
    fenv_t floating;
} Host;

// The locale that numbers and names are read and written in; the one of the program if memory is short.
static locale_t plain_locale;
static void plain_locale_make(void) { plain_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); }
static void plain_locale_use(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, plain_locale_make);
    if (plain_locale) uselocale(plain_locale);
}
// What the calling thread has at the moment.
static Host host_now(void) {
    Host host;
    memset(&host, 0, sizeof host);
    host.locale = uselocale((locale_t)0);
#ifdef _OPENMP
    host.threads = omp_get_max_threads();
#endif
    fegetenv(&host.floating);
    return host;
}
static Host host_enter(void) {
    Host host = host_now();
    plain_locale_use();
    fesetenv(FE_DFL_ENV);
    return host;
}
// How many threads the loops that this thread runs from here on are shared among.
static void threads_use(int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#else
    (void)threads;
#endif
}
static void host_leave(const Host* host) {
    uselocale(host->locale);
    threads_use(host->threads);
    fesetenv(&host->floating);
}

// Around a call of the program's callback: it gets back what it had when it called, and afterwards, by
// host_leave, this library what it has now.
static Host host_lend(const Host* program) {
    Host own = host_now();
    host_leave(program);
    return own;
}

// Bytes of a public struct up to `last`, its last member in version 1.0: nobody knows fewer.
#define KNOWN_UP_TO(type, last) (offsetof(type, last) + sizeof(((type*)0)->last))

// How many bytes of a public struct are known to this library, `own`, and to the caller, who has put their
// number first: `least`, those of version 1.0, or more. 0, with a line in e: fewer, or there is no struct.
static size_t struct_known(const void* theirs, size_t own, size_t least, const char* name, Error* e) {
    size_t known = 0;
    if (theirs) memcpy(&known, theirs, sizeof known);
    if (known >= least) return known < own ? known : own;
    if (theirs)
        fail_as(GPT2_SP_INVALID, e, "%s.size is %zu: set it to the struct's sizeof, at least %zu", name,
            known, least);
    else fail_as(GPT2_SP_INVALID, e, "there is no %s", name);
    return 0;
}
// Copies so many bytes of a public struct, all but its size; 0 bytes: -1.
static int struct_copy(void* to, const void* from, size_t known) {
    if (known) memcpy((char*)to + sizeof known, (const char*)from + sizeof known, known - sizeof known);
    return known ? 0 : -1;
}
// Writes what a public function tells into the caller's struct.
static int struct_give(void* to, const void* told, size_t own, size_t least, const char* name, Error* e) {
    return struct_copy(to, told, struct_known(to, own, least, name, e));
}
// Reads what the caller asks for; what it does not know of stays as it is.
static int struct_take(void* to, size_t own, const void* asked, size_t least, const char* name, Error* e) {
    return struct_copy(to, asked, struct_known(asked, own, least, name, e));
}

// See the header, for these.
const char* gpt2_sp_version(void) { return GPT2_SP_VERSION; }
const char* gpt2_sp_code_name(int code) {
    switch (code) {
#define CODE_NAME(NAME, number, cause) \
    case number: return "GPT2_SP_" #NAME;
        GPT2_SP_CODES(CODE_NAME)
#undef CODE_NAME
    default: return "unknown";
    }
}

// A file that is written once, front to back, and must be whole on disk afterwards.
typedef struct {
    int fd;
    char path[PATH_SIZE];
    uint64_t bytes;   // written so far
    uint32_t crc;     // CRC-32 of them
    size_t fill;      // bytes waiting in buffer
    unsigned char buffer[1 << 16];
} OutFile;

// Makes a new file in a folder. One of that name, a link too, is an error and stays as it is.
static int file_create(OutFile* f, Error* e, const Folder* folder, const char* name) {
    f->fd = -1, f->fill = 0;
    f->bytes = 0, f->crc = (uint32_t)crc32(0, NULL, 0);
    if (path_in(f->path, folder->path, name, e) != 0) return -1;
    f->fd = openat(folder->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    return f->fd < 0 ? fail_file(e, "create", f->path) : 0;
}

// Writes what waits in the buffer.
static int file_flush(OutFile* f, Error* e) {
    for (size_t done = 0; done < f->fill;) {
        ssize_t n = write(f->fd, f->buffer + done, f->fill - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_file(e, "write", f->path);
        done += (size_t)n;
    }
    f->fill = 0;
    return 0;
}

// Appends `size` bytes. `bytes` and `crc` count them at once, whether they are on the disk or in the buffer.
static int file_write(OutFile* f, const void* data, size_t size, Error* e) {
    const unsigned char* p = (const unsigned char*)data;
    f->bytes += size;
    while (size > 0) {
        size_t n = sizeof f->buffer - f->fill < size ? sizeof f->buffer - f->fill : size;
        memcpy(f->buffer + f->fill, p, n);
        f->crc = (uint32_t)crc32(f->crc, p, (unsigned)n);
        f->fill += n, p += n;
        size -= n;
        if (f->fill == sizeof f->buffer && file_flush(f, e) != 0) return -1;
    }
    return 0;
}

// Closes the file. With `keep` everything is on the disk first; without, for a file that is given up, what
// waits in the buffer is lost and nothing is an error.
static int file_close(OutFile* f, int keep, Error* e) {
    int status = 0;
    if (f->fd < 0) return 0;
    if (keep && file_flush(f, e) != 0) status = -1;
    if (keep && status == 0 && fsync(f->fd) != 0) status = fail_file(e, "fsync", f->path);
    if (close(f->fd) != 0 && keep && status == 0) status = fail_file(e, "close", f->path);
    f->fd = -1;
    return status;
}

// Makes a folder's entries durable. Some file systems cannot fsync a folder and say EINVAL.
static int folder_sync(const Folder* f, Error* e) {
    return fsync(f->fd) != 0 && errno != EINVAL ? fail_file(e, "fsync folder", f->path) : 0;
}

// Makes a folder and those above it, as mkdir -p does; folders that exist are no error.
static int folder_make(const char* path, Error* e) {
    char partial[PATH_SIZE];
    if (path_in(partial, path, "", e) != 0) return -1;
    for (char* slash = partial + 1;; slash++) {
        if (*slash != '/' && *slash != 0) continue;
        char kept = *slash;
        *slash = 0;
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) return fail_file(e, "make folder", partial);
        *slash = kept;
        if (kept == 0) break;
    }
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return fail(e, "%.900s exists and is not a folder", path);
    return 0;
}

// Opens a file to read it. `folder`: the one that it is in, from which no link is followed; NULL: `name` is a
// path that the user gave. Gives the descriptor and what fstat says; -1, with a line in e, for anything but a
// regular file.
static int input_open(const Folder* folder, const char* name, struct stat* info, Error* e) {
    char path[PATH_SIZE];
    int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;   // NONBLOCK: not to wait at a pipe
    if (folder ? path_in(path, folder->path, name, e) != 0 : 0) return -1;
    int fd = folder ? openat(folder->fd, name, flags | O_NOFOLLOW) : open(name, flags);
    if (fd < 0 || fstat(fd, info) != 0) fail_file(e, "open", folder ? path : name);
    else if (S_ISREG(info->st_mode)) return fd;
    else
        fail(e, "%.900s is a %s, expected a regular file", folder ? path : name,
            S_ISDIR(info->st_mode)        ? "folder"
                : S_ISFIFO(info->st_mode) ? "pipe"
                                          : "device");
    if (fd >= 0) close(fd);
    return -1;
}

// Whether a folder that the user gave has an entry of this name.
static int folder_has(const char* folder, const char* name) {
    char path[PATH_SIZE];
    Error ignored;
    return path_in(path, folder, name, &ignored) == 0 && access(path, F_OK) == 0;
}

// Reads `count` bytes, fewer at the end of the file; their number, or -1 with errno.
static ssize_t read_whole(int fd, void* out, size_t count) {
    size_t done = 0;
    while (done < count) {
        ssize_t n = read(fd, (char*)out + done, count - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

// Reads a small text file whole (at most `limit` bytes); the caller frees it.
static char* file_read_text(const char* path, size_t limit, size_t* size, Error* e) {
    struct stat info;
    int fd = input_open(NULL, path, &info, e);
    if (fd < 0) return NULL;
    *size = (size_t)info.st_size;
    char* text = (uint64_t)info.st_size <= limit ? (char*)malloc(*size + 1) : NULL;
    if (!text && (uint64_t)info.st_size > limit)
        fail(e, "%.900s: %lld bytes, expected at most %zu", path, (long long)info.st_size, limit);
    else if (!text) fail_as(GPT2_SP_NO_MEMORY, e, "%.900s: out of memory", path);
    ssize_t n = text ? read_whole(fd, text, *size) : 0;
    if (text && n != (ssize_t)*size) {
        fail(e, "cannot read %.900s: %s", path, n < 0 ? strerror(errno) : "it became shorter");
        free(text);
        text = NULL;
    }
    if (text) text[*size] = 0;
    close(fd);
    return text;
}

// Reads the beginning of a file of a folder into out, as a text: its length, or -1 if there is no such
// regular file or it cannot be read.
static ssize_t file_begin(const Folder* folder, const char* name, char* out, size_t size) {
    struct stat info;
    Error ignored;
    int fd = input_open(folder, name, &info, &ignored);
    ssize_t n = fd < 0 ? -1 : read_whole(fd, out, size - 1);
    if (fd >= 0) close(fd);
    out[n < 0 ? 0 : n] = 0;
    return n;
}

// Length and CRC-32 of a file, in pieces. `expected`: its length as a manifest has it, or NULL; a file of
// another length is not read, and has no CRC.
static int file_checksum(
    const char* path, const uint64_t* expected, uint64_t* bytes, uint32_t* crc, Error* e) {
    unsigned char buffer[1 << 14];
    struct stat info;
    int fd = input_open(NULL, path, &info, e);
    if (fd < 0) return -1;
    *bytes = (uint64_t)info.st_size, *crc = (uint32_t)crc32(0, NULL, 0);
    ssize_t n = 0;
    if (!expected || *expected == *bytes) {
        *bytes = 0;
        while ((n = read_whole(fd, buffer, sizeof buffer)) > 0 && *bytes <= (uint64_t)info.st_size)
            *crc = (uint32_t)crc32(*crc, buffer, (unsigned)n), *bytes += (uint64_t)n;
    }
    if (n < 0) fail_file(e, "read", path);
    close(fd);
    return n < 0 ? -1 : 0;
}

// A file of text that a command makes: printed to memory by way of f, and written when it is whole. It
// replaces nothing but a file of its own kind.
typedef struct {
    FILE* f;
    char* text;
    size_t size;
    tok_output out;
} TextFile;
// Makes sure that `path` is free or may be replaced, as `ours` tells of an open file; `what`: the kind, for
// messages. -1, with a line in e: there is nothing to finish.
static int text_open(TextFile* t, const char* path, const char* what, int (*ours)(int fd), Error* e) {
    memset(t, 0, sizeof *t);
    if (tok_output_open(&t->out, path, what, ours, e->text, sizeof e->text) != 0)
        return failed_as(GPT2_SP_FILE, e);
    t->f = open_memstream(&t->text, &t->size);
    if (t->f) return 0;
    tok_output_abandon(&t->out);
    return fail_as(GPT2_SP_NO_MEMORY, e, "%.900s: out of memory", path);
}
// Writes the text to the disk, with `keep`; without, for one that is given up, nothing is an error. The first
// 8 bytes come last: until then the file is none of its kind. 0 if it is written, else -1.
static int text_finish(TextFile* t, int keep, Error* e) {
    int status = keep ? 0 : -1;
    if (fclose(t->f) != 0 && keep)
        status = fail_as(GPT2_SP_NO_MEMORY, e, "%.900s: out of memory", t->out.path);
    if (status == 0) status = tok_output_put(&t->out, t->text + 8, t->size - 8, 8, e->text, sizeof e->text);
    if (status == 0) status = tok_output_put(&t->out, t->text, 8, 0, e->text, sizeof e->text);
    if (status == 0) status = tok_output_finish(&t->out, e->text, sizeof e->text);
    else tok_output_abandon(&t->out);
    free(t->text);
    return status == 0 || !keep ? status : failed_as(GPT2_SP_FILE, e);
}
// Is an open file a picture that this program drew?
static int picture_is(int fd) { return tok_begins(fd, SVG_MARK); }

// Makes room for one more element of an array, which doubles when it is full. Without memory the array stays
// as it is, and *failed is set: a builder looks at it once, at its end.
static void* grow(void* array, int count, int* room, size_t size, int* failed) {
    if (count < *room) return array;
    int wanted = *room ? 2 * *room : 64;
    void* larger = realloc(array, (size_t)wanted * size);
    if (!larger) *failed = 1;
    else *room = wanted;
    return larger ? larger : array;
}

static volatile sig_atomic_t stop_signal;   // which signal asked the program to stop; main's handler sets it

// Counter-based random bits (splitmix64's finaliser): a value is a function of its key alone, so that
// weights, orders and samples do not depend on how the work is split.
static uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t z =
        seed * 0x9E3779B97F4A7C15ull + stream * 0xD1B54A32D192ED03ull + index + 0x632BE59BD9B4E019ull;
    for (int round = 0; round < 2; round++) {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        z += 0x9E3779B97F4A7C15ull;
    }
    return z;
}
// In (0, 1): the middle of the last of 2^53 parts would be rounded to 1.
static double random_unit(uint64_t bits) {
    double middle = ((double)(bits >> 11) + 0.5) * 0x1p-53;
    return middle < 1 ? middle : 1 - 0x1p-53;
}
// A number of the standard normal distribution, by Box and Muller's method.
static double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    double u = random_unit(random_bits(seed, stream, 2 * index)),
           v = random_unit(random_bits(seed, stream, 2 * index + 1));
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

// ===== 2. options ===============================================================================
//
// GPT2_SP_OPTIONS is the only list of options. Two things are made from it:
//
//     gpt2_sp_options   the struct: a field for each option
//     OPTIONS           the table: where the field lies, its range or words, default, commands and help
//
// The parser, --help, config files, a run's run.cfg and the comparison of options between processes all go
// through the table. Whoever sets an option by name (command line, config file, gpt2_sp_set) goes through
// option_set, which checks the value; options_check does so again for programs that write into the struct.
// What only several options together can break is checked where they meet (shape_check, processes_meet).

#ifndef GPT2_SP_LOGITS_CHUNK
#define GPT2_SP_LOGITS_CHUNK 1024   // default of --logits-chunk; the GPU program's is larger
#endif

// The kinds of schedules and of pipelines, and the modes of recomputation: the name in the program, the word
// on the command line. Their numbers are their places in these lists.
#define GPT2_SP_SCHEDULE_KINDS(X) \
    X(RING, "ring") \
    X(DIST, "dist") \
    X(DIST_PAPER, "dist-paper") \
    X(ZIGZAG, "zigzag") \
    X(ALLGATHER, "allgather") \
    X(ULYSSES, "ulysses")
#define GPT2_SP_RECOMPUTE_MODES(X) \
    X(NONE, "none") \
    X(GELU, "gelu") \
    X(ATTN, "attn") \
    X(LAYER, "layer") \
    X(SQRT, "sqrt")
#define GPT2_SP_PIPELINE_KINDS(X) \
    X(NO_PIPELINE, "none") \
    X(GPIPE, "gpipe") \
    X(1F1B, "1f1b") \
    X(INTERLEAVED, "interleaved") \
    X(SLICES, "slices") \
    X(SLICES_INTERLEAVED, "slices-interleaved")
#define GPT2_SP_ENUM(NAME, word) GPT2_SP_##NAME,
#define GPT2_SP_BAR_WORD(NAME, word) "|" word
#define GPT2_SP_WORDS(LIST) (&(LIST(GPT2_SP_BAR_WORD))[1])   // "ring|dist|..."
enum { GPT2_SP_SCHEDULE_KINDS(GPT2_SP_ENUM) GPT2_SP_SCHEDULES };
enum { GPT2_SP_RECOMPUTE_MODES(GPT2_SP_ENUM) GPT2_SP_RECOMPUTES };
enum { GPT2_SP_PIPELINE_KINDS(GPT2_SP_ENUM) GPT2_SP_PIPELINES };

// Every option once: flags (0 or 1), whole numbers, numbers, texts, and choices of words.
//   FLAG    (field, name, default, commands, help)
//   INT/NUM (field, name, default, lowest, highest, commands, help)
//   TXT     (field, name, default, commands, help)
//   CHO     (field, name, default's index, words, commands, help)
// `commands` are the commands that take it, as bits (CommandBit).
// The parser, --help, the config file, the struct below and the run's header are made from this table.
#define GPT2_SP_OPTIONS(FLAG, INT, NUM, TXT, CHO) \
    TXT(model, "model", "", TRAIN | PLAN, \
        "d12, d24, d36 or d48, or gpt2, gpt2-medium, gpt2-large or gpt2-xl: GPT-2's sizes; sets layers, " \
        "heads and channels") \
    INT(layers, "layers", 0, 0, 512, TRAIN | PLAN, \
        "transformer layers (L); 0: those of the run or of --init-from's model, else 4") \
    INT(heads, "heads", 0, 0, 256, TRAIN | PLAN, \
        "attention heads (NH), which must divide channels; 0: the model's, else 4") \
    INT(channels, "channels", 0, 0, 65536, TRAIN | PLAN, \
        "width of the residual stream (C); 0: the model's, else 256") \
    INT(vocab, "vocab", 0, 0, 1048576, TRAIN | PLAN, \
        "vocabulary; 0: the model's, else that of --data (plan: 50257)") \
    FLAG(center, "center", 1, TRAIN | PLAN, \
        "keep the residual stream mean-free: RMSNorm then equals LayerNorm") \
    TXT(data, "data", "", TRAIN | EVAL, \
        "token shards: files, folders or patterns, separated by commas (\\, is a comma of a name)") \
    TXT(val_data, "val-data", "", TRAIN, "token shards for the validation loss") \
    FLAG(raw_u16, "raw-u16", 0, TRAIN | EVAL, \
        "read --data as bare 16-bit token numbers, GPT-2's or of --vocab's vocabulary") \
    FLAG(doc_mask, "doc-mask", 0, TRAIN | PLAN | EVAL, \
        "attention stays inside a document, positions restart at its start") \
    INT(seq_len, "seq-len", 0, 0, 16777216, TRAIN | PLAN | EVAL, \
        "tokens of a sequence, the context (T); 0: the model's, else 1024") \
    INT(n_positions, "n-positions", 0, 0, 16777216, TRAIN | PLAN, \
        "rows of wpe, the table of positions (N), at least --seq-len; 0: as many as --seq-len, and no " \
        "fewer " \
        "than the model has that it begins with") \
    CHO(positions, "positions", 0, "learned|none", TRAIN, \
        "none: wpe is not trained but faded to zero, so that the model ends up without positions") \
    INT(fade_steps, "fade-steps", 0, 0, 2147483647, TRAIN, \
        "--positions none: steps of the run in which wpe falls to zero; 0: it is zero from the start") \
    CHO(pos_from, "pos-from", 0, "sample|document", TRAIN | EVAL, \
        "where a sequence's first document begins in wpe: at position 0, or as many positions behind it as " \
        "it has tokens before the sequence (with --doc-mask 1)") \
    NUM(pos_shift, "pos-shift", 0, 0, 1, TRAIN | PLAN, \
        "probability with which a sequence's positions begin anywhere from 0 to --n-positions less " \
        "--seq-len, instead of at 0") \
    INT(window_ramp, "window-ramp", 0, 0, 16777216, TRAIN, \
        "begin with attention inside blocks of so many tokens, which grow to --seq-len (with --doc-mask " \
        "1); " \
        "0: no blocks") \
    NUM(ramp_share, "ramp-share", 0.6, 0, 1, TRAIN, \
        "share of the steps over which --window-ramp's blocks grow") \
    INT(batch_size, "batch-size", 1, 1, 65536, TRAIN | PLAN, \
        "sequences per data-parallel replica and pass (B)") \
    INT(grad_accum, "grad-accum", 1, 1, 65536, TRAIN | PLAN, \
        "passes whose gradients are summed into one step") \
    INT(dp, "dp", 1, 1, 256, TRAIN | PLAN | EVAL | SAMPLE, \
        "data-parallel replicas; sample: that draw --count continuations side by side") \
    INT(sp, "sp", 0, 0, 256, TRAIN | PLAN | SCHEDULE | EVAL | SAMPLE, \
        "ranks that share one sequence (P); 0: every GPU there is (CPU program: one a process), divided " \
        "by --dp; schedule: 4; sample: 1") \
    CHO(schedule, "schedule", GPT2_SP_DIST, GPT2_SP_WORDS(GPT2_SP_SCHEDULE_KINDS), \
        TRAIN | PLAN | SCHEDULE | EVAL, "who computes which block of attention when") \
    CHO(recompute, "recompute", GPT2_SP_ATTN, GPT2_SP_WORDS(GPT2_SP_RECOMPUTE_MODES), TRAIN | PLAN, \
        "what the backward pass computes again instead of keeping") \
    INT(zero, "zero", 0, 0, 3, TRAIN | PLAN, \
        "shard over all ranks: 1 optimizer state, 2 and gradients, 3 and parameters") \
    INT(logits_chunk, "logits-chunk", GPT2_SP_LOGITS_CHUNK, 1, 16777216, TRAIN | PLAN | EVAL, \
        "tokens whose logits exist at a time") \
    CHO(transport, "transport", GPT2_SP_AUTO, "auto|peer|nccl", TRAIN, \
        "GPU: what travels between ranks: peer copies (auto in one process) or NCCL (auto between " \
        "processes)") \
    FLAG(deterministic, "deterministic", 0, TRAIN, \
        "GPU: the same bits in every run (the CPU program always gives them)") \
    TXT(products, "products", "", TRAIN, \
        "GPU: take the algorithms of the matrix products from this file, and add to it those that it " \
        "has not") \
    CHO(attention, "attention", 0, "auto|portable", TRAIN | SAMPLE | EVAL, \
        "GPU: its attention kernels: the fastest for it, or those that every GPU from sm_80 on can run") \
    FLAG(verify, "verify", 0, TRAIN, \
        "GPU: run one step's batch through the CPU reference too, print every tensor's error, stop") \
    FLAG(profile, "profile", 0, TRAIN, \
        "print the time that rank 0 takes for each group of work after every step") \
    TXT(trace, "trace", "", TRAIN, \
        "write what every rank computed, sent and waited for in step 4 to this file, for Perfetto and " \
        "scripts/trace.py, and print it") \
    FLAG(check, "check", 0, TRAIN, \
        "before the first step, compare the loss and every gradient of its batch with those of one rank " \
        "alone") \
    INT(threads, "threads", 0, 0, 1024, TRAIN | PLAN | SAMPLE | EVAL | PREPARE, \
        "threads per rank; 0: the machine's cores divided by the ranks; prepare: threads in all") \
    INT(rank, "rank", 0, 0, 4095, TRAIN, \
        "this process' number, of a run over several (else torchrun's, srun's or mpirun's)") \
    INT(world, "world", 0, 0, 4096, TRAIN, \
        "processes of the run, each with dp x sp / world ranks; 0: as the launcher says, or 1") \
    TXT(master, "master", "", TRAIN, "HOST:PORT where process 0 listens for the others") \
    TXT(secret_file, "secret-file", "", TRAIN, \
        "a file of 16 to 1024 bytes that all processes share: who does not know them is not let in") \
    NUM(timeout, "timeout", 600, 0, 1e6, TRAIN, \
        "seconds that a rank waits for another before the run ends; 0: for ever") \
    INT(steps, "steps", 100, 0, 2147483647, TRAIN, "optimizer steps of the whole run") \
    NUM(lr, "lr", 3e-4, 0, 10, TRAIN, "peak learning rate") \
    CHO(lr_schedule, "lr-schedule", 0, "cosine|linear|constant|wsd", TRAIN, \
        "course of the learning rate after the warmup") \
    NUM(lr_final, "lr-final", 0.1, 0, 1, TRAIN, "learning rate at the last step, as a fraction of the peak") \
    INT(warmup, "warmup", 0, 0, 2147483647, TRAIN, "steps of linear warmup") \
    NUM(wsd_decay, "wsd-decay", 0.2, 0, 1, TRAIN, "wsd: fraction of the steps that decay") \
    NUM(weight_decay, "weight-decay", 0.1, 0, 10, TRAIN, "AdamW's decay, of matrices and wte only") \
    NUM(beta1, "beta1", 0.9, 0, 0.999999, TRAIN, "AdamW's first moment decay") \
    NUM(beta2, "beta2", 0.95, 0, 0.999999, TRAIN, "AdamW's second moment decay") \
    NUM(eps, "eps", 1e-8, 1e-16, 1, TRAIN, "AdamW's epsilon") \
    NUM(grad_clip, "grad-clip", 1.0, 0, 1e9, TRAIN, "largest global gradient norm; 0: no clipping") \
    TXT(freeze, "freeze", "", TRAIN, \
        "parameters that are not trained: patterns (* ? [..]) of Hugging Face's names such as h.0.* or " \
        "wte.weight, separated by commas") \
    TXT(lr_scale, "lr-scale", "", TRAIN, \
        "PATTERN=X[,PATTERN=X]: X times the learning rate, and so the decay, of these parameters; the last " \
        "pattern that matches counts") \
    NUM(lr_scale_new, "lr-scale-new", 1, 0.001, 1000, TRAIN, \
        "times the others' learning rate for the rows of wpe that the model did not have when --init-from " \
        "read it, or before its positions last grew") \
    INT(seed, "seed", 1, 0, 9007199254740991, TRAIN | SAMPLE | EVAL | PREPARE | SYNTH, \
        "seed of the initial weights, the order of samples, sampling, synth, and of prepare's choice of " \
        "documents for validation") \
    TXT(out, "out", "", TRAIN | EXPORT | PREPARE | SYNTH, \
        "train: the run's folder; export: the folder to write, or llm.c's file; prepare, synth: the file " \
        "to " \
        "write") \
    TXT(init_from, "init-from", "", TRAIN | PLAN, \
        "start from the weights of this run's newest checkpoint (RUN:best: its best one), of this model's " \
        "folder, or of llm.c's .bin") \
    CHO(grow, "grow", 0, "tile|interp", TRAIN, \
        "positions beyond those of --init-from's model, or of the run that goes on: its own again and " \
        "again, or its own stretched") \
    INT(save_every, "save-every", 0, 0, 2147483647, TRAIN, \
        "steps between checkpoints; 0: only at the end and on a signal") \
    INT(log_every, "log-every", 1, 1, 2147483647, TRAIN, \
        "steps between printed lines; log.jsonl has a line of every step") \
    INT(keep, "keep", 2, 2, 1000000, TRAIN, "checkpoints to keep, at least 2") \
    INT(val_every, "val-every", 0, 0, 2147483647, TRAIN, \
        "steps between validations; 0: only before the first step and after the last") \
    INT(val_sequences, "val-sequences", 0, 0, 2147483647, TRAIN | EVAL, \
        "sequences of a validation, from the front of the data; 0: 8 in training, all in eval") \
    FLAG(keep_best, "keep-best", 1, TRAIN, \
        "save after every validation that is the best so far, and keep that checkpoint beside the newest: " \
        "RUN:best names it") \
    INT(patience, "patience", 0, 0, 2147483647, TRAIN, \
        "end the run after so many validations without a better one; 0: never") \
    NUM(max_minutes, "max-minutes", 0, 0, 1e7, TRAIN, \
        "end this launch after the step in which so many minutes are over, saved as by a signal; 0: never") \
    TXT(from, "from", "", SAMPLE | EVAL | EXPORT, \
        "a run's folder (its newest whole checkpoint; RUN:best: that of its best validation), one " \
        "checkpoint, a model's folder, or llm.c's .bin; eval: two, separated by a comma, are compared") \
    CHO(dtype, "dtype", 0, "fp32|bf16|fp16", EXPORT, "type of the numbers") \
    CHO(format, "format", 0, "hf|llmc", EXPORT, "a folder for Transformers, or a model file of llm.c") \
    TXT(prompt, "prompt", "\n", SAMPLE, \
        "text to continue, where the model's tokenizer is known; empty: begin a document") \
    TXT(prompt_tokens, "prompt-tokens", "", SAMPLE, \
        "token numbers to continue instead, separated by commas; what is sampled is printed as numbers " \
        "too") \
    TXT(prompt_file, "prompt-file", "", SAMPLE, \
        "continue the text of this file, or the token numbers in it; -: of standard input") \
    TXT(stop, "stop", "", SAMPLE, "text at which a continuation ends, without it") \
    INT(length, "length", 256, 1, 16777216, SAMPLE, "tokens to sample") \
    NUM(temperature, "temperature", 0.8, 0, 100, SAMPLE, "0: always the likeliest token") \
    INT(top_k, "top-k", 0, 0, 1048576, SAMPLE, "sample among the k likeliest; 0: all") \
    NUM(top_p, "top-p", 1.0, 0, 1, SAMPLE, "sample among the likeliest that make up this probability") \
    NUM(min_p, "min-p", 0, 0, 1, SAMPLE, \
        "sample among those at least so many times as probable as the likeliest; 0: all") \
    NUM(repetition_penalty, "repetition-penalty", 1.0, 0.01, 100, SAMPLE, \
        "what the logits of tokens that the text has already are divided by, if positive, else multiplied " \
        "by; 1: nothing") \
    INT(count, "count", 1, 1, 65536, SAMPLE, \
        "continuations of the prompt, each with random numbers of its own") \
    TXT(draft, "draft", "", SAMPLE, \
        "a smaller model of the same tokenizer, a run or a folder as --from: it proposes tokens, which the " \
        "model reads together; what is sampled is the model's") \
    INT(draft_tokens, "draft-tokens", 2, 1, GPT2_SP_DRAFT_TOKENS, SAMPLE, \
        "tokens that --draft proposes at a time") \
    INT(needle, "needle", 0, 0, 100000, EVAL, "synthetic documents for the recall test; 0: none") \
    INT(context_gain, "context-gain", 0, 0, 16777216, EVAL, \
        "what the whole context gains over one of so many tokens, and LongPPL; 0: not asked") \
    TXT(sliding, "sliding", "", EVAL, \
        "perplexity in windows of these lengths, separated by commas, that move by half of theirs; 1: 256, " \
        "512, ... to the context") \
    CHO(probe, "probe", 0, "none|needle|multikey|tracking|ngram|all", EVAL, \
        "whether the right answer to what stands far before is likelier than three others, by depth and " \
        "length") \
    INT(probe_items, "probe-items", 20, 1, 100000, EVAL, "questions of --probe, at each depth and length") \
    TXT(tokenizer, "tokenizer", "byte", PREPARE, \
        "how text becomes tokens: byte, the file or folder of a byte-level BPE tokenizer (gpt2.tiktoken, " \
        "tokenizer.json, vocab.json with merges.txt beside it), or a run: its own") \
    CHO(pattern, "pattern", 0, "auto|gpt2|llama3|cl100k|qwen2", PREPARE, \
        "how text is cut before a .tiktoken file's tokens are looked for; auto: as their number tells") \
    FLAG(specials, "specials", 0, PREPARE | SAMPLE, \
        "special tokens that are spelled out in a text are themselves, not the letters of their names") \
    TXT(field, "field", "", PREPARE, \
        ".jsonl: the field that is the document, a.b: b of the object a; empty: text, or prompt and " \
        "completion, or messages") \
    CHO(input_format, "input-format", 0, "auto|txt|jsonl|html", PREPARE, \
        "what standard input (-) is; files are what their names end in") \
    NUM(val_fraction, "val-fraction", 0, 0, 0.999999, PREPARE, \
        "share of the documents that --val-out is to hold, chosen by a hash of their text and --seed") \
    TXT(val_out, "val-out", "", PREPARE, "the file to write the documents of --val-fraction to") \
    FLAG(dedup, "dedup", 0, PREPARE, "leave out documents that were there before, byte for byte") \
    INT(block_tokens, "block-tokens", 65536, 16, 1048576, PREPARE, "tokens of a compressed block") \
    INT(docs, "docs", 16, 1, 100000000, SYNTH, "documents to write") \
    INT(doc_bytes, "doc-bytes", 16384, 256, 1073741824, SYNTH, "bytes of a document") \
    INT(facts, "facts", 4, 1, 1024, EVAL | SYNTH, "facts stated early and asked for late, per document") \
    INT(distance, "distance", 0, 0, 1073741824, EVAL | SYNTH, \
        "bytes between a fact and its question; 0: spread over the document") \
    INT(answers_only, "answers-only", 0, 0, 1, SYNTH, \
        "of a shard only the answers' bytes are labels: all of the loss is recall") \
    NUM(memory_gb, "memory-gb", 0, 0, 1e9, PLAN, \
        "memory of a rank in GiB, for the longest context; 0: this machine's divided by the ranks") \
    NUM(gflops, "gflops", 0, 0, 1e12, PLAN, \
        "GFLOP/s of a rank's matrix products, for projected times; 0: measured now") \
    NUM(attention_gflops, "attention-gflops", 0, 0, 1e12, PLAN, \
        "GFLOP/s of a rank's attention, forward and backward together; 0: as --gflops if that is given, " \
        "else measured now") \
    NUM(link_gbs, "link-gbs", 0, 0, 1e9, PLAN, "GB/s each way between two ranks; 0: measured now") \
    NUM(copy_gbs, "copy-gbs", 0, 0, 1e9, PLAN, \
        "GB/s at which a rank reads and writes memory, to add up results; 0: measured now") \
    CHO(pipeline, "pipeline", GPT2_SP_NO_PIPELINE, GPT2_SP_WORDS(GPT2_SP_PIPELINE_KINDS), SCHEDULE, \
        "a pipeline's table instead of attention's: who computes which slice when; to look at, not to " \
        "train " \
        "by") \
    INT(pp, "pp", 0, 0, 256, SCHEDULE, "--pipeline: ranks, each with its part of the layers (p); 0: 4") \
    INT(slices, "slices", 0, 0, 4096, SCHEDULE, \
        "--pipeline: slices of a sequence (k); 0: --pp with slices and slices-interleaved, else 1") \
    INT(micro_batches, "micro-batches", 0, 0, 4096, SCHEDULE, \
        "--pipeline: sequences of a step (M); 0: 1 with slices and slices-interleaved, else --pp") \
    INT(chunks, "chunks", 0, 0, 64, SCHEDULE, \
        "--pipeline: chunks of layers a rank (v); 0: 2 with interleaved and slices-interleaved, else 1") \
    FLAG(messages, "messages", 0, SCHEDULE, "draw what travels between the ranks too") \
    TXT(svg, "svg", "", PLAN | SCHEDULE, \
        "draw a picture to this file: schedule: the ranks' work and messages over time; plan: memory by " \
        "what it is for, and speed by ranks") \
    FLAG(json, "json", 0, PLAN | SCHEDULE | EVAL | PREPARE, "print one JSON object instead of text")

// The choices of --positions, --pos-from, --transport, --lr-schedule, --grow, --probe, --dtype and --format,
// in the order of their words above. Those of --probe between none and all are the kinds of data/probe.h in
// their order.
enum { GPT2_SP_LEARNED, GPT2_SP_NO_POSITIONS };
enum { GPT2_SP_FROM_SAMPLE, GPT2_SP_FROM_DOCUMENT };
enum { GPT2_SP_AUTO, GPT2_SP_PEER, GPT2_SP_NCCL_ONLY };
enum { GPT2_SP_COSINE, GPT2_SP_LINEAR, GPT2_SP_CONSTANT, GPT2_SP_WSD };
enum { GPT2_SP_TILE, GPT2_SP_INTERP };
enum { GPT2_SP_NO_PROBE, GPT2_SP_FIRST_PROBE, GPT2_SP_ALL_PROBES = 5 };
enum { GPT2_SP_FP32, GPT2_SP_BF16, GPT2_SP_FP16, GPT2_SP_DTYPES };
enum { GPT2_SP_HF, GPT2_SP_LLMC };

// Data of the program around the trainer, in place of files: samples from a callback, or tokens. All zeros:
// none.
typedef struct {
    int (*fill)(void* user, gpt2_sp_sample* sample);   // NULL: no callback
    void* user;
    uint64_t fingerprint;   // of what the callback gives
    int32_t* tokens;        // (count) NULL: no buffer
    int64_t count, eot;     // eot: ends documents; negative: none does
} Feed;
static int feed_given(const Feed* f) { return f->fill || f->tokens; }

// A field for every option, by the type of its kind.
struct gpt2_sp_options {
#define OPTION_FLAG(field, name, value, commands, help) int64_t field;
#define OPTION_INT(field, name, value, low, high, commands, help) int64_t field;
#define OPTION_NUM(field, name, value, low, high, commands, help) double field;
#define OPTION_TXT(field, name, value, commands, help) char field[GPT2_SP_TEXT];
#define OPTION_CHO(field, name, value, words, commands, help) int field;
    GPT2_SP_OPTIONS(OPTION_FLAG, OPTION_INT, OPTION_NUM, OPTION_TXT, OPTION_CHO)
#undef OPTION_FLAG
#undef OPTION_INT
#undef OPTION_NUM
#undef OPTION_TXT
#undef OPTION_CHO
    // What a program sets by functions, and no command line does.
    Feed feed, val_feed;
    Log log;
    int prints;   // a command's: --trace draws its step
};

// The kinds of options, and so the type of the field: int64_t (flags too), double, text, or (int) the index
// of a word.
enum { OPTION_FLAG, OPTION_INT, OPTION_NUM, OPTION_TXT, OPTION_CHO };
typedef enum {
    TRAIN = 1,
    PLAN = 2,
    SCHEDULE = 4,
    SAMPLE = 8,
    EVAL = 16,
    PREPARE = 32,
    SYNTH = 64,
    EXPORT = 128
} CommandBit;
typedef struct {
    int kind;
    const char* name;   // without the dashes
    size_t offset;      // of the field in gpt2_sp_options
    double low, high;   // range of FLAG, INT and NUM
    double number;      // default of all but TXT
    const char* text;   // default of TXT; the words of CHO
    int commands;       // that take it, CommandBit
    const char* help;
} Option;

static const Option OPTIONS[] = {
#define ROW_FLAG(field, name, value, commands, help) \
    {OPTION_FLAG, name, offsetof(gpt2_sp_options, field), 0, 1, (double)(value), "", commands, help},
#define ROW_INT(field, name, value, low, high, commands, help) \
    {OPTION_INT, name, offsetof(gpt2_sp_options, field), low, high, (double)(value), "", commands, help},
#define ROW_NUM(field, name, value, low, high, commands, help) \
    {OPTION_NUM, name, offsetof(gpt2_sp_options, field), low, high, value, "", commands, help},
#define ROW_TXT(field, name, value, commands, help) \
    {OPTION_TXT, name, offsetof(gpt2_sp_options, field), 0, 0, 0, value, commands, help},
#define ROW_CHO(field, name, value, words, commands, help) \
    {OPTION_CHO, name, offsetof(gpt2_sp_options, field), 0, 0, value, words, commands, help},
    GPT2_SP_OPTIONS(ROW_FLAG, ROW_INT, ROW_NUM, ROW_TXT, ROW_CHO)};
enum { OPTION_COUNT = (int)(sizeof OPTIONS / sizeof OPTIONS[0]) };

// The option of a name; NULL if there is none.
static const Option* option_find(const char* name) {
    for (int i = 0; i < OPTION_COUNT; i++)
        if (strcmp(OPTIONS[i].name, name) == 0) return &OPTIONS[i];
    return NULL;
}

// The index-th word of "a|b|c" in out; 0 if there is none.
static int choice_word(const char* words, int index, char* out, size_t out_size) {
    if (index < 0) return 0;
    for (; index > 0; index--) {
        words = strchr(words, '|');
        if (!words) return 0;
        words++;
    }
    snprintf(out, out_size, "%.*s", (int)strcspn(words, "|"), words);
    return 1;
}
// The words that the command line has for a kind of schedule, of a pipeline, and for a mode of recomputation.
#define WORD(NAME, word) word,
static const char* schedule_name(int kind) {
    static const char* const names[] = {GPT2_SP_SCHEDULE_KINDS(WORD)};
    return names[kind];
}
static const char* pipeline_name(int kind) {
    static const char* const names[] = {GPT2_SP_PIPELINE_KINDS(WORD)};
    return names[kind];
}
static const char* recompute_name(int mode) {
    static const char* const names[] = {GPT2_SP_RECOMPUTE_MODES(WORD)};
    return names[mode];
}
#undef WORD

// Edit distance (Levenshtein's), to suggest the option that was meant: characters to insert, delete or
// change. Of the table of distances between beginnings of a and b only one row exists at a time.
static int name_distance(const char* a, const char* b) {
    int row[64], n = (int)strlen(b);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j - 1] + 1 < change) change = row[j - 1] + 1;
            row[j] = row[j] + 1 < change ? row[j] + 1 : change;
        }
    }
    return row[n];
}

// Always -1. The line suggests the nearest option, if no more than a third of its name is to be changed.
static int option_unknown(Error* e, const char* name, const char* command) {
    const Option* best = NULL;
    for (int i = 0; i < OPTION_COUNT; i++)
        if (!best || name_distance(name, OPTIONS[i].name) < name_distance(name, best->name))
            best = &OPTIONS[i];
    if (3 * name_distance(name, best->name) <= max_i64((int64_t)strlen(name), (int64_t)strlen(best->name)))
        return fail(e, "unknown option --%s: did you mean --%s?", name, best->name);
    return fail(e, "unknown option --%s: `train_gpt2_sp %s --help` lists them", name, command);
}

// Numbers as a person writes them: whole (also 32k, 1m: times 1024 and 1024*1024) or decimal. -1 for anything
// else, also for a number with something after it.
static int parse_number(const char* text, int whole, double* value) {
    char* end;
    errno = 0;
    *value = whole ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    if (end == text || errno == ERANGE || !isfinite(*value)) return -1;
    if (whole && (*end == 'k' || *end == 'K')) *value *= 1024, end++;
    else if (whole && (*end == 'm' || *end == 'M')) *value *= 1024 * 1024, end++;
    return *end == 0 ? 0 : -1;
}

// --model: GPT-2's four sizes by their number of layers.
static int option_model(gpt2_sp_options* o, const char* value, Error* e) {
    static const struct {
        const char *name, *other;
        int layers, heads, channels;
    } sizes[] = {{"d12", "gpt2", 12, 12, 768}, {"d24", "gpt2-medium", 24, 16, 1024},
        {"d36", "gpt2-large", 36, 20, 1280}, {"d48", "gpt2-xl", 48, 25, 1600}};
    for (int i = 0; i < 4; i++)
        if (strcmp(value, sizes[i].name) == 0 || strcmp(value, sizes[i].other) == 0) {
            o->layers = sizes[i].layers, o->heads = sizes[i].heads;
            o->channels = sizes[i].channels;
            return 0;
        }
    return fail(e,
        "--model %.100s: expected d12, d24, d36 or d48, or gpt2, gpt2-medium, gpt2-large or gpt2-xl", value);
}

// Reads a number in a range. `what` comes before the text in the line that an error leaves: "--lr ", "RANK=".
static int number_set(
    const char* what, const char* text, int whole, double low, double high, double* value, Error* e) {
    if (parse_number(text, whole, value) != 0)
        return fail(e, "%s%.300s: expected a %snumber", what, text, whole ? "whole " : "");
    if (!(*value >= low && *value <= high))
        return fail(e, "%s%.300s: must be from %.16g to %.16g", what, text, low, high);
    return 0;
}

// Sets one option from text, in the range that the table gives. --model sets layers, heads and channels too,
// so what comes after it on the command line overrides it.
static int option_set(gpt2_sp_options* o, const Option* option, const char* value, Error* e) {
    char *field = (char*)o + option->offset, what[64];
    double number;
    switch (option->kind) {
    case OPTION_FLAG:
    case OPTION_INT:
    case OPTION_NUM:
        snprintf(what, sizeof what, "--%s ", option->name);
        if (number_set(what, value, option->kind != OPTION_NUM, option->low, option->high, &number, e) != 0)
            return -1;
        if (option->kind == OPTION_NUM) *(double*)(void*)field = number;
        else *(int64_t*)(void*)field = (int64_t)number;
        return 0;
    case OPTION_TXT:
        if (strlen(value) >= GPT2_SP_TEXT)
            return fail(e, "--%s: %zu bytes, at most %d fit", option->name, strlen(value), GPT2_SP_TEXT - 1);
        memcpy(field, value, strlen(value) + 1);
        return strcmp(option->name, "model") == 0 ? option_model(o, value, e) : 0;
    default: {
        char word[32];
        for (int i = 0; choice_word(option->text, i, word, sizeof word); i++)
            if (strcmp(word, value) == 0) {
                *(int*)(void*)field = i;
                return 0;
            }
        return fail(e, "--%s %s: expected one of %s", option->name, value, option->text);
    }
    }
}

// Gives every option its default.
static void options_default(gpt2_sp_options* o) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < OPTION_COUNT; i++) {
        char* field = (char*)o + OPTIONS[i].offset;
        switch (OPTIONS[i].kind) {
        case OPTION_FLAG:
        case OPTION_INT: *(int64_t*)(void*)field = (int64_t)OPTIONS[i].number; break;
        case OPTION_NUM: *(double*)(void*)field = OPTIONS[i].number; break;
        case OPTION_CHO: *(int*)(void*)field = (int)OPTIONS[i].number; break;
        default: snprintf(field, GPT2_SP_TEXT, "%s", OPTIONS[i].text);
        }
    }
}

// The ranges again, for options that a program has set in the struct itself.
static int options_check(const gpt2_sp_options* o, Error* e) {
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option* option = &OPTIONS[i];
        const char* field = (const char*)o + option->offset;
        char word[32];
        int whole = option->kind == OPTION_FLAG || option->kind == OPTION_INT;
        double value = whole             ? (double)*(const int64_t*)(const void*)field
            : option->kind == OPTION_NUM ? *(const double*)(const void*)field
                                         : option->low;
        if (!(value >= option->low && value <= option->high))
            return fail(
                e, "--%s %.16g: must be from %.16g to %.16g", option->name, value, option->low, option->high);
        if (option->kind == OPTION_TXT && !memchr(field, 0, GPT2_SP_TEXT))
            return fail(e, "--%s: a text without an end", option->name);
        if (option->kind == OPTION_TXT && strlen(field) > 1000)
            return fail(e, "--%s: %zu bytes, at most 1000 are supported", option->name, strlen(field));
        if (option->kind == OPTION_CHO &&
            !choice_word(option->text, *(const int*)(const void*)field, word, sizeof word))
            return fail(e, "--%s: expected one of %s", option->name, option->text);
    }
    return 0;
}

// An option's value as text that option_set would read back to the same value.
static void option_print(const gpt2_sp_options* o, const Option* option, char* out, size_t out_size) {
    const char* field = (const char*)o + option->offset;
    switch (option->kind) {
    case OPTION_FLAG:
    case OPTION_INT: snprintf(out, out_size, "%lld", (long long)*(const int64_t*)(const void*)field); break;
    case OPTION_NUM:   // the shortest spelling that reads back the same
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(out, out_size, "%.*g", digits, *(const double*)(const void*)field);
            if (strtod(out, NULL) == *(const double*)(const void*)field) break;
        }
        break;
    case OPTION_CHO: choice_word(option->text, *(const int*)(const void*)field, out, out_size); break;
    default: snprintf(out, out_size, "%s", field);
    }
}

// White space of a config file and of lists, in any locale.
static int config_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// What stands behind a backslash between the quotes of a value, and what it is.
static const char CONFIG_ESCAPES[][2] = {{'"', '"'}, {'\\', '\\'}, {'n', '\n'}, {'r', '\r'}, {'t', '\t'}};
// The other side of the table's row that has c on side 0 (as it is written) or 1 (as it is); 0: no row has.
static char config_escape(char c, int side) {
    for (size_t i = 0; i < sizeof CONFIG_ESCAPES / sizeof CONFIG_ESCAPES[0]; i++)
        if (CONFIG_ESCAPES[i][side] == c) return CONFIG_ESCAPES[i][!side];
    return 0;
}

// An option's value as a config file has it, read back by config_value as it is: between quotes if it begins
// with one, has white space at an end, or a control character. out has room for 2 * GPT2_SP_TEXT + 2 bytes.
static void config_print(const gpt2_sp_options* o, const Option* option, char* out) {
    char value[GPT2_SP_TEXT];
    option_print(o, option, value, sizeof value);
    size_t n = strlen(value);
    int quoted = n > 0 && (value[0] == '"' || config_space(value[0]) || config_space(value[n - 1]));
    for (size_t i = 0; i < n; i++) quoted |= (unsigned char)value[i] < ' ';
    if (quoted) *out++ = '"';
    for (size_t i = 0; i < n; i++) {
        char escape = quoted ? config_escape(value[i], 1) : 0;
        if (escape) *out++ = '\\';
        *out++ = escape ? escape : value[i];
    }
    if (quoted) *out++ = '"';
    *out = 0;
}

// Undoes the quotes of a value in place, if it has them. -1 if they do not end with it.
static int config_value(char* value, Error* e) {
    if (*value != '"') return 0;
    char* out = value;
    const char* p = value + 1;
    while (*p && *p != '"') {
        char meant = *p == '\\' ? config_escape(p[1], 0) : *p;
        if (!meant) return fail(e, "expected \\\" \\\\ \\n \\r or \\t between the quotes");
        p += *p == '\\' ? 2 : 1;
        *out++ = meant;
    }
    if (*p != '"' || p[1]) return fail(e, "expected one closing quote, at the end");
    *out = 0;
    return 0;
}

// One line of a config file, which it may change.
static int config_line(gpt2_sp_options* o, char* line, char* end, Error* e) {
    if (memchr(line, 0, (size_t)(end - line))) return fail(e, "a NUL byte, expected text");
    while (end > line && config_space(end[-1])) end--;
    *end = 0;
    while (config_space(*line)) line++;
    if (*line == 0 || *line == '#') return 0;
    char* value = strchr(line, '=');
    if (!value) return fail(e, "expected `name = value`");
    char* name_end = value++;
    while (name_end > line && config_space(name_end[-1])) name_end--;
    *name_end = 0;
    while (config_space(*value)) value++;
    if (name_end - line > 63) return fail(e, "a name of %zu bytes: expected `name = value`", strlen(line));
    const Option* option = option_find(line);
    if (!option) return option_unknown(e, line, "train");
    return config_value(value, e) != 0 ? -1 : option_set(o, option, value, e);
}

// Where a run.cfg that lies in a run's folder names another folder as --out, the run was moved or copied:
// --out becomes the folder in which it lies, and the note says so.
static int config_moved(gpt2_sp_options* o, const char* path, Error* note, Error* e) {
    const char* name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    char folder[GPT2_SP_TEXT];
    struct stat here, there;
    int length = name == path ? 1 : (int)(name - path) - (name - path > 1);
    if (strcmp(name, "run.cfg") != 0) return 0;
    if ((size_t)length >= sizeof folder)
        return fail(e, "--config: its folder's name has %d bytes, at most %d fit", length, GPT2_SP_TEXT - 1);
    snprintf(folder, sizeof folder, "%.*s", length, name == path ? "." : path);
    if (!folder_has(folder, "log.jsonl") || stat(folder, &here) != 0) return 0;   // not a run's folder
    if (stat(o->out, &there) == 0 && there.st_dev == here.st_dev && there.st_ino == here.st_ino) return 0;
    fail(note, "%.300s is of a run that was in %.300s: it goes on in %.300s", path, o->out, folder);
    return option_set(o, option_find("out"), folder, e);
}

// A config file: `name = value` lines, # starts a comment line. Options given after it override it. The
// note is left empty, or has a line for the user.
static int options_file(gpt2_sp_options* o, const char* path, Error* note, Error* e) {
    enum { LARGEST = 1 << 20 };
    size_t size;
    Error inner = {0, {0}};
    struct stat given, none;
    if (stat(path, &given) == 0 && S_ISCHR(given.st_mode) && stat("/dev/null", &none) == 0 &&
        given.st_rdev == none.st_rdev)
        return 0;   // the usual name of nothing; no other device has an end
    char* text = file_read_text(path, LARGEST, &size, &inner);
    if (!text) return fail_as(inner.code ? inner.code : GPT2_SP_FILE, e, "--config: %.1000s", inner.text);
    int status = 0, number = 1;
    char before[GPT2_SP_TEXT];
    memcpy(before, o->out, sizeof before);
    o->out[0] = 0;   // so that it shows whether the file names one
    char* line = size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? text + 3 : text;   // a byte order mark
    for (char* end; status == 0 && line < text + size; line = end + 1, number++) {
        end = (char*)memchr(line, '\n', (size_t)(text + size - line));
        if (!end) end = text + size;
        if (config_line(o, line, end, &inner) != 0)
            status = fail(e, "%.500s:%d: %.500s", path, number, inner.text);
    }
    free(text);
    if (status == 0 && o->out[0]) return config_moved(o, path, note, e);
    memcpy(o->out, before, sizeof before);
    return status;
}

// See the header, for these. For a name that is unknown the line points to the help of `train`.
gpt2_sp_options* gpt2_sp_options_new(void) {
    gpt2_sp_options* o = (gpt2_sp_options*)malloc(sizeof *o);
    if (o) options_default(o);
    return o;
}
void gpt2_sp_options_free(gpt2_sp_options* o) {
    if (o) free(o->feed.tokens), free(o->val_feed.tokens);
    free(o);
}

// Gives a caller the failure of a call without a trainer, and its code.
static int failure_give(gpt2_sp_failure* failure, const Error* e, int status) {
    if (failure) {
        *failure = *e;
        if (status >= 0) failure->text[0] = 0, failure->code = GPT2_SP_OK;
    }
    return status < 0 ? e->code : status;
}

// Puts the program's data, of which those with tokens are copied, in the place of any before.
static int feed_set(gpt2_sp_options* o, int use, const Feed* given, Error* e) {
    if (!o || (use != GPT2_SP_TRAINING && use != GPT2_SP_VALIDATION))
        return fail_as(GPT2_SP_INVALID, e, "data need options, and a use: GPT2_SP_TRAINING or _VALIDATION");
    Feed *feed = use == GPT2_SP_TRAINING ? &o->feed : &o->val_feed, made = *given;
    if (given->tokens) {
        made.tokens = (int32_t*)malloc((size_t)given->count * sizeof *made.tokens);
        if (!made.tokens)
            return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %lld tokens", (long long)given->count);
        memcpy(made.tokens, given->tokens, (size_t)given->count * sizeof *made.tokens);
    }
    free(feed->tokens);
    *feed = made;
    return 0;
}
int gpt2_sp_feed(gpt2_sp_options* o, int use, int (*fill)(void* user, gpt2_sp_sample* sample), void* user,
    uint64_t fingerprint, gpt2_sp_failure* failure) {
    const Feed feed = {fill, user, fingerprint, NULL, 0, -1};
    Error e = {0, {0}};
    return failure_give(failure, &e, feed_set(o, use, &feed, &e));
}
int gpt2_sp_feed_tokens(gpt2_sp_options* o, int use, const int32_t* tokens, int64_t count, int64_t eot,
    gpt2_sp_failure* failure) {
    const Feed feed = {NULL, NULL, 0, (int32_t*)(uintptr_t)tokens, count, eot};
    Error e = {0, {0}};
    int status = tokens && count > 0 && count < (int64_t)1 << 48 && eot <= INT32_MAX
        ? feed_set(o, use, &feed, &e)
        : fail_as(GPT2_SP_INVALID, &e, "there are no tokens, or 2^48 and more, or the end token is none");
    return failure_give(failure, &e, status);
}
int gpt2_sp_on_log(gpt2_sp_options* o, void (*line)(void* user, int level, const char* text), void* user) {
    if (!o) return GPT2_SP_INVALID;
    o->log.line = line, o->log.user = user;
    return GPT2_SP_OK;
}

// The option of a name that a program gives; NULL, with a line in e.
static const Option* option_of_program(const gpt2_sp_options* o, const char* name, Error* e) {
    const Option* option = name ? option_find(name) : NULL;
    if (!o || !name) fail_as(GPT2_SP_INVALID, e, "there are no options, or no name");
    else if (name[0] == '-')
        fail_as(GPT2_SP_INVALID, e, "`%.100s`: the name of an option is without --", name);
    else if (!option) option_unknown(e, name, "train"), failed_as(GPT2_SP_INVALID, e);
    return o ? option : NULL;
}
int gpt2_sp_set(gpt2_sp_options* o, const char* name, const char* value, gpt2_sp_failure* failure) {
    Error e = {0, {0}};
    Host host = host_enter();
    const Option* option = option_of_program(o, name, &e);
    int status = !option ? -1
        : !value         ? fail(&e, "--%s needs a value", name)
                         : option_set(o, option, value, &e);
    if (status != 0) failed_as(GPT2_SP_INVALID, &e);
    host_leave(&host);
    return failure_give(failure, &e, status);
}
int gpt2_sp_get(
    const gpt2_sp_options* o, const char* name, char* text, size_t size, gpt2_sp_failure* failure) {
    char value[GPT2_SP_TEXT];
    Error e = {0, {0}};
    Host host = host_enter();
    const Option* option = option_of_program(o, name, &e);
    int status = option ? 0 : -1;
    if (option) option_print(o, option, value, sizeof value);
    if (option && size > 0 && (!text || strlen(value) >= size))
        status = fail_as(GPT2_SP_INVALID, &e, "--%s: its value has %zu bytes, there is room for %zu", name,
            strlen(value), text ? size : 0);
    if (status == 0 && size > 0) memcpy(text, value, strlen(value) + 1);
    if (status == 0) status = (int)strlen(value);
    host_leave(&host);
    return failure_give(failure, &e, status);
}
int gpt2_sp_load_config(gpt2_sp_options* o, const char* path, gpt2_sp_failure* failure) {
    Error e = {0, {0}}, note = {0, {0}};
    Host host = host_enter();
    int status =
        !o || !path ? fail(&e, "there are no options, or no path") : options_file(o, path, &note, &e);
    if (status != 0) failed_as(GPT2_SP_INVALID, &e);
    else if (note.text[0]) warn(&o->log, "%s", note.text);
    host_leave(&host);
    return failure_give(failure, &e, status);
}

// A command's arguments that are no options.
typedef struct {
    const char** items;
    int count;
} Positional;

typedef struct {
    const char* name;
    CommandBit bit;
    // 0, or -1 with a line in the error; changes options that it chooses itself.
    int (*run)(gpt2_sp_options*, const Positional*, Error*);
    int inputs;   // takes arguments that are no options
    const char *what, *usage;
} Command;

// Reads a command's arguments into o: `--name value`, `--name=value`, `--flag`, and inputs where the command
// takes them. Options of other commands are refused by name. 1 if --help was asked for.
MAIN_ONLY static int options_parse(
    gpt2_sp_options* o, const Command* command, int argc, char** argv, Positional* inputs, Error* e) {
    for (int i = 0; i < argc; i++) {
        const char* argument = argv[i];
        if (strcmp(argument, "-h") == 0) return 1;
        if (strncmp(argument, "--", 2) != 0) {
            if (!command->inputs) return fail(e, "`%s` is not an option (options begin with --)", argument);
            inputs->items[inputs->count++] = argument;
            continue;
        }
        char name[64];
        const char* equals = strchr(argument, '=');
        size_t length = equals ? (size_t)(equals - argument) - 2 : strlen(argument) - 2;
        snprintf(name, sizeof name, "%.*s", (int)min_i64((int64_t)length, 63), argument + 2);
        if (strcmp(name, "help") == 0) return 1;
        const Option* option = option_find(name);
        int config = strcmp(name, "config") == 0;
        if (!option && !config) return option_unknown(e, name, command->name);
        if (option && !(option->commands & command->bit))
            return fail(e, "--%s is not an option of `%s`", name, command->name);
        const char* value = equals ? equals + 1 : i + 1 < argc ? argv[i + 1] : NULL;
        // A flag that stands alone means 1. An argument after it may be an input, unless it is 0 or 1.
        int flag = option && option->kind == OPTION_FLAG;
        int alone = !value || strncmp(value, "--", 2) == 0 ||
            (command->inputs && strcmp(value, "0") != 0 && strcmp(value, "1") != 0);
        if (flag && !equals && alone) value = "1";
        else if (!equals) i++;
        if (!value) return fail(e, "--%s needs a value", name);
        Error note = {0, {0}};
        if (config ? options_file(o, value, &note, e) : option_set(o, option, value, e)) return -1;
        if (note.text[0]) fprintf(stderr, "%s\n", note.text);
    }
    return 0;
}

MAIN_ONLY static const char* program_name = "train_gpt2_sp";   // as it was called, without its folder

// Prints what an option is, in lines of at most HELP_COLUMNS, broken at blanks.
enum { HELP_COLUMNS = 100, HELP_INDENT = 27 };
MAIN_ONLY static void help_print(const char* left, const char* text) {
    const size_t room = HELP_COLUMNS - HELP_INDENT;
    while (*text) {
        size_t n = strlen(text);
        if (n > room)
            for (n = room; n > 0 && text[n] != ' ';) n--;
        if (n == 0) n = strcspn(text, " ");   // a word that is longer
        printf("  %-24s %.*s\n", left, (int)n, text);
        left = "", text += n;
        while (*text == ' ') text++;
    }
}

// --help of a command: its options, each with its default. Not inlined: `program` has options of its own on
// the stack.
MAIN_ONLY __attribute__((noinline)) static void options_help(const Command* command) {
    printf("%s %s: %s\n\nusage: ./%s %s %s\n\n", program_name, command->name, command->what, program_name,
        command->name, command->usage);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option* option = &OPTIONS[i];
        if (!(option->commands & command->bit)) continue;
        char left[64], value[64];
        gpt2_sp_options defaults;
        options_default(&defaults);
        option_print(&defaults, option, value, sizeof value);
        if (strcmp(value, "\n") == 0) snprintf(value, sizeof value, "a line break");
        snprintf(left, sizeof left, "--%s %s", option->name,
            option->kind == OPTION_TXT       ? "TEXT"
                : option->kind == OPTION_CHO ? "WORD"
                : option->kind == OPTION_NUM ? "X"
                                             : "N");
        char text[GPT2_SP_TEXT];
        snprintf(text, sizeof text, "%s%s%s%s%s%s", option->help, option->kind == OPTION_CHO ? ": " : "",
            option->kind == OPTION_CHO ? option->text : "", value[0] ? " [" : "", value, value[0] ? "]" : "");
        help_print(left, text);
    }
    help_print("--config FILE", "read options from `name = value` lines; # begins a line of comment");
}

// ===== 3. shards and loader =====================================================================
//
// The data is one stream of tokens: all shards, one after the other. A sample is a window of T tokens of the
// stream, and the token after the window as the label of its last one. Documents longer than T are cut,
// shorter ones lie packed. The last window ends with the stream, so every token is seen:
//
//     shards    |        a.tok        |         b.tok         |   c.tok   |
//     windows   |   0   |   1   |   2   |   3   |   4   |   5   |       |
//                                                           |    6    |      overlaps with window 5
//
// The run numbers its samples. Sample n is window n modulo the windows there are, in training permuted anew
// each epoch: a position in the data is thus one number (next_sample in a checkpoint). A step takes passes
// (--grad-accum) x dp x B samples; each rank of a replica gets its own rows of each (Segments). While a
// step is computed, the loader's thread fills the batch of the next one.
//
// The program around the trainer may take the place of the files: with a buffer of tokens, which is a shard
// in memory, or with a callback that gives sample n. The loader asks a SampleSource, of which there are two:
// windows of a stream, and samples of the program's.

enum {
    EOT_UNNAMED = -1,
    EOT_NONE = -2
};   // instead of a token that ends documents: not known; there is none

// --- tokenizers ---
//
// A tokenizer is known by its fingerprint, which a shard has as the number of its tokenizer. Its files come
// with a model's folder, and tokenizer.json also inside the shards that `prepare` writes, so that who has
// either has the text. Flat shards (.bin, u16) name none.

// The byte tokenizer: a token for each byte, and one that ends a document.
enum { BYTE_VOCAB = 257, BYTE_EOT = 256 };

// The number by which shards know a tokenizer.
static uint32_t tokenizer_number(const bpe* b) {
    // the fingerprints of tiktoken's gpt2 with <|endoftext|>, and of bpe_load_bytes
    static const uint64_t gpt2 = 0x1C43EE6C5C6C129Cu, bytes = 0x7750519B18140BA3u;
    if (b->fingerprint == bytes) return TOK_BYTE;
    return b->fingerprint == gpt2 ? (uint32_t)TOK_GPT2 : 0x80000000u | (uint32_t)b->fingerprint;
}

// Whether two numbers are those of two tokenizers for certain: some tools number tokenizers in their own way.
static int tokenizers_differ(uint32_t a, uint32_t b) {
    int known = (a <= TOK_GPT2 || a >> 31) && (b <= TOK_GPT2 || b >> 31);
    return known && a != 0 && b != 0 && a != b;
}

// A tokenizer's name in messages: "the byte tokenizer", "GPT-2's tokenizer", "tokenizer 8a3f0011".
typedef struct {
    char text[40];
} TokenizerName;
static TokenizerName tokenizer_name(uint32_t number) {
    TokenizerName name;
    snprintf(name.text, sizeof name.text, "tokenizer %08x", number);
    if (number == TOK_BYTE) snprintf(name.text, sizeof name.text, "the byte tokenizer");
    if (number == TOK_GPT2) snprintf(name.text, sizeof name.text, "GPT-2's tokenizer");
    return name;
}

// The tokenizer that --tokenizer names; its --pattern, or NULL.
static int tokenizer_open(bpe* b, const char* name, const char* pattern, Error* e) {
    if (strcmp(name, "byte") != 0) return bpe_load(b, name, pattern, e->text, sizeof e->text);
    if (pattern) return fail(e, "--pattern %s: the byte tokenizer has none", pattern);
    return bpe_load_bytes(b, e->text, sizeof e->text);
}

// The tokenizer in a model's folder. 1: it is in b; 0: the folder has none, and b is empty; -1: it has one
// that cannot be read. A model with the byte tokenizer's vocabulary needs no files for it.
static int tokenizer_of_folder(bpe* b, const char* folder, int64_t vocab, Error* e) {
    memset(b, 0, sizeof *b);
    int status = 0;
    if (folder_has(folder, "tokenizer.json") || folder_has(folder, "vocab.json"))
        status = bpe_load(b, folder, NULL, e->text, sizeof e->text) == 0 ? 1 : -1;
    else if (vocab == BYTE_VOCAB) status = bpe_load_bytes(b, e->text, sizeof e->text) == 0 ? 1 : -1;
    if (status == 1 && b->vocab_size > vocab) {
        status = fail(e, "%.900s: its tokenizer has %u tokens, the model a vocabulary of %lld", folder,
            b->vocab_size, (long long)vocab);
        bpe_free(b);
    }
    return status;
}

// The token stream of a run: its shards one after the other; or, without any, the program's samples. As many
// threads as there are cursors may read it at once, each by its own.
enum { READERS = 8 };
typedef struct {
    tok_shard* shards;   // (count)
    uint64_t* first;     // (count + 1) where each shard begins in the stream
    tok_cursor cursors[READERS];
    int count;
    uint64_t tokens;       // of all shards
    uint64_t text_bytes;   // that the tokens stand for; a shard that does not say counts 0
    uint32_t tokenizer, vocab;
    int named;              // the tokenizer is what the shards say; flat ones are only taken for GPT-2's
    int64_t eot;            // the token that ends documents, or EOT_NONE
    uint64_t fingerprint;   // of the shards' contents in their order, or of the program's samples
    Feed feed;              // of these, its callback
} Dataset;

// Whether there are data; whether they are samples of the program's.
static int dataset_fed(const Dataset* d) { return d->feed.fill != NULL; }
static int dataset_given(const Dataset* d) { return d->count > 0 || dataset_fed(d); }

static void dataset_close(Dataset* d) {
    for (int i = 0; i < d->count; i++) tok_close(&d->shards[i]);
    for (int i = 0; i < READERS; i++) tok_cursor_free(&d->cursors[i]);
    free(d->shards);
    free(d->first);
    memset(d, 0, sizeof *d);
}

// How --data, --val-data and their like are to be read.
typedef struct {
    int raw_u16;     // files without a magic are bare 16-bit token numbers
    int64_t vocab;   // the model's vocabulary, for files that name none; 0: not known, GPT-2's
    int documents;   // the starts of all documents are read too
} DataHow;

// Whether two shards or data sets have the tokens of one tokenizer. Of GPT-2's, a file that names no
// vocabulary may have more tokens than another.
static int tokens_alike(uint32_t tokenizer, uint32_t vocab, uint32_t other, uint32_t other_vocab) {
    return tokenizer == other && (vocab == other_vocab || tokenizer == TOK_GPT2);
}

// Makes room for one more shard; `path` is its name.
static int dataset_grow(Dataset* d, const char* path, Error* e) {
    void* shards = realloc(d->shards, (size_t)(d->count + 1) * sizeof *d->shards);
    if (shards) d->shards = (tok_shard*)shards;
    void* first = realloc(d->first, (size_t)(d->count + 2) * sizeof *d->first);
    if (first) d->first = (uint64_t*)first;
    return shards && first ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "%.900s: out of memory", path);
}

// Puts a shard that was opened in the room behind the last one, at the end of the stream; its tokenizer must
// be the first shard's. The fingerprint takes in the shards one by one, so it depends on their order.
static int dataset_append(Dataset* d, const char* path, Error* e) {
    const tok_shard* s = &d->shards[d->count];
    d->first[d->count++] = d->tokens;
    d->first[d->count] = d->tokens += s->tokens;
    if (d->count == 1) {
        d->tokenizer = s->tokenizer, d->vocab = s->vocab_size;
        d->eot = s->eot == TOK_NO_EOT ? (int64_t)EOT_NONE : (int64_t)s->eot;
        d->named = s->block_tokens > 0;
    }
    if (!tokens_alike(s->tokenizer, s->vocab_size, d->tokenizer, d->vocab))
        return fail(e, "%.900s: %s with %u tokens, but the shards before it have %s with %u", path,
            tokenizer_name(s->tokenizer).text, s->vocab_size, tokenizer_name(d->tokenizer).text, d->vocab);
    if (s->vocab_size > d->vocab) d->vocab = s->vocab_size;
    d->text_bytes += s->text_bytes;
    d->fingerprint = random_bits(d->fingerprint, s->fingerprint, s->tokens);
    return 0;
}

// Opens a shard and puts it at the end of the stream.
static int dataset_add(Dataset* d, const char* path, const DataHow* how, Error* e) {
    if (dataset_grow(d, path, e) != 0) return -1;
    tok_shard* s = &d->shards[d->count];
    if (tok_open(s, path, how->raw_u16 ? TOK_FORMAT_RAW_U16 : TOK_FORMAT_AUTO, e->text, sizeof e->text) != 0)
        return -1;
    if (tok_flat_vocab(s, (uint64_t)how->vocab, e->text, sizeof e->text) != 0) {
        tok_close(s);
        return -1;
    }
    return dataset_append(d, path, e);
}

// Adds the shards of a folder, its .tok files, then its .bin files, each in the order of their names' bytes.
static int dataset_add_folder(Dataset* d, const char* path, const DataHow* how, Error* e) {
    static const char* const endings[] = {".tok", ".bin"};
    text_reader listing;
    char** paths = NULL;
    size_t count = 0;
    int before = d->count;
    memset(&listing, 0, sizeof listing);
    listing.err = e->text, listing.err_size = sizeof e->text;
    int status = text_list(&listing, path, &paths, &count);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; status == 0 && i < count; i++) {
            const char* name = strrchr(paths[i], '/') + 1;
            if (name[0] != '.' && text_ends(name, strlen(name), endings[pass]))
                status = dataset_add(d, paths[i], how, e);
        }
    for (size_t i = 0; i < count; i++) free(paths[i]);
    free(paths);
    if (status == 0 && d->count == before)
        status = fail(e, "no token shard at %.900s: the folder has no .tok or .bin file", path);
    return status;
}

// Adds what a name that exists stands for: a folder or a shard.
static int dataset_add_name(Dataset* d, const char* path, const DataHow* how, Error* e) {
    struct stat info;
    int folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    return folder ? dataset_add_folder(d, path, how, e) : dataset_add(d, path, how, e);
}

// For glob: a folder that cannot be read ends the search, with its errno.
static int pattern_error(const char* path, int code) {
    (void)path;
    errno = code;
    return code != ENOENT && code != ENOTDIR;
}

// A pattern whose folder exists by its name: that folder's characters stand for themselves, so each that glob
// would take for more comes into brackets. escaped: room for 3 bytes for each of pattern's and one more.
static void pattern_escape(const char* pattern, char* escaped) {
    char folder[GPT2_SP_TEXT + 16];
    struct stat info;
    size_t named = 0;
    for (size_t n = strlen(pattern); n > 0 && named == 0; n--)
        if (pattern[n - 1] == '/' && n < sizeof folder) {
            memcpy(folder, pattern, n);
            folder[n] = 0;
            if (stat(folder, &info) == 0) named = n;
        }
    for (size_t i = 0; pattern[i]; i++) {
        int special = i < named && strchr("*?[", pattern[i]) != NULL;
        if (special) *escaped++ = '[';
        *escaped++ = pattern[i];
        if (special) *escaped++ = ']';
    }
    *escaped = 0;
}

// Adds all that a pattern names, in the order of the names' bytes. A backslash is a character like any
// other. The advice ends the line that says that there is nothing.
static int dataset_add_pattern(
    Dataset* d, const char* pattern, const char* advice, const DataHow* how, Error* e) {
    glob_t found;
    char escaped[3 * GPT2_SP_TEXT + 64];
    memset(&found, 0, sizeof found);
    pattern_escape(pattern, escaped);
    int code = glob(escaped, GLOB_NOSORT | GLOB_NOESCAPE, pattern_error, &found), why = errno, status = 0;
    if (code == GLOB_NOMATCH) status = fail(e, "no token shard at %.900s%s", pattern, advice);
    else if (code != 0)
        status = fail(
            e, "cannot look for %.900s: %s", pattern, code == GLOB_ABORTED ? strerror(why) : "no memory");
    if (status == 0) qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, text_by_name);
    for (size_t i = 0; status == 0 && i < found.gl_pathc; i++)
        status = dataset_add_name(d, found.gl_pathv[i], how, e);
    globfree(&found);
    return status;
}

// The next item of a list whose items commas separate; returns what follows it. Of backslashes in front of
// a comma each pair stands for one, and one that is left over makes the comma a part of the item. All
// others are as they are.
static const char* list_item(const char* list, char* item) {
    while (*list && *list != ',') {
        size_t n = strspn(list, "\\");
        int at_comma = n > 0 && list[n] == ',';
        size_t kept = at_comma ? n / 2 : n > 0 ? n : 1;
        memcpy(item, list, kept);
        item += kept, list += n > 0 ? n : 1;
        if (at_comma && n % 2 == 1) *item++ = *list++;
    }
    *item = 0;
    return list;
}

// Opens every shard of "a.tok,folder,b*.bin". What exists is a name, whatever its characters; only what
// does not is a pattern. After an error the dataset is empty.
static int dataset_open(Dataset* d, const char* list, const DataHow* how, Error* e) {
    memset(d, 0, sizeof *d);
    int status = list[0] ? 0 : fail_as(GPT2_SP_INVALID, e, "no token shards given: --data FILE[,FILE...]");
    const char* advice = strchr(list, ',') ? " (a comma that belongs to a name is written \\,)" : "";
    while (status == 0 && *list) {
        char item[GPT2_SP_TEXT];
        struct stat info;
        list = list_item(list, item);
        if (*list == ',') list++;
        if (lstat(item, &info) == 0) status = dataset_add_name(d, item, how, e);
        else if (errno == ENOENT || errno == ENOTDIR) status = dataset_add_pattern(d, item, advice, how, e);
        else status = fail_file(e, "open", item);
    }
    for (int i = 0; status == 0 && how->documents && i < d->count; i++)
        status = tok_index_documents(&d->shards[i], e->text, sizeof e->text);
    if (status != 0) dataset_close(d);
    return status;
}

// Takes the program's data in place of files: of a model of `vocab` tokens, which must be known. Tokens are
// copied. After an error the dataset is empty.
static int dataset_feed(Dataset* d, const Feed* feed, int64_t vocab, Error* e) {
    static const char name[] = "the program's tokens";
    memset(d, 0, sizeof *d);
    if (vocab < 1)
        return fail_as(GPT2_SP_INVALID, e,
            "the program's own data name no vocabulary: --vocab, or a model to start from");
    if (feed->fill) {
        d->feed = *feed, d->vocab = (uint32_t)vocab;
        d->eot = EOT_NONE, d->fingerprint = feed->fingerprint;
        return 0;
    }
    if (feed->eot >= vocab)
        return fail_as(GPT2_SP_INVALID, e, "%s end documents with %lld, expected below %lld, or negative",
            name, (long long)feed->eot, (long long)vocab);
    int status = dataset_grow(d, name, e);
    if (status == 0 &&
        tok_open_memory(&d->shards[0], name, feed->tokens, (uint64_t)feed->count, (uint32_t)vocab,
            feed->eot < 0 ? TOK_NO_EOT : (uint32_t)feed->eot, e->text, sizeof e->text) != 0)
        status = failed_as(GPT2_SP_INVALID, e);
    if (status == 0) status = dataset_append(d, name, e);
    if (status != 0) dataset_close(d);
    return status;
}

// The tokenizer of the first shard that carries one, or bytes. 1: it is in b; 0: none does, and b is empty.
static int dataset_tokenizer(const Dataset* d, bpe* b, Error* e) {
    memset(b, 0, sizeof *b);
    if (d->tokenizer == TOK_BYTE) return bpe_load_bytes(b, e->text, sizeof e->text) == 0 ? 1 : -1;
    for (int i = 0; i < d->count; i++) {
        const tok_shard* s = &d->shards[i];
        size_t length;
        char* text = tok_tokenizer(s, &length, e->text, sizeof e->text);
        if (!text && e->text[0]) return -1;
        if (!text) continue;
        int status = bpe_load_carried(b, s->path, text, length, s->eot, e->text, sizeof e->text);
        free(text);
        if (status == 0 && tokenizer_number(b) != s->tokenizer) {
            status = fail(e, "%.900s: it says that it has %s, and carries %s", s->path,
                tokenizer_name(s->tokenizer).text, tokenizer_name(tokenizer_number(b)).text);
            bpe_free(b);
        }
        return status == 0 ? 1 : -1;
    }
    return 0;
}

// The shard that holds a position of the stream, found by bisection.
static int dataset_shard_at(const Dataset* d, uint64_t position) {
    int low = 0, high = d->count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (d->first[middle] <= position) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Reads `count` tokens from `position` of the stream on; all of them lie in the stream.
static int dataset_read(
    const Dataset* d, tok_cursor* cursor, uint64_t position, uint64_t count, int32_t* out, Error* e) {
    for (int s = dataset_shard_at(d, position); count > 0; s++) {
        uint64_t local = position - d->first[s];
        uint64_t n = d->shards[s].tokens - local < count ? d->shards[s].tokens - local : count;
        if (tok_read(&d->shards[s], cursor, local, n, out, e->text, sizeof e->text) != 0) return -1;
        position += n, out += n;
        count -= n;
    }
    return 0;
}

// Where the document that holds `position` begins, and where the next one does, in the stream.
static void dataset_document(const Dataset* d, uint64_t position, uint64_t* begin, uint64_t* end) {
    int s = dataset_shard_at(d, position);
    const uint64_t* start = d->shards[s].document_start;
    uint64_t local = position - d->first[s], low = 0, high = d->shards[s].documents - 1;
    while (low < high) {
        uint64_t middle = (low + high + 1) / 2;
        if (start[middle] <= local) low = middle;
        else high = middle - 1;
    }
    *begin = d->first[s] + start[low];
    *end = d->first[s] + start[low + 1];
}

// The first run of tokens in `from`..until-1 of the stream that are no labels, as first..last-1; 0 if there
// is none. A run ends with its shard.
static int dataset_span(const Dataset* d, uint64_t from, uint64_t until, uint64_t* first, uint64_t* last) {
    for (int s = from < until ? dataset_shard_at(d, from) : d->count; s < d->count && d->first[s] < until;
         s++) {
        const tok_shard* shard = &d->shards[s];
        uint64_t low = 0, high = shard->spans;   // the first span that ends behind `from`
        while (low < high) {
            uint64_t middle = (low + high) / 2;
            if (d->first[s] + shard->span[middle].first + shard->span[middle].count <= from) low = middle + 1;
            else high = middle;
        }
        if (low == shard->spans) continue;
        uint64_t begin = d->first[s] + shard->span[low].first;
        if (begin >= until) return 0;
        *first = begin > from ? begin : from;
        *last = begin + shard->span[low].count < until ? begin + shard->span[low].count : until;
        return 1;
    }
    return 0;
}

// A permutation of 0..n-1, computed: four Feistel rounds on the smallest even number of bits that
// holds n, walked along its cycle until it lands below n.
static uint64_t permute(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch) {
    int half = 1;
    while (half < 31 && (1ull << (2 * half)) < n) half++;
    uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t left = index >> half, right = index & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (random_bits(seed, epoch * 4 + round, right) & mask);
            left = right;
            right = next;
        }
        index = left << half | right;
    } while (index >= n);
    return index;
}

// Windows of T tokens that it takes to see every token but the first as a label.
static uint64_t dataset_windows(const Dataset* d, int64_t T) {
    return (d->tokens - 1 + (uint64_t)T - 1) / (uint64_t)T;
}

// A window of the stream.
typedef struct {
    uint64_t position;   // of its first token
    int64_t seen;        // its first labels, which the window before has too
} Window;
// Window i of those of W tokens that begin every S of `tokens` tokens. In all but the first the last S labels
// are new; the last one begins early enough to end with the tokens.
static Window window_at(uint64_t tokens, int64_t W, int64_t S, uint64_t i) {
    uint64_t begin = i * (uint64_t)S, last = tokens - 1 - (uint64_t)W;
    Window w = {begin < last ? begin : last, i > 0 ? W - S : 0};
    if (begin > last) w.seen += (int64_t)(begin - last);
    return w;
}
// The window that is a sample of the run.
static Window sample_window(const Dataset* d, int64_t T, uint64_t sample, int shuffled, uint64_t seed) {
    uint64_t n = dataset_windows(d, T), window = sample % n;
    if (shuffled) window = permute(window, n, seed, sample / n);
    return window_at(d->tokens, T, T, window);
}

// The tokens that a rank holds: one run of them, or two where the schedule pairs an early with a late one.
typedef struct {
    int count;                   // 1 or 2
    int64_t begin[2], rows[2];   // in the sequence
    int64_t total;               // Tl
} Segments;

// What one rank is fed for one step. Labels are -1 where no loss is counted.
typedef struct {
    int32_t* tokens;      // (grad_accum, B, Tl)
    int32_t* labels;      // (grad_accum, B, Tl)
    int32_t* positions;   // (grad_accum, B, Tl), the row of wpe of each row; NULL: its place in the sequence
    int32_t* doc_start;   // (grad_accum, B, T), for the whole sequence; NULL without --doc-mask
} RankBatch;

// One step of all ranks of this process.
typedef struct {
    RankBatch* ranks;   // (local_ranks)
    int64_t valid;      // tokens with a label, of all ranks and passes
} Batch;

// No loss is counted for the rows begin..end-1 of a sample: clears those of them that a rank holds.
static void labels_clear(const Segments* seg, int64_t begin, int64_t end, int32_t* labels) {
    for (int s = 0; s < seg->count; labels += seg->rows[s], s++)
        for (int64_t i = max_i64(begin - seg->begin[s], 0); i < min_i64(end - seg->begin[s], seg->rows[s]);
             i++)
            labels[i] = -1;
}

// Fills one rank's rows of the sample that begins at `position` of the stream: tokens and labels (Tl). With
// doc_mask also doc_start (T), where each token's document begins in the sample (0 if it began before), and
// no label for the last token of a document, whose successor belongs to another.
static int sample_fill(const Dataset* d, tok_cursor* cursor, uint64_t position, int64_t T, int doc_mask,
    const Segments* seg, int32_t* tokens, int32_t* labels, int32_t* doc_start, Error* e) {
    for (int s = 0, at = 0; s < seg->count; at += (int)seg->rows[s], s++) {
        if (seg->rows[s] == 0) continue;
        int32_t last;   // the token after the segment: the label of its last row
        uint64_t begin = position + (uint64_t)seg->begin[s], rows = (uint64_t)seg->rows[s];
        if (dataset_read(d, cursor, begin, rows, tokens + at, e) != 0 ||
            dataset_read(d, cursor, begin + rows, 1, &last, e) != 0)
            return -1;
        memcpy(labels + at, tokens + at + 1, (rows - 1) * sizeof *labels);
        labels[at + (int64_t)rows - 1] = last;
    }
    uint64_t first, last;
    for (uint64_t from = position + 1; dataset_span(d, from, position + (uint64_t)T + 1, &first, &last);
         from = last)
        labels_clear(seg, (int64_t)(first - position) - 1, (int64_t)(last - position) - 1, labels);
    if (!doc_mask) return 0;
    for (uint64_t t = 0; t < (uint64_t)T;) {
        uint64_t begin, end;
        dataset_document(d, position + t, &begin, &end);
        int32_t start = begin > position ? (int32_t)(begin - position) : 0;
        for (; t < (uint64_t)T && position + t < end; t++) doc_start[t] = start;
        if (position + t == end)   // a document's last token predicts nothing
            labels_clear(seg, (int64_t)t - 1, (int64_t)t, labels);
    }
    return 0;
}

// The positions of a sample: where it begins in wpe, and how much further on its first document does, which
// may have begun before the sample.
typedef struct {
    int64_t begin, first_document;
} SamplePlace;

// Fills in the positions of one rank's rows of a sample: token t of the sample, which is token t - start of
// its document, has position begin + t - start, and first_document more in the first document. doc_start
// (T), or NULL: all is one document.
static void positions_fill(
    SamplePlace place, const Segments* seg, const int32_t* doc_start, int32_t* positions) {
    for (int s = 0; s < seg->count; s++)
        for (int64_t t = seg->begin[s]; t < seg->begin[s] + seg->rows[s]; t++) {
            int64_t start = doc_start ? doc_start[t] : 0;
            *positions++ = (int32_t)(place.begin + t - start + (start == 0 ? place.first_document : 0));
        }
}

// --pos-from document: the position of the sample's first token, of the T that begin at `position` of the
// stream, is the number k of tokens that its document has before it. Where the document's rows in the sample,
// n of them, would reach beyond the N of wpe, they begin at k modulo N - n + 1, so that they stay in the
// table and follow each other.
static int64_t document_position(const Dataset* d, uint64_t position, int64_t T, int64_t N) {
    uint64_t begin, end;
    dataset_document(d, position, &begin, &end);
    int64_t before = (int64_t)(position - begin), rows = min_i64((int64_t)(end - position), T);
    return before + rows <= N ? before : before % (N - rows + 1);
}

// --window-ramp (SkyLadder, Zhu et al. 2025): attention stays inside blocks of `window` tokens of a sample,
// and positions restart, as if a document began with each of them; 0: no blocks. A ramp that begins with the
// context that a model was trained with so begins with its loss. Changes doc_start (T), which rises along the
// sample before and after.
static void window_apply(int64_t window, int64_t T, int32_t* doc_start) {
    for (int64_t t = 0; window > 0 && t < T; t++)
        doc_start[t] = (int32_t)max_i64(doc_start[t], t / window * window);
}

// Tokens of the blocks in the step after `done` of o->steps: from o->window_ramp on they grow in a straight
// line, to the whole sequence after o->ramp_share of the steps. 0 without --window-ramp.
static int64_t ramp_window(const gpt2_sp_options* o, int64_t done) {
    double span = o->ramp_share * (double)o->steps;
    if (o->window_ramp == 0) return 0;
    if ((double)done >= span) return o->seq_len;
    return o->window_ramp + (int64_t)((double)(o->seq_len - o->window_ramp) * (double)done / span);
}

// How many of the T tokens from `position` on have a label, by the shards' indexes alone: every rank gets the
// same number. Of a document's last token, which has none with doc_mask, the label may be masked too.
static int64_t window_valid(const Dataset* d, uint64_t position, int64_t T, int doc_mask) {
    uint64_t first, last, until = position + (uint64_t)T;
    int64_t valid = T;
    for (uint64_t from = position + 1; dataset_span(d, from, until + 1, &first, &last); from = last)
        valid -= (int64_t)(last - first);
    for (uint64_t t = position, begin, end; doc_mask && t < until; t = end) {
        dataset_document(d, t, &begin, &end);
        if (end <= until && !(dataset_span(d, end, end + 1, &first, &last))) valid--;
    }
    return valid;
}

// Whether some tokens of the stream are no labels.
static int dataset_masked(const Dataset* d) {
    uint64_t first, last;
    return dataset_span(d, 0, d->tokens, &first, &last);
}

// How many labels an evaluation of the first `windows` windows counts.
static int64_t dataset_labels(const Dataset* d, int64_t T, int doc_mask, int64_t windows) {
    int64_t labels = 0;
    windows = min_i64(windows, (int64_t)dataset_windows(d, T));
    for (int64_t i = 0; i < windows; i++) {
        Window w = sample_window(d, T, (uint64_t)i, 0, 0);
        labels += window_valid(d, w.position + (uint64_t)w.seen, T - w.seen, doc_mask);
    }
    return labels;
}

// A sample of the run, as its source has it.
typedef struct {
    uint64_t number, position;   // position: of its first token in the stream, if there is one
    int64_t from;                // its first row that may have a label
    int64_t valid;               // its labels
} Sample;

// Reads the samples of a step ahead, on threads of its own, while the step before it is computed.
typedef struct {
    Dataset* data;
    int32_t*
        fed;   // (3T + 1) a sample of the program's: tokens, labels, starts of documents; NULL: from files
    int64_t T, B, passes;   // passes = grad_accum
    int dp, sp, doc_mask;
    int pos_from;   // see SamplePlace and its functions, for these three
    double pos_shift;
    int64_t N;
    int shuffled;                  // training; else an evaluation, which counts every label once
    int first_rank, local_ranks;   // whose batches are filled
    uint64_t seed;
    uint64_t limit;             // samples from here on carry no labels (validation of an odd number)
    const Segments* segments;   // (sp)
    int readers;                // threads that read windows, of which each has to inflate a block
    Batch batch[2];
    int ready;             // batch that the last request fills
    uint64_t first;        // first sample of that request
    int64_t window;        // of its step (ramp_window)
    pthread_t thread;      // that fills it
    int running, status;   // the thread is to be joined; how the request ended
    Error error;
} Loader;

// Where the positions of a sample of the run are, which is `position` in the stream. --pos-shift (SHAPE,
// Kiyono et al. 2021): with that probability they begin at a number drawn evenly from 0 to N - T. All of it
// is a function of the seed and the sample, so that it does not depend on who computes it.
static SamplePlace sample_place(const Loader* l, uint64_t sample, uint64_t position) {
    enum { SHIFTED = 0x53484946, SHIFT = 0x54464853 };   // streams of random numbers of their own
    SamplePlace place = {0, 0};
    if (l->pos_shift > 0 && random_unit(random_bits(l->seed, SHIFTED, sample)) < l->pos_shift)
        place.begin = (int64_t)(random_bits(l->seed, SHIFT, sample) % (uint64_t)(l->N - l->T + 1));
    if (l->pos_from == GPT2_SP_FROM_DOCUMENT)
        place.first_document = document_position(l->data, position, l->T, l->N);
    return place;
}

// --- where samples come from ---

// Of each sample the loader first has `begin` tell, from its number, what all ranks must know, and then
// `rows` fill in what one rank has of it: tokens and labels (Tl), doc_start (T), NULL without --doc-mask.
typedef struct {
    int (*begin)(Loader* l, Sample* sample, Error* e);
    int (*rows)(Loader* l, tok_cursor* cursor, const Sample* sample, const Segments* seg, int32_t* tokens,
        int32_t* labels, int32_t* doc_start, Error* e);
} SampleSource;

// Windows of a stream. `valid` comes from the documents' index alone, also for samples that other processes
// read.
static int window_begin(Loader* l, Sample* sample, Error* e) {
    (void)e;
    Window w = sample_window(l->data, l->T, sample->number, l->shuffled, l->seed);
    sample->position = w.position;
    sample->from = sample->number >= l->limit ? l->T : l->shuffled ? 0 : w.seen;
    sample->valid =
        window_valid(l->data, w.position + (uint64_t)sample->from, l->T - sample->from, l->doc_mask);
    return 0;
}
static int window_rows(Loader* l, tok_cursor* cursor, const Sample* sample, const Segments* seg,
    int32_t* tokens, int32_t* labels, int32_t* doc_start, Error* e) {
    if (sample_fill(
            l->data, cursor, sample->position, l->T, l->doc_mask, seg, tokens, labels, doc_start, e) != 0)
        return -1;
    labels_clear(seg, 0, sample->from, labels);
    return 0;
}

// What the program has filled in must be a sample. Of labels, `next` becomes the token behind, or, of a
// document's last token, none. Gives the number of labels, or -1.
static int64_t fed_check(const Loader* l, const gpt2_sp_sample* x, Error* e) {
    const int64_t T = l->T, V = l->data->vocab;
    int64_t valid = 0;
    for (int64_t t = 0; t <= T; t++)
        if (x->tokens[t] < 0 || x->tokens[t] >= V)
            return fail_as(GPT2_SP_INVALID, e,
                "sample %llu of the program's: token %lld is %d, expected 0 to %lld",
                (unsigned long long)x->sample, (long long)t, x->tokens[t], (long long)V - 1);
    for (int64_t t = 0; x->doc_start && t < T; t++) {
        int32_t least = t > 0 ? x->doc_start[t - 1] : 0;
        if (x->doc_start[t] < least || x->doc_start[t] > t)
            return fail_as(GPT2_SP_INVALID, e,
                "sample %llu of the program's: the document of token %lld begins at %d, expected %d to %lld",
                (unsigned long long)x->sample, (long long)t, x->doc_start[t], least, (long long)t);
    }
    for (int64_t t = 0; t < T; t++) {
        int ends = x->doc_start && t + 1 < T && x->doc_start[t + 1] == t + 1;
        if (x->labels[t] == GPT2_SP_NEXT) x->labels[t] = ends ? GPT2_SP_NO_LABEL : x->tokens[t + 1];
        if (x->labels[t] < GPT2_SP_NO_LABEL || x->labels[t] >= V)
            return fail_as(GPT2_SP_INVALID, e,
                "sample %llu of the program's: label %lld is %d, expected a token, 0 to %lld, or "
                "GPT2_SP_NO_LABEL (-1) or GPT2_SP_NEXT (-2)",
                (unsigned long long)x->sample, (long long)t, x->labels[t], (long long)V - 1);
        valid += x->labels[t] >= 0;
    }
    return valid;
}

// Samples of the program's. Each process asks for all of a step, also those that others learn from, as it
// must know their labels. Beyond the limit there is none: zeros without labels.
static int fed_begin(Loader* l, Sample* sample, Error* e) {
    const int64_t T = l->T;
    gpt2_sp_sample x = {sizeof x, sample->number, T, l->fed, l->fed + T + 1, NULL};
    int there = sample->number < l->limit;
    if (l->doc_mask) x.doc_start = l->fed + 2 * T + 1;
    memset(l->fed, 0, (size_t)(3 * T + 1) * sizeof *l->fed);
    for (int64_t t = 0; t < T; t++) x.labels[t] = there ? GPT2_SP_NEXT : GPT2_SP_NO_LABEL;
    int answer = there ? l->data->feed.fill(l->data->feed.user, &x) : 0;
    if (answer != 0)
        return fail_as(GPT2_SP_INVALID, e, "the program did not give sample %llu: its callback returned %d",
            (unsigned long long)sample->number, answer);
    x.sample = sample->number, x.tokens = l->fed;   // the program may have changed them
    x.labels = l->fed + T + 1, x.doc_start = l->doc_mask ? l->fed + 2 * T + 1 : NULL;
    sample->position = 0, sample->from = 0;
    sample->valid = there ? fed_check(l, &x, e) : 0;
    return sample->valid < 0 ? -1 : 0;
}
static int fed_rows(Loader* l, tok_cursor* cursor, const Sample* sample, const Segments* seg, int32_t* tokens,
    int32_t* labels, int32_t* doc_start, Error* e) {
    const int64_t T = l->T;
    (void)cursor, (void)sample, (void)e;
    for (int64_t s = 0, at = 0; s < seg->count; at += seg->rows[s], s++) {
        size_t bytes = (size_t)seg->rows[s] * sizeof *tokens;
        memcpy(tokens + at, l->fed + seg->begin[s], bytes);
        memcpy(labels + at, l->fed + T + 1 + seg->begin[s], bytes);
    }
    if (doc_start) memcpy(doc_start, l->fed + 2 * T + 1, (size_t)T * sizeof *doc_start);
    return 0;
}

static const SampleSource WINDOWS = {window_begin, window_rows}, FED = {fed_begin, fed_rows};

// A thread's share of the samples of a step: numbers from..until-1 of all passes and replicas, in their
// order.
typedef struct {
    Loader* l;
    Batch* batch;
    tok_cursor* cursor;
    uint64_t first;   // sample 0 of the step
    int64_t from, until, valid;
    int status;
    Error error;
} Reader;

// Reads one sample of a step for the ranks of this process.
static int reader_sample(Reader* x, const SampleSource* source, int64_t i) {
    Loader* l = x->l;
    const int replica = (int)(i / l->B % l->dp);
    const int64_t row = i / (l->B * l->dp) * l->B + i % l->B;   // of the rank's (passes, B)
    Sample sample = {x->first + (uint64_t)i, 0, 0, 0};
    if (source->begin(l, &sample, &x->error) != 0) return -1;
    SamplePlace place = sample_place(l, sample.number, sample.position);
    x->valid += sample.valid;
    for (int r = 0; r < l->sp; r++) {
        int local = replica * l->sp + r - l->first_rank;
        if (local < 0 || local >= l->local_ranks) continue;
        RankBatch* rank = &x->batch->ranks[local];
        const Segments* seg = &l->segments[r];
        int64_t at = row * seg->total;
        int32_t* doc_start = l->doc_mask ? rank->doc_start + row * l->T : NULL;
        if (source->rows(
                l, x->cursor, &sample, seg, rank->tokens + at, rank->labels + at, doc_start, &x->error) != 0)
            return -1;
        if (doc_start) window_apply(l->window, l->T, doc_start);
        if (rank->positions) positions_fill(place, seg, doc_start, rank->positions + at);
    }
    return 0;
}
static void* reader_thread(void* argument) {
    Reader* x = (Reader*)argument;
    const SampleSource* source = dataset_fed(x->l->data) ? &FED : &WINDOWS;
    for (int64_t i = x->from; i < x->until && x->status == 0; i++) x->status = reader_sample(x, source, i);
    return NULL;
}

// Reads the samples of a step, from sample `first` on, for the ranks of this process. `valid` is of all
// ranks. Neighbours are read by the same thread, the program's samples all by one, in their order.
static int loader_fill(Loader* l, Batch* batch, uint64_t first, Error* e) {
    Reader readers[READERS];
    pthread_t thread[READERS];
    int running[READERS], status = 0;
    const int64_t samples = l->passes * l->dp * l->B;
    const int count = dataset_fed(l->data) ? 1 : (int)max_i64(1, min_i64(l->readers, samples / 2));
    for (int i = 0; i < count; i++) {
        Reader* x = &readers[i];
        memset(x, 0, sizeof *x);
        x->l = l, x->batch = batch;
        x->cursor = &l->data->cursors[i], x->first = first;
        x->from = samples * i / count, x->until = samples * (i + 1) / count;
    }
    for (int i = 1; i < count; i++)
        running[i] = pthread_create(&thread[i], NULL, reader_thread, &readers[i]) == 0;
    reader_thread(&readers[0]);
    batch->valid = 0;
    for (int i = 0; i < count; i++) {
        if (i > 0 && running[i]) pthread_join(thread[i], NULL);
        else if (i > 0) reader_thread(&readers[i]);   // no thread to be had: read now
        if (readers[i].status != 0 && status == 0) status = -1, *e = readers[i].error;
        batch->valid += readers[i].valid;
    }
    return status;
}

// The loader's thread: fills the requested batch.
static void* loader_thread(void* argument) {
    Loader* l = (Loader*)argument;
    l->status = loader_fill(l, &l->batch[l->ready], l->first, &l->error);
    return NULL;
}

// Starts to read the step that begins with sample `first` and has that window.
static void loader_request(Loader* l, uint64_t first, int64_t window) {
    l->first = first, l->window = window;
    l->running = pthread_create(&l->thread, NULL, loader_thread, l) == 0;
    if (!l->running) loader_thread(l);   // no thread to be had: read now
}

// Waits for the requested batch; NULL if it could not be read. The request after the next overwrites it.
static Batch* loader_take(Loader* l, Error* e) {
    if (l->running) pthread_join(l->thread, NULL);
    l->running = 0;
    if (l->status != 0) {
        *e = l->error;
        return NULL;
    }
    Batch* batch = &l->batch[l->ready];
    l->ready = !l->ready;
    return batch;
}

// ===== 4. transports ============================================================================
//
// The ranks of a process are threads and meet in shared memory. Processes, on one machine or several, are
// joined by TCP: one connection (a link) between each two; data/net.h has how processes meet and what travels
// on a link. A rank calls the same function whoever its peers are:
//
//     process 0                             process 1
//     rank 0 -- boxes, barrier -- rank 1    rank 2 -- boxes, barrier -- rank 3      ThreadWorld
//        |                          |          |                          |
//        +--------------------------+-- link --+--------------------------+         messages, cut into frames
//
// Sums are made in the order of the ranks, so they do not depend on how ranks are spread over processes.
// Numbers travel in the order of the machine's bytes; processes whose orders differ do not meet. What has
// come for a rank and is not taken is bounded (data/net.h, NET_WINDOW): who sends waits for who takes. Every
// message carries `operation`, the number of calls that its sender has made: by it a receiver tells a
// peer that makes another call than itself (they have come apart) from one that is late. A rank that fails
// aborts the world: all waits of all ranks of all processes end, with its error.
//
// Every rank has a place in the mesh: its index along each of the mesh's axes, dp and sp. A collective
// takes a group: the ranks whose places differ along some of the axes only. World ranks count the places, sp
// the fastest. At dp = 2, sp = 3:
//
//              sp 0  sp 1  sp 2
//     dp 0      0     1     2        rank 4's sequence: 3, 4, 5; its replicas: 1, 4; all: 0 to 5
//     dp 1      3     4     5

// --- what a rank does in a step, for --profile and --trace ---
//
// A rank that records a step has a Trace; else it is NULL, and recording is the test of that pointer. A span
// is something that took time, on one of the rank's lanes: tracks of Perfetto, streams of a GPU. The spans of
// a lane follow or hold each other, none lies across another's end:
//
//     compute     | layer 0 forward                                                  | layer 1 forward ...
//                 | norm forward | qkv forward | attention forward    | fc forward | |
//                                              | q1 k1 | wait | q1 k0 |
//     exchange                                         | from rank 0 |
//
// Groups share out the whole step: each begins where the one before it ended. --profile prints their times.

enum { LANE_COMPUTE, LANE_BESIDE, LANE_COPY, LANE_GATHER, LANES };
static const char* const LANE_NAMES[LANES] = {"compute", "beside", "exchange", "gathers"};
// What a span is: its category in the file.
enum { SPAN_LAYER, SPAN_GROUP, SPAN_OP, SPAN_MESSAGE, SPAN_GATHER, SPAN_WAIT, SPAN_KINDS };
static const char* const SPAN_NAMES[SPAN_KINDS] = {"layer", "group", "op", "message", "gather", "wait"};

typedef struct {
    int lane, kind;    // LANE_..., SPAN_...
    double from, to;   // ms since the step began
    char name[28];
} Span;
enum { MAX_GROUPS = 40, TRACED_STEP = 4 };
typedef struct {
    const char* name;
    double ms;   // of this step
    int count;   // how often there was work of it
} GroupTime;
typedef struct {
    int tracing, profiling;   // what the step in hand is recorded for
    int failed;               // there was no memory for a span
    int64_t steps;            // of this process so far, the one in hand included
    double began, marked;     // when the step began (now_ms); its last group ended, in ms since then
    Span* spans;
    int span_count, span_room;
    GroupTime groups[MAX_GROUPS];
    int group_count;
    char device[16];        // on which the rank computes, for people,
    const char* computed;   // and what ops are there
} Trace;

// ms since the step began; 0 where nothing is recorded.
static double trace_now(const Trace* t) { return t ? now_ms() - t->began : 0; }

// Adds a span.
static void span_add(Trace* t, int lane, int kind, double from, double to, const char* format, ...)
    __attribute__((format(printf, 6, 7)));
static void span_add(Trace* t, int lane, int kind, double from, double to, const char* format, ...) {
    if (!t || !t->tracing) return;
    t->spans = (Span*)grow(t->spans, t->span_count, &t->span_room, sizeof *t->spans, &t->failed);
    if (t->failed) return;
    Span* span = &t->spans[t->span_count++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(span->name, sizeof span->name, format, arguments);
    va_end(arguments);
    span->lane = lane, span->kind = kind;
    span->from = from, span->to = to;
}

// Counts `ms` of work for a group.
static void group_add(Trace* t, const char* group, double ms) {
    int g = 0;
    while (g < t->group_count && strcmp(t->groups[g].name, group) != 0) g++;
    if (g == MAX_GROUPS) return;
    GroupTime none = {group, 0, 0}, *time = &t->groups[g];
    if (g == t->group_count) t->group_count++, *time = none;
    time->ms += ms, time->count++;
}
// What the rank did since the last group ended was work of this one.
static void group_end(Trace* t, const char* group) {
    if (!t) return;
    double now = trace_now(t);
    group_add(t, group, now - t->marked);
    span_add(t, LANE_COMPUTE, SPAN_GROUP, t->marked, now, "%s", group);
    t->marked = now;
}
// A wait of the rank itself, if it was one: what is shorter than a microsecond is only the look whether to.
static void wait_end(Trace* t, double from) {
    double now = trace_now(t);
    if (now - from >= 1e-3) span_add(t, LANE_COMPUTE, SPAN_WAIT, from, now, "wait");
}

// --- what ranks need of each other ---

// The indices of a rank; also how many ranks there are along each axis.
typedef struct {
    int dp, sp;
} Place;
static int place_rank(Place mesh, Place p) { return p.dp * mesh.sp + p.sp; }
static Place place_of(Place mesh, int rank) {
    Place p = {rank / mesh.sp, rank % mesh.sp};
    return p;
}

// Ranks that do something together, in the order of their places.
enum { OVER_DP = 1, OVER_SP = 2, OVER_ALL = OVER_DP | OVER_SP, OVERS };
typedef struct {
    int over;       // the axes along which its ranks differ
    int size;       // ranks in it
    int index;      // this rank's number in it
    Place mesh;     // ranks along each axis of the mesh
    Place first;    // of its rank number 0
    Place counts;   // ranks along each axis of the group
} Group;
// The group of a rank that spans the axes `over`.
static Group group_of(Place mesh, int rank, int over) {
    Place own = place_of(mesh, rank);
    Group g = {over, 1, 0, mesh, own, {1, 1}};
    if (over & OVER_DP) g.first.dp = 0, g.counts.dp = mesh.dp;
    if (over & OVER_SP) g.first.sp = 0, g.counts.sp = mesh.sp;
    g.size = g.counts.dp * g.counts.sp;
    g.index = (own.dp - g.first.dp) * g.counts.sp + own.sp - g.first.sp;
    return g;
}
// The world rank of number i of a group; after the last comes the first again.
static int group_rank(const Group* g, int i) {
    i %= g->size;
    Place p = {g->first.dp + i / g->counts.sp, g->first.sp + i % g->counts.sp};
    return place_rank(g->mesh, p);
}
// The number of a world rank in a group; -1 if it is not in the group.
static int group_index(const Group* g, int rank) {
    Place p = place_of(g->mesh, rank), at = {p.dp - g->first.dp, p.sp - g->first.sp};
    int inside = at.dp >= 0 && at.dp < g->counts.dp && at.sp >= 0 && at.sp < g->counts.sp;
    return inside ? at.dp * g->counts.sp + at.sp : -1;
}

// A piece: a part of a message that lies in one stretch of memory, and goes to or comes from a peer.
typedef struct {
    int peer;   // world rank
    void* data;
    size_t bytes;
} Piece;
enum { MAX_PIECES = 4 };   // of one message

// What ranks need of each other. Every call returns 0, or -1 with the reason in the error: the rank has
// waited longer than --timeout for another one, or some rank of some process has aborted. After an abort all
// calls of all ranks return -1, so nobody waits for ever.
typedef struct Transport Transport;
struct Transport {
    int rank;             // world rank; HOST: the process itself, which speaks while its ranks run no job
    int world;            // ranks of all processes
    int64_t step;         // in hand, for the line that a failure leaves
    uint64_t operation;   // calls so far: alike on all ranks
    int64_t posted;       // rounds of sends to other processes that the last post made (links_move)
    const char* doing;    // the call in hand
    int lane;             // LANE_COPY in an exchange, LANE_GATHER in what follows all ranks call together
    Trace* trace;         // of a step that is recorded, else NULL
    void* state;          // the ThreadWorld
    // An exchange is a post and its wait. post offers pieces to their peers: what they point to stays as it
    // is until the wait. What one rank sends another, in its order, is what the other receives, in its order.
    int (*post)(Transport* t, const Piece* sends, int send_count, Error* e);
    // Receives the pieces that others offer in this exchange and waits until the own ones were taken.
    int (*wait)(
        Transport* t, const Piece* sends, int send_count, const Piece* receives, int receive_count, Error* e);
    // What follows all ranks of a group call together. Every rank makes a sum in the order of the group: all
    // get the same bits. all_reduce: values (count) = their sum over the ranks.
    int (*all_reduce)(Transport* t, const Group* g, double* values, int count, Error* e);
    // buffer (size of the group, slice): the slice with this rank's number = its sum over all ranks' buffers.
    // The other slices of the buffer keep what this rank had put there.
    int (*reduce_scatter)(Transport* t, const Group* g, real* buffer, int64_t slice, Error* e);
    // buffer (size of the group, slice): every rank brings its slice, and gets those of the others
    int (*all_gather)(Transport* t, const Group* g, real* buffer, int64_t slice, Error* e);
    // The same for parts of any bytes: buffer (size of the group, bytes).
    int (*share)(Transport* t, const Group* g, void* buffer, size_t bytes, Error* e);
    int (*barrier)(Transport* t, const Group* g, Error* e);
    void (*abort)(Transport* t, const Error* reason);
};

// --- thread ranks: shared memory ---

typedef struct {
    const Piece* pieces;   // all that the sender offers in this exchange, to whomever; NULL: the box is empty
    int count;
} Mailbox;

// The ranks of a group that are in this process, at a barrier.
typedef struct {
    int arrived;
    uint64_t generation;   // barriers passed
} Meeting;

// What the ranks of this process share. What changes during a job changes with the mutex held, and signals
// `changed`; only `shared` is guarded by barriers instead.
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int open;                             // mutex and condition exist
    int first, local_ranks;               // the ranks of this process: [first, first + local_ranks)
    int process, processes;               // this one, and all
    int local_process, local_processes;   // the same among those of this machine
    double timeout;                       // longest wait for another rank in ms; 0: for ever
    int aborted;
    Meeting* meetings;    // (OVERS, ranks of the run): a group's is at the world rank of its number 0
    uint64_t* arrivals;   // (OVERS, local_ranks) how many barriers of its group each rank has come to
    Error reason;         // of the abort
    int64_t step;         // in hand
    int working;          // a job of the ranks is under way
    Mailbox* boxes;       // (local_ranks, local_ranks): from, to
    void** shared;        // (local_ranks) what each rank shows the others during a collective
    net_peers net;        // the other processes, if there are any
    void**
        devices;   // the GPU program's: (local_ranks) each rank's part of it, and the boxes of its exchanges
    void* gpu_boxes;
} ThreadWorld;

enum { HOST = NET_ITSELF };
// Waits inside a process end 2 s later, so that the error names the missing process.
enum { LOCAL_PATIENCE = 2000 };

// 0, or -1 with its reason after an abort. thread_aborted: the caller holds the mutex.
static int thread_aborted(ThreadWorld* w, Error* e) {
    if (w->aborted) *e = w->reason;
    return w->aborted ? -1 : 0;
}

static int world_aborted(ThreadWorld* w, Error* e) {
    pthread_mutex_lock(&w->mutex);
    int status = thread_aborted(w, e);
    pthread_mutex_unlock(&w->mutex);
    return status;
}

// The time (now_ms) when a wait that begins now has taken too long; 0: never. `remote`: for another process.
// Threads of one CPU process wait for ever, as they cannot lose each other, however slow they are.
static double world_deadline(const ThreadWorld* w, int remote) {
    if (w->processes < 2 && !w->devices) return 0;
    return w->timeout > 0 ? now_ms() + w->timeout + (remote || w->processes < 2 ? 0 : LOCAL_PATIENCE) : 0;
}

// Sleeps until something changes, with the mutex held. -1: the deadline has passed.
static int world_await(ThreadWorld* w, double deadline) {
    return net_await(&w->changed, &w->mutex, deadline);
}

// The process that holds a rank.
static int world_process(const ThreadWorld* w, int rank) {
    return w->local_ranks > 0 ? rank / w->local_ranks : 0;
}
// Whether this process does.
static int world_local(const ThreadWorld* w, int rank) {
    return rank >= w->first && rank < w->first + w->local_ranks;
}

// A name for an error line, by value: the caller has nothing to free.
typedef struct {
    char text[96];
} Label;
// "process 1 (ranks 4-7)"; how many ranks it has is not known before all processes have met.
static Label process_label(const ThreadWorld* w, int process) {
    Label l;
    int first = process * w->local_ranks;
    if (w->local_ranks < 1) snprintf(l.text, sizeof l.text, "process %d", process);
    else if (w->local_ranks == 1) snprintf(l.text, sizeof l.text, "process %d (rank %d)", process, first);
    else
        snprintf(
            l.text, sizeof l.text, "process %d (ranks %d-%d)", process, first, first + w->local_ranks - 1);
    return l;
}
// Who waits, at which step: "rank 3, step 17".
static Label transport_label(const Transport* t) {
    Label l;
    int n = t->rank == HOST
        ? snprintf(l.text, sizeof l.text, "process %d", ((const ThreadWorld*)t->state)->process)
        : snprintf(l.text, sizeof l.text, "rank %d", t->rank);
    if (t->step > 0) snprintf(l.text + n, sizeof l.text - (size_t)n, ", step %lld", (long long)t->step);
    return l;
}
// Always -1: this rank has waited too long.
static int transport_late(const Transport* t, const char* whom, Error* e) {
    return fail(e, "%s: waited %g s for %s in %s (--timeout)", transport_label(t).text,
        ((const ThreadWorld*)t->state)->timeout / 1e3, whom, t->doing);
}
static int transport_late_rank(const Transport* t, int peer, Error* e) {
    char whom[32];
    snprintf(whom, sizeof whom, "rank %d", peer);
    return transport_late(t, whom, e);
}

// Copies the pieces that `peer` sends to this rank in this exchange, from[0 .. from_count), to where this
// rank receives them. -1 if they do not match in number or bytes.
static int thread_receive(Transport* t, int peer, const Piece* from, int from_count, const Piece* receives,
    int receive_count, Error* e) {
    int sent = 0;
    for (int i = 0; i < receive_count; i++) {
        if (receives[i].peer != peer) continue;
        while (sent < from_count && from[sent].peer != t->rank) sent++;
        if (sent == from_count || from[sent].bytes != receives[i].bytes)
            return fail(e, "rank %d expects %zu bytes of rank %d, which sends %zu", t->rank,
                receives[i].bytes, peer, sent == from_count ? (size_t)0 : from[sent].bytes);
        memcpy(receives[i].data, from[sent++].data, receives[i].bytes);
    }
    return 0;
}

// The box of a pair of ranks of this process.
static Mailbox* thread_box(ThreadWorld* w, int from, int to) {
    return &w->boxes[(from - w->first) * w->local_ranks + to - w->first];
}

// Puts the list of sends in the box of every peer of this process: nothing is copied.
static int thread_post(Transport* t, const Piece* sends, int send_count, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    pthread_mutex_lock(&w->mutex);
    for (int i = 0; i < send_count; i++) {
        if (!world_local(w, sends[i].peer)) continue;
        Mailbox* box = thread_box(w, t->rank, sends[i].peer);
        box->pieces = sends, box->count = send_count;
    }
    if (send_count > 0) pthread_cond_broadcast(&w->changed);
    int status = thread_aborted(w, e);
    pthread_mutex_unlock(&w->mutex);
    return status;
}

// Waits until the box between this rank and `peer` is full, or empty (full 0); *mail is what it then holds.
static int thread_await_box(
    Transport* t, Mailbox* box, int full, int peer, double deadline, Mailbox* mail, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    const double from = trace_now(t->trace);
    int status = 0;
    pthread_mutex_lock(&w->mutex);
    while ((status = thread_aborted(w, e)) == 0 && (box->pieces != NULL) != full)
        if (world_await(w, deadline) != 0 && !w->aborted && (box->pieces != NULL) != full) {
            status = transport_late_rank(t, peer, e);
            break;
        }
    *mail = *box;
    pthread_mutex_unlock(&w->mutex);
    wait_end(t->trace, from);
    return status;
}

// Empties the box of every peer of this process that this rank receives from, once a peer, then waits until
// the peers have emptied theirs.
static int thread_wait(
    Transport* t, const Piece* sends, int send_count, const Piece* receives, int receive_count, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    double deadline = world_deadline(w, 0);
    int status = 0;
    Mailbox mail;
    for (int i = 0; status == 0 && i < receive_count; i++) {
        int peer = receives[i].peer, seen = !world_local(w, peer);
        for (int j = 0; j < i; j++) seen |= receives[j].peer == peer;
        if (seen) continue;
        Mailbox* box = thread_box(w, peer, t->rank);
        status = thread_await_box(t, box, 1, peer, deadline, &mail, e);
        double from = trace_now(t->trace);
        if (status == 0)
            status = thread_receive(t, peer, mail.pieces, mail.count, receives, receive_count, e);
        span_add(t->trace, LANE_COPY, SPAN_MESSAGE, from, trace_now(t->trace), "from rank %d", peer);
        pthread_mutex_lock(&w->mutex);
        box->pieces = NULL;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->mutex);
    }
    for (int i = 0; status == 0 && i < send_count; i++)
        if (world_local(w, sends[i].peer))
            status = thread_await_box(
                t, thread_box(w, t->rank, sends[i].peer), 0, sends[i].peer, deadline, &mail, e);
    return status;
}

// How many ranks of a group a process has.
static int group_ranks_of(const ThreadWorld* w, const Group* g, int process) {
    int count = 0;
    for (int i = 0; i < w->local_ranks; i++) count += group_index(g, process * w->local_ranks + i) >= 0;
    return count;
}
// The world rank of the n-th of them; after the last comes the first again.
static int group_rank_of(const ThreadWorld* w, const Group* g, int process, int n) {
    int i = process * w->local_ranks, left = n % group_ranks_of(w, g, process);
    while (group_index(g, i) < 0 || left-- > 0) i++;
    return i;
}

// Waits until all ranks of the group that are in this process have come here. A rank whose time is over names
// the first that is missing.
static int thread_barrier(Transport* t, const Group* g, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    const double deadline = world_deadline(w, 0), from = trace_now(t->trace);
    int here = group_ranks_of(w, g, w->process), late = 0, missing = 0;
    pthread_mutex_lock(&w->mutex);
    Meeting* meeting = &w->meetings[(size_t)g->over * (size_t)t->world + (size_t)group_rank(g, 0)];
    uint64_t* arrivals = &w->arrivals[g->over * w->local_ranks];
    uint64_t generation = meeting->generation;
    arrivals[t->rank - w->first] = generation + 1;
    if (++meeting->arrived == here) {
        meeting->arrived = 0, meeting->generation++;
        pthread_cond_broadcast(&w->changed);
    }
    while (meeting->generation == generation && !w->aborted && !late) late = world_await(w, deadline) != 0;
    int status = thread_aborted(w, e);
    if (status == 0 && meeting->generation == generation) {
        while (
            missing + 1 < here && arrivals[group_rank_of(w, g, w->process, missing) - w->first] > generation)
            missing++;
        status = transport_late_rank(t, group_rank_of(w, g, w->process, missing), e);
    }
    pthread_mutex_unlock(&w->mutex);
    wait_end(t->trace, from);
    return status;
}

// Shows `data` to the group's ranks of this process (w->shared) and waits until all show theirs. It may be
// taken away after one more barrier.
static int thread_share(Transport* t, const Group* g, void* data, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    w->shared[t->rank - w->first] = data;   // read by others only after the barrier
    return thread_barrier(t, g, e);
}

// --- links: the ranks of other processes ---

// Kinds of frames, all below NET_ABORT: what a message is, to notice ranks that make different calls.
enum { FRAME_PIECE, FRAME_SLICE, FRAME_SHARE, FRAME_BARRIER, FRAME_TEXT };
enum { HOST_TEXT = 64 << 20 };   // longest text of a process about itself

// Always -1: the process that this rank waits for is gone.
static int link_gone(const Transport* t, int process, const char* why, Error* e) {
    return fail(e, "%s: %s is gone (%s), waited for in %s", transport_label(t).text,
        process_label((const ThreadWorld*)t->state, process).text, why, t->doing);
}

// Always -1: a process is gone, and the run with it, while this rank waits for another, `whom`.
static int link_lost(const Transport* t, const char* whom, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    pthread_mutex_lock(&w->mutex);
    int lost = net_lost(&w->net);
    const char* why = net_gone(&w->net, lost);
    pthread_mutex_unlock(&w->mutex);
    return fail(e, "%s: %s is gone (%s); waited for %s in %s", transport_label(t).text,
        process_label(w, lost).text, why, whom, t->doing);
}

// Sends rank `to` of another process, or (HOST) that process itself, a frame of a message of `bytes`: what
// follows its first `at` bytes.
static int link_send(
    Transport* t, int process, int to, int kind, const void* data, size_t bytes, size_t at, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    net_frame f = {NULL, kind, t->rank, to, t->operation, bytes, net_frame_bytes(bytes - at), NULL};
    const double from = trace_now(t->trace);
    int status = net_send(&w->net, process, f, (const char*)data + at, world_deadline(w, 1));
    span_add(t->trace, t->lane, SPAN_MESSAGE, from, trace_now(t->trace), "to rank %d", to);
    switch (status) {
    case NET_OK: return 0;
    case NET_ABORTED: return world_aborted(w, e);
    case NET_LATE: return transport_late(t, process_label(w, process).text, e);
    case NET_LOST: return link_lost(t, process_label(w, process).text, e);
    default: return link_gone(t, process, "connection closed", e);
    }
}

// Takes the next frame of a message of `bytes`, of which `at` have been taken. The caller frees it. NULL if
// none came, or if it is of another call or another size than this rank expects.
static net_frame* link_take(
    Transport* t, int process, int from, int kind, size_t bytes, size_t at, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    net_frame* f = NULL;
    const char* why = NULL;
    const double begin = trace_now(t->trace);
    int status = net_take(&w->net, process, from, t->rank, world_deadline(w, 1), &f, &why);
    wait_end(t->trace, begin);
    if (status == NET_ABORTED) world_aborted(w, e);
    if (status == NET_GONE) link_gone(t, process, why, e);
    if (status == NET_LOST) link_lost(t, process_label(w, process).text, e);
    if (status == NET_LATE && from == HOST) transport_late(t, process_label(w, process).text, e);
    if (status == NET_LATE && from != HOST) transport_late_rank(t, from, e);
    if (status != NET_OK) return NULL;
    size_t rest = net_frame_bytes(bytes - at);
    if (f->kind == kind && f->operation == t->operation && f->message == bytes && f->bytes == rest) return f;
    char whom[32];
    snprintf(whom, sizeof whom, from == HOST ? "process %d" : "rank %d", from == HOST ? process : from);
    if (f->kind == kind && f->operation == t->operation && f->message == bytes)
        fail(e, "%s: expects a frame of %zu bytes of %s in %s, which sends one of %zu",
            transport_label(t).text, rest, whom, t->doing, f->bytes);
    else if (f->kind == kind && f->operation == t->operation)
        fail(e, "%s: expects %zu bytes of %s in %s, which sends %llu", transport_label(t).text, bytes, whom,
            t->doing, (unsigned long long)f->message);
    else
        fail(e,
            "%s: its operation %llu is %s, %s has sent another (its operation %llu): they have come apart",
            transport_label(t).text, (unsigned long long)t->operation, t->doing, whom,
            (unsigned long long)f->operation);
    free(f);
    return NULL;
}

// A message to or from a rank of another process, or (HOST) that process itself, of which a part has moved.
typedef struct {
    int process, rank;
    char* data;
    size_t bytes, at;   // at: of these moved
    int whole;          // all have, and a message of no bytes its one frame
    int64_t round;      // when the last frame moved
} LinkMessage;
static LinkMessage link_message(int process, int rank, void* data, size_t bytes) {
    LinkMessage m = {process, rank, (char*)data, bytes, 0, 0, -1};
    return m;
}

// Whether messages[i] moves a frame in this round: the first of its stream that is not whole does.
static int link_moves(const LinkMessage* messages, int i, int64_t round) {
    const LinkMessage *m = &messages[i], *before;
    if (m->whole) return 0;
    for (before = messages; before < m; before++)
        if (before->process == m->process && before->rank == m->rank &&
            (!before->whole || before->round == round))
            return 0;
    return 1;
}
static void link_moved(LinkMessage* m, int64_t round) {
    m->at += net_frame_bytes(m->bytes - m->at);
    m->whole = m->at == m->bytes, m->round = round;
}

// Sends and receives messages by turns: in a round one frame of each stream is sent, then one of each is
// taken. The first `posted` rounds of sends have been sent already. Nobody waits for ever: a rank waits to
// send only while its receiver has not taken a frame of an earlier round or call, and so is at an earlier one
// itself; it waits to take only for a sender that is at an earlier round, or that waits to send in this one.
// Of all ranks, one that is at the earliest round of the earliest call can therefore go on.
static int links_move(Transport* t, int kind, LinkMessage* sends, int send_count, LinkMessage* receives,
    int receive_count, int64_t posted, Error* e) {
    int moved = 1;
    for (int64_t round = 0; moved; round++) {
        moved = 0;
        for (int i = 0; i < send_count; i++) {
            LinkMessage* m = &sends[i];
            if (!link_moves(sends, i, round)) continue;
            if (round >= posted && link_send(t, m->process, m->rank, kind, m->data, m->bytes, m->at, e) != 0)
                return -1;
            link_moved(m, round), moved = 1;
        }
        for (int i = 0; i < receive_count; i++) {
            LinkMessage* m = &receives[i];
            if (!link_moves(receives, i, round)) continue;
            net_frame* f = link_take(t, m->process, m->rank, kind, m->bytes, m->at, e);
            if (!f) return -1;
            const double from = trace_now(t->trace);
            memcpy(m->data + m->at, f->data, f->bytes);
            span_add(t->trace, t->lane, SPAN_MESSAGE, from, trace_now(t->trace), "from rank %d", m->rank);
            free(f);
            link_moved(m, round), moved = 1;
        }
    }
    return 0;
}

// Sends messages as long as no receiver keeps this rank waiting: *posted becomes the number of rounds.
static int links_post(Transport* t, int kind, LinkMessage* sends, int count, int64_t* posted, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    for (int64_t round = *posted = 0;; round++) {
        int moving = 0, may = 1;
        for (int i = 0; i < count && may; i++) {
            if (!link_moves(sends, i, round)) continue;
            moving = 1, may = net_may_send(&w->net, sends[i].process, t->rank, sends[i].rank);
        }
        if (!moving || !may) return 0;
        for (int i = 0; i < count; i++) {
            LinkMessage* m = &sends[i];
            if (!link_moves(sends, i, round)) continue;
            if (link_send(t, m->process, m->rank, kind, m->data, m->bytes, m->at, e) != 0) return -1;
            link_moved(m, round);
        }
        *posted = round + 1;
    }
}

// --- what a rank calls: shared memory and links together ---

// Every call of a rank begins here: counted, and named for the line that a failure leaves.
static void transport_begin(Transport* t, const char* doing) {
    t->operation++, t->doing = doing;
    t->lane = LANE_GATHER;
}

// The pieces of a list that other processes' ranks send or receive, as messages; how many.
static int link_pieces(const ThreadWorld* w, const Piece* pieces, int count, LinkMessage* out) {
    int n = 0;
    for (int i = 0; i < count; i++)
        if (!world_local(w, pieces[i].peer))
            out[n++] = link_message(
                world_process(w, pieces[i].peer), pieces[i].peer, pieces[i].data, pieces[i].bytes);
    return n;
}

// The functions of a Transport. A wait is counted with its post: both are one operation.
static int world_post(Transport* t, const Piece* sends, int send_count, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    transport_begin(t, "an exchange");
    t->lane = LANE_COPY;
    t->posted = 0;
    if (thread_post(t, sends, send_count, e) != 0) return -1;
    if (w->processes < 2 || send_count == 0) return 0;
    LinkMessage* messages = (LinkMessage*)malloc((size_t)send_count * sizeof *messages);
    if (!messages) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d messages", send_count);
    int count = link_pieces(w, sends, send_count, messages);
    int status = links_post(t, FRAME_PIECE, messages, count, &t->posted, e);
    free(messages);
    return status;
}

static int world_wait(
    Transport* t, const Piece* sends, int send_count, const Piece* receives, int receive_count, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    int all = send_count + receive_count;
    if (w->processes > 1 && all > 0) {
        LinkMessage* messages = (LinkMessage*)malloc((size_t)all * sizeof *messages);
        if (!messages) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d messages", all);
        int out = link_pieces(w, sends, send_count, messages);
        int in = link_pieces(w, receives, receive_count, messages + out);
        int status = links_move(t, FRAME_PIECE, messages, out, messages + out, in, t->posted, e);
        free(messages);
        if (status != 0) return -1;
    }
    return thread_wait(t, sends, send_count, receives, receive_count, e);
}

// Brings every rank's part of buffer (size of the group, bytes) to all of the group. A part travels to each
// process once, to one of its ranks in turn (group_rank_of); the ranks of a process then copy it from that
// one.
static int world_gather(Transport* t, const Group* g, int kind, void* buffer, size_t bytes, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    char* parts = (char*)buffer;
    int out = 0, in = 0;
    if (g->size == 1) return 0;
    LinkMessage* sends = (LinkMessage*)malloc((size_t)(w->processes + g->size) * sizeof *sends);
    LinkMessage* receives = sends ? sends + w->processes : NULL;
    if (!sends) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d messages", w->processes + g->size);
    for (int i = 1; i < w->processes; i++) {
        int process = (w->process + i) % w->processes;
        if (group_ranks_of(w, g, process) == 0) continue;
        int to = group_rank_of(w, g, process, g->index);
        sends[out++] = link_message(process, to, parts + (size_t)g->index * bytes, bytes);
    }
    for (int i = 0; i < g->size; i++) {
        int from = group_rank(g, i), process = world_process(w, from);
        if (process == w->process || group_rank_of(w, g, w->process, i) != t->rank) continue;
        receives[in++] = link_message(process, from, parts + (size_t)i * bytes, bytes);
    }
    int status = links_move(t, kind, sends, out, receives, in, 0, e);
    free(sends);
    if (status != 0 || thread_share(t, g, buffer, e) != 0) return -1;
    for (int i = 0; i < g->size; i++) {
        int from = group_rank(g, i),
            holder = world_local(w, from) ? from : group_rank_of(w, g, w->process, i);
        if (holder == t->rank) continue;
        memcpy(
            parts + (size_t)i * bytes, (const char*)w->shared[holder - w->first] + (size_t)i * bytes, bytes);
    }
    return thread_barrier(t, g, e);
}

static int world_share(Transport* t, const Group* g, void* buffer, size_t bytes, Error* e) {
    transport_begin(t, "a share");
    return world_gather(t, g, FRAME_SHARE, buffer, bytes, e);
}

static int world_all_gather(Transport* t, const Group* g, real* buffer, int64_t slice, Error* e) {
    transport_begin(t, "an all-gather");
    return world_gather(t, g, FRAME_SLICE, buffer, (size_t)slice * sizeof(real), e);
}

// Gathers the values of all ranks, and every rank sums them up for itself. For few values only.
static int world_all_reduce(Transport* t, const Group* g, double* values, int count, Error* e) {
    size_t bytes = (size_t)count * sizeof(double);
    transport_begin(t, "an all-reduce");
    if (g->size == 1) return 0;
    double* all = (double*)malloc((size_t)g->size * bytes);
    if (!all) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d ranks", g->size);
    memcpy(all + g->index * count, values, bytes);
    int status = world_gather(t, g, FRAME_SLICE, all, bytes, e);
    for (int i = 0; status == 0 && i < count; i++) {
        values[i] = 0;
        for (int r = 0; r < g->size; r++) values[i] += all[r * count + i];
    }
    free(all);
    return status;
}

// Every rank sends the others their slices and sums its own in the order of the group, a frame's worth at
// once: rounds as those of links_move. Slices of ranks of its own process it reads where they are.
static int world_reduce_scatter(Transport* t, const Group* g, real* buffer, int64_t slice, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    size_t bytes = (size_t)slice * sizeof(real);
    int64_t most = NET_FRAME_BYTES / (int64_t)sizeof(real);
    transport_begin(t, "a reduce-scatter");
    if (g->size == 1) return 0;
    const real** parts = (const real**)malloc((size_t)g->size * sizeof *parts);
    net_frame** frames = (net_frame**)calloc((size_t)g->size, sizeof *frames);
    int status = parts && frames ? thread_share(t, g, buffer, e)
                                 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d ranks", g->size);
    for (int64_t at = 0; status == 0 && (at == 0 || at < slice); at += most) {
        int64_t n = min_i64(most, slice - at);
        real* own = buffer + g->index * slice + at;   // nobody else reads this slice of this rank
        for (int i = 1; status == 0 && i < g->size; i++) {
            int number = (g->index + i) % g->size, to = group_rank(g, number);
            if (world_local(w, to)) continue;
            status = link_send(t, world_process(w, to), to, FRAME_SLICE, buffer + number * slice, bytes,
                (size_t)at * sizeof(real), e);
        }
        for (int i = 0; status == 0 && i < g->size; i++) {
            int r = group_rank(g, i);
            if (world_local(w, r)) {
                parts[i] = (const real*)w->shared[r - w->first] + g->index * slice + at;
                continue;
            }
            frames[i] =
                link_take(t, world_process(w, r), r, FRAME_SLICE, bytes, (size_t)at * sizeof(real), e);
            if (!frames[i]) status = -1;
            else parts[i] = (const real*)(const void*)frames[i]->data;
        }
        for (int64_t i = 0; status == 0 && i < n; i++) {
            real sum = parts[0][i];
            for (int r = 1; r < g->size; r++) sum += parts[r][i];
            own[i] = sum;
        }
        for (int i = 0; i < g->size; i++) free(frames[i]), frames[i] = NULL;
    }
    free(parts);
    free(frames);
    return status == 0 ? thread_barrier(t, g, e) : -1;
}

// The ranks of each process meet; the first of each sends to the first ones of the others, then receives from
// them; the ranks of the process meet again. On a link a barrier is a message of no bytes.
static int world_barrier(Transport* t, const Group* g, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    char nothing = 0;
    transport_begin(t, "a barrier");
    if (thread_barrier(t, g, e) != 0) return -1;
    if (w->processes < 2) return 0;
    int speaks = group_rank_of(w, g, w->process, 0) == t->rank;
    for (int receiving = 0; receiving < 2 && speaks; receiving++)
        for (int i = 1; i < w->processes; i++) {
            int process = (w->process + i) % w->processes, status;
            if (group_ranks_of(w, g, process) == 0) continue;
            LinkMessage m = link_message(process, group_rank_of(w, g, process, 0), &nothing, 0);
            if (receiving) status = links_move(t, FRAME_BARRIER, NULL, 0, &m, 1, 0, e);
            else status = links_move(t, FRAME_BARRIER, &m, 1, NULL, 0, 0, e);
            if (status != 0) return -1;
        }
    return thread_barrier(t, g, e);
}

// Stops all ranks of all processes; the first reason counts.
static void world_abort(Transport* t, const Error* reason) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    pthread_mutex_lock(&w->mutex);
    if (!w->aborted) w->aborted = 1, w->reason = *reason;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
    net_tell(&w->net);
}

// Joins this process to the others of the run, which must know the secret if there is one.
static int links_open(
    ThreadWorld* w, int process, int processes, const char* master, const char* secret_file, Error* e) {
    net_secret secret;
    memset(&secret, 0, sizeof secret);
    if (secret_file[0] && net_secret_read(&secret, secret_file, e->text, sizeof e->text) != 0) return -1;
    int status = net_open(
        &w->net, process, processes, master, &secret, w->timeout, &stop_signal, e->text, sizeof e->text);
    explicit_bzero(&secret, sizeof secret);
    w->process = process, w->processes = processes;
    w->local_process = w->net.local_process, w->local_processes = w->net.local_processes;
    return status;
}

// --- between jobs: the process itself speaks to the other processes ---

// Every process sends all others `mine` (bytes[own]) and takes theirs: bytes[i] to theirs[i], of each
// process i but itself.
static int processes_swap(Transport* t, const void* mine, char** theirs, const size_t* bytes, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    LinkMessage* sends = (LinkMessage*)malloc(2 * (size_t)w->processes * sizeof *sends);
    LinkMessage* receives = sends ? sends + w->processes : NULL;
    int count = 0;
    if (!sends) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d processes", w->processes);
    for (int i = 0; i < w->processes; i++) {
        if (i == w->process) continue;
        sends[count] = link_message(i, HOST, (void*)(uintptr_t)mine, bytes[w->process]);
        receives[count++] = link_message(i, HOST, theirs[i], bytes[i]);
    }
    int status = links_move(t, FRAME_TEXT, sends, count, receives, count, 0, e);
    free(sends);
    return status;
}

// Sends a text to all processes and takes theirs: texts (processes), which the caller frees; its own is NULL.
static int processes_texts(Transport* t, const char* mine, char** texts, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    size_t count = (size_t)w->processes;
    uint64_t* lengths = (uint64_t*)calloc(count, sizeof *lengths);
    size_t* bytes = (size_t*)calloc(count, sizeof *bytes);
    char** at = (char**)calloc(count, sizeof *at);
    int status = lengths && bytes && at
        ? 0
        : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d processes", w->processes);
    for (int i = 0; status == 0 && i < w->processes; i++)
        at[i] = (char*)&lengths[i], bytes[i] = sizeof lengths[i];
    if (status == 0) {
        lengths[w->process] = strlen(mine);
        status = processes_swap(t, &lengths[w->process], at, bytes, e);
    }
    for (int i = 0; status == 0 && i < w->processes; i++) {
        bytes[i] = (size_t)lengths[i];
        if (i == w->process) continue;
        if (lengths[i] > HOST_TEXT)
            status = fail(e, "process %d says %llu bytes about itself", i, (unsigned long long)lengths[i]);
        else if (!(texts[i] = (char*)calloc(bytes[i] + 1, 1)))
            status = fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    }
    if (status == 0) status = processes_swap(t, mine, texts, bytes, e);
    free(lengths);
    free(bytes);
    free(at);
    return status;
}

// Called by all processes together. -1 on all if the text of one differs from process 0's; the line names the
// first line that does.
static int processes_compare(Transport* t, const char* doing, const char* mine, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    if (w->processes < 2) return 0;
    transport_begin(t, doing);
    char** texts = (char**)calloc((size_t)w->processes, sizeof *texts);
    int status = texts ? processes_texts(t, mine, texts, e) : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int i = 1; status == 0 && i < w->processes; i++) {
        const char *zero = w->process == 0 ? mine : texts[0], *one = w->process == i ? mine : texts[i];
        size_t line = 0, at = 0;
        for (; zero[at] == one[at] && zero[at]; at++)
            if (zero[at] == '\n') line = at + 1;
        if (zero[at] == one[at]) continue;
        int zero_length = (int)strcspn(zero + line, "\n"), one_length = (int)strcspn(one + line, "\n");
        status = fail(e, "process %d has `%.*s`, process 0 has `%.*s`: they must agree", i,
            one_length < 400 ? one_length : 400, one + line, zero_length < 400 ? zero_length : 400,
            zero + line);
    }
    for (int i = 0; texts && i < w->processes; i++) free(texts[i]);
    free(texts);
    return status;
}

// What a process brings to an agreement.
typedef struct {
    int64_t status, flag;
    Error error;
} Vote;

// The votes of all processes (processes).
static int processes_vote(Transport* t, Vote* votes, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    char** at = (char**)calloc((size_t)w->processes, sizeof *at);
    size_t* bytes = (size_t*)calloc((size_t)w->processes, sizeof *bytes);
    int status =
        at && bytes ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d processes", w->processes);
    for (int i = 0; status == 0 && i < w->processes; i++) at[i] = (char*)&votes[i], bytes[i] = sizeof *votes;
    if (status == 0) status = processes_swap(t, &votes[w->process], at, bytes, e);
    free(at);
    free(bytes);
    return status;
}

// Called by all processes together: all go on, or none. If one comes with a status that is not 0, all get
// such a status, with its error. flag, if not NULL, becomes the largest of all processes' flags.
static int processes_agree(Transport* t, int status, int* flag, Error* e) {
    ThreadWorld* w = (ThreadWorld*)t->state;
    if (w->processes < 2) return status;
    transport_begin(t, "an agreement");
    Vote* votes = (Vote*)calloc((size_t)w->processes, sizeof *votes);
    Error own = {0, {0}};
    if (status != 0) own = *e;
    if (votes) {
        Vote* mine = &votes[w->process];
        mine->status = status, mine->flag = flag ? *flag : 0;
        mine->error = own;
    }
    int met = votes ? processes_vote(t, votes, e)
                    : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d processes", w->processes);
    for (int i = 0; met == 0 && i < w->processes; i++) {
        Vote* v = &votes[i];
        v->error.text[sizeof v->error.text - 1] = 0;
        if (flag && v->flag > *flag) *flag = (int)v->flag;
        if (v->status != 0 && status == 0)
            status = fail_as(v->error.code, e, "process %d: %.980s", i, v->error.text);
    }
    free(votes);
    if (met != 0) {
        failed_as(GPT2_SP_LOST, e);
        t->abort(t, e);   // no agreement is possible any more
    }
    if (own.text[0]) *e = own;
    return met != 0 ? -1 : status;
}

// --- a world of ranks ---

// Makes the world of a process before its ranks are known; a second call does nothing.
static int world_open(ThreadWorld* w, double timeout_ms, Error* e) {
    pthread_condattr_t clock;
    if (w->open) return 0;
    memset(w, 0, sizeof *w);
    w->processes = w->local_processes = 1, w->timeout = timeout_ms;
    if (pthread_condattr_init(&clock) != 0) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);   // now_ms's
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, &clock);
    pthread_condattr_destroy(&clock);
    net_init(&w->net, &w->mutex, &w->changed, &w->aborted, w->reason.text);
    w->open = 1;
    return 0;
}
// Makes room for the ranks of this process, from world rank `first` on.
static int thread_world_init(ThreadWorld* w, int first, int local_ranks, Error* e) {
    if (world_open(w, 0, e) != 0) return -1;
    size_t here = (size_t)local_ranks, all = here * (size_t)w->processes;
    w->first = first, w->local_ranks = local_ranks;
    w->boxes = (Mailbox*)calloc(here * here, sizeof *w->boxes);
    w->shared = (void**)calloc(here, sizeof *w->shared);
    w->meetings = (Meeting*)calloc(OVERS * all, sizeof *w->meetings);
    w->arrivals = (uint64_t*)calloc(OVERS * here, sizeof *w->arrivals);
    int ready = w->boxes && w->shared && w->meetings && w->arrivals;
    return ready ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d ranks", local_ranks);
}
static void thread_world_free(ThreadWorld* w) {
    if (!w->open) return;
    net_close(&w->net);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->changed);
    free(w->boxes);
    free(w->shared);
    free(w->meetings);
    free(w->arrivals);
    free(w->devices);
    free(w->gpu_boxes);
    memset(w, 0, sizeof *w);
}
// The transport of a rank of this process, or of the process itself (HOST).
static Transport thread_transport(ThreadWorld* w, int rank) {
    Transport t;
    memset(&t, 0, sizeof t);
    t.rank = rank, t.world = w->local_ranks * w->processes;
    t.state = w, t.doing = "";
    t.post = world_post, t.wait = world_wait;
    t.all_reduce = world_all_reduce;
    t.reduce_scatter = world_reduce_scatter, t.all_gather = world_all_gather;
    t.share = world_share;
    t.barrier = world_barrier, t.abort = world_abort;
    return t;
}

// ===== 5. schedules =============================================================================
//
// Attention works on pairs: a chunk of a sequence's queries against a chunk of its keys, none of them in the
// future. Each rank holds one chunk (two with zigzag and allgather), so one side of most pairs has to travel.
// A schedule is the table of one direction (forward or backward) that says who computes which pair when:
//
//     step      of the table, not of the optimizer: its ops are computed while its messages travel
//     op        a rank computes a pair, for a range of heads, at a step
//     item      the rows of one rank `of`, for a range of heads, as an operand or a result of ops
//     message   an item goes from one rank to another during a step; ops may use it from the next step on
//     slot      memory of a rank in which one item of another rank lies at a time
//
//     step 0    rank 0: op q0k0       rank 1: op q1k1       message: KV of 0, from rank 0 to a slot of rank 1
//     step 1    rank 0: idle          rank 1: op q1k0, with its own queries and the keys in the slot
//
// The items, with their width in numbers per row (C channels). Ops read operands and write results; a result
// that reaches the rank `of` is merged into that rank's own sums.
//
//     operands                                         results
//     Q    queries                        C            OUT  partial O and LSE    C
//     KV   keys and values               2C            DQ   partial dQ           C
//     QDO  q and dO, with LSE and delta  2C            DKV  partial dK and dV   2C
//
// LSE is the log-sum-exp of a row's scores, delta the sum over a head's numbers of dO O, for each row.
//
// Heads are split into `head_parts` parts, equal but for a head; h0 and h1 of an op or item mean the parts
// h0 <= part < h1.
//
// What a table costs. Makespan: 1 is the pair of two ranks' whole chunks, a diagonal pair is 1/2. Volume: 1 C
// is all queries of a rank (Tl x C numbers), as received per rank on average, which equals what is sent. m =
// (P-1)/2 for odd P, P/2 - 1 for even P.
//
//     kind        makespan  forward   backward                       idea
//     ring        P - 1/2   2(P-1)    2(P-1)(2P-1)/P                 Liu et al. 2023, causal blocks skipped
//     dist        P/2       P-1       3m + m(m+1)/2P, even P + 7/4   Li et al. 2023 (DistFlashAttn), repaired
//     dist-paper  (P+1)/2   P-1       4m - m(m+1)/2P + 2             its published table, even P
//     zigzag      P/2       2(P-1)    4(P-1)                         ring over 2P chunks, rank r: r, 2P-1-r
//     allgather   P/2       2(P-1)    4(P-1)                         Llama 3's, with zigzag's placement
//     ulysses     P/2       4(P-1)/P  7(P-1)/P                       Jacobs et al. 2023

enum { ITEM_Q, ITEM_KV, ITEM_OUT, ITEM_QDO, ITEM_DQ, ITEM_DKV, ITEM_KINDS };
enum { ITEM_PARTS = 4 };
// The tensors of an item, in the order in which they lie in a slot: each has, for every row and head, HS
// numbers (wide 1) or one (0). Q: q. KV: k, v. OUT: o, m, l (the running softmax; sent as O
// and LSE in m's place, without l). QDO: q, dO, LSE, delta.
// DQ: dq. DKV: dk, dv.
static const struct {
    int count, wide[ITEM_PARTS];
} ITEM_TENSORS[ITEM_KINDS] = {
    {1, {1}}, {2, {1, 1}}, {3, {1, 0, 0}}, {4, {1, 1, 0, 0}}, {1, {1}}, {2, {1, 1}}};
// Wide tensors of an item: numbers of a row, in C.
static int item_width(int kind) {
    int width = 0;
    for (int i = 0; i < ITEM_TENSORS[kind].count; i++) width += ITEM_TENSORS[kind].wide[i];
    return width;
}
// Its other tensors: numbers of a row and head.
static int item_stats(int kind) { return ITEM_TENSORS[kind].count - item_width(kind); }
static inline int item_is_result(int kind) { return kind == ITEM_OUT || kind >= ITEM_DQ; }

// The rows of rank `of` that a message or a slot has, for the head parts h0 to h1 - 1.
typedef struct {
    int kind, of, h0, h1;
} Item;

// One row of the table of ops: a pair of chunks, k <= q. A diagonal pair (k == q) is half as much work.
typedef struct {
    int step, rank;          // when and by whom
    int q, k;                // chunks
    int h0, h1;              // head parts
    int q_slot, kv_slot;     // where the operands lie; -1: they are the rank's own
    int dq_slot, dkv_slot;   // where the results go (forward: OUT in dq_slot); -1: the rank's own sums
} ScheduleOp;

// One row of the table of messages.
typedef struct {
    int step, from, to;   // ranks of the sequence
    Item item;
    int src;     // sender's slot; -1: its own rows
    int dst;     // receiver's slot
    int merge;   // a result that is added on arrival, at the end of the step
    int into;    // where it is added: the receiver's slot that has a sum already; -1: the receiver's own sums
} ScheduleMessage;

typedef struct {
    int kind, P, backward;
    int chunks;   // P, or 2P where a rank holds two
    int head_parts;
    int steps;   // the last ones may only carry results home
    ScheduleOp* ops;
    int op_count, op_room;
    ScheduleMessage* messages;
    int message_count, message_room;
    int* slot_count;    // (P)
    Item* slot_items;   // (P, MAX_SLOTS) the largest item that each slot holds
    int failed;         // memory ran out while the table was made
} Schedule;
enum { MAX_SLOTS = 4 * 256 };

static void schedule_free(Schedule* s) {
    free(s->ops);
    free(s->messages);
    free(s->slot_count);
    free(s->slot_items);
    memset(s, 0, sizeof *s);
}

// The rank that holds a chunk. Of 2P chunks rank r holds r and 2P - 1 - r: an early one and a late one, so
// that every rank has as many earlier keys to work on as every other.
static int chunk_owner(const Schedule* s, int chunk) { return chunk < s->P ? chunk : 2 * s->P - 1 - chunk; }
// The chunk's first token in the sequence. Sizes differ by at most one token.
static int64_t chunk_begin(int64_t T, int chunks, int chunk) { return T * chunk / chunks; }

// Adds an op to the table. Where its operands and results lie is worked out later (schedule_assign_slots).
static void schedule_op(Schedule* s, int step, int rank, int q, int k, int h0, int h1) {
    s->ops = (ScheduleOp*)grow(s->ops, s->op_count, &s->op_room, sizeof *s->ops, &s->failed);
    if (s->failed) return;
    ScheduleOp* op = &s->ops[s->op_count++];
    op->step = step, op->rank = rank;
    op->q = q, op->k = k;
    op->h0 = h0, op->h1 = h1;
    op->q_slot = op->kv_slot = op->dq_slot = op->dkv_slot = -1;
}

// Adds a message to the table; its slots are worked out later too.
static void schedule_send(Schedule* s, int step, int from, int to, int kind, int of, int h0, int h1) {
    s->messages = (ScheduleMessage*)grow(
        s->messages, s->message_count, &s->message_room, sizeof *s->messages, &s->failed);
    if (s->failed) return;
    ScheduleMessage* m = &s->messages[s->message_count++];
    m->step = step, m->from = from;
    m->to = to;
    m->item.kind = kind, m->item.of = of;
    m->item.h0 = h0, m->item.h1 = h1;
    m->src = m->dst = m->into = -1, m->merge = 0;
}

// Rank `rank` computes the pair (q, k) of two ranks' chunks at `step` and owns one of them. The other comes
// to it during step - 1, and its result goes home during step + 1.
static void schedule_pair(Schedule* s, int step, int rank, int q, int k, int h0, int h1) {
    schedule_op(s, step, rank, q, k, h0, h1);
    if (rank == q) {
        schedule_send(s, step - 1, k, rank, ITEM_KV, k, h0, h1);
        if (s->backward) schedule_send(s, step + 1, rank, k, ITEM_DKV, k, h0, h1);
    } else {
        schedule_send(s, step - 1, q, rank, s->backward ? ITEM_QDO : ITEM_Q, q, h0, h1);
        schedule_send(s, step + 1, rank, q, s->backward ? ITEM_DQ : ITEM_OUT, q, h0, h1);
    }
}

enum { DIST_WHOLE, DIST_PAPER, DIST_LIGHTSEQ };   // what happens at the last step t = P/2

// At step t rank r works on its own queries against the keys of rank r - t. The ranks r < t have no such
// keys: they help with the queries of rank r - t + P against their own keys. DIST_WHOLE's backward table
// swaps the two roles, so that most pairs run at the keys' owner: q and dO in, dQ out is less than k and v
// in, dK and dV out. At even P the pair of step t = P/2 falls to two ranks, its queries' owner and its keys':
// each computes half of its heads (DIST_WHOLE), or the queries' owner computes all and the other idles
// (DIST_PAPER). DIST_LIGHTSEQ is the condition of the authors' released code, by which nobody helps at the
// last step, even at odd P: blocks are lost (a test shows it).
static void schedule_build_dist(Schedule* s, int variant) {
    int P = s->P, mirrored = s->backward && variant == DIST_WHOLE;
    // half of the diagonal is left to the end: it is computed while the last results go home
    int halves = variant == DIST_WHOLE && P > 1;
    for (int r = 0; r < P; r++) {
        // Ranks that work for their own queries at step P/2 take the second half of the heads there. They
        // leave the first half of the diagonal to the end, so that their two last ops write different sums.
        int late = halves && P % 2 == 0 && r >= P / 2;
        schedule_op(s, 0, r, r, r, late, halves ? late + 1 : s->head_parts);
        if (halves) schedule_op(s, P / 2 + 1, r, r, r, !late, !late + 1);
    }
    for (int t = 1; t <= P / 2; t++)
        for (int r = 0; r < P; r++) {
            int other = mirrored ? (r + t) % P : (r - t + P) % P;
            int q = r > other ? r : other, k = r > other ? other : r;
            int last = t == P / 2 && (P % 2 == 0 || variant == DIST_LIGHTSEQ);
            if (!last) schedule_pair(s, t, r, q, k, 0, s->head_parts);
            else if (variant == DIST_WHOLE) schedule_pair(s, t, r, q, k, r == q ? 1 : 0, r == q ? 2 : 1);
            else if (r == q) schedule_pair(s, t, r, q, k, 0, s->head_parts);
        }
}

static void schedule_build_dist_whole(Schedule* s) { schedule_build_dist(s, DIST_WHOLE); }
static void schedule_build_dist_paper(Schedule* s) { schedule_build_dist(s, DIST_PAPER); }

// Ops of `worker`: all query chunks of `rank` against those key chunks of `other` that are not in the future.
static void schedule_rank_pairs(Schedule* s, int step, int rank, int other, int h0, int h1, int worker) {
    int per = s->chunks / s->P;
    for (int i = 0; i < per; i++)
        for (int j = 0; j < per; j++) {
            int q = i == 0 ? rank : 2 * s->P - 1 - rank, k = j == 0 ? other : 2 * s->P - 1 - other;
            if (k <= q) schedule_op(s, step, worker, q, k, h0, h1);
        }
}

// ring and zigzag: keys and values go round, each rank works on those that have come to it. In the backward
// table their gradients follow one step behind, every rank adds its part, and they end at home.
static void schedule_build_ring(Schedule* s) {
    int P = s->P;
    for (int t = 0; t < P; t++)
        for (int r = 0; r < P; r++) {
            int next = (r + 1) % P, held = (r - t + P) % P;
            schedule_rank_pairs(s, t, r, held, 0, 1, r);
            if (t < P - 1) schedule_send(s, t, r, next, ITEM_KV, held, 0, 1);
            int used = s->chunks > P || held < P - 1;   // the last chunk's keys serve no other rank
            if (s->backward && t > 0 && used) schedule_send(s, t + 1, r, next, ITEM_DKV, held, 0, 1);
        }
}

// allgather: all keys and values travel during step 0, all work is at step 1 (but the own at step 0), the
// gradients go home during step 2.
static void schedule_build_allgather(Schedule* s) {
    for (int r = 0; r < s->P; r++)
        for (int o = 0; o < s->P; o++) {
            schedule_rank_pairs(s, r == o ? 0 : 1, r, o, 0, 1, r);
            if (r == o) continue;
            schedule_send(s, 0, o, r, ITEM_KV, o, 0, 1);
            if (s->backward) schedule_send(s, 2, r, o, ITEM_DKV, o, 0, 1);
        }
}

// ulysses: every rank gets all rows of its share of the heads, does all pairs of them, and sends the results
// home.
static void schedule_build_ulysses(Schedule* s) {
    for (int r = 0; r < s->P; r++)
        for (int o = 0; o < s->P; o++) {
            for (int k = 0; k <= o; k++) schedule_op(s, s->P > 1, r, o, k, r, r + 1);
            if (r == o) continue;
            schedule_send(s, 0, o, r, s->backward ? ITEM_QDO : ITEM_Q, o, r, r + 1);
            schedule_send(s, 0, o, r, ITEM_KV, o, r, r + 1);
            schedule_send(s, 2, r, o, s->backward ? ITEM_DQ : ITEM_OUT, o, r, r + 1);
            if (s->backward) schedule_send(s, 2, r, o, ITEM_DKV, o, r, r + 1);
        }
}

// The closed forms of the table at the head of this section, for P = p ranks: C received per rank.
static double dist_elements(double p, int backward) {
    int odd = (int)p % 2 == 1;
    double m = odd ? (p - 1) / 2 : p / 2 - 1, both = 3 * m + m * (m + 1) / (2 * p);
    return !backward ? p - 1 : odd ? both : both + 1.75;
}
static double dist_paper_elements(double p, int backward) {
    double m = p / 2 - 1;
    return !backward ? p - 1 : p == 1 ? 0 : 4 * m - m * (m + 1) / (2 * p) + 2;
}
static double ring_elements(double p, int backward) {
    return !backward ? 2 * (p - 1) : 2 * (p - 1) * (2 * p - 1) / p;
}
static double two_chunks_elements(double p, int backward) { return (backward ? 4 : 2) * (p - 1); }
static double ulysses_elements(double p, int backward) { return (backward ? 7 : 4) * (p - 1) / p; }
static double even_makespan(double p) { return p / 2; }   // every rank has the same work
static double ring_makespan(double p) { return p - 0.5; }
static double dist_paper_makespan(double p) { return p > 1 ? (p + 1) / 2 : p / 2; }

// What the kinds are, in the order of GPT2_SP_SCHEDULE_KINDS: a new one is a row here and a builder.
static const struct {
    int two_chunks;   // of each rank: an early one and a late one
    int head_parts;   // parts into which the heads are split; 0: as many as ranks
    int even_ranks;   // it exists for even numbers of ranks (and one) only
    void (*build)(Schedule* s);
    double (*makespan)(double p);   // in units: a full pair of two ranks' chunks
    double (*elements)(double p, int backward);
} SCHEDULES[GPT2_SP_SCHEDULES] = {{0, 1, 0, schedule_build_ring, ring_makespan, ring_elements},
    {0, 2, 0, schedule_build_dist_whole, even_makespan, dist_elements},
    {0, 1, 1, schedule_build_dist_paper, dist_paper_makespan, dist_paper_elements},
    {1, 1, 0, schedule_build_ring, even_makespan, two_chunks_elements},
    {1, 1, 0, schedule_build_allgather, even_makespan, two_chunks_elements},
    {0, 0, 0, schedule_build_ulysses, even_makespan, ulysses_elements}};
static int schedule_two_chunks(int kind) { return SCHEDULES[kind].two_chunks; }

// The rows of a sequence of T tokens that a rank holds under a kind of schedule.
static Segments rank_segments(int kind, int P, int64_t T, int rank) {
    Segments seg;
    int two = schedule_two_chunks(kind), chunks = two ? 2 * P : P;
    memset(&seg, 0, sizeof seg);
    seg.count = two ? 2 : 1;
    for (int i = 0; i < seg.count; i++) {
        int chunk = i == 0 ? rank : 2 * P - 1 - rank;
        seg.begin[i] = chunk_begin(T, chunks, chunk);
        seg.rows[i] = chunk_begin(T, chunks, chunk + 1) - seg.begin[i];
        seg.total += seg.rows[i];
    }
    return seg;
}

// The orders of a finished table. A step's ops and messages lie together, and two ranks see the messages
// between them in the same order: their pieces pair up by it.
static int op_order(const void* a, const void* b) {
    const ScheduleOp *x = (const ScheduleOp*)a, *y = (const ScheduleOp*)b;
    return x->step != y->step ? x->step - y->step
        : x->rank != y->rank  ? x->rank - y->rank
        : x->q != y->q        ? x->q - y->q
                              : x->k - y->k;
}
static int message_order(const void* a, const void* b) {
    const ScheduleMessage *x = (const ScheduleMessage*)a, *y = (const ScheduleMessage*)b;
    if (x->step != y->step) return x->step - y->step;
    if (x->from != y->from) return x->from - y->from;
    if (x->to != y->to) return x->to - y->to;
    return x->item.kind != y->item.kind ? x->item.kind - y->item.kind : x->item.of - y->item.of;
}

// The time that an item of another rank lies in a rank's memory: from the step during which it arrives or
// is first written, to the last during which it is read or sent. first -1: it never does.
typedef struct {
    int first, last, slot, h0, h1;
} Life;
// Kinds of lives: those of the items, and STAGING + kind for a result that has arrived and is to be added. It
// has a life of its own, for its step only.
enum { STAGING = ITEM_KINDS, LIFE_KINDS = 2 * ITEM_KINDS };

// A life among those of one rank (LIFE_KINDS, P): by the item's `of`, of a staging life by the sender.
static Life* life_at(Life* lives, int P, int kind, int of) { return &lives[kind * P + of]; }
static void life_extend(Life* life, int step, int h0, int h1) {
    if (life->first < 0 || step < life->first) life->first = step;
    if (step > life->last) life->last = step;
    life->h0 = h0, life->h1 = h1;
}

// Whether an item fits in a slot that was made for another, whatever the number of heads. Widths and parts
// are compared one by one, not as products: parts differ by a head, so half of the parts for two tensors may
// be more than all parts for one.
static int slot_fits(Item slot, Item item) {
    return item_width(slot.kind) >= item_width(item.kind) && item_stats(slot.kind) >= item_stats(item.kind) &&
        slot.h1 - slot.h0 >= item.h1 - item.h0;
}

// Gives each of a rank's lives a slot that is free for all of it: the smallest that is large enough, else a
// new one. Lives are taken in the order of their first steps, by a counting sort.
static void rank_slots(Schedule* s, int rank, Life* lives) {
    // until: the last step that each slot is taken. order: the lives, those that begin at a step together;
    // first: where in it.
    int P = s->P, count = LIFE_KINDS * P, *until = (int*)malloc(MAX_SLOTS * sizeof *until);
    int* first = (int*)calloc((size_t)(s->steps + 2 + count), sizeof *first);
    int* order = first ? first + s->steps + 2 : NULL;
    Item* slots = &s->slot_items[(size_t)rank * MAX_SLOTS];
    if (!until || !first) s->failed = 1;
    for (int i = 0; !s->failed && i < count; i++)
        if (lives[i].first >= 0) first[lives[i].first + 2]++;
    for (int step = 0; !s->failed && step < s->steps; step++) first[step + 2] += first[step + 1];
    for (int i = 0; !s->failed && i < count; i++)
        if (lives[i].first >= 0) order[first[lives[i].first + 1]++] = i;
    for (int n = 0; until && first && n < first[s->steps]; n++) {
        int i = order[n], best = -1;
        Life* life = &lives[i];
        Item item = {i / P % STAGING, i % P, life->h0, life->h1};
        for (int j = 0; j < s->slot_count[rank]; j++) {
            int room = item_width(slots[j].kind) * (slots[j].h1 - slots[j].h0);
            int best_room = best < 0 ? 0 : item_width(slots[best].kind) * (slots[best].h1 - slots[best].h0);
            if (until[j] < life->first && slot_fits(slots[j], item) && (best < 0 || room < best_room))
                best = j;
        }
        if (best < 0 && s->slot_count[rank] == MAX_SLOTS) s->failed = 1;
        else if (best < 0) best = s->slot_count[rank]++, slots[best] = item;
        if (best < 0) continue;
        until[best] = life->last, life->slot = best;
    }
    free(first);
    free(until);
}

// Works out where every item lies, rank by rank: collects the lives of what the rank has of others, gives
// each a slot, and writes the slots into the rank's ops and messages. What lives at the same time lies in
// different slots; schedule_prove checks that again, by other means.
static void schedule_assign_slots(Schedule* s) {
    int P = s->P, kinds = LIFE_KINDS;
    int q_kind = s->backward ? ITEM_QDO : ITEM_Q, result = s->backward ? ITEM_DQ : ITEM_OUT;
    Life* lives = (Life*)malloc((size_t)kinds * (size_t)P * sizeof *lives);
    s->slot_count = (int*)calloc((size_t)P, sizeof *s->slot_count);
    s->slot_items = (Item*)calloc((size_t)P * MAX_SLOTS, sizeof *s->slot_items);
    if (!lives || !s->slot_count || !s->slot_items) s->failed = 1;
    for (int r = 0; !s->failed && r < P; r++) {
        for (int i = 0; i < kinds * P; i++) lives[i].first = lives[i].last = lives[i].slot = -1;
        for (int i = 0; i < s->op_count; i++) {
            const ScheduleOp* op = &s->ops[i];
            int q = chunk_owner(s, op->q), k = chunk_owner(s, op->k);
            if (op->rank != r) continue;
            if (q != r)
                life_extend(life_at(lives, P, q_kind, q), op->step, op->h0, op->h1),
                    life_extend(life_at(lives, P, result, q), op->step, op->h0, op->h1);
            if (k != r) life_extend(life_at(lives, P, ITEM_KV, k), op->step, op->h0, op->h1);
            if (k != r && s->backward) life_extend(life_at(lives, P, ITEM_DKV, k), op->step, op->h0, op->h1);
        }
        for (int i = 0; i < s->message_count; i++) {
            ScheduleMessage* m = &s->messages[i];
            Life* life = life_at(lives, P, m->item.kind, m->item.of);
            if (m->from == r && m->item.of != r) life_extend(life, m->step, m->item.h0, m->item.h1);
            if (m->to != r) continue;
            // a result that is computed here too, or is at home, is added; another just lands
            m->merge = item_is_result(m->item.kind) &&
                (m->item.of == r || (life->first >= 0 && life->first <= m->step));
            if (m->merge)
                life_extend(
                    life_at(lives, P, STAGING + m->item.kind, m->from), m->step, m->item.h0, m->item.h1);
            else life_extend(life, m->step, m->item.h0, m->item.h1);
        }
        rank_slots(s, r, lives);
        for (int i = 0; i < s->op_count; i++) {
            ScheduleOp* op = &s->ops[i];
            int q = chunk_owner(s, op->q), k = chunk_owner(s, op->k);
            if (op->rank != r) continue;
            if (q != r)
                op->q_slot = life_at(lives, P, q_kind, q)->slot,
                op->dq_slot = life_at(lives, P, result, q)->slot;
            if (k != r) op->kv_slot = life_at(lives, P, ITEM_KV, k)->slot;
            if (k != r && s->backward) op->dkv_slot = life_at(lives, P, ITEM_DKV, k)->slot;
        }
        for (int i = 0; i < s->message_count; i++) {
            ScheduleMessage* m = &s->messages[i];
            int slot = life_at(lives, P, m->item.kind, m->item.of)->slot;
            if (m->from == r && m->item.of != r) m->src = slot;
            if (m->to == r)
                m->dst = m->merge ? life_at(lives, P, STAGING + m->item.kind, m->from)->slot : slot;
            if (m->to == r && m->merge && m->item.of != r) m->into = slot;
        }
    }
    free(lives);
}

// Counts the steps of the ops and messages so far.
static void schedule_steps(Schedule* s) {
    for (int i = 0; i < s->op_count; i++)
        if (s->ops[i].step >= s->steps) s->steps = s->ops[i].step + 1;
    for (int i = 0; i < s->message_count; i++)
        if (s->messages[i].step >= s->steps) s->steps = s->messages[i].step + 1;
}

// Puts the table in order and works out the slots, after its ops and messages are in.
static int schedule_finish(Schedule* s, Error* e) {
    if (!s->failed) {
        schedule_steps(s);
        qsort(s->ops, (size_t)s->op_count, sizeof *s->ops, op_order);
        if (s->message_count > 0)
            qsort(s->messages, (size_t)s->message_count, sizeof *s->messages, message_order);
        schedule_assign_slots(s);
    }
    if (s->failed) {
        int P = s->P;
        schedule_free(s);
        return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a schedule of %d ranks", P);
    }
    return 0;
}

// An empty table of a kind.
static void schedule_begin(Schedule* s, int kind, int P, int backward) {
    memset(s, 0, sizeof *s);
    s->kind = kind, s->P = P;
    s->backward = backward;
    s->chunks = schedule_two_chunks(kind) ? 2 * P : P;
    int parts = SCHEDULES[kind].head_parts;
    s->head_parts = P == 1 ? 1 : parts ? parts : P;
}

// The ops and messages of one kind for P ranks, in no order and without slots. They are enough to count and
// to time, also for numbers of ranks whose slots would be too many. After an error there is nothing to free.
static int schedule_outline(Schedule* s, int kind, int P, int backward, int64_t heads, Error* e) {
    schedule_begin(s, kind, P, backward);
    if (SCHEDULES[kind].even_ranks && P % 2 == 1 && P > 1)
        return fail(e, "--schedule %s leaves out pairs at odd --sp (found %d): --schedule dist takes any",
            schedule_name(kind), P);
    if (SCHEDULES[kind].head_parts == 0 && heads % P != 0)
        return fail(e,
            "--schedule %s needs --heads divisible by --sp (found %lld and %d): --schedule dist takes any",
            schedule_name(kind), (long long)heads, P);
    SCHEDULES[kind].build(s);
    schedule_steps(s);
    if (!s->failed) return 0;
    schedule_free(s);
    return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a schedule of %d ranks", P);
}

// Makes the table of one kind for P ranks. heads: the model's NH, or 0 where there is no model.
static int schedule_build(Schedule* s, int kind, int P, int backward, int64_t heads, Error* e) {
    if (schedule_outline(s, kind, P, backward, heads, e) != 0) return -1;
    return schedule_finish(s, e);
}

// Work of an op: a full off-diagonal pair of two ranks' chunks is 1, a diagonal one 0.5.
static double op_units(const Schedule* s, const ScheduleOp* op) {
    double side = (double)s->P / s->chunks;
    return side * side * (op->q == op->k ? 0.5 : 1.0) * (op->h1 - op->h0) / s->head_parts;
}
// Volume of an item, in C of the table above.
static double item_units(const Schedule* s, Item item) {
    return (double)item_width(item.kind) * (item.h1 - item.h0) / s->head_parts;
}

typedef struct {
    int steps;                         // that compute anything
    double makespan, ideal;            // units; ideal: all work shared evenly
    double elements;                   // received per rank on average, in C
    double most_sent, most_received;   // by a rank, in C
} ScheduleCost;

// When each step begins, in units, if all ranks wait for the busiest one at every step: (steps + 1), the last
// of them the makespan. The caller frees it. NULL: out of memory.
static double* step_begins(const Schedule* s) {
    size_t steps = (size_t)s->steps, P = (size_t)s->P;
    double* begin = (double*)malloc((steps + 1) * sizeof *begin);
    double* work = (double*)calloc(steps * P + 1, sizeof *work);   // (steps, P)
    for (int i = 0; work && i < s->op_count; i++)
        work[s->ops[i].step * s->P + s->ops[i].rank] += op_units(s, &s->ops[i]);
    if (begin && work) begin[0] = 0;
    for (size_t step = 0; begin && work && step < steps; step++) {
        double longest = 0;
        for (size_t r = 0; r < P; r++) longest = fmax(longest, work[step * P + r]);
        begin[step + 1] = begin[step] + longest;
    }
    if (!work) free(begin), begin = NULL;
    free(work);
    return begin;
}

// Counts what a table costs. Its makespan is that of ranks which all wait for the busiest one at every step.
static int schedule_cost(const Schedule* s, ScheduleCost* cost, Error* e) {
    int P = s->P;
    memset(cost, 0, sizeof *cost);
    double* begin = step_begins(s);
    double* sent = (double*)calloc(2 * (size_t)P, sizeof *sent);   // by each rank; then received
    int status = begin && sent ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int i = 0; status == 0 && i < s->message_count; i++) {
        double units = item_units(s, s->messages[i].item);
        sent[s->messages[i].from] += units, sent[P + s->messages[i].to] += units;
        cost->elements += units / P;
    }
    for (int step = 0; status == 0 && step < s->steps; step++) cost->steps += begin[step + 1] > begin[step];
    for (int r = 0; status == 0 && r < P; r++)
        cost->most_sent = fmax(cost->most_sent, sent[r]),
        cost->most_received = fmax(cost->most_received, sent[P + r]);
    if (status == 0) cost->makespan = begin[s->steps];
    cost->ideal = P / 2.0;
    free(begin);
    free(sent);
    return status;
}

// Plays a table by the clock, as the executors run it. At each step a rank computes while its messages
// travel, waits until those to it have arrived and those from it are taken, then adds the results that came.
// A message travels once both its ranks have come to the step; a rank sends and receives at the same time,
// one message after the other each way. The arguments are the seconds of every op, of every message on the
// way, and of adding it (merge_seconds; 0 for operands). Returns the seconds until the last rank is done; -1:
// no memory.
static double schedule_play(
    const Schedule* s, const double* op_seconds, const double* message_seconds, const double* merge_seconds) {
    int P = s->P, *first = (int*)calloc((size_t)(s->steps + 2 + s->message_count), sizeof *first);
    size_t cells = (size_t)s->steps * (size_t)P;
    double *work = (double*)calloc(2 * cells + 5 * (size_t)P, sizeof *work), last = first && work ? 0 : -1;
    if (last == 0) {
        // work, adds (steps, P). The others of each rank: when it comes to the step; when its messages begin
        // to travel; how long they take out and in; when the last has arrived.
        double *adds = work + cells, *ready = adds + cells, *begin = ready + P;
        double *out = begin + P, *in = out + P, *link = in + P;
        int* order = first + s->steps + 2;   // messages by step: those of a step from first[step] on
        for (int i = 0; i < s->op_count; i++) work[s->ops[i].step * P + s->ops[i].rank] += op_seconds[i];
        for (int i = 0; i < s->message_count; i++) {
            adds[s->messages[i].step * P + s->messages[i].to] += merge_seconds[i];
            first[s->messages[i].step + 2]++;
        }
        for (int step = 0; step < s->steps; step++) first[step + 2] += first[step + 1];
        for (int i = 0; i < s->message_count; i++) order[first[s->messages[i].step + 1]++] = i;
        for (int step = 0; step < s->steps; step++) {
            for (int r = 0; r < P; r++) begin[r] = ready[r], out[r] = in[r] = 0;
            for (int i = first[step]; i < first[step + 1]; i++) {
                const ScheduleMessage* m = &s->messages[order[i]];
                begin[m->from] = fmax(begin[m->from], ready[m->to]),
                begin[m->to] = fmax(begin[m->to], ready[m->from]);
                out[m->from] += message_seconds[order[i]], in[m->to] += message_seconds[order[i]];
            }
            for (int r = 0; r < P; r++) {
                link[r] = out[r] + in[r] > 0 ? begin[r] + fmax(out[r], in[r]) : 0;
                ready[r] = fmax(ready[r] + work[step * P + r], link[r]);
            }
            for (int i = first[step]; i < first[step + 1]; i++) {
                const ScheduleMessage* m = &s->messages[order[i]];
                if (message_seconds[order[i]] > 0) ready[m->from] = fmax(ready[m->from], link[m->to]);
            }
            for (int r = 0; r < P; r++) ready[r] += adds[step * P + r], last = fmax(last, ready[r]);
        }
    }
    free(work);
    free(first);
    return last;
}

// --- the proof of a table ---
//
// The proof replays a table on pretend memory (P, MAX_SLOTS). Every slot knows which item lies in it and, for
// a result, which ops have added to it: a list of ops. An op has two results, on side 0 for its queries and
// on side 1 for its keys; next[2 op + side] is the op after it in a list, home[2 op + side] counts how often
// that result has reached its owner. It must be once in the end.
typedef struct {
    Item item;
    int full;      // holds that item
    int busy;      // last step that touched it
    int how;       // 1 read, 2 written
    int work[2];   // first op of the list of each side; -1: none
} ProofSlot;

static int same_item(Item a, Item b) {
    return a.kind == b.kind && a.of == b.of && a.h0 == b.h0 && a.h1 == b.h1;
}

// Marks a slot as read or written in a step. -1 if that clashes: reads may share a step, a write with
// nothing.
static int proof_touch(ProofSlot* slot, int step, int write) {
    if (slot->busy == step && (write || slot->how == 2)) return -1;
    slot->busy = step, slot->how = write ? 2 : 1;
    return 0;
}

// Whether a rank has such a slot and the item fits in it.
static int proof_fits(const Schedule* s, int rank, int slot, Item item) {
    return slot < s->slot_count[rank] &&
        slot_fits(s->slot_items[(size_t)rank * MAX_SLOTS + (size_t)slot], item);
}

// Replays one op. Its operands must lie where it looks for them, its results must fit where they go and
// overwrite nothing that is still needed.
static int proof_op(const Schedule* s, ProofSlot* slots, int index, int* next, int* home, Error* e) {
    const ScheduleOp* op = &s->ops[index];
    int q = chunk_owner(s, op->q), k = chunk_owner(s, op->k);
    Item operands[2] = {{s->backward ? ITEM_QDO : ITEM_Q, q, op->h0, op->h1}, {ITEM_KV, k, op->h0, op->h1}};
    Item results[2] = {{s->backward ? ITEM_DQ : ITEM_OUT, q, op->h0, op->h1}, {ITEM_DKV, k, op->h0, op->h1}};
    int operand_slots[2] = {op->q_slot, op->kv_slot}, result_slots[2] = {op->dq_slot, op->dkv_slot};
    for (int side = 0; side < 2; side++) {
        int own = operands[side].of == op->rank, results_here = side == 0 || s->backward;
        if (own != (operand_slots[side] < 0) || (results_here && own != (result_slots[side] < 0)))
            return fail(e, "step %d rank %d: q%dk%d has an operand or result in the wrong place", op->step,
                op->rank, op->q, op->k);
        if (!own) {
            ProofSlot* slot = &slots[op->rank * MAX_SLOTS + operand_slots[side]];
            if (!slot->full || !same_item(slot->item, operands[side]))
                return fail(e, "step %d rank %d: q%dk%d has no operand of rank %d", op->step, op->rank, op->q,
                    op->k, operands[side].of);
            if (proof_touch(slot, op->step, 0) != 0)
                return fail(e, "step %d rank %d: an operand of q%dk%d is overwritten while in use", op->step,
                    op->rank, op->q, op->k);
        }
        if (!results_here) continue;
        if (own) {
            home[2 * index + side] = 1;
            continue;
        }
        ProofSlot* slot = &slots[op->rank * MAX_SLOTS + result_slots[side]];
        if (!proof_fits(s, op->rank, result_slots[side], results[side]))
            return fail(e, "step %d rank %d: the result of q%dk%d is larger than its slot", op->step,
                op->rank, op->q, op->k);
        // An operand that lay here is overwritten, so it must have been used for the last time; a result that
        // lies here must have been sent.
        if (slot->full && !same_item(slot->item, results[side])) {
            if (item_is_result(slot->item.kind))
                return fail(e, "step %d rank %d: the result of q%dk%d overwrites one not yet sent", op->step,
                    op->rank, op->q, op->k);
            slot->full = 0;
        }
        if (slot->busy == op->step && slot->how == 1)
            return fail(e, "step %d rank %d: the result of q%dk%d overwrites what is in use", op->step,
                op->rank, op->q, op->k);
        if (!slot->full) slot->work[0] = slot->work[1] = -1;
        slot->full = 1, slot->item = results[side];
        slot->busy = op->step, slot->how = 2;
        next[2 * index + side] = slot->work[side], slot->work[side] = index;
    }
    return 0;
}

// Adds from's lists to to's.
static void proof_join(ProofSlot* to, const ProofSlot* from, int* next) {
    for (int side = 0; side < 2; side++) {
        if (from->work[side] < 0) continue;
        int last = from->work[side];
        while (next[2 * last + side] >= 0) last = next[2 * last + side];
        next[2 * last + side] = to->work[side], to->work[side] = from->work[side];
    }
}

// Replays the beginning of a message's step: *cargo is what it takes along. A result leaves its slot by that.
static int proof_send(const ScheduleMessage* m, ProofSlot* slots, ProofSlot* cargo, Error* e) {
    if (m->from == m->to) return fail(e, "step %d: rank %d sends to itself", m->step, m->from);
    cargo->work[0] = cargo->work[1] = -1;
    if ((m->item.of == m->from) != (m->src < 0))
        return fail(e, "step %d: rank %d sends from the wrong place", m->step, m->from);
    if (m->src < 0)
        return item_is_result(m->item.kind)
            ? fail(e, "step %d: rank %d sends its own sums away", m->step, m->from)
            : 0;
    ProofSlot* slot = &slots[m->from * MAX_SLOTS + m->src];
    if (!slot->full || !same_item(slot->item, m->item))
        return fail(e, "step %d: rank %d does not have what it sends to rank %d", m->step, m->from, m->to);
    if (proof_touch(slot, m->step, 0) != 0)
        return fail(e, "step %d: rank %d sends what is being written", m->step, m->from);
    *cargo = *slot;
    if (item_is_result(m->item.kind)) slot->full = 0;
    return 0;
}

// Replays the end of a message's step: the cargo lies in the receiver's slot, or is added to a sum.
static int proof_receive(const Schedule* s, const ScheduleMessage* m, ProofSlot* slots,
    const ProofSlot* cargo, int* next, int* home, Error* e) {
    ProofSlot* slot = &slots[m->to * MAX_SLOTS + m->dst];
    if (m->dst < 0 || proof_touch(slot, m->step, 1) != 0)
        return fail(e, "step %d: rank %d receives into memory in use", m->step, m->to);
    if (!proof_fits(s, m->to, m->dst, m->item))
        return fail(e, "step %d: rank %d receives what is larger than its slot", m->step, m->to);
    if (slot->full && item_is_result(slot->item.kind))
        return fail(e, "step %d: rank %d receives over a result not yet sent", m->step, m->to);
    slot->full = !m->merge, slot->item = m->item;
    slot->work[0] = cargo->work[0], slot->work[1] = cargo->work[1];
    if (!m->merge)
        return item_is_result(m->item.kind) && m->item.of == m->to
            ? fail(e, "step %d: rank %d does not add a result that came home", m->step, m->to)
            : 0;
    if (m->into >= 0) {
        ProofSlot* sum = &slots[m->to * MAX_SLOTS + m->into];
        if (!sum->full || !same_item(sum->item, m->item))
            return fail(e, "step %d: rank %d adds to what is not there", m->step, m->to);
        if (sum->busy == m->step && sum->how == 1)
            return fail(e, "step %d: rank %d adds to what it is sending", m->step, m->to);
        proof_join(sum, slot, next);
        return 0;
    }
    if (m->item.of != m->to)
        return fail(e, "step %d: rank %d adds rank %d's result to its own", m->step, m->to, m->item.of);
    for (int side = 0; side < 2; side++)
        for (int op = slot->work[side]; op >= 0; op = next[2 * op + side]) home[2 * op + side] += 1;
    return 0;
}

// Every causal pair is computed once, for all heads, and every result has come home once.
static int prove_coverage(const Schedule* s, const int* home, Error* e) {
    int n = s->chunks, parts = s->head_parts, status = 0;
    unsigned char* covered = (unsigned char*)calloc((size_t)n * (size_t)n * (size_t)parts, 1);
    if (!covered) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int i = 0; status == 0 && i < s->op_count; i++) {
        const ScheduleOp* op = &s->ops[i];
        if (op->k > op->q || op->h0 < 0 || op->h1 > parts)
            status = fail(e, "step %d rank %d: q%dk%d is no causal pair", op->step, op->rank, op->q, op->k);
        for (int h = op->h0; status == 0 && h < op->h1; h++)
            if (covered[(op->q * n + op->k) * parts + h]++)
                status = fail(e, "q%dk%d is computed twice", op->q, op->k);
        for (int side = 0; status == 0 && side <= s->backward; side++)
            if (home[2 * i + side] != 1)
                status = fail(
                    e, "the result of q%dk%d reaches its owner %d times", op->q, op->k, home[2 * i + side]);
    }
    for (int q = 0; status == 0 && q < n; q++)
        for (int k = 0; status == 0 && k <= q; k++)
            for (int h = 0; status == 0 && h < parts; h++)
                if (!covered[(q * n + k) * parts + h]) status = fail(e, "q%dk%d is never computed", q, k);
    free(covered);
    return status;
}

// Proves a table: every causal pair is computed once, every operand is there in time, nothing is overwritten
// while it is needed, every result comes home once, makespan and volume are those of the closed forms. 0, or
// -1 with the first violation.
static int schedule_prove(const Schedule* s, Error* e) {
    ProofSlot* slots = (ProofSlot*)calloc((size_t)s->P * MAX_SLOTS, sizeof *slots);
    ProofSlot* cargo = (ProofSlot*)calloc((size_t)s->message_count + 1, sizeof *cargo);
    int* next = (int*)calloc((size_t)s->op_count * 4 + 1, sizeof *next);
    int status = slots && cargo && next ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory"),
        *home = next ? next + 2 * s->op_count : NULL;
    for (int i = 0; slots && i < s->P * MAX_SLOTS; i++) slots[i].busy = -1;
    int op = 0, message = 0;
    for (int step = 0; status == 0 && step < s->steps; step++) {
        int first = message;
        for (; status == 0 && message < s->message_count && s->messages[message].step == step; message++)
            status = proof_send(&s->messages[message], slots, &cargo[message], e);
        for (; status == 0 && op < s->op_count && s->ops[op].step == step; op++)
            status = proof_op(s, slots, op, next, home, e);
        for (int i = first; status == 0 && i < message; i++)
            status = proof_receive(s, &s->messages[i], slots, &cargo[i], next, home, e);
    }
    if (status == 0 && (op < s->op_count || message < s->message_count))
        status = fail(e, "the table is not in the order of its steps");
    if (status == 0) status = prove_coverage(s, home, e);
    ScheduleCost cost;
    double makespan = SCHEDULES[s->kind].makespan(s->P);
    double elements = SCHEDULES[s->kind].elements(s->P, s->backward);
    if (status == 0) status = schedule_cost(s, &cost, e);
    if (status == 0 && fabs(cost.makespan - makespan) > 1e-9)
        status = fail(e, "makespan %g, closed form %g", cost.makespan, makespan);
    if (status == 0 && fabs(cost.elements - elements) > 1e-9)
        status = fail(e, "%g C per rank, closed form %g", cost.elements, elements);
    free(slots);
    free(cargo);
    free(next);
    return status;
}

// With document masks: op_active (ops) marks the pairs that some document spans, message_active (messages)
// what those still need. first_key[q] is the earliest position that the first row of chunk q may see. mark
// (P, ITEM_KINDS, P) is scratch, by rank, kind and `of`: that the rank has a use for an operand, or work in a
// result. Every rank works this out for all ranks, and all get the same.
static void schedule_prune(const Schedule* s, int64_t T, const int64_t* first_key, unsigned char* op_active,
    unsigned char* message_active, unsigned char* mark) {
    int P = s->P;
    memset(mark, 0, (size_t)P * ITEM_KINDS * (size_t)P);
    for (int i = 0; i < s->op_count; i++) {
        const ScheduleOp* op = &s->ops[i];
        op_active[i] = first_key[op->q] < chunk_begin(T, s->chunks, op->k + 1);
        if (!op_active[i]) continue;
        mark[(op->rank * ITEM_KINDS + (s->backward ? ITEM_QDO : ITEM_Q)) * P + chunk_owner(s, op->q)] = 1;
        mark[(op->rank * ITEM_KINDS + ITEM_KV) * P + chunk_owner(s, op->k)] = 1;
        mark[(op->rank * ITEM_KINDS + (s->backward ? ITEM_DQ : ITEM_OUT)) * P + chunk_owner(s, op->q)] = 1;
        if (s->backward) mark[(op->rank * ITEM_KINDS + ITEM_DKV) * P + chunk_owner(s, op->k)] = 1;
    }
    for (int i = s->message_count - 1; i >= 0; i--) {   // operands: from their last use back to their source
        const ScheduleMessage* m = &s->messages[i];
        if (item_is_result(m->item.kind)) continue;
        message_active[i] = mark[(m->to * ITEM_KINDS + m->item.kind) * P + m->item.of];
        if (message_active[i]) mark[(m->from * ITEM_KINDS + m->item.kind) * P + m->item.of] = 1;
    }
    for (int i = 0; i < s->message_count; i++) {   // results: from the first op on, home
        const ScheduleMessage* m = &s->messages[i];
        if (!item_is_result(m->item.kind)) continue;
        message_active[i] = mark[(m->from * ITEM_KINDS + m->item.kind) * P + m->item.of];
        if (message_active[i]) mark[(m->to * ITEM_KINDS + m->item.kind) * P + m->item.of] = 1;
    }
}

// Goes on with a hash over `count` ints, the rows of a table.
static uint64_t rows_hash(uint64_t hash, int table, const int* numbers, size_t count) {
    for (size_t i = 0; i < count; i++)
        hash = random_bits(hash, (uint64_t)table, (uint64_t)(int64_t)numbers[i]);
    return hash;
}
// One number for a table, by which processes see that they run the same.
static uint64_t schedule_hash(const Schedule* s) {
    uint64_t hash = random_bits((uint64_t)s->kind, (uint64_t)s->P, (uint64_t)s->backward);
    // both tables are rows of ints
    const int* numbers[2] = {(const int*)(const void*)s->ops, (const int*)(const void*)s->messages};
    size_t counts[2] = {(size_t)s->op_count * (sizeof *s->ops / sizeof(int)),
        (size_t)s->message_count * (sizeof *s->messages / sizeof(int))};
    for (int table = 0; table < 2; table++) hash = rows_hash(hash, table, numbers[table], counts[table]);
    return hash;
}

// --- the table as a picture: a row a step, a column a rank ---
//
// A cell has a line for each query chunk of the rank's work: "q3k0-2* 1/2" is query chunk 3 against the key
// chunks 0 to 2, done by the keys' owner, for half of the heads. Then, if asked for, a line for each message
// that the rank sends in that step: "kv0>1".

enum { DRAW_COLUMNS = 100, DRAW_RANKS = 12 };   // a picture's width; from so many ranks on it is a list

// Ends the line of a cell before the next one.
static void cell_next(FILE* cell, int* lines) {
    if ((*lines)++ > 0) fputc('\n', cell);
}

// A rank's work in a step, from op `first` on: the last of the ops after it that go on with the same query
// chunk's next keys, which are told with it.
static int work_last(const Schedule* s, int first) {
    const ScheduleOp* from = &s->ops[first];
    int last = first;
    for (int j = first + 1; j < s->op_count; j++) {
        const ScheduleOp* op = &s->ops[j];
        if (op->rank != from->rank || op->step != from->step) continue;
        if (op->q != from->q || op->k != s->ops[last].k + 1 || op->h0 != from->h0 || op->h1 != from->h1)
            break;
        last = j;
    }
    return last;
}
// The words for such ops: "q3k0-2* 1/2".
enum { WORK_TEXT = 64 };
static void work_text(char out[WORK_TEXT], const Schedule* s, int first, int last) {
    const ScheduleOp *from = &s->ops[first], *to = &s->ops[last];
    int shared = from->h1 - from->h0, helps = chunk_owner(s, from->q) != from->rank, n;
    for (int k = from->k; k <= to->k; k++) helps &= chunk_owner(s, k) == from->rank;
    n = snprintf(out, WORK_TEXT, "q%dk%d", from->q, from->k);
    if (last != first) n += snprintf(out + n, (size_t)(WORK_TEXT - n), "-%d", to->k);
    if (helps) n += snprintf(out + n, (size_t)(WORK_TEXT - n), "*");
    if (shared < s->head_parts) snprintf(out + n, (size_t)(WORK_TEXT - n), " %d/%d", shared, s->head_parts);
}
// The words for a message: "kv0>1", rank 0's keys and values to rank 1.
static const char* const ITEM_NAMES[ITEM_KINDS] = {"q", "kv", "out", "qdo", "dq", "dkv"};
static void message_text(char out[WORK_TEXT], const Schedule* s, const ScheduleMessage* m) {
    int n = snprintf(out, WORK_TEXT, "%s%d>%d", ITEM_NAMES[m->item.kind], m->item.of, m->to);
    if (m->item.h1 - m->item.h0 < s->head_parts)
        snprintf(out + n, (size_t)(WORK_TEXT - n), " %d/%d", m->item.h1 - m->item.h0, s->head_parts);
}
static const char WORK_LEGEND[] =
    "qikj: query chunk i against key chunk j; *: done by the keys' owner; n/m: that share of the heads";

// The text of a cell, of `lines` lines; the caller frees it. NULL: out of memory. width becomes the length of
// the longest line, if that is longer.
static char* cell_text(const Schedule* s, int step, int rank, int messages, int* lines, int* width) {
    char *text = NULL, words[WORK_TEXT];
    size_t size = 0;
    FILE* cell = open_memstream(&text, &size);
    *lines = 0;
    if (!cell) return NULL;
    for (int i = 0; i < s->op_count; i++)
        if (s->ops[i].step == step && s->ops[i].rank == rank) {
            cell_next(cell, lines);
            work_text(words, s, i, work_last(s, i));
            fputs(words, cell);
            i = work_last(s, i);
        }
    if (*lines == 0) cell_next(cell, lines), fprintf(cell, "idle");
    for (int i = 0; messages && i < s->message_count; i++) {
        const ScheduleMessage* m = &s->messages[i];
        if (m->step != step || m->from != rank) continue;
        cell_next(cell, lines);
        message_text(words, s, m);
        fputs(words, cell);
    }
    if (fclose(cell) != 0) {
        free(text);
        return NULL;
    }
    for (const char* line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if ((int)strcspn(line, "\n") > *width) *width = (int)strcspn(line, "\n");
    return text;
}

// Whether each number of b is as far from a's as c's is from b's, and all else the same.
static int cells_even(const char* a, const char* b, const char* c) {
    while (*a && *b && *c) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b) && isdigit((unsigned char)*c)) {
            char *a_end, *b_end, *c_end;
            long x = strtol(a, &a_end, 10), y = strtol(b, &b_end, 10), z = strtol(c, &c_end, 10);
            if (z - y != y - x) return 0;
            a = a_end, b = b_end;
            c = c_end;
        } else if (*a != *b || *b != *c) return 0;
        else a++, b++, c++;
    }
    return *a == *b && *b == *c;
}

// How many of the texts from the first on go on evenly: at least 1, and not 2.
static int texts_even(char** texts, int count) {
    int n = 2;
    while (n < count && cells_even(texts[n - 2], texts[n - 1], texts[n])) n++;
    return n > 2 ? n : 1;
}

// The lines of a cell on one line, from the third on shortened where they go on evenly: "q0k0, q1k0-1 ..
// q9k0-9". In place: it only becomes shorter.
static void cell_shorten(char* cell) {
    char *lines[GPT2_SP_TEXT], *to = cell;
    char* copy = strdup(cell);
    int count = 0;
    for (char* line = copy; line && *line && count < GPT2_SP_TEXT; count++) {
        lines[count] = line;
        line += strcspn(line, "\n");
        if (*line) *line++ = 0;
    }
    for (int i = 0, n; i < count; i += n) {
        n = texts_even(lines + i, count - i);
        if (n > 2) to += sprintf(to, "%s%s .. %s", i ? "\n" : "", lines[i], lines[i + n - 1]);
        else to += sprintf(to, "%s%s", i ? "\n" : "", lines[i]);
    }
    free(copy);
}

// A step as a list: ranks whose cells go on evenly are told by the first and the last.
static void step_list(const Schedule* s, int step, char** cells, FILE* out) {
    int column = fprintf(out, "  %4d", step);
    for (int r = 0; r < s->P; r++) cell_shorten(cells[r]);
    for (int r = 0, n; r < s->P; r += n) {
        char ranks[32];
        n = texts_even(cells + r, s->P - r);
        int ends = n > 1 && strcmp(cells[r], cells[r + n - 1]) != 0;   // the last is told too
        if (n > 1) snprintf(ranks, sizeof ranks, "%d-%d: ", r, r + n - 1);
        else snprintf(ranks, sizeof ranks, "%d: ", r);
        for (int part = 0; part <= ends; part++)
            for (const char* word = cells[part ? r + n - 1 : r]; *word;) {
                int length = (int)strcspn(word, "\n"), first = word == cells[r];
                const char* lead = first ? ranks : part && word == cells[r + n - 1] ? ".. " : "";
                if (column > 8 && column + (int)strlen(lead) + length + 3 > DRAW_COLUMNS)
                    fprintf(out, "\n      "), column = 6;
                column += fprintf(out, "%s%s%.*s", first || column == 6 ? "  " : " ", lead, length, word);
                word += length + (word[length] != 0);
                if (*word) fputc(',', out), column++;
            }
    }
    fprintf(out, "\n");
}

// A step as a row of cells, each `width` wide.
static void step_row(const Schedule* s, int step, char** cells, int lines, int width, FILE* out) {
    const char* at[DRAW_RANKS];
    for (int r = 0; r < s->P; r++) at[r] = cells[r];
    for (int line = 0; line < lines; line++) {
        if (line == 0) fprintf(out, "  %4d  ", step);
        else fprintf(out, "        ");
        int column = 0, last = -1;
        for (int r = 0; r < s->P; r++)
            if (*at[r]) last = r;
        for (int r = 0; r <= last; r++) {
            int n = (int)strcspn(at[r], "\n");
            column += fprintf(out, "%*s%.*s", r * (width + 1) + 1 - column, "", n, at[r]);
            at[r] += n, at[r] += *at[r] == '\n';
        }
        fprintf(out, "\n");
    }
}

// What a table costs, in words, in two parts: a line is cut between them where they are too long for one.
static void cost_text(char head[256], char volume[64], const Schedule* s, const ScheduleCost* cost) {
    snprintf(head, 256, "%s, %d rank%s, %s: %d step%s, makespan %g units, ideal %g (%.1f %%),",
        schedule_name(s->kind), s->P, s->P == 1 ? "" : "s", s->backward ? "backward" : "forward", cost->steps,
        cost->steps == 1 ? "" : "s", cost->makespan, cost->ideal, 100 * cost->ideal / cost->makespan);
    snprintf(volume, 64, "%g C received per rank", cost->elements);
}

// Draws a table, with what travels if `messages`; as a list where a picture would be too wide. -1: no memory.
static int schedule_draw(const Schedule* s, const ScheduleCost* cost, int messages, FILE* out, Error* e) {
    char head[256], volume[64];
    cost_text(head, volume, s, cost);
    int wide = strlen(head) + 1 + strlen(volume) > DRAW_COLUMNS;
    fprintf(out, "%s%s %s\n", head, wide ? "\n " : "", volume);
    size_t count = (size_t)s->steps * (size_t)s->P;
    char** cells = (char**)calloc(count + 1, sizeof *cells);   // (steps, P)
    int *lines = (int*)calloc((size_t)s->steps + 1, sizeof *lines), width = 7,
        status = cells && lines ? 0 : -1;
    for (size_t i = 0; status == 0 && i < count; i++) {
        int step = (int)(i / (size_t)s->P), n;
        cells[i] = cell_text(s, step, (int)(i % (size_t)s->P), messages, &n, &width);
        if (!cells[i]) status = -1;
        else if (n > lines[step]) lines[step] = n;
    }
    int list = s->P >= DRAW_RANKS || 8 + s->P * (width + 1) > DRAW_COLUMNS;
    if (status == 0 && list) fprintf(out, "  step  what each rank does\n");
    if (status == 0 && !list) {
        fprintf(out, "  step  ");
        for (int r = 0; r < s->P; r++) fprintf(out, " rank %-*d", r + 1 < s->P ? width - 5 : 0, r);
        fprintf(out, "\n");
    }
    for (int step = 0; status == 0 && step < s->steps; step++) {
        char** row = cells + (size_t)step * (size_t)s->P;
        int idle = 1;
        for (int r = 0; r < s->P; r++) idle &= strcmp(row[r], "idle") == 0;
        if (idle) continue;
        if (list) step_list(s, step, row, out);
        else step_row(s, step, row, lines[step], width, out);
    }
    for (size_t i = 0; cells && i < count; i++) free(cells[i]);
    free(cells);
    free(lines);
    if (status != 0) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a picture of %d ranks", s->P);
    fprintf(out, "  %s\n", WORK_LEGEND);
    if (list) fprintf(out, "  a-b: x .. y: ranks a to b, whose numbers go on evenly from x to y\n");
    if (messages) fprintf(out, "  kvi>r: what is sent in that step, rank i's rows of it, to rank r\n");
    return 0;
}

// --- the table as an SVG picture: a row a rank, time to the right ---
//
//     rank 0   | op | op    | idle  |      a box is an op, as wide as its units of work, with the colour of
//              ----\----------------       its key chunk; hatched: the rank waits for the busiest one
//     rank 1   | op  \  | op        |
//              -------`> ----------        an arrow is a message: it sets out when its step begins, and is
//                                          there when the step ends
//
// Steps begin where step_begins has them, so that the boxes and the idle time of all ranks together are P
// times the makespan. A step without work has no length in units: it gets a band, for its arrows alone.

enum { FIGURE_RANKS = 32 };   // with more than these nothing could be read
enum { FIGURE_WIDTH = 1280, FIGURE_LEFT = 64, FIGURE_RIGHT = 16, FIGURE_BAND = 56, FIGURE_HEAD = 64 };
static const char* const ITEM_COLOURS[ITEM_KINDS] = {
    "#1f6fd1", "#0f8a5f", "#c2410c", "#6b3fc4", "#c2185b", "#8a6d00"};

// One table's part of a picture.
typedef struct {
    FILE *out, *labels;   // labels: the texts in boxes, which come last, for arrows would cross them out
    const Schedule* s;
    const double* begin;   // (steps + 1) units: step_begins
    double* x;             // (steps + 1) where the steps begin in the picture
    double top;            // of rank 0's row
    double scale;          // of a unit of work
} Panel;

// Heights of a row: its box, the lane below it where arrows begin and end, both; size of the text in it.
static double row_box(int P) { return P > 8 ? 26 : 36; }
static double row_lane(int P) { return P > 8 ? 14 : 18; }
static double row_height(int P) { return row_box(P) + row_lane(P); }
static double row_text(int P) { return P > 8 ? 9 : 11; }
static double panel_height(int P) { return FIGURE_HEAD + P * row_height(P) + 40; }

static int step_works(const Panel* p, int step) { return p->begin[step + 1] > p->begin[step]; }
// Where the work of a step ends, for the busiest rank.
static double work_end(const Panel* p, int step) {
    return p->x[step] + (p->begin[step + 1] - p->begin[step]) * p->scale;
}

// Writes a label into a box, in one line or in two, cut at its blank or else, without what follows the blank,
// before its k. 0: it fits in no way and is not there.
static int box_label(
    FILE* out, double size, double x, double y, double width, double height, const char* label) {
    const char *blank = strchr(label, ' '), *cut[2] = {blank, strchr(label, 'k')};
    const double middle = x + width / 2, room = width - 4;
    if (svg_text_width(label, size) <= room) {
        svg_label(out, size, middle, y + height / 2 + 0.35 * size, label);
        return 1;
    }
    for (int way = 0; way < 2; way++) {
        char line[2][WORK_TEXT];
        if (!cut[way] || height < 2.3 * size) continue;
        const char* rest = way == 0 ? cut[0] + 1 : cut[1];
        snprintf(line[0], sizeof line[0], "%.*s", (int)(cut[way] - label), label);
        snprintf(line[1], sizeof line[1], "%.*s",
            (int)(way == 1 && blank ? blank - rest : (ptrdiff_t)strlen(rest)), rest);
        if (fmax(svg_text_width(line[0], size), svg_text_width(line[1], size)) > room) continue;
        for (int i = 0; i < 2; i++)
            svg_label(out, size, middle, y + height / 2 + (i ? 0.95 : -0.15) * size, line[i]);
        return 1;
    }
    return 0;
}

// The boxes of one rank in one step, which are its ops from number `op` on, and its idle time; then their
// labels: of every op, or where these do not fit of the ops that go on with the next keys. Returns the first
// op that is not among them.
static int panel_cell(const Panel* p, int step, int rank, int op) {
    const Schedule* s = p->s;
    const double y = p->top + rank * row_height(s->P), box = row_box(s->P), size = row_text(s->P);
    double x = p->x[step], end = work_end(p, step);
    int last = op;
    for (; last < s->op_count && s->ops[last].step == step && s->ops[last].rank == rank; last++) {
        char colour[8], words[WORK_TEXT];
        double width = op_units(s, &s->ops[last]) * p->scale;
        svg_colour(colour, s->ops[last].k, s->chunks);
        work_text(words, s, last, last);
        svg_rect(p->out, "op", colour, x, y, width, box, words);
        x += width;
    }
    if (end - x > 1e-6) svg_rect(p->out, "idle", SVG_IDLE, x, y, end - x, box, "idle");
    x = p->x[step];
    for (int i = op, next; i < last; i = next) {
        char words[WORK_TEXT];
        double width = 0;
        next = work_last(s, i) + 1;
        for (int j = i; j < next; j++) width += op_units(s, &s->ops[j]) * p->scale;
        work_text(words, s, i, next - 1);
        int one = next - i > 1 && svg_text_width("q88", size) > op_units(s, &s->ops[i]) * p->scale;
        if (one) box_label(p->labels, size, x, y, width, box, words);
        for (int j = i; !one && j < next; j++) {
            double part = op_units(s, &s->ops[j]) * p->scale;
            work_text(words, s, j, j);
            box_label(p->labels, size, x, y, part, box, words);
            x += part;
        }
        if (one) x += width;
    }
    return last;
}

// The messages of a step, from number `first` on, as arrows from the sender's lane to the receiver's: each
// kind of item at a height of its own, so that no two lie on each other. Returns the first that is not of it.
static int panel_messages(const Panel* p, int step, int first) {
    const Schedule* s = p->s;
    const double box = row_box(s->P), lane = row_lane(s->P);
    int last = first;
    while (last < s->message_count && s->messages[last].step == step) last++;
    for (int i = first; i < last; i++) {
        const ScheduleMessage* m = &s->messages[i];
        char words[WORK_TEXT];
        double at = box + lane * (m->item.kind + 1) / (ITEM_KINDS + 1);
        message_text(words, s, m);
        svg_arrow(p->out, "message", ITEM_COLOURS[m->item.kind], last - first > 8 * s->P ? 0.3 : 0.9,
            p->x[step] + 2, p->top + m->from * row_height(s->P) + at, p->x[step + 1] - 2,
            p->top + m->to * row_height(s->P) + at, words);
    }
    return last;
}

// What stands around the rows: what the table costs, the numbers of steps and ranks, the axis of time.
static void panel_frame(const Panel* p, const ScheduleCost* cost, double top) {
    const Schedule* s = p->s;
    const double bottom = p->top + s->P * row_height(s->P) + 4, right = FIGURE_WIDTH - FIGURE_RIGHT;
    char head[256], volume[64];
    cost_text(head, volume, s, cost);
    svg_text(p->out, 14, SVG_START, FIGURE_LEFT, top + 18, "%s %s", head, volume);
    svg_text(p->out, 10, SVG_END, FIGURE_LEFT - 8, p->top - 8, "step");
    for (int step = 0; step < s->steps; step++) {
        svg_line(p->out, "step", SVG_FAINT, p->x[step], p->top - 20, p->x[step], bottom);
        svg_text(p->out, 10, SVG_MIDDLE, (p->x[step] + p->x[step + 1]) / 2, p->top - 8, "%d", step);
    }
    svg_line(p->out, "step", SVG_FAINT, right, p->top - 20, right, bottom);
    for (int r = 0; r < s->P; r++)
        svg_text(p->out, 11, SVG_END, FIGURE_LEFT - 8, p->top + r * row_height(s->P) + row_box(s->P) / 2 + 4,
            "rank %d", r);
    svg_line(p->out, "axis", SVG_INK, FIGURE_LEFT, bottom, right, bottom);
    double makespan = p->begin[s->steps], tick = makespan > 24 ? 2 : makespan > 12 ? 1 : 0.5;
    for (int i = 0, step = 0; i * tick <= makespan + 1e-9; i++) {
        while (step + 1 < s->steps && (p->begin[step + 1] <= i * tick || !step_works(p, step))) step++;
        double x = fmin(p->x[step] + (i * tick - p->begin[step]) * p->scale, right);
        svg_line(p->out, "tick", SVG_INK, x, bottom, x, bottom + 4);
        svg_text(p->out, 10, SVG_MIDDLE, x, bottom + 15, "%g", i * tick);
    }
    svg_text(p->out, 10, SVG_END, right, bottom + 28,
        "time in units: 1 is a whole pair of two ranks' chunks, %s", s->backward ? "backward" : "forward");
}

// Draws a table into a picture, from `top` on. -1: no memory.
static int schedule_panel(const Schedule* s, const ScheduleCost* cost, double top, FILE* out, Error* e) {
    double *begin = step_begins(s), *x = (double*)malloc(((size_t)s->steps + 1) * sizeof *x);
    char* text = NULL;
    size_t size = 0;
    FILE* labels = open_memstream(&text, &size);
    int status = begin && x && labels ? 0 : -1, bands = 0;
    Panel p = {out, labels, s, begin, x, top + FIGURE_HEAD, 0};
    for (int step = 0; status == 0 && step < s->steps; step++) bands += !step_works(&p, step);
    if (status == 0) {
        x[0] = FIGURE_LEFT;
        p.scale = (FIGURE_WIDTH - FIGURE_LEFT - FIGURE_RIGHT - bands * FIGURE_BAND) / begin[s->steps];
        for (int step = 0; step < s->steps; step++)
            x[step + 1] = step_works(&p, step) ? work_end(&p, step) : x[step] + FIGURE_BAND;
        fprintf(out, "<g class=\"%s\">\n", s->backward ? "backward" : "forward");
        panel_frame(&p, cost, top);
        for (int step = 0, op = 0; step < s->steps; step++)
            for (int r = 0; r < s->P; r++) op = panel_cell(&p, step, r, op);
        for (int step = 0, message = 0; step < s->steps; step++) message = panel_messages(&p, step, message);
    }
    if (labels && fclose(labels) != 0) status = -1;
    if (status == 0) fprintf(out, "%s</g>\n", text);
    free(text);
    free(begin);
    free(x);
    return status == 0 ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a picture of %d ranks", s->P);
}

// The picture of a kind's two tables: begun with its title, ended with what its colours mean.
enum { LEGEND_COLUMNS = 16 };
static void schedule_picture_open(const Schedule* s, FILE* out) {
    char title[128];
    double height = 2 * panel_height(s->P) + 100 + 20 * (double)ceil_div(s->chunks, LEGEND_COLUMNS);
    snprintf(title, sizeof title, "Attention of %d rank%s by the schedule %s: who computes what, when", s->P,
        s->P == 1 ? "" : "s", schedule_name(s->kind));
    svg_open(out, FIGURE_WIDTH, height, title);
    svg_text(out, 17, SVG_START, FIGURE_LEFT, 28, "%s", title);
}
static void schedule_picture_close(const Schedule* s, FILE* out) {
    static const char* const words[ITEM_KINDS] = {
        "queries", "keys, values", "partial outputs", "queries, dO", "partial dQ", "partial dK, dV"};
    const double top = 40 + 2 * panel_height(s->P), column = (FIGURE_WIDTH - FIGURE_LEFT) / LEGEND_COLUMNS;
    svg_text(out, 11, SVG_END, FIGURE_LEFT - 8, top + 10, "keys");
    for (int k = 0; k < s->chunks; k++) {
        char colour[8];
        double x = FIGURE_LEFT + k % LEGEND_COLUMNS * column, y = top + 20 * (k / LEGEND_COLUMNS);
        svg_colour(colour, k, s->chunks);
        svg_rect(out, "key", colour, x, y, 26, 13, NULL);
        svg_text(out, 10, SVG_START, x + 30, y + 10, "k%d", k);
    }
    double y = top + 20 * (double)ceil_div(s->chunks, LEGEND_COLUMNS) + 12, x = FIGURE_LEFT;
    svg_text(out, 11, SVG_END, FIGURE_LEFT - 8, y + 4, "sent");
    for (int kind = 0; kind < ITEM_KINDS; kind++, x += 170) {
        svg_arrow(out, "sent", ITEM_COLOURS[kind], 1, x, y, x + 26, y, NULL);
        svg_text(out, 10, SVG_START, x + 30, y + 4, "%s: %s", ITEM_NAMES[kind], words[kind]);
    }
    svg_rect(out, "key", SVG_IDLE, x, y - 7, 26, 13, NULL);
    svg_text(out, 10, SVG_START, x + 30, y + 4, "idle");
    svg_text(out, 10, SVG_START, FIGURE_LEFT, y + 26, "%s", WORK_LEGEND);
    svg_close(out);
}

// --- tables of pipelines ---
//
// A pipeline gives each of p ranks L/p layers, in v chunks; a chunk of layers is a stage, and stage g lies on
// rank g % p. M sequences go through all stages in k slices each. As with attention a schedule is a table
// that is built, proved, drawn, and played by the clock; nothing here trains by it.
//
//     attention          pipelines
//     pair q, k          unit (m, s, g) in a direction: slice s of sequence m through stage g
//     step               none: each rank runs its list in order, and waits for what an op needs
//     message            implied: a unit's result goes to the rank of the next stage (backward: of the last)
//     slot               one of the buffers in which a rank receives from a neighbour: two, but more where
//                        chunks go on from the last rank to the first and back (from p = 5 on up to p/3 + 2)
//
// F(m,s,g) comes after F(m,s,g-1), and after F(m,s-1,g), whose keys it attends to. B(m,s,g) comes after
// F(m,s,g), after B(m,s,g+1), and after B(m,s+1,g), which has added the last of its dK and dV. Keys of (m, g)
// live from F(m,0,g) to B(m,0,g). Each rank runs some forwards first (its warm-up), then a forward and a
// backward in turn, then the backwards that are left: sequences in their order, slices last first.
//
// Time is counted in ticks: a forward of a unit is 1, a backward 2. 3v ticks are a unit of time: a slice's
// forward and backward through all layers of a rank.
//
//     kind                warm-up of rank r        makespan      slices held at most   idea
//     gpipe               all                      Mk + p-1      Mk                    Huang et al. 2018
//     1f1b, k = 1         p-1-r                    M + p-1       p-r                   Narayanan et al. 2021
//     interleaved, k = 1  2(p-1-r) + (v-1)p units  M + (p-1)/v   (pv + p-1-2r)/v       Narayanan et al. 2021
//     slices              k-1 + p-1-r              Mk + p-1      k + p-1-r             Sun et al. 2024
//     slices-interleaved  vk-1 + 2(p-1-r) units    Mk + (p-1)/v  k + 2(p-1-r)/v        Sun et al. 2024
//
// Warm-up and slices held are at most all there are, Mk.

enum { PIPELINE_FORWARD = 1, PIPELINE_BACKWARD = 2 };   // ticks of a unit
enum { PIPELINE_BUFFERS = 2 };                          // of a rank, for what comes from a neighbour
enum { PIPELINE_MOST_BUFFERS = 256 / 3 + 2 };
enum { PIPELINE_OPS = 1 << 22 };   // of a table, at most

// One row of the table: a unit in a direction.
typedef struct {
    int rank, backward;
    int m, s, g;      // sequence, slice, stage
    int slot;         // the buffer in which its input arrives; -1: it comes from the rank itself or the data
    int frees;        // the keys of (m, g) are freed after it
    int arrives;      // its input, in ticks, by pipeline_play
    int begin, end;   // ticks, by pipeline_play
} PipelineOp;

typedef struct {
    int kind, p, k, M, v;
    int list;           // ops of a rank: 2 M k v
    int wrap_buffers;   // between the last rank and the first
    PipelineOp* ops;    // (p, list) of each rank in its order
} Pipeline;

// The index-th op of a rank.
static PipelineOp* pipeline_op(const Pipeline* t, int rank, int index) {
    return t->ops + (size_t)rank * (size_t)t->list + index;
}
// Ticks of a unit of time.
static int pipeline_ticks(const Pipeline* t) { return (PIPELINE_FORWARD + PIPELINE_BACKWARD) * t->v; }

static void pipeline_free(Pipeline* t) {
    free(t->ops);
    t->ops = NULL;
}

// Whether a kind cuts a rank's layers into chunks, and sequences into slices (gpipe: if asked to).
static int pipeline_chunked(int kind) {
    return kind == GPT2_SP_INTERLEAVED || kind == GPT2_SP_SLICES_INTERLEAVED;
}
static int pipeline_sliced(int kind) { return kind != GPT2_SP_1F1B && kind != GPT2_SP_INTERLEAVED; }

// Forwards that rank r runs before its first backward, less the one that comes in turn with it.
static int pipeline_warmup(const Pipeline* t, int r) {
    int units = t->list / 2, behind = t->p - 1 - r, n = units;   // gpipe: all
    if (t->kind == GPT2_SP_1F1B || t->kind == GPT2_SP_SLICES) n = t->k - 1 + behind;
    if (t->kind == GPT2_SP_INTERLEAVED) n = 2 * behind + (t->v - 1) * t->p;
    if (t->kind == GPT2_SP_SLICES_INTERLEAVED) n = t->v * t->k - 1 + 2 * behind;
    return n < units ? n : units;
}

// Closed form of the most units that rank r holds, which have been forward and not yet backward.
static int pipeline_held(const Pipeline* t, int r) {
    int units = t->list / 2, n = units;
    if (t->kind == GPT2_SP_1F1B) n = t->p - r;
    if (t->kind == GPT2_SP_SLICES) n = t->k + t->p - 1 - r;
    if (t->kind == GPT2_SP_INTERLEAVED) n = t->p * t->v + t->p - 1 - 2 * r;
    if (t->kind == GPT2_SP_SLICES_INTERLEAVED) n = t->v * t->k + 2 * (t->p - 1 - r);
    return n < units ? n : units;
}
// Closed form of the makespan, in ticks: every kind's, as chunks shorten the way through the ranks.
static int pipeline_makespan(const Pipeline* t) {
    return (PIPELINE_FORWARD + PIPELINE_BACKWARD) * (t->list / 2 + t->p - 1);
}

// The index-th op of a rank in a direction. Slices go in groups of p through a chunk, and then through the
// next (backward: the one before).
static PipelineOp pipeline_unit(const Pipeline* t, int rank, int backward, int index) {
    PipelineOp op;
    int in_group = index % (t->p * t->v), chunk = in_group / t->p;
    int slice = index / (t->p * t->v) * t->p + in_group % t->p, s = slice % t->k;
    op.rank = rank, op.backward = backward;
    op.m = slice / t->k, op.s = backward ? t->k - 1 - s : s;
    op.g = (backward ? t->v - 1 - chunk : chunk) * t->p + rank;
    int from_rank = t->p > 1 && (backward ? op.g < t->p * t->v - 1 : op.g > 0);
    op.slot = from_rank ? 0 : -1;
    op.frees = backward && op.s == 0;
    op.begin = op.end = 0;
    op.arrives = 0;
    return op;
}

// Writes a rank's list, with so many forwards of warm-up.
static void pipeline_list(Pipeline* t, int rank, int warmup) {
    PipelineOp* list = pipeline_op(t, rank, 0);
    int units = t->list / 2, forward = 0;
    for (int i = 0; i < t->list; i++) {
        int backward = i - forward;   // backwards so far
        int turn = forward < units && (forward < warmup || forward - warmup <= backward);
        list[i] = pipeline_unit(t, rank, !turn, turn ? forward : backward);
        forward += turn;
    }
}

// Where a unit's op stands in a table of all units: (2, M, k, stages).
static size_t pipeline_place(const Pipeline* t, int backward, int m, int s, int g) {
    return (((size_t)backward * (size_t)t->M + (size_t)m) * (size_t)t->k + (size_t)s) *
        (size_t)(t->p * t->v) +
        (size_t)g;
}
// Where the unit stands whose result an op receives; -1: it receives none.
static int64_t pipeline_source(const Pipeline* t, const PipelineOp* op) {
    int g = op->backward ? op->g + 1 : op->g - 1;
    if (g < 0 || g == t->p * t->v) return -1;
    return (int64_t)pipeline_place(t, op->backward, op->m, op->s, g);
}

// A unit's name in pictures: F3.2, with chunks F3.2/5.
enum { PIPELINE_TEXT = 48 };
static void pipeline_text(char out[PIPELINE_TEXT], const Pipeline* t, const PipelineOp* op) {
    char stage[16] = "";
    if (t->v > 1) snprintf(stage, sizeof stage, "/%d", op->g);
    snprintf(out, PIPELINE_TEXT, "%c%d.%d%s", op->backward ? 'B' : 'F', op->m, op->s, stage);
}

// Plays a table by the clock: each rank runs its list in order, and an op begins when the rank is free and
// its input has arrived, which takes no time. Nothing else is waited for: the proof looks at the rest. -1:
// the ranks wait for each other for ever, or no memory.
static int pipeline_play(Pipeline* t, Error* e) {
    size_t places = pipeline_place(t, 2, 0, 0, 0);
    int* done = (int*)calloc(places + 2 * (size_t)t->p, sizeof *done);   // when, of every unit; 0: not yet
    if (!done) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    int *next = done + places, *clock = next + t->p, moved = 1, left = t->p * t->list;
    while (left > 0 && moved) {
        moved = 0;
        for (int r = 0; r < t->p; r++)
            for (; next[r] < t->list; next[r]++, moved++, left--) {
                PipelineOp* op = pipeline_op(t, r, next[r]);
                int64_t source = pipeline_source(t, op);
                if (source >= 0 && !done[source]) break;
                op->arrives = source >= 0 ? done[source] : 0;
                op->begin = op->arrives > clock[r] ? op->arrives : clock[r];
                op->end = op->begin + (op->backward ? PIPELINE_BACKWARD : PIPELINE_FORWARD);
                done[pipeline_place(t, op->backward, op->m, op->s, op->g)] = clock[r] = op->end;
            }
    }
    for (int r = 0; left > 0 && r < t->p; r++) {
        char text[PIPELINE_TEXT];
        if (next[r] == t->list) continue;
        pipeline_text(text, t, pipeline_op(t, r, next[r]));
        free(done);
        return fail(e, "deadlock: rank %d waits for ever for the input of %s", r, text);
    }
    free(done);
    return 0;
}

// Buffers in which a rank receives in a direction: those between the last rank and the first are others.
static int pipeline_wraps(const Pipeline* t, const PipelineOp* op) {
    return op->rank == (op->backward ? t->p - 1 : 0);
}
static int pipeline_buffers(const Pipeline* t, const PipelineOp* op) {
    return pipeline_wraps(t, op) ? t->wrap_buffers : PIPELINE_BUFFERS;
}
// Gives what arrives its buffers in turn, after play; between the last rank and the first as many as it takes
// for nothing to be overwritten. -1: no memory.
static int pipeline_slots(Pipeline* t, Error* e) {
    int* ends = (int*)calloc((size_t)t->list, sizeof *ends);
    if (!ends) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    t->wrap_buffers = PIPELINE_BUFFERS;
    for (int assign = 0; assign < 2; assign++)
        for (int i = 0; i < 2 * t->p; i++) {   // a rank and a direction
            int arrived = 0;
            for (int j = 0; j < t->list; j++) {
                PipelineOp* op = pipeline_op(t, i / 2, j);
                if (op->backward != i % 2 || op->slot < 0) continue;
                ends[arrived] = op->end;
                while (pipeline_wraps(t, op) && arrived >= t->wrap_buffers &&
                    op->arrives < ends[arrived - t->wrap_buffers])
                    t->wrap_buffers++;
                if (assign) op->slot = arrived % pipeline_buffers(t, op);
                arrived++;
            }
        }
    free(ends);
    return 0;
}

// What a table of a kind is refused for.
static int pipeline_fits(const Pipeline* t, Error* e) {
    const char* name = pipeline_name(t->kind);
    int next = t->p;
    if (t->kind == GPT2_SP_INTERLEAVED && t->M % t->p != 0) {
        next *= (t->M + t->p - 1) / t->p;
        return fail(e, "--pipeline %s needs --micro-batches divisible by --pp %d: %d would fit (found %d)",
            name, t->p, next, t->M);
    }
    if (t->kind == GPT2_SP_SLICES_INTERLEAVED && t->k % t->p != 0) {
        next *= (t->k + t->p - 1) / t->p;
        return fail(e, "--pipeline %s needs --slices divisible by --pp %d: %d would fit (found %d)", name,
            t->p, next, t->k);
    }
    double ops = 2.0 * t->M * t->k * t->v * t->p;
    if (ops > PIPELINE_OPS)
        return fail(e, "--pipeline %s: the table would have %.0f ops, at most %d are supported", name, ops,
            PIPELINE_OPS);
    return 0;
}

// Builds the table of p ranks, k slices of each of M sequences, v chunks a rank. -1: it cannot be.
static int pipeline_build(Pipeline* t, int kind, int p, int k, int M, int v, Error* e) {
    t->kind = kind, t->p = p;
    t->k = k, t->M = M;
    t->v = v, t->ops = NULL;
    if (pipeline_fits(t, e) != 0) return -1;
    t->list = 2 * M * k * v;
    t->ops = (PipelineOp*)calloc((size_t)p * (size_t)t->list, sizeof *t->ops);
    if (!t->ops) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int r = 0; r < p; r++) pipeline_list(t, r, pipeline_warmup(t, r));
    if (pipeline_play(t, e) == 0 && pipeline_slots(t, e) == 0) return 0;
    pipeline_free(t);
    return -1;
}

typedef struct {
    double makespan, ideal;   // units of time; ideal: nobody is idle
    double bubble;            // share of the ranks' time that is idle
    double volume;            // numbers per token and channel over the busiest link of two ranks, both ways
} PipelineCost;

// Counts what a table that has been played costs.
static PipelineCost pipeline_cost(const Pipeline* t) {
    PipelineCost cost;
    const double unit = pipeline_ticks(t);
    int last = 0, busiest = 0;
    double work = 0;
    for (int r = 0; r < t->p; r++) {
        int sent = 0;   // on the link from rank r to the next: forward there, backward from there
        for (int i = 0; i < t->list; i++) {
            const PipelineOp* op = pipeline_op(t, r, i);
            if (op->end > last) last = op->end;
            work += op->end - op->begin;
            sent += t->p > 1 && (op->backward ? op->slot >= 0 : op->g < t->p * t->v - 1);
        }
        if (sent > busiest) busiest = sent;
    }
    cost.makespan = last / unit, cost.ideal = work / unit / t->p;
    cost.bubble = 1 - cost.ideal / cost.makespan;
    cost.volume = (double)busiest / (t->M * t->k);
    return cost;
}

// The most units that rank r holds at a time.
static int pipeline_most_held(const Pipeline* t, int r) {
    int held = 0, most = 0;
    for (int i = 0; i < t->list; i++) {
        held += t->ops[(size_t)r * (size_t)t->list + (size_t)i].backward ? -1 : 1;
        if (held > most) most = held;
    }
    return most;
}

// One number for a table.
static uint64_t pipeline_hash(const Pipeline* t) {
    uint64_t hash = random_bits((uint64_t)t->kind, (uint64_t)t->p, (uint64_t)t->v);
    size_t count = (size_t)t->p * (size_t)t->list * (sizeof *t->ops / sizeof(int));
    return rows_hash(hash, 0, (const int*)(const void*)t->ops, count);
}

// Whether op comes after the unit (backward, m, s, g), if there is one; where: the places of all units.
static int pipeline_after(const Pipeline* t, const int* where, const PipelineOp* op, int backward, int s,
    int g, const char* what, Error* e) {
    char text[PIPELINE_TEXT];
    if (s < 0 || s == t->k || g < 0 || g == t->p * t->v) return 0;
    if (t->ops[where[pipeline_place(t, backward, op->m, s, g)]].end <= op->begin) return 0;
    pipeline_text(text, t, op);
    return fail(e, "%s on rank %d begins before its %s", text, op->rank, what);
}

// Proof of a rank: keys are there while they are needed, no buffer is overwritten before it has been read.
static int pipeline_prove_rank(const Pipeline* t, int rank, const int* where, unsigned char* keys, Error* e) {
    int busy[2][PIPELINE_MOST_BUFFERS] = {{0}};   // until when
    for (int i = 0; i < t->list; i++) {
        const PipelineOp* op = pipeline_op(t, rank, i);
        unsigned char* live = &keys[(size_t)op->m * (size_t)(t->p * t->v) + (size_t)op->g];   // 2: freed
        char text[PIPELINE_TEXT];
        pipeline_text(text, t, op);
        if (*live == 0 && !op->backward && op->s == 0) *live = 1;
        if (*live != 1) return fail(e, "%s on rank %d: its keys are not there", text, rank);
        if (op->frees) *live = 2;
        int64_t source = pipeline_source(t, op);
        int remote = source >= 0 && t->p > 1;
        if (remote != (op->slot >= 0) || op->slot >= pipeline_buffers(t, op))
            return fail(e, "%s on rank %d: wrong buffer", text, rank);
        if (!remote) continue;
        if (t->ops[where[source]].end < busy[op->backward][op->slot])
            return fail(e, "the input of %s overwrites a buffer of rank %d that is in use", text, rank);
        busy[op->backward][op->slot] = op->end;
    }
    for (int i = 0; i < t->M * t->v; i++) {
        int m = i / t->v, g = i % t->v * t->p + rank;
        if (keys[m * t->p * t->v + g] != 2)
            return fail(e, "the keys of sequence %d, stage %d are never freed", m, g);
    }
    return 0;
}

// Proof that each unit is there once in each direction, on the rank that has its stage; fills `where`, the
// places of all units.
static int pipeline_prove_units(const Pipeline* t, int* where, Error* e) {
    size_t places = pipeline_place(t, 2, 0, 0, 0);
    for (size_t i = 0; i < places; i++) where[i] = -1;
    for (int i = 0; i < t->p * t->list; i++) {
        const PipelineOp* op = &t->ops[i];
        if (op->m < 0 || op->m >= t->M || op->s < 0 || op->s >= t->k || op->g < 0 || op->g >= t->p * t->v)
            return fail(e, "op %d is of no unit", i);
        int* place = &where[pipeline_place(t, op->backward, op->m, op->s, op->g)];
        char text[PIPELINE_TEXT];
        pipeline_text(text, t, op);
        if (op->rank != i / t->list || op->g % t->p != op->rank)
            return fail(e, "%s is on a rank that has not its stage", text);
        if (*place >= 0) return fail(e, "%s is there twice", text);
        *place = i;
    }
    return 0;   // as many ops as places, and none twice: none is missing
}

// Proves a table: every unit once in each direction, everything it needs done before, by the clock; no
// deadlock; keys there as long as they are needed; no buffer overwritten; makespan, slices held and volume
// are those of the closed forms. Plays the table first. 0, or -1 with the first violation.
static int pipeline_prove(Pipeline* t, Error* e) {
    int* where = (int*)calloc(pipeline_place(t, 2, 0, 0, 0), sizeof *where);
    unsigned char* keys = (unsigned char*)calloc((size_t)t->M * (size_t)(t->p * t->v), 1);
    int status =
        where && keys ? pipeline_prove_units(t, where, e) : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (status == 0 && t->wrap_buffers > (pipeline_chunked(t->kind) ? t->p / 3 : 0) + 2)
        status = fail(e, "%d buffers between the last rank and the first", t->wrap_buffers);
    if (status == 0) status = pipeline_play(t, e);
    for (int i = 0; status == 0 && i < t->p * t->list; i++) {
        const PipelineOp* op = &t->ops[i];
        if (!op->backward) {
            status = pipeline_after(t, where, op, 0, op->s, op->g - 1, "input", e);
            if (status == 0) status = pipeline_after(t, where, op, 0, op->s - 1, op->g, "earlier keys", e);
            continue;
        }
        status = pipeline_after(t, where, op, 0, op->s, op->g, "forward", e);
        if (status == 0) status = pipeline_after(t, where, op, 1, op->s, op->g + 1, "input", e);
        if (status == 0)
            status = pipeline_after(t, where, op, 1, op->s + 1, op->g, "later slice's dK, dV", e);
    }
    for (int r = 0; status == 0 && r < t->p; r++) {
        int most = pipeline_most_held(t, r);
        status = pipeline_prove_rank(t, r, where, keys, e);
        if (status == 0 && most != pipeline_held(t, r))
            status = fail(e, "rank %d holds %g slices, closed form %g", r, (double)most / t->v,
                (double)pipeline_held(t, r) / t->v);
    }
    PipelineCost cost = pipeline_cost(t);
    double makespan = (double)pipeline_makespan(t) / (pipeline_ticks(t));
    if (status == 0 && fabs(cost.makespan - makespan) > 1e-9)
        status = fail(e, "makespan %g, closed form %g", cost.makespan, makespan);
    if (status == 0 && fabs(cost.volume - (t->p > 1 ? 2 * t->v : 0)) > 1e-9)
        status = fail(e, "%g numbers per token on a link, closed form %d", cost.volume, 2 * t->v);
    free(where);
    free(keys);
    return status;
}

// What a table costs, in words.
static void pipeline_words(char head[256], char volume[96], const Pipeline* t, const PipelineCost* cost) {
    snprintf(head, 256,
        "%s, %d rank%s, %d sequence%s in %d slice%s: makespan %g units, ideal %g (%.1f %%), idle %.1f %%,",
        pipeline_name(t->kind), t->p, t->p == 1 ? "" : "s", t->M, t->M == 1 ? "" : "s", t->k,
        t->k == 1 ? "" : "s", cost->makespan, cost->ideal, 100 * cost->ideal / cost->makespan,
        100 * cost->bubble);
    snprintf(volume, 96, "%g C a token over a link", cost->volume);
}

// Draws a table: a row a tick, a column a rank; as lists where that would be too wide. -1: no memory.
static int pipeline_draw(const Pipeline* t, const PipelineCost* cost, FILE* out, Error* e) {
    char head[256], volume[96], text[PIPELINE_TEXT];
    int *next = (int*)calloc((size_t)t->p, sizeof *next), width = 6;
    if (!next) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a picture of %d ranks", t->p);
    pipeline_words(head, volume, t, cost);
    fprintf(out, "%s\n  %s\n  slices held at most:", head, volume);
    for (int r = 0; r < t->p; r++) fprintf(out, " %.4g", (double)pipeline_most_held(t, r) / t->v);
    for (int i = 0; i < t->p * t->list; i++) {
        pipeline_text(text, t, &t->ops[i]);
        if ((int)strlen(text) > width) width = (int)strlen(text);
    }
    int list = 8 + t->p * (width + 2) > DRAW_COLUMNS;
    fprintf(out, list ? "\n  rank  what it does, in this order\n" : "\n  tick");
    for (int r = 0; !list && r < t->p; r++) fprintf(out, "  rank %-*d", r + 1 < t->p ? width - 5 : 0, r);
    if (!list) fprintf(out, "\n");
    for (int r = 0; list && r < t->p; r++) {
        int column = fprintf(out, "  %4d", r);
        for (int i = 0; i < t->list; i++) {
            pipeline_text(text, t, pipeline_op(t, r, i));
            if (column + 1 + (int)strlen(text) > DRAW_COLUMNS) fprintf(out, "\n      "), column = 6;
            column += fprintf(out, " %s", text);
        }
        fprintf(out, "\n");
    }
    for (int tick = 0; !list && tick < pipeline_makespan(t); tick++) {
        fprintf(out, "  %4d", tick);
        for (int r = 0; r < t->p; r++) {
            const PipelineOp* op = pipeline_op(t, r, 0);
            while (next[r] < t->list && op[next[r]].end <= tick) next[r]++;
            op += next[r];
            snprintf(text, sizeof text, "%s", next[r] < t->list && op->begin < tick ? "|" : ".");
            if (next[r] < t->list && op->begin == tick) pipeline_text(text, t, op);
            fprintf(out, "  %-*s", r + 1 < t->p ? width : 0, text);
        }
        fprintf(out, "\n");
    }
    free(next);
    fprintf(out,
        "  Fm.s%s: slice s of sequence m forward%s, 1 tick; B: backward, 2 ticks (|); .: idle; %d ticks: 1 "
        "unit\n",
        t->v > 1 ? "/g" : "", t->v > 1 ? " through stage g" : "", pipeline_ticks(t));
    return 0;
}

// The table as an SVG picture: a row a rank, time to the right, a box an op, hatched what a rank is idle.
// Forwards have the first half of the colours, backwards the second, by sequence.
static void pipeline_row(const Pipeline* t, int rank, double scale, double y, FILE* out) {
    const double box = row_box(t->p);
    int end = pipeline_makespan(t);
    for (int i = 0, last = 0; i <= t->list; i++) {
        const PipelineOp* op = pipeline_op(t, rank, i);
        int begin = i < t->list ? op->begin : end;
        if (begin > last)
            svg_rect(
                out, "idle", SVG_IDLE, FIGURE_LEFT + last * scale, y, (begin - last) * scale, box, "idle");
        if (i == t->list) break;
        char colour[8], text[PIPELINE_TEXT];
        pipeline_text(text, t, op);
        svg_colour(colour, op->m + op->backward * t->M, 2 * t->M);
        svg_rect(out, "op", colour, FIGURE_LEFT + begin * scale, y, (op->end - begin) * scale, box, text);
        box_label(out, row_text(t->p), FIGURE_LEFT + begin * scale, y, (op->end - begin) * scale, box, text);
        last = op->end;
    }
}
static void pipeline_picture(const Pipeline* t, const PipelineCost* cost, FILE* out) {
    char title[128], head[256], volume[96];
    const double top = 40 + FIGURE_HEAD, bottom = top + t->p * row_height(t->p) + 4;
    const double unit = pipeline_ticks(t);
    const double scale = (FIGURE_WIDTH - FIGURE_LEFT - FIGURE_RIGHT) / (double)pipeline_makespan(t);
    const double step = ceil(cost->makespan / 24);
    snprintf(title, sizeof title, "A pipeline of %d rank%s by the schedule %s: who computes what, when", t->p,
        t->p == 1 ? "" : "s", pipeline_name(t->kind));
    pipeline_words(head, volume, t, cost);
    svg_open(out, FIGURE_WIDTH, bottom + 60, title);
    svg_text(out, 17, SVG_START, FIGURE_LEFT, 28, "%s", title);
    svg_text(out, 14, SVG_START, FIGURE_LEFT, 58, "%s %s", head, volume);
    for (int r = 0; r < t->p; r++) {
        double y = top + r * row_height(t->p);
        svg_text(out, 11, SVG_END, FIGURE_LEFT - 8, y + row_box(t->p) / 2 + 4, "rank %d", r);
        pipeline_row(t, r, scale, y, out);
    }
    svg_line(out, "axis", SVG_INK, FIGURE_LEFT, bottom, FIGURE_WIDTH - FIGURE_RIGHT, bottom);
    for (double at = 0; at <= cost->makespan + 1e-9; at += step) {
        double x = FIGURE_LEFT + at * unit * scale;
        svg_line(out, "tick", SVG_INK, x, bottom, x, bottom + 4);
        svg_text(out, 10, SVG_MIDDLE, x, bottom + 15, "%g", at);
    }
    svg_text(out, 10, SVG_END, FIGURE_WIDTH - FIGURE_RIGHT, bottom + 30,
        "time in units: 1 is a slice's forward and backward through a rank's layers");
    svg_text(out, 10, SVG_START, FIGURE_LEFT, bottom + 48,
        "Fm.s%s: slice s of sequence m forward%s; B: backward; hatched: idle", t->v > 1 ? "/g" : "",
        t->v > 1 ? " through stage g" : "");
    svg_close(out);
}

// ===== 6. parameters and memory plan ============================================================
//
// Of every parameter a run has four states: weights, gradients, and AdamW's moments m and v. Words for what a
// rank has of them:
//
//     unit      parameters that are gathered and summed as one: the embeddings, each layer, the final norm,
//               the positions. Each is padded so that it splits into equal slices, one for each rank
//     slice     a rank's share of a unit
//     sharded   a state of which ranks keep their slices only. --zero 0: none; 1: the moments; 2: and the
//               gradients; 3: and the weights
//     own       a unit of which a rank never needs more than its slice: the positions, where each rank's rows
//               of a sequence are its slice of wpe (positions_own). No other rank reads these rows or has a
//               gradient for them, so the slice is all that the rank has of any state
//     held      the numbers of a unit that this rank has of a state (see Held)
//
//     unit u            | slice of rank 0 | slice of rank 1 | ... | slice of rank W - 1, padding at its end |
//     state's buffer    unit 0 | unit 1 | unit 2 | ... | the positions, or a slice of them if they are own
//     ... if sharded    slice of unit 0 | slice of unit 1 | ...         this rank's, of all units
//
// Code that computes, sends or stores does not look at --zero or `own`: it asks `holding` how a rank holds a
// unit, and `held` which of its numbers lie where. (The plan and messages name the stage.) All memory of
// a rank is one Arena; the plan is the same walk through it that later hands out the pointers.

// What the model is, for one replica.
typedef struct {
    int64_t L, NH, HS, C, V, Vp;   // the letters of the opening essay
    int64_t T;                     // tokens of a sequence
    int64_t B;                     // sequences of a pass
    int64_t N;                     // rows of wpe, at least T: the longest context that the model can have
} Shape;

// Kinds of units, in the order in which a forward pass needs them. Buffers have them in another order: the
// embeddings, the layers, the final norm, the positions.
enum { UNIT_EMBED, UNIT_POSITIONS, UNIT_LAYER, UNIT_FINAL, UNIT_KINDS };
enum { INIT_NORMAL, INIT_RESIDUAL, INIT_ZERO, INIT_ONE };   // N(0, 0.02), the same / sqrt(2L), 0, 1

// Every parameter once: name, Hugging Face's name, unit, rows, columns (0: a vector); whether Hugging Face
// stores it transposed (its Conv1D keeps (in, out)), whether AdamW decays it, whether --center takes the mean
// over its outputs from it; initial values. Matrices are (out, in).
// clang-format off
#define PARAMETERS(X) \
    X(wte,      "wte.weight",           UNIT_EMBED, s->Vp,    s->C,     0, 1, 0, INIT_NORMAL) \
    X(wpe,      "wpe.weight",           UNIT_POSITIONS, s->N, s->C,     0, 0, 0, INIT_NORMAL) \
    X(ln1w,     "ln_1.weight",          UNIT_LAYER, s->C,     0,        0, 0, 0, INIT_ONE) \
    X(ln1b,     "ln_1.bias",            UNIT_LAYER, s->C,     0,        0, 0, 0, INIT_ZERO) \
    X(qkvw,     "attn.c_attn.weight",   UNIT_LAYER, 3 * s->C, s->C,     1, 1, 0, INIT_NORMAL) \
    X(qkvb,     "attn.c_attn.bias",     UNIT_LAYER, 3 * s->C, 0,        0, 0, 0, INIT_ZERO) \
    X(attprojw, "attn.c_proj.weight",   UNIT_LAYER, s->C,     s->C,     1, 1, 1, INIT_RESIDUAL) \
    X(attprojb, "attn.c_proj.bias",     UNIT_LAYER, s->C,     0,        0, 0, 1, INIT_ZERO) \
    X(ln2w,     "ln_2.weight",          UNIT_LAYER, s->C,     0,        0, 0, 0, INIT_ONE) \
    X(ln2b,     "ln_2.bias",            UNIT_LAYER, s->C,     0,        0, 0, 0, INIT_ZERO) \
    X(fcw,      "mlp.c_fc.weight",      UNIT_LAYER, 4 * s->C, s->C,     1, 1, 0, INIT_NORMAL) \
    X(fcb,      "mlp.c_fc.bias",        UNIT_LAYER, 4 * s->C, 0,        0, 0, 0, INIT_ZERO) \
    X(fcprojw,  "mlp.c_proj.weight",    UNIT_LAYER, s->C,     4 * s->C, 1, 1, 1, INIT_RESIDUAL) \
    X(fcprojb,  "mlp.c_proj.bias",      UNIT_LAYER, s->C,     0,        0, 0, 1, INIT_ZERO) \
    X(lnfw,     "ln_f.weight",          UNIT_FINAL, s->C,     0,        0, 0, 0, INIT_ONE) \
    X(lnfb,     "ln_f.bias",            UNIT_FINAL, s->C,     0,        0, 0, 0, INIT_ZERO)
// clang-format on

enum {
#define X(name, hf, unit, rows, columns, transposed, decay, centred, init) P_##name,
    PARAMETERS(X)
#undef X
        PARAMETER_COUNT
};
typedef struct {
    const char* hf;
    int unit;
    int64_t rows, columns;
    int transposed, decay, centred, init;
} Parameter;

// One row of the table above, for a shape.
static Parameter parameter(const Shape* s, int id) {
    const Parameter table[] = {
#define X(name, hf, unit, rows, columns, transposed, decay, centred, init) \
    {hf, unit, rows, columns, transposed, decay, centred, init},
        PARAMETERS(X)
#undef X
    };
    return table[id];
}
static int64_t parameter_elements(const Parameter* p) { return p->rows * (p->columns ? p->columns : 1); }

// Hugging Face's name of a parameter of unit u, after a prefix: that of a model's tensors, "m." or "v."
// and it, or none.
#define MODEL_PREFIX "transformer."
static void tensor_name(char* out, size_t size, const char* prefix, const Parameter* p, int u) {
    if (p->unit == UNIT_LAYER) snprintf(out, size, "%sh.%d.%s", prefix, u - 1, p->hf);
    else snprintf(out, size, "%s%s", prefix, p->hf);
}

// Where a parameter begins in its unit.
static int64_t parameter_offset(const Shape* s, int id) {
    int64_t offset = 0;
    int unit = parameter(s, id).unit;
    for (int i = 0; i < id; i++) {
        Parameter p = parameter(s, i);
        if (p.unit == unit) offset += parameter_elements(&p);
    }
    return offset;
}

// The states of the parameters, each in a buffer of its own.
enum { STATE_WEIGHTS, STATE_GRADIENTS, STATE_M, STATE_V, STATES };   // m, v: AdamW's moments
static const int SHARDED_FROM_ZERO[STATES] = {3, 2, 1, 1};   // the --zero from which on ranks hold slices

enum { SLICE_PADDING = 16 };   // a rank's slice of a unit is a multiple of so many elements

// A unit, and where it lies in the two kinds of buffers.
typedef struct {
    int kind, own;          // UNIT_...; see the head of this section
    int64_t elements;       // without padding
    int64_t slice;          // elements of one rank's slice
    int64_t offset;         // of the unit, or of an own slice, in a buffer of all units
    int64_t shard_offset;   // of a slice in a buffer that holds one rank's slices
    // Of its parameters: what their learning rate is times that of the step (rates_choose). 0: frozen, which
    // is without a gradient (gradient), so that the norm leaves it out, and without an update.
    double rate[PARAMETER_COUNT];
} Unit;

// All units and buffers, the same on all ranks.
typedef struct {
    Unit* units;   // (L + 3)
    int count;
    int world;                // ranks that share them
    int64_t elements;         // of all units, padded
    int sharded[STATES];      // a state's buffer holds this rank's slices; else whole units
    int64_t buffer[STATES];   // numbers in it
    int64_t largest;          // of the units that are not own, padded: one is brought together at a time
    int64_t parameters;       // that are trained, padding of the vocabulary left out
    int64_t within[PARAMETER_COUNT];   // where each parameter begins in its unit
    int64_t known_positions;           // rows of wpe from this one on are new: their rate is wpe's times
    double new_rate;                   // this, --lr-scale-new
} Layout;

// Activations of a layer for R = B*Tl rows: name, numbers per row, and the recompute modes that keep them for
// every layer. The other modes compute them again in the backward pass, in memory that layers share; sqrt
// keeps none of them.
enum {
    KEEP_NONE = 1 << GPT2_SP_NONE,
    KEEP_GELU = 1 << GPT2_SP_GELU,
    KEEP_ATTN = 1 << GPT2_SP_ATTN,
    KEEP_LAYER = 1 << GPT2_SP_LAYER
};
// clang-format off
#define ACTIVATIONS(X) \
    X(x,     s->C,     KEEP_NONE | KEEP_GELU | KEEP_ATTN | KEEP_LAYER)  /* input: the residual stream */ \
    X(ln1,   s->C,     KEEP_NONE) \
    X(rstd1, 1,        KEEP_NONE)                                       /* 1 / root mean square */ \
    X(q,     s->C,     KEEP_NONE | KEEP_GELU)                           /* (B, NH, Tl, HS) */ \
    X(kv,    2 * s->C, KEEP_NONE | KEEP_GELU)                           /* (B, 2, NH, Tl, HS) */ \
    X(atty,  s->C,     KEEP_NONE | KEEP_GELU | KEEP_ATTN)               /* attention's output, (R, C) */ \
    X(lse,   s->NH,    KEEP_NONE | KEEP_GELU | KEEP_ATTN)               /* log-sum-exp, (B, NH, Tl) */ \
    X(x2,    s->C,     KEEP_NONE | KEEP_GELU)                           /* the stream after attention */ \
    X(ln2,   s->C,     KEEP_NONE) \
    X(rstd2, 1,        KEEP_NONE) \
    X(fch,   4 * s->C, KEEP_NONE | KEEP_GELU)                           /* MLP before the GELU */ \
    X(gelu,  4 * s->C, KEEP_NONE)
// clang-format on

enum {
#define X(name, columns, keep) A_##name,
    ACTIVATIONS(X)
#undef X
        ACTIVATION_COUNT
};
typedef struct {
    const char* name;
    int64_t columns;   // numbers per row
    int keep;          // bits KEEP_...
} Activation;
static Activation activation(const Shape* s, int id) {
    const Activation table[] = {
#define X(name, columns, keep) {#name, columns, keep},
        ACTIVATIONS(X)
#undef X
    };
    return table[id];
}
// Whether a mode keeps an activation for every layer. The shape plays no part in that.
static int activation_kept(int id, int mode) {
    Shape none;
    memset(&none, 0, sizeof none);
    return activation(&none, id).keep >> mode & 1;
}

// Layers that are computed again at a time: --recompute sqrt keeps the input of every k-th layer and redoes k
// layers; the other modes redo one.
static int64_t segment_layers(const Shape* s, int mode) {
    return mode == GPT2_SP_SQRT ? (int64_t)ceil(sqrt((double)s->L)) : 1;
}
// For how many layers there is memory for an activation: layer l has copy l % copies.
static int64_t activation_copies(const Shape* s, int id, int mode) {
    return activation_kept(id, mode) ? s->L : min_i64(s->L, segment_layers(s, mode));
}

// What memory is for; a row of the plan each.
// clang-format off
#define MEMORY_GROUPS(X) \
    X(WEIGHTS, "weights") X(GRADIENTS, "gradients") X(OPTIMIZER, "optimizer state") \
    X(KEPT, "activations kept") X(WORK, "work buffers") X(LOGITS, "logits chunk") \
    X(EXCHANGE, "exchange buffers") X(DATA, "tokens and labels")
// clang-format on
enum {
#define X(name, text) MEMORY_##name,
    MEMORY_GROUPS(X)
#undef X
        MEMORY_GROUP_COUNT
};
static const char* const MEMORY_NAMES[] = {
#define X(name, text) text,
    MEMORY_GROUPS(X)
#undef X
};

// The row of the plan in which each state is counted.
static const int STATE_MEMORY[STATES] = {
    MEMORY_WEIGHTS, MEMORY_GRADIENTS, MEMORY_OPTIMIZER, MEMORY_OPTIMIZER};

// One allocation for everything a rank needs. It is walked twice by the same function: first without
// memory, to plan, then with it, to hand out pointers; so the plan cannot differ from what is used.
typedef struct {
    char* base;   // NULL while planning
    size_t used;
    size_t group[MEMORY_GROUP_COUNT];   // bytes of each group
} Arena;

// Memory for `elements` of `size` bytes, at a multiple of 64 bytes; NULL while planning.
static void* arena_take(Arena* a, int group, int64_t elements, size_t size) {
    size_t bytes = ((size_t)elements * size + 63) & ~(size_t)63;
    void* p = a->base ? a->base + a->used : NULL;
    a->used += bytes, a->group[group] += bytes;
    return p;
}
static real* arena_reals(Arena* a, int group, int64_t elements) {
    return (real*)arena_take(a, group, elements, sizeof(real));
}

// A range of heads; part_heads: those of a table's parts h0 to h1 - 1.
typedef struct {
    int64_t first, count;
} Heads;
static Heads part_heads(const Shape* s, const Schedule* table, int h0, int h1) {
    int64_t first = s->NH * h0 / table->head_parts;
    Heads heads = {first, s->NH * h1 / table->head_parts - first};
    return heads;
}

typedef struct Mesh Mesh;
typedef struct Rank Rank;

// What a rank does in a second, for projected times.
typedef struct {
    double gflops, attention_gflops;   // of matrix products; of attention, forward and backward together
    double link_gbs, copy_gbs;         // each way between two ranks; memory read and written
    int ranks;                         // that have these rates at once; more share them. 0: any number have
} Rates;

// A job is what all ranks of a process do together (ranks_run), with an argument of its own. 0, or -1 with a
// line in r->error.
typedef int (*RankJob)(Rank* r, gpt2_sp* g, void* argument);

// What works on the ranks' memory: the CPU's functions below, or the GPU program's.
typedef struct {
    // Refuses options that the device does not have.
    int (*check)(const Mesh* mesh, const gpt2_sp_options* o, Error* e);
    // The memory of a rank, without allocating it.
    Arena (*plan)(const Mesh* mesh, const Layout* layout, int world_rank);
    uint64_t (*memory)(const Mesh* mesh);   // bytes that the ranks of this machine may take together
    int (*allocate)(Rank* r, Error* e);
    void (*release)(Rank* r);
    RankJob init;        // fresh weights; no argument
    RankJob load;        // LoadJob
    RankJob save;        // SaveJob
    RankJob step;        // StepJob
    RankJob gradients;   // Gradients: those of the ranks' batches, without an update
    // Numbers begin .. begin + n - 1 of a unit, all of which the rank holds of that state: to `out`, or from
    // `from`. Between jobs; all ranks write before the next one.
    int (*numbers_read)(Rank* r, int state, int u, int64_t begin, int64_t n, real* out);
    int (*numbers_set)(Rank* r, int state, int u, int64_t begin, int64_t n, const real* from);
    // One pass: forward, and backward if r->learn. Evaluation reads r->token_loss and r->token_hit after it.
    int (*pass)(Rank* r, int64_t pass);
    // A decoder reads tokens and keeps their keys and values. open: with room for `capacity` tokens; NULL and
    // a line in g->error if that fails. read: n tokens that stand at positions p.., and what the cache had
    // from there on is forgotten; gives the logits (rows, Vp), the first V of each, of what follows the last
    // `rows` of them: 1, or up to FEW_ROWS if that is n. As long as n is at most FEW_ROWS, a token's logits
    // do not depend, to the bit, on how many are read together. 0, or -1 and a line in g->error.
    void* (*decoder_open)(gpt2_sp* g, int64_t capacity);
    int (*decoder_read)(
        void* decoder, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits);
    void (*decoder_close)(void* decoder);
    int (*verify)(gpt2_sp* g);   // --verify
    // Measures them, on a model of the mesh's width. 0, or -1 with a line.
    int (*rates)(Rates* rates, const Mesh* mesh, Error* e);
    int item_bytes[ITEM_KINDS];   // of an element of each kind of item, on the wire
    int (*count)(int ranks);      // how many of `ranks` can have a device of their own, for --sp 0; NULL: 1
    int processes;                // its ranks may be in several
} Device;

// How a run is split and what it keeps: all that the plan depends on.
struct Mesh {
    const Device* device;
    Shape shape;
    int dp, sp, world, zero, recompute, center, doc_mask, training;
    double pos_shift;              // 0 where nothing is learnt
    int first_rank, local_ranks;   // world ranks that this process holds
    int process, processes;        // this process, and all of the run
    // The same among those on this machine, in the order of their numbers: to choose GPUs by.
    int local_process, local_processes;
    int threads;   // of a rank
    int64_t passes, logits_chunk;
    const Schedule* schedule;   // [2]: forward, backward
};

// Samples of a step.
static uint64_t step_samples(const Mesh* mesh) { return (uint64_t)(mesh->passes * mesh->dp * mesh->shape.B); }

// Whether a batch says which row of wpe each row takes; else that is its place in the sequence.
static int positions_told(const Mesh* mesh) { return mesh->doc_mask || mesh->pos_shift > 0; }

// Whether the positions are `own`: a rank reads the same rows of wpe in every sequence, these are its slice,
// and no other rank reads them. Not so with replicas, with positions that the batch tells (of documents, of
// shifted sequences), with a table of more rows than a sequence has tokens, where a rank has rows of both
// ends (zigzag, allgather), or where the rows do not divide evenly into padded slices.
static int positions_own(const Mesh* mesh) {
    const Shape* s = &mesh->shape;
    return mesh->training && mesh->sp > 1 && mesh->dp == 1 && !positions_told(mesh) && s->N == s->T &&
        s->T % mesh->sp == 0 && s->T / mesh->sp * s->C % SLICE_PADDING == 0 &&
        rank_segments(mesh->schedule->kind, mesh->sp, s->T, 0).count == 1;
}

// Lays out the units for a mesh; layout->units is the caller's to free, also after an error.
static int layout_init(Layout* layout, const Mesh* mesh, Error* e) {
    const Shape* s = &mesh->shape;
    memset(layout, 0, sizeof *layout);
    int64_t all = 0, slices = 0;
    layout->count = (int)s->L + 3, layout->world = mesh->world;
    layout->known_positions = s->N, layout->new_rate = 1;
    layout->units = (Unit*)calloc((size_t)layout->count, sizeof *layout->units);
    if (!layout->units) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int id = 0; id < PARAMETER_COUNT; id++) layout->within[id] = parameter_offset(s, id);
    for (int u = 0; u < layout->count; u++) {
        Unit* unit = &layout->units[u];
        unit->kind = u == 0 ? UNIT_EMBED
            : u <= s->L     ? UNIT_LAYER
            : u == s->L + 1 ? UNIT_FINAL
                            : UNIT_POSITIONS;
        unit->own = unit->kind == UNIT_POSITIONS && positions_own(mesh);
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            unit->rate[id] = 1;
            if (p.unit == unit->kind) unit->elements += parameter_elements(&p);
        }
        unit->slice = round_up(ceil_div(unit->elements, mesh->world), SLICE_PADDING);
        int64_t whole = unit->slice * mesh->world;
        unit->offset = all, unit->shard_offset = slices;
        all += unit->own ? unit->slice : whole, slices += unit->slice;
        layout->elements += whole;
        if (!unit->own) layout->largest = max_i64(layout->largest, whole);
        layout->parameters += unit->elements;
    }
    layout->parameters -= (s->Vp - s->V) * s->C;
    for (int state = 0; state < STATES; state++) {
        layout->sharded[state] = mesh->zero >= SHARDED_FROM_ZERO[state];
        layout->buffer[state] = layout->sharded[state] ? slices : all;
    }
    return 0;
}
// The unit of the positions. It is the last one: as it may be own, the buffers of whole units end with all of
// it or with a rank's slice of it.
static int positions_unit(const Layout* layout) { return layout->count - 1; }

// How every rank holds a state of a unit.
enum {
    HELD_WHOLE,   // all of it
    HELD_SLICE,   // its slice: the unit comes together where a layer needs it
    HELD_OWN      // its slice, which is all that it ever needs
};
static int holding(const Layout* layout, int state, int u) {
    if (layout->units[u].own) return HELD_OWN;
    return layout->sharded[state] ? HELD_SLICE : HELD_WHOLE;
}
// Whether every rank holds all of a state. The positions tell: they are split wherever another unit is.
static int holds_all(const Layout* layout, int state) {
    return holding(layout, state, positions_unit(layout)) == HELD_WHOLE;
}
// Whether each rank has the rows of wpe that its tokens need and no others.
static int positions_apart(const Layout* layout) {
    return holding(layout, STATE_WEIGHTS, positions_unit(layout)) == HELD_OWN;
}

// What one thread works in (section 7). An attention kernel: a block of BQ queries and BK keys. A matrix
// product: blocks of k, columns and rows, chosen so that B's block stays in the L2 cache (`make bench` prints
// the share of the peak that they reach).
enum { KC = 256, NC = 384, MC = 96 };
enum { BQ = 48, BK = 128, HS_MAX = 256 };
// HP: HS rounded up to whole panels of NR columns.
typedef struct {
    real keys[HS_MAX * BK];     // K^T of the block, in panels of columns
    real values[HS_MAX * BK];   // forward: V (BK, HP); backward: V^T in panels
    real rows[HS_MAX * BK];     // backward: K (BK, HP)
    real dk[BK * HS_MAX], dv[BK * HS_MAX];
    real scores[BQ * BK], dscores[BQ * BK];
    real out[BQ * HS_MAX], in[BQ * HS_MAX];   // blocks of rows padded to HP columns
} AttentionScratch;
typedef struct {
    real panels[KC * NC];   // a block of B, in panels of columns
    real packed[MC * KC];   // a block of A, tile by tile
} ProductScratch;
typedef union {   // a thread does one of them at a time
    AttentionScratch attention;
    ProductScratch product;
} Scratch;

// What the program around a trainer hears of a job that is under way, and answers (gpt2_sp_on_progress). Only
// the first rank of the process, which runs on the thread of the program's call, changes it.
typedef struct {
    int (*call)(void* user, const gpt2_sp_progress* progress);   // NULL: this process' program hears nothing
    void* user;
    gpt2_sp_progress progress;
    Host program;   // what the program's thread had when it called
} Report;

// One rank: its place, its memory, its part of the step. Pointers go into its arena.
struct Rank {
    int world_rank;
    Place place;
    // All ranks; those of its sequence; those that share the units and sum their gradients.
    Group all, sequence, sharing;
    void* device;   // the GPU program's part
    const Mesh* mesh;
    const Layout* layout;
    Transport transport;
    Segments segments;   // the rows of a sequence that it holds
    int64_t Tl, R;       // R = B * Tl
    Arena arena;         // all of its memory but the lists of slots

    real* state[STATES];   // what this rank holds of the weights, the gradients, m and v (see held)
    real* whole_unit[2];   // where a unit's weights, or its gradients, come together if it holds slices
    int gathered;          // the unit whose weights are there; -1: none

    real* act[ACTIVATION_COUNT];   // (copies, R, columns)
    real* segment_inputs;          // --recompute sqrt: inputs of every k-th layer
    real* x_final;                 // (R, C) output of the last layer
    real* lnf;                     // (R, C)
    real* rstdf;                   // (R)
    real* wide;                    // (R, 4C) QKV before it is split by heads; gradients of the MLP and of QKV
    real* narrow;                  // (R, C) projections; gradients
    real* narrow2;                 // (R, C) gradient of attention's output
    real* dx;                      // (R, C) gradient of the residual stream
    real *att_out, *att_m, *att_l;   // (NH, Tl, HS), (NH, Tl) x 2: the running softmax of one sequence
    real *att_do, *att_delta;        // (NH, Tl, HS), (NH, Tl)
    real *att_dq, *att_dkv;          // (NH, Tl, HS), (2, NH, Tl, HS)
    real** slots[2];                 // exchange buffers of the forward and the backward table
    unsigned char* slot_filled;      // a result lies in the slot
    Piece* pieces;                   // of one step: sends, then receives
    unsigned char *op_active, *message_active, *mark;   // see schedule_prune
    int64_t* first_key;                                 // (chunks) the same
    Scratch* scratch;                                   // one per thread
    real* logits;                                       // (logits_chunk, Vp)
    real* token_loss;                                   // (R)
    unsigned char* token_hit;                           // (R) evaluation: the likeliest token was right
    RankBatch batches[3];                               // in use, read ahead, evaluation's
    const RankBatch* batch;                             // of the pass that runs
    int learn;                                          // it computes gradients
    Report* report;   // of the job in hand; NULL: no process' program hears of it
    int cancelled;    // a program has ended the job, alike on all ranks

    double loss_sum;                              // of the pass or step, not yet divided
    int64_t valid_tokens;                         // of the whole step, over all ranks
    int64_t layer_forwards, attention_forwards;   // how often they ran, recomputation included
    uint64_t bytes_sent;                          // to other ranks by attention
    Trace* recorder;                              // --profile, --trace: where steps are recorded
    Error error;
};

// Numbers of a slot that is made for an item, for a rank of that many rows.
static int64_t slot_elements(const Mesh* mesh, const Schedule* s, Item item, int64_t rows) {
    int64_t heads = ceil_div(mesh->shape.NH * (item.h1 - item.h0), s->head_parts);
    return heads * rows * (item_width(item.kind) * mesh->shape.HS + item_stats(item.kind));
}

// What a rank holds of a unit: its numbers [begin, begin + n), which lie from `at` on in the state's buffer.
// Of a whole unit n leaves the padding out, of a slice it does not.
typedef struct {
    int64_t at, begin, n;
} Held;
// Where in a unit this rank's slice begins.
static int64_t slice_begin(const Rank* r, int u) { return r->sharing.index * r->layout->units[u].slice; }
static Held held(const Rank* r, int state, int u) {
    const Unit* unit = &r->layout->units[u];
    Held whole = {unit->offset, 0, unit->elements}, slice = {unit->offset, slice_begin(r, u), unit->slice};
    if (r->layout->sharded[state]) slice.at = unit->shard_offset;
    return holding(r->layout, state, u) == HELD_WHOLE ? whole : slice;
}
// Where in a state's buffer this rank has number `number` of a unit. It must hold that number.
static int64_t held_at(const Rank* r, int state, int u, int64_t number) {
    Held h = held(r, state, u);
    return h.at + number - h.begin;
}
// The row of wpe to which weight(.., P_wpe) points: the first of all, or the first of this rank's own.
static int64_t positions_first(const Rank* r) {
    return positions_apart(r->layout) ? r->segments.begin[0] : 0;
}

// Walks through all memory of a rank: counts it in r->arena, and hands out the pointers once the arena has
// memory.
static void rank_layout(Rank* r) {
    const Mesh* mesh = r->mesh;
    const Layout* layout = r->layout;
    const Shape* s = &mesh->shape;
    Arena* a = &r->arena;
    int64_t R = r->R, C = s->C;
    for (int state = 0; state < (mesh->training ? STATES : 1); state++) {
        r->state[state] = arena_reals(a, STATE_MEMORY[state], layout->buffer[state]);
        if (state <= STATE_GRADIENTS && layout->sharded[state])
            r->whole_unit[state] = arena_reals(a, STATE_MEMORY[state], layout->largest);
    }
    for (int id = 0; id < ACTIVATION_COUNT; id++) {
        Activation act = activation(s, id);
        int kept = mesh->training && activation_kept(id, mesh->recompute);
        int64_t copies = mesh->training ? activation_copies(s, id, mesh->recompute) : 1;
        r->act[id] = arena_reals(a, kept ? MEMORY_KEPT : MEMORY_WORK, copies * R * act.columns);
    }
    int sqrt_mode = mesh->training && mesh->recompute == GPT2_SP_SQRT;
    r->segment_inputs =
        arena_reals(a, MEMORY_KEPT, sqrt_mode ? ceil_div(s->L, segment_layers(s, GPT2_SP_SQRT)) * R * C : 0);
    r->x_final = arena_reals(a, MEMORY_WORK, R * C);
    r->lnf = arena_reals(a, MEMORY_WORK, R * C);
    r->rstdf = arena_reals(a, MEMORY_WORK, R);
    r->wide = arena_reals(a, MEMORY_WORK, R * 4 * C);
    r->narrow = arena_reals(a, MEMORY_WORK, R * C);
    r->att_out = arena_reals(a, MEMORY_WORK, r->Tl * C);
    r->att_m = arena_reals(a, MEMORY_WORK, r->Tl * s->NH);
    r->att_l = arena_reals(a, MEMORY_WORK, r->Tl * s->NH);
    if (mesh->training) {
        r->narrow2 = arena_reals(a, MEMORY_WORK, R * C);
        r->dx = arena_reals(a, MEMORY_WORK, R * C);
        r->att_do = arena_reals(a, MEMORY_WORK, r->Tl * C);
        r->att_delta = arena_reals(a, MEMORY_WORK, r->Tl * s->NH);
        r->att_dq = arena_reals(a, MEMORY_WORK, r->Tl * C);
        r->att_dkv = arena_reals(a, MEMORY_WORK, r->Tl * 2 * C);
    }
    r->scratch = (Scratch*)arena_take(a, MEMORY_WORK, mesh->threads, sizeof(Scratch));
    r->logits = arena_reals(a, MEMORY_LOGITS, min_i64(mesh->logits_chunk, R) * s->Vp);
    r->token_loss = arena_reals(a, MEMORY_LOGITS, R);
    r->token_hit = (unsigned char*)arena_take(a, MEMORY_LOGITS, R, 1);
    int64_t most_rows = 0, most_slots = 0, most_ops = 0, most_messages = 0;
    for (int i = 0; i < mesh->sp; i++)
        most_rows = max_i64(most_rows, rank_segments(mesh->schedule->kind, mesh->sp, s->T, i).total);
    size_t exchange = a->used, largest = 0, exchange_group = a->group[MEMORY_EXCHANGE];
    // the slots of the forward and of the backward table share memory: the tables run one after the other
    for (int direction = 0; direction <= mesh->training; direction++) {
        const Schedule* table = &mesh->schedule[direction];
        a->used = exchange, a->group[MEMORY_EXCHANGE] = exchange_group;
        int count = table->slot_count[r->place.sp];
        for (int i = 0; i < count; i++) {
            real* slot = arena_reals(a, MEMORY_EXCHANGE,
                slot_elements(
                    mesh, table, table->slot_items[(size_t)r->place.sp * MAX_SLOTS + (size_t)i], most_rows));
            if (r->slots[direction]) r->slots[direction][i] = slot;
        }
        if (a->used - exchange > largest) largest = a->used - exchange;
        most_slots = max_i64(most_slots, count);
        most_ops = max_i64(most_ops, table->op_count),
        most_messages = max_i64(most_messages, table->message_count);
    }
    a->used = exchange + largest, a->group[MEMORY_EXCHANGE] = exchange_group + largest;
    r->slot_filled = (unsigned char*)arena_take(a, MEMORY_EXCHANGE, most_slots, 1);
    r->pieces = (Piece*)arena_take(a, MEMORY_EXCHANGE, 2 * MAX_PIECES * (2 * mesh->sp + 2), sizeof(Piece));
    r->op_active = (unsigned char*)arena_take(a, MEMORY_EXCHANGE, most_ops, 1);
    r->message_active = (unsigned char*)arena_take(a, MEMORY_EXCHANGE, most_messages, 1);
    r->mark = (unsigned char*)arena_take(a, MEMORY_EXCHANGE, (int64_t)mesh->sp * mesh->sp * ITEM_KINDS, 1);
    r->first_key = (int64_t*)arena_take(a, MEMORY_EXCHANGE, mesh->schedule->chunks, sizeof(int64_t));
    for (int i = 0; i < 3; i++) {
        int64_t sequences = i == 2 ? s->B : mesh->training ? mesh->passes * s->B : 0;
        r->batches[i].tokens = (int32_t*)arena_take(a, MEMORY_DATA, sequences * r->Tl, sizeof(int32_t));
        r->batches[i].labels = (int32_t*)arena_take(a, MEMORY_DATA, sequences * r->Tl, sizeof(int32_t));
        if (positions_told(mesh))
            r->batches[i].positions =
                (int32_t*)arena_take(a, MEMORY_DATA, sequences * r->Tl, sizeof(int32_t));
        r->batches[i].doc_start =
            (int32_t*)arena_take(a, MEMORY_DATA, mesh->doc_mask ? sequences * s->T : 0, sizeof(int32_t));
    }
}

// Makes rank `world_rank` without its memory and its transport: its place, its groups, its rows.
static void rank_place(Rank* r, const Mesh* mesh, const Layout* layout, int world_rank) {
    memset(r, 0, sizeof *r);
    r->mesh = mesh, r->layout = layout;
    r->world_rank = world_rank, r->gathered = -1;
    Place size = {mesh->dp, mesh->sp};
    r->place = place_of(size, world_rank);
    r->all = r->sharing = group_of(size, world_rank, OVER_ALL);
    r->sequence = group_of(size, world_rank, OVER_SP);
    r->segments = rank_segments(mesh->schedule->kind, mesh->sp, mesh->shape.T, r->place.sp);
    r->Tl = r->segments.total, r->R = mesh->shape.B * r->Tl;
}

// Plans one rank's memory without allocating any of it.
static Arena rank_plan(const Mesh* mesh, const Layout* layout, int world_rank) {
    Rank r;
    rank_place(&r, mesh, layout, world_rank);
    rank_layout(&r);
    return r.arena;
}

// Allocates a rank's memory, all zeros, as it was planned. rank_free frees it, also after an error.
static int rank_allocate(Rank* r, Error* e) {
    Arena plan = rank_plan(r->mesh, r->layout, r->world_rank);
    for (int d = 0; d <= r->mesh->training; d++) {
        size_t count = (size_t)r->mesh->schedule[d].slot_count[r->place.sp];
        r->slots[d] = (real**)calloc(count + 1, sizeof *r->slots[d]);
        if (!r->slots[d]) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    }
    void* base = NULL;
    if (posix_memalign(&base, 64, plan.used) != 0)
        return fail(e, "rank %d needs %.2f GiB, which cannot be had: see `plan`", r->world_rank,
            (double)plan.used / 1073741824);
    memset(base, 0, plan.used);
    r->arena.base = (char*)base;
    rank_layout(r);
    return 0;
}

// Frees what rank_allocate has taken.
static void rank_free(Rank* r) {
    free(r->arena.base);
    free(r->slots[0]);
    free(r->slots[1]);
}

// Checks what no single option can: that the numbers fit together.
static int shape_check(const Shape* s, const gpt2_sp_options* o, Error* e) {
    if (s->C % s->NH != 0)
        return fail(e, "--channels %lld is not divisible by --heads %lld", (long long)s->C, (long long)s->NH);
    if (s->HS > HS_MAX)
        return fail(e, "head size %lld (channels / heads): at most %d is supported; use at least %lld heads",
            (long long)s->HS, HS_MAX, (long long)ceil_div(s->C, HS_MAX));
    int64_t chunks = schedule_two_chunks(o->schedule) ? 2 * o->sp : o->sp;
    if (s->T < chunks)
        return fail(e, "--seq-len %lld is too short for %lld chunks (--sp %lld --schedule %s)",
            (long long)s->T, (long long)chunks, (long long)o->sp, schedule_name(o->schedule));
    if (s->N < s->T)
        return fail(e, "--n-positions %lld: a sequence of --seq-len %lld needs a row for each of its tokens",
            (long long)s->N, (long long)s->T);
    if (s->T * s->B > (int64_t)1 << 31)
        return fail(e, "--batch-size %lld x --seq-len %lld: more than 2^31 tokens in a pass", (long long)s->B,
            (long long)s->T);
    return 0;
}

// The same of the options of positions and of the window ramp.
static int positions_check(const Shape* s, const gpt2_sp_options* o, Error* e) {
    if (o->pos_from == GPT2_SP_FROM_DOCUMENT && !o->doc_mask)
        return fail(e, "--pos-from document needs --doc-mask 1, with which positions are those in documents");
    if (o->pos_shift > 0 && o->pos_from == GPT2_SP_FROM_DOCUMENT)
        return fail(e, "--pos-shift %g: with --pos-from document a sequence begins where its document says",
            o->pos_shift);
    if (o->pos_shift > 0 && s->N == s->T)
        return fail(e,
            "--pos-shift %g has no effect: --n-positions is --seq-len, %lld, so that no sequence "
            "can begin later",
            o->pos_shift, (long long)s->T);
    int none = o->positions == GPT2_SP_NO_POSITIONS;
    if (o->fade_steps > 0 && !none)
        return fail(e, "--fade-steps %lld needs --positions none", (long long)o->fade_steps);
    if (o->pos_shift > 0 && none && o->fade_steps == 0)
        return fail(e, "--pos-shift %g has no effect: with --positions none wpe is zero from the start",
            o->pos_shift);
    if (o->window_ramp > 0 && !o->doc_mask)
        return fail(e, "--window-ramp %lld needs --doc-mask 1: its blocks are borders in the documents' mask",
            (long long)o->window_ramp);
    if (o->window_ramp > s->T)
        return fail(e, "--window-ramp %lld is longer than --seq-len %lld", (long long)o->window_ramp,
            (long long)s->T);
    return 0;
}

// What a control group, as containers have them, leaves of the machine.
typedef struct {
    uint64_t bytes;   // of memory; UINT64_MAX: all
    double cores;     // share of processor time, in cores; HUGE_VAL: all
} GroupLimits;

// The first word of a small file as a number; -1 where there is no such file or number ("max" is none). rest:
// becomes the number after it, if not NULL and there is one.
static double number_file(const char* path, double* rest) {
    char text[128] = "", *end;
    FILE* f = fopen(path, "r");
    if (f && !fgets(text, sizeof text, f)) text[0] = 0;
    if (f) fclose(f);
    double value = strtod(text, &end);
    if (rest) *rest = strtod(strncmp(text, "max", 3) == 0 ? text + 3 : end, NULL);
    return end == text ? -1 : value;
}

// The limits of one group's folder, of version 2 or, by controller, of version 1.
static void group_limits_at(const char* folder, const char* controllers, GroupLimits* l) {
    char path[2 * GPT2_SP_TEXT + 64];
    double period = 0, bytes, quota;
    int v2 = controllers[0] == 0;
    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "memory.max" : "memory.limit_in_bytes");
    bytes = v2 || strstr(controllers, "memory") ? number_file(path, NULL) : -1;
    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "cpu.max" : "cpu.cfs_quota_us");
    quota = v2 || strstr(controllers, "cpu") ? number_file(path, v2 ? &period : NULL) : -1;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (!v2 && quota > 0) period = number_file(path, NULL);
    if (bytes >= 0 && bytes < (double)l->bytes) l->bytes = (uint64_t)bytes;
    if (quota > 0 && period > 0) l->cores = fmin(l->cores, quota / period);
}

// The limits of this process: the least of its groups' and of all groups above them. membership is
// /proc/self/cgroup, root /sys/fs/cgroup. Lines of the former are "NUMBER:CONTROLLERS:/GROUP"; version 2's
// names no controllers, and version 1 has a folder for each list of them. A container may see only the root.
static GroupLimits group_limits(const char* membership, const char* root) {
    GroupLimits l = {UINT64_MAX, HUGE_VAL};
    char line[GPT2_SP_TEXT], folder[2 * GPT2_SP_TEXT];
    FILE* f = fopen(membership, "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *controllers++ = 0, *group++ = 0;
        for (char* cut = group + strlen(group); cut; cut = strrchr(group, '/')) {
            *cut = 0;
            snprintf(folder, sizeof folder, "%s%s%s%s", root, controllers[0] ? "/" : "", controllers, group);
            group_limits_at(folder, controllers, &l);
        }
    }
    if (f) fclose(f);
    return l;
}
static GroupLimits own_limits(void) { return group_limits("/proc/self/cgroup", "/sys/fs/cgroup"); }

// The cores that this process may use; *bound: a launcher has bound it to cores of its own.
static int64_t usable_cores(int* bound) {
    cpu_set_t own;
    int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t usable = sched_getaffinity(0, sizeof own, &own) == 0 ? CPU_COUNT(&own) : cores;
    if (bound) *bound = usable < cores;
    return max_i64(1, (int64_t)fmin((double)usable, own_limits().cores));
}

// Threads of a rank: --threads, or the cores that this process may use, divided by the ranks that share them.
static int mesh_threads(const Mesh* mesh, const gpt2_sp_options* o) {
#ifdef _OPENMP
    int bound;
    int64_t usable = usable_cores(&bound), sharing = bound ? 1 : mesh->local_processes;
    return (int)(o->threads ? o->threads : max_i64(1, usable / (mesh->local_ranks * sharing)));
#else
    (void)mesh, (void)o;
    return 1;
#endif
}

// --sp 0: as many ranks as all processes have devices, divided by --dp. The processes of a machine share its
// devices evenly; a process that sees fewer devices than the machine has processes gets one rank. The CPU
// program counts one device a process.
static int ranks_choose(gpt2_sp_options* o, const Device* device, int local_processes, Error* e) {
    if (o->sp > 0) return 0;
    int64_t devices = device->count && !o->verify ? device->count(256 * local_processes) : 1;
    int64_t ranks = max_i64(1, devices / local_processes) * max_i64(1, o->world);
    o->sp = max_i64(1, ranks / o->dp);
    if (ranks > o->dp && ranks % o->dp != 0)
        return fail(e,
            "--dp %lld: %lld ranks (--sp 0: one for each GPU, or process of the CPU program) cannot be "
            "divided evenly among the "
            "replicas",
            (long long)o->dp, (long long)ranks);
    return 0;
}

// A model's sizes from options that all have a value.
static Shape shape_of(const gpt2_sp_options* o, int64_t vocab) {
    Shape s = {o->layers, o->heads, o->channels / o->heads, o->channels, vocab, round_up(vocab, 128),
        o->seq_len, o->batch_size, o->n_positions ? o->n_positions : o->seq_len};
    return s;
}

// Fills in a mesh from options and checks it. `schedules` may be empty still (mesh_init makes them), or be
// those of another length: a table does not depend on it.
static int mesh_shape(Mesh* mesh, Schedule schedules[2], const gpt2_sp_options* o, int64_t vocab,
    int training, const Device* device, Error* e) {
    memset(mesh, 0, sizeof *mesh);
    mesh->device = device;
    mesh->shape = shape_of(o, vocab);
    mesh->dp = (int)o->dp, mesh->sp = (int)o->sp;
    mesh->world = mesh->dp * mesh->sp, mesh->zero = (int)o->zero;
    mesh->recompute = o->recompute, mesh->center = (int)o->center;
    mesh->doc_mask = (int)o->doc_mask;
    mesh->pos_shift = training ? o->pos_shift : 0;
    mesh->process = (int)o->rank, mesh->processes = (int)max_i64(1, o->world);
    mesh->local_processes = 1;
    if (mesh->world % mesh->processes != 0)
        return fail(e, "%d ranks (--dp %d x --sp %d) cannot be divided evenly over --world %d processes",
            mesh->world, mesh->dp, mesh->sp, mesh->processes);
    mesh->local_ranks = mesh->world / mesh->processes, mesh->first_rank = mesh->process * mesh->local_ranks;
    mesh->training = training, mesh->passes = o->grad_accum;
    mesh->logits_chunk = o->logits_chunk, mesh->schedule = schedules;
    mesh->threads = mesh_threads(mesh, o);
    if (shape_check(&mesh->shape, o, e) != 0 || positions_check(&mesh->shape, o, e) != 0) return -1;
    return device->check(mesh, o, e);
}

// The same with its schedules, which the caller has zeroed and frees, also after an error.
static int mesh_init(Mesh* mesh, Schedule schedules[2], const gpt2_sp_options* o, int64_t vocab, int training,
    const Device* device, Error* e) {
    if (mesh_shape(mesh, schedules, o, vocab, training, device, e) != 0) return -1;
    if (schedule_build(&schedules[0], o->schedule, mesh->sp, 0, mesh->shape.NH, e) != 0) return -1;
    return schedule_build(&schedules[1], o->schedule, mesh->sp, 1, mesh->shape.NH, e);
}

// --- what fits ---

// Bytes that all ranks of this process need.
static uint64_t mesh_bytes(const Mesh* mesh, const Layout* layout) {
    uint64_t bytes = 0;
    for (int r = 0; r < mesh->sp; r++) {   // replicas are alike
        uint64_t count = 0;
        for (int i = mesh->first_rank; i < mesh->first_rank + mesh->local_ranks; i++)
            count += i % mesh->sp == r;
        if (count > 0) bytes += (uint64_t)mesh->device->plan(mesh, layout, r).used * count;
    }
    return bytes;
}

// Memory of the machine, or what a container leaves of it: the CPU's Device.memory.
static uint64_t machine_bytes(const Mesh* mesh) {
    (void)mesh;
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE),
             own = own_limits().bytes;
    return own < machine ? own : machine;
}

// The plan of the rank of a sequence that needs most.
static Arena fullest_rank(const Mesh* mesh, const Layout* layout) {
    Arena fullest = mesh->device->plan(mesh, layout, 0);
    for (int r = 1; r < mesh->sp; r++) {
        Arena arena = mesh->device->plan(mesh, layout, r);
        if (arena.used > fullest.used) fullest = arena;
    }
    return fullest;
}

// The longest context, or with `batch` the largest batch, whose fullest rank fits in `bytes`, all else equal;
// 0 if none does. Found by bisection, in two passes: lengths that the ranks share evenly (multiples of
// `even`) may need less memory than those between them, as positions can be own only there. The first pass
// finds the longest of these, the second looks at the lengths beyond it.
static int64_t largest_fit(const gpt2_sp_options* options, int batch, int64_t vocab, int training,
    const Device* device, uint64_t bytes) {
    gpt2_sp_options o = *options;
    int64_t common = SLICE_PADDING, fits = 0, most = batch ? 65536 : 1 << 24, chunks,
            *asked = batch ? &o.batch_size : &o.seq_len;
    // common: the greatest common divisor of channels and the padding, which is a power of 2
    while (o.channels % common != 0) common /= 2;
    int64_t even = batch ? 1 : o.sp * (SLICE_PADDING / common);
    Schedule schedules[2];   // the same for every length
    Error e;
    chunks = schedule_two_chunks(o.schedule) ? 2 * o.sp : o.sp;
    memset(schedules, 0, sizeof schedules);
    for (int d = 0; d < 2; d++)
        if (schedule_build(&schedules[d], o.schedule, (int)o.sp, d, o.heads, &e) != 0) most = 0;
    for (int pass = 0; pass < 2; pass++) {
        int64_t step = pass == 0 ? even : 1, low = fits / step + 1,
                high = pass == 0 ? most / step : min_i64(most, fits + even - 1);
        while (low <= high) {
            Mesh mesh;
            Layout layout;
            memset(&layout, 0, sizeof layout);
            int64_t middle = (low + high) / 2;
            *asked = middle * step;
            int possible = mesh_shape(&mesh, schedules, &o, vocab, training, device, &e) == 0 &&
                layout_init(&layout, &mesh, &e) == 0;
            if (possible && fullest_rank(&mesh, &layout).used <= bytes) fits = *asked, low = middle + 1;
            else if (!possible && o.seq_len < chunks && !batch) low = middle + 1;
            else high = middle - 1;
            free(layout.units);
        }
    }
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    return fits;
}
static int64_t longest_context(
    const gpt2_sp_options* options, int64_t vocab, int training, const Device* device, uint64_t bytes) {
    return largest_fit(options, 0, vocab, training, device, bytes);
}

// ===== 7. layers (forward, backward) ============================================================
//
// The functions that a layer is a list of, each forward function followed by its backward. Arguments are the
// outputs first, then the inputs, then the sizes; shapes are in the letters of the opening essay. The rule
// for what a backward function does to its outputs:
//
//     gradients of parameters                dweight += ...     passes, and the two uses of wte, add up
//     gradients of activations               dinp = ...         what was there is overwritten
//     the gradient of the residual stream    dx += ...          each branch adds its part (RMSNorm's dinp)
//
//     x -+- RMSNorm - QKV - attention - projection -+-> x2 -+- RMSNorm - MLP, GELU - projection -+-> next x
//        +------------------------------------------+       +------------------------------------+
//
// Threads share rows, columns or heads of what is written, never a sum: their number changes no bit.
// Attention runs over all ranks of a sequence: a kernel for one head of one pair of chunks, and the executor
// of a schedule's table around it.

// --- matrix products ---
//
// All of them go through one micro-kernel. It holds MR rows times NR columns of sums in vector registers
// while k runs; for each k it loads NV vectors, a row of B, and broadcasts one number of A for each row of
// sums. AVX-512: 12 x 2 registers hold the sums, 2 the row of B; AVX: 6 x 2 of 16; AArch64: 8 x 2 of 32, as
// the numbers of A take registers too.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, MR = 12 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, MR = 6 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, MR = 8 };
#else
enum { VECTOR_BYTES = 16, MR = 4 };
#endif
typedef real Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
enum { VECTOR = VECTOR_BYTES / (int)sizeof(real), NV = 2, NR = NV * VECTOR };
#if defined(__CUDACC__) || defined(__clang__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

// c (rows, NR) = or += a (rows, K) b (K, NR). Callers give `rows` as a constant: all sums get registers.
INLINE void micro_kernel(int rows, int64_t K, const real* a, int64_t a_row, int64_t a_column, const real* b,
    int64_t b_row, real* c, int64_t c_row, int add) {
    const Vector zero = {0};
    Vector sum[MR][NV];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < NV; v++) sum[i][v] = zero;
    for (int64_t k = 0; k < K; k++) {
        Vector row[NV];
        UNROLL for (int v = 0; v < NV; v++) row[v] = *(const Vector*)(b + k * b_row + v * VECTOR);
        UNROLL for (int i = 0; i < rows; i++) {
            real x = a[i * a_row + k * a_column];
            UNROLL for (int v = 0; v < NV; v++) sum[i][v] += x * row[v];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < NV; v++) {
        Vector* out = (Vector*)(c + i * c_row + v * VECTOR);
        if (add) *out += sum[i][v];
        else *out = sum[i][v];
    }
}

// An operand of a product: element (i, j) is p[i row + j column]. The functions make one of a matrix that
// lies by rows, of the transpose of such a matrix, and of the part of a matrix that begins at an element.
typedef struct {
    const real* p;
    int64_t row, column;
} Matrix;
static Matrix by_rows(const real* p, int64_t columns) {
    Matrix m = {p, columns, 1};
    return m;
}
static Matrix transposed(const real* p, int64_t columns) {
    Matrix m = {p, 1, columns};
    return m;
}
static Matrix part_of(Matrix m, int64_t i, int64_t j) {
    m.p += i * m.row + j * m.column;
    return m;
}

// Any number of rows against one panel of NR columns.
static void panel_product(
    int64_t rows, int64_t K, Matrix a, const real* b, int64_t b_row, real* c, int64_t c_row, int add) {
    int64_t i = 0;
    for (; i + MR <= rows; i += MR)
        micro_kernel(MR, K, a.p + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, add);
    for (; i + 4 <= rows; i += 4)
        micro_kernel(4, K, a.p + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, add);
    for (; i < rows; i++)
        micro_kernel(1, K, a.p + i * a.row, a.row, a.column, b, b_row, c + i * c_row, c_row, add);
}

// Copies a (K, columns) block of B into panels of NR columns, zeros beyond its edge.
static void pack_panels(real* out, Matrix b, int64_t K, int64_t columns) {
    for (int64_t j = 0; j < columns; j += NR, out += K * NR) {
        int64_t n = min_i64(NR, columns - j);
        if (n < NR) memset(out, 0, (size_t)(K * NR) * sizeof(real));
        if (b.column == 1)
            for (int64_t k = 0; k < K; k++)
                memcpy(out + k * NR, b.p + k * b.row + j, (size_t)n * sizeof(real));
        else
            for (int64_t k0 = 0; k0 < K; k0 += VECTOR)   // a cache line of each row of B at a time
                for (int64_t i = 0; i < n; i++)
                    for (int64_t k = k0; k < min_i64(k0 + VECTOR, K); k++)
                        out[k * NR + i] = b.p[k * b.row + (j + i) * b.column];
    }
}

// Rows of the next tile when `left` are left.
INLINE int64_t tile_rows(int64_t left) { return left >= MR ? (int64_t)MR : left >= 4 ? 4 : 1; }

// Copies a (rows, K) block of A, tile by tile of tile_rows, so that the numbers that the micro-kernel
// broadcasts for one k lie side by side.
static void pack_rows(real* out, Matrix a, int64_t rows, int64_t K) {
    for (int64_t i = 0, n; i < rows; i += n) {
        n = tile_rows(rows - i);
        for (int64_t k = 0; k < K; k++)
            for (int64_t r = 0; r < n; r++) *out++ = a.p[(i + r) * a.row + k * a.column];
    }
}

// One task of gemm: a block of at most NC columns of C. Where the last panel of a block has less than NR
// columns, the micro-kernel writes to `edge`, from which the real columns are added to C.
static void gemm_columns(real* c, int64_t c_row, int64_t M, int64_t N, int64_t K, Matrix a, Matrix b,
    const real* bias, int accumulate, ProductScratch* w) {
    real *panels = w->panels, *packed = w->packed;
    real edge[MC * NR] __attribute__((aligned(64)));
    int pack = N >= NC / 2;   // copying A pays where many columns use it
    if (!accumulate)
        for (int64_t i = 0; i < M; i++) {
            if (bias) memcpy(c + i * c_row, bias, (size_t)N * sizeof(real));
            else memset(c + i * c_row, 0, (size_t)N * sizeof(real));
        }
    for (int64_t k0 = 0; k0 < K; k0 += KC) {
        int64_t k = min_i64(KC, K - k0);
        pack_panels(panels, part_of(b, k0, 0), k, N);
        for (int64_t i0 = 0; i0 < M; i0 += MC) {
            int64_t rows = min_i64(MC, M - i0);
            Matrix block = part_of(a, i0, k0);
            if (pack) pack_rows(packed, block, rows, k);
            for (int64_t j = 0; j < N; j += NR) {
                int whole = j + NR <= N;
                real* out = whole ? c + i0 * c_row + j : edge;
                int64_t out_row = whole ? c_row : (int64_t)NR;
                if (!pack) panel_product(rows, k, block, panels + j * k, NR, out, out_row, whole);
                else {
                    const real* tile = packed;
                    for (int64_t i = 0, n; i < rows; i += n, tile += n * k) {
                        n = tile_rows(rows - i);
                        if (n == MR)
                            micro_kernel(
                                MR, k, tile, 1, MR, panels + j * k, NR, out + i * out_row, out_row, whole);
                        else if (n == 4)
                            micro_kernel(
                                4, k, tile, 1, 4, panels + j * k, NR, out + i * out_row, out_row, whole);
                        else
                            micro_kernel(
                                1, k, tile, 1, 1, panels + j * k, NR, out + i * out_row, out_row, whole);
                    }
                }
                if (!whole)
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t n = j; n < N; n++) c[(i0 + i) * c_row + n] += edge[i * NR + n - j];
            }
        }
    }
}

// Threads that a parallel loop of this rank has, and which of them the caller is.
static int thread_count(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static int thread_index(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// C (M, N) = or += A (M, K) B (K, N) (+ bias (N)), rows of C c_row apart. Threads share the columns; where
// these are few, the rows. w: a Scratch for each thread.
static void gemm(real* c, int64_t c_row, int64_t M, int64_t N, int64_t K, Matrix a, Matrix b,
    const real* bias, int accumulate, Scratch* w) {
    int64_t threads = thread_count(), split_rows = N < threads * 4 * NR && M > N;
    int64_t width = split_rows ? N : round_up(ceil_div(N, threads * ceil_div(N, threads * NC)), NR);
    if (width > NC) width = NC;
    int64_t height = split_rows ? round_up(ceil_div(M, threads), MC) : M;
    int64_t across = ceil_div(N, width), tasks = across * ceil_div(M, height);
    PARALLEL_FOR
    for (int64_t task = 0; task < tasks; task++) {
        int64_t j = task % across * width, i = task / across * height;
        gemm_columns(c + i * c_row + j, c_row, min_i64(height, M - i), min_i64(width, N - j), K,
            part_of(a, i, 0), part_of(b, 0, j), bias ? bias + j : NULL, accumulate,
            &w[thread_index()].product);
    }
}

// Rows that a decoder reads at once in a way that does not depend on their number.
enum { FEW_ROWS = GPT2_SP_DRAFT_TOKENS + 1 };

// The sum of a[c] * b[c]. One function, so that its order of additions is one.
static real dot_product(const real* a, const real* b, int64_t C) __attribute__((noinline));
static real dot_product(const real* a, const real* b, int64_t C) {
    real sum = 0;
    SIMD_SUM(sum)
    for (int64_t c = 0; c < C; c++) sum += a[c] * b[c];
    return sum;
}

// out (R, OC) = inp (R, C) weight (OC, C)^T + bias (OC). Of few rows each element is a sum of its own, and
// the weights are read once, in place.
static void cpu_matmul_forward(real* out, const real* inp, const real* weight, const real* bias, int64_t R,
    int64_t C, int64_t OC, Scratch* w) {
    if (R > FEW_ROWS) {
        gemm(out, OC, R, OC, C, by_rows(inp, C), transposed(weight, C), bias, 0, w);
        return;
    }
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(OC, 64); block++)
        for (int64_t o = block * 64; o < min_i64(OC, block * 64 + 64); o++)
            for (int64_t t = 0; t < R; t++)
                out[t * OC + o] = dot_product(inp + t * C, weight + o * C, C) + (bias ? bias[o] : 0);
}

// dinp (R, C) = dout (R, OC) weight; dweight += dout^T inp; dbias += column sums of dout. dweight and dbias
// may be NULL.
static void cpu_matmul_backward(real* dinp, real* dweight, real* dbias, const real* dout, const real* inp,
    const real* weight, int64_t R, int64_t C, int64_t OC, Scratch* w) {
    gemm(dinp, C, R, C, OC, by_rows(dout, OC), by_rows(weight, C), NULL, 0, w);
    if (dweight) gemm(dweight, C, OC, C, R, transposed(dout, OC), by_rows(inp, C), NULL, 1, w);
    if (!dbias) return;
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(OC, 64); block++) {
        real sum[64] = {0};
        int64_t o = block * 64, n = min_i64(64, OC - o);
        for (int64_t t = 0; t < R; t++)
            for (int64_t i = 0; i < n; i++) sum[i] += dout[t * OC + o + i];
        for (int64_t i = 0; i < n; i++) dbias[o + i] += sum[i];
    }
}

// --- elementwise ---

// e^x. For floats a degree-6 polynomial on [-ln2/2, ln2/2] (Cephes' scheme; relative error below 2.5e-7) that
// the compiler turns into vector code; below -87, also for -inf, it gives e^-87 = 1.6e-38.
INLINE real exp_real(real x) {
#if GPT2_SP_REAL_BYTES == 8
    return exp(x);
#else
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    // adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693145752f - n * 1.42860677e-6f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    float power;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;   // 2^n; of a NaN anything, as p is a NaN then
    memcpy(&power, &bits, sizeof power);
    return p * power;
#endif
}

// out (R, C) = rows of inp without their mean; out may be inp
static void cpu_center_rows(real* out, const real* inp, int64_t R, int64_t C) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(R, 64); block++)
        for (int64_t t = block * 64; t < min_i64(R, block * 64 + 64); t++) {
            real mean = 0;
            SIMD_SUM(mean)
            for (int64_t c = 0; c < C; c++) mean += inp[t * C + c];
            mean /= (real)C;
            SIMD
            for (int64_t c = 0; c < C; c++) out[t * C + c] = inp[t * C + c] - mean;
        }
}

// x (R, C) = wte[token]
static void cpu_embedding_forward(real* x, const int32_t* tokens, const real* wte, int64_t R, int64_t C) {
    for (int64_t t = 0; t < R; t++) memcpy(x + t * C, wte + tokens[t] * C, (size_t)C * sizeof(real));
}

// dwte[token] += dx, which is centred in place first if `center`: the gradient of a centred row is centred.
// dwte NULL: it is centred only.
static void cpu_embedding_backward(
    real* dwte, real* dx, const int32_t* tokens, int center, int64_t R, int64_t C) {
    if (center) cpu_center_rows(dx, dx, R, C);
    for (int64_t t = 0; dwte && t < R; t++)
        for (int64_t c = 0; c < C; c++) dwte[tokens[t] * C + c] += dx[t * C + c];
}

// x (Tl, C) of one sequence += wpe[position], then each row's mean is subtracted if `center`. The position of
// a row is that of positions (Tl), or, if that is NULL, that in the sequence: seg counts rows from the row to
// which wpe points.
static void cpu_position_forward(
    real* x, const Segments* seg, const int32_t* positions, const real* wpe, int center, int64_t C) {
    for (int64_t s = 0, t = 0; s < seg->count; s++)
        for (int64_t i = 0; i < seg->rows[s]; i++, t++) {
            int64_t position = positions ? positions[t] : seg->begin[s] + i;
            for (int64_t c = 0; c < C; c++) x[t * C + c] += wpe[position * C + c];
        }
    if (center) cpu_center_rows(x, x, seg->total, C);
}

// dwpe[position] += dx (Tl, C), which cpu_embedding_backward has centred, in the order of the rows; dwpe
// NULL: nothing
static void cpu_position_backward(
    real* dwpe, const real* dx, const Segments* seg, const int32_t* positions, int64_t C) {
    for (int64_t s = 0, t = 0; dwpe && s < seg->count; s++)
        for (int64_t i = 0; i < seg->rows[s]; i++, t++) {
            int64_t position = positions ? positions[t] : seg->begin[s] + i;
            for (int64_t c = 0; c < C; c++) dwpe[position * C + c] += dx[t * C + c];
        }
}

// out = inp * rstd * weight + bias, rstd = 1 / sqrt(mean(inp^2) + 1e-5); rows of C (Zhang & Sennrich 2019,
// with a bias)
static void cpu_rmsnorm_forward(
    real* out, real* rstd, const real* inp, const real* weight, const real* bias, int64_t R, int64_t C) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(R, 64); block++)
        for (int64_t t = block * 64; t < min_i64(R, block * 64 + 64); t++) {
            const real* x = inp + t * C;
            real sum = 0;
            SIMD_SUM(sum)
            for (int64_t c = 0; c < C; c++) sum += x[c] * x[c];
            real scale = 1 / (real)sqrt((double)(sum / (real)C) + 1e-5);
            SIMD
            for (int64_t c = 0; c < C; c++) out[t * C + c] = x[c] * scale * weight[c] + bias[c];
            rstd[t] = scale;
        }
}

// With g = dout * weight:
//     dinp += rstd * (g - inp * rstd^2 * mean(g * inp)), dweight += dout * inp * rstd, dbias += dout
// dweight and dbias may be NULL.
static void cpu_rmsnorm_backward(real* dinp, real* dweight, real* dbias, const real* dout, const real* inp,
    const real* rstd, const real* weight, int64_t R, int64_t C) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(R, 64); block++)
        for (int64_t t = block * 64; t < min_i64(R, block * 64 + 64); t++) {
            const real *x = inp + t * C, *dy = dout + t * C;
            real dot = 0, scale = rstd[t];
            SIMD_SUM(dot)
            for (int64_t c = 0; c < C; c++) dot += dy[c] * weight[c] * x[c];
            real pull = dot / (real)C * scale * scale;
            SIMD
            for (int64_t c = 0; c < C; c++) dinp[t * C + c] += scale * (dy[c] * weight[c] - x[c] * pull);
        }
    if (!dweight && !dbias) return;
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(C, 64); block++) {
        real gain[64] = {0}, shift[64] = {0};
        int64_t c = block * 64, n = min_i64(64, C - c);
        for (int64_t t = 0; t < R; t++)
            for (int64_t i = 0; i < n; i++)
                gain[i] += dout[t * C + c + i] * inp[t * C + c + i] * rstd[t],
                    shift[i] += dout[t * C + c + i];
        for (int64_t i = 0; dweight && i < n; i++) dweight[c + i] += gain[i];
        for (int64_t i = 0; dbias && i < n; i++) dbias[c + i] += shift[i];
    }
}

#define GELU_SCALE ((real)0.7978845608028654)   // sqrt(2 / pi)
#define GELU_CUBIC ((real)0.044715)

// tanh(u) = 1 - 2 / (1 + e^2u), in the form that does not overflow
INLINE real tanh_real(real u) {
#if GPT2_SP_REAL_BYTES == 8
    return tanh(u);
#else
    return 1 - 2 / (1 + exp_real(2 * u));
#endif
}

// out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016), n numbers
static void cpu_gelu_forward(real* out, const real* inp, int64_t n) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(n, 4096); block++) {
        int64_t end = min_i64(n, block * 4096 + 4096);
        SIMD_EXP
        for (int64_t i = block * 4096; i < end; i++) {
            real x = inp[i];
            out[i] = (real)0.5 * x * (1 + tanh_real(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
        }
    }
}

// dinout *= gelu'(inp), n numbers
static void cpu_gelu_backward(real* dinout, const real* inp, int64_t n) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(n, 4096); block++) {
        int64_t end = min_i64(n, block * 4096 + 4096);
        SIMD_EXP
        for (int64_t i = block * 4096; i < end; i++) {
            real x = inp[i], th = tanh_real(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
            real slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x);
            dinout[i] *= (real)0.5 * (1 + th) + (real)0.5 * x * (1 - th * th) * slope;
        }
    }
}

// out (R, C) = x + y, the rows of y without their mean if `center`. That is the same as a projection whose
// weights and bias are centred over their outputs.
static void cpu_residual_forward(real* out, const real* x, const real* y, int center, int64_t R, int64_t C) {
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(R, 64); block++)
        for (int64_t t = block * 64; t < min_i64(R, block * 64 + 64); t++) {
            real mean = 0;
            SIMD_SUM(mean)
            for (int64_t c = 0; c < C; c++) mean += y[t * C + c];
            mean = center ? mean / (real)C : 0;
            SIMD
            for (int64_t c = 0; c < C; c++) out[t * C + c] = x[t * C + c] + (y[t * C + c] - mean);
        }
}
// The gradient of a branch's output (R, C) from the residual stream's: centred if the output was.
static void cpu_residual_backward(real* dbranch, const real* dx, int center, int64_t R, int64_t C) {
    if (center) cpu_center_rows(dbranch, dx, R, C);
    else memcpy(dbranch, dx, (size_t)(R * C) * sizeof(real));
}

// Cross-entropy of logits (R, Vp), of which the first V columns count. losses (R): -log p[label], 0 where
// label is -1; hits (R): whether the likeliest token is the label. With grad_scale != 0 the logits become the
// gradient of grad_scale * loss, in place; else they are left as scratch.
static void cpu_crossentropy(real* losses, unsigned char* hits, real* logits, const int32_t* labels,
    real grad_scale, int64_t R, int64_t V, int64_t Vp) {
    PARALLEL_FOR
    for (int64_t t = 0; t < R; t++) {
        real *row = logits + t * Vp, most = row[0], sum = 0;
        if (labels[t] < 0) {
            losses[t] = 0, hits[t] = 0;
            if (grad_scale != 0) memset(row, 0, (size_t)Vp * sizeof(real));
            continue;
        }
        SIMD_MAX(most)
        for (int64_t v = 0; v < V; v++) most = row[v] > most ? row[v] : most;
        real target = row[labels[t]];
        SIMD_EXP_SUM(sum)
        for (int64_t v = 0; v < V; v++) sum += row[v] = exp_real(row[v] - most);
        losses[t] = (real)log((double)sum) + most - target;
        hits[t] = target == most;
        if (grad_scale == 0) continue;
        real scale = grad_scale / sum;
        SIMD
        for (int64_t v = 0; v < V; v++) row[v] *= scale;
        row[labels[t]] -= grad_scale;
        memset(row + V, 0, (size_t)(Vp - V) * sizeof(real));
    }
}

// --- flash attention of one head, one chunk of queries against one chunk of keys ---
//
// Rows of HS numbers; q_position and k_position are the absolute positions of the first rows. Key j is
// visible to query i iff doc_start[i] <= j <= i, all absolute (doc_start, of the queries' rows, may be NULL).
// Blocks of BQ queries and BK keys: the scores of a block live in cache only (Dao et al. 2022, 2023).

// Visible keys of query row i in the block of n keys that begins at absolute position k0: [*low, *high).
INLINE void visible_keys(int64_t i, int64_t q_position, int64_t k0, int64_t n, const int32_t* doc_start,
    int64_t* low, int64_t* high) {
    *low = doc_start && doc_start[i] > k0 ? min_i64(n, doc_start[i] - k0) : 0;
    *high = min_i64(n, q_position + i - k0 + 1);
    if (*high < *low) *high = *low;
}

// Copies rows, cut or filled with zeros to another number of columns: from HS to whole panels and back.
static void copy_padded(real* out, int64_t out_columns, const real* in, int64_t in_columns, int64_t rows) {
    int64_t n = min_i64(out_columns, in_columns);
    for (int64_t i = 0; i < rows; i++) {
        memcpy(out + i * out_columns, in + i * in_columns, (size_t)n * sizeof(real));
        for (int64_t c = n; c < out_columns; c++) out[i * out_columns + c] = 0;
    }
}

// c (rows, columns) = or += a (rows, K) b, the columns of b in panels of NR that are `panel` numbers apart.
static void block_product(real* c, int64_t c_row, int64_t rows, int64_t columns, int64_t K, Matrix a,
    const real* b, int64_t panel, int64_t b_row, int add) {
    for (int64_t j = 0; j < columns; j += NR)
        panel_product(rows, K, a, b + j / NR * panel, b_row, c + j, c_row, add);
}

// A head's queries and keys that meet: rows of HS numbers, and where they stand in the sequence.
typedef struct {
    const real *q, *k, *v;   // (nq, HS), (nk, HS) x 2
    int64_t nq, nk, HS;
    int64_t q_position, k_position;   // of the first rows
    const int32_t* doc_start;         // (nq) of the queries' rows, or NULL
} AttentionPair;

// Adds a pair to the running softmax of its queries' rows: m (nq) is the largest score s so far, l (nq) the
// sum of e^(s - m), o (nq, HS) that of e^(s - m) v. They carry over from one chunk of keys to the next and
// start as 0 (o, l) and -inf (m). In the end the output is o / l, and the log-sum-exp m + log l.
static void cpu_attention_forward_head(
    real* o, real* m, real* l, const AttentionPair* p, AttentionScratch* w) {
    const real *q = p->q, *k = p->k, *v = p->v;
    const int32_t* doc_start = p->doc_start;
    int64_t nq = p->nq, nk = p->nk, HS = p->HS, q_position = p->q_position, k_position = p->k_position;
    int64_t HP = round_up(HS, NR);
    real scale = 1 / (real)sqrt((double)HS);
    for (int64_t j0 = 0; j0 < nk; j0 += BK) {
        int64_t nj = min_i64(BK, nk - j0), k0 = k_position + j0;
        pack_panels(w->keys, transposed(k + j0 * HS, HS), HS, nj);
        copy_padded(w->values, HP, v + j0 * HS, HS, nj);
        for (int64_t i0 = max_i64(0, k0 - q_position); i0 < nq; i0 += BQ) {
            int64_t ni = min_i64(BQ, nq - i0), low, high;
            if (doc_start && doc_start[i0] >= k0 + nj) break;        // so are all later rows'
            int64_t seen = min_i64(nj, q_position + i0 + ni - k0);   // keys that the last row sees
            block_product(w->scores, BK, ni, seen, HS, by_rows(q + i0 * HS, HS), w->keys, HS * NR, NR, 0);
            real* out = HS == HP ? o + i0 * HS : w->out;
            if (HS != HP) copy_padded(out, HP, o + i0 * HS, HS, ni);
            for (int64_t i = 0; i < ni; i++) {
                real *s = w->scores + i * BK, most = m[i0 + i], sum = 0;
                visible_keys(i0 + i, q_position, k0, nj, doc_start, &low, &high);
                SIMD_MAX(most)
                for (int64_t j = low; j < high; j++) most = s[j] * scale > most ? s[j] * scale : most;
                if (low == high) {
                    memset(s, 0, (size_t)seen * sizeof(real));
                    continue;
                }
                for (int64_t j = 0; j < low; j++) s[j] = 0;
                SIMD_EXP_SUM(sum)
                for (int64_t j = low; j < high; j++) sum += s[j] = exp_real(s[j] * scale - most);
                for (int64_t j = high; j < seen; j++) s[j] = 0;
                real shrink = l[i0 + i] > 0 ? exp_real(m[i0 + i] - most) : 0;
                l[i0 + i] = l[i0 + i] * shrink + sum, m[i0 + i] = most;
                if (shrink != 1)
                    for (int64_t c = 0; c < HP; c++) out[i * HP + c] *= shrink;
            }
            block_product(out, HP, ni, HP, seen, by_rows(w->scores, BK), w->values, NR, HP, 1);
            if (HS != HP) copy_padded(o + i0 * HS, HS, out, HP, ni);
        }
    }
}

// dq (nq, HS), dk, dv (nk, HS) += the pair's share. dout (nq, HS), the final lse (nq) and delta (nq), which
// is rowsum(dO * O), are those of the queries' rows.
//     P = e^(s - lse), dV = P^T dO, dS = P (dO V^T - delta), dQ = dS K, dK = dS^T Q
static void cpu_attention_backward_head(real* dq, real* dk, real* dv, const AttentionPair* p,
    const real* dout, const real* lse, const real* delta, AttentionScratch* w) {
    const real *q = p->q, *k = p->k, *v = p->v;
    const int32_t* doc_start = p->doc_start;
    int64_t nq = p->nq, nk = p->nk, HS = p->HS, q_position = p->q_position, k_position = p->k_position;
    int64_t HP = round_up(HS, NR);
    real scale = 1 / (real)sqrt((double)HS);
    for (int64_t j0 = 0; j0 < nk; j0 += BK) {
        int64_t nj = min_i64(BK, nk - j0), k0 = k_position + j0;
        pack_panels(w->keys, transposed(k + j0 * HS, HS), HS, nj);
        pack_panels(w->values, transposed(v + j0 * HS, HS), HS, nj);
        copy_padded(w->rows, HP, k + j0 * HS, HS, nj);
        memset(w->dk, 0, (size_t)(nj * HP) * sizeof(real));
        memset(w->dv, 0, (size_t)(nj * HP) * sizeof(real));
        for (int64_t i0 = max_i64(0, k0 - q_position); i0 < nq; i0 += BQ) {
            int64_t ni = min_i64(BQ, nq - i0), low, high;
            if (doc_start && doc_start[i0] >= k0 + nj) break;
            int64_t seen = min_i64(nj, q_position + i0 + ni - k0);
            block_product(w->scores, BK, ni, seen, HS, by_rows(q + i0 * HS, HS), w->keys, HS * NR, NR, 0);
            block_product(
                w->dscores, BK, ni, seen, HS, by_rows(dout + i0 * HS, HS), w->values, HS * NR, NR, 0);
            for (int64_t i = 0; i < ni; i++) {
                real *s = w->scores + i * BK, *ds = w->dscores + i * BK, z = lse[i0 + i], d = delta[i0 + i];
                visible_keys(i0 + i, q_position, k0, nj, doc_start, &low, &high);
                for (int64_t j = 0; j < low; j++) s[j] = ds[j] = 0;
                SIMD_EXP
                for (int64_t j = low; j < high; j++) {
                    s[j] = exp_real(s[j] * scale - z);
                    ds[j] = s[j] * (ds[j] - d) * scale;
                }
                for (int64_t j = high; j < seen; j++) s[j] = ds[j] = 0;
            }
            const real *rows_do = dout + i0 * HS, *rows_q = q + i0 * HS;
            if (HS != HP) copy_padded(w->in, HP, rows_do, HS, ni), rows_do = w->in;
            block_product(w->dv, HP, seen, HP, ni, transposed(w->scores, BK), rows_do, NR, HP, 1);
            if (HS != HP) copy_padded(w->in, HP, rows_q, HS, ni), rows_q = w->in;
            block_product(w->dk, HP, seen, HP, ni, transposed(w->dscores, BK), rows_q, NR, HP, 1);
            real* out = HS == HP ? dq + i0 * HS : w->out;
            if (HS != HP) copy_padded(out, HP, dq + i0 * HS, HS, ni);
            block_product(out, HP, ni, HP, seen, by_rows(w->dscores, BK), w->rows, NR, HP, 1);
            if (HS != HP) copy_padded(dq + i0 * HS, HS, out, HP, ni);
        }
        for (int64_t j = 0; j < nj; j++)
            for (int64_t c = 0; c < HS; c++)
                dk[(j0 + j) * HS + c] += w->dk[j * HP + c], dv[(j0 + j) * HS + c] += w->dv[j * HP + c];
    }
}

// --- distributed attention: the executor of a schedule's table ---
//
// Every rank runs its part of the table (section 5), forward and backward, on every device:
//
//     step s      post     offers the pieces of the messages that this rank sends
//                 op       computes this rank's ops; their operands came during earlier steps
//                 wait     until the messages to this rank are there, and those from it are taken
//                 merge    adds results that came
//
// Where CPU and GPU differ, a table of functions (TableOps) says how.

// What this rank sends and receives during a step.
typedef struct {
    Piece *sends, *receives;
    int send_count, receive_count;
} Exchange;

// `run` is the device's own, one run of a table.
typedef struct {
    // Fills in the pieces of an item, which lie in the rank's own tensors (slot -1) or in a slot, for a
    // message to or from `peer`; returns how many.
    int (*pieces)(Rank* r, void* run, Item item, int slot, int peer, int sending, Piece* out);
    int (*post)(Rank* r, void* run, const Exchange* x);   // these give 0, or -1 with a line in r->error
    int (*op)(Rank* r, void* run, const ScheduleOp* op);
    int (*wait)(Rank* r, void* run, const Exchange* x);
    int (*merge)(Rank* r, void* run, const ScheduleMessage* msg);
} TableOps;

// Rows of a sequence that rank `of` of it holds (its Tl).
static int64_t rank_rows(const Rank* r, int of) {
    return rank_segments(r->mesh->schedule->kind, r->mesh->sp, r->mesh->shape.T, of).total;
}

// Where a chunk of a sequence lies.
typedef struct {
    int owner, second;   // rank of the sequence that holds it; whether it is the later of its two chunks
    int64_t of_owner;    // rows that the owner holds
    int64_t at, rows;    // of the owner's rows: first, how many
    int64_t position;    // of the first row in the sequence
} Chunk;
static Chunk chunk_place(const Rank* r, const Schedule* table, int chunk) {
    Chunk c;
    c.owner = chunk_owner(table, chunk), c.second = chunk >= table->P;
    Segments g = rank_segments(table->kind, table->P, r->mesh->shape.T, c.owner);
    c.of_owner = g.total, c.at = c.second ? g.rows[0] : 0;
    c.rows = g.rows[c.second], c.position = g.begin[c.second];
    return c;
}

// Called before a table runs for B sequences: empties the slots, and marks the ops and messages that the
// sequences need by their documents (doc_start (B, T); NULL: all). The B sequences share one run, so what any
// of them needs is done for all.
static void table_begin(Rank* r, const Schedule* table, const int32_t* doc_start, int64_t B) {
    int64_t T = r->mesh->shape.T;
    memset(r->slot_filled, 0, (size_t)table->slot_count[r->place.sp]);
    memset(r->op_active, 1, (size_t)table->op_count);
    memset(r->message_active, 1, (size_t)table->message_count);
    if (!doc_start) return;
    for (int c = 0; c < table->chunks; c++) {
        int64_t begin = chunk_begin(T, table->chunks, c);
        r->first_key[c] = doc_start[begin];
        for (int64_t b = 1; b < B; b++) r->first_key[c] = min_i64(r->first_key[c], doc_start[b * T + begin]);
    }
    schedule_prune(table, T, r->first_key, r->op_active, r->message_active, r->mark);
}

// Runs this rank's part of a table, after table_begin. 0, or -1 with a line in r->error.
static int run_table(Rank* r, const Schedule* table, const TableOps* ops, void* run) {
    Exchange x = {r->pieces, r->pieces + MAX_PIECES * (2 * r->mesh->sp + 2), 0, 0};
    for (int step = 0, op = 0, message = 0; step < table->steps; step++) {
        int first = message;
        x.send_count = x.receive_count = 0;
        for (; message < table->message_count && table->messages[message].step == step; message++) {
            const ScheduleMessage* msg = &table->messages[message];
            if (!r->message_active[message]) continue;
            if (msg->to == r->place.sp)
                x.receive_count += ops->pieces(r, run, msg->item, msg->dst,
                    group_rank(&r->sequence, msg->from), 0, x.receives + x.receive_count);
            if (msg->from != r->place.sp) continue;
            int count = ops->pieces(
                r, run, msg->item, msg->src, group_rank(&r->sequence, msg->to), 1, x.sends + x.send_count);
            for (int i = 0; i < count; i++) r->bytes_sent += x.sends[x.send_count++].bytes;
        }
        if (ops->post(r, run, &x) != 0) return -1;
        for (; op < table->op_count && table->ops[op].step == step; op++) {
            int mine = table->ops[op].rank == r->place.sp && r->op_active[op];
            if (mine && ops->op(r, run, &table->ops[op]) != 0) return -1;
        }
        if (ops->wait(r, run, &x) != 0) return -1;
        for (int i = first; i < message; i++) {
            const ScheduleMessage* msg = &table->messages[i];
            if (!r->message_active[i] || !item_is_result(msg->item.kind)) continue;
            if (msg->from == r->place.sp) r->slot_filled[msg->src] = 0;
            if (msg->to != r->place.sp) continue;
            if (!msg->merge) r->slot_filled[msg->dst] = 1;
            else if (ops->merge(r, run, msg) != 0) return -1;
        }
    }
    return 0;
}

// --- the same on the CPU ---

// What one run of a table works on: one sequence of one layer.
typedef struct {
    const Schedule* table;
    real** slots;   // of the table's direction
    // The rank's own tensors, (NH, Tl, HS) or (NH, Tl). Those of the operands Q, KV and QDO are only read.
    real* own[ITEM_KINDS][ITEM_PARTS];
    const int32_t* doc_start;   // (T), or NULL
} AttentionRun;

// Tensor i of an item, in the rank's own tensors (slot -1) or in a slot: where its first head begins, and how
// many numbers further each next one does.
typedef struct {
    real* p;
    int64_t head;
} ItemView;
static ItemView item_view(const Rank* r, const AttentionRun* run, Item item, int slot, int i) {
    const Shape* s = &r->mesh->shape;
    Heads heads = part_heads(s, run->table, item.h0, item.h1);
    int64_t rows = rank_rows(r, item.of);
#define HEAD(tensor) (ITEM_TENSORS[item.kind].wide[tensor] ? rows * s->HS : rows)
    ItemView v = {NULL, HEAD(i)};
    if (slot < 0) v.p = run->own[item.kind][i] + heads.first * v.head;
    else v.p = run->slots[slot];
    for (int j = 0; slot >= 0 && j < i; j++) v.p += heads.count * HEAD(j);
#undef HEAD
    return v;
}

// The end of a running softmax: (o, m, l) becomes (O = o / l, LSE = m + log l), in place; l stays. Rows that
// have seen no key get 0 and -inf.
static void output_finish(real* o, real* m, const real* l, int64_t rows, int64_t HS) {
    for (int64_t i = 0; i < rows; i++) {
        real inverse = l[i] > 0 ? 1 / l[i] : 0;
        for (int64_t c = 0; c < HS; c++) o[i * HS + c] *= inverse;
        m[i] = l[i] > 0 ? m[i] + (real)log((double)l[i]) : -(real)INFINITY;
    }
}

// Merges a partial (O, LSE) into the (o, m, l) of the same rows: as one key of score LSE and value O.
static void output_merge(
    real* o, real* m, real* l, const real* other, const real* other_lse, int64_t rows, int64_t HS) {
    for (int64_t i = 0; i < rows; i++) {
        if (other_lse[i] == -(real)INFINITY) continue;
        real most = m[i] > other_lse[i] ? m[i] : other_lse[i];
        real mine = l[i] > 0 ? exp_real(m[i] - most) : 0, theirs = exp_real(other_lse[i] - most);
        for (int64_t c = 0; c < HS; c++) o[i * HS + c] = o[i * HS + c] * mine + other[i * HS + c] * theirs;
        l[i] = l[i] * mine + theirs, m[i] = most;
    }
}

// A tensor of an item is one piece: its heads lie side by side. A partial output travels as O and LSE, so it
// is finished before it is sent, and its l is not sent.
static int cpu_pieces(Rank* r, void* run, Item item, int slot, int peer, int sending, Piece* out) {
    const Shape* s = &r->mesh->shape;
    int64_t heads = part_heads(s, ((AttentionRun*)run)->table, item.h0, item.h1).count;
    int count = item.kind == ITEM_OUT ? 2 : ITEM_TENSORS[item.kind].count;
    for (int i = 0; i < count; i++) {
        ItemView v = item_view(r, (AttentionRun*)run, item, slot, i);
        out[i].peer = peer, out[i].data = v.p;
        out[i].bytes = (size_t)(heads * v.head) * sizeof(real);
    }
    if (sending && item.kind == ITEM_OUT) {
        real* o = (real*)out[0].data;
        real *m = (real*)out[1].data, *l = item_view(r, (AttentionRun*)run, item, slot, 2).p;
        output_finish(o, m, l, heads * rank_rows(r, item.of), s->HS);
    }
    return count;
}
static int cpu_post(Rank* r, void* run, const Exchange* x) {
    (void)run;
    return r->transport.post(&r->transport, x->sends, x->send_count, &r->error);
}
static int cpu_wait(Rank* r, void* run, const Exchange* x) {
    (void)run;
    return r->transport.wait(
        &r->transport, x->sends, x->send_count, x->receives, x->receive_count, &r->error);
}

// Makes a slot ready for an op that adds its result to it: if there is no sum in it yet, the empty one. Own
// sums (slot -1) were made ready before the run.
static void result_begin(Rank* r, const AttentionRun* run, Item item, int slot) {
    if (slot < 0 || r->slot_filled[slot]) return;
    int64_t heads = part_heads(&r->mesh->shape, run->table, item.h0, item.h1).count;
    for (int i = 0; i < ITEM_TENSORS[item.kind].count; i++) {
        ItemView v = item_view(r, run, item, slot, i);
        real empty = item.kind == ITEM_OUT && i == 1 ? -(real)INFINITY : 0;
        for (int64_t j = 0; j < heads * v.head; j++) v.p[j] = empty;
    }
    r->slot_filled[slot] = 1;
}

// Computes one op, its heads shared among the rank's threads.
static int cpu_op(Rank* r, void* argument, const ScheduleOp* op) {
    const AttentionRun* run = (const AttentionRun*)argument;
    const Schedule* table = run->table;
    const Shape* s = &r->mesh->shape;
    Trace* trace = r->transport.trace;
    const double from = trace_now(trace);
    Chunk q = chunk_place(r, table, op->q), k = chunk_place(r, table, op->k);
    int64_t HS = s->HS, heads = part_heads(s, table, op->h0, op->h1).count;
    Item rows = {table->backward ? ITEM_QDO : ITEM_Q, q.owner, op->h0, op->h1};
    Item keys = {ITEM_KV, k.owner, op->h0, op->h1};
    Item to_rows = {table->backward ? ITEM_DQ : ITEM_OUT, q.owner, op->h0, op->h1};
    Item to_keys = {ITEM_DKV, k.owner, op->h0, op->h1};
    ItemView in[ITEM_PARTS], kv[2], out[ITEM_PARTS], dkv[2];
    for (int i = 0; i < ITEM_TENSORS[rows.kind].count; i++) in[i] = item_view(r, run, rows, op->q_slot, i);
    for (int i = 0; i < ITEM_TENSORS[to_rows.kind].count; i++)
        out[i] = item_view(r, run, to_rows, op->dq_slot, i);
    for (int i = 0; i < 2; i++) {
        kv[i] = item_view(r, run, keys, op->kv_slot, i);
        dkv[i] = item_view(r, run, to_keys, op->dkv_slot, i);
    }
    result_begin(r, run, to_rows, op->dq_slot);
    if (table->backward) result_begin(r, run, to_keys, op->dkv_slot);
#define ROWS(view, h) ((view).p + (h) * (view).head + q.at) /* numbers of the chunk's rows */
#define TOKENS(view, h, chunk) ((view).p + (h) * (view).head + (chunk).at * HS) /* HS numbers each */
    PARALLEL_FOR
    for (int64_t h = 0; h < heads; h++) {
        AttentionScratch* scratch = &r->scratch[thread_index()].attention;
        AttentionPair pair = {TOKENS(in[0], h, q), TOKENS(kv[0], h, k), TOKENS(kv[1], h, k), q.rows, k.rows,
            HS, q.position, k.position, run->doc_start ? run->doc_start + q.position : NULL};
        if (!table->backward)
            cpu_attention_forward_head(
                TOKENS(out[0], h, q), ROWS(out[1], h), ROWS(out[2], h), &pair, scratch);
        else
            cpu_attention_backward_head(TOKENS(out[0], h, q), TOKENS(dkv[0], h, k), TOKENS(dkv[1], h, k),
                &pair, TOKENS(in[1], h, q), ROWS(in[2], h), ROWS(in[3], h), scratch);
    }
#undef ROWS
#undef TOKENS
    span_add(trace, LANE_COMPUTE, SPAN_OP, from, trace_now(trace),
        table->backward ? "q%d k%d backward" : "q%d k%d", op->q, op->k);
    return 0;
}

// Adds a result that has arrived to the rank's own sums, or to the sum in a slot, which travels on.
static int cpu_merge(Rank* r, void* argument, const ScheduleMessage* msg) {
    const AttentionRun* run = (const AttentionRun*)argument;
    const Shape* s = &r->mesh->shape;
    int64_t heads = part_heads(s, run->table, msg->item.h0, msg->item.h1).count;
    ItemView from[ITEM_PARTS], to[ITEM_PARTS];
    for (int i = 0; i < ITEM_TENSORS[msg->item.kind].count; i++) {
        from[i] = item_view(r, run, msg->item, msg->dst, i);
        to[i] = item_view(r, run, msg->item, msg->into, i);
    }
    if (msg->into < 0 && msg->item.kind == ITEM_OUT) {
        int64_t rows = heads * rank_rows(r, msg->item.of);
        output_merge(to[0].p, to[1].p, to[2].p, from[0].p, from[1].p, rows, s->HS);
        return 0;
    }
    int add = msg->into < 0 || r->slot_filled[msg->into];
    for (int i = 0; i < ITEM_TENSORS[msg->item.kind].count; i++)
        for (int64_t j = 0; j < heads * to[i].head; j++)
            to[i].p[j] = add ? to[i].p[j] + from[i].p[j] : from[i].p[j];
    if (msg->into >= 0) r->slot_filled[msg->into] = 1;
    return 0;
}
static const TableOps CPU_TABLE_OPS = {cpu_pieces, cpu_post, cpu_op, cpu_wait, cpu_merge};

// qkv (R, 3C) -> q (B, NH, Tl, HS), kv (B, 2, NH, Tl, HS): any range of heads of a sequence is then one piece
static void cpu_split_heads(
    real* q, real* kv, const real* qkv, int64_t B, int64_t Tl, int64_t NH, int64_t HS) {
    int64_t C = NH * HS;
    PARALLEL_FOR
    for (int64_t bh = 0; bh < B * NH; bh++) {
        int64_t b = bh / NH, h = bh % NH;
        real *k = kv + (2 * b * NH + h) * Tl * HS, *v = k + Tl * C;
        for (int64_t t = 0; t < Tl; t++) {
            const real* row = qkv + (b * Tl + t) * 3 * C + h * HS;
            memcpy(q + (bh * Tl + t) * HS, row, (size_t)HS * sizeof(real));
            memcpy(k + t * HS, row + C, (size_t)HS * sizeof(real));
            memcpy(v + t * HS, row + 2 * C, (size_t)HS * sizeof(real));
        }
    }
}

// atty (R, C), lse (B, NH, Tl) = attention of q, kv (cpu_split_heads) over all ranks of the sequence, one
// sequence after the other. doc_start (B, T), or NULL. The ranks of a sequence call it together.
static int cpu_attention_forward(
    Rank* r, real* atty, real* lse, const real* q, const real* kv, const int32_t* doc_start) {
    const Shape* s = &r->mesh->shape;
    int64_t Tl = r->Tl, NH = s->NH, HS = s->HS, C = s->C;
    AttentionRun run;
    memset(&run, 0, sizeof run);
    run.table = &r->mesh->schedule[0], run.slots = r->slots[0];
    run.own[ITEM_OUT][0] = r->att_out, run.own[ITEM_OUT][1] = r->att_m;
    run.own[ITEM_OUT][2] = r->att_l;
    r->attention_forwards++;
    for (int64_t b = 0; b < s->B; b++) {
        memset(r->att_out, 0, (size_t)(Tl * C) * sizeof(real));
        for (int64_t i = 0; i < NH * Tl; i++) r->att_m[i] = -(real)INFINITY, r->att_l[i] = 0;
        run.own[ITEM_Q][0] = (real*)q + b * Tl * C;
        run.own[ITEM_KV][0] = (real*)kv + b * Tl * 2 * C, run.own[ITEM_KV][1] = run.own[ITEM_KV][0] + Tl * C;
        run.doc_start = doc_start ? doc_start + b * s->T : NULL;
        table_begin(r, run.table, run.doc_start, 1);
        if (run_table(r, run.table, &CPU_TABLE_OPS, &run) != 0) return -1;
        output_finish(r->att_out, r->att_m, r->att_l, NH * Tl, HS);
        memcpy(lse + b * NH * Tl, r->att_m, (size_t)(NH * Tl) * sizeof(real));
        for (int64_t h = 0; h < NH; h++)
            for (int64_t t = 0; t < Tl; t++)
                memcpy(atty + (b * Tl + t) * C + h * HS, r->att_out + (h * Tl + t) * HS,
                    (size_t)HS * sizeof(real));
    }
    return 0;
}

// dqkv (R, 3C) = the gradient of q, k and v, from datty (R, C) and what the forward pass left;
// called together too
static int cpu_attention_backward(Rank* r, real* dqkv, const real* datty, const real* atty, const real* lse,
    const real* q, const real* kv, const int32_t* doc_start) {
    const Shape* s = &r->mesh->shape;
    int64_t Tl = r->Tl, NH = s->NH, HS = s->HS, C = s->C;
    AttentionRun run;
    memset(&run, 0, sizeof run);
    run.table = &r->mesh->schedule[1], run.slots = r->slots[1];
    run.own[ITEM_QDO][1] = r->att_do, run.own[ITEM_QDO][3] = r->att_delta;
    run.own[ITEM_DQ][0] = r->att_dq;
    run.own[ITEM_DKV][0] = r->att_dkv, run.own[ITEM_DKV][1] = r->att_dkv + Tl * C;
    for (int64_t b = 0; b < s->B; b++) {
        PARALLEL_FOR
        for (int64_t h = 0; h < NH; h++)
            for (int64_t t = 0; t < Tl; t++) {
                const real *dout = datty + (b * Tl + t) * C + h * HS, *out = atty + (b * Tl + t) * C + h * HS;
                real delta = 0;
                SIMD_SUM(delta)
                for (int64_t c = 0; c < HS; c++) delta += dout[c] * out[c];
                r->att_delta[h * Tl + t] = delta;
                memcpy(r->att_do + (h * Tl + t) * HS, dout, (size_t)HS * sizeof(real));
            }
        memset(r->att_dq, 0, (size_t)(Tl * C) * sizeof(real));
        memset(r->att_dkv, 0, (size_t)(Tl * 2 * C) * sizeof(real));
        run.own[ITEM_QDO][0] = (real*)q + b * Tl * C, run.own[ITEM_QDO][2] = (real*)lse + b * NH * Tl;
        run.own[ITEM_KV][0] = (real*)kv + b * Tl * 2 * C, run.own[ITEM_KV][1] = run.own[ITEM_KV][0] + Tl * C;
        run.doc_start = doc_start ? doc_start + b * s->T : NULL;
        table_begin(r, run.table, run.doc_start, 1);
        if (run_table(r, run.table, &CPU_TABLE_OPS, &run) != 0) return -1;
        PARALLEL_FOR
        for (int64_t h = 0; h < NH; h++)
            for (int64_t t = 0; t < Tl; t++) {
                real* row = dqkv + (b * Tl + t) * 3 * C + h * HS;
                memcpy(row, r->att_dq + (h * Tl + t) * HS, (size_t)HS * sizeof(real));
                memcpy(row + C, r->att_dkv + (h * Tl + t) * HS, (size_t)HS * sizeof(real));
                memcpy(row + 2 * C, r->att_dkv + Tl * C + (h * Tl + t) * HS, (size_t)HS * sizeof(real));
            }
    }
    return 0;
}

// ===== 8. model =================================================================================
//
// The life of a micro-batch, which is one pass: B sequences of which this rank holds R rows.
//
//     forward     embeddings, positions; the layers, each writes the next one's x
//     head        final norm; for --logits-chunk tokens at a time the logits, their loss and at once their
//                 gradient, so that the logits of all tokens never exist together. It begins dx, the
//                 gradient of the residual stream
//     backward    from the last layer to the first: what --recompute did not keep is computed again from what
//                 it kept; the layer adds to its parameters' gradients and to dx. Then embeddings, positions
//
// In evaluation a pass ends with the loss. Where ranks hold slices of a unit, its use is framed by calls:
//
//     unit_gather          brings its weights together in whole_unit, where they stay until another is
//     unit_gradient_begin  clears the buffer in which its whole gradient is made
//     unit_gradient_end    sums that over all ranks; each adds its slice of the sum to what it holds

// Where the layers find the weights or the gradients of unit u (0 embeddings, 1..L layers, L+1 final norm,
// L+2 positions): where they come together, if the rank holds slices, else where it holds them.
static real* in_use(const Rank* r, int state, int u) {
    if (holding(r->layout, state, u) == HELD_SLICE) return r->whole_unit[state];
    return r->state[state] + held(r, state, u).at;
}
// The same for one parameter of the unit. A frozen one has no gradient: NULL, for which the layers compute
// nothing, so that it stays 0 in what the ranks sum.
static real* weight(const Rank* r, int u, int id) {
    return in_use(r, STATE_WEIGHTS, u) + r->layout->within[id];
}
static real* gradient(const Rank* r, int u, int id) {
    return r->layout->units[u].rate[id] == 0 ? NULL : in_use(r, STATE_GRADIENTS, u) + r->layout->within[id];
}

// The parameters of a unit by their names, or their gradients. Those of other units are NULL, and so are
// gradients of frozen ones.
typedef struct {
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) real* name;
    PARAMETERS(X)
#undef X
} Parameters;
static Parameters parameters_at(const Layout* layout, int u, const real* unit) {
    Parameters p;
    memset(&p, 0, sizeof p);
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) \
    if (layout->units[u].kind == of) p.name = (real*)unit + layout->within[P_##name];
    PARAMETERS(X)
#undef X
    return p;
}
static Parameters weights_of(const Rank* r, int u) {
    return parameters_at(r->layout, u, in_use(r, STATE_WEIGHTS, u));
}
static Parameters gradients_of(const Rank* r, int u) {
    Parameters p;
    memset(&p, 0, sizeof p);
#define X(name, hf, of, rows, columns, transposed, decay, centred, init) \
    if (r->layout->units[u].kind == of) p.name = gradient(r, u, P_##name);
    PARAMETERS(X)
#undef X
    return p;
}
// The rank's rows of a sequence, counted from the row of wpe to which weight(.., P_wpe) points.
static Segments position_rows(const Rank* r) {
    Segments rows = r->segments;
    for (int i = 0; i < rows.count; i++) rows.begin[i] -= positions_first(r);
    return rows;
}
// Where an activation of layer l lies. Layers share memory for what is not kept for every layer.
static real* act(const Rank* r, int id, int64_t l) {
    Activation a = activation(&r->mesh->shape, id);
    int64_t copies = r->mesh->training ? activation_copies(&r->mesh->shape, id, r->mesh->recompute) : 1;
    return r->act[id] + l % copies * r->R * a.columns;
}

// All activations of a layer, by their names.
typedef struct {
#define X(name, columns, keep) real* name;
    ACTIVATIONS(X)
#undef X
} Activations;
static Activations activations_of(const Rank* r, int64_t l) {
    Activations a;
#define X(name, columns, keep) a.name = act(r, A_##name, l);
    ACTIVATIONS(X)
#undef X
    return a;
}

// An all-gather and a reduce-scatter of a unit's slices over the ranks that share it, recorded. name: what is
// gathered; group: of which work it is a part.
static int unit_bring(Rank* r, real* whole, int64_t slice, const char* name, int u, const char* group) {
    Trace* trace = r->transport.trace;
    const double from = trace_now(trace);
    if (r->transport.all_gather(&r->transport, &r->sharing, whole, slice, &r->error) != 0) return -1;
    span_add(trace, LANE_GATHER, SPAN_GATHER, from, trace_now(trace), "%s %d", name, u);
    group_end(trace, group);
    return 0;
}
static int unit_sum(Rank* r, real* whole, int64_t slice, int u) {
    Trace* trace = r->transport.trace;
    const double from = trace_now(trace);
    if (r->transport.reduce_scatter(&r->transport, &r->sharing, whole, slice, &r->error) != 0) return -1;
    span_add(trace, LANE_GATHER, SPAN_GATHER, from, trace_now(trace), "parts of unit %d", u);
    group_end(trace, "gradient sums");
    return 0;
}

// Brings a unit's weights together from the ranks' slices, if ranks hold slices and it is not there already.
// All ranks call it together.
static int unit_gather(Rank* r, int u) {
    const Unit* unit = &r->layout->units[u];
    if (holding(r->layout, STATE_WEIGHTS, u) != HELD_SLICE || r->gathered == u) return 0;
    Held h = held(r, STATE_WEIGHTS, u);
    real* whole = r->whole_unit[STATE_WEIGHTS];
    memcpy(whole + h.begin, r->state[STATE_WEIGHTS] + h.at, (size_t)h.n * sizeof(real));
    r->gathered = u;
    return unit_bring(r, whole, unit->slice, "unit", u, "weights gathered");
}

// Before and after the layers add to a unit's gradient. If ranks hold slices of it, this rank's whole
// gradient is made in a buffer, and summed over the ranks into the slices; else the layers add to what the
// rank holds, and neither function does anything.
static void unit_gradient_begin(Rank* r, int u) {
    const Unit* unit = &r->layout->units[u];
    if (holding(r->layout, STATE_GRADIENTS, u) == HELD_SLICE)
        memset(r->whole_unit[STATE_GRADIENTS], 0, (size_t)(unit->slice * r->sharing.size) * sizeof(real));
}
static int unit_gradient_end(Rank* r, int u) {
    real* whole = r->whole_unit[STATE_GRADIENTS];
    Held h = held(r, STATE_GRADIENTS, u);
    if (holding(r->layout, STATE_GRADIENTS, u) != HELD_SLICE) return 0;
    if (unit_sum(r, whole, h.n, u) != 0) return -1;
    for (int64_t i = 0; i < h.n; i++) r->state[STATE_GRADIENTS][h.at + i] += whole[h.begin + i];
    return 0;
}

// What the forward pass of a layer works on. The model and the decoder (section 12) fill it in differently.
typedef struct LayerRun {
    int64_t l, rows;   // the layer; tokens
    Parameters w;
    Activations a;
    real *wide, *narrow;                                   // (rows, 4C), (rows, C) scratch
    real* next;                                            // the next layer's x; NULL: not wanted
    unsigned needed;                                       // bits of the activations that are computed
    int (*attention)(Rank* r, const struct LayerRun* x);   // wide (rows, 3C): q, k and v -> atty
    const int32_t* doc_start;                              // (B, T), or NULL
    void* decoder;                                         // for the decoder's attention
} LayerRun;

// One layer: a.x -> next, by way of the activations that are needed. 0, or -1 if attention fails.
static int layer_forward(Rank* r, const LayerRun* x) {
    const Shape* s = &r->mesh->shape;
    const Parameters* w = &x->w;
    const Activations* a = &x->a;
    int64_t R = x->rows, C = s->C;
    int center = r->mesh->center;
    Trace* trace = r->transport.trace;
#define NEED(name, group, ...) \
    if (x->needed >> A_##name & 1) __VA_ARGS__, group_end(trace, group)
    NEED(ln1, "norm forward", cpu_rmsnorm_forward(a->ln1, a->rstd1, a->x, w->ln1w, w->ln1b, R, C));
    NEED(q, "qkv forward", cpu_matmul_forward(x->wide, a->ln1, w->qkvw, w->qkvb, R, C, 3 * C, r->scratch));
    if (x->attention(r, x) != 0) return -1;
    if (x->needed >> A_q & 1 || x->needed >> A_atty & 1) group_end(trace, "attention forward");
    NEED(x2, "attproj forward",
        cpu_matmul_forward(x->narrow, a->atty, w->attprojw, w->attprojb, R, C, C, r->scratch),
        cpu_residual_forward(a->x2, a->x, x->narrow, center, R, C));
    NEED(ln2, "norm forward", cpu_rmsnorm_forward(a->ln2, a->rstd2, a->x2, w->ln2w, w->ln2b, R, C));
    NEED(fch, "fc forward", cpu_matmul_forward(a->fch, a->ln2, w->fcw, w->fcb, R, C, 4 * C, r->scratch));
    NEED(gelu, "gelu forward", cpu_gelu_forward(a->gelu, a->fch, R * 4 * C));
    if (!x->next) return 0;
    cpu_matmul_forward(x->narrow, a->gelu, w->fcprojw, w->fcprojb, R, 4 * C, C, r->scratch);
    cpu_residual_forward(x->next, a->x2, x->narrow, center, R, C);
    group_end(trace, "fcproj forward");
    return 0;
#undef NEED
}

// The model's LayerRun.attention: splits q, k and v by heads, then attends over all ranks of the sequence.
static int layer_attention(Rank* r, const LayerRun* x) {
    const Shape* s = &r->mesh->shape;
    const Activations* a = &x->a;
    if (x->needed >> A_q & 1) cpu_split_heads(a->q, a->kv, x->wide, s->B, r->Tl, s->NH, s->HS);
    if (!(x->needed >> A_atty & 1)) return 0;
    return cpu_attention_forward(r, a->atty, a->lse, a->q, a->kv, x->doc_start);
}

// The span of a layer: from the end of the group before it to that of its own last one, if it has any.
static double layer_from(const Rank* r) { return r->transport.trace ? r->transport.trace->marked : 0; }
static void layer_span(Rank* r, double from, int64_t l, const char* what) {
    double to = layer_from(r);
    if (to > from)
        span_add(r->transport.trace, LANE_COMPUTE, SPAN_LAYER, from, to, "layer %lld %s", (long long)l, what);
}

// Layer l of the model, forward. `again`: in the backward pass, where only what --recompute did not keep is
// computed. `output`: the next layer's x too.
static int model_layer(Rank* r, int64_t l, int again, int output, const int32_t* doc_start) {
    int u = (int)l + 1;
    const double from = layer_from(r);
    LayerRun x;
    memset(&x, 0, sizeof x);
    if (unit_gather(r, u) != 0) return -1;
    x.l = l, x.rows = r->R;
    x.w = weights_of(r, u), x.a = activations_of(r, l);
    x.wide = r->wide, x.narrow = r->narrow;
    x.attention = layer_attention, x.doc_start = doc_start;
    if (output) x.next = l + 1 < r->mesh->shape.L ? act(r, A_x, l + 1) : r->x_final;
    for (int id = 0; id < ACTIVATION_COUNT; id++)
        if (!again || !activation_kept(id, r->mesh->recompute)) x.needed |= 1u << id;
    r->layer_forwards += x.needed >> A_fch & 1;
    if (layer_forward(r, &x) != 0) return -1;
    layer_span(r, from, l, again ? "recompute" : "forward");
    return 0;
}

// The mirror of layer_forward: r->dx, the gradient of the layer's output, becomes that of its input.
static int layer_backward(Rank* r, int64_t l, const int32_t* doc_start) {
    int64_t R = r->R, C = r->mesh->shape.C;
    int u = (int)l + 1, center = r->mesh->center;
    const Parameters w = weights_of(r, u), g = gradients_of(r, u);
    const Activations a = activations_of(r, l);
    real *dx = r->dx, *dy = r->narrow, *dwide = r->wide, *dnarrow = r->narrow, *datty = r->narrow2;
    Trace* trace = r->transport.trace;
    const double from = layer_from(r);
    unit_gradient_begin(r, u);

    cpu_residual_backward(dy, dx, center, R, C);
    cpu_matmul_backward(dwide, g.fcprojw, g.fcprojb, dy, a.gelu, w.fcprojw, R, 4 * C, C, r->scratch);
    group_end(trace, "fcproj backward");
    cpu_gelu_backward(dwide, a.fch, R * 4 * C);
    group_end(trace, "gelu backward");
    cpu_matmul_backward(dnarrow, g.fcw, g.fcb, dwide, a.ln2, w.fcw, R, C, 4 * C, r->scratch);
    group_end(trace, "fc backward");
    cpu_rmsnorm_backward(dx, g.ln2w, g.ln2b, dnarrow, a.x2, a.rstd2, w.ln2w, R, C);
    group_end(trace, "norm backward");

    cpu_residual_backward(dy, dx, center, R, C);
    cpu_matmul_backward(datty, g.attprojw, g.attprojb, dy, a.atty, w.attprojw, R, C, C, r->scratch);
    group_end(trace, "attproj backward");
    if (cpu_attention_backward(r, dwide, datty, a.atty, a.lse, a.q, a.kv, doc_start) != 0) return -1;
    group_end(trace, "attention backward");
    cpu_matmul_backward(dnarrow, g.qkvw, g.qkvb, dwide, a.ln1, w.qkvw, R, C, 3 * C, r->scratch);
    group_end(trace, "qkv backward");
    cpu_rmsnorm_backward(dx, g.ln1w, g.ln1b, dnarrow, a.x, a.rstd1, w.ln1w, R, C);
    group_end(trace, "norm backward");
    if (unit_gradient_end(r, u) != 0) return -1;
    layer_span(r, from, l, "backward");
    return 0;
}

// Final norm, logits and loss of labels (R), which are added to loss_sum. In training also their gradients,
// while the logits of a chunk of tokens exist: r->dx becomes the gradient of the last layer's output.
static int head_forward_backward(Rank* r, const int32_t* labels) {
    const Shape* s = &r->mesh->shape;
    int64_t C = s->C, last = s->L + 1;
    int u = (int)last, training = r->learn;
    real scale = training ? (real)(1.0 / (double)max_i64(1, r->valid_tokens)) : 0;
    if (unit_gather(r, u) != 0) return -1;
    Parameters w = weights_of(r, u), embed = weights_of(r, 0);
    Trace* trace = r->transport.trace;
    cpu_rmsnorm_forward(r->lnf, r->rstdf, r->x_final, w.lnfw, w.lnfb, r->R, C);
    group_end(trace, "norm forward");
    if (unit_gather(r, 0) != 0) return -1;
    if (training) unit_gradient_begin(r, 0);
    for (int64_t t = 0; t < r->R; t += r->mesh->logits_chunk) {
        int64_t rows = min_i64(r->mesh->logits_chunk, r->R - t);
        cpu_matmul_forward(r->logits, r->lnf + t * C, embed.wte, NULL, rows, C, s->Vp, r->scratch);
        group_end(trace, "head forward");
        cpu_crossentropy(
            r->token_loss + t, r->token_hit + t, r->logits, labels + t, scale, rows, s->V, s->Vp);
        group_end(trace, "cross-entropy");
        if (!training) continue;
        cpu_matmul_backward(r->narrow + t * C, gradient(r, 0, P_wte), NULL, r->logits, r->lnf + t * C,
            embed.wte, rows, C, s->Vp, r->scratch);
        group_end(trace, "head backward");
    }
    for (int64_t t = 0; t < r->R; t++) r->loss_sum += (double)r->token_loss[t];
    if (!training) return 0;
    if (unit_gradient_end(r, 0) != 0 || unit_gather(r, u) != 0) return -1;
    memset(r->dx, 0, (size_t)(r->R * C) * sizeof(real));
    unit_gradient_begin(r, u);
    cpu_rmsnorm_backward(r->dx, gradient(r, u, P_lnfw), gradient(r, u, P_lnfb), r->narrow, r->x_final,
        r->rstdf, w.lnfw, r->R, C);
    group_end(trace, "norm backward");
    return unit_gradient_end(r, u);
}

// Ends a layer's forward or backward pass over some sequences. Where a program hears of it, all ranks of all
// processes meet here, where no message is under way, and leave the job together if one of the programs wants
// to: -1, and r->cancelled.
static int layer_done(Rank* r, int64_t sequences) {
    Report* report = r->report;
    double cancels = 0;
    if (!report) return 0;
    if (r->world_rank == r->mesh->first_rank) {
        gpt2_sp_progress* p = &report->progress;
        p->done += sequences;
        p->pass = (p->done - 1) / (p->total / p->passes);
        if (report->call) {
            const gpt2_sp_progress shown = *p;
            const Host own = host_lend(&report->program);
            cancels = report->call(report->user, &shown) != 0;
            host_leave(&own);
        }
    }
    if (r->transport.all_reduce(&r->transport, &r->all, &cancels, 1, &r->error) != 0) return -1;
    r->cancelled = cancels > 0;
    return r->cancelled ? -1 : 0;
}

// A pass over the B sequences of micro-batch `pass`: adds to loss_sum and, in training, to the gradients.
static int model_forward_backward(Rank* r, int64_t pass) {
    const Shape* s = &r->mesh->shape;
    int64_t L = s->L, C = s->C, k = segment_layers(s, r->mesh->recompute);
    const int32_t *tokens = r->batch->tokens + pass * r->R, *labels = r->batch->labels + pass * r->R;
    const int32_t* doc_start = r->mesh->doc_mask ? r->batch->doc_start + pass * s->B * s->T : NULL;
    const int32_t* told = r->batch->positions ? r->batch->positions + pass * r->R : NULL;
    int mode = r->learn ? r->mesh->recompute : GPT2_SP_NONE, center = r->mesh->center,
        positions = positions_unit(r->layout);
    Segments rows = position_rows(r);
#define SEQUENCE_POSITIONS(b) (told ? told + (b)*r->Tl : NULL)

    if (unit_gather(r, 0) != 0) return -1;
    cpu_embedding_forward(act(r, A_x, 0), tokens, weight(r, 0, P_wte), r->R, C);
    if (unit_gather(r, positions) != 0) return -1;
    for (int64_t b = 0; b < s->B; b++)
        cpu_position_forward(act(r, A_x, 0) + b * r->Tl * C, &rows, SEQUENCE_POSITIONS(b),
            weight(r, positions, P_wpe), center, C);
    group_end(r->transport.trace, "embedding forward");
    for (int64_t l = 0; l < L; l++) {
        if (mode == GPT2_SP_SQRT && l % k == 0)
            memcpy(r->segment_inputs + l / k * r->R * C, act(r, A_x, l), (size_t)(r->R * C) * sizeof(real));
        if (model_layer(r, l, 0, 1, doc_start) != 0 || layer_done(r, s->B) != 0) return -1;
    }
    if (head_forward_backward(r, labels) != 0) return -1;
    if (!r->learn) return 0;

    for (int64_t l = L - 1; l >= 0; l--) {
        int64_t first = mode == GPT2_SP_SQRT ? l / k * k : l;
        // sqrt: a segment's last layer has all layers of the segment computed again
        if (mode == GPT2_SP_SQRT && (l == L - 1 || l % k == k - 1)) {
            memcpy(
                act(r, A_x, first), r->segment_inputs + l / k * r->R * C, (size_t)(r->R * C) * sizeof(real));
            for (int64_t j = first; j <= l; j++)
                if (model_layer(r, j, 1, j < l, doc_start) != 0) return -1;
        } else if (mode != GPT2_SP_SQRT && model_layer(r, l, 1, 0, doc_start) != 0) return -1;
        if (unit_gather(r, (int)l + 1) != 0 || layer_backward(r, l, doc_start) != 0) return -1;
        if (layer_done(r, s->B) != 0) return -1;
    }
    unit_gradient_begin(r, 0);
    cpu_embedding_backward(gradient(r, 0, P_wte), r->dx, tokens, center, r->R, C);
    group_end(r->transport.trace, "embedding backward");
    if (unit_gradient_end(r, 0) != 0) return -1;
    unit_gradient_begin(r, positions);
    for (int64_t b = 0; b < s->B; b++)
        cpu_position_backward(
            gradient(r, positions, P_wpe), r->dx + b * r->Tl * C, &rows, SEQUENCE_POSITIONS(b), C);
    group_end(r->transport.trace, "embedding backward");
    return unit_gradient_end(r, positions);
#undef SEQUENCE_POSITIONS
}

// Initial weights: every element is a function of (seed, tensor, index), whatever rank makes it. Rows of
// the padded vocabulary stay 0: they get no gradient.
static void weights_init(Rank* r, uint64_t seed) {
    const Shape* s = &r->mesh->shape;
    for (int u = 0; u < r->layout->count; u++) {
        const Unit* unit = &r->layout->units[u];
        Held h = held(r, STATE_WEIGHTS, u);
        real* out = r->state[STATE_WEIGHTS] + h.at;
        // wpe draws beside wte: its numbers do not depend on L
        uint64_t stream = (uint64_t)(unit->kind == UNIT_POSITIONS ? 0 : u) * PARAMETER_COUNT;
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            if (p.unit != unit->kind) continue;
            int64_t at = r->layout->within[id], filled = id == P_wte ? s->V * s->C : parameter_elements(&p);
            double scale = p.init == INIT_RESIDUAL ? 0.02 / sqrt(2.0 * (double)s->L) : 0.02;
            int64_t stop = min_i64(h.begin + h.n, at + filled);
            PARALLEL_STATIC
            for (int64_t i = max_i64(h.begin, at); i < stop; i++)
                out[i - h.begin] = p.init == INIT_ZERO ? 0
                    : p.init == INIT_ONE
                    ? 1
                    : (real)(scale * random_normal(seed, stream + (uint64_t)id, (uint64_t)(i - at)));
        }
    }
}

// ===== 9. optimizer =============================================================================
//
// A gradient's way, once the passes of a step have added to it:
//
//     summed      over all ranks, by a reduce-scatter, and an all-gather where every rank updates all. Slices
//                 that ranks hold are summed already (unit_gradient_end). Never averaged: see the opening
//                 essay, point 6
//     norm        every rank squares its slices; the sum over all ranks, with the loss, is the same on all
//     clipped     by one factor for all (grad_scale). If loss or norm is not finite, the way ends here
//     AdamW       every rank updates what it has moments for: whole units, or its slices
//     gathered    where ranks have moments of slices but whole weights, each gets the others' new weights
//
// --zero moves the places: 0 updates everything everywhere, 1 updates slices and gathers weights, 2 has
// gradients of slices only, 3 has weights of slices only, which the next pass gathers (unit_gather).
//
// Every parameter has a rate, by which the step's learning rate is multiplied for it (Unit.rate): 1, or what
// --lr-scale says, or 0 if it is frozen. rates_choose answers from both options; gradients and the updates of
// both devices only read the answer.

// A pattern of --lr-scale or --freeze: the rate of the parameters that it matches, how many these are, and of
// how many it is the last to match.
typedef struct {
    const char *option, *pattern;
    double rate;
    int matched, decided;
} RatePattern;

// Cuts an option's list at its commas and blanks behind them, in place, and adds a pattern for each part;
// their number, or -1. `scaled`: a part is PATTERN=X.
static int rate_patterns(RatePattern* out, const char* option, char* list, int scaled, Error* e) {
    int count = 0;
    for (char* part = list[0] ? list : NULL; part; count++) {
        char what[64], *next = strchr(part, ','), *equals = NULL;
        if (next) *next++ = 0;
        while (config_space(*part)) part++;
        if (scaled && !(equals = strrchr(part, '=')))
            return fail(e, "--%s %.300s: expected PATTERN=X", option, part);
        if (equals) *equals++ = 0;
        snprintf(what, sizeof what, "--%s PATTERN=", option);
        out[count].option = option, out[count].pattern = part;
        if (strncmp(part, "transformer.", 12) == 0) out[count].pattern = part + 12;
        if (equals && number_set(what, equals, 0, 0, 1000, &out[count].rate, e) != 0) return -1;
        part = next;
    }
    return count;
}

// Always -1: a pattern matches nothing. The line has the three nearest names.
static int rate_unmatched(const Layout* layout, const Shape* s, const RatePattern* pattern, Error* e) {
    char near[3][64] = {"", "", ""}, name[64];
    int distance[3] = {1 << 20, 1 << 20, 1 << 20};
    for (int u = 0; u < layout->count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            if (p.unit != layout->units[u].kind) continue;
            tensor_name(name, sizeof name, "", &p, u);
            // letters to change count before letters to add: attn.weight is near attn.c_attn.weight
            int d = name_distance(pattern->pattern, name), at = 3;
            d += 64 * (d - abs((int)strlen(pattern->pattern) - (int)strlen(name)));
            while (at > 0 && d < distance[at - 1]) at--;
            for (int i = 2; i > at; i--) distance[i] = distance[i - 1], memcpy(near[i], near[i - 1], 64);
            if (at < 3) distance[at] = d, memcpy(near[at], name, sizeof name);
        }
    return fail(e,
        "--%s %.300s: no parameter of this model of %lld layers (h.0 to h.%lld) has such a name; near ones: "
        "%s, %s, %s",
        pattern->option, pattern->pattern, (long long)s->L, (long long)s->L - 1, near[0], near[1], near[2]);
}

// Gives every parameter its rate, by its name: that of the last of --lr-scale's patterns that matches it, or
// 0 if one of --freeze does, and for wpe with --positions none. -1 for a pattern that matches nothing, a
// scale that is the rate of nothing, and if nothing is left to train.
static int rates_choose(Layout* layout, const Shape* s, const gpt2_sp_options* o, Error* e) {
    char scales[GPT2_SP_TEXT], frozen[GPT2_SP_TEXT], name[64];
    RatePattern* patterns = (RatePattern*)calloc(2 * GPT2_SP_TEXT, sizeof *patterns);
    if (!patterns) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    snprintf(scales, sizeof scales, "%s", o->lr_scale);
    snprintf(frozen, sizeof frozen, "%s", o->freeze);
    int count = rate_patterns(patterns, "lr-scale", scales, 1, e), trained = 0,
        more = count < 0 ? -1 : rate_patterns(patterns + count, "freeze", frozen, 0, e),
        status = more < 0 ? -1 : 0;
    for (int u = 0; status == 0 && u < layout->count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            if (p.unit != layout->units[u].kind) continue;
            tensor_name(name, sizeof name, "", &p, u);
            RatePattern* last = NULL;
            for (RatePattern* x = patterns; x < patterns + count + more; x++)
                if (fnmatch(x->pattern, name, 0) == 0) last = x, x->matched++;
            int faded = id == P_wpe && o->positions == GPT2_SP_NO_POSITIONS;
            if (last && !faded) layout->units[u].rate[id] = last->rate, last->decided++;
            if (faded) layout->units[u].rate[id] = 0;
            trained += layout->units[u].rate[id] > 0;
        }
    for (RatePattern* x = patterns; status == 0 && x < patterns + count + more; x++)
        if (x->matched == 0) status = rate_unmatched(layout, s, x, e);
        else if (x->decided == 0 && x < patterns + count)
            status = fail(e,
                "--lr-scale %.300s=%g has no effect: a later pattern matches all that it does, or --freeze, "
                "or "
                "--positions none",
                x->pattern, x->rate);
    if (status == 0 && trained == 0) status = fail(e, "--freeze and --lr-scale leave nothing to train");
    free(patterns);
    return status;
}

// Learning rate of the step after `done` steps of `o->steps`: linear warmup, then the chosen course.
static double learning_rate(const gpt2_sp_options* o, int64_t done) {
    if (done < o->warmup) return o->lr * (double)(done + 1) / (double)o->warmup;
    double span = (double)max_i64(1, o->steps - 1 - o->warmup), progress = (double)(done - o->warmup) / span;
    if (progress > 1) progress = 1;
    double low = o->lr * o->lr_final;
    switch (o->lr_schedule) {
    case GPT2_SP_COSINE: return low + 0.5 * (o->lr - low) * (1 + cos(3.141592653589793 * progress));
    case GPT2_SP_LINEAR: return o->lr + (low - o->lr) * progress;
    case GPT2_SP_WSD: {   // constant, then 1 - sqrt over the last part (Haegele et al. 2024)
        double into = o->wsd_decay > 0 ? (progress - (1 - o->wsd_decay)) / o->wsd_decay : 0;
        return into <= 0 ? o->lr : low + (o->lr - low) * (1 - sqrt(into));
    }
    default: return o->lr;
    }
}

// The square of the norm of this rank's slices of the gradient, which are sums over all ranks.
static double gradients_square(const Rank* r) {
    const Layout* layout = r->layout;
    double square = 0;
    for (int u = 0; u < layout->count; u++) {
        const Unit* unit = &layout->units[u];
        const real* slice = r->state[STATE_GRADIENTS] + held_at(r, STATE_GRADIENTS, u, slice_begin(r, u));
        for (int64_t i = 0; i < unit->slice; i += 4096) {
            int64_t end = min_i64(unit->slice, i + 4096);
            real part = 0;
            SIMD_SUM(part)
            for (int64_t j = i; j < end; j++) part += slice[j] * slice[j];
            square += (double)part;
        }
    }
    return square;
}

// Sums the gradients of all ranks, into whole units where ranks update all, else into each rank's slice.
// Slices that ranks hold are sums already; of an own unit no two ranks have the same gradients. sums: [0] the
// step's loss, [1] the squared norm of the gradient, the same on all ranks.
static int gradients_reduce(Rank* r, double sums[2]) {
    const Layout* layout = r->layout;
    for (int u = 0; u < layout->count; u++) {
        const Unit* unit = &layout->units[u];
        real* whole = r->state[STATE_GRADIENTS] + unit->offset;
        int sum = holding(layout, STATE_GRADIENTS, u) == HELD_WHOLE;
        int gather = holding(layout, STATE_M, u) == HELD_WHOLE;
        if (sum && unit_sum(r, whole, unit->slice, u) != 0) return -1;
        if (gather && unit_bring(r, whole, unit->slice, "sums of unit", u, "gradient sums") != 0) return -1;
    }
    sums[0] = r->loss_sum / (double)max_i64(1, r->valid_tokens), sums[1] = gradients_square(r);
    if (r->transport.all_reduce(&r->transport, &r->all, sums, 2, &r->error) != 0) return -1;
    group_end(r->transport.trace, "gradient norm");
    return 0;
}

// --positions none (DroPE, arXiv 2512.12167, takes positions away after training): what step number `step`
// multiplies wpe by, so that after it wpe is (1 - step / fade_steps) of what it was, and zero from step
// fade_steps on. 1 with learned positions.
static double fade_factor(const gpt2_sp_options* o, int64_t step) {
    if (o->positions != GPT2_SP_NO_POSITIONS) return 1;
    return step < o->fade_steps ? (double)(o->fade_steps - step) / (double)(o->fade_steps - step + 1) : 0;
}

// What an update depends on besides the state.
typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    double
        grad_scale;   // clipping: the gradient is multiplied by it; -1: it is not finite, nothing is learnt
    double fade;      // wpe is multiplied by it
    int64_t step;     // from 1, for the correction of the moments
} AdamW;

// AdamW's numbers for the step after `done` of the run's.
static AdamW step_adamw(const gpt2_sp_options* o, int64_t done) {
    const int64_t step = done + 1;
    AdamW a = {
        learning_rate(o, done), o->beta1, o->beta2, o->eps, o->weight_decay, 1, fade_factor(o, step), step};
    return a;
}

// AdamW (Loshchilov & Hutter 2019) on n numbers; weights decay only with `decay`.
static void cpu_adamw(real* w, real* m, real* v, const real* g, int64_t n, const AdamW* a, int decay) {
    real b1 = (real)a->beta1, b2 = (real)a->beta2, eps = (real)a->eps, scale = (real)a->grad_scale;
    real correct1 = (real)(1 / (1 - pow(a->beta1, (double)a->step))),
         correct2 = (real)(1 / (1 - pow(a->beta2, (double)a->step)));
    real lr = (real)a->lr, shrink = (real)(decay ? a->lr * a->weight_decay : 0);
    PARALLEL_FOR
    for (int64_t block = 0; block < ceil_div(n, 16384); block++) {
        int64_t end = min_i64(n, block * 16384 + 16384);
        SIMD
        for (int64_t i = block * 16384; i < end; i++) {
            real grad = g[i] * scale;
            m[i] = b1 * m[i] + (1 - b1) * grad;
            v[i] = b2 * v[i] + (1 - b2) * grad * grad;
#if GPT2_SP_REAL_BYTES == 8
            w[i] -= lr * (m[i] * correct1 / (sqrt(v[i] * correct2) + eps)) + shrink * w[i];
#else
            w[i] -= lr * (m[i] * correct1 / (sqrtf(v[i] * correct2) + eps)) + shrink * w[i];
#endif
        }
    }
}

// Updates numbers begin to end - 1 of unit u, as far as this rank has moments for them, at `rate` times the
// step's learning rate.
static void numbers_update(
    Rank* r, int u, int64_t begin, int64_t end, double rate, int decay, const AdamW* adamw) {
    Held h = held(r, STATE_M, u);
    AdamW own = *adamw;
    begin = max_i64(h.begin, begin);
    end = min_i64(h.begin + h.n, end);
    own.lr *= rate;
    if (begin >= end || rate == 0 || adamw->grad_scale < 0) return;
    real *m = r->state[STATE_M] + h.at, *v = r->state[STATE_V] + h.at;
    cpu_adamw(r->state[STATE_WEIGHTS] + held_at(r, STATE_WEIGHTS, u, begin), m + begin - h.begin,
        v + begin - h.begin, r->state[STATE_GRADIENTS] + held_at(r, STATE_GRADIENTS, u, begin), end - begin,
        &own, decay);
}

// wpe *= fade, as far as this rank has moments for it. A step that is not finite fades too: how far wpe is
// depends on the step alone.
static void positions_fade(Rank* r, double fade) {
    const int u = positions_unit(r->layout);
    Held h = held(r, STATE_M, u);
    real* w = r->state[STATE_WEIGHTS] + held_at(r, STATE_WEIGHTS, u, h.begin);
    for (int64_t i = 0; fade != 1 && i < h.n; i++) w[i] = fade == 0 ? 0 : w[i] * (real)fade;   // no -0
}

// One update of what this rank has moments for (whole units, or its slices). Weights that it holds beyond
// that come from the ranks that have updated them.
static int weights_update(Rank* r, const AdamW* adamw) {
    const Layout* layout = r->layout;
    positions_fade(r, adamw->fade);
    for (int u = 0; u < layout->count; u++) {
        const Unit* unit = &layout->units[u];
        int gather =
            holding(layout, STATE_M, u) == HELD_SLICE && holding(layout, STATE_WEIGHTS, u) == HELD_WHOLE;
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&r->mesh->shape, id);
            if (p.unit != unit->kind) continue;
            int64_t begin = layout->within[id], end = begin + parameter_elements(&p);
            int64_t known = id == P_wpe ? begin + layout->known_positions * p.columns : end;
            numbers_update(r, u, begin, known, unit->rate[id], p.decay, adamw);
            numbers_update(r, u, known, end, unit->rate[id] * layout->new_rate, p.decay, adamw);
        }
        group_end(r->transport.trace, "adamw");
        real* whole = r->state[STATE_WEIGHTS] + unit->offset;
        if (gather && unit_bring(r, whole, unit->slice, "weights of unit", u, "weights gathered") != 0)
            return -1;
    }
    r->gathered = -1;
    return 0;
}

// ===== 10. trainer ==============================================================================
//
// A trainer (gpt2_sp) holds the ranks of this process and all that they share. What they do together is a
// job: ranks_run starts it on every rank, each on a thread of its own, and waits. A job has an argument
// of its own, in which the first rank of the process leaves what all ranks have alike. A step is such a job:
//
//     loader -> batch -> for each pass: forward, backward -> gradients summed, norm -> AdamW -> next batch
//
// Between two jobs the process itself speaks to the other processes (processes_agree): all go on, or none. A
// rank that fails aborts the world; no job can run after that. A job that the program around the trainer
// cancels is no failure: all ranks leave it at the end of the same layer (layer_done). Nothing that a later
// step reads has changed by then: gradients are cleared when a step begins, and its batch stays in hand.

// What a validation sums up: the losses of all labels, and how many they are.
typedef struct {
    double loss, count;
} Evaluation;

// What a run's validations have found. Checkpoints carry it; it counts as long as the validation data and
// --val-sequences are the same.
typedef struct {
    uint64_t data;       // what they were made on (validation_data)
    int64_t step;        // after which the last one was; -1: there was none
    int64_t best_step;   // after which the loss was lowest; -1: there was none after a step yet
    double best;         // that loss
    int64_t since;       // validations since then
} Validations;
static const Validations NO_VALIDATIONS = {0, -1, -1, 0, 0};

// Which step's gradients the ranks have, summed.
enum { NO_GRADIENTS, OF_NEXT_STEP, OF_LAST_STEP };

struct gpt2_sp {
    gpt2_sp_options options;
    const Device* device;
    Error error;
    Mesh mesh;
    Schedule schedules[2];
    Layout layout;
    ThreadWorld world;
    Transport host;           // of the process itself
    Rank* ranks;              // of this process: world rank mesh.first_rank first
    Segments* segments;       // (sp)
    RankBatch* batch_ranks;   // (3, local_ranks): the loaders' views of the ranks' token buffers
    Dataset data, val_data;
    Loader loader, val_loader;
    Batch* in_hand;   // of the next step, taken from the loader already; NULL: none
    int gradients;    // what the ranks have: NO_GRADIENTS, ...
    double loss;      // that came with them
    double lr;        // of steps in place of the schedule's; negative: the schedule's
    Report report;
    int inside;             // a public function is at work for it
    int64_t step;           // done
    uint64_t next_sample;   // the loader's whole state
    int64_t tokens_seen;
    Validations validations;
    double planned_lr;   // of the next step, by the options that the checkpoint was saved with; -1: unknown
    int64_t planned_steps;        // of the run, by these options; -1: unknown
    int64_t saved_step;           // newest checkpoint of this run; -1: none
    int64_t resumed_step;         // checkpoint that the run resumed from; -1: none
    int64_t newest_step;          // the newest there was then, damaged ones too; -1: none
    int64_t eot;                  // the token that ends documents, EOT_UNNAMED or EOT_NONE
    char init_model[PATH_SIZE];   // where the model of --init-from is that a new run starts from
    int64_t init_positions;       // rows of its wpe
    int64_t saved_seq_len;        // tokens of a sequence and rows of wpe that the checkpoint had from which
    int64_t saved_positions;      // the run resumed; 0: there was none
    bpe tokenizer;                // of the model; empty: not known
    int refused;                  // it does not fit in memory: mesh and layout are made, ranks are not
    Folder out;              // the run's folder, held and locked while this trainer lives; process 0 only
    int lock_fd;             // OUT/.lock in it
    int skipped;             // steps in a row that were not finite
    Evaluation evaluation;   // the last one
};

// The number of a trainer's tokenizer; 0: it knows none.
static uint32_t trainer_tokenizer(const gpt2_sp* g) {
    return g->tokenizer.token ? tokenizer_number(&g->tokenizer) : 0;
}

// The model that a trainer has, for messages.
static const char* model_named(const gpt2_sp* g) {
    const gpt2_sp_options* o = &g->options;
    return o->from[0] ? o->from : o->init_from[0] ? o->init_from : o->out[0] ? o->out : "of the trainer";
}
// What a model's tokens are.
typedef struct {
    char model[GPT2_SP_TEXT];
    int64_t vocab, eot;
    uint32_t tokenizer;   // its number; 0: not known
} ModelTokens;
static ModelTokens model_tokens(const gpt2_sp* g) {
    ModelTokens t;
    snprintf(t.model, sizeof t.model, "%s", model_named(g));
    t.vocab = g->mesh.shape.V, t.eot = g->eot;
    t.tokenizer = trainer_tokenizer(g);
    return t;
}
// -1 unless the tokens of another model, "draft" or "second", are this one's.
static int tokens_agree(const ModelTokens* t, const char* which, const ModelTokens* other, Error* e) {
    if (tokenizers_differ(t->tokenizer, other->tokenizer))
        return fail(e, "the %s model %.300s has %s, the model %.300s %s: it must be the same", which,
            other->model, tokenizer_name(other->tokenizer).text, t->model, tokenizer_name(t->tokenizer).text);
    if (other->vocab == t->vocab && other->eot == t->eot) return 0;
    return fail(e,
        "the %s model %.300s has %lld tokens and ends documents with token %lld, the model %.300s has "
        "%lld and ends them with token %lld: both must have the same tokenizer",
        which, other->model, (long long)other->vocab, (long long)other->eot, t->model, (long long)t->vocab,
        (long long)t->eot);
}

typedef struct {
    Rank* rank;
    gpt2_sp* g;
    RankJob job;
    void* argument;
    int status;
} RankCall;

// The thread of a rank during a job. A rank that fails wakes all others, of all processes, by an abort.
static void* rank_thread(void* argument) {
    RankCall* call = (RankCall*)argument;
    plain_locale_use();
    threads_use(call->g->mesh.threads);
    call->status = call->job(call->rank, call->g, call->argument);
    if (call->status != 0 && !call->rank->cancelled)
        call->rank->transport.abort(&call->rank->transport, &call->rank->error);
    return NULL;
}

static void world_working(ThreadWorld* w, int working) {
    pthread_mutex_lock(&w->mutex);
    w->working = working;
    pthread_mutex_unlock(&w->mutex);
}

// Runs a job on every rank of this process, each on a thread of its own (the first on the caller's), and
// waits. If any rank fails all stop, and the first reason is the trainer's error. So it is if a program has
// cancelled the job.
static int ranks_run(gpt2_sp* g, RankJob job, void* argument) {
    int world = g->mesh.local_ranks, status = 0;
    RankCall* calls = (RankCall*)calloc((size_t)world, sizeof *calls);
    pthread_t* threads = (pthread_t*)calloc((size_t)world, sizeof *threads);
    if (!calls || !threads) {
        status = fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory for %d ranks", world);
        g->host.abort(&g->host, &g->error);   // other processes may wait inside the job
    }
    int started = 1;
    world_working(&g->world, 1);
    for (int i = 0; status == 0 && i < world; i++) {
        calls[i].rank = &g->ranks[i], calls[i].g = g;
        calls[i].job = job, calls[i].argument = argument;
        g->ranks[i].transport.step = g->step + 1, g->ranks[i].cancelled = 0;
    }
    for (; status == 0 && started < world; started++)
        if (pthread_create(&threads[started], NULL, rank_thread, &calls[started]) != 0) {
            fail_as(GPT2_SP_NO_MEMORY, &g->ranks[0].error, "cannot start a thread for rank %d", started);
            g->ranks[0].transport.abort(&g->ranks[0].transport, &g->ranks[0].error);
            break;
        }
    if (status == 0) rank_thread(&calls[0]);
    for (int i = 1; status == 0 && i < started; i++) pthread_join(threads[i], NULL);
    world_working(&g->world, 0);
    if (status == 0 && world_aborted(&g->world, &g->error) != 0) status = failed_as(GPT2_SP_LOST, &g->error);
    if (status == 0 && g->ranks[0].cancelled)
        status = fail_as(GPT2_SP_CANCELLED, &g->error, "cancelled by the program, after %lld of %lld layers",
            (long long)g->report.progress.done, (long long)g->report.progress.total);
    free(calls);
    free(threads);
    return status;
}

// The gradients of a step, summed over its passes and all ranks. sums: as gradients_reduce has them.
static int rank_gradients_sum(Rank* r, double sums[2]) {
    const Layout* layout = r->layout;
    r->learn = 1, r->loss_sum = 0;
    memset(r->state[STATE_GRADIENTS], 0, (size_t)layout->buffer[STATE_GRADIENTS] * sizeof(real));
    for (int64_t pass = 0; pass < r->mesh->passes; pass++)
        if (model_forward_backward(r, pass) != 0) return -1;
    return gradients_reduce(r, sums);
}

// --- what --profile and --trace tell of a step ---
//
//     step_begin -> the rank records in r->recorder -> step_end: the first rank of the process prints the
//                   times of groups (--profile), or, once all ranks are done, writes and prints the spans

static void trace_free(Trace* t) {
    if (t) free(t->spans);
    free(t);
}

// The name of a file that each process of a run writes for itself: `path`, with the process' number behind it
// where there are several.
static void process_path(char out[GPT2_SP_TEXT + 16], const gpt2_sp* g, const char* path) {
    if (!path[0] || g->mesh.processes == 1) snprintf(out, GPT2_SP_TEXT + 16, "%s", path);
    else snprintf(out, GPT2_SP_TEXT + 16, "%s.%d", path, g->mesh.process);
}

// Prints the times of --profile by group.
static void profile_print(const Trace* t) {
    double total = 0;
    for (int g = 0; g < t->group_count; g++) total += t->groups[g].ms;
    for (int g = 0; g < t->group_count; g++)
        printf("  %-26s %9.3f ms  %5.1f %%  %5d times\n", t->groups[g].name, t->groups[g].ms,
            100 * t->groups[g].ms / total, t->groups[g].count);
    printf("  %-26s %9.3f ms\n", "total", total);
}

enum { TRACE_COLUMNS = 120 };
// Draws the spans of a kind on a lane as TRACE_COLUMNS characters: the share of each part of the step in
// which there are some, as a digit of ten; * is all of it. Returns how many spans there are.
static int trace_line(const Trace* t, int lane, int kind, char out[TRACE_COLUMNS + 1]) {
    double busy[TRACE_COLUMNS] = {0}, part = t->marked / TRACE_COLUMNS;
    int found = 0;
    for (int i = 0; i < t->span_count; i++) {
        const Span* span = &t->spans[i];
        if (span->lane != lane || span->kind != kind) continue;
        found++;
        for (int c = 0; c < TRACE_COLUMNS; c++)
            busy[c] += fmax(0, fmin(span->to, (c + 1) * part) - fmax(span->from, c * part));
    }
    for (int c = 0; c < TRACE_COLUMNS; c++) {
        int tenths = (int)(10 * busy[c] / part + 0.5);
        out[c] = tenths >= 10 ? '*' : tenths > 0 ? (char)('0' + tenths) : busy[c] > 0 ? '.' : ' ';
    }
    out[TRACE_COLUMNS] = 0;
    return found;
}
// ms between two times during which ops of attention run. Ops of one lane follow each other. An op of the
// other lane begins in the trace when it could start, perhaps before any multiprocessor is free, so what both
// lanes cover counts once.
static double attention_within(const Trace* t, double from, double to) {
    double covered = 0;
    for (int i = 0; i < t->span_count; i++) {
        const Span *a = &t->spans[i], *b;
        double begin = fmax(a->from, from), end = fmin(a->to, to);
        if (a->kind != SPAN_OP || end <= begin) continue;
        covered += end - begin;
        for (int j = 0; a->lane == LANE_COMPUTE && j < t->span_count; j++)
            if ((b = &t->spans[j])->lane == LANE_BESIDE && b->kind == SPAN_OP)
                covered -= fmax(0, fmin(end, b->to) - fmax(begin, b->from));
    }
    return covered;
}

// By lanes, then by time; of two that begin together the longer one, which holds the other.
static int span_order(const void* a, const void* b) {
    const Span *x = (const Span*)a, *y = (const Span*)b;
    if (x->lane != y->lane) return x->lane - y->lane;
    if (x->from != y->from) return x->from < y->from ? -1 : 1;
    if (x->to != y->to) return x->to > y->to ? -1 : 1;
    return x->kind - y->kind;
}
// Is an open file a trace, which another may replace?
static int trace_is(int fd) { return tok_begins(fd, "{\"displa"); }
// Writes a rank's spans to f in the format of Chrome's and Perfetto's traces, times in us: a process of
// theirs is a rank, a thread one of its lanes. Lanes without spans are left out.
static void trace_rank(FILE* f, int rank, Trace* t) {
    fprintf(f,
        "{\"ph\": \"M\", \"pid\": %d, \"name\": \"process_name\", \"args\": {\"name\": \"rank %d, %s\"}},\n",
        rank, rank, t->device);
    if (t->span_count) qsort(t->spans, (size_t)t->span_count, sizeof *t->spans, span_order);
    for (int i = 0; i < t->span_count; i++) {
        const Span* span = &t->spans[i];
        if (i == 0 || span->lane != span[-1].lane)
            fprintf(f,
                "{\"ph\": \"M\", \"pid\": %d, \"tid\": %d, \"name\": \"thread_name\", \"args\": {\"name\": "
                "\"%s\"}},\n",
                rank, span->lane, LANE_NAMES[span->lane]);
        fprintf(f,
            "{\"ph\": \"X\", \"pid\": %d, \"tid\": %d, \"cat\": \"%s\", \"name\": \"%s\", \"ts\": %.3f, "
            "\"dur\": "
            "%.3f},\n",
            rank, span->lane, SPAN_NAMES[span->kind], span->name, span->from * 1e3,
            (span->to - span->from) * 1e3);
    }
}
// Prints the same for people: a line of figures, and a picture of each kind of spans that there is.
static void trace_print(int rank, const Trace* t) {
    static const struct {
        const char* name;
        int lane, kind;
    } rows[] = {{"attention", LANE_COMPUTE, SPAN_OP}, {"beside", LANE_BESIDE, SPAN_OP},
        {"waiting", LANE_COMPUTE, SPAN_WAIT}, {"exchange", LANE_COPY, SPAN_MESSAGE},
        {"gathers", LANE_GATHER, SPAN_GATHER}};
    double attention = 0, exchange = 0, hidden = 0, gathers = 0;
    for (int i = 0; i < t->span_count; i++) {
        const Span* span = &t->spans[i];
        const double ms = span->to - span->from;
        if (span->kind == SPAN_GROUP && strncmp(span->name, "attention", 9) == 0) attention += ms;
        if (span->kind == SPAN_GATHER) gathers += ms;
        if (span->kind != SPAN_MESSAGE || span->lane != LANE_COPY) continue;
        exchange += ms, hidden += attention_within(t, span->from, span->to);
    }
    printf("rank %d, %s: step %.2f ms, attention %.2f ms (%s %.2f), exchange %.2f ms (%.0f %% under %s), "
           "gathers %.2f ms\n",
        rank, t->device, t->marked, attention, t->computed, attention_within(t, 0, t->marked), exchange,
        exchange > 0 ? 100 * hidden / exchange : 100.0, t->computed, gathers);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char line[TRACE_COLUMNS + 1];
        if (trace_line(t, rows[i].lane, rows[i].kind, line)) printf("  %-9s |%s|\n", rows[i].name, line);
    }
}
// Writes the traced step of all ranks of the process, and of a command prints it.
static int trace_write(gpt2_sp* g, Error* e) {
    char path[GPT2_SP_TEXT + 16];
    TextFile file;
    int failed = 0;
    process_path(path, g, g->options.trace);
    for (int i = 0; i < g->mesh.local_ranks; i++) failed |= g->ranks[i].recorder->failed;
    if (failed) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for --trace");
    if (text_open(&file, path, "trace", trace_is, e) != 0) return -1;
    fprintf(file.f, "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n");
    for (int i = 0; i < g->mesh.local_ranks; i++) {
        trace_rank(file.f, g->ranks[i].world_rank, g->ranks[i].recorder);
        if (g->options.prints) trace_print(g->ranks[i].world_rank, g->ranks[i].recorder);
    }
    fprintf(file.f, "{\"ph\": \"M\", \"pid\": 0, \"name\": \"end\"}\n]}\n");
    return text_finish(&file, 1, e);
}

// Before a step: makes r->recorder ready if --profile, which is of world rank 0, or --trace record it; *trace
// is it then, else NULL. The ranks' clocks of a traced step begin together, as far as hosts can see to it.
static int step_begin(Rank* r, const gpt2_sp_options* o, Trace** trace) {
    *trace = NULL;
    if (!o->trace[0] && !(o->profile && r->world_rank == 0)) return 0;
    if (!r->recorder && !(r->recorder = (Trace*)calloc(1, sizeof *r->recorder)))
        return fail_as(GPT2_SP_NO_MEMORY, &r->error, "out of memory for --trace and --profile");
    Trace* t = r->recorder;
    t->tracing = o->trace[0] && ++t->steps == TRACED_STEP, t->profiling = o->profile && r->world_rank == 0;
    if (!t->tracing && !t->profiling) return 0;
    t->span_count = t->group_count = 0;
    t->computed = "ops";
    snprintf(t->device, sizeof t->device, "CPU");
    if (t->tracing && r->transport.barrier(&r->transport, &r->all, &r->error) != 0) return -1;
    t->began = now_ms(), t->marked = 0;
    *trace = t;
    return 0;
}
// After it.
static int step_end(Rank* r, gpt2_sp* g, Trace* t) {
    if (t && t->profiling) profile_print(t);
    if (!t || !t->tracing) return 0;
    if (r->transport.barrier(&r->transport, &r->all, &r->error) != 0) return -1;
    if (r->world_rank == g->mesh.first_rank && trace_write(g, &r->error) != 0) return -1;
    return r->transport.barrier(&r->transport, &r->all, &r->error);
}

// A step, or a part of it: what it is given, and what the first rank of the process leaves of it.
enum { STEP_GRADIENTS = 1, STEP_UPDATE = 2, STEP_WHOLE = STEP_GRADIENTS | STEP_UPDATE };
typedef struct {
    AdamW adamw;
    double loss, square;   // of the step; the squared norm of its gradient
    int updated;           // it changed the weights
    int parts;             // STEP_...
    double before;         // of an update alone: the loss that its gradients came with
} StepJob;
// A job: one optimizer step, or a part of it. Where loss or norm is not finite no rank learns from it, and
// all know that it is so.
static int rank_step(Rank* r, gpt2_sp* g, void* argument) {
    StepJob* step = (StepJob*)argument;
    double sums[2] = {step->before, 0};
    Trace* trace = NULL;
    if (step->parts & STEP_GRADIENTS) {
        if (step_begin(r, &g->options, &trace) != 0) return -1;
        r->transport.trace = trace;
        if (rank_gradients_sum(r, sums) != 0) {
            r->transport.trace = NULL;   // of a step that was cancelled no later job adds to it
            return -1;
        }
    } else {
        sums[1] = gradients_square(r);
        if (r->transport.all_reduce(&r->transport, &r->all, sums + 1, 1, &r->error) != 0) return -1;
    }
    int finite = isfinite(sums[0]) && isfinite(sums[1]);   // alike on all ranks: the sums are
    double norm = sqrt(sums[1]), clip = g->options.grad_clip;
    AdamW adamw = step->adamw;
    adamw.grad_scale = clip > 0 ? fmin(1, clip / (norm + 1e-6)) : 1;   // as PyTorch's clip_grad_norm_ has it
    if (!finite) adamw.grad_scale = -1;
    if (r->world_rank == r->mesh->first_rank) {
        step->loss = sums[0], step->square = sums[1];
        step->updated = finite && step->parts & STEP_UPDATE;
    }
    if (step->parts & STEP_UPDATE && weights_update(r, &adamw) != 0) return -1;
    r->transport.trace = NULL;
    return step_end(r, g, trace);
}

// The gradients of a step's batches, whole: (layout.elements); and their loss and squared norm.
typedef struct {
    real* all;
    double loss, square;
} Gradients;
// A job, for --check: the gradients of a step without an update. Each rank copies its slices to `all`.
static int rank_gradients_collect(Rank* r, gpt2_sp* g, void* argument) {
    Gradients* out = (Gradients*)argument;
    (void)g;
    const Layout* layout = r->layout;
    double sums[2];
    if (rank_gradients_sum(r, sums) != 0) return -1;
    if (r->world_rank == r->mesh->first_rank) out->loss = sums[0], out->square = sums[1];
    for (int u = 0; u < layout->count; u++) {
        const Unit* unit = &layout->units[u];
        int64_t begin = slice_begin(r, u), at = held_at(r, STATE_GRADIENTS, u, begin);
        memcpy(out->all + unit->offset + begin, r->state[STATE_GRADIENTS] + at,
            (size_t)unit->slice * sizeof(real));
    }
    return 0;
}

// Gives every rank its part of a batch; NULL does nothing.
static void batch_give(gpt2_sp* g, const Batch* batch) {
    for (int i = 0; batch && i < g->mesh.local_ranks; i++)
        g->ranks[i].batch = &batch->ranks[i], g->ranks[i].valid_tokens = batch->valid;
}

// Takes the batch of the next step, unless it is in hand, and requests that of the step after it. 0, or -1 on
// all processes if one could not read it. heard: becomes whether the program of any process hears of jobs.
static int batch_take(gpt2_sp* g, int* heard) {
    Batch* batch = g->in_hand ? g->in_hand : loader_take(&g->loader, &g->error);
    *heard = g->report.call != NULL;
    if (processes_agree(&g->host, batch ? 0 : -1, heard, &g->error) != 0) return -1;
    if (!g->in_hand)
        loader_request(
            &g->loader, g->next_sample + step_samples(&g->mesh), ramp_window(&g->options, g->step + 1));
    g->in_hand = batch;
    batch_give(g, batch);
    return 0;
}

// Begins a job of so many passes of a number of layers, forward and backward, over B sequences: `heard`, some
// process' program hears of it. program: what this one's thread had. report_end ends it.
static void report_begin(gpt2_sp* g, int heard, int doing, int64_t passes, int64_t layers) {
    const gpt2_sp_progress p = {sizeof p, doing, g->step + (doing == GPT2_SP_IN_STEP), 0, passes, 0,
        passes * layers * g->mesh.shape.B};
    g->report.progress = p;
    for (int i = 0; i < g->mesh.local_ranks; i++) g->ranks[i].report = heard ? &g->report : NULL;
}
static void report_end(gpt2_sp* g) {
    for (int i = 0; i < g->mesh.local_ranks; i++) g->ranks[i].report = NULL;
}

// An update needs gradients of the next step. -1 on all processes if one has none.
static int gradients_there(gpt2_sp* g) {
    int status = g->gradients == OF_NEXT_STEP
        ? 0
        : fail_as(GPT2_SP_INVALID, &g->error,
              "gpt2_sp_update: there are no gradients, gpt2_sp_gradients makes them");
    return processes_agree(&g->host, status, NULL, &g->error);
}

// One optimizer step, or a part of it. The batch of the next step is requested before this one is computed.
// Ten steps in a row that are not finite are an error.
static int trainer_step(gpt2_sp* g, int parts, gpt2_sp_stats* stats) {
    double start = now_ms();
    int heard = 0, first = parts & STEP_GRADIENTS;
    g->host.step = g->step + 1;
    pthread_mutex_lock(&g->world.mutex);
    g->world.step = g->step + 1;
    pthread_mutex_unlock(&g->world.mutex);
    if ((first ? batch_take(g, &heard) : gradients_there(g)) != 0) return -1;
    const gpt2_sp_options* o = &g->options;
    const Batch* batch = g->in_hand;
    const int learns = batch->valid > 0;   // AdamW would go on by its moments alone
    StepJob step = {step_adamw(o, g->step), 0, 0, 0, learns ? parts : parts & ~STEP_UPDATE, g->loss};
    if (g->lr >= 0) step.adamw.lr = g->lr;
    g->gradients = NO_GRADIENTS;
    report_begin(g, heard, GPT2_SP_IN_STEP, g->mesh.passes, 2 * g->mesh.shape.L);
    int status = ranks_run(g, g->device->step, &step);
    report_end(g);
    if (status != 0) return -1;
    int64_t tokens = g->tokens_seen + batch->valid;
    stats->step = g->step + 1, stats->loss = g->loss = step.loss;
    stats->grad_norm = sqrt(step.square), stats->lr = step.adamw.lr;
    stats->tokens = tokens, stats->ms = now_ms() - start;
    stats->updated = step.updated, stats->window = ramp_window(o, g->step);
    stats->tok_per_s = (double)batch->valid / stats->ms * 1e3;
    g->gradients = parts & STEP_UPDATE ? OF_LAST_STEP : OF_NEXT_STEP;
    if (!(parts & STEP_UPDATE)) return 0;
    g->in_hand = NULL;
    g->step++, g->next_sample += step_samples(&g->mesh);
    g->tokens_seen = tokens;
    g->skipped = step.updated || !learns ? 0 : g->skipped + 1;
    if (g->skipped >= 10)
        return fail_as(GPT2_SP_NOT_FINITE, &g->error,
            "step %lld: the loss or the gradient has not been finite for 10 steps in a row; the weights are "
            "those before them",
            (long long)g->step);
    return 0;
}

// Between these two lies what a public function does for a trainer. The second gives the caller the code of
// what failed; status: at least 0 if nothing has.
static int trainer_enter(gpt2_sp* g, Host* host) {
    if (!g || g->inside) return GPT2_SP_INVALID;   // inside: a callback calls its own trainer
    g->inside = 1;
    g->error.code = GPT2_SP_OK, g->error.text[0] = 0;
    *host = g->report.program = host_enter();
    return GPT2_SP_OK;
}
static int64_t trainer_leave(gpt2_sp* g, const Host* host, int64_t status) {
    host_leave(host);
    g->inside = 0;
    if (status >= 0) return status;
    failed_as(GPT2_SP_FAILED, &g->error);
    return g->error.code;
}

static int stats_give(gpt2_sp_stats* stats, const gpt2_sp_stats* told, Error* e) {
    return struct_give(stats, told, sizeof *told, KNOWN_UP_TO(gpt2_sp_stats, window), "gpt2_sp_stats", e);
}
// See the header, for what follows.
static int step_part(gpt2_sp* g, int parts, gpt2_sp_stats* stats) {
    gpt2_sp_stats told;
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    memset(&told, 0, sizeof told);
    told.step = g->step;
    int status = stats_give(stats, &told, &g->error);
    if (status == 0) {
        status = trainer_step(g, parts, &told);
        stats_give(stats, &told, &g->error);
    }
    return (int)trainer_leave(g, &host, status);
}
int gpt2_sp_step(gpt2_sp* g, gpt2_sp_stats* stats) { return step_part(g, STEP_WHOLE, stats); }
int gpt2_sp_gradients(gpt2_sp* g, gpt2_sp_stats* stats) { return step_part(g, STEP_GRADIENTS, stats); }
int gpt2_sp_update(gpt2_sp* g, gpt2_sp_stats* stats) { return step_part(g, STEP_UPDATE, stats); }
int gpt2_sp_set_lr(gpt2_sp* g, double lr) {
    char text[64];
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    int status = isfinite(lr) ? 0 : fail_as(GPT2_SP_INVALID, &g->error, "%g is no learning rate", lr);
    snprintf(text, sizeof text, "gpt2_sp_set_lr(%.17g)", lr);
    status = processes_agree(&g->host, status, NULL, &g->error);
    if (status == 0 && processes_compare(&g->host, "comparing learning rates", text, &g->error) != 0)
        status = failed_as(GPT2_SP_MISMATCH, &g->error);
    if (status == 0) g->lr = lr;
    return (int)trainer_leave(g, &host, status);
}
int gpt2_sp_on_progress(
    gpt2_sp* g, int (*progress)(void* user, const gpt2_sp_progress* progress), void* user) {
    if (!g) return GPT2_SP_INVALID;
    g->report.call = progress, g->report.user = user;
    return GPT2_SP_OK;
}
int gpt2_sp_code(const gpt2_sp* g) { return g ? g->error.code : GPT2_SP_INVALID; }
int64_t gpt2_sp_steps(const gpt2_sp* g) { return g ? g->step : 0; }
const char* gpt2_sp_error(const gpt2_sp* g) { return g ? g->error.text : "there is no trainer"; }

// ===== 11. checkpoints ==========================================================================
//
//     OUT/step_00000100/
//         model.safetensors        weights in Hugging Face's names and layout (with --center 1 the folder
//         config.json              opens in Transformers as it is)
//         optimizer.safetensors    m.<name> and v.<name>: AdamW's moments, (out, in) as in memory
//         state.json               step, next sample, tokens seen, and what the run was
//         tokenizer.json ...       the tokenizer's files (BPE_FILES), where the run knows it
//         manifest.txt             "gpt2_sp checkpoint 1", "<file> <bytes> <crc32>" of each, "crc <crc32>" of
//                                  all lines above
//
// A checkpoint is written as step_00000100.tmp (where that name is taken, step_00000100.1.tmp and so on);
// every file is fsynced, the folder renamed, its parent fsynced; only then are older ones removed. A folder
// counts only if its manifest and every file that it names check out. Nothing in it depends on dp, sp or
// zero.
//
// Whose is a folder in OUT? checkpoint_step and folder_ours answer: its name must be exactly the one that
// this program gives to a step, and its manifest must begin as ours do, which is why a manifest's first
// line is on the disk before anything else. Links are never ours. Only folder_remove removes, and only the
// files above: what else lies in the folder stays, and so does the folder.
//
// Writing goes unit by unit: all ranks bring it together (unit_send_to), process 0 writes it. Reading does
// not: every rank reads what it holds.
//
// A model is read from such a folder, from a folder of Hugging Face's or from a model file of llm.c, and
// exported to one of the latter two (export_folder, export_llmc); a folder then has a manifest that begins
// with "gpt2_sp export 1". llm.c's file, all little-endian:
//
//     int32[256]   0 magic 20240326   1 version: 3 fp32, 5 bf16   2 N   3 V   4 L   5 NH   6 C
//                  7 Vp, the rows of wte   8, 9 "gpt2_sp" where this program wrote it; llm.c leaves 0
//     numbers      the parameters in the order of PARAMETERS, each of all layers before the next,
//                  (out, in) as in memory

// A parameter's rows as files have them: without the padding of the vocabulary.
static int64_t tensor_rows(const Shape* s, int id, const Parameter* p) {
    return id == P_wte ? s->V : p->rows;
}

// Adds a parameter of unit u to a safetensors header. hf_layout: as Hugging Face has it, transposed if it
// is one of those.
static int tensor_declare(st_header* header, const Shape* s, const char* prefix, int u, int id, int hf_layout,
    int st_dtype, Error* e) {
    Parameter p = parameter(s, id);
    char name[ST_NAME_MAX];
    uint64_t rows = (uint64_t)tensor_rows(s, id, &p), columns = (uint64_t)p.columns,
             shape[2] = {rows, columns};
    if (hf_layout && p.transposed) shape[0] = columns, shape[1] = rows;
    tensor_name(name, sizeof name, prefix, &p, u);
    return st_header_add(header, name, st_dtype, columns ? 2 : 1, shape, e->text, sizeof e->text);
}

// Adds every tensor of a model, or of one of its moments, to a safetensors header, in the order in which
// rank_save writes them.
static int tensors_declare(st_header* header, const gpt2_sp* g, const char* prefix, int hf_layout, Error* e) {
    const Shape* s = &g->mesh.shape;
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++)
            if (parameter(s, id).unit == g->layout.units[u].kind &&
                tensor_declare(header, s, prefix, u, id, hf_layout, REAL_DTYPE, e) != 0)
                return -1;
    return 0;
}

// Writes the header. The entry "format" is what Transformers asks for.
static int header_write(OutFile* f, st_header* header, Error* e) {
    unsigned char* bytes = NULL;
    size_t size = 0;
    int status = st_header_finish(header, "{\"format\":\"pt\"}", &bytes, &size, e->text, sizeof e->text);
    if (status == 0) status = file_write(f, bytes, size, e);
    free(bytes);
    return status;
}

// Appends n numbers to a file as st_dtype REAL_DTYPE, ST_F32, ST_BF16 or ST_F16, rounded to the nearest.
static int numbers_write(OutFile* f, const real* data, int64_t n, int st_dtype, Error* e) {
    if (st_dtype == REAL_DTYPE) return file_write(f, data, (size_t)n * sizeof(real), e);
    union {
        float singles[1024];
        uint16_t halves[1024];
    } piece;
    int status = 0;
    for (int64_t at = 0, count; status == 0 && at < n; at += count) {
        count = min_i64(1024, n - at);
        for (int64_t i = 0; i < count; i++) {
            double x = (double)data[at + i];
            if (st_dtype == ST_F32) piece.singles[i] = (float)x;
            else piece.halves[i] = st_dtype == ST_F16 ? st_to_f16(x) : st_to_bf16(x);
        }
        status = file_write(f, &piece, (size_t)count * st_dtype_bytes(st_dtype), e);
    }
    return status;
}

// Appends a tensor (rows, columns) to a file, or its transpose.
static int tensor_write(
    OutFile* f, const real* data, int64_t rows, int64_t columns, int transposed, int st_dtype, Error* e) {
    if (!transposed) return numbers_write(f, data, rows * max_i64(1, columns), st_dtype, e);
    real* strip = (real*)malloc((size_t)(16 * rows) * sizeof(real));   // 16 columns at a time, as rows
    int status = strip ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int64_t c = 0; status == 0 && c < columns; c += 16) {
        int64_t n = min_i64(16, columns - c);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) strip[i * rows + r] = data[r * columns + c + i];
        status = numbers_write(f, strip, n * rows, st_dtype, e);
    }
    free(strip);
    return status;
}

// The states that a checkpoint has.
static const int SAVED_STATES[] = {STATE_WEIGHTS, STATE_M, STATE_V};
enum { SAVED_COUNT = 3 };

// A buffer that is free between steps and has room for a whole unit that is not own. For weights it is the
// one where they come together, for moments that of the gradients.
static real* unit_scratch(const Rank* r, int state) {
    if (state == STATE_WEIGHTS) return r->whole_unit[STATE_WEIGHTS];
    real* whole = r->whole_unit[STATE_GRADIENTS];
    return whole ? whole : r->state[STATE_GRADIENTS];
}

// A unit of a state, whole, on every rank: where it is held, or brought together from the ranks' slices. Not
// for own units. All ranks call it together; NULL, with a line in r->error, if the exchange fails.
static const real* unit_fetch(Rank* r, int state, int u) {
    const Unit* unit = &r->layout->units[u];
    Held h = held(r, state, u);
    if (holding(r->layout, state, u) == HELD_WHOLE) return r->state[state] + h.at;
    real* whole = unit_scratch(r, state);
    if (state == STATE_WEIGHTS) r->gathered = u;
    memcpy(whole + h.begin, r->state[state] + h.at, (size_t)h.n * sizeof(real));
    return r->transport.all_gather(&r->transport, &r->sharing, whole, unit->slice, &r->error) == 0 ? whole
                                                                                                   : NULL;
}

// Takes the n numbers of a unit that begin at `begin` to `to`: all of it, or one slice of an own unit.
typedef void (*UnitTaker)(gpt2_sp* g, void* to, int state, int u, const real* part, int64_t begin, int64_t n);

// Whether a rank is the first one of one of the first `takers` processes.
static int unit_takes(const Rank* r, int takers) {
    int local = r->mesh->local_ranks;
    return r->world_rank % local == 0 && r->world_rank / local < takers;
}

// Brings the slices that all ranks have of a unit, this one `own`, one by one to the first rank of each of
// the first `takers` processes, which gives them to `take`. All ranks call it together.
static int unit_slices_send(
    Rank* r, gpt2_sp* g, int state, int u, real* own, int takers, UnitTaker take, void* to) {
    const Unit* unit = &r->layout->units[u];
    int local = r->mesh->local_ranks, takes = unit_takes(r, takers), status = 0;
    size_t bytes = (size_t)unit->slice * sizeof(real);
    real* room = takes ? (real*)malloc(bytes) : NULL;
    Piece* sends = (Piece*)calloc((size_t)takers, sizeof *sends);
    if (!sends || (takes && !room))
        status = fail_as(GPT2_SP_NO_MEMORY, &r->error, "out of memory for another rank's slice");
    for (int w = 0; status == 0 && w < r->mesh->world; w++) {
        Piece receive = {w, room, bytes};
        int sent = 0, received = takes && w != r->world_rank;
        for (int i = 0; w == r->world_rank && i < takers; i++)
            if (i * local != w)
                sends[sent].peer = i * local, sends[sent].data = own, sends[sent++].bytes = bytes;
        if (r->transport.post(&r->transport, sends, sent, &r->error) != 0 ||
            r->transport.wait(&r->transport, sends, sent, &receive, received, &r->error) != 0)
            status = -1;
        else if (takes) take(g, to, state, u, received ? room : own, w * unit->slice, unit->slice);
    }
    free(sends);
    free(room);
    return status;
}

// Brings a unit of a state to the first rank of each of the first `takers` processes, which gives it to
// `take`. All ranks call it together. An own unit is delivered slice by slice; whole, it would be the largest
// buffer.
static int unit_send_to(Rank* r, gpt2_sp* g, int state, int u, int takers, UnitTaker take, void* to) {
    int how = holding(r->layout, state, u);
    if (how == HELD_OWN)
        return unit_slices_send(r, g, state, u, r->state[state] + held(r, state, u).at, takers, take, to);
    const real* whole = unit_fetch(r, state, u);
    if (!whole) return -1;
    if (unit_takes(r, takers)) take(g, to, state, u, whole, 0, r->layout->units[u].elements);
    // ranks stay together: none begins the next unit while another is still taking this one
    return how == HELD_SLICE ? r->transport.barrier(&r->transport, &r->all, &r->error) : 0;
}

// The files that the first rank of process 0 writes; none elsewhere.
typedef struct {
    OutFile *model, *optimizer;
} SaveJob;

// rank_save's UnitTaker, on rank 0: appends what came to its file. After a failed write, which g->error has,
// it does nothing, so that the ranks' exchange can go on to its end.
static void unit_write(gpt2_sp* g, void* to, int state, int u, const real* part, int64_t begin, int64_t n) {
    const SaveJob* save = (const SaveJob*)to;
    const Unit* unit = &g->layout.units[u];
    (void)begin;   // an own unit is one parameter, whose rows come in their order
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        Parameter p = parameter(&g->mesh.shape, id);
        if (p.unit != unit->kind || g->error.text[0]) continue;
        OutFile* file = state == STATE_WEIGHTS ? save->model : save->optimizer;
        int64_t rows = min_i64(tensor_rows(&g->mesh.shape, id, &p), n / max_i64(1, p.columns));
        tensor_write(file, part + g->layout.within[id], rows, p.columns,
            state == STATE_WEIGHTS && p.transposed, REAL_DTYPE, &g->error);
    }
}
// A job: writes both safetensors files. Every rank brings what it holds, rank 0 writes.
static int rank_save(Rank* r, gpt2_sp* g, void* argument) {
    for (int i = 0; i < SAVED_COUNT; i++)
        for (int u = 0; u < g->layout.count; u++)
            if (unit_send_to(r, g, SAVED_STATES[i], u, 1, unit_write, argument) != 0) return -1;
    return 0;
}

// The files of a checkpoint, in the order in which they are removed: as long as the manifest is there, it
// tells whose the others are. A manifest names those that its kind of folder needs, which come first here,
// and of the others those that there are.
enum { CHECKPOINT_FILE_COUNT = 9 };
static const char* const CHECKPOINT_FILES[CHECKPOINT_FILE_COUNT] = {"model.safetensors",
    "optimizer.safetensors", "config.json", "state.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "manifest.txt"};

// The kinds of folders that this program writes with a manifest.
typedef struct {
    const char* mark;   // the manifest begins with it
    const char* what;
    const char* const* files;   // that it may hold, the manifest last
    int count, needed;          // of them
} FolderKind;
static const FolderKind CHECKPOINT = {
    "gpt2_sp checkpoint", "a checkpoint", CHECKPOINT_FILES, CHECKPOINT_FILE_COUNT, 4};

// The files of an export for Transformers; modeling_gpt2_sp.py is the program of a model with --center 0.
enum { EXPORT_FILE_COUNT = 9 };
static const char* const EXPORT_FILES[EXPORT_FILE_COUNT] = {"model.safetensors", "config.json",
    "generation_config.json", "modeling_gpt2_sp.py", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "manifest.txt"};
static const FolderKind EXPORT_FOLDER = {"gpt2_sp export", "an export", EXPORT_FILES, EXPORT_FILE_COUNT, 3};

// Names of a folder: with the number TEMPORARIES its own; with a smaller one that of a folder that is being
// written, or was replaced.
enum { TEMPORARIES = 100, STEP_NAME = 48, FOLDER_NAME = 256 + 8 };
static void temporary_name(char* out, size_t size, const char* name, int number) {
    if (number == 0) snprintf(out, size, "%s.tmp", name);
    else if (number < TEMPORARIES) snprintf(out, size, "%s.%d.tmp", name, number);
    else snprintf(out, size, "%s", name);
}
static void checkpoint_name(char out[STEP_NAME], int64_t step, int number) {
    char name[STEP_NAME - 8];
    snprintf(name, sizeof name, "step_%08lld", (long long)step);
    temporary_name(out, STEP_NAME, name, number);
}

// The step that a name tells, of a checkpoint or (`temporary`) of a folder that is none yet; -1 if printing
// that step does not give the name back: step_6, step_+6 and step_x.tmp belong to somebody else.
static int64_t checkpoint_step(const char* name, int temporary) {
    char again[STEP_NAME];
    long long step;
    if (sscanf(name, "step_%18lld", &step) != 1 || step < 0) return -1;
    for (int number = temporary ? 0 : TEMPORARIES; number < TEMPORARIES + !temporary; number++) {
        checkpoint_name(again, step, number);
        if (strcmp(name, again) == 0) return step;
    }
    return -1;
}

// Whether this program wrote the folder `name` in another as one of a kind, or as one that was not finished:
// the manifest begins as ours do. Where that of a checkpoint was damaged or lost, state.json tells it. Of a
// folder whose writing was interrupted at once the manifest may be alone and empty, or missing in an empty
// folder.
static int folder_ours(const FolderKind* kind, const Folder* out, const char* name) {
    Folder folder;
    Error ignored;
    char text[512];
    uint64_t next;
    int ours = 0, others = 0;
    if (folder_enter(&folder, out, name, &ignored) != 0) return 0;
    ssize_t n = file_begin(&folder, "manifest.txt", text, sizeof text);
    if (n > 0) ours = strncmp(text, kind->mark, strlen(kind->mark)) == 0;
    ssize_t length = ours || kind != &CHECKPOINT ? 0 : file_begin(&folder, "state.json", text, sizeof text);
    if (length > 0) ours = json_get_u64(text, (size_t)length, "next_sample", &next) == 1;
    DIR* dir = ours ? NULL : folder_entries(&folder, &ignored);
    for (struct dirent* entry; dir && (entry = readdir(dir)) != NULL;)
        others += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            (n != 0 || strcmp(entry->d_name, "manifest.txt") != 0);
    if (dir) ours = others == 0, closedir(dir);
    folder_close(&folder);
    return ours;
}

// Removes a folder of a kind, or what there is of it, from another; what is not there is no error. Other
// files than those of the kind stay: then the line in e says so.
static int folder_remove(const FolderKind* kind, const Folder* out, const char* name, Error* e) {
    Folder folder;
    int status = 0;
    if (folder_enter(&folder, out, name, e) != 0) return errno == ENOENT ? 0 : -1;
    for (int i = 0; status == 0 && i < kind->count; i++)
        if (unlinkat(folder.fd, kind->files[i], 0) != 0 && errno != ENOENT)
            status = fail(e, "cannot remove %.700s/%s: %s", folder.path, kind->files[i], strerror(errno));
    folder_close(&folder);
    if (status != 0 || unlinkat(out->fd, name, AT_REMOVEDIR) == 0) return status;
    if (errno == ENOTEMPTY || errno == EEXIST)
        return fail(e, "%.800s holds files that are not %s's, which stay", folder.path, kind->what);
    return fail_file(e, "remove", folder.path);
}

// Adds the line of a file that is written to a manifest.
static void manifest_add(char* manifest, size_t size, const char* name, const OutFile* f) {
    size_t used = strlen(manifest);
    snprintf(manifest + used, size - used, "%s %llu %08x\n", name, (unsigned long long)f->bytes, f->crc);
}

// Writes a text as a file of a folder and adds the file's line to the manifest.
static int folder_text(const Folder* folder, const char* name, const char* text, char* manifest,
    size_t manifest_size, Error* e) {
    OutFile* f = (OutFile*)malloc(sizeof *f);
    if (!f) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    int status = file_create(f, e, folder, name);
    if (status == 0) {
        status = file_write(f, text, strlen(text), e);
        if (file_close(f, status == 0, e) != 0) status = -1;
        manifest_add(manifest, manifest_size, name, f);
    }
    free(f);
    return status;
}

// Writes the files of a tokenizer, if it is known, of a model of N positions.
static int folder_tokenizer(
    const Folder* folder, const bpe* tokenizer, int64_t N, char* manifest, size_t manifest_size, Error* e) {
    int status = 0;
    for (int i = 0; status == 0 && tokenizer->token && i < bpe_files(tokenizer); i++) {
        char* text = NULL;
        size_t size = 0;
        FILE* memory = open_memstream(&text, &size);
        int bad = !memory || bpe_write(tokenizer, i, (uint64_t)N, memory) != 0;
        if (memory && fclose(memory) != 0) bad = 1;
        status = bad ? fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %s", BPE_FILES[i])
                     : folder_text(folder, BPE_FILES[i], text, manifest, manifest_size, e);
        free(text);
    }
    return status;
}

// config.json, as Transformers reads it. end_token: eot, if it is one. dtype: of the weights, in PyTorch's
// words. more: other entries, each with its comma.
static void config_text(const Shape* s, int center, int64_t end_token, const char* dtype, const char* more,
    char* out, size_t size) {
    char eot[24] = "null";
    if (end_token >= 0) snprintf(eot, sizeof eot, "%lld", (long long)end_token);
    // without centring the model is no LayerNorm GPT-2, so its folder must not open as one
    snprintf(out, size,
        "{\n  \"model_type\": \"%s\",\n  \"architectures\": [\"%s\"],\n  \"n_layer\": %lld,\n  \"n_head\": "
        "%lld,\n  \"n_embd\": "
        "%lld,\n"
        "  \"n_positions\": %lld,\n  \"n_ctx\": %lld,\n  \"vocab_size\": %lld,\n  \"activation_function\": "
        "\"gelu_new\",\n  "
        "\"layer_norm_epsilon\": 1e-05,\n"
        "  \"tie_word_embeddings\": true,\n  \"attn_pdrop\": 0.0,\n  \"embd_pdrop\": 0.0,\n  "
        "\"resid_pdrop\": 0.0,\n  "
        "%s\"bos_token_id\": %s,\n  \"eos_token_id\": %s,\n  \"torch_dtype\": \"%s\"\n}\n",
        center ? "gpt2" : "gpt2_sp_rmsnorm", center ? "GPT2LMHeadModel" : "GPT2RMSNormLMHeadModel",
        (long long)s->L, (long long)s->NH, (long long)s->C, (long long)s->N, (long long)s->N, (long long)s->V,
        more, eot, eot, dtype);
}

// What a validation depends on besides the model: its shards and how many sequences of them.
static uint64_t validation_data(const gpt2_sp* g) {
    return random_bits(g->val_data.fingerprint, 0, (uint64_t)g->options.val_sequences);
}

// state.json: where the run stands, what resuming compares (state_read), what validations have found.
static void state_text(const gpt2_sp* g, char* out, size_t size) {
    const Validations* v = &g->validations;
    char validations[256] = "";
    int n = 0;
    if (v->step >= 0)
        n = snprintf(validations, sizeof validations, ", \"val_data\": \"%016llx\", \"val_step\": %lld",
            (unsigned long long)v->data, (long long)v->step);
    if (v->best_step >= 0)
        snprintf(validations + n, sizeof validations - (size_t)n,
            ", \"best_step\": %lld, \"best_val_loss\": %.17g, \"val_since_best\": %lld",
            (long long)v->best_step, v->best, (long long)v->since);
    snprintf(out, size,
        "{\"version\": 1, \"step\": %lld, \"steps\": %lld, \"next_lr\": %.17g, \"seq_len\": %lld, "
        "\"next_sample\": %llu, "
        "\"tokens\": %lld, "
        "\"seed\": %lld, "
        "\"center\": %d, \"doc_mask\": "
        "%d, \"positions\": \"%s\", \"known_positions\": %lld, \"data\": \"%016llx\"%s}\n",
        (long long)g->step, (long long)g->options.steps, learning_rate(&g->options, g->step),
        (long long)g->mesh.shape.T, (unsigned long long)g->next_sample, (long long)g->tokens_seen,
        (long long)g->options.seed, g->mesh.center, g->mesh.doc_mask,
        g->options.positions == GPT2_SP_NO_POSITIONS ? "none" : "learned",
        (long long)g->layout.known_positions, (unsigned long long)g->data.fingerprint, validations);
}

// Writes both safetensors files of a checkpoint and adds their lines to the manifest. All processes call it
// together; process 0 has the folder and comes with its status so far, so that one failure stops all. The
// others' folder and manifest are not looked at.
static int save_tensors(gpt2_sp* g, const Folder* folder, int status, char* manifest, size_t manifest_size) {
    Error* e = &g->error;
    SaveJob save = {NULL, NULL};
    if (g->mesh.process != 0)
        return processes_agree(&g->host, 0, NULL, e) != 0 ? -1 : ranks_run(g, g->device->save, &save);
    OutFile* files = (OutFile*)calloc(2, sizeof *files);
    if (!files) {
        if (status == 0) fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
        return processes_agree(&g->host, -1, NULL, e);
    }
    st_header headers[2];
    st_header_init(&headers[0]);
    st_header_init(&headers[1]);
    files[0].fd = files[1].fd = -1;
    if (status == 0) status = tensors_declare(&headers[0], g, MODEL_PREFIX, 1, e);
    if (status == 0) status = tensors_declare(&headers[1], g, "m." MODEL_PREFIX, 0, e);
    if (status == 0) status = tensors_declare(&headers[1], g, "v." MODEL_PREFIX, 0, e);
    if (status == 0) status = file_create(&files[0], e, folder, "model.safetensors");
    if (status == 0) status = file_create(&files[1], e, folder, "optimizer.safetensors");
    if (status == 0) status = header_write(&files[0], &headers[0], e);
    if (status == 0) status = header_write(&files[1], &headers[1], e);
    save.model = &files[0], save.optimizer = &files[1];
    status = processes_agree(&g->host, status, NULL, e);
    if (status == 0) status = ranks_run(g, g->device->save, &save);
    if (status == 0 && e->text[0]) status = -1;
    static const char* const names[2] = {"model.safetensors", "optimizer.safetensors"};
    for (int i = 0; i < 2; i++) {
        if (file_close(&files[i], status == 0, e) != 0) status = -1;
        manifest_add(manifest, manifest_size, names[i], &files[i]);
        st_header_free(&headers[i]);
    }
    free(files);
    return status;
}

// The checkpoints in a run's folder, newest first: their steps. The caller frees *steps. A link to a folder
// counts: it may be read.
static int checkpoint_list(const Folder* out, int64_t** steps, Error* e) {
    int count = 0, room = 0, failed = 0;
    struct stat info;
    *steps = NULL;
    DIR* dir = folder_entries(out, e);
    if (!dir) return -1;
    for (struct dirent* entry; errno = 0, (entry = readdir(dir)) != NULL;) {
        int64_t step = checkpoint_step(entry->d_name, 0);
        if (step < 0) continue;
        if (fstatat(out->fd, entry->d_name, &info, 0) == 0 && !S_ISDIR(info.st_mode)) continue;
        *steps = (int64_t*)grow(*steps, count, &room, sizeof **steps, &failed);
        if (!failed) (*steps)[count++] = step;
    }
    int unread = errno;   // a folder that cannot be read to its end is not one without checkpoints
    closedir(dir);
    for (int i = 1; i < count; i++)   // a handful: insertion sort
        for (int j = i; j > 0 && (*steps)[j] > (*steps)[j - 1]; j--) {
            int64_t t = (*steps)[j];
            (*steps)[j] = (*steps)[j - 1], (*steps)[j - 1] = t;
        }
    if (!unread && !failed) return count;
    free(*steps);
    *steps = NULL;
    return failed ? fail_as(GPT2_SP_NO_MEMORY, e, "out of memory")
                  : fail(e, "cannot read folder %.900s: %s", out->path, strerror(unread));
}

// Removes the folders that interrupted saves have left. All are tried; the last failure is the one told.
static int checkpoint_clean(const Folder* out, Error* e) {
    int status = 0;
    DIR* dir = folder_entries(out, e);
    if (!dir) return -1;
    for (struct dirent* entry; (entry = readdir(dir)) != NULL;)
        if (checkpoint_step(entry->d_name, 1) >= 0 && folder_ours(&CHECKPOINT, out, entry->d_name) &&
            folder_remove(&CHECKPOINT, out, entry->d_name, e) != 0)
            status = -1;
    closedir(dir);
    return status;
}

// Names, once as a run begins, what lies in its folder under names like a checkpoint's and is none:
// it stays as it is. -1 if the run would save there.
static int checkpoint_strangers(const Folder* out, int64_t step, const Log* log, Error* e) {
    int status = 0, count = 0;
    char names[GPT2_SP_TEXT] = "";
    DIR* dir = folder_entries(out, e);
    if (!dir) return -1;
    for (struct dirent* entry; status == 0 && (entry = readdir(dir)) != NULL;) {
        const char* name = entry->d_name;
        int64_t at = checkpoint_step(name, 0);
        if (strncmp(name, "step_", 5) != 0) continue;
        if ((at >= 0 || checkpoint_step(name, 1) >= 0) && folder_ours(&CHECKPOINT, out, name)) continue;
        if (at > step)
            status = fail(e,
                "%.700s/%.255s was not written by this program, which would save there: move it "
                "away or take another --out",
                out->path, name);
        size_t used = strlen(names);
        if (count++ < 8) snprintf(names + used, sizeof names - used, "%s%.60s", used ? ", " : "", name);
    }
    closedir(dir);
    if (status == 0 && count > 0)
        warn(log, "%s: not a checkpoint of this program, left alone: %s%s", out->path, names,
            count > 8 ? " and more" : "");
    return status;
}

// Makes a folder for `name`, under a temporary name that is free, to write in or to move one to.
static int temporary_make(
    Folder* folder, const Folder* out, const char* name, char* temporary, size_t size, Error* e) {
    for (int number = 0; number < TEMPORARIES; number++) {
        temporary_name(temporary, size, name, number);
        if (mkdirat(out->fd, temporary, 0777) == 0) return folder_enter(folder, out, temporary, e);
        if (errno != EEXIST) break;
    }
    folder->fd = -1;
    return fail_as(GPT2_SP_FILE, e, "cannot make folder %.700s/%.255s: %s", out->path, temporary,
        errno == ENOENT ? "the folder was removed or replaced after it was opened" : strerror(errno));
}

// A manifest on its way to the disk: its first line, which says whose the folder is, before anything else,
// the lines of the files when they are written.
typedef struct {
    OutFile file;
    size_t begun;      // bytes of text that are on the disk
    char text[4096];   // all of it; a line a file is appended by who writes the file
} Manifest;

static int manifest_begin(Manifest* m, const FolderKind* kind, const Folder* folder, Error* e) {
    m->begun = (size_t)snprintf(m->text, sizeof m->text, "%s 1\n", kind->mark);
    if (file_create(&m->file, e, folder, "manifest.txt") != 0 ||
        file_write(&m->file, m->text, m->begun, e) != 0 || file_flush(&m->file, e) != 0)
        return -1;
    return fsync(m->file.fd) != 0 ? fail_file(e, "fsync", m->file.path) : 0;
}

// Ends the manifest with its own CRC, and brings it and the folder's entries to the disk. status: of what
// came before; where it is not 0 the manifest stays without an end.
static int manifest_end(Manifest* m, const Folder* folder, int status, Error* e) {
    size_t used = strlen(m->text);
    snprintf(m->text + used, sizeof m->text - used, "crc %08x\n",
        (unsigned)crc32(0, (const unsigned char*)m->text, (unsigned)used));
    if (status == 0) status = file_write(&m->file, m->text + m->begun, strlen(m->text) - m->begun, e);
    if (file_close(&m->file, status == 0, e) != 0) status = -1;
    return status == 0 ? folder_sync(folder, e) : -1;
}

// Writes a checkpoint of the run's state into a new folder. status: of what came before; where it is not 0
// nothing is written, but the other processes, which wait in save_tensors, are told.
static int checkpoint_write(gpt2_sp* g, const Folder* folder, int status) {
    char text[2048], none[1] = "";
    Error* e = &g->error;
    Manifest* m = (Manifest*)malloc(sizeof *m);
    if (!m && status == 0) status = fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (m) m->file.fd = -1, m->text[0] = 0;
    if (status == 0) status = manifest_begin(m, &CHECKPOINT, folder, e);
    status = save_tensors(g, folder, status, m ? m->text : none, m ? sizeof m->text : sizeof none);
    config_text(&g->mesh.shape, g->mesh.center, g->eot, GPT2_SP_REAL_BYTES == 8 ? "float64" : "float32", "",
        text, sizeof text);
    if (status == 0) status = folder_text(folder, "config.json", text, m->text, sizeof m->text, e);
    state_text(g, text, sizeof text);
    if (status == 0) status = folder_text(folder, "state.json", text, m->text, sizeof m->text, e);
    if (status == 0)
        status = folder_tokenizer(folder, &g->tokenizer, g->mesh.shape.N, m->text, sizeof m->text, e);
    if (m) status = manifest_end(m, folder, status, e);
    free(m);
    return status;
}

// Checks a checkpoint's or an export's manifest, and every file it names, against their lengths and CRCs.
static int checkpoint_verify(const char* folder, Error* e) {
    char path[PATH_SIZE];
    size_t size;
    char* text = path_in(path, folder, "manifest.txt", e) == 0 ? file_read_text(path, 65536, &size, e) : NULL;
    if (!text) return -1;
    int version = 0, status = 0;
    unsigned named = 0;   // a bit for each of the kind's files
    char* last = size > 0 ? (char*)memrchr(text, '\n', size - 1) : NULL;   // before the last line
    char seal[16];
    snprintf(seal, sizeof seal, "crc %08x\n",
        last ? (unsigned)crc32(0, (const unsigned char*)text, (unsigned)(last + 1 - text)) : 0u);
    const FolderKind* kind =
        strncmp(text, EXPORT_FOLDER.mark, strlen(EXPORT_FOLDER.mark)) == 0 ? &EXPORT_FOLDER : &CHECKPOINT;
    size_t mark = strlen(kind->mark);
    if (strncmp(text, kind->mark, mark) != 0 || sscanf(text + mark, " %d", &version) != 1 ||
        strlen(text) != size)
        status = fail(e, "%.900s: not a checkpoint's manifest", path);
    else if (version > 1)
        status = fail(e, "%.900s: version %d, made by a newer version of this program", path, version);
    else if (!last || strcmp(last + 1, seal) != 0)
        status = fail(e, "%.900s: its own CRC does not match", path);
    for (char* line = text; status == 0 && (line = strchr(line, '\n')) != last;) {
        char name[64];
        unsigned long long bytes;
        unsigned sum;
        uint64_t found = 0, expected;
        uint32_t found_sum = 0;
        line++;
        if (sscanf(line, "%63s %llu %8x", name, &bytes, &sum) != 3) {
            status = fail(e, "%.900s: a line is not `file bytes crc`", path);
            break;
        }
        int id = 0;
        while (id < kind->count - 1 && strcmp(name, kind->files[id]) != 0) id++;
        if (id == kind->count - 1 || named & 1u << id) {
            status = id == kind->count - 1
                ? fail(e, "%.900s: names %s, no file of %s", path, name, kind->what)
                : fail(e, "%.900s: names %s, and twice", path, name);
            break;
        }
        named |= 1u << id;
        char file[PATH_SIZE];
        expected = bytes;
        status = path_in(file, folder, name, e);
        if (status == 0) status = file_checksum(file, &expected, &found, &found_sum, e);
        if (status != 0) break;
        if (found != bytes)
            status =
                fail(e, "%.700s: %llu bytes, the manifest says %llu", file, (unsigned long long)found, bytes);
        else if (found_sum != sum)
            status = fail(e, "%.700s: CRC %08x, the manifest says %08x", file, found_sum, sum);
    }
    for (int i = 0; status == 0 && i < kind->needed; i++)
        if (!(named & 1u << i)) status = fail(e, "%.900s: does not name %s", path, kind->files[i]);
    free(text);
    return status;
}

// Removes checkpoints beyond the newest --keep, but for that of the best validation (--keep-best). Those of
// later steps, and those that the run passed over as damaged when it resumed, do not count and stay; nor does
// an older one count that is not whole. What is not this program's stays too.
static int checkpoint_retire(gpt2_sp* g, Error* e) {
    const Folder* out = &g->out;
    int64_t *steps, kept = 0;
    int count = checkpoint_list(out, &steps, e), status = count < 0 ? -1 : 0;
    char name[STEP_NAME], path[PATH_SIZE];
    Error damage;
    for (int i = 0; status == 0 && i < count; i++) {
        checkpoint_name(name, steps[i], TEMPORARIES);
        if (steps[i] > g->step || !folder_ours(&CHECKPOINT, out, name)) continue;
        if ((status = path_in(path, out->path, name, e)) != 0) break;
        int passed_over = steps[i] > g->resumed_step && steps[i] <= g->newest_step;
        int unseen = steps[i] < g->resumed_step && kept < g->options.keep;
        if ((passed_over || unseen) && checkpoint_verify(path, &damage) != 0) continue;
        int best = g->options.keep_best && steps[i] == g->validations.best_step;
        if (kept++ >= g->options.keep && !best) status = folder_remove(&CHECKPOINT, out, name, e);
    }
    free(steps);
    return status;
}

// Gives the folder that was written its name. One of ours that has it, a damaged checkpoint or an export
// of before, gets a temporary name for it: in the same moment, or before where a file system cannot do
// that. What is not this program's is an error.
static int folder_publish(
    const FolderKind* kind, const Folder* out, const char* temporary, const char* name, Error* e) {
    char away[FOLDER_NAME];
    struct stat info;
    Folder folder;
    int taken = fstatat(out->fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0;
    if (!taken && errno != ENOENT)
        return fail(e, "cannot look at %.700s/%.255s: %s", out->path, name, strerror(errno));
    if (taken && !folder_ours(kind, out, name))
        return fail(e,
            "%.700s/%.255s was not written by this program: it stays, and %s of that name is not saved",
            out->path, name, kind->what);
    int exchanged = taken && renameat2(out->fd, temporary, out->fd, name, RENAME_EXCHANGE) == 0;
    if (taken && !exchanged) {
        if (temporary_make(&folder, out, name, away, sizeof away, e) != 0) return -1;
        folder_close(&folder);
        if (renameat(out->fd, name, out->fd, away) != 0)
            return fail(e, "cannot move %.700s/%.255s away: %s", out->path, name, strerror(errno));
    }
    if (!exchanged && renameat(out->fd, temporary, out->fd, name) != 0)
        return fail(e, "cannot rename %.700s/%.255s: %s", out->path, temporary, strerror(errno));
    return folder_sync(out, e);
}

// Saves a checkpoint. An older one that cannot be removed is told, and no error.
static int trainer_save(gpt2_sp* g) {
    Error* e = &g->error;
    e->text[0] = 0;
    if (!g->options.out[0]) return fail_as(GPT2_SP_INVALID, e, "no --out folder to save in");
    if (g->saved_step == g->step) return 0;
    g->gradients = NO_GRADIENTS;   // where moments are slices they come together over them (unit_scratch)
    if (g->mesh.process != 0) {
        int saved = processes_agree(&g->host, save_tensors(g, NULL, 0, NULL, 0), NULL, e);
        if (saved == 0) g->saved_step = g->step;
        return saved;
    }
    char name[STEP_NAME], written[STEP_NAME] = "";
    Folder folder;
    Error later = {0, {0}};
    checkpoint_name(name, g->step, TEMPORARIES);
    checkpoint_clean(&g->out, &later);   // what cannot be removed is told below
    int made = temporary_make(&folder, &g->out, name, written, sizeof written, e);
    int status = checkpoint_write(g, &folder, made);
    if (status == 0) status = folder_publish(&CHECKPOINT, &g->out, written, name, e);
    folder_close(&folder);
    if (status != 0 && made == 0)
        folder_remove(&CHECKPOINT, &g->out, written, &later);   // the first error is the one told
    if (processes_agree(&g->host, status, NULL, e) != 0) return -1;
    g->saved_step = g->step;
    if (checkpoint_clean(&g->out, &later) != 0 || checkpoint_retire(g, &later) != 0)
        warn(&g->options.log, "%s: step %lld is saved, but an older checkpoint is left: %s", g->out.path,
            (long long)g->step, later.text);
    return 0;
}

// See the header.
int gpt2_sp_save(gpt2_sp* g) {
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    int status = trainer_save(g);
    if (status != 0) failed_as(GPT2_SP_FILE, &g->error);
    return (int)trainer_leave(g, &host, status);
}

// Finds the newest whole checkpoint of a run. 1: found; 0: the run has none yet; -1: none of those there
// is whole, or the folder cannot be read. Those that it passes over are told to log.
static int checkpoint_find(const char* out, const Log* log, char folder[PATH_SIZE], Error* e) {
    int64_t* steps = NULL;
    char name[STEP_NAME];
    Folder run;
    Error why = {0, {0}};
    if (folder_open(&run, out, e) != 0) return errno == ENOENT ? 0 : -1;
    int count = checkpoint_list(&run, &steps, e), found = count < 0 ? -1 : 0;
    folder_close(&run);
    for (int i = 0; found == 0 && i < count; i++) {
        checkpoint_name(name, steps[i], TEMPORARIES);
        if (path_in(folder, out, name, e) != 0) found = -1;
        else if (checkpoint_verify(folder, &why) == 0) found = 1;
        else
            warn(log, "%s is not whole (%s)%s", folder, why.text,
                i + 1 < count ? ", trying an older one" : "");
    }
    free(steps);
    if (found == 0 && count > 0)
        return fail(
            e, "none of the %d checkpoints in %.300s is whole; the oldest: %.600s", count, out, why.text);
    return found;
}

// A model file of llm.c, by its head. Its numbers stand where the head of the section says.
enum { LLMC_MAGIC = 20240326, LLMC_FP32 = 3, LLMC_BF16 = 5, LLMC_HEAD = 1024 };
typedef struct {
    int fd, st_dtype;
    Shape shape;
} LlmcFile;

// Whether what the user names is a file, so one of llm.c's, and no folder. Anything else is told when it is
// opened.
static int model_is_file(const char* path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

// Opens a model file of llm.c: its head must be one, and its length the one that the head says.
static int llmc_open(LlmcFile* f, const char* path, Error* e) {
    static const char* const names[] = {"seq-len", "vocab", "layers", "heads", "channels"};
    struct stat info;
    int32_t head[LLMC_HEAD / 4];
    int status = 0;
    memset(f, 0, sizeof *f);
    f->fd = input_open(NULL, path, &info, e);
    if (f->fd < 0) return -1;
    ssize_t n = read_whole(f->fd, head, sizeof head);
    if (n != (ssize_t)sizeof head || head[0] != LLMC_MAGIC)
        status = fail(
            e, "%.800s: a file, but no model file of llm.c; other models are named by their folder", path);
    else if (head[1] != LLMC_FP32 && head[1] != LLMC_BF16)
        status = fail(e, "%.800s: llm.c's version %d, expected %d (fp32) or %d (bf16)", path, head[1],
            LLMC_FP32, LLMC_BF16);
    for (int i = 0; status == 0 && i < 5; i++)
        if (head[2 + i] < 1 || head[2 + i] > option_find(names[i])->high)
            status = fail(e, "%.800s: %s %d, expected 1 to %.0f", path, names[i], head[2 + i],
                option_find(names[i])->high);
    if (status == 0 && head[7] < head[3])
        status = fail(e, "%.800s: a vocabulary of %d in %d rows", path, head[3], head[7]);
    if (status == 0) {
        Shape s = {head[4], head[5], head[6] / head[5], head[6], head[3], head[7], head[2], 1, head[2]};
        uint64_t bytes = LLMC_HEAD;
        f->shape = s, f->st_dtype = head[1] == LLMC_FP32 ? ST_F32 : ST_BF16;
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&s, id);
            bytes += (uint64_t)(parameter_elements(&p) * (p.unit == UNIT_LAYER ? s.L : 1)) *
                st_dtype_bytes(f->st_dtype);
        }
        if ((uint64_t)info.st_size != bytes)
            status = fail(e, "%.800s: %lld bytes, expected %llu by its head", path, (long long)info.st_size,
                (unsigned long long)bytes);
    }
    if (status != 0) close(f->fd);
    return status;
}

// The tensors of such a file under Hugging Face's names, as the one file of a set.
static int llmc_tensors(st_set* set, const char* path, Error* e) {
    LlmcFile from;
    if (llmc_open(&from, path, e) != 0) return -1;
    const Shape* s = &from.shape;
    st_file* f = (st_file*)calloc(1, sizeof *f);
    uint64_t at = 0, bytes = st_dtype_bytes(from.st_dtype);
    int failed = !f;
    if (f) f->fd = from.fd, f->data_start = LLMC_HEAD;
    else close(from.fd);
    if (f) snprintf(f->path, sizeof f->path, "%s", path);
    for (int id = 0; id < PARAMETER_COUNT; id++) {
        Parameter p = parameter(s, id);
        for (int64_t layer = 0; !failed && layer < (p.unit == UNIT_LAYER ? s->L : 1); layer++) {
            st_tensor* t = st_append(&f->tensors, &f->count, &f->capacity);
            failed = !t;
            if (failed) break;
            tensor_name(t->name, sizeof t->name, MODEL_PREFIX, &p, (int)layer + 1);
            t->dtype = from.st_dtype, t->ndim = p.columns ? 2 : 1;
            t->shape[0] = (uint64_t)tensor_rows(s, id, &p), t->shape[1] = (uint64_t)p.columns;
            t->begin = at;
            t->end = at + t->shape[0] * (uint64_t)max_i64(1, p.columns) * bytes;
            at += (uint64_t)parameter_elements(&p) * bytes;   // padding of the vocabulary is passed over
        }
    }
    if (f && !failed) qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, st_by_name);
    set->files = f, set->count = f != NULL;
    if (failed) st_set_close(set);
    return failed ? fail_as(GPT2_SP_NO_MEMORY, e, "%.900s: out of memory", path) : 0;
}

// What rows of wpe are that a file does not have: as --grow says, or, of moments, zero.
enum { GROW_ZERO = GPT2_SP_INTERP + 1 };

// Tensors to read: a model's, or one of its moments.
typedef struct {
    st_set files;
    const char* prefix;   // before their names
    int hf_layout;        // some are transposed
    int64_t positions;    // rows of wpe that the files have
    int grow;             // what is made of them for more positions
} Tensors;

// Opens those of a state, SAVED_STATES, of the model at `path`, which has so many positions: a folder, or a
// model file of llm.c, which has no moments.
static int tensors_open(Tensors* t, const char* path, int state, int64_t positions, int grow, Error* e) {
    static const char* const prefixes[STATES] = {MODEL_PREFIX, "", "m." MODEL_PREFIX, "v." MODEL_PREFIX};
    int weights = state == STATE_WEIGHTS;
    t->prefix = prefixes[state], t->positions = positions;
    t->grow = weights ? grow : GROW_ZERO;
    t->hf_layout = weights && !model_is_file(path);
    if (weights && !t->hf_layout) return llmc_tensors(&t->files, path, e);
    return st_set_open(&t->files, path, weights ? "model" : "optimizer", e->text, sizeof e->text);
}

// Reads `count` numbers of a tensor from number `first` on as `real`, whatever type the file has.
static int st_read_real(
    const st_file* f, const st_tensor* t, uint64_t first, uint64_t count, real* out, Error* e) {
#if GPT2_SP_REAL_BYTES == 8
    return st_read_f64(f, t, first, count, out, e->text, sizeof e->text);
#else
    return st_read_f32(f, t, first, count, out, e->text, sizeof e->text);
#endif
}

// Reads rows first to first + count - 1 of wpe (N, C) into out, from a table of another length, n. The
// table's own rows stay as they are, so that up to n the model is the same; of a longer table those beyond N
// are left out. Row t behind them is with `tile` row t % n; with `interp` it lies where t falls if the
// table's first and last row are stretched to 0 and N - 1, on the line between the two rows beside it. Of
// moments it is zero.
static int positions_read(const st_file* f, const st_tensor* t, const Shape* s, int grow, uint64_t first,
    uint64_t count, real* out, Error* e) {
    const uint64_t n = t->shape[0], C = (uint64_t)s->C, gaps = (uint64_t)s->N - 1;
    real* pair = (real*)malloc(2 * C * sizeof(real));
    int status = pair ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (uint64_t row = 0, taken; status == 0 && row < count; row += taken) {
        uint64_t position = first + row;
        if (grow == GROW_ZERO && position >= n) {
            taken = count - row;
            memset(out + row * C, 0, taken * C * sizeof(real));
            continue;
        }
        if (grow == GPT2_SP_TILE || position < n) {   // as many rows as lie behind each other
            uint64_t at = position % n;
            taken = count - row < n - at ? count - row : n - at;
            status = st_read_real(f, t, at * C, taken * C, out + row * C, e);
            continue;
        }
        uint64_t at = position * (n - 1) / gaps, rest = position * (n - 1) % gaps;
        const real* next = pair + (rest > 0 ? C : 0);   // at the table's last row nothing is left to go
        status = st_read_real(f, t, at * C, (rest > 0 ? 2 : 1) * C, pair, e);
        for (uint64_t c = 0; status == 0 && c < C; c++)
            out[row * C + c] =
                (real)((double)pair[c] + (double)rest / (double)gaps * ((double)next[c] - (double)pair[c]));
        taken = 1;
    }
    free(pair);
    return status;
}

// Reads `count` rows of one parameter of unit u from row `first` on into out (count, columns); a parameter
// that is stored transposed is read whole.
static int tensor_read(
    const Tensors* from, int u, int id, const Shape* s, int64_t first, int64_t count, real* out, Error* e) {
    char name[ST_NAME_MAX];
    const st_file* f = &from->files.files[0];
    Parameter p = parameter(s, id);
    tensor_name(name, sizeof name, from->prefix, &p, u);
    const st_tensor* t = st_set_find(&from->files, name, &f);
    if (!t && strcmp(from->prefix, MODEL_PREFIX) == 0)
        tensor_name(name, sizeof name, "", &p, u),
            t = st_set_find(&from->files, name, &f);   // the hub's have no prefix
    if (!t) return fail(e, "%.700s: no tensor `%.200s`", f->path, name);
    int swap = from->hf_layout && p.transposed;
    uint64_t rows = (uint64_t)(id == P_wpe ? from->positions : tensor_rows(s, id, &p)),
             columns = (uint64_t)p.columns;
    uint64_t d0 = swap ? columns : rows, d1 = swap ? rows : columns;
    if (t->ndim != (columns ? 2 : 1) || t->shape[0] != d0 || (columns && t->shape[1] != d1))
        return fail(e, "%.500s: tensor `%.200s` is (%llu, %llu), expected (%llu, %llu)", f->path, name,
            (unsigned long long)t->shape[0], (unsigned long long)(t->ndim > 1 ? t->shape[1] : 0),
            (unsigned long long)d0, (unsigned long long)d1);
    if (id == P_wpe) return positions_read(f, t, s, from->grow, (uint64_t)first, (uint64_t)count, out, e);
    uint64_t width = columns ? columns : 1;
    if (!swap) return st_read_real(f, t, (uint64_t)first * width, (uint64_t)count * width, out, e);
    real* strip = (real*)malloc((size_t)rows * 16 * sizeof(real));
    int status = strip ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (uint64_t c = 0; status == 0 && c < columns; c += 16) {
        uint64_t n = columns - c < 16 ? columns - c : 16;
        status = st_read_real(f, t, c * rows, n * rows, strip, e);
        for (uint64_t r = 0; status == 0 && r < rows; r++)
            for (uint64_t i = 0; i < n; i++) out[r * columns + c + i] = strip[i * rows + r];
    }
    free(strip);
    return status;
}

// Every tensor of a model's files must be one of ours, or one that Hugging Face's carry and nobody needs.
static int tensors_known(const st_set* set, const Shape* s, Error* e) {
    int known = 0;
    for (int k = 0; k < set->count; k++)
        for (int i = 0; i < set->files[k].count; i++) {
            const char *name = set->files[k].tensors[i].name, *end = name + strlen(name);
            if (end - name > 10 && strcmp(end - 10, ".attn.bias") == 0) continue;   // the causal mask
            if (end - name > 17 && strcmp(end - 17, ".attn.masked_bias") == 0) continue;
            if (strcmp(name, "lm_head.weight") == 0) continue;   // tied to wte
            known++;
        }
    int expected = 0;
    for (int id = 0; id < PARAMETER_COUNT; id++)
        expected += parameter(s, id).unit == UNIT_LAYER ? (int)s->L : 1;
    return known == expected ? 0
                             : fail(e, "%.700s: %d tensors, expected the %d of a GPT-2 with %lld layers",
                                   set->files[0].path, known, expected, (long long)s->L);
}

// --positions none, where weights come to a run: wpe is zero if it is to be by this step.
static void positions_drop(Rank* r, const gpt2_sp* g) {
    Held h = held(r, STATE_WEIGHTS, positions_unit(r->layout));
    if (g->mesh.training && g->options.positions == GPT2_SP_NO_POSITIONS && g->step >= g->options.fade_steps)
        memset(r->state[STATE_WEIGHTS] + h.at, 0, (size_t)h.n * sizeof(real));
}

// A model to load, of a folder or of llm.c's file: its weights and, of a checkpoint, the moments if asked.
typedef struct {
    const char* path;
    int moments;         // of AdamW, too
    int64_t positions;   // rows of its wpe
} LoadJob;
// A job: every rank reads for itself what it holds, though of a unit that it holds a slice of it reads all:
// tensors of files do not split as slices do.
static int rank_load(Rank* r, gpt2_sp* g, void* argument) {
    const LoadJob* from = (const LoadJob*)argument;
    const Shape* s = &g->mesh.shape;
    int status = 0;
    for (int i = 0; status == 0 && i < (from->moments ? SAVED_COUNT : 1); i++) {
        int state = SAVED_STATES[i];
        Tensors tensors;
        if (tensors_open(&tensors, from->path, state, from->positions, g->options.grow, &r->error) != 0)
            return -1;
        if (state == STATE_WEIGHTS) status = tensors_known(&tensors.files, s, &r->error);
        for (int u = 0; status == 0 && u < g->layout.count; u++) {
            const Unit* unit = &g->layout.units[u];
            int how = holding(&g->layout, state, u);
            Held h = held(r, state, u);
            real* mine = r->state[state] + h.at;
            real* out = how == HELD_SLICE ? unit_scratch(r, state) : mine;
            if (how != HELD_OWN) memset(out, 0, (size_t)unit->elements * sizeof(real));
            for (int id = 0; status == 0 && id < PARAMETER_COUNT; id++) {
                Parameter p = parameter(s, id);
                if (p.unit != unit->kind) continue;
                int64_t first = how == HELD_OWN ? h.begin / p.columns : 0;
                int64_t rows = how == HELD_OWN ? h.n / p.columns : tensor_rows(s, id, &p);
                status = tensor_read(&tensors, u, id, s, first, rows, out + g->layout.within[id], &r->error);
            }
            int64_t n = max_i64(0, min_i64(h.n, unit->elements - h.begin));
            if (how == HELD_SLICE) memcpy(mine, out + h.begin, (size_t)n * sizeof(real));
        }
        st_set_close(&tensors.files);
    }
    positions_drop(r, g);
    r->gathered = -1;
    return status;
}

// A whole number that a JSON file must have; -1 if it has not.
static int64_t json_need(const char* text, size_t size, const char* key, const char* path, Error* e) {
    uint64_t value = 0;
    if (json_get_u64(text, size, key, &value) != 1 || value > (uint64_t)1 << 53) {
        fail(e, "%.800s: no whole number `%s`", path, key);
        return -1;
    }
    return (int64_t)value;
}

// Whether a JSON file has a key, and not null there. What it has must then be of the type that it is read as.
static int json_has(const char* text, size_t size, const char* key) {
    json_span value;
    return json_get(text, size, key, &value) == 1 && !(value.n == 4 && memcmp(value.s, "null", 4) == 0);
}

// Sets the options that config.json tells of a model, bounded as options are; seq_len and n_positions are
// both its n_positions. -1 where it is another kind of
// model than GPT-2. eot is EOT_UNNAMED if the file does not have it, EOT_NONE if it is null there.
static int config_read(const char* folder, gpt2_sp_options* o, int64_t* vocab, int64_t* eot, Error* e) {
    char path[PATH_SIZE], word[64], value[32];
    size_t size;
    char* text =
        path_in(path, folder, "config.json", e) == 0 ? file_read_text(path, 1 << 20, &size, e) : NULL;
    if (!text) return -1;
    static const char* const keys[4] = {"n_layer", "n_head", "n_embd", "n_positions"};
    static const char* const names[4] = {"layers", "heads", "channels", "seq-len"};
    double epsilon = 1e-5;
    int status = 0;
    o->center = 1;
    if (json_get_string(text, size, "model_type", word, sizeof word) != 1)
        status = fail(e, "%.900s: expected model_type `gpt2`", path);
    else if (strcmp(word, "gpt2_sp_rmsnorm") == 0) o->center = 0;
    else if (strcmp(word, "gpt2") != 0)
        status = fail(e, "%.700s: model_type `%.60s`, expected gpt2", path, word);
    if (status == 0 && json_has(text, size, "activation_function") &&
        (json_get_string(text, size, "activation_function", word, sizeof word) != 1 ||
            (strcmp(word, "gelu_new") != 0 && strcmp(word, "gelu_pytorch_tanh") != 0)))
        status = fail(e, "%.700s: expected activation_function `gelu_new`", path);
    if (status == 0 && json_has(text, size, "layer_norm_epsilon") &&
        (json_get_double(text, size, "layer_norm_epsilon", &epsilon) != 1 ||
            !(fabs(epsilon - 1e-5) <= 1e-12)))
        status = fail(e, "%.700s: expected layer_norm_epsilon 1e-05", path);
    static const struct {
        const char* key;
        int value;
    } flags[] = {{"tie_word_embeddings", 1}, {"scale_attn_weights", 1},
        {"scale_attn_by_inverse_layer_idx", 0}, {"add_cross_attention", 0}};
    for (int i = 0; status == 0 && i < 4; i++) {
        int flag = !flags[i].value;
        if (json_has(text, size, flags[i].key) &&
            (json_get_bool(text, size, flags[i].key, &flag) != 1 || flag != flags[i].value))
            status = fail(e, "%.700s: %s must be %s", path, flags[i].key, flags[i].value ? "true" : "false");
    }
    for (int i = 0; status == 0 && i < 4; i++) {
        int64_t number = json_need(text, size, keys[i], path, e);
        snprintf(value, sizeof value, "%lld", (long long)number);
        Error inner = {0, {0}};
        if (number < 0) status = -1;
        else if (number == 0) status = fail(e, "%.600s: %s 0, expected at least 1", path, keys[i]);
        else if (option_set(o, option_find(names[i]), value, &inner) != 0)
            status = fail(e, "%.600s: %s: %.300s", path, keys[i], inner.text);
    }
    o->n_positions = o->seq_len;
    if (status == 0 && json_has(text, size, "n_inner")) {
        int64_t inner = json_need(text, size, "n_inner", path, e);
        if (inner != 4 * o->channels)
            status = inner < 0 ? -1
                               : fail(e, "%.700s: n_inner %lld, expected %lld, 4 x n_embd", path,
                                     (long long)inner, (long long)(4 * o->channels));
    }
    *vocab = status == 0 ? json_need(text, size, "vocab_size", path, e) : -1;
    if (status == 0 && (*vocab < 1 || *vocab > 1 << 20))
        status = *vocab < 0 ? -1 : fail(e, "%.900s: vocab_size %lld", path, (long long)*vocab);
    json_span end;
    *eot = json_get(text, size, "eos_token_id", &end) == 1 ? EOT_NONE : EOT_UNNAMED;
    if (status == 0 && json_has(text, size, "eos_token_id")) {
        *eot = json_need(text, size, "eos_token_id", path, e);
        if (*eot < 0 || *eot >= *vocab)
            status = *eot < 0 ? -1 : fail(e, "%.900s: eos_token_id %lld", path, (long long)*eot);
    }
    free(text);
    return status;
}

// The same of the model at `path`, a folder or a model file of llm.c, which names no end token.
static int model_read(const char* path, gpt2_sp_options* o, int64_t* vocab, int64_t* eot, Error* e) {
    LlmcFile f;
    if (!model_is_file(path)) return config_read(path, o, vocab, eot, e);
    if (llmc_open(&f, path, e) != 0) return -1;
    close(f.fd);
    o->layers = f.shape.L, o->heads = f.shape.NH;
    o->channels = f.shape.C, o->seq_len = o->n_positions = f.shape.N;
    o->center = 1;
    *vocab = f.shape.V, *eot = EOT_UNNAMED;
    return 0;
}

// Refuses to resume a run as another one; both values are named.
static int resume_same(const char* what, int64_t saved, int64_t asked, Error* e) {
    return saved == asked
        ? 0
        : fail_as(GPT2_SP_MISMATCH, e,
              "this run was made with --%s %lld, found %lld: use another --out, or the same value", what,
              (long long)saved, (long long)asked);
}

// Takes what validations have found from a checkpoint's state.json, unless they are now made on other data.
static int validations_read(gpt2_sp* g, const char* text, size_t size, const char* path) {
    Validations v = NO_VALIDATIONS;
    Error* e = &g->error;
    char data[32];
    unsigned long long number;
    if (!json_has(text, size, "val_step")) return 0;
    if (json_get_string(text, size, "val_data", data, sizeof data) != 1 ||
        sscanf(data, "%16llx", &number) != 1)
        return fail(e, "%.800s: no fingerprint `val_data`", path);
    v.data = number;
    v.step = json_need(text, size, "val_step", path, e);
    if (v.step < 0) return -1;
    if (json_has(text, size, "best_step")) {
        v.best_step = json_need(text, size, "best_step", path, e);
        v.since = json_need(text, size, "val_since_best", path, e);
        if (v.best_step < 0 || v.since < 0) return -1;
        if (json_get_double(text, size, "best_val_loss", &v.best) != 1 || !isfinite(v.best))
            return fail(e, "%.800s: no number `best_val_loss`", path);
    }
    if (!dataset_given(&g->val_data) || v.data == validation_data(g)) g->validations = v;
    else if (g->mesh.process == 0)
        warn(&g->options.log,
            "--val-data or --val-sequences is not what this run was validated with: its best validation no "
            "longer counts");
    return 0;
}

// The tokens of a run's sequences by its state.json; one without the number had as many as positions.
static int64_t state_seq_len(const char* text, size_t size, const gpt2_sp_options* model) {
    uint64_t number;
    return json_get_u64(text, size, "seq_len", &number) == 1 && number <= (uint64_t)model->n_positions
        ? (int64_t)number
        : model->n_positions;
}

// The sample with which a run goes on whose sequences have `now` tokens instead of `before`: of the epoch as
// many tokens are read as before. The order of samples is another one, so in the rest of that epoch some
// tokens come again and others do not come.
static uint64_t sample_moved(const Dataset* d, int64_t before, int64_t now, uint64_t sample) {
    uint64_t windows = dataset_windows(d, before), read = sample % windows * (uint64_t)before;
    return sample / windows * dataset_windows(d, now) + (read + (uint64_t)now - 1) / (uint64_t)now;
}

// Takes up a run whose checkpoint has sequences of T tokens and N positions, where more may be asked for: its
// place in the data, which rows of wpe are new, and that validations of shorter sequences count no longer.
static int lengths_resume(gpt2_sp* g, const char* text, size_t size, int64_t T, int64_t N, const char* path) {
    const Shape* s = &g->mesh.shape;
    g->saved_seq_len = T, g->saved_positions = N;
    g->layout.known_positions = N;
    if (s->N == N && json_has(text, size, "known_positions"))
        g->layout.known_positions = json_need(text, size, "known_positions", path, &g->error);
    if (g->layout.known_positions < 0) return -1;
    if (s->T == T) return 0;
    if (dataset_fed(&g->data))
        return fail(&g->error,
            "--seq-len %lld: this run's sequences had %lld tokens, and where samples of the program's go on "
            "with others is not known",
            (long long)s->T, (long long)T);
    g->next_sample = sample_moved(&g->data, T, s->T, g->next_sample);
    g->validations = NO_VALIDATIONS;
    return 0;
}

// Sets step, tokens and next sample from a checkpoint's state.json; -1 if it belongs to another run.
static int state_read(gpt2_sp* g, const char* folder) {
    Error* e = &g->error;
    char path[PATH_SIZE], data[32] = "none", now[32];
    size_t size;
    gpt2_sp_options saved;
    int64_t vocab, eot;
    options_default(&saved);
    if (config_read(folder, &saved, &vocab, &eot, e) != 0) return -1;
    char* text = path_in(path, folder, "state.json", e) == 0 ? file_read_text(path, 1 << 20, &size, e) : NULL;
    if (!text) return -1;
    int64_t version = json_need(text, size, "version", path, e),
            seed = json_need(text, size, "seed", path, e),
            doc_mask = json_need(text, size, "doc_mask", path, e);
    int status = version < 0 || seed < 0 || doc_mask < 0 ? -1
        : version > 1
        ? fail(e, "%.800s: version %lld, made by a newer version of this program", path, (long long)version)
        : 0;
    g->step = json_need(text, size, "step", path, e);
    g->tokens_seen = json_need(text, size, "tokens", path, e);
    int64_t seq_len = state_seq_len(text, size, &saved);
    int64_t next = json_need(text, size, "next_sample", path, e);
    g->next_sample = (uint64_t)next;
    if (status == 0) status = validations_read(g, text, size, path);
    if (json_get_double(text, size, "next_lr", &g->planned_lr) != 1) g->planned_lr = -1;
    uint64_t steps;
    g->planned_steps = json_get_u64(text, size, "steps", &steps) == 1 ? (int64_t)steps : -1;
    if (status == 0 && (g->step < 0 || g->tokens_seen < 0 || next < 0)) status = -1;
    if (status == 0) status = resume_same("layers", saved.layers, g->options.layers, e);
    if (status == 0) status = resume_same("heads", saved.heads, g->options.heads, e);
    if (status == 0) status = resume_same("channels", saved.channels, g->options.channels, e);
    if (status == 0 && seq_len > g->options.seq_len)
        status = resume_same("seq-len", seq_len, g->options.seq_len, e);
    if (status == 0 && saved.n_positions > g->mesh.shape.N)
        status = resume_same("n-positions", saved.n_positions, g->mesh.shape.N, e);
    if (status == 0) status = resume_same("center", saved.center, g->options.center, e);
    if (status == 0) status = resume_same("vocab", vocab, g->mesh.shape.V, e);
    if (status == 0) status = resume_same("seed", seed, g->options.seed, e);
    if (status == 0) status = resume_same("doc-mask", doc_mask, g->options.doc_mask, e);
    if (status == 0 && g->options.positions == GPT2_SP_LEARNED &&
        json_get_string(text, size, "positions", now, sizeof now) == 1 && strcmp(now, "none") == 0)
        status = fail(e,
            "this run was made with --positions none, found learned: what is faded does not come "
            "back; use another --out, or none");
    if (status == 0) status = lengths_resume(g, text, size, seq_len, saved.n_positions, path);
    snprintf(now, sizeof now, "%016llx", (unsigned long long)g->data.fingerprint);
    if (status == 0 &&
        (json_get_string(text, size, "data", data, sizeof data) != 1 || strcmp(data, now) != 0))
        status = fail_as(GPT2_SP_MISMATCH, e,
            "this run was made with the data %s, --data is %s: use another --out with --init-from %.700s, or "
            "the same shards",
            data, now, folder);
    free(text);
    return status;
}

// --- tensors of the program around the trainer ---
//
// The program sees a tensor whole, in Hugging Face's layout. It is read as checkpoints are written, slice by
// slice; to write, each rank takes from the program's numbers what it holds.

// A parameter of a trainer, and the program's numbers.
typedef struct {
    int state, u, id;
    float* out;          // (elements) read
    const float* from;   // (elements) written
} TensorJob;

// The CPU's Device.numbers_read and .numbers_set.
static int rank_numbers_read(Rank* r, int state, int u, int64_t begin, int64_t n, real* out) {
    memcpy(out, r->state[state] + held_at(r, state, u, begin), (size_t)n * sizeof *out);
    return 0;
}
static int rank_numbers_set(Rank* r, int state, int u, int64_t begin, int64_t n, const real* from) {
    if (n > 0) memcpy(r->state[state] + held_at(r, state, u, begin), from, (size_t)n * sizeof *from);
    if (state == STATE_WEIGHTS) r->gathered = -1;
    return 0;
}

// Where number i of a parameter in memory, (out, in), lies in Hugging Face's layout.
static int64_t tensor_place(const Parameter* p, int64_t rows, int64_t i) {
    return p->transposed ? i % p->columns * rows + i / p->columns : i;
}
// The numbers begin .. begin + n - 1 of a unit that are the tensor's: the first of them, counted in the
// tensor, and their number.
static Held tensor_part(const gpt2_sp* g, const TensorJob* job, int64_t begin, int64_t n) {
    const Shape* s = &g->mesh.shape;
    Parameter p = parameter(s, job->id);
    int64_t at = g->layout.within[job->id], elements = tensor_rows(s, job->id, &p) * max_i64(1, p.columns);
    Held part = {max_i64(begin, at), 0, 0};
    part.n = max_i64(0, min_i64(begin + n, at + elements) - part.at);
    part.begin = part.at - at;
    return part;
}

// rank_tensor_read's UnitTaker: a slice that came.
static void tensor_take(gpt2_sp* g, void* to, int state, int u, const real* slice, int64_t begin, int64_t n) {
    const TensorJob* job = (const TensorJob*)to;
    Parameter p = parameter(&g->mesh.shape, job->id);
    int64_t rows = tensor_rows(&g->mesh.shape, job->id, &p);
    Held part = tensor_part(g, job, begin, n);
    (void)state, (void)u;
    for (int64_t i = 0; i < part.n; i++)
        job->out[tensor_place(&p, rows, part.begin + i)] = (float)slice[part.at - begin + i];
}
// A job: brings a tensor to the program of every process. Of every state a rank's own slice is whole.
static int rank_tensor_read(Rank* r, gpt2_sp* g, void* argument) {
    const TensorJob* job = (const TensorJob*)argument;
    const int64_t slice = g->layout.units[job->u].slice;
    real* own = (real*)malloc((size_t)slice * sizeof *own);
    int status = own ? 0 : fail_as(GPT2_SP_NO_MEMORY, &r->error, "out of memory for a slice of a tensor");
    if (status == 0)
        status = g->device->numbers_read(r, job->state, job->u, slice_begin(r, job->u), slice, own);
    if (status == 0)
        status = unit_slices_send(r, g, job->state, job->u, own, g->mesh.processes, tensor_take, argument);
    free(own);
    return status;
}
// A job: gives every rank what it holds of a tensor.
static int rank_tensor_write(Rank* r, gpt2_sp* g, void* argument) {
    const TensorJob* job = (const TensorJob*)argument;
    Parameter p = parameter(&g->mesh.shape, job->id);
    int64_t rows = tensor_rows(&g->mesh.shape, job->id, &p);
    Held h = held(r, job->state, job->u), part = tensor_part(g, job, h.begin, h.n);
    real* numbers = (real*)malloc((size_t)max_i64(1, part.n) * sizeof *numbers);
    int status = numbers ? 0 : fail_as(GPT2_SP_NO_MEMORY, &r->error, "out of memory for a part of a tensor");
    for (int64_t i = 0; status == 0 && i < part.n; i++)
        numbers[i] = (real)job->from[tensor_place(&p, rows, part.begin + i)];
    if (status == 0) status = g->device->numbers_set(r, job->state, job->u, part.at, part.n, numbers);
    free(numbers);
    return status;
}

// Number i of the tensors of a model, in the order in which rank_save writes them: its unit and id, and what
// the program is told of it. -1 if there is none.
static int tensor_number(const gpt2_sp* g, int64_t i, TensorJob* job, gpt2_sp_tensor* tensor) {
    const Shape* s = &g->mesh.shape;
    for (int u = 0; i >= 0 && u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(s, id);
            if (p.unit != g->layout.units[u].kind || i-- > 0) continue;
            memset(tensor, 0, sizeof *tensor);
            tensor->size = sizeof *tensor;
            tensor_name(tensor->name, sizeof tensor->name, MODEL_PREFIX, &p, u);
            tensor->dims = p.columns ? 2 : 1, tensor->shape[0] = tensor_rows(s, id, &p);
            tensor->shape[1] = max_i64(1, p.columns);
            tensor->elements = tensor->shape[0] * tensor->shape[1];
            if (p.transposed) tensor->shape[1] = p.rows, tensor->shape[0] = p.columns;
            tensor->rate = g->layout.units[u].rate[id];
            job->u = u, job->id = id;
            return 0;
        }
    return -1;
}

// See the header, for these.
int64_t gpt2_sp_tensor_count(const gpt2_sp* g) {
    TensorJob job;
    gpt2_sp_tensor tensor;
    int64_t count = 0;
    while (g && tensor_number(g, count, &job, &tensor) == 0) count++;
    return count;
}
int gpt2_sp_tensor_info(const gpt2_sp* g, int64_t i, gpt2_sp_tensor* tensor) {
    TensorJob job;
    gpt2_sp_tensor found;
    Error e = {0, {0}};
    if (!g || tensor_number(g, i, &job, &found) != 0) return GPT2_SP_INVALID;
    const size_t least = KNOWN_UP_TO(gpt2_sp_tensor, rate);
    return struct_give(tensor, &found, sizeof found, least, "gpt2_sp_tensor", &e) == 0 ? 0 : e.code;
}

// The tensor that a call is about: -1, with a line, if there is none such, if it has another size, or if
// there are no such numbers of it.
static int tensor_asked(
    gpt2_sp* g, int what, const char* name, int64_t elements, int writes, TensorJob* job) {
    static const int states[] = {STATE_WEIGHTS, STATE_GRADIENTS, STATE_M, STATE_V};
    gpt2_sp_tensor tensor;
    int64_t i = 0;
    int missing = 0;
    if (what < GPT2_SP_WEIGHTS || what > GPT2_SP_MOMENT2)
        return fail_as(GPT2_SP_INVALID, &g->error,
            "%d is none of GPT2_SP_WEIGHTS, _GRADIENTS, _MOMENT1 and _MOMENT2", what);
    while ((missing = tensor_number(g, i, job, &tensor)) == 0 && strcmp(tensor.name, name) != 0 &&
        strcmp(tensor.name + strlen(MODEL_PREFIX), name) != 0)
        i++;
    if (missing)
        return fail_as(GPT2_SP_INVALID, &g->error,
            "there is no tensor `%.100s`: gpt2_sp_tensor_info tells all names", name);
    if (elements != tensor.elements)
        return fail_as(GPT2_SP_INVALID, &g->error, "%s has %lld numbers, found %lld", tensor.name,
            (long long)tensor.elements, (long long)elements);
    job->state = states[what];
    if (what != GPT2_SP_GRADIENTS) return 0;
    if (writes && g->gradients == OF_NEXT_STEP && tensor.rate == 0)
        return fail_as(GPT2_SP_INVALID, &g->error, "%s is frozen: it has no gradient", tensor.name);
    if (g->gradients == OF_NEXT_STEP || (!writes && g->gradients == OF_LAST_STEP)) return 0;
    return fail_as(GPT2_SP_INVALID, &g->error, "there are no gradients to %s: gpt2_sp_gradients makes them",
        writes ? "write to" : "read");
}

// Reads or writes a tensor on all processes, which must ask for the same; numbers that are written must be
// alike.
static int tensor_move(
    gpt2_sp* g, int what, const char* name, float* out, const float* from, int64_t elements) {
    TensorJob job = {0, 0, 0, out, from};
    char text[256];
    uint32_t crc = 0;
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    int status = name && (out || from)
        ? tensor_asked(g, what, name, elements, from != NULL, &job)
        : fail_as(GPT2_SP_INVALID, &g->error, "a tensor needs a name and a place for its numbers");
    status = processes_agree(&g->host, status, NULL, &g->error);
    if (status == 0 && from && g->mesh.processes > 1)
        crc = tok_crc(0, (const unsigned char*)from, (uint64_t)elements * sizeof *from);
    if (status == 0)
        snprintf(text, sizeof text, "%s of numbers %d of `%.100s`, CRC %08x", from ? "a write" : "a reading",
            what, name, crc);
    if (status == 0 && processes_compare(&g->host, "comparing tensors", text, &g->error) != 0)
        status = failed_as(GPT2_SP_MISMATCH, &g->error);
    if (status == 0) status = ranks_run(g, from ? rank_tensor_write : rank_tensor_read, &job);
    if (status == 0 && from && what != GPT2_SP_GRADIENTS) g->saved_step = -1;   // what was saved differs
    return (int)trainer_leave(g, &host, status);
}
int gpt2_sp_tensor_read(gpt2_sp* g, int what, const char* name, float* out, int64_t elements) {
    return tensor_move(g, what, name, out, NULL, elements);
}
int gpt2_sp_tensor_write(gpt2_sp* g, int what, const char* name, const float* numbers, int64_t elements) {
    return tensor_move(g, what, name, NULL, numbers, elements);
}

// --- exports ---

// A model to export.
typedef struct {
    Shape shape;
    int center;
    int64_t eot;     // the token that ends documents, or EOT_NONE
    bpe tokenizer;   // empty: not known
    Tensors tensors;
} Model;

// The types of numbers that an export may have, in the order of --dtype's words.
static const struct {
    int st_dtype;
    const char *word, *torch;
    double largest;
} EXPORT_TYPES[GPT2_SP_DTYPES] = {{ST_F32, "fp32", "float32", FLT_MAX},
    {ST_BF16, "bf16", "bfloat16", 0x1.FEp127}, {ST_F16, "fp16", "float16", 65504}};

// -1 where one of n numbers of a tensor is not finite or larger than a type's largest.
static int numbers_fit(const char* name, const real* data, int64_t n, int dtype, Error* e) {
    double largest = EXPORT_TYPES[dtype].largest;
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)data[i]) <= largest))
            return fail(e, "tensor `%.200s` holds %g: the largest number of %s is %g", name, (double)data[i],
                EXPORT_TYPES[dtype].word, largest);
    return 0;
}

// Appends one parameter of unit u to a file, some rows at a time; those that are transposed, here or
// there, whole.
static int export_tensor(const Model* m, OutFile* f, int u, int id, const gpt2_sp_options* o, Error* e) {
    const Shape* s = &m->shape;
    const Parameter p = parameter(s, id);
    const int64_t rows = tensor_rows(s, id, &p), columns = max_i64(1, p.columns);
    const int64_t piece = p.transposed ? rows : min_i64(rows, max_i64(1, (1 << 18) / columns));
    char name[ST_NAME_MAX];
    tensor_name(name, sizeof name, MODEL_PREFIX, &p, u);
    real* data = (real*)malloc((size_t)(piece * columns) * sizeof(real));
    int status = data ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for tensor `%.200s`", name);
    for (int64_t first = 0; status == 0 && first < rows; first += piece) {
        int64_t n = min_i64(piece, rows - first);
        status = tensor_read(&m->tensors, u, id, s, first, n, data, e);
        if (status == 0) status = numbers_fit(name, data, n * columns, o->dtype, e);
        if (status == 0)
            status = tensor_write(f, data, n, p.columns, o->format == GPT2_SP_HF && p.transposed,
                EXPORT_TYPES[o->dtype].st_dtype, e);
    }
    if (data && id == P_wte && o->format == GPT2_SP_LLMC) memset(data, 0, (size_t)columns * sizeof(real));
    for (int64_t row = rows; status == 0 && id == P_wte && o->format == GPT2_SP_LLMC && row < s->Vp; row++)
        status = tensor_write(f, data, 1, columns, 0, EXPORT_TYPES[o->dtype].st_dtype, e);
    free(data);
    return status;
}

// Appends all parameters: each of all layers before the next, which is llm.c's order and as good as any in a
// safetensors file. header: for those of Hugging Face's, which then comes first.
static int export_tensors(const Model* m, OutFile* f, st_header* header, const gpt2_sp_options* o, Error* e) {
    for (int write = header ? 0 : 1; write < 2; write++) {
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            int64_t layers = parameter(&m->shape, id).unit == UNIT_LAYER ? m->shape.L : 1;
            for (int u = 1; u <= (int)layers; u++)
                if (write ? export_tensor(m, f, u, id, o, e) != 0
                          : tensor_declare(header, &m->shape, MODEL_PREFIX, u, id, 1,
                                EXPORT_TYPES[o->dtype].st_dtype, e) != 0)
                    return -1;
        }
        if (!write && header_write(f, header, e) != 0) return -1;
    }
    return 0;
}

// Writes model.safetensors and its line of the manifest.
static int export_safetensors(
    const Model* m, const Folder* folder, Manifest* manifest, const gpt2_sp_options* o, Error* e) {
    static const char name[] = "model.safetensors";
    st_header header;
    OutFile* f = (OutFile*)malloc(sizeof *f);
    if (!f) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    st_header_init(&header);
    int status = file_create(f, e, folder, name);
    if (status == 0) status = export_tensors(m, f, &header, o, e);
    if (file_close(f, status == 0, e) != 0) status = -1;
    if (status == 0) manifest_add(manifest->text, sizeof manifest->text, name, f);
    st_header_free(&header);
    free(f);
    return status;
}

// Writes the files of an export for Transformers into a new folder.
static int export_write(const Model* m, const Folder* folder, const gpt2_sp_options* o, Error* e) {
    char text[2048], token[24] = "null";
    Manifest* manifest = (Manifest*)malloc(sizeof *manifest);
    if (!manifest) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    size_t size = sizeof manifest->text;
    int status = manifest_begin(manifest, &EXPORT_FOLDER, folder, e);
    if (status == 0) status = export_safetensors(m, folder, manifest, o, e);
    config_text(&m->shape, m->center, m->eot, EXPORT_TYPES[o->dtype].torch,
        m->center ? "" : MODELING_AUTO_MAP ",\n  ", text, sizeof text);
    if (status == 0) status = folder_text(folder, "config.json", text, manifest->text, size, e);
    if (m->eot >= 0) snprintf(token, sizeof token, "%lld", (long long)m->eot);
    snprintf(text, sizeof text,
        "{\n  \"bos_token_id\": %s,\n  \"eos_token_id\": %s,\n  \"pad_token_id\": %s\n}\n", token, token,
        token);
    if (status == 0) status = folder_text(folder, "generation_config.json", text, manifest->text, size, e);
    if (status == 0 && !m->center)
        status = folder_text(folder, "modeling_gpt2_sp.py", MODELING_PY, manifest->text, size, e);
    if (status == 0) status = folder_tokenizer(folder, &m->tokenizer, m->shape.N, manifest->text, size, e);
    status = manifest_end(manifest, folder, status, e);
    free(manifest);
    return status;
}

// Whether a name is one that temporary_name gives to a folder that is written as `name`.
static int temporary_of(const char* entry, const char* name) {
    char expected[FOLDER_NAME];
    for (int number = 0; number < TEMPORARIES; number++) {
        temporary_name(expected, sizeof expected, name, number);
        if (strcmp(entry, expected) == 0) return 1;
    }
    return 0;
}

// Removes what exports to this name have left: folders that were not finished, unless another process holds
// and so writes them, and those that were replaced.
static int export_clean(const Folder* in, const char* name, Error* e) {
    int status = 0;
    Error ignored;
    DIR* dir = folder_entries(in, e);
    if (!dir) return -1;
    for (struct dirent* entry; (entry = readdir(dir)) != NULL;) {
        Folder folder;
        const char* left = entry->d_name;
        if (!temporary_of(left, name) || !folder_ours(&EXPORT_FOLDER, in, left) ||
            folder_enter(&folder, in, left, &ignored) != 0)
            continue;
        if (flock(folder.fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
            status |= folder_remove(&EXPORT_FOLDER, in, left, e);
        folder_close(&folder);
    }
    closedir(dir);
    return status;
}

// 0 if nothing has the name, or an export that may be replaced, in which nothing else lies.
static int export_free(const Folder* in, const char* name, Error* e) {
    struct stat info;
    Folder folder;
    if (fstatat(in->fd, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0
                               : fail(e, "cannot look at %.700s/%.255s: %s", in->path, name, strerror(errno));
    if (!folder_ours(&EXPORT_FOLDER, in, name))
        return fail(e, "%.700s/%.255s is there and no export of this program, and stays: take another --out",
            in->path, name);
    if (folder_enter(&folder, in, name, e) != 0) return -1;
    int status = 0;
    DIR* dir = folder_entries(&folder, e);
    for (struct dirent* entry; dir && status == 0 && (entry = readdir(dir)) != NULL;) {
        int known = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        for (int i = 0; i < EXPORT_FILE_COUNT; i++) known |= strcmp(entry->d_name, EXPORT_FILES[i]) == 0;
        if (!known)
            status =
                fail(e, "%.700s holds %.255s, which no export wrote: move it away, or take another --out",
                    folder.path, entry->d_name);
    }
    if (dir) closedir(dir);
    folder_close(&folder);
    return dir ? status : -1;
}

// Exports a model as a folder for Transformers, which takes its name when it is whole.
static int export_folder(const Model* m, const gpt2_sp_options* o, Error* e) {
    char parent[PATH_SIZE], name[FOLDER_NAME] = "", written[FOLDER_NAME] = "";
    Folder in, folder;
    Error later = {0, {0}};
    size_t length = strlen(o->out);
    while (length > 1 && o->out[length - 1] == '/') length--;
    snprintf(parent, sizeof parent, "%.*s", (int)length, o->out);
    char* slash = strrchr(parent, '/');
    const char* last = slash ? slash + 1 : parent;
    if (!last[0] || strcmp(last, ".") == 0 || strcmp(last, "..") == 0 || strlen(last) > 255)
        return fail(e, "--out %.900s: expected the name of a folder", o->out);
    snprintf(name, sizeof name, "%.255s", last);
    if (slash) slash[slash == parent] = 0;   // "/name" is in "/"
    else snprintf(parent, sizeof parent, ".");
    if (folder_make(parent, e) != 0 || folder_open(&in, parent, e) != 0) return -1;
    int status = export_free(&in, name, e);
    if (status == 0) status = export_clean(&in, name, e);
    int made = status == 0 ? temporary_make(&folder, &in, name, written, sizeof written, e) : -1;
    if (made == 0 && flock(folder.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status = fail(e, "another process writes %.800s", folder.path);
    if (made != 0) status = -1;
    if (status == 0) status = export_write(m, &folder, o, e);
    if (status == 0) status = folder_publish(&EXPORT_FOLDER, &in, written, name, e);
    if (made == 0) folder_close(&folder);
    if (made == 0 && status != 0) folder_remove(&EXPORT_FOLDER, &in, written, &later);
    if (status == 0) status = export_clean(&in, name, e);
    folder_close(&in);
    return status;
}

// llm.c's head of a model file. Whether an open file is such a one that this program wrote.
static void llmc_head(const Shape* s, int dtype, int32_t head[LLMC_HEAD / 4]) {
    const int64_t numbers[] = {
        LLMC_MAGIC, dtype == GPT2_SP_FP32 ? LLMC_FP32 : LLMC_BF16, s->N, s->V, s->L, s->NH, s->C, s->Vp};
    memset(head, 0, LLMC_HEAD);
    for (int i = 0; i < 8; i++) head[i] = (int32_t)numbers[i];
    memcpy(&head[8], "gpt2_sp", 8);
}
static int llmc_ours(int fd) {
    int32_t head[10];
    return pread(fd, head, sizeof head, 0) == (ssize_t)sizeof head && head[0] == LLMC_MAGIC &&
        memcmp(&head[8], "gpt2_sp", 8) == 0;
}

// Exports a model as a model file of llm.c, which takes its name when it is whole: until then the first 8
// bytes are the mark of an unfinished file.
static int export_llmc(const Model* m, const gpt2_sp_options* o, Error* e) {
    int32_t head[LLMC_HEAD / 4];
    tok_output out;
    if (o->dtype == GPT2_SP_FP16) return fail(e, "--dtype fp16: a model file of llm.c has fp32 or bf16");
    if (!m->center)
        return fail(e, "--format llmc: llm.c's models have LayerNorm, this one was trained with --center 0");
    OutFile* f = (OutFile*)calloc(1, sizeof *f);
    if (!f) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (tok_output_open(&out, o->out, "model file of llm.c", llmc_ours, e->text, sizeof e->text) != 0) {
        free(f);
        return -1;
    }
    llmc_head(&m->shape, o->dtype, head);
    snprintf(f->path, sizeof f->path, "%s", out.tmp);
    f->fd = dup(out.fd);
    int status = f->fd < 0 || lseek(f->fd, 8, SEEK_SET) != 8 ? fail_file(e, "write", out.tmp) : 0;
    if (status == 0) status = file_write(f, &head[2], LLMC_HEAD - 8, e);
    if (status == 0) status = export_tensors(m, f, NULL, o, e);
    if (file_close(f, status == 0, e) != 0) status = -1;
    if (status == 0) status = tok_output_put(&out, head, 8, 0, e->text, sizeof e->text);
    if (status == 0) status = tok_output_finish(&out, e->text, sizeof e->text);
    else tok_output_abandon(&out);
    free(f);
    return status;
}

// ===== 12. evaluation and sampling ==============================================================
//
// A validation is a forward pass over windows of the data in order. Every rank adds up the losses of its
// rows; the sums over all ranks are the same for every split, and for ranks of several processes.
//
// `eval`, whose ranks are all of this process, keeps the loss of every label instead, by the label's place in
// the data. A model reads the data in windows of W tokens that begin every S tokens; in all but the first the
// last S labels count, those that no window before has counted, so each has at least W - S tokens before it:
//
//     W = 6, S = 2     . 1 2 3 4 5 6         a number: the label that counts, where it stands in the data
//                          . . . . . 7 8     the last window begins early enough to end with the data
//                              . . . . . 9
//
// What is told is a function of such losses (EVALUATIONS). Windows that are shorter than the context lie side
// by side in the rows of a sequence, told apart by the mask of documents; so do the questions of --probe.
//
// Sampling is done with all weights. It reads the prompt DECODE_ROWS tokens at a time, then what it samples
// one by one, by the layers' own list of calls; attention finds earlier tokens in a cache:
//
//     tokens -> decoder_read: layer_forward, decoder_attention -> logits -> distribution_make, _draw -> token
//                                                 |
//                                                 +-- keys and values of all tokens so far, of each layer
//
// One rank of a trainer that learns samples alone. In one that does not learn (sample --sp) the P ranks of a
// sequence do it together, each with its part of the cache (CacheShare). All compute the same rows; each lets
// them attend to the keys that it has, which gives (o, m, l); these parts travel to all ranks, which merge
// them in the order of the ranks, and so go on with the same bits. P = 3, a letter a block of positions:
//
//     positions  a b c d e f g     rank 0: a d g     rank 1: b e     rank 2: c f
//
// A token is read at a position and overwrites what the cache holds from there on. So a prompt is read once
// for any number of continuations: each begins to read behind its end.
//
// With a draft model (Leviathan et al. 2023, Chen et al. 2023) a round makes one to k + 1 tokens:
//
//     draft     reads what it has not, then its own proposals, one by one:  x1 from q1, ... xk from qk
//     model     reads the last token and x1..xk in one pass, which gives     p1, ... pk, and pk+1
//     x1..      is taken with probability min(1, p(x) / q(x)); the first that is not is drawn anew from what
//               p has more of than q, max(0, p - q), and ends the round; after xk one more is drawn from pk+1
//
// So each token is distributed as by p alone, where p and q are what all filters leave. A round costs the
// model about one token's time, as that is reading its weights; what it read too much of is overwritten.

// Buckets of positions, or of distances: bucket 0 is position 0, bucket i > 0 are 2^(i-1) to 2^i - 1.
enum { POSITION_BUCKETS = 26 };
static int position_bucket(int64_t position) {
    int bucket = 0;
    while (position >> bucket) bucket++;
    return bucket;
}

// Bytes of the text that a token stands for. The end of a document is no text.
static double token_bytes(const gpt2_sp* g, int32_t token) {
    size_t n = 0;
    int text = g->tokenizer.token && token != g->eot && bpe_bytes(&g->tokenizer, (uint32_t)token, &n);
    return text ? (double)n : 0;
}

// A job: one forward pass over the evaluation's batch, which leaves the losses of the rank's rows.
static int rank_read(Rank* r, gpt2_sp* g, void* argument) {
    (void)g, (void)argument;
    r->learn = 0, r->loss_sum = 0;
    r->batch = &r->batches[2];
    return r->mesh->device->pass(r, 0);
}

// A job: the same. The sums over all ranks are added to its Evaluation.
static int rank_evaluate(Rank* r, gpt2_sp* g, void* argument) {
    Evaluation* out = (Evaluation*)argument;
    double sums[2] = {0, 0};
    if (rank_read(r, g, NULL) != 0) return -1;
    for (int64_t t = 0; t < r->R; t++)
        if (r->batch->labels[t] >= 0) sums[0] += (double)r->token_loss[t], sums[1] += 1;
    if (r->transport.all_reduce(&r->transport, &r->all, sums, 2, &r->error) != 0) return -1;
    if (r->world_rank == r->mesh->first_rank)   // one of each process
        out->loss += sums[0], out->count += sums[1];
    return 0;
}

// Evaluates the first `sequences` windows of the validation data into g->evaluation. All processes call it.
static int evaluate_data(gpt2_sp* g, int64_t sequences) {
    Loader* l = &g->val_loader;
    const int64_t round = l->dp * l->B;
    int heard = g->report.call != NULL, status = 0;
    memset(&g->evaluation, 0, sizeof g->evaluation);
    l->limit = (uint64_t)sequences;
    if (!dataset_fed(l->data))
        l->limit = (uint64_t)min_i64(sequences, (int64_t)dataset_windows(l->data, l->T));
    for (uint64_t first = 0; status == 0 && first < l->limit; first += (uint64_t)round) {
        status = loader_fill(l, &l->batch[0], first, &g->error);
        status = processes_agree(&g->host, status, &heard, &g->error);
        if (first == 0)
            report_begin(
                g, heard, GPT2_SP_IN_VALIDATION, ceil_div((int64_t)l->limit, round), g->mesh.shape.L);
        if (status == 0) status = ranks_run(g, rank_evaluate, &g->evaluation);
    }
    report_end(g);
    if (status != 0) return -1;
    if (g->evaluation.count == 0)
        return fail(&g->error, "nothing to validate: no token of the first %llu sequences is a label",
            (unsigned long long)l->limit);
    return 0;
}

// See the header. All processes call it together.
int gpt2_sp_validate(gpt2_sp* g, int64_t sequences, double* loss) {
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    int status = 0;
    if (!loss) status = fail(&g->error, "gpt2_sp_validate needs a place for the loss");
    else if (!dataset_given(&g->val_data)) status = fail(&g->error, "no --val-data to validate on");
    else if (sequences < 1)
        status = fail(&g->error, "%lld sequences to validate on: at least 1", (long long)sequences);
    if (status != 0) failed_as(GPT2_SP_INVALID, &g->error);
    if (status == 0) status = evaluate_data(g, sequences);
    if (status == 0) *loss = g->evaluation.loss / g->evaluation.count;
    return (int)trainer_leave(g, &host, status);
}

// Gives a rank its rows of a synthetic document; NULL: of none, whose rows carry no labels.
static void needle_fill(Rank* r, const synth_doc* doc, int64_t eot) {
    const RankBatch* batch = &r->batches[2];
    const int64_t T = r->mesh->shape.T;
    int64_t row = 0;
    for (int s = 0; s < r->segments.count; s++)
        for (int64_t i = 0; i < r->segments.rows[s]; i++, row++) {
            int64_t t = r->segments.begin[s] + i;
            batch->tokens[row] = doc ? (unsigned char)doc->text[t] : 0;
            if (batch->positions) batch->positions[row] = (int32_t)t;
            batch->labels[row] = !doc ? -1
                : t + 1 < T           ? (unsigned char)doc->text[t + 1]
                                      : (int32_t)max_i64(eot, -1);
        }
    if (r->mesh->doc_mask) memset(batch->doc_start, 0, (size_t)T * sizeof *batch->doc_start);
}

// Whether a replica's likeliest token at a position was the right one, as the rank says that holds it.
static int needle_hit(const gpt2_sp* g, int replica, int64_t position) {
    for (int i = 0; i < g->mesh.local_ranks; i++) {
        const Rank* r = &g->ranks[i];
        int64_t row = 0;
        for (int s = 0; r->place.dp == replica && s < r->segments.count; row += r->segments.rows[s], s++) {
            int64_t at = position - r->segments.begin[s];
            if (at >= 0 && at < r->segments.rows[s]) return r->token_hit[row + at];
        }
    }
    return 0;
}

// Adds the facts of a document that a replica has read to right[] of asked[].
static void needle_count(const gpt2_sp* g, int replica, const synth_doc* doc, double* right, double* asked) {
    for (int f = 0; f < doc->fact_count; f++) {
        int bucket = position_bucket((int64_t)(doc->facts[f].answer - doc->facts[f].statement)), hit = 1;
        for (int i = 0; i < doc->facts[f].answer_length; i++)
            hit &= needle_hit(g, replica, (int64_t)doc->facts[f].answer - 1 + i);
        asked[bucket] += 1, right[bucket] += hit;
    }
}

// The recall test: in fresh synthetic documents, as long as the context, is every token of each answer the
// likeliest? right[] of asked[] are, in buckets of the distance between a fact and its question. Each replica
// reads a document of its own. The ranks are all of this process.
static int evaluate_needle(gpt2_sp* g, int64_t documents, double* right, double* asked) {
    const int dp = g->mesh.dp;
    synth_doc* docs = (synth_doc*)calloc((size_t)dp, sizeof *docs);
    int status = docs ? 0 : fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    for (int64_t d = 0; status == 0 && d < documents; d += dp) {
        int n = (int)min_i64(dp, documents - d), made = 0;
        for (; status == 0 && made < n; made += status == 0)
            status = synth_document((uint64_t)g->options.seed ^ 0x6E6565646C65u, (uint64_t)(d + made),
                (size_t)g->mesh.shape.T, (int)g->options.facts, (size_t)g->options.distance, &docs[made],
                g->error.text, sizeof g->error.text);
        for (int i = 0; i < g->mesh.local_ranks; i++) {
            int replica = g->ranks[i].place.dp;
            needle_fill(&g->ranks[i], replica < made ? &docs[replica] : NULL, g->eot);
        }
        if (status == 0) status = ranks_run(g, rank_read, NULL);
        for (int i = 0; i < made; i++) {
            if (status == 0) needle_count(g, i, &docs[i], right, asked);
            synth_free(&docs[i]);
        }
    }
    free(docs);
    return status;
}

// --- the losses of all labels ---

// What the ranks read side by side: sequences of W tokens. As many as fit lie in the rows of a replica's
// sequence, one behind the other, if the mesh has the mask of documents; else one.
typedef struct {
    int64_t W, count;
    // Gives the rows `part` of sequence i, counted in it, their tokens and labels (-1: no loss is wanted).
    // doc_start (W), which the mesh may not have (NULL), and place are 0 unless they are changed.
    int (*fill)(void* user, int64_t i, const Segments* part, int32_t* tokens, int32_t* labels,
        int32_t* doc_start, SamplePlace* place, Error* e);
    // Takes the loss of a row of sequence i that has a label.
    int (*take)(void* user, int64_t i, int64_t row, double loss, Error* e);
    void* user;
} SequenceSource;

// The rows of at..at+n-1 that a rank holds, counted from `at`; *row: the first of them among the rank's rows.
static Segments segments_within(const Segments* seg, int64_t at, int64_t n, int64_t* row) {
    Segments part;
    memset(&part, 0, sizeof part);
    *row = 0;
    for (int64_t s = 0, before = 0; s < seg->count; before += seg->rows[s], s++) {
        int64_t low = max_i64(seg->begin[s], at), high = min_i64(seg->begin[s] + seg->rows[s], at + n);
        if (low >= high) continue;
        if (part.count == 0) *row = before + low - seg->begin[s];
        part.begin[part.count] = low - at, part.rows[part.count++] = high - low;
        part.total += high - low;
    }
    return part;
}

// Clears the rows of a rank's evaluation batch: no labels, and a document for every W rows.
static void sequences_clear(Rank* r, int64_t W) {
    const RankBatch* batch = &r->batches[2];
    memset(batch->tokens, 0, (size_t)r->R * sizeof *batch->tokens);
    if (batch->positions) memset(batch->positions, 0, (size_t)r->R * sizeof *batch->positions);
    for (int64_t t = 0; t < r->R; t++) batch->labels[t] = -1;
    for (int64_t t = 0; r->mesh->doc_mask && t < r->mesh->shape.T; t++)
        batch->doc_start[t] = (int32_t)(t / W * W);
}

// Gives a rank its rows of sequence i, which begins at row `at`.
static int sequence_fill(Rank* r, const SequenceSource* x, int64_t i, int64_t at, Error* e) {
    const RankBatch* batch = &r->batches[2];
    int32_t* doc_start = r->mesh->doc_mask ? batch->doc_start + at : NULL;
    int64_t row;
    Segments part = segments_within(&r->segments, at, x->W, &row);
    for (int64_t t = 0; doc_start && t < x->W; t++) doc_start[t] = 0;
    SamplePlace place = {0, 0};
    if (x->fill(x->user, i, &part, batch->tokens + row, batch->labels + row, doc_start, &place, e) != 0)
        return -1;
    if (batch->positions) positions_fill(place, &part, doc_start, batch->positions + row);
    for (int64_t t = 0; doc_start && t < x->W; t++) doc_start[t] += (int32_t)at;
    return 0;
}

// Hands on the losses of a rank's rows, of sequences first, first + 1, ...
static int sequences_take(const Rank* r, const SequenceSource* x, int64_t first, Error* e) {
    int status = 0;
    for (int64_t s = 0, row = 0; s < r->segments.count; s++)
        for (int64_t i = 0; status == 0 && i < r->segments.rows[s]; i++, row++) {
            int64_t t = r->segments.begin[s] + i;
            if (r->batch->labels[row] < 0) continue;
            status = x->take(x->user, first + t / x->W, t % x->W, (double)r->token_loss[row], e);
        }
    return status;
}

// Reads all sequences, in passes of all replicas. The ranks are all of this process, with one sequence each
// (B = 1).
static int sequences_read(gpt2_sp* g, const SequenceSource* x) {
    const int64_t slots = g->mesh.doc_mask ? g->mesh.shape.T / x->W : 1, round = slots * g->mesh.dp;
    for (int64_t first = 0; first < x->count; first += round) {
        int status = 0;
        for (int i = 0; i < g->mesh.local_ranks; i++) sequences_clear(&g->ranks[i], x->W);
        for (int64_t i = first; i < min_i64(first + round, x->count); i++)
            for (int k = 0; status == 0 && k < g->mesh.local_ranks; k++)
                if (g->ranks[k].place.dp == (i - first) / slots)
                    status = sequence_fill(&g->ranks[k], x, i, (i - first) % slots * x->W, &g->error);
        if (status != 0 || ranks_run(g, rank_read, NULL) != 0) return -1;
        for (int k = 0; k < g->mesh.local_ranks; k++) {
            const Rank* r = &g->ranks[k];
            if (sequences_take(r, x, first + r->place.dp * slots, &g->error) != 0) return -1;
        }
    }
    return 0;
}

// The losses of all labels of the data by one model, in windows of W tokens that begin every S tokens.
typedef struct {
    int64_t W, S;
    float* loss;   // (tokens) in nats, by the label's place in the data; NAN where there is no label
} LabelLosses;

// What `eval` works with. The models are measured one after the other, in the same arrays.
enum { LOSSES_MOST = 40, SLIDING_MOST = 32, SLIDING_LEAST = 256 };
typedef struct {
    const gpt2_sp_options* o;
    gpt2_sp* g;   // the model that is measured
    int model;    // its number, from 0 on
    Dataset data;
    int64_t tokens;   // of the data that are read: its first ones
    LabelLosses losses[LOSSES_MOST];
    int losses_count;
    int64_t sliding[SLIDING_MOST];   // the lengths that --sliding asks for
    int sliding_count;
    unsigned char* key;   // (tokens) the first model's key tokens, by their place in the data
    ModelTokens first;    // the first model's
} Eval;

// How many windows of W tokens that begin every S it takes for all labels of `tokens` tokens.
static int64_t windows_count(int64_t tokens, int64_t W, int64_t S) {
    return tokens - 1 <= W ? 1 : ceil_div(tokens - 1 - W, S) + 1;
}

// Windows of the data as a source of sequences.
typedef struct {
    Eval* v;
    LabelLosses* losses;
} WindowsRead;
static int window_fill(void* user, int64_t i, const Segments* part, int32_t* tokens, int32_t* labels,
    int32_t* doc_start, SamplePlace* place, Error* e) {
    const WindowsRead* x = (const WindowsRead*)user;
    const int64_t W = x->losses->W;
    const int doc_mask = (int)x->v->o->doc_mask;
    Window w = window_at((uint64_t)x->v->tokens, W, x->losses->S, (uint64_t)i);
    if (sample_fill(&x->v->data, x->v->data.cursors, w.position, W, doc_mask, part, tokens, labels, doc_start,
            e) != 0)
        return -1;
    labels_clear(part, 0, w.seen, labels);
    if (x->v->o->pos_from == GPT2_SP_FROM_DOCUMENT)
        place->first_document = document_position(&x->v->data, w.position, W, x->v->g->mesh.shape.N);
    return 0;
}
static int window_take(void* user, int64_t i, int64_t row, double loss, Error* e) {
    const WindowsRead* x = (const WindowsRead*)user;
    const LabelLosses* l = x->losses;
    Window w = window_at((uint64_t)x->v->tokens, l->W, l->S, (uint64_t)i);
    if (!isfinite(loss)) return fail(e, "the loss is not finite: the model's weights are damaged");
    l->loss[(int64_t)w.position + row + 1] = (float)loss;
    return 0;
}

// Has the model read the data in windows.
static int losses_collect(Eval* v, LabelLosses* l) {
    WindowsRead x = {v, l};
    const SequenceSource sequences = {
        l->W, windows_count(v->tokens, l->W, l->S), window_fill, window_take, &x};
    for (int64_t p = 0; p < v->tokens; p++) l->loss[p] = NAN;
    return sequences_read(v->g, &sequences);
}

// How many tokens the model had before the one that it read to predict label p: in the window of T tokens
// that counts the label, and with --doc-mask in its document.
static int64_t label_position(const Eval* v, int64_t p) {
    const int64_t row = p - 1, T = v->g->mesh.shape.T;
    uint64_t begin = window_at((uint64_t)v->tokens, T, T, (uint64_t)(row / T)).position, document, end;
    if (v->o->doc_mask) {
        dataset_document(&v->data, (uint64_t)row, &document, &end);
        if (document > begin) begin = document;
    }
    return row - (int64_t)begin;
}

// The losses in windows of W tokens every S.
static LabelLosses* losses_find(Eval* v, int64_t W, int64_t S) {
    for (int i = 0; i < v->losses_count; i++)
        if (v->losses[i].W == W && v->losses[i].S == S) return &v->losses[i];
    return NULL;
}
// Windows of W tokens that move by half of their length: a label has from half of it on.
static int64_t half_of(int64_t W) { return max_i64(1, W / 2); }

// The lengths of windows that --sliding names, in a context of T.
static int sliding_lengths(Eval* v, int64_t T, Error* e) {
    const char* list = v->o->sliding;
    if (strcmp(list, "1") == 0)
        for (int64_t W = SLIDING_LEAST;; W *= 2) {
            v->sliding[v->sliding_count++] = min_i64(W, T);
            if (W >= T) return 0;
        }
    while (*list) {
        char item[GPT2_SP_TEXT];
        double W;
        list = list_item(list, item);
        if (*list == ',') list++;
        if (v->sliding_count == SLIDING_MOST)
            return fail(e, "--sliding: more than %d lengths of windows", SLIDING_MOST);
        if (number_set("--sliding ", item, 1, 2, (double)T, &W, e) != 0) return -1;
        v->sliding[v->sliding_count++] = (int64_t)W;
    }
    return 0;
}

// Lists the losses that the figures asked for need, in a context of T, without their memory.
static int losses_plan(Eval* v, int64_t T, Error* e) {
    const gpt2_sp_options* o = v->o;
    int64_t wanted[SLIDING_MOST + 2][2];   // W, S
    int count = 0;
    v->losses_count = v->sliding_count = 0;
    if (o->context_gain >= T)
        return fail(e, "--context-gain %lld: the whole context has %lld tokens, expected fewer",
            (long long)o->context_gain, (long long)T);
    if (sliding_lengths(v, T, e) != 0) return -1;
    if (o->data[0]) wanted[count][0] = T, wanted[count++][1] = T;
    if (o->context_gain > 0)
        wanted[count][0] = o->context_gain, wanted[count++][1] = half_of(o->context_gain);
    for (int i = 0; i < v->sliding_count; i++)
        wanted[count][0] = v->sliding[i], wanted[count++][1] = half_of(v->sliding[i]);
    for (int i = 0; i < count; i++)
        if (!losses_find(v, wanted[i][0], wanted[i][1])) {
            LabelLosses l = {wanted[i][0], wanted[i][1], NULL};
            v->losses[v->losses_count++] = l;
        }
    return 0;
}

// Takes the memory of the losses that are planned: 4 bytes a token of the data and length of windows, and one
// for the key tokens. `machine`: bytes that there are.
static int losses_allocate(Eval* v, uint64_t machine, Error* e) {
    const uint64_t a_token = (uint64_t)v->losses_count * sizeof(float) + (v->o->context_gain > 0),
                   bytes = (uint64_t)v->tokens * a_token;
    int missing = bytes > machine;
    for (int i = 0; !missing && i < v->losses_count; i++)
        missing = !(v->losses[i].loss = (float*)malloc((size_t)v->tokens * sizeof(float)));
    if (!missing && v->o->context_gain > 0)
        missing = !(v->key = (unsigned char*)calloc((size_t)v->tokens, 1));
    if (!missing) return 0;
    return fail(e,
        "the losses of %lld tokens in windows of %d kinds need %.2f GiB and the machine has %.2f: with "
        "--val-sequences %lld they fit",
        (long long)v->tokens, v->losses_count, (double)bytes / 1073741824, (double)machine / 1073741824,
        (long long)max_i64(1, (int64_t)(machine / a_token / 2) / v->losses[0].W));
}

// --- what they tell ---

// The figures of one kind of evaluation: some of all labels, and rows of a table.
enum { EVAL_TOTALS = 7, EVAL_FIGURES = PROBE_DEPTHS, EVAL_ROWS = 128 };
typedef struct {
    int64_t key[2];     // what the row is of
    const char* word;   // instead of the first key; NULL: none
    double figure[EVAL_FIGURES], count;
} EvalRow;
typedef struct {
    double total[EVAL_TOTALS];   // NAN: there is none
    EvalRow row[EVAL_ROWS];
    int rows;
} EvalTable;

// Adds a row; none has more than EVAL_ROWS.
static EvalRow* eval_row(EvalTable* t, int64_t key0, int64_t key1, const char* word, double count) {
    EvalRow* row = &t->row[t->rows++];
    row->key[0] = key0, row->key[1] = key1;
    row->word = word, row->count = count;
    return row;
}

// Adds a row for each bucket that has something: means of `figures` sums, (POSITION_BUCKETS) each.
static void eval_buckets(EvalTable* t, double (*sums)[POSITION_BUCKETS], int figures, const double* counts) {
    for (int i = 0; i < POSITION_BUCKETS; i++) {
        if (counts[i] == 0) continue;
        EvalRow* row = eval_row(t, i ? 1ll << (i - 1) : 0, i ? (1ll << i) - 1 : 0, NULL, counts[i]);
        for (int f = 0; f < figures; f++) row->figure[f] = sums[f][i] / counts[i];
    }
}

// Bytes of the text that the labels stand for; 0 where that is not known. Without the model's tokenizer it is
// the data's average of bytes a token, unless some tokens are no labels.
static int labels_bytes(Eval* v, const LabelLosses* l, double count, double* bytes) {
    enum { READ = 4096 };
    int32_t tokens[READ];
    *bytes = 0;
    for (int64_t p = 0; v->g->tokenizer.token && p < v->tokens; p += READ) {
        int64_t n = min_i64(READ, v->tokens - p);
        if (dataset_read(&v->data, v->data.cursors, (uint64_t)p, (uint64_t)n, tokens, &v->g->error) != 0)
            return -1;
        for (int64_t i = 0; i < n; i++)
            if (!isnan(l->loss[p + i])) *bytes += token_bytes(v->g, tokens[i]);
    }
    if (*bytes == 0 && !dataset_masked(&v->data))
        *bytes = count * (double)v->data.text_bytes / (double)v->data.tokens;
    return 0;
}

// The loss of all labels, and by position.
static int measure_loss(Eval* v, EvalTable* t) {
    const LabelLosses* l = losses_find(v, v->g->mesh.shape.T, v->g->mesh.shape.T);
    double sums[1][POSITION_BUCKETS] = {{0}}, counts[POSITION_BUCKETS] = {0}, sum = 0, count = 0, bytes;
    for (int64_t p = 1; p < v->tokens; p++) {
        if (isnan(l->loss[p])) continue;
        int bucket = position_bucket(label_position(v, p));
        sums[0][bucket] += (double)l->loss[p], counts[bucket] += 1;
        sum += (double)l->loss[p], count += 1;
    }
    if (labels_bytes(v, l, count, &bytes) != 0) return -1;
    t->total[0] = sum / count, t->total[1] = count;
    t->total[2] = bytes > 0 ? sum / log(2) / bytes : NAN;
    t->total[3] = exp(sum / count);
    eval_buckets(t, sums, 1, counts);
    return 0;
}

// A key token, after Fang et al. 2024 (LongPPL): the whole context makes it more than KEY_GAIN nats likelier,
// and then it is likelier than e^-KEY_LOSS.
static const double KEY_GAIN = 2, KEY_LOSS = 2;

// What the whole context gains over one of --context-gain tokens, over the labels that have more than these
// before them. LongPPL is the perplexity of the first model's key tokens.
static int measure_gain(Eval* v, EvalTable* t) {
    const int64_t T = v->g->mesh.shape.T, N = v->o->context_gain;
    const LabelLosses *whole = losses_find(v, T, T), *part = losses_find(v, N, half_of(N));
    double sums[3][POSITION_BUCKETS] = {{0}}, counts[POSITION_BUCKETS] = {0}, count = 0, key = 0,
           key_loss = 0;
    double all[2] = {0, 0};
    for (int64_t p = 1; p < v->tokens; p++) {
        if (isnan(whole->loss[p])) continue;
        int64_t position = label_position(v, p);
        if (position < N) continue;
        const double with = (double)whole->loss[p], without = (double)part->loss[p];
        int bucket = position_bucket(position);
        sums[0][bucket] += without, sums[1][bucket] += with;
        sums[2][bucket] += without - with, counts[bucket] += 1;
        all[0] += without, all[1] += with;
        count += 1;
        if (v->model == 0) v->key[p] = without - with > KEY_GAIN && with < KEY_LOSS;
        if (v->key[p]) key += 1, key_loss += with;
    }
    if (count == 0)
        return fail(&v->g->error, "--context-gain %lld: no label of the data has so many tokens before it",
            (long long)N);
    t->total[0] = (all[0] - all[1]) / count;
    t->total[1] = all[0] / count, t->total[2] = all[1] / count;
    t->total[3] = count, t->total[4] = key > 0 ? exp(key_loss / key) : NAN;
    t->total[5] = key, t->total[6] = key / count;
    eval_buckets(t, sums, 3, counts);
    return 0;
}

// Perplexity in windows of several lengths, over the labels that all of them have counted.
static int measure_sliding(Eval* v, EvalTable* t) {
    double sum[SLIDING_MOST] = {0}, count = 0;
    const LabelLosses* l[SLIDING_MOST];
    for (int i = 0; i < v->sliding_count; i++) l[i] = losses_find(v, v->sliding[i], half_of(v->sliding[i]));
    for (int64_t p = 1; p < v->tokens; p++) {
        int counted = 1;
        for (int i = 0; i < v->sliding_count; i++) counted &= !isnan(l[i]->loss[p]);
        for (int i = 0; counted && i < v->sliding_count; i++) sum[i] += (double)l[i]->loss[p];
        count += counted;
    }
    for (int i = 0; i < v->sliding_count; i++) {
        EvalRow* row = eval_row(t, l[i]->W, l[i]->S, NULL, count);
        row->figure[0] = sum[i] / count, row->figure[1] = exp(sum[i] / count);
    }
    return 0;
}

// The questions of one kind and length as a source of sequences. Each question is four of them: its text with
// one of the candidates.
typedef struct {
    Eval* v;
    probe_maker* maker;
    int kind;
    int64_t length, made;   // made: the question that is in the maker; -1: none
    double* score;          // (PROBE_DEPTHS, items, PROBE_CANDIDATES) log-probabilities
} ProbesRead;
static int probe_question(ProbesRead* x, int64_t question, Error* e) {
    const gpt2_sp_options* o = x->v->o;
    if (question == x->made) return 0;
    x->made = question;
    return probe_make(x->maker, x->kind, (uint64_t)o->seed, question % o->probe_items, x->length,
        (int)(question / o->probe_items), e->text, sizeof e->text);
}
static int probe_fill_rows(void* user, int64_t i, const Segments* part, int32_t* tokens, int32_t* labels,
    int32_t* doc_start, SamplePlace* place, Error* e) {
    ProbesRead* x = (ProbesRead*)user;
    (void)doc_start, (void)place;
    if (probe_question(x, i / PROBE_CANDIDATES, e) != 0) return -1;
    const probe_piece* answer = &x->maker->candidate[i % PROBE_CANDIDATES];
    const int64_t asked = x->maker->prompt_tokens, end = asked + answer->count;
    for (int s = 0; s < part->count; s++)
        for (int64_t t = part->begin[s]; t < part->begin[s] + part->rows[s]; t++) {
            *tokens++ = t < asked ? x->maker->prompt[t] : t < end ? answer->token[t - asked] : 0;
            *labels++ = t + 1 >= asked && t + 1 < end ? answer->token[t + 1 - asked] : -1;
        }
    return 0;
}
static int probe_take(void* user, int64_t i, int64_t row, double loss, Error* e) {
    ProbesRead* x = (ProbesRead*)user;
    (void)row;
    if (!isfinite(loss)) return fail(e, "the loss is not finite: the model's weights are damaged");
    x->score[i] -= loss;
    return 0;
}

// Whether the first candidate has the highest score: 1, or its share where several have it.
static double probe_right(const double* score) {
    int alike = 0;
    for (int i = 0; i < PROBE_CANDIDATES; i++) {
        if (score[i] > score[0]) return 0;
        alike += score[i] == score[0];
    }
    return 1.0 / alike;
}

// A row of a kind of question at a length: the shares that are right, by depth.
static int probe_row(ProbesRead* x, EvalTable* t) {
    const int64_t items = x->v->o->probe_items, all = PROBE_DEPTHS * items * PROBE_CANDIDATES;
    const SequenceSource sequences = {x->length, all, probe_fill_rows, probe_take, x};
    x->made = -1;
    for (int64_t i = 0; i < all; i++) x->score[i] = 0;
    if (sequences_read(x->v->g, &sequences) != 0) {
        Error why = x->v->g->error;
        return fail(&x->v->g->error, "--probe %s: %.900s", probe_names[x->kind], why.text);
    }
    EvalRow* row = eval_row(t, 0, x->length, probe_names[x->kind], (double)items);
    for (int64_t q = 0; q < PROBE_DEPTHS * items; q++)
        row->figure[q / items] += probe_right(x->score + q * PROBE_CANDIDATES) / (double)items;
    return 0;
}

// The questions of --probe, in texts of 256, 512, ... tokens and of the context's length.
static int measure_probe(Eval* v, EvalTable* t) {
    const gpt2_sp_options* o = v->o;
    gpt2_sp* g = v->g;
    const int64_t T = g->mesh.shape.T;
    probe_maker* maker = (probe_maker*)malloc(sizeof *maker);
    if (!maker) return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    if (probe_open(maker, &g->tokenizer, T, g->error.text, sizeof g->error.text) != 0) {
        free(maker);
        return -1;
    }
    ProbesRead x = {v, maker, 0, 0, -1, NULL};
    x.score = (double*)malloc((size_t)(PROBE_DEPTHS * o->probe_items * PROBE_CANDIDATES) * sizeof *x.score);
    int status = x.score ? 0 : fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    for (x.kind = 0; status == 0 && x.kind < PROBE_KINDS; x.kind++) {
        if (o->probe != GPT2_SP_ALL_PROBES && o->probe != GPT2_SP_FIRST_PROBE + x.kind) continue;
        int64_t W = SLIDING_LEAST;
        for (x.length = 0; status == 0 && x.length < T; W *= 2) {
            x.length = min_i64(W, T);
            status = probe_row(&x, t);
        }
    }
    double sum = 0;
    for (int i = 0; i < t->rows; i++)
        for (int d = 0; d < PROBE_DEPTHS; d++) sum += t->row[i].figure[d] / (PROBE_DEPTHS * t->rows);
    t->total[0] = sum, t->total[1] = 1.0 / PROBE_CANDIDATES;
    free(x.score);
    probe_close(maker);
    free(maker);
    return status;
}

// The recall test.
static int measure_needle(Eval* v, EvalTable* t) {
    double right[1][POSITION_BUCKETS] = {{0}}, asked[POSITION_BUCKETS] = {0}, all_right = 0, all_asked = 0;
    if (evaluate_needle(v->g, v->o->needle, right[0], asked) != 0) return -1;
    for (int i = 0; i < POSITION_BUCKETS; i++) all_right += right[0][i], all_asked += asked[i];
    t->total[0] = all_right / all_asked, t->total[1] = all_asked;
    eval_buckets(t, right, 1, asked);
    return 0;
}

// The evaluations: what asks for each, what measures it, and the names of its figures: of the totals and of
// the rows in JSON, in text with blanks; `title` and `unit` are of the text alone.
typedef struct {
    const char* option;
    int (*measure)(Eval* v, EvalTable* t);   // for the model v->g; 0, or -1 with a line in its error
    const char* totals[EVAL_TOTALS];
    const char *rows, *keys[2], *figures[EVAL_FIGURES];
    const char *title, *unit;
} Evaluator;
static const Evaluator EVALUATIONS[] = {
    {"data", measure_loss, {"loss", "tokens", "bits_per_byte", "perplexity"}, "loss_by_position",
        {"from", "to"}, {"mean"}, "loss by position", "tokens"},
    {"context-gain", measure_gain,
        {"context_gain", "short_loss", "long_loss", "gain_tokens", "long_ppl", "key_tokens", "key_share"},
        "gain_by_position", {"from", "to"}, {"short", "long", "gain"}, "gain by position", "tokens"},
    {"sliding", measure_sliding, {NULL}, "sliding", {"window", "stride"}, {"loss", "perplexity"},
        "sliding windows, and by how much they move", "tokens"},
    {"probe", measure_probe, {"probe_right", "probe_chance"}, "probe", {"probe", "length"},
        {"depth_0", "depth_25", "depth_50", "depth_75", "depth_100"},
        "right answers by kind and length, and by the place of what is asked for", "questions each"},
    {"needle", measure_needle, {"needle", "needle_asked"}, "needle_by_distance", {"from", "to"}, {"mean"},
        "recall by the bytes between fact and question", "facts"},
};
enum { EVALUATION_COUNT = (int)(sizeof EVALUATIONS / sizeof EVALUATIONS[0]) };

// Whether an evaluation is asked for.
static int eval_wanted(const gpt2_sp_options* o, const Evaluator* x) {
    const Option* option = option_find(x->option);
    char set[GPT2_SP_TEXT], usual[GPT2_SP_TEXT];
    gpt2_sp_options defaults;
    options_default(&defaults);
    option_print(o, option, set, sizeof set);
    option_print(&defaults, option, usual, sizeof usual);
    return strcmp(set, usual) != 0;
}

// --- sampling with a cache of keys and values ---

enum { DECODE_ROWS = 256 };   // tokens of a prompt that are read at a time

// rank_collect's UnitTaker: copies what came to its place among all units.
static void unit_collect(gpt2_sp* g, void* to, int state, int u, const real* part, int64_t begin, int64_t n) {
    (void)state;
    memcpy((real*)to + g->layout.units[u].offset + begin, part, (size_t)n * sizeof(real));
}
// A job, for --zero 3 and own positions: brings all weights to an array (layout.elements) of each process.
static int rank_collect(Rank* r, gpt2_sp* g, void* all) {
    for (int u = 0; u < g->layout.count; u++)
        if (unit_send_to(r, g, STATE_WEIGHTS, u, g->mesh.processes, unit_collect, all) != 0) return -1;
    return 0;
}

// How many ranks keep the cache of a trainer's decoder together: those of its first sequence, where it does
// not learn; else the first rank alone.
static int cache_ranks(const Mesh* mesh) { return mesh->training ? 1 : mesh->sp; }

// The positions whose keys and values a rank keeps: of blocks of `block` positions, dealt to the ranks in
// turn, those that fall to number `index`. They lie in its cache in their order.
typedef struct {
    int ranks, index;
    int64_t block;
} CacheShare;
// How many of the first `positions` a rank keeps. That is also where in its cache the next one that it keeps
// lies.
static int64_t cache_kept(const CacheShare* s, int64_t positions) {
    int64_t round = s->block * s->ranks, rest = positions % round - s->index * s->block;
    return positions / round * s->block + max_i64(0, min_i64(s->block, rest));
}
// Positions that the rank with most of them keeps, rank 0.
static int64_t cache_most(int ranks, int64_t block, int64_t positions) {
    const CacheShare first = {ranks, 0, block};
    return cache_kept(&first, positions);
}
// The next stretch of positions from `p` on, before `end`, that a rank keeps: [*begin, *until), 0 if none.
static int cache_next(const CacheShare* s, int64_t p, int64_t end, int64_t* begin, int64_t* until) {
    int64_t number = p / s->block, turn = (number % s->ranks - s->index + s->ranks) % s->ranks;
    *begin = turn == 0 ? p : (number + s->ranks - turn) * s->block;
    *until = min_i64(end, (*begin / s->block + 1) * s->block);
    return *begin < end;
}

// Always -1: a decoder's memory is refused. A rank needs `bytes` for each token that it keeps and `fixed`
// besides, and has `room`.
static int cache_refuse(
    gpt2_sp* g, int64_t capacity, int64_t block, uint64_t fixed, uint64_t bytes, uint64_t room) {
    const int ranks = cache_ranks(&g->mesh);
    uint64_t need = fixed + bytes * (uint64_t)cache_most(ranks, block, capacity);
    uint64_t tokens = room > fixed ? (room - fixed) / bytes : 0;
    int64_t fits = ranks == 1 ? (int64_t)tokens : (int64_t)tokens / block * block * ranks;
    char who[48] = "";
    if (ranks > 1) snprintf(who, sizeof who, " on each of %d ranks", ranks);
    return fail(&g->error,
        "a cache of %lld tokens takes %.2f GiB%s, beside the model, and there are %.2f: %lld tokens would "
        "fit, prompt and --length together",
        (long long)capacity, (double)need / 1073741824, who, (double)room / 1073741824, (long long)fits);
}

// What a rank has of a decoder. The activations are of DECODE_ROWS rows.
typedef struct {
    CacheShare share;
    int64_t position;      // of the tokens that are being read
    const real* weights;   // all units, whole
    real* memory;          // of all that follows; it begins with the cache
    real* cache;           // (L, NH, 2, kept, HS)
    real *x, *narrow, *narrow2, *wide, *q, *kv;
    real* parts;   // (ranks, rows C + 2 rows NH): each rank's o (NH, rows, HS), m and l (NH, rows)
} DecoderPart;

// A model that reads tokens one after the other.
typedef struct {
    gpt2_sp* g;
    real* collected;          // whole weights, where rank 0 does not hold them all
    int64_t capacity, kept;   // tokens that fit in the cache; in a rank's part of it
    int ranks;
    DecoderPart* part;   // (ranks)
} Decoder;

static void decoder_close(void* decoder) {
    Decoder* d = (Decoder*)decoder;
    for (int i = 0; d->part && i < d->ranks; i++) free(d->part[i].memory);
    free(d->part);
    free(d->collected);
    free(d);
}

// Gives a rank its weights, an empty cache and room for activations. Returns the numbers that it takes; part
// NULL: only that.
static int64_t decoder_part(const Decoder* d, DecoderPart* part) {
    const Shape* s = &d->g->mesh.shape;
    int64_t n = DECODE_ROWS, C = s->C, all = 0;
    DecoderPart none;
    memset(&none, 0, sizeof none);
    DecoderPart* to = part ? part : &none;
    const struct {
        real** p;
        int64_t elements;
    } parts[] = {{&to->cache, s->L * 2 * d->kept * C}, {&to->x, n * C}, {&to->narrow, n * C},
        {&to->narrow2, n * C}, {&to->wide, n * 4 * C}, {&to->q, n * C}, {&to->kv, n * 2 * C},
        {&to->parts, d->ranks * n * (C + 2 * s->NH)}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (part) *parts[i].p = part->memory + all;
        all += parts[i].elements;
    }
    return all;
}

// Gives a decoder its weights and its ranks their parts.
static int decoder_init(Decoder* d, gpt2_sp* g, int64_t capacity) {
    d->g = g, d->capacity = capacity;
    d->ranks = cache_ranks(&g->mesh), d->kept = cache_most(d->ranks, BK, capacity);
    if (!holds_all(&g->layout, STATE_WEIGHTS)) {
        d->collected = (real*)malloc((size_t)g->layout.elements * sizeof(real));
        int status =
            d->collected ? 0 : fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory for the whole weights");
        if (processes_agree(&g->host, status, NULL, &g->error) != 0) return -1;   // all collect, or none
        if (ranks_run(g, rank_collect, d->collected) != 0) return -1;
    }
    uint64_t size = (uint64_t)decoder_part(d, NULL) * sizeof(real),
             machine = machine_bytes(&g->mesh) / (uint64_t)g->mesh.local_processes;
    uint64_t held = mesh_bytes(&g->mesh, &g->layout), room = machine > held ? machine - held : 0;
    uint64_t token = (uint64_t)(g->mesh.shape.L * 2 * g->mesh.shape.C) * sizeof(real);
    if (size > room / (uint64_t)d->ranks)
        return cache_refuse(
            g, capacity, BK, size - token * (uint64_t)d->kept, token, room / (uint64_t)d->ranks);
    d->part = (DecoderPart*)calloc((size_t)d->ranks, sizeof *d->part);
    if (!d->part) return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    for (int i = 0; i < d->ranks; i++) {
        DecoderPart* part = &d->part[i];
        part->share.ranks = d->ranks, part->share.index = i;
        part->share.block = BK;
        part->weights = d->collected ? d->collected : g->ranks[i].state[STATE_WEIGHTS];
        part->memory = (real*)malloc((size_t)size);
        if (!part->memory)
            return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory for a cache of %lld tokens",
                (long long)capacity);
        decoder_part(d, part);
    }
    return 0;
}

// The CPU's Device.decoder_open: a decoder for `capacity` tokens; NULL, with a line in g->error.
static void* decoder_open(gpt2_sp* g, int64_t capacity) {
    Decoder* d = (Decoder*)calloc(1, sizeof *d);
    if (!d) fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    else if (decoder_init(d, g, capacity) != 0) decoder_close(d), d = NULL;
    return d;
}

// The weights of a unit, by their names, as a rank has them.
static Parameters decoder_weights(const Decoder* d, const Rank* r, int u) {
    return parameters_at(&d->g->layout, u, d->part[r->place.sp].weights + d->g->layout.units[u].offset);
}

// atty (n, C) = the attention of n rows: all ranks' parts (DecoderPart.parts), merged into rank 0's in the
// order of the ranks, so that every rank gets the same bits.
static void decoder_merge(real* atty, real* parts, int ranks, int64_t n, const Shape* s) {
    int64_t C = s->C, HS = s->HS, slice = n * (C + 2 * s->NH);
    PARALLEL_FOR
    for (int64_t h = 0; h < s->NH; h++) {
        real *o = parts + h * n * HS, *m = parts + n * C + h * n, *l = m + s->NH * n;
        for (int i = 1; i < ranks; i++) {
            int64_t other = i * slice;
            output_finish(o + other, m + other, l + other, n, HS);
            output_merge(o, m, l, o + other, m + other, n, HS);
        }
        output_finish(o, m, l, n, HS);
        for (int64_t i = 0; i < n; i++) memcpy(atty + i * C + h * HS, o + i * HS, (size_t)HS * sizeof(real));
    }
}

// The decoder's LayerRun.attention: the keys and values of the rows being read join the cache, those that
// this rank keeps; the rows attend to all of it, block by block, and to what the other ranks have.
static int decoder_attention(Rank* r, const LayerRun* x) {
    Decoder* d = (Decoder*)x->decoder;
    DecoderPart* part = &d->part[r->place.sp];
    const Shape* s = &d->g->mesh.shape;
    const CacheShare* share = &part->share;
    int64_t HS = s->HS, NH = s->NH, C = s->C, n = x->rows, p = part->position, slice = n * (C + 2 * NH);
    int64_t kept = cache_kept(share, p + n);
    real *out = part->parts + share->index * slice, *out_m = out + n * C, *out_l = out_m + n * NH;
    cpu_split_heads(part->q, part->kv, x->wide, 1, n, NH, HS);
    PARALLEL_FOR
    for (int64_t h = 0; h < NH; h++) {
        real *k = part->cache + (x->l * NH + h) * 2 * d->kept * HS, *v = k + d->kept * HS;
        real *o = out + h * n * HS, *m = out_m + h * n, *sum = out_l + h * n;
        const real *new_k = part->kv + h * n * HS, *new_v = new_k + NH * n * HS;
        for (int64_t begin, until = p; cache_next(share, until, p + n, &begin, &until);) {
            int64_t at = cache_kept(share, begin) * HS, from = (begin - p) * HS;
            size_t size = (size_t)((until - begin) * HS) * sizeof(real);
            memcpy(k + at, new_k + from, size);
            memcpy(v + at, new_v + from, size);
        }
        memset(o, 0, (size_t)(n * HS) * sizeof(real));
        for (int64_t i = 0; i < n; i++) m[i] = -(real)INFINITY, sum[i] = 0;
        for (int64_t at = 0; at < kept; at += BK) {
            int64_t position = (at / BK * share->ranks + share->index) * BK;
            AttentionPair pair = {part->q + h * n * HS, k + at * HS, v + at * HS, n, min_i64(BK, kept - at),
                HS, p, position, NULL};
            cpu_attention_forward_head(o, m, sum, &pair, &r->scratch[thread_index()].attention);
        }
    }
    if (share->ranks > 1 &&
        r->transport.all_gather(&r->transport, &r->sequence, part->parts, slice, &r->error) != 0)
        return -1;
    decoder_merge(x->a.atty, part->parts, share->ranks, n, s);
    return 0;
}

// What a decoder is to read (Device.decoder_read).
typedef struct {
    void* decoder;
    const int32_t* tokens;
    int64_t n, p, rows;
    real* logits;
} DecoderRead;

// Reads n <= DECODE_ROWS tokens that stand at positions p..; of the last `rows` of them, which may be none,
// the first rank gives the logits (rows, Vp). Without a backward pass activations may share buffers, so a few
// are enough for all. 0, or -1 with a line in r->error.
static int decoder_block(
    Rank* r, Decoder* d, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    const Shape* s = &d->g->mesh.shape;
    DecoderPart* part = &d->part[r->place.sp];
    int64_t C = s->C;
    int center = d->g->mesh.center, last = (int)s->L + 1;
    Segments place = {1, {p, 0}, {n, 0}, n};
    real rstd[DECODE_ROWS];
    Parameters embed = decoder_weights(d, r, 0), final = decoder_weights(d, r, last);
    cpu_embedding_forward(part->x, tokens, embed.wte, n, C);
    cpu_position_forward(
        part->x, &place, NULL, decoder_weights(d, r, positions_unit(&d->g->layout)).wpe, center, C);
    LayerRun x;
    memset(&x, 0, sizeof x);
    x.rows = n, x.wide = part->wide;
    x.narrow = part->narrow2, x.needed = ~0u;
    x.a.x = x.a.x2 = x.next = part->x, x.a.ln1 = x.a.ln2 = x.a.atty = part->narrow;
    x.a.rstd1 = x.a.rstd2 = rstd;
    x.a.fch = x.a.gelu = part->wide;
    x.attention = decoder_attention, x.decoder = d;
    part->position = p;
    for (x.l = 0; x.l < s->L; x.l++) {
        x.w = decoder_weights(d, r, (int)x.l + 1);
        if (layer_forward(r, &x) != 0) return -1;
    }
    if (rows == 0 || r->place.sp > 0) return 0;
    cpu_rmsnorm_forward(part->narrow, rstd, part->x + (n - rows) * C, final.lnfw, final.lnfb, rows, C);
    cpu_matmul_forward(logits, part->narrow, embed.wte, NULL, rows, C, s->Vp, r->scratch);
    return 0;
}

// A job of the ranks that keep the cache: each reads all tokens.
static int rank_decode(Rank* r, gpt2_sp* g, void* argument) {
    const DecoderRead* read = (const DecoderRead*)argument;
    (void)g;
    if (r->place.dp > 0) return 0;
    for (int64_t done = 0, count; done < read->n; done += count) {
        count = min_i64(DECODE_ROWS, read->n - done);
        if (decoder_block(r, (Decoder*)read->decoder, read->tokens + done, count, read->p + done,
                done + count == read->n ? read->rows : 0, read->logits) != 0)
            return -1;
    }
    return 0;
}

// The CPU's Device.decoder_read.
static int decoder_read(
    void* decoder, const int32_t* tokens, int64_t n, int64_t p, int64_t rows, real* logits) {
    Decoder* d = (Decoder*)decoder;
    DecoderRead read = {d, tokens, n, p, rows, logits};
    if (d->ranks > 1) return ranks_run(d->g, rank_decode, &read);
    if (rank_decode(&d->g->ranks[0], d->g, &read) == 0) return 0;
    d->g->error = d->g->ranks[0].error;
    return -1;
}

// --- what a token is drawn from ---

typedef struct {
    real logit, weight;   // weight: in proportion to its probability
    int32_t token;
} Candidate;
// The likeliest first; equal ones by their numbers, so that the order is one.
static int candidate_order(const void* a, const void* b) {
    const Candidate *x = (const Candidate*)a, *y = (const Candidate*)b;
    return x->logit != y->logit ? (x->logit < y->logit) - (x->logit > y->logit) : x->token - y->token;
}

// Parts candidates low..high by one of them: those before it to low..*left, those behind it to *right..high.
static void candidates_part(Candidate* c, int64_t low, int64_t high, int64_t* left, int64_t* right) {
    Candidate pivot = c[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
        while (candidate_order(&c[i], &pivot) < 0) i++;
        while (candidate_order(&c[j], &pivot) > 0) j--;
        if (i > j) break;
        Candidate other = c[i];
        c[i++] = c[j], c[j--] = other;
    }
    *left = j, *right = i;
}

// Puts the n that come first in candidate_order in front, in any order (quickselect).
static void candidates_select(Candidate* c, int64_t V, int64_t n) {
    for (int64_t low = 0, high = V - 1, left, right; n < V && low < high;) {
        candidates_part(c, low, high, &left, &right);
        if (n <= left + 1) high = left;
        else if (n > right) low = right;
        else return;
    }
}

// The tokens that the filters leave, and their weights, which add up to `sum`.
typedef struct {
    Candidate* candidates;   // room for V; the first `count` can be drawn
    int64_t count;
    double sum;
} Distribution;

// Of the candidates keeps the likeliest that make up probability p of their weights' sum; at least one.
// Selects them as candidates_select does, by weight instead of number: `kept` is the weight of those before
// `low`, which stay; those behind `high` do not.
static void distribution_top_p(Distribution* d, double p) {
    Candidate* c = d->candidates;
    double kept = 0;
    int64_t low = 0, high = d->count - 1;
    for (int64_t left, right; low < high;) {
        candidates_part(c, low, high, &left, &right);
        double weight = 0;
        for (int64_t i = low; i <= left; i++) weight += (double)c[i].weight;
        if (kept + weight >= p * d->sum && left >= low) {
            high = left;
            continue;
        }
        kept += weight, low = left + 1;
        if (low < right) {   // one between, which is neither before nor behind the others
            if (kept + (double)c[low].weight >= p * d->sum) high = low;
            else kept += (double)c[low].weight, low = right;
        }
    }
    d->count = low + 1, d->sum = 0;
    for (int64_t i = 0; i < d->count; i++) d->sum += (double)c[i].weight;
}

// Of the candidates keeps those of weight `least` or more, in their order.
static void distribution_min_p(Distribution* d, real least) {
    int64_t kept = 0;
    d->sum = 0;
    for (int64_t i = 0; i < d->count; i++)
        if (d->candidates[i].weight >= least) {
            d->sum += (double)d->candidates[i].weight;
            d->candidates[kept++] = d->candidates[i];
        }
    d->count = kept;
}

// Weighs the candidates: e^((logit - most) * scale). In blocks, so that the compiler has vectors to work on.
enum { CANDIDATE_BLOCK = 512 };
static void distribution_weigh(Distribution* d, real most, real scale) {
    d->sum = 0;
    for (int64_t begin = 0; begin < d->count; begin += CANDIDATE_BLOCK) {
        Candidate* c = d->candidates + begin;
        int64_t n = min_i64(CANDIDATE_BLOCK, d->count - begin);
        real weight[CANDIDATE_BLOCK];
        double sum = 0;
        for (int64_t i = 0; i < n; i++) weight[i] = c[i].logit;
        SIMD_EXP
        for (int64_t i = 0; i < n; i++) weight[i] = exp_real((weight[i] - most) * scale);
        SIMD_SUM(sum)
        for (int64_t i = 0; i < n; i++) sum += (double)weight[i];
        for (int64_t i = 0; i < n; i++) c[i].weight = weight[i];
        d->sum += sum;
    }
}

// What the next token is drawn from, given its logits (V) and how often each token is in the text so far
// (V; NULL where there is no penalty). -1 if a logit is not finite.
static int distribution_make(
    Distribution* d, const real* logits, int64_t V, const gpt2_sp_sampling* how, const int32_t* seen) {
    real penalty = (real)how->repetition_penalty, most = -(real)INFINITY, unsound = 0;
    int32_t best = 0;
    int greedy = how->temperature == 0;
    for (int64_t begin = 0; begin < V; begin += CANDIDATE_BLOCK) {
        int64_t n = min_i64(CANDIDATE_BLOCK, V - begin), first = 0;
        const int32_t* met = seen ? seen + begin : NULL;
        Candidate* c = d->candidates + begin;
        real logit[CANDIDATE_BLOCK], top = -(real)INFINITY;
        memcpy(logit, logits + begin, (size_t)n * sizeof *logit);
        SIMD_SUM(unsound)
        for (int64_t i = 0; i < n; i++) unsound += logit[i] * 0;   // 0, or NaN for ever
        for (int64_t i = 0; met && i < n; i++)
            if (met[i] > 0) logit[i] = logit[i] > 0 ? logit[i] / penalty : logit[i] * penalty;
        SIMD_MAX(top)
        for (int64_t i = 0; i < n; i++) top = logit[i] > top ? logit[i] : top;
        if (top > most) {
            while (logit[first] != top) first++;
            most = top, best = (int32_t)(begin + first);
        }
        for (int64_t i = 0; !greedy && i < n; i++) c[i].logit = logit[i], c[i].token = (int32_t)(begin + i);
    }
    if (unsound != 0) return -1;
    d->count = greedy ? 1 : how->top_k > 0 && how->top_k < V ? how->top_k : V;
    if (greedy) d->candidates[0].logit = most, d->candidates[0].token = best;
    else candidates_select(d->candidates, V, d->count);
    distribution_weigh(d, most, greedy ? 1 : (real)fmin(1 / how->temperature, 1e30));
    if (how->top_p < 1) distribution_top_p(d, how->top_p);
    if (how->min_p > 0) distribution_min_p(d, (real)how->min_p);   // the likeliest has weight 1
    return 0;
}

// Draws a token. `unit` is uniform in (0, 1) and decides. Passes over four candidates at a time.
static int32_t distribution_draw(const Distribution* d, double unit) {
    const Candidate* c = d->candidates;
    double place = unit * d->sum;
    int64_t i = 0;
    for (; i + 4 <= d->count; i += 4) {
        double four = ((double)c[i].weight + (double)c[i + 1].weight) +
            ((double)c[i + 2].weight + (double)c[i + 3].weight);
        if (place <= four) break;
        place -= four;
    }
    for (; i < d->count; i++) {
        place -= (double)c[i].weight;
        if (place <= 0) return c[i].token;
    }
    return c[d->count - 1].token;
}

// The share of a token in a distribution. Uncut, it has the tokens in their order.
static double distribution_share(const Distribution* d, int32_t token) {
    const Candidate* c = d->candidates;
    if (token < d->count && c[token].token == token) return (double)c[token].weight / d->sum;
    for (int64_t i = 0; i < d->count; i++)
        if (c[i].token == token) return (double)c[i].weight / d->sum;
    return 0;
}

// Draws from max(0, p - q). share (V) is zero, before and after.
static int32_t distribution_draw_rest(
    const Distribution* p, const Distribution* q, double* share, double unit) {
    double sum = 0, place = 0;
    int32_t token = -1;
    for (int64_t i = 0; i < q->count; i++)
        share[q->candidates[i].token] = (double)q->candidates[i].weight / q->sum;
    for (int pass = 0; pass < 2; pass++, place = unit * sum)
        for (int64_t i = 0; i < p->count && (pass == 0 || place > 0); i++) {
            double more = (double)p->candidates[i].weight / p->sum - share[p->candidates[i].token];
            if (more <= 0) continue;
            if (pass == 0) sum += more;
            else place -= more, token = p->candidates[i].token;
        }
    for (int64_t i = 0; i < q->count; i++) share[q->candidates[i].token] = 0;
    return token >= 0 ? token : distribution_draw(p, unit);   // p is q, but for rounding
}

// The number in (0, 1) by which token i of a continuation is drawn, proposed by the draft, or accepted. What
// a round proposed in vain has decided nothing, so its numbers may serve again.
enum { UNIT_DRAW, UNIT_PROPOSE, UNIT_ACCEPT };
static double sampling_unit(const gpt2_sp_sampling* how, uint64_t purpose, int64_t i) {
    uint64_t seed = how->continuation ? random_bits(how->seed, 0x636F6E74696E, how->continuation) : how->seed;
    return random_unit(random_bits(seed, 0x73616D706C65 + purpose, (uint64_t)i));
}

// How the options say that tokens are drawn.
static gpt2_sp_sampling sampling_of(const gpt2_sp_options* o) {
    gpt2_sp_sampling how = {sizeof how, o->temperature, o->top_k, o->top_p, o->min_p, o->repetition_penalty,
        (uint64_t)o->seed, 0, o->draft_tokens, NULL, NULL};
    return how;
}
static const size_t SAMPLING_KNOWN = KNOWN_UP_TO(gpt2_sp_sampling, user);
int gpt2_sp_sampling_defaults(gpt2_sp_sampling* how) {
    gpt2_sp_options o;
    Error e = {0, {0}};
    options_default(&o);
    const gpt2_sp_sampling usual = sampling_of(&o);
    return struct_give(how, &usual, sizeof usual, SAMPLING_KNOWN, "gpt2_sp_sampling", &e) == 0 ? 0 : e.code;
}
// -1 if a field is out of the range of the option of its name.
static int sampling_check(const gpt2_sp_sampling* how, Error* e) {
    gpt2_sp_options o;
    options_default(&o);
    o.temperature = how->temperature, o.top_k = how->top_k;
    o.top_p = how->top_p, o.min_p = how->min_p;
    o.repetition_penalty = how->repetition_penalty, o.draft_tokens = how->draft_tokens;
    return options_check(&o, e) == 0 ? 0 : failed_as(GPT2_SP_INVALID, e);
}

// What a caller asks for, whose struct may be of another version than this; NULL: the defaults.
static int sampling_asked(gpt2_sp_sampling* asked, const gpt2_sp_sampling* how, Error* e) {
    asked->size = sizeof *asked;
    gpt2_sp_sampling_defaults(asked);
    if (!how) return 0;
    int status = struct_take(asked, sizeof *asked, how, SAMPLING_KNOWN, "gpt2_sp_sampling", e);
    return status == 0 ? sampling_check(asked, e) : -1;
}

// --- generating ---

struct gpt2_sp_generator {
    gpt2_sp *g, *draft;              // draft: NULL where there is none, or the prompt is beyond its context
    void *decoder, *draft_decoder;   // have read the prompt, and what the last continuation left behind it
    int64_t prompt_count, capacity, draft_capacity;   // tokens of the prompt; that fit in the caches
    int64_t draft_read;                               // tokens of the text that the draft has read
    int64_t step, draft_step;                         // of the trainers, when they read the prompt
    int32_t* text;                  // (capacity): the prompt, a continuation, and what the draft proposes
    int32_t* seen;                  // (V): how often each token is in the text
    real *prompt_logits, *logits;   // (Vp): after the prompt; (FEW_ROWS, Vp): after what was read last
    double* share;                  // (V), for distribution_draw_rest
    Distribution next, proposed[GPT2_SP_DRAFT_TOKENS];   // p and q1, q2 ... of the round
    gpt2_sp_generated stats;
};

// Frees a generator; NULL is no error.
static void generator_free(gpt2_sp_generator* x) {
    if (!x) return;
    if (x->decoder) x->g->device->decoder_close(x->decoder);
    if (x->draft_decoder) x->draft->device->decoder_close(x->draft_decoder);
    free(x->text);
    free(x->seen);
    free(x->prompt_logits);
    free(x->logits);
    free(x->share);
    free(x->next.candidates);
    free(x->proposed[0].candidates);
    free(x);
}

// Lets the model read n tokens of the text from position p on. There is scratch memory for its ranks'
// threads; the caller may have set more.
static int generator_read(gpt2_sp_generator* x, int64_t n, int64_t p, int64_t rows, real* logits) {
    threads_use(x->g->mesh.threads);
    return x->g->device->decoder_read(x->decoder, x->text + p, n, p, rows, logits);
}
// Lets the draft read the text's tokens up to `end`, those that it has not.
static int draft_reads(gpt2_sp_generator* x, int64_t end) {
    int64_t p = x->draft_read;
    threads_use(x->draft->mesh.threads);
    x->draft_read = end;
    if (x->draft->device->decoder_read(x->draft_decoder, x->text + p, end - p, p, 1, x->logits) == 0)
        return 0;
    x->g->error = x->draft->error;
    return -1;
}

// -1 unless the draft's tokens are the model's.
static int draft_check(gpt2_sp* g, const gpt2_sp* draft) {
    const ModelTokens own = model_tokens(g), drafts = model_tokens(draft);
    return tokens_agree(&own, "draft", &drafts, &g->error);
}

// Takes what a generator needs for its draft, whose context may be the shorter one.
static int draft_init(gpt2_sp_generator* x, gpt2_sp* draft) {
    const Shape* s = &x->g->mesh.shape;
    x->draft_capacity = min_i64(x->capacity, draft->mesh.shape.T);
    if (x->prompt_count > x->draft_capacity) return 0;
    x->share = (double*)calloc((size_t)s->V, sizeof *x->share);
    Candidate* all = (Candidate*)malloc((size_t)(GPT2_SP_DRAFT_TOKENS * s->V) * sizeof *all);
    x->proposed[0].candidates = all;
    if (!x->share || !all) return fail_as(GPT2_SP_NO_MEMORY, &x->g->error, "out of memory");
    for (int i = 1; i < GPT2_SP_DRAFT_TOKENS; i++) x->proposed[i].candidates = all + i * s->V;
    x->draft = draft, x->draft_step = draft->step;
    threads_use(draft->mesh.threads);
    x->draft_decoder = draft->device->decoder_open(draft, x->draft_capacity);
    if (x->draft_decoder) return draft_reads(x, x->prompt_count);
    x->g->error = draft->error;
    return -1;
}

// Takes a generator's memory and has the prompt read. x->text is what frees it all when that fails.
static int generator_init(gpt2_sp_generator* x, gpt2_sp* draft, const int32_t* prompt) {
    gpt2_sp* g = x->g;
    const Shape* s = &g->mesh.shape;
    x->text = (int32_t*)malloc((size_t)x->capacity * sizeof *x->text);
    x->seen = (int32_t*)malloc((size_t)s->V * sizeof *x->seen);
    x->prompt_logits = (real*)malloc((size_t)s->Vp * sizeof *x->logits);
    x->logits = (real*)malloc((size_t)(FEW_ROWS * s->Vp) * sizeof *x->logits);
    x->next.candidates = (Candidate*)malloc((size_t)s->V * sizeof(Candidate));
    if (!x->text || !x->seen || !x->prompt_logits || !x->logits || !x->next.candidates)
        return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    memcpy(x->text, prompt, (size_t)x->prompt_count * sizeof *prompt);
    threads_use(g->mesh.threads);
    x->decoder = g->device->decoder_open(g, x->capacity);
    if (!x->decoder) return -1;
    double start = now_ms();
    if (generator_read(x, x->prompt_count, 0, 1, x->prompt_logits) != 0) return -1;
    if (draft && draft_init(x, draft) != 0) return -1;
    x->stats.prompt_ms = now_ms() - start;
    return 0;
}

// See the header.
// -1 unless the prompt and `count` more tokens are the model's and fit in its context.
static int prompt_check(
    gpt2_sp* g, gpt2_sp* draft, const int32_t* prompt, int64_t prompt_count, int64_t count) {
    const Shape* s = &g->mesh.shape;
    int status = prompt ? 0 : fail(&g->error, "there is no prompt to continue");
    if (status == 0 && (prompt_count < 1 || count < 0 || count > s->T - prompt_count))
        status = fail(&g->error, "a prompt of %lld tokens and %lld more: the context holds 1 to %lld in all",
            (long long)prompt_count, (long long)count, (long long)s->T);
    for (int64_t i = 0; status == 0 && i < prompt_count; i++)
        if (prompt[i] < 0 || prompt[i] >= s->V)
            status = fail(&g->error, "token %lld of the prompt is %d, expected 0 to %lld", (long long)i,
                prompt[i], (long long)s->V - 1);
    if (status != 0) return failed_as(GPT2_SP_INVALID, &g->error);
    return draft && draft_check(g, draft) != 0 ? failed_as(GPT2_SP_MISMATCH, &g->error) : 0;
}
gpt2_sp_generator* gpt2_sp_generator_open(
    gpt2_sp* g, gpt2_sp* draft, const int32_t* prompt, int64_t prompt_count, int64_t count) {
    Host host;
    if (trainer_enter(g, &host) != 0) return NULL;
    gpt2_sp_generator* x = NULL;
    int status = prompt_check(g, draft, prompt, prompt_count, count);
    if (status == 0 && !(x = (gpt2_sp_generator*)calloc(1, sizeof *x)))
        status = fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    if (x) {
        x->g = g, x->step = g->step;
        x->prompt_count = x->stats.prompt = prompt_count, x->capacity = prompt_count + count;
        status = generator_init(x, draft, prompt);
        if (status != 0) generator_free(x), x = NULL;
    }
    trainer_leave(g, &host, status);
    return x;
}

// What token i of the continuation is drawn from, by the model's logits or the draft's.
static int generator_distribution(
    gpt2_sp_generator* x, Distribution* d, const real* logits, const gpt2_sp_sampling* how) {
    const int32_t* seen = how->repetition_penalty == 1 ? NULL : x->seen;
    if (distribution_make(d, logits, x->g->mesh.shape.V, how, seen) == 0) return 0;
    return fail(&x->g->error, "the model's logits are not finite: its weights are damaged");
}

// Notes in the text that token i was drawn, and tells the caller. 1 if the continuation ends with it.
static int generator_take(gpt2_sp_generator* x, int64_t i, int32_t token, const gpt2_sp_sampling* how) {
    x->text[x->prompt_count + i] = token;
    x->seen[token]++;
    if (!how->token) return 0;
    const Host own = host_lend(&x->g->report.program);
    int ends = how->token(how->user, token) != 0;
    host_leave(&own);
    return ends;
}

// The draft proposes up to `most` tokens, from token `made` of the continuation on: into the text, and what
// they were drawn from into proposed[]. Their number, or -1. It reads all but the last of them itself.
static int64_t generator_propose(
    gpt2_sp_generator* x, int64_t made, int64_t most, const gpt2_sp_sampling* how) {
    int64_t n = x->prompt_count + made, k = 0;
    int status = 0, ended = 0;
    if (!x->draft) return 0;
    most = min_i64(most, x->draft_capacity - n + 1);
    while (k < most && status == 0 && !ended) {
        status = draft_reads(x, n + k);
        if (status == 0) status = generator_distribution(x, &x->proposed[k], x->logits, how);
        if (status != 0) break;
        int32_t token = distribution_draw(&x->proposed[k], sampling_unit(how, UNIT_PROPOSE, made + k));
        x->text[n + k++] = token;
        x->seen[token]++;
        ended = token == x->g->eot;
    }
    for (int64_t i = 0; i < k; i++) x->seen[x->text[n + i]]--;   // nothing is drawn yet
    return status == 0 ? k : -1;
}

// Draws token `made` of the continuation from x->next. `q`: from what the draft proposed the one that stands
// at its place in the text; NULL: it proposed none. *accepted: whether the token is that.
static int32_t generator_choose(
    gpt2_sp_generator* x, int64_t made, const Distribution* q, const gpt2_sp_sampling* how, int* accepted) {
    double unit = sampling_unit(how, UNIT_DRAW, made);
    *accepted = 0;
    if (!q) return distribution_draw(&x->next, unit);
    int32_t proposal = x->text[x->prompt_count + made];
    *accepted = sampling_unit(how, UNIT_ACCEPT, made) * distribution_share(q, proposal) <
        distribution_share(&x->next, proposal);
    return *accepted ? proposal : distribution_draw_rest(&x->next, q, x->share, unit);
}

// Draws token after token until the end of a document, the caller's, or `count`; how many, or -1. A round
// reads the last token and k proposals. The first token needs no reading. With a draft the first PLAIN_ROUNDS
// of continuation 0 do without it, so that its speed can be told.
enum { PLAIN_ROUNDS = 3 };
static int64_t generator_draw(gpt2_sp_generator* x, int64_t count, const gpt2_sp_sampling* how) {
    const int64_t V = x->g->mesh.shape.V, Vp = x->g->mesh.shape.Vp;
    int64_t made = 0;
    int ended = 0;
    memset(x->seen, 0, (size_t)V * sizeof *x->seen);
    for (int64_t i = 0; i < x->prompt_count; i++) x->seen[x->text[i]]++;
    x->draft_read = min_i64(x->draft_read, x->prompt_count);
    while (made < count && !ended) {
        const int64_t last = x->prompt_count + made - 1;
        const int plain = made > 0 && x->draft && how->continuation == 0 && made <= PLAIN_ROUNDS;
        const double start = now_ms();
        int64_t most = made > 0 && !plain ? min_i64(how->draft_tokens, count - made - 1) : 0;
        int64_t k = generator_propose(x, made, most, how);
        if (k < 0 || (made > 0 && generator_read(x, k + 1, last, k + 1, x->logits) != 0)) return -1;
        const real* logits = made > 0 ? x->logits : x->prompt_logits;
        x->stats.passes += made > 0, x->stats.drafted += k;
        for (int64_t i = 0, accepted = 1; i <= k && accepted && !ended; i++) {
            int took;
            if (generator_distribution(x, &x->next, logits + i * Vp, how) != 0) return -1;
            int32_t token = generator_choose(x, made, i < k ? &x->proposed[i] : NULL, how, &took);
            accepted = took, x->stats.accepted += took;
            if (token == x->g->eot) ended = 1;
            else ended = generator_take(x, made++, token, how);
        }
        x->draft_read = min_i64(x->draft_read, x->prompt_count + made - 1);
        const double ms = now_ms() - start;
        if (plain && (x->stats.plain_ms == 0 || ms < x->stats.plain_ms)) x->stats.plain_ms = ms;
    }
    return made;
}

// See the header.
// Continues the prompt into out: what gpt2_sp_generator_run does between enter and leave.
static int64_t generator_run(
    gpt2_sp_generator* x, int32_t* out, int64_t count, const gpt2_sp_sampling* how, Error* e) {
    gpt2_sp_sampling asked;
    if (!out && count > 0) return fail_as(GPT2_SP_INVALID, e, "there is no room for tokens");
    if (count < 0 || count > x->capacity - x->prompt_count)
        return fail_as(GPT2_SP_INVALID, e, "%lld tokens: the generator has room for 0 to %lld",
            (long long)count, (long long)(x->capacity - x->prompt_count));
    if (x->step != x->g->step || (x->draft && x->draft_step != x->draft->step))
        return fail_as(
            GPT2_SP_INVALID, e, "a model has made a step since it read the prompt: open another generator");
    if (sampling_asked(&asked, how, e) != 0) return -1;
    double start = now_ms();
    int64_t made = generator_draw(x, count, &asked);
    x->stats.tokens += max_i64(made, 0), x->stats.ms += now_ms() - start;
    if (made > 0) memcpy(out, x->text + x->prompt_count, (size_t)made * sizeof *out);
    return made;
}
int64_t gpt2_sp_generator_run(
    gpt2_sp_generator* x, int32_t* out, int64_t count, const gpt2_sp_sampling* how) {
    Host host;
    if (!x || trainer_enter(x->g, &host) != 0) return GPT2_SP_INVALID;
    return trainer_leave(x->g, &host, generator_run(x, out, count, how, &x->g->error));
}

// See the header.
int gpt2_sp_generator_stats(const gpt2_sp_generator* x, gpt2_sp_generated* stats) {
    Error* e = x ? &x->g->error : NULL;
    if (!x) return GPT2_SP_INVALID;
    const size_t least = KNOWN_UP_TO(gpt2_sp_generated, accepted);
    return struct_give(stats, &x->stats, sizeof x->stats, least, "gpt2_sp_generated", e) == 0 ? 0 : e->code;
}
void gpt2_sp_generator_close(gpt2_sp_generator* x) {
    Host host = host_enter();
    generator_free(x);
    host_leave(&host);
}

// See the header.
int64_t gpt2_sp_generate(gpt2_sp* g, const int32_t* prompt, int64_t prompt_count, int32_t* out, int64_t count,
    const gpt2_sp_sampling* how) {
    gpt2_sp_sampling asked;
    if (!g) return GPT2_SP_INVALID;
    if (sampling_asked(&asked, how, &g->error) != 0) return g->error.code;   // before the prompt is read
    gpt2_sp_generator* x = gpt2_sp_generator_open(g, NULL, prompt, prompt_count, count);
    int64_t made = x ? gpt2_sp_generator_run(x, out, count, how) : g->error.code;
    gpt2_sp_generator_close(x);
    return made;
}

// --- losses and logits of the program's tokens ---

// The program's tokens, as one document, and where its losses go.
typedef struct {
    const int32_t* tokens;   // (count)
    int64_t count;
    float* losses;   // (count - 1)
} LossesJob;
enum { LOSSES_SHARED = 1 << 16 };   // that ranks share at a time

// A job: every replica reads the tokens as its first sequence; the others of the batch have no labels.
static int rank_losses(Rank* r, gpt2_sp* g, void* argument) {
    const LossesJob* job = (const LossesJob*)argument;
    const RankBatch* batch = &r->batches[2];
    const Shape* shape = &r->mesh->shape;
    const Segments* seg = &r->segments;
    double* shared = (double*)malloc(LOSSES_SHARED * sizeof *shared);
    if (!shared) return fail_as(GPT2_SP_NO_MEMORY, &r->error, "out of memory for losses");
    for (int64_t b = 0, row = 0; b < shape->B; b++)
        for (int s = 0; s < seg->count; s++)
            for (int64_t t = seg->begin[s]; t < seg->begin[s] + seg->rows[s]; t++, row++) {
                batch->tokens[row] = t < job->count ? job->tokens[t] : 0;
                batch->labels[row] = b == 0 && t + 1 < job->count ? job->tokens[t + 1] : -1;
                if (batch->positions) batch->positions[row] = (int32_t)t;
            }
    if (r->mesh->doc_mask) memset(batch->doc_start, 0, (size_t)(shape->B * shape->T) * sizeof(int32_t));
    int status = rank_read(r, g, NULL);
    for (int64_t at = 0; status == 0 && at < job->count - 1; at += LOSSES_SHARED) {
        int64_t n = min_i64(LOSSES_SHARED, job->count - 1 - at);
        memset(shared, 0, (size_t)n * sizeof *shared);
        for (int64_t s = 0, row = 0; s < seg->count; row += seg->rows[s], s++)
            for (int64_t t = max_i64(at, seg->begin[s]); t < min_i64(at + n, seg->begin[s] + seg->rows[s]);
                 t++)
                shared[t - at] = (double)r->token_loss[row + t - seg->begin[s]];
        status = r->transport.all_reduce(&r->transport, &r->sequence, shared, (int)n, &r->error);
        for (int64_t i = 0; status == 0 && r->world_rank == r->mesh->first_rank && i < n; i++)
            job->losses[at + i] = (float)shared[i];
    }
    free(shared);
    return status;
}

// -1, with a line, unless so many tokens are given, all of the vocabulary, and a place for what is told of
// them.
static int tokens_given(
    gpt2_sp* g, const int32_t* tokens, int64_t count, int64_t least, int64_t most, const void* out) {
    if (!tokens || !out)
        return fail_as(GPT2_SP_INVALID, &g->error, "tokens are needed, and a place for what is told of them");
    if (count < least || count > most)
        return fail_as(GPT2_SP_INVALID, &g->error, "%lld tokens, expected %lld to %lld", (long long)count,
            (long long)least, (long long)most);
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= g->mesh.shape.V)
            return fail_as(GPT2_SP_INVALID, &g->error, "token %lld is %d, expected 0 to %lld", (long long)i,
                tokens[i], (long long)g->mesh.shape.V - 1);
    return 0;
}

// See the header, for both.
int gpt2_sp_losses(gpt2_sp* g, const int32_t* tokens, int64_t count, float* losses) {
    LossesJob job = {tokens, count, losses};
    char text[64] = "";
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    int heard = g->report.call != NULL,
        status = tokens_given(g, tokens, count, 2, g->mesh.shape.T + 1, losses);
    if (status == 0)
        snprintf(text, sizeof text, "%lld tokens, CRC %08x", (long long)count,
            tok_crc(0, (const unsigned char*)tokens, (uint64_t)count * sizeof *tokens));
    status = processes_agree(&g->host, status, &heard, &g->error);
    if (status == 0 && processes_compare(&g->host, "comparing tokens", text, &g->error) != 0)
        status = failed_as(GPT2_SP_MISMATCH, &g->error);
    report_begin(g, heard, GPT2_SP_IN_READING, 1, g->mesh.shape.L);
    if (status == 0) status = ranks_run(g, rank_losses, &job);
    report_end(g);
    return (int)trainer_leave(g, &host, status);
}

// Reads tokens with a decoder and copies the logits (rows, V) behind `first` and those after it.
static int logits_read(
    gpt2_sp* g, const int32_t* tokens, int64_t first, int64_t rows, real* logits, float* out) {
    const int64_t V = g->mesh.shape.V, Vp = g->mesh.shape.Vp;
    void* decoder = g->device->decoder_open(g, first + rows);
    int status = decoder ? 0 : -1;
    if (status == 0 && first > 0) status = g->device->decoder_read(decoder, tokens, first, 0, 1, logits);
    for (int64_t at = 0, n; status == 0 && at < rows; at += n) {
        n = min_i64(FEW_ROWS, rows - at);
        status = g->device->decoder_read(decoder, tokens + first + at, n, first + at, n, logits);
        for (int64_t i = 0; status == 0 && i < n; i++)
            for (int64_t v = 0; v < V; v++) out[(at + i) * V + v] = (float)logits[i * Vp + v];
    }
    if (decoder) g->device->decoder_close(decoder);
    return status;
}
int gpt2_sp_logits(
    gpt2_sp* g, const int32_t* tokens, int64_t count, int64_t first, int64_t rows, float* out) {
    Host host;
    if (trainer_enter(g, &host) != 0) return GPT2_SP_INVALID;
    threads_use(g->mesh.threads);
    int status = tokens_given(g, tokens, count, 1, g->mesh.shape.T, out);
    if (status == 0 && (first < 0 || rows < 1 || first > count - rows))
        status =
            fail_as(GPT2_SP_INVALID, &g->error, "logits of %lld tokens from token %lld on: there are %lld",
                (long long)rows, (long long)first, (long long)count);
    size_t bytes = (size_t)(FEW_ROWS * g->mesh.shape.Vp) * sizeof(real);
    real* logits = status == 0 ? (real*)malloc(bytes) : NULL;
    if (status == 0 && !logits) status = fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory for logits");
    if (status == 0) status = logits_read(g, tokens, first, rows, logits, out);
    free(logits);
    return (int)trainer_leave(g, &host, status);
}

// ===== 13. plan =================================================================================
//
// What a step will cost, before anything runs: memory by the walk that will take it (section 6), time from
// the shapes and from rates measured here. Attention's time is that of its table, played by a clock
// (schedule_play):
//
//     products       FLOPs of the busiest rank / rate                 gradients    bytes / link
//     attention      ops and messages of the table, which overlap     step         the sum

// What one rank measures, while others do the same: milliseconds of a matrix product, of copying a matrix,
// and of attention. The fastest of a few runs counts, as other work on the machine only makes one slower.
typedef struct {
    int threads;
    int64_t HS;
    pthread_mutex_t* made;      // held until it is known how many ranks there are,
    const int* leave;           // or that there will be no barrier
    pthread_barrier_t* start;   // of each run, so that all ranks do the same at a time
    double product, copy, attention;
    int status;   // -1: no memory
} RateTrial;
enum { TRIAL_SIZE = 768, TRIAL_ROWS = 1024 };   // of the square matrices; of a head of attention

// Attention of one head for each thread, forward and backward. memory: heads times q, k, v, O, dO, dq, dk, dv
// (T, HS), m, l, delta (T).
static void attention_trial(real* memory, Scratch* scratch, int64_t heads, int64_t HS) {
    const int64_t T = TRIAL_ROWS, head = T * HS;
    PARALLEL_STATIC
    for (int64_t h = 0; h < heads; h++) {
        real *q = memory + h * (8 * head + 3 * T), *o = q + 3 * head, *dq = o + 2 * head, *m = dq + 3 * head,
             *l = m + T;
        for (int64_t j = 0; j < T; j++) m[j] = -(real)INFINITY, l[j] = 0;
        AttentionPair pair = {q, q + head, q + 2 * head, T, T, HS, 0, 0, NULL};
        cpu_attention_forward_head(o, m, l, &pair, &scratch[h].attention);
        output_finish(o, m, l, T, HS);
        cpu_attention_backward_head(
            dq, dq + head, dq + 2 * head, &pair, o + head, m, l + T, &scratch[h].attention);
    }
}

static void* rate_trial(void* argument) {
    RateTrial* t = (RateTrial*)argument;
    const int64_t n = TRIAL_SIZE, heads = t->threads, head = TRIAL_ROWS * t->HS,
                  all = heads * (8 * head + 3 * TRIAL_ROWS);
    real* memory = (real*)calloc((size_t)max_i64(3 * n * n, all), sizeof(real));
    Scratch* scratch =
        (Scratch*)aligned_alloc(64, (size_t)round_up((int64_t)sizeof *scratch, 64) * (size_t)heads);
    t->status = memory && scratch ? 0 : -1;
    t->product = t->copy = t->attention = 1e30;
    for (int64_t i = 0; t->status == 0 && i < 2 * n * n; i++)
        memory[i] = (real)random_normal(1, 2, (uint64_t)i);
    threads_use(t->threads);
    pthread_mutex_lock(t->made);
    int leave = *t->leave;
    pthread_mutex_unlock(t->made);
    for (int i = 0; i < 8 && !leave; i++) {
        pthread_barrier_wait(t->start);
        if (t->status != 0) continue;
        if (i == 4) memset(memory, 0, (size_t)all * sizeof(real));
        double start = now_ms();
        if (i < 4) {
            cpu_matmul_forward(memory + 2 * n * n, memory, memory + n * n, NULL, n, n, n, scratch);
            t->product = fmin(t->product, now_ms() - start);
            start = now_ms();
            memcpy(memory + n * n, memory + 2 * n * n, (size_t)(n * n) * sizeof(real));
            t->copy = fmin(t->copy, now_ms() - start);
        } else {
            attention_trial(memory, scratch, heads, t->HS);
            t->attention = fmin(t->attention, now_ms() - start);
        }
    }
    free(memory);
    free(scratch);
    return NULL;
}

// The CPU's Device.rates: as many ranks as the machine has cores for measure at once, since they share its
// memory. -1, with a line: no memory or no threads for that.
static int measure_rates(Rates* rates, const Mesh* mesh, Error* e) {
    int64_t room = max_i64(1, usable_cores(NULL) / mesh->threads);
    int most = (int)min_i64(min_i64(mesh->world, room), 64), ranks = 0, status = 0, leave = 0;
    RateTrial trials[64];
    pthread_t threads[64];
    pthread_mutex_t made = PTHREAD_MUTEX_INITIALIZER;
    pthread_barrier_t start;
    double n = TRIAL_SIZE, product = 0, copy = 0, attention = 0;
    pthread_mutex_lock(&made);
    for (; ranks < most; ranks++) {
        RateTrial t = {mesh->threads, mesh->shape.HS, &made, &leave, &start, 0, 0, 0, 0};
        trials[ranks] = t;
        if (pthread_create(&threads[ranks], NULL, rate_trial, &trials[ranks]) != 0) break;
    }
    leave = ranks == 0 || pthread_barrier_init(&start, NULL, (unsigned)ranks) != 0;
    pthread_mutex_unlock(&made);
    for (int i = 0; i < ranks; i++) {
        pthread_join(threads[i], NULL);
        status |= trials[i].status;
        product += trials[i].product / ranks, copy += trials[i].copy / ranks;
        attention += trials[i].attention / ranks;
    }
    if (leave) return fail_as(GPT2_SP_INVALID, e, "cannot start threads to measure rates");
    pthread_barrier_destroy(&start);
    if (status != 0)
        return fail_as(GPT2_SP_NO_MEMORY, e,
            "out of memory for measuring rates: give --gflops, --link-gbs and --copy-gbs");
    rates->ranks = ranks;
    rates->gflops = 2e-6 * n * n * n / product;
    rates->link_gbs = rates->copy_gbs = 1e-6 * n * n * sizeof(real) / copy;
    // 3.5: forward, and backward, which is 2.5 forwards
    rates->attention_gflops =
        3.5 * 2e-6 * mesh->threads * (double)TRIAL_ROWS * TRIAL_ROWS * (double)mesh->shape.HS / attention;
    return 0;
}

// "1.50 GiB" in out, which it returns.
static const char* human_bytes(double bytes, char* out, size_t size) {
    static const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) bytes /= 1024, unit++;
    snprintf(out, size, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
    return out;
}

// The plan's table: what is asked for, and the memory of the rank that needs most.
static void memory_print(
    FILE* out, const Mesh* mesh, const Layout* layout, const gpt2_sp_options* o, const Arena* fullest) {
    const Shape* s = &mesh->shape;
    char text[32];
    fprintf(out,
        "%lld layers, %lld heads, %lld channels, context %lld, batch %lld: %.2fM parameters; dp %d x sp %d, "
        "schedule %s, "
        "recompute %s, zero %d\n\nmemory of the fullest rank\n",
        (long long)s->L, (long long)s->NH, (long long)s->C, (long long)s->T, (long long)s->B,
        (double)layout->parameters / 1e6, mesh->dp, mesh->sp, schedule_name(o->schedule),
        recompute_name(mesh->recompute), mesh->zero);
    for (int i = 0; i < MEMORY_GROUP_COUNT; i++)
        fprintf(out, "  %-20s %12s\n", MEMORY_NAMES[i],
            human_bytes((double)fullest->group[i], text, sizeof text));
    fprintf(out, "  %-20s %12s\n", "total", human_bytes((double)fullest->used, text, sizeof text));
}

// What one run of a table costs, for one layer of one sequence.
typedef struct {
    double seconds, work_seconds;   // projected: of the run, and of the busiest rank's computing alone
    double units;                   // of the busiest rank
    double bytes;                   // sent by a rank on average
} TableCost;

// item_bytes: bytes on the wire of each item of T / P rows with all heads. Returns the seconds of a pair of
// two such chunks.
static double item_costs(double item_bytes[ITEM_KINDS], const Shape* s, int P, int backward,
    const Device* device, const Rates* rates) {
    double rows = (double)s->T / P, chunk = rows * (double)s->C;
    for (int i = 0; i < ITEM_KINDS; i++)
        item_bytes[i] = chunk * item_width(i) * device->item_bytes[i] +
            rows * (double)s->NH * item_stats(i) * sizeof(real);
    return 4 * rows * chunk * (backward ? 2.5 : 1) / (rates->attention_gflops * 1e9);   // QK^T and PV
}

// What a table costs; its slots need not be worked out. A result that arrives is added, which reads two
// numbers and writes one: 3 times its bytes.
static int table_play(
    TableCost* c, const Shape* s, const Schedule* table, const Device* device, const Rates* rates, Error* e) {
    double item_bytes[ITEM_KINDS],
        unit_seconds = item_costs(item_bytes, s, table->P, table->backward, device, rates);
    size_t ops = (size_t)table->op_count, messages = (size_t)table->message_count;
    double* seconds = (double*)calloc(ops + 2 * messages + (size_t)table->P + 1, sizeof *seconds);
    memset(c, 0, sizeof *c);
    for (size_t i = 0; seconds && i < ops; i++) {
        double units = op_units(table, &table->ops[i]),
               *rank = &seconds[ops + 2 * messages + (size_t)table->ops[i].rank];
        seconds[i] = units * unit_seconds;
        *rank += units, c->units = fmax(c->units, *rank);
    }
    for (size_t i = 0; seconds && i < messages; i++) {
        Item item = table->messages[i].item;
        double bytes = item_bytes[item.kind] * (item.h1 - item.h0) / table->head_parts;
        seconds[ops + i] = bytes / (rates->link_gbs * 1e9), c->bytes += bytes / table->P;
        if (item_is_result(item.kind)) seconds[ops + messages + i] = 3 * bytes / (rates->copy_gbs * 1e9);
    }
    c->work_seconds = c->units * unit_seconds;
    c->seconds = seconds ? schedule_play(table, seconds, seconds + ops, seconds + ops + messages) : -1;
    free(seconds);
    return c->seconds < 0
        ? fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a schedule of %d ranks", table->P)
        : 0;
}

// What a kind's table costs for P ranks, which may be more than a run can have. -1 where there is no such
// table.
static int table_project(TableCost* c, const Shape* s, int kind, int P, int backward, const Device* device,
    const Rates* rates, Error* e) {
    Schedule table;
    // ulysses, by a formula, as its table has some P^3 / 2 ops: all ranks alike take in everything of some
    // heads, do all pairs of them, and send the results out
    if (SCHEDULES[kind].head_parts == 0 && s->NH % P == 0) {
        double bytes[ITEM_KINDS], unit_seconds = item_costs(bytes, s, P, backward, device, rates),
                                  share = (P - 1.0) / P;
        double in = share * (bytes[ITEM_KV] + bytes[backward ? ITEM_QDO : ITEM_Q]);
        double out = share * (backward ? bytes[ITEM_DQ] + bytes[ITEM_DKV] : bytes[ITEM_OUT]);
        c->units = P / 2.0, c->work_seconds = c->units * unit_seconds;
        c->bytes = in + out;
        c->seconds = c->work_seconds + c->bytes / (rates->link_gbs * 1e9) + 3 * out / (rates->copy_gbs * 1e9);
        return 0;
    }
    if (schedule_outline(&table, kind, P, backward, s->NH, e) != 0) return -1;
    int status = table_play(c, s, &table, device, rates, e);
    schedule_free(&table);
    return status;
}

// How ranks share the sequences of a step.
typedef struct {
    int dp, sp;
    int64_t batch, passes;   // sequences of a replica: batch x passes
} Split;

// What a step costs one rank, from the shapes alone.
typedef struct {
    double tokens;                            // of all ranks
    double matmul_flops, attention_flops;     // of the busiest rank, recomputation included
    double attention_bytes, gradient_bytes;   // sent by a rank on average
    double seconds, attention_seconds;        // projected
    double exposed_seconds;                   // of attention's: more than the busiest rank's computing
} StepCost;

// What a step of a split costs. Of the mesh only the shape and --recompute count, not its ranks.
static int step_cost(StepCost* cost, const Mesh* mesh, const Layout* layout, Split split, int kind,
    const Rates* rates, Error* e) {
    const Shape* s = &mesh->shape;
    memset(cost, 0, sizeof *cost);
    double W = (double)split.dp * split.sp, sequences = (double)(split.passes * split.batch),
           word = sizeof(real);
    double rows = (double)s->T / split.sp, layers = sequences * (double)s->L;
    double layer = 2.0 * rows * 12 * (double)(s->C * s->C), head = 2.0 * rows * (double)(s->C * s->Vp);
    // what runs again in the backward pass: all of a layer but the last projection, or nothing
    double again = activation_kept(A_fch, mesh->recompute) ? 0 : 8.0 / 12,
           attention_runs = activation_kept(A_atty, mesh->recompute) ? 1 : 2;
    cost->tokens = sequences * split.dp * (double)s->T;
    cost->matmul_flops = layers * layer * (3 + again) + sequences * 3 * head;
    for (int d = 0; d < 2; d++) {
        TableCost table;
        double runs = layers * (d ? 1 : attention_runs);
        if (table_project(&table, s, kind, split.sp, d, mesh->device, rates, e) != 0) return -1;
        cost->attention_flops += runs * table.units * (d ? 2.5 : 1) * 4 * rows * rows * (double)s->C;
        cost->attention_bytes += runs * table.bytes;
        cost->attention_seconds += runs * table.seconds,
            cost->exposed_seconds += runs * (table.seconds - table.work_seconds);
    }
    double shared = 0;   // numbers that are summed over the ranks
    for (int u = 0; u < layout->count; u++)
        if (holding(layout, STATE_WEIGHTS, u) != HELD_OWN)
            shared += (double)(layout->units[u].slice * mesh->world);
    double model = shared * word * (W - 1) / W;
    double scatters = layout->sharded[STATE_GRADIENTS] ? (double)split.passes : 1,
           gathers = layout->sharded[STATE_WEIGHTS] ? 2 * (double)split.passes : 1;
    cost->gradient_bytes = model * (scatters + gathers);
    cost->seconds = cost->matmul_flops / (rates->gflops * 1e9) + cost->attention_seconds +
        cost->gradient_bytes / (rates->link_gbs * 1e9);
    return 0;
}

// The rates of one of W ranks: those that the options give, else those that were measured, shared where there
// are more ranks than were measured at once. --gflops stands for --attention-gflops too. Without --threads
// a rank has all cores that the others leave.
static Rates rates_of(const gpt2_sp_options* o, const Rates* measured, int W) {
    double share = measured->ranks > 0 ? (double)measured->ranks / W : 1, compute = share,
           memory = fmin(1, share);
    if (o->threads) compute = memory;
    Rates r = {measured->gflops * compute, measured->attention_gflops * compute, measured->link_gbs * memory,
        measured->copy_gbs * memory, 0};
    if (o->gflops > 0) r.gflops = r.attention_gflops = o->gflops;
    if (o->attention_gflops > 0) r.attention_gflops = o->attention_gflops;
    if (o->link_gbs > 0) r.link_gbs = o->link_gbs;
    if (o->copy_gbs > 0) r.copy_gbs = o->copy_gbs;
    return r;
}

// Everything that `plan` says.
enum { PLAN_SPLITS = 64, PLAN_RANKS = 9, PLAN_MOST_RANKS = 256 };   // ranks: as many as --sp takes
typedef struct {
    Split split;
    StepCost cost;
    size_t bytes;   // of the fullest rank; 0: the split is not possible
    int possible;   // it is, and it fits
} PlanSplit;
typedef struct {
    const Mesh* mesh;
    const Layout* layout;
    Rates measured, rates;   // rates: of a rank of the asked mesh
    Arena fullest;
    StepCost cost;
    double memory;                   // bytes that a rank may take
    int64_t longest;                 // context that fits
    PlanSplit splits[PLAN_SPLITS];   // of as many ranks into dp x sp
    int split_count, asked, best;
    // Numbers of ranks (P) for which the asked schedule, length and dp are projected, and the cost at each.
    int ranks[PLAN_RANKS], rank_count;
    StepCost at[PLAN_RANKS];
} Plan;

// Adds a split of the same ranks to the plan. The sequences of a step are shared out evenly among its
// replicas, at least one to each; in passes of the asked batch if that divides them, else one by one.
static void split_project(Plan* plan, const gpt2_sp_options* options, int64_t vocab, int sp) {
    PlanSplit* p = &plan->splits[plan->split_count];
    int dp = plan->mesh->world / sp;
    int64_t sequences = ceil_div(options->dp * options->batch_size * options->grad_accum, dp);
    int64_t batch = sequences % options->batch_size == 0 ? options->batch_size : 1;
    gpt2_sp_options o = *options;
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    Error e;
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    memset(p, 0, sizeof *p);
    p->split.dp = dp, p->split.sp = sp;
    p->split.batch = batch, p->split.passes = sequences / batch;
    if (sp == options->sp)
        p->split.batch = options->batch_size, p->split.passes = options->grad_accum,
        plan->asked = plan->split_count;
    o.dp = dp, o.sp = sp;
    o.batch_size = p->split.batch, o.grad_accum = p->split.passes;
    if (mesh_init(&mesh, schedules, &o, vocab, 1, plan->mesh->device, &e) == 0 &&
        layout_init(&layout, &mesh, &e) == 0 &&
        step_cost(&p->cost, &mesh, &layout, p->split, o.schedule, &plan->rates, &e) == 0) {
        p->bytes = fullest_rank(&mesh, &layout).used;
        p->possible = (double)p->bytes <= plan->memory;
    }
    free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    plan->split_count++;
}

// Tokens per second.
static double plan_speed(const StepCost* c) { return c->tokens / c->seconds; }

// Fills in the plan's projections: all splits of the asked ranks, the fastest of them that fits, and the
// asked schedule at other numbers of ranks.
static void plan_project(Plan* plan, const gpt2_sp_options* o, int64_t vocab) {
    int world = plan->mesh->world;
    for (int sp = 1; sp <= 256 && sp <= world && plan->split_count < PLAN_SPLITS; sp++)
        if (world % sp == 0 && world / sp <= 256) split_project(plan, o, vocab, sp);
    plan->best = plan->asked;
    for (int i = 0; i < plan->split_count; i++) {
        const PlanSplit *best = &plan->splits[plan->best], *p = &plan->splits[i];
        // another split must be faster than the asked one by a hundredth, and must fit
        double least = best->possible ? plan_speed(&best->cost) * (plan->best == plan->asked ? 1.01 : 1) : 0;
        if (p->possible && plan_speed(&p->cost) > least) plan->best = i;
    }
    int64_t per = schedule_two_chunks(o->schedule) ? 2 : 1;
    for (int P = 1; P <= PLAN_MOST_RANKS && P * per <= o->seq_len; P *= 2) {
        Error e;
        Split split = {(int)o->dp, P, o->batch_size, o->grad_accum};
        Rates rates = rates_of(o, &plan->measured, (int)o->dp * P);
        plan->ranks[plan->rank_count] = P;
        if (step_cost(
                &plan->at[plan->rank_count], plan->mesh, plan->layout, split, o->schedule, &rates, &e) == 0)
            plan->rank_count++;
    }
}

// The plan as one JSON object.
static void plan_print_json(const Plan* plan, const gpt2_sp_options* o) {
    const Mesh* mesh = plan->mesh;
    const Shape* s = &mesh->shape;
    const StepCost* cost = &plan->cost;
    printf("{\"parameters\": %lld, \"layers\": %lld, \"heads\": %lld, \"channels\": %lld, \"seq_len\": %lld, "
           "\"n_positions\": %lld, \"batch_size\": "
           "%lld, \"dp\": %d, \"sp\": %d, \"zero\": %d, \"schedule\": \"%s\", \"recompute\": \"%s\", "
           "\"memory_bytes\": {",
        (long long)plan->layout->parameters, (long long)s->L, (long long)s->NH, (long long)s->C,
        (long long)s->T, (long long)s->N, (long long)s->B, mesh->dp, mesh->sp, mesh->zero,
        schedule_name(o->schedule), recompute_name(mesh->recompute));
    for (int i = 0; i < MEMORY_GROUP_COUNT; i++)
        printf("\"%s\": %zu, ", MEMORY_NAMES[i], plan->fullest.group[i]);
    printf("\"total\": %zu}, \"step\": {\"tokens\": %.0f, \"matmul_flops_per_rank\": %.6g, "
           "\"attention_flops_per_rank\": "
           "%.6g, \"attention_bytes_per_rank\": %.6g, \"gradient_bytes_per_rank\": %.6g, "
           "\"projected_seconds\": %.6g, "
           "\"projected_tok_per_s\": %.6g}, \"rates\": {\"gflops\": %.6g, \"attention_gflops\": %.6g, "
           "\"link_gbs\": %.6g, "
           "\"copy_gbs\": %.6g, \"measured_ranks\": %d}, \"longest_seq_len\": %lld, \"memory_limit_bytes\": "
           "%.0f",
        plan->fullest.used, cost->tokens, cost->matmul_flops, cost->attention_flops, cost->attention_bytes,
        cost->gradient_bytes, cost->seconds, plan_speed(cost), plan->rates.gflops,
        plan->rates.attention_gflops, plan->rates.link_gbs, plan->rates.copy_gbs, plan->measured.ranks,
        (long long)plan->longest, plan->memory);
    printf(", \"projected_splits\": [");
    for (int i = 0; i < plan->split_count; i++) {
        const PlanSplit* p = &plan->splits[i];
        printf("%s{\"dp\": %d, \"sp\": %d, \"batch_size\": %lld, \"grad_accum\": %lld, \"fits\": %s",
            i ? ", " : "", p->split.dp, p->split.sp, (long long)p->split.batch, (long long)p->split.passes,
            p->possible ? "true" : "false");
        if (p->bytes > 0)
            printf(", \"memory_bytes\": %zu, \"seconds\": %.6g, \"tok_per_s\": %.6g", p->bytes,
                p->cost.seconds, plan_speed(&p->cost));
        printf("}");
    }
    const PlanSplit* best = &plan->splits[plan->best];
    printf("], \"best_split\": {\"dp\": %d, \"sp\": %d, \"speedup\": %.6g}, \"projected_ranks\": [",
        best->split.dp, best->split.sp, plan_speed(&best->cost) / plan_speed(cost));
    for (int i = 0; i < plan->rank_count; i++) {
        const StepCost* c = &plan->at[i];
        printf("%s{\"sp\": %d, \"seconds\": %.6g, \"tok_per_s\": %.6g, \"attention_seconds\": %.6g, "
               "\"exposed_seconds\": %.6g, "
               "\"attention_bytes_per_rank\": %.6g}",
            i ? ", " : "", plan->ranks[i], c->seconds, plan_speed(c), c->attention_seconds,
            c->exposed_seconds, c->attention_bytes);
    }
    printf("]}\n");
}

// The splits of the ranks, a row each, and which to take.
static void plan_print_splits(const Plan* plan) {
    const PlanSplit *asked = &plan->splits[plan->asked], *best = &plan->splits[plan->best];
    char text[32];
    int least = 0;
    printf("\nthe same %d ranks split otherwise, projected\n    dp x sp   sequences       a rank      s a "
           "step     tokens/s\n",
        plan->mesh->world);
    for (int i = 0; i < plan->split_count; i++) {
        const PlanSplit* p = &plan->splits[i];
        printf("  %4d x %-4d %9lld", p->split.dp, p->split.sp,
            (long long)(p->split.dp * p->split.batch * p->split.passes));
        if (p->bytes == 0) printf("   no such schedule\n");
        else
            printf(" %12s  %12.4g %12.4g%s\n", human_bytes((double)p->bytes, text, sizeof text),
                p->cost.seconds, plan_speed(&p->cost), p->possible ? "" : "   does not fit");
        if (p->possible && !least) least = p->split.sp;
    }
    if (plan->best != plan->asked)
        printf("--dp %d --sp %d would %s%.2f x the tokens per second (projected)", best->split.dp,
            best->split.sp, asked->possible ? "give " : "fit, with ",
            plan_speed(&best->cost) / plan_speed(&asked->cost));
    else if (!asked->possible) printf("no split fits");
    else
        printf("no other split is faster than --dp %d --sp %d by a hundredth (projected)", best->split.dp,
            best->split.sp);
    if (best->cost.tokens > asked->cost.tokens)
        printf(", with %.0f sequences a step instead of %.0f",
            best->cost.tokens / (double)plan->mesh->shape.T,
            asked->cost.tokens / (double)plan->mesh->shape.T);
    if (least == 1) printf("; sequences of %lld fit one rank\n", (long long)plan->mesh->shape.T);
    else if (least > 1)
        printf("; sequences of %lld need --sp %d at least\n", (long long)plan->mesh->shape.T, least);
    else printf("\n");
}

// The plan as text.
static void plan_print(const Plan* plan, const gpt2_sp_options* o) {
    const Mesh* mesh = plan->mesh;
    const StepCost* cost = &plan->cost;
    char text[32];
    memory_print(stdout, mesh, plan->layout, o, &plan->fullest);
    printf("\na step of %.0f tokens\n  matrix products      %12.4g FLOP per rank\n  attention            "
           "%12.4g FLOP on the "
           "busiest rank\n",
        cost->tokens, cost->matmul_flops, cost->attention_flops);
    printf(
        "  attention's exchange %12s sent per rank\n", human_bytes(cost->attention_bytes, text, sizeof text));
    printf(
        "  state's exchange     %12s sent per rank\n", human_bytes(cost->gradient_bytes, text, sizeof text));
    printf("  projected            %12.4g s = %.4g tokens/s, at %.4g GFLOP/s per rank (attention %.4g), %.4g "
           "GB/s per link "
           "and %.4g GB/s of memory\n",
        cost->seconds, plan_speed(cost), plan->rates.gflops, plan->rates.attention_gflops,
        plan->rates.link_gbs, plan->rates.copy_gbs);
    if (plan->measured.ranks > 0)
        printf("                       measured here with %d rank%s at once; all ranks share this machine's "
               "%lld "
               "cores and its memory\n",
            plan->measured.ranks, plan->measured.ranks == 1 ? "" : "s", (long long)usable_cores(NULL));
    if (plan->split_count > 1) plan_print_splits(plan);
    printf("\nthe asked schedule on other numbers of ranks%s, projected from these rates (not measured; "
           "latencies are left out)\n"
           "   dp x P        s a step     tokens/s  speed-up  attention s  not overlapped  sent per rank\n",
        plan->measured.ranks > 0 ? " of this machine" : "");
    for (int i = 0; i < plan->rank_count; i++) {
        const StepCost* c = &plan->at[i];
        printf("  %3d x %-4d %12.4g %12.4g  %7.2fx %12.4g %14.1f%% %14s\n", mesh->dp, plan->ranks[i],
            c->seconds, plan_speed(c), plan_speed(c) / plan_speed(&plan->at[0]), c->attention_seconds,
            100 * c->exposed_seconds / c->attention_seconds,
            human_bytes(c->attention_bytes, text, sizeof text));
    }
    human_bytes(plan->memory, text, sizeof text);
    if (plan->longest == 0) printf("\nno context fits in %s per rank\n", text);
    else
        printf("\n%sthe longest context that fits in %s per rank: %lld\n",
            (double)plan->fullest.used > plan->memory ? "this does not fit; " : "", text,
            (long long)plan->longest);
}

// --- the plan as an SVG picture: memory by what it is for, beside it speed by the number of ranks ---

enum {
    PLAN_WIDTH = 1180,
    PLAN_HEIGHT = 420,
    PLAN_TOP = 96,
    PLAN_ROW = 26,
    PLAN_NAMES = 150,
    PLAN_BARS = 220
};
// The chart of speed: its place, and where its least value is.
enum { CHART_LEFT = 660, CHART_RIGHT = 1150, CHART_BOTTOM = 340, CHART_LEAST = CHART_BOTTOM - 24 };

// A row of the memory: a bar as long as its share of `most`, and the bytes as plan_print has them.
static void memory_bar(FILE* out, int row, const char* name, const char* kind, double bytes, double most) {
    char text[32], colour[8];
    const double y = PLAN_TOP + row * PLAN_ROW, length = most > 0 ? PLAN_BARS * bytes / most : 0;
    svg_colour(colour, row, MEMORY_GROUP_COUNT + 1);
    svg_text(out, 11, SVG_END, PLAN_NAMES, y + 13, "%s", name);
    svg_rect(out, kind, row < MEMORY_GROUP_COUNT ? colour : SVG_FAINT, PLAN_NAMES + 8, y, length, 17, NULL);
    svg_text(
        out, 11, SVG_START, PLAN_NAMES + 14 + length, y + 13, "%s", human_bytes(bytes, text, sizeof text));
}

// The speed of the asked schedule on other numbers of ranks against one of them, as plan_print has it, and
// what as many times the ranks would be at best. Both axes double at each mark.
static void plan_chart(const Plan* plan, FILE* out) {
    const int count = plan->rank_count;
    double most = 1, least = 0, x = 0, y = 0;   // doublings
    for (int i = 0; i < count; i++) {
        double doublings = log2(plan_speed(&plan->at[i]) / plan_speed(&plan->at[0]));
        most = fmax(most, ceil(fmax(doublings, log2(plan->ranks[i])))), least = fmin(least, floor(doublings));
    }
    const double across = (CHART_RIGHT - CHART_LEFT) / fmax(1, count - 1),
                 up = (CHART_LEAST - PLAN_TOP) / (most - least);
    for (double mark = least; mark <= most; mark++) {
        double at = CHART_LEAST - (mark - least) * up;
        svg_line(out, "grid", SVG_FAINT, CHART_LEFT, at, CHART_RIGHT, at);
        svg_text(out, 10, SVG_END, CHART_LEFT - 6, at + 4, "%g", exp2(mark));
    }
    for (int i = 0; i < count; i++)
        svg_text(out, 10, SVG_MIDDLE, CHART_LEFT + i * across, CHART_BOTTOM + 16, "%d", plan->ranks[i]);
    for (int ideal = 1; ideal >= 0; ideal--)
        for (int i = 0; i < count; i++) {
            double speedup = plan_speed(&plan->at[i]) / plan_speed(&plan->at[0]), before = x, last = y;
            x = CHART_LEFT + i * across;
            y = CHART_LEAST - ((ideal ? log2(plan->ranks[i]) : log2(speedup)) - least) * up;
            if (i > 0)
                svg_line(out, ideal ? "ideal" : "speed", ideal ? "#9aa3ad" : "#1f6fd1", before, last, x, y);
            if (ideal) continue;
            svg_rect(out, "point", "#1f6fd1", x - 3, y - 3, 6, 6, NULL);
            svg_text(out, 10, i ? SVG_MIDDLE : SVG_START, i ? x : x + 6, y + 16, "%.2fx", speedup);
        }
    svg_line(out, "axis", SVG_INK, CHART_LEFT, CHART_BOTTOM, CHART_RIGHT, CHART_BOTTOM);
    svg_line(out, "axis", SVG_INK, CHART_LEFT, PLAN_TOP, CHART_LEFT, CHART_BOTTOM);
}

// The plan as a picture.
static void plan_picture(const Plan* plan, const gpt2_sp_options* o, FILE* out) {
    const Mesh* mesh = plan->mesh;
    const Shape* s = &mesh->shape;
    char text[32];
    double most = fmax((double)plan->fullest.used, 1);
    svg_open(out, PLAN_WIDTH, PLAN_HEIGHT, "What a step of training takes: memory and speed");
    svg_text(out, 16, SVG_START, 30, 30, "%lld layers, %lld heads, %lld channels, context %lld, batch %lld",
        (long long)s->L, (long long)s->NH, (long long)s->C, (long long)s->T, (long long)s->B);
    svg_text(out, 12, SVG_START, 30, 50,
        "%.2fM parameters; dp %d x sp %d, schedule %s, recompute %s, zero %d",
        (double)plan->layout->parameters / 1e6, mesh->dp, mesh->sp, schedule_name(o->schedule),
        recompute_name(mesh->recompute), mesh->zero);
    svg_text(out, 13, SVG_START, 30, PLAN_TOP - 16, "memory of the fullest rank");
    for (int i = 0; i < MEMORY_GROUP_COUNT; i++)
        memory_bar(out, i, MEMORY_NAMES[i], "memory", (double)plan->fullest.group[i], most);
    memory_bar(out, MEMORY_GROUP_COUNT, "total", "total", (double)plan->fullest.used, most);
    svg_line(out, "axis", SVG_INK, PLAN_NAMES + 8, PLAN_TOP - 6, PLAN_NAMES + 8,
        PLAN_TOP + PLAN_ROW * (MEMORY_GROUP_COUNT + 1));
    int fits = (double)plan->fullest.used <= plan->memory;
    svg_text(out, fits ? 11 : 15, SVG_START, 30, PLAN_TOP + PLAN_ROW * (MEMORY_GROUP_COUNT + 1) + 22,
        "a rank may take %s%s", human_bytes(plan->memory, text, sizeof text),
        fits ? "" : ": this does not fit");
    svg_text(out, 13, SVG_START, CHART_LEFT, PLAN_TOP - 16,
        "tokens per second against dp %d x sp %d, projected", mesh->dp, plan->ranks[0]);
    plan_chart(plan, out);
    svg_text(out, 11, SVG_END, CHART_RIGHT, CHART_BOTTOM + 34, "ranks that share a sequence (P)");
    svg_line(out, "ideal", "#9aa3ad", CHART_LEFT, CHART_BOTTOM + 31, CHART_LEFT + 24, CHART_BOTTOM + 31);
    svg_text(out, 11, SVG_START, CHART_LEFT + 30, CHART_BOTTOM + 35, "as many times as ranks");
    svg_line(out, "speed", "#1f6fd1", CHART_LEFT, CHART_BOTTOM + 49, CHART_LEFT + 24, CHART_BOTTOM + 49);
    svg_text(out, 11, SVG_START, CHART_LEFT + 30, CHART_BOTTOM + 53, "schedule %s, %.4g tokens/s with P = %d",
        schedule_name(o->schedule), plan_speed(&plan->at[0]), plan->ranks[0]);
    svg_close(out);
}

// ===== 14. training loop ========================================================================
//
// How a run comes to life (trainer_create), and how it goes on (train_loop):
//
//     options are checked -> processes meet and compare them -> data is opened -> the memory plan must fit
//       -> ranks get their memory -> processes compare data and schedules
//       -> weights come from the newest whole checkpoint, else from --init-from, else from the seed
//       -> validate; step, validate, log, save, again and again, until the last step or what stop_wanted says
//
// Whatever several processes must have alike, they compare as text (processes_compare): the first line that
// differs is the error. `eval` and `sample` make a smaller trainer, which does not learn (trainer_load).

// See the header. Also takes down a trainer whose making failed half-way.
void gpt2_sp_destroy(gpt2_sp* g) {
    if (!g) return;
    Error ignored;
    if (g->loader.running) loader_take(&g->loader, &ignored);
    for (int i = 0; g->ranks && i < g->mesh.local_ranks; i++) {
        g->device->release(&g->ranks[i]);
        trace_free(g->ranks[i].recorder);
    }
    free(g->ranks);
    free(g->segments);
    free(g->batch_ranks);
    free(g->layout.units);
    schedule_free(&g->schedules[0]);
    schedule_free(&g->schedules[1]);
    thread_world_free(&g->world);
    free(g->loader.fed);
    free(g->val_loader.fed);
    dataset_close(&g->data);
    dataset_close(&g->val_data);
    bpe_free(&g->tokenizer);
    if (g->lock_fd >= 0) close(g->lock_fd);
    folder_close(&g->out);
    free(g);
}

// Always -1: the line says how much memory is missing, and what context or batch would fit. `bytes` and
// `machine` are of all ranks on this machine, `sharing` of them.
static int memory_refuse(
    gpt2_sp* g, int64_t vocab, int training, int sharing, uint64_t bytes, uint64_t machine, Error* e) {
    const gpt2_sp_options* o = &g->options;
    g->refused = 1;
    uint64_t rank = machine / (uint64_t)sharing;
    int64_t context = longest_context(o, vocab, training, g->device, rank),
            batch = training ? largest_fit(o, 1, vocab, training, g->device, rank) : 0;
    char who[32] = "this needs", sizes[96], other[64] = "no batch fits";
    if (sharing > 1) snprintf(who, sizeof who, "%d ranks need", sharing);
    snprintf(sizes, sizeof sizes, "%s %.2f GiB and the machine has %.2f", who, (double)bytes / 1073741824,
        (double)machine / 1073741824);
    if (context == 0 && batch == 0)
        return fail_as(GPT2_SP_NO_MEMORY, e, "%s: no context fits, take a smaller model%s", sizes,
            training && g->mesh.world > 1 && g->mesh.zero < 3 ? " or --zero 3" : "");
    if (!training)
        return fail_as(GPT2_SP_NO_MEMORY, e, "%s: of the model's context of %lld no more than %lld would fit",
            sizes, (long long)o->seq_len, (long long)context);
    if (batch > 0) snprintf(other, sizeof other, "the largest batch is %lld", (long long)batch);
    if (context == 0)
        return fail_as(
            GPT2_SP_NO_MEMORY, e, "%s: with --seq-len %lld %s", sizes, (long long)o->seq_len, other);
    return fail_as(GPT2_SP_NO_MEMORY, e,
        "%s: with --batch-size %lld the longest context that fits is %lld, with --seq-len %lld %s", sizes,
        (long long)o->batch_size, (long long)context, (long long)o->seq_len, other);
}

// Makes the trainer's mesh, schedules, ranks and their memory: everything but data and weights. Schedules are
// proved before any rank runs them.
static int trainer_init(gpt2_sp* g, int64_t vocab, int training) {
    Error* e = &g->error;
    if (world_open(&g->world, 1e3 * g->options.timeout, e) != 0) return -1;
    if (!g->host.state) g->host = thread_transport(&g->world, HOST);
    if (mesh_init(&g->mesh, g->schedules, &g->options, vocab, training, g->device, e) != 0) return -1;
    g->mesh.local_process = g->world.local_process, g->mesh.local_processes = g->world.local_processes;
    g->mesh.threads = mesh_threads(&g->mesh, &g->options);
    if (layout_init(&g->layout, &g->mesh, e) != 0) return -1;
    if (rates_choose(&g->layout, &g->mesh.shape, &g->options, e) != 0) return -1;
    int sharing = g->mesh.local_ranks * g->mesh.local_processes;   // ranks on this machine
    uint64_t bytes = mesh_bytes(&g->mesh, &g->layout) * (uint64_t)g->mesh.local_processes,
             machine = g->device->memory(&g->mesh);
    if (bytes > machine) return memory_refuse(g, vocab, training, sharing, bytes, machine, e);
    if (schedule_prove(&g->schedules[0], e) != 0 || schedule_prove(&g->schedules[1], e) != 0) return -1;
    int world = g->mesh.local_ranks;
    g->ranks = (Rank*)calloc((size_t)world, sizeof *g->ranks);
    g->segments = (Segments*)calloc((size_t)g->mesh.sp, sizeof *g->segments);
    g->batch_ranks = (RankBatch*)calloc((size_t)world * 3, sizeof *g->batch_ranks);
    if (!g->ranks || !g->segments || !g->batch_ranks)
        return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for %d ranks", world);
    if (thread_world_init(&g->world, g->mesh.first_rank, world, e) != 0) return -1;
    for (int i = 0; i < g->mesh.sp; i++)
        g->segments[i] = rank_segments(g->options.schedule, g->mesh.sp, g->mesh.shape.T, i);
    for (int i = 0; i < world; i++) {
        Rank* r = &g->ranks[i];
        rank_place(r, &g->mesh, &g->layout, g->mesh.first_rank + i);
        r->transport = thread_transport(&g->world, r->world_rank);
        if (g->device->allocate(r, e) != 0) return -1;
        for (int b = 0; b < 3; b++) g->batch_ranks[b * world + i] = r->batches[b];
    }
    threads_use(g->mesh.threads);
    return 0;
}

// A loader of `data` whose two batches are in the given buffers of the ranks. A loader without a second batch
// is filled by hand (evaluate_data).
static Loader loader_make(
    gpt2_sp* g, Dataset* data, int64_t passes, int shuffled, RankBatch* first, RankBatch* second) {
    Loader l;
    memset(&l, 0, sizeof l);
    l.data = data, l.T = g->mesh.shape.T;
    l.readers = (int)min_i64(READERS, usable_cores(NULL));
    l.B = g->mesh.shape.B, l.passes = passes;
    l.dp = g->mesh.dp, l.sp = g->mesh.sp;
    l.doc_mask = g->mesh.doc_mask, l.shuffled = shuffled;
    l.N = g->mesh.shape.N;
    if (shuffled) l.pos_shift = g->mesh.pos_shift;
    if (shuffled || !g->mesh.training) l.pos_from = g->options.pos_from;   // validation's begin at 0
    l.first_rank = g->mesh.first_rank, l.local_ranks = g->mesh.local_ranks;
    l.seed = (uint64_t)g->options.seed, l.limit = UINT64_MAX;
    l.segments = g->segments;
    l.batch[0].ranks = first, l.batch[1].ranks = second;
    return l;
}

// Makes room for a sample of the program's, if that is where they come from.
static int loader_fed_room(Loader* l, Error* e) {
    if (!dataset_fed(l->data)) return 0;
    l->fed = (int32_t*)calloc((size_t)(3 * l->T + 1), sizeof *l->fed);
    return l->fed
        ? 0
        : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory for a sample of %lld tokens", (long long)l->T);
}

// -1 if a data set is too short for one sample, none of the first `windows` windows has a label, or its
// tokens are not the model's, which has `vocab` of them and ends documents with g->eot.
static int data_fits(
    const gpt2_sp* g, const Dataset* d, const char* option, int64_t vocab, int64_t windows, Error* e) {
    const gpt2_sp_options* o = &g->options;
    if (dataset_fed(d) && o->pos_from == GPT2_SP_FROM_DOCUMENT)
        return fail(
            e, "--pos-from document: samples of the program's do not tell where documents begin before them");
    if (dataset_fed(d)) return 0;
    if (d->tokens < (uint64_t)o->seq_len + 1)
        return fail(e, "--%s has %llu tokens, one sequence needs %lld (the context, --seq-len, and one more)",
            option, (unsigned long long)d->tokens, (long long)o->seq_len + 1);
    if (d->vocab > vocab)
        return fail(
            e, "--%s has a vocabulary of %u, the model one of %lld", option, d->vocab, (long long)vocab);
    uint32_t tokenizer = trainer_tokenizer(g);
    if (d->named && tokenizers_differ(d->tokenizer, tokenizer))
        return fail(e, "--%s has %s, the model %s", option, tokenizer_name(d->tokenizer).text,
            tokenizer_name(tokenizer).text);
    if (d->eot >= 0 && g->eot >= 0 && d->eot != g->eot)
        return fail(e, "--%s ends its documents with token %lld, the model with %lld: another tokenizer",
            option, (long long)d->eot, (long long)g->eot);
    // without --doc-mask and a mask every token but the first is a label
    if ((o->doc_mask || dataset_masked(d)) && dataset_labels(d, o->seq_len, (int)o->doc_mask, windows) == 0)
        return fail(e,
            "--%s: nothing to learn or to predict in it: no token of its first %lld sequences is a label",
            option, (long long)min_i64(windows, (int64_t)dataset_windows(d, o->seq_len)));
    return 0;
}

// What a file of a run's folder is to this program.
enum { FILE_ABSENT, FILE_OURS, FILE_UNREADABLE, FILE_FOREIGN };

// The first line of a run.cfg.
static const char RUN_CONFIG_MARK[] = "# gpt2_sp run 1: the options of this run, as --config reads them\n";

// Whether a run.cfg begins as this program writes it. Before it had a first line of its own, it began with
// `layers` and had an option of each kind.
static int run_config_ours(const char* text) {
    static const char* const names[] = {"\nheads = ", "\nvocab = ", "\ncenter = ", "\nlogits-chunk = ",
        "\nlr-schedule = ", "\nval-sequences = "};
    int found = strncmp(text, "layers = ", 9) == 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) found = found && strstr(text, names[i]);
    return found || strncmp(text, RUN_CONFIG_MARK, strlen(RUN_CONFIG_MARK)) == 0;
}

// Whether a line is one of log.jsonl.
static int log_line_ours(const char* line, size_t size) {
    uint64_t number;
    return json_get_u64(line, size, "step", &number) == 1 &&
        json_get_u64(line, size, "updated", &number) == 1;
}

// Whether the beginning of a log.jsonl has such a line.
static int log_ours(const char* text, size_t size) {
    for (size_t at = 0, n; at < size; at += n + 1) {
        for (n = 0; at + n < size && text[at + n] != '\n' && text[at + n] != 0;) n++;
        if (n > 0 && log_line_ours(text + at, n)) return 1;
    }
    return 0;
}

// What run.cfg or log.jsonl, or what becomes one of them (NAME.tmp), is; -1, with a line in e, if that cannot
// be told. Nothing of an empty file can be lost.
static int run_file(const Folder* out, const char* name, int log, Error* e) {
    struct stat info;
    if (fstatat(out->fd, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? FILE_ABSENT
                               : fail(e, "cannot look at %.700s/%s: %s", out->path, name, strerror(errno));
    if (!S_ISREG(info.st_mode)) return FILE_FOREIGN;
    char* text = (char*)malloc(1 << 16);
    if (!text) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    ssize_t n = file_begin(out, name, text, 1 << 16);
    int ours = n == 0 || (n > 0 && (log ? log_ours(text, (size_t)n) : run_config_ours(text)));
    free(text);
    if (n < 0) return fail(e, "cannot read %.700s/%s", out->path, name);
    return ours ? FILE_OURS : log ? FILE_UNREADABLE : FILE_FOREIGN;
}

// -1 where the folder has a run.cfg or a log.jsonl that is not of a run of this program, or is a model's: an
// export, or a checkpoint of a run. A log without one readable line is taken for a damaged one where run.cfg
// is ours.
static int out_ours(const Folder* out, Error* e) {
    int config = run_file(out, "run.cfg", 0, e), log = config < 0 ? -1 : run_file(out, "log.jsonl", 1, e);
    if (config < 0 || log < 0) return -1;
    int foreign = log == FILE_FOREIGN || (log == FILE_UNREADABLE && config != FILE_OURS);
    if (config != FILE_OURS &&
        (folder_has(out->path, "config.json") || folder_has(out->path, "manifest.txt")))
        return fail(e, "%.700s holds a model: take another --out; a run's folder is new, or a run's already",
            out->path);
    if (config != FILE_FOREIGN && !foreign) return 0;
    return fail(e,
        "%.700s/%s was not written by this program: move it away, or take another --out; a run's folder is "
        "new, or a run's already",
        out->path, foreign ? "log.jsonl" : "run.cfg");
}

// Locks the run's folder, so that no other trainer writes there as long as this one lives: the folder itself,
// which nobody can take away and make anew, and the file .lock in it, for file systems that lock no folders.
static int out_lock(gpt2_sp* g) {
    Error* e = &g->error;
    struct stat info;
    g->lock_fd = openat(g->out.fd, ".lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (g->lock_fd < 0 || fstat(g->lock_fd, &info) != 0)
        return fail(e, "cannot open %.800s/.lock: %s", g->out.path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return fail(e, "%.800s/.lock is not a regular file", g->out.path);
    int fds[2] = {g->out.fd, g->lock_fd}, locked = 0;
    for (int i = 0; i < 2; i++) {
        if (flock(fds[i], LOCK_EX | LOCK_NB) == 0) locked = 1;
        else if (errno == EWOULDBLOCK) return fail(e, "another trainer is at work in %.900s", g->out.path);
    }
    if (!locked)
        warn(&g->options.log, "%s cannot be locked (%s): nothing keeps a second trainer out", g->out.path,
            strerror(errno));
    return 0;
}

// Makes the run's folder, opens and locks it, and refuses one that holds what a run would write over. The
// longest path that a run ever makes must fit before anything is computed.
static int out_open(gpt2_sp* g) {
    Error* e = &g->error;
    char folder[PATH_SIZE], path[PATH_SIZE], name[STEP_NAME];
    checkpoint_name(name, INT64_MAX / 10, TEMPORARIES - 1);
    if (path_in(folder, g->options.out, name, e) != 0 ||
        path_in(path, folder, "optimizer.safetensors", e) != 0)
        return -1;
    if (folder_make(g->options.out, e) != 0 || folder_open(&g->out, g->options.out, e) != 0) return -1;
    return out_ours(&g->out, e) != 0 ? -1 : out_lock(g);
}

// A job: fresh weights.
static int rank_weights_init(Rank* r, gpt2_sp* g, void* argument) {
    (void)argument;
    weights_init(r, (uint64_t)g->options.seed);
    positions_drop(r, g);
    return 0;
}

// The checkpoint of a run's best validation, whole, in `folder`: the newest checkpoint's state.json tells its
// step. `name` is what the user gave to the option.
static int best_folder(
    const char* option, const char* name, const char* run, const Log* log, char folder[PATH_SIZE], Error* e) {
    char path[PATH_SIZE], step[STEP_NAME];
    size_t size;
    Error why = {0, {0}};
    int found = checkpoint_find(run, log, folder, e);
    if (found < 0) return -1;
    if (found == 0) return fail(e, "--%s %.900s: there is no run with a checkpoint", option, name);
    char* text = path_in(path, folder, "state.json", e) == 0 ? file_read_text(path, 1 << 20, &size, e) : NULL;
    if (!text) return -1;
    int known = json_has(text, size, "best_step");
    int64_t best = known ? json_need(text, size, "best_step", path, e) : -1;
    free(text);
    if (known && best < 0) return -1;
    if (!known)
        return fail(e, "--%s %.800s: the run was not validated after any step (--val-data, --val-every)",
            option, name);
    checkpoint_name(step, best, TEMPORARIES);
    if (path_in(folder, run, step, e) != 0) return -1;
    if (checkpoint_verify(folder, &why) == 0) return 0;
    return fail(e,
        "--%s %.400s: the best validation was after step %lld, whose checkpoint is not whole: %.400s", option,
        name, (long long)best, why.text);
}

// Says what is at a name instead of a model.
static int model_missing(const char* option, const char* name, Error* e) {
    if (access(name, F_OK) != 0) return fail(e, "--%s %.900s: is not there", option, name);
    if (folder_has(name, "run.cfg"))
        return fail(e, "--%s %.900s: a run that has no checkpoint yet", option, name);
    return fail(e, "--%s %.900s: a folder that is no run's and has no config.json", option, name);
}

// The model that --from or --init-from names, in `path`: a model file of llm.c, a folder with a config.json,
// else a run's newest whole checkpoint, or, of RUN:best, that of its best validation. A folder with a
// manifest must be whole; Hugging Face's have none, and are taken as they are. A name that exists is that
// name.
static int model_find(const char* option, const char* name, const Log* log, char path[PATH_SIZE], Error* e) {
    char run[GPT2_SP_TEXT];
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ":best") == 0 && access(name, F_OK) != 0) {
        snprintf(run, sizeof run, "%.*s", (int)(n - 5), name);
        return best_folder(option, name, run, log, path, e);
    }
    int file = model_is_file(name);
    if (!file && !folder_has(name, "config.json")) {
        int found = checkpoint_find(name, log, path, e);
        return found > 0 ? 0 : found < 0 ? -1 : model_missing(option, name, e);
    }
    snprintf(path, PATH_SIZE, "%s", name);
    if (file) return 0;
    if (folder_has(name, "manifest.txt")) return checkpoint_verify(name, e);
    int pickled = folder_has(name, "pytorch_model.bin") || folder_has(name, "pytorch_model.bin.index.json");
    if (pickled && !folder_has(name, "model.safetensors") &&
        !folder_has(name, "model.safetensors.index.json"))
        return fail(e,
            "--%s %.400s has pytorch_model.bin, which only Python can read, and no model.safetensors; "
            "convert "
            "it: python3 -c \"from transformers import AutoModelForCausalLM as M; "
            "M.from_pretrained('%.400s').save_pretrained('NEW')\"",
            option, name, name);
    return 0;
}

// Whether --out has a run already: the model of its newest checkpoint that can be read, in options, vocab,
// eot and tokenizer.
static int run_model(const char* out, gpt2_sp_options* model, int64_t* vocab, int64_t* eot, bpe* tokenizer) {
    char folder[PATH_SIZE], path[PATH_SIZE], name[STEP_NAME];
    size_t size;
    int64_t* steps = NULL;
    Folder run;
    Error ignored;
    if (!out[0] || folder_open(&run, out, &ignored) != 0) return 0;
    int found = 0, count = checkpoint_list(&run, &steps, &ignored);
    folder_close(&run);
    for (int i = 0; !found && i < count; i++) {
        checkpoint_name(name, steps[i], TEMPORARIES);
        found = path_in(folder, out, name, &ignored) == 0 &&
            config_read(folder, model, vocab, eot, &ignored) == 0 &&
            tokenizer_of_folder(tokenizer, folder, *vocab, &ignored) >= 0;
        char* text = found && path_in(path, folder, "state.json", &ignored) == 0
            ? file_read_text(path, 1 << 20, &size, &ignored)
            : NULL;
        if (text) model->seq_len = state_seq_len(text, size, model);
        free(text);
    }
    free(steps);
    return found;
}

// Gives the options whose 0 stands for something else their values, and takes the token that ends a document
// (eot, or EOT_UNNAMED) from the model that the run has: that of its checkpoint, else that of --init-from,
// which is then at `path` and has so many positions; with it comes its tokenizer, empty where there is none.
// A size that is given and is another than --init-from's is an error; state_read compares it with a run's.
static int sizes_choose(
    gpt2_sp_options* o, char path[PATH_SIZE], int64_t* positions, int64_t* eot, bpe* tokenizer, Error* e) {
    gpt2_sp_options model;
    int64_t vocab = 0;
    options_default(&model);
    memset(tokenizer, 0, sizeof *tokenizer);
    *eot = EOT_UNNAMED;
    if (o->val_sequences == 0) o->val_sequences = 8;
    int resumed = run_model(o->out, &model, &vocab, eot, tokenizer), from = !resumed && o->init_from[0];
    if (o->grow != GPT2_SP_TILE && !o->init_from[0] && !resumed)
        return fail(e, "--grow needs --init-from, the model whose positions grow, or a run that goes on");
    if (from &&
        (model_find("init-from", o->init_from, &o->log, path, e) != 0 ||
            model_read(path, &model, &vocab, eot, e) != 0 ||
            tokenizer_of_folder(tokenizer, path, vocab, e) < 0))
        return failed_as(GPT2_SP_FILE, e);
    if (from) *positions = model.n_positions;
    if (!resumed && !from) model.layers = model.heads = 4, model.channels = 256, model.seq_len = 1024;
    const struct {
        const char* name;
        int64_t *asked, found;
    } sizes[] = {{"layers", &o->layers, model.layers}, {"heads", &o->heads, model.heads},
        {"channels", &o->channels, model.channels}, {"vocab", &o->vocab, vocab}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (from && *sizes[i].asked != 0 && *sizes[i].asked != sizes[i].found)
            return fail(e, "--%s %lld: the model of --init-from %.700s has %lld", sizes[i].name,
                (long long)*sizes[i].asked, o->init_from, (long long)sizes[i].found);
        if (*sizes[i].asked == 0) *sizes[i].asked = sizes[i].found;
    }
    if (from && model.center != o->center)
        return fail(e, "--init-from %.700s was trained with --center %lld, found %lld", o->init_from,
            (long long)model.center, (long long)o->center);
    if (o->seq_len == 0) o->seq_len = model.seq_len;
    if ((resumed || from) && o->n_positions == 0 && model.n_positions > o->seq_len)
        o->n_positions = model.n_positions;
    return 0;
}

// All processes must start from the same checkpoint, or from the same weights of --init-from.
static int start_compare(gpt2_sp* g, const char* folder) {
    char path[PATH_SIZE], text[128] = "a fresh start: no checkpoint in --out\n";
    uint64_t bytes = 0;
    uint32_t crc = 0;
    long long step = 0;
    if (g->mesh.processes < 2) return 0;
    if (folder) {
        if (path_in(path, folder, "manifest.txt", &g->error) != 0 ||
            file_checksum(path, NULL, &bytes, &crc, &g->error) != 0)
            return -1;
        (void)sscanf(strrchr(folder, '_'), "_%lld", &step);
        snprintf(text, sizeof text, "the checkpoint of step %lld in --out, manifest's CRC %08x\n", step, crc);
    } else if (g->options.init_from[0]) {
        Tensors tensors;
        if (tensors_open(
                &tensors, g->init_model, STATE_WEIGHTS, g->init_positions, GPT2_SP_TILE, &g->error) != 0)
            return -1;
        int status = 0;
        const st_set* files = &tensors.files;
        uint64_t all = 0, sum = 0;   // of all files together, in their order
        for (int i = 0; status == 0 && i < files->count; i++) {
            status = file_checksum(files->files[i].path, NULL, &bytes, &crc, &g->error);
            all += bytes, sum = random_bits(sum, bytes, crc);
        }
        snprintf(text, sizeof text, "--init-from weights of %llu bytes in %d files, checksum %016llx\n",
            (unsigned long long)all, files->count, (unsigned long long)sum);
        st_set_close(&tensors.files);
        if (status != 0) return -1;
    }
    return processes_compare(&g->host, "comparing where to start", text, &g->error);
}

// Sets the rate of the rows of wpe that are new, which are known by now.
static int new_rows_choose(gpt2_sp* g) {
    Layout* layout = &g->layout;
    const double scale = g->options.lr_scale_new;
    layout->new_rate = scale;
    if (scale == 1) return 0;
    if (layout->units[positions_unit(layout)].rate[P_wpe] == 0)
        return fail(&g->error, "--lr-scale-new %g has no effect: wpe is not trained", scale);
    if (layout->known_positions >= g->mesh.shape.N)
        return fail(&g->error,
            "--lr-scale-new %g has no effect: none of the %lld rows of wpe is new to this run", scale,
            (long long)g->mesh.shape.N);
    return 0;
}

// Gives the run its weights and its position in the data: from its newest checkpoint, else fresh, else fresh
// with the weights of --init-from.
static int trainer_start(gpt2_sp* g) {
    char folder[PATH_SIZE];
    int found = g->options.out[0]
        ? checkpoint_find(g->options.out, g->mesh.process == 0 ? &g->options.log : &SILENT, folder, &g->error)
        : 0;
    if (found < 0) return -1;
    if (start_compare(g, found ? folder : NULL) != 0) return -1;
    if (found) {
        if (state_read(g, folder) != 0) return -1;
        LoadJob resume = {folder, 1, g->saved_positions};
        if (new_rows_choose(g) != 0 || ranks_run(g, g->device->load, &resume) != 0) return -1;
        g->saved_step = g->resumed_step = g->step;
        if (g->mesh.process != 0) return 0;
        int64_t* steps;
        int count = checkpoint_list(&g->out, &steps, &g->error);
        if (count > 0) g->newest_step = steps[0];
        free(steps);
        return count < 0 ? -1 : 0;
    }
    if (g->options.init_from[0]) g->layout.known_positions = min_i64(g->init_positions, g->mesh.shape.N);
    if (new_rows_choose(g) != 0 || ranks_run(g, g->device->init, NULL) != 0) return -1;
    if (!g->options.init_from[0]) return 0;
    LoadJob start = {g->init_model, 0, g->init_positions};
    return ranks_run(g, g->device->load, &start);
}

// Whether each process may have a value of its own of an option.
static int option_is_own(const char* name) {
    static const char* const own[] = {"model", "rank", "master", "threads", "timeout"};
    for (int i = 0; i < (int)(sizeof own / sizeof own[0]); i++)
        if (strcmp(own[i], name) == 0) return 1;
    return 0;
}
// Whether an option says where files are: processes may differ in that, but not in whether it is given.
static int option_is_place(const char* name) {
    static const char* const places[] = {
        "data", "val-data", "out", "init-from", "products", "trace", "secret-file"};
    for (int i = 0; i < (int)(sizeof places / sizeof places[0]); i++)
        if (strcmp(places[i], name) == 0) return 1;
    return 0;
}

// Joins the other processes, if there are any, and compares options with them.
static int processes_meet(gpt2_sp* g) {
    gpt2_sp_options* o = &g->options;
    Error* e = &g->error;
    if (o->world < 2 && o->rank > 0)
        return fail(e, "--rank %lld needs --world, the number of processes", (long long)o->rank);
    if (o->world < 1 && o->secret_file[0])
        return fail(e, "--secret-file needs --world, the number of processes, which prove that they know it");
    if (o->world < 2) return ranks_choose(o, g->device, 1, e);
    if (o->rank >= o->world)
        return fail(e, "--rank %lld: --world %lld has processes 0 to %lld", (long long)o->rank,
            (long long)o->world, (long long)o->world - 1);
    if (!o->master[0])
        return fail(e, "--world %lld needs --master HOST:PORT, where process 0 listens", (long long)o->world);
    if (!g->device->processes)
        return fail(e, "--world %lld: this program's ranks are all in one process", (long long)o->world);
    if (links_open(&g->world, (int)o->rank, (int)o->world, o->master, o->secret_file, e) != 0)
        return failed_as(GPT2_SP_LOST, e);
    Error unfit;
    int fits = ranks_choose(o, g->device, g->world.local_processes, &unfit) == 0;   // told when all have met
    // before the others can know that options agree, and let their ranks speak
    if (net_ranks(&g->world.net, (int)max_i64(1, o->dp * max_i64(1, o->sp) / o->world)) != 0)
        return fail_as(
            GPT2_SP_NO_MEMORY, e, "out of memory for the links of %lld ranks", (long long)(o->dp * o->sp));
    char *text = (char*)calloc(OPTION_COUNT, GPT2_SP_TEXT + 64), value[GPT2_SP_TEXT];
    if (!text) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    int n = sprintf(text, "numbers of %d bytes\n", GPT2_SP_REAL_BYTES);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option* option = &OPTIONS[i];
        if (!(option->commands & TRAIN) || option_is_own(option->name)) continue;
        option_print(o, option, value, sizeof value);
        if (option_is_place(option->name))
            snprintf(value, sizeof value, "%s", *((const char*)o + option->offset) ? "given" : "not given");
        n += sprintf(text + n, "--%s %s\n", option->name, value);
    }
    int status = processes_compare(&g->host, "comparing options", text, e);
    free(text);
    return status != 0 || fits ? status : fail(e, "%s", unfit.text);
}

// The shards of a data set as lines for processes_compare; returns their length.
static int dataset_print(const Dataset* d, const char* option, char* text, size_t size) {
    int n = 0;
    if (dataset_fed(d))
        n = snprintf(text, size, "--%s samples of the program's, fingerprint %016llx\n", option,
            (unsigned long long)d->fingerprint);
    for (int i = 0; i < d->count && n < (int)size; i++) {
        const tok_shard* s = &d->shards[i];
        const char* slash = strrchr(s->path, '/');
        n += snprintf(text + n, size - (size_t)n, "--%s shard %d, %.255s, of %llu tokens, fingerprint %08x\n",
            option, i + 1, slash ? slash + 1 : s->path, (unsigned long long)s->tokens, s->fingerprint);
    }
    return n;
}

// Sizes, which each process may have from files of its own, shards and schedules must be the same in all.
static int work_compare(gpt2_sp* g) {
    const Shape* s = &g->mesh.shape;
    size_t size = (size_t)(g->data.count + g->val_data.count) * 512 + 512;
    if (g->mesh.processes < 2) return 0;
    char* text = (char*)calloc(size, 1);
    if (!text) return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    int n = snprintf(text, size,
        "%lld layers\n%lld heads\n%lld channels\na context of %lld\n%lld positions\na vocabulary of "
        "%lld\nthe end token "
        "%lld\nthe tokenizer %016llx\n",
        (long long)s->L, (long long)s->NH, (long long)s->C, (long long)s->T, (long long)s->N, (long long)s->V,
        (long long)g->eot, (unsigned long long)g->tokenizer.fingerprint);
    n += dataset_print(&g->data, "data", text + n, size - (size_t)n);
    n += dataset_print(&g->val_data, "val-data", text + n, size - (size_t)n);
    for (int i = 0; i < 2; i++)
        n += snprintf(text + n, size - (size_t)n, "%s schedule %016llx\n", i ? "backward" : "forward",
            (unsigned long long)schedule_hash(&g->schedules[i]));
    int status = processes_compare(&g->host, "comparing sizes, shards and schedules", text, &g->error);
    free(text);
    return status;
}

// Opens what `option` names, or takes the program's data, for a model of `vocab` tokens, in its place.
static int data_open(Dataset* d, const char* option, const char* list, const DataHow* how, const Feed* feed,
    int64_t vocab, Error* e) {
    if (!feed_given(feed)) return dataset_open(d, list, how, e);
    if (list[0])
        return fail_as(
            GPT2_SP_INVALID, e, "--%s %.700s: the program gives data of its own in its place", option, list);
    return dataset_feed(d, feed, vocab, e);
}

// Opens the data, makes the ranks and their weights, and requests the first batch.
static int trainer_prepare(gpt2_sp* g) {
    const gpt2_sp_options* o = &g->options;
    Error* e = &g->error;
    if (sizes_choose(&g->options, g->init_model, &g->init_positions, &g->eot, &g->tokenizer, e) != 0)
        return failed_as(GPT2_SP_MISMATCH, e);
    const DataHow how = {(int)o->raw_u16, o->vocab, (int)o->doc_mask};
    if (data_open(&g->data, "data", o->data, &how, &o->feed, o->vocab, e) != 0)
        return failed_as(GPT2_SP_FILE, e);
    int64_t vocab = o->vocab ? o->vocab : g->data.vocab;
    int validates = o->val_data[0] || feed_given(&o->val_feed);
    if (validates && data_open(&g->val_data, "val-data", o->val_data, &how, &o->val_feed, vocab, e) != 0)
        return failed_as(GPT2_SP_FILE, e);
    if (g->eot < 0) g->eot = g->data.eot;
    if (!g->tokenizer.token && dataset_tokenizer(&g->data, &g->tokenizer, e) < 0)
        return failed_as(GPT2_SP_FILE, e);
    if (data_fits(g, &g->data, "data", vocab, INT64_MAX, e) != 0 ||
        (validates && data_fits(g, &g->val_data, "val-data", vocab, o->val_sequences, e) != 0))
        return failed_as(GPT2_SP_MISMATCH, e);
    if (o->val_data[0] && o->data[0] &&
        !tokens_alike(g->val_data.tokenizer, g->val_data.vocab, g->data.tokenizer, g->data.vocab))
        return fail_as(GPT2_SP_MISMATCH, e, "--val-data has %s with %u tokens, --data %s with %u",
            tokenizer_name(g->val_data.tokenizer).text, g->val_data.vocab,
            tokenizer_name(g->data.tokenizer).text, g->data.vocab);
    if (trainer_init(g, vocab, 1) != 0) return failed_as(GPT2_SP_INVALID, e);
    int world = g->mesh.local_ranks;
    g->loader = loader_make(g, &g->data, g->mesh.passes, 1, g->batch_ranks, g->batch_ranks + world);
    g->val_loader = loader_make(g, &g->val_data, 1, 0, g->batch_ranks + 2 * world, NULL);
    if (loader_fed_room(&g->loader, e) != 0 || loader_fed_room(&g->val_loader, e) != 0) return -1;
    if (o->out[0] && g->mesh.process == 0 && out_open(g) != 0) return failed_as(GPT2_SP_FILE, e);
    if (work_compare(g) != 0)
        return failed_as(
            GPT2_SP_MISMATCH, e);   // after it process 0 has locked --out: the others may look into it
    if (trainer_start(g) != 0) return failed_as(GPT2_SP_FILE, e);
    if (g->out.fd >= 0 && checkpoint_strangers(&g->out, g->step, &o->log, e) != 0)
        return failed_as(GPT2_SP_FILE, e);
    loader_request(&g->loader, g->next_sample, ramp_window(o, g->step));
    return 0;
}

// 0, or -1 if the GPU program finds no GPU. Asked before processes meet or a checkpoint is read.
static int device_found(gpt2_sp* g) {
    if (!g->device->count || g->device->count(1) > 0) return 0;
    return fail_as(GPT2_SP_UNSUPPORTED, &g->error, "no GPU found: the CPU program is train_gpt2_sp");
}

// Makes a trainer that can train. A process that fails tells the others why.
static int trainer_create(gpt2_sp* g) {
    Error* e = &g->error;
    if (options_check(&g->options, e) != 0) return failed_as(GPT2_SP_INVALID, e);
    if (world_open(&g->world, 1e3 * g->options.timeout, e) != 0) return failed_as(GPT2_SP_NO_MEMORY, e);
    if (device_found(g) != 0) return -1;
    g->host = thread_transport(&g->world, HOST);
    int status = processes_meet(g);
    if (status != 0) failed_as(GPT2_SP_INVALID, e);
    if (status == 0) status = trainer_prepare(g);
    if (status != 0) g->host.abort(&g->host, e);   // whoever waits for this process is told why
    return status;
}

// The CPU's Device.check: the name of an option that only the GPU program has is an error.
static int cpu_check(const Mesh* mesh, const gpt2_sp_options* o, Error* e) {
    (void)mesh;
    const char* name = o->verify ? "verify"
        : o->attention           ? "attention"
        : o->transport           ? "transport"
        : o->products[0]         ? "products"
                                 : NULL;
    return name ? fail_as(GPT2_SP_UNSUPPORTED, e, "--%s: only the GPU program has it", name) : 0;
}

static const Device CPU_DEVICE = {
    cpu_check,                // check
    rank_plan,                // plan
    machine_bytes,            // memory
    rank_allocate,            // allocate
    rank_free,                // release
    rank_weights_init,        // init
    rank_load,                // load
    rank_save,                // save
    rank_step,                // step
    rank_gradients_collect,   // gradients
    rank_numbers_read,        // numbers_read
    rank_numbers_set,         // numbers_set
    model_forward_backward,   // pass
    decoder_open,             // decoder_open
    decoder_read,             // decoder_read
    decoder_close,            // decoder_close
    NULL,                     // verify: cpu_check refuses it
    measure_rates,            // rates
    {sizeof(real), sizeof(real), sizeof(real), sizeof(real), sizeof(real), sizeof(real)},   // item_bytes
    NULL,   // count: one rank without --sp
    1,      // processes
};

// The device of the trainers made from here on. train_gpt2_sp.cu names its own before it includes this file.
#ifdef GPT2_SP_DEVICE
extern const Device GPT2_SP_DEVICE;
#else
#define GPT2_SP_DEVICE CPU_DEVICE
#endif
static const Device* gpt2_sp_device = &GPT2_SP_DEVICE;

#ifdef _OPENMP
#define HAS_OPENMP 1
#else
#define HAS_OPENMP 0
#endif
#ifdef GPT2_SP_NCCL
#define HAS_NCCL 1
#else
#define HAS_NCCL 0
#endif
#ifdef __clang__
#define BUILT_BY __VERSION__
#else
#define BUILT_BY "gcc " __VERSION__
#endif
// What the processor must have, at least.
#if defined(__AVX512F__)
#define BUILT_FOR "AVX-512"
#elif defined(__AVX2__)
#define BUILT_FOR "AVX2"
#elif defined(__ARM_NEON)
#define BUILT_FOR "NEON"
#else
#define BUILT_FOR "any processor"
#endif
// The commit, where the Makefile knows it and links it in.
#ifdef __cplusplus
extern "C" {
#endif
extern const char gpt2_sp_commit[] __attribute__((weak, visibility("hidden")));
#ifdef __cplusplus
}
#endif

// What gpt2_sp_build tells, made once.
static char build_text[256];
static void build_text_make(void) {
    const char* commit = &gpt2_sp_commit[0];   // NULL: nothing of that name was linked in
    snprintf(build_text, sizeof build_text,
        "gpt2_sp %s%s%.40s, the %s program, numbers of %d bytes%s, for %s, by %.60s", GPT2_SP_VERSION,
        commit && commit[0] ? " of " : "", commit ? commit : "", gpt2_sp_has("gpu") ? "GPU" : "CPU",
        GPT2_SP_REAL_BYTES, gpt2_sp_has("openmp") ? ", OpenMP" : ", one thread a rank", BUILT_FOR, BUILT_BY);
}
// See the header, for these.
const char* gpt2_sp_build(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build_text_make);
    return build_text;
}
int gpt2_sp_has(const char* feature) {
    const struct {
        const char* name;
        int here;
    } features[] = {{"gpu", gpt2_sp_device != &CPU_DEVICE}, {"nccl", HAS_NCCL}, {"openmp", HAS_OPENMP},
        {"fp64", GPT2_SP_REAL_BYTES == 8}};
    for (size_t i = 0; feature && i < sizeof features / sizeof features[0]; i++)
        if (strcmp(feature, features[i].name) == 0) return features[i].here;
    return 0;
}

// A trainer with nothing in it yet; NULL: out of memory.
static gpt2_sp* trainer_new(const gpt2_sp_options* options) {
    gpt2_sp* g = (gpt2_sp*)calloc(1, sizeof *g);
    if (!g) return NULL;
    g->options = *options;
    g->device = gpt2_sp_device;
    g->lock_fd = g->out.fd = -1;
    g->saved_step = g->resumed_step = -1;
    g->planned_lr = -1, g->planned_steps = -1;
    g->lr = -1;
    g->newest_step = -1;
    g->validations = NO_VALIDATIONS;
    return g;
}

// --- --check: the same batch on one rank alone ---

// Leaves the gradients and the loss of the step after `step` steps, which begins with `sample`, in `out`,
// whose array the caller frees. The loader then reads that step again.
static int gradients_collect(gpt2_sp* g, uint64_t sample, int64_t step, Gradients* out) {
    memset(out, 0, sizeof *out);
    if (g->loader.running && !loader_take(&g->loader, &g->error)) return -1;   // it reads ahead
    loader_request(&g->loader, sample, ramp_window(&g->options, step));
    Batch* batch = loader_take(&g->loader, &g->error);
    if (!batch) return -1;
    batch_give(g, batch);
    out->all = (real*)calloc((size_t)g->layout.elements, sizeof(real));
    if (!out->all) return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory for all gradients");
    int status = ranks_run(g, g->device->gradients, out);
    loader_request(&g->loader, sample, ramp_window(&g->options, step));
    return status;
}

// The largest relative error that rounding explains. Two runs of the same batch take sums in another order.
// In fp32 that makes some 2^-24 per operation; in the GPU program a sum that differs in its last bits now and
// then rounds to another bf16 number, 2^-8 away, in the residual stream of a layer and in the gradients that
// pass through it. Such flips are rare and independent, so they add up like the square root of the number of
// layers: the bound is 2^-18 or 2^-8 times that, over all numbers of a tensor.
static double check_bound(const gpt2_sp* g) {
    return sqrt((double)(2 * g->mesh.shape.L)) * (g->device == &CPU_DEVICE ? 0x1p-18 : 0x1p-8);
}

// sqrt(sum of squared differences / sum of squares) of n numbers; where all should be 0, the difference
// itself. size: sqrt(sum of squares).
static double relative_error(const real* found, const real* exact, int64_t n, double* size) {
    double difference = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)found[i] - (double)exact[i];
        difference += d * d, square += (double)exact[i] * (double)exact[i];
    }
    *size = sqrt(square);
    return square > 0 ? sqrt(difference / square) : sqrt(difference);
}

// Compares the gradients of g's ranks with those of one rank, tensor by tensor. A NaN is the worst of all.
static int gradients_compare(gpt2_sp* g, const Gradients* found, const gpt2_sp* one, const Gradients* alone) {
    double bound = check_bound(g), worst = 0, loss = fabs(found->loss / alone->loss - 1);
    printf("--check: %d ranks against one, |difference| / |gradient|, at most %.1e\n", g->mesh.world, bound);
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            if (p.unit != g->layout.units[u].kind) continue;
            const real* a = found->all + g->layout.units[u].offset + g->layout.within[id];
            const real* b = alone->all + one->layout.units[u].offset + one->layout.within[id];
            double size, error = relative_error(a, b, parameter_elements(&p), &size);
            char name[ST_NAME_MAX];
            if (!isnan(worst) && !(error <= worst)) worst = error;
            tensor_name(name, sizeof name, "", &p, u);
            printf("  %-24s %.3e\n", name, error);
        }
    printf("loss %.7f and %.7f: %.3e; the worst gradient %.3e\n", found->loss, alone->loss, loss, worst);
    if (!(worst <= bound) || !(loss <= bound))
        return fail(&g->error, "--check: %d ranks differ from one by %.3e (loss %.3e), expected at most %.1e",
            g->mesh.world, worst, loss, bound);
    return 0;
}

// Compares this run's first batch with a second trainer of one rank, with the same weights and samples.
static int trainer_check_ranks(gpt2_sp* g) {
    gpt2_sp_options o = g->options;
    if (g->mesh.processes > 1)
        return fail(
            &g->error, "--check compares the ranks of one process; this run has %d", g->mesh.processes);
    o.batch_size *= o.dp, o.dp = o.sp = 1;
    o.zero = 0, o.schedule = GPT2_SP_DIST;
    o.check = 0, o.trace[0] = 0;
    o.lr_scale_new = 1;   // nothing is updated
    o.profile = 0;
    char name[STEP_NAME], path[PATH_SIZE] = "";
    checkpoint_name(name, g->resumed_step, TEMPORARIES);
    if (g->resumed_step >= 0 && path_in(path, o.out, name, &g->error) != 0) return -1;
    if (path[0] && option_set(&o, option_find("init-from"), path, &g->error) != 0) return -1;
    o.out[0] = 0, o.save_every = 0;
    gpt2_sp* one = trainer_new(&o);
    int status = one ? trainer_create(one) : fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    if (one && status != 0) fail(&g->error, "--check, one rank alone: %.900s", one->error.text);
    Gradients found = {NULL, 0, 0}, alone = {NULL, 0, 0};
    if (status == 0) status = gradients_collect(g, g->next_sample, g->step, &found);
    if (status == 0 && gradients_collect(one, g->next_sample, g->step, &alone) != 0)
        status = fail(&g->error, "--check, one rank alone: %.900s", one->error.text);
    if (status == 0) status = gradients_compare(g, &found, one, &alone);
    free(found.all);
    free(alone.all);
    gpt2_sp_destroy(one);
    return status;
}

// The trainer, or, where its making failed, NULL and the reason.
static gpt2_sp* trainer_checked(gpt2_sp* g, int status, Error* e) {
    if (g) *e = g->error;
    else fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (g && status == 0) return g;
    failed_as(GPT2_SP_FAILED, e);
    gpt2_sp_destroy(g);
    return NULL;
}

// -1 if an option is set that is for the command `train`: a program that makes a trainer does this itself.
static int options_for_programs(const gpt2_sp_options* o, Error* e) {
    const struct {
        const char *name, *instead;
        int set;
    } of_train[] = {{"save-every", "gpt2_sp_save", o->save_every > 0},
        {"val-every", "gpt2_sp_validate", o->val_every > 0}, {"check", "the command train", o->check != 0},
        {"verify", "the command train", o->verify != 0},
        {"log-every", "what gpt2_sp_step tells", o->log_every > 1},
        {"keep-best", "gpt2_sp_save", o->keep_best == 0}, {"patience", "gpt2_sp_validate", o->patience > 0},
        {"max-minutes", "a clock of your own", o->max_minutes > 0},
        {"profile", "--trace, which writes a file", o->profile != 0}};
    gpt2_sp_options defaults;
    options_default(&defaults);
    for (int i = 0; i < OPTION_COUNT; i++) {
        char set[GPT2_SP_TEXT], usual[GPT2_SP_TEXT];
        option_print(o, &OPTIONS[i], set, sizeof set);
        option_print(&defaults, &OPTIONS[i], usual, sizeof usual);
        if (!(OPTIONS[i].commands & TRAIN) && strcmp(set, usual) != 0)
            return fail(
                e, "--%s has no effect on a trainer: it is an option of another command", OPTIONS[i].name);
    }
    for (size_t i = 0; i < sizeof of_train / sizeof of_train[0]; i++)
        if (of_train[i].set)
            return fail(e, "--%s has no effect in a program that uses the library, which has %s",
                of_train[i].name, of_train[i].instead);
    return 0;
}

// Whether the learning rate does not go on as it was planned when the run was saved, and in words how. That
// of a run that was finished has come to its end, from which more --steps take it up again.
static int learning_rate_jumps(const gpt2_sp* g, char* out, size_t size) {
    const gpt2_sp_options* o = &g->options;
    double rate = learning_rate(o, g->step);
    if (g->planned_lr < 0 || g->step >= o->steps || fabs(rate - g->planned_lr) <= 1e-3 * g->planned_lr)
        return 0;
    if (g->planned_steps >= 0 && g->step >= g->planned_steps)
        snprintf(out, size,
            "the run was finished: its learning rate had come to %.2e, and jumps to %.2e with --steps %lld",
            g->planned_lr, rate, (long long)o->steps);
    else
        snprintf(out, size,
            "the learning rate of step %lld is %.2e; by the options of the saved run it was to be %.2e",
            (long long)g->step + 1, rate, g->planned_lr);
    return 1;
}

// See the header. trainer_checked has the reason copied out before the trainer is gone.
gpt2_sp* gpt2_sp_create(const gpt2_sp_options* options, gpt2_sp_failure* failure) {
    Error e = {0, {0}};
    char jump[256];
    gpt2_sp* g = NULL;
    Host host = host_enter();
    if (!options) fail_as(GPT2_SP_INVALID, &e, "no options");
    else {
        g = trainer_new(options);
        int status = g ? options_for_programs(options, &g->error) : -1;
        if (g && status != 0) failed_as(GPT2_SP_INVALID, &g->error);
        if (status == 0) status = trainer_create(g);
        g = trainer_checked(g, status, &e);
        if (g && learning_rate_jumps(g, jump, sizeof jump)) warn(&g->options.log, "%s", jump);
    }
    host_leave(&host);
    failure_give(failure, &e, g ? 0 : -1);
    return g;
}

// The token that ends a model's documents: the one that it names, else its tokenizer's, else the last.
static int64_t model_end(int64_t eot, const bpe* tokenizer, int64_t vocab) {
    return eot != EOT_UNNAMED ? eot : tokenizer->token ? (int64_t)tokenizer->eot : vocab - 1;
}

// A trainer that only evaluates and samples: no gradients, all ranks in this process, the model that --from
// names, or another option.
static int trainer_load_option(gpt2_sp* g, const char* option) {
    gpt2_sp_options* o = &g->options;
    char path[PATH_SIZE];
    int64_t vocab, context = o->seq_len;
    if (!o->from[0]) return fail(&g->error, "no model given: --from RUN");
    if (device_found(g) != 0 || model_find(option, o->from, &o->log, path, &g->error) != 0) return -1;
    o->batch_size = o->grad_accum = 1, o->rank = o->world = 0;
    o->zero = 0;
    if (ranks_choose(o, g->device, 1, &g->error) != 0) return -1;
    if (model_read(path, o, &vocab, &g->eot, &g->error) != 0) return -1;
    if (context > o->seq_len)
        return fail(&g->error, "--seq-len %lld: the model's context is %lld", (long long)context,
            (long long)o->seq_len);
    if (context > 0) o->seq_len = context;
    const int64_t positions = o->n_positions;
    if (o->pos_from == GPT2_SP_FROM_SAMPLE) o->n_positions = 0;   // no row beyond the context is read
    if (tokenizer_of_folder(&g->tokenizer, path, vocab, &g->error) < 0) return -1;
    g->eot = model_end(g->eot, &g->tokenizer, vocab);
    if (trainer_init(g, vocab, 0) != 0) return -1;
    LoadJob model = {path, 0, positions};
    return ranks_run(g, g->device->load, &model);
}
static int trainer_load(gpt2_sp* g) { return trainer_load_option(g, "from"); }

// The same of one of several replicas that share a machine and do not speak with each other: of its options
// rank and world say which of how many.
static int replica_load_option(gpt2_sp* g, const char* option) {
    if (world_open(&g->world, 1e3 * g->options.timeout, &g->error) != 0) return -1;
    g->world.local_process = (int)g->options.rank, g->world.local_processes = (int)g->options.world;
    return trainer_load_option(g, option);
}
static int trainer_load_replica(gpt2_sp* g) { return replica_load_option(g, "from"); }
static int trainer_load_draft(gpt2_sp* g) {
    memcpy(g->options.from, g->options.draft, sizeof g->options.from);
    return replica_load_option(g, "draft");
}

static const char* stop_note = "";   // what on_signal says

// Notes the signal and says so; what is in hand is ended. A second SIGTERM or SIGINT ends the
// program at once, unless it is within a tenth of a second: launchers pass on what the terminal sends too.
static void on_signal(int number) {
    static int64_t asked;   // when SIGTERM or SIGINT first came, in ms; 0: not yet
    int before = errno;
    if (number == SIGTERM || number == SIGINT) {
        int64_t now = (int64_t)now_ms() + 1, first = 0;
        int begun = __atomic_compare_exchange_n(&asked, &first, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        if (!begun && now - first > 100) _exit(128 + number);
    }
    if (stop_signal == 0 && write(STDERR_FILENO, stop_note, strlen(stop_note)) < 0)
        errno = before;   // told or not
    stop_signal = number;
    errno = before;
}
// Has the signals that should end a run noted instead of end the process. SIGHUP stays ignored under nohup. A
// pipe that nobody reads any more is an error of stdout, which train_loop sees. `note` is said at the first.
static void catch_signals(const char* note) {
    static const int noted[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
    struct sigaction action, old;
    stop_note = note;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;   // a write to a full pipe goes on, the loop sees the flag
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof noted / sizeof noted[0]; i++)
        if (noted[i] != SIGHUP || (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN))
            sigaction(noted[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

// Columns of log.jsonl: name, printf format, value.
// clang-format off
#define LOG_COLUMNS(X) \
    X("step", "%lld", (long long)stats->step) \
    X("loss", "%s", loss) \
    X("grad_norm", "%s", norm) \
    X("lr", "%.8g", stats->lr) \
    X("tokens", "%lld", (long long)stats->tokens) \
    X("ms", "%.3f", stats->ms) \
    X("tok_per_s", "%.1f", stats->tok_per_s) \
    X("time", "%.3f", wall_seconds()) \
    X("updated", "%d", stats->updated)
// clang-format on

// Seconds since 1970, by the machine's clock.
static double wall_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// A number for JSON, which has no NaN: null then.
static void json_number(char* out, size_t size, double x) {
    if (isfinite(x)) snprintf(out, size, "%.17g", x);
    else snprintf(out, size, "null");
}

// Appends the line of a step to log.jsonl; val_loss NULL: the step had no validation. 0, or EOF with errno.
static int log_step(FILE* log, const gpt2_sp_stats* stats, const double* val_loss) {
    char loss[40], norm[40], val[40];
    json_number(loss, sizeof loss, stats->loss);
    json_number(norm, sizeof norm, stats->grad_norm);
    const char* comma = "{";
#define X(name, format, value) fprintf(log, "%s\"" name "\": " format, comma, value), comma = ", ";
    LOG_COLUMNS(X)
#undef X
    if (stats->window > 0) fprintf(log, ", \"window\": %lld", (long long)stats->window);
    if (val_loss) json_number(val, sizeof val, *val_loss), fprintf(log, ", \"val_loss\": %s", val);
    fprintf(log, "}\n");
    return fflush(log);
}

// The same for a validation before the first step of a launch: no step, so no loss.
static int log_validation(FILE* log, const gpt2_sp* g, double val_loss, double ms) {
    char val[40];
    json_number(val, sizeof val, val_loss);
    fprintf(log,
        "{\"step\": %lld, \"tokens\": %lld, \"ms\": %.3f, \"time\": %.3f, \"updated\": 0, \"val_loss\": "
        "%s}\n",
        (long long)g->step, (long long)g->tokens_seen, ms, wall_seconds(), val);
    return fflush(log);
}

// What reading a log found.
typedef struct {
    int64_t lines, unreadable, bytes;   // JSON objects; pieces that are none, and their bytes with the NULs
    int ended;                          // the last byte is a line's end, or there is none
} LogScan;

// A log that is read: what has come since the last line's end or NUL, and how much longer it was.
enum { LOG_PIECE = 4096, LOG_BLOCK = 1 << 16 };
typedef struct {
    LogScan* scan;
    FILE *good, *rest;   // lines go there, all else here; both may be NULL
    char piece[LOG_PIECE];
    size_t n;
    int longer;       // the line does not fit in a piece
    uint64_t zeros;   // NULs that have come since the last other byte
    int failed;       // a file cannot be written
} LogReader;

// Ends a piece: a line goes to `good`, anything else to `rest`.
static void log_piece(LogReader* r, int ends) {
    int readable = ends && !r->longer && r->piece[0] == '{' && json_validate(r->piece, r->n, 8, NULL) == 0;
    FILE* to = readable ? r->good : r->rest;
    r->longer = !ends;
    if (r->n == 0) return;
    if (readable) r->scan->lines++;
    else r->scan->unreadable++, r->scan->bytes += (int64_t)r->n;
    if (to) fwrite(r->piece, 1, r->n, to), fputc('\n', to);
    r->n = 0;
}

// Ends a run of NULs. In `rest` a long one becomes a hole, which takes no room on the disk.
static void log_zeros(LogReader* r) {
    struct stat info;
    if (r->zeros == 0) return;
    r->scan->unreadable++, r->scan->bytes += (int64_t)r->zeros;
    if (r->rest && r->zeros >= LOG_BLOCK)
        r->failed |= fflush(r->rest) != 0 || fstat(fileno(r->rest), &info) != 0 ||
            ftruncate(fileno(r->rest), info.st_size + (off_t)r->zeros) != 0;
    else
        for (; r->rest && r->zeros > 0; r->zeros--) fputc(0, r->rest);
    if (r->rest) fputc('\n', r->rest);
    r->zeros = 0;
}

// How many of n bytes, at least one, are NULs, up to the first that is none.
static size_t zeros_count(const char* p, size_t n) {
    size_t count = 0;
    if (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0) return n;
    while (count < n && p[count] == 0) count++;
    return count;
}

// Takes a block of a log.
static void log_block(LogReader* r, const char* p, size_t n) {
    for (const char* end = p + n; p < end;) {
        size_t zeros = zeros_count(p, (size_t)(end - p));
        if (zeros > 0) log_piece(r, 1);
        r->zeros += zeros, p += zeros;
        if (p < end) log_zeros(r);
        for (; p < end && *p != 0 && *p != '\n'; p++) {
            if (r->n == LOG_PIECE) log_piece(r, 0);
            r->piece[r->n++] = *p;
        }
        if (p < end && *p == '\n') log_piece(r, 1), p++;
    }
}

// Where a file goes on behind the hole that it has at `at`, which reads as NULs; `at`, if it has none there.
static off_t hole_end(int fd, off_t at) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) data = lseek(fd, 0, SEEK_END);   // nothing but a hole follows
    return data > at ? data : at;
}

// Reads a log from its beginning: pieces end at a line's end or at a NUL, which a crash leaves where the data
// of a file had not reached the disk. Copies lines to `good` and all else to `rest`. 0, or -1 with errno. The
// log's place to read is then anywhere.
static int log_scan(FILE* log, LogScan* scan, FILE* good, FILE* rest) {
    LogReader* r = (LogReader*)calloc(1, sizeof *r);
    char *block = (char*)malloc(LOG_BLOCK), last = '\n';
    ssize_t n = r && block && fflush(log) == 0 ? 1 : -1;
    memset(scan, 0, sizeof *scan);
    if (n > 0) r->scan = scan, r->good = good, r->rest = rest;
    for (off_t at = 0; n > 0; at += n) {
        off_t data = hole_end(fileno(log), at);
        if (data > at) log_piece(r, 1), r->zeros += (uint64_t)(data - at), last = 0;
        at = data;
        do n = pread(fileno(log), block, LOG_BLOCK, at);
        while (n < 0 && errno == EINTR);
        if (n > 0) log_block(r, block, (size_t)n), last = block[n - 1];
    }
    if (n == 0) log_piece(r, 1), log_zeros(r);
    scan->ended = last == '\n';
    int status = n == 0 && !r->failed ? 0 : -1;
    free(block);
    free(r);
    return status;
}

// Opens a file of a run's folder, which is no link, to append to it and to read it.
static FILE* run_append(const Folder* out, const char* name, int flags, Error* e) {
    struct stat info;
    int fd = openat(
        out->fd, name, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | flags, 0666);
    FILE* f = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? fdopen(fd, "a+") : NULL;
    if (f) return f;
    fail(e, "cannot write %.700s/%s: %s", out->path, name, fd < 0 ? strerror(errno) : "not a regular file");
    if (fd >= 0) close(fd);
    return NULL;
}

// Brings a file that was written to the disk; 0, or -1 with a line in e.
static int run_synced(FILE* f, const Folder* out, const char* name, Error* e) {
    if (fflush(f) == 0 && !ferror(f) && fsync(fileno(f)) == 0) return 0;
    return fail(e, "cannot write %.700s/%s: %s", out->path, name, strerror(errno));
}

// Takes away NAME.tmp, which a run that was killed may have left; one that is not ours is an error.
static int run_leftover(const Folder* out, const char* name, int log, Error* e) {
    int kind = run_file(out, name, log, e);
    if (kind < 0 || kind == FILE_ABSENT) return kind < 0 ? -1 : 0;
    if (kind != FILE_OURS)
        return fail(e, "%.700s/%s was not written by this program: move it away", out->path, name);
    return unlinkat(out->fd, name, 0) == 0
        ? 0
        : fail(e, "cannot remove %.700s/%s: %s", out->path, name, strerror(errno));
}

// Makes a log anew without what cannot be read in it, which log.unreadable gets; nothing is lost. Gives the
// new log, open; NULL, with a line in e, if the old one is left as it was.
static FILE* log_mend(FILE* log, const Folder* out, Error* e) {
    static const char name[] = "log.jsonl.tmp", aside[] = "log.unreadable";
    LogScan scan;
    if (run_leftover(out, name, 1, e) != 0) return NULL;
    FILE* rest = run_append(out, aside, 0, e);
    FILE* good = rest ? run_append(out, name, O_EXCL, e) : NULL;
    int status = good ? 0 : -1;
    if (good && log_scan(log, &scan, good, rest) != 0)
        status = fail(e, "cannot read %.800s/log.jsonl: %s", out->path, strerror(errno));
    if (status == 0) status = run_synced(rest, out, aside, e);
    if (status == 0) status = run_synced(good, out, name, e);
    if (status == 0 && renameat(out->fd, name, out->fd, "log.jsonl") != 0)
        status = fail(e, "cannot rename %.700s/%s: %s", out->path, name, strerror(errno));
    if (status == 0) status = folder_sync(out, e);
    if (status == 0)
        fprintf(stderr,
            "%s/log.jsonl: %lld bytes that are no lines of a log are set aside in %s/%s, %lld lines "
            "stay\n",
            out->path, (long long)scan.bytes, out->path, aside, (long long)scan.lines);
    if (rest) fclose(rest);
    if (good && status != 0) unlinkat(out->fd, name, 0), fclose(good), good = NULL;
    return good;
}

// Opens OUT/log.jsonl for appending. What is in it stays: where a run goes on from an earlier step, the lines
// of steps that it does again are there twice, and the later ones count. What cannot be read is set aside.
static FILE* log_open(const Folder* out, Error* e) {
    LogScan scan;
    FILE* log = run_append(out, "log.jsonl", 0, e);
    int status = log ? log_scan(log, &scan, NULL, NULL) : -1;
    if (log && status != 0) fail(e, "cannot read %.800s/log.jsonl: %s", out->path, strerror(errno));
    if (status == 0 && scan.unreadable > 0) {
        FILE* mended = log_mend(log, out, e);
        fclose(log);
        return mended;
    }
    if (status == 0 && fseek(log, 0, SEEK_END) == 0 && (scan.ended || fputc('\n', log) != EOF)) return log;
    if (status == 0) fail(e, "cannot write %.800s/log.jsonl: %s", out->path, strerror(errno));
    if (log) fclose(log);
    return NULL;
}

// Whether an option belongs to one launch of a run, not to the run.
static int option_is_launch(const char* name) {
    return strcmp(name, "rank") == 0 || strcmp(name, "world") == 0 || strcmp(name, "master") == 0 ||
        strcmp(name, "secret-file") == 0;
}

// Writes OUT/run.cfg: the options of the run, as --config reads them, without those of this launch. `model`
// is left out, as it has set layers, heads and channels. Written as run.cfg.tmp, so that it is never half.
static int run_config_write(const Folder* out, const gpt2_sp_options* o, Error* e) {
    static const char name[] = "run.cfg.tmp";
    char value[2 * GPT2_SP_TEXT + 2];
    if (run_leftover(out, name, 0, e) != 0) return -1;
    FILE* f = run_append(out, name, O_EXCL, e);
    if (!f) return -1;
    fputs(RUN_CONFIG_MARK, f);
    for (int i = 0; i < OPTION_COUNT; i++) {
        config_print(o, &OPTIONS[i], value);
        if ((OPTIONS[i].commands & TRAIN) && value[0] && !option_is_launch(OPTIONS[i].name) &&
            strcmp(OPTIONS[i].name, "model") != 0)
            fprintf(f, "%s = %s\n", OPTIONS[i].name, value);
    }
    int status = run_synced(f, out, name, e);
    if (fclose(f) != 0 && status == 0) status = fail_file(e, "write", name);
    if (status == 0 && renameat(out->fd, name, out->fd, "run.cfg") != 0)
        status = fail(e, "cannot rename %.700s/%s: %s", out->path, name, strerror(errno));
    if (status != 0) unlinkat(out->fd, name, 0);
    return status;
}

// Of a run that goes on, what its run.cfg says beside what is asked now. Where its weights came from cannot
// change any more: another --init-from or --grow is refused, and one that is left out stays. Other options
// may change; those that do are named. A run.cfg that cannot be read says nothing.
static int run_goes_on(const gpt2_sp* g, gpt2_sp_options* o, Error* e) {
    char path[PATH_SIZE], before[GPT2_SP_TEXT], now[GPT2_SP_TEXT];
    Error unread = {0, {0}}, note = {0, {0}};
    if (g->resumed_step < 0 || path_in(path, o->out, "run.cfg", e) != 0) return g->resumed_step < 0 ? 0 : -1;
    gpt2_sp_options* was = (gpt2_sp_options*)malloc(sizeof *was);
    if (!was) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    options_default(was);
    int status = 0, changed = 0, known = options_file(was, path, &note, &unread) == 0;
    if (known && o->init_from[0] && (strcmp(o->init_from, was->init_from) != 0 || o->grow != was->grow))
        status = fail(e,
            "%.300s goes on from its own checkpoint, and began %s%.300s%s: leave --init-from and --grow out, "
            "or take another --out",
            o->out, was->init_from[0] ? "from " : "with fresh weights", was->init_from,
            was->grow == GPT2_SP_INTERP ? " with --grow interp" : "");
    if (known) memcpy(o->init_from, was->init_from, sizeof o->init_from), o->grow = was->grow;
    for (int i = 0; known && status == 0 && i < OPTION_COUNT; i++) {
        const Option* option = &OPTIONS[i];
        if (!(option->commands & TRAIN) || option_is_own(option->name) || option_is_place(option->name) ||
            option_is_launch(option->name))
            continue;
        option_print(was, option, before, sizeof before);
        option_print(o, option, now, sizeof now);
        if (strcmp(before, now) == 0) continue;
        printf("%s --%s %s -> %s", changed ? "," : "changed  ", option->name, before[0] ? before : "(none)",
            now[0] ? now : "(none)");
        changed = 1;
    }
    if (changed) putchar('\n');
    free(was);
    return status;
}

// A command's trainer, made by trainer_create or trainer_load. If its memory was refused, the plan's table is
// printed above the line that the command ends with, by process 0 of several.
static gpt2_sp* trainer_make(const gpt2_sp_options* o, int (*make)(gpt2_sp*), Error* e) {
    gpt2_sp* g = trainer_new(o);
    int status = g ? make(g) : -1;
    if (status != 0 && g && g->refused && g->mesh.process == 0) {
        Arena fullest = fullest_rank(&g->mesh, &g->layout);
        memory_print(stderr, &g->mesh, &g->layout, &g->options, &fullest);
    }
    return trainer_checked(g, status, e);
}

// Whether --patience is at its end.
static int patience_over(const gpt2_sp* g) {
    return g->options.patience > 0 && g->validations.since >= g->options.patience;
}

// Whether the run has ended already when it is launched: its checkpoint is of the last step or of a later
// one, or of where --patience ended it. Then nothing changes in its folder.
static int train_done(const gpt2_sp* g) {
    return g->resumed_step >= g->options.steps || (g->resumed_step >= 0 && patience_over(g));
}

// What of the model is frozen or has a rate of its own, if anything; a line of the header.
static void train_header_rates(const gpt2_sp* g) {
    double trained = 0, scaled = 0;
    for (int u = 0; u < g->layout.count; u++)
        for (int id = 0; id < PARAMETER_COUNT; id++) {
            Parameter p = parameter(&g->mesh.shape, id);
            double rate = g->layout.units[u].rate[id];
            if (p.unit != g->layout.units[u].kind || rate == 0) continue;
            double n = (double)(tensor_rows(&g->mesh.shape, id, &p) * max_i64(1, p.columns)) / 1e6;
            if (id == P_wpe && rate == 1 && g->layout.new_rate != 1)
                scaled += (double)((g->mesh.shape.N - g->layout.known_positions) * p.columns) / 1e6;
            trained += n, scaled += rate != 1 ? n : 0;
        }
    if (!g->options.freeze[0] && !g->options.lr_scale[0] && g->layout.new_rate == 1 &&
        g->options.positions == GPT2_SP_LEARNED)
        return;
    printf("trained   %.2fM of the parameters", trained);
    if (scaled > 0) printf(", %.2fM at a rate of their own", scaled);
    printf("\n");
}

// What wpe has beyond a row for each token of a sequence, and how a run that goes on has grown; lines of the
// header.
static void train_header_positions(const gpt2_sp* g) {
    const Shape* s = &g->mesh.shape;
    if (s->N > s->T)
        printf("positions %lld, for sequences of %lld tokens\n", (long long)s->N, (long long)s->T);
    if (g->saved_seq_len == 0 && g->layout.known_positions < s->N)
        printf("positions %lld, of which the model had %lld before: new rows by --grow %s\n", (long long)s->N,
            (long long)g->layout.known_positions, g->options.grow == GPT2_SP_TILE ? "tile" : "interp");
    if (g->options.positions == GPT2_SP_NO_POSITIONS && g->step < g->options.fade_steps)
        printf("positions faded to zero by step %lld\n", (long long)g->options.fade_steps);
    else if (g->options.positions == GPT2_SP_NO_POSITIONS) printf("positions none: wpe is zero\n");
    if (g->saved_seq_len == 0 || (s->T == g->saved_seq_len && s->N == g->saved_positions)) return;
    printf("longer    ");
    if (s->T != g->saved_seq_len)
        printf("sequences of %lld tokens, which had %lld, from epoch %.2f on%s", (long long)s->T,
            (long long)g->saved_seq_len, (double)g->next_sample / (double)dataset_windows(&g->data, s->T),
            s->N > g->saved_positions ? "; " : "");
    if (s->N > g->saved_positions)
        printf("wpe grows from %lld to %lld rows (--grow %s)", (long long)g->saved_positions, (long long)s->N,
            g->options.grow == GPT2_SP_TILE ? "tile" : "interp");
    printf("\n");
}

// What a run prints before its first step.
static void train_header(const gpt2_sp* g) {
    const Shape* s = &g->mesh.shape;
    size_t fullest = 0;   // as `plan` has it
    char memory[32];
    for (int i = 0; i < g->mesh.local_ranks; i++)
        fullest = g->ranks[i].arena.used > fullest ? g->ranks[i].arena.used : fullest;
    printf("model     %lld layers, %lld heads, %lld channels, vocabulary %lld: %.2fM parameters\n",
        (long long)s->L, (long long)s->NH, (long long)s->C, (long long)s->V,
        (double)g->layout.parameters / 1e6);
    train_header_rates(g);
    train_header_positions(g);
    printf("data      %llu tokens in %d shard%s: %llu sequences of %lld an epoch%s\n",
        (unsigned long long)g->data.tokens, g->data.count, g->data.count == 1 ? "" : "s",
        (unsigned long long)dataset_windows(&g->data, s->T), (long long)s->T,
        g->mesh.doc_mask ? ", attention inside documents" : "");
    printf("ranks     dp %d x sp %d, schedule %s, recompute %s, zero %d, %d thread%s each", g->mesh.dp,
        g->mesh.sp, schedule_name(g->options.schedule), recompute_name(g->mesh.recompute), g->mesh.zero,
        g->mesh.threads, g->mesh.threads == 1 ? "" : "s");
    if (g->mesh.processes > 1) printf(", in %d processes", g->mesh.processes);
    printf("\n");
    printf("memory    %s per rank, planned and allocated\n",
        human_bytes((double)fullest, memory, sizeof memory));
    if (!g->options.out[0]) printf("saved     nothing: there is no --out\n");
    printf("step      %lld tokens; ", (long long)(g->mesh.passes * g->mesh.dp * s->B * s->T));
    if (train_done(g)) printf("the run is at step %lld already\n", (long long)g->step);
    else
        printf("from step %lld to %lld%s\n", (long long)g->step, (long long)g->options.steps,
            g->step ? " (resumed)" : "");
    char jump[256];
    if (learning_rate_jumps(g, jump, sizeof jump)) printf("warning   %s\n", jump);
}

// Always -1: ends a run that cannot go on. The weights are those of the last good step; they are saved,
// unless an abort has left the ranks unable to. The error stays what it was.
static int train_stop(gpt2_sp* g) {
    Error why = g->error, ignored;
    if (g->options.out[0] && world_aborted(&g->world, &ignored) == 0) gpt2_sp_save(g);
    g->error = why;
    return -1;
}

// "1h03m" of seconds, in out, which it returns.
static const char* human_time(double seconds, char* out, size_t size) {
    long long s = (long long)(seconds + 0.5), m = s / 60, h = m / 60;
    if (s < 60) snprintf(out, size, "%llds", s);
    else if (m < 60) snprintf(out, size, "%lldm%02llds", m, s % 60);
    else if (h < 48) snprintf(out, size, "%lldh%02lldm", h, m % 60);
    else snprintf(out, size, "%lldd%02lldh", h / 24, h % 24);
    return out;
}

// Prints the line of a step: what it did, how often the data has been read (epoch 1.25: once and a quarter),
// the time since step `begin`, and what is left at that pace.
static void step_print(
    const gpt2_sp* g, const gpt2_sp_stats* stats, const double* val_loss, double ms, int64_t begin) {
    char gone[32], left[32];
    long long steps = (long long)g->options.steps, step = (long long)stats->step;
    double rest = ms / 1e3 / (double)(step - begin) * (double)(steps - step);
    printf("step %5lld/%lld  loss %.4f  norm %8.4f  lr %.2e  %8.1f ms  %8.0f tok/s  epoch %.2f  %s", step,
        steps, stats->loss, stats->grad_norm, stats->lr, stats->ms, stats->tok_per_s,
        (double)g->next_sample / (double)dataset_windows(&g->data, g->mesh.shape.T),
        human_time(ms / 1e3, gone, sizeof gone));
    if (step < steps) printf(", %s left", human_time(rest, left, sizeof left));
    if (stats->window > 0) printf("  window %lld", (long long)stats->window);
    if (val_loss) printf("  val %.4f", *val_loss);
    const int finite = isfinite(stats->loss) && isfinite(stats->grad_norm);
    printf("%s\n", stats->updated ? "" : finite ? "  no labels: no update" : "  not finite: no update");
}

// Why a run ends before its last step. If processes differ, the largest counts in all.
enum { STOP_NOT, STOP_PATIENCE, STOP_MINUTES, STOP_SIGNAL };
static int stop_wanted(const gpt2_sp* g, double launched) {
    const gpt2_sp_options* o = &g->options;
    if (stop_signal) return STOP_SIGNAL;
    if (o->max_minutes > 0 && now_ms() - launched >= 60e3 * o->max_minutes) return STOP_MINUTES;
    return patience_over(g) ? STOP_PATIENCE : STOP_NOT;
}

// Why the run ends, in words.
static const char* stop_text(const gpt2_sp* g, int stop, char* out, size_t size) {
    const Validations* v = &g->validations;
    if (stop == STOP_SIGNAL) snprintf(out, size, "stopped by a signal");
    else if (stop == STOP_MINUTES) snprintf(out, size, "stopped after %g minutes", g->options.max_minutes);
    else if (v->best_step < 0)
        snprintf(out, size, "stopped early at step %lld: none of its %lld validations was finite",
            (long long)g->step, (long long)v->since);
    else
        snprintf(out, size,
            "stopped early at step %lld: none of the last %lld validations was better than that of step %lld",
            (long long)g->step, (long long)v->since, (long long)v->best_step);
    return out;
}

// Validates and notes what was found, alike in all processes: the loss is. What stands before the first step
// is told, but is no candidate for the best: nothing is learnt there.
static int train_validate(gpt2_sp* g, double* loss) {
    Validations* v = &g->validations;
    if (gpt2_sp_validate(g, g->options.val_sequences, loss) != 0) return -1;
    v->step = g->step, v->data = validation_data(g);
    if (g->step == 0) return 0;
    v->since++;
    if (v->best_step < 0 ? !isfinite(*loss) : !(*loss < v->best)) return 0;
    v->best_step = g->step, v->best = *loss;
    v->since = 0;
    return 0;
}

// The validation before the first step of a run, and of a launch of a run that was never validated with this
// data: the first losses are then seen beside it.
static int train_validate_first(gpt2_sp* g, FILE* log) {
    double start = now_ms(), loss;
    if (!dataset_given(&g->val_data) || g->validations.step >= 0) return 0;
    if (train_validate(g, &loss) != 0) return -1;
    if (g->mesh.process == 0)
        printf("step %5lld/%lld  val %.4f\n", (long long)g->step, (long long)g->options.steps, loss);
    if (log && log_validation(log, g, loss, now_ms() - start) != 0)
        return fail(&g->error, "cannot write %.900s/log.jsonl: %s", g->options.out, strerror(errno));
    return 0;
}

// The end of a loop that `stop` or the last step has ended: saves, and tells where, why, and which checkpoint
// is the best. `begin`: the step that the launch began with.
static int train_end(gpt2_sp* g, int stop, int64_t begin) {
    const gpt2_sp_options* o = &g->options;
    const Validations* v = &g->validations;
    int64_t done = g->step - begin;
    int vain = done > 0 && g->skipped >= done, unsaved = o->out[0] && g->saved_step != g->step;
    char why[256] = "";
    if (vain)
        fail(&g->error, "the loss or the gradient of none of the %lld steps was finite: nothing is learnt",
            (long long)done);
    if (vain && unsaved) return train_stop(g);
    if (vain) return -1;
    if (unsaved && gpt2_sp_save(g) != 0) return -1;
    if (g->mesh.process != 0) return 0;
    if (stop) printf("%s%s", stop_text(g, stop, why, sizeof why), o->out[0] ? "; " : "\n");
    if (o->out[0] && (stop || unsaved)) printf("saved %s/step_%08lld\n", o->out, (long long)g->step);
    if (v->best_step >= 0 && v->best_step != g->step)
        printf("best      val %.4f, after step %lld%s%s%s\n", v->best, (long long)v->best_step,
            o->out[0] && o->keep_best ? ": " : "", o->out[0] && o->keep_best ? o->out : "",
            o->out[0] && o->keep_best ? ":best" : "");
    return 0;
}

// The loop: step, validate, log, save. A signal to any process, or its clock (`launched`: when it was
// launched), ends it after the step in hand. Process 0 prints.
static int train_loop(gpt2_sp* g, FILE* log, double launched) {
    const gpt2_sp_options* o = &g->options;
    const int64_t begin = g->step;
    int first = g->mesh.process == 0, stop = STOP_NOT, status = train_validate_first(g, log);
    const double start = now_ms();
    for (;;) {
        stop = stop_wanted(g, launched);
        if (processes_agree(&g->host, status, &stop, &g->error) != 0) return train_stop(g);
        if (g->step >= o->steps || stop) break;
        gpt2_sp_stats stats;
        double val_loss = 0;
        stats.size = sizeof stats;
        if (gpt2_sp_step(g, &stats) != 0) return train_stop(g);
        int last = g->step == o->steps;
        int validate =
            dataset_given(&g->val_data) && (last || (o->val_every > 0 && g->step % o->val_every == 0));
        if (validate && train_validate(g, &val_loss) != 0) return train_stop(g);
        if (first && (validate || last || g->step % o->log_every == 0 || g->step == begin + 1))
            step_print(g, &stats, validate ? &val_loss : NULL, now_ms() - start, begin);
        if (first && ferror(stdout) && stop_signal == 0)
            stop_signal = SIGPIPE;   // nobody reads what it prints
        int code = log && log_step(log, &stats, validate ? &val_loss : NULL) != 0 ? errno : 0;
        int due = o->save_every > 0 && g->step % o->save_every == 0,
            best = validate && o->keep_best && g->validations.best_step == g->step;
        if ((due || best) && !last && o->out[0] && gpt2_sp_save(g) != 0 && first)
            fprintf(stderr, "checkpoint at step %lld failed, training goes on: %s\n", (long long)g->step,
                g->error.text);
        if (code != 0) status = fail(&g->error, "cannot write %.900s/log.jsonl: %s", o->out, strerror(code));
    }
    return train_end(g, stop, begin);
}

// Ends the program where nothing else can: a process is gone or the run was aborted, and a rank of this
// process does not come back from its job, as when a GPU waits for another one for ever. A thread looks for
// that until the run is done.
typedef struct {
    gpt2_sp* g;
    pthread_t thread;
    int running, done;   // done: the world's mutex guards it
} Watch;

// Looks five times a second. Patience begins when the first reason is seen in a job, and is at most half a
// minute. Between jobs others may be done and gone while this process still tidies up.
static void* watch_thread(void* argument) {
    Watch* watch = (Watch*)argument;
    ThreadWorld* w = &watch->g->world;
    double patience = w->timeout > 0 ? fmin(w->timeout, 30e3) : 30e3, since = 0;
    Error why = {0, {0}};
    pthread_mutex_lock(&w->mutex);
    while (!watch->done) {
        world_await(w, now_ms() + 200);
        if (!w->working) {
            why.text[0] = 0, since = 0;
            continue;
        }
        if (why.text[0] == 0 && thread_aborted(w, &why) == 0)
            for (int i = 0; i < w->processes && why.text[0] == 0; i++)
                if (net_gone(&w->net, i))
                    fail(&why, "%s is gone (%s)", process_label(w, i).text, net_gone(&w->net, i));
        if (since == 0 && why.text[0]) since = now_ms();
        if (since == 0 || now_ms() - since < patience || watch->done) continue;
        fprintf(stderr, "%s train: %s; a rank of %s does not come back from step %lld\n", program_name,
            why.text, process_label(w, w->process).text, (long long)w->step);
        _exit(1);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}
// Watches a trainer of several ranks. Without a thread to be had, nobody watches.
static void watch_start(Watch* watch, gpt2_sp* g) {
    watch->g = g, watch->done = 0;
    watch->running = g->mesh.world > 1 && pthread_create(&watch->thread, NULL, watch_thread, watch) == 0;
}
static void watch_end(Watch* watch) {
    if (!watch->running) return;
    pthread_mutex_lock(&watch->g->world.mutex);
    watch->done = 1;
    pthread_cond_broadcast(&watch->g->world.changed);
    pthread_mutex_unlock(&watch->g->world.mutex);
    pthread_join(watch->thread, NULL);
}

// ===== 15. commands and main ====================================================================
//
// A command does its work by the functions above and prints its results to stdout; what it tells besides goes
// to stderr. It returns 0, or -1 with a line in e, which `program` prints:
//
//     main -> program: COMMANDS by the first argument -> options_parse -> command_train, command_plan, ...
//
// The exit status is 0 or 1; a run that a signal ends is saved and exits with 0. The GPU program is this file
// with another Device: its commands are the same.

// A whole number from the environment, read and checked as an option's; `other` where the variable is not
// set.
static int environment_number(
    const char* name, double low, double high, int64_t other, int64_t* value, Error* e) {
    char what[64];
    double number = (double)other;
    const char* text = getenv(name);
    snprintf(what, sizeof what, "%s=", name);
    if (text && number_set(what, text, 1, low, high, &number, e) != 0) return -1;
    *value = (int64_t)number;
    return 0;
}

// --master from a launcher's environment. The port is MASTER_PORT, or the next one where torchrun's own store
// sits on it; two jobs of Slurm on one machine need two ports.
static int launch_master(gpt2_sp_options* o, const net_launcher* launcher, Error* e) {
    char host[256], number[32], master[300];
    int64_t port, job, local = 0;
    const char* store = getenv("TORCHELASTIC_USE_AGENT_STORE");
    if (environment_number("SLURM_JOB_ID", 0, 9007199254740991., -1, &job, e) != 0 ||
        environment_number("MASTER_PORT", 1, 65535, job < 0 ? 29400 : 15000 + job % 15000, &port, e) != 0 ||
        (launcher->local_world[0] && environment_number(launcher->local_world, 1, 4096, 0, &local, e) != 0))
        return -1;
    if (net_launched_host(launcher, local == o->world, host, sizeof host, e->text, sizeof e->text) != 0)
        return -1;
    port += getenv("MASTER_PORT") && store && strcmp(store, "True") == 0;
    snprintf(number, sizeof number, "%lld", (long long)port);
    net_address_print(master, sizeof master, host, number);
    return option_set(o, option_find("master"), master, e);
}

// --rank and --world from what a launcher has set in the environment, where the command line has neither;
// --master too, where it has none.
static int launch_environment(gpt2_sp_options* o, Error* e) {
    int64_t rank, world;
    if (o->world > 0 || o->rank > 0) return 0;
    const net_launcher* launcher = net_launched(o->master[0] != 0);
    if (!launcher && o->master[0])
        return fail(e,
            "--master %.300s needs --world, the number of processes, and --rank: no launcher has set them",
            o->master);
    if (!launcher) return net_launched_whole(e->text, sizeof e->text);
    const Option *ranks = option_find("rank"), *worlds = option_find("world");
    if (environment_number(launcher->rank, ranks->low, ranks->high, 0, &rank, e) != 0 ||
        environment_number(launcher->world, 1, worlds->high, 1, &world, e) != 0)
        return -1;
    o->rank = rank, o->world = world;
    return o->world < 2 || o->master[0] ? 0 : launch_master(o, launcher, e);
}

// Trains, from the start or from the newest checkpoint in --out, after --verify or --check.
static int command_train(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    const double launched = now_ms();
    if (o->save_every > 0 && !o->out[0])
        return fail(e, "--save-every %lld needs --out, the run's folder", (long long)o->save_every);
    if (o->val_every > 0 && !o->val_data[0])
        return fail(e, "--val-every %lld needs --val-data", (long long)o->val_every);
    if (o->patience > 0 && o->val_every == 0)
        return fail(e, "--patience %lld needs --val-every and --val-data: it counts validations",
            (long long)o->patience);
    if (launch_environment(o, e) != 0) return -1;
    catch_signals("stopping after this step; a second SIGTERM or SIGINT ends at once, unsaved\n");
    gpt2_sp* g = trainer_make(o, trainer_create, e);
    if (!g) return -1;
    FILE* log = NULL;
    int status = 0, first = g->mesh.process == 0;
    if (first) train_header(g);
    if (o->verify) {
        status = g->device->verify(g);
        if (status != 0) *e = g->error;
        gpt2_sp_destroy(g);
        return status;
    }
    if (o->check && trainer_check_ranks(g) != 0) {
        *e = g->error;
        gpt2_sp_destroy(g);
        return -1;
    }
    if (o->trace[0] && (train_done(g) || o->steps - g->step < TRACED_STEP)) {
        gpt2_sp_destroy(g);
        return fail(e,
            "--trace %.900s records the fourth step from where a run begins or goes on, this one ends before",
            o->trace);
    }
    if (train_done(g)) {
        char why[256];
        if (first && g->step >= o->steps)
            printf("step %lld is done already, of %lld\n", (long long)g->step, (long long)o->steps);
        else if (first)
            printf("%s; a larger --patience, or 0, goes on\n", stop_text(g, STOP_PATIENCE, why, sizeof why));
        gpt2_sp_destroy(g);
        return 0;
    }
    // the run's folder tells what the model is, also where that came from a checkpoint or from --init-from
    o->layers = g->options.layers, o->heads = g->options.heads;
    o->channels = g->options.channels, o->seq_len = g->options.seq_len;
    if (o->out[0] && first &&
        (run_goes_on(g, o, e) != 0 || run_config_write(&g->out, o, e) != 0 || !(log = log_open(&g->out, e))))
        status = -1;
    Watch watch;
    watch_start(&watch, g);
    status = processes_agree(&g->host, status, NULL, e);
    if (status == 0 && train_loop(g, log, launched) != 0) status = -1, *e = g->error;
    watch_end(&watch);
    if (log && fclose(log) != 0 && status == 0)
        status = fail(e, "cannot write %.900s/log.jsonl: %s", o->out, strerror(errno));
    gpt2_sp_destroy(g);
    return status;
}

// -1: a picture of so many ranks, by that option, could not be read.
static int figure_fits(const gpt2_sp_options* o, const char* option, int64_t ranks, Error* e) {
    if (!o->svg[0] || ranks <= FIGURE_RANKS) return 0;
    return fail(e, "--svg draws at most %d ranks (found --%s %lld): more cannot be read", FIGURE_RANKS,
        option, (long long)ranks);
}

// A direction's table and what it costs.
typedef struct {
    Schedule s;
    ScheduleCost cost;
} CostedSchedule;

// Builds and proves the table of a direction, heads left open. After a failure there is none to free.
static int schedule_costed(CostedSchedule* x, const gpt2_sp_options* o, int backward, Error* e) {
    memset(x, 0, sizeof *x);
    if (schedule_build(&x->s, o->schedule, (int)o->sp, backward, 0, e) != 0) return -1;
    if (schedule_prove(&x->s, e) == 0 && schedule_cost(&x->s, &x->cost, e) == 0) return 0;
    schedule_free(&x->s);
    return -1;
}

static void schedule_print_json(const CostedSchedule* x, int backward) {
    const ScheduleCost* cost = &x->cost;
    if (!backward) printf("{\"schedule\": \"%s\", \"sp\": %d", schedule_name(x->s.kind), x->s.P);
    printf(", \"%s\": {\"steps\": %d, \"makespan\": %.10g, \"ideal\": %.10g, \"elements_per_rank\": %.10g, "
           "\"max_elements_sent\": %.10g, \"max_elements_received\": %.10g, \"messages\": %d, "
           "\"hash\": \"%016llx\"}%s",
        backward ? "backward" : "forward", cost->steps, cost->makespan, cost->ideal, cost->elements,
        cost->most_sent, cost->most_received, x->s.message_count, (unsigned long long)schedule_hash(&x->s),
        backward ? "}\n" : "");
}

static int schedule_print(const CostedSchedule* x, const gpt2_sp_options* o, int backward, Error* e) {
    if (schedule_draw(&x->s, &x->cost, (int)o->messages, stdout, e) != 0) return -1;
    printf("  proved: every pair once, every operand in time, nothing overwritten,\n"
           "          every result home, volume as the closed form\n%s",
        backward ? "" : "\n");
    return 0;
}

// Writes the picture of both directions.
static int schedule_picture(const CostedSchedule x[2], const char* path, Error* e) {
    TextFile picture;
    if (text_open(&picture, path, "picture", picture_is, e) != 0) return -1;
    int status = 0;
    schedule_picture_open(&x[0].s, picture.f);
    for (int d = 0; d < 2 && status == 0; d++)
        status = schedule_panel(&x[d].s, &x[d].cost, 40 + d * panel_height(x[d].s.P), picture.f, e);
    schedule_picture_close(&x[0].s, picture.f);
    return text_finish(&picture, status == 0, e);
}

// Prints what a pipeline's table costs, as one JSON object.
static void pipeline_print_json(const Pipeline* t, const PipelineCost* cost) {
    printf("{\"pipeline\": \"%s\", \"pp\": %d, \"slices\": %d, \"micro_batches\": %d, \"chunks\": %d, "
           "\"makespan\": %.10g, \"bubble\": %.10g, \"held\": [",
        pipeline_name(t->kind), t->p, t->k, t->M, t->v, cost->makespan, cost->bubble);
    for (int r = 0; r < t->p; r++) printf("%s%.10g", r ? ", " : "", (double)pipeline_most_held(t, r) / t->v);
    printf("], \"bytes_per_link\": %.10g, \"buffers\": %d, \"hash\": \"%016llx\"}\n", cost->volume,
        t->wrap_buffers, (unsigned long long)pipeline_hash(t));
}

// Fills in what --pipeline leaves open, and refuses what does not go with it.
static int pipeline_options(gpt2_sp_options* o, Error* e) {
    const char* name = pipeline_name(o->pipeline);
    if (o->sp || o->schedule != GPT2_SP_DIST || o->messages)
        return fail(e, "--pipeline does not go with %s, which is of attention",
            o->sp             ? "--sp"
                : o->messages ? "--messages"
                              : "--schedule");
    if (!pipeline_sliced(o->pipeline) && o->slices > 1)
        return fail(e, "--pipeline %s has no --slices (gpipe, slices and slices-interleaved have)", name);
    if (!pipeline_chunked(o->pipeline) && o->chunks > 1)
        return fail(e, "--pipeline %s has no --chunks (interleaved and slices-interleaved have)", name);
    int alone = o->pipeline == GPT2_SP_SLICES || o->pipeline == GPT2_SP_SLICES_INTERLEAVED;
    if (o->pp == 0) o->pp = 4;
    if (o->slices == 0) o->slices = alone ? o->pp : 1;
    if (o->micro_batches == 0) o->micro_batches = alone ? 1 : o->pp;
    if (o->chunks == 0) o->chunks = pipeline_chunked(o->pipeline) ? 2 : 1;
    return figure_fits(o, "pp", o->pp, e);
}

// The table of a pipeline: built, proved, drawn.
static int pipeline_command(gpt2_sp_options* o, Error* e) {
    Pipeline t;
    TextFile picture;
    if (pipeline_options(o, e) != 0) return -1;
    if (pipeline_build(
            &t, o->pipeline, (int)o->pp, (int)o->slices, (int)o->micro_batches, (int)o->chunks, e) != 0)
        return -1;
    int status = pipeline_prove(&t, e);
    PipelineCost cost = pipeline_cost(&t);
    if (status == 0 && o->svg[0]) {
        status = text_open(&picture, o->svg, "picture", picture_is, e);
        if (status == 0) {
            pipeline_picture(&t, &cost, picture.f);
            status = text_finish(&picture, 1, e);
        }
    }
    if (status == 0 && o->json) pipeline_print_json(&t, &cost);
    else if (status == 0 && (status = pipeline_draw(&t, &cost, stdout, e)) == 0)
        printf("  proved: every unit once each way, everything it needs done before, no deadlock,\n"
               "          keys there while needed, no buffer overwritten, figures as the closed forms\n");
    pipeline_free(&t);
    return status;
}

// The tables of both directions. The picture comes first: whoever reads what is printed may stop reading.
static int command_schedule(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    CostedSchedule x[2];
    if (o->pipeline != GPT2_SP_NO_PIPELINE) return pipeline_command(o, e);
    if (o->pp || o->slices || o->micro_batches || o->chunks)
        return fail(e, "--pp, --slices, --micro-batches and --chunks need --pipeline");
    if (o->sp == 0) o->sp = 4;
    if (figure_fits(o, "sp", o->sp, e) != 0) return -1;
    if (schedule_costed(&x[0], o, 0, e) != 0) return -1;
    int status = schedule_costed(&x[1], o, 1, e);
    if (status == 0 && o->svg[0]) status = schedule_picture(x, o->svg, e);
    for (int d = 0; d < 2 && status == 0; d++)
        if (o->json) schedule_print_json(&x[d], d);
        else status = schedule_print(&x[d], o, d, e);
    for (int d = 0; d < 2; d++) schedule_free(&x[d].s);
    return status;
}

// Plans a step's memory and time without making a trainer.
static int command_plan(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    Schedule schedules[2];
    Mesh mesh;
    Layout layout;
    TextFile picture;
    memset(&picture, 0, sizeof picture);
    if (o->svg[0] && text_open(&picture, o->svg, "picture", picture_is, e) != 0) return -1;
    Plan* plan = (Plan*)calloc(1, sizeof *plan);
    memset(schedules, 0, sizeof schedules);
    memset(&layout, 0, sizeof layout);
    int64_t eot, positions;
    bpe tokenizer;
    char init_model[PATH_SIZE];
    int status = plan ? sizes_choose(o, init_model, &positions, &eot, &tokenizer, e)
                      : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (plan) bpe_free(&tokenizer);
    int64_t vocab = o->vocab ? o->vocab : 50257;
    if (status == 0) status = ranks_choose(o, gpt2_sp_device, 1, e);
    if (status == 0) status = mesh_init(&mesh, schedules, o, vocab, 1, gpt2_sp_device, e);
    if (status == 0) status = layout_init(&layout, &mesh, e);
    if (status == 0) {
        Split asked = {mesh.dp, mesh.sp, mesh.shape.B, mesh.passes};
        plan->mesh = &mesh, plan->layout = &layout;
        plan->fullest = fullest_rank(&mesh, &layout);
        int known = o->gflops > 0 && o->link_gbs > 0 && o->copy_gbs > 0;
        if (!known) status = mesh.device->rates(&plan->measured, &mesh, e);
        plan->rates = rates_of(o, &plan->measured, mesh.world);
        plan->memory =
            o->memory_gb > 0 ? o->memory_gb * 1073741824 : (double)gpt2_sp_device->memory(&mesh) / mesh.world;
        if (status == 0) status = step_cost(&plan->cost, &mesh, &layout, asked, o->schedule, &plan->rates, e);
    }
    if (status == 0) {
        plan->longest = longest_context(o, vocab, 1, gpt2_sp_device, (uint64_t)plan->memory);
        plan_project(plan, o, vocab);
        if (picture.f) plan_picture(plan, o, picture.f);
    }
    if (picture.f) status = text_finish(&picture, status == 0, e);
    if (status == 0 && o->json) plan_print_json(plan, o);
    else if (status == 0) plan_print(plan, o);
    free(plan);
    free(layout.units);
    schedule_free(&schedules[0]);
    schedule_free(&schedules[1]);
    return status;
}

// A number for a person, in `width` columns: whole ones without a point.
static void eval_number(int width, double x) {
    printf("%*.*f", width, x == floor(x) && fabs(x) < 1e15 ? 0 : 4, x);
}

// Prints a name of JSON with blanks, at the left or the right of `width` columns.
static void eval_name(const char* name, int width, int right) {
    const int rest = (int)max_i64(0, width - (int64_t)strlen(name));
    printf("%*s", right ? rest : 0, "");
    for (; *name; name++) putchar(*name == '_' ? ' ' : *name);
    printf("%*s", right ? 0 : rest, "");
}

// An evaluation as text: the totals, a line each, and the table. columns: the models, and of two what the
// second has more than the first.
static void eval_print(const Evaluator* x, const EvalTable* const* column, int columns) {
    static const char* const whose[] = {"first", "second", "difference"};
    enum { NAME = 22, NUMBER = 11 };
    const EvalTable* t = column[0];
    int figures = 0;
    for (int i = 0; i < EVAL_TOTALS && x->totals[i]; i++) {
        if (isnan(t->total[i])) continue;
        eval_name(x->totals[i], NAME, 0);
        for (int c = 0; c < columns; c++) eval_number(NUMBER, column[c]->total[i]);
        printf("\n");
    }
    printf("%s\n%*s", x->title, NAME, "");
    while (figures < EVAL_FIGURES && x->figures[figures]) figures++;
    const char* between = figures > 1 && columns > 1 ? "  |" : "";   // models of several figures each
    for (int c = 0; columns > 1 && c < columns; c++)
        printf("%s%*s", c ? between : "", figures * NUMBER, whose[c]);
    if (columns > 1) printf("\n%*s", NAME, "");
    for (int c = 0; c < columns; c++) {
        printf("%s", c ? between : "");
        for (int f = 0; f < figures; f++) eval_name(x->figures[f], NUMBER, 1);
    }
    printf("\n");
    for (int r = 0; r < t->rows; r++) {
        const EvalRow* row = &t->row[r];
        if (row->word) printf("  %-10s%-10lld", row->word, (long long)row->key[1]);
        else printf("  %7lld .. %-9lld", (long long)row->key[0], (long long)row->key[1]);
        for (int c = 0; c < columns; c++) {
            printf("%s", c ? between : "");
            for (int f = 0; f < figures; f++) printf("%*.4f", NUMBER, column[c]->row[r].figure[f]);
        }
        printf("   (%.0f %s)\n", row->count, x->unit);
    }
}

// The same of one column as members of an object.
static void eval_json(const Evaluator* x, const EvalTable* t) {
    char number[40];
    const char* comma = "";
    for (int i = 0; i < EVAL_TOTALS && x->totals[i]; i++) {
        if (isnan(t->total[i])) continue;
        json_number(number, sizeof number, t->total[i]);
        printf(", \"%s\": %s", x->totals[i], number);
    }
    printf(", \"%s\": [", x->rows);
    for (int r = 0; r < t->rows; r++, comma = ", ") {
        const EvalRow* row = &t->row[r];
        if (row->word) printf("%s{\"%s\": \"%s\"", comma, x->keys[0], row->word);
        else printf("%s{\"%s\": %lld", comma, x->keys[0], (long long)row->key[0]);
        printf(", \"%s\": %lld", x->keys[1], (long long)row->key[1]);
        for (int f = 0; f < EVAL_FIGURES && x->figures[f]; f++) {
            json_number(number, sizeof number, row->figure[f]);
            printf(", \"%s\": %s", x->figures[f], number);
        }
        printf(", \"count\": %.0f}", row->count);
    }
    printf("]");
}

// What the second model's figures have more than the first's. The keys and counts of the rows are the same.
static void eval_difference(const EvalTable* first, const EvalTable* second, EvalTable* out) {
    *out = *second;
    for (int i = 0; i < EVAL_TOTALS; i++) out->total[i] -= first->total[i];
    for (int r = 0; r < out->rows; r++)
        for (int f = 0; f < EVAL_FIGURES; f++) out->row[r].figure[f] -= first->row[r].figure[f];
}

// What is measured: a column for each model and, of two, one for their difference.
enum { EVAL_MODELS = 2, EVAL_COLUMNS = EVAL_MODELS + 1 };
typedef struct {
    EvalTable table[EVAL_COLUMNS][EVALUATION_COUNT];
    char model[EVAL_MODELS][GPT2_SP_TEXT];
    int models;
} EvalFigures;

// Prints all that was asked for. JSON: one object, or of two models an array of two and their difference.
static void eval_report(const gpt2_sp_options* o, const EvalFigures* f) {
    const int columns = f->models == EVAL_MODELS ? EVAL_COLUMNS : 1;
    for (int m = 0; f->models == EVAL_MODELS && !o->json && m < f->models; m++)
        printf("%s model: %s\n", m ? "second" : "first", f->model[m]);
    if (columns > 1 && !o->json) printf("%-22s%11s%11s%11s\n", "", "first", "second", "difference");
    for (int x = 0; !o->json && x < EVALUATION_COUNT; x++) {
        const EvalTable* column[EVAL_COLUMNS];
        for (int c = 0; c < EVAL_COLUMNS; c++) column[c] = &f->table[c][x];
        if (eval_wanted(o, &EVALUATIONS[x])) eval_print(&EVALUATIONS[x], column, columns);
    }
    if (!o->json) return;
    for (int c = 0; c < columns; c++) {
        static const char* const before[EVAL_COLUMNS] = {"{\"models\": [", ", ", "], \"difference\": "};
        if (columns > 1) printf("%s", before[c]);
        printf("{\"from\": ");
        json_write_string(stdout, f->model[min_i64(c, f->models - 1)]);
        for (int x = 0; x < EVALUATION_COUNT; x++)
            if (eval_wanted(o, &EVALUATIONS[x])) eval_json(&EVALUATIONS[x], &f->table[c][x]);
        printf("}");
    }
    printf(columns > 1 ? "}\n" : "\n");
}

// The models of --from, one or two, and in *T the context in which they are compared: --seq-len, else the
// smaller one of theirs.
static int eval_models(const gpt2_sp_options* o, EvalFigures* f, int64_t* T, Error* e) {
    const char* list = o->from;
    *T = o->seq_len;
    if (!list[0]) return fail(e, "no model given: --from RUN");
    while (*list) {
        if (f->models == EVAL_MODELS)
            return fail(e,
                "--from %.300s: more than two models (a comma that belongs to a name is written \\,)",
                o->from);
        gpt2_sp_options sizes;
        char path[PATH_SIZE];
        int64_t vocab, eot;
        list = list_item(list, f->model[f->models]);
        if (*list == ',') list++;
        options_default(&sizes);
        if (model_find("from", f->model[f->models++], &o->log, path, e) != 0 ||
            model_read(path, &sizes, &vocab, &eot, e) != 0)
            return -1;
        if (o->seq_len == 0) *T = *T ? min_i64(*T, sizes.seq_len) : sizes.seq_len;
    }
    return 0;
}

// Evaluations that the model cannot be asked for.
static int eval_model_check(const Eval* v, Error* e) {
    const gpt2_sp* g = v->g;
    if (v->o->needle > 0 && g->mesh.shape.V != BYTE_VOCAB)
        return fail(e, "--needle needs a model of the byte tokenizer (vocabulary %d, found %lld)", BYTE_VOCAB,
            (long long)g->mesh.shape.V);
    if (v->o->probe != GPT2_SP_NO_PROBE && !g->tokenizer.token)
        return fail(e,
            "--probe asks in text, and there is no tokenizer beside the model %.300s (tokenizer.json, or "
            "vocab.json and merges.txt)",
            model_named(g));
    return 0;
}

// Loads model number v->model for an evaluation. The mesh has the mask of documents where windows or
// questions are to lie side by side.
static int eval_load(Eval* v, const char* model, int64_t T, Error* e) {
    gpt2_sp_options* one = (gpt2_sp_options*)malloc(sizeof *one);
    if (!one) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    *one = *v->o;
    snprintf(one->from, sizeof one->from, "%s", model);
    one->seq_len = T;
    one->doc_mask |= v->o->context_gain > 0 || v->o->sliding[0] || v->o->probe != GPT2_SP_NO_PROBE;
    v->g = trainer_make(one, trainer_load, e);
    free(one);
    if (!v->g) return -1;
    v->g->options.doc_mask = v->o->doc_mask;
    if (eval_model_check(v, e) != 0) return -1;
    if (v->model == 0) {
        v->first = model_tokens(v->g);
        return 0;
    }
    ModelTokens own = model_tokens(v->g);
    return tokens_agree(&v->first, "second", &own, e);
}

// Opens the data for the first model, and sees for every model whether it fits. A model that has no tokenizer
// gets the one that the data carry.
static int eval_data(Eval* v, Error* e) {
    const gpt2_sp_options* o = v->o;
    const int64_t windows = o->val_sequences > 0 ? o->val_sequences : INT64_MAX, T = v->g->mesh.shape.T;
    const DataHow how = {(int)o->raw_u16, v->g->mesh.shape.V, (int)o->doc_mask};
    if (v->model == 0 && dataset_open(&v->data, o->data, &how, e) != 0) return -1;
    if (data_fits(v->g, &v->data, "data", v->g->mesh.shape.V, windows, e) != 0) return -1;
    if (!v->g->tokenizer.token && dataset_tokenizer(&v->data, &v->g->tokenizer, e) < 0) return -1;
    if (v->model > 0) return 0;
    v->tokens = min_i64(windows, (int64_t)dataset_windows(&v->data, T)) * T + 1;
    v->tokens = min_i64(v->tokens, (int64_t)v->data.tokens);
    return losses_allocate(v, machine_bytes(&v->g->mesh), e);
}

// Measures all that was asked for of the model that is loaded.
static int eval_measure(Eval* v, EvalTable* tables) {
    for (int i = 0; i < v->losses_count; i++)
        if (losses_collect(v, &v->losses[i]) != 0) return -1;
    for (int x = 0; x < EVALUATION_COUNT; x++) {
        for (int i = 0; i < EVAL_TOTALS; i++) tables[x].total[i] = NAN;
        if (eval_wanted(v->o, &EVALUATIONS[x]) && EVALUATIONS[x].measure(v, &tables[x]) != 0) return -1;
    }
    return 0;
}

// Evaluations that cannot be made without others' options.
static int eval_check(const gpt2_sp_options* o, Error* e) {
    int asked = 0;
    for (int x = 0; x < EVALUATION_COUNT; x++) asked += eval_wanted(o, &EVALUATIONS[x]);
    if (asked == 0) return fail(e, "nothing to do: give --data, --needle, --probe or several of them");
    if (o->context_gain > 0 && !o->data[0]) return fail(e, "--context-gain needs --data");
    if (o->sliding[0] && !o->data[0]) return fail(e, "--sliding needs --data");
    if (o->pos_from == GPT2_SP_FROM_DOCUMENT &&
        !o->doc_mask)   // the mesh may have the mask for other reasons
        return fail(e, "--pos-from document needs --doc-mask 1, with which positions are those in documents");
    return 0;
}

// Evaluates one model, or two on the same tokens and questions, one after the other.
static int command_eval(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    int64_t T;
    Eval* v = (Eval*)calloc(1, sizeof *v);
    EvalFigures* f = (EvalFigures*)calloc(1, sizeof *f);
    int status = v && f ? eval_check(o, e) : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (status == 0) status = eval_models(o, f, &T, e);
    if (v) v->o = o;
    if (status == 0) status = losses_plan(v, T, e);
    for (int m = 0; status == 0 && m < f->models; m++) {
        v->model = m;
        status = eval_load(v, f->model[m], T, e);
        if (status == 0 && o->data[0]) status = eval_data(v, e);
        if (status == 0 && eval_measure(v, f->table[m]) != 0) status = -1, *e = v->g->error;
        gpt2_sp_destroy(v->g);
        v->g = NULL;
    }
    for (int x = 0; status == 0 && f->models == EVAL_MODELS && x < EVALUATION_COUNT; x++)
        eval_difference(&f->table[0][x], &f->table[1][x], &f->table[EVAL_MODELS][x]);
    if (status == 0) eval_report(o, f);
    for (int i = 0; v && i < v->losses_count; i++) free(v->losses[i].loss);
    if (v) dataset_close(&v->data), free(v->key);
    free(v);
    free(f);
    return status;
}

// A prompt. Of one that is longer than the context (T) the tokens are counted, and not all kept.
typedef struct {
    int32_t* tokens;   // (min(count, T))
    int64_t count;
    int text;   // it was given as text, and so is what continues it; else as token numbers
} Prompt;

// "464,3290,318" as tokens of a vocabulary, from option `name`; commas and white space separate. More than
// the context (T) are counted and not kept.
static int tokens_parse(Prompt* p, const char* name, const char* text, int64_t vocab, int64_t T, Error* e) {
    for (const char* blank = " \t\r\n";;) {
        char* end;
        text += strspn(text, blank);
        long long token = strtoll(text, &end, 10);
        if (end == text || (*end && !strchr(", \t\r\n", *end)))
            return fail(e, "--%s: expected token numbers separated by commas at `%.40s`", name, text);
        if (token < 0 || token >= vocab)
            return fail(e, "--%s: %.*s is no token of the model's vocabulary, 0 to %lld", name,
                (int)min_i64(end - text, 40), text, (long long)vocab - 1);
        if (p->count < T) p->tokens[p->count] = (int32_t)token;
        p->count++;
        text = end + strspn(end, blank);
        if (!*text) return 0;
        if (*text == ',') text++;
    }
}

// Adds a piece of a prompt's text to it; `last`: the text ends with it.
static int prompt_encode(
    Prompt* p, bpe_encoder* encoder, const char* text, size_t n, int last, int64_t T, Error* e) {
    if (bpe_encode(encoder, text, n, last, e->text, sizeof e->text) != 0) return -1;
    for (size_t i = 0; i < encoder->tokens; i++, p->count++)
        if (p->count < T) p->tokens[p->count] = (int32_t)encoder->token[i];
    encoder->tokens = 0;
    return 0;
}

// Reads --prompt, or --prompt-file (`file`, else NULL), as text in the model's tokens. A file that is longer
// than the context is not read to its end.
static int prompt_text(const gpt2_sp* g, Prompt* p, FILE* file, Error* e) {
    const gpt2_sp_options* o = &g->options;
    const int64_t T = g->mesh.shape.T;
    bpe_encoder encoder;
    char* piece = (char*)malloc(1 << 16);
    int status = bpe_encoder_open(&encoder, &g->tokenizer, (int)o->specials, e->text, sizeof e->text);
    if (status == 0 && !piece) status = fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if (status == 0 && !file) status = prompt_encode(p, &encoder, o->prompt, strlen(o->prompt), 1, T, e);
    for (size_t n = 1; status == 0 && file && n > 0 && p->count <= T;) {
        n = fread(piece, 1, 1 << 16, file);
        status = ferror(file) ? fail(e, "--prompt-file %.900s: %s", o->prompt_file, strerror(errno))
                              : prompt_encode(p, &encoder, piece, n, n == 0, T, e);
    }
    bpe_encoder_close(&encoder);
    free(piece);
    return status;
}

// Reads --prompt-file as token numbers; of a longer file than a prompt can be only the front.
static int prompt_numbers(const gpt2_sp* g, Prompt* p, FILE* file, Error* e) {
    const gpt2_sp_options* o = &g->options;
    // a token number, its sign and what separates it take a dozen characters at most, if no more blanks
    size_t limit = (size_t)(16 * g->mesh.shape.T + 4096);
    char* text = (char*)malloc(limit + 1);
    if (!text) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    size_t n = fread(text, 1, limit, file);
    text[n] = 0;
    int status = ferror(file) ? fail(e, "--prompt-file %.900s: %s", o->prompt_file, strerror(errno))
        : memchr(text, 0, n)
        ? fail(e, "--prompt-file %.900s: token numbers, and a zero byte among them", o->prompt_file)
        : tokens_parse(p, "prompt-file", text, g->mesh.shape.V, g->mesh.shape.T, e);
    free(text);
    return status;
}

// Reads what --prompt, --prompt-file or --prompt-tokens stand for; -1 with a line in e. Text needs the
// model's tokenizer; without it --prompt-file holds token numbers. An empty prompt, or none for a model
// without a tokenizer, stands for the beginning of a document: the token that ended the one before.
static int prompt_read(const gpt2_sp* g, Prompt* p, Error* e) {
    const gpt2_sp_options* o = &g->options;
    int64_t V = g->mesh.shape.V, T = g->mesh.shape.T;
    int given = strcmp(o->prompt, option_find("prompt")->text) != 0, known = g->tokenizer.token != NULL;
    memset(p, 0, sizeof *p);
    p->text = known && !o->prompt_tokens[0];
    p->tokens = (int32_t*)malloc((size_t)T * sizeof *p->tokens);
    if (!p->tokens) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    if ((o->prompt_tokens[0] != 0) + (o->prompt_file[0] != 0) + given > 1)
        return fail(e, "--prompt, --prompt-file and --prompt-tokens: give one of them");
    if (!known && (o->specials || (given && o->prompt[0])))
        return fail(e,
            "%s is text, and there is no tokenizer beside this model (tokenizer.json, or vocab.json and "
            "merges.txt): put it there, or give --prompt-tokens",
            o->specials ? "what --specials speaks of" : "--prompt");
    if (o->prompt_tokens[0]) return tokens_parse(p, "prompt-tokens", o->prompt_tokens, V, T, e);
    int status = 0;
    if (o->prompt_file[0]) {
        FILE* file = strcmp(o->prompt_file, "-") == 0 ? stdin : fopen(o->prompt_file, "rb");
        if (!file) return fail(e, "--prompt-file %.900s: %s", o->prompt_file, strerror(errno));
        status = known ? prompt_text(g, p, file, e) : prompt_numbers(g, p, file, e);
        if (file != stdin) fclose(file);
    } else if (known) status = prompt_text(g, p, NULL, e);
    if (status != 0 || p->count > 0) return status;
    if (g->eot < 0)
        return fail(e, "no token ends this model's documents, so none can begin one: give --prompt-tokens");
    p->tokens[p->count++] = (int32_t)g->eot;
    return 0;
}

// Where a text goes that is printed token by token.
typedef struct {
    const gpt2_sp* g;
    FILE* out;
    int text;   // as the text that the tokens stand for, in whole characters; else as numbers
    int64_t printed;
    const Prompt* prompt;   // that is printed before the first token; NULL: it has been
    int64_t number;         // of the continuation, from 1 on, in a line before its text; 0: there is one only
    bpe_decoder decoder;
    const char* stop;   // --stop, while a continuation is printed; NULL or empty: none
    size_t held;        // bytes of it that are at the end of the text, and not printed yet
    int stopped;        // the text has come to it
} TokenPrinter;

// Prints bytes of a text, but those that may be the beginning of --stop, until the text has come to it.
static void text_print(TokenPrinter* p, const unsigned char* bytes, size_t n) {
    const size_t length = p->stop ? strlen(p->stop) : 0;
    if (length == 0) fwrite(bytes, 1, n, p->out);
    for (size_t i = 0; length > 0 && i < n && !p->stopped; i++) {
        // the end of the text that is a beginning of --stop becomes shorter until the byte goes on with it
        while (p->held > 0 && (unsigned char)p->stop[p->held] != bytes[i]) {
            size_t shorter = p->held - 1;
            while (shorter > 0 && memcmp(p->stop, p->stop + p->held - shorter, shorter) != 0) shorter--;
            fwrite(p->stop, 1, p->held - shorter, p->out);
            p->held = shorter;
        }
        if ((unsigned char)p->stop[p->held] == bytes[i]) p->held++;
        else putc(bytes[i], p->out);
        p->stopped = p->held == length;
    }
}

// Prints a token at once. The end of a document has no text.
static void token_print(TokenPrinter* p, int32_t token) {
    unsigned char out[BPE_MAX_TOKEN + 4];
    if (!p->text) fprintf(p->out, p->printed++ ? ",%d" : "%d", token);
    else if (token != p->g->eot) {
        long n = bpe_decode(&p->g->tokenizer, &p->decoder, (uint32_t)token, out);
        if (n > 0) text_print(p, out, (size_t)n);
    }
    fflush(p->out);
}
// Prints what comes before the first token of a text, once.
static void token_print_begin(TokenPrinter* p) {
    const Prompt* prompt = p->prompt;
    p->prompt = NULL;
    if (!prompt || !p->text) return;
    if (p->number > 0)
        fprintf(p->out, "--- %lld of %lld\n", (long long)p->number, (long long)p->g->options.count);
    for (int64_t i = 0; i < prompt->count; i++) token_print(p, prompt->tokens[i]);
    p->stop = p->g->options.stop;
}
// gpt2_sp_sampling.token: prints what is drawn, up to --stop. So nothing is printed where nothing can be
// drawn.
static int token_drawn_print(void* printer, int32_t token) {
    TokenPrinter* p = (TokenPrinter*)printer;
    token_print_begin(p);
    token_print(p, token);
    return p->stopped;
}

// Prints what is left of the last character and of a --stop that did not come, and a line's end.
static void token_print_end(TokenPrinter* p) {
    unsigned char out[4];
    token_print_begin(p);
    long n = p->text ? bpe_decode_end(&p->decoder, out) : 0;
    text_print(p, out, (size_t)n);
    if (!p->stopped && p->held > 0) fwrite(p->stop, 1, p->held, p->out);
    putc('\n', p->out);
    fflush(p->out);
}

// Whose turn it is to print, of replicas that draw side by side.
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int64_t next;   // the continuation that is printed next
    int failed;     // a replica cannot go on: no more is printed
} Turns;

// One of --dp's replicas: a model, its draft if there is one, and what they have drawn. It draws every dp-th
// continuation, from `number` on.
typedef struct {
    gpt2_sp *g, *draft;
    int64_t number, dp;
    const Prompt* prompt;
    int64_t length;   // of a continuation, at most
    Turns* turns;
    gpt2_sp_generated stats;
    int64_t ended, stopped;   // continuations that the model ended, or --stop
    int status;
    pthread_t thread;
} Replica;

// Waits until all continuations before this one are printed, and prints it. -1 where that will not be.
static int turn_print(Turns* turns, int64_t continuation, const char* text, size_t size) {
    pthread_mutex_lock(&turns->mutex);
    while (turns->next != continuation && !turns->failed) pthread_cond_wait(&turns->changed, &turns->mutex);
    int failed = turns->failed;
    if (!failed) fwrite(text, 1, size, stdout), fflush(stdout), turns->next++;
    pthread_cond_broadcast(&turns->changed);
    pthread_mutex_unlock(&turns->mutex);
    return failed ? -1 : 0;
}

// A replica cannot go on: whoever waits for its continuations ends.
static void turns_fail(Turns* turns) {
    pthread_mutex_lock(&turns->mutex);
    turns->failed = 1;
    pthread_cond_broadcast(&turns->changed);
    pthread_mutex_unlock(&turns->mutex);
}

// Draws one continuation and prints it: token by token, or of several replicas when it is its turn. Several
// texts are told apart by a line before each.
static int replica_continue(
    Replica* x, gpt2_sp_generator* generator, int32_t* tokens, gpt2_sp_sampling* how) {
    gpt2_sp* g = x->g;
    char* text = NULL;
    size_t size = 0;
    const int64_t number = (int64_t)how->continuation;
    FILE* out = x->dp > 1 ? open_memstream(&text, &size) : stdout;
    if (!out) return fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    TokenPrinter printer = {
        g, out, x->prompt->text, 0, x->prompt, g->options.count > 1 ? number + 1 : 0, {{0}, 0}, NULL, 0, 0};
    how->token = token_drawn_print, how->user = &printer;
    int64_t made = gpt2_sp_generator_run(generator, tokens, x->length, how);
    int status = made < 0 ? -1 : 0;
    if (status == 0) token_print_end(&printer);
    if (out != stdout && fclose(out) != 0 && status == 0)
        status = fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    if (out != stdout && status == 0) status = turn_print(x->turns, number, text, size);
    free(text);
    x->stopped += printer.stopped, x->ended += status == 0 && !printer.stopped && made < x->length;
    return status;
}

// The thread of a replica: draws and prints its continuations of the prompt.
static void* replica_run(void* argument) {
    Replica* x = (Replica*)argument;
    gpt2_sp* g = x->g;
    gpt2_sp_sampling how = sampling_of(&g->options);
    gpt2_sp_generator* generator =
        gpt2_sp_generator_open(g, x->draft, x->prompt->tokens, x->prompt->count, x->length);
    int32_t* tokens = (int32_t*)malloc((size_t)max_i64(x->length, 1) * sizeof *tokens);
    x->status = generator && tokens ? 0 : -1;
    if (generator && !tokens) fail_as(GPT2_SP_NO_MEMORY, &g->error, "out of memory");
    for (int64_t i = x->number; x->status == 0 && i < g->options.count; i += x->dp) {
        how.continuation = (uint64_t)i;
        x->status = replica_continue(x, generator, tokens, &how);
    }
    x->stats.size = sizeof x->stats;
    if (generator) gpt2_sp_generator_stats(generator, &x->stats);
    gpt2_sp_generator_close(generator);
    free(tokens);
    if (x->status != 0) turns_fail(x->turns);
    return NULL;
}

// Has all replicas draw: one here, several on threads of their own. The first then has the sums of all, and
// the longest times; the line of one that failed is in e.
static int replicas_run(Replica* all, int64_t count, Error* e) {
    Turns turns = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
    int64_t started = 0;
    for (int64_t i = 0; i < count; i++) all[i].turns = &turns;
    if (count == 1) replica_run(&all[0]);
    for (; count > 1 && started < count; started++)
        if (pthread_create(&all[started].thread, NULL, replica_run, &all[started]) != 0) break;
    int status = count == 1 || started == count ? 0 : fail(e, "no thread for a replica");
    if (status != 0) turns_fail(&turns);
    for (int64_t i = 0; i < started; i++) pthread_join(all[i].thread, NULL);
    gpt2_sp_generated* sum = &all[0].stats;
    for (int64_t i = 0; i < count; i++) {
        if (all[i].status != 0 && status == 0 && all[i].g->error.text[0]) *e = all[i].g->error, status = -1;
        if (i == 0) continue;
        sum->tokens += all[i].stats.tokens, sum->passes += all[i].stats.passes;
        sum->drafted += all[i].stats.drafted, sum->accepted += all[i].stats.accepted;
        sum->plain_ms += all[i].stats.plain_ms;   // one replica has it
        sum->ms = fmax(sum->ms, all[i].stats.ms),
        sum->prompt_ms = fmax(sum->prompt_ms, all[i].stats.prompt_ms);
        all[0].ended += all[i].ended, all[0].stopped += all[i].stopped;
    }
    return status;
}

// Tokens and milliseconds as "20 tokens in 0.025 s, 800 tok/s".
static void sample_rate(char* out, size_t size, int64_t tokens, double ms) {
    snprintf(out, size, "%lld tokens in %.3f s, %.0f tok/s", (long long)tokens, ms / 1e3,
        (double)tokens / fmax(ms, 1e-3) * 1e3);
}

// What `sample` says on stderr: the speed of drawing and of reading the prompt, and why continuations of
// `length` tokens ended.
static void sample_report(
    const gpt2_sp* g, const gpt2_sp_generated* stats, int64_t length, int64_t ended, int64_t stopped) {
    char drawn[96], read[96], faster[64] = "";
    sample_rate(drawn, sizeof drawn, stats->tokens, stats->ms);
    sample_rate(read, sizeof read, stats->prompt, stats->prompt_ms);
    fprintf(stderr, "sample: %s; prompt: %s", drawn, read);
    if (g->options.count > 1 && ended > 0)
        fprintf(stderr, "; the model ended %lld of %lld documents", (long long)ended,
            (long long)g->options.count);
    else if (ended > 0) fprintf(stderr, "; then the model ended the document");
    if (stopped > 0) fprintf(stderr, "; %lld came to --stop", (long long)stopped);
    fprintf(stderr, "\n");
    if (stats->plain_ms > 0)
        snprintf(faster, sizeof faster, "; %.2f times as fast as without",
            (double)stats->tokens * stats->plain_ms / stats->ms);
    if (stats->drafted > 0)
        fprintf(stderr,
            "sample: --draft: %lld of %lld proposed tokens taken, %.1f %%; %.2f tokens a pass%s\n",
            (long long)stats->accepted, (long long)stats->drafted,
            100.0 * (double)stats->accepted / (double)stats->drafted,
            (double)(stats->tokens - g->options.count) / (double)stats->passes, faster);
    if (length < g->options.length && ended + stopped < g->options.count)
        fprintf(stderr, "sample: the context of %lld tokens is full\n", (long long)g->mesh.shape.T);
}

// Reads the prompt for the first replica's model, and says how many tokens a continuation has at most.
static int sample_prompt(const gpt2_sp* g, Prompt* prompt, int64_t* length, Error* e) {
    const gpt2_sp_options* o = &g->options;
    const int64_t T = g->mesh.shape.T;
    if (prompt_read(g, prompt, e) != 0) return -1;
    *length = min_i64(o->length, T - prompt->count);
    if (o->stop[0] && !prompt->text)
        return fail(e, "--stop is text, and token numbers are printed: give a text as the prompt");
    if (prompt->count < T) return 0;
    const char* option = o->prompt_tokens[0] ? "-tokens" : o->prompt_file[0] ? "-file" : "";
    return fail(e, "--prompt%s has %s%lld tokens, the context holds %lld and one that comes behind them",
        option, o->prompt_file[0] ? "at least " : "", (long long)prompt->count, (long long)T - 1);
}

// Loads the models of all replicas. Each has its share of the machine, as one of `dp` processes would. A
// draft is small, so one rank reads for it.
static int replicas_load(Replica* all, const gpt2_sp_options* o, Error* e) {
    gpt2_sp_options* one = (gpt2_sp_options*)malloc(sizeof *one);
    int status = one ? 0 : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    for (int64_t i = 0; status == 0 && i < o->dp; i++) {
        *one = *o;
        one->dp = 1, one->rank = i;
        one->world = o->dp;
        all[i].number = i, all[i].dp = o->dp;
        all[i].g = trainer_make(one, trainer_load_replica, e);
        one->sp = 1;
        if (all[i].g && o->draft[0]) all[i].draft = trainer_make(one, trainer_load_draft, e);
        if (!all[i].g || (o->draft[0] && !all[i].draft)) status = -1;
    }
    free(one);
    return status;
}

// Continues a prompt: the text to stdout, the time to stderr. As many tokens as fit in the context.
static int command_sample(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    Prompt prompt;
    int64_t length = 0;
    o->sp = max_i64(1, o->sp);
    if (o->dp > o->count)
        return fail(e, "--dp %lld replicas: --count %lld has work for %lld of them", (long long)o->dp,
            (long long)o->count, (long long)o->count);
    Replica* all = (Replica*)calloc((size_t)o->dp, sizeof *all);
    if (!all) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    memset(&prompt, 0, sizeof prompt);
    int status = replicas_load(all, o, e);
    if (status == 0) status = sample_prompt(all[0].g, &prompt, &length, e);
    for (int64_t i = 0; i < o->dp; i++) all[i].prompt = &prompt, all[i].length = length;
    if (status == 0) status = replicas_run(all, o->dp, e);
    if (status == 0) sample_report(all[0].g, &all[0].stats, length, all[0].ended, all[0].stopped);
    for (int64_t i = 0; i < o->dp; i++) gpt2_sp_destroy(all[i].draft), gpt2_sp_destroy(all[i].g);
    free(prompt.tokens);
    free(all);
    return status;
}

// What `prepare` does beside data/prepare.h, which makes the shards: it opens them, tells of its progress and
// of what it leaves out, and counts at the end.
enum { LEFT_OUT_SHOWN = 20, LEFT_OUT_REASONS = 16, PROGRESS_MS = 10000, PROGRESS_TERMINAL_MS = 500 };
typedef struct {
    prepare work;
    bpe tokenizer;
    const text_reader* reader;
    int terminal;         // stderr is one
    uint64_t size;        // bytes of all input files; 0: not known
    double began, told;   // times of the beginning and of the last line of progress, in ms
    FILE* left_out;       // lines that name the first entries that are left out, into memory
    uint64_t left_out_count;
    struct {
        const char* why;
        uint64_t count;   // of those that are not named
    } reasons[LEFT_OUT_REASONS];
} Preparation;

// Opens a shard at `path`, which carries the tokenizer's `file` of `size` bytes.
static int prepare_shard(Preparation* p, tok_writer* w, const gpt2_sp_options* o, const char* path,
    const char* file, size_t size, Error* e) {
    const bpe* b = &p->tokenizer;
    if (tok_writer_open(w, path, tokenizer_number(b), b->vocab_size, b->eot, (uint32_t)o->block_tokens,
            e->text, sizeof e->text) != 0)
        return -1;
    if (tokenizer_number(b) == TOK_BYTE) return 0;   // which everybody has
    return tok_writer_tokenizer(w, file, size, e->text, sizeof e->text);
}

// 1 where --tokenizer names a run: its newest whole checkpoint, which has the tokenizer's files, is in
// `path`; 0 where it names a tokenizer.
static int tokenizer_run(const char* name, char path[PATH_SIZE], Error* e) {
    struct stat info;
    if (stat(name, &info) != 0 || !S_ISDIR(info.st_mode) || folder_has(name, "tokenizer.json") ||
        folder_has(name, "vocab.json"))
        return 0;
    return checkpoint_find(name, &PRINTED, path, e);
}

// Opens the shards and starts the threads. On an error nothing is left open.
static int prepare_open(Preparation* p, const gpt2_sp_options* o, Error* e) {
    char pattern[16], run[PATH_SIZE], *file = NULL;
    size_t size = 0;
    memset(p, 0, sizeof *p);
    choice_word(option_find("pattern")->text, o->pattern, pattern, sizeof pattern);
    int found = tokenizer_run(o->tokenizer, run, e);
    if (found < 0 ||
        tokenizer_open(&p->tokenizer, found ? run : o->tokenizer, o->pattern ? pattern : NULL, e))
        return -1;
    FILE* memory = open_memstream(&file, &size);
    int status = !memory || bpe_write(&p->tokenizer, 0, 0, memory) != 0
        ? fail_as(GPT2_SP_NO_MEMORY, e, "out of memory")
        : 0;
    if (memory && fclose(memory) != 0) status = fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    prepare* work = &p->work;
    if (status == 0) status = prepare_shard(p, &work->writer[0], o, o->out, file, size, e);
    if (status == 0 && o->val_out[0])
        status = prepare_shard(p, &work->writer[1], o, o->val_out, file, size, e);
    free(file);
    work->tokenizer = &p->tokenizer;
    work->specials = (int)o->specials, work->dedup = (int)o->dedup;
    work->val_fraction = o->val_fraction;
    work->seed = (uint64_t)o->seed;
    work->threads = (int)(o->threads ? o->threads : usable_cores(NULL));
    if (status == 0) status = prepare_start(work, e->text, sizeof e->text);
    p->began = p->told = now_ms();
    p->terminal = isatty(STDERR_FILENO);
    if (status != 0) prepare_stop(work), bpe_free(&p->tokenizer);
    return status;
}

// Ends the shards, whole where status is 0, else given up. Returns the status with that of their ending.
static int prepare_close(Preparation* p, int status, Error* e) {
    if (status == 0) status = prepare_finish(&p->work, e->text, sizeof e->text);
    else if (p->work.failed) snprintf(e->text, sizeof e->text, "%s", p->work.err);
    prepare_stop(&p->work);
    bpe_free(&p->tokenizer);
    return status;
}

// Says on stderr how far it is: on a terminal twice a second, in place, else a line now and then.
static void prepare_progress(Preparation* p) {
    double now = now_ms();
    if (now - p->told < (p->terminal ? PROGRESS_TERMINAL_MS : PROGRESS_MS)) return;
    double seconds = 1e-3 * (now - p->began), read = 1e-6 * (double)p->reader->consumed;
    char share[96] = "", gone[32], left[32];
    if (p->size > 0 && read > 0)
        snprintf(share, sizeof share, " of %.0f MB, %s left", 1e-6 * (double)p->size,
            human_time(
                fmax(seconds * ((double)p->size / (double)p->reader->consumed - 1), 0), left, sizeof left));
    fprintf(stderr, "%sprepare: %s: read %.0f MB%s; %.1f MB/s of text%s", p->terminal ? "\r" : "",
        human_time(seconds, gone, sizeof gone), read, share, 1e-6 * (double)p->work.given / seconds,
        p->terminal ? "\033[K" : "\n");
    p->told = now;
}

// Called for every piece of a document of an input.
static int prepare_told(void* user, const text_piece* piece) {
    Preparation* p = (Preparation*)user;
    prepare_progress(p);
    return prepare_piece(&p->work, piece);
}

// Called for every entry of a folder that is left out.
static void prepare_left_out(void* user, const char* path, const char* why) {
    Preparation* p = (Preparation*)user;
    if (p->left_out_count++ < LEFT_OUT_SHOWN) {
        fputs("prepare: left out ", p->left_out);
        for (; *path; path++) fputc((unsigned char)*path < ' ' ? '?' : *path, p->left_out);
        fprintf(p->left_out, ": %s\n", why);
        return;
    }
    int i = 0;
    while (i < LEFT_OUT_REASONS - 1 && p->reasons[i].why && p->reasons[i].why != why) i++;
    p->reasons[i].why = why;
    p->reasons[i].count++;
}

// Reads all inputs into the shards, which are open. First it looks how much there is.
static int prepare_inputs(Preparation* p, const gpt2_sp_options* o, const Positional* inputs, Error* e) {
    static const int formats[] = {TEXT_OTHER, TEXT_WHOLE, TEXT_LINES, TEXT_HTML};   // by its words
    struct stat outputs[2 * PREPARE_SIDES];
    text_reader reader;
    memset(&reader, 0, sizeof reader);
    reader.err = e->text, reader.err_size = sizeof e->text;
    reader.measure = 1;
    for (int i = 0; i < inputs->count; i++)
        if (text_documents(&reader, inputs->items[i]) != 0) return -1;
    for (int i = 0; i < inputs->count; i++)
        if (strcmp(inputs->items[i], "-") == 0) reader.size = 0;   // of which nobody knows how much there is
    p->size = reader.size;
    p->reader = &reader;
    reader.measure = 0;
    reader.skipped = 0;
    reader.document = prepare_told;
    reader.skip = prepare_left_out;
    reader.user = p;
    reader.stop = &stop_signal;
    reader.format = formats[o->input_format];
    reader.field = o->field[0] ? o->field : NULL;
    reader.outputs = outputs;
    for (int i = 0; i < PREPARE_SIDES; i++) {
        const tok_output* out = &p->work.writer[i].out;
        if (!out->path) continue;
        if (fstat(out->fd, &outputs[reader.output_count]) == 0) reader.output_count++;
        if (stat(out->path, &outputs[reader.output_count]) == 0) reader.output_count++;
    }
    int status = 0;
    for (int i = 0; i < inputs->count && status == 0; i++) status = text_documents(&reader, inputs->items[i]);
    if (p->terminal) fputs("\r\033[K", stderr);
    if (stop_signal)
        status = fail(e, "stopped by a signal: nothing was written; the same command begins anew");
    return status;
}

// Options that do not go together.
static int prepare_check(const gpt2_sp_options* o, const Positional* inputs, Error* e) {
    int input = 0;
    for (int i = 0; i < inputs->count; i++) input |= strcmp(inputs->items[i], "-") == 0;
    if (inputs->count == 0) return fail(e, "no input: give .txt, .html or .jsonl files or folders");
    if (!o->out[0]) return fail(e, "no --out FILE.tok");
    if (input && !o->input_format)
        return fail(e, "standard input (-): --input-format txt, jsonl or html says what it is");
    if (!input && o->input_format)
        return fail(e, "--input-format is for standard input (-): files are what their names end in");
    if (o->val_fraction > 0 && !o->val_out[0])
        return fail(e, "--val-fraction %g: --val-out FILE.tok is to hold those documents", o->val_fraction);
    if (o->val_out[0] && !(o->val_fraction > 0))
        return fail(
            e, "--val-out %.900s: --val-fraction X says how many documents it is to hold", o->val_out);
    if (strcmp(o->out, o->val_out) == 0) return fail(e, "--out and --val-out are one file: %.900s", o->out);
    return 0;
}

// The sum of the reports of both shards.
static prepare_report prepare_sum(const Preparation* p) {
    prepare_report sum = p->work.report[0];
    const prepare_report* val = &p->work.report[1];
    sum.documents += val->documents, sum.tokens += val->tokens;
    sum.text_bytes += val->text_bytes, sum.masked += val->masked;
    for (int i = 0; i < PREPARE_LENGTHS; i++) {
        sum.length_documents[i] += val->length_documents[i];
        sum.length_tokens[i] += val->length_tokens[i];
    }
    for (int i = 0; i < PREPARE_FAR; i++) sum.beyond[i] += val->beyond[i];
    return sum;
}

// Prints what the shards hold: a line each, then how long the documents are, in tokens with their end.
static void prepare_print(const Preparation* p, const gpt2_sp_options* o, double seconds) {
    const prepare_report r = prepare_sum(p);
    const double tokens = (double)r.tokens;
    for (int i = 0; i < PREPARE_SIDES && (i == 0 || o->val_out[0]); i++) {
        const prepare_report* one = &p->work.report[i];
        const char* path = i ? o->val_out : o->out;
        struct stat info;
        int64_t bytes = stat(path, &info) == 0 ? (int64_t)info.st_size : 0;
        printf("%s: %llu documents, %llu tokens, %llu bytes of text in %lld bytes\n", path,
            (unsigned long long)one->documents, (unsigned long long)one->tokens,
            (unsigned long long)one->text_bytes, (long long)bytes);
    }
    printf("  %.3f bytes of text a token; %.2f s, %.1f MB/s, threads: %d\n", (double)r.text_bytes / tokens,
        seconds, 1e-6 * (double)r.text_bytes / seconds, p->work.threads);
    if (o->dedup)
        printf("  duplicates left out: %llu documents, %llu bytes\n", (unsigned long long)p->work.duplicates,
            (unsigned long long)p->work.duplicate_bytes);
    if (p->work.not_utf8)
        printf("  not UTF-8: %llu documents, whose bytes are taken as they are (iconv -t UTF-8 converts "
               "texts)\n",
            (unsigned long long)p->work.not_utf8);
    if (r.masked)
        printf("  masked: %.1f %% of the tokens are no labels%s\n", 100 * (double)r.masked / tokens,
            r.masked == r.tokens ? ": nothing can be learnt from this" : "");
    printf(
        "  beyond the first 1024, 8192, 32768 tokens of their document: %.1f, %.1f, %.1f %% of the tokens\n",
        100 * (double)r.beyond[0] / tokens, 100 * (double)r.beyond[1] / tokens,
        100 * (double)r.beyond[2] / tokens);
    printf("  tokens of a document    documents   of all tokens\n");
    for (int i = 0; i < PREPARE_LENGTHS; i++)
        if (r.length_documents[i])
            printf("  %8llu to %-10llu %9llu %13.1f %%\n", 1ull << i, (2ull << i) - 1,
                (unsigned long long)r.length_documents[i], 100 * (double)r.length_tokens[i] / tokens);
}

// The counts of one shard, as members of an object.
static void prepare_json_shard(const char* path, const prepare_report* r) {
    struct stat info;
    int64_t bytes = stat(path, &info) == 0 ? (int64_t)info.st_size : 0;
    printf("{\"path\": ");
    json_write_string(stdout, path);
    printf(", \"documents\": %llu, \"tokens\": %llu, \"masked\": %llu, \"text_bytes\": %llu, \"file_bytes\": "
           "%lld}",
        (unsigned long long)r->documents, (unsigned long long)r->tokens, (unsigned long long)r->masked,
        (unsigned long long)r->text_bytes, (long long)bytes);
}

// The same as prepare_print, as one object.
static void prepare_json(const Preparation* p, const gpt2_sp_options* o, double seconds) {
    const prepare_report r = prepare_sum(p);
    const double tokens = (double)r.tokens;
    printf("{\"out\": ");
    prepare_json_shard(o->out, &p->work.report[0]);
    if (o->val_out[0]) {
        printf(", \"val_out\": ");
        prepare_json_shard(o->val_out, &p->work.report[1]);
    }
    printf(", \"bytes_per_token\": %.6f, \"duplicates\": %llu, \"duplicate_bytes\": %llu, \"not_utf8\": "
           "%llu, \"left_out\": %llu, "
           "\"seconds\": %.3f, \"threads\": %d, \"beyond\": {",
        (double)r.text_bytes / tokens, (unsigned long long)p->work.duplicates,
        (unsigned long long)p->work.duplicate_bytes, (unsigned long long)p->work.not_utf8,
        (unsigned long long)p->left_out_count, seconds, p->work.threads);
    for (int i = 0; i < PREPARE_FAR; i++)
        printf("%s\"%llu\": %.6f", i ? ", " : "", (unsigned long long)prepare_far[i],
            (double)r.beyond[i] / tokens);
    printf("}, \"lengths\": [");
    const char* comma = "";
    for (int i = 0; i < PREPARE_LENGTHS; i++) {
        if (!r.length_documents[i]) continue;
        printf("%s{\"from\": %llu, \"to\": %llu, \"documents\": %llu, \"tokens\": %llu}", comma, 1ull << i,
            (2ull << i) - 1, (unsigned long long)r.length_documents[i],
            (unsigned long long)r.length_tokens[i]);
        comma = ", ";
    }
    printf("]}\n");
}

// Turns text files, pages, .jsonl files and folders of them into a shard, or two. On an error both are given
// up.
static int command_prepare(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    Preparation p;
    char* left_out = NULL;
    size_t size = 0;
    if (prepare_check(o, inputs, e) != 0) return -1;
    catch_signals("stopping: nothing is written; a second SIGTERM or SIGINT ends at once\n");
    if (prepare_open(&p, o, e) != 0) return -1;
    p.left_out = open_memstream(&left_out, &size);
    int status =
        p.left_out ? prepare_inputs(&p, o, inputs, e) : fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    status = prepare_close(&p, status, e);
    double seconds = fmax(1e-3 * (now_ms() - p.began), 1e-6);
    if (p.left_out) fclose(p.left_out);
    if (status == 0 && o->json) prepare_json(&p, o, seconds);
    else if (status == 0) prepare_print(&p, o, seconds);
    if (status == 0) fputs(left_out ? left_out : "", stderr);
    for (int i = 0; status == 0 && i < LEFT_OUT_REASONS && p.reasons[i].why; i++)
        fprintf(stderr, "prepare: left out %llu more: %s\n", (unsigned long long)p.reasons[i].count,
            p.reasons[i].why);
    free(left_out);
    return status;
}

// Puts a document of synth into the shard that is open; with answers_only all but the answers are no labels.
static int synth_put(const synth_doc* doc, int answers_only, Preparation* p) {
    size_t at = 0;
    int status = 0;
    for (int i = 0; answers_only && status == 0 && i < doc->fact_count; i++) {
        const size_t answer = doc->facts[i].answer, length = (size_t)doc->facts[i].answer_length;
        text_piece before = {doc->text + at, answer - at, "", 0,
                       TEXT_MASKED | TEXT_EDGE | (at ? 0 : TEXT_BEGIN)},
                   asked = {doc->text + answer, length, "", 0, TEXT_EDGE};
        status = prepare_piece(&p->work, &before);
        if (status == 0) status = prepare_piece(&p->work, &asked);
        at = answer + length;
    }
    text_piece rest = {doc->text + at, doc->length - at, "", 0,
        TEXT_END | (at ? 0 : TEXT_BEGIN) | (answers_only ? TEXT_MASKED : 0)};
    return status == 0 ? prepare_piece(&p->work, &rest) : status;
}

// Writes all documents of synth, as lines to a stream or into the shard that is open. The first line begins
// with its ninth byte.
static int synth_documents(const gpt2_sp_options* o, FILE* lines, Preparation* p, Error* e) {
    int status = 0;
    for (int64_t d = 0; status == 0 && d < o->docs; d++) {
        synth_doc doc;
        if (stop_signal) return fail(e, "stopped by a signal: nothing was written");
        status = synth_document((uint64_t)o->seed, (uint64_t)d, (size_t)o->doc_bytes, (int)o->facts,
            (size_t)o->distance, &doc, e->text, sizeof e->text);
        if (status != 0) break;
        if (!lines) status = synth_put(&doc, (int)o->answers_only, p);
        else if (synth_write_line(lines, &doc, d == 0 ? 8 : 0) != 0) status = fail_file(e, "write", o->out);
        synth_free(&doc);
    }
    return status;
}

// The documents as text: a .jsonl file with the places of their answers. Its first 8 bytes are written
// last, in place of the mark of an unfinished file.
static int synth_lines(const gpt2_sp_options* o, Error* e) {
    tok_output out;
    if (tok_output_open(&out, o->out, "text of synth", synth_is_text, e->text, sizeof e->text) != 0)
        return -1;
    int fd = dup(out.fd);
    FILE* lines = fd < 0 ? NULL : fdopen(fd, "w");
    int status = lines && fseek(lines, 8, SEEK_SET) == 0 ? 0 : fail_file(e, "write", o->out);
    if (status == 0) status = synth_documents(o, lines, NULL, e);
    if (lines && fclose(lines) != 0 && status == 0) status = fail_file(e, "write", o->out);
    if (!lines && fd >= 0) close(fd);
    if (status == 0) status = tok_output_put(&out, synth_head, 8, 0, e->text, sizeof e->text);
    if (status == 0) return tok_output_finish(&out, e->text, sizeof e->text);
    tok_output_abandon(&out);
    return -1;
}

// The documents as a shard.
static int synth_shard(const gpt2_sp_options* o, Error* e) {
    Preparation p;
    if (prepare_open(&p, o, e) != 0) return -1;
    return prepare_close(&p, synth_documents(o, NULL, &p, e), e);
}

// Finds the model of --from, at `path`, and what it is; its tensors are not opened.
static int export_model(const gpt2_sp_options* o, char path[PATH_SIZE], Model* m, Error* e) {
    int64_t vocab = 0;
    gpt2_sp_options* model = (gpt2_sp_options*)malloc(sizeof *model);
    if (!model) return fail_as(GPT2_SP_NO_MEMORY, e, "out of memory");
    options_default(model);
    int status = model_find("from", o->from, &o->log, path, e);
    if (status == 0) status = model_read(path, model, &vocab, &m->eot, e);
    if (status == 0) {
        m->center = (int)model->center;
        m->shape = shape_of(model, vocab);
        status = shape_check(&m->shape, model, e);
    }
    free(model);
    if (status != 0 || tokenizer_of_folder(&m->tokenizer, path, vocab, e) < 0) return -1;
    m->eot = model_end(m->eot, &m->tokenizer, vocab);
    return 0;
}

// Exports a model for Transformers or llm.c: of its folder only the weights, some rows of a tensor at a time.
static int command_export(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    Model m;
    char path[PATH_SIZE];
    if (!o->from[0]) return fail(e, "no model given: --from RUN");
    if (!o->out[0]) return fail(e, "nowhere to write: --out FOLDER");
    if (o->format == GPT2_SP_HF && text_ends(o->out, strlen(o->out), ".bin"))
        return fail(
            e, "--out %.900s: for Transformers it is a folder's name; --format llmc writes a file", o->out);
    if (export_model(o, path, &m, e) != 0) return -1;
    int replaced = access(o->out, F_OK) == 0;
    int opened = tensors_open(&m.tensors, path, STATE_WEIGHTS, m.shape.N, GPT2_SP_TILE, e);
    int status = opened == 0 ? tensors_known(&m.tensors.files, &m.shape, e) : -1;
    if (status == 0) status = o->format == GPT2_SP_HF ? export_folder(&m, o, e) : export_llmc(&m, o, e);
    if (opened == 0) st_set_close(&m.tensors.files);
    const int words = m.tokenizer.token != NULL || o->format == GPT2_SP_LLMC;
    bpe_free(&m.tokenizer);
    if (status == 0)
        printf("%s: the model of %s in %s, for %s%s%s%s\n", o->out, path, EXPORT_TYPES[o->dtype].word,
            o->format == GPT2_SP_LLMC ? "llm.c" : "Transformers",
            m.center ? "" : " with trust_remote_code=True, as it has RMSNorm",
            words ? "" : "; no tokenizer goes with it, as it has none",
            replaced ? "; the export that was there is replaced" : "");
    return status;
}

// Writes synthetic documents: as a shard, or as text.
static int command_synth(gpt2_sp_options* o, const Positional* inputs, Error* e) {
    (void)inputs;
    int lines = text_ends(o->out, strlen(o->out), ".jsonl");
    if (!o->out[0]) return fail(e, "no --out FILE.tok or FILE.jsonl");
    if (lines && o->answers_only)
        return fail(e, "--answers-only is of a shard, --out FILE.tok: a .jsonl has the answers' places");
    catch_signals("stopping: nothing is written; a second SIGTERM or SIGINT ends at once\n");
    if ((lines ? synth_lines(o, e) : synth_shard(o, e)) != 0) return -1;
    printf("%s: %lld documents of %lld bytes, %lld facts each\n", o->out, (long long)o->docs,
        (long long)o->doc_bytes, (long long)o->facts);
    return 0;
}

static const Command COMMANDS[] = {
    {"train", TRAIN, command_train, 0, "train or resume a model", "--data SHARDS --out RUN [options]"},
    {"plan", PLAN, command_plan, 0, "memory, exchange and time of a step, before anything runs", "[options]"},
    {"schedule", SCHEDULE, command_schedule, 0,
        "draw and prove a schedule of distributed attention, or of a pipeline",
        "[--schedule KIND --sp P | --pipeline KIND --pp P] [--json] [options]"},
    {"sample", SAMPLE, command_sample, 0, "continue a text", "--from RUN --prompt TEXT [options]"},
    {"eval", EVAL, command_eval, 0, "loss, bits per byte, and whether a long context helps",
        "--from RUN[,RUN] --data SHARDS [options]"},
    {"export", EXPORT, command_export, 0, "write a model for Transformers or llm.c",
        "--from RUN --out FOLDER [--dtype TYPE] [--format KIND]"},
    {"prepare", PREPARE, command_prepare, 1, "turn text into token shards",
        "--out FILE.tok FILE.txt FILE.jsonl FOLDER ... [options]"},
    {"synth", SYNTH, command_synth, 0, "write synthetic long documents whose facts are asked for far away",
        "--out FILE.tok [options]"},
};
enum { COMMAND_COUNT = (int)(sizeof COMMANDS / sizeof COMMANDS[0]) };

// The command of a name; NULL if there is none.
static const Command* command_find(const char* name) {
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(COMMANDS[i].name, name) == 0) return &COMMANDS[i];
    return NULL;
}

// The command whose name is the least change away, if that is no more than a third of it; else NULL.
MAIN_ONLY static const char* command_nearest(const char* name) {
    for (int change = 1; change < 3; change++)
        for (int i = 0; i < COMMAND_COUNT; i++)
            if (name_distance(name, COMMANDS[i].name) == change &&
                3 * change <= (int)strlen(COMMANDS[i].name))
                return COMMANDS[i].name;
    return NULL;
}

// What the program prints without a command.
MAIN_ONLY static void usage(FILE* out) {
    fprintf(out,
        "gpt2_sp: a trainer for small GPT-2 models on long documents\n\nusage: ./%s [COMMAND] [--option "
        "value ...]\n\n",
        program_name);
    for (int i = 0; i < COMMAND_COUNT; i++) fprintf(out, "  %-10s %s\n", COMMANDS[i].name, COMMANDS[i].what);
    fprintf(out,
        "\n./%s COMMAND --help lists a command's options. Without COMMAND: train. --version tells the "
        "version.\n",
        program_name);
}

// All of main; returns the exit status. Without a command's name it trains. argv[0] gives the name for
// messages.
MAIN_ONLY static int program(int argc, char** argv) {
    if (argc > 0 && argv[0][0]) program_name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    const char* word = argc > 1 ? argv[1] : "";
    if (argc < 2 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        usage(argc < 2 ? stderr : stdout);
        return argc < 2;
    }
    if (strcmp(word, "--version") == 0) {
        puts(gpt2_sp_build());
        return 0;
    }
    int named = strncmp(argv[1], "--", 2) != 0, first = named ? 2 : 1;
    const Command* command = command_find(named ? argv[1] : "train");
    if (!command) {
        const char* nearest = command_nearest(argv[1]);
        fprintf(stderr, "%s: unknown command `%s`%s%s; `%s --help` lists them\n", program_name, argv[1],
            nearest ? ": did you mean " : "", nearest ? nearest : "", program_name);
        return 1;
    }
    for (int fd = 0; fd <= 2; fd++)   // closed ones: no file that is opened later may take their place
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) (void)!open("/dev/null", O_RDWR);
    signal(SIGXFSZ, SIG_IGN);           // a file that grows too large is a write error
    setvbuf(stdout, NULL, _IOLBF, 0);   // into a file or a pipe, too, a line is there when it is printed
    gpt2_sp_options options;
    Error e = {0, {0}};
    Positional inputs = {(const char**)calloc((size_t)argc, sizeof(char*)), 0};
    options_default(&options);
    options.log = PRINTED, options.prints = 1;
    int status = inputs.items ? options_parse(&options, command, argc - first, argv + first, &inputs, &e)
                              : fail_as(GPT2_SP_NO_MEMORY, &e, "out of memory");
    if (status == 1) options_help(command);
    else if (status == 0) status = command->run(&options, &inputs, &e);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status >= 0)
        status = fail(&e, "cannot write all of the output");
    for (char* p = e.text; *p; p++)
        if ((unsigned char)*p < ' ') *p = '?';   // a name from outside may hold a line break
    if (status < 0) fprintf(stderr, "%s %s: %s\n", program_name, command->name, e.text);
    free(inputs.items);
    return status < 0;
}

#ifndef GPT2_SP_NO_MAIN
int main(int argc, char** argv) { return program(argc, argv); }
#endif

#endif   // GPT2_SP_HEADER_ONLY
