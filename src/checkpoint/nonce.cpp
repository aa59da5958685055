#include "checkpoint/nonce.h"

#include <fmt/format.h>

#include <random>

namespace amxt::checkpoint {

std::string make_nonce() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

}  // namespace amxt::checkpoint
