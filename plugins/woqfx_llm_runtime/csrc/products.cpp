#include "products.h"

#include <algorithm>

namespace woqfx::runtime {
namespace {

// Up to so many rows each thread prepares all of them for itself: cheaper than to wait for the other's half.
constexpr std::size_t kFew = 4;

// Tiles that a thread takes at a time: a few parts for each, in pairs, which kernels take at once.
std::size_t share_of(std::size_t tiles, int threads) {
    const std::size_t share = divide_up(tiles, 8 * static_cast<std::size_t>(threads));
    return std::max<std::size_t>(2, (share + 1) / 2 * 2);
}

void multiply(const Product& p, const Activations& activations, const float* x, std::size_t inputs, std::size_t begin,
              std::size_t end) {
    const std::size_t rows = p.first + p.rows;
    if (p.weight->multiplication())
        activations.multiply({p.y, Float::f32, rows, p.y_stride}, p.bias, begin, end);
    else
        ops().dense(*p.weight->tiles_of(), x + p.first * inputs, inputs, p.rows, p.bias, p.y + p.first * p.y_stride,
                    p.y_stride, begin, end);
}

void multiply_share(const Product& p, const Activations& activations, const float* x, std::size_t inputs,
                    std::size_t begin, std::size_t share, Products::After after) {
    const std::size_t end = std::min(begin + share, p.weight->tiles());
    multiply(p, activations, x, inputs, begin, end);
    after(p, begin * kTile, std::min(end * kTile, p.weight->n()));
}

}  // namespace

void append(std::vector<Product>& to, const Projection& projection, std::size_t first, std::size_t rows, float* y,
            std::size_t y_stride) {
    std::size_t column = 0;
    for (const auto& part : projection.parts) {
        const Multiplication* by = part->multiplication();
        const std::size_t most = by ? by->most_rows() : rows;
        const float* bias = projection.bias.empty() ? nullptr : projection.bias.data() + column;
        for (std::size_t done = 0; done < rows; done += most)
            to.push_back({part.get(), first + done, std::min(most, rows - done), y + column, y_stride, bias});
        column += part->n();
    }
}

void Products::reserve(std::size_t products) {
    if (activations_.size() < products) activations_.resize(products);
}

void Products::run_few(Thread& thread, const Product& product, std::size_t rows, std::size_t inputs, Fill fill,
                       After after) {
    thread_local Workspace memory;
    thread_local Activations activations;
    const float* x = nullptr;  // until this thread has its first share: whoever comes late makes nothing
    const std::size_t tiles = product.weight->tiles(), share = share_of(tiles, thread.threads());
    thread.each(divide_up(tiles, share), [&](std::size_t i) {
        if (!x) {
            auto* made = reinterpret_cast<float*>(memory.get(rows * inputs * sizeof(float)));
            for (std::size_t row = 0; row < rows; ++row) fill(row, made + row * inputs);
            if (const Multiplication* by = product.weight->multiplication()) {
                activations.plan(*by, 0, rows);
                for (std::size_t panel = 0; panel < activations.panels(); ++panel)
                    activations.prepare(panel, {made, Float::f32, rows, inputs});
                activations.finish();
            }
            x = made;
        }
        multiply_share(product, activations, x, inputs, i * share, share, after);
    });
}

void Products::run(Thread& thread, const std::vector<Product>& products, std::size_t rows, std::size_t inputs,
                   Fill fill, After after) {
    if (products.size() == 1 && rows <= kFew)
        run_few(thread, products.front(), rows, inputs, fill, after);
    else
        run_many(thread, products, rows, inputs, fill, after);
}

void Products::run_many(Thread& thread, const std::vector<Product>& products, std::size_t rows, std::size_t inputs,
                        Fill fill, After after) {
    thread.once([&] {
        x_ = reinterpret_cast<float*>(inputs_.get(rows * inputs * sizeof(float)));
        for (std::size_t i = 0; i < products.size(); ++i)
            if (const Multiplication* by = products[i].weight->multiplication())
                activations_.at(i).plan(*by, products[i].first, products[i].rows);
    });
    thread.each(rows, [&](std::size_t row) { fill(row, x_ + row * inputs); });

    // Panels, then shares of tiles, of all products one after the other.
    const auto panels = [&](std::size_t i) {
        return products[i].weight->multiplication() ? activations_[i].panels() : 0;
    };
    thread.each_of(
        [&](std::size_t& count) {
            for (std::size_t i = 0; i < products.size(); ++i) count += panels(i);
        },
        [&](std::size_t panel) {
            std::size_t i = 0;
            for (; panel >= panels(i); ++i) panel -= panels(i);
            activations_[i].prepare(panel, {x_, Float::f32, rows, inputs});
        });
    thread.once([&] {
        for (std::size_t i = 0; i < products.size(); ++i)
            if (products[i].weight->multiplication()) activations_[i].finish();
    });
    std::size_t tiles = 0;
    for (const Product& p : products) tiles += p.weight->tiles();
    const std::size_t share = share_of(tiles, thread.threads());
    const auto shares = [&](std::size_t i) { return divide_up(products[i].weight->tiles(), share); };
    thread.each_of(
        [&](std::size_t& count) {
            for (std::size_t i = 0; i < products.size(); ++i) count += shares(i);
        },
        [&](std::size_t part) {
            std::size_t i = 0;
            for (; part >= shares(i); ++i) part -= shares(i);
            multiply_share(products[i], activations_[i], x_, inputs, part * share, share, after);
        });
}

}  // namespace woqfx::runtime
