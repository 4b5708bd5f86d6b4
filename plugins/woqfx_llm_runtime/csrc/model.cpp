#include "model.h"

#include <cmath>
#include <cstring>
#include <string>

#include "memory.h"
#include "numbers.h"

namespace woqfx::runtime {
namespace {

void require(bool ok, const std::string& message) {
    if (!ok) throw Error(message);
}

void require_sizes(const std::string& what, const Projection& p, std::size_t inputs, std::size_t outputs) {
    require(!p.parts.empty(), what + " has no weight");
    for (const auto& part : p.parts)
        require(part->k() == inputs,
                what + " takes " + std::to_string(part->k()) + " inputs, where there are " + std::to_string(inputs));
    require(p.outputs() == outputs, what + " gives " + std::to_string(p.outputs()) + " outputs, where " +
                                        std::to_string(outputs) + " are needed");
    require(p.bias.empty() || p.bias.size() == outputs, what + "'s bias has " + std::to_string(p.bias.size()) +
                                                            " numbers, where " + std::to_string(outputs) +
                                                            " are needed");
}

void require_size(const std::string& what, const std::optional<Norm>& norm, std::size_t size) {
    if (!norm) return;
    for (const auto* numbers : {&norm->weight, &norm->bias})
        require(numbers->empty() || numbers->size() == size,
                what + " has " + std::to_string(numbers->size()) + " numbers, where " + std::to_string(size) +
                    " are needed");
    require(std::isfinite(norm->eps) && norm->eps >= 0, what + " has eps " + std::to_string(norm->eps));
}

void check_mlp(const std::string& what, const MLP& mlp, std::size_t hidden) {
    require(!mlp.output.parts.empty(), what + " has no weight");
    const std::size_t width = mlp.output.inputs();
    require_sizes(what + "'s input", mlp.inputs, hidden, mlp.gated ? 2 * width : width);
    require_sizes(what + "'s output", mlp.output, width, hidden);
}

void check_heads(const std::string& what, std::size_t heads, std::size_t kv_heads, std::size_t head_dim) {
    constexpr std::size_t kMost = 1 << 16;
    require(heads >= 1 && kv_heads >= 1 && head_dim >= 1 && heads <= kMost && head_dim <= kMost && kv_heads <= heads &&
                heads % kv_heads == 0,
            what + " has " + std::to_string(heads) + " heads of " + std::to_string(head_dim) + " for " +
                std::to_string(kv_heads) + " heads of keys and values");
}

void check_attention(const std::string& what, const Attention& a, const Model& m) {
    check_heads(what, a.heads, a.kv_heads, a.head_dim);
    require_sizes(what + "'s input", a.inputs, m.hidden, (a.heads + 2 * a.kv_heads) * a.head_dim);
    require_sizes(what + "'s output", a.output, a.heads * a.head_dim, m.hidden);
    require_size(what + "'s query norm", a.query_norm, a.norm_all_heads ? a.heads * a.head_dim : a.head_dim);
    require_size(what + "'s key norm", a.key_norm, a.norm_all_heads ? a.kv_heads * a.head_dim : a.head_dim);
    require(std::isfinite(a.scale) && std::isfinite(a.softcap) && a.softcap >= 0, what + "'s scale is not a number");
    require(a.rope >= -1 && a.rope < static_cast<int>(m.ropes.size()), what + " has a rope that is not there");
    if (a.rope >= 0)
        require(2 * m.ropes[static_cast<std::size_t>(a.rope)].frequencies.size() <= a.head_dim,
                what + "'s rope turns more pairs than a head of " + std::to_string(a.head_dim) + " has");
    require(a.bias >= -1 && a.bias < static_cast<int>(m.biases.size()), what + " has a bias that is not there");
    if (a.bias >= 0)
        require(m.biases[static_cast<std::size_t>(a.bias)].heads() == a.heads,
                what + "'s bias is of another number of heads than " + std::to_string(a.heads));
    require(a.causal || a.window == 0, what + " sees a window of what comes, which nothing here computes");
}

void check_cross(const std::string& what, const CrossAttention& a, std::size_t hidden) {
    check_heads(what, a.heads, a.kv_heads, a.head_dim);
    require_sizes(what + "'s query", a.query, hidden, a.heads * a.head_dim);
    require_sizes(what + "'s keys and values", a.memory, hidden, 2 * a.kv_heads * a.head_dim);
    require_sizes(what + "'s output", a.output, a.heads * a.head_dim, hidden);
    require(std::isfinite(a.scale), what + "'s scale is not a number");
}

void check_layer(const std::string& what, const Layer& layer, const Model& m) {
    const std::size_t hidden = m.hidden;
    check_attention(what + "'s attention", layer.attention, m);
    if (layer.cross) {
        check_cross(what + "'s cross attention", *layer.cross, hidden);
        require(!layer.parallel, what + " has cross attention, and all of its parts beside each other");
    }
    require(layer.mlp.has_value() != layer.experts.has_value(), what + " needs an MLP or experts");
    if (layer.mlp) check_mlp(what + "'s MLP", *layer.mlp, hidden);
    if (const auto& mixture = layer.experts) {
        require(mixture->top_k >= 1 && mixture->top_k <= mixture->experts.size(),
                what + " takes " + std::to_string(mixture->top_k) + " of " +
                    std::to_string(mixture->experts.size()) + " experts");
        require_sizes(what + "'s router", mixture->router, hidden, mixture->experts.size());
        for (const MLP& expert : mixture->experts) {
            check_mlp(what + "'s expert", expert, hidden);
            require(expert.output.inputs() == mixture->experts.front().output.inputs() &&
                        expert.gated == mixture->experts.front().gated,
                    what + "'s experts differ in size");
        }
        if (mixture->shared) check_mlp(what + "'s shared expert", *mixture->shared, hidden);
        if (mixture->shared_gate) require_sizes(what + "'s shared gate", *mixture->shared_gate, hidden, 1);
    }
    for (const auto* norm : {&layer.input_norm, &layer.attention_output_norm, &layer.cross_norm, &layer.mlp_norm,
                             &layer.mlp_output_norm})
        require_size(what + "'s norm", *norm, hidden);
}

}  // namespace

std::shared_ptr<const Weight> Weight::packed(const PackedWeight& weight, Compute compute, float outlier_threshold) {
    require(outlier_threshold >= 0, "an outlier threshold is 0 (none) or above");
    return std::shared_ptr<const Weight>(new Weight(Multiplication(weight, compute, outlier_threshold)));
}

std::shared_ptr<const Weight> Weight::dense(const ConstRows& rows, std::size_t k) {
    require(rows.rows >= 1 && k >= 1, "a matrix without numbers");
    const std::size_t size = scale_bytes(rows.type), tiles = divide_up(rows.rows, kTile);
    std::size_t count = 0, bytes = 0;
    require(!__builtin_mul_overflow(tiles * kTile, k, &count) && !__builtin_mul_overflow(count, size, &bytes) &&
                bytes < SIZE_MAX / 2,
            "a matrix that exceeds memory");
    Dense made;
    made.memory = weight_memory(bytes);
    const auto* from = static_cast<const std::uint8_t*>(rows.data);
    std::uint8_t* to = made.memory.get();
    std::memset(to, 0, bytes);
    for (std::size_t row = 0; row < rows.rows; ++row)
        for (std::size_t i = 0; i < k; ++i)
            std::memcpy(to + ((row / kTile * k + i) * kTile + row % kTile) * size,
                        from + (row * rows.stride + i) * size, size);
    made.tiles = {to, rows.type, rows.rows, k};
    return std::shared_ptr<const Weight>(new Weight(std::move(made)));
}

const DenseTiles* Weight::tiles_of() const {
    const auto* dense = std::get_if<Dense>(&of_);
    return dense ? &dense->tiles : nullptr;
}

std::size_t Weight::n() const { return multiplication() ? multiplication()->weight().n() : tiles_of()->n; }
std::size_t Weight::k() const { return multiplication() ? multiplication()->weight().k() : tiles_of()->k; }

std::size_t Weight::bytes() const {
    if (const Multiplication* by = multiplication()) return by->weight().size();
    return tiles() * kTile * tiles_of()->k * scale_bytes(tiles_of()->type);
}

std::size_t Projection::outputs() const {
    std::size_t sum = 0;
    for (const auto& part : parts) sum += part->n();
    return sum;
}

std::size_t Projection::bytes() const {
    std::size_t sum = bias.size() * sizeof(float);
    for (const auto& part : parts) sum += part->bytes();
    return sum;
}

std::vector<float> Rope::at(std::size_t length) const {
    if (beyond == 0 || length <= beyond) return frequencies;
    if (!long_frequencies.empty()) return long_frequencies;
    const double d = 2.0 * static_cast<double>(frequencies.size());
    const double stretch = growth * static_cast<double>(length) / static_cast<double>(beyond) - (growth - 1);
    const double stretched = base * std::pow(stretch, d / (d - 2));
    std::vector<float> made(frequencies.size());
    for (std::size_t i = 0; i < made.size(); ++i)
        made[i] = static_cast<float>(1 / std::pow(stretched, 2.0 * static_cast<double>(i) / d));
    return made;
}

Table::Table(const ConstRows& rows, std::size_t width, std::shared_ptr<const void> owner)
    : plain_(rows), width_(width), owner_(std::move(owner)) {}

Table::Table(const PackedWeight& weight) : packed_(weight) {}

std::size_t Table::rows() const { return packed_ ? packed_->n() : plain_.rows; }
std::size_t Table::width() const { return packed_ ? packed_->k() : width_; }
std::size_t Table::bytes() const { return packed_ ? packed_->size() : rows() * width_ * scale_bytes(plain_.type); }

void Table::read(std::size_t row, float* to) const {
    if (packed_) {
        const auto index = static_cast<std::int64_t>(row);
        return gather(*packed_, &index, 1, {to, Float::f32, 1, packed_->k()}, 1);
    }
    for (std::size_t i = 0; i < width_; ++i) to[i] = load_float(plain_.data, plain_.type, row * plain_.stride + i);
}

void Model::check() const {
    constexpr std::size_t kMost = 1u << 30;
    require(hidden >= 1 && hidden <= kMost && vocabulary >= 1 && vocabulary <= kMost && context >= 1 &&
                context <= kMost && !layers.empty(),
            "a model of " + std::to_string(layers.size()) + " layers, hidden size " + std::to_string(hidden) +
                ", vocabulary " + std::to_string(vocabulary) + ", context " + std::to_string(context));
    require(embedding && embedding->width() == hidden && embedding->rows() >= vocabulary,
            "the embedding does not have the model's size");
    if (positions)
        require(positions->width() == hidden && positions->rows() >= position_offset + context,
                "the table of positions has " + std::to_string(positions->rows()) + " rows, where a context of " +
                    std::to_string(context) + " needs " + std::to_string(position_offset + context));
    for (const Rope& rope : ropes) {
        require(rope.long_frequencies.empty() || rope.long_frequencies.size() == rope.frequencies.size(),
                "a rope's two sets of frequencies differ in length");
        require(rope.beyond == 0 || !rope.long_frequencies.empty() ||
                    (rope.base > 1 && rope.growth >= 1 && rope.frequencies.size() > 1),
                "a rope that changes with the length needs other frequencies, or a base and its growth");
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const std::string what = "layer " + std::to_string(i);
        require(layers[i].attention.causal, what + " looks ahead, where a decoder cannot");
        require(encoder.has_value() || !layers[i].cross, what + " looks at an encoder that is not there");
        check_layer(what, layers[i], *this);
    }
    if (encoder) {
        require(!encoder->layers.empty(), "an encoder without layers");
        for (std::size_t i = 0; i < encoder->layers.size(); ++i) {
            const std::string what = "encoder layer " + std::to_string(i);
            require(!encoder->layers[i].cross, what + " looks at itself twice");
            check_layer(what, encoder->layers[i], *this);
        }
        require_size("the encoder's last norm", encoder->final_norm, hidden);
    }
    require_size("the embedding's norm", embedding_norm, hidden);
    require_size("the last norm", final_norm, hidden);
    require_sizes("the head", head, hidden, vocabulary);
}

namespace {

std::size_t mlp_bytes(const MLP& mlp) { return mlp.inputs.bytes() + mlp.output.bytes(); }

// Of one layer: all, or what a token reads.
std::size_t layer_bytes(const Layer& layer, bool all) {
    std::size_t sum = layer.attention.inputs.bytes() + layer.attention.output.bytes();
    if (const auto& cross = layer.cross)
        sum += cross->query.bytes() + cross->output.bytes() + (all ? cross->memory.bytes() : 0);
    if (layer.mlp) sum += mlp_bytes(*layer.mlp);
    if (const auto& mixture = layer.experts) {
        sum += mixture->router.bytes();
        for (std::size_t i = 0; i < (all ? mixture->experts.size() : mixture->top_k); ++i)
            sum += mlp_bytes(mixture->experts[i]);
        if (mixture->shared) sum += mlp_bytes(*mixture->shared);
    }
    return sum;
}

}  // namespace

std::size_t Model::weight_bytes() const {
    std::size_t sum = embedding->bytes() + (positions ? positions->bytes() : 0) + head.bytes();
    for (const Layer& layer : layers) sum += layer_bytes(layer, true);
    if (encoder)
        for (const Layer& layer : encoder->layers) sum += layer_bytes(layer, true);
    return sum;
}

std::size_t Model::bytes_per_token() const {
    std::size_t sum = head.bytes();
    for (const Layer& layer : layers) sum += layer_bytes(layer, false);
    return sum;
}

}  // namespace woqfx::runtime
