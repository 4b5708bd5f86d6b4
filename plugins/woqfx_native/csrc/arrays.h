// Arrays of any library that speaks DLPack, as the bindings take them: contiguous, in this machine's memory.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "api.h"

namespace woqfx {

namespace nb = nanobind;

using Array = nb::ndarray<nb::device::cpu>;
template <class T, int Dimensions>
using Dense = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
template <class T, int Dimensions>
using Given = std::optional<Dense<T, Dimensions>>;

inline void require(bool ok, const char* message) {
    if (!ok) throw Error(message);
}

inline Float type_of(nb::dlpack::dtype type) {
    if (type == nb::dtype<float>()) return Float::f32;
    if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 16) return Float::f16;
    if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16) return Float::bf16;
    throw Error("kernels take float32, float16 and bfloat16");
}

template <class T>
T* pointer(const Dense<T, 2>& array, std::size_t rows, std::size_t columns, const char* message) {
    require(array.shape(0) == rows && array.shape(1) == columns, message);
    return array.data();
}

template <class T>
T* pointer(const Dense<T, 1>& array, std::size_t length, const char* message) {
    require(array.shape(0) == length, message);
    return array.data();
}

// Null for an array that is not given.
template <class T>
T* pointer(const Given<T, 2>& array, std::size_t rows, std::size_t columns, const char* message) {
    return array ? pointer(*array, rows, columns, message) : nullptr;
}

template <class T>
T* pointer(const Given<T, 1>& array, std::size_t length, const char* message) {
    return array ? pointer(*array, length, message) : nullptr;
}

}  // namespace woqfx
