/* Memory of the device and pinned memory of the host.  Each allocation ends at a page that nobody may touch. */
#include <string.h>
#include <sys/mman.h>

#include "driver.h"

using namespace quamba::driver;

namespace quamba {
namespace driver {
namespace {

constexpr size_t PAGE = 4096, BOUNDARY = 512, UNIT = 2 << 20;

struct Range {
    size_t bytes;
    void* mapped;
    size_t mapped_bytes;
};
std::map<CUdeviceptr, Range> device, pinned, reserved;
std::map<CUdeviceptr, size_t> pieces;                          // mapped by cuMemMap
std::map<CUmemGenericAllocationHandle, size_t> made;           // by cuMemCreate, while a handle or a mapping holds it
size_t used;

size_t room() {
    return size_t(setting("memory", 8000000000)) - used;
}

CUdeviceptr take(std::map<CUdeviceptr, Range>& from, size_t bytes) {
    const size_t whole = (bytes + BOUNDARY - 1) / BOUNDARY * BOUNDARY, pages = (whole + PAGE - 1) / PAGE * PAGE;
    char* mapped = static_cast<char*>(
        mmap(nullptr, pages + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    mprotect(mapped, PAGE, PROT_NONE);
    mprotect(mapped + PAGE + pages, PAGE, PROT_NONE);
    const CUdeviceptr start = CUdeviceptr(mapped + PAGE + pages - whole);
    if (bytes < 64 << 20) memset(reinterpret_cast<void*>(start), 0xcd, whole);  // never zero by itself
    from[start] = {bytes, mapped, pages + 2 * PAGE};
    return start;
}

bool inside(const std::map<CUdeviceptr, Range>& ranges, CUdeviceptr start, size_t bytes) {
    auto next = ranges.upper_bound(start);
    if (next == ranges.begin()) return false;
    --next;
    return start + bytes <= next->first + next->second.bytes;
}

void* host(CUdeviceptr at) {
    return reinterpret_cast<void*>(at);
}

}  // namespace

bool device_range(CUdeviceptr start, size_t bytes) {
    if (inside(device, start, bytes)) return true;
    auto piece = pieces.upper_bound(start);  // several pieces at consecutive addresses are one
    if (piece == pieces.begin()) return false;
    --piece;
    CUdeviceptr end = piece->first + piece->second;
    if (start >= end) return false;
    for (auto next = std::next(piece); next != pieces.end() && next->first == end; ++next) end += next->second;
    return start + bytes <= end;
}

size_t held() {
    return used;
}

void forget() {
    for (auto* ranges : {&device, &pinned}) {
        for (const auto& one : *ranges) munmap(one.second.mapped, one.second.mapped_bytes);
        ranges->clear();
    }
    used = 0;
}

}  // namespace driver
}  // namespace quamba

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    QUAMBA_CALL(CONTEXT);
    *total = size_t(setting("memory", 8000000000));
    *free = room();
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr* at, size_t bytes) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!bytes) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no bytes");
    if (bytes > room() || bytes > size_t(setting("largest", 1l << 62)))
        QUAMBA_FAIL(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes");
    used += bytes;
    *at = take(device, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr at) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!device.count(at)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no such memory");
    finish();  // as the driver does
    used -= device[at].bytes;
    munmap(device[at].mapped, device[at].mapped_bytes);
    device.erase(at);
    return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    *at = host(take(pinned, bytes));
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void* at) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!pinned.count(CUdeviceptr(at))) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no such memory");
    finish();
    munmap(pinned[CUdeviceptr(at)].mapped, pinned[CUdeviceptr(at)].mapped_bytes);
    pinned.erase(CUdeviceptr(at));
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    if (!device_range(at, bytes)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not in the device's memory");
    return post(__func__, stream, [=] { memset(host(at), value, bytes); });
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    if (!device_range(to, bytes)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not in the device's memory");
    if (inside(pinned, CUdeviceptr(from), bytes)) return post(__func__, stream, [=] { memcpy(host(to), from, bytes); });
    if (capturing()) {
        spoil();
        QUAMBA_FAIL(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy of pageable memory during a capture");
    }
    // Pageable memory has been read when the call returns.
    const std::string now(static_cast<const char*>(from), bytes);
    return post(__func__, stream, [=] { memcpy(host(to), now.data(), bytes); });
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    if (!device_range(to, bytes) || !device_range(from, bytes))
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not in the device's memory");
    return post(__func__, stream, [=] { memmove(host(to), host(from), bytes); });
}
CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!device_range(from, bytes)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not in the device's memory");
    return post(__func__, nullptr, [=] { memcpy(to, host(from), bytes); });
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!device_range(to, bytes)) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not in the device's memory");
    return post(__func__, nullptr, [=] { memcpy(host(to), from, bytes); });
}

CUresult cuMemGetAllocationGranularity(size_t* unit, const CUmemAllocationProp* kind,
                                       CUmemAllocationGranularity_flags) {
    QUAMBA_CALL(CONTEXT);
    if (kind->type != CU_MEM_ALLOCATION_TYPE_PINNED || kind->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        kind->location.id || kind->allocFlags.compressionType || kind->allocFlags.usage || kind->requestedHandleTypes)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not plain memory of device 0");
    *unit = UNIT;
    return CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr* at, size_t bytes, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!bytes || bytes % UNIT || alignment || wanted || flags) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no whole units");
    void* mapped = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *at = CUdeviceptr(mapped);
    reserved[*at] = {bytes, mapped, bytes};
    return CUDA_SUCCESS;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* kind,
                     unsigned long long flags) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    static CUmemGenericAllocationHandle last;
    if (!bytes || bytes % UNIT || flags || kind->location.id) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no whole units");
    if (bytes > room() || bytes > size_t(setting("largest", 1l << 62)))
        QUAMBA_FAIL(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes");
    used += bytes;
    made[*handle = ++last] = bytes;
    return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!inside(reserved, at, bytes) || offset || flags || !made.count(handle) || made[handle] != bytes)
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not reserved, or not made so large");
    pieces[at] = bytes;
    return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    QUAMBA_CALL(CONTEXT);
    bool mapped = false;
    for (const auto& piece : pieces) mapped |= piece.second == made[handle];
    if (!mapped) used -= made[handle];
    made.erase(handle);
    return CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc* access, size_t count) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (count != 1 || access->location.type != CU_MEM_LOCATION_TYPE_DEVICE || access->location.id ||
        access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE || !device_range(at, bytes))
        QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not mapped, or not for device 0 to read and write");
    mprotect(host(at), bytes, PROT_READ | PROT_WRITE);
    return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr at, size_t bytes) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!pieces.count(at) || pieces[at] != bytes) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not mapped so");
    if (!idle()) QUAMBA_FAIL(CUDA_ERROR_ILLEGAL_ADDRESS, "work that may use it waits: this call does not");
    mprotect(host(at), bytes, PROT_NONE);
    used -= bytes;
    pieces.erase(at);
    return CUDA_SUCCESS;
}
CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!reserved.count(at) || reserved[at].bytes != bytes) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "not reserved so");
    munmap(host(at), bytes);
    reserved.erase(at);
    return CUDA_SUCCESS;
}
