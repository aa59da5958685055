// Unix sockets within a machine: abstract names (no file, gone with the process), packets, descriptors that come along with them.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "comm/socket.h"

namespace amxt::comm {

// A listening or connected SOCK_SEQPACKET socket, non-blocking.
Result<Descriptor> listen_abstract(const std::string& name);
// kNotFound when nobody listens, kTimeout when the backlog is full (worth another try).
Result<Descriptor> connect_abstract(const std::string& name);

// One packet, a descriptor along with it where `passed` is one. As send(2): never blocks, raises no signal, -1 with errno.
ssize_t send_packet(int socket, std::string_view packet, int passed);
// As recv(2), MSG_TRUNC for the packet's whole length. The first descriptor that came along goes to `passed`, any other is closed.
ssize_t receive_packet(int socket, char* bytes, size_t count, Descriptor* passed);

struct PeerCredentials {
  int pid = 0;  // 0: in another pid namespace
  bool same_user = false;
};
PeerCredentials peer_credentials(int socket);

// Readable once the process has ended; empty where the kernel or the pid namespace has none.
Descriptor process_descriptor(int pid);

}  // namespace amxt::comm
