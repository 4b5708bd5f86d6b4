// Runs the core on random shapes, for sanitizers: exercise [CASES] [SEED].
//
// Results are compared with plain loops in double precision, and between instruction sets; the finer tests of numbers
// are Python's. What this adds is that each buffer ends where its data end.
#include <cmath>
#include <cstring>
#include <string>

#include "../encode.h"
#include "cases.h"

namespace woqfx {
namespace {

void check_parts(const Plain& plain, const PackedWeight& packed) {
    std::vector<std::uint8_t> codes(plain.codes.size()), zeros(plain.zeros.size());
    std::vector<float> scales(plain.view.n * plain.groups());
    std::vector<float> offsets(plain.offsets.empty() ? 0 : scales.size());
    std::vector<std::int32_t> order(plain.order.size());
    unpack(packed, {codes.data(), scales.data(), zeros.empty() ? nullptr : zeros.data(),
                    order.empty() ? nullptr : order.data(), offsets.empty() ? nullptr : offsets.data()}, 2);
    expect(codes == plain.codes && zeros == plain.zeros && order == plain.order, "what was packed comes back");
}

// Rows of several weights, packed as one: those of some weight cut in two, each part with memory of its own.
void check_joined(Random& random, const Plain& plain, const PackedWeight& packed) {
    const std::size_t first = random.below(plain.view.n + 1), width = packed_width(plain.view.k, plain.view.bits);
    const std::size_t floats = plain.groups() * size_of(plain.view.scale_type);
    const auto cut = [&](const std::vector<std::uint8_t>& all, std::size_t row_bytes, std::size_t begin, std::size_t end) {
        const auto from = all.begin() + static_cast<std::ptrdiff_t>(all.empty() ? 0 : begin * row_bytes);
        const auto to = all.begin() + static_cast<std::ptrdiff_t>(all.empty() ? 0 : end * row_bytes);
        std::vector<std::uint8_t> part(from, to);
        part.reserve(all.empty() ? 0 : 1);  // memory even for no rows: absent parts alone are null
        return part;
    };
    std::vector<std::vector<std::uint8_t>> memory;
    std::vector<WeightView> views;
    for (const auto& [begin, end] : {std::pair{std::size_t{0}, first}, std::pair{first, plain.view.n}}) {
        WeightView view = plain.view;
        view.n = end - begin;
        const auto part = [&](const std::vector<std::uint8_t>& all, std::size_t row_bytes) -> const std::uint8_t* {
            memory.push_back(cut(all, row_bytes, begin, end));
            return all.empty() ? nullptr : memory.back().data();
        };
        view.codes = part(plain.codes, width), view.scales = part(plain.scales, floats);
        view.zeros = part(plain.zeros, plain.groups()), view.offsets = part(plain.offsets, floats);
        views.push_back(view);
    }
    const PackedWeight joined = pack(views, 2);
    expect(joined.size() == packed.size() && std::memcmp(joined.data(), packed.data(), packed.size()) == 0,
           "rows of two weights are packed as those of one");
}

// The dequantized weight [n, k], inputs in their own order; scales and offsets as the packed weight gives them back. `reach`, if
// given, becomes the largest weight that the group of each could hold.
std::vector<double> dequantized(const Plain& plain, const PackedWeight& packed, std::vector<double>* reach = nullptr) {
    const WeightView& v = plain.view;
    double largest = 1 << v.bits;
    if (v.levels) {
        largest = 0;
        for (std::size_t i = 0; i < v.level_count; ++i) largest = std::max(largest, std::abs(double{v.levels[i]}));
    }
    if (reach) reach->resize(v.n * v.k);
    std::vector<float> scales(v.n * plain.groups()), offsets(scales.size());
    unpack(packed, {nullptr, scales.data(), nullptr, nullptr, v.offsets ? offsets.data() : nullptr}, 1);
    std::vector<double> w(v.n * v.k);
    for (std::size_t row = 0; row < v.n; ++row) {
        for (std::size_t column = 0; column < v.k; ++column) {
            const std::size_t group = row * plain.groups() + column / v.group, code = plain.code(row, column);
            const double zero = v.zeros ? v.zeros[group] : v.offsets ? 0 : 1 << (v.bits - 1);
            const double level = v.levels ? static_cast<double>(v.levels[code]) : static_cast<double>(code) - zero;
            const std::size_t at = row * v.k + (v.order ? static_cast<std::size_t>(v.order[column]) : column);
            w[at] = level * scales[group] + offsets[group];
            if (reach) (*reach)[at] = largest * std::abs(scales[group]) + std::abs(offsets[group]);
        }
    }
    return w;
}

void check_products(Random& random, const Plain& plain, const PackedWeight& packed) {
    const std::size_t n = plain.view.n, k = plain.view.k;
    std::vector<double> reach;
    const std::vector<double> w = dequantized(plain, packed, &reach);
    const std::size_t rows = random.pick<std::size_t>({1, 1, 2, 5, 16, 17, 40});
    const std::size_t stride = k + random.below(3), y_stride = n + random.below(3);
    std::vector<float> x((rows - 1) * stride + k), y((rows - 1) * y_stride + n), bias(n);
    for (auto* values : {&x, &bias})
        for (auto& value : *values) value = random.uniform();
    for (const Isa isa : isas_here()) {
        for (const Compute compute : {Compute::fp32, Compute::bf16, Compute::int8}) {
            const float outliers = compute == Compute::int8 && random.one_in(3) ? 0.9f : 0.0f;
            const bool biased = random.one_in(2);
            LinearOptions options;
            options.compute = compute, options.outlier_threshold = outliers, options.isa = &isa;
            options.threads = 1 + static_cast<int>(random.below(3));
            options.bias = biased ? bias.data() : nullptr;
            linear(packed, {x.data(), Float::f32, rows, stride}, {y.data(), Float::f32, rows, y_stride}, options);
            // Of each product's largest: int8 rounds inputs and levels to 1/127 of theirs, bf16 to 8 bits.
            const double tolerance = compute == Compute::fp32 ? 1e-6 : compute == Compute::bf16 ? 0.008 : 0.012;
            for (std::size_t m = 0; m < rows; ++m) {
                for (std::size_t o = 0; o < n; ++o) {
                    double exact = biased ? bias[o] : 0, size = 1;
                    for (std::size_t i = 0; i < k; ++i) {
                        exact += w[o * k + i] * x[m * stride + i];
                        size += reach[o * k + i];
                    }
                    expect(std::abs(y[m * y_stride + o] - exact) <= tolerance * size, "a product");
                }
            }
        }
    }
}

void check_gather(Random& random, const Plain& plain, const PackedWeight& packed) {
    const std::size_t n = plain.view.n, k = plain.view.k;
    std::vector<double> reach;
    const std::vector<double> w = dequantized(plain, packed, &reach);
    std::vector<std::int64_t> index(1 + random.below(5));
    for (auto& i : index) i = static_cast<std::int64_t>(random.below(n));
    std::vector<float> y(index.size() * k);
    gather(packed, index.data(), index.size(), {y.data(), Float::f32, index.size(), k}, 2);
    for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t at = static_cast<std::size_t>(index[i / k]) * k + i % k;
        expect(std::abs(y[i] - w[at]) <= 1e-6 * reach[at], "a gathered row");
    }
    for (const std::int64_t wrong : {std::int64_t{-1}, static_cast<std::int64_t>(n), INT64_MAX, INT64_MIN}) {
        index.back() = wrong;
        expect(refused([&] { gather(packed, index.data(), index.size(), {y.data(), Float::f32, index.size(), k}, 1); }),
               "an index that is out of range is refused");
    }
}

void check_pack(Random& random) {
    const Plain plain(random, 70, random.one_in(8) ? 1500 : 300);
    const PackedWeight packed = pack(plain.view, 1 + static_cast<int>(random.below(3)));
    check_parts(plain, packed);
    const std::vector<std::uint8_t> copy(packed.data(), packed.data() + packed.size());
    check_parts(plain, PackedWeight::from_bytes(copy.data(), copy.size()));
    check_joined(random, plain, packed);
    check_products(random, plain, packed);
    check_gather(random, plain, packed);
}

// Sizes that no memory holds must be refused before anything is read or allocated.
void check_absurd_sizes(Random& random) {
    const Plain plain(random, 4, 40);
    constexpr std::size_t kHuge[] = {0, std::size_t{1} << 31, std::size_t{1} << 61, SIZE_MAX / 8, SIZE_MAX};
    for (std::size_t WeightView::*size : {&WeightView::n, &WeightView::k, &WeightView::group}) {
        WeightView view = plain.view;
        view.*size = random.pick(kHuge);
        expect(refused([&] { pack(view, 1); }), "a size that cannot be is refused");
    }
    WeightView view = plain.view;
    view.bits = random.pick({-1, 0, 9, 1 << 30});
    expect(refused([&] { pack(view, 1); }), "bits that cannot be are refused");
}

struct Encoded {
    std::vector<std::uint8_t> codes;
    std::vector<float> scales, zeros, off, size;

    bool operator==(const Encoded& other) const {
        const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
            return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;  // NaN included
        };
        return codes == other.codes && same(scales, other.scales) && same(zeros, other.zeros) && same(off, other.off) &&
               same(size, other.size);
    }
};

void check_encode(Random& random) {
    const std::size_t rows = 1 + random.below(9), columns = 1 + random.below(300);
    const std::size_t group = std::min(columns, random.pick<std::size_t>({1, 7, 16, 32, 48, 100, 128, columns}));
    const Float type = random.pick({Float::f32, Float::f16, Float::bf16});
    std::vector<std::uint8_t> data = numbers(random, type, rows * columns);
    if (random.one_in(4))  // any bits, NaN and infinity among them
        for (auto& byte : data) byte = static_cast<std::uint8_t>(random.next());
    const bool book = random.one_in(2), symmetric = book || random.one_in(2);
    const int bits = 1 + static_cast<int>(random.below(8));
    std::vector<float> levels(2 + random.below(std::min<std::size_t>(15, (std::size_t{1} << bits) - 1)));
    for (auto& level : levels) level = random.uniform();
    const auto grid = book ? encode::Grid::codebook(bits, levels.data(), levels.size())
                           : encode::Grid::integer(bits, bits == 1 || random.one_in(2), symmetric);
    const std::vector<double> ratios(1 + random.below(4), 0.9);
    std::vector<float> importance(columns, 0.5f);
    const encode::Weight weight{data.data(), type, rows, columns, group};
    const Float storage = random.pick({Float::f32, Float::f16, Float::bf16});
    std::vector<Encoded> made;
    for (const Isa isa : isas_here()) {
        Encoded one;
        one.codes.resize(rows * packed_width(columns, bits));
        one.scales.resize(rows * weight.groups());
        one.zeros.resize(symmetric ? 0 : rows * weight.groups());
        one.off.resize(rows), one.size.resize(rows);
        encode::nearest({weight, grid, storage,
                         {ratios.data(), ratios.size(), ratios.size() % 2 ? nullptr : importance.data()},
                         {one.codes.data(), one.scales.data(), symmetric ? nullptr : one.zeros.data()}}, 2, isa);
        const std::vector<std::uint8_t> zeros(one.zeros.begin(), one.zeros.end());
        encode::square_error({weight, grid, {one.codes.data(), one.scales.data(), symmetric ? nullptr : zeros.data()},
                              one.off.data(), one.size.data()}, 2, isa);
        made.push_back(one);
        bool finite = true;
        for (const float scale : one.scales) finite = finite && std::isfinite(scale);
        expect(!finite || made.front() == one, "instruction sets quantize alike");
    }
}

int run(std::size_t cases, std::uint64_t seed) {
    for (std::size_t i = 0; i < cases; ++i) {
        Random random(seed + i);
        check_encode(random);
        check_pack(random);
        check_absurd_sizes(random);
    }
    std::printf("%zu cases from seed %llu on", cases, static_cast<unsigned long long>(seed));
    for (const Isa isa : isas_here()) std::printf(" %s", name(isa));
    std::printf(": no fault\n");
    return 0;
}

}  // namespace
}  // namespace woqfx

int main(int count, char** arguments) {
    return woqfx::run(count > 1 ? std::stoul(arguments[1]) : 300, count > 2 ? std::stoull(arguments[2]) : 0);
}
