// Bugs on purpose, one per sanitizer: the sanitizer builds prove with them that they see anything at all.
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

namespace {

int read_past_the_end(int index) {
  std::unique_ptr<int[]> numbers(new int[4]());
  return numbers[static_cast<size_t>(index)];
}

int overflow(int addend) { return INT_MAX - 3 + addend; }

void leak() {
  static char* volatile lost = nullptr;
  lost = new char[64];
  lost = nullptr;
}

int race() {
  int shared = 0;
  std::thread other([&shared] { ++shared; });
  ++shared;
  other.join();
  return shared;
}

}  // namespace

int main(int argc, char** argv) {
  const char* bug = argc > 1 ? argv[1] : "";
  int value = 0;
  if (std::strcmp(bug, "address") == 0) {
    value = read_past_the_end(argc + 3);
  } else if (std::strcmp(bug, "undefined") == 0) {
    value = overflow(argc + 3);
  } else if (std::strcmp(bug, "address-leak") == 0) {
    leak();
  } else if (std::strcmp(bug, "thread") == 0) {
    value = race();
  }
  std::printf("%d\n", value);
  return 0;
}
