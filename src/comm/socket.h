// Sockets: owned descriptors, addresses, reads and writes that end at a deadline.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace amxt::comm {

// A file descriptor that is closed with its owner.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept;

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  std::string text;  // "127.0.0.1:29500", "[::1]:29500"

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  std::string ip() const;  // "127.0.0.1", "::1"
  Address at_port(int port) const;
};

// From what the kernel gives: AF_INET or AF_INET6.
Address address_from(const sockaddr* name);

// All stream addresses of a host name or number, in the resolver's order; at least one. kNotFound, also at the deadline: a resolver may
// take its time.
Result<std::vector<Address>> resolve(const std::string& host, int port,
                                     Deadline deadline = Deadline::never());

// A connection under way: writable once it is decided, then end_connect_tcp() tells how. Non-blocking, with TCP_NODELAY.
Result<Descriptor> start_connect_tcp(const Address& address);
Status end_connect_tcp(int socket);
// Both, in a wait. kTimeout at the deadline; the errno is in the error.
Result<Descriptor> connect_tcp(const Address& address, Deadline deadline);

void set_no_delay(const Descriptor& socket);

// Non-blocking, at that address and nowhere else; port 0 takes a free one. `*bound` (may be null) gets the address with its port.
Result<Descriptor> listen_tcp(const Address& address, Address* bound);

// With nobody listening on an ephemeral port, the kernel may choose it as the source port too: then a TCP socket is connected to itself.
bool meets_itself(int fd);

// Exactly that many bytes. kTimeout at the deadline, kIo (with the errno, 0 for an orderly close) when the peer is gone.
Status send_all(int fd, std::string_view bytes, Deadline deadline);
Status receive_all(int fd, char* bytes, size_t count, Deadline deadline);

}  // namespace amxt::comm
