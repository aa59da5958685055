#include "comm/nodes.h"

namespace amxt::comm {

Nodes Nodes::one(int world_size, const std::string& host) {
  Nodes all;
  all.nodes.emplace_back();
  for (int rank = 0; rank < world_size; ++rank) {
    all.ranks.push_back({0, rank, host, {}});
    all.nodes.front().push_back(rank);
  }
  return all;
}

}  // namespace amxt::comm
