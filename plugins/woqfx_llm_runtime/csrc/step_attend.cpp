// How a step shares its attention out to threads.
#include "step.h"

#include <algorithm>

namespace woqfx::runtime {
namespace {

// So many queries and fewer gather their spans apart: there are too few for all threads otherwise, or one of a long
// sequence would keep the rest waiting.
constexpr std::size_t kFewQueries = 512;

// What there is to do for one head of keys, piece by piece: tiles of queries, and the spans that these may see.
class Work {
public:
    void add(std::size_t tiles, std::size_t first_span, std::size_t spans) {
        pieces_.push_back({count_, first_span, spans});
        count_ += tiles * spans;
    }
    void clear() { pieces_.clear(), count_ = 0; }
    std::size_t count() const { return count_; }

    struct Item {
        std::size_t piece, tile, span;
    };
    Item of(std::size_t i) const {
        const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), i,
                                            [](std::size_t at, const Stretch& piece) { return at < piece.begin; });
        const Stretch& found = *(after - 1);
        return {static_cast<std::size_t>(after - 1 - pieces_.begin()), (i - found.begin) / found.spans,
                found.first_span + (i - found.begin) % found.spans};
    }

private:
    struct Stretch {
        std::size_t begin, first_span, spans;
    };
    std::vector<Stretch> pieces_;
    std::size_t count_ = 0;
};

}  // namespace

// Floats that parts of outputs take: [rows][heads][most_spans_][part_size], or none if nothing is done apart.
std::size_t Step::size_of_parts(std::size_t heads, const HeadLayout& head) const {
    const std::size_t queries = rows_.size() * heads;
    return most_spans_ > 1 && queries <= kFewQueries ? queries * most_spans_ * part_size(head) : 0;
}

// Queries [first, first + most) of a piece that meet one head of keys: token by token, and head by head of each.
Queries Step::queries_of(const Looking& a, const Piece& piece, std::size_t kv_head, std::size_t first,
                         std::size_t most, FunctionRef<Seen(const Piece&, std::size_t position)> seen) {
    const std::size_t group = a.heads / a.kv_heads;
    Queries q;
    q.count = std::min(most, piece.rows * group - first);
    for (std::size_t j = 0; j < q.count; ++j) {
        const std::size_t token = (first + j) / group, head = kv_head * group + (first + j) % group;
        const std::size_t row = piece.first_row + token, position = piece.position + token;
        q.q[j] = inputs_.data() + row * a.stride + head * a.head_dim;
        q.out[j] = attended_.data() + (row * a.heads + head) * a.head_dim;
        const Seen reach = seen(piece, position);
        q.pages = reach.pages, q.begin[j] = reach.begin, q.end[j] = reach.end;
        q.bias[j] = a.bias ? a.bias->of(head) : nullptr, q.position[j] = position;
    }
    q.reach = a.bias ? a.bias->reach() : 0;
    q.head_at = a.at.of(kv_head);
    q.scale = a.scale, q.softcap = a.softcap;
    return q;
}

void Step::attend(Thread& thread, const Looking& a, FunctionRef<Seen(const Piece&, std::size_t position)> seen) {
    const std::size_t group = a.heads / a.kv_heads;
    const HeadLayout& l = a.at.head;
    std::vector<const Piece*> pieces;
    for (std::size_t row = 0; row < rows_.size(); row += rows_[row].piece->rows) pieces.push_back(rows_[row].piece);
    Work work;
    if (size_of_parts(a.heads, l) > 0) {
        for (const Piece* piece : pieces) {
            const std::size_t begin = seen(*piece, piece->position).begin / kSpan;
            const std::size_t end = divide_up(seen(*piece, piece->position + piece->rows - 1).end, kSpan);
            work.add(divide_up(piece->rows * group, kMostQueries), begin, end - begin);
        }
        const std::size_t stride = most_spans_ * part_size(l);
        thread.each(work.count() * a.kv_heads, [&](std::size_t i) {
            const auto [number, tile, span] = work.of(i % work.count());
            const Queries q = queries_of(a, *pieces[number], i / work.count(), tile * kMostQueries, kMostQueries, seen);
            float* parts[kMostQueries];
            for (std::size_t j = 0; j < q.count; ++j) {
                const auto query = static_cast<std::size_t>(q.out[j] - attended_.data()) / a.head_dim;
                parts[j] = parts_.data() + query * stride + span * part_size(l);
            }
            ops().attend_span(l, q, span, parts);
        });
        thread.each(rows_.size() * a.heads, [&](std::size_t query) {
            const Row& row = rows_[query / a.heads];
            const Seen reach = seen(*row.piece, row.position);
            const std::size_t begin = reach.begin / kSpan, end = divide_up(reach.end, kSpan);
            ops().join_spans(l, parts_.data() + query * stride + begin * part_size(l), end - begin,
                             attended_.data() + query * a.head_dim);
        });
        return;
    }
    // Queries at a time: as many as kernels take, fewer if there would not be enough for all threads.
    constexpr std::size_t kSizes[] = {kMostQueries, 6, 4, 3, 2, 1};
    std::size_t size = 0;
    for (const std::size_t tried : kSizes) {
        size = tried;
        work.clear();
        for (const Piece* piece : pieces) work.add(divide_up(piece->rows * group, size), 0, 1);
        if (work.count() * a.kv_heads >= 2 * static_cast<std::size_t>(thread.threads())) break;
    }
    thread.each(work.count() * a.kv_heads, [&](std::size_t i) {
        // The longest first; head by head, whose keys and values then stay in a core's cache.
        const auto item = work.of(work.count() - 1 - i % work.count());
        ops().attend(l, queries_of(a, *pieces[item.piece], i / work.count(), item.tile * size, size, seen));
    });
}

}  // namespace woqfx::runtime
