// The module around Gloo. Its classes are derived from those of Gloo's TCP transport for three reasons. Gloo throws in its own I/O thread,
// where nobody can catch, so every event is handled inside a try block. Its waits close all connections when their time is up, so waiting
// is done here, in slices. And it does not tell a transfer that is half done of a lost connection, so each connection keeps a flag.
#include "comm/gloo_module.h"

#include <dirent.h>
#include <fcntl.h>
#include <gloo/transport/tcp/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/tcp/pair.h>
#include <gloo/transport/tcp/unbound_buffer.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

// Since 2023 a device has one listener for all its pairs; since 2025 events are handled with the loop at hand.
#if __has_include(<gloo/transport/tcp/listener.h>)
#define AMXT_GLOO_ONE_LISTENER 1
#else
#define AMXT_GLOO_ONE_LISTENER 0
#endif

namespace amxt::comm {
namespace {

namespace tcp = ::gloo::transport::tcp;

// One line: Gloo's messages begin with the file that they come from.
std::string text_of(const std::exception& error) {
  std::string text = error.what();
  if (!text.empty() && text.front() == '[') {
    if (const size_t end = text.find("] "); end != std::string::npos) text.erase(0, end + 2);
  }
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

// Runs `body`, which may throw anything.
template <typename Body>
bool guarded(std::string* why, Body&& body) {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    *why = text_of(error);
  } catch (...) {
    *why = "unknown exception";
  }
  return false;
}

// A write to a connection that the peer has closed raises SIGPIPE in the thread that writes: here it must not reach the host.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    if (!was_pending_) pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoSigpipe() {
    if (was_pending_) return;
    const timespec now{};
    sigtimedwait(&pipe_, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoSigpipe(const NoSigpipe&) = delete;
  NoSigpipe& operator=(const NoSigpipe&) = delete;

 private:
  sigset_t pipe_{}, before_{};
  bool was_pending_ = false;
};

class GuardedPair final : public tcp::Pair {
 public:
  using tcp::Pair::Pair;

#ifdef AMXT_GLOO_EVENTS_WITH_LOOP
  void handleEvents(tcp::Loop& loop, int events) override {
    guard([&] { tcp::Pair::handleEvents(loop, events); });
  }
#else
  void handleEvents(int events) override {
    guard([&] { tcp::Pair::handleEvents(events); });
  }
#endif

  bool is_closed() const { return closed_.load(std::memory_order_acquire); }
  std::string reason() {
    std::lock_guard lock(m_);
    if (ex_ == nullptr) return "the connection was closed";
    try {
      std::rethrow_exception(ex_);
    } catch (const std::exception& error) {
      return text_of(error);
    } catch (...) {
      return "unknown exception";
    }
  }
  void give_up(const std::string& reason) {
    std::string why;
    guarded(&why, [&] { signalExceptionExternal(reason); });
  }
  void shut() {
    std::string why;
    guarded(&why, [&] {
      std::lock_guard lock(m_);
      if (state_ != CLOSED) changeState(CLOSED);
    });
  }

 private:
  void changeState(state next) noexcept override {
    tcp::Pair::changeState(next);
    if (next == CLOSED) closed_.store(true, std::memory_order_release);
  }
  template <typename Body>
  void guard(Body&& body) {
    std::string why;
    if (!guarded(&why, body)) give_up(why);
  }

  std::atomic<bool> closed_{false};
};

class GuardedContext final : public tcp::Context {
 public:
  using tcp::Context::Context;
  GuardedPair* make_pair(int peer) {
    auto made = std::make_unique<GuardedPair>(this, device_.get(), peer, getTimeout());
    GuardedPair* const pair = made.get();
    pairs_[static_cast<size_t>(peer)] = std::move(made);
    return pair;
  }
};

class GuardedBuffer final : public tcp::UnboundBuffer {
 public:
  using tcp::UnboundBuffer::UnboundBuffer;

  // True when it is complete.
  bool wait(bool sending, int slice_ms) {
    std::unique_lock lock(m_);
    const int& completions = sending ? sendCompletions_ : recvCompletions_;
    (sending ? sendCv_ : recvCv_).wait_for(lock, std::chrono::milliseconds(slice_ms), [&] {
      return completions > 0 || ex_ != nullptr;
    });
    return completions > 0;
  }
};

#if AMXT_GLOO_ONE_LISTENER
class NoEvents final : public tcp::Handler {
 public:
#ifdef AMXT_GLOO_EVENTS_WITH_LOOP
  void handleEvents(tcp::Loop&, int) override {}
#else
  void handleEvents(int) override {}
#endif
};

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

bool is_listening(int fd) {
  int listening = 0;
  socklen_t size = sizeof listening;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening != 0;
}

// Visits the numbers of this process' sockets that have the local address: a listener and what it accepted. Each as a copy too, which
// stays what it is when another thread closes the number and it is taken anew.
template <typename Visit>
void for_sockets_at(const sockaddr_storage& address, Visit&& visit) {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    const int fd = std::atoi(entry->d_name);
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) != 0) continue;
    const Descriptor copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    length = sizeof bound;
    if (copy.get() < 0 ||
        getsockname(copy.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0)
      continue;
    const size_t compared =
        bound.ss_family == AF_INET ? offsetof(sockaddr_in, sin_zero) : sizeof(sockaddr_in6);
    if (bound.ss_family == address.ss_family && std::memcmp(&bound, &address, compared) == 0)
      visit(fd, copy.get());
  }
  closedir(folder);
}

// Returns when Gloo's thread is through with what it was doing.
void wait_for_loop(tcp::Device& device) {
  const Descriptor silent(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  NoEvents no_events;
  std::string why;
  guarded(&why, [&] {
    device.registerDescriptor(silent.get(), EPOLLIN, &no_events);
    device.unregisterDescriptor(silent.get(), &no_events);
  });
}

// A stranger who connected and said nothing is waited for by an operation that holds Gloo's loop. Were it the last to do so, the loop's
// thread would join itself, which ends the process. So strangers are shown out before the device goes; false when one is still there.
bool show_strangers_out(tcp::Device& device, const sockaddr_storage& address) {
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    bool any = false;
    for_sockets_at(address, [&](int, int copy) {
      if (is_listening(copy)) return;
      any = true;
      shutdown(copy, SHUT_RDWR);
    });
    wait_for_loop(device);
    if (!any) return true;
  }
  return false;
}
#endif

// What a mesh and its transfers share. Buffers whose transfer was dropped before its end stay until the mesh is closed: Gloo would look
// for them without a pause.
struct Shared {
  ~Shared() {
    context.reset();
#if AMXT_GLOO_ONE_LISTENER
    // What cannot be ended is better left.
    if (device && !show_strangers_out(*device, listener)) new std::shared_ptr(device);
#endif
  }

  std::shared_ptr<tcp::Device> device;
  std::shared_ptr<GuardedContext> context;
#if AMXT_GLOO_ONE_LISTENER
  sockaddr_storage listener{};
#endif
  std::mutex mutex;
  bool closed = false;
  std::vector<std::unique_ptr<GuardedBuffer>> dropped;
};

class Transfer final : public GlooTransfer {
 public:
  Transfer(std::shared_ptr<Shared> shared, GuardedPair* pair, bool sending, void* data,
           int64_t bytes)
      : shared_(std::move(shared)),
        pair_(pair),
        sending_(sending),
        buffer_(
            std::make_unique<GuardedBuffer>(shared_->context, data, static_cast<size_t>(bytes))) {}
  ~Transfer() override {
    if (done_) return;
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->closed) shared_->dropped.push_back(std::move(buffer_));
  }

  void post(uint64_t slot, int64_t bytes) {
    const auto count = static_cast<size_t>(bytes);
    if (sending_) {
      pair_->send(buffer_.get(), slot, 0, count);
    } else {
      pair_->recv(buffer_.get(), slot, 0, count);
    }
  }

  State wait(int slice_ms, std::string* why) override {
    // A connection that closes first may still have ended this transfer, so the flag is read before.
    const bool closed = pair_->is_closed();
    std::string thrown;
    bool done = false;
    if (!guarded(&thrown, [&] { done = buffer_->wait(sending_, closed ? 0 : slice_ms); })) {
      *why = thrown;
      return State::kFailed;
    }
    done_ = done;
    if (done) return State::kDone;
    if (!closed) return State::kPending;
    *why = pair_->reason();
    return State::kFailed;
  }

 private:
  std::shared_ptr<Shared> shared_;
  GuardedPair* pair_;
  const bool sending_;
  bool done_ = false;
  std::unique_ptr<GuardedBuffer> buffer_;
};

class Mesh final : public GlooMesh {
 public:
  Mesh(int rank, int size, int64_t timeout_ms)
      : rank_(rank),
        size_(size),
        timeout_(timeout_ms),
        pairs_(static_cast<size_t>(size)),
        shared_(std::make_shared<Shared>()) {}
  ~Mesh() override { close(); }

  void open(const char* address) {
    tcp::attr attr;
    attr.hostname = address;
    // Gloo's thread inherits the mask of the one that starts it, and takes none of the host's signals.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      shared_->device = std::dynamic_pointer_cast<tcp::Device>(tcp::CreateDevice(attr));
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    shared_->context = std::make_shared<GuardedContext>(shared_->device, rank_, size_);
    shared_->context->setTimeout(std::chrono::milliseconds(timeout_));
  }

  bool listen(std::string* addresses, std::string* why) override {
    return guarded(why, [&] {
      for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        pairs_[static_cast<size_t>(peer)] = shared_->context->make_pair(peer);
      }
      for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        const std::vector<char> bytes = pairs_[static_cast<size_t>(peer)]->address().bytes();
        if (address_bytes_ == 0) address_bytes_ = bytes.size();
        addresses->resize(address_bytes_ * static_cast<size_t>(peer));
        addresses->append(bytes.begin(), bytes.end());
#if AMXT_GLOO_ONE_LISTENER
        shared_->listener =
            dynamic_cast<const tcp::Address&>(pairs_[static_cast<size_t>(peer)]->address())
                .getSockaddr();
#endif
      }
      addresses->resize(address_bytes_ * static_cast<size_t>(size_));
    });
  }

  bool connect(int peer, std::string_view addresses, std::string* why) override {
    if (addresses.size() != address_bytes_ * static_cast<size_t>(size_)) {
      *why = "it sent addresses of another size: another version of Gloo?";
      return false;
    }
    const std::string_view own =
        addresses.substr(address_bytes_ * static_cast<size_t>(rank_), address_bytes_);
    return guarded(why, [&] {
      pairs_[static_cast<size_t>(peer)]->connect(std::vector<char>(own.begin(), own.end()));
    });
  }

  void stop_listening() override {
#if AMXT_GLOO_ONE_LISTENER
    // The device keeps its listener and its number for life: another, silent descriptor takes that number.
    int listener = -1;
    for_sockets_at(shared_->listener, [&](int fd, int copy) {
      if (is_listening(copy)) listener = fd;
    });
    const Descriptor silent(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (listener < 0 || silent.get() < 0) return;
    std::string why;
    guarded(&why, [&] {
      dup3(silent.get(), listener, O_CLOEXEC);
      shared_->device->registerDescriptor(listener, EPOLLIN, &no_events_);
    });
#endif
  }

  int lost(std::string* why) override {
    for (int peer = 0; peer < size_; ++peer) {
      GuardedPair* const pair = pairs_[static_cast<size_t>(peer)];
      if (pair == nullptr || !pair->is_closed()) continue;
      *why = pair->reason();
      return peer;
    }
    return -1;
  }

  void give_up(const char* reason) override {
    for (GuardedPair* pair : pairs_) {
      if (pair != nullptr) pair->give_up(reason);
    }
  }

  std::unique_ptr<GlooTransfer> send(int peer, uint64_t slot, const void* data, int64_t bytes,
                                     std::string* why) override {
    return post(peer, slot, const_cast<void*>(data), bytes, true, why);
  }
  std::unique_ptr<GlooTransfer> receive(int peer, uint64_t slot, void* data, int64_t bytes,
                                        std::string* why) override {
    return post(peer, slot, data, bytes, false, why);
  }

  void close() override {
    for (GuardedPair* pair : pairs_) {
      if (pair != nullptr) pair->shut();
    }
    std::vector<std::unique_ptr<GuardedBuffer>> dropped;
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->closed = true;
      dropped.swap(shared_->dropped);
    }
  }

 private:
  std::unique_ptr<GlooTransfer> post(int peer, uint64_t slot, void* data, int64_t bytes,
                                     bool sending, std::string* why) {
    const NoSigpipe quiet;
    GuardedPair* const pair = pairs_[static_cast<size_t>(peer)];
    std::unique_ptr<Transfer> transfer;
    if (!guarded(why, [&] {
          transfer = std::make_unique<Transfer>(shared_, pair, sending, data, bytes);
          transfer->post(slot, bytes);
        }))
      return nullptr;
    return transfer;
  }

  const int rank_, size_;
  const int64_t timeout_;
  size_t address_bytes_ = 0;
  std::vector<GuardedPair*> pairs_;  // owned by the context
  std::shared_ptr<Shared> shared_;
#if AMXT_GLOO_ONE_LISTENER
  NoEvents no_events_;
#endif
};

}  // namespace
}  // namespace amxt::comm

extern "C" __attribute__((visibility("default"))) amxt::comm::GlooMesh* amxt_gloo_open(
    int rank, int size, const char* address, int64_t timeout_ms, std::string* why);

amxt::comm::GlooMesh* amxt_gloo_open(int rank, int size, const char* address, int64_t timeout_ms,
                                     std::string* why) {
  std::unique_ptr<amxt::comm::Mesh> mesh;
  if (!amxt::comm::guarded(why, [&] {
        mesh = std::make_unique<amxt::comm::Mesh>(rank, size, timeout_ms);
        mesh->open(address);
      }))
    return nullptr;
  return mesh.release();
}
