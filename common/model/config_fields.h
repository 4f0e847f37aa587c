#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace almost {

// kUnimplemented: `field` of config.json has a value that would change the computation and is not supported.
inline absl::Status Unsupported(absl::string_view field, const nlohmann::json& value,
                                absl::string_view supported) {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", field, " is ", value.dump(), "; supported: ", supported));
}

// Reads fields of config.json or of an object in it and keeps the first complaint, kInvalidArgument naming
// the field, so that the caller reads on and asks once. `object` must outlive it.
class ConfigFields {
 public:
  explicit ConfigFields(const nlohmann::json& object) : object_(object) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }
  const nlohmann::json& operator[](const char* name) const { return object_.at(name); }

  // A fallback of 0 is none.
  int Int(const char* name, int fallback = 0) {
    if (!Has(name)) return fallback > 0 ? fallback : Complain(name, "is missing");
    const nlohmann::json& value = object_[name];
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > (int64_t{1} << 30)) {
      return Complain(name, absl::StrCat("must be a positive integer, got ", value.dump()));
    }
    return value.get<int>();
  }
  // A fallback of 0 is none.
  double Number(const char* name, double fallback = 0) {
    if (!Has(name)) return fallback > 0 ? fallback : Complain(name, "is missing");
    const nlohmann::json& value = object_[name];
    if (!value.is_number() || !(value.get<double>() > 0)) {
      return Complain(name, absl::StrCat("must be a positive number, got ", value.dump()));
    }
    return value.get<double>();
  }
  bool Bool(const char* name, bool fallback) {
    if (!Has(name)) return fallback;
    if (!object_[name].is_boolean()) return Complain(name, "must be true or false") != 0;
    return object_[name].get<bool>();
  }
  const absl::Status& status() const { return status_; }

 private:
  int Complain(const char* name, absl::string_view what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("config.json: ", name, " ", what));
    return 0;
  }
  const nlohmann::json& object_;
  absl::Status status_;
};

}  // namespace almost
