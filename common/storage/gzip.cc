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

struct GzipEncoder::Stream {
  z_stream z{};
};

GzipEncoder::GzipEncoder() : stream_(std::make_unique<Stream>()) {
  // Fails for want of memory only.
  if (deflateInit2(&stream_->z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kGzip, 8, Z_DEFAULT_STRATEGY) != Z_OK)
    std::abort();
}

GzipEncoder::~GzipEncoder() { deflateEnd(&stream_->z); }

void GzipEncoder::Add(absl::string_view data, std::string* compressed) {
  if (!data.empty()) Deflate(data, /*last=*/false, compressed);
}

void GzipEncoder::Finish(std::string* compressed) { Deflate("", /*last=*/true, compressed); }

void GzipEncoder::Deflate(absl::string_view data, bool last, std::string* compressed) {
  z_stream& z = stream_->z;
  int code = Z_OK;
  while (last ? code != Z_STREAM_END : !data.empty()) {
    const size_t size = compressed->size();
    compressed->resize(size + kPieceBytes);
    const uInt piece = Piece(data.size());
    z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    z.avail_in = piece;
    z.next_out = reinterpret_cast<Bytef*>(compressed->data() + size);
    z.avail_out = kPieceBytes;
    code = deflate(&z, last ? Z_FINISH : Z_NO_FLUSH);
    data.remove_prefix(piece - z.avail_in);
    compressed->resize(size + kPieceBytes - z.avail_out);
  }
}

std::string Gzip(absl::string_view data) {
  std::string compressed;
  GzipEncoder encoder;
  encoder.Add(data, &compressed);
  encoder.Finish(&compressed);
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
