#include "common/storage/s3_client.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLeastPart = 5 << 20;  // S3's own limit
constexpr int64_t kMaxParts = 10'000;    // likewise
constexpr size_t kMaxErrorBytes = 1 << 16;
constexpr char kIsoTime[] = "%Y-%m-%dT%H:%M:%E*SZ";

// RFC 3986's unreserved characters stay, and '/' in a path.
std::string Encode(absl::string_view text, bool path) {
  std::string out;
  for (const char c : text) {
    const bool plain =
        absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == '~';
    if (plain || (path && c == '/')) {
      out += c;
    } else {
      absl::StrAppendFormat(&out, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return out;
}

// The text of the first <tag> in `xml`; what S3 sends is flat enough for this. Empty: there is none.
std::string Tag(absl::string_view xml, absl::string_view tag) {
  const size_t begin = xml.find(absl::StrCat("<", tag, ">"));
  if (begin == absl::string_view::npos) return "";
  const size_t text = begin + tag.size() + 2;
  const size_t end = xml.find(absl::StrCat("</", tag, ">"), text);
  if (end == absl::string_view::npos) return "";
  return absl::StrReplaceAll(xml.substr(text, end - text), {{"&lt;", "<"},
                                                            {"&gt;", ">"},
                                                            {"&quot;", "\""},
                                                            {"&#34;", "\""},
                                                            {"&apos;", "'"},
                                                            {"&#39;", "'"},
                                                            {"&amp;", "&"}});
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  const int fd_;
};

absl::StatusOr<std::string> ReadPart(int fd, int64_t offset, int64_t size_bytes, const fs::path& file) {
  std::string bytes(static_cast<size_t>(size_bytes), '\0');
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::pread(fd, bytes.data() + done, bytes.size() - done,
                                  static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat("reading ", file.string()));
    if (count == 0) return absl::DataLossError(absl::StrCat(file.string(), " has become shorter"));
    done += static_cast<size_t>(count);
  }
  return bytes;
}

absl::Status WriteAll(int fd, int64_t offset, absl::string_view bytes, const fs::path& file) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno != EINTR)
      return absl::ErrnoToStatus(errno, absl::StrCat("writing ", file.string()));
    if (count <= 0) continue;
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += count;
  }
  return absl::OkStatus();
}

double Jitter() {
  thread_local std::minstd_rand random{std::random_device{}()};
  return std::uniform_real_distribution<double>(0.5, 1.0)(random);
}

}  // namespace

struct S3Client::Request {
  const char* method = "GET";
  std::string key;    // empty: the bucket's own
  std::string query;  // encoded, by name, every name with '='
  absl::string_view body;
  // Bytes wanted of the object; all if empty.
  std::string range;
};

struct S3Client::Response {
  long code = 0;
  std::string body;
  std::map<std::string, std::string> headers;  // names in lower case
};

absl::StatusOr<std::unique_ptr<S3Client>> S3Client::Create(const S3Options& options) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (started != CURLE_OK) return absl::InternalError("libcurl cannot be initialised");
  if (options.bucket.empty()) return absl::InvalidArgumentError("store: s3:// needs a bucket");
  if (options.access_key_id.empty() || options.secret_access_key.empty()) {
    return absl::InvalidArgumentError(
        "store: s3:// needs credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment");
  }
  if (!options.endpoint.empty() && !absl::StartsWith(options.endpoint, "http://") &&
      !absl::StartsWith(options.endpoint, "https://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("s3_endpoint: must begin with http:// or https://, is \"", options.endpoint, "\""));
  }
  S3Options adjusted = options;
  adjusted.part_bytes = std::max(adjusted.part_bytes, kLeastPart);
  adjusted.endpoint = options.endpoint.empty()
                          ? absl::StrCat("https://", options.bucket, ".s3.", options.region, ".amazonaws.com")
                          : absl::StrCat(absl::StripSuffix(options.endpoint, "/"), "/", options.bucket);
  return std::unique_ptr<S3Client>(new S3Client(adjusted));
}

S3Client::~S3Client() {
  const absl::MutexLock lock(&mutex_);
  for (void* const curl : idle_) curl_easy_cleanup(curl);
}

absl::StatusOr<S3Client::Response> S3Client::SendOnce(const Request& request, void* curl) {
  curl_easy_reset(curl);  // connections stay
  std::string url = absl::StrCat(options_.endpoint, "/", Encode(request.key, /*path=*/true));
  if (!request.query.empty()) absl::StrAppend(&url, "?", request.query);
  curl_slist* headers = nullptr;
  const absl::Cleanup free_headers = [&headers] { curl_slist_free_all(headers); };
  const auto header = [&headers](const std::string& line) {
    headers = curl_slist_append(headers, line.c_str());
  };
  header(absl::StrCat("x-amz-content-sha256: ", Sha256(request.body)));
  if (!options_.session_token.empty()) header(absl::StrCat("x-amz-security-token: ", options_.session_token));
  if (!request.range.empty()) header(absl::StrCat("range: bytes=", request.range));

  Response response;
  char error[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, absl::StrCat("aws:amz:", options_.region, ":s3").c_str());
  curl_easy_setopt(curl, CURLOPT_USERNAME, options_.access_key_id.c_str());
  curl_easy_setopt(curl, CURLOPT_PASSWORD, options_.secret_access_key.c_str());
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(absl::ToInt64Milliseconds(options_.connect_timeout)));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME,
                   static_cast<long>(absl::ToInt64Seconds(options_.stall_timeout)));
  if (!options_.ca_file.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, options_.ca_file.c_str());
  const absl::string_view method = request.method;
  if (method == "HEAD") {
    curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
  } else if (method == "PUT" || method == "POST") {
    header("Content-Type: application/octet-stream");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.empty() ? "" : request.body.data());
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method);
  } else if (method != "GET") {
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method);
  }
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &response);
  curl_easy_setopt(
      curl, CURLOPT_WRITEFUNCTION, +[](char* data, size_t size, size_t count, void* to) {
        static_cast<Response*>(to)->body.append(data, size * count);
        return size * count;
      });
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &response);
  curl_easy_setopt(
      curl, CURLOPT_HEADERFUNCTION, +[](char* data, size_t size, size_t count, void* to) {
        const absl::string_view line(data, size * count);
        if (const size_t colon = line.find(':'); colon != absl::string_view::npos) {
          static_cast<Response*>(to)->headers[absl::AsciiStrToLower(line.substr(0, colon))] =
              std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
        }
        return size * count;
      });
  if (const CURLcode code = curl_easy_perform(curl); code != CURLE_OK) {
    const std::string why = error[0] != '\0' ? error : curl_easy_strerror(code);
    const std::string message = absl::StrCat("S3 (", options_.endpoint, "): ", why);
    // What no later try mends.
    const bool final = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
                       code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL;
    return final ? absl::FailedPreconditionError(message) : absl::UnavailableError(message);
  }
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &response.code);
  if (response.code < 300) return response;

  const absl::string_view xml = absl::string_view(response.body).substr(0, kMaxErrorBytes);
  const std::string s3_code = Tag(xml, "Code");
  const std::string message = absl::StrCat("S3 (", options_.endpoint, "): ", request.method, " ", request.key,
                                           ": ", response.code, " ", s3_code, " ", Tag(xml, "Message"));
  if (response.code == 429 || response.code >= 500 || s3_code == "RequestTimeout" || s3_code == "SlowDown") {
    return absl::UnavailableError(message);
  }
  if (s3_code == "NoSuchBucket") return absl::FailedPreconditionError(message);
  if (response.code == 404) return absl::NotFoundError(message);
  if (response.code == 401 || response.code == 403) return absl::PermissionDeniedError(message);
  return absl::UnknownError(message);
}

absl::StatusOr<S3Client::Response> S3Client::Send(const Request& request) {
  void* curl = nullptr;
  {
    const absl::MutexLock lock(&mutex_);
    if (!idle_.empty()) {
      curl = idle_.back();
      idle_.pop_back();
    }
  }
  if (curl == nullptr) curl = curl_easy_init();
  if (curl == nullptr) return absl::ResourceExhaustedError("no memory for an S3 request");
  const absl::Cleanup put_back = [this, curl] {
    const absl::MutexLock lock(&mutex_);
    idle_.push_back(curl);
  };
  absl::Duration backoff = options_.first_backoff;
  for (int attempt = 1;; ++attempt) {
    absl::StatusOr<Response> response = SendOnce(request, curl);
    if (!absl::IsUnavailable(response.status())) return response;
    if (attempt >= options_.max_tries) {
      return absl::UnavailableError(absl::StrCat(response.status().message(), " (", attempt, " tries)"));
    }
    absl::SleepFor(backoff * Jitter());
    backoff = std::min(backoff * 2, options_.max_backoff);
  }
}

absl::Status S3Client::ForEachPart(int64_t num_parts,
                                   const std::function<absl::Status(int64_t)>& part) const {
  std::atomic<int64_t> next{0};
  absl::Mutex mutex;
  absl::Status first_error;
  const auto work = [&] {
    for (int64_t i; (i = next++) < num_parts;) {
      absl::Status status = part(i);
      if (status.ok()) continue;
      next = num_parts;
      const absl::MutexLock lock(&mutex);
      first_error.Update(status);
    }
  };
  {
    std::vector<std::jthread> workers;
    for (int64_t i = 1; i < std::min<int64_t>(options_.transfers, num_parts); ++i) workers.emplace_back(work);
    work();
  }
  return first_error;
}

absl::Status S3Client::Put(absl::string_view key, absl::string_view bytes) {
  Request request;
  request.method = "PUT";
  request.key = std::string(key);
  request.body = bytes;
  return Send(request).status();
}

absl::Status S3Client::PutFile(absl::string_view key, const fs::path& file) {
  const Descriptor descriptor(file, O_RDONLY);
  if (descriptor.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", file.string()));
  std::error_code error;
  const auto size_bytes = static_cast<int64_t>(fs::file_size(file, error));
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("reading ", file.string()));
  if (size_bytes <= options_.part_bytes) {
    ALMOST_ASSIGN_OR_RETURN(const std::string bytes, ReadPart(descriptor.get(), 0, size_bytes, file));
    return Put(key, bytes);
  }

  const int64_t part_bytes = std::max(options_.part_bytes, (size_bytes + kMaxParts - 1) / kMaxParts);
  const int64_t num_parts = (size_bytes + part_bytes - 1) / part_bytes;
  Request begin;
  begin.method = "POST";
  begin.key = std::string(key);
  begin.query = "uploads=";
  ALMOST_ASSIGN_OR_RETURN(const Response begun, Send(begin));
  const std::string upload = Tag(begun.body, "UploadId");
  if (upload.empty()) return absl::UnknownError("S3 began an upload in parts without naming it");
  const std::string upload_query = absl::StrCat("uploadId=", Encode(upload, /*path=*/false));

  std::vector<std::string> tags(static_cast<size_t>(num_parts));
  absl::Status status = ForEachPart(num_parts, [&](int64_t i) -> absl::Status {
    const int64_t offset = i * part_bytes;
    ALMOST_ASSIGN_OR_RETURN(
        const std::string bytes,
        ReadPart(descriptor.get(), offset, std::min(part_bytes, size_bytes - offset), file));
    Request request;
    request.method = "PUT";
    request.key = std::string(key);
    request.query = absl::StrCat("partNumber=", i + 1, "&", upload_query);
    request.body = bytes;
    ALMOST_ASSIGN_OR_RETURN(Response response, Send(request));
    tags[static_cast<size_t>(i)] = response.headers["etag"];
    return absl::OkStatus();
  });
  if (status.ok()) {
    std::string parts = "<CompleteMultipartUpload>";
    for (size_t i = 0; i < tags.size(); ++i) {
      absl::StrAppend(&parts, "<Part><PartNumber>", i + 1, "</PartNumber><ETag>", tags[i], "</ETag></Part>");
    }
    absl::StrAppend(&parts, "</CompleteMultipartUpload>");
    Request complete;
    complete.method = "POST";
    complete.key = std::string(key);
    complete.query = upload_query;
    complete.body = parts;
    const absl::StatusOr<Response> completed = Send(complete);
    // S3 may say 200 before it is through, and only then that it failed.
    if (completed.ok() && absl::StrContains(completed->body, "<Error>")) {
      status = absl::UnavailableError(absl::StrCat("S3 could not put ", std::string(key),
                                                   " together: ", Tag(completed->body, "Message")));
    } else {
      status = completed.status();
    }
    // A first answer that was lost on its way: the upload is gone because it is complete.
    if (absl::IsNotFound(status)) {
      const absl::StatusOr<S3Object> there = Head(key);
      if (there.ok() && there->size_bytes == size_bytes) return absl::OkStatus();
    }
  }
  if (!status.ok()) {  // its parts would take room for ever
    Request abort;
    abort.method = "DELETE";
    abort.key = std::string(key);
    abort.query = upload_query;
    Send(abort).status().IgnoreError();
  }
  return status;
}

absl::StatusOr<std::string> S3Client::Get(absl::string_view key) {
  Request request;
  request.key = std::string(key);
  ALMOST_ASSIGN_OR_RETURN(Response response, Send(request));
  return std::move(response.body);
}

absl::Status S3Client::GetFile(absl::string_view key, int64_t size_bytes, const fs::path& file) {
  const Descriptor descriptor(file, O_WRONLY | O_CREAT | O_EXCL);
  if (descriptor.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("creating ", file.string()));
  const int64_t num_parts =
      std::max<int64_t>((size_bytes + options_.part_bytes - 1) / options_.part_bytes, 1);
  ALMOST_RETURN_IF_ERROR(ForEachPart(num_parts, [&](int64_t i) -> absl::Status {
    const int64_t offset = i * options_.part_bytes;
    const int64_t wanted = std::min(options_.part_bytes, size_bytes - offset);
    Request request;
    request.key = std::string(key);
    if (num_parts > 1) request.range = absl::StrCat(offset, "-", offset + wanted - 1);
    ALMOST_ASSIGN_OR_RETURN(const Response response, Send(request));
    if (static_cast<int64_t>(response.body.size()) != wanted) {
      return absl::DataLossError(absl::StrCat("S3 sent ", response.body.size(), " bytes of ",
                                              std::string(key), " from ", offset, " on, not ", wanted));
    }
    return WriteAll(descriptor.get(), offset, response.body, file);
  }));
  if (::fsync(descriptor.get()) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("syncing ", file.string()));
  return absl::OkStatus();
}

absl::StatusOr<S3Object> S3Client::Head(absl::string_view key) {
  Request request;
  request.method = "HEAD";
  request.key = std::string(key);
  ALMOST_ASSIGN_OR_RETURN(Response response, Send(request));
  S3Object object;
  object.key = std::string(key);
  std::string why;
  if (!absl::SimpleAtoi(response.headers["content-length"], &object.size_bytes) ||
      !absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", response.headers["last-modified"], &object.modified,
                       &why)) {
    return absl::UnknownError(absl::StrCat("S3 does not say how large and old ", std::string(key), " is"));
  }
  return object;
}

absl::StatusOr<std::vector<S3Object>> S3Client::List(absl::string_view prefix) {
  std::vector<S3Object> objects;
  std::string token;
  do {
    Request request;
    if (!token.empty()) request.query = absl::StrCat("continuation-token=", Encode(token, false), "&");
    absl::StrAppend(&request.query, "list-type=2&prefix=", Encode(prefix, false));
    ALMOST_ASSIGN_OR_RETURN(const Response response, Send(request));
    absl::string_view rest = response.body;
    for (size_t at; (at = rest.find("<Contents>")) != absl::string_view::npos;) {
      const size_t end = std::min(rest.find("</Contents>", at), rest.size());
      const absl::string_view entry = rest.substr(at, end - at);
      S3Object& object = objects.emplace_back();
      object.key = Tag(entry, "Key");
      std::string why;
      if (!absl::SimpleAtoi(Tag(entry, "Size"), &object.size_bytes) ||
          !absl::ParseTime(kIsoTime, Tag(entry, "LastModified"), &object.modified, &why)) {
        return absl::UnknownError(absl::StrCat("S3 does not say how large and old ", object.key, " is"));
      }
      rest.remove_prefix(end);
    }
    token = Tag(response.body, "IsTruncated") == "true" ? Tag(response.body, "NextContinuationToken") : "";
  } while (!token.empty());
  std::sort(objects.begin(), objects.end(),
            [](const S3Object& a, const S3Object& b) { return a.key < b.key; });
  return objects;
}

absl::Status S3Client::Remove(absl::string_view key) {
  Request request;
  request.method = "DELETE";
  request.key = std::string(key);
  const absl::Status status = Send(request).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace almost
