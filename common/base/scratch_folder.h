#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace almost {

// A new, empty folder for a test, which goes with all that is in it; in memory where the system has such a
// place with room, for tests sync a lot.
class ScratchFolder : public std::filesystem::path {
 public:
  ScratchFolder() : path(Make()) {}
  ~ScratchFolder() {
    std::error_code left;
    std::filesystem::remove_all(*this, left);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

 private:
  static path Make() {
    std::error_code absent;
    const std::filesystem::space_info memory = std::filesystem::space("/dev/shm", absent);
    const bool fits = !absent && memory.available > uintmax_t{1} << 30 && access("/dev/shm", W_OK) == 0;
    const path parent = fits ? path("/dev/shm") : std::filesystem::temp_directory_path();
    std::string folder = parent / "almost-test-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) {
      throw std::filesystem::filesystem_error("mkdtemp", folder,
                                              std::error_code(errno, std::generic_category()));
    }
    return folder;
  }
};

}  // namespace almost
