// A model as the engine runs it: description.py's terms with the weights in place.
#pragma once

#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "multiplication.h"
#include "ops.h"
#include "relative.h"

namespace woqfx::runtime {

// A matrix [n, k] to multiply by: quantized, or as it was.
class Weight {
public:
    static std::shared_ptr<const Weight> packed(const PackedWeight&, Compute, float outlier_threshold);
    // Rows [n, k] of any float type, which are copied.
    static std::shared_ptr<const Weight> dense(const ConstRows&, std::size_t k);

    std::size_t n() const;
    std::size_t k() const;
    std::size_t bytes() const;
    std::size_t tiles() const { return divide_up(n(), kTile); }
    const Multiplication* multiplication() const { return std::get_if<Multiplication>(&of_); }
    const DenseTiles* tiles_of() const;

private:
    struct Dense {
        std::shared_ptr<std::uint8_t> memory;
        DenseTiles tiles;
    };
    explicit Weight(std::variant<Multiplication, Dense> of) : of_(std::move(of)) {}
    std::variant<Multiplication, Dense> of_;
};

// Weights that multiply the same input; their outputs side by side.
struct Projection {
    std::vector<std::shared_ptr<const Weight>> parts;
    std::vector<float> bias;  // of all outputs, or empty

    std::size_t inputs() const { return parts.front()->k(); }
    std::size_t outputs() const;
    std::size_t bytes() const;
};

struct Norm {
    bool centered = false;  // LayerNorm rather than RMSNorm
    float eps = 0;
    std::vector<float> weight, bias;  // empty: 1, 0

    void operator()(const float* x, std::size_t n, float* y) const {
        const float* w = weight.empty() ? nullptr : weight.data();
        const float* b = bias.empty() ? nullptr : bias.data();
        centered ? ops().layer_norm(x, n, eps, w, b, y) : ops().rms_norm(x, n, eps, w, y);
    }
};

struct Rope {
    std::vector<float> frequencies, long_frequencies;
    float factor = 1;
    bool interleaved = false;
    std::size_t beyond = 0;  // 0: frequencies are always the same
    double base = 0, growth = 0;

    // Those for a sequence of this length.
    std::vector<float> at(std::size_t length) const;
};

struct Attention {
    Projection inputs;  // query, key and value
    Projection output;
    std::size_t heads = 0, kv_heads = 0, head_dim = 0;
    float scale = 1, softcap = 0;
    int rope = -1;           // of the model's; -1: none
    int bias = -1;           // by distance, of the model's; -1: none
    bool causal = true;      // else a token sees all of its sequence, which is one step's
    std::size_t window = 0;  // 0: no limit
    std::optional<Norm> query_norm, key_norm;
    bool norm_all_heads = false;
};

// Attention to what the encoder made of a sequence's source: its keys and values are computed once for all steps.
struct CrossAttention {
    Projection query, output;
    Projection memory;  // key and value, of the encoder's output
    std::size_t heads = 0, kv_heads = 0, head_dim = 0;
    float scale = 1;
};

struct MLP {
    bool gated = true;
    Projection inputs;  // gate and up, or up
    Projection output;
    Activation activation = Activation::silu;
};

struct Experts {
    Projection router;
    std::vector<MLP> experts;
    std::size_t top_k = 1;
    bool normalize = false;
    std::optional<MLP> shared;
    std::optional<Projection> shared_gate;
};

struct Layer {
    Attention attention;
    std::optional<CrossAttention> cross;
    std::optional<MLP> mlp;
    std::optional<Experts> experts;  // one of the two
    std::optional<Norm> input_norm, attention_output_norm, cross_norm, mlp_norm, mlp_output_norm;
    bool parallel = false;
    float residual_scale = 1;
};

// What makes of a source what the decoder's layers look at. Its embedding is the decoder's.
struct Encoder {
    std::vector<Layer> layers;
    std::optional<Norm> final_norm;
};

// Rows to look up: of a matrix that is not quantized, or of a quantized one.
class Table {
public:
    // The rows are read in place; `owner` keeps them.
    Table(const ConstRows& rows, std::size_t width, std::shared_ptr<const void> owner);
    explicit Table(const PackedWeight& weight);

    std::size_t rows() const;
    std::size_t width() const;
    std::size_t bytes() const;
    void read(std::size_t row, float* to) const;

private:
    ConstRows plain_;
    std::size_t width_ = 0;
    std::shared_ptr<const void> owner_;
    std::optional<PackedWeight> packed_;
};

struct Model {
    std::size_t hidden = 0, vocabulary = 0, context = 0;
    std::optional<Table> embedding, positions;
    std::size_t position_offset = 0;
    float embedding_scale = 1;
    std::optional<Norm> embedding_norm, final_norm;
    std::vector<Rope> ropes;
    std::vector<RelativeBias> biases;
    std::optional<Encoder> encoder;
    std::vector<Layer> layers;
    Projection head;
    float logit_scale = 1, logit_softcap = 0;

    // Error, naming the layer, unless every size fits every other.
    void check() const;
    std::size_t weight_bytes() const;
    std::size_t bytes_per_token() const;
};

}  // namespace woqfx::runtime
