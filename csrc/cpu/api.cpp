/* What Python calls (backends/cpu.py), by ctypes: teams of threads, plans, and the memory's measured speed. */
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <string>
#include <vector>

#include "clock.h"
#include "kernels.h"
#include "team.h"

using namespace quamba;

namespace {

constexpr size_t LINE = 64;

size_t whole_lines(size_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

struct Plan {
    const Table* table;
    int threads;
    std::deque<Call> calls;  // a deque: stages point at its elements
    std::vector<Stage> stages;
    size_t shared = 0, private_ = 0;
    char* scratch = nullptr;

    ~Plan() { free(scratch); }
};

const Table* table_of(const char* instruction_set) {
    const Table* found;
    for (int i = 0, n = tables(&found); i < n; i++)
        if (!strcmp(found[i].name, instruction_set)) return &found[i];
    return nullptr;
}

}  // namespace

extern "C" {

/* Instruction sets that this machine runs, fastest first, separated by spaces. */
const char* quamba_instruction_sets() {
    static const std::string names = [] {
        const Table* found;
        std::string all;
        for (int i = 0, n = tables(&found); i < n; i++) all += (i ? " " : "") + std::string(found[i].name);
        return all;
    }();
    return names.c_str();
}

/* Multiply-adds a second that one thread can do at most with an instruction set: of int8 dots, and of floats.  0, or -1 for a set that
 * is none of this machine's. */
int quamba_peak(const char* instruction_set, double limit, double* dots, double* fmas) {
    const Table* table = table_of(instruction_set);
    if (!table) return -1;
    table->peak(limit, dots, fmas);
    return 0;
}

void* quamba_team_open(int threads) {
    return new Team(threads);
}

void quamba_team_close(void* team) {
    delete static_cast<Team*>(team);
}

/* An empty plan for so many threads, or null where the instruction set is none of this machine's. */
void* quamba_plan_open(const char* instruction_set, int threads) {
    const Table* table = table_of(instruction_set);
    if (!table) return nullptr;
    Plan* plan = new Plan;
    plan->table = table, plan->threads = threads;
    return plan;
}

void quamba_plan_close(void* plan) {
    delete static_cast<Plan*>(plan);
}

/* Append an op with its arguments in the op's order.  0, or -1 for an unknown op, -2 for counts that are not its own. */
int quamba_plan_add(void* handle, const char* op, int arrays, void* const* pointers, const int64_t* strides, int sizes,
                    const int64_t* size, int scalars, const float* scalar, int state) {
    Plan* plan = static_cast<Plan*>(handle);
    const Kernel* kernel = find(*plan->table, op);
    if (!kernel) return -1;
    if (arrays != kernel->arrays || sizes != kernel->sizes || scalars != kernel->scalars) return -2;
    Call call{};
    for (int i = 0; i < arrays; i++) call.array[i] = pointers[i], call.stride[i] = strides[i];
    for (int i = 0; i < sizes; i++) call.size[i] = size[i];
    for (int i = 0; i < scalars; i++) call.scalar[i] = scalar[i];
    call.state = state, call.threads = plan->threads;
    plan->calls.push_back(call);
    const Shape shape = kernel->shape(plan->calls.back());
    for (int i = 0; i < MAX_STAGES && kernel->stage[i]; i++)
        if (shape.chunks[i]) plan->stages.push_back({kernel->stage[i], &plan->calls.back(), shape.chunks[i], false});
    plan->stages.back().last = true;
    if (shape.shared > plan->shared) plan->shared = shape.shared;
    if (shape.private_ > plan->private_) plan->private_ = shape.private_;
    return 0;
}

/* Allocate the scratch; the plan is complete.  Its bytes, or -1 where there is not so much memory. */
int64_t quamba_plan_ready(void* handle) {
    Plan* plan = static_cast<Plan*>(handle);
    plan->shared = whole_lines(plan->shared), plan->private_ = whole_lines(plan->private_);
    const size_t bytes = plan->shared + size_t(plan->threads) * plan->private_;
    free(plan->scratch);
    plan->scratch = static_cast<char*>(aligned_alloc(LINE, bytes + LINE));
    if (!plan->scratch) return -1;
    for (Call& call : plan->calls) call.shared = plan->scratch;
    return int64_t(bytes);
}

/* Run a plan once.  `times` is null, or receives the seconds of every call. */
double quamba_plan_run(void* handle, void* team, double* times) {
    const Plan* plan = static_cast<const Plan*>(handle);
    const double began = seconds();
    static_cast<Team*>(team)->run(plan->stages.data(), int(plan->stages.size()), plan->scratch + plan->shared, plan->private_,
                                  times);
    return seconds() - began;
}
}
