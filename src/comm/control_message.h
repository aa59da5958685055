// Messages between ranks of one machine, over unix SOCK_SEQPACKET sockets: one fixed-size packet each, a descriptor along with it
// where the kind says so.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "comm/socket.h"

namespace amxt::comm {

enum class MessageKind : uint32_t {
  kHello = 1,  // who connects, to whom; answered by kWelcome
  kWelcome,    // who was connected to
  kReady,      // the sender has all peers
  kStart,      // from rank 0 when all are ready, with the descriptor of the control segment
  kSegment,    // from rank 0, with the descriptor of the shared memory number `sequence`
  kAbort,      // the sender gives up; code, about_rank and text are the root cause
  kLeave,      // the sender has finalized: its end of file is no death
};

inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr uint64_t kMessageMagic = 0x314C5254584D4121;  // changes with the layout below

struct Nonce {
  uint64_t words[2] = {0, 0};
  bool operator==(const Nonce&) const = default;
};

// What a rank says about itself.
struct Identity {
  int32_t rank = -1, world_size = 0, local_rank = -1, local_world_size = 0;
  int32_t pid = 0;
  int32_t threads = 0;
  Nonce nonce;
  uint64_t cpus[16] = {};  // affinity mask, CPU 0 is bit 0 of word 0
  char build[64] = {};     // version and commit of the library
};

struct Message {
  uint64_t magic = kMessageMagic;
  uint32_t protocol = kProtocolVersion;
  MessageKind kind = MessageKind::kHello;
  int32_t code = 0;         // kAbort, kSegment: a Code
  int32_t about_rank = -1;  // kAbort: the rank that the root cause is about
  uint64_t sequence = 0;    // kSegment
  int64_t bytes = 0;        // kSegment
  Identity sender;          // kHello, kWelcome
  Nonce target;             // kHello: of the entry that was read in the store
  char text[1024] = {};

  void set_text(std::string_view value);  // cut to fit
  std::string get_text() const;           // one line, whatever was sent
};

enum class Received { kMessage, kNothing, kClosed, kGarbage };

// Never blocks. False when the peer is gone or does not read; what is lost then is only a message to a peer that is stuck.
bool send_message(int socket, const Message& message, int passed = -1);
Received receive_message(int socket, Message* message, Descriptor* passed = nullptr);

// A listening or connected socket; the name is abstract: no file, gone with the process.
Result<Descriptor> listen_abstract(const std::string& name);
// kNotFound when nobody listens, kTimeout when the backlog is full (worth another try).
Result<Descriptor> connect_abstract(const std::string& name);

struct PeerCredentials {
  int pid = 0;  // 0: in another pid namespace
  bool same_user = false;
};
PeerCredentials peer_credentials(int socket);

// Readable once the process has ended; empty where the kernel or the pid namespace has none.
Descriptor process_descriptor(int pid);

}  // namespace amxt::comm
