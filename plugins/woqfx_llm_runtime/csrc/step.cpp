#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace woqfx::runtime {
namespace {

std::size_t most_products(const Layer& layer) {
    std::size_t most = std::max(layer.attention.inputs.parts.size(), layer.attention.output.parts.size());
    if (const auto& cross = layer.cross)
        most = std::max({most, cross->query.parts.size(), cross->memory.parts.size(), cross->output.parts.size()});
    const auto take = [&most](const MLP& mlp, std::size_t count) {
        most = std::max({most, count * mlp.inputs.parts.size(), count * mlp.output.parts.size()});
    };
    if (layer.mlp) take(*layer.mlp, 1);
    if (layer.experts) {
        for (const MLP& expert : layer.experts->experts) take(expert, layer.experts->experts.size());
        if (layer.experts->shared) take(*layer.experts->shared, 1);
    }
    return most;
}

// No norm goes over several heads, and no weight ends within one.
bool each_head_alone(const Attention& a) {
    return !(a.norm_all_heads && (a.query_norm || a.key_norm)) &&
           std::all_of(a.inputs.parts.begin(), a.inputs.parts.end(),
                       [&](const auto& part) { return part->n() % a.head_dim == 0; });
}

}  // namespace

std::size_t Step::phases() const {
    constexpr std::size_t kProduct = Products::kPhases, kAttention = 2 * kProduct + 4, kMLP = 2 * kProduct + 1;
    std::size_t sum = 8 + kProduct;
    for (const Layer& layer : layers_) {
        sum += kAttention + kMLP;
        if (layer.cross) sum += kAttention;
        if (layer.experts) sum += 3 * kProduct + 3 + kMLP;
    }
    return sum;
}

void Step::run(const Batch& batch, int threads, const std::atomic<bool>& cancelled) {
    prepare(batch);
    region_.run(threads, phases(), [&](Thread& thread) {
        pass(thread, batch, cancelled);
        head(thread, batch);
    });
}

void Step::pass(Thread& thread, const Batch& batch, const std::atomic<bool>& cancelled) {
    embed(thread, batch);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        if (cancelled.load(std::memory_order_relaxed)) throw Cancelled("the step was cancelled");
        layer(thread, i);
    }
}

// All memory, before threads share it.
void Step::prepare(const Batch& batch) {
    rows_.clear();
    for (const Piece& piece : batch.pieces)
        for (std::size_t i = 0; i < piece.rows; ++i) rows_.push_back({&piece, piece.position + i});
    const std::size_t rows = rows_.size();
    frequencies_.clear(), rope_at_.clear();
    std::size_t angles = 0;
    for (const Rope& rope : model_.ropes) {
        for (const Piece& piece : batch.pieces) frequencies_.push_back(rope.at(piece.length));
        rope_at_.push_back(angles);
        angles += rows * rope.frequencies.size();
    }
    grow(cosines_, angles), grow(sines_, angles);
    most_spans_ = 1;
    for (const Piece& piece : batch.pieces)
        most_spans_ = std::max(most_spans_, divide_up(std::max(piece.length, piece.source_length), kSpan));
    // A product of each weight and 48 rows, the least that kernels take at a time.
    std::size_t products = model_.head.parts.size() * divide_up(rows, 48);
    for (auto* buffer : {&stream_, &branch_, &added_}) grow(*buffer, rows * model_.hidden);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        const Attention& a = layer.attention;
        grow(inputs_, rows * a.inputs.outputs());
        grow(attended_, rows * a.heads * a.head_dim);
        grow(parts_, size_of_parts(a.heads, pages_.layers[i].head));
        if (layer.cross) {
            grow(inputs_, rows * layer.cross->query.outputs());
            grow(attended_, rows * layer.cross->query.outputs());
            grow(parts_, size_of_parts(layer.cross->heads, sources_.layers[i].head));
        }
        products = std::max(products, most_products(layer) * divide_up(rows, 48));
        if (layer.mlp) grow(wide_, rows * layer.mlp->inputs.outputs());
        if (const auto& mixture = layer.experts) {
            grow(scores_, rows * mixture->experts.size());
            grow(wide_, rows * mixture->top_k * mixture->experts.front().inputs.outputs());
            grow(expert_out_, rows * mixture->top_k * model_.hidden);
            if (mixture->shared) grow(wide_, rows * mixture->shared->inputs.outputs());
            grow(shared_gate_, rows);
            const std::size_t visits = rows * mixture->top_k;
            if (visits_.size() < visits) visits_.resize(visits), visit_of_.resize(visits), share_of_.resize(visits);
            if (expert_begin_.size() <= mixture->experts.size()) expert_begin_.resize(mixture->experts.size() + 1);
        }
    }
    products_.reserve(products);
}

void Step::embed(Thread& thread, const Batch& batch) {
    const std::size_t hidden = model_.hidden;
    thread.each(rows_.size(), [&](std::size_t row) {
        const std::size_t position = rows_[row].position;
        float* h = stream_.data() + row * hidden;
        model_.embedding->read(static_cast<std::size_t>(batch.tokens[row]), h);
        for (std::size_t i = 0; i < hidden; ++i) h[i] *= model_.embedding_scale;
        if (model_.positions) {
            float* learned = branch_.data() + row * hidden;
            model_.positions->read(position + model_.position_offset, learned);
            ops().add(h, learned, 1.0f, hidden);
        }
        if (model_.embedding_norm) (*model_.embedding_norm)(h, hidden, h);
        const auto piece = static_cast<std::size_t>(rows_[row].piece - batch.pieces.data());
        for (std::size_t i = 0; i < model_.ropes.size(); ++i) {
            const std::vector<float>& turns = frequencies_[i * batch.pieces.size() + piece];
            const std::size_t at = rope_at_[i] + row * turns.size();
            for (std::size_t j = 0; j < turns.size(); ++j) {
                const float angle = static_cast<float>(position) * turns[j];  // in float32, as models are trained
                cosines_[at + j] = static_cast<float>(std::cos(static_cast<double>(angle))) * model_.ropes[i].factor;
                sines_[at + j] = static_cast<float>(std::sin(static_cast<double>(angle))) * model_.ropes[i].factor;
            }
        }
    });
}

void Step::normed(const std::optional<Norm>& norm, std::size_t row, float* to) const {
    const float* h = stream_.data() + row * model_.hidden;
    if (norm)
        (*norm)(h, model_.hidden, to);
    else
        std::memcpy(to, h, model_.hidden * sizeof(float));
}

void Step::layer(Thread& thread, std::size_t index) {
    const Layer& layer = layers_[index];
    attention(thread, layer, index);
    if (layer.cross) cross(thread, layer, index);
    layer.mlp ? mlp(thread, layer) : experts(thread, layer);
}

void Step::attention(Thread& thread, const Layer& layer, std::size_t index) {
    const Attention& a = layer.attention;
    const std::size_t rows = rows_.size(), hidden = model_.hidden, width = a.inputs.outputs();
    const std::size_t queries = a.heads * a.head_dim;
    std::vector<Product> products;
    append(products, a.inputs, 0, rows, inputs_.data(), width);
    // Whoever multiplies makes heads ready, if they are ready alone.
    const std::size_t heads = a.heads + 2 * a.kv_heads;
    const bool alone = each_head_alone(a);
    products_.run(
        thread, products, rows, hidden, [&](std::size_t row, float* to) { normed(layer.input_norm, row, to); },
        [&](const Product& p, std::size_t begin, std::size_t end) {
            if (!alone) return;
            const auto column = static_cast<std::size_t>(p.y - inputs_.data());
            for (std::size_t row = p.first; row < p.first + p.rows; ++row)
                for (std::size_t at = column + begin; at < column + end; at += a.head_dim)
                    make_ready(a, index, row, at / a.head_dim);
        },
        alone ? a.head_dim : 1);
    if (!alone)
        thread.each(rows, [&](std::size_t row) {
            float* q = inputs_.data() + row * width;
            if (a.norm_all_heads && a.query_norm) (*a.query_norm)(q, queries, q);
            if (a.norm_all_heads && a.key_norm) (*a.key_norm)(q + queries, a.kv_heads * a.head_dim, q + queries);
            for (std::size_t head = 0; head < heads; ++head) make_ready(a, index, row, head);
        });
    const RelativeBias* bias = a.bias < 0 ? nullptr : &model_.biases[static_cast<std::size_t>(a.bias)];
    attend(thread, {a.heads, a.kv_heads, a.head_dim, width, a.scale, a.softcap, bias, pages_.layers[index]},
           [&](const Piece& piece, std::size_t position) -> Seen {
               const std::size_t end = a.causal ? position + 1 : piece.length;
               return {piece.pages.data(), a.window && end > a.window ? end - a.window : 0, end};
           });

    const bool direct = !layer.attention_output_norm && !layer.parallel;
    float* y = layer.parallel ? added_.data() : branch_.data();
    products.clear();
    append(products, a.output, 0, rows, y, hidden);
    products_.run(
        thread, products, rows, queries,
        [&](std::size_t row, float* to) { std::memcpy(to, attended_.data() + row * queries, queries * sizeof(float)); },
        [&](const Product& p, std::size_t begin, std::size_t end) {
            if (direct) add_columns(layer, p, y, begin, end);
        });
    if (layer.parallel) {
        if (layer.attention_output_norm)
            thread.each(rows, [&](std::size_t row) {
                (*layer.attention_output_norm)(y + row * hidden, hidden, y + row * hidden);
            });
    } else if (!direct) {
        add_to_stream(thread, layer, layer.attention_output_norm, y);
    }
}

// One of a token's heads: queries, then keys, then values. Queries and keys are normed and turned in place; keys and values
// go to their page.
void Step::make_ready(const Attention& a, std::size_t index, std::size_t row, std::size_t head) {
    float* x = inputs_.data() + row * a.inputs.outputs() + head * a.head_dim;
    const bool query = head < a.heads, key = !query && head < a.heads + a.kv_heads;
    if (query || key) {
        const std::optional<Norm>& norm = query ? a.query_norm : a.key_norm;
        if (norm && !a.norm_all_heads) (*norm)(x, a.head_dim, x);
        if (a.rope >= 0) {
            const auto rope = static_cast<std::size_t>(a.rope);
            const std::size_t pairs = model_.ropes[rope].frequencies.size(), at = rope_at_[rope] + row * pairs;
            ops().rotate(x, cosines_.data() + at, sines_.data() + at, pairs, model_.ropes[rope].interleaved);
        }
    }
    if (query) return;
    const PageLayout::Layer& l = pages_.layers[index];
    const std::size_t position = rows_[row].position, number = head - a.heads - (key ? 0 : a.kv_heads);
    std::uint8_t* to = rows_[row].piece->pages[position / kPage] + l.of(number);
    (key ? ops().store_key : ops().store_value)(l.head, to, position % kPage, x);
}

// h += residual_scale * y, for the columns that a product has just made.
void Step::add_columns(const Layer& layer, const Product& p, const float* y, std::size_t begin, std::size_t end) {
    const std::size_t hidden = model_.hidden, column = static_cast<std::size_t>(p.y - y) + begin;
    for (std::size_t row = p.first; row < p.first + p.rows; ++row)
        ops().add(stream_.data() + row * hidden + column, y + row * hidden + column, layer.residual_scale, end - begin);
}

// h += residual_scale * norm(y), for all rows.
void Step::add_to_stream(Thread& thread, const Layer& layer, const std::optional<Norm>& norm, float* y) {
    const std::size_t hidden = model_.hidden;
    thread.each(rows_.size(), [&](std::size_t row) {
        float* x = y + row * hidden;
        if (norm) (*norm)(x, hidden, x);
        if (layer.parallel) ops().add(x, added_.data() + row * hidden, 1.0f, hidden);
        ops().add(stream_.data() + row * hidden, x, layer.residual_scale, hidden);
    });
}

void Step::run_mlp(Thread& thread, const Layer& layer, const MLP& mlp, float* y, Products::After after) {
    const std::size_t rows = rows_.size(), inner = mlp.output.inputs(), width = mlp.inputs.outputs();
    std::vector<Product> products;
    append(products, mlp.inputs, 0, rows, wide_.data(), width);
    products_.run(thread, products, rows, model_.hidden,
                  [&](std::size_t row, float* to) { normed(layer.mlp_norm, row, to); }, nothing);
    products.clear();
    append(products, mlp.output, 0, rows, y, model_.hidden);
    products_.run(
        thread, products, rows, inner,
        [&](std::size_t row, float* to) {
            const float* x = wide_.data() + row * width;
            ops().activate(mlp.activation, x, mlp.gated ? x + inner : nullptr, inner, to);
        },
        after);
}

void Step::mlp(Thread& thread, const Layer& layer) {
    const bool direct = !layer.mlp_output_norm && !layer.parallel;
    run_mlp(thread, layer, *layer.mlp, branch_.data(), [&](const Product& p, std::size_t begin, std::size_t end) {
        if (direct) add_columns(layer, p, branch_.data(), begin, end);
    });
    if (!direct) add_to_stream(thread, layer, layer.mlp_output_norm, branch_.data());
}

void Step::head(Thread& thread, const Batch& batch) {
    if (batch.wanted.empty()) return;
    const std::size_t vocabulary = model_.vocabulary;
    std::vector<Product> products;
    append(products, model_.head, 0, batch.wanted.size(), batch.logits, vocabulary);
    const bool plain = model_.logit_scale == 1.0f && model_.logit_softcap == 0.0f;
    products_.run(
        thread, products, batch.wanted.size(), model_.hidden,
        [&](std::size_t i, float* to) { normed(model_.final_norm, batch.wanted[i], to); },
        [&](const Product& p, std::size_t begin, std::size_t end) {
            if (plain) return;
            for (std::size_t row = p.first; row < p.first + p.rows; ++row)
                ops().scale_logits(p.y + row * vocabulary + begin, end - begin, model_.logit_scale,
                                   model_.logit_softcap);
        });
}

}  // namespace woqfx::runtime
