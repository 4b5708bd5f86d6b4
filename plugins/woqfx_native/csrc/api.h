// The plain C++ interface of the kernels: pack a weight once, then multiply by it.
//
// A weight [N, K] is held in one buffer whose layout (layout.h) depends neither on the compute dtype nor on the
// CPU, so one packing serves every kernel. Functions throw woqfx::Error (or std::bad_alloc) and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace woqfx {

// What was asked for is impossible, or data is not what it says it is. The message names the value and the remedy.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Float : std::uint32_t { f32 = 0, f16 = 1, bf16 = 2 };
enum class Compute : std::uint32_t { fp32 = 0, bf16 = 1, int8 = 2 };

// Instruction sets, each including those before it that its CPUs have. Not a total order: avx_vnni has no AVX-512.
enum class Isa : std::uint32_t { portable, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx };

const char* name(Isa);
bool supported(Isa);          // by this CPU and its operating system, and compiled in
Isa best_isa();               // WOQFX_ISA if it is set (an Error if this CPU lacks it), else the best supported
Isa parse_isa(const std::string&);

// What runs for a compute dtype on an instruction set, for people: "avx512_bf16: vpdpbusd".
std::string kernel_name(Compute, Isa);

// A weight as checkpoints hold it. G = ceil(K / group); the last group may be shorter.
struct WeightView {
    std::size_t n = 0, k = 0;
    std::size_t group = 0;                 // 1..k; k for one group per row
    int bits = 4;                          // 1..8 for an integer grid, 1..4 for a codebook
    const std::uint8_t* codes = nullptr;   // [n, ceil(k * bits / 8)], bit-packed along K, lowest bit first
    const void* scales = nullptr;          // [n, G] of scale_type
    Float scale_type = Float::f16;
    const std::uint8_t* zeros = nullptr;   // [n, G]: the code of 0; null when symmetric (2^(bits-1), or a codebook)
    const void* offsets = nullptr;         // [n, G] of scale_type: the weight of code 0, in place of zeros
    const float* levels = nullptr;         // a codebook's levels in code order; null for an integer grid
    std::size_t level_count = 0;           // 2..2^bits
    const std::int32_t* order = nullptr;   // [k]: column j of the codes is input order[j]; null for none
};

struct Layout;

// A weight in the packed layout: one 64-byte aligned buffer, header first. Immutable; copies share it.
class PackedWeight {
public:
    std::size_t n() const;
    std::size_t k() const;
    std::size_t group() const;
    int bits() const;
    Float scale_type() const;
    bool has_zeros() const;
    bool has_offsets() const;
    bool has_order() const;
    bool is_codebook() const;

    const std::uint8_t* data() const { return bytes_.get(); }
    std::size_t size() const { return size_; }
    const Layout& layout() const { return *layout_; }

    // The buffer of another PackedWeight (data(), size()), copied and checked; Error if it is anything else.
    static PackedWeight from_bytes(const std::uint8_t* data, std::size_t size);

    // The same without a copy: 64-byte aligned `bytes` are checked and then read in place (the binding's torch tensors:
    // one per call under torch.compile, so it costs well below a microsecond).
    static PackedWeight from_shared(std::shared_ptr<const std::uint8_t> bytes, std::size_t size);

private:
    friend PackedWeight pack(const std::vector<WeightView>&, int);
    std::shared_ptr<const std::uint8_t> bytes_;
    std::size_t size_ = 0;
    std::shared_ptr<const Layout> layout_;
};

// `threads` below 1 means: all of the pool (WOQFX_NUM_THREADS, else the number of CPUs). Throughout.
PackedWeight pack(const WeightView&, int threads = 0);
// Weights that differ in their rows alone, as one: the rows of all, one after the other. Error if they differ otherwise.
PackedWeight pack(const std::vector<WeightView>&, int threads = 0);

// The plain parts again, equal in every bit to what was packed (scales and offsets as float32). Any may be null.
struct PlainParts {
    std::uint8_t* codes = nullptr;         // [n, ceil(k * bits / 8)]
    float* scales = nullptr;               // [n, G]
    std::uint8_t* zeros = nullptr;         // [n, G]; must be null unless has_zeros()
    std::int32_t* order = nullptr;         // [k]; must be null unless has_order()
    float* offsets = nullptr;              // [n, G]; must be null unless has_offsets()
};
void unpack(const PackedWeight&, const PlainParts&, int threads = 0);

// Rows of a row-major matrix; `stride` is the distance of rows in elements, at least their length.
struct ConstRows {
    const void* data = nullptr;
    Float type = Float::f32;
    std::size_t rows = 0, stride = 0;
};
struct Rows {
    void* data = nullptr;
    Float type = Float::f32;
    std::size_t rows = 0, stride = 0;
};

struct LinearOptions {
    Compute compute = Compute::fp32;
    const float* bias = nullptr;           // [n]
    float outlier_threshold = 0;           // LLM.int8(): inputs at least this large are multiplied in fp32; 0 = off
    int threads = 0;
    const Isa* isa = nullptr;              // null: best_isa()
};

// y [M, n] = x [M, k] @ W.T + bias. A row of y depends on no other row of x, and not on the threads: bit for bit.
void linear(const PackedWeight&, const ConstRows& x, const Rows& y, const LinearOptions&);

// Row index[i] of the dequantized weight to row i of y [count, k]: an embedding's look-up.
void gather(const PackedWeight&, const std::int64_t* index, std::size_t count, const Rows& y, int threads = 0);

// The pool's size: WOQFX_NUM_THREADS if set, else the CPUs that this process may use.
int max_threads();

}  // namespace woqfx
