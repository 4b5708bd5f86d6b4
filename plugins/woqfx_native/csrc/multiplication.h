// A product in the steps that it is made of, for callers that have threads of their own: linear() is one.
//
//     Multiplication by(weight, compute);      // once for a weight
//     activations.plan(by, first, rows);       // one thread
//     activations.prepare(row, x);             // each row, any thread
//     activations.finish();                    // one thread
//     activations.multiply(y, bias, 0, tiles); // each tile, any thread
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernel.h"

namespace woqfx {

// Memory that is kept from one use to the next.
class Workspace {
public:
    std::uint8_t* get(std::size_t size) {
        if (size > size_) {
            memory_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(64, (size + 4095) / 4096 * 4096)));
            size_ = memory_ ? size : 0;
            if (!memory_) throw std::bad_alloc();
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::uint8_t, Free> memory_;
    std::size_t size_ = 0;
};

// A weight, and how it is multiplied by. Throws Error for an instruction set that this CPU lacks.
class Multiplication {
public:
    Multiplication(const PackedWeight&, Compute, float outlier_threshold = 0, const Isa* = nullptr);

    const PackedWeight& weight() const { return weight_; }
    const Layout& layout() const { return weight_.layout(); }
    // So many rows at a time share the cache with the decoded weights.
    std::size_t most_rows() const;

private:
    friend class Activations;
    PackedWeight weight_;
    const Kernel* kernel_;
    Operands operands_;
    Compute compute_;
    float threshold_;
};

// Rows of activations, ready to be multiplied by a weight. Memory is kept from one plan to the next.
class Activations {
public:
    // For rows [first, first + rows) of what prepare() and multiply() are given.
    void plan(const Multiplication&, std::size_t first, std::size_t rows);
    // Row `row` of x, which is one of those that were planned for.
    void prepare(std::size_t row, const ConstRows& x);
    void finish();
    // Outputs of tiles [begin, end): columns from 32 begin on.
    void multiply(const Rows& y, const float* bias, std::size_t begin, std::size_t end) const;

private:
    const Multiplication* by_ = nullptr;
    std::size_t first_ = 0, rows_ = 0;
    bool by_tiles_ = false;
    std::size_t row_words_ = 0, blocks_at_ = 0;
    std::uint32_t* words_ = nullptr;
    std::vector<Panel> panels_;
    Workspace memory_;
    std::vector<Outlier> outliers_;
    std::vector<std::size_t> outlier_begin_;
};

}  // namespace woqfx
