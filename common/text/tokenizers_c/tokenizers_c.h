#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The Hugging Face tokenizers crate as C (src/lib.rs). A call that fails gives null or false and an error
// message; panics of the crate become such errors. Input strings are UTF-8; invalid bytes become U+FFFD.
// A tokenizer may be used by many threads at once.
#ifdef __cplusplus
extern "C" {
#endif

typedef struct AlmostTokenizer AlmostTokenizer;

// Owned by the library until almost_tokenizer_free_bytes; data is null where there is nothing to free.
typedef struct {
  uint8_t* data;
  size_t size;
} AlmostBytes;

// Owned by the library until almost_tokenizer_free_ids.
typedef struct {
  uint32_t* data;
  size_t size;
} AlmostIds;

// The caller's bytes, for the time of the call.
typedef struct {
  const uint8_t* data;
  size_t size;
} AlmostSlice;

// A tokenizer from the contents of a tokenizer.json; its truncation and padding are switched off.
AlmostTokenizer* almost_tokenizer_parse(const uint8_t* json, size_t size, AlmostBytes* error);
void almost_tokenizer_free(AlmostTokenizer* tokenizer);

bool almost_tokenizer_encode(const AlmostTokenizer* tokenizer, const uint8_t* data, size_t size,
                             bool add_special_tokens, AlmostIds* ids, AlmostBytes* error);
// Ids that are not in the vocabulary are skipped.
bool almost_tokenizer_decode(const AlmostTokenizer* tokenizer, const uint32_t* ids, size_t size,
                             bool skip_special_tokens, AlmostBytes* out, AlmostBytes* error);
// -1: no such token.
int64_t almost_tokenizer_token_id(const AlmostTokenizer* tokenizer, const uint8_t* data, size_t size);
// Added tokens included.
size_t almost_tokenizer_vocab_size(const AlmostTokenizer* tokenizer);

// The tokenizer.json of a byte-level BPE learnt from `texts`. Id 0 is `end_of_text`, which encoding with
// special tokens puts in front.
bool almost_tokenizer_train_bpe(const AlmostSlice* texts, size_t num_texts, size_t vocab_size,
                                AlmostSlice end_of_text, AlmostBytes* json, AlmostBytes* error);

void almost_tokenizer_free_bytes(AlmostBytes bytes);
void almost_tokenizer_free_ids(AlmostIds ids);

#ifdef __cplusplus
}
#endif
