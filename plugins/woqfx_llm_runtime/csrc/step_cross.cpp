// Encoder and decoder: what the encoder makes of a source, and the layers that look at it.
#include <cstring>

#include "step.h"

namespace woqfx::runtime {

// Every decoder layer's keys and values of the encoder's output, layer by layer: they need no row of their own.
void Step::remember(Thread& thread) {
    const std::size_t rows = rows_.size(), hidden = model_.hidden;
    std::vector<Product> products;
    for (std::size_t index = 0; index < model_.layers.size(); ++index) {
        const auto& a = model_.layers[index].cross;
        if (!a) continue;
        const std::size_t keys = a->kv_heads * a->head_dim;
        products.clear();
        append(products, a->memory, 0, rows, inputs_.data(), 2 * keys);
        products_.run(thread, products, rows, hidden,
                      [&](std::size_t row, float* to) { normed(model_.encoder->final_norm, row, to); }, nothing);
        const PageLayout::Layer& l = sources_.layers[index];
        thread.each(rows, [&](std::size_t row) {
            const std::size_t position = rows_[row].position;
            const float* key = inputs_.data() + row * 2 * keys;
            std::uint8_t* page = rows_[row].piece->source[position / kPage];
            for (std::size_t head = 0; head < a->kv_heads; ++head, key += a->head_dim) {
                ops().store_key(l.head, page + l.of(head), position % kPage, key);
                ops().store_value(l.head, page + l.of(head), position % kPage, key + keys);
            }
        });
    }
}

void Step::encode(const Batch& batch, int threads, const std::atomic<bool>& cancelled) {
    prepare(batch);
    std::size_t more = 0, products = 0;
    for (const Layer& layer : model_.layers)
        if (const auto& a = layer.cross) {
            more += Products::kPhases + 1;
            products = std::max(products, a->memory.parts.size());
            grow(inputs_, rows_.size() * a->memory.outputs());
        }
    products_.reserve(products * divide_up(rows_.size(), 48));
    region_.run(threads, phases() + more, [&](Thread& thread) {
        pass(thread, batch, cancelled);
        remember(thread);
    });
}

// h += residual_scale * cross attention of norm(h).
void Step::cross(Thread& thread, const Layer& layer, std::size_t index) {
    const CrossAttention& a = *layer.cross;
    const std::size_t rows = rows_.size(), hidden = model_.hidden, queries = a.heads * a.head_dim;
    std::vector<Product> products;
    append(products, a.query, 0, rows, inputs_.data(), queries);
    products_.run(thread, products, rows, hidden, [&](std::size_t row, float* to) { normed(layer.cross_norm, row, to); },
                  nothing);
    attend(thread, {a.heads, a.kv_heads, a.head_dim, queries, a.scale, 0.0f, nullptr, sources_.layers[index]},
           [&](const Piece& piece, std::size_t) -> Seen { return {piece.source.data(), 0, piece.source_length}; });
    products.clear();
    append(products, a.output, 0, rows, branch_.data(), hidden);
    products_.run(
        thread, products, rows, queries,
        [&](std::size_t row, float* to) { std::memcpy(to, attended_.data() + row * queries, queries * sizeof(float)); },
        [&](const Product& p, std::size_t begin, std::size_t end) { add_columns(layer, p, branch_.data(), begin, end); });
}

}  // namespace woqfx::runtime
