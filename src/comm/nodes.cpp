#include "comm/nodes.h"

#include <algorithm>

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

Nodes Nodes::of(const std::vector<int>& node_of_rank) {
  Nodes all;
  for (const int node : node_of_rank) {
    if (all.count() <= node) all.nodes.resize(static_cast<size_t>(node) + 1);
    auto& there = all.nodes[static_cast<size_t>(node)];
    const int rank = static_cast<int>(all.ranks.size());
    all.ranks.push_back({node, static_cast<int>(there.size()), {}, {}});
    there.push_back(rank);
  }
  return all;
}

std::vector<int> join_near_ranks(const std::vector<std::vector<bool>>& near) {
  std::vector<int> node_of_rank;
  std::vector<std::vector<size_t>> nodes;
  for (size_t rank = 0; rank < near.size(); ++rank) {
    const auto fits = [&](const std::vector<size_t>& ranks) {
      return std::all_of(ranks.begin(), ranks.end(),
                         [&](size_t other) { return near[rank][other] && near[other][rank]; });
    };
    auto node = std::find_if(nodes.begin(), nodes.end(), fits);
    if (node == nodes.end()) node = nodes.insert(nodes.end(), std::vector<size_t>());
    node->push_back(rank);
    node_of_rank.push_back(static_cast<int>(node - nodes.begin()));
  }
  return node_of_rank;
}

}  // namespace amxt::comm
