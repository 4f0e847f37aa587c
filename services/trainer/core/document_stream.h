#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"

namespace almost::trainer {

// The text of document `index`, for every index from 0: a function of the index alone.
using DocumentSource = std::function<absl::StatusOr<std::string>(int64_t index)>;

// The "text" of each line, again from the first after the last. kNotFound, kDataLoss or kInvalidArgument name
// the file and, where it is one, the line.
absl::StatusOr<DocumentSource> ReadDocuments(const std::filesystem::path& json_lines);

// Documents as one stream of tokens with the tokenizer's markers in front of each document, and end-of-text
// after it where the marker in front is another token. Not thread-safe.
class DocumentStream {
 public:
  // Where the stream stands: what a checkpoint holds to go on exactly.
  struct Position {
    int64_t next_document = 0;
    std::vector<int32_t> left_over;  // of the documents before it
  };

  DocumentStream(DocumentSource source, std::shared_ptr<const Tokenizer> tokenizer, Position position)
      : source_(std::move(source)), tokenizer_(std::move(tokenizer)), position_(std::move(position)) {}

  // The next `count` tokens. The source's errors; kInvalidArgument: a thousand documents in a row without a token.
  absl::StatusOr<std::vector<int32_t>> Next(int64_t count);
  const Position& position() const { return position_; }

 private:
  DocumentSource source_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Position position_;
};

}  // namespace almost::trainer
