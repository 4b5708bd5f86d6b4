#include "openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <cstring>
#include <string>

namespace woqfx {
namespace {

std::atomic<bool> forked{false};

// The path of a runtime that is loaded; torch's own rather than another's.
std::string find_runtime() {
    std::string found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* result) {
            const char* slash = std::strrchr(info->dlpi_name, '/');
            const char* file = slash ? slash + 1 : info->dlpi_name;
            auto& path = *static_cast<std::string*>(result);
            for (const char* name : {"libgomp", "libiomp5", "libomp"})
                if (std::strncmp(file, name, std::strlen(name)) == 0 &&
                    (path.empty() || std::strstr(info->dlpi_name, "/torch")))
                    path = info->dlpi_name;
            return 0;
        },
        &found);
    return found;
}

Team find_team() {
    const std::string path = find_runtime();
    void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return nullptr;
    pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    return reinterpret_cast<Team>(dlsym(library, "GOMP_parallel"));
}

}  // namespace

Team openmp_team() {
    static const Team team = find_team();
    return forked.load(std::memory_order_relaxed) ? nullptr : team;
}

}  // namespace woqfx
#else
namespace woqfx {

Team openmp_team() { return nullptr; }

}  // namespace woqfx
#endif
