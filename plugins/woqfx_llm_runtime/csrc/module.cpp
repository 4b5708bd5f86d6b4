// The Python extension `woqfx_llm_runtime._core`: engine.h, and model.h's terms to build a model from.
//
// Thin on purpose. Whatever waits or computes does so without the GIL.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "arrays.h"
#include "engine.h"
#include "mersenne.h"

using namespace nanobind::literals;

namespace woqfx::runtime {
namespace {

using Matrix = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

ConstRows rows_of(const Matrix& matrix) {
    return {matrix.data(), type_of(matrix.dtype()), matrix.shape(0), matrix.shape(1)};
}

// Keeps an array for as long as C++ needs it; the last owner may be a thread without the GIL.
template <class Array>
std::shared_ptr<const void> keep(Array array) {
    return {new Array(std::move(array)), [](const void* held) {
                const nb::gil_scoped_acquire locked;
                delete static_cast<const Array*>(held);
            }};
}

PackedWeight packed_of(Dense<const std::uint8_t, 1> bytes) {
    const std::uint8_t* data = bytes.data();
    const std::size_t size = bytes.size();
    return PackedWeight::from_shared({keep(std::move(bytes)), data}, size);
}

std::shared_ptr<const Weight> packed(Dense<const std::uint8_t, 1> bytes, Compute compute, float outlier_threshold) {
    return Weight::packed(packed_of(std::move(bytes)), compute, outlier_threshold);
}

std::shared_ptr<const Weight> dense(const Matrix& matrix) { return Weight::dense(rows_of(matrix), matrix.shape(1)); }

Table table(Matrix matrix) {
    const ConstRows rows = rows_of(matrix);
    const std::size_t width = matrix.shape(1);
    return {rows, width, keep(std::move(matrix))};
}

void forward(Engine& engine, const std::vector<int>& slots, const std::vector<std::size_t>& counts,
             const std::vector<std::size_t>& wanted, const Dense<const std::int64_t, 1>& tokens,
             const Dense<float, 2>& logits) {
    if (slots.size() != counts.size() || slots.size() != wanted.size())
        throw Error("a step needs a count and a number of wanted logits for each slot");
    std::vector<Part> parts;
    std::size_t rows = 0;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        parts.push_back({slots[i], counts[i], wanted[i]});
        if (wanted[i] > counts[i]) throw Error("more logits are wanted than tokens are given");
        rows += wanted[i];
    }
    if (logits.shape(0) != rows || logits.shape(1) != engine.model().vocabulary)
        throw Error("logits must be [" + std::to_string(rows) + ", " + std::to_string(engine.model().vocabulary) + "]");
    const nb::gil_scoped_release unlocked;
    engine.forward(parts, tokens.data(), tokens.shape(0), logits.data());
}

void encode(Engine& engine, const std::vector<int>& slots, const std::vector<std::size_t>& counts,
            const Dense<const std::int64_t, 1>& tokens) {
    if (slots.size() != counts.size()) throw Error("each slot needs the length of its source");
    std::vector<Text> texts;
    for (std::size_t i = 0; i < slots.size(); ++i) texts.push_back({slots[i], counts[i]});
    const nb::gil_scoped_release unlocked;
    engine.encode(texts, tokens.data(), tokens.shape(0));
}

// (temperature, top_k, top_p, min_p), rows of logits, and a generator's state or random numbers.
using DrawArrays = std::tuple<std::tuple<float, std::size_t, float, float>, std::vector<Given<const float, 1>>,
                              Given<std::uint8_t, 1>, Given<const float, 2>>;

std::vector<std::vector<std::int64_t>> draw(const Engine& engine, const std::vector<DrawArrays>& arrays) {
    const std::size_t vocabulary = engine.model().vocabulary;
    std::vector<Draws> all;
    for (const auto& [settings, rows, state, noise] : arrays) {
        Draws& draws = all.emplace_back();
        const auto& [temperature, top_k, top_p, min_p] = settings;
        require(temperature > 0, "temperature must be above 0");
        draws.sampling = {temperature, top_k, top_p, min_p};
        for (const auto& row : rows)
            draws.rows.push_back(pointer(row, vocabulary, "a row of logits must be [vocab_size]"));
        require(state.has_value() != noise.has_value(), "a draw takes a generator's state or random numbers");
        draws.state = pointer(state, Mersenne::kStateBytes, "a state is one of torch.Generator");
        draws.noise = pointer(noise, rows.size(), vocabulary, "random numbers must be [rows, vocab_size]");
    }
    const nb::gil_scoped_release unlocked;
    return engine.draw(all);
}

std::vector<std::int64_t> likeliest(const Engine& engine, const Dense<const float, 2>& logits) {
    if (logits.shape(1) != engine.model().vocabulary)
        throw Error("logits must be [rows, " + std::to_string(engine.model().vocabulary) + "]");
    const nb::gil_scoped_release unlocked;
    return engine.likeliest(logits.data(), logits.shape(0));
}

template <class T>
nb::class_<T> part(nb::module_& m, const char* name) {
    return nb::class_<T>(m, name).def(nb::init<>());
}

void bind_model(nb::module_& m) {
    nb::class_<Weight>(m, "Weight", "A matrix [n, k] to multiply by.")
        .def_prop_ro("n", &Weight::n)
        .def_prop_ro("k", &Weight::k);
    m.def("packed", &packed, "bytes"_a.noconvert(), "compute"_a, "outlier_threshold"_a);
    m.def("dense", &dense, "matrix"_a.noconvert());
    nb::class_<Table>(m, "Table", "Rows to look up.");
    m.def("table", &table, "matrix"_a.noconvert());
    m.def("packed_table", [](Dense<const std::uint8_t, 1> bytes) { return Table(packed_of(std::move(bytes))); },
          "bytes"_a.noconvert());
    part<Projection>(m, "Projection")
        .def("__init__",
             [](Projection* p, std::vector<std::shared_ptr<Weight>> parts, std::vector<float> bias) {
                 new (p) Projection{{parts.begin(), parts.end()}, std::move(bias)};
             });
    part<Norm>(m, "Norm")
        .def_rw("centered", &Norm::centered)
        .def_rw("eps", &Norm::eps)
        .def_rw("weight", &Norm::weight)
        .def_rw("bias", &Norm::bias);
    part<Rope>(m, "Rope")
        .def_rw("frequencies", &Rope::frequencies)
        .def_rw("long_frequencies", &Rope::long_frequencies)
        .def_rw("factor", &Rope::factor)
        .def_rw("interleaved", &Rope::interleaved)
        .def_rw("beyond", &Rope::beyond)
        .def_rw("base", &Rope::base)
        .def_rw("growth", &Rope::growth);
    part<Attention>(m, "Attention")
        .def_rw("inputs", &Attention::inputs)
        .def_rw("output", &Attention::output)
        .def_rw("heads", &Attention::heads)
        .def_rw("kv_heads", &Attention::kv_heads)
        .def_rw("head_dim", &Attention::head_dim)
        .def_rw("scale", &Attention::scale)
        .def_rw("softcap", &Attention::softcap)
        .def_rw("rope", &Attention::rope)
        .def_rw("bias", &Attention::bias)
        .def_rw("causal", &Attention::causal)
        .def_rw("window", &Attention::window)
        .def_rw("query_norm", &Attention::query_norm)
        .def_rw("key_norm", &Attention::key_norm)
        .def_rw("norm_all_heads", &Attention::norm_all_heads);
    nb::class_<RelativeBias>(m, "RelativeBias")
        .def(nb::init<std::size_t, std::size_t, const std::vector<float>&>(), "heads"_a, "reach"_a, "values"_a);
    part<CrossAttention>(m, "CrossAttention")
        .def_rw("query", &CrossAttention::query)
        .def_rw("memory", &CrossAttention::memory)
        .def_rw("output", &CrossAttention::output)
        .def_rw("heads", &CrossAttention::heads)
        .def_rw("kv_heads", &CrossAttention::kv_heads)
        .def_rw("head_dim", &CrossAttention::head_dim)
        .def_rw("scale", &CrossAttention::scale);
    part<MLP>(m, "MLP")
        .def_rw("gated", &MLP::gated)
        .def_rw("inputs", &MLP::inputs)
        .def_rw("output", &MLP::output)
        .def_rw("activation", &MLP::activation);
    part<Experts>(m, "Experts")
        .def_rw("router", &Experts::router)
        .def_rw("experts", &Experts::experts)
        .def_rw("top_k", &Experts::top_k)
        .def_rw("normalize", &Experts::normalize)
        .def_rw("shared", &Experts::shared)
        .def_rw("shared_gate", &Experts::shared_gate);
    part<Layer>(m, "Layer")
        .def_rw("attention", &Layer::attention)
        .def_rw("cross", &Layer::cross)
        .def_rw("mlp", &Layer::mlp)
        .def_rw("experts", &Layer::experts)
        .def_rw("input_norm", &Layer::input_norm)
        .def_rw("attention_output_norm", &Layer::attention_output_norm)
        .def_rw("cross_norm", &Layer::cross_norm)
        .def_rw("mlp_norm", &Layer::mlp_norm)
        .def_rw("mlp_output_norm", &Layer::mlp_output_norm)
        .def_rw("parallel", &Layer::parallel)
        .def_rw("residual_scale", &Layer::residual_scale);
    part<Encoder>(m, "Encoder").def_rw("layers", &Encoder::layers).def_rw("final_norm", &Encoder::final_norm);
    part<Model>(m, "Model")
        .def_rw("hidden", &Model::hidden)
        .def_rw("vocabulary", &Model::vocabulary)
        .def_rw("context", &Model::context)
        .def_rw("embedding", &Model::embedding)
        .def_rw("positions", &Model::positions)
        .def_rw("position_offset", &Model::position_offset)
        .def_rw("embedding_scale", &Model::embedding_scale)
        .def_rw("embedding_norm", &Model::embedding_norm)
        .def_rw("final_norm", &Model::final_norm)
        .def_rw("ropes", &Model::ropes)
        .def_rw("biases", &Model::biases)
        .def_rw("encoder", &Model::encoder)
        .def_rw("layers", &Model::layers)
        .def_rw("head", &Model::head)
        .def_rw("logit_scale", &Model::logit_scale)
        .def_rw("logit_softcap", &Model::logit_softcap);
}

void bind_engine(nb::module_& m) {
    nb::class_<Engine>(m, "Engine", "A model that is ready to run.")
        .def(nb::init<Model, KVType, std::size_t, int>(), "model"_a, "kv"_a, "max_memory"_a, "threads"_a)
        .def_prop_ro("vocab_size", [](const Engine& e) { return e.model().vocabulary; })
        .def_prop_ro("context", [](const Engine& e) { return e.model().context; })
        .def_prop_ro("weight_bytes", [](const Engine& e) { return e.model().weight_bytes(); })
        .def_prop_ro("bytes_per_token", [](const Engine& e) { return e.model().bytes_per_token(); })
        .def_prop_ro("kv_bytes", &Engine::kv_bytes, Unlocked())
        .def_prop_ro("kv_bytes_per_token", &Engine::kv_bytes_per_token)
        .def_prop_ro("max_memory", &Engine::max_bytes)
        .def_prop_ro("slots", [](const Engine& e) {
            std::vector<int> found;
            {
                const nb::gil_scoped_release unlocked;
                found = e.slots();
            }
            return found;
        })
        .def("create", &Engine::create, Unlocked())
        .def("free", &Engine::free, "slot"_a, Unlocked())
        .def("copy", &Engine::copy, "slot"_a, "length"_a, Unlocked())
        .def("trim", &Engine::trim, "slot"_a, "length"_a, Unlocked())
        .def("length", &Engine::length, "slot"_a, Unlocked())
        .def("encode", &encode, "slots"_a, "counts"_a, "tokens"_a.noconvert())
        .def("source_length", &Engine::source_length, "slot"_a, Unlocked())
        .def("forward", &forward, "slots"_a, "counts"_a, "wanted"_a, "tokens"_a.noconvert(), "logits"_a.noconvert())
        .def("likeliest", &likeliest, "logits"_a.noconvert())
        .def("draw", &draw, "draws"_a)
        .def("cancel", &Engine::cancel);
}

}  // namespace
}  // namespace woqfx::runtime

NB_MODULE(_core, m) {
    using namespace woqfx;
    using namespace woqfx::runtime;
    nb::set_leak_warnings(false);  // interpreters end with models alive
    m.doc() = "The engine of the LLM runtime. See csrc/engine.h.";
    const auto error = nb::exception<Error>(m, "Error", nb::module_::import_("woqfx.errors").attr("WoqfxError").ptr());
    nb::exception<OutOfMemory>(m, "OutOfMemory", error.ptr());
    nb::exception<Cancelled>(m, "Cancelled", error.ptr());
    nb::enum_<KVType>(m, "KVType", "What keys and values are held in.")
        .value("f32", KVType::f32)
        .value("f16", KVType::f16)
        .value("bf16", KVType::bf16)
        .value("int8", KVType::int8);
    nb::enum_<Compute>(m, "Compute", "How a product is computed.")
        .value("fp32", Compute::fp32)
        .value("bf16", Compute::bf16)
        .value("int8", Compute::int8);
    nb::enum_<Activation>(m, "Activation", "The non-linearity of an MLP.")
        .value("silu", Activation::silu)
        .value("gelu", Activation::gelu)
        .value("gelu_tanh", Activation::gelu_tanh)
        .value("quick_gelu", Activation::quick_gelu)
        .value("relu", Activation::relu)
        .value("relu2", Activation::relu2);
    bind_model(m);
    bind_engine(m);
    m.def("available_isa", [] { return std::string(name(best_isa())); });
}
