/* What statuses and failures are in words. A program that does not ask for words needs no such file. */
#include "internal.h"

const char *subbyte_status_text(int32_t status) {
  switch (status) {
    case SUBBYTE_OK: return "ok";
    case SUBBYTE_BAD_ARGUMENT: return "a null or misaligned pointer, or a size that does not match the model";
    case SUBBYTE_BAD_ABI: return "the model is for another version of subbyte.h";
    case SUBBYTE_KERNEL_FAILED: return "a kernel failed";
    case SUBBYTE_BAD_INDEX: return "an index is out of range";
    case SUBBYTE_BUSY: return "another run is under way";
    case SUBBYTE_NOT_RESET: return "the state was not reset";
#if SUBBYTE_HOSTED /* flash is dear where none of these can happen */
    case SUBBYTE_NO_MEMORY: return "out of memory, or threads could not be started";
    case SUBBYTE_STOPPED: return "the caller ended the measurement";
    case SUBBYTE_REFUSED:
      return "the system refuses AMX's tile registers to this process (arch_prctl); compile the model again where it "
             "runs, with --target host";
    case SUBBYTE_LACKS_FEATURES:
      return "this CPU lacks features that the model was compiled for (subbyte_missing_features names them); compile the "
             "model again for this machine, with --target host, or with a target that needs fewer features";
#endif
    default: return "unknown status";
  }
}

/* Text as it grows: what does not fit is counted only. */
typedef struct {
  char *text;
  size_t bytes, length;
} writer;

SUBBYTE_COLD static void write_text(writer *w, const char *text) {
  for (; *text; ++text, ++w->length)
    if (w->text != NULL && w->length + 1 < w->bytes) w->text[w->length] = *text;
}

/* Divides in pieces of 16 bits: a division of 64 bits is 0.7 KB of libgcc on a CPU of 32. */
SUBBYTE_COLD static void write_number(writer *w, int64_t number) {
  char digits[21], *first = digits + sizeof digits - 1;
  uint64_t left = number < 0 ? 0u - (uint64_t)number : (uint64_t)number;
  *first = '\0';
  do {
    uint32_t rest = 0;
    int piece;
    for (piece = 0; piece < 4; ++piece) {
      rest = rest << 16 | (uint32_t)(left >> 48);
      left = left << 16 | rest / 10;
      rest %= 10;
    }
    *--first = (char)('0' + rest);
  } while (left);
  if (number < 0) write_text(w, "-");
  write_text(w, first);
}

SUBBYTE_COLD size_t subbyte_failure_text(const subbyte_model *model, const subbyte_failure *failure, char *text, size_t bytes) {
  writer w;
  w.text = text;
  w.bytes = bytes;
  w.length = 0;
  if (failure->operator_index >= 0) {
    write_text(&w, "operator '");
    write_text(&w, model->operators[failure->operator_index].name);
    write_text(&w, "': ");
  }
  if (failure->status == SUBBYTE_BAD_INDEX) {
    write_text(&w, "index ");
    write_number(&w, failure->value);
    write_text(&w, ", element ");
    write_number(&w, failure->position);
    write_text(&w, " of its indices, is out of range; expected ");
    write_number(&w, failure->lowest);
    write_text(&w, " .. ");
    write_number(&w, failure->highest);
  } else {
    write_text(&w, subbyte_status_text(failure->status));
  }
  if (text != NULL && bytes) text[w.length < bytes ? w.length : bytes - 1] = '\0';
  return w.length;
}
