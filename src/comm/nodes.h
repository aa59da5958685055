// Nodes: which ranks of a job share a machine. The same on every rank, found out by the rendezvous, whatever the launcher said.
//
// Two ranks are on one node when they reach each other's unix socket and can pass a descriptor over it, and do not carry different node
// ids (AMXTRAIN_NODE_ID, or the launcher's): an id may split a host, never join two. Nodes are numbered in the order of their lowest
// ranks.
#pragma once

#include <string>
#include <vector>

namespace amxt::comm {

struct Nodes {
  struct Rank {
    int node = 0;
    int local_rank = 0;  // 0, 1, ... on its node, in the order of ranks there
    std::string host;    // for messages
    std::string
        address;  // IP address of the interface that it listens on; empty on a job of one node
  };
  std::vector<Rank> ranks;              // by rank
  std::vector<std::vector<int>> nodes;  // ranks of each node, ascending

  int count() const { return static_cast<int>(nodes.size()); }
  int node_of(int rank) const { return ranks[static_cast<size_t>(rank)].node; }
  int local_of(int rank) const { return ranks[static_cast<size_t>(rank)].local_rank; }
  const std::vector<int>& on(int node) const { return nodes[static_cast<size_t>(node)]; }
  int local_size(int node) const { return static_cast<int>(on(node).size()); }
  // The rank that speaks for the node: its lowest.
  int leader(int node) const { return on(node).front(); }

  // All on one node, ranks as local ranks.
  static Nodes one(int world_size, const std::string& host);
  // From the node of each rank, without hosts and addresses.
  static Nodes of(const std::vector<int>& node_of_rank);
};

// Node of each rank. near[a][b]: a has met b as a rank of its node; only what both say counts. A rank joins the first node whose
// ranks are all near to it.
std::vector<int> join_near_ranks(const std::vector<std::vector<bool>>& near);

}  // namespace amxt::comm
