#include "comm/socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>

#include "base/text.h"

namespace amxt::comm {
namespace {

// Waits until `events` or an error condition; false at the deadline.
Result<bool> wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const int ready = poll(&entry, 1, deadline.poll_ms(1000));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return system_error("poll", errno);
    if (deadline.passed()) return false;
  }
}

int port_of(const Address& address) {
  // The port is at the same place in both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(address.get())->sin_port);
}

std::string text_of(const Address& address) {
  const int port = port_of(address);
  return address.family() == AF_INET6 ? fmt::format("[{}]:{}", address.ip(), port)
                                      : fmt::format("{}:{}", address.ip(), port);
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Descriptor::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string Address::ip() const {
  char bytes[INET6_ADDRSTRLEN] = "?";
  if (family() == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(get())->sin6_addr, bytes,
              sizeof bytes);
  } else {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(get())->sin_addr, bytes, sizeof bytes);
  }
  return bytes;
}

Address Address::at_port(int port) const {
  Address address = *this;
  reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port = htons(static_cast<uint16_t>(port));
  address.text = text_of(address);
  return address;
}

Address address_from(const sockaddr* name) {
  Address address;
  address.length = name->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  std::memcpy(&address.storage, name, address.length);
  address.text = text_of(address);
  return address;
}

namespace {

// A look-up of the C library's own thread, which outlives who gives up on it: its memory is then left to it.
struct Lookup {
  std::string host, service;
  addrinfo hints{};
  gaicb request{};

  Lookup(const std::string& name, int port) : host(name), service(std::to_string(port)) {
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    request.ar_name = host.c_str();
    request.ar_service = service.c_str();
    request.ar_request = &hints;
  }
  ~Lookup() {
    if (request.ar_result != nullptr) freeaddrinfo(request.ar_result);
  }
};

// An error of getaddrinfo, or EAI_INPROGRESS at the deadline.
int look_up(gaicb* request, Deadline deadline) {
  // A number needs nobody's answer, and no thread.
  addrinfo number = *request->ar_request;
  number.ai_flags |= AI_NUMERICHOST;
  if (getaddrinfo(request->ar_name, request->ar_service, &number, &request->ar_result) == 0) {
    return 0;
  }
#ifdef __SANITIZE_THREAD__
  // ThreadSanitizer crashes in threads that glibc starts for itself.
  return getaddrinfo(request->ar_name, request->ar_service, request->ar_request,
                     &request->ar_result);
#endif
  gaicb* list[] = {request};
  const int started = getaddrinfo_a(GAI_NOWAIT, list, 1, nullptr);
  if (started != 0) return started;
  while (gai_error(request) == EAI_INPROGRESS && !deadline.passed()) {
    const int left_ms = deadline.poll_ms(1000);
    const timespec wait{left_ms / 1000, left_ms % 1000 * 1'000'000};
    gai_suspend(list, 1, &wait);
  }
  return gai_error(request);
}

}  // namespace

Result<std::vector<Address>> resolve(const std::string& host, int port, Deadline deadline) {
  auto lookup = std::make_unique<Lookup>(host, port);
  const int error = look_up(&lookup->request, deadline);
  if (error == EAI_INPROGRESS) {
    if (gai_cancel(&lookup->request) == EAI_NOTCANCELED) (void)lookup.release();
    return Error(Code::kNotFound, fmt::format("host {} (MASTER_ADDR) is not resolved: no answer "
                                              "within the deadline",
                                              quote(host)));
  }
  if (error != 0) {
    return Error(Code::kNotFound, fmt::format("host {} (MASTER_ADDR) is not resolved: {}",
                                              quote(host), gai_strerror(error)));
  }
  std::vector<Address> addresses;
  for (const addrinfo* entry = lookup->request.ar_result; entry != nullptr;
       entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    addresses.push_back(address_from(entry->ai_addr));
  }
  if (addresses.empty()) {
    return Error(Code::kNotFound,
                 fmt::format("host {} (MASTER_ADDR) has no internet address", quote(host)));
  }
  return addresses;
}

bool meets_itself(int fd) {
  sockaddr_storage near{}, far{};
  socklen_t near_length = sizeof near, far_length = sizeof far;
  return getsockname(fd, reinterpret_cast<sockaddr*>(&near), &near_length) == 0 &&
         getpeername(fd, reinterpret_cast<sockaddr*>(&far), &far_length) == 0 &&
         near_length == far_length && std::memcmp(&near, &far, near_length) == 0;
}

void set_no_delay(const Descriptor& socket) {
  const int on = 1;
  setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Result<Descriptor> start_connect_tcp(const Address& address) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return system_error("socket", errno);
  set_no_delay(socket);
  if (::connect(socket.get(), address.get(), address.length) != 0 && errno != EINPROGRESS &&
      errno != EINTR) {
    return system_error("connect", errno);
  }
  return socket;
}

Status end_connect_tcp(int socket) {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error == 0 && meets_itself(socket)) error = ECONNREFUSED;
  if (error != 0) return system_error("connect", error);
  return {};
}

Result<Descriptor> connect_tcp(const Address& address, Deadline deadline) {
  AMXT_ASSIGN(Descriptor socket, start_connect_tcp(address));
  AMXT_ASSIGN(const bool ready, wait_for(socket.get(), POLLOUT, deadline));
  if (!ready) return Error(Code::kTimeout, "connect: no answer within the deadline", ETIMEDOUT);
  AMXT_TRY(end_connect_tcp(socket.get()));
  return socket;
}

Result<Descriptor> listen_tcp(const Address& address, Address* bound) {
  const auto failed = [&](const char* call) {
    return system_error(fmt::format("{}: {}", address.text, call), errno);
  };
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return failed("socket");
  if (bind(socket.get(), address.get(), address.length) != 0) return failed("bind");
  if (listen(socket.get(), SOMAXCONN) != 0) return failed("listen");
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0) {
    return failed("getsockname");
  }
  if (bound != nullptr) *bound = address_from(reinterpret_cast<const sockaddr*>(&own));
  return socket;
}

Status send_all(int fd, std::string_view bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      AMXT_ASSIGN(const bool ready, wait_for(fd, POLLOUT, deadline));
      if (!ready) return Error(Code::kTimeout, "send: not taken within the deadline", ETIMEDOUT);
    } else if (errno != EINTR) {
      return system_error("send", errno);
    }
  }
  return {};
}

Status receive_all(int fd, char* bytes, size_t count, Deadline deadline) {
  while (count > 0) {
    const ssize_t got = ::recv(fd, bytes, count, MSG_DONTWAIT);
    if (got > 0) {
      bytes += got;
      count -= static_cast<size_t>(got);
    } else if (got == 0) {
      return Error(Code::kIo, "receive: the peer closed the connection");
    } else if (errno == EAGAIN) {
      AMXT_ASSIGN(const bool ready, wait_for(fd, POLLIN, deadline));
      if (!ready) return Error(Code::kTimeout, "receive: no answer within the deadline", ETIMEDOUT);
    } else if (errno != EINTR) {
      return system_error("receive", errno);
    }
  }
  return {};
}

}  // namespace amxt::comm
