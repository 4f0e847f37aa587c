#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "google/protobuf/message.h"
#include "google/protobuf/timestamp.pb.h"

namespace almost::cli {

// Rows with aligned columns; the first row is the heading.
void PrintTable(FILE* out, const std::vector<std::vector<std::string>>& rows);

// Local time to the second; "-" where there is none.
std::string TimeText(const google::protobuf::Timestamp& time);

// `message` in its JSON form with the proto's own field names, over several lines or (`one_line`) in one.
void PrintJson(FILE* out, const google::protobuf::Message& message, bool one_line = false);

}  // namespace almost::cli
