// Python's way to roofline.h.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "roofline.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace woqfx {

void bind_roofline(nb::module_& m) {
    using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    m.def(
        "read_seconds",
        [](const Bytes& data, Isa isa, int threads) {
            const std::uint8_t* from = data.data();
            const std::size_t size = data.size();
            const nb::gil_scoped_release unlocked;
            return read_seconds(from, size, isa, threads);
        },
        "data"_a.noconvert(), "isa"_a, "threads"_a, "Seconds in which this many threads read `data` once.");
    m.def("peak_operations", &peak_operations, "compute"_a, "isa"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Operations a second of a compute dtype on operands in registers; a multiply and an add are two.");
}

}  // namespace woqfx
