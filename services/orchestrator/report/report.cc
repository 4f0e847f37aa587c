#include "services/orchestrator/report/report.h"

#include "common/page/page.h"

namespace almost {

extern const char kReportScript[];  // report.js

namespace orchestrator {

std::string RenderReport(const nlohmann::ordered_json& data) { return RenderPage(kReportScript, data); }

}  // namespace orchestrator
}  // namespace almost
