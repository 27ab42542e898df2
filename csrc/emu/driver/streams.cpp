/* Streams, events and graphs: work waits in a stream until somebody waits for it. */
#include <chrono>

#include "driver.h"

using namespace quamba::driver;

struct CUgraph_st {
    std::vector<Work> work;
};
struct CUgraphExec_st {
    std::vector<Work> work;
};
struct CUstream_st {
    std::deque<Work> waiting;
    bool waits_for_legacy = true;
    CUgraph graph = nullptr;  // while it is captured
    bool spoilt = false;
    std::thread::id capturer;
};
struct CUevent_st {
    CUstream stream = nullptr;
    bool recorded = false, reached = false;
    double milliseconds = 0;
};

namespace quamba {
namespace driver {
namespace {

std::vector<CUstream> streams;
std::vector<CUgraphExec> runnables;

bool known(CUstream stream) {
    for (CUstream one : streams)
        if (one == stream) return true;
    return false;
}

void run_one(CUstream stream) {
    const Work work = stream->waiting.front();
    stream->waiting.pop_front();
    work();
}

void run_all(CUstream stream) {
    while (!stream->waiting.empty()) run_one(stream);
}

double now() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(time).count();
}

}  // namespace

CUresult post(const char* function, CUstream stream, Work work) {
    if (!stream) {  // the legacy stream waits for those that were not made non-blocking
        if (capturing()) {
            spoil();
            return failed(function, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream during a capture");
        }
        for (CUstream one : streams)
            if (one->waits_for_legacy) run_all(one);
        work();
        return CUDA_SUCCESS;
    }
    if (!known(stream)) return failed(function, CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream->graph) {
        stream->graph->work.push_back(work);
        return CUDA_SUCCESS;
    }
    stream->waiting.push_back(work);
    if (setting("early", 0)) run_all(stream);
    return CUDA_SUCCESS;
}

bool idle() {
    for (CUstream one : streams)
        if (!one->waiting.empty()) return false;
    return true;
}

void forget_graphs() {
    runnables.clear();
}

void finish() {
    for (CUstream one : streams) run_all(one);
}

bool capturing() {
    for (CUstream one : streams)
        if (one->graph && one->capturer == std::this_thread::get_id()) return true;
    return false;
}

void spoil() {
    for (CUstream one : streams)
        if (one->graph && one->capturer == std::this_thread::get_id()) one->spoilt = true;
}

}  // namespace driver
}  // namespace quamba

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    *stream = new CUstream_st;
    (*stream)->waits_for_legacy = !(flags & CU_STREAM_NON_BLOCKING);
    streams.push_back(*stream);
    return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    if (!known(stream)) QUAMBA_FAIL(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    run_all(stream);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + long(i));
    delete stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (stream && !known(stream)) QUAMBA_FAIL(CUDA_ERROR_INVALID_HANDLE, "no such stream");
    if (stream) run_all(stream);
    return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    return stream && !stream->waiting.empty() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    finish();
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    QUAMBA_CALL(CONTEXT);
    *event = new CUevent_st;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) {
    QUAMBA_CALL(CONTEXT);
    finish();  // what waits may still mean it
    delete event;
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);  // allowed while captured, but then it has no time
    event->recorded = true;
    event->reached = false;
    event->stream = stream;
    return post(__func__, stream, [event] {
        event->milliseconds = now();
        event->reached = true;
    });
}
CUresult cuEventSynchronize(CUevent event) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    while (event->recorded && !event->reached && !event->stream->waiting.empty()) run_one(event->stream);
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent event) {
    QUAMBA_CALL(CONTEXT);
    return event->recorded && !event->reached ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    QUAMBA_CALL(CONTEXT);
    if (!start->recorded || !end->recorded) QUAMBA_FAIL(CUDA_ERROR_INVALID_HANDLE, "an event was never recorded");
    if (!start->reached || !end->reached) return CUDA_ERROR_NOT_READY;
    *milliseconds = float(end->milliseconds - start->milliseconds);
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    QUAMBA_CALL(CONTEXT);
    if (!stream) QUAMBA_FAIL(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
    if (!known(stream) || stream->graph || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        QUAMBA_FAIL(CUDA_ERROR_ILLEGAL_STATE, "no such stream or mode, or it is captured already");
    stream->graph = new CUgraph_st;
    stream->spoilt = false;
    stream->capturer = std::this_thread::get_id();
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    *graph = nullptr;
    const bool planned = known(stream) && stream->graph;
    struct Ended {  // whatever this call returns
        CUstream stream;
        ~Ended() {
            if (stream) stream->graph = nullptr;
        }
    } ended = {planned ? stream : nullptr};
    QUAMBA_CALL(CONTEXT);
    if (!known(stream) || !stream->graph) QUAMBA_FAIL(CUDA_ERROR_ILLEGAL_STATE, "nothing is captured");
    if (stream->capturer != std::this_thread::get_id())
        QUAMBA_FAIL(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread captures");
    if (!stream->spoilt) *graph = stream->graph;
    if (stream->spoilt) QUAMBA_FAIL(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "a call spoilt the capture");
    return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* runnable, CUgraph graph, unsigned long long flags) {
    QUAMBA_CALL(CONTEXT | NOT_CAPTURED);
    if (!graph || flags) QUAMBA_FAIL(CUDA_ERROR_INVALID_VALUE, "no graph, or flags");
    runnables.push_back(*runnable = new CUgraphExec_st{graph->work});
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
    QUAMBA_CALL(ANYWHERE);
    delete graph;
    return CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec runnable) {
    QUAMBA_CALL(ANYWHERE);
    for (size_t i = 0; i < runnables.size(); i++)
        if (runnables[i] == runnable) {
            runnables.erase(runnables.begin() + long(i));
            delete runnable;
            return CUDA_SUCCESS;
        }
    QUAMBA_FAIL(CUDA_ERROR_INVALID_HANDLE, "no such graph, or its context has gone");
}
CUresult cuGraphUpload(CUgraphExec, CUstream) {
    QUAMBA_CALL(CONTEXT);
    return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec runnable, CUstream stream) {
    QUAMBA_CALL(CONTEXT);
    const std::vector<Work> work = runnable->work;
    return post(__func__, stream, [work] {
        for (const Work& one : work) one();
    });
}
