#include "products.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace woqfx::runtime {
namespace {

// Up to so many rows each thread prepares all of them for itself: cheaper than to wait for the other's half.
constexpr std::size_t kFew = 4;

// A product's tiles, cut into as many stretches as there are threads, and those into items: half of a stretch, half of what
// is left, and so on, so that there is little to wait for in the end. Few, because taking one is an atomic operation, which
// holds up the reading of weights until the results before it have been stored. An item is whole units, of which each begins
// where a run of `grain` columns does.
class Cut {
public:
    Cut(std::size_t tiles, std::size_t grain, int threads)
        : unit_(std::lcm(grain, kTile) / kTile),
          pair_(std::lcm(unit_, kAtOnce) / unit_),
          units_(divide_up(tiles, unit_)),
          threads_(static_cast<std::size_t>(threads)) {}
    std::size_t items() const { return kItems * threads_; }
    // The item's tiles: [begin, end), where `end` may lie beyond the last, and none if they are too few for so many items.
    std::pair<std::size_t, std::size_t> of(std::size_t item) const {
        const std::size_t thread = item / kItems, number = item % kItems;
        const std::size_t first = units_ * thread / threads_, count = units_ * (thread + 1) / threads_ - first;
        const auto at = [&](std::size_t i) { return i < kItems ? (count - (count >> i)) / pair_ * pair_ : count; };
        return {(first + at(number)) * unit_, (first + at(number + 1)) * unit_};
    }

private:
    static constexpr std::size_t kAtOnce = 2;  // tiles that kernels take
    static constexpr std::size_t kItems = 4;
    std::size_t unit_, pair_, units_, threads_;
};

void multiply(const Product& p, const Activations& activations, const float* x, std::size_t inputs, std::size_t begin,
              std::size_t end) {
    const std::size_t rows = p.first + p.rows;
    if (p.weight->multiplication())
        activations.multiply({p.y, Float::f32, rows, p.y_stride}, p.bias, begin, end);
    else
        ops().dense(*p.weight->tiles_of(), x + p.first * inputs, inputs, p.rows, p.bias, p.y + p.first * p.y_stride,
                    p.y_stride, begin, end);
}

void multiply_item(const Product& p, const Activations& activations, const float* x, std::size_t inputs, const Cut& cut,
                   std::size_t item, Products::After after) {
    const auto [begin, beyond] = cut.of(item);
    const std::size_t end = std::min(beyond, p.weight->tiles());
    if (begin >= end) return;
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
                       After after, std::size_t grain) {
    thread_local Workspace memory;
    thread_local Activations activations;
    const float* x = nullptr;  // until this thread has its first share: whoever comes late makes nothing
    const Cut cut(product.weight->tiles(), grain, thread.threads());
    thread.each(cut.items(), [&](std::size_t i) {
        if (!x) {
            auto* made = reinterpret_cast<float*>(memory.get(rows * inputs * sizeof(float)));
            for (std::size_t row = 0; row < rows; ++row) fill(row, made + row * inputs);
            if (const Multiplication* by = product.weight->multiplication()) {
                activations.plan(*by, 0, rows);
                for (std::size_t row = 0; row < rows; ++row)
                    activations.prepare(row, {made, Float::f32, rows, inputs});
                activations.finish();
            }
            x = made;
        }
        multiply_item(product, activations, x, inputs, cut, i, after);
    });
}

void Products::run(Thread& thread, const std::vector<Product>& products, std::size_t rows, std::size_t inputs,
                   Fill fill, After after, std::size_t grain) {
    if (products.size() == 1 && rows <= kFew)
        run_few(thread, products.front(), rows, inputs, fill, after, grain);
    else
        run_many(thread, products, rows, inputs, fill, after, grain);
}

void Products::run_many(Thread& thread, const std::vector<Product>& products, std::size_t rows, std::size_t inputs,
                        Fill fill, After after, std::size_t grain) {
    const auto is_packed = [&](std::size_t i) { return products[i].weight->multiplication() != nullptr; };
    thread.each_of(
        [&](std::size_t& count) {
            x_ = reinterpret_cast<float*>(inputs_.get(rows * inputs * sizeof(float)));
            for (std::size_t i = 0; i < products.size(); ++i)
                if (is_packed(i))
                    activations_.at(i).plan(*products[i].weight->multiplication(), products[i].first, products[i].rows);
            count = rows;
        },
        [&](std::size_t row) {
            fill(row, x_ + row * inputs);
            for (std::size_t i = 0; i < products.size(); ++i)
                if (is_packed(i) && row >= products[i].first && row - products[i].first < products[i].rows)
                    activations_[i].prepare(row, {x_, Float::f32, rows, inputs});
        });
    // Shares of tiles, of all products one after the other.
    const auto cut = [&](std::size_t i) { return Cut(products[i].weight->tiles(), grain, thread.threads()); };
    thread.each_of(
        [&](std::size_t& count) {
            for (std::size_t i = 0; i < products.size(); ++i) {
                if (is_packed(i)) activations_[i].finish();
                count += cut(i).items();
            }
        },
        [&](std::size_t item) {
            std::size_t i = 0;
            for (; item >= cut(i).items(); ++i) item -= cut(i).items();
            multiply_item(products[i], activations_[i], x_, inputs, cut(i), item, after);
        });
}

}  // namespace woqfx::runtime
