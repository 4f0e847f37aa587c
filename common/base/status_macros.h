#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Returns from the enclosing function when `expr`, an absl::Status, is not OK.
#define ALMOST_RETURN_IF_ERROR(expr)                 \
  do {                                               \
    absl::Status almost_status_ = (expr);            \
    if (!almost_status_.ok()) return almost_status_; \
  } while (false)

#define ALMOST_CONCAT_INNER_(a, b) a##b
#define ALMOST_CONCAT_(a, b) ALMOST_CONCAT_INNER_(a, b)

// `lhs` (which may declare a variable) takes the value of `expr`, an absl::StatusOr; returns its status when
// not OK.
#define ALMOST_ASSIGN_OR_RETURN(lhs, expr) \
  ALMOST_ASSIGN_OR_RETURN_(ALMOST_CONCAT_(almost_status_or_, __LINE__), lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration takes none.
#define ALMOST_ASSIGN_OR_RETURN_(var, lhs, expr) \
  auto var = (expr);                             \
  if (!var.ok()) return std::move(var).status(); \
  lhs = std::move(var).value()
// NOLINTEND(bugprone-macro-parentheses)

namespace almost {

// `status` with "`context`: " in front of its message; code and payloads stay.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status out(status.code(), std::string(context) + ": " + std::string(status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { out.SetPayload(url, payload); });
  return out;
}

}  // namespace almost
