// encode.h for Python: shapes and types are checked here, the rest is the core's.
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "arrays.h"
#include "encode.h"

using namespace nanobind::literals;

namespace woqfx {
namespace {

using AnyMatrix = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

encode::Weight weight_of(const AnyMatrix& array, std::size_t group) {
    const encode::Weight weight{array.data(), type_of(array.dtype()), array.shape(0), array.shape(1), group};
    require(group >= 1 && group <= weight.columns, "groups must have 1 to K columns");
    return weight;
}

encode::Grid grid_of(int bits, bool full_range, bool symmetric, const Given<const float, 1>& levels) {
    if (levels) return encode::Grid::codebook(bits, levels->data(), levels->shape(0));
    return encode::Grid::integer(bits, full_range, symmetric);
}

void nearest(const AnyMatrix& array, std::size_t group, int bits, bool full_range,
             const Given<const float, 1>& levels, Float storage, const std::vector<double>& ratios,
             const Given<const float, 1>& importance, const Dense<std::uint8_t, 2>& codes,
             const Dense<float, 2>& scales, const Given<float, 2>& zeros, int threads, std::optional<Isa> isa) {
    const encode::Weight weight = weight_of(array, group);
    const std::size_t rows = weight.rows, groups = weight.groups();
    const char* const width = "codes must be uint8 [N, ceil(K * bits / 8)]";
    encode::NearestJob job{
        weight,
        grid_of(bits, full_range, !zeros, levels),
        storage,
        {ratios.data(), ratios.size(), pointer(importance, weight.columns, "importance must be float32 [K]")},
        {nullptr, pointer(scales, rows, groups, "scales must be float32 [N, G]"),
         pointer(zeros, rows, groups, "zeros must be float32 [N, G]")},
    };
    job.output.codes = pointer(codes, rows, encode::packed_bytes(weight.columns, bits), width);
    const nb::gil_scoped_release unlocked;
    encode::nearest(job, threads, isa ? *isa : best_isa());
}

void square_error(const AnyMatrix& array, std::size_t group, int bits, const Given<const float, 1>& levels,
                  const Dense<const std::uint8_t, 2>& codes, const Dense<const float, 2>& scales,
                  const Given<const std::uint8_t, 2>& zeros, const Dense<float, 1>& off, const Dense<float, 1>& size,
                  int threads, std::optional<Isa> isa) {
    const encode::Weight weight = weight_of(array, group);
    const std::size_t rows = weight.rows, groups = weight.groups();
    // How scales were fitted does not matter here; full_range makes every number of bits a grid.
    encode::ErrorJob job{
        weight,
        grid_of(bits, true, !zeros, levels),
        {nullptr, pointer(scales, rows, groups, "scales must be float32 [N, G]"),
         pointer(zeros, rows, groups, "zeros must be uint8 [N, G]")},
        pointer(off, rows, "off must be float32 [N]"),
        pointer(size, rows, "size must be float32 [N]"),
    };
    job.stored.codes = pointer(codes, rows, encode::packed_bytes(weight.columns, bits),
                               "codes must be uint8 [N, ceil(K * bits / 8)]");
    const nb::gil_scoped_release unlocked;
    encode::square_error(job, threads, isa ? *isa : best_isa());
}

}  // namespace

void bind_encode(nb::module_& m) {
    m.def("nearest", &nearest, "weight"_a.noconvert(), "group"_a, "bits"_a, "full_range"_a,
          "levels"_a.noconvert().none(), "storage"_a, "ratios"_a, "importance"_a.noconvert().none(),
          "codes"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert().none(), "threads"_a, "isa"_a.none(),
          "Write the nearest codes, the scales as they will be stored, and the zeros. See csrc/encode.h.");
    m.def("square_error", &square_error, "weight"_a.noconvert(), "group"_a, "bits"_a, "levels"_a.noconvert().none(),
          "codes"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert().none(), "off"_a.noconvert(),
          "size"_a.noconvert(), "threads"_a, "isa"_a.none(),
          "Write each row's sums of (w' - w)^2 and of w^2. See csrc/encode.h.");
}

}  // namespace woqfx
