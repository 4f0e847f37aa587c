#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct sqlite3;
struct sqlite3_stmt;

namespace almost {

// One connection to a SQLite database, its prepared statements kept. Not thread-safe.
// Errors name the file: kAlreadyExists (a key is taken), kResourceExhausted (disk full), kDataLoss (not a
// database, or damaged), kUnavailable (locked by another), kUnknown (the device failed).
class Sqlite {
 public:
  // A statement under way; bind all parameters from 1, then step. Ends with its scope.
  class Query {
   public:
    Query(Query&& other) noexcept : database_(other.database_), statement_(other.statement_) {
      other.statement_ = nullptr;
    }
    Query& operator=(Query&&) = delete;
    ~Query();

    Query& Bind(int parameter, absl::string_view text);
    Query& Bind(int parameter, int64_t number);
    Query& BindNull(int parameter);
    // Whether there is a row.
    absl::StatusOr<bool> Step();
    // To the end, without wanting rows.
    absl::Status Run();

    std::string Text(int column) const;
    int64_t Number(int column) const;
    bool IsNull(int column) const;

   private:
    friend class Sqlite;
    Query(Sqlite* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
    Sqlite* database_;
    sqlite3_stmt* statement_;
  };

  // Created if missing. WAL, synchronous=FULL: what is committed survives a power cut.
  static absl::StatusOr<std::unique_ptr<Sqlite>> Open(const std::filesystem::path& file);
  ~Sqlite();

  // A statement of which no other query is under way.
  absl::StatusOr<Query> Prepare(const char* sql);
  // Statements without parameters and rows.
  absl::Status Execute(const char* sql);
  // Whether a transaction is open.
  bool InTransaction() const;

 private:
  Sqlite(std::string file, sqlite3* handle) : file_(std::move(file)), handle_(handle) {}
  absl::Status Error(int code) const;

  const std::string file_;
  sqlite3* const handle_;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

}  // namespace almost
