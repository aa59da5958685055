// Messages between the ranks of a job: a header of fixed size and a payload, as bytes that mean the same over packets (unix sockets
// on one machine) and streams (TCP between machines).
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace amxt::comm {

enum class MessageKind : uint32_t {
  // While two ranks meet, in this order (handshake.h).
  kHello = 1,  // who connects, to whom
  kWelcome,    // who was connected to
  kProof,      // that the one who connects is of the job
  kRefuse,     // instead of kProof: the other side's answer was wrong
  // While the job meets (rendezvous.h).
  kReady,    // the sender has all peers; payload: which of them are on its node
  kStart,    // from rank 0 when all are ready; payload: the nodes
  kControl,  // from a node's leader, with the descriptor of the node's control segment
  // In the group (control_channel.h).
  kHeartbeat,  // nothing else to say
  kSegment,    // from the node's leader, with the descriptor of the shared memory number `sequence`
  kAbort,  // the sender gives up; code, about_rank and text are the root cause. From rank 0 also: `sequence` collectives have opened
  kLeave,  // the sender has finalized: its end of file is no death
  kPost,   // Group::post()
  // Of a collective of the job, number `sequence` (meeting.h). The first three to rank 0, the last from it to the leaders of nodes.
  kArrive,   // all ranks of the sender's node are there; code: the collective; payload: theirs
  kWaiting,  // the sender has been there for a while
  kGiveUp,   // the sender can't wait any more; code: why, text: for what
  kOpen,     // all are there; payload: everyone's
  kEnded,  // the sender has ended what `sequence` names; code, about_rank and text: why (Group::tell_end())
  // Of the calls that all ranks make alike (call_book.h): to rank 0, and from it to all.
  kCalled,  // about_rank called something as its call number `sequence`; code: 1 + the peer of a send or receive; bytes: what else
            // (CallTraits); payload: the communicator, 8 bytes, and the call as a text
};

inline constexpr uint32_t kProtocolVersion = 4;
inline constexpr uint32_t kMessageMagic = 0x32584D41;  // "AMX2"; changes with the layout
inline constexpr size_t kMaxText = 1023;
// No payload is longer, but those of kArrive and kOpen, which only proven peers may send.
inline constexpr size_t kMaxSmallPayload = 4096;

// Of kCalled, in its `bytes`.
struct CallTraits {
  static constexpr int64_t kCollective = 1, kSends = 2, kBlocks = 4, kOver = 8;
  static constexpr int kOrdinalShift = 8;
};

struct Message {
  MessageKind kind = MessageKind::kHello;
  int32_t code = 0;
  int32_t about_rank = -1;
  uint64_t sequence = 0;
  int64_t bytes = 0;
  std::string payload;

  void set_text(std::string_view text);  // cut to fit
  std::string get_text() const;          // one line, whatever was sent

  template <typename Struct>
  void set(const Struct& value) {
    static_assert(std::is_trivially_copyable_v<Struct>);
    payload.assign(reinterpret_cast<const char*>(&value), sizeof value);
  }
  // False when the payload is no such thing.
  template <typename Struct>
  bool get(Struct* value) const {
    static_assert(std::is_trivially_copyable_v<Struct>);
    if (payload.size() != sizeof *value) return false;
    std::memcpy(value, payload.data(), sizeof *value);
    return true;
  }
};

inline constexpr size_t kMessageHeaderBytes = 40;
std::string encode(const Message& message);
// How long the message is that begins with this header; nothing when it is none.
std::optional<size_t> message_bytes(std::string_view header);
// `bytes` is as long as message_bytes() says.
Message decode(std::string_view bytes);

}  // namespace amxt::comm
