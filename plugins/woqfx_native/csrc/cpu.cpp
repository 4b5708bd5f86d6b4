// Which instruction sets this CPU has and its operating system has enabled.
#include <cstdlib>

#include "kernel.h"
#include "setting.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace woqfx {
namespace {

constexpr Isa kAll[] = {Isa::portable,    Isa::avx2,        Isa::avx_vnni, Isa::avx512,
                        Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

struct Features {
    bool avx2 = false, avx_vnni = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false, amx = false;
};

#if defined(WOQFX_X86)
struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
    return r;
}

bool bit(unsigned word, int index) { return word >> index & 1; }

// The register state that the operating system saves. Without it an instruction that the CPU has still faults.
unsigned long long saved_state() {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<unsigned long long>(high) << 32 | low;
}

// Linux gives a process the 8 KiB of tile registers when it asks.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

Features detect() {
    Features f;
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
    if (!bit(one.c, 27)) return f;  // OSXSAVE
    const unsigned long long saved = saved_state();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    const bool fma = bit(one.c, 12), f16c = bit(one.c, 29);
    f.avx2 = ymm && bit(seven.b, 5) && fma && f16c;
    f.avx_vnni = f.avx2 && bit(more.a, 4);
    f.avx512 = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    f.avx512_vnni = f.avx512 && bit(seven.c, 11);
    f.avx512_bf16 = f.avx512_vnni && bit(more.a, 5);
    f.amx = f.avx512_bf16 && tiles && bit(seven.d, 22) && bit(seven.d, 24) && bit(seven.d, 25) && may_use_tiles();
#if defined(WOQFX_EMULATED)
    f.avx_vnni = f.avx2, f.amx = f.avx512_bf16;  // see sanitize/emulated.h
#endif
    return f;
}
#else
Features detect() { return {}; }
#endif

}  // namespace

const char* name(Isa isa) {
    switch (isa) {
        case Isa::portable: return "portable";
        case Isa::avx2: return "avx2";
        case Isa::avx_vnni: return "avx_vnni";
        case Isa::avx512: return "avx512";
        case Isa::avx512_vnni: return "avx512_vnni";
        case Isa::avx512_bf16: return "avx512_bf16";
        case Isa::amx: return "amx";
    }
    throw Error("no instruction set has number " + std::to_string(static_cast<unsigned>(isa)));
}

bool supported(Isa isa) {
    static const Features features = detect();
    switch (isa) {
        case Isa::portable: return true;
        case Isa::avx2: return features.avx2;
        case Isa::avx_vnni: return features.avx_vnni;
        case Isa::avx512: return features.avx512;
        case Isa::avx512_vnni: return features.avx512_vnni;
        case Isa::avx512_bf16: return features.avx512_bf16;
        case Isa::amx: return features.amx;
    }
    return false;
}

Isa parse_isa(const std::string& text) {
    std::string known;
    for (const Isa isa : kAll) {
        if (text == name(isa)) return isa;
        known += std::string(known.empty() ? "" : ", ") + name(isa);
    }
    throw SettingError("'" + text + "' is no instruction set: WOQFX_ISA may be " + known);
}

Isa best_isa() {
    static const Isa best = [] {
        if (const char* text = std::getenv("WOQFX_ISA"); text && *text) {
            const Isa asked = parse_isa(text);
            if (!supported(asked))
                throw SettingError(std::string("WOQFX_ISA asks for ") + text + ", which this CPU does not have: unset it");
            return asked;
        }
        Isa found = Isa::portable;
        for (const Isa isa : kAll)
            if (supported(isa)) found = isa;
        return found;
    }();
    return best;
}

}  // namespace woqfx
