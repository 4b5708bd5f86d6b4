// Runs the engine on random models, for sanitizers: exercise_engine [CASES] [SEED].
//
// The numbers are judged by Python's tests. What this adds is that each buffer ends where its data end, and that a
// sequence gives the same bits alone, among others, in chunks, and with any number of threads.
#include <cmath>
#include <cstring>
#include <string>

#include "../draw.h"
#include "../engine.h"
#include "../mersenne.h"
#include "../../../woqfx_native/csrc/sanitize/cases.h"

namespace woqfx::runtime {
namespace {

std::vector<float> floats(Random& random, std::size_t count, float middle = 0) {
    std::vector<float> made(count);
    for (float& x : made) x = middle + random.uniform() * 0.3f;
    return made;
}

std::shared_ptr<const Weight> random_weight(Random& random, std::size_t n, std::size_t k) {
    if (random.one_in(3)) {
        const auto rows = floats(random, n * k);
        return Weight::dense({rows.data(), Float::f32, n, k}, k);
    }
    const std::size_t group = std::min<std::size_t>(k, random.pick<std::size_t>({8, 16, 32, k})), groups = divide_up(k, group);
    const int bits = random.pick({3, 4, 8});
    std::vector<std::uint8_t> codes(n * packed_width(k, bits));
    for (auto& byte : codes) byte = static_cast<std::uint8_t>(random.next());
    std::vector<float> scales(n * groups);
    for (auto& scale : scales) scale = (0.5f + random.uniform() * 0.2f) / static_cast<float>(2 << bits);
    WeightView view;
    view.n = n, view.k = k, view.group = group, view.bits = bits, view.codes = codes.data();
    view.scales = scales.data(), view.scale_type = Float::f32;
    const Compute compute = random.pick({Compute::fp32, Compute::bf16, Compute::int8});
    return Weight::packed(pack(view, 1), compute, compute == Compute::int8 && random.one_in(2) ? 0.8f : 0.0f);
}

Projection projection(Random& random, std::size_t n, std::size_t k) {
    Projection p;
    const std::size_t first = n > 1 && random.one_in(3) ? 1 + random.below(n - 1) : n;
    p.parts.push_back(random_weight(random, first, k));
    if (first < n) p.parts.push_back(random_weight(random, n - first, k));
    if (random.one_in(2)) p.bias = floats(random, n);
    return p;
}

std::optional<Norm> norm(Random& random, std::size_t n, bool may_be_absent = true) {
    if (may_be_absent && random.one_in(3)) return std::nullopt;
    Norm made;
    made.centered = random.one_in(2), made.eps = 1e-5f, made.weight = floats(random, n, 1.0f);
    if (made.centered) made.bias = floats(random, n);
    return made;
}

MLP mlp(Random& random, std::size_t hidden, std::size_t inner, bool gated) {
    MLP made;
    made.gated = gated;
    made.inputs = projection(random, gated ? 2 * inner : inner, hidden);
    made.output = projection(random, hidden, inner);
    made.activation = random.pick({Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu,
                                   Activation::relu, Activation::relu2});
    return made;
}

CrossAttention cross(Random& random, const Model& model) {
    CrossAttention a;
    a.kv_heads = 1 + random.below(3), a.heads = a.kv_heads * (1 + random.below(3)), a.head_dim = 6 + random.below(20);
    a.scale = 0.3f;
    a.query = projection(random, a.heads * a.head_dim, model.hidden);
    a.memory = projection(random, 2 * a.kv_heads * a.head_dim, model.hidden);
    a.output = projection(random, model.hidden, a.heads * a.head_dim);
    return a;
}

Layer layer(Random& random, Model& model, bool of_encoder) {
    Layer made;
    Attention& a = made.attention;
    a.kv_heads = 1 + random.below(3), a.heads = a.kv_heads * (1 + random.below(3)), a.head_dim = 6 + random.below(20);
    a.scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    a.inputs = projection(random, (a.heads + 2 * a.kv_heads) * a.head_dim, model.hidden);
    a.output = projection(random, model.hidden, a.heads * a.head_dim);
    a.causal = !of_encoder;
    a.softcap = random.one_in(3) ? 20.0f : 0.0f, a.window = a.causal && random.one_in(3) ? 1 + random.below(90) : 0;
    if (random.one_in(3)) {
        const std::size_t reach = random.below(200);
        a.bias = static_cast<int>(model.biases.size());
        model.biases.emplace_back(a.heads, reach, floats(random, a.heads * (2 * reach + 1)));
    }
    a.rope = static_cast<int>(random.below(model.ropes.size() + 1)) - 1;
    a.norm_all_heads = random.one_in(3);
    a.query_norm = norm(random, a.norm_all_heads ? a.heads * a.head_dim : a.head_dim);
    a.key_norm = norm(random, a.norm_all_heads ? a.kv_heads * a.head_dim : a.head_dim);
    const std::size_t inner = 5 + random.below(60);
    if (random.one_in(3)) {
        Experts mixture;
        const std::size_t count = 2 + random.below(5);
        const bool gated = random.one_in(2);
        mixture.router = projection(random, count, model.hidden);
        for (std::size_t i = 0; i < count; ++i) mixture.experts.push_back(mlp(random, model.hidden, inner, gated));
        mixture.top_k = 1 + random.below(count), mixture.normalize = random.one_in(2);
        if (random.one_in(2)) mixture.shared = mlp(random, model.hidden, inner + 3, true);
        if (mixture.shared && random.one_in(2)) mixture.shared_gate = projection(random, 1, model.hidden);
        made.experts = std::move(mixture);
    } else {
        made.mlp = mlp(random, model.hidden, inner, random.one_in(2));
    }
    made.input_norm = norm(random, model.hidden, false);
    for (auto* other : {&made.attention_output_norm, &made.mlp_norm, &made.mlp_output_norm})
        *other = norm(random, model.hidden);
    if (model.encoder && !of_encoder && !random.one_in(4))
        made.cross = cross(random, model), made.cross_norm = norm(random, model.hidden);
    made.parallel = !made.cross && random.one_in(4), made.residual_scale = random.one_in(3) ? 0.5f : 1.0f;
    return made;
}

Model random_model(Random& random) {
    Model m;
    m.hidden = 5 + random.below(70), m.vocabulary = 10 + random.below(100), m.context = 400;
    auto held = std::make_shared<std::vector<float>>(floats(random, m.vocabulary * m.hidden));
    m.embedding.emplace(ConstRows{held->data(), Float::f32, m.vocabulary, m.hidden}, m.hidden, held);
    if (random.one_in(3)) {
        auto learned = std::make_shared<std::vector<float>>(floats(random, (m.context + 2) * m.hidden));
        m.positions.emplace(ConstRows{learned->data(), Float::f32, m.context + 2, m.hidden}, m.hidden, learned);
        m.position_offset = 2;
    }
    Rope rope;
    for (std::size_t i = 0; i < 1 + random.below(3); ++i) rope.frequencies.push_back(1.0f / static_cast<float>(i + 1));
    rope.interleaved = random.one_in(2);
    m.ropes.push_back(rope);
    if (random.one_in(2)) {
        Encoder encoder;
        for (std::size_t i = 0; i < 1 + random.below(3); ++i) encoder.layers.push_back(layer(random, m, true));
        encoder.final_norm = norm(random, m.hidden);
        m.encoder = std::move(encoder);
    }
    for (std::size_t i = 0; i < 1 + random.below(3); ++i) m.layers.push_back(layer(random, m, false));
    m.embedding_norm = norm(random, m.hidden), m.final_norm = norm(random, m.hidden, false);
    m.head = projection(random, m.vocabulary, m.hidden);
    m.logit_softcap = random.one_in(3) ? 30.0f : 0.0f;
    return m;
}

using Tokens = std::vector<std::int64_t>;

Tokens random_tokens(Random& random, std::size_t count, std::size_t vocabulary) {
    Tokens tokens(count);
    for (auto& token : tokens) token = static_cast<std::int64_t>(random.below(vocabulary));
    return tokens;
}

// The source of a text, if the model has an encoder: the text itself, and its first half once more.
Tokens source_of(const Engine& engine, const Tokens& text) {
    if (!engine.model().encoder) return {};
    Tokens source = text;
    source.insert(source.end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(text.size() / 2));
    source.resize(std::min(source.size(), engine.model().context));
    return source;
}

// Sources for new slots, in one call.
void encode(Engine& engine, const std::vector<int>& slots, const std::vector<Tokens>& texts) {
    if (!engine.model().encoder) return;
    std::vector<Text> parts;
    Tokens tokens;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        const Tokens source = source_of(engine, texts[i]);
        parts.push_back({slots[i], source.size()});
        tokens.insert(tokens.end(), source.begin(), source.end());
    }
    engine.encode(parts, tokens.data(), tokens.size());
    for (std::size_t i = 0; i < slots.size(); ++i)
        expect(engine.source_length(slots[i]) == parts[i].count, "a slot knows its source");
}

// All logits of a sequence, in one call.
std::vector<float> alone(Engine& engine, const Tokens& tokens) {
    const int slot = engine.create();
    encode(engine, {slot}, {tokens});
    std::vector<float> logits(tokens.size() * engine.model().vocabulary);
    engine.forward({{slot, tokens.size(), tokens.size()}}, tokens.data(), tokens.size(), logits.data());
    engine.free(slot);
    return logits;
}

// Several sequences, each cut at random, together.
void check_together(Random& random, Engine& engine, const std::vector<Tokens>& texts,
                    const std::vector<std::vector<float>>& expected) {
    const std::size_t vocabulary = engine.model().vocabulary;
    std::vector<int> slots;
    for (std::size_t i = 0; i < texts.size(); ++i) slots.push_back(engine.create());
    encode(engine, slots, texts);
    for (bool more = true; more;) {
        more = false;
        std::vector<Part> parts;
        std::vector<std::size_t> which;
        Tokens tokens;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const std::size_t held = engine.length(slots[i]), left = texts[i].size() - held;
            if (left == 0 || random.one_in(4)) {
                more = more || left > 0;
                continue;
            }
            const std::size_t count = std::min(left, 1 + random.below(random.one_in(2) ? 3 : 300));
            parts.push_back({slots[i], count, count});
            which.push_back(i);
            tokens.insert(tokens.end(), texts[i].begin() + static_cast<std::ptrdiff_t>(held),
                          texts[i].begin() + static_cast<std::ptrdiff_t>(held + count));
            more = more || count < left;
        }
        if (parts.empty()) continue;
        std::vector<float> logits(tokens.size() * vocabulary);
        engine.forward(parts, tokens.data(), tokens.size(), logits.data());
        const float* got = logits.data();
        for (std::size_t i = 0; i < parts.size(); ++i) {
            const std::size_t end = engine.length(parts[i].slot), first = end - parts[i].count;
            expect(std::memcmp(got, expected[which[i]].data() + first * vocabulary,
                               parts[i].count * vocabulary * sizeof(float)) == 0,
                   "a sequence gives the same alone, among others and in chunks");
            got += parts[i].count * vocabulary;
        }
        // Copies go their own way, and a sequence that was cut goes on as if it had never been longer.
        if (random.one_in(3)) {
            const int copied = engine.copy(slots[0], engine.length(slots[0]));
            if (engine.length(copied) < engine.model().context) {
                std::vector<float> one(vocabulary);
                const Tokens other = random_tokens(random, 1, vocabulary);
                engine.forward({{copied, 1, 1}}, other.data(), 1, one.data());
            }
            engine.free(copied);
            engine.trim(slots[0], random.below(engine.length(slots[0]) + 1));
            more = true;
        }
    }
    for (const int slot : slots) engine.free(slot);
    expect(engine.kv_bytes() == 0, "all memory comes back");
}

void check_refused_sources(Engine& engine) {
    const int slot = engine.create();
    const auto refuses = [&](const std::vector<Text>& texts, const Tokens& tokens) {
        expect(refused([&] { engine.encode(texts, tokens.data(), tokens.size()); }), "a bad source");
        expect(engine.source_length(slot) == 0, "a source that fails is none");
    };
    refuses({{slot, 1}}, {static_cast<std::int64_t>(engine.model().vocabulary)});
    refuses({{slot, 2}}, {1});
    refuses({{slot, 1}}, {1, 1});
    refuses({{slot, SIZE_MAX}}, {1});
    refuses({{slot, 0}}, {});
    refuses({{slot, 1}, {slot, 1}}, {1, 1});
    refuses({{slot + 1, 1}}, {1});
    refuses({{slot, engine.model().context + 1}}, Tokens(engine.model().context + 1, 1));
    if (engine.model().encoder) {
        const Tokens one = {1};
        std::vector<float> logits(engine.model().vocabulary);
        expect(refused([&] { engine.forward({{slot, 1, 1}}, one.data(), 1, logits.data()); }), "a slot without a source");
        engine.encode({{slot, 1}}, one.data(), 1);
        expect(refused([&] { engine.encode({{slot, 1}}, one.data(), 1); }), "a second source");
    }
    engine.free(slot);
}

void check_refusals(Engine& engine) {
    const int slot = engine.create();
    encode(engine, {slot}, {{1, 2, 3}});
    const auto vocabulary = static_cast<std::int64_t>(engine.model().vocabulary);
    std::vector<float> logits(engine.model().vocabulary * 2);
    const auto refuses = [&](const std::vector<Part>& parts, const Tokens& tokens) {
        expect(refused([&] { engine.forward(parts, tokens.data(), tokens.size(), logits.data()); }), "a bad step");
        expect(engine.length(slot) == 0, "a step that fails leaves its sequences alone");
    };
    refuses({{slot, 1, 1}}, {vocabulary});
    refuses({{slot, 1, 1}}, {-1});
    refuses({{slot + 1, 1, 1}}, {1});
    refuses({{slot, 1, 1}, {slot, 1, 1}}, {1, 1});
    refuses({{slot, 2, 1}}, {1});
    refuses({{slot, SIZE_MAX, 1}}, {1});
    refuses({{slot, 1, 2}}, {1});
    refuses({{slot, 1, 1}}, {1, 1});
    refuses({{slot, engine.model().context + 1, 0}}, Tokens(engine.model().context + 1, 1));
    expect(refused([&] { engine.trim(slot, 1); }), "a cut beyond the end");
    expect(refused([&] { engine.copy(slot, 1); }), "a copy beyond the end");
    engine.free(slot);
    expect(refused([&] { engine.free(slot); }), "a slot that is gone");
}

// A state of PyTorch's generator, at a random place.
std::vector<std::uint8_t> random_state(Random& random) {
    constexpr std::size_t kWords = 624;
    std::vector<std::uint8_t> state(Mersenne::kStateBytes);
    const std::size_t next = 1 + random.below(kWords);
    const auto left = static_cast<std::int32_t>(kWords + 1 - next);
    const auto at = static_cast<std::uint64_t>(next);
    std::memcpy(state.data() + 8, &left, sizeof left);
    std::memcpy(state.data() + 16, &at, sizeof at);
    for (std::size_t i = 0; i < kWords; ++i) {
        const auto word = static_cast<std::uint64_t>(static_cast<std::uint32_t>(random.next()));
        std::memcpy(state.data() + 24 + 8 * i, &word, sizeof word);
    }
    return state;
}

// Draws from random logits, odd ones among them: the same with one thread and with three.
void check_draws(Random& random) {
    const std::size_t vocabulary = 1 + random.below(random.one_in(2) ? 5000 : 40), rows = 1 + random.below(4);
    auto logits = floats(random, vocabulary * rows), noise = floats(random, vocabulary * rows, 1.0f);
    for (float& x : logits) x *= random.pick({1.0f, 30.0f});
    if (random.one_in(3)) logits[random.below(logits.size())] = random.pick({-INFINITY, INFINITY, NAN});
    Draws draws;
    draws.sampling = {random.pick({0.1f, 1.0f, 3.0f}), random.pick<std::size_t>({0, 1, 50, vocabulary, 100000}),
                      random.pick({0.0f, 0.5f, 0.9f, 1.0f}), random.pick({0.0f, 0.2f, 1.0f})};
    for (std::size_t row = 0; row < rows; ++row)
        draws.rows.push_back(random.one_in(5) ? nullptr : logits.data() + row * vocabulary);
    const auto state = random_state(random);
    std::vector<std::vector<std::int64_t>> found;
    std::vector<std::vector<std::uint8_t>> states;
    const bool by_state = random.one_in(2);
    for (const int threads : {1, 3}) {
        states.push_back(state);
        draws.state = by_state ? states.back().data() : nullptr;
        draws.noise = by_state ? nullptr : noise.data();
        found.push_back(draw({draws}, vocabulary, threads).front());
    }
    expect(found[0] == found[1] && states[0] == states[1], "a draw is the same with any number of threads");
    for (const std::int64_t token : found[0])
        expect(token >= kUndecided && token < static_cast<std::int64_t>(vocabulary), "a token of the vocabulary");
}

int run(std::size_t cases, std::uint64_t seed) {
    for (std::size_t i = 0; i < cases; ++i) {
        Random random(seed + i);
        const Model model = random_model(random);
        const KVType kv = random.pick({KVType::f32, KVType::f16, KVType::bf16, KVType::int8});
        Engine one(model, kv, SIZE_MAX, 1), two(model, kv, SIZE_MAX, 2), tight(model, kv, 0, 1);
        std::vector<Tokens> texts;
        std::vector<std::vector<float>> expected;
        for (std::size_t j = 0; j < 1 + random.below(4); ++j) {
            texts.push_back(random_tokens(random, 1 + random.below(random.one_in(3) ? 380 : 90), model.vocabulary));
            expected.push_back(alone(one, texts.back()));
        }
        check_together(random, two, texts, expected);
        check_refusals(two);
        check_refused_sources(two);
        for (int j = 0; j < 20; ++j) check_draws(random);
        expect(refused([&] { alone(tight, texts[0]); }), "more memory than is allowed");
    }
    std::printf("%zu models from seed %llu on, %s: no fault\n", cases, static_cast<unsigned long long>(seed),
                name(best_isa()));
    return 0;
}

}  // namespace
}  // namespace woqfx::runtime

int main(int count, char** arguments) {
    return woqfx::runtime::run(count > 1 ? std::stoul(arguments[1]) : 30, count > 2 ? std::stoull(arguments[2]) : 0);
}
