// One pass of some tokens through the model.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "kv.h"
#include "model.h"
#include "products.h"
#include "region.h"

namespace woqfx::runtime {

// `cancel` was called while a step ran.
struct Cancelled : Error {
    using Error::Error;
};

// Tokens of one sequence, one after the other.
struct Piece {
    std::vector<std::uint8_t*> pages;
    std::size_t first_row, rows;  // in the batch
    std::size_t position;         // of the first of them
    std::size_t length;           // of the sequence when the whole call is done
    std::vector<std::uint8_t*> source = {};  // of what cross attention looks at
    std::size_t source_length = 0;
};

struct Batch {
    std::vector<Piece> pieces;
    std::vector<std::int64_t> tokens;
    std::vector<std::size_t> wanted;  // rows whose logits are asked for
    float* logits = nullptr;          // [wanted, vocabulary]
};

inline void grow(std::vector<float>& buffer, std::size_t size) {
    if (buffer.size() < size) buffer.resize(size);
}

class Step {
public:
    // Runs `layers`, the decoder's or the encoder's. `sources` is the layout of what cross attention looks at.
    Step(const Model& model, const std::vector<Layer>& layers, const PageLayout& pages, const PageLayout& sources)
        : model_(model), layers_(layers), pages_(pages), sources_(sources) {}

    // Computes a batch of up to kRows tokens; their keys and values are stored in the pieces' pages.
    void run(const Batch&, int threads, const std::atomic<bool>& cancelled);
    static constexpr std::size_t kRows = 240;

    // The encoder's pass over whole sequences: what cross attention will look at is stored in the pieces' sources.
    void encode(const Batch&, int threads, const std::atomic<bool>& cancelled);

private:
    struct Row {
        const Piece* piece;
        std::size_t position;
    };
    // Queries in rows of inputs_, and what they meet.
    struct Looking {
        std::size_t heads, kv_heads, head_dim, stride;
        float scale, softcap;
        const RelativeBias* bias;
        const PageLayout::Layer& at;
    };
    // The positions that a query sees, and their pages from position 0 on.
    struct Seen {
        const std::uint8_t* const* pages;
        std::size_t begin, end;
    };
    // One token for one expert.
    struct Visit {
        std::size_t row, rank;
    };

    std::size_t phases() const;
    void pass(Thread&, const Batch&, const std::atomic<bool>& cancelled);
    void prepare(const Batch&);
    void embed(Thread&, const Batch&);
    void layer(Thread&, std::size_t index);
    void attention(Thread&, const Layer&, std::size_t index);
    void make_ready(const Attention&, std::size_t index, std::size_t row, std::size_t head);
    void attend(Thread&, const Looking&, FunctionRef<Seen(const Piece&, std::size_t position)>);
    std::size_t size_of_parts(std::size_t heads, const HeadLayout&) const;
    Queries queries_of(const Looking&, const Piece&, std::size_t kv_head, std::size_t first, std::size_t most,
                       FunctionRef<Seen(const Piece&, std::size_t position)>);
    void cross(Thread&, const Layer&, std::size_t index);
    void remember(Thread&);
    void mlp(Thread&, const Layer&);
    void run_mlp(Thread&, const Layer&, const MLP&, float* y, Products::After);
    void experts(Thread&, const Layer&);
    void route(const Experts&);
    void add_columns(const Layer&, const Product&, const float* y, std::size_t begin, std::size_t end);
    void add_to_stream(Thread&, const Layer&, const std::optional<Norm>&, float* y);
    void head(Thread&, const Batch&);
    void normed(const std::optional<Norm>&, std::size_t row, float* to) const;

    const Model& model_;
    const std::vector<Layer>& layers_;
    const PageLayout& pages_;
    const PageLayout& sources_;
    Region region_;
    Products products_;

    std::vector<Row> rows_;
    std::vector<std::vector<float>> frequencies_;  // of each rope, for each piece
    std::vector<std::size_t> rope_at_;
    std::vector<float> cosines_, sines_;           // of each rope [rows, pairs]
    std::vector<float> stream_, inputs_, attended_, parts_, wide_, branch_, added_;
    std::size_t most_spans_ = 1;                   // of a piece, or of its source
    std::vector<float> scores_, expert_out_, shared_gate_;
    std::vector<Visit> visits_;                    // expert by expert
    std::vector<std::size_t> visit_of_;            // of a row's choice
    std::vector<float> share_of_;
    std::vector<std::size_t> expert_begin_;
};

}  // namespace woqfx::runtime
