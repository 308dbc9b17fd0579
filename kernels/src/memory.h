// Memory that starts on a cache line, and memory that calls lend to each other.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace e5onnx {

constexpr size_t kCacheLine = 64;

// Uninitialised memory that only grows.
class Block {
 public:
  // Returns at least so many bytes; what they held is lost.
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(::operator new(bytes, std::align_val_t{kCacheLine}));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kCacheLine}); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

// Cuts a block into arrays. Without a block it only counts bytes.
class Cutter {
 public:
  explicit Cutter(void* block = nullptr) : at_(static_cast<char*>(block)) {}
  template <class T>
  T* take(size_t count) {
    char* const taken = at_ ? at_ + bytes_ : nullptr;
    bytes_ += (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return reinterpret_cast<T*>(taken);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* at_;
  size_t bytes_ = 0;
};

// Objects that a call borrows: there are as many as were ever borrowed at a time.
template <class T>
class Pool {
 public:
  std::vector<std::unique_ptr<T>> borrow(size_t count) {
    std::vector<std::unique_ptr<T>> taken;
    taken.reserve(count);
    {
      const std::lock_guard lock(mutex_);
      while (taken.size() < count && !idle_.empty()) {
        taken.push_back(std::move(idle_.back()));
        idle_.pop_back();
      }
    }
    while (taken.size() < count) taken.push_back(std::make_unique<T>());
    return taken;
  }
  void give_back(std::vector<std::unique_ptr<T>> taken) {
    const std::lock_guard lock(mutex_);
    for (auto& each : taken) idle_.push_back(std::move(each));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace e5onnx
