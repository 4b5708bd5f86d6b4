// Matrix products as phases of a region: activations are made, prepared for the kernels, and multiplied.
#pragma once

#include <vector>

#include "model.h"
#include "region.h"

namespace woqfx::runtime {

// Rows [first, first + rows) of some inputs by one weight, to the same rows of y.
struct Product {
    const Weight* weight;
    std::size_t first, rows;
    float* y;
    std::size_t y_stride;
    const float* bias;
};

// Those of a projection for rows [first, first + rows); outputs of its parts lie side by side in y.
void append(std::vector<Product>& to, const Projection&, std::size_t first, std::size_t rows, float* y,
            std::size_t y_stride);

// To do after a product that asks for nothing.
inline constexpr auto nothing = [](const Product&, std::size_t, std::size_t) {};

class Products {
public:
    using Fill = FunctionRef<void(std::size_t row, float* to)>;
    // Columns [begin, end) of a product's y are there.
    using After = FunctionRef<void(const Product&, std::size_t begin, std::size_t end)>;

    // Room for so many products at a time. No other thread may be about.
    void reserve(std::size_t products);

    // All products of `rows` rows of `inputs` numbers each, which `fill` makes. `after` gets whole runs of `grain` columns,
    // where a product has them. Phases: at most kPhases.
    void run(Thread&, const std::vector<Product>&, std::size_t rows, std::size_t inputs, Fill fill, After after,
             std::size_t grain = 1);
    // The same for products that depend on earlier phases. Phases: kPhases.
    void run_many(Thread&, const std::vector<Product>&, std::size_t rows, std::size_t inputs, Fill fill, After after,
                  std::size_t grain = 1);
    static constexpr std::size_t kPhases = 2;

private:
    void run_few(Thread&, const Product&, std::size_t rows, std::size_t inputs, Fill fill, After after,
                 std::size_t grain);

    Workspace inputs_;
    float* x_ = nullptr;
    std::vector<Activations> activations_;
};

}  // namespace woqfx::runtime
