// prefix_attention: fetching rows before their turn. Where the heads of a token lie side by side, one head is a few lines of
// every token, each in another page, and arrives several times more slowly than the same bytes as one stream. So some key
// heads of a row are taken together: while they are computed, one by one, those that come next are fetched token by token,
// one line at a time: the processor waits for a dozen lines at once, and a burst of more holds up everything else.
#pragma once
#include "../../base/vec.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

static HFK_INLINE int64_t row_at(const PrefixAttentionArgs& a, int64_t place) { return a.order ? a.order[place] : place; }

class FetchAhead {
 public:
  // places: rows that are computed.
  HFK_INLINE FetchAhead(const PrefixAttentionArgs& args, int64_t places)
      : a(args), places(places), element(a.type == DType::f32 ? 4 : 2) {
    add(a.query, true);
    add(a.key, false);
    add(a.value, false);
  }
  // Another tensor whose rows are read or written; by_query: [B, H, Tq, D], else [B, G, Tk, D].
  HFK_INLINE void add(const HeadsView& v, bool by_query) {
    if (!v.data) return;
    const int64_t heads = by_query ? a.H / a.G : 1, tokens = by_query ? a.Tq : a.Tk;
    tensors[count++] = {static_cast<const char*>(v.data),
                        v.row * element,
                        v.head * element,
                        v.token * element,
                        heads,
                        tokens,
                        v.head == a.D};
    bytes += heads * tokens * a.D * element;
    together = a.key.head > a.key.token ? 1 : imax(1, imin(a.G, kBytes / imax(1, bytes)));
    share = ceil_div(bytes, 64 * imax(1, a.Tq * (a.H / a.G)));
  }
  // Before key head g of the row at `place` is computed, one of [begin, end). first: nobody has fetched it.
  __attribute__((noinline)) void before(int64_t place, int64_t g, int64_t begin, int64_t end, bool first) {
    // Long rows push out of the cache what is computed with, and have time to arrive by themselves.
    if (bytes > 2 * kBytes || (!first && (g - begin) % together != 0)) return;
    if (first)
      for (start(place, g, imin(end, g + together)); step;) line();
    const int64_t next = g + together;
    next < end ? start(place, next, imin(end, next + together)) : start(place + 1, begin, imin(end, begin + together));
  }
  // One line, if there is any left.
  HFK_INLINE void line() {
    prefetch_l2(at);
    at += step;
    if (--left == 0) next_run();
  }
  // What one query row has to fetch so that all is fetched in time.
  HFK_INLINE void lines_of_a_query() {
    for (int64_t i = 0; i < share && step; i++) line();
  }

 private:
  // What is computed and what is fetched should fit into the second-level cache together.
  static constexpr int64_t kBytes = 400000;
  struct Tensor {
    const char* data;
    int64_t row, head, token;  // strides in bytes
    int64_t heads, tokens;     // heads that go with one key head
    bool dense;                // heads side by side: one run a token, not one a head
  };
  const PrefixAttentionArgs& a;
  const int64_t places, element;
  Tensor tensors[7];
  int64_t count = 0, bytes = 0, together = 1, share = 0;
  // The next line, how far it is to the one behind it (0: all is fetched), and how many are left of their run.
  const char* at = static_cast<const char*>(a.query.data);
  int64_t step = 0, left = int64_t(1) << 60;
  int64_t row = 0, first = 0, heads = 0, token = 0, head = 0, tensor = 0;  // which run it is

  HFK_INLINE void start(int64_t place, int64_t g, int64_t end) {
    heads = place < places ? end - g : 0;
    row = heads ? row_at(a, place) : 0, first = g, token = head = 0, tensor = -1;
    next_run();
  }
  __attribute__((noinline)) void next_run() {
    step = 0, left = int64_t(1) << 60;
    while (heads > 0 && token < imax(a.Tq, a.Tk)) {
      if (++tensor == count) {
        tensor = 0;
        if (++head == heads * (a.H / a.G)) head = 0, token++;
      }
      const Tensor& t = tensors[tensor];
      const int64_t all = heads * t.heads;
      if (token >= t.tokens || head >= (t.dense ? 1 : all)) continue;
      at = t.data + row * t.row + (first * t.heads + head) * t.head + token * t.token;
      step = 64, left = ceil_div((t.dense ? all : 1) * a.D * element, 64);
      return;
    }
  }
};

// For a float32 product (gemm.h): a line for every other step of its tiles.
struct FetchMeanwhile {
  FetchAhead* ahead;
  bool odd = false;
  HFK_INLINE FetchMeanwhile part(int64_t, int64_t) const { return *this; }
  HFK_INLINE void operator()() {
    if ((odd = !odd)) ahead->line();
  }
};
static HFK_INLINE FetchMeanwhile steps_of(FetchMeanwhile more, const float*, int64_t, int64_t, int64_t) { return more; }

}  // namespace HFK_NAMESPACE
}  // namespace hfk
