// Threads that share small pieces of work, so that a core which others steal costs no more than its share.
//
// A step of the decoder is a chain of tasks. Every thread takes pieces of the current task from one counter; who finishes
// the last piece prepares the next task itself, so that no thread is needed more than another. A piece whose thread was
// taken off its core is computed once more by an idle thread: pieces compute into their thread's scratch memory, and the
// first to finish publishes. What the late one read may have changed meanwhile; its result is thrown away.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace openafm {

struct Task {
  void (*compute)(const Task& task, size_t piece, int thread) = nullptr;
  void (*publish)(const Task& task, size_t piece, int thread) = nullptr;  // null: computed in place, never repeated
  size_t pieces = 0;
  alignas(8) unsigned char data[232] = {};

  template <class Data> void set(const Data& given) {
    static_assert(sizeof(Data) <= sizeof(data) && std::is_trivially_copyable_v<Data>);
    std::memcpy(data, &given, sizeof(Data));
  }
  template <class Data> Data get() const {
    Data found;
    std::memcpy(static_cast<void*>(&found), data, sizeof(Data));
    return found;
  }
};

class Chain {  // what `Pool::run` works through
 public:
  virtual ~Chain() = default;
  virtual bool next(Task& task, int thread) = 0;  // fill in the next task with its pieces; false at the end
};

constexpr size_t kMaxPieces = 32768;

class Pool {
 public:
  explicit Pool(int threads);  // the caller's among them
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void run(Chain& chain);
  void settle();  // wait until no thread works on a piece that was done without it
  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  uint64_t repeated() const { return repeated_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kWords = sizeof(Task) / 8;
  static_assert(sizeof(Task) % 8 == 0);

  void publish(const Task& task);
  bool work(int thread, uint64_t& idle_since);
  void piece(uint32_t epoch, size_t index, int thread);
  void idle(int thread);

  alignas(64) std::atomic<uint64_t> ticket_{0};  // epoch << 32 | pieces << 16 | next
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<uint64_t> words_[kWords];  // the task, read again where the epoch has moved on
  std::unique_ptr<std::atomic<uint32_t>[]> state_;   // epoch in which a piece was last published
  Chain* chain_ = nullptr;
  std::atomic<bool> running_{false}, stop_{false}, repeatable_{false};
  std::unique_ptr<std::atomic<bool>[]> busy_;
  std::atomic<uint64_t> repeated_{0};
  bool repeat_;
  std::vector<std::thread> workers_;
};

}  // namespace openafm
