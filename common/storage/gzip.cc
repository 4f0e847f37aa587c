#include "common/storage/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace almost {
namespace {

constexpr int kGzip = 15 + 16;  // the largest window, with a gzip header
constexpr size_t kPieceBytes = size_t{1} << 20;

// What zlib may be given at once.
uInt Piece(size_t size) { return static_cast<uInt>(std::min<size_t>(size, size_t{1} << 30)); }

}  // namespace

std::string Gzip(absl::string_view data) {
  z_stream stream{};
  // Fails for want of memory only.
  if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kGzip, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    std::abort();
  std::string compressed;
  int code = Z_OK;
  while (code != Z_STREAM_END) {
    const size_t size = compressed.size();
    compressed.resize(size + kPieceBytes);
    const uInt piece = Piece(data.size());
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    stream.avail_in = piece;
    stream.next_out = reinterpret_cast<Bytef*>(compressed.data() + size);
    stream.avail_out = kPieceBytes;
    code = deflate(&stream, piece == data.size() ? Z_FINISH : Z_NO_FLUSH);
    data.remove_prefix(piece - stream.avail_in);
    compressed.resize(size + kPieceBytes - stream.avail_out);
  }
  deflateEnd(&stream);
  return compressed;
}

absl::StatusOr<std::string> Gunzip(absl::string_view compressed, int64_t max_bytes) {
  z_stream stream{};
  if (inflateInit2(&stream, kGzip) != Z_OK) std::abort();
  std::string data;
  int code = Z_OK;
  while (code == Z_OK && static_cast<int64_t>(data.size()) <= max_bytes) {
    const size_t size = data.size();
    data.resize(size + kPieceBytes);
    const uInt piece = Piece(compressed.size());
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data()));
    stream.avail_in = piece;
    stream.next_out = reinterpret_cast<Bytef*>(data.data() + size);
    stream.avail_out = kPieceBytes;
    code = inflate(&stream, Z_NO_FLUSH);
    compressed.remove_prefix(piece - stream.avail_in);
    data.resize(size + kPieceBytes - stream.avail_out);
  }
  inflateEnd(&stream);
  if (static_cast<int64_t>(data.size()) > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("gzip: more than ", max_bytes, " bytes"));
  }
  if (code != Z_STREAM_END || !compressed.empty()) {
    return absl::DataLossError("gzip: damaged, or cut off");
  }
  return data;
}

}  // namespace almost
