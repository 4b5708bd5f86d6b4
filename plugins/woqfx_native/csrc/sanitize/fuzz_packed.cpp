// Bytes that claim to be a packed weight: whatever they hold, they are refused with an Error, or can be used.
//
// As a libFuzzer target:  clang++ -fsanitize=fuzzer,address,undefined -DWOQFX_LIBFUZZER ...
// Else a program of its own, deterministic: fuzz_packed [ROUNDS] [SEED]. It takes valid weights and changes what their
// headers say, and, so that such a change is not stopped at the first check, often makes the size fit it again.
#include <cstring>
#include <string>

#include "../layout.h"
#include "cases.h"

namespace woqfx {
namespace {

constexpr std::size_t kMost = 1 << 20;  // of memory that a claim may cost us

// Uses a weight in every way; true if it was accepted.
bool use(const std::uint8_t* data, std::size_t size) {
    try {
        const PackedWeight packed = PackedWeight::from_bytes(data, size);
        const std::size_t n = packed.n(), k = packed.k(), groups = (k + packed.group() - 1) / packed.group();
        if (n * (k + groups) > kMost) return true;
        std::vector<std::uint8_t> codes(n * packed_width(k, packed.bits())), zeros(packed.has_zeros() ? n * groups : 0);
        std::vector<float> scales(n * groups), offsets(packed.has_offsets() ? n * groups : 0), x(3 * k, 0.5f), y(3 * n), rows(2 * k);
        std::vector<std::int32_t> order(packed.has_order() ? k : 0);
        unpack(packed, {codes.data(), scales.data(), zeros.empty() ? nullptr : zeros.data(),
                        order.empty() ? nullptr : order.data(),
                        offsets.empty() ? nullptr : offsets.data()}, 1);
        for (const Isa isa : isas_here()) {
            for (const Compute compute : {Compute::fp32, Compute::bf16, Compute::int8}) {
                LinearOptions options;
                options.compute = compute, options.threads = 1, options.isa = &isa;
                options.outlier_threshold = compute == Compute::int8 ? 0.4f : 0.0f;
                linear(packed, {x.data(), Float::f32, 1, k}, {y.data(), Float::f32, 1, n}, options);
                linear(packed, {x.data(), Float::f32, 3, k}, {y.data(), Float::f32, 3, n}, options);
            }
        }
        const std::int64_t index[] = {0, static_cast<std::int64_t>(n) - 1};
        gather(packed, index, 2, {rows.data(), Float::f32, 2, k}, 1);
    } catch (const Error&) {
        return false;
    }
    return true;
}

#if !defined(WOQFX_LIBFUZZER)

void set(std::vector<std::uint8_t>& bytes, std::size_t at, std::uint64_t value, std::size_t width) {
    if (at + width <= bytes.size()) std::memcpy(&bytes[at], &value, width);
}

std::uint64_t interesting(Random& random) {
    const std::uint64_t edge = std::uint64_t{1} << random.below(64);
    switch (random.below(5)) {
        case 0: return random.below(20);
        case 1: return random.below(400);
        case 2: return edge - 1;
        case 3: return edge + random.below(3);
        default: return random.next();
    }
}

// Makes a buffer as large as its header says that it is, if that can be said.
void make_fit(std::vector<std::uint8_t>& bytes, Random& random) {
    if (bytes.size() < sizeof(Header)) return;
    Header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    try {
        const std::size_t size = Layout::of(header).size;
        if (size > kMost) return;
        const std::size_t before = bytes.size();
        bytes.resize(size);
        for (std::size_t i = before; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(random.next());
        header.size = size;
        std::memcpy(bytes.data(), &header, sizeof header);
    } catch (const Error&) {
        return;  // refused already; a claim to try all the same
    }
}

void mutate(std::vector<std::uint8_t>& bytes, Random& random) {
    struct Field {
        std::size_t at, width;
    };
    static constexpr Field fields[] = {
        {offsetof(Header, version), 4},    {offsetof(Header, bits), 4},      {offsetof(Header, n), 8},
        {offsetof(Header, k), 8},          {offsetof(Header, group), 8},     {offsetof(Header, size), 8},
        {offsetof(Header, scale_type), 4}, {offsetof(Header, origin), 4}, {offsetof(Header, has_order), 4},
        {offsetof(Header, level_count), 4},
    };
    switch (random.below(6)) {
        case 0:
        case 1:
        case 2: {
            const Field field = random.pick(fields);
            set(bytes, field.at, interesting(random), field.width);
            break;
        }
        case 3: bytes[random.below(bytes.size())] ^= static_cast<std::uint8_t>(1 << random.below(8)); break;
        case 4: set(bytes, random.below(bytes.size()), random.next(), 8); break;
        default: bytes.resize(1 + random.below(2 * bytes.size())); break;
    }
}

int run(std::size_t rounds, std::uint64_t seed) {
    std::size_t accepted = 0;
    for (std::size_t i = 0; i < rounds; ++i) {
        Random random(seed + i);
        const Plain plain(random, 40, 90);
        const PackedWeight packed = pack(plain.view, 1);
        std::vector<std::uint8_t> bytes(packed.data(), packed.data() + packed.size());
        for (std::size_t changes = 1 + random.below(4); changes > 0; --changes) mutate(bytes, random);
        if (!random.one_in(4)) make_fit(bytes, random);
        accepted += use(bytes.data(), bytes.size());
    }
    std::printf("%zu forgeries from seed %llu: %zu refused, %zu used, no fault\n", rounds,
                static_cast<unsigned long long>(seed), rounds - accepted, accepted);
    return 0;
}

#endif

}  // namespace
}  // namespace woqfx

#if defined(WOQFX_LIBFUZZER)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    woqfx::use(data, size);
    return 0;
}
#else
int main(int count, char** arguments) {
    return woqfx::run(count > 1 ? std::stoul(arguments[1]) : 5000, count > 2 ? std::stoull(arguments[2]) : 0);
}
#endif
