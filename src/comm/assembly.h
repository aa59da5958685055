// Assembly: the ranks that have met, until they are a job on nodes. All say whom they share a machine with; rank 0 makes the nodes of it
// and starts the job; the lowest rank of each node gives the others there its control segment.
//
// Not thread-safe, never blocks: who calls it polls for what add_to() gives, then hear_all().
#pragma once

#include <poll.h>

#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "comm/control_message.h"
#include "comm/identity.h"
#include "comm/link.h"
#include "comm/nodes.h"
#include "comm/socket.h"

namespace amxt::comm {

struct Member {
  Identity identity;
  std::unique_ptr<Link> link;  // none in one's own entry
  Descriptor process;          // see process_descriptor(); of one's own machine
  // What it has said as a member of the group already: it heard of the start before this process did.
  struct Early {
    Message message;
    Descriptor passed;
  };
  std::vector<Early> early;
};

struct Gathering {
  std::vector<Member> members;  // by rank, oneself included
  Nodes nodes;
  Descriptor control;  // the memfd of the node's control segment
};

class Assembly {
 public:
  Assembly(int rank, int world_size, Log* log);

  // This process itself, as the others know it.
  void enter(const Identity& own);
  // Fails when that rank is there already; the newcomer hears of it by tell_all().
  void add(const Identity& identity, std::unique_ptr<Link> link);
  bool has(int rank) const;
  bool has_all() const;
  std::vector<int> ranks(bool there) const;

  void add_to(std::vector<pollfd>* entries) const;
  void hear_all();
  // What a member did, said or passed on that ends the start.
  Status take_failure() { return std::exchange(failure_, Status()); }
  void tell_all(const Message& message);

  // In this order, once all are there.
  void say_ready();
  bool all_ready() const;  // on rank 0, which then makes the nodes
  Status make_nodes();
  bool has_nodes() const { return nodes_.count() > 0; }
  Status make_control();
  bool has_control() const { return static_cast<bool>(control_); }
  // Whom this process waits for meanwhile.
  std::vector<int> awaited() const;
  Gathering take();

 private:
  const Identity& own() const { return members_[static_cast<size_t>(rank_)].identity; }
  Member& member(int rank) { return members_[static_cast<size_t>(rank)]; }
  void hear(Member& member);
  void handle(Member& member, Message message, Descriptor passed);
  void read_nodes(std::string_view payload);
  Status check_local_ranks();
  void take_control();
  void describe_nodes();
  void fail(Error error);

  const int rank_;
  Log* const log_;
  std::vector<Member> members_;
  std::vector<std::unique_ptr<Link>> refused_;
  std::vector<bool> ready_;
  std::vector<std::vector<bool>> near_;
  Nodes nodes_;  // none before rank 0 has said it
  std::map<int, Descriptor> offered_;
  Descriptor control_;
  Status failure_;
};

}  // namespace amxt::comm
