// GlooMesh: what this library uses of Gloo, in words of its own. It is implemented in a module (gloo/gloo_module.cpp, libamxtrain-gloo.so)
// that alone knows Gloo's types and alone is linked to it: opened at run time, so that amxtrain loads where there is no Gloo, and a host's
// own Gloo and this one never meet. Both sides come from one build.
//
// Thread-safety: listen, connect and stop_listening are called by one thread at a time; give_up, send, receive, close and waits by any.
// Nothing throws, no call takes longer than said, and nothing that a peer or a stranger sends ends the process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace amxt::comm {

class GlooTransfer {
 public:
  enum class State { kPending, kDone, kFailed };
  virtual ~GlooTransfer() = default;
  // Sleeps until the transfer ends or `slice_ms` have passed. A failure is described in `why`.
  virtual State wait(int slice_ms, std::string* why) = 0;
};

class GlooMesh {
 public:
  virtual ~GlooMesh() = default;
  // Where this rank listens, one address for each rank in order, its own place empty; opens the listeners.
  virtual bool listen(std::string* addresses, std::string* why) = 0;
  // Connects with `peer`, whose listen() gave `addresses`. Returns when connected, after give_up(), or at the timeout given to open.
  virtual bool connect(int peer, std::string_view addresses, std::string* why) = 0;
  virtual void stop_listening() = 0;
  // A peer whose connection is lost, or -1.
  virtual int lost(std::string* why) = 0;
  // Ends connect() and every transfer.
  virtual void give_up(const char* reason) = 0;

  // `slot` and `bytes` must be the same on both sides. nullptr when the connection is lost.
  virtual std::unique_ptr<GlooTransfer> send(int peer, uint64_t slot, const void* data,
                                             int64_t bytes, std::string* why) = 0;
  virtual std::unique_ptr<GlooTransfer> receive(int peer, uint64_t slot, void* data, int64_t bytes,
                                                std::string* why) = 0;
  // Orderly: what was sent still arrives. No memory of a transfer is touched afterwards.
  virtual void close() = 0;
};

// Binds to the IP address `address`. nullptr with the reason.
using GlooOpen = GlooMesh*(int rank, int size, const char* address, int64_t timeout_ms,
                           std::string* why);
inline constexpr char kGlooOpen[] = "amxt_gloo_open";

}  // namespace amxt::comm
