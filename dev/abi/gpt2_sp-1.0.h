/* gpt2_sp.h, version 1.0.0: a trainer for small GPT-2 models on long documents, in a program of yours.
 *
 *     cc program.c $(pkg-config --cflags --libs gpt2_sp)          for GPUs: gpt2_spcu
 *
 * Made from train_gpt2_sp.c by `make lib`. MIT License, copyright (c) 2026 the gpt2_sp authors. */
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
