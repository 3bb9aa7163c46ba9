// The list of the FLAN collection's data sets, and which of them a plan and a data folder have.
#pragma once

#include <string>

#include "data/flan/plan.hpp"

namespace flanmoe::flan {

/// One data set of the collection.
struct CollectionRow {
  std::string source, dataset;  // "NIv2", "qasc"
  std::int64_t tasks = 0;       // rows of the list
  std::int64_t present = 0;     // files of the plan that were made from it
};
/// Reads flan_collection_info.csv (Source, Dataset, ...; one row a task). Throws Error naming the line.
std::vector<CollectionRow> read_collection(const std::string& path);
/// Counts files of the plan under the data folder. A task file of NIv2 says itself what it was made from.
void find_present(const Plan& plan, const std::string& data, std::vector<CollectionRow>& rows);
/// A table for people: each source with its totals, then the data sets.
std::string describe_collection(const std::vector<CollectionRow>& rows);

}  // namespace flanmoe::flan
