// Keys and values of all sequences, in pages of 16 tokens that sequences with a common beginning share.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "weights.h"

namespace openafm {

enum class Stored { floats, halves, bytes };  // floats for the mode that is held against torch

struct CacheShape {
  size_t layers, heads, width;
  Stored stored;
  // One layer's head in a page, in words of 16 bits: keys [width][16], then values [16][width]; of bytes then the
  // scales of the 16 keys and of the 16 values in f32.
  size_t block() const {
    const size_t numbers = 2 * kPagePositions * width;
    return stored == Stored::floats ? 2 * numbers : stored == Stored::halves ? numbers : numbers / 2 + 4 * kPagePositions;
  }
  size_t page() const { return layers * heads * block(); }
};

using Page = std::shared_ptr<Buffer<uint16_t>>;

struct Sequence {
  std::vector<Page> pages;
  size_t length = 0;
};

class Cache {
 public:
  explicit Cache(CacheShape shape) : shape_(shape) {}

  int create() {
    sequences_[++last_] = {};
    return last_;
  }

  int fork(int id) {  // a sequence that begins with all of this one's tokens; full pages are shared
    Sequence copy = at(id);
    sequences_[++last_] = std::move(copy);
    return last_;
  }

  void release(int id) {
    if (!sequences_.erase(id)) throw std::invalid_argument("no such sequence");
  }

  void truncate(int id, size_t length) {
    Sequence& sequence = at(id);
    if (length > sequence.length) throw std::invalid_argument("a sequence cannot be cut to more than it has");
    sequence.length = length;
    sequence.pages.resize((length + kPagePositions - 1) / kPagePositions);
  }

  // Make room for `more` tokens, or throw std::bad_alloc where the limit leaves none; a shared page that they would be written to is copied first.
  void extend(int id, size_t more) {
    Sequence& sequence = at(id);
    // Not the last page: where memory ran out, one before has left pages that hold nothing yet.
    if (sequence.length % kPagePositions && more) {
      Page& begun = sequence.pages[sequence.length / kPagePositions];
      if (begun.use_count() > 1) {
        Page own = fresh();
        std::memcpy(own->data(), begun->data(), shape_.page() * sizeof(uint16_t));
        begun = std::move(own);
      }
    }
    const size_t pages = (sequence.length + more + kPagePositions - 1) / kPagePositions;
    while (sequence.pages.size() < pages) sequence.pages.push_back(fresh());
  }

  Sequence& at(int id) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) throw std::invalid_argument("no such sequence");
    return found->second;
  }

  uint16_t* block(const Page& page, size_t layer, size_t head) const {
    return page->data() + (layer * shape_.heads + head) * shape_.block();
  }

  const CacheShape& shape() const { return shape_; }

  size_t bytes() const { return *live_ * shape_.page() * sizeof(uint16_t); }  // a shared page counts once

  void limit(size_t bytes) { most_ = bytes / (shape_.page() * sizeof(uint16_t)); }

 private:
  Page fresh() {
    if (*live_ >= most_) throw std::bad_alloc();
    Page page(new Buffer<uint16_t>(shape_.page()), [live = live_](Buffer<uint16_t>* gone) {
      --*live;
      delete gone;
    });
    ++*live_;
    return page;
  }

  CacheShape shape_;
  size_t most_ = SIZE_MAX;  // pages
  std::shared_ptr<size_t> live_ = std::make_shared<size_t>(0);  // pages of all sequences
  std::unordered_map<int, Sequence> sequences_;
  int last_ = 0;
};

}  // namespace openafm
