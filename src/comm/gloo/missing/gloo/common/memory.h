// Gloo's installed headers include this one but its packages leave it out, in all versions from 2022 to 2025. These are declarations of our
// own for the three templates in it: each holds one standard pointer, and that size is all that a class derived from Gloo's needs. All code
// that acts on them is inside libgloo. Where a package does have the header, it is found first and this file is not read.
#pragma once

#include <memory>

namespace gloo {

template <typename T>
class NonOwningPtr;

template <typename T>
class ShareableNonOwningPtr {
 public:
  explicit ShareableNonOwningPtr(T* object);
  ShareableNonOwningPtr(const ShareableNonOwningPtr&) = delete;
  ShareableNonOwningPtr& operator=(const ShareableNonOwningPtr&) = delete;
  ~ShareableNonOwningPtr();

 private:
  std::shared_ptr<T> held_;
};

template <typename T>
class WeakNonOwningPtr {
 public:
  WeakNonOwningPtr() = default;
  explicit WeakNonOwningPtr(const ShareableNonOwningPtr<T>& object);

 private:
  std::weak_ptr<T> held_;
};

}  // namespace gloo
