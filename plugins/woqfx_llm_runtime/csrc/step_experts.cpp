// Mixtures of experts: each token goes through a few of many MLPs.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "step.h"

namespace woqfx::runtime {

// Who goes where: each row's top_k experts by their share, the first of equals; then rows expert by expert.
void Step::route(const Experts& mixture) {
    const std::size_t rows = rows_.size(), count = mixture.experts.size(), top = mixture.top_k;
    std::vector<std::size_t> order(count), chosen(rows * top);
    std::fill(expert_begin_.begin(), expert_begin_.end(), 0);
    for (std::size_t row = 0; row < rows; ++row) {
        float* scores = scores_.data() + row * count;
        ops().softmax(scores, count);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
        float sum = 0;
        for (std::size_t rank = 0; rank < top; ++rank) sum += scores[order[rank]];
        for (std::size_t rank = 0; rank < top; ++rank) {
            chosen[row * top + rank] = order[rank];
            share_of_[row * top + rank] = mixture.normalize ? scores[order[rank]] / sum : scores[order[rank]];
            ++expert_begin_[order[rank] + 1];
        }
    }
    std::partial_sum(expert_begin_.begin(), expert_begin_.end(), expert_begin_.begin());
    std::vector<std::size_t> next = expert_begin_;
    for (std::size_t i = 0; i < rows * top; ++i) {
        const std::size_t visit = next[chosen[i]]++;
        visits_[visit] = {i / top, i % top}, visit_of_[i] = visit;
    }
}

void Step::experts(Thread& thread, const Layer& layer) {
    const Experts& mixture = *layer.experts;
    const std::size_t rows = rows_.size(), hidden = model_.hidden, top = mixture.top_k;
    const auto norm_row = [&](std::size_t row, float* to) { normed(layer.mlp_norm, row, to); };
    std::vector<Product> products;
    append(products, mixture.router, 0, rows, scores_.data(), mixture.experts.size());
    products_.run(thread, products, rows, hidden, norm_row, nothing);
    thread.once([&] { route(mixture); });

    const auto append_visits = [&](Projection MLP::*which, float* y, std::size_t stride) {
        products.clear();
        for (std::size_t i = 0; i < mixture.experts.size(); ++i)
            if (const std::size_t first = expert_begin_[i], end = expert_begin_[i + 1]; first < end)
                append(products, mixture.experts[i].*which, first, end - first, y, stride);
    };
    const MLP& shape = mixture.experts.front();
    const std::size_t inner = shape.output.inputs(), width = shape.inputs.outputs();
    append_visits(&MLP::inputs, wide_.data(), width);
    products_.run_many(thread, products, rows * top, hidden,
                  [&](std::size_t i, float* to) { normed(layer.mlp_norm, visits_[i].row, to); }, nothing);
    append_visits(&MLP::output, expert_out_.data(), hidden);
    products_.run_many(
        thread, products, rows * top, inner,
        [&](std::size_t i, float* to) {
            const float* x = wide_.data() + i * width;
            ops().activate(shape.activation, x, shape.gated ? x + inner : nullptr, inner, to);
        },
        nothing);
    thread.once([&] {
        std::fill(branch_.begin(), branch_.begin() + static_cast<std::ptrdiff_t>(rows * hidden), 0.0f);
        std::fill(shared_gate_.begin(), shared_gate_.end(), 1.0f);
    });
    if (mixture.shared_gate) {
        products.clear();
        append(products, *mixture.shared_gate, 0, rows, shared_gate_.data(), 1);
        products_.run(thread, products, rows, hidden, norm_row, nothing);
        thread.once([&] {
            for (float& gate : shared_gate_) gate = 1.0f / (1.0f + std::exp(-gate));
        });
    }
    if (mixture.shared) run_mlp(thread, layer, *mixture.shared, branch_.data(), nothing);
    thread.each(rows, [&](std::size_t row) {
        float* y = branch_.data() + row * hidden;
        for (std::size_t i = 0; i < hidden; ++i) y[i] *= shared_gate_[row];
        for (std::size_t rank = 0; rank < top; ++rank)
            ops().add(y, expert_out_.data() + visit_of_[row * top + rank] * hidden, share_of_[row * top + rank],
                      hidden);
    });
    add_to_stream(thread, layer, layer.mlp_output_norm, branch_.data());
}

}  // namespace woqfx::runtime
