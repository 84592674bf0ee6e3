#include "pool.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

namespace openafm {
namespace {

constexpr uint64_t kRepeatAfter = 30'000;  // ns without a free piece: far more than a piece takes
constexpr uint64_t kSleepAfter = 200'000;  // ns of spinning; the gap between two tokens is shorter

uint64_t now() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

void pause() {
#if defined(__x86_64__)
  for (int i = 0; i < 8; i++) __builtin_ia32_pause();
#elif defined(__aarch64__)
  for (int i = 0; i < 8; i++) asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads)
    : state_(new std::atomic<uint32_t>[kMaxPieces]), busy_(new std::atomic<bool>[std::max(threads, 1)]) {
  for (auto& word : words_) word.store(0);
  for (size_t i = 0; i < kMaxPieces; i++) state_[i].store(0);
  for (int i = 0; i < std::max(threads, 1); i++) busy_[i].store(false);
  repeat_ = std::getenv("OPENAFM_NO_REPEAT") == nullptr;  // ThreadSanitizer cannot know that late results are dropped
  for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { idle(i); });
}

Pool::~Pool() {
  stop_ = true;
  ticket_.fetch_add(uint64_t{1} << 32);
  ticket_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::publish(const Task& task) {
  // Whoever copies the words while they change sees another epoch afterwards and drops them.
  const uint64_t epoch = (ticket_.load() >> 32) + 1;
  ticket_.store(epoch << 32);
  std::atomic_thread_fence(std::memory_order_release);
  uint64_t words[kWords];
  std::memcpy(words, static_cast<const void*>(&task), sizeof(Task));
  for (size_t i = 0; i < kWords; i++) words_[i].store(words[i], std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  repeatable_.store(repeat_ && task.publish != nullptr, std::memory_order_relaxed);
  ticket_.store((epoch + 1) << 32 | static_cast<uint64_t>(task.pieces) << 16, std::memory_order_release);
  ticket_.notify_all();
}

void Pool::piece(uint32_t epoch, size_t index, int thread) {
  Task task;
  uint64_t words[kWords];
  for (size_t i = 0; i < kWords; i++) words[i] = words_[i].load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (static_cast<uint32_t>(ticket_.load(std::memory_order_acquire) >> 32) != epoch) return;
  std::memcpy(static_cast<void*>(&task), words, sizeof(Task));
  task.compute(task, index, thread);
  uint32_t before = state_[index].load(std::memory_order_acquire);
  if (before >= epoch) return;  // somebody else was first
  if (!state_[index].compare_exchange_strong(before, epoch, std::memory_order_acq_rel)) return;
  if (task.publish) task.publish(task, index, thread);
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < task.pieces) return;
  Task next;
  if (chain_->next(next, thread)) {
    publish(next);
  } else {
    ticket_.store((uint64_t{epoch} + 1) << 32);  // no pieces
    running_.store(false, std::memory_order_release);
  }
}

bool Pool::work(int thread, uint64_t& idle_since) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  const uint32_t epoch = static_cast<uint32_t>(ticket >> 32);
  const size_t pieces = (ticket >> 16) & 0xFFFF, next = ticket & 0xFFFF;
  if (next < pieces) {
    idle_since = 0;
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) piece(epoch, next, thread);
    return true;
  }
  if (!idle_since) idle_since = now();
  if (pieces && repeatable_.load(std::memory_order_relaxed) && now() - idle_since > kRepeatAfter) {
    for (size_t i = 0; i < pieces; i++) {
      const size_t index = (i + static_cast<size_t>(thread)) % pieces;
      if (state_[index].load(std::memory_order_acquire) != epoch) {
        repeated_.fetch_add(1, std::memory_order_relaxed);
        piece(epoch, index, thread);
        idle_since = 0;
        return true;
      }
    }
  }
  return false;
}

void Pool::idle(int thread) {
  uint64_t idle_since = 0;
  while (!stop_.load(std::memory_order_acquire)) {
    const uint64_t ticket = ticket_.load(std::memory_order_acquire);
    busy_[thread].store(true);
    const bool worked = work(thread, idle_since);
    busy_[thread].store(false);
    if (worked) continue;
    if (now() - idle_since < kSleepAfter) {
      pause();
    } else if (ticket_.load() == ticket && !stop_) {
      ticket_.wait(ticket);
      idle_since = 0;
    }
  }
}

void Pool::run(Chain& chain) {
  if (ticket_.load() >> 63) {  // long before epochs run out, count anew
    settle();
    for (size_t i = 0; i < kMaxPieces; i++) state_[i].store(0);
    ticket_.store(0);
  }
  chain_ = &chain;
  Task first;
  if (!chain.next(first, 0)) return;
  running_.store(true);
  publish(first);
  uint64_t idle_since = 0;
  while (running_.load(std::memory_order_acquire)) {
    if (work(0, idle_since)) continue;
    pause();
    if (now() - idle_since > kSleepAfter) std::this_thread::yield();
  }
}

void Pool::settle() {
  for (int i = 1; i < threads(); i++) {
    while (busy_[i].load()) std::this_thread::yield();
  }
}

}  // namespace openafm
