/* subbyte runtime: run a compiled model. C99, no dependencies.
 *
 * A model is a constant table (subbyte_model) that the compiler writes next to its kernels. `subbyte_run` walks the table
 * with buffers that the caller owns: no heap, no threads, fit for a microcontroller. `subbyte_session_*` (not on
 * microcontrollers) adds owned buffers and a thread pool.
 */
#ifndef SUBBYTE_H
#define SUBBYTE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define SUBBYTE_API __declspec(dllexport)
#else
#define SUBBYTE_API __attribute__((visibility("default")))
#endif

#define SUBBYTE_ABI 5
#define SUBBYTE_ALIGNMENT 64 /* bytes: of arena, weights and workspace, and of every tensor in them */
#define SUBBYTE_MAX_ARGUMENTS 32 /* of one operator; the compiler refuses more */
#define SUBBYTE_MAX_THREADS 256

/* What every function returns. */
enum {
  SUBBYTE_OK = 0,
  SUBBYTE_BAD_ARGUMENT = 1, /* a null pointer, or a size that does not match the model */
  SUBBYTE_BAD_ABI = 2,      /* the model was compiled for another version of this header */
  SUBBYTE_NO_MEMORY = 3,
  SUBBYTE_KERNEL_FAILED = 4,
  SUBBYTE_REFUSED = 5, /* the system does not grant this process what the model needs: SUBBYTE_NEEDS_... */
  SUBBYTE_LACKS_FEATURES = 6, /* this CPU lacks instructions of the model: subbyte_missing_features names them */
  SUBBYTE_BAD_INDEX = 7, /* an index that an input or an operator gave is out of range: subbyte_failure_text names it */
  SUBBYTE_BUSY = 8,      /* another run of this session, or of this state, is under way */
  SUBBYTE_NOT_RESET = 9, /* the state holds no value yet: call subbyte_reset first */
  SUBBYTE_STOPPED = 10   /* the caller ended the measurement */
};

/* Where an argument of a kernel is. */
enum {
  SUBBYTE_ARENA = 0,     /* intermediate tensors; offset in bytes */
  SUBBYTE_WEIGHTS = 1,   /* constants; offset in bytes */
  SUBBYTE_INPUT = 2,     /* offset is the index of the input */
  SUBBYTE_OUTPUT = 3,    /* offset is the index of the output */
  SUBBYTE_WORKSPACE = 4, /* scratch of the running thread; offset in bytes */
  SUBBYTE_STATE = 5      /* values that live between runs; offset in bytes; operators only read it */
};

/* What a model needs that the system must be asked for. */
enum { SUBBYTE_NEEDS_TILES = 1 }; /* AMX: tile registers */

/* Element types of model inputs and outputs. */
enum {
  SUBBYTE_FLOAT32 = 0,
  SUBBYTE_UINT8 = 1,
  SUBBYTE_INT8 = 2,
  SUBBYTE_INT32 = 3,
  SUBBYTE_INT64 = 4,
  SUBBYTE_FLOAT16 = 5, /* its bits, as uint16_t */
  SUBBYTE_FLOAT64 = 6
};

typedef struct {
  uint32_t space;
  uint32_t offset;
} subbyte_argument;

/* A kernel works on tiles begin .. end-1 of its `tiles`; args are resolved pointers, in the order of the operator's arguments.
 * It returns 0; or, with one tile, SUBBYTE_BAD_INDEX, and position, value, lowest and highest of subbyte_failure in its last
 * argument, int64_t [4] in the workspace; or something else, and the run fails with SUBBYTE_KERNEL_FAILED. */
typedef int32_t (*subbyte_kernel)(void *const *args, int32_t begin, int32_t end);

typedef struct {
  const char *name; /* the operator's name in the ONNX file */
  subbyte_kernel kernel;
  const subbyte_argument *arguments;
  int32_t argument_count;
  int32_t tiles;
} subbyte_operator;

typedef struct {
  const char *name;
  int32_t dtype;
  int32_t rank;
  const int64_t *shape; /* [rank] */
  size_t nbytes;
} subbyte_tensor;

struct subbyte_states; /* below */

typedef struct {
  uint32_t abi; /* SUBBYTE_ABI */
  const char *name;
  const char *target;
  int32_t input_count, output_count, operator_count;
  const subbyte_tensor *inputs;
  const subbyte_tensor *outputs;
  const subbyte_operator *operators;
  size_t arena_bytes;
  size_t workspace_bytes; /* for each thread */
  size_t weights_bytes;
  uint32_t needs; /* SUBBYTE_NEEDS_..., or 0 */
  const char *features; /* of the CPU that the kernels use, a space between names; NULL: none to ask about */
  const struct subbyte_states *states; /* NULL: nothing lives between runs */
} subbyte_model;

/* Called after each operator, on the calling thread; `ns` is its duration, or 0 where there is no clock. */
typedef void (*subbyte_hook)(void *user, int32_t index, uint64_t ns);

/* What ended a run. */
typedef struct {
  int32_t status;         /* as the run returned it */
  int32_t operator_index; /* the operator that failed; -1: the run failed before the first */
  int64_t position;       /* of SUBBYTE_BAD_INDEX: which element of the indices it is, */
  int64_t value;          /* what it holds, */
  int64_t lowest;         /* and what it may hold: lowest .. highest */
  int64_t highest;
} subbyte_failure;

typedef struct {
  const void *weights;        /* [weights_bytes] */
  void *arena;                /* [arena_bytes] */
  void *workspace;            /* [workspace_bytes] */
  const void *const *inputs;  /* [input_count], each [inputs[i].nbytes], aligned as one element */
  void *const *outputs;       /* [output_count], each [outputs[i].nbytes], aligned as one element */
  void *state;                /* [states->bytes]; not read where the model has no state */
  subbyte_failure failure;    /* written by a run that fails */
} subbyte_buffers;

/* ---- state: values that live between runs ---- */

#define SUBBYTE_ZEROS UINT32_MAX

/* A run reads the value at `offset`; the next one that it computes is copied there when it ends well, and not when it fails. */
typedef struct {
  const subbyte_tensor *tensor; /* named after the input of the ONNX file */
  uint32_t offset;              /* of the value in the state, in bytes */
  uint32_t initial;             /* offset of the first value in the weights; SUBBYTE_ZEROS: zeros */
  uint32_t next;                /* offset in the arena where a run leaves the next value */
} subbyte_state;

typedef struct subbyte_states {
  int32_t count;
  const subbyte_state *states; /* [count] */
  size_t bytes;                /* of all values, and of the word at the end that says whether a run is under way */
  int32_t (*begin)(const subbyte_model *model, const subbyte_buffers *buffers);                /* subbyte_begin_state */
  void (*end)(const subbyte_model *model, const subbyte_buffers *buffers, int32_t status); /* subbyte_end_state */
} subbyte_states;

/* What a run calls, through the table: a model without state needs no state.c. The state is busy in between; `end` keeps the next
 * values after SUBBYTE_OK. */
int32_t subbyte_begin_state(const subbyte_model *model, const subbyte_buffers *buffers);
void subbyte_end_state(const subbyte_model *model, const subbyte_buffers *buffers, int32_t status);

/* Every compiled library exports this. Static archives and C sources have the model under its own name as well, so that several
 * link into one program: `const subbyte_model *subbyte_get_<name>_model(void);` */
SUBBYTE_API const subbyte_model *subbyte_get_model(void);

/* Run once on the calling thread with the caller's buffers. `hook` may be NULL. */
SUBBYTE_API int32_t subbyte_run(const subbyte_model *model, subbyte_buffers *buffers, subbyte_hook hook, void *user);

/* Give every value of buffers->state its initial value from buffers->weights: before the first run, and whenever a new sequence
 * begins. SUBBYTE_BUSY in the middle of a run of this state, which goes on. Of a model without state it does nothing. */
SUBBYTE_API int32_t subbyte_reset(const subbyte_model *model, subbyte_buffers *buffers);

SUBBYTE_API const char *subbyte_status_text(int32_t status);

/* The failure in words, with the operator's name and the index: written to `text` as far as it fits into `bytes`, with a zero
 * at the end; `text` may be NULL. Returns the length of all of it. */
SUBBYTE_API size_t subbyte_failure_text(const subbyte_model *model, const subbyte_failure *failure, char *text, size_t bytes);

/* How many CPU features the model uses that this CPU, or its operating system, lacks. A name that the
 * core does not know, or cannot ask this CPU about, counts as missing. The names are written to `names`, a space between them, as far as they fit into `bytes`; `names` may be NULL. */
SUBBYTE_API size_t subbyte_missing_features(const subbyte_model *model, char *names, size_t bytes);

/* ---- sessions: owned buffers and a thread pool; not built for microcontrollers ---- */

typedef struct subbyte_session subbyte_session;

/* `weights` must outlive the session and is not copied. `threads` >= 1; the calling thread is one of them. */
SUBBYTE_API int32_t subbyte_session_create(const subbyte_model *model, const void *weights, size_t weights_bytes,
                                           int32_t threads, subbyte_session **session);

/* One run at a time in a session: another one, from any thread or a signal handler, returns SUBBYTE_BUSY; different sessions may
 * run at once. A session can run again after a run that failed, and in a forked child, on one thread, if none was under way. */
SUBBYTE_API int32_t subbyte_session_run(subbyte_session *session, const void *const *inputs, void *const *outputs,
                                        subbyte_hook hook, void *user);

/* What ended the last run that failed, until the next one does. */
SUBBYTE_API const subbyte_failure *subbyte_session_failure(const subbyte_session *session);

/* The arena, for reading intermediate tensors inside a hook. */
SUBBYTE_API const void *subbyte_session_arena(const subbyte_session *session);

/* As subbyte_reset, which subbyte_session_create has called. */
SUBBYTE_API int32_t subbyte_session_reset(subbyte_session *session);

/* The value of a state, [states[index].tensor.nbytes], to read and write between runs; NULL where there is no such state. */
SUBBYTE_API void *subbyte_session_state(subbyte_session *session, int32_t index);

/* Not in the middle of a run. In a forked child, whose threads are not there, it frees the child's copy of the memory. */
SUBBYTE_API void subbyte_session_destroy(subbyte_session *session);

/* ---- measuring: in the library of a bundle for Linux ---- */

#define SUBBYTE_MOST_SAMPLES 1000000

enum { SUBBYTE_MEASURE_LATENCY = 1, SUBBYTE_MEASURE_OPERATORS = 2 };

typedef struct {
  int64_t iterations; /* runs, up to SUBBYTE_MOST_SAMPLES; 0: as many as `seconds` take */
  double seconds;
  int64_t warmup; /* runs before, at least; before a latency of `seconds` also a tenth of them */
  /* Called about ten times a second, between runs, never within a sample; NULL: not. Sets go_on, which is 0 whenever it is
   * called, or the measurement ends with SUBBYTE_STOPPED. */
  void (*tick)(void *user);
  void *user;
  int32_t go_on;
  int32_t what; /* SUBBYTE_MEASURE_...; 0: runs alone, for a meter that brackets the call */
} subbyte_measure_options;

/* Resets the state, warms up, then measures: latency first, operators in a pass of their own (with latency as many runs as fit
 * into a second, 3 to 50). `*json` becomes a JSON object, to be freed with subbyte_free: warmup and iterations (runs), start_ns
 * and end_ns (monotonic clock) of the runs after the warm-up; latency_ms, throughput_per_s, warnings; operators, with the
 * least and the median ns. docs/benchmarking.md says what each is. */
SUBBYTE_API int32_t subbyte_measure(subbyte_session *session, const void *const *inputs, void *const *outputs,
                                    subbyte_measure_options *options, char **json);

/* What figures of this machine are measured on. `*json` becomes a JSON object, to be freed with subbyte_free: machine (processor,
 * clock, cores, memory, system), and warnings, of what disturbs runs of `threads` threads here. */
SUBBYTE_API int32_t subbyte_machine(int32_t threads, char **json);

SUBBYTE_API void subbyte_free(void *memory);

#ifdef __cplusplus
}
#endif
#endif
