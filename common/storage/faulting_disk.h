#pragma once

#include <sqlite3.h>

#include <atomic>
#include <limits>
#include <map>
#include <utility>

namespace almost {

// For tests: SQLite's own file system, but that one write of the process, counted from 0 since FailAt, fails
// with a SQLite code after its first half, or every write from it on. Databases opened before the first
// FailAt are not reached.
class FaultingDisk {
 public:
  static void FailAt(int write, int code) { Fail(write, write, code); }
  static void FailFrom(int write, int code) { Fail(write, std::numeric_limits<int>::max(), code); }
  static void Heal() { last_ = -1; }
  // Writes since FailAt.
  static int writes() { return writes_; }

 private:
  static void Fail(int first, int last, int code) {
    static const bool installed = Install();
    writes_ = installed ? 0 : -1;
    code_ = code;
    first_ = first;
    last_ = last;
  }
  static bool Install() {
    sqlite3_vfs* const base = sqlite3_vfs_find(nullptr);
    static sqlite3_vfs vfs = *base;
    open_ = base->xOpen;
    vfs.zName = "faulting";
    vfs.xOpen = [](sqlite3_vfs* self, const char* name, sqlite3_file* file, int flags, int* out) {
      const int code = open_(self, name, file, flags, out);
      if (code != SQLITE_OK || file->pMethods == nullptr) return code;
      // One table for each of the base's: they differ in how they close and lock, not in how they write.
      auto [methods, added] = methods_.try_emplace(file->pMethods, *file->pMethods);
      if (added) write_ = std::exchange(methods->second.xWrite, Write);
      file->pMethods = &methods->second;
      return code;
    };
    return sqlite3_vfs_register(&vfs, 1) == SQLITE_OK;
  }
  static int Write(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
    const int write = writes_++;
    if (write < first_ || write > last_) return write_(file, data, size, offset);
    write_(file, data, size / 2, offset);
    return code_;
  }

  inline static decltype(sqlite3_vfs::xOpen) open_ = nullptr;
  inline static decltype(sqlite3_io_methods::xWrite) write_ = nullptr;
  inline static std::map<const sqlite3_io_methods*, sqlite3_io_methods> methods_;
  inline static std::atomic<int> writes_{0};
  inline static std::atomic<int> first_{-1};
  inline static std::atomic<int> last_{-1};
  inline static std::atomic<int> code_{SQLITE_OK};
};

}  // namespace almost
