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

// What it exports under this name; null where there is no runtime.
void* find(const char* name) {
    const std::string path = find_runtime();
    void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    return library ? dlsym(library, name) : nullptr;
}

Team find_team() {
    const auto team = reinterpret_cast<Team>(find("GOMP_parallel"));
    if (team) pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    return team;
}

}  // namespace

Team openmp_team() {
    static const Team team = find_team();
    return forked.load(std::memory_order_relaxed) ? nullptr : team;
}

int openmp_processors() {
    const auto count = reinterpret_cast<int (*)()>(find("omp_get_num_procs"));
    return count ? count() : 0;
}

}  // namespace woqfx
#else
namespace woqfx {

Team openmp_team() { return nullptr; }
int openmp_processors() { return 0; }

}  // namespace woqfx
#endif
