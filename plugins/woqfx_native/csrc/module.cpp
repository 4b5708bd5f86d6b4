// The Python extension `woqfx_native._core`: the functions of api.h, for arrays of any library that speaks DLPack.
//
// Thin on purpose: shapes and types are checked here, the rest is the core's. The GIL is released while a kernel runs.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "layout.h"
#include "memory.h"
#include "numbers.h"
#include "setting.h"

using namespace nanobind::literals;

namespace woqfx {
namespace {

// A matrix [M, width], or its rows' distance if there is more than one.
template <class View>
View rows_of(const Array& array, std::size_t width, const char* message) {
    require(array.ndim() == 2 && array.shape(1) == width, message);
    const std::size_t rows = array.shape(0);
    require(width == 1 || array.stride(1) == 1, "the columns of a matrix must lie side by side");
    const std::int64_t stride = rows > 1 ? array.stride(0) : static_cast<std::int64_t>(width);
    require(stride >= static_cast<std::int64_t>(width), "the rows of a matrix overlap");
    return {array.data(), type_of(array.dtype()), rows, static_cast<std::size_t>(stride)};
}

std::size_t packed_width(std::size_t k, int bits) { return k / 8 * bits + (k % 8 * bits + 7) / 8; }

// Codes, scales, zeros and offsets of some rows.
using RowArrays =
    std::tuple<Dense<const std::uint8_t, 2>, Array, Given<const std::uint8_t, 2>, std::optional<Array>>;

PackedWeight pack_arrays(const std::vector<RowArrays>& parts, std::size_t k, std::size_t group, int bits,
                         const Given<const float, 1>& levels, const Given<const std::int32_t, 1>& order, int threads) {
    require(bits >= 1 && bits <= 8 && k >= 1 && group >= 1 && group <= k, "bits, k or group is out of range");
    const std::size_t groups = k / group + (k % group != 0);
    std::vector<WeightView> views;
    for (const auto& [codes, scales, zeros, offsets] : parts) {
        WeightView& view = views.emplace_back();
        view.n = codes.shape(0), view.k = k, view.group = group, view.bits = bits;
        require(codes.shape(1) == packed_width(k, bits), "codes must be uint8 [N, ceil(k * bits / 8)]");
        const auto rows = rows_of<ConstRows>(scales, groups, "scales must be [N, G]");
        require(rows.rows == view.n && rows.stride == groups, "scales must be [N, G], without gaps");
        view.codes = codes.data(), view.scales = rows.data, view.scale_type = rows.type;
        view.zeros = pointer(zeros, view.n, groups, "zeros must be uint8 [N, G]");
        if (offsets) {
            const auto given = rows_of<ConstRows>(*offsets, groups, "offsets must be [N, G]");
            require(given.rows == view.n && given.stride == groups && given.type == view.scale_type,
                    "offsets must be [N, G], without gaps, in the type of the scales");
            view.offsets = given.data;
        }
        if (levels) view.levels = levels->data(), view.level_count = levels->shape(0);
        view.order = pointer(order, k, "order must be int32 [K]");
    }
    const nb::gil_scoped_release unlocked;
    return pack(views, threads);
}

void unpack_arrays(const PackedWeight& weight, const Given<std::uint8_t, 2>& codes, const Given<float, 2>& scales,
                   const Given<std::uint8_t, 2>& zeros, const Given<float, 2>& offsets,
                   const Given<std::int32_t, 1>& order, int threads) {
    const std::size_t n = weight.n(), groups = weight.k() / weight.group() + (weight.k() % weight.group() != 0);
    require(!zeros || weight.has_zeros(), "this weight has no zeros");
    require(!offsets || weight.has_offsets(), "this weight has no offsets");
    require(!order || weight.has_order(), "this weight has no order");
    const PlainParts parts{
        pointer(codes, n, packed_width(weight.k(), weight.bits()), "codes must be uint8 [N, ceil(k * bits / 8)]"),
        pointer(scales, n, groups, "scales must be float32 [N, G]"),
        pointer(zeros, n, groups, "zeros must be uint8 [N, G]"),
        pointer(order, weight.k(), "order must be int32 [K]"),
        pointer(offsets, n, groups, "offsets must be float32 [N, G]"),
    };
    const nb::gil_scoped_release unlocked;
    unpack(weight, parts, threads);
}

// Addresses rather than arrays: taking in an array costs some microseconds, and a token meets hundreds of layers.
// ops.py, which calls it, has checked the sizes.
void linear_at(const PackedWeight& weight, std::uintptr_t x, Float x_type, std::size_t rows, std::size_t stride,
               std::uintptr_t y, std::uintptr_t bias, Float bias_type, Compute compute, float outlier_threshold,
               int threads, std::optional<Isa> isa) {
    const nb::gil_scoped_release unlocked;
    thread_local std::vector<float> converted;
    LinearOptions options{compute, reinterpret_cast<const float*>(bias), outlier_threshold, threads,
                          isa ? &*isa : nullptr};
    if (bias && bias_type != Float::f32) {
        converted.resize(weight.n());
        for (std::size_t i = 0; i < weight.n(); ++i)
            converted[i] = load_float(reinterpret_cast<const void*>(bias), bias_type, i);
        options.bias = converted.data();
    }
    linear(weight, {reinterpret_cast<const void*>(x), x_type, rows, stride},
           {reinterpret_cast<void*>(y), x_type, rows, weight.n()}, options);
}

void gather_arrays(const PackedWeight& weight, const Dense<const std::int64_t, 1>& index, const Array& y, int threads) {
    const auto to = rows_of<Rows>(y, weight.k(), "y must be [count, K]");
    require(to.rows == index.shape(0), "y must have a row for each index");
    const nb::gil_scoped_release unlocked;
    gather(weight, index.data(), index.shape(0), to, threads);
}

// The bytes of `array`, which is kept alive for as long as they are needed.
PackedWeight from_array(Dense<const std::uint8_t, 1> array) {
    const std::uint8_t* data = array.data();
    const std::size_t size = array.size();
    // What the last owner lets go may be a Python object, and the last owner may be a thread without the GIL.
    auto owner = std::shared_ptr<Dense<const std::uint8_t, 1>>(
        new Dense<const std::uint8_t, 1>(std::move(array)), [](Dense<const std::uint8_t, 1>* held) {
            const nb::gil_scoped_acquire locked;
            delete held;
        });
    return PackedWeight::from_shared({std::move(owner), data}, size);
}

// The packed bytes, without a copy. Nobody may write to them; DLPack has no word for that which all consumers know.
auto bytes_of(nb::handle self) {
    const auto& weight = nb::cast<const PackedWeight&>(self);
    return nb::ndarray<std::uint8_t, nb::ndim<1>, nb::device::cpu>(const_cast<std::uint8_t*>(weight.data()),
                                                                  {weight.size()}, self);
}

auto new_memory(std::size_t size) {
    using Memory = std::shared_ptr<std::uint8_t>;
    auto memory = std::make_unique<Memory>(weight_memory(size));
    std::uint8_t* data = memory->get();
    const nb::capsule owner(memory.get(), [](void* held) noexcept { delete static_cast<Memory*>(held); });
    memory.release();  // the capsule's from here on
    return nb::ndarray<std::uint8_t, nb::ndim<1>, nb::device::cpu>(data, {size}, owner);
}

}  // namespace

void bind_encode(nb::module_&);
void bind_roofline(nb::module_&);

}  // namespace woqfx

NB_MODULE(_core, m) {
    using namespace woqfx;
    nb::set_leak_warnings(false);  // interpreters end with modules, and so weights, alive
    m.doc() = "woqfx's native kernels. See csrc/api.h.";
    const nb::module_ errors = nb::module_::import_("woqfx.errors");
    nb::exception<Error>(m, "Error", errors.attr("WoqfxError").ptr());
    nb::exception<SettingError>(m, "SettingError", errors.attr("SettingError").ptr());

    nb::enum_<Compute>(m, "Compute", "How a product is computed.")
        .value("fp32", Compute::fp32)
        .value("bf16", Compute::bf16)
        .value("int8", Compute::int8);
    nb::enum_<Float>(m, "Float", "Types of activations, biases and results.")
        .value("f32", Float::f32)
        .value("f16", Float::f16)
        .value("bf16", Float::bf16);
    nb::enum_<Isa>(m, "Isa", "Instruction sets that there are kernels for.")
        .value("portable", Isa::portable)
        .value("avx2", Isa::avx2)
        .value("avx_vnni", Isa::avx_vnni)
        .value("avx512", Isa::avx512)
        .value("avx512_vnni", Isa::avx512_vnni)
        .value("avx512_bf16", Isa::avx512_bf16)
        .value("amx", Isa::amx);

    nb::class_<PackedWeight>(m, "PackedWeight", "A weight [N, K] in the layout of the kernels. Immutable.")
        .def(nb::new_(&from_array), "bytes"_a.noconvert(), "From `bytes()` of another; checked, and read in place.")
        .def("bytes", &bytes_of, "All of it as uint8, without a copy; not to be written to.")
        .def_prop_ro("n", &PackedWeight::n)
        .def_prop_ro("k", &PackedWeight::k);

    m.def("pack", &pack_arrays, "parts"_a.noconvert(), "k"_a, "group"_a, "bits"_a, "levels"_a.noconvert().none(),
          "order"_a.noconvert().none(), "threads"_a);
    m.def("unpack", &unpack_arrays, "weight"_a, "codes"_a.noconvert().none(), "scales"_a.noconvert().none(),
          "zeros"_a.noconvert().none(), "offsets"_a.noconvert().none(), "order"_a.noconvert().none(), "threads"_a);
    m.def("linear", &linear_at, "weight"_a, "x"_a, "x_type"_a, "rows"_a, "stride"_a, "y"_a, "bias"_a, "bias_type"_a,
          "compute"_a, "outlier_threshold"_a, "threads"_a, "isa"_a.none() = nb::none());
    m.def("gather", &gather_arrays, "weight"_a, "index"_a.noconvert(), "y"_a.noconvert(), "threads"_a);

    m.def("weight_memory", &new_memory, "size"_a, "Bytes without a value, in huge pages where there are any.");

    m.attr("LAYOUT_VERSION") = kLayoutVersion;
    m.def("best_isa", &best_isa, "What runs on this CPU: WOQFX_ISA, else the best that is supported.");
    m.def("supported", &supported, "isa"_a);
    m.def("kernel_name", &kernel_name, "compute"_a, "isa"_a);
    m.def("max_threads", &max_threads, "WOQFX_NUM_THREADS, else the CPUs that this process may use.");
    bind_encode(m);
    bind_roofline(m);
}
