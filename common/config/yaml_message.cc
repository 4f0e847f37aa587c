#include "common/config/yaml_message.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "google/protobuf/descriptor.h"
#include "yaml-cpp/yaml.h"

namespace almost {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Insertions, deletions and replacements that turn `a` into `b`.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// "; did you mean x?" for the nearest of `names`, when one is near.
std::string Suggestion(absl::string_view typed, const std::vector<std::string>& names) {
  const auto nearer = [&](const std::string& a, const std::string& b) {
    return EditDistance(typed, a) < EditDistance(typed, b);
  };
  const auto nearest = std::min_element(names.begin(), names.end(), nearer);
  if (nearest == names.end() || EditDistance(typed, *nearest) > typed.size() / 3 + 1) return "";
  return absl::StrCat("; did you mean ", *nearest, "?");
}

class Reader {
 public:
  explicit Reader(absl::string_view name) : name_(name) {}

  absl::Status Fill(const YAML::Node& node, const std::string& path, Message* message) const {
    const Descriptor& type = *message->GetDescriptor();
    if (!node.IsMap()) return Error(node, path, absl::StrCat("must be a map of ", type.name(), "'s fields"));
    std::set<const FieldDescriptor*> seen;
    for (const auto& entry : node) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      const std::string inner = path.empty() ? key : absl::StrCat(path, ".", key);
      const FieldDescriptor* field = type.FindFieldByName(key);
      if (field == nullptr) field = type.FindFieldByCamelcaseName(key);
      if (field == nullptr) {
        std::vector<std::string> names;
        for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
        return Error(entry.first, inner,
                     absl::StrCat("unknown field of ", type.name(), Suggestion(key, names)));
      }
      if (!seen.insert(field).second) return Error(entry.first, inner, "is set twice");
      if (const auto* oneof = field->real_containing_oneof();
          oneof != nullptr && message->GetReflection()->HasOneof(*message, oneof)) {
        return Error(
            entry.first, inner,
            absl::StrCat("excludes ",
                         message->GetReflection()->GetOneofFieldDescriptor(*message, oneof)->name()));
      }
      if (entry.second.IsNull()) return Error(entry.first, inner, "has no value");
      if (!field->is_repeated()) {
        ALMOST_RETURN_IF_ERROR(Set(entry.second, inner, *field, message));
        continue;
      }
      if (field->is_map()) return Error(entry.first, inner, "maps cannot be given in YAML");
      if (!entry.second.IsSequence()) return Error(entry.second, inner, "must be a list");
      message->GetReflection()->ClearField(message, field);
      for (size_t i = 0; i < entry.second.size(); ++i) {
        ALMOST_RETURN_IF_ERROR(Set(entry.second[i], absl::StrCat(inner, "[", i, "]"), *field, message));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Error(const YAML::Mark& mark, const std::string& path, absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ":", mark.line + 1, ": ", path, path.empty() ? "" : ": ", what));
  }

 private:
  absl::Status Error(const YAML::Node& node, const std::string& path, absl::string_view what) const {
    return Error(node.Mark(), path, what);
  }

  // Sets the field, or adds to it when it is repeated.
  absl::Status Set(const YAML::Node& node, const std::string& path, const FieldDescriptor& field,
                   Message* message) const {
    const Reflection& reflection = *message->GetReflection();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return Fill(node, path,
                  field.is_repeated() ? reflection.AddMessage(message, &field)
                                      : reflection.MutableMessage(message, &field));
    }
    if (!node.IsScalar()) return Error(node, path, absl::StrCat("must be one ", field.cpp_type_name()));
    const std::string& text = node.Scalar();
    const auto wrong = [&](absl::string_view rule) {
      return Error(node, path, absl::StrCat("must be ", rule, " (", text, ")"));
    };
    const auto store = [&](auto add, auto set, const auto& value) {
      field.is_repeated() ? (reflection.*add)(message, &field, value)
                          : (reflection.*set)(message, &field, value);
      return absl::OkStatus();
    };
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32: {
        int32_t value;
        if (!absl::SimpleAtoi(text, &value)) return wrong("a 32-bit integer");
        return store(&Reflection::AddInt32, &Reflection::SetInt32, value);
      }
      case FieldDescriptor::CPPTYPE_INT64: {
        int64_t value;
        if (!absl::SimpleAtoi(text, &value)) return wrong("a 64-bit integer");
        return store(&Reflection::AddInt64, &Reflection::SetInt64, value);
      }
      case FieldDescriptor::CPPTYPE_UINT32: {
        uint32_t value;
        if (!absl::SimpleAtoi(text, &value)) return wrong("a 32-bit integer of at least 0");
        return store(&Reflection::AddUInt32, &Reflection::SetUInt32, value);
      }
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value;
        if (!absl::SimpleAtoi(text, &value)) return wrong("a 64-bit integer of at least 0");
        return store(&Reflection::AddUInt64, &Reflection::SetUInt64, value);
      }
      case FieldDescriptor::CPPTYPE_DOUBLE:
      case FieldDescriptor::CPPTYPE_FLOAT: {
        double value;
        if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) return wrong("a finite number");
        if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
          return store(&Reflection::AddDouble, &Reflection::SetDouble, value);
        }
        return store(&Reflection::AddFloat, &Reflection::SetFloat, static_cast<float>(value));
      }
      case FieldDescriptor::CPPTYPE_BOOL:
        if (text != "true" && text != "false") return wrong("true or false");
        return store(&Reflection::AddBool, &Reflection::SetBool, text == "true");
      case FieldDescriptor::CPPTYPE_ENUM: {
        const EnumDescriptor& type = *field.enum_type();
        const EnumValueDescriptor* value = type.FindValueByName(text);
        if (value == nullptr) {
          std::vector<std::string> names;
          for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
          return Error(node, path,
                       absl::StrCat("no value of ", type.name(), " (", text, ")", Suggestion(text, names)));
        }
        return store(&Reflection::AddEnum, &Reflection::SetEnum, value);
      }
      case FieldDescriptor::CPPTYPE_STRING:
        if (ValidUtf8Prefix(text) < text.size()) return Error(node, path, "must be UTF-8");
        field.is_repeated() ? reflection.AddString(message, &field, text)
                            : reflection.SetString(message, &field, text);
        return absl::OkStatus();
      case FieldDescriptor::CPPTYPE_MESSAGE:
        break;
    }
    return Error(node, path, "cannot be given in YAML");
  }

  const absl::string_view name_;
};

}  // namespace

absl::Status ReadYaml(absl::string_view name, absl::string_view yaml, Message* message) {
  const Reader reader(name);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(yaml));
    if (documents.empty() || documents[0].IsNull()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ":1: is empty"));
    }
    if (documents.size() > 1) {
      return reader.Error(documents[1].Mark(), "", "a second document; there can be one");
    }
    return reader.Fill(documents[0], "", message);
  } catch (const YAML::Exception& error) {
    return reader.Error(error.mark, "", error.msg);
  }
}

}  // namespace almost
