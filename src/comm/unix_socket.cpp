#include "comm/unix_socket.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/text.h"

namespace amxt::comm {
namespace {

struct AbstractAddress {
  sockaddr_un address{};
  socklen_t length = 0;

  explicit AbstractAddress(const std::string& name) {
    address.sun_family = AF_UNIX;
    const size_t count = std::min(name.size(), sizeof address.sun_path - 1);
    std::memcpy(address.sun_path + 1, name.data(), count);
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + count);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

Result<Descriptor> packet_socket() {
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return system_error("unix socket", errno);
  return socket;
}

void take_descriptors(msghdr* header, Descriptor* passed) {
  for (cmsghdr* part = CMSG_FIRSTHDR(header); part != nullptr; part = CMSG_NXTHDR(header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      Descriptor owned(fd);
      if (passed != nullptr && !*passed) *passed = std::move(owned);
    }
  }
}

}  // namespace

ssize_t send_packet(int socket, std::string_view packet, int passed) {
  iovec data{const_cast<char*>(packet.data()), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (passed >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof passed);
    std::memcpy(CMSG_DATA(part), &passed, sizeof passed);
  }
  for (;;) {
    const ssize_t sent = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0 || errno != EINTR) return sent;
  }
}

ssize_t receive_packet(int socket, char* bytes, size_t count, Descriptor* passed) {
  for (;;) {
    iovec data{bytes, count};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (got < 0 && errno == EINTR) continue;
    if (got > 0) take_descriptors(&header, passed);
    return got;
  }
}

Result<Descriptor> listen_abstract(const std::string& name) {
  AMXT_ASSIGN(Descriptor socket, packet_socket());
  const AbstractAddress address(name);
  if (bind(socket.get(), address.get(), address.length) != 0) {
    return system_error("unix socket: bind", errno);
  }
  if (listen(socket.get(), 256) != 0) return system_error("unix socket: listen", errno);
  return socket;
}

Result<Descriptor> connect_abstract(const std::string& name) {
  AMXT_ASSIGN(Descriptor socket, packet_socket());
  const AbstractAddress address(name);
  while (connect(socket.get(), address.get(), address.length) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return Error(Code::kTimeout, "unix socket: the backlog is full", EAGAIN);
    if (errno == ECONNREFUSED) return Error(Code::kNotFound, "unix socket: nobody listens", errno);
    return system_error("unix socket: connect", errno);
  }
  return socket;
}

PeerCredentials peer_credentials(int socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return {};
  return {credentials.pid, credentials.uid == geteuid()};
}

Descriptor process_descriptor(int pid) {
#ifdef SYS_pidfd_open
  if (pid > 0) return Descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
#endif
  return Descriptor();
}

}  // namespace amxt::comm
