#pragma once

#include <utility>

#include "prometheus/family.h"

namespace almost {

// One member of a family, from here on until this object goes. What is observed after the last scrape before
// that is lost. Thread-safe as `Metric` is; the family must outlive it.
template <typename Metric>
class Series {
 public:
  // `arguments`: of a histogram its buckets.
  template <typename... Arguments>
  Series(prometheus::Family<Metric>& family, const prometheus::Labels& labels, Arguments&&... arguments)
      : family_(family), metric_(family.Add(labels, std::forward<Arguments>(arguments)...)) {}
  ~Series() { family_.Remove(&metric_); }
  Series(const Series&) = delete;
  Series& operator=(const Series&) = delete;

  Metric* operator->() const { return &metric_; }

 private:
  prometheus::Family<Metric>& family_;
  Metric& metric_;
};

}  // namespace almost
